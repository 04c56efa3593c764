package compile_test

import (
	"maps"
	"slices"
	"testing"

	"github.com/kube-rego/kube-rego/pkg/compile"
	"github.com/kube-rego/kube-rego/pkg/data"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// data is the key main of the data ConfigMap opa/<name>.
func dataModule(name string, created int64, source string) policy.Module {
	m := module(name, created, source)
	m.Kind = policy.Data
	return m
}

func TestWhatBecomesOfData(t *testing.T) {
	reader := module("reader", 5, "package k", "p := data.opa.list.main")
	for name, steps := range map[string][]step{
		"data is read, changes, and goes with its own path alone": {{
			set:     []policy.Module{reader, dataModule("list", 1, `{"a": 1}`), dataModule("other", 1, "x: 2\n")},
			want:    map[string]want{"reader": {"current v1"}, "list": {"current"}, "other": {"current"}},
			decides: map[string]string{"k/p": `{"a":1}`, "opa/other": `{"main":{"x":2}}`},
		}, {
			set:     []policy.Module{reader, dataModule("list", 1, `["b"]`), dataModule("other", 1, "x: 2\n")},
			want:    map[string]want{"reader": {"current v1"}, "list": {"current"}, "other": {"current"}},
			decides: map[string]string{"k/p": `["b"]`},
		}, {
			set:     []policy.Module{reader, dataModule("other", 1, "x: 2\n")},
			want:    map[string]want{"reader": {"current v1"}, "other": {"current"}},
			decides: map[string]string{"k/p": "undefined", "opa": `{"other":{"main":{"x":2}}}`},
		}},
		"a broken edit keeps the value before in force": {{
			set:     []policy.Module{reader, dataModule("list", 1, `{"a": 1}`)},
			want:    map[string]want{"reader": {"current v1"}, "list": {"current"}},
			decides: map[string]string{"k/p": `{"a":1}`},
		}, {
			set:     []policy.Module{reader, dataModule("list", 1, "{\n\"a\": }")},
			want:    map[string]want{"reader": {"current v1"}, "list": {"previous", "2:6: invalid_parameter: the data cannot be read: invalid character '}'"}},
			decides: map[string]string{"k/p": `{"a":1}`},
		}},
		"data where a rule is in force is held, and the rule stays": {{
			set:     []policy.Module{module("rule", 9, "package opa.list", "", "main := 1")},
			want:    map[string]want{"rule": {"current v1"}},
			decides: map[string]string{"opa/list/main": "1"},
		}, {
			set: []policy.Module{module("rule", 9, "package opa.list", "", "main := 1"), dataModule("list", 1, `{"a": 1}`)},
			want: map[string]want{
				"rule": {"current v1"},
				"list": {"none", "rego_compile_error: conflicting rule for data path opa/list/main found (seen at opa/rule/main:3)"},
			},
			decides: map[string]string{"opa/list/main": "1"},
		}, {
			set:     []policy.Module{dataModule("list", 1, `{"a": 1}`)},
			want:    map[string]want{"list": {"current"}},
			decides: map[string]string{"opa/list/main": `{"a":1}`},
		}},
		"a rule where data is in force is held, and the data stays": {{
			set:     []policy.Module{dataModule("list", 9, `{"a": {"b": 1}}`)},
			want:    map[string]want{"list": {"current"}},
			decides: map[string]string{"opa/list/main": `{"a":{"b":1}}`},
		}, {
			set: []policy.Module{module("rule", 1, "package opa.list.main.a", "", "b := 2"), dataModule("list", 9, `{"a": {"b": 1}}`)},
			want: map[string]want{
				"rule": {"none", "3:1: rego_compile_error: conflicting rule for data path opa/list/main/a/b found"}, "list": {"current"},
			},
			decides: map[string]string{"opa/list/main": `{"a":{"b":1}}`},
		}, {
			set:     []policy.Module{module("rule", 1, "package opa.list.main.a", "", "b := 2"), dataModule("list", 9, `{"a": {"c": 1}}`)},
			want:    map[string]want{"rule": {"current v1"}, "list": {"current"}},
			decides: map[string]string{"opa/list/main": `{"a":{"b":2,"c":1}}`},
		}},
		"a rule below a value that has no fields is held": {{
			set:  []policy.Module{module("rule", 2, "package opa.list.main", "", "b := 2"), dataModule("list", 1, `[1]`)},
			want: map[string]want{"rule": {"none", "3:1: rego_compile_error: conflicting rule for data path opa/list/main/b found"}, "list": {"current"}},
		}},
		"of a rule and data that are both new the older object wins": {{
			set: []policy.Module{module("rule", 1, "package opa.list", "", "main := 1"), dataModule("list", 2, `1`)},
			want: map[string]want{
				"rule": {"current v1"}, "list": {"none", "rego_compile_error: conflicting rule for data path"},
			},
		}},
		"a key that becomes data and policy again": {{
			set:     []policy.Module{module("a", 1, "package k", "p := 1")},
			want:    map[string]want{"a": {"current v1"}},
			decides: map[string]string{"k/p": "1"},
		}, {
			set:     []policy.Module{dataModule("a", 1, `"package k"`)},
			want:    map[string]want{"a": {"current"}},
			decides: map[string]string{"k/p": "undefined", "opa/a/main": `"package k"`},
		}, {
			set:     []policy.Module{module("a", 1, "package k", "p := 1")},
			want:    map[string]want{"a": {"current v1"}},
			decides: map[string]string{"k/p": "1", "opa/a": "undefined"},
		}},
		"many that clash are each found": {{
			set: []policy.Module{
				dataModule("a", 1, "1"), dataModule("b", 2, "2"), dataModule("c", 3, "3"), module("ra", 4, "package opa.a", "main := 1"),
				module("rc", 5, "package opa.c", "main := 1"), module("good", 6, "package k", "p := data.opa"),
			},
			want: map[string]want{
				"a": {"current"}, "b": {"current"}, "c": {"current"}, "good": {"current v1"},
				"ra": {"none", "2:1: rego_compile_error: conflicting rule for data path opa/a/main found"},
				"rc": {"none", "2:1: rego_compile_error: conflicting rule for data path opa/c/main found"},
			},
			decides: map[string]string{"k/p": `{"a":{"main":1},"b":{"main":2},"c":{"main":3}}`},
		}},
	} {
		t.Run(name, func(t *testing.T) { play(t, steps) })
	}
}

func newReplicating(t *testing.T, r compile.Replicated) *compile.Compiler {
	t.Helper()
	c, err := compile.New(compile.Config{RegoVersion: policy.RegoAuto, SystemNamespaces: []string{"opa"}, Replicated: r})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// at gives a module the id of a key.
func at(m policy.Module, namespace, name, key string) policy.Module {
	m.ID = policy.ID{Namespace: namespace, Name: name, Key: key}
	return m
}

func TestNothingIsInTheWayOfReplicatedObjects(t *testing.T) {
	explicit := compile.Replicated{Path: []string{"kubernetes"}, Resources: [][]string{{"kubernetes", "pods"}, {"kubernetes", "own", "path"}}}
	auto := compile.Replicated{Path: []string{"kubernetes"}, Auto: true}
	for _, test := range []struct {
		name       string
		replicated compile.Replicated
		module     policy.Module
		want       want
	}{
		{
			"data below the path", explicit, at(dataModule("pods", 1, "1"), "kubernetes", "pods", "web"),
			want{"none", "invalid_parameter: data.kubernetes.pods.web is where objects of the cluster are replicated"},
		},
		{"data of a resource that somebody may come to read", auto, at(dataModule("any", 1, "1"), "kubernetes", "any", "k"), want{"none", "invalid_parameter: "}},
		{"data where nothing is replicated", compile.Replicated{}, at(dataModule("pods", 1, "1"), "kubernetes", "pods", "web"), want{"current"}},
		{"data of a namespace that is called like a resource", explicit, at(dataModule("a", 1, "1"), "pods", "a", "k"), want{"current"}},
		{
			"a rule that is a resource", explicit, module("a", 1, "package kubernetes", "", "pods := 1"),
			want{"none", "3:1: rego_compile_error: conflicting rule for data path kubernetes/pods found"},
		},
		{
			"a rule among the objects", explicit, module("a", 1, "package kubernetes.pods", "", "web := 1"),
			want{"none", "3:1: rego_compile_error: conflicting rule for data path kubernetes/pods/web found"},
		},
		{
			"a rule on the way to a resource", explicit, module("a", 1, "package kubernetes", "own := 1"),
			want{"none", "2:1: rego_compile_error: conflicting rule for data path kubernetes/own found"},
		},
		{"a rule beside resources", explicit, module("a", 1, "package kubernetes.admission", "deny := 1"), want{"current v1"}},
		{"where policies say what is replicated, what they define is theirs", auto, module("a", 1, "package kubernetes.pods", "web := 1"), want{"current v1"}},
		{
			"a namespace that is called system", compile.Replicated{}, at(dataModule("a", 1, "1"), "system", "main", "allowed"),
			want{"none", "unauthorized: the data of namespace system would be data.system"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newReplicating(t, test.replicated)
			_, report := settle(c, c.Empty(), policy.NewSet(test.module))
			checkReport(t, report, map[string]want{test.module.ID.Name: test.want})
		})
	}
}

func TestReads(t *testing.T) {
	for _, test := range []struct {
		name  string
		lines []string
		want  []string
	}{
		{"by a full path", []string{"p := data.kubernetes.pods[ns][name]"}, []string{"pods"}},
		{"by brackets", []string{`p := data["kubernetes"]["pods"]`}, []string{"pods"}},
		{"by an import", []string{"import data.kubernetes.namespaces", "p := namespaces[input.ns]"}, []string{"namespaces"}},
		{"by an import of another name", []string{"import data.kubernetes.namespaces as n", "p := n"}, []string{"namespaces"}},
		{"by an import of the path", []string{"import data.kubernetes as k", "p := k.ingresses[_][_]"}, []string{"ingresses"}},
		{"an import that nobody uses", []string{"import data.kubernetes.namespaces", "p := 1"}, nil},
		{"in a comprehension", []string{"p := [x | x := data.kubernetes.pods[_][_]]"}, []string{"pods"}},
		{"in a default, a head, an else and a function", []string{
			"f(x) := data.kubernetes.a[x]", "p[data.kubernetes.b.x] := data.kubernetes.c.x if true", "q := 1 if false else := data.kubernetes.d.y",
		}, []string{"a", "b", "c", "d"}},
		{"in a test's with", []string{"p if { q with data.kubernetes.pods as data.kubernetes.nodes }", "q := 1"}, []string{"nodes"}},
		{"in the head of a rule that is a reference", []string{"p.q[data.kubernetes.a.x.kind] := 1", "p[data.kubernetes.b.x.kind].r contains 1"}, []string{"a", "b"}},
		{"in v0", []string{"p[x] { x = data.kubernetes.pods[_][_] }"}, []string{"pods"}},
		{"what policies define", []string{"p := data.kubernetes.admission.deny"}, nil},
		{"elsewhere", []string{"p := data.pods.kubernetes", "q := input.data.kubernetes.pods"}, nil},
		{"no resource by name", []string{"p := data.kubernetes[input.kind]", "q := data.kubernetes"}, nil},
		{"all of data", []string{"p := data[input.x].pods"}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newReplicating(t, compile.Replicated{Path: []string{"kubernetes"}, Auto: true})
			set := policy.NewSet(
				module("reader", 1, append([]string{"package k"}, test.lines...)...),
				module("admission", 1, "package kubernetes.admission", "deny contains 1 if true"),
			)
			snapshot, report := settle(c, c.Empty(), set)
			if held := report.Held(); len(held) > 0 {
				t.Fatalf("held: %v", held)
			}
			if got := c.ResourceNames(snapshot, nil, nil); !slices.Equal(got, test.want) {
				t.Errorf("in force: got %q, want %q", got, test.want)
			}
			if got := c.ResourceNames(nil, set, nil); !slices.Equal(got, test.want) {
				t.Errorf("in force last: got %q, want %q", got, test.want)
			}
			if got := c.ResourceNames(snapshot, nil, set); !slices.Equal(got, test.want) {
				t.Errorf("wanted: got %q, want %q", got, test.want)
			}
		})
	}
}

func TestThePathOfReplicatedObjectsMayBeLong(t *testing.T) {
	c := newReplicating(t, compile.Replicated{Path: []string{"my", "cluster"}, Auto: true})
	set := policy.NewSet(
		module("a", 1, "package k", "p := data.my.cluster.pods", "q := data.my.other.nodes", "r := data.my.cluster.own"),
		module("b", 1, "package my.cluster", "own := 1"),
	)
	if got := c.ResourceNames(nil, set, nil); !slices.Equal(got, []string{"pods"}) {
		t.Errorf("got %q", got)
	}
}

func TestPlacesAreWhereModulesReadObjects(t *testing.T) {
	c := newReplicating(t, compile.Replicated{Path: []string{"kubernetes"}, Auto: true})
	place := func(name, resource string, row, col int) compile.ResourceRef {
		return compile.ResourceRef{Module: policy.ID{Namespace: "opa", Name: name, Key: "main"}, Name: resource, Row: row, Col: col}
	}
	got := c.ResourceRefs(policy.NewSet(
		module("d", 1, "package kubernetes.own", "p := data.kubernetes.own.q", "q := 1"),
		module("c", 1, "package k", "import data.kubernetes as k", "p := k.pods", "q := k[input.x]", "r := {k}", "s := k[data.kubernetes.pods.x]"),
		module("b", 1, "package k", "", "p := data.kubernetes[input.x]", "q := [x | x := data.kubernetes.nodes][0]"),
		module("a", 1, "package k", "p := data.kubernetes.pods", "q := data.kubernetes.pods", "r := data.kubernetes.jobs"),
		module("broken", 1, "package k", "p := data.kubernetes.services["),
	))
	want := []compile.ResourceRef{
		place("a", "pods", 2, 6), place("a", "jobs", 4, 6),
		place("b", "", 3, 6), place("b", "nodes", 4, 16),
		place("c", "pods", 3, 6), place("c", "", 4, 6),
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestBrokenAreTheModulesThatNobodyCanRead(t *testing.T) {
	c := newReplicating(t, compile.Replicated{Path: []string{"kubernetes"}, Auto: true})
	got := c.Broken(policy.NewSet(
		module("good", 1, "package k", "p := data.kubernetes.pods"),
		module("incomplete", 1, "package k", "p := data.lib.f(1)"),
		module("broken", 1, "package k", "p := data.kubernetes.services["),
	))
	problems := got[policy.ID{Namespace: "opa", Name: "broken", Key: "main"}]
	if len(got) != 1 || len(problems) == 0 || problems[0].Row != 2 || problems[0].Source != "p := data.kubernetes.services[" {
		t.Errorf("got %v", got)
	}
}

// resources says of each name in which state it is.
func resources(states map[string]policy.ResourceState) policy.Resources {
	all := make(policy.Resources)
	for name, state := range states {
		all[name] = policy.Resource{Name: name, Path: "data.kubernetes." + name, State: state, Reason: "because"}
	}
	return all
}

// A change that comes to read what is not known is held until it is; what is in
// force already stays, with a warning.
func TestWhatReadsTheUnknownIsHeld(t *testing.T) {
	c := newReplicating(t, compile.Replicated{Path: []string{"kubernetes"}, Auto: true})
	old := module("a", 1, "package k", "p := 1")
	reads := module("a", 1, "package k", "", "p := data.kubernetes.pods.x.y")
	edited := module("a", 1, "package k", "", "", "p := data.kubernetes.pods.x.z")
	other := module("b", 2, "package k", "q := 2")
	snapshot, _ := settle(c, c.Empty(), policy.NewSet(old))
	for _, step := range []struct {
		name     string
		state    policy.ResourceState
		a        policy.Module
		want     want
		warnings []string
		pending  bool
	}{
		{"its first list is on its way", policy.ResourceLoading, reads,
			want{"previous v1", "3:6: replication_pending: data.kubernetes.pods is not known: because"}, nil, true},
		{"it is forbidden", policy.ResourceFailed, reads, want{"previous v1", "3:6: replication_error: data.kubernetes.pods is not known: because"}, nil, false},
		{"it does not exist: there are no objects", policy.ResourceMissing, reads, want{"current v1"},
			[]string{"3:6: replication_error: data.kubernetes.pods has no objects: because"}, false},
		{"it is there", policy.ResourceLoaded, reads, want{"current v1"}, nil, false},
		{"it is forbidden again", policy.ResourceFailed, reads, want{"current v1"},
			[]string{"3:6: replication_error: data.kubernetes.pods is not known: because"}, false},
		{"and its reader is edited", policy.ResourceFailed, edited, want{"current v1"},
			[]string{"4:6: replication_error: data.kubernetes.pods is not known: because"}, false},
		{"its list comes anew", policy.ResourceLoading, edited, want{"current v1"}, nil, false},
	} {
		t.Run(step.name, func(t *testing.T) {
			var report policy.Report
			snapshot, report = settleWith(c, snapshot, policy.NewSet(step.a, other),
				resources(map[string]policy.ResourceState{"pods": step.state, "nodes": policy.ResourceFailed}))
			checkReport(t, report, map[string]want{"a": step.want, "b": {"current v1"}})
			if got := texts(report.Modules[0].Warnings); !slices.Equal(got, step.warnings) {
				t.Errorf("the warnings are %q, want %q", got, step.warnings)
			}
			if report.Modules[0].Pending() != step.pending {
				t.Errorf("pending is %t", !step.pending)
			}
			lacking, ok := c.UnknownResource(snapshot, resources(map[string]policy.ResourceState{"pods": step.state}))
			if want := step.want[0] == "current v1" && (step.state == policy.ResourceFailed || step.state == policy.ResourceLoading); ok != want {
				t.Errorf("lacking is %v", lacking)
			}
		})
	}
}

func TestANameThatNobodyHasAskedForIsPending(t *testing.T) {
	c := newReplicating(t, compile.Replicated{Path: []string{"kubernetes"}, Auto: true})
	_, report := settleWith(c, c.Empty(), policy.NewSet(module("a", 1, "package k", "p := data.kubernetes.pods")), policy.Resources{})
	checkReport(t, report, map[string]want{"a": {"none", "2:6: replication_pending: "}})
}

func TestReadsThatNameNoResourceAreWarnedOf(t *testing.T) {
	for _, replicated := range []compile.Replicated{
		{Path: []string{"kubernetes"}, Auto: true},
		{Path: []string{"kubernetes"}, Auto: true, Resources: [][]string{{"kubernetes", "pods"}}}, // then somebody has thought of it
	} {
		c := newReplicating(t, replicated)
		_, report := settleWith(c, c.Empty(), policy.NewSet(module("a", 1, "package k", "p := data.kubernetes[input.kind]")), policy.Resources{})
		checkReport(t, report, map[string]want{"a": {"current v1"}})
		if n := len(report.Modules[0].Warnings); n != 1-len(replicated.Resources) {
			t.Errorf("there are %d warnings", n)
		}
	}
}

// Who has a name below the path: packages in force, then resources that are read, then
// the older.
func TestWhoHasAName(t *testing.T) {
	reader := func(created int64) policy.Module {
		return module("reader", created, "package k", "p := data.kubernetes.pods")
	}
	definer := func(created int64) policy.Module {
		return module("definer", created, "package kubernetes.pods", "", "x := 1")
	}
	held := want{"none", "1:1: invalid_parameter: data.kubernetes.pods has the objects of the cluster that opa/reader/main reads"}
	for _, test := range []struct {
		name    string
		state   policy.ResourceState
		inForce []policy.Module
		wanted  []policy.Module
		want    map[string]want
		reads   []string
	}{
		{"a reader in force keeps it", policy.ResourceLoaded, []policy.Module{reader(2)}, []policy.Module{reader(2), definer(1)},
			map[string]want{"reader": {"current v1"}, "definer": held}, []string{"pods"}},
		{"a package that does not even compile takes nothing from it", policy.ResourceLoaded, []policy.Module{reader(2)},
			[]policy.Module{reader(2), module("definer", 1, "package kubernetes.pods", "x := y")},
			map[string]want{"reader": {"current v1"}, "definer": {"none", "…"}}, []string{"pods"}},
		{"a package in force keeps it", policy.ResourceFailed, []policy.Module{definer(2)}, []policy.Module{reader(1), definer(2)},
			map[string]want{"reader": {"current v1"}, "definer": {"current v1"}}, nil},
		{"of two that are new the older has it: the reader", policy.ResourceLoaded, nil, []policy.Module{reader(1), definer(2)},
			map[string]want{"reader": {"current v1"}, "definer": held}, []string{"pods"}},
		{"of two that are new the older has it: the package", policy.ResourceLoaded, nil, []policy.Module{reader(2), definer(1)},
			map[string]want{"reader": {"current v1"}, "definer": {"current v1"}}, nil},
		{"what is no resource is anybody's", policy.ResourceMissing, []policy.Module{reader(1)}, []policy.Module{reader(1), definer(2)},
			map[string]want{"reader": {"current v1"}, "definer": {"current v1"}}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newReplicating(t, compile.Replicated{Path: []string{"kubernetes"}, Auto: true})
			snapshot, _ := settle(c, c.Empty(), policy.NewSet(test.inForce...))
			snapshot, report := settleWith(c, snapshot, policy.NewSet(test.wanted...), resources(map[string]policy.ResourceState{"pods": test.state}))
			checkReport(t, report, test.want)
			if got := c.ResourceNames(snapshot, nil, policy.NewSet(test.wanted...)); !slices.Equal(got, test.reads) {
				t.Errorf("it reads %q, want %q", got, test.reads)
			}
		})
	}
}

func TestObjectsAndDataOfConfigMapsStandBesideEachOther(t *testing.T) {
	e := enforcing(t, nil, dataModule("list", 1, `["a"]`), module("k", 1, "package k", "all := {n | data.kubernetes.pods[_][n]}", "list := data.opa.list.main",
		"one := data.kubernetes.pods.ns.web.spec.image"))
	var documents data.Interner
	apply := func(image, name string) {
		content, err := documents.Document(map[string]any{"spec": map[string]any{"image": image}})
		if err != nil {
			t.Fatal(err)
		}
		e.Apply(data.Change{Path: []string{"kubernetes", "pods", "ns", name}, Content: content})
	}
	check := func(want map[string]string) {
		t.Helper()
		for _, path := range slices.Sorted(maps.Keys(want)) {
			if got := decide(t, e, path, nil); got != want[path] {
				t.Errorf("%s: got %s, want %s", path, got, want[path])
			}
		}
	}
	check(map[string]string{"k/all": "[]", "k/list": `["a"]`, "k/one": "undefined"})
	apply("one", "web")
	apply("two", "db")
	check(map[string]string{"k/all": `["db","web"]`, "k/list": `["a"]`, "k/one": `"one"`})
	apply("three", "web")
	check(map[string]string{"k/one": `"three"`, "opa": `{"list":{"main":["a"]}}`})
	e.Apply(data.Change{Path: []string{"kubernetes", "pods"}, Content: data.NewCollection()})
	check(map[string]string{"k/all": "[]", "kubernetes": `{"pods":{}}`})
	e.Apply(data.Change{Path: []string{"kubernetes", "pods"}})
	check(map[string]string{"k/all": "[]", "kubernetes": "undefined", "k/list": `["a"]`})
}

// A module is held only as long as what it reads is not known: it comes into force with what
// is fresh, and does not wait until all that is broken is tried again.
func TestWhatWasHeldForWhatItReadsIsFresh(t *testing.T) {
	c := newReplicating(t, compile.Replicated{Path: []string{"kubernetes"}, Auto: true})
	set := policy.NewSet(module("reader", 1, "package k", "p := data.kubernetes.pods"), module("broken", 2, "package b", "p := y"))
	snapshot, report := settleWith(c, c.Empty(), set, resources(map[string]policy.ResourceState{"pods": policy.ResourceLoading}))
	checkReport(t, report, map[string]want{"reader": {"none", "2:6: replication_pending: …"}, "broken": {"none", "2:6: rego_unsafe_var_error: …"}})
	snapshot = c.Compile(snapshot, set, resources(map[string]policy.ResourceState{"pods": policy.ResourceLoaded}))
	checkReport(t, snapshot.Report(), map[string]want{"reader": {"current v1"}, "broken": {"none", "2:6: rego_unsafe_var_error: …"}})
}
