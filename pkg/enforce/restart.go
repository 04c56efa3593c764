package enforce

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/kube-rego/kube-rego/pkg/compile"
	"github.com/kube-rego/kube-rego/pkg/configmap"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// start is what a process has before its first set is in force.
type start struct {
	// base is what the first set is made on: the bundles that have come, and what they
	// need of what was recorded. nil before it is known what was recorded.
	base *compile.Snapshot
	// gaveUp is true once bundles are not waited for any longer.
	gaveUp atomic.Bool
}

// ErrBundles is why nothing is in force while bundles are waited for.
var ErrBundles = errors.New("waiting for bundles")

// bundlesTimeout is how long the first policy set waits for bundles: a service that does
// not answer must not keep the policies of ConfigMaps out for ever. OPA's plugin gives up
// an attempt after 10 s (response_header_timeout_seconds of a service).
const bundlesTimeout = 10 * time.Second

// bundlesArrived reports whether the first set can be made: all bundles are there, or they
// are not waited for any longer. They come before what the ConfigMaps want now, so that
// every replica holds the same of two that clash.
func (l *Loop) bundlesArrived() bool {
	if l.start.base == nil {
		l.start.base = l.config.Compiler.Empty()
		time.AfterFunc(bundlesTimeout, func() {
			l.start.gaveUp.Store(true)
			l.config.Inbox.Look()
		})
	}
	if l.config.Bundles == nil || l.config.Bundles.Complete() || l.start.gaveUp.Load() {
		return true
	}
	l.condition.setWaiting(ErrBundles)
	return false
}

// restore makes the set that was in force last, on a base that may have bundles. A
// module of it may be no good any more: the OPA in this process may be newer, or a
// flag another.
func (l *Loop) restore(ctx context.Context, now inputs) (*compile.Snapshot, error) {
	snapshot, err := l.recorded(ctx, l.start.base, now.history)
	if err != nil {
		return nil, err
	}
	l.losses = make(losses)
	for _, s := range snapshot.Report().Held() {
		if s.Deleted {
			continue // a bundle brought it along, or the revision before
		}
		l.losses[s.ID] = loss{recorded: now.history.InForce()[s.ID], problems: s.Problems}
		l.config.Log.Error("the version that was in force last does not compile any more",
			"module", s.ID.String(), "inForce", s.InForce, "problems", problems(s))
	}
	return snapshot, nil
}

// recorded returns what becomes of all that was in force last. What was in force stays,
// whatever it reads: nothing is held for what is not known.
func (l *Loop) recorded(ctx context.Context, base *compile.Snapshot, history *configmap.History) (*compile.Snapshot, error) {
	snapshot, err := l.settle(ctx, base, history.InForce(), nil)
	for _, n := range replays {
		if err != nil || countLost(snapshot) == 0 {
			break
		}
		var replayed *compile.Snapshot
		if replayed, err = l.replay(ctx, base, history, n); err == nil && countLost(replayed) < countLost(snapshot) {
			snapshot = replayed
		}
	}
	return snapshot, err
}

// countLost returns how many modules of its set a snapshot has in no version.
func countLost(s *compile.Snapshot) int {
	n := 0
	for _, held := range s.Report().Held() {
		if held.InForce == policy.None {
			n++
		}
	}
	return n
}

// replay returns what becomes of all that was in force last if it goes into force as it was
// recorded, beginning before the last n revisions. The writer may have died between two
// that need each other, a library and what calls it: then both stay as they were before.
func (l *Loop) replay(ctx context.Context, base *compile.Snapshot, history *configmap.History, n int) (*compile.Snapshot, error) {
	n = min(n, history.Writes())
	snapshot, err := l.settle(ctx, base, history.Before(n), nil)
	for n > 0 && err == nil {
		if n > oneByOne {
			n /= 2
		} else {
			n--
		}
		snapshot, err = l.settle(ctx, snapshot, history.Before(n), nil)
	}
	return snapshot, err
}

// replays are from how many revisions before the last the start replays what was recorded,
// if not all of it goes together. What the writer had not come to when it died are mostly
// the last few edits; 1,000 are as many as its client's rate lets it write in 10 s.
var replays = []int{16, 1000}

// oneByOne is how many revisions are replayed one by one: each costs a compilation, and a
// replay is to stay within some 20 s for a thousand policies.
const oneByOne = 64

// losses are modules whose last good version is no good any more.
type losses map[policy.ID]loss

// loss is a version that was in force last and does not compile any more.
type loss struct {
	recorded policy.Module
	problems []policy.Problem
}

// isMadeGood reports whether that version, or a later one, is in force after all.
func (l loss) isMadeGood(inForce policy.Module) bool {
	return inForce.Digest() == l.recorded.Digest() || inForce.ObjectVersion > l.recorded.ObjectVersion
}

// explain returns the report of a snapshot, with the reason why the last good version of a
// held module is not in force. It forgets the losses that are made good.
func (l losses) explain(snapshot *compile.Snapshot) policy.Report {
	report := snapshot.Report()
	report.Modules = slices.Clone(report.Modules)
	for i, s := range report.Modules {
		lost, ok := l[s.ID]
		if !ok {
			continue
		}
		if inForce, ok := snapshot.Module(s.ID); ok && (s.InForce == policy.Current || lost.isMadeGood(inForce)) {
			delete(l, s.ID)
			continue
		}
		for _, p := range lost.problems {
			// The place is in a text that nobody sees any more.
			s.Problems = append(s.Problems[:len(s.Problems):len(s.Problems)], policy.Problem{
				Code:    p.Code,
				Message: fmt.Sprintf("the version that was in force last does not compile any more: %s", p),
			})
		}
		report.Modules[i].Problems = s.Problems
	}
	return report
}

// keep returns the modules to record: those in force, and of those whose last good
// version is no good here the recorded one, as long as they are wanted and nothing later
// is in force. Another process may be able to enforce it, after a flag or a version was
// taken back.
func (l losses) keep(inForce policy.Set, history *configmap.History, wanted policy.Set) policy.Set {
	for id, lost := range l {
		now, isInForce := inForce[id]
		_, isWanted := wanted[id]
		recorded, ok := history.InForce()[id]
		if ok && isWanted && (!isInForce || !lost.isMadeGood(now)) {
			inForce[id] = recorded
		}
	}
	return inForce
}
