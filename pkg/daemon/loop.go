package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kube-rego/kube-rego/pkg/compile"
	"github.com/kube-rego/kube-rego/pkg/configmap"
	"github.com/kube-rego/kube-rego/pkg/engine"
	"github.com/kube-rego/kube-rego/pkg/policy"
	"github.com/kube-rego/kube-rego/pkg/status"
	"github.com/kube-rego/kube-rego/pkg/watch"
)

// Source knows the ConfigMaps that are policies.
type Source interface {
	// Run watches until ctx ends, and calls look whenever something may have
	// changed.
	Run(ctx context.Context, look func()) error
	// ConfigMaps are the objects as they are now. With an error beside them
	// they are the last that could be read; watch.ErrNotSynced comes without.
	ConfigMaps() ([]*corev1.ConfigMap, error)
	// History is what was in force of them before; watch.ErrNotSynced as long as
	// that is not known.
	History() (*configmap.History, error)
}

// Publisher tells the authors of policies what became of them.
type Publisher interface {
	Publish(state status.State)
	// Leader is the identity of the replica that does the telling.
	Leader() string
	// Rescue records modules of a ConfigMap as the revision of this number,
	// whoever does the telling.
	Rescue(name types.NamespacedName, number int64, modules policy.Set)
}

// Replicas know what every replica has in force.
type Replicas interface {
	Publish(inForce, wanted string)
	List() []policy.Replica
}

// Replication puts objects of the cluster into data.
type Replication interface {
	// Want says which resources policies read, by name.
	Want(names []string)
	// Waiting is nil once all that is wanted is loaded, or it is known why it is not.
	Waiting() error
	// ByName are those that policies read by name.
	ByName() policy.Resources
	// Resources are all that are wanted.
	Resources() []policy.Resource
}

// Bundles are policies and data that OPA's plugins bring.
type Bundles interface {
	// Complete reports whether all are in force.
	Complete() bool
}

// Recorder keeps count of what becomes of the modules, and how fast.
type Recorder interface {
	// Reported says what became of the modules of a set.
	Reported(report policy.Report)
	// Compiled says how long it took to compile a set.
	Compiled(took time.Duration)
	// Activated says which set is in force from now on, and since when it was known
	// that something had changed; zero for the first set.
	Activated(fingerprint string, noticed time.Time)
}

// stuckAfter is when the loop counts as stuck: the slowest turn known, a set of
// 10,000 modules of which hundreds contradict each other, takes 20 minutes.
const stuckAfter = 30 * time.Minute

// loop is the only one: it makes of all ConfigMaps one policy set, brings it
// into force and passes on what became of it. All that it does starts from the
// objects as they are now, so any number of events may be answered by one turn.
type loop struct {
	source      Source
	kinds       configmap.Kinds
	entrypoint  string
	compiler    *compile.Compiler
	engine      *engine.Engine
	replication Replication // nil where nothing is replicated
	bundles     Bundles     // nil where nobody brings any
	publisher   Publisher   // nil where there is nobody to tell
	replicas    Replicas    // nil where there are no others
	identity    string      // ours
	recorder    Recorder
	log         *slog.Logger

	trigger   chan time.Time    // one slot: "look again", and since when that is asked for
	noticed   time.Time         // when the turn was asked for
	snapshot  *compile.Snapshot // in force; nil until the first is
	wanted    string            // fingerprint of the set last compiled
	resources policy.Resources  // that policies read
	known     policy.Resources  // what a compilation may know of them
	compiled  policy.Resources  // as they were when the set was last compiled
	memory    memory

	proposals chan proposal
	initial   *compile.Snapshot  // what is taken in before the first set goes into force: bundles, and what they need
	removal   *compile.BundleSet // bundles that are left, as long as what is in force needs the others
	tried     *compile.Snapshot  // in force when that was tried last
	reads     []string           // names of resources that bundles read which were refused for that
	overdue   atomic.Bool        // bundles are not waited for any longer

	mu sync.Mutex
	state
}

// state is what probes and /status read while the loop runs.
type state struct {
	report      policy.Report
	sourceError error
	waiting     error     // why no set is in force yet; nil once one is
	busySince   time.Time // start of the turn; zero between turns
}

// look asks for one more turn. It never blocks: if one is asked for already,
// that one sees the change too.
func (l *loop) look() {
	select {
	case l.trigger <- time.Now():
	default:
	}
}

func (l *loop) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case p := <-l.welcome():
			l.noticed = p.made
			l.update(func(s *state) { s.busySince = time.Now() })
			err := l.consider(ctx, p.set)
			l.update(func(s *state) { s.busySince = time.Time{} })
			p.answer <- err
			continue
		case l.noticed = <-l.trigger:
		}
		start := time.Now()
		l.update(func(s *state) { s.busySince = start })
		before := l.snapshot
		err := l.turn(ctx)
		l.update(func(s *state) { s.busySince = time.Time{} })
		if err != nil && ctx.Err() == nil {
			return err
		}
		if l.snapshot == before {
			pause(ctx, min(idleFactor*time.Since(start), maxPause))
		}
	}
}

const (
	// idleFactor times as long as a turn that found nothing to do takes, the loop
	// rests: our own writes of statuses and revisions raise events too, a hundred
	// a second at times, and looking at 1,000 policies takes some milliseconds.
	idleFactor = 4
	// maxPause bounds what that adds to the time in which an edit is enforced.
	maxPause = 100 * time.Millisecond
)

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// turn brings into force what the ConfigMaps want now.
func (l *loop) turn(ctx context.Context) error {
	configMaps, history, ok := l.objects()
	if !ok {
		return nil // what is in force stays
	}
	set := l.wantedSet(configMaps)
	wanted := set.Fingerprint()
	if !l.replicate(history, set) {
		return nil
	}
	if l.snapshot == nil && !l.awaited() {
		return nil
	}
	l.remove(ctx)
	base, err := l.base(ctx, history, set, wanted)
	if err != nil {
		return err
	}
	l.known = l.resources
	if wanted != l.wanted || base != l.snapshot || !maps.Equal(l.resources, l.compiled) {
		l.compiled = l.resources
		tell := func() { l.publish(configMaps, history, set, wanted) }
		if err := l.enforce(ctx, base, set, wanted, tell); err != nil || l.snapshot == nil {
			return err // or something is waited for
		}
		l.look() // what came to be held may have a newer version in the history
	}
	l.publish(configMaps, history, set, wanted)
	return nil
}

// objects are the ConfigMaps as they are now and what was recorded of them; false
// if they are not known, and the state says why.
func (l *loop) objects() ([]*corev1.ConfigMap, *configmap.History, bool) {
	configMaps, err := l.source.ConfigMaps()
	history, errHistory := l.source.History()
	for _, err := range []error{err, errHistory} {
		if errors.Is(err, watch.ErrNotSynced) {
			l.update(func(s *state) { s.waiting = err })
			return nil, nil, false
		}
	}
	l.sourceFailed(err)
	return configMaps, history, err == nil || configMaps != nil
}

// replicate has replicated what policies read: those in force, those that were in force
// last, and the wanted ones. At the start it is false until the first lists are there, or
// it is known why they are not.
func (l *loop) replicate(history *configmap.History, set policy.Set) bool {
	if l.replication == nil {
		return true
	}
	names := l.compiler.ResourceNames(l.snapshot, history.InForce(), set)
	for _, name := range append(l.bundleReads(), l.reads...) {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	l.replication.Want(names)
	if err := l.replication.Waiting(); err != nil && l.snapshot == nil {
		l.wait(err)
		return false
	}
	l.resources = l.replication.ByName()
	maps.DeleteFunc(l.resources, func(name string, _ policy.Resource) bool { return !slices.Contains(names, name) })
	return true
}

// bundleReads are the resources that bundles read which came before the first set.
func (l *loop) bundleReads() []string {
	if l.snapshot != nil || l.initial == nil {
		return nil
	}
	return l.compiler.ResourceNames(l.initial, nil, nil)
}

func (l *loop) wait(err error) {
	l.update(func(s *state) { s.waiting = fmt.Errorf("waiting for replicated objects: %w", err) })
}

// publish tells other replicas and the authors what is in force.
func (l *loop) publish(configMaps []*corev1.ConfigMap, history *configmap.History, set policy.Set, wanted string) {
	if l.replicas != nil {
		l.replicas.Publish(l.snapshot.Fingerprint(), wanted)
	}
	if l.publisher != nil {
		l.publisher.Publish(status.State{
			ConfigMaps: configMaps,
			Report:     l.Report(),
			Keep:       l.memory.keep(l.snapshot.Modules(), history, set),
			History:    history,
		})
	}
}

func (l *loop) wantedSet(configMaps []*corev1.ConfigMap) policy.Set {
	set := make(policy.Set, len(configMaps))
	for _, cm := range configMaps {
		for _, m := range l.kinds.Modules(cm) {
			set[m.ID] = m
		}
	}
	return set
}

// enforce compiles the set on a base and swaps it in. What is fresh goes into
// force, and is told, before what was held is tried again; at the start both go
// together, since there is nothing yet that could stay in force.
func (l *loop) enforce(ctx context.Context, base *compile.Snapshot, set policy.Set, wanted string, tell func()) error {
	first, start := l.snapshot == nil, time.Now()
	fresh, err := l.compile(ctx, func() compiled {
		c := newCompiled(l.compiler.Compile(base, set, l.known))
		if first {
			c = newCompiled(l.compiler.Retry(c.snapshot, set, l.known, nil))
		}
		return c
	})
	if err != nil {
		return err
	}
	if lacking, ok := l.compiler.UnknownResource(fresh.snapshot, l.resources); first && ok {
		// To go on without it would turn yes into no, or no into yes.
		l.wait(fmt.Errorf("%s: %s", lacking.Path, lacking.Reason))
		return nil
	}
	before := l.Report()
	l.activate(fresh, start)
	l.wanted = wanted
	if !first && len(fresh.report.Held()) > 0 {
		tell()
		if err := l.retry(ctx, fresh.snapshot, set, start); err != nil {
			return err
		}
	}
	l.tell(ctx, before, l.Report())
	return nil
}

// retry tries what is held once more. If it is interrupted, the set counts as one
// that was never compiled: should it be wanted again, there is more to try.
func (l *loop) retry(ctx context.Context, fresh *compile.Snapshot, set policy.Set, start time.Time) error {
	interrupted := false
	retried, err := l.compile(ctx, func() compiled {
		return newCompiled(l.compiler.Retry(fresh, set, l.known, func() bool {
			interrupted = interrupted || l.overtaken()
			return interrupted
		}))
	})
	if err != nil {
		return err
	}
	if interrupted {
		l.wanted = ""
	}
	l.activate(retried, start)
	return nil
}

// overtaken reports whether the set that is being compiled is no longer the one
// that is wanted.
func (l *loop) overtaken() bool {
	if len(l.trigger) == 0 {
		return false
	}
	configMaps, err := l.source.ConfigMaps()
	return err == nil && l.wantedSet(configMaps).Fingerprint() != l.wanted
}

// compiled is what the engine made of a set.
type compiled struct {
	snapshot *compile.Snapshot
	report   policy.Report
}

func newCompiled(snapshot *compile.Snapshot) compiled {
	return compiled{snapshot, snapshot.Report()}
}

// lost are the wanted modules of which nothing is in force.
func (c compiled) lost() []policy.Status {
	return slices.DeleteFunc(c.report.Held(), func(s policy.Status) bool { return s.InForce != policy.None })
}

// compile lets the engine work.
func (l *loop) compile(ctx context.Context, work func() compiled) (compiled, error) {
	return measured(ctx, l.recorder, work)
}

// measured is what the engine made, and has it recorded how long that took.
func measured[T any](ctx context.Context, recorder Recorder, work func() T) (T, error) {
	start := time.Now()
	result, err := await(ctx, work)
	if err == nil {
		recorder.Compiled(time.Since(start))
	}
	return result, err
}

// await is the result of work. OPA's compiler knows no context: if ctx ends first, the
// process is about to end too and does not wait for it.
func await[T any](ctx context.Context, work func() T) (result T, err error) {
	done := make(chan T, 1)
	go func() { done <- work() }()
	select {
	case result = <-done:
		return result, nil
	case <-ctx.Done():
		return result, ctx.Err()
	}
}

// activate swaps a snapshot in, the making of which began at start, and tells of
// it.
func (l *loop) activate(c compiled, start time.Time) {
	l.swap(c.snapshot, l.snapshot == nil || l.snapshot.Fingerprint() != c.snapshot.Fingerprint())
	report := l.memory.explain(c)
	before := l.Report()
	l.recorder.Reported(report)
	l.update(func(s *state) { s.report, s.waiting = report, nil })
	if before.Fingerprint != report.Fingerprint {
		l.log.Info("policy set in force",
			"fingerprint", report.Fingerprint, "modules", len(c.snapshot.IDs()), "held", len(report.Held()), "took", time.Since(start))
		if !c.snapshot.Defines(l.entrypoint) {
			l.log.Warn("no policy in force defines the entrypoint: there is no decision, and every review is refused",
				"entrypoint", l.entrypoint, "modules", len(c.snapshot.IDs()))
		}
		if _, instead := c.snapshot.BuiltinEntrypoint(); instead {
			l.log.Warn("a policy of the package system is held and nothing of it in force: the built-in entrypoint answers instead", "entrypoint", l.entrypoint)
		}
	}
}

// swap has decisions made with another snapshot from now on. Metrics count it as a change
// if it is one.
func (l *loop) swap(next *compile.Snapshot, isChange bool) {
	l.engine.Activate(next, next.Report())
	noticed := l.noticed
	if l.snapshot == nil {
		noticed = time.Time{} // a start is no change
	}
	l.snapshot = next
	if isChange {
		l.recorder.Activated(next.Fingerprint(), noticed)
	}
}

// tell logs which modules came to be held and which no longer are.
func (l *loop) tell(ctx context.Context, before, after policy.Report) {
	was := make(map[policy.ID]policy.Status, len(before.Modules))
	for _, s := range before.Modules {
		was[s.ID] = s
	}
	for _, s := range after.Modules {
		switch {
		case s.Pending():
		case s.Held() && !slices.Equal(s.Problems, was[s.ID].Problems):
			l.tellHeld(ctx, s)
		case !s.Held() && was[s.ID].Held() && !was[s.ID].Pending():
			l.log.Info("module in force again", "module", s.ID.String())
		}
	}
}

func (l *loop) tellHeld(ctx context.Context, s policy.Status) {
	level := slog.LevelWarn
	if s.InForce == policy.None {
		level = slog.LevelError // nothing of what its author wants is enforced
	}
	log := l.log
	if s.Deleted {
		log = log.With("deleted", true)
	}
	log.Log(ctx, level, "module held", "module", s.ID.String(), "inForce", s.InForce, "problems", problems(s))
	for _, p := range s.Problems {
		if p.Source != "" {
			log.Log(ctx, level, "module held at", "module", s.ID.String(), "row", p.Row, "col", p.Col, "source", p.Source, "caret", p.Caret)
		}
	}
}

// problems are the problems of a module in one line.
func problems(s policy.Status) string {
	all := make([]string, 0, len(s.Problems))
	for _, p := range s.Problems {
		all = append(all, p.String())
	}
	return strings.Join(all, "; ")
}

// sourceFailed logs when an error of the source comes, changes or goes.
func (l *loop) sourceFailed(err error) {
	var before error
	l.update(func(s *state) { before, s.sourceError = s.sourceError, err })
	switch {
	case err != nil && (before == nil || before.Error() != err.Error()):
		l.log.Error("policies cannot be read; what was read before stays in force", "error", err)
	case err == nil && before != nil:
		l.log.Info("policies can be read again")
	}
}

func (l *loop) update(change func(*state)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(&l.state)
}

func (l *loop) read() state {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state
}

// Ready is nil once a whole policy set is in force, or why none is yet.
func (l *loop) Ready() error { return l.read().waiting }

// Healthy is nil unless the loop is stuck.
func (l *loop) Healthy() error {
	if s := l.read(); !s.busySince.IsZero() && time.Since(s.busySince) > stuckAfter {
		return fmt.Errorf("the policy loop has not come round for %s", time.Since(s.busySince).Round(time.Second))
	}
	return nil
}

// Report is what became of the set last compiled.
func (l *loop) Report() policy.Report { return l.read().report }

// SourceError is why the newest policies could not be read; empty if they were.
func (l *loop) SourceError() string {
	if err := l.read().sourceError; err != nil {
		return err.Error()
	}
	return ""
}
