package compile_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/kube-rego/kube-rego/pkg/compile"
	"github.com/kube-rego/kube-rego/pkg/engine"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// answering is a compiler that adds the entrypoint.
func answering(t testing.TB) *compile.Compiler {
	t.Helper()
	c, err := compile.New(compile.Config{RegoVersion: policy.RegoAuto, SystemNamespaces: []string{"opa"}, Entrypoint: true})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// numbered are modules of these texts.
func numbered(sources ...string) policy.Set {
	modules := make([]policy.Module, 0, len(sources))
	for n, source := range sources {
		modules = append(modules, module(fmt.Sprintf("m%d", n), int64(n), source))
	}
	return policy.NewSet(modules...)
}

// answer is that of the entrypoint of a snapshot to a review: "allowed", or "denied" and
// the message, and behind it what else there is.
func answer(t testing.TB, snapshot *compile.Snapshot, request string) string {
	t.Helper()
	e := enforce(snapshot)
	var input any
	if err := json.Unmarshal([]byte(`{"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview", "request": `+request+`}`), &input); err != nil {
		t.Fatal(err)
	}
	text := decide(t, e, "system/main", input)
	var review struct {
		APIVersion, Kind string
		Response         struct {
			UID       string
			Allowed   *bool
			Status    struct{ Code, Message any }
			Warnings  []string
			Patch     string
			PatchType string
		}
	}
	if json.Unmarshal([]byte(text), &review) != nil {
		return text
	}
	r := review.Response
	if review.APIVersion != "admission.k8s.io/v1beta1" || review.Kind != "AdmissionReview" || r.UID != "u" || r.Allowed == nil {
		t.Fatalf("the answer is not to the review: %s", text)
	}
	words := []string{"allowed"}
	if !*r.Allowed {
		words = []string{fmt.Sprintf("denied %v: %v", r.Status.Code, r.Status.Message)}
	}
	for _, warning := range r.Warnings {
		words = append(words, "warning: "+warning)
	}
	if r.PatchType+r.Patch != "" {
		patch, err := base64.StdEncoding.DecodeString(r.Patch)
		if err != nil || r.PatchType != "JSONPatch" {
			t.Fatalf("%q is no patch, of type %q: %v", r.Patch, r.PatchType, err)
		}
		words = append(words, "patch: "+string(patch))
	}
	return strings.Join(words, "\n")
}

func TestTheEntrypointThatIsBuiltIn(t *testing.T) {
	const (
		k  = "package kubernetes.admission\n"
		v0 = "# Rego v0\npackage kubernetes.admission\n"
	)
	for sentence, test := range map[string]struct {
		policies []string
		request  string
		want     string
	}{
		"without policies there is no decision": {want: "undefined"},
		"policies that neither deny nor warn nor patch are none": {
			policies: []string{k + "allow := true", "package elsewhere\ndeny contains 1"}, want: "undefined",
		},
		"a function is no rule to ask": {policies: []string{k + "deny(x) := x"}, want: "undefined"},
		"nobody denies": {
			policies: []string{k + `deny contains "x" if false`}, want: "allowed",
		},
		"one denies": {
			policies: []string{k + `deny contains "x"`}, want: "denied 403: x",
		},
		"several deny, and each text is told once": {
			policies: []string{k + `deny contains "b"`, k + `deny contains "a"`, "package kubernetes.admission.c\n" + `deny contains "a"`},
			want:     "denied 403: a, b",
		},
		"Rego v0": {
			policies: []string{v0 + `deny[msg] { msg := input.request.name }`}, request: `{"uid": "u", "name": "pod"}`, want: "denied 403: pod",
		},
		"Rego v0 that is not true": {
			policies: []string{v0 + `deny[msg] { msg := input.request.name }`}, want: "allowed",
		},
		"both versions side by side": {
			policies: []string{v0 + `deny[msg] { msg := "0" }`, k + `deny contains "1"`}, want: "denied 403: 0, 1",
		},
		"packages far below, also with names that are no words": {
			policies: []string{"package kubernetes.admission.a.b\n" + `deny contains "1"`, `package kubernetes.admission["x-y"]["z.\"<"]` + "\n" + `deny contains "2"`},
			want:     "denied 403: 1, 2",
		},
		"a package whose name begins alike is another": {
			policies: []string{k + `warn contains "w"`, "package kubernetes.admissions\n" + `deny contains "1"`, "package kubernetes\n" + `deny contains "2"`},
			want:     "allowed\nwarning: w",
		},
		"rules with the path in their name": {
			policies: []string{"package kubernetes\n" + `admission.deny contains "1"`, k + `below.deny contains "2"`}, want: "denied 403: 1, 2",
		},
		"a package that is called deny": {
			policies: []string{"package kubernetes.admission.deny\n" + `deny contains "1"` + "\nhelper := \"no\""}, want: "denied 403: 1",
		},
		"objects with msg or message, whatever else is in them": {
			policies: []string{k + `deny contains {"msg": "1", "details": {}}` + "\n" + `deny contains {"message": "2"}`}, want: "denied 403: 1, 2",
		},
		"an array": {policies: []string{k + `deny := ["b", {"msg": "a"}]`}, want: "denied 403: a, b"},
		"one text": {policies: []string{k + `deny := "no" if input.request`}, want: "denied 403: no"},
		"one object": {
			policies: []string{k + `deny := {"msg": "no", "code": 7}`}, want: "denied 403: no",
		},
		"only true": {
			policies: []string{k + "deny if input.request", "package kubernetes.admission.a\n" + "warn if input.request"},
			want:     "denied 403: data.kubernetes.admission.deny is true\nwarning: data.kubernetes.admission.a.warn is true",
		},
		"what is empty says nothing": {
			policies: []string{
				k + "default deny := false", "package kubernetes.admission.a\ndeny := \"\"", "package kubernetes.admission.b\ndeny := []",
				"package kubernetes.admission.c\ndeny := {}", "package kubernetes.admission.d\ndeny := null", "package kubernetes.admission.e\ndeny := set()",
			},
			want: "allowed",
		},
		"what is no text is told all the same": {
			policies: []string{
				k + `deny contains 7` + "\n" + `deny contains {"code": 1}` + "\n" + `deny contains ["x", {"msg": "y"}]` + "\n" + `deny contains false` +
					"\n" + `deny contains {"msg": 1}` + "\n" + `deny contains {"msg"}`,
			},
			want: `denied 403: 7, ["msg"], ["x",{"msg":"y"}], false, {"code":1}, {"msg":1}`,
		},
		"a number alone": {policies: []string{k + "deny := 7"}, want: "denied 403: 7"},
		"texts as keys, as deny[text] makes them in Rego v1": {
			policies: []string{k + `deny["fixed"] if input.request` + "\n" + `deny[msg] if msg := "found"`}, want: "denied 403: fixed, found",
		},
		"texts at keys": {
			policies: []string{k + `deny["a"] := "1"` + "\n" + `deny["b"] := {"msg": "2"}` + "\n" + `deny["c"] := 3` + "\n" + `deny["d"] := false` + "\n" + `deny["e"] := {"x": 1}` + "\n" + `deny["f"] := {}`},
			want:     `denied 403: 1, 2, {"c":3}, {"e":{"x":1}}`,
		},
		"sets at keys": {
			policies: []string{k + `deny.a contains "1"` + "\n" + `deny.a contains {"msg": "2"}` + "\n" + `deny.b contains "3" if false`}, want: "denied 403: 1, 2",
		},
		"warnings, sorted": {
			policies: []string{k + `warn contains "b"` + "\n" + `warn contains {"msg": "a"}`}, want: "allowed\nwarning: a\nwarning: b",
		},
		"warnings beside a denial": {
			policies: []string{k + `warn contains "b"` + "\n" + `deny contains "a"`}, want: "denied 403: a\nwarning: b",
		},
		"a patch": {
			policies: []string{k + `patch contains {"op": "add", "path": "/x", "value": {"<": 1}}`}, want: `allowed` + "\n" + `patch: [{"op":"add","path":"/x","value":{"\u003c":1}}]`,
		},
		"a parent that two packages add is added once, and first": {
			policies: []string{
				"package kubernetes.admission.a\n" + `patch contains {"op": "add", "path": "/l/a", "value": 1}` + "\n" + `patch contains {"op": "add", "path": "/l", "value": {}}`,
				"package kubernetes.admission.b\n" + `patch contains {"op": "add", "path": "/l/b", "value": 1}` + "\n" + `patch contains {"op": "add", "path": "/l", "value": {}}`,
			},
			want: "allowed\n" + `patch: [{"op":"add","path":"/l","value":{}},{"op":"add","path":"/l/a","value":1},{"op":"add","path":"/l/b","value":1}]`,
		},
		"arrays keep their order, and follow package by package": {
			policies: []string{
				"package kubernetes.admission.b\n" + `patch := [{"op": "remove", "path": "/3"}, {"op": "add", "path": "/2", "value": 1}]`,
				"package kubernetes.admission.a\n" + `patch contains [{"op": "remove", "path": "/1"}, {"op": "remove", "path": "/0"}]`,
				k + `patch contains {"op": "remove", "path": "/9"}`,
				"package kubernetes.admission.a.z\n" + `patch := [{"op": "remove", "path": "/4"}]`,
			},
			want: "allowed\n" + `patch: [{"op":"remove","path":"/9"},{"op":"remove","path":"/1"},{"op":"remove","path":"/0"},{"op":"remove","path":"/4"},{"op":"remove","path":"/3"},{"op":"add","path":"/2","value":1}]`,
		},
		"arrays of operations at keys come in the order of these": {
			policies: []string{k + `patch["2"] := [{"op": "remove", "path": "/b"}, {"op": "remove", "path": "/a"}]` + "\n" + `patch["1"] := {"op": "remove", "path": "/c"}` + "\n" + `patch["0"] := []`},
			want:     "allowed\n" + `patch: [{"op":"remove","path":"/c"},{"op":"remove","path":"/b"},{"op":"remove","path":"/a"}]`,
		},
		"operations as keys, as patch[operation] makes them in Rego v1": {
			policies: []string{k + `patch[operation] if operation := {"op": "remove", "path": "/c"}`},
			want:     "allowed\n" + `patch: [{"op":"remove","path":"/c"}]`,
		},
		"one operation": {policies: []string{k + `patch := {"op": "remove", "path": "/c"}`}, want: "allowed\n" + `patch: [{"op":"remove","path":"/c"}]`},
		"what is no operation is passed on, to be refused with its number": {
			policies: []string{k + `patch := "x"`, "package kubernetes.admission.a\n" + `patch contains 7`, "package kubernetes.admission.b\npatch := [{\"path\": \"/\"}]"},
			want:     "allowed\n" + `patch: [7,"x",{"path":"/"}]`,
		},
		"an empty patch is none":        {policies: []string{k + "patch contains 1 if false", "package kubernetes.admission.a\npatch := []"}, want: "allowed"},
		"a denial goes without a patch": {policies: []string{k + `patch contains {"op": "remove", "path": "/c"}`, k + `deny contains "a"`}, want: "denied 403: a"},
		"a conflict in a rule that is asked is an error": {
			policies: []string{k + `deny contains "x"`, "package kubernetes.admission.a\ndeny := 1 if input\ndeny := 2 if input"}, want: "error: …",
		},
		"what is not asked is not evaluated": {
			policies: []string{k + "helper := 1 if input\nhelper := 2 if input\n" + `deny contains "x"`}, want: "denied 403: x",
		},
		"without an id to echo there is no decision": {policies: []string{k + `deny contains "x"`}, request: `{}`, want: "undefined"},
	} {
		t.Run(sentence, func(t *testing.T) {
			c := answering(t)
			snapshot, report := compiled(c, c.Empty(), numbered(test.policies...))
			if held := report.Held(); len(held) > 0 {
				t.Fatalf("held: %v", held)
			}
			request := test.request
			if request == "" {
				request = `{"uid": "u"}`
			}
			got := answer(t, snapshot, request)
			if before, _, open := strings.Cut(test.want, "…"); got != test.want && (!open || !strings.HasPrefix(got, before)) {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
			itself, instead := snapshot.BuiltinEntrypoint()
			if defined := snapshot.Defines("system/main"); defined != (test.want != "undefined" || test.request != "") || itself != defined || instead {
				t.Errorf("there is an entrypoint: %t, it is the one that is built in: %t, instead of another: %t", defined, itself, instead)
			}
		})
	}
}

// The entrypoint is there as long as nobody defines one, and is no module of anybody.
func TestWhoDefinesTheEntrypointReplacesIt(t *testing.T) {
	const deny = "package kubernetes.admission\ndeny contains \"built in\""
	for sentence, source := range map[string]string{
		"a rule":                          "package system\nmain := {\"own\": true}",
		"a part of it":                    "package system\nmain.own := true",
		"a package of that name":          "package system.main\nown := true",
		"a package without rules":         "package system.main",
		"a function, which is no mistake": "package system\nmain(x) := x",
	} {
		t.Run(sentence, func(t *testing.T) {
			c := answering(t)
			first, _ := settle(c, c.Empty(), numbered(deny))
			if got := answer(t, first, `{"uid": "u"}`); got != "denied 403: built in" {
				t.Fatalf("got %s", got)
			}
			second, report := settle(c, first, numbered(deny, source))
			if held := report.Held(); len(held) > 0 {
				t.Fatalf("held: %v", held)
			}
			e := enforce(second)
			if got := decide(t, e, "system/main", map[string]any{}); strings.Contains(got, "built in") {
				t.Errorf("replaced, it still answers %s", got)
			}
			if itself, _ := second.BuiltinEntrypoint(); itself {
				t.Error("replaced, it is still there")
			}
			third, report := settle(c, second, numbered(deny))
			if got := answer(t, third, `{"uid": "u"}`); got != "denied 403: built in" {
				t.Errorf("back again it answers %s", got)
			}
			if third.Fingerprint() != first.Fingerprint() || len(report.Modules) != 1 || len(third.Texts()) != 1 || len(third.IDs()) != 1 {
				t.Errorf("it is told of as a module: %+v", report)
			}
		})
	}
}

func TestAnEntrypointThatIsHeldReplacesNothing(t *testing.T) {
	c := answering(t)
	deny := "package kubernetes.admission\ndeny contains \"built in\""
	for sentence, test := range map[string]struct {
		set     policy.Set
		instead bool
	}{
		"broken": {numbered(deny, "package system\nmain := {"), true},
		"of a namespace that may not define one": {policy.NewSet(module("m0", 0, deny), policy.Module{
			ID: policy.ID{Namespace: "team", Name: "main", Key: "main"}, Source: "package system\nmain := 1",
		}), false},
	} {
		snapshot, report := settle(c, c.Empty(), test.set)
		if itself, instead := snapshot.BuiltinEntrypoint(); !itself || instead != test.instead {
			t.Errorf("%s: the one that is built in answers: %t, instead of another: %t", sentence, itself, instead)
		}
		if got := answer(t, snapshot, `{"uid": "u"}`); len(report.Held()) != 1 || got != "denied 403: built in" {
			t.Errorf("%s: held: %v; it answers %s", sentence, report.Held(), got)
		}
	}
}

func TestTheEntrypointHasPoliciesAndNoHelpersBeside(t *testing.T) {
	c := answering(t)
	snapshot, report := settle(c, c.Empty(), numbered(
		"package system\nallowed := data.own.x", "package own\nx := 1", "package kubernetes.admission\ndeny contains \"x\" if data.system.allowed"))
	if held := report.Held(); len(held) > 0 {
		t.Fatalf("held: %v", held)
	}
	e := enforce(snapshot)
	// Whoever looks at all of data sees nothing of how it is made.
	if got := decide(t, e, "system", nil); got != `{"allowed":1,"version":{"build_commit":"","build_hostname":"","build_timestamp":"","version":"`+engine.Version()+`"}}` {
		t.Errorf("data.system is %s", got)
	}
}

// Whoever asks the entrypoint what it would say goes round in circles: that change is held,
// and nobody else's.
func TestAPolicyThatReadsTheEntrypointIsHeld(t *testing.T) {
	c := answering(t)
	snapshot, report := settle(c, c.Empty(), numbered(
		"package kubernetes.admission\ndeny contains \"x\"",
		"package kubernetes.admission\ndeny contains \"y\" if data.system.main",
		"package kubernetes.admission\ndeny contains \"z\""))
	held := report.Held()
	if len(held) != 1 || held[0].ID.Name != "m1" || !strings.Contains(held[0].Problems[0].Message, "recursive") {
		t.Errorf("held: %v", held)
	}
	if got := answer(t, snapshot, `{"uid": "u"}`); got != "denied 403: x, z" {
		t.Errorf("it answers %s", got)
	}
}

func TestDataIsNotTakenForRules(t *testing.T) {
	c := answering(t)
	data := func(key, source string) policy.Module {
		return policy.Module{ID: policy.ID{Namespace: "kubernetes", Name: "admission", Key: key}, Kind: policy.Data, Source: source}
	}
	set := policy.NewSet(data("deny", `["from data"]`), data("below", `{"deny": ["from data"]}`), module("m", 1, "package kubernetes.admission.other\ndeny contains \"rule\""))
	snapshot, report := settle(c, c.Empty(), set)
	if held := report.Held(); len(held) > 0 {
		t.Fatalf("held: %v", held)
	}
	if got := answer(t, snapshot, `{"uid": "u"}`); got != "denied 403: rule" {
		t.Errorf("it answers %s", got)
	}
}

// Whoever has data where the entrypoint would be is not held for it: that is the decision.
func TestDataAtTheEntrypointReplacesIt(t *testing.T) {
	c, err := compile.New(compile.Config{RegoVersion: policy.RegoAuto, SystemNamespaces: []string{"system"}, Entrypoint: true})
	if err != nil {
		t.Fatal(err)
	}
	data := policy.Module{ID: policy.ID{Namespace: "system", Name: "main", Key: "key"}, Kind: policy.Data, Source: `"data"`}
	deny := module("deny", 1, "package kubernetes.admission\ndeny contains \"x\"")
	first, _ := settle(c, c.Empty(), policy.NewSet(deny))
	second, report := settle(c, first, policy.NewSet(deny, data))
	if held := report.Held(); len(held) > 0 {
		t.Fatalf("held: %v", held)
	}
	e := enforce(first)
	if !e.Decides("system/main") {
		t.Error("rules do not decide")
	}
	e.Activate(second, report)
	if got := decide(t, e, "system/main", nil); got != `{"key":"data"}` || e.Decides("system/main") {
		t.Errorf("got %s; rules decide: %t", got, e.Decides("system/main"))
	}
}

func TestBundlesAndTheEntrypoint(t *testing.T) {
	deny := numbered("package kubernetes.admission.a\ndeny contains \"ConfigMap\"")
	bundle := func(root []string, sources ...string) compile.BundleSet {
		set := compile.BundleSet{Bundles: []compile.Bundle{{Name: "b", Roots: [][]string{root}}}}
		for n, source := range sources {
			set.Modules = append(set.Modules, compile.BundleModule{Name: fmt.Sprintf("b/%d.rego", n), Source: source, Version: policy.RegoV1})
		}
		return set
	}
	for sentence, test := range map[string]struct {
		bundle compile.BundleSet
		want   string
	}{
		"a bundle denies too": {
			bundle([]string{"kubernetes", "admission", "b"}, "package kubernetes.admission.b\ndeny contains \"bundle\""), "denied 403: ConfigMap, bundle",
		},
		"a bundle has an entrypoint": {
			bundle([]string{"system", "main"}, "package system\nmain := \"bundle\""), `"bundle"`,
		},
		"a bundle that owns system and has none": {
			bundle([]string{"system"}, "package system\nother := 1"), "denied 403: ConfigMap",
		},
	} {
		t.Run(sentence, func(t *testing.T) {
			c := answering(t)
			before, _ := settle(c, c.Empty(), deny)
			snapshot, err := c.WithBundles(before, test.bundle, deny, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got := answer(t, snapshot, `{"uid": "u"}`); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

func TestWithoutTheOptionThereIsNoEntrypoint(t *testing.T) {
	c := newCompiler(t, policy.RegoAuto)
	snapshot, _ := settle(c, c.Empty(), numbered("package kubernetes.admission\ndeny contains \"x\""))
	if got := answer(t, snapshot, `{"uid": "u"}`); got != "undefined" {
		t.Errorf("it answers %s", got)
	}
}

// Who had a say is a ConfigMap, and one that said something.
func TestTheEntrypointThatIsBuiltInHasNoSay(t *testing.T) {
	c := answering(t)
	snapshot, _ := compiled(c, c.Empty(), numbered(
		"package kubernetes.admission.a\ndeny contains \"x\"", "package kubernetes.admission.b\ndeny contains \"x\" if false"))
	e := enforce(snapshot)
	input := map[string]any{"apiVersion": "v1", "kind": "AdmissionReview", "request": map[string]any{"uid": "u"}}
	decision, err := e.Decide(t.Context(), "system/main", input)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := decision.Witness.Speakers(t.Context()); err != nil || fmt.Sprint(got) != "[opa/m0/main]" {
		t.Errorf("got %v, %v", got, err)
	}
}

// The page about the entrypoint shows it as it is.
func TestTheEntrypointIsInTheDocs(t *testing.T) {
	source, err := os.ReadFile("entrypoint.rego")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../docs/entrypoint.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(page), "```rego\n"+string(source)+"```\n") {
		t.Error("docs/entrypoint.md shows another text than entrypoint.rego")
	}
}

// What OPA's type checker knows of one rule must not make another one wrong.
func TestAnyFormsStandSideBySide(t *testing.T) {
	forms := []string{
		"NAME contains 1", "NAME contains \"x\"", "NAME := true", "NAME := false", "NAME := null", "NAME := 1", "NAME := \"x\"", "NAME := []", "NAME := [1, {}]",
		"NAME := {}", "NAME := {\"op\": 1}", "NAME := {\"msg\": \"x\"}", "NAME := {\"msg\": 1}", "NAME[x] := y if some x, y in input", "NAME.a contains 1", "NAME[x] if some x in input",
		"NAME.a.b := 1", "NAME := input", "NAME := set()", "NAME := {1, \"x\", [], {}}", "default NAME := false",
	}
	var together []string
	for _, name := range []string{"deny", "warn", "patch"} {
		for n, form := range forms {
			rule := strings.ReplaceAll(form, "NAME", name)
			together = append(together, fmt.Sprintf("package kubernetes.admission.%s%d\n%s", name, n, rule))
			c := answering(t)
			snapshot, report := compiled(c, c.Empty(), numbered("package kubernetes.admission\n"+rule))
			if held := report.Held(); len(held) > 0 {
				t.Errorf("%s alone is held: %v", rule, held)
			}
			if got := answer(t, snapshot, `{"uid": "u"}`); got == "undefined" || strings.HasPrefix(got, "error") {
				t.Errorf("%s alone: %s", rule, got)
			}
		}
	}
	c := answering(t)
	snapshot, report := compiled(c, c.Empty(), numbered(together...))
	if held := report.Held(); len(held) > 0 {
		t.Errorf("held together: %v", held)
	}
	if got := answer(t, snapshot, `{"uid": "u"}`); !strings.HasPrefix(got, "denied 403: 1, ") {
		t.Errorf("together: %s", got)
	}
}
