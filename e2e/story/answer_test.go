package story

import (
	"strings"
	"testing"
)

func TestExpectations(t *testing.T) {
	const table = "NAME          DESIRED   CURRENT\nanalytics-7   1         0"
	for _, test := range []struct {
		name   string
		want   Expectation
		output string
		holds  bool
	}{
		{"the same", Is("a", "b"), "a\nb", true},
		{"more", Is("a", "b"), "a\nb\nc", false},
		{"part", Is("a"), "a b", false},
		{"one of two", IsOneOf("a", "b"), "b", true},
		{"none of two", IsOneOf("a", "b"), "c", false},
		{"in it", Says("b"), "abc", true},
		{"not in it", Says("d"), "abc", false},
		{"row", HasRow("analytics-7", "1", "0"), table, true},
		{"beginning of a row", HasRow("analytics-*", "1"), table, true},
		{"another value", HasRow("analytics-*", "1", "1"), table, false},
		{"only a prefix", HasRow("analytics-"), table, false},
		{"a longer row", HasRow("analytics-7", "1", "0", "0"), table, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := test.want.holds(answer{output: test.output}); got != test.holds {
				t.Errorf("%s of %q: %v", test.want.Text, test.output, got)
			}
		})
	}
}

func TestExitCodeIsExpected(t *testing.T) {
	for _, fails := range []bool{true, false} {
		c := Command{Fails: fails, Want: []Expectation{Is("x")}}
		if unmet := c.unmet(answer{output: "x", failed: fails}); unmet != nil {
			t.Errorf("fails %v: unmet %s", fails, unmet.Text)
		}
		if unmet := c.unmet(answer{output: "x", failed: !fails}); unmet == nil || !strings.Contains(unmet.Text, "exit code") {
			t.Errorf("fails %v: the wrong exit code is accepted", fails)
		}
	}
}

func TestFailureIsOneLine(t *testing.T) {
	f := &Failure{Step: "s", On: "r", Line: "kubectl get \\\n    pods", Expected: "x", Got: strings.Repeat("a\n", 1000)}
	text := f.Error()
	const want = `step "s": r $ kubectl get pods: expected x, got "a\na`
	if !strings.HasPrefix(text, want) || strings.Contains(text, "\n") || len(text) > 1600 {
		t.Errorf("error = %q", text)
	}
}

func TestFold(t *testing.T) {
	long := strings.Repeat("x", width-6)
	for _, test := range []struct{ name, line, want string }{
		{"short", "a b", "  a b"},
		{"at a space", long + " more than fits", "  " + long + "\n    more than fits"},
		{"behind a comma", long + `,{"more":"than fits"}`, "  " + long + ",\n    " + `{"more":"than fits"}`},
		{"nowhere", long + long, "  " + long + long},
		{"empty", "", "  "},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := fold(test.line, "  ", "    "); got != test.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, test.want)
			}
		})
	}
}
