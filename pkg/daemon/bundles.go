package daemon

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/kube-rego/kube-rego/pkg/engine"
)

// proposal is a set of bundles that is to go into force.
type proposal struct {
	set    engine.BundleSet
	answer chan error
}

// Propose brings bundles into force instead of those before, or says why not. A set
// without a bundle that was there is never refused: its configuration is gone. What is
// in force of it stays as long as something that is in force needs it.
func (l *loop) Propose(ctx context.Context, set engine.BundleSet) error {
	p := proposal{set: set, answer: make(chan error, 1)}
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
func (l *loop) consider(ctx context.Context, set engine.BundleSet) error {
	inForce, bring := l.snapshot, l.bring
	if inForce == nil {
		inForce, bring = l.initial, l.bringFirst
	}
	err := bring(ctx, set)
	if lost := lost(inForce.Bundles(), set.Bundles); err != nil && len(lost) > 0 {
		l.removal = &set
		l.log.Error("bundles are configured no more, and stay in force: what is in force needs them",
			"bundles", strings.Join(lost, ", "), "problems", err.Error())
		return nil
	}
	return err
}

// bring brings bundles into force. What is held may go into force then.
func (l *loop) bring(ctx context.Context, set engine.BundleSet) error {
	next, err := l.withBundles(ctx, l.snapshot, set)
	if err != nil || next == l.snapshot {
		return err
	}
	l.engine.Activate(next)
	l.snapshot, l.wanted, l.removal = next, "", nil
	l.log.Info("bundles in force", "bundles", describeBundles(next.Bundles()))
	l.look()
	return nil
}

// remove tries again to do without bundles that are configured no more.
func (l *loop) remove(ctx context.Context) {
	if l.removal != nil && l.snapshot != nil {
		_ = l.bring(ctx, *l.removal) // it was logged when it was refused
	}
}

// bringFirst takes bundles in before there is a set in force. What was in force last,
// and would be without them, must be with them too.
func (l *loop) bringFirst(ctx context.Context, set engine.BundleSet) error {
	history, err := l.source.History()
	if err != nil {
		return err
	}
	last, err := l.restored(ctx, l.initial, history)
	if err != nil {
		return err
	}
	next, err := l.withBundles(ctx, last.snapshot, set)
	if err == nil {
		l.initial, l.removal = next, nil
	}
	return err
}

func (l *loop) withBundles(ctx context.Context, base *engine.Snapshot, set engine.BundleSet) (*engine.Snapshot, error) {
	configMaps, err := l.source.ConfigMaps()
	if err != nil && configMaps == nil {
		return nil, err
	}
	type result struct {
		snapshot *engine.Snapshot
		err      error
	}
	wanted := l.wantedSet(configMaps)
	r, err := await(ctx, func() result {
		snapshot, err := l.compiler.WithBundles(base, set, wanted)
		return result{snapshot, err}
	})
	if err != nil {
		return nil, err
	}
	return r.snapshot, r.err
}

// lost are the names of bundles that are not there any more.
func lost(before, after []engine.Bundle) []string {
	var names []string
	for _, b := range before {
		if !slices.ContainsFunc(after, func(other engine.Bundle) bool { return other.Name == b.Name }) {
			names = append(names, b.Name)
		}
	}
	return names
}

func describeBundles(bundles []engine.Bundle) string {
	texts := make([]string, 0, len(bundles))
	for _, b := range bundles {
		texts = append(texts, strings.TrimSuffix(b.Name+" "+b.Revision, " "))
	}
	return strings.Join(texts, ", ")
}
