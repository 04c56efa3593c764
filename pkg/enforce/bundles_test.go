package enforce

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-rego/kube-rego/pkg/compile"
	"github.com/kube-rego/kube-rego/pkg/configmap"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// texts of ConfigMaps opa/<name>, key main, by name.
type written map[string]string

// shelf is a source of which all is known at once.
type shelf struct {
	now  written
	last written // what was in force last
}

func (s *shelf) Run(context.Context, func()) error { return nil }

func (s *shelf) ConfigMaps() ([]*corev1.ConfigMap, error) {
	var all []*corev1.ConfigMap
	for name, text := range s.now {
		all = append(all, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: "opa", Name: name, Labels: map[string]string{policyLabel: "rego"}},
			Data:       map[string]string{"main": text},
		})
	}
	return all, nil
}

func (s *shelf) History() (*configmap.History, error) {
	var revisions []configmap.Revision
	for name, text := range s.last {
		id := policy.ID{Namespace: "opa", Name: name, Key: "main"}
		revisions = append(revisions, configmap.NewRevision("opa", "opa", name, 1, policy.NewSet(policy.Module{ID: id, Source: text})))
	}
	return configmap.NewHistory(revisions), nil
}

// complete says whether all bundles are there.
type complete bool

func (c complete) Complete() bool { return bool(c) }

// libBundle is a set with the bundle lib, of a module in the package lib.
func libBundle(lines ...string) compile.BundleSet {
	return compile.BundleSet{
		Bundles: []compile.Bundle{{Name: "lib", Roots: [][]string{{"lib"}}}},
		Modules: []compile.BundleModule{{Name: "lib/lib.rego", Version: policy.RegoV1, Source: "package lib\n" + strings.Join(lines, "\n")}},
	}
}

// with is a set with one more bundle, of a module in the package of its name.
func with(set compile.BundleSet, name string, lines ...string) compile.BundleSet {
	return compile.BundleSet{
		Bundles: append(slices.Clone(set.Bundles), compile.Bundle{Name: name, Roots: [][]string{{name}}}),
		Modules: append(slices.Clone(set.Modules), compile.BundleModule{
			Name: name + "/" + name + ".rego", Version: policy.RegoV1, Source: "package " + name + "\n" + strings.Join(lines, "\n"),
		}),
	}
}

func TestBundlesAndConfigMaps(t *testing.T) {
	const (
		calls  = "package a\nx := data.lib.f(1)"
		clash  = "package lib\ny := 1"
		serves = "package a\ng(x) := x * 2"
		both   = "package a\ng(x) := x * 2\nx := data.lib.f(1)"
	)
	f := libBundle("f(x) := x + 1")
	needs := libBundle("f(x) := data.a.g(x) + 1")
	none := compile.BundleSet{}
	type step struct {
		bundles *compile.BundleSet // that come; nil: none do
		now     written            // what ConfigMaps want from here on; nil: the same
		late    bool               // bundles are not waited for any longer

		refused string // the start of why the bundles are; empty: they are not
		inForce string // the modules, or why none is
		decides map[string]string
	}
	for name, story := range map[string]struct {
		last, now written
		steps     []step
	}{
		"the first set waits for bundles, and what is new does not come in their way": {
			now: written{"a": calls, "b": clash},
			steps: []step{
				{inForce: "waiting for bundles"},
				{bundles: &f, inForce: "[opa/a/main]", decides: map[string]string{"a/x": "2"}},
			},
		},
		"bundles are not waited for for ever": {
			now: written{"a": calls, "b": "package b\nz := 3"},
			steps: []step{
				{late: true, inForce: "[opa/b/main]", decides: map[string]string{"b/z": "3"}},
				{bundles: &f, inForce: "[opa/a/main opa/b/main]", decides: map[string]string{"a/x": "2"}},
			},
		},
		"what was in force last is not displaced": {
			last: written{"b": clash}, now: written{"b": clash},
			steps: []step{
				{inForce: "waiting for bundles"},
				{bundles: &f, refused: `bundle lib has the root "lib", and data.lib in it is defined by opa/b/main`, inForce: "waiting for bundles"},
				{late: true, inForce: "[opa/b/main]", decides: map[string]string{"lib/y": "1"}},
			},
		},
		"what was in force last finds its bundle again, also if its edit is broken": {
			last: written{"a": calls}, now: written{"a": "package a\nx :="},
			steps: []step{
				{inForce: "waiting for bundles"},
				{bundles: &f, inForce: "[opa/a/main]", decides: map[string]string{"a/x": "2"}},
			},
		},
		"a bundle finds what it needs of what was in force last": {
			last: written{"a": serves}, now: written{"a": serves},
			steps: []step{
				{inForce: "waiting for bundles"},
				{bundles: &needs, inForce: "[opa/a/main]", decides: map[string]string{"a": `{}`}},
			},
		},
		"a bundle and a module that need each other": {
			now: written{"a": both, "b": "package b\nz := data.lib.h(1)"},
			steps: []step{
				{inForce: "waiting for bundles"},
				{bundles: &needs, inForce: "[opa/a/main]", decides: map[string]string{"a/x": "3"}},
			},
		},
		"a bundle and a module that need each other, while others are in force": {
			now: written{"a": both, "b": "package b\nz := 3"},
			steps: []step{
				{late: true, inForce: "[opa/b/main]"},
				{bundles: &needs, inForce: "[opa/a/main opa/b/main]", decides: map[string]string{"a/x": "3"}},
			},
		},
		"a bundle and a module that need each other, and were in force last": {
			last: written{"a": both}, now: written{"a": both},
			steps: []step{
				{inForce: "waiting for bundles"},
				{bundles: &needs, inForce: "[opa/a/main]", decides: map[string]string{"a/x": "3"}},
			},
		},
		"a bundle that breaks what is in force is refused, and a later one is not": {
			now: written{"a": calls},
			steps: []step{
				{inForce: "waiting for bundles"},
				{bundles: &f, inForce: "[opa/a/main]"},
				{bundles: ptr(libBundle("f(x, y) := x")), refused: "opa/a/main:2: rego_type_error: ", inForce: "[opa/a/main]", decides: map[string]string{"a/x": "2"}},
				{bundles: ptr(libBundle("f(x) := x + 5")), inForce: "[opa/a/main]", decides: map[string]string{"a/x": "6"}},
			},
		},
		"a bundle that takes away what a module in force last needs is refused, until the module is edited": {
			last: written{"a": calls}, now: written{"a": calls},
			steps: []step{
				{inForce: "waiting for bundles"},
				{bundles: ptr(libBundle("g(x) := x")), refused: "opa/a/main, which was in force last, does not go with it: 2:6: rego_type_error: undefined function data.lib.f", inForce: "waiting for bundles"},
				{late: true, inForce: "[]"},
				{bundles: ptr(libBundle("g(x) := x")), refused: "opa/a/main, which was in force last, does not go with it: ", inForce: "[]"},
				{now: written{"a": "package a\nx := data.lib.g(7)"}, bundles: ptr(libBundle("g(x) := x")), inForce: "[opa/a/main]", decides: map[string]string{"a/x": "7"}},
			},
		},
		"a bundle that owns everything does not take all policies out": {
			now: written{"a": "package a\nx := 1"},
			steps: []step{
				{inForce: "waiting for bundles"},
				{bundles: &compile.BundleSet{Bundles: []compile.Bundle{{Name: "all", Roots: [][]string{{}}}}}, refused: "bundle all has no roots in its manifest", inForce: "waiting for bundles"},
				{late: true, inForce: "[opa/a/main]"},
			},
		},
		"a bundle that owns everything stays and is renewed when a ConfigMap comes": {
			now: written{},
			steps: []step{
				{inForce: "waiting for bundles"},
				{bundles: &compile.BundleSet{Bundles: []compile.Bundle{{Name: "all", Roots: [][]string{{}}}}}, inForce: "[]"},
				{now: written{"a": "package a\nx := 1"}, inForce: "[]"},
				{bundles: &compile.BundleSet{Bundles: []compile.Bundle{{Name: "all", Revision: "r2", Roots: [][]string{{}}}}}, inForce: "[]"},
			},
		},
		"a module that was broken anyway keeps no bundle out": {
			last: written{"a": "package a\nx := data.library.f(1)"}, now: written{"a": "package a\nx := data.library.f(1)"},
			steps: []step{
				{inForce: "waiting for bundles"},
				{bundles: &f, inForce: "[]"},
			},
		},
		"a bundle that was configured no more is configured again": {
			now: written{"a": calls},
			steps: []step{
				{inForce: "waiting for bundles"},
				{bundles: &f, inForce: "[opa/a/main]"},
				{bundles: &none, inForce: "[opa/a/main]"},
				{bundles: &f, inForce: "[opa/a/main]"},
				{now: written{"b": "package b\nz := 1"}, inForce: "[opa/b/main]", decides: map[string]string{"lib": "{}"}},
			},
		},
		"a bundle does not come into the place of one that is needed and configured no more": {
			now: written{"a": calls},
			steps: []step{
				{inForce: "waiting for bundles"},
				{bundles: &f, inForce: "[opa/a/main]"},
				{bundles: &none, inForce: "[opa/a/main]"},
				{
					bundles: &compile.BundleSet{Bundles: []compile.Bundle{{Name: "new", Roots: [][]string{{"lib"}}}}},
					refused: `bundle new has the root "lib", and in it is bundle lib, which is configured no more`, inForce: "[opa/a/main]", decides: map[string]string{"a/x": "2"},
				},
			},
		},
		"other bundles go on while one that is needed is configured no more": {
			now: written{"a": calls},
			steps: []step{
				{inForce: "waiting for bundles"},
				{bundles: ptr(with(f, "other", "z := 1")), inForce: "[opa/a/main]", decides: map[string]string{"other/z": "1"}},
				{bundles: ptr(with(none, "other", "z := 1")), inForce: "[opa/a/main]", decides: map[string]string{"other/z": "1", "a/x": "2"}},
				{bundles: ptr(with(none, "other", "z := 2")), inForce: "[opa/a/main]", decides: map[string]string{"other/z": "2", "a/x": "2"}},
				{bundles: ptr(with(none, "other", "z := data.nowhere.f(1)")), refused: "bundle:other/other.rego:2: rego_type_error: undefined function", inForce: "[opa/a/main]", decides: map[string]string{"other/z": "2", "a/x": "2"}},
				{bundles: ptr(with(none, "other", "z := 3")), inForce: "[opa/a/main]", decides: map[string]string{"other/z": "3", "a/x": "2"}},
				{now: written{"b": "package b\nz := 1"}, inForce: "[opa/b/main]", decides: map[string]string{"lib": "undefined", "other/z": "3"}},
			},
		},
		"a bundle that is configured no more goes when nothing in force needs it": {
			now: written{"a": calls},
			steps: []step{
				{inForce: "waiting for bundles"},
				{bundles: &f, inForce: "[opa/a/main]"},
				{bundles: &none, inForce: "[opa/a/main]", decides: map[string]string{"a/x": "2"}},
				{now: written{"a": "package a\nx := 1"}, inForce: "[opa/a/main]", decides: map[string]string{"a/x": "1", "lib": "undefined"}},
				{now: written{"a": "package a\nx := 1", "b": clash}, inForce: "[opa/a/main opa/b/main]", decides: map[string]string{"lib/y": "1"}},
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			source := &shelf{now: story.now, last: story.last}
			l := newTestLoop(t, source)
			l.config.Bundles = complete(false)
			for n, s := range story.steps {
				if s.now != nil {
					source.now = s.now
				}
				if s.bundles != nil {
					err := offer(t, l, *s.bundles)
					if (err == nil) != (s.refused == "") || err != nil && !strings.HasPrefix(err.Error(), s.refused) {
						t.Fatalf("step %d: the bundles are refused with %v, want %q", n, err, s.refused)
					}
					l.config.Bundles = complete(err == nil)
					reportsWhatIsInForce(t, l) // at once, not only after the next turn
				}
				l.start.gaveUp.Store(l.start.gaveUp.Load() || s.late)
				settleDown(t, l)
				if got := inForceNow(l); got != s.inForce {
					t.Fatalf("step %d: in force is %s, want %s; held: %v", n, got, s.inForce, l.Report().Held())
				}
				for path, want := range s.decides {
					decision, err := l.config.Engine.Decide(t.Context(), path, nil)
					got := strings.ReplaceAll(fmt.Sprint(decision.Result), "map[]", "{}")
					if errors.Is(err, policy.ErrUndefined) {
						got = "undefined"
					}
					if got != want {
						t.Errorf("step %d: %s is %s, %v, want %s", n, path, got, err, want)
					}
				}
			}
		})
	}
}

// reportsWhatIsInForce fails the test unless the report speaks of just the modules in force,
// and calls those current that are in force as they are wanted.
func reportsWhatIsInForce(t *testing.T, l *Loop) {
	t.Helper()
	if l.inForce() == nil {
		return
	}
	now, err := l.read()
	if err != nil {
		t.Fatal(err)
	}
	var reported []policy.ID
	for _, s := range l.Report().Modules {
		inForce, _ := l.inForce().Module(s.ID)
		if s.InForce == policy.Previous && inForce.Digest() == now.wanted[s.ID].Digest() {
			t.Errorf("%s is in force as it is wanted, and reported as %s: %v", s.ID, s.InForce, s.Problems)
		}
		if s.InForce != policy.None {
			reported = append(reported, s.ID)
		}
		if s.Held() == (s.InForce == policy.Current) {
			t.Errorf("%s is in force %s, with the problems %v", s.ID, s.InForce, s.Problems)
		}
	}
	if !slices.Equal(reported, l.inForce().IDs()) {
		t.Errorf("in force is %v, the report says %v", l.inForce().IDs(), reported)
	}
}

// offer proposes bundles to a loop that is between two turns.
func offer(t *testing.T, l *Loop, set compile.BundleSet) error {
	t.Helper()
	return l.propose(t.Context(), proposal{set: set, asked: time.Now()})
}

func ptr(set compile.BundleSet) *compile.BundleSet { return &set }

func inForceNow(l *Loop) string {
	if err := l.Ready(); err != nil {
		return err.Error()
	}
	return fmt.Sprint(l.inForce().IDs())
}

// Who waits for a module reads in the log that it is in force again, also if a bundle has
// brought it along.
func TestTheLogNamesWhatABundleReleases(t *testing.T) {
	l := newTestLoop(t, &shelf{now: written{"a": "package a\ng(x) := x * 2\nx := data.lib.f(1)", "b": "package b\nz := 3"}})
	var log bytes.Buffer
	l.config.Log = slog.New(slog.NewTextHandler(&log, nil))
	settleDown(t, l)
	if err := offer(t, l, libBundle("f(x) := data.a.g(x) + 1")); err != nil {
		t.Fatal(err)
	}
	if want := `msg="module in force again" module=opa/a/main`; strings.Count(log.String(), want) != 1 {
		t.Errorf("the log does not say once %s:\n%s", want, log.String())
	}
}

// The same bundles again change nothing: queries stay prepared, and nothing is logged.
func TestTheSameBundlesAreNotActivatedAgain(t *testing.T) {
	l := newTestLoop(t, &shelf{now: written{"a": "package a\nx := 1"}})
	l.config.Bundles = complete(true)
	settleDown(t, l)
	for range 2 {
		if err := offer(t, l, libBundle("f(x) := x")); err != nil {
			t.Fatal(err)
		}
		settleDown(t, l)
	}
	before := l.config.Engine.InForce()
	if err := offer(t, l, libBundle("f(x) := x")); err != nil || l.config.Engine.InForce() != before {
		t.Errorf("it was activated again, %v", err)
	}
	if names := l.inForce().Bundles(); !slices.ContainsFunc(names, func(b compile.Bundle) bool { return b.Name == "lib" }) {
		t.Errorf("in force: %v", names)
	}
}

// A proposal is answered by the loop, and not before it is known what was in force last.
func TestAProposalWaitsForTheLoop(t *testing.T) {
	l := newTestLoop(t, &shelf{now: written{"a": "package a\nx := data.lib.f(1)"}})
	l.config.Bundles = complete(false)
	inbox := l.config.Inbox
	ctx, cancel := context.WithCancel(t.Context())
	answered := make(chan error, 1)
	go func() { answered <- inbox.Propose(ctx, libBundle("f(x) := x")) }()
	ended := make(chan error, 1)
	running, stop := context.WithCancel(t.Context())
	go func() { ended <- l.Run(running) }()
	select {
	case err := <-answered:
		t.Fatalf("it was answered before the loop has looked: %v", err)
	case inbox.looks <- time.Now():
	}
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	// The loop is gone: who asks then hears so when its own time is over.
	cancel()
	if err := inbox.Propose(ctx, libBundle("f(x) := x + 1")); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// reads is a shelf that counts how often it is read.
type reads struct {
	shelf
	n int
}

func (r *reads) ConfigMaps() ([]*corev1.ConfigMap, error) {
	r.n++
	return r.shelf.ConfigMaps()
}

// A compilation that was left behind when the context ended may still be at work: nothing
// else may use the compiler then, whatever is asked for.
func TestTheLoopDoesNothingMoreAfterItsContext(t *testing.T) {
	source := &reads{}
	l := newTestLoop(t, source)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 64 { // a select takes any of those that are ready
		l.config.Inbox.Look()
		if err := l.Run(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if source.n > 0 {
		t.Errorf("it has looked %d times", source.n)
	}
}

// objects are those of the cluster, as far as they are wanted.
type objects struct {
	wanted []string
	loaded bool
}

func (o *objects) Want(names []string) { o.wanted = names }
func (o *objects) Waiting() error      { return nil }

func (o *objects) ByName() policy.Resources {
	state := policy.ResourceLoading
	if o.loaded {
		state = policy.ResourceLoaded
	}
	resources := make(policy.Resources)
	for _, name := range o.wanted {
		resources[name] = policy.Resource{Name: name, Path: "data.kubernetes." + name, State: state}
	}
	return resources
}

// What a bundle reads is replicated first, also if no module reads it, before the first
// set and later.
func TestABundleComesAfterWhatItReads(t *testing.T) {
	l := newTestLoop(t, &shelf{now: written{"a": "package a\nx := 1"}})
	var err error
	l.config.Compiler, err = compile.New(compile.Config{RegoVersion: policy.RegoAuto, Replicated: compile.Replicated{Path: []string{"kubernetes"}, Auto: true}})
	if err != nil {
		t.Fatal(err)
	}
	cluster := &objects{}
	l.config.Replication, l.config.Bundles = cluster, complete(false)
	for _, name := range []string{"pods", "nodes"} {
		settleDown(t, l)
		cluster.loaded = false
		set := libBundle("p := data.kubernetes." + name)
		for range 2 { // the second time it is known that it is wanted
			var unknown *compile.UnknownReadsError
			if err := offer(t, l, set); !errors.As(err, &unknown) {
				t.Fatalf("%s: got %v", name, err)
			}
			settleDown(t, l)
			if err := offer(t, l, libBundle("z := data.nowhere.f(1)")); err == nil {
				t.Fatal("a broken one was let in")
			}
			settleDown(t, l)
			if !slices.Contains(cluster.wanted, name) {
				t.Fatalf("wanted is %v, not %s", cluster.wanted, name)
			}
		}
		cluster.loaded = true
		settleDown(t, l)
		if err := offer(t, l, set); err != nil {
			t.Fatal(err)
		}
		l.config.Bundles = complete(true)
		settleDown(t, l)
		if !slices.Equal(cluster.wanted, []string{name}) || inForceNow(l) != "[opa/a/main]" {
			t.Errorf("wanted is %v, in force %s", cluster.wanted, inForceNow(l))
		}
	}
}
