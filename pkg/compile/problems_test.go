package compile_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// A person who repairs a module sees all that is wrong with it, not only what
// OPA came to first.
func TestAllProblemsOfAModuleAreTold(t *testing.T) {
	for sentence, c := range map[string]struct {
		lines []string
		want  []string
	}{
		"three rules that do not parse": {
			lines: []string{"package k", "", "p := = 1", "", "q := 1", "", "r := = 2", "", "s contains if {", ""},
			want:  []string{"3:6: rego_parse_error: …", "7:6: rego_parse_error: …", "9:12: rego_parse_error: …"},
		},
		"an unclosed brace is no error of the rules that follow": {
			lines: []string{"package k", "", "p if {", "  input.x", "", "q if {", "  input.y", "}", "", "r if {", "  input.z", "}"},
			want:  []string{"6:3: rego_parse_error: …"},
		},
		"an error in the imports is the only one": {
			lines: []string{"package k", "", "import data.a.[", "", "p := = 1"},
			want:  []string{"3:15: rego_parse_error: …"},
		},
		"in Rego v0": {
			lines: []string{"package k", "", "p[x] { x := 1 }", "", "q[x] { x = = 1 }", "", "r { true }", "", "s[y] { y := := 2 }"},
			want:  []string{"5:12: rego_parse_error: …", "9:13: rego_parse_error: …"},
		},
		"errors of three stages of the compiler": {
			lines: []string{"package k", "", "p := x", "", "q := data.lib.f(1)", "", `r := 1 + "a"`, "", "s := y"},
			want: []string{
				"3:6: rego_unsafe_var_error: var x is unsafe", "5:6: rego_type_error: undefined function data.lib.f",
				"7:6: rego_type_error: plus: invalid argument(s)", "9:6: rego_unsafe_var_error: var y is unsafe",
			},
		},
		"what calls a broken function is not broken itself": {
			lines: []string{"package k", "", "f(x) := y", "", "p := f(1)", "", "q := data.k.f(2)", "", "r := data.nowhere.g(1)"},
			want:  []string{"3:9: rego_unsafe_var_error: var y is unsafe", "9:6: rego_type_error: undefined function data.nowhere.g"},
		},
	} {
		t.Run(sentence, func(t *testing.T) {
			c1 := newCompiler(t, policy.RegoAuto)
			_, report := settle(c1, c1.Empty(), policy.NewSet(module("a", 1, c.lines...)))
			if got := texts(report.Modules[0].Problems); !slices.EqualFunc(got, c.want, like) {
				t.Errorf("got\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(c.want, "\n\t"))
			}
			for _, p := range report.Modules[0].Problems {
				if want := c.lines[p.Row-1]; p.Source != want || len(p.Caret) != p.Col {
					t.Errorf("%s: it shows\n%s\n%s\nwant line %q", p, p.Source, p.Caret, want)
				}
			}
		})
	}
}

// Looking for more errors is bounded, however long the text.
func TestProblemsOfALongTextAreBounded(t *testing.T) {
	c := newCompiler(t, policy.RegoAuto)
	_, report := compiled(c, c.Empty(), policy.NewSet(module("a", 1, "package k\n\n"+strings.Repeat("x := = 1\n\n", 50_000))))
	// The parser gives two at the first place, and the rest is cut there.
	if got := len(report.Modules[0].Problems); got < 5 || got > 11 {
		t.Errorf("%d problems, want about 10", got)
	}
}

// Whoever may write a ConfigMap somewhere must not become the entrypoint.
func TestPackagesUnderSystemAreForTrustedNamespaces(t *testing.T) {
	for text, forbidden := range map[string]bool{
		"package system\n\nmain := 1":             true,
		"package system.log\n\nmask contains 1":   true,
		"package system[\"authz\"]\n\nallow := 1": true,
		"package system\n\nmain = x { x := 1 }":   true,
		"package systems\n\nmain := 1":            false,
		"package k.system\n\nmain := 1":           false,
	} {
		trusted, other := module("a", 1, text), module("b", 2, text)
		other.ID.Namespace = "team"
		for _, m := range []policy.Module{trusted, other} {
			c := newCompiler(t, policy.RegoAuto)
			_, report := settle(c, c.Empty(), policy.NewSet(m))
			held := forbidden && m.ID.Namespace != "opa"
			want := []string{}
			if held {
				want = []string{"1:1: unauthorized: namespace team may not declare package system…--system-namespaces"}
			}
			if got := texts(report.Modules[0].Problems); !slices.EqualFunc(got, want, like) {
				t.Errorf("%q in namespace %s: %q, want %q", text, m.ID.Namespace, got, want)
			}
		}
	}
}

// A good edit goes into force without the compilations that broken modules cost.
func TestWhatIsFreshDoesNotWaitForWhatIsHeld(t *testing.T) {
	c := newCompiler(t, policy.RegoAuto)
	set := policy.NewSet(module("caller", 1, "package k", "p := data.lib.f(1)"))
	snapshot, _ := settle(c, c.Empty(), set)

	lib := module("lib", 2, "package lib", "f(x) := x")
	set[lib.ID] = lib
	snapshot, report := compiled(c, snapshot, set)
	checkReport(t, report, map[string]want{
		"caller": {"none", "2:6: rego_type_error: undefined function data.lib.f"}, "lib": {"current v1"},
	})
	_, report = retried(c, snapshot, set, func() bool { return true })
	checkReport(t, report, map[string]want{"caller": {"current v1"}, "lib": {"current v1"}})
}

// Who interrupts takes over between two compilations: those that were not tried
// stay held with the reasons known.
func TestARetryCanBeInterrupted(t *testing.T) {
	c := newCompiler(t, policy.RegoAuto)
	set := make(policy.Set)
	wants := make(map[string]want)
	for i := range int64(5) {
		m := module(fmt.Sprint("m", i), i, fmt.Sprintf("package k%d", i), "p := data.nowhere.f(1)")
		set[m.ID] = m
		wants[m.ID.Name] = want{"none", "2:6: rego_type_error: undefined function data.nowhere.f"}
	}
	snapshot, _ := compiled(c, c.Empty(), set)
	asked := 0
	_, report := retried(c, snapshot, set, func() bool { asked++; return true })
	checkReport(t, report, wants)
	if asked == 0 {
		t.Error("nobody asked whether to go on")
	}
}
