package compile_test

import (
	"fmt"
	"testing"

	"github.com/kube-rego/kube-rego/pkg/engine"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// step is one set that somebody wants, what becomes of each of its modules, and
// the decisions that result.
type step struct {
	set     []policy.Module
	want    map[string]want
	decides map[string]string
	restart bool // a new process: nothing is in force before this step
}

func TestWhatComesIntoForce(t *testing.T) {
	lib := module("lib", 1, "package lib", "f(x) := x + 1")
	libWithout := module("lib", 1, "package lib", "g(x) := x")
	caller := module("caller", 2, "package k", "p := data.lib.f(1)")

	cases := map[string][]step{
		"v0 and v1 side by side, each found out": {{
			set: []policy.Module{
				module("old", 1, "package k", `deny[msg] { msg := "old" }`),
				module("new", 2, "package k", `deny contains "new" if true`),
				module("both", 3, "package system", "main := data.k.deny"),
			},
			want:    map[string]want{"old": {"current v0"}, "new": {"current v1"}, "both": {"current v1"}},
			decides: map[string]string{"system/main": `["new","old"]`},
		}},
		"an edit that breaks keeps the previous version in force, and its repair releases it": {{
			set:     []policy.Module{module("a", 1, "package k", `deny contains "one" if true`)},
			want:    map[string]want{"a": {"current v1"}},
			decides: map[string]string{"k/deny": `["one"]`},
		}, {
			set:     []policy.Module{module("a", 1, "package k", "", `deny contains if true`)},
			want:    map[string]want{"a": {"previous v1", "3:15: rego_parse_error: ", "…"}},
			decides: map[string]string{"k/deny": `["one"]`},
		}, {
			set:     []policy.Module{module("a", 1, "package k", "", "deny contains x if {", "\tx := y", "}")},
			want:    map[string]want{"a": {"previous v1", "4:2: rego_unsafe_var_error: var y is unsafe"}},
			decides: map[string]string{"k/deny": `["one"]`},
		}, {
			set:     []policy.Module{module("a", 1, "package k", `deny contains "two" if true`)},
			want:    map[string]want{"a": {"current v1"}},
			decides: map[string]string{"k/deny": `["two"]`},
		}},
		"an edit taken back is no change": {{
			set:  []policy.Module{lib},
			want: map[string]want{"lib": {"current v1"}},
		}, {
			set:  []policy.Module{module("lib", 1, "package lib", "f(")},
			want: map[string]want{"lib": {"previous v1", "2:…rego_parse_error: ", "…"}},
		}, {
			set:  []policy.Module{lib},
			want: map[string]want{"lib": {"current v1"}},
		}},
		"a module whose Rego version changes reports the one in force": {{
			set:  []policy.Module{module("a", 1, "package k", "p { true }")},
			want: map[string]want{"a": {"current v0"}},
		}, {
			set:  []policy.Module{module("a", 1, "package k", "p if {")},
			want: map[string]want{"a": {"previous v0", "2:…rego_parse_error: ", "…"}},
		}, {
			set:  []policy.Module{module("a", 1, "package k", "p if true")},
			want: map[string]want{"a": {"current v1"}},
		}},
		"a parse error holds only its own module": {{
			set: []policy.Module{
				module("a", 1, "package k", "p := "),
				module("b", 2, "package k", "q := 1"),
			},
			want:    map[string]want{"a": {"none", "2:…rego_parse_error: ", "…"}, "b": {"current v1"}},
			decides: map[string]string{"k/p": "undefined", "k/q": "1"},
		}},
		"a defect holds its module, and previous stays": {{
			set:     []policy.Module{module("a", 1, "package k", "p := 1")},
			want:    map[string]want{"a": {"current v1"}},
			decides: map[string]string{"k/p": "1"},
		}, {
			set: []policy.Module{
				{ID: module("a", 1).ID, Source: "package k\np := 2", Defect: "not text"},
				{ID: module("b", 1).ID, Defect: "not text"},
			},
			want: map[string]want{
				"a": {"previous v1", "invalid_parameter: not text"},
				"b": {"none", "invalid_parameter: not text"},
			},
			decides: map[string]string{"k/p": "1"},
		}},
		"all changes held at a cold start leave an empty set that works": {{
			set: []policy.Module{
				module("a", 1, "package k", "p := "),
				module("b", 2, "package k", "q := data.nowhere.f(1)"),
				module("c", 3, "package k", "r := x"),
			},
			want: map[string]want{
				"a": {"none", "2:…rego_parse_error: ", "…"},
				"b": {"none", "2:6: rego_type_error: undefined function data.nowhere.f"},
				"c": {"none", "2:6: rego_unsafe_var_error: var x is unsafe"},
			},
			decides: map[string]string{"k/p": "undefined", "system/main": "undefined"},
		}, {
			set:     []policy.Module{module("a", 1, "package k", "p := 1")},
			want:    map[string]want{"a": {"current v1"}},
			decides: map[string]string{"k/p": "1"},
		}},
		"a removed module is gone": {{
			set:  []policy.Module{module("a", 1, "package k", "p := 1"), module("b", 1, "package k", "q := 1")},
			want: map[string]want{"a": {"current v1"}, "b": {"current v1"}},
		}, {
			set:     []policy.Module{module("b", 1, "package k", "q := 1")},
			want:    map[string]want{"b": {"current v1"}},
			decides: map[string]string{"k/p": "undefined", "k/q": "1"},
		}, {
			want:    map[string]want{},
			decides: map[string]string{"k/q": "undefined"},
		}},
		"errors of different stages are all found": {{
			set: []policy.Module{
				module("function", 1, "package a", "p := data.nowhere.f(1)"),
				module("unsafe", 2, "package b", "p := x"),
				module("type", 3, "package c", `p := 1 + "a"`),
				module("recursion", 4, "package d", "p := q", "q := p"),
				module("good", 5, "package e", "p := 1"),
			},
			want: map[string]want{
				"function": {"none", "2:6: rego_type_error: undefined function data.nowhere.f"},
				"unsafe":   {"none", "2:6: rego_unsafe_var_error: var x is unsafe"},
				"type":     {"none", "2:6: rego_type_error: plus: invalid argument(s)"},
				"recursion": {
					"none", "2:1: rego_recursion_error: rule data.d.p is recursive", "3:1: rego_recursion_error: rule data.d.q is recursive",
				},
				"good": {"current v1"},
			},
			decides: map[string]string{"e/p": "1"},
		}},
		"a change that recurses through an unchanged module is the one held": {{
			set:  []policy.Module{module("a", 1, "package a", "p := data.b.q")},
			want: map[string]want{"a": {"current v1"}},
		}, {
			set: []policy.Module{
				module("a", 1, "package a", "p := data.b.q"),
				module("b", 2, "package b", "q := data.a.p"),
			},
			want: map[string]want{"a": {"current v1"}, "b": {"none", "2:1: rego_recursion_error: "}},
		}},
		"a deleted library is held while somebody calls it, and goes when its caller goes": {{
			set:     []policy.Module{lib, caller},
			want:    map[string]want{"lib": {"current v1"}, "caller": {"current v1"}},
			decides: map[string]string{"k/p": "2"},
		}, {
			set: []policy.Module{caller},
			want: map[string]want{
				"lib":    {"previous v1 deleted", "rego_type_error: undefined function data.lib.f…opa/caller/main:2"},
				"caller": {"current v1"},
			},
			decides: map[string]string{"k/p": "2"},
		}, {
			want:    map[string]want{},
			decides: map[string]string{"k/p": "undefined"},
		}},
		"a deleted library and its caller go together, whichever name comes first": {{
			set:  []policy.Module{module("z", 1, lib.Source), module("a", 2, caller.Source)},
			want: map[string]want{"z": {"current v1"}, "a": {"current v1"}},
		}, {
			set:  []policy.Module{module("z", 1, caller.Source), module("a", 2, lib.Source)},
			want: map[string]want{"z": {"current v1"}, "a": {"current v1"}},
		}, {
			want: map[string]want{},
		}},
		"a deleted library comes back": {{
			set:  []policy.Module{lib, caller},
			want: map[string]want{"lib": {"current v1"}, "caller": {"current v1"}},
		}, {
			set:  []policy.Module{caller},
			want: map[string]want{"lib": {"previous v1 deleted", "rego_type_error: …"}, "caller": {"current v1"}},
		}, {
			set:  []policy.Module{lib, caller},
			want: map[string]want{"lib": {"current v1"}, "caller": {"current v1"}},
		}},
		"a deleted library is gone after a restart, and its caller has the problem": {{
			set:  []policy.Module{lib, caller},
			want: map[string]want{"lib": {"current v1"}, "caller": {"current v1"}},
		}, {
			restart: true,
			set:     []policy.Module{caller},
			want:    map[string]want{"caller": {"none", "2:6: rego_type_error: undefined function data.lib.f"}},
			decides: map[string]string{"k/p": "undefined"},
		}},
		"a library that loses a function is held, and not its unchanged caller": {{
			set:  []policy.Module{lib, caller},
			want: map[string]want{"lib": {"current v1"}, "caller": {"current v1"}},
		}, {
			set: []policy.Module{libWithout, caller},
			want: map[string]want{
				"lib":    {"previous v1", "1:1: rego_type_error: undefined function data.lib.f…opa/caller/main:2"},
				"caller": {"current v1"},
			},
			decides: map[string]string{"k/p": "2", "lib": "{}"},
		}},
		"a library that changes a function's arity has the problem at that function": {{
			set:  []policy.Module{lib, caller},
			want: map[string]want{"lib": {"current v1"}, "caller": {"current v1"}},
		}, {
			set: []policy.Module{module("lib", 1, "package lib", "", "other(x) := x", "f(x, y) := x + y"), caller},
			want: map[string]want{
				"lib":    {"previous v1", "4:1: rego_type_error: …data.lib.f…opa/caller/main:2"},
				"caller": {"current v1"},
			},
			decides: map[string]string{"k/p": "2"},
		}},
		"an edit of library and caller together goes through": {{
			set:  []policy.Module{lib, caller},
			want: map[string]want{"lib": {"current v1"}, "caller": {"current v1"}},
		}, {
			set:     []policy.Module{libWithout, module("caller", 2, "package k", "p := data.lib.g(1)")},
			want:    map[string]want{"lib": {"current v1"}, "caller": {"current v1"}},
			decides: map[string]string{"k/p": "1"},
		}},
		"a library that arrives after its caller releases the caller": {{
			set:     []policy.Module{caller},
			want:    map[string]want{"caller": {"none", "2:6: rego_type_error: undefined function data.lib.f"}},
			decides: map[string]string{"k/p": "undefined"},
		}, {
			set:     []policy.Module{caller, lib},
			want:    map[string]want{"lib": {"current v1"}, "caller": {"current v1"}},
			decides: map[string]string{"k/p": "2"},
		}},
		"a broken library holds its caller at a cold start": {{
			set: []policy.Module{module("lib", 1, "package lib", "f(x) := y"), caller},
			want: map[string]want{
				"lib":    {"none", "2:9: rego_unsafe_var_error: var y is unsafe"},
				"caller": {"none", "2:6: rego_type_error: undefined function data.lib.f"},
			},
		}, {
			set:     []policy.Module{lib, caller},
			want:    map[string]want{"lib": {"current v1"}, "caller": {"current v1"}},
			decides: map[string]string{"k/p": "2"},
		}},
		"a clash elsewhere does not hold a caller that is older than its library": {{
			set: []policy.Module{
				module("caller", 1, caller.Source), module("lib", 2, lib.Source),
				module("x", 3, "package z", "x := 1"), module("y", 4, "package z", "x contains 2"),
			},
			want: map[string]want{
				"caller": {"current v1"}, "lib": {"current v1"},
				"x": {"current v1"}, "y": {"none", "2:1: rego_type_error: conflicting rules data.z.x found"},
			},
			decides: map[string]string{"k/p": "2", "z/x": "1"},
		}},
		"what is in force wins against a newcomer that clashes with it": {{
			set:  []policy.Module{module("z", 5, "package k", "x := 1")},
			want: map[string]want{"z": {"current v1"}},
		}, {
			set: []policy.Module{module("z", 5, "package k", "x := 1"), module("a", 6, "package k", "", "x contains 2")},
			want: map[string]want{
				"z": {"current v1"}, "a": {"none", "3:1: rego_type_error: conflicting rules data.k.x found"},
			},
			decides: map[string]string{"k/x": "1"},
		}, {
			set: []policy.Module{module("z", 5, "package k", "y := 1"), module("a", 6, "package k", "", "x contains 2")},
			want: map[string]want{
				"z": {"current v1"}, "a": {"current v1"},
			},
			decides: map[string]string{"k/x": "[2]", "k/y": "1"},
		}},
		"an edit that brings a clash is held, and its previous version stays": {{
			set:  []policy.Module{module("old", 1, "package k", "y := 1"), module("new", 2, "package k", "x := 1")},
			want: map[string]want{"old": {"current v1"}, "new": {"current v1"}},
		}, {
			set: []policy.Module{module("old", 1, "package k", "x contains 1"), module("new", 2, "package k", "x := 1")},
			want: map[string]want{
				"old": {"previous v1", "2:1: rego_type_error: conflicting rules data.k.x found"}, "new": {"current v1"},
			},
			decides: map[string]string{"k/x": "1", "k/y": "1"},
		}},
		"of several that clash only as many are held as must be": {{
			set: []policy.Module{
				module("a", 6, "package k", "x := 1"),
				module("b", 5, "package k", "x contains 1"),
				module("c", 4, "package k", "y := 1"),
				module("d", 3, "package k", "x contains 2", "y contains 2"),
				module("e", 2, "package k", "x contains 3"),
				module("f", 1, "package k", "y := 1"),
			},
			want: map[string]want{
				"a": {"none", "2:1: rego_type_error: conflicting rules data.k.x found"},
				"b": {"current v1"}, "c": {"current v1"},
				"d": {"none", "3:1: rego_type_error: conflicting rules data.k.y found"},
				"e": {"current v1"}, "f": {"current v1"},
			},
			decides: map[string]string{"k/x": "[1,3]", "k/y": "1"},
		}},
		"a chain of libraries, each younger than its caller, comes into force in spite of a clash elsewhere": {{
			set: []policy.Module{
				module("one", 1, "package k", "p := data.two.f(1)"),
				module("two", 2, "package two", "f(x) := data.three.f(x)"),
				module("three", 3, "package three", "f(x) := data.four.f(x)"),
				module("four", 4, "package four", "f(x) := x"),
				module("x", 5, "package z", "x := 1"), module("y", 6, "package z", "x contains 2"),
			},
			want: map[string]want{
				"one": {"current v1"}, "two": {"current v1"}, "three": {"current v1"}, "four": {"current v1"},
				"x": {"current v1"}, "y": {"none", "2:1: rego_type_error: conflicting rules data.z.x found"},
			},
			decides: map[string]string{"k/p": "1"},
		}},
		"an edit of library and caller together goes through in spite of a clash elsewhere": {{
			set:  []policy.Module{lib, caller},
			want: map[string]want{"lib": {"current v1"}, "caller": {"current v1"}},
		}, {
			set: []policy.Module{
				module("lib", 1, "package lib", "g(x) := x"), module("caller", 4, "package k", "p := data.lib.g(1)"),
				module("x", 2, "package z", "x := 1"), module("y", 3, "package z", "x contains 2"),
			},
			want: map[string]want{
				"lib": {"current v1"}, "caller": {"current v1"}, "x": {"current v1"},
				"y": {"none", "2:1: rego_type_error: conflicting rules data.z.x found"},
			},
			decides: map[string]string{"k/p": "1"},
		}},
		"a caller's good edit goes through when its library loses the function at the same time": {{
			set:  []policy.Module{lib, caller},
			want: map[string]want{"lib": {"current v1"}, "caller": {"current v1"}},
		}, {
			set: []policy.Module{module("lib", 1, "package lib", "g(x) := x"), module("caller", 2, "package k", "p := data.lib.f(2)")},
			want: map[string]want{
				"lib":    {"previous v1", "1:1: rego_type_error: undefined function data.lib.f…opa/caller/main:2"},
				"caller": {"current v1"},
			},
			decides: map[string]string{"k/p": "3"},
		}},
		"of two new modules that recurse through each other the older comes into force": {{
			set: []policy.Module{module("b", 1, "package b", "q := data.a.p"), module("a", 2, "package a", "p := data.b.q")},
			want: map[string]want{
				"a": {"none", "2:1: rego_recursion_error: rule data.a.p is recursive"}, "b": {"current v1"},
			},
		}},
		"of two that annotate one package the older comes into force": {{
			set: []policy.Module{
				module("a", 2, "# METADATA", "# scope: package", "# title: a", "package k", "p := 1"),
				module("b", 1, "# METADATA", "# scope: package", "# title: b", "package k", "q := 1"),
			},
			want: map[string]want{
				"a": {"none", "…rego_type_error: package annotation redeclared"}, "b": {"current v1"},
			},
		}},
		"keys of one ConfigMap are modules of their own": {{
			set: []policy.Module{
				{ID: policy.ID{Namespace: "opa", Name: "a", Key: "one"}, Source: "package k\np := 1"},
				{ID: policy.ID{Namespace: "opa", Name: "b", Key: "one"}, Source: "package k\nq := "},
			},
			want:    map[string]want{"a": {"current v1"}, "b": {"none", "2:…rego_parse_error: ", "…"}},
			decides: map[string]string{"k/p": "1"},
		}},
	}
	for name, steps := range cases {
		t.Run(name, func(t *testing.T) { play(t, steps) })
	}
}

// play compiles and activates one step after the other.
func play(t *testing.T, steps []step) {
	t.Helper()
	e := engine.New()
	c := newCompiler(t, policy.RegoAuto)
	snapshot := c.Empty()
	for i, s := range steps {
		if s.restart {
			c = newCompiler(t, policy.RegoAuto)
			snapshot = c.Empty()
		}
		var report policy.Report
		snapshot, report = settle(c, snapshot, policy.NewSet(s.set...))
		e.Activate(snapshot, report)
		checkReport(t, report, s.want)
		if report.Fingerprint != snapshot.Fingerprint() {
			t.Errorf("the report's fingerprint is %s, the snapshot's %s", report.Fingerprint, snapshot.Fingerprint())
		}
		for path, want := range s.decides {
			if got := decide(t, e, path, nil); got != want {
				t.Errorf("%s: got %s, want %s", path, got, want)
			}
		}
		if t.Failed() {
			t.Fatalf("in step %d", i+1)
		}
	}
}

// The one of two modules that clash with the older object wins, whatever their
// names: the compiler names an accidental party.
func TestOfTwoThatClashTheOlderObjectWins(t *testing.T) {
	cases := map[string]struct {
		one, two [2]string // the text, and the problem if this module is the newer one
	}{
		"a value and a set": {
			[2]string{"package k\nx := 1", "2:1: rego_type_error: conflicting rules data.k.x found"},
			[2]string{"package k\n\nx contains 2", "3:1: rego_type_error: conflicting rules data.k.x found"},
		},
		"functions of different arity": {
			[2]string{"package k\nf(x) := x", "2:1: rego_type_error: conflicting rules data.k.f found"},
			[2]string{"package k\n\nf(x, y) := x", "3:1: rego_type_error: conflicting rules data.k.f found"},
		},
		"two defaults": {
			[2]string{"package k\n\ndefault x := 1", "3:1: rego_type_error: multiple default rules data.k.x found"},
			[2]string{"package k\n\n\ndefault x := 2", "4:1: rego_type_error: multiple default rules data.k.x found"},
		},
		"two defaults, one in Rego v0": {
			[2]string{"package k\n\ndefault x = 1", "3:1: rego_type_error: multiple default rules data.k.x found"},
			[2]string{"package k\n\n\ndefault x = 2\ny { true }", "4:1: rego_type_error: multiple default rules data.k.x found"},
		},
		"a rule and the rules below it": {
			[2]string{"package k\n\nx.y := 1", "3:1: rego_type_error: rule data.k.x conflicts with"},
			[2]string{"package k\n\n\nx := 1", "4:1: rego_type_error: rule data.k.x conflicts with"},
		},
		"a text of one package and a clash with itself in another file": {
			[2]string{"package k\nx := 1\ny contains 1", "2:1: rego_type_error: conflicting rules data.k.x found"},
			[2]string{"package k\n\nx contains 1", "3:1: rego_type_error: conflicting rules data.k.x found"},
		},
	}
	for name, c := range cases {
		for _, names := range [][2]string{{"a", "b"}, {"b", "a"}} {
			for _, older := range []int{0, 1} {
				t.Run(fmt.Sprintf("%s/named %s and %s/older %s", name, names[0], names[1], names[older]), func(t *testing.T) {
					created := [2]int64{2, 2}
					created[older] = 1
					one := module(names[0], created[0], c.one[0])
					two := module(names[1], created[1], c.two[0])
					problem := [2]string{c.one[1], c.two[1]}[1-older]
					winner, loser := [2]policy.Module{one, two}[older], [2]policy.Module{one, two}[1-older]
					// Others of the same package stand before and behind in every order.
					first := module("0", 9, "package k", "first := 1")
					last := module("z", 0, "package k", "last := 1")
					rest := map[string]want{"0": {"current v1"}, "z": {"current v1"}}
					play(t, []step{{
						set:     []policy.Module{first, one, two, last},
						want:    with(rest, winner.ID.Name, want{"current " + versionOf(winner)}, loser.ID.Name, want{"none", problem}),
						decides: map[string]string{"k/first": "1", "k/last": "1"},
					}, {
						set:  []policy.Module{first, loser, last},
						want: with(rest, loser.ID.Name, want{"current " + versionOf(loser)}),
					}})
				})
			}
		}
	}
}

func TestOfARuleAndAPackageBelowItTheOlderObjectWins(t *testing.T) {
	rule := func(name string, created int64) policy.Module {
		return module(name, created, "package k", "", "x := 1")
	}
	pkg := func(name string, created int64) policy.Module {
		return module(name, created, "package k.x", "", "", "y := 1")
	}
	for _, names := range [][2]string{{"a", "b"}, {"b", "a"}} {
		play(t, []step{{
			set: []policy.Module{rule(names[0], 1), pkg(names[1], 2)},
			want: map[string]want{
				names[0]: {"current v1"},
				names[1]: {
					"none", "1:1: rego_type_error: package k.x conflicts with rule x",
					"4:1: rego_type_error: rule data.k.x conflicts with",
				},
			},
			decides: map[string]string{"k": `{"x":1}`},
		}, {
			set:     []policy.Module{pkg(names[1], 2)},
			want:    map[string]want{names[1]: {"current v1"}},
			decides: map[string]string{"k": `{"x":{"y":1}}`},
		}})
		play(t, []step{{
			set: []policy.Module{rule(names[0], 2), pkg(names[1], 1)},
			want: map[string]want{
				names[0]: {
					"none", "…rego_type_error: …",
					"3:1: rego_type_error: rule data.k.x conflicts with",
				},
				names[1]: {"current v1"},
			},
			decides: map[string]string{"k": `{"x":{"y":1}}`},
		}, {
			set:     []policy.Module{rule(names[0], 2)},
			want:    map[string]want{names[0]: {"current v1"}},
			decides: map[string]string{"k": `{"x":1}`},
		}})
	}
}

func TestManyBrokenModulesAtOnce(t *testing.T) {
	var set []policy.Module
	wants := make(map[string]want)
	add := func(kind string, i int, w want, lines ...string) {
		name, created := fmt.Sprintf("%s-%03d", kind, i), int64(i)
		if kind == "clash" {
			created += 1000 // newer than what they clash with
		}
		set = append(set, module(name, created, append([]string{"package kubernetes.admission"}, lines...)...))
		wants[name] = w
	}
	for i := range 30 {
		add("good", i, want{"current v1"}, fmt.Sprintf("deny contains %d if true", i))
		add("old", i, want{"current v0"}, fmt.Sprintf("deny[%d] { true }", 100+i))
		add("parse", i, want{"none", "2:…rego_parse_error: ", "…"}, "deny contains")
		add("call", i, want{"none", "2:6: rego_type_error: undefined function data.lib.f"}, "p := data.lib.f(1)")
		add("unsafe", i, want{"none", "2:6: rego_unsafe_var_error: "}, "p := x")
		add("type", i, want{"none", "2:6: rego_type_error: plus: "}, `p := 1 + "a"`)
		if i < 5 {
			add("clash", i, want{"none", "2:1: rego_type_error: conflicting rules data.kubernetes.admission.deny"}, "deny := 1")
		}
	}
	c := newCompiler(t, policy.RegoAuto)
	snapshot, report := compiled(c, c.Empty(), policy.NewSet(set...))
	checkReport(t, report, wants)
	e := enforce(snapshot)
	decision, err := e.Decide(t.Context(), "kubernetes/admission/deny", nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := len(decision.Result.([]any)); got != 60 {
		t.Errorf("%d of 60 rules decide", got)
	}
}

func TestTheReportIsTheSameWhenNothingChanged(t *testing.T) {
	set := policy.NewSet(
		module("a", 1, "package k", "x := 1"),
		module("b", 2, "package k", "x contains 1"),
		module("c", 3, "package k", "p := data.lib.f(1)"),
		module("d", 4, "package k", "p := "),
	)
	c := newCompiler(t, policy.RegoAuto)
	first, want := settle(c, c.Empty(), set)
	second, got := settle(c, first, set)
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if fmt.Sprint(second.IDs()) != fmt.Sprint(first.IDs()) || len(second.IDs()) != 1 {
		t.Errorf("in force: first %v, then %v", first.IDs(), second.IDs())
	}
}

func with(wants map[string]want, more ...any) map[string]want {
	all := make(map[string]want)
	for name, w := range wants {
		all[name] = w
	}
	for i := 0; i < len(more); i += 2 {
		all[more[i].(string)] = more[i+1].(want)
	}
	return all
}

// versionOf is the version that is found out for the texts of the clash table.
func versionOf(m policy.Module) string {
	if like(m.Source, "…{") {
		return "v0"
	}
	return "v1"
}
