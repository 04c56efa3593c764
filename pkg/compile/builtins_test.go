package compile_test

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/kube-rego/kube-rego/pkg/compile"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

func TestBuiltinsThatLendTheAuthorityOfTheProcessAreOff(t *testing.T) {
	hint := func(name string) string {
		return "rego_type_error: undefined function " + name + ": …--enable-builtin=" + name
	}
	cases := map[string]struct {
		lines []string
		want  string
	}{
		"http.send":          {[]string{`p := http.send({"method": "get", "url": "http://localhost"})`}, "2:6: " + hint("http.send")},
		"net.lookup_ip_addr": {[]string{`p := net.lookup_ip_addr("localhost")`}, "2:6: " + hint("net.lookup_ip_addr")},
		"opa.runtime":        {[]string{"p := opa.runtime().env"}, "2:6: " + hint("opa.runtime")},
		"in Rego v0":         {[]string{"p = x { x := opa.runtime() }"}, "2:14: " + hint("opa.runtime")},
		"with an output argument": {
			[]string{"p := x if opa.runtime(x)"}, "2:11: " + hint("opa.runtime"),
		},
		"below a comprehension": {
			[]string{"p := [x | x := opa.runtime()]"}, "2:16: " + hint("opa.runtime"),
		},
		"in place of a function of ours": {
			[]string{"f(x) := x", "p := x if { x := data.k.f({}) with data.k.f as http.send }"},
			"3:48: rego_unsafe_var_error: var http is unsafe: …--enable-builtin=http.send",
		},
		"in place of another built-in": {
			[]string{"p := x if { x := count([]) with count as http.send }"}, "2:42: rego_unsafe_var_error: var http is unsafe: …--enable-builtin=http.send",
		},
		"in place of data": {
			[]string{"p := x if { x := data.x with data.x as http.send }"}, "2:40: rego_unsafe_var_error: var http is unsafe: …--enable-builtin=http.send",
		},
		"called for a value that takes the place of data": {
			[]string{"p := x if { x := data.x with data.x as http.send({}) }"}, "2:40: " + hint("http.send"),
		},
		"mocked by itself": {
			[]string{"p := x if { x := 1 with http.send as 1 }"}, "2:25: rego_type_error: with keyword target must reference",
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			compiler := newCompiler(t, policy.RegoAuto)
			m := module("a", 1, append([]string{"package k"}, c.lines...)...)
			_, report := compiled(compiler, compiler.Empty(), policy.NewSet(m))
			checkReport(t, report, map[string]want{"a": {"none", c.want}})
		})
	}
}

func TestABuiltinThatWasSwitchedOnWorks(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusTeapot)
	}))
	defer server.Close()
	e := enforcing(t, []string{"http.send"}, module("a", 1, "package k",
		`send := http.send({"method": "get", "url": input.url}).status_code`,
		`mocked := x if { x := http.send({}) with http.send as 3 }`,
		`f(x) := x`,
		`instead := x if { x := f({"method": "get", "url": input.url}).status_code with f as http.send }`,
	))
	for path, want := range map[string]string{"k/send": "418", "k/instead": "418", "k/mocked": "3"} {
		if got := decide(t, e, path, map[string]any{"url": server.URL}); got != want {
			t.Errorf("%s: got %s, want %s", path, got, want)
		}
	}

	enforcing(t, []string{"net.lookup_ip_addr"}, module("a", 1, "package k", `p := net.lookup_ip_addr(input.name)`))
}

// What a schema refers to is fetched by the built-ins for schemas: that they are
// switched on does not switch on the network.
func TestASchemaReachesNoServer(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("%s was fetched", r.URL)
	}))
	defer server.Close()
	e := enforcing(t, []string{"json.match_schema", "json.verify_schema"}, module("a", 1, "package k",
		`match := json.match_schema({}, {"$ref": input.url})`, `verify := json.verify_schema({"$ref": input.url})`))
	for path, want := range map[string]string{"k/match": "undefined", "k/verify": `[false,"jsonschema: remote reference loading disabled`} {
		if got := decide(t, e, path, map[string]any{"url": server.URL}); !like(got, want) {
			t.Errorf("%s: got %s, want %s", path, got, want)
		}
	}
}

func TestTheOthersStayOffWhenOneIsSwitchedOn(t *testing.T) {
	c := newCompiler(t, policy.RegoAuto, "http.send")
	_, report := compiled(c, c.Empty(), policy.NewSet(module("a", 1, "package k", "p := opa.runtime()")))
	checkReport(t, report, map[string]want{
		"a": {"none", "2:6: rego_type_error: undefined function opa.runtime: …--enable-builtin=opa.runtime"},
	})
}

func TestOnlyWhatIsOffCanBeSwitchedOn(t *testing.T) {
	if _, err := compile.New(compile.Config{Builtins: compile.OffByDefault()}); err != nil {
		t.Errorf("all that is off by default: %v", err)
	}
	for _, name := range []string{"", "count", "http.sent"} {
		if _, err := compile.New(compile.Config{Builtins: []string{name}}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%q: got error %v", name, err)
		}
	}
	if got, want := compile.OffByDefault(), []string{"http.send", "json.match_schema", "json.verify_schema", "net.lookup_ip_addr", "opa.runtime"}; !slices.Equal(got, want) {
		t.Errorf("off by default: got %v, want %v", got, want)
	}
}

func TestOPARuntimeShowsNothingOfTheEnvironment(t *testing.T) {
	t.Setenv("KUBE_REGO_TEST_SECRET", "open sesame")
	e := enforcing(t, []string{"opa.runtime"}, module("a", 1, "package k", "all := opa.runtime()", "env := opa.runtime().env"))
	if got := decide(t, e, "k/all", nil); strings.Contains(got, "sesame") || strings.Contains(got, `"env"`) {
		t.Errorf("opa.runtime() is %s", got)
	}
	if got := decide(t, e, "k/env", nil); got != "undefined" {
		t.Errorf("opa.runtime().env is %s", got)
	}
}
