package configmap_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/kube-rego/kube-rego/pkg/configmap"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

const maxStatusBytes = 16000

// annotation is a status as its readers decode it.
type annotation struct {
	Status  string
	InForce string
	Error   *struct {
		Code    string
		Message string
		Errors  []struct {
			Code     string
			Message  string
			Location struct {
				File     string
				Row, Col int
			}
		}
	}
}

func decode(t *testing.T, text string) annotation {
	t.Helper()
	var a annotation
	if err := json.Unmarshal([]byte(text), &a); err != nil {
		t.Fatalf("%v in %.200s", err, text)
	}
	return a
}

func status(key string, inForce policy.InForce, problems ...policy.Problem) policy.Status {
	return policy.Status{
		ID:       policy.ID{Namespace: "opa", Name: "rules", Key: key},
		InForce:  inForce,
		Problems: problems,
	}
}

func TestStatus(t *testing.T) {
	parseError := policy.Problem{Code: "rego_parse_error", Message: "unexpected eof token", Row: 3, Col: 14}
	unsafe := policy.Problem{Code: "rego_unsafe_var_error", Message: "var <x> & y are unsafe", Row: 7, Col: 2}
	deleted := status("lib", policy.Previous, policy.Problem{Code: "rego_type_error", Message: "undefined function data.lib.f (seen at opa/rules/main:4:2)"})
	deleted.Deleted = true
	const head = `{"status":"error","error":{"code":"invalid_parameter","message":"error(s) occurred while compiling module(s)","errors":[`
	for _, test := range []struct {
		name    string
		modules []policy.Status
		want    string
	}{
		{
			name: "a ConfigMap without modules is ok",
			want: `{"status":"ok"}`,
		},
		{
			name:    "all in force is ok, byte for byte",
			modules: []policy.Status{status("a", policy.Current), status("b", policy.Current)},
			want:    `{"status":"ok"}`,
		},
		{
			name:    "a problem is told with its place, and that nothing is in force",
			modules: []policy.Status{status("main", policy.None, parseError)},
			want: head + `{"code":"rego_parse_error","message":"unexpected eof token",` +
				`"location":{"file":"opa/rules/main","row":3,"col":14}}]},"inForce":"none"}`,
		},
		{
			name:    "a held edit says that the previous version is in force, and characters of HTML stay readable",
			modules: []policy.Status{status("main", policy.Previous, unsafe)},
			want: head + `{"code":"rego_unsafe_var_error","message":"var <x> & y are unsafe",` +
				`"location":{"file":"opa/rules/main","row":7,"col":2}}]},"inForce":"previous"}`,
		},
		{
			name:    "the problems of several modules are told in their order, and one that is not in force counts for all",
			modules: []policy.Status{status("a", policy.Previous, parseError, unsafe), status("b", policy.Current), status("c", policy.None, parseError)},
			want: head + `{"code":"rego_parse_error","message":"unexpected eof token","location":{"file":"opa/rules/a","row":3,"col":14}},` +
				`{"code":"rego_unsafe_var_error","message":"var <x> & y are unsafe","location":{"file":"opa/rules/a","row":7,"col":2}},` +
				`{"code":"rego_parse_error","message":"unexpected eof token","location":{"file":"opa/rules/c","row":3,"col":14}}]},"inForce":"none"}`,
		},
		{
			name:    "a module in force beside a held edit does not change what is said of the edit",
			modules: []policy.Status{status("a", policy.Current), status("b", policy.Previous, parseError)},
			want: head + `{"code":"rego_parse_error","message":"unexpected eof token",` +
				`"location":{"file":"opa/rules/b","row":3,"col":14}}]},"inForce":"previous"}`,
		},
		{
			name:    "a deleted module that is held says that it was deleted",
			modules: []policy.Status{deleted},
			want: head + `{"code":"rego_type_error","message":"deleting the module breaks the rest: undefined function data.lib.f (seen at opa/rules/main:4:2)",` +
				`"location":{"file":"opa/rules/lib","row":0,"col":0}}]},"inForce":"previous"}`,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := configmap.Status(test.modules); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

func TestStatusShowsTheFirstTenErrors(t *testing.T) {
	for _, test := range []struct {
		problems, shown int
		message         string
	}{
		{10, 10, "error(s) occurred while compiling module(s)"},
		{11, 10, "error(s) occurred while compiling module(s): 11, of which the first 10 are shown"},
		{5000, 10, "error(s) occurred while compiling module(s): 5000, of which the first 10 are shown"},
	} {
		t.Run(fmt.Sprintf("of %d", test.problems), func(t *testing.T) {
			problems := make([]policy.Problem, test.problems)
			for i := range problems {
				problems[i] = policy.Problem{Code: "rego_parse_error", Message: "m", Row: i + 1, Col: 1}
			}
			got := decode(t, configmap.Status([]policy.Status{status("main", policy.None, problems...)}))
			if got.Error.Message != test.message {
				t.Errorf("message is %q, want %q", got.Error.Message, test.message)
			}
			if len(got.Error.Errors) != test.shown {
				t.Fatalf("%d errors are shown, want %d", len(got.Error.Errors), test.shown)
			}
			for i, e := range got.Error.Errors {
				if e.Location.Row != i+1 {
					t.Errorf("error %d is that of row %d", i, e.Location.Row)
				}
			}
		})
	}
}

func TestStatusShortensMessages(t *testing.T) {
	for _, test := range []struct {
		name, message, want string
	}{
		{"a message of 1,000 bytes is told whole", strings.Repeat("x", 1000), strings.Repeat("x", 1000)},
		{"a longer message is cut, and shows it", strings.Repeat("x", 1001), strings.Repeat("x", 1000) + "…"},
		{"no character is cut in two", strings.Repeat("€", 400), strings.Repeat("€", 333) + "…"}, // 3 bytes each
	} {
		t.Run(test.name, func(t *testing.T) {
			problem := policy.Problem{Code: "rego_parse_error", Message: test.message, Row: 1, Col: 1}
			got := decode(t, configmap.Status([]policy.Status{status("main", policy.None, problem)}))
			if message := got.Error.Errors[0].Message; message != test.want {
				t.Errorf("got %d bytes ending in %q, want %d ending in %q",
					len(message), message[len(message)-9:], len(test.want), test.want[len(test.want)-9:])
			}
		})
	}
}

func TestStatusShowsFewerErrorsWhereTenAreTooLong(t *testing.T) {
	// Each byte takes six in JSON.
	problem := policy.Problem{Code: "rego_parse_error", Message: strings.Repeat("\x01", 2000), Row: 1, Col: 1}
	text := configmap.Status([]policy.Status{status("main", policy.None, slices.Repeat([]policy.Problem{problem}, 10)...)})
	if len(text) > maxStatusBytes {
		t.Errorf("the status has %d bytes, want at most %d", len(text), maxStatusBytes)
	}
	got := decode(t, text)
	if n := len(got.Error.Errors); n != 2 {
		t.Errorf("%d errors are shown, want 2", n)
	}
	if want := "error(s) occurred while compiling module(s): 10, of which the first 2 are shown"; got.Error.Message != want {
		t.Errorf("message is %q, want %q", got.Error.Message, want)
	}
}

func FuzzStatus(f *testing.F) {
	f.Add("main", "rego_parse_error", "unexpected eof token", uint16(1), 3, 14, uint8(1), false)
	f.Add("", "", "", uint16(0), 0, 0, uint8(0), false)
	f.Add("main", "c", "\x01", uint16(5000), 1, 1, uint8(11), true)
	f.Add("\xff", "\xff", "\xff", uint16(5000), -1, -1, uint8(255), true)
	f.Add("main", "c", "€", uint16(5000), 1<<40, 1<<40, uint8(10), true)
	f.Fuzz(func(t *testing.T, key, code, text string, repeat uint16, row, col int, n uint8, deleted bool) {
		// What is bounded elsewhere: a key by Kubernetes, a code by OPA.
		if len(key) > 253 || len(code) > 100 || len(text) > 100 {
			t.Skip()
		}
		problem := policy.Problem{Code: code, Message: strings.Repeat(text, int(repeat)), Row: row, Col: col}
		s := status(key, policy.Previous, slices.Repeat([]policy.Problem{problem}, int(n))...)
		s.Deleted = deleted
		got := configmap.Status([]policy.Status{s})
		if len(got) > maxStatusBytes {
			t.Errorf("the status has %d bytes, want at most %d", len(got), maxStatusBytes)
		}
		if !utf8.ValidString(got) {
			t.Error("the status is not UTF-8")
		}
		a := decode(t, got)
		switch {
		case n == 0 && got != `{"status":"ok"}`:
			t.Errorf("got %s without a problem", got)
		case n > 0 && (a.Status != "error" || a.InForce != "previous" || len(a.Error.Errors) == 0):
			t.Errorf("%d problems are not told: %s", n, got)
		}
	})
}
