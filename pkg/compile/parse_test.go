package compile_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

func TestInWhichRegoVersionAModuleIsRead(t *testing.T) {
	filler := strings.Repeat("# a line\n", 20)
	cases := map[string]struct {
		module  policy.Module
		version policy.RegoVersion // of the compiler; auto if empty
		want    want
		decides string // data.k.p
	}{
		"what is the same in both is v1": {
			module: module("a", 1, "package k", "p := 1"), want: want{"current v1"}, decides: "1",
		},
		"what only v1 can read is v1": {
			module: module("a", 1, "package k", "p if true"), want: want{"current v1"}, decides: "true",
		},
		"a v0 module that imports rego.v1 is v1": {
			module: module("a", 1, "package k", "import rego.v1", "p if true"), want: want{"current v1"}, decides: "true",
		},
		"what only v0 can read is v0": {
			module: module("a", 1, "package k", "p { true }"), want: want{"current v0"}, decides: "true",
		},
		"a v0 module with future keywords is v0 if v1 cannot read it": {
			module: module("a", 1, "package k", "import future.keywords.in", "p { 1 in [1] }"),
			want:   want{"current v0"}, decides: "true",
		},
		"a built-in that v1 dropped makes it v0": {
			module: module("a", 1, "package k", "p := any([false, true])"), want: want{"current v0"}, decides: "true",
		},
		"a name imported twice makes it v0": {
			module: module("a", 1, "package k", "import data.x.name", "import data.y.name", "p := 1"),
			want:   want{"current v0"}, decides: "1",
		},
		"a rule named input makes it v0": {
			module: module("a", 1, "package k", "input := 3", "p := 1"), want: want{"current v0"}, decides: "1",
		},
		"a module that asks for v1 is not read as v0": {
			module: in(policy.RegoV1, module("a", 1, "package k", "", "p := any([false, true])")),
			want:   want{"none", "3:6: rego_type_error: deprecated built-in function calls in expression: any"},
		},
		"a module that asks for v0 is not read as v1": {
			module: in(policy.RegoV0, module("a", 1, "package k", "", "p if true")),
			want:   want{"none", "3:1: rego_parse_error: …future.keywords.if…", "…"},
		},
		"a module that asks for v0 gets what v0 means": {
			module: in(policy.RegoV0, module("a", 1, "package k", "p[1] { true }")),
			want:   want{"current v0"}, decides: "[1]",
		},
		"the same text in v1 would mean another thing": {
			module: in(policy.RegoV1, module("a", 1, "package k", "p[1] if { true }")),
			want:   want{"current v1"}, decides: `{"1":true}`,
		},
		"a module's own wish wins over the compiler's version": {
			version: policy.RegoV1, module: in(policy.RegoV0, module("a", 1, "package k", "p { true }")),
			want: want{"current v0"}, decides: "true",
		},
		"a module's wish for auto wins over the compiler's version": {
			version: policy.RegoV1, module: in(policy.RegoAuto, module("a", 1, "package k", "p { true }")),
			want: want{"current v0"}, decides: "true",
		},
		"the compiler's version is for modules without a wish": {
			version: policy.RegoV1, module: module("a", 1, "package k", "", "p { true }"),
			want: want{"none", "3:1: rego_parse_error: `if` keyword is required", "…"},
		},
		"the compiler's version v0 reads what v1 could read too": {
			version: policy.RegoV0, module: module("a", 1, "package k", "p := 1"),
			want: want{"current v0"}, decides: "1",
		},
		"a typo far down in a v1 text is reported, not the first if": {
			module: module("a", 1, "package k", "p if true", filler+"q contains x if {", "\tx := := 1", "}"),
			want:   want{"none", "24:7: rego_parse_error: unexpected assign token", "…"},
		},
		"a typo far down in a v0 text is reported, not the first rule": {
			module: module("a", 1, "package k", "p { true }", filler+"q[x] {", "\tx := := 1", "}"),
			want:   want{"none", "24:7: rego_parse_error: unexpected assign token", "…"},
		},
		"what v1 takes but for its further rules gets the error of v1": {
			module: module("a", 1, "package k", "", "import data.x.name", "import data.y.name", "", "deny contains 1 if true"),
			want:   want{"none", "4:1: rego_compile_error: import must not shadow"},
		},
		"a text that ends too early has its error in column 1 at least": {
			module: module("a", 1, "package k", "p if {", ""), want: want{"none", "3:1: rego_parse_error: unexpected eof token", "…"},
		},
		"a typo far down in a v1 text is reported, not a word that v0 cannot read": {
			module: module("a", 1, "package k", "p if { some x in [1]; x > 0 }", filler+"q contains x if {", "\tx := := 1", "}"),
			want:   want{"none", "24:7: rego_parse_error: unexpected assign token", "…"},
		},
		"a typo far down in a v0 text is reported, not a name that v1 keeps for itself": {
			module: module("a", 1, "package k", "every = 1 { true }", filler+"q[x] {", "\tx := := 1", "}"),
			want:   want{"none", "24:7: rego_parse_error: unexpected assign token", "…"},
		},
		"an empty module": {
			module: module("a", 1, ""), want: want{"none", "1:1: rego_parse_error: empty module"},
		},
		"a module of comments only": {
			module: module("a", 1, "# nothing", ""), want: want{"none", "1:1: rego_parse_error: empty module"},
		},
		"a module without a package": {
			module: module("a", 1, "", "p := 1"), want: want{"none", "2:1: rego_parse_error: package expected", "…"},
		},
		"a package without rules": {
			module: module("a", 1, "package k"), want: want{"current v1"}, decides: "undefined",
		},
		"no Rego at all": {
			module: module("a", 1, `{"kind": "Pod"}`), want: want{"none", "1:1: rego_parse_error: ", "…"},
		},
		"a text with NUL bytes": {
			module: module("a", 1, "package k\n\x00"), want: want{"none", "2:…: rego_parse_error: ", "…"},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			version := c.version
			if version == "" {
				version = policy.RegoAuto
			}
			compiler := newCompiler(t, version)
			snapshot, report := compiled(compiler, compiler.Empty(), policy.NewSet(c.module))
			checkReport(t, report, map[string]want{"a": c.want})
			if c.decides == "" {
				return
			}
			e := enforce(snapshot)
			if got := decide(t, e, "k/p", nil); got != c.decides {
				t.Errorf("data.k.p: got %s, want %s", got, c.decides)
			}
		})
	}
}

// The digest of a module leaves out when its object was created, the cache must
// not: who wins depends on it.
func TestAModuleThatWasCreatedAgainCountsAsNew(t *testing.T) {
	first, second := "package k\nx := 1", "package k\nx contains 1"
	c := newCompiler(t, policy.RegoAuto)
	for _, created := range []int64{1, 3} {
		set := policy.NewSet(module("a", created, first), module("b", 2, second))
		_, report := compiled(c, c.Empty(), set)
		held := fmt.Sprint(report.Held()[0].ID.Name, len(report.Held()))
		if want := map[int64]string{1: "b1", 3: "a1"}[created]; held != want {
			t.Errorf("with a created at %d: held %s, want %s", created, held, want)
		}
	}
}

// Each level of nesting multiplies the time to compile; the limit is far beyond
// what policies need.
func TestDeeplyNestedComprehensionsAreHeld(t *testing.T) {
	nested := func(levels int) string {
		return "p := " + strings.Repeat("[x | x := ", levels) + "1" + strings.Repeat("]", levels)
	}
	c := newCompiler(t, policy.RegoAuto)
	_, report := compiled(c, c.Empty(), policy.NewSet(
		module("deep", 1, "package deep", nested(40)), module("fine", 1, "package fine", nested(8)),
		module("every", 1, "package every", "p if { "+strings.Repeat("every x in [[1]] { ", 40)+"true"+strings.Repeat(" }", 41)),
	))
	checkReport(t, report, map[string]want{
		"deep":  {"none", "1:1: invalid_parameter: comprehensions are nested more than 8 deep"},
		"every": {"none", "1:1: invalid_parameter: comprehensions are nested more than 8 deep"},
		"fine":  {"current v1"},
	})
}
