package policy_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

func TestAProblemInOneLine(t *testing.T) {
	cases := map[string]struct {
		problem policy.Problem
		want    string
	}{
		"with its place": {
			policy.Problem{Code: "rego_parse_error", Message: "unexpected eof", Row: 3, Col: 12},
			"3:12: rego_parse_error: unexpected eof",
		},
		"without a place where there is none": {
			policy.Problem{Code: policy.CodeDefect, Message: "not UTF-8 text"},
			"invalid_parameter: not UTF-8 text",
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := c.problem.String(); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestAProblemAsJSONLeavesOutAPlaceThatIsNone(t *testing.T) {
	cases := map[string]policy.Problem{
		`{"code":"c","message":"m","row":1,"col":2}`: {Code: "c", Message: "m", Row: 1, Col: 2},
		`{"code":"c","message":"m"}`:                 {Code: "c", Message: "m"},
	}
	for want, problem := range cases {
		got, err := json.Marshal(problem)
		if err != nil || string(got) != want {
			t.Errorf("got %s and error %v, want %s", got, err, want)
		}
	}
}

func TestAModuleWithProblemsIsHeld(t *testing.T) {
	problems := []policy.Problem{{Code: "c", Message: "m"}}
	a := policy.Status{ID: id("opa", "a", "main"), InForce: policy.Current}
	b := policy.Status{ID: id("opa", "b", "main"), InForce: policy.Previous, Problems: problems}
	c := policy.Status{ID: id("opa", "c", "main"), InForce: policy.None, Problems: problems}
	d := policy.Status{ID: id("opa", "d", "main"), InForce: policy.Current}

	for _, want := range []struct {
		status policy.Status
		held   bool
		state  string
	}{
		{a, false, policy.StateInForce}, {b, true, policy.StateHeld}, {c, true, policy.StateHeld},
	} {
		if want.status.Held() != want.held || want.status.State() != want.state {
			t.Errorf("%s: held %t and state %q, want %t and %q",
				want.status.ID, want.status.Held(), want.status.State(), want.held, want.state)
		}
	}

	var held []policy.ID
	for _, s := range (policy.Report{Modules: []policy.Status{a, b, c, d}}).Held() {
		held = append(held, s.ID)
	}
	if want := []policy.ID{b.ID, c.ID}; !slices.Equal(held, want) {
		t.Errorf("held: got %v, want %v", held, want)
	}
	if held := (policy.Report{Modules: []policy.Status{a, d}}).Held(); len(held) != 0 {
		t.Errorf("held of a report where all is in force: %v", held)
	}
}

// The line is shown as its author wrote it, with the caret below the character.
func TestAProblemShowsItsLine(t *testing.T) {
	long := strings.Repeat("a", 1000) + "X" + strings.Repeat("b", 1000)
	for sentence, c := range map[string]struct {
		source     string
		row, col   int
		line, want string
	}{
		"the first column":         {"one\ntwo", 1, 1, "one", "^"},
		"the last line":            {"one\ntwo", 2, 3, "two", "  ^"},
		"tabs stay tabs":           {"\tx := y", 1, 7, "\tx := y", "\t     ^"},
		"characters, not bytes":    {"é := ü", 1, 6, "é := ü", "     ^"},
		"line ends of Windows":     {"one\r\ntwo\r\n", 2, 1, "two", "^"},
		"behind the end of a line": {"one", 1, 9, "one", "   ^"},
		"no such row":              {"one", 5, 1, "", ""},
		"no place":                 {"one", 0, 0, "", ""},
		"a long line is cut around the place": {
			long, 1, 1001, strings.Repeat("a", 80) + "X" + strings.Repeat("b", 79), strings.Repeat(" ", 80) + "^",
		},
	} {
		p := policy.Problem{Row: c.row, Col: c.col}.In(c.source)
		if p.Source != c.line || p.Caret != c.want {
			t.Errorf("%s: got\n%q\n%q\nwant\n%q\n%q", sentence, p.Source, p.Caret, c.line, c.want)
		}
	}
}
