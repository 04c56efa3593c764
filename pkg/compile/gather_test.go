package compile

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// parsed are modules that are named by the letters of the alphabet.
func parsed(t testing.TB, sources ...string) (*language, map[policy.ID]*module) {
	t.Helper()
	set := make(policy.Set)
	for i, source := range sources {
		id := policy.ID{Namespace: "opa", Name: string(rune('a' + i)), Key: "main"}
		set[id] = policy.Module{ID: id, Source: source}
	}
	c, err := New(Config{RegoVersion: policy.RegoAuto, SystemNamespaces: []string{"opa"}})
	if err != nil {
		t.Fatal(err)
	}
	modules := c.parser.parse(set)
	for id, m := range modules {
		if len(m.problems) > 0 {
			t.Fatalf("%s: %v", id, m.problems)
		}
	}
	return c.parser.language, modules
}

// ungathered compiles each module as its own.
func ungathered(language *language, modules map[policy.ID]*module) *ast.Compiler {
	trees := make(map[string]*ast.Module, len(modules))
	for id, m := range modules {
		trees[id.String()] = m.ast
	}
	compiler := language.newCompiler()
	compiler.Compile(trees)
	return compiler
}

// evaluate is all of data as JSON.
func evaluate(t *testing.T, compiler *ast.Compiler, input any) string {
	t.Helper()
	if compiler.Failed() {
		t.Fatal(compiler.Errors)
	}
	results, err := rego.New(rego.Query("data"), rego.Compiler(compiler), rego.Input(input)).Eval(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(results)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestGatheredModulesMeanTheSame(t *testing.T) {
	cases := map[string]struct {
		sources []string
		groups  int // that the compiler gets to see
	}{
		"partial sets of one package": {[]string{
			"package k\ndeny contains \"a\" if input.n > 1",
			"package k\ndeny contains \"b\" if input.n > 2",
			"package k\ndeny contains \"c\"",
		}, 1},
		"Rego v0 and v1 in one package": {[]string{
			"package k\ndeny[x] { x := input.n; x > 1 }",
			"package k\ndeny contains \"b\" if input.n > 2",
			"package k\np = x { x := any([input.n > 1]) }",
		}, 2},
		"what v0 and v1 read differently": {[]string{
			"package k\nold[1] { true }",
			"package k\nnew[1] if true",
			"package k\nbad[2] { input.n / 0 }\nold[3] { input.n > 1 }",
		}, 2},
		"one name imported for two things": {[]string{
			"package k\nimport data.one.lib\na := lib.v",
			"package k\nimport data.two.lib\nb := lib.v",
			"package k\nimport data.one as lib\nc := lib.lib.v",
			"package one.lib\nv := 1",
			"package two.lib\nv := input.n",
		}, 5},
		"an import that is a rule's name elsewhere": {[]string{
			"package k\nimport data.one.name\na := name",
			"package k\nname := 2\nb := name",
			"package one\nname := 1",
		}, 3},
		"the same imports in one package": {[]string{
			"package k\nimport data.one\nimport data.two as t\na := one.v + t.v",
			"package k\nimport data.one\nimport data.two as t\nb := one.v - t.v",
			"package one\nv := 1",
			"package two\nv := 2",
		}, 3},
		"v1 and v0 with the same import": {[]string{
			"package k\nimport data.one\na { one.v > 0 }",
			"package k\nimport data.one\nb if one.v > 0",
			"package one\nv := 1",
		}, 3},
		"local variables of one name": {[]string{
			"package k\na := x if { some x in [1, 2]; x > 1 }",
			"package k\nb := x if { x := input.n }",
			"package k\nc contains x if { some i, x in [3, 4]; i > 0 }",
		}, 1},
		"a local variable with the name of a rule elsewhere": {[]string{
			"package k\na := x if { x := 2 }",
			"package k\nx := 1",
			"package k\nb := x",
		}, 1},
		"else chains": {[]string{
			"package k\na := 1 if input.n > 5 else := 2 if input.n > 1 else := 3",
			"package k\nb if input.n > 5 else := false",
			"package k\nc = 1 { input.n > 5 } else = 2 { true }",
		}, 2},
		"defaults beside their rules": {[]string{
			"package k\ndefault allow := false",
			"package k\nallow if input.n > 1",
			"package k\ndefault f(_) := 0",
			"package k\nf(x) := 2 if x > 1",
			"package k\na := f(input.n)",
		}, 1},
		"functions in several modules": {[]string{
			"package k\nf(1) := \"one\"",
			"package k\nf(2) := \"two\"",
			"package k\na := f(input.n)",
			"package other\na := data.k.f(2)",
		}, 2},
		"partial objects and rules with long names": {[]string{
			"package k\no.a.b := 1",
			"package k\no.a.c := input.n",
			"package k\no.d[x] := y if some x, y in [5, 6]",
			"package k\ns[x] contains y if some x, y in [5, 6]",
		}, 1},
		"a package below another": {[]string{
			"package k\na := 1", "package k.below\nb := data.k.a", "package k\nc := data.k.below.b",
		}, 2},
		"annotations keep a module alone": {[]string{
			"# METADATA\n# title: one\npackage k\n\n# METADATA\n# title: two\n# custom:\n#  level: 1\na := rego.metadata.rule()",
			"package k\nb := 1",
			"# METADATA\n# title: three\npackage other\n\nb := rego.metadata.chain()",
			"package k\n\n# METADATA\n# scope: document\n# title: four\nc := rego.metadata.chain()",
		}, 4},
		"comments": {[]string{"package k # one\n# two\na := 1 # three", "# four\npackage k\nb := 2"}, 1},
		"with, some, every and comprehensions": {[]string{
			"package k\na := input.n",
			"package k\nb := x if x := a with input.n as 7",
			"package k\nc if every x in [1, 2] { x > 0 }\nd := {x: y | some x, y in [input.n]}",
			"package k\ne := x if { x := data.k.f(1) with data.k.f as g }\nf(x) := x\ng(x) := x + 1",
		}, 1},
		"bodies chained in one rule": {[]string{
			"package k\na { input.n > 5 } { input.n > 1 }", "package k\nb[x] { x := 1 } { x := 2 }",
		}, 1},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			language, modules := parsed(t, c.sources...)
			if groups := len(gather(modules)); groups != c.groups {
				t.Errorf("the compiler sees %d modules, want %d", groups, c.groups)
			}
			for n := range 4 {
				input := map[string]any{"n": 2 * n}
				got := evaluate(t, (&linker{language: language}).link(modules, noBundles).compiler, input)
				want := evaluate(t, ungathered(language, modules), input)
				if got != want {
					t.Errorf("n is %d:\ngathered %s\nalone    %s", 2*n, got, want)
				}
			}
		})
	}
}

// Parsed modules are shared by all snapshots that hold them.
func TestGatheringChangesNoModule(t *testing.T) {
	language, modules := parsed(t,
		"# a comment\npackage k\na := 1", "package k\nb := a", "package k\nimport data.x\nc := x.y")
	print := func() string {
		var all strings.Builder
		for _, id := range sortedIDs(modules) {
			tree := modules[id].ast
			fmt.Fprintln(&all, id, len(tree.Rules), len(tree.Comments), tree)
		}
		return all.String()
	}
	before := print()
	for range 2 {
		if r := (&linker{language: language}).link(modules, noBundles); !r.ok() {
			t.Fatal(r.errors())
		}
	}
	if after := print(); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

func TestErrorsInAGatheredPackageKeepTheirPlace(t *testing.T) {
	language, modules := parsed(t,
		"package k\na := 1",
		"package k\n\nb := data.nowhere.f(1)",
		"package k\n\n\nc := 1 + data.nowhere.g(1)",
		"package k\nd := 1",
		"package k\n\n\n\ne { data.nowhere.h(1) }",
	)
	if groups := len(gather(modules)); groups != 2 {
		t.Fatalf("the compiler sees %d modules, want 2", groups)
	}
	r := (&linker{language: language}).link(modules, noBundles)
	var got []string
	for _, e := range r.errors() {
		got = append(got, fmt.Sprintf("%s:%d:%d %s", e.Location.File, e.Location.Row, e.Location.Col, e.Message))
	}
	slices.Sort(got)
	want := []string{
		"opa/b/main:3:6 undefined function data.nowhere.f",
		"opa/c/main:4:10 undefined function data.nowhere.g",
		"opa/e/main:5:5 undefined function data.nowhere.h",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestOnlyAClashCountsAsAClash(t *testing.T) {
	cases := map[string]struct {
		sources []string
		want    bool
	}{
		"a value and a set":       {[]string{"package k\nx := 1", "package k\nx contains 1"}, true},
		"two defaults":            {[]string{"package k\ndefault x := 1", "package k\ndefault x := 2"}, true},
		"a rule and a package":    {[]string{"package k\nx := 1", "package k.x\ny := 1"}, true},
		"nothing wrong":           {[]string{"package k\nx := 1"}, false},
		"an undefined function":   {[]string{"package k\nx := data.f(1)"}, false},
		"an unsafe variable":      {[]string{"package k\nx := y"}, false},
		"a wrong type":            {[]string{"package k\nx := 1 + \"a\""}, false},
		"a call without a result": {[]string{"package k\nx if { y := print(1) }"}, false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			language, modules := parsed(t, c.sources...)
			if got := (&linker{language: language}).link(modules, noBundles).clash; got != c.want {
				t.Errorf("got %t, want %t", got, c.want)
			}
		})
	}
}
