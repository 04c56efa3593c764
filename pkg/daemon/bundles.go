package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kube-rego/kube-rego/pkg/compile"
	"github.com/kube-rego/kube-rego/pkg/configmap"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// proposal is a set of bundles that is to go into force.
type proposal struct {
	set    compile.BundleSet
	made   time.Time
	answer chan error
}

// Propose brings bundles into force instead of those before, or says why not. A set
// without a bundle that was there is never refused: its configuration is gone. What is
// in force of it stays as long as something that is in force needs it.
func (l *loop) Propose(ctx context.Context, set compile.BundleSet) error {
	p := proposal{set: set, made: time.Now(), answer: make(chan error, 1)}
	select {
	case l.proposals <- p:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-p.answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// welcome are proposals that can be answered: it must be known first what was in force
// last.
func (l *loop) welcome() <-chan proposal {
	if l.snapshot == nil && l.initial == nil {
		return nil
	}
	return l.proposals
}

// errBundles is why nothing is in force while bundles are waited for.
var errBundles = errors.New("waiting for bundles")

// bundlesTimeout is how long the first policy set waits for bundles: a service that does
// not answer must not keep the policies of ConfigMaps out for ever. OPA's plugin gives up
// an attempt after 10 s (response_header_timeout_seconds of a service).
const bundlesTimeout = 10 * time.Second

// awaited reports whether the first set can be made: all bundles are there, or they are
// not waited for any longer. They come before what the ConfigMaps want now, so that every
// replica holds the same of two that clash.
func (l *loop) awaited() bool {
	if l.initial == nil {
		l.initial = l.compiler.Empty()
		time.AfterFunc(bundlesTimeout, func() {
			l.overdue.Store(true)
			l.look()
		})
	}
	if l.bundles == nil || l.bundles.Complete() || l.overdue.Load() {
		return true
	}
	l.update(func(s *state) { s.waiting = errBundles })
	return false
}

// consider brings bundles into force, or says why not.
func (l *loop) consider(ctx context.Context, set compile.BundleSet) error {
	l.removal = nil // the newest set is what is wanted
	base := l.snapshot
	if base == nil {
		base = l.initial
	}
	err := l.bring(ctx, set)
	if lost := lost(base.Bundles(), set.Bundles); err != nil && len(lost) > 0 {
		l.log.Error("bundles are configured no more, and stay in force: what is in force needs them",
			"bundles", strings.Join(lost, ", "), "problems", err.Error())
		err = l.bring(ctx, set, lost...)
		l.removal = &set
	}
	var unknown *compile.UnknownReadsError
	if errors.As(err, &unknown) {
		l.reads = append(l.reads, unknown.Names...) // by the time the plugin tries again they may be known
		l.look()
	}
	return err
}

// bring brings bundles into force, and of those before keeps some. What is held may go
// into force then.
func (l *loop) bring(ctx context.Context, set compile.BundleSet, keep ...string) error {
	base, first := l.snapshot, l.snapshot == nil
	history, err := l.source.History()
	if err != nil {
		return err
	}
	if first {
		last, err := l.restored(ctx, l.initial, history)
		if err != nil {
			return err
		}
		base = last.snapshot
	}
	next, err := l.withBundles(ctx, base, set, keep)
	if err != nil || next == base && !first {
		return err
	}
	if first || len(l.memory.lost) > 0 {
		if err := l.displaced(ctx, next, history); err != nil {
			return err
		}
	}
	l.forget(next)
	if first {
		l.initial = next
		return nil
	}
	l.swap(next, true)
	l.wanted = ""
	l.log.Info("bundles in force", "bundles", describeBundles(next.Bundles()))
	l.look()
	return nil
}

// forget drops the names that bundles in force read by now: these are wanted for that.
func (l *loop) forget(next *compile.Snapshot) {
	now := l.compiler.ResourceNames(next, nil, nil)
	l.reads = slices.DeleteFunc(l.reads, func(name string) bool { return slices.Contains(now, name) })
}

// displaced says which modules were in force last and are wanted, and neither that version
// nor the wanted one goes with the bundles of a snapshot. They went with others, or with
// another version: to go on without them would turn yes into no, or no into yes.
func (l *loop) displaced(ctx context.Context, next *compile.Snapshot, history *configmap.History) error {
	last, err := l.restored(ctx, next, history)
	if err != nil {
		return err
	}
	gone := slices.DeleteFunc(last.report.Held(), func(s policy.Status) bool {
		return s.InForce != policy.None || !next.Owns(problems(s))
	})
	if len(gone) == 0 {
		return nil
	}
	now, err := l.wantedNow(ctx, next)
	if err != nil {
		return err
	}
	var texts []string
	for _, s := range gone {
		isGone := func(other policy.Status) bool { return other.ID == s.ID && other.InForce == policy.None }
		if slices.ContainsFunc(now.report.Held(), isGone) {
			texts = append(texts, fmt.Sprintf("%s, which was in force last, does not go with it: %s", s.ID, problems(s)))
		}
	}
	if len(texts) == 0 {
		return nil
	}
	return errors.New(strings.Join(texts, "; "))
}

// wantedNow is what would become of what the ConfigMaps want.
func (l *loop) wantedNow(ctx context.Context, base *compile.Snapshot) (compiled, error) {
	wanted, err := l.wantedModules()
	if err != nil {
		return compiled{}, err
	}
	l.known = nil
	return l.settled(ctx, base, wanted)
}

// wantedModules are those that the ConfigMaps want now.
func (l *loop) wantedModules() (policy.Set, error) {
	configMaps, err := l.source.ConfigMaps()
	if err != nil && configMaps == nil {
		return nil, err
	}
	return l.wantedSet(configMaps), nil
}

// remove tries again to do without bundles that are configured no more.
func (l *loop) remove(ctx context.Context) {
	if l.removal == nil || l.snapshot == nil || l.snapshot == l.tried {
		return
	}
	if l.bring(ctx, *l.removal) == nil {
		l.removal = nil
	}
	l.tried = l.snapshot
}

func (l *loop) withBundles(ctx context.Context, base *compile.Snapshot, set compile.BundleSet, keep []string) (*compile.Snapshot, error) {
	wanted, err := l.wantedModules()
	if err != nil {
		return nil, err
	}
	type result struct {
		snapshot *compile.Snapshot
		err      error
	}
	r, err := measured(ctx, l.recorder, func() result {
		snapshot, err := l.compiler.WithBundles(base, set, wanted, l.resources, keep...)
		return result{snapshot, err}
	})
	if err != nil {
		return nil, err
	}
	return r.snapshot, r.err
}

// lost are the names of bundles that are not there any more.
func lost(before, after []compile.Bundle) []string {
	var names []string
	for _, b := range before {
		if !slices.ContainsFunc(after, func(other compile.Bundle) bool { return other.Name == b.Name }) {
			names = append(names, b.Name)
		}
	}
	return names
}

func describeBundles(bundles []compile.Bundle) string {
	texts := make([]string, 0, len(bundles))
	for _, b := range bundles {
		texts = append(texts, strings.TrimSuffix(b.Name+" "+b.Revision, " "))
	}
	return strings.Join(texts, ", ")
}
