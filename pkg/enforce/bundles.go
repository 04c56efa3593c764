package enforce

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kube-rego/kube-rego/pkg/compile"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// leftBundles is what is left to do about bundles.
type leftBundles struct {
	// removal is the configured set while bundles missing from it must stay in force; nil
	// if none must.
	removal *compile.BundleSet
	// due is true if another set is in force than when the removal was tried last.
	due bool
	// resources are those that bundles read which were refused for that.
	resources []string
}

// acceptedProposals returns the proposals once they can be answered: it must be known
// first what was in force last.
func (l *Loop) acceptedProposals() <-chan proposal {
	if l.inForce() == nil && l.start.base == nil {
		return nil
	}
	return l.config.Inbox.proposals
}

// propose brings proposed bundles into force, or says why not.
func (l *Loop) propose(ctx context.Context, p proposal) error {
	now, err := l.read()
	if err != nil && now.configMaps == nil {
		return err
	}
	l.left.removal = nil // the newest set is what is wanted
	if l.config.Replication != nil {
		now.resources = l.resources(l.want(now))
	}
	base := l.inForce()
	if base == nil {
		base = l.start.base
	}
	err = l.activateBundles(ctx, p.set, now, p.asked)
	if gone := missingBundles(base.Bundles(), p.set.Bundles); err != nil && ctx.Err() == nil && len(gone) > 0 {
		l.config.Log.Error("bundles are configured no more, and stay in force: what is in force needs them",
			"bundles", strings.Join(gone, ", "), "problems", err.Error())
		err = l.activateBundles(ctx, p.set, now, p.asked, gone...)
		l.left.removal = &p.set
	}
	var unknown *compile.UnknownReadsError
	if errors.As(err, &unknown) {
		l.left.resources = append(l.left.resources, unknown.Names...) // by the time the plugin tries again they may be known
		l.config.Inbox.Look()
	}
	return err
}

// activateBundles brings bundles into force, and of those before keeps some. What is held
// may go into force then. Before the first set is in force they become a part of its base.
func (l *Loop) activateBundles(ctx context.Context, set compile.BundleSet, now inputs, noticed time.Time, keep ...string) error {
	base, first, began := l.inForce(), l.inForce() == nil, time.Now()
	if first {
		var err error
		if base, err = l.recorded(ctx, l.start.base, now.history); err != nil {
			return err
		}
	}
	next, err := l.withBundles(ctx, base, set, now, keep)
	if err != nil || next == base && !first {
		return err
	}
	if first || len(l.losses) > 0 {
		if err := l.checkDisplaced(ctx, next, now); err != nil {
			return err
		}
	}
	l.forgetResources(next)
	if first {
		l.start.base = next
		return nil
	}
	before := l.Report()
	l.activate(next, noticed, began)
	l.logHeld(ctx, before, l.Report())
	l.attempts.compileAgain()
	l.config.Log.Info("bundles in force", "bundles", describeBundles(next.Bundles()))
	l.config.Inbox.Look()
	return nil
}

func (l *Loop) withBundles(
	ctx context.Context, base *compile.Snapshot, set compile.BundleSet, now inputs, keep []string,
) (*compile.Snapshot, error) {
	type result struct {
		snapshot *compile.Snapshot
		err      error
	}
	r, err := measured(ctx, l.config.Recorder, func() result {
		snapshot, err := l.config.Compiler.WithBundles(base, set, now.wanted, now.resources, keep...)
		return result{snapshot, err}
	})
	if err != nil {
		return nil, err
	}
	return r.snapshot, r.err
}

// forgetResources drops the names that bundles in force read by now: these are wanted for that.
func (l *Loop) forgetResources(next *compile.Snapshot) {
	names := l.config.Compiler.ResourceNames(next, nil, nil)
	l.left.resources = slices.DeleteFunc(l.left.resources, func(name string) bool { return slices.Contains(names, name) })
}

// checkDisplaced says which modules were in force last and are wanted, and neither that
// version nor the wanted one goes with the bundles of a snapshot. They went with others, or
// with another version: to go on without them would turn yes into no, or no into yes.
func (l *Loop) checkDisplaced(ctx context.Context, next *compile.Snapshot, now inputs) error {
	last, err := l.recorded(ctx, next, now.history)
	if err != nil {
		return err
	}
	displaced := slices.DeleteFunc(last.Report().Held(), func(s policy.Status) bool {
		return s.InForce != policy.None || !next.Owns(problems(s))
	})
	if len(displaced) == 0 {
		return nil
	}
	wanted, err := l.settle(ctx, next, now.wanted, nil)
	if err != nil {
		return err
	}
	var texts []string
	for _, s := range displaced {
		if slices.ContainsFunc(wanted.Report().Held(), func(other policy.Status) bool {
			return other.ID == s.ID && other.InForce == policy.None
		}) {
			texts = append(texts, fmt.Sprintf("%s, which was in force last, does not go with it: %s", s.ID, problems(s)))
		}
	}
	if len(texts) == 0 {
		return nil
	}
	return errors.New(strings.Join(texts, "; "))
}

// dropBundles tries again to do without bundles that are configured no more. The error is
// that of ctx.
func (l *Loop) dropBundles(ctx context.Context, now inputs, noticed time.Time) error {
	if l.left.removal == nil || l.inForce() == nil || !l.left.due {
		return nil
	}
	if l.activateBundles(ctx, *l.left.removal, now, noticed) == nil {
		l.left.removal = nil
	}
	l.left.due = false
	return ctx.Err()
}

// missingBundles returns the names of bundles that are not there any more.
func missingBundles(before, after []compile.Bundle) []string {
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
