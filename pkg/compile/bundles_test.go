package compile_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/kube-rego/kube-rego/pkg/compile"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// bundle is a set with one bundle, which owns roots.
func bundle(roots []string, data string, modules ...compile.BundleModule) compile.BundleSet {
	b := compile.Bundle{Name: "authz", Revision: "r1"}
	for _, root := range roots {
		b.Roots = append(b.Roots, strings.FieldsFunc(root, func(r rune) bool { return r == '/' }))
	}
	set := compile.BundleSet{Bundles: []compile.Bundle{b}, Modules: modules}
	if data != "" {
		set.Data = ast.MustParseTerm(data).Value.(ast.Object)
	}
	return set
}

// inBundle is a module of it.
func inBundle(name string, lines ...string) compile.BundleModule {
	return compile.BundleModule{Name: "authz/" + name + ".rego", Version: policy.RegoV1, Source: strings.Join(lines, "\n")}
}

func TestWhichBundlesGoIntoForce(t *testing.T) {
	main := module("main", 1, "package app", "x := data.lib.f(1)")
	for name, test := range map[string]struct {
		replicated compile.Replicated
		modules    []policy.Module
		set        compile.BundleSet
		want       string            // the error, as a pattern
		decides    map[string]string // once it is in force
	}{
		"policies and data beside those of ConfigMaps": {
			modules: []policy.Module{module("own", 1, "package own", "x := data.opa.list.main"), dataModule("list", 1, `[1]`)},
			set:     bundle([]string{"lib", "list"}, `{"list": {"a": 2}}`, inBundle("lib", "package lib", "f(x) := x + data.list.a + count(data.opa.list.main)", "p := f(1)")),
			decides: map[string]string{"own/x": "[1]", "lib/p": "4", "list/a": "2"},
		},
		"data below a root of several names": {
			set:     bundle([]string{"a/b"}, `{"a": {"b": {"c": 3}, "x": 4}}`),
			decides: map[string]string{"a/b/c": "3", "a/x": "undefined"},
		},
		"all of data, where there is nothing else": {
			set:     bundle([]string{""}, `{"x": 1, "system": {"bundles": {"authz": 1}}}`, inBundle("k", "package k", "y := data.x")),
			decides: map[string]string{"k/y": "1", "system/bundles/authz": "1"},
		},
		"a module of a bundle in Rego v0": {
			set:     bundle([]string{"k"}, "", compile.BundleModule{Name: "authz/k.rego", Version: policy.RegoV0, Source: "package k\np { true }"}),
			decides: map[string]string{"k/p": "true"},
		},
		"a module that does not parse": {
			set:  bundle([]string{"k"}, "", inBundle("k", "package k", "p :=")),
			want: "bundle:authz/k.rego:2: rego_parse_error: ",
		},
		"a module that calls a built-in that is off": {
			set:  bundle([]string{"k"}, "", inBundle("k", "package k", "p := http.send({})")),
			want: "bundle:authz/k.rego:2: rego_type_error: undefined function http.send: the built-in http.send is off unless --enable-builtin=http.send switches it on",
		},
		"a root in which a ConfigMap has a package": {
			modules: []policy.Module{module("own", 1, "package k.sub", "x := 1")},
			set:     bundle([]string{"k"}, "", inBundle("k", "package k", "p := 1")),
			want:    `bundle authz has the root "k", and data.k.sub in it is defined by opa/own/main, which is in force: `,
		},
		"a root below a package of a ConfigMap": {
			modules: []policy.Module{module("own", 1, "package k", "x := 1")},
			set:     bundle([]string{"k/sub"}, "", inBundle("k", "package k.sub", "p := 1")),
			want:    `bundle authz has the root "k/sub", and data.k in it is defined by opa/own/main`,
		},
		"a root in which a ConfigMap has data": {
			modules: []policy.Module{dataModule("list", 1, `[1]`)},
			set:     bundle([]string{"opa"}, `{"opa": {"x": 1}}`),
			want:    `bundle authz has the root "opa", and data.opa.list.main in it is defined by opa/list/main`,
		},
		"all of data, where there is something else": {
			modules: []policy.Module{module("own", 1, "package own", "x := 1")},
			set:     bundle([]string{""}, `{"x": 1}`),
			want:    `bundle authz has the root "", and data.own in it is defined by opa/own/main`,
		},
		"where objects of the cluster are": {
			replicated: compile.Replicated{Resources: [][]string{{"kubernetes", "pods"}}},
			set:        bundle([]string{"kubernetes/pods"}, `{"kubernetes": {"pods": {}}}`),
			want:       `bundle authz has the root "kubernetes/pods", where objects of the cluster are replicated`,
		},
		"a rule that asks for one in force that asks for it": {
			modules: []policy.Module{module("own", 1, "package own", "x := data.lib.y")},
			set:     bundle([]string{"lib"}, "", inBundle("lib", "package lib", "y := data.own.x")),
			want:    "bundle:authz/lib.rego:2: rego_recursion_error: ",
		},
		"a function that a held ConfigMap waits for": {
			modules: []policy.Module{main},
			set:     bundle([]string{"lib"}, "", inBundle("lib", "package lib", "f(x) := x + 1")),
			decides: map[string]string{"app/x": "2"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := compile.New(compile.Config{
				RegoVersion: policy.RegoAuto, SystemNamespaces: []string{"opa"}, Replicated: test.replicated,
			})
			if err != nil {
				t.Fatal(err)
			}
			wanted := policy.NewSet(test.modules...)
			before, _ := settle(c, c.Empty(), wanted)
			after, err := c.WithBundles(before, test.set, nil, nil)
			if test.want != "" {
				if err == nil || !like(err.Error(), test.want) {
					t.Fatalf("got the error %v\nwant %s", err, test.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			after, report := settle(c, after, wanted)
			if held := report.Held(); len(held) > 0 {
				t.Fatalf("held: %v", held)
			}
			e := enforce(after)
			for path, want := range test.decides {
				if got := decide(t, e, path, nil); got != want {
					t.Errorf("%s: got %s, want %s", path, got, want)
				}
			}
		})
	}
}

func TestWhatBecomesOfModulesBesideABundle(t *testing.T) {
	c := newCompiler(t, policy.RegoAuto)
	lib := bundle([]string{"lib", "list"}, `{"list": {"a": 2}}`, inBundle("lib", "package lib", "f(x) := x"))
	snapshot, err := c.WithBundles(c.Empty(), lib, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	owned := func(path, root string) string {
		return path + ` is owned by bundle authz, which has the root "` + root + `": nobody else can define anything there`
	}
	set := policy.NewSet(
		module("good", 1, "package good", "x := data.lib.f(data.list.a)"),
		module("below", 2, "", "package lib.more", "x := 1"),
		module("same", 3, "package list", "a := 3"),
		module("wrong", 4, "package wrong", "x := data.lib.g(1)"),
	)
	snapshot, report := settle(c, snapshot, set)
	for _, s := range report.Modules {
		want := map[string]want{
			"good":  {"current v1"},
			"below": {"none", "2:1: invalid_parameter: " + owned("data.lib.more", "lib")},
			"same":  {"none", "1:1: invalid_parameter: " + owned("data.list", "list")},
			"wrong": {"none", "2:6: rego_type_error: undefined function data.lib.g"},
		}[s.ID.Name]
		if differs := want.differs(s); differs != "" {
			t.Error(differs)
		}
	}

	// The library goes: who needs it keeps it.
	none := compile.BundleSet{}
	if _, err := c.WithBundles(snapshot, none, nil, nil); err == nil || !like(err.Error(), "opa/good/main:2: rego_type_error: undefined function data.lib.f") {
		t.Errorf("without the bundle: got %v", err)
	}
	// Nobody needs it: it goes, and what it was in the way of comes.
	delete(set, policy.ID{Namespace: "opa", Name: "good", Key: "main"})
	snapshot, _ = settle(c, snapshot, set)
	snapshot, err = c.WithBundles(snapshot, none, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, report = settle(c, snapshot, set); len(report.Held()) != 1 || report.Held()[0].ID.Name != "wrong" {
		t.Errorf("held after the bundle has gone: %v", report.Held())
	}
	if bare := c.Bare(snapshot); len(bare.IDs()) != 0 || len(bare.Bundles()) != 0 {
		t.Errorf("there is %v, %v", bare.IDs(), bare.Bundles())
	}
}

// A package of a bundle is no resource that somebody reads.
func TestBundlesCountForWhatIsReplicated(t *testing.T) {
	c, err := compile.New(compile.Config{RegoVersion: policy.RegoAuto, Replicated: compile.Replicated{Path: []string{"kubernetes"}, Auto: true}})
	if err != nil {
		t.Fatal(err)
	}
	snapshot, err := c.WithBundles(c.Empty(), bundle([]string{"library"}, "", inBundle("lib", "package library", "p := data.kubernetes.pods")), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := c.ResourceNames(snapshot, nil, nil); !slices.Equal(got, []string{"pods"}) {
		t.Errorf("read: %v", got)
	}
}

func TestSecretsAreMasked(t *testing.T) {
	secret := `{"kind": "Secret", "metadata": {"name": "s"}, "data": {"a": "eA=="}, "stringData": {"b": "x"}}`
	applied := `{"kind": "Secret", "metadata": {"annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"}}, "data": {}}`
	masked := func(paths ...string) string {
		text, err := json.Marshal(paths)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	own := module("mask", 1, "package system.log", `mask contains "/input/password"`)
	for name, test := range map[string]struct {
		modules []policy.Module
		event   string
		want    string
	}{
		"nothing in it":                             {event: `{"input": {"request": {"object": {"kind": "Pod", "data": 1}}}, "result": true}`, want: "[]"},
		"no input":                                  {event: `{"result": 1}`, want: "[]"},
		"a Secret and the old one":                  {event: `{"input": {"request": {"object": ` + secret + `, "oldObject": ` + secret + `}}}`, want: masked("/input/request/object/data", "/input/request/object/stringData", "/input/request/oldObject/data", "/input/request/oldObject/stringData")},
		"kubectl's copy of it":                      {event: `{"input": {"object": ` + applied + `}}`, want: masked("/input/object/data", "/input/object/metadata/annotations")},
		"a Secret by itself":                        {event: `{"input": ` + secret + `}`, want: masked("/input/data", "/input/stringData")},
		"in a list":                                 {event: `{"input": {"kind": "List", "items": [1, ` + applied + `]}}`, want: masked("/input/items/1/data", "/input/items/1/metadata/annotations")},
		"a list of Secrets":                         {event: `{"input": {"kind": "SecretList", "items": [{"data": 1}]}}`, want: masked("/input/items")},
		"in the result":                             {event: `{"result": {"object": ` + secret + `}}`, want: masked("/result/object/data", "/result/object/stringData")},
		"where OPA cannot name it":                  {event: `{"input": {"a/b": ` + secret + `}}`, want: masked("/input")},
		"what built-ins made of it":                 {event: `{"input": ` + secret + `, "nd_builtin_cache": {"x": 1}}`, want: masked("/input/data", "/input/stringData", "/nd_builtin_cache")},
		"who masks something else masks no Secrets": {modules: []policy.Module{own}, event: `{"input": ` + secret + `}`, want: masked("/input/password")},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := compile.New(compile.Config{RegoVersion: policy.RegoAuto, SystemNamespaces: []string{"opa"}, MaskSecrets: true})
			if err != nil {
				t.Fatal(err)
			}
			snapshot, report := compiled(c, c.Empty(), policy.NewSet(test.modules...))
			if len(report.Held()) > 0 {
				t.Fatalf("held: %v", report.Held())
			}
			e := enforce(snapshot)
			var event any
			if err := json.Unmarshal([]byte(test.event), &event); err != nil {
				t.Fatal(err)
			}
			if got := decide(t, e, "system/log/mask", event); got != test.want {
				t.Errorf("got %s\nwant %s", got, test.want)
			}
		})
	}
}

// Data may not be in the way of the mask either.
func TestTheMaskIsNotDisplaced(t *testing.T) {
	c, err := compile.New(compile.Config{RegoVersion: policy.RegoAuto, SystemNamespaces: []string{"system"}, MaskSecrets: true})
	if err != nil {
		t.Fatal(err)
	}
	m := policy.Module{ID: policy.ID{Namespace: "system", Name: "log", Key: "mask"}, Kind: policy.Data, Source: "[]"}
	_, report := settle(c, c.Empty(), policy.NewSet(m))
	if held := report.Held(); len(held) != 1 || !strings.Contains(held[0].Problems[0].Message, "system/log/mask") {
		t.Errorf("held: %v", held)
	}
}

// A bundle that reads what is not known would find nothing where there may be something.
func TestABundleWaitsForWhatItReads(t *testing.T) {
	c, err := compile.New(compile.Config{RegoVersion: policy.RegoAuto, Replicated: compile.Replicated{Path: []string{"kubernetes"}, Auto: true}})
	if err != nil {
		t.Fatal(err)
	}
	reading := func(names ...string) compile.BundleSet {
		lines := []string{"package library"}
		for n, name := range names {
			lines = append(lines, fmt.Sprintf("r%d := data.kubernetes.%s", n, name))
		}
		return bundle([]string{"library"}, "", inBundle("lib", lines...))
	}
	resources := func(pods policy.ResourceState) policy.Resources {
		return policy.Resources{
			"pods":  {Name: "pods", Path: "data.kubernetes.pods", State: pods, Reason: "for a reason"},
			"nodes": {Name: "nodes", Path: "data.kubernetes.nodes", State: policy.ResourceLoaded},
		}
	}
	inForce := c.Empty()
	for _, step := range []struct {
		name      string
		resources policy.Resources
		set       compile.BundleSet
		want      []string // what is not known
	}{
		{"nobody knows of it", policy.Resources{}, reading("pods", "nodes"), []string{"nodes", "pods"}},
		{"it is not loaded yet", resources(policy.ResourceLoading), reading("pods", "nodes"), []string{"pods"}},
		{"it may not be read", resources(policy.ResourceFailed), reading("pods"), []string{"pods"}},
		{"there is none", resources(policy.ResourceMissing), reading("pods"), nil},
		{"it is loaded", resources(policy.ResourceLoaded), reading("pods", "nodes"), nil},
		{"it is read already, and fails now", resources(policy.ResourceFailed), reading("nodes", "pods"), nil},
		{"nothing is replicated", nil, reading("services"), nil},
	} {
		next, err := c.WithBundles(inForce, step.set, nil, step.resources)
		var unknown *compile.UnknownReadsError
		switch {
		case errors.As(err, &unknown):
			if !slices.Equal(unknown.Names, step.want) || !strings.Contains(err.Error(), "bundle:authz/lib.rego:2: ") {
				t.Errorf("%s: unknown is %v: %v, want %v", step.name, unknown.Names, err, step.want)
			}
		case err != nil:
			t.Errorf("%s: %v", step.name, err)
		case step.want != nil:
			t.Errorf("%s: it came into force", step.name)
		default:
			inForce = next
		}
	}
}

func TestBundlesAloneMayNeedAModule(t *testing.T) {
	c := newCompiler(t, policy.RegoAuto)
	snapshot, _ := settle(c, c.Empty(), policy.NewSet(module("a", 1, "package a", "g(x) := x")))
	snapshot, err := c.WithBundles(snapshot, bundle([]string{"lib"}, "", inBundle("lib", "package lib", "y := data.a.g(1)")), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !snapshot.Compiles() || c.Bare(snapshot).Compiles() || !c.Bare(c.Empty()).Compiles() {
		t.Error("what needs a module compiles without it, or what needs none does not")
	}
}
