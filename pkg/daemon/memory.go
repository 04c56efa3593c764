package daemon

import (
	"context"
	"fmt"
	"maps"

	"k8s.io/apimachinery/pkg/types"

	"github.com/kube-rego/kube-rego/pkg/compile"
	"github.com/kube-rego/kube-rego/pkg/configmap"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// memory is what the loop remembers beside the set in force.
type memory struct {
	// lost are modules whose last good version is no good any more.
	lost map[policy.ID]loss
	// adopted and overlaid are the last attempts to take over what another
	// replica has in force: one that does not help is not made twice.
	adopted, overlaid string
	// rescued are the fingerprints of what this replica had recorded itself.
	rescued map[string]bool
}

// loss is a version that was in force last and is no good any more.
type loss struct {
	recorded policy.Module
	problems []policy.Problem
}

// isMadeGood reports whether that version, or a later one, is in force after all.
func (l loss) isMadeGood(inForce policy.Module) bool {
	return inForce.Digest() == l.recorded.Digest() || inForce.ObjectVersion > l.recorded.ObjectVersion
}

// base is what the next set is made on. That is what is in force here, but for
// three cases, in which the history knows better: a process that has just
// started; a replica that came to another set than the writer, of the same
// ConfigMaps; and a version that this replica has not seen, of a module that it
// holds.
func (l *loop) base(ctx context.Context, history *configmap.History, set policy.Set, wanted string) (*compile.Snapshot, error) {
	if l.snapshot == nil {
		return l.restore(ctx, l.initial, history)
	}
	l.known = l.resources
	switch {
	case l.lacksObjects():
		return l.snapshot, nil // what another has may not be held for what it reads
	case l.disagrees(history, wanted):
		if l.rescue(history, set) {
			return l.snapshot, nil // the writer takes that over, and then there is no disagreement
		}
		l.memory.adopted = history.Fingerprint() + wanted
		return l.adopt(ctx, history)
	}
	overlay := l.overlay(history, set)
	if fingerprint := overlay.Fingerprint(); overlay != nil && fingerprint != l.memory.overlaid {
		l.memory.overlaid = fingerprint
		return l.snapshotOf(ctx, l.snapshot, overlay)
	}
	return l.snapshot, nil
}

// lacksObjects reports whether there is a resource that policies read and of which it is
// not known what there is.
func (l *loop) lacksObjects() bool {
	for _, r := range l.resources {
		if !r.Known() {
			return true
		}
	}
	return false
}

// snapshotOf makes a snapshot of modules on a base.
func (l *loop) snapshotOf(ctx context.Context, base *compile.Snapshot, modules policy.Set) (*compile.Snapshot, error) {
	c, err := l.settled(ctx, base, modules)
	return c.snapshot, err
}

// settled is what becomes of a set on a base, of all changes together.
func (l *loop) settled(ctx context.Context, base *compile.Snapshot, set policy.Set) (compiled, error) {
	return l.compile(ctx, func() compiled {
		return newCompiled(l.compiler.Settle(base, set, l.known, nil))
	})
}

// adopt makes the set that the writer has in force. If not all of it compiles
// here, as when the writer has another version of OPA, ours stays.
func (l *loop) adopt(ctx context.Context, history *configmap.History) (*compile.Snapshot, error) {
	snapshot, err := l.snapshotOf(ctx, l.compiler.Bare(l.snapshot), history.InForce())
	if err != nil {
		return nil, err
	}
	if snapshot.Fingerprint() != history.Fingerprint() || !snapshot.Compiles() {
		l.log.Warn("the writer has a set in force that does not compile here; keeping ours", "fingerprint", history.Fingerprint())
		return l.snapshot, nil
	}
	l.log.Info("the writer has another set in force; taking it over", "fingerprint", history.Fingerprint())
	return snapshot, nil
}

// restore makes the set that was in force last, on a base that may have bundles. A
// module of it may be no good any more: the OPA in this process may be newer, or a
// flag another.
func (l *loop) restore(ctx context.Context, base *compile.Snapshot, history *configmap.History) (*compile.Snapshot, error) {
	c, err := l.restored(ctx, base, history)
	if err != nil {
		return nil, err
	}
	l.memory.lost = make(map[policy.ID]loss)
	for _, s := range c.report.Held() {
		if s.Deleted {
			continue // a bundle brought it along, or the revision before
		}
		l.memory.lost[s.ID] = loss{recorded: history.InForce()[s.ID], problems: s.Problems}
		l.log.Error("the version that was in force last does not compile any more",
			"module", s.ID.String(), "inForce", s.InForce, "problems", problems(s))
	}
	return c.snapshot, nil
}

// restored is what becomes of all that was in force last.
func (l *loop) restored(ctx context.Context, base *compile.Snapshot, history *configmap.History) (compiled, error) {
	l.known = nil // what was in force stays, whatever it reads
	c, err := l.settled(ctx, base, history.InForce())
	for _, n := range replays {
		if err != nil || len(c.lost()) == 0 {
			break
		}
		var again compiled
		if again, err = l.replayed(ctx, base, history, n); err == nil && len(again.lost()) < len(c.lost()) {
			c = again
		}
	}
	return c, err
}

// replayed is what becomes of all that was in force last if it is brought in as it was
// recorded, beginning before the last n revisions. The writer may have died between two
// that need each other, a library and what calls it: then both stay as they were before.
func (l *loop) replayed(ctx context.Context, base *compile.Snapshot, history *configmap.History, n int) (compiled, error) {
	n = min(n, history.Writes())
	c, err := l.settled(ctx, base, history.Before(n))
	for n > 0 && err == nil {
		if n > oneByOne {
			n /= 2
		} else {
			n--
		}
		c, err = l.settled(ctx, c.snapshot, history.Before(n))
	}
	return c, err
}

// replays are from how many revisions before the last the start replays what was recorded,
// if not all of it goes together. What the writer had not come to when it died are mostly
// the last few edits; 1,000 are as many as its client's rate lets it write in 10 s.
var replays = []int{16, 1000}

// oneByOne is how many revisions are replayed one by one: each costs a compilation, and a
// replay is to stay within some 20 s for a thousand policies.
const oneByOne = 64

// explain adds to the problems of modules whose last good version is not in force why
// it is not.
func (m *memory) explain(c compiled) policy.Report {
	report := c.report
	for i, s := range report.Modules {
		lost, ok := m.lost[s.ID]
		if !ok {
			continue
		}
		if inForce, ok := c.snapshot.Module(s.ID); ok && (s.InForce == policy.Current || lost.isMadeGood(inForce)) {
			delete(m.lost, s.ID)
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

// keep are the modules to record: those in force, and of those whose last good
// version is no good here the recorded one, as long as they are wanted and nothing later
// is in force. Another process may be able to enforce it, after a flag or a version was
// taken back.
func (m *memory) keep(inForce policy.Set, history *configmap.History, set policy.Set) policy.Set {
	for id, lost := range m.lost {
		now, isInForce := inForce[id]
		_, isWanted := set[id]
		recorded, ok := history.InForce()[id]
		if ok && isWanted && (!isInForce || !lost.isMadeGood(now)) {
			inForce[id] = recorded
		}
	}
	return inForce
}

// disagrees reports whether the writer has come to another set than this replica,
// of the same ConfigMaps, and has recorded all of it. Which of two changes that
// contradict each other goes into force may depend on which was seen first.
func (l *loop) disagrees(history *configmap.History, wanted string) bool {
	if l.replicas == nil || l.publisher == nil || wanted != l.wanted {
		return false
	}
	leader := l.publisher.Leader()
	for _, r := range l.replicas.List() {
		if r.Identity != leader || r.Identity == l.identity || r.Gone {
			continue
		}
		return r.Wanted == wanted && r.InForce == history.Fingerprint() && r.InForce != l.snapshot.Fingerprint() &&
			r.InForce+wanted != l.memory.adopted
	}
	return false
}

// rescue has recorded what is in force here of held modules in a later version
// than the writer knows, and reports whether there is such. It died with the last
// writer, before it was recorded. Each is recorded once: if the writer cannot use
// it, its set is taken over after all.
func (l *loop) rescue(history *configmap.History, set policy.Set) bool {
	later := make(map[types.NamespacedName]bool)
	for _, s := range l.Report().Held() {
		inForce, isInForce := l.snapshot.Module(s.ID)
		wanted, isWanted := set[s.ID]
		if isInForce && isWanted && inForce.Created.Equal(wanted.Created) && isLater(inForce, history) {
			later[types.NamespacedName{Namespace: s.ID.Namespace, Name: s.ID.Name}] = true
		}
	}
	rescued := false
	for name := range later {
		modules := l.snapshot.Modules()
		maps.DeleteFunc(modules, func(id policy.ID, _ policy.Module) bool {
			return id.Namespace != name.Namespace || id.Name != name.Name
		})
		if l.memory.rescued[modules.Fingerprint()] {
			continue
		}
		if l.memory.rescued == nil {
			l.memory.rescued = make(map[string]bool)
		}
		l.memory.rescued[modules.Fingerprint()] = true
		l.log.Info("recording a good version that the writer has not seen", "configMap", name.String())
		number := int64(1)
		if recorded := history.Of(name); len(recorded) > 0 {
			number = recorded[0].Number + 1
		}
		l.publisher.Rescue(name, number, modules)
		rescued = true
	}
	return rescued
}

// isLater reports whether a module in force is a later version than the recorded
// one.
func isLater(inForce policy.Module, history *configmap.History) bool {
	recorded, ok := history.InForce()[inForce.ID]
	return !ok || inForce.ObjectVersion > recorded.ObjectVersion && inForce.Digest() != recorded.Digest()
}

// overlay is what is in force with the newer versions that were recorded of
// modules that are held; nil if there are none. A replica that saw two edits as
// one has missed the good one, if the other is broken.
func (l *loop) overlay(history *configmap.History, set policy.Set) policy.Set {
	var overlay policy.Set
	for _, s := range l.Report().Held() {
		recorded, ok := history.InForce()[s.ID]
		if !ok || !l.missed(recorded, set) {
			continue
		}
		if overlay == nil {
			overlay = l.snapshot.Modules()
		}
		overlay[s.ID] = recorded
	}
	return overlay
}

// missed reports whether a recorded module is a later version than the one in
// force, of the same object.
func (l *loop) missed(recorded policy.Module, set policy.Set) bool {
	inForce, isInForce := l.snapshot.Module(recorded.ID)
	if isInForce && inForce.ObjectVersion >= recorded.ObjectVersion {
		return false
	}
	wanted, isWanted := set[recorded.ID]
	if !isWanted {
		wanted = inForce // its deletion is held
	}
	return wanted.Created.Equal(recorded.Created) && inForce.Digest() != recorded.Digest()
}
