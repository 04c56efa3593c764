package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/kube-rego/kube-rego/pkg/configmap"
	"github.com/kube-rego/kube-rego/pkg/engine"
	"github.com/kube-rego/kube-rego/pkg/policy"
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
}

// Publisher tells the authors of policies what became of them.
type Publisher interface {
	Publish(configMaps []*corev1.ConfigMap, report policy.Report)
}

// Recorder keeps count of what became of the modules.
type Recorder interface {
	Reported(report policy.Report)
}

// stuckAfter is when the loop counts as stuck: the slowest turn known, a set of
// 10,000 modules of which hundreds contradict each other, takes 20 minutes.
const stuckAfter = 30 * time.Minute

// loop is the only one: it makes of all ConfigMaps one policy set, brings it
// into force and passes on what became of it. All that it does starts from the
// objects as they are now, so any number of events may be answered by one turn.
type loop struct {
	source     Source
	entrypoint string
	compiler   *engine.Compiler
	engine     *engine.Engine
	publisher  Publisher // nil where there is nobody to tell
	recorder   Recorder
	log        *slog.Logger

	trigger  chan struct{}    // one slot: "look again"
	snapshot *engine.Snapshot // in force
	wanted   string           // fingerprint of the set last compiled

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
	case l.trigger <- struct{}{}:
	default:
	}
}

func (l *loop) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.trigger:
		}
		l.update(func(s *state) { s.busySince = time.Now() })
		err := l.turn(ctx)
		l.update(func(s *state) { s.busySince = time.Time{} })
		if err != nil && ctx.Err() == nil {
			return err
		}
	}
}

// turn brings into force what the ConfigMaps want now.
func (l *loop) turn(ctx context.Context) error {
	configMaps, err := l.source.ConfigMaps()
	if errors.Is(err, watch.ErrNotSynced) {
		l.update(func(s *state) { s.waiting = err })
		return nil
	}
	l.sourceFailed(err)
	if err != nil && configMaps == nil {
		return nil // nothing is known: what is in force stays
	}
	set := wantedSet(configMaps)
	if fingerprint := set.Fingerprint(); fingerprint != l.wanted {
		if err := l.enforce(ctx, set); err != nil {
			return err
		}
		l.wanted = fingerprint
	}
	if l.publisher != nil {
		l.publisher.Publish(configMaps, l.Report())
	}
	return nil
}

func wantedSet(configMaps []*corev1.ConfigMap) policy.Set {
	set := make(policy.Set, len(configMaps))
	for _, cm := range configMaps {
		for _, m := range configmap.Modules(cm) {
			set[m.ID] = m
		}
	}
	return set
}

// enforce compiles the set and swaps it in.
func (l *loop) enforce(ctx context.Context, set policy.Set) error {
	start := time.Now()
	snapshot, report, err := l.compile(ctx, set)
	if err != nil {
		return err
	}
	if err := l.engine.Activate(ctx, snapshot); err != nil {
		return err
	}
	l.snapshot = snapshot
	before := l.Report()
	l.update(func(s *state) { s.report, s.waiting = report, nil })
	l.recorder.Reported(report)
	l.tell(ctx, before, report)
	if before.Fingerprint != report.Fingerprint {
		l.log.Info("policy set in force",
			"fingerprint", report.Fingerprint, "modules", len(snapshot.IDs()), "held", len(report.Held()), "took", time.Since(start))
		if !snapshot.Defines(l.entrypoint) {
			l.log.Warn("no policy in force defines the entrypoint: there is no decision, and every review is refused",
				"entrypoint", l.entrypoint, "modules", len(snapshot.IDs()))
		}
	}
	return nil
}

// compile compiles the set. OPA's compiler knows no context: if ctx ends first,
// the process is about to end too and does not wait for it.
func (l *loop) compile(ctx context.Context, set policy.Set) (*engine.Snapshot, policy.Report, error) {
	type compiled struct {
		snapshot *engine.Snapshot
		report   policy.Report
	}
	done := make(chan compiled, 1)
	go func() {
		snapshot, report := l.compiler.Compile(l.snapshot, set)
		done <- compiled{snapshot, report}
	}()
	select {
	case c := <-done:
		return c.snapshot, c.report, nil
	case <-ctx.Done():
		return nil, policy.Report{}, ctx.Err()
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
		case s.Held() && !slices.Equal(s.Problems, was[s.ID].Problems):
			l.tellHeld(ctx, s)
		case !s.Held() && was[s.ID].Held():
			l.log.Info("module in force again", "module", s.ID.String())
		}
	}
}

func (l *loop) tellHeld(ctx context.Context, s policy.Status) {
	level := slog.LevelWarn
	if s.InForce == policy.None {
		level = slog.LevelError // nothing of what its author wants is enforced
	}
	problems := make([]string, 0, len(s.Problems))
	for _, p := range s.Problems {
		problems = append(problems, p.String())
	}
	log := l.log
	if s.Deleted {
		log = log.With("deleted", true)
	}
	log.Log(ctx, level, "module held", "module", s.ID.String(), "inForce", s.InForce, "problems", strings.Join(problems, "; "))
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
