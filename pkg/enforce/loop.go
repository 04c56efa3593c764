// Package enforce holds the only loop: it makes one policy set of all ConfigMaps,
// brings it into force and publishes what became of it. It decides when something
// is compiled and on what; compile does the compiling, and the engine alone holds
// what is in force.
//
// A turn of the [Loop] starts from the objects as they are now, so any number of
// events may be answered by one turn. It first makes a plan, a pure function of what
// is in force, what is wanted, what was recorded and what other replicas say, and
// then applies it. Bundles of OPA come through the [Inbox] and are answered between
// two turns.
//
// restart.go is what a process does before its first set is in force; replicas.go is
// what a replica does about others; bundles.go is what it does about bundles.
package enforce

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
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
	// ConfigMaps returns the objects as they are now. With an error beside them
	// they are the last that could be read; watch.ErrNotSynced comes without.
	ConfigMaps() ([]*corev1.ConfigMap, error)
	// History returns what was in force of them before; watch.ErrNotSynced as long as
	// that is unknown.
	History() (*configmap.History, error)
}

// Publisher reports to the authors of policies what became of them.
type Publisher interface {
	Publish(state status.State)
	// Leader returns the identity of the replica that writes the reports.
	Leader() string
	// Rescue records modules of a ConfigMap as the revision of this number,
	// whichever replica leads.
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
	// Waiting returns nil once all that is wanted is loaded, or has failed for a reason
	// that is known.
	Waiting() error
	// ByName returns those that policies read by name.
	ByName() policy.Resources
}

// Bundles are policies and data that OPA's plugins bring.
type Bundles interface {
	// Complete reports whether all are in force.
	Complete() bool
}

// Recorder keeps count of what becomes of the modules, and how fast.
type Recorder interface {
	// Reported records what became of the modules of a set.
	Reported(report policy.Report)
	// Compiled records how long it took to compile a set.
	Compiled(took time.Duration)
	// Activated records which set is in force from now on, and since when it was known
	// that something had changed; zero for the first set.
	Activated(fingerprint string, noticed time.Time)
}

// Config is what a Loop needs.
type Config struct {
	Inbox    *Inbox
	Source   Source
	Kinds    configmap.Kinds
	Compiler *compile.Compiler
	Engine   *engine.Engine
	// Replication is nil where nothing is replicated, Bundles where nobody brings any,
	// Publisher where nobody reads reports, Replicas where there are no others.
	Replication Replication
	Bundles     Bundles
	Publisher   Publisher
	Replicas    Replicas
	// Identity is that of this replica.
	Identity string
	// Entrypoint is the decision that the webhook asks for: the log says if nothing
	// defines it.
	Entrypoint string
	Recorder   Recorder
	Log        *slog.Logger
}

// Loop brings into force what the ConfigMaps and the bundles want. Its methods but Run
// may be called by several goroutines.
type Loop struct {
	config    Config
	condition condition
	// What follows belongs to the goroutine of Run.
	start    start
	attempts attempts
	losses   losses
	left     leftBundles
}

// New makes a loop; nothing is in force before Run.
func New(config Config) *Loop {
	l := &Loop{config: config}
	l.condition.setWaiting(watch.ErrNotSynced)
	return l
}

// Run makes a turn for each Look, and answers proposals, until ctx ends. Then it does nothing more: a
// compilation that it has left behind may still use the compiler.
func (l *Loop) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			return nil
		case p := <-l.acceptedProposals():
			p.answer <- l.condition.during(func() error { return l.propose(ctx, p) })
		case noticed := <-l.config.Inbox.looks:
			began, before := time.Now(), l.config.Engine.InForce()
			err := l.condition.during(func() error { return l.turn(ctx, noticed) })
			if ctx.Err() == nil && err != nil {
				return err
			}
			if l.config.Engine.InForce() == before {
				rest(ctx, min(idleFactor*time.Since(began), maxRest))
			}
		}
	}
	return nil
}

const (
	// idleFactor times as long as a turn that found nothing to do takes, the loop
	// rests: our own writes of statuses and revisions raise events too, a hundred
	// a second at times, and looking at 1,000 policies takes some milliseconds.
	idleFactor = 4
	// maxRest bounds what that adds to the time in which an edit is enforced.
	maxRest = 100 * time.Millisecond
)

func rest(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// inputs are what a turn starts from: all there is to know, as it is now.
type inputs struct {
	configMaps  []*corev1.ConfigMap
	history     *configmap.History
	wanted      policy.Set
	fingerprint string           // of the wanted set
	resources   policy.Resources // that policies read; nil where nothing is replicated
}

// key is what decides whether a set has been compiled already.
type key struct {
	wanted    string
	resources policy.Resources
}

func (in inputs) key() *key { return &key{wanted: in.fingerprint, resources: in.resources} }

func (k *key) equal(other *key) bool {
	return k != nil && other != nil && k.wanted == other.wanted && maps.Equal(k.resources, other.resources)
}

// inForce returns the snapshot in force; nil before the first is.
func (l *Loop) inForce() *compile.Snapshot {
	if now := l.config.Engine.InForce(); now != nil {
		return now.Snapshot()
	}
	return nil
}

// Report says what became of the set last compiled.
func (l *Loop) Report() policy.Report {
	if now := l.config.Engine.InForce(); now != nil {
		return now.Report()
	}
	return policy.Report{}
}

// turn brings into force what the ConfigMaps want now. noticed is when somebody looked.
func (l *Loop) turn(ctx context.Context, noticed time.Time) error {
	now, ok := l.gather()
	if !ok {
		return nil // what is in force stays
	}
	if l.inForce() == nil && !l.bundlesArrived() {
		return nil
	}
	if err := l.dropBundles(ctx, now, noticed); err != nil {
		return err
	}
	plan := l.view(now).plan()
	base, err := l.base(ctx, plan, now)
	if err != nil {
		return err
	}
	if plan.compile || base != l.inForce() {
		l.config.Log.Debug("compiling", "base", plan.base.String(), "why", plan.why)
		if err := l.enforce(ctx, base, now, noticed); err != nil || l.inForce() == nil {
			return err // or something is waited for
		}
		l.config.Inbox.Look() // what came to be held may have a newer version in the history
	}
	l.publish(now)
	return nil
}

// gather reads all that a turn starts from. It is false while something of that is not
// known, and the condition says what.
func (l *Loop) gather() (inputs, bool) {
	now, err := l.read()
	if errors.Is(err, watch.ErrNotSynced) {
		l.condition.setWaiting(err)
		return now, false
	}
	l.sourceFailed(err)
	if err != nil && now.configMaps == nil {
		return now, false
	}
	if l.config.Replication == nil {
		return now, true
	}
	names := l.want(now)
	if err := l.config.Replication.Waiting(); err != nil && l.inForce() == nil {
		l.waitForObjects(err)
		return now, false
	}
	now.resources = l.resources(names)
	return now, true
}

// read reads the ConfigMaps and what was recorded of them. With an error beside them the
// ConfigMaps are the last that could be read; there are none with watch.ErrNotSynced.
func (l *Loop) read() (inputs, error) {
	configMaps, err := l.config.Source.ConfigMaps()
	history, errHistory := l.config.Source.History()
	for _, err := range []error{err, errHistory} {
		if errors.Is(err, watch.ErrNotSynced) {
			return inputs{}, err
		}
	}
	wanted := l.wantedSet(configMaps)
	return inputs{configMaps: configMaps, history: history, wanted: wanted, fingerprint: wanted.Fingerprint()}, err
}

func (l *Loop) wantedSet(configMaps []*corev1.ConfigMap) policy.Set {
	set := make(policy.Set, len(configMaps))
	for _, cm := range configMaps {
		for _, m := range l.config.Kinds.Modules(cm) {
			set[m.ID] = m
		}
	}
	return set
}

// want has what policies read replicated: policies in force, those that were in force
// last, and the wanted ones; and bundles. It returns the names of the resources.
func (l *Loop) want(now inputs) []string {
	names := l.config.Compiler.ResourceNames(l.inForce(), now.history.InForce(), now.wanted)
	if l.inForce() == nil && l.start.base != nil {
		names = append(names, l.config.Compiler.ResourceNames(l.start.base, nil, nil)...)
	}
	names = append(names, l.left.resources...)
	slices.Sort(names)
	names = slices.Compact(names)
	l.config.Replication.Want(names)
	return names
}

// resources returns what is known of resources, of these names only.
func (l *Loop) resources(names []string) policy.Resources {
	known := l.config.Replication.ByName()
	maps.DeleteFunc(known, func(name string, _ policy.Resource) bool { return !slices.Contains(names, name) })
	return known
}

// publish reports to other replicas and to the authors what is in force.
func (l *Loop) publish(now inputs) {
	inForce := l.inForce()
	if l.config.Replicas != nil {
		l.config.Replicas.Publish(inForce.Fingerprint(), now.fingerprint)
	}
	if l.config.Publisher != nil {
		l.config.Publisher.Publish(status.State{
			ConfigMaps: now.configMaps,
			Report:     l.Report(),
			Keep:       l.losses.keep(inForce.Modules(), now.history, now.wanted),
			History:    now.history,
		})
	}
}

// enforce compiles the wanted set on a base and activates it. What is fresh goes into
// force, and is published, before what was held is tried again; at the start both go
// together, since there is nothing yet that could stay in force.
func (l *Loop) enforce(ctx context.Context, base *compile.Snapshot, now inputs, noticed time.Time) error {
	first, began := l.inForce() == nil, time.Now()
	fresh, err := measured(ctx, l.config.Recorder, func() *compile.Snapshot {
		if first {
			return l.config.Compiler.Settle(base, now.wanted, now.resources, nil)
		}
		return l.config.Compiler.Compile(base, now.wanted, now.resources)
	})
	if err != nil {
		return err
	}
	if unknown, ok := l.config.Compiler.UnknownResource(fresh, now.resources); first && ok {
		// To go on without it would turn yes into no, or no into yes.
		l.waitForObjects(fmt.Errorf("%s: %s", unknown.Path, unknown.Reason))
		return nil
	}
	before := l.Report()
	l.attempts.noteCompiled(now)
	l.activate(fresh, noticed, began)
	if !first && len(fresh.Report().Held()) > 0 {
		l.publish(now)
		if err := l.retry(ctx, fresh, now, noticed, began); err != nil {
			return err
		}
	}
	l.logHeld(ctx, before, l.Report())
	return nil
}

// retry tries what is held once more. If it is interrupted, the set counts as one
// that was never compiled: should it be wanted again, there is more to try.
func (l *Loop) retry(ctx context.Context, fresh *compile.Snapshot, now inputs, noticed, began time.Time) error {
	interrupted := false
	retried, err := measured(ctx, l.config.Recorder, func() *compile.Snapshot {
		return l.config.Compiler.Retry(fresh, now.wanted, now.resources, func() bool {
			interrupted = interrupted || l.overtaken(now)
			return interrupted
		})
	})
	if err != nil {
		return err
	}
	if interrupted {
		l.attempts.compileAgain()
	}
	l.activate(retried, noticed, began)
	return nil
}

// overtaken reports whether the set that is being compiled is no longer the one
// that is wanted.
func (l *Loop) overtaken(now inputs) bool {
	if len(l.config.Inbox.looks) == 0 {
		return false
	}
	configMaps, err := l.config.Source.ConfigMaps()
	return err == nil && l.wantedSet(configMaps).Fingerprint() != now.fingerprint
}

// settle returns what becomes of a set on a base, of all changes together.
func (l *Loop) settle(ctx context.Context, base *compile.Snapshot, set policy.Set, known policy.Resources) (*compile.Snapshot, error) {
	return measured(ctx, l.config.Recorder, func() *compile.Snapshot {
		return l.config.Compiler.Settle(base, set, known, nil)
	})
}

// measured returns the result of work, and records how long that took. OPA's compiler
// knows no context: if ctx ends first, the process is about to end too and does not wait
// for it. Whoever gets the error of ctx must not use the compiler any more.
func measured[T any](ctx context.Context, recorder Recorder, work func() T) (result T, err error) {
	began := time.Now()
	done := make(chan T, 1)
	go func() { done <- work() }()
	select {
	case result = <-done:
		recorder.Compiled(time.Since(began))
		return result, nil
	case <-ctx.Done():
		return result, ctx.Err()
	}
}

// activate brings next into force. began is when its compilation started, noticed when
// somebody looked. A changed fingerprint or changed bundles affect only logs and metrics.
func (l *Loop) activate(next *compile.Snapshot, noticed, began time.Time) {
	before := l.inForce()
	report := l.losses.explain(next)
	l.config.Engine.Activate(next, report)
	l.start.base, l.left.due = nil, true
	l.condition.setWaiting(nil)
	l.config.Recorder.Reported(report)
	if before == nil {
		noticed = time.Time{} // a start is no change
	}
	changed := before == nil || before.Fingerprint() != report.Fingerprint
	if changed || !next.SharesBundles(before) {
		l.config.Recorder.Activated(report.Fingerprint, noticed)
	}
	if changed {
		l.logActivated(next, report, time.Since(began))
	}
}

func (l *Loop) waitForObjects(err error) {
	l.condition.setWaiting(fmt.Errorf("waiting for replicated objects: %w", err))
}
