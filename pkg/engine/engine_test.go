package engine_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/kube-rego/kube-rego/pkg/compile"
	"github.com/kube-rego/kube-rego/pkg/data"
	"github.com/kube-rego/kube-rego/pkg/engine"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

func TestADecisionIsMadeOfTheInput(t *testing.T) {
	e := enforcing(t, module("a", 1, "package k.nested", `deny contains sprintf("no %s", [input.name]) if true`))
	want := map[string]any{"deny": []any{"no pod"}}
	for _, path := range []string{"k/nested", "/k/nested", "/k/nested/"} {
		decision, err := e.Decide(t.Context(), path, map[string]any{"name": "pod"})
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if !reflect.DeepEqual(decision.Result, want) {
			t.Errorf("%s: got %v, want %v", path, decision.Result, want)
		}
	}
}

func TestEveryDecisionHasAnIDOfItsOwn(t *testing.T) {
	e := enforcing(t, module("a", 1, "package k", "p := 1"))
	seen := make(map[string]bool)
	for _, path := range []string{"k/p", "k/p", "k/undefined"} {
		decision, _ := e.Decide(t.Context(), path, nil)
		if decision.ID == "" || seen[decision.ID] {
			t.Errorf("%s: id %q", path, decision.ID)
		}
		seen[decision.ID] = true
	}
}

func TestNoAnswerIsAnError(t *testing.T) {
	e := enforcing(t, module("a", 1, "package k",
		"p := 1 if input.one",
		"p := 2 if input.two",
		"f(x) := x",
		"divided := 1 / input.zero",
	))
	cases := map[string]struct {
		path      string
		input     any
		undefined bool
		want      string
	}{
		"no rule gives a value":          {"k/p", map[string]any{}, true, "decision k/p: undefined"},
		"no such rule":                   {"k/nothing", nil, true, "decision k/nothing: undefined"},
		"no such package":                {"nothing/here", nil, true, "decision nothing/here: undefined"},
		"a function is no decision":      {"k/f", nil, false, "decision k/f: "},
		"an error of a built-in":         {"k/divided", map[string]any{"zero": json.Number("0")}, true, "decision k/divided: undefined"},
		"two rules contradict":           {"k/p", map[string]any{"one": true, "two": true}, false, "eval_conflict_error"},
		"an input that JSON cannot hold": {"k/p", map[string]any{"one": func() {}}, false, "decision k/p: "},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			decision, err := e.Decide(t.Context(), c.path, c.input)
			if err == nil {
				t.Fatalf("got %v and no error", decision.Result)
			}
			if decision.Result != nil {
				t.Errorf("got %v beside the error", decision.Result)
			}
			if got := errors.Is(err, policy.ErrUndefined); got != c.undefined {
				t.Errorf("undefined: got %t, want %t: %v", got, c.undefined, err)
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %q, want %q in it", err, c.want)
			}
		})
	}
}

func TestADecisionEndsWithItsContext(t *testing.T) {
	// Without an end this takes hours.
	e := enforcing(t, module("a", 1, "package k",
		"all := numbers.range(1, 10000)",
		"p := count([1 | all[_] != all[_]; all[_] != all[_]; false])",
	))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := e.Decide(ctx, "k/p", nil)
	if !errors.Is(err, context.Canceled) || errors.Is(err, policy.ErrUndefined) {
		t.Errorf("got error %v, want that of the context and not undefined", err)
	}
}

func TestNumbersKeepTheirPrecision(t *testing.T) {
	e := enforcing(t, module("a", 1, "package k", "same := input.n", "literal := 9007199254740993", "sum := input.n + 1"))
	const big = "123456789012345678901234567890"
	input := map[string]any{"n": json.Number(big)}
	for path, want := range map[string]json.Number{
		"k/same":    big,
		"k/literal": "9007199254740993",
		"k/sum":     "123456789012345678901234567891",
	} {
		decision, err := e.Decide(t.Context(), path, input)
		if err != nil || decision.Result != want {
			t.Errorf("%s: got %[2]T(%[2]v) and error %v, want %v", path, decision.Result, err, want)
		}
	}
}

// Every module gives the number of its snapshot; all that a decision sees must
// be of one.
func TestADecisionIsOfOneWholeSnapshot(t *testing.T) {
	const modules, snapshots, deciders = 4, 40, 4
	c := newCompiler(t)
	e := engine.New()
	compiled := make([]*compile.Snapshot, snapshots)
	previous := c.Empty()
	for n := range compiled {
		set := policy.NewSet(module("main", 1, "package system", "main := [v | v := data.k[_].v]"))
		for i := range modules {
			m := module(fmt.Sprint("m", i), 1, fmt.Sprintf("package k.m%d", i), fmt.Sprintf("v := %d", n))
			set[m.ID] = m
		}
		var report policy.Report
		previous = c.Settle(previous, set, nil, nil)
		if len(report.Held()) > 0 {
			t.Fatal(report.Held())
		}
		compiled[n] = previous
	}
	activate(e, compiled[0])

	done := make(chan struct{})
	var group sync.WaitGroup
	for range deciders {
		group.Go(func() {
			for last := 0; ; {
				decision, err := e.Decide(t.Context(), "system/main", nil)
				if err != nil {
					t.Error(err)
					return
				}
				values, _ := decision.Result.([]any)
				n, _ := values[0].(json.Number).Int64()
				for _, v := range values {
					if len(values) != modules || v != values[0] || int(n) < last {
						t.Errorf("got %v after snapshot %d", values, last)
						return
					}
				}
				last = int(n)
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	for n, s := range compiled {
		activate(e, s)
		// Once Activate is back nobody decides with what was before.
		if got, want := decide(t, e, "system/main", nil), fmt.Sprintf("[%[1]d,%[1]d,%[1]d,%[1]d]", n); got != want {
			t.Errorf("after activation %d: got %s, want %s", n, got, want)
		}
	}
	close(done)
	group.Wait()
}

// OPA's sdk collects the labels of one decision in a map that all decisions with
// the same prepared query share.
func TestLabelsInMetadataDoNotEndTheProcess(t *testing.T) {
	lines := []string{"# METADATA", "# scope: package", "# labels:", "#   team: a", "package k"}
	for i := range 1000 {
		lines = append(lines, fmt.Sprintf("deny contains %d if input.x", i))
	}
	e := enforcing(t, module("a", 1, lines...))
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 5 {
				if _, err := e.Decide(t.Context(), "k/deny", map[string]any{"x": true}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
}

func TestASnapshotCanBeActivatedAgain(t *testing.T) {
	c := newCompiler(t)
	e := engine.New()
	one := c.Compile(c.Empty(), policy.NewSet(module("a", 1, "package k", "p := 1")), nil)
	two := c.Compile(one, policy.NewSet(module("a", 1, "package k", "p := 2")), nil)
	for _, s := range []struct {
		snapshot *compile.Snapshot
		want     string
	}{{one, "1"}, {two, "2"}, {one, "1"}, {c.Empty(), "undefined"}, {two, "2"}} {
		activate(e, s.snapshot)
		if got := decide(t, e, "k/p", nil); got != s.want {
			t.Errorf("got %s, want %s", got, s.want)
		}
	}
}

func TestASnapshotIsNamedByWhatIsInForce(t *testing.T) {
	c := newCompiler(t)
	good := module("a", 1, "package k", "p := 1")
	alone := c.Compile(c.Empty(), policy.NewSet(good), nil)
	besideHeld := c.Compile(c.Empty(), policy.NewSet(good, module("b", 1, "package k", "p :=")), nil)
	edited := c.Compile(alone, policy.NewSet(module("a", 1, "package k", "p := 2")), nil)
	broken := c.Compile(alone, policy.NewSet(module("a", 1, "package k", "p :=")), nil)
	if alone.Fingerprint() != besideHeld.Fingerprint() || alone.Fingerprint() != broken.Fingerprint() {
		t.Error("what is held changes the fingerprint")
	}
	if alone.Fingerprint() == edited.Fingerprint() || alone.Fingerprint() == c.Empty().Fingerprint() {
		t.Error("another set has the same fingerprint")
	}
	if got, want := fmt.Sprint(besideHeld.IDs()), "[opa/a/main]"; got != want {
		t.Errorf("in force: got %s, want %s", got, want)
	}
}

func TestVersionIsThatOfOPA(t *testing.T) {
	if v := engine.Version(); strings.Count(v, ".") != 2 {
		t.Errorf("got %q", v)
	}
}

// A policy that runs for ever holds up neither the next set nor the decisions of
// others.
func TestASlowDecisionHoldsUpNobody(t *testing.T) {
	c := newCompiler(t)
	slow := c.Compile(c.Empty(), policy.NewSet(module("a", 1, "package k",
		`started := 1`, `forever := count([1 | some x in numbers.range(1, 30000); some y in numbers.range(1, 30000); x == y + 40000])`)), nil)
	e := engine.New()
	activate(e, slow)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := e.Decide(ctx, "k/forever", nil)
		ended <- err
	}()
	if got := decide(t, e, "k/started", nil); got != "1" {
		t.Errorf("beside it: got %s", got)
	}
	next := c.Compile(slow, policy.NewSet(module("b", 2, "package k", "next := 2")), nil)
	activate(e, next)
	if got := decide(t, e, "k/next", nil); got != "2" {
		t.Errorf("after the next set: got %s", got)
	}
	select {
	case err := <-ended:
		t.Fatalf("the slow decision ended too early to show anything: %v", err)
	default:
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the slow decision ended with %v", err)
	}
}

func TestDecidesOnlyWhereRulesAre(t *testing.T) {
	e := enforcing(t, module("a", 1, "package kubernetes.admission", "deny contains 1"), dataModule("list", 1, `{"a": [1]}`))
	e.Apply(data.Change{Path: []string{"kubernetes", "pods"}, Content: data.NewCollection()})
	for path, want := range map[string]bool{
		"kubernetes/admission/deny": true, "kubernetes/admission": true, "/kubernetes/admission/": true,
		"kubernetes": false, "kubernetes/pods": false, "": false, "opa/list/main": false, "opa": false, "nothing": false,
		"kubernetes//admission": false, "kubernetes/admission/../pods": false,
	} {
		if got := e.Decides(path); got != want {
			t.Errorf("%q: got %v", path, got)
		}
	}
	if engine.New().Decides("kubernetes/admission") {
		t.Error("without a set there is a decision")
	}
}
