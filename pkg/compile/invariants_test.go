package compile_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// The texts that modules are made of: good ones, broken ones, and such as are
// good or not by what else there is.
var pool = []string{
	"package k\ndeny contains 1 if true",
	"package k\ndeny[x] { x := 2 }",
	"package k\ndeny := 3",
	"package k\ndefault allow := true",
	"package k\ndefault allow := false\nallow if data.lib.f(1) > 1",
	"package k\nallow { data.lib.f(1) > 2 }",
	"package k.deny\nx := 1",
	"package k\nimport data.lib\np := lib.f(2)",
	"package k\nq := data.lib.g(data.lib.f(1))",
	"package k\nr := data.lib.f(1, 2)",
	"package lib\nf(x) := x + 1",
	"package lib\nf(x, y) := x + y",
	"package lib\nf(x) := data.base.h(x)\ng(x) := x",
	"package lib\ng(x) := f(x)",
	"package base\nh(x) := x",
	"package base\nh(x) := data.lib.g(x)",
	"package base\nh(x) := x + y",
	"package one\np := data.two.q",
	"package two\nq := data.one.p",
	"package two\nq := \"text\"",
	"package three\ns := 1 + data.two.q",
	"package k\np := http.send({})",
	"package k\np :=",
	"not rego",
	"",
}

// inForce are modules, each with the Rego version that it is read in.
type inForce map[policy.ID]policy.Module

var withoutHTTPSend = sync.OnceValue(func() *ast.Capabilities {
	c := ast.CapabilitiesForThisVersion()
	c.Builtins = slices.DeleteFunc(c.Builtins, func(b *ast.Builtin) bool { return b.Name == "http.send" })
	return c
})

// plain compiles modules as OPA does on its own, one by one, without what the
// engine does to be fast.
func plain(modules inForce) error {
	trees := make(map[string]*ast.Module)
	for id, m := range modules {
		options := ast.ParserOptions{Capabilities: withoutHTTPSend(), RegoVersion: ast.RegoV1}
		if m.Version == policy.RegoV0 {
			options.RegoVersion = ast.RegoV0
		}
		tree, err := ast.ParseModuleWithOpts(id.String(), m.Source, options)
		if err != nil {
			return err
		}
		trees[id.String()] = tree
	}
	compiler := ast.NewCompiler().WithCapabilities(withoutHTTPSend())
	if compiler.Compile(trees); compiler.Failed() {
		return compiler.Errors
	}
	return nil
}

// readable gives the module the version that it is read in, if there is one.
func readable(m policy.Module) (policy.Module, bool) {
	for _, version := range []policy.RegoVersion{policy.RegoV1, policy.RegoV0} {
		_, err := ast.ParseModuleWithOpts("", m.Source, ast.ParserOptions{
			RegoVersion: map[policy.RegoVersion]ast.RegoVersion{policy.RegoV0: ast.RegoV0, policy.RegoV1: ast.RegoV1}[version],
		})
		if err == nil {
			m.Version = version
			return m, true
		}
	}
	return m, false
}

// after is what was in force with one module as it is wanted.
func after(before inForce, id policy.ID, wanted inForce) inForce {
	modules := maps.Clone(before)
	delete(modules, id)
	if m, ok := wanted[id]; ok {
		modules[id] = m
	}
	return modules
}

// TestWhateverIsEdited plays sequences of edits, made up at random, and asks
// after each what must be true of every policy set.
func TestWhateverIsEdited(t *testing.T) {
	const steps, names = 5, 6
	sequences := uint64(200)
	if testing.Short() {
		sequences = 50 // make soak plays the others too
	}
	for seed := range sequences {
		random := rand.New(rand.NewPCG(seed, 0))
		created := random.Perm(names)
		one, two := newCompiler(t, policy.RegoAuto), newCompiler(t, policy.RegoAuto)
		snapshotOne, snapshotTwo := one.Empty(), two.Empty()
		set, before := policy.Set{}, inForce{}
		for step := range steps {
			wasWanted := maps.Clone(set)
			for range 1 + random.IntN(names) {
				n := random.IntN(names)
				m := policy.Module{
					ID:      policy.ID{Namespace: "opa", Name: fmt.Sprint("m", n), Key: "main"},
					Created: time.Unix(int64(created[n]), 0),
					Source:  pool[random.IntN(len(pool))],
				}
				if set[m.ID] = m; random.IntN(5) == 0 {
					delete(set, m.ID)
				}
			}

			var report, again policy.Report
			snapshotOne, report = settle(one, snapshotOne, set)
			snapshotTwo, again = settle(two, snapshotTwo, maps.Clone(set))
			now := check(t, before, set, report)

			if !reflect.DeepEqual(report, again) {
				t.Errorf("two compilers do not agree:\n%+v\n%+v", report, again)
			}
			for id, m := range before {
				if wasWanted[id].Source == m.Source && set[id].Source == m.Source && now[id].Source != m.Source {
					t.Errorf("%s was in force, is wanted and did not change, and is gone", id)
				}
			}
			if t.Failed() {
				t.Logf("before:\n%s", describe(before))
				t.Logf("wanted:\n%s", describe(inForce(set)))
				t.Logf("now:\n%s", describe(now))
				for _, s := range report.Held() {
					t.Logf("held: %s created %v deleted %t %v", s.ID, set[s.ID].Created.Unix(), s.Deleted, texts(s.Problems))
				}
				t.Fatalf("in step %d of sequence %d", step+1, seed)
			}
			before = now
		}
	}
}

// check compares a report with what was in force before and what is wanted, and
// gives back what is in force now.
func check(t *testing.T, before inForce, set policy.Set, report policy.Report) inForce {
	t.Helper()
	now, wanted := inForce{}, inForce{}
	held := make(map[policy.ID]bool)
	allReadable := true
	for id, m := range set {
		if read, ok := readable(m); ok {
			wanted[id] = read
		} else {
			allReadable = false
		}
	}
	for _, s := range report.Modules {
		held[s.ID] = s.Held()
		_, isWanted := set[s.ID]
		previous, wasInForce := before[s.ID]
		if s.Deleted == isWanted {
			t.Errorf("%s: deleted is %t", s.ID, s.Deleted)
		}
		switch s.InForce {
		case policy.Current:
			now[s.ID] = wanted[s.ID]
		case policy.Previous:
			now[s.ID] = previous
		}
		if s.Held() == (s.InForce == policy.Current) || wasInForce != (s.InForce == policy.Previous) && s.Held() {
			t.Errorf("%s: in force is %q with problems %v", s.ID, s.InForce, s.Problems)
		}
		if s.Version != now[s.ID].Version {
			t.Errorf("%s: version %q, want %q", s.ID, s.Version, now[s.ID].Version)
		}
		for _, p := range s.Problems {
			if p.Code == "" || p.Message == "" || (p.Row == 0) != s.Deleted {
				t.Errorf("%s: problem %+v", s.ID, p)
			}
		}
	}
	for id := range set {
		if _, ok := held[id]; !ok {
			t.Errorf("%s is wanted and not in the report", id)
		}
	}

	if err := plain(now); err != nil {
		t.Errorf("what is in force does not compile: %v", err)
	}
	if allReadable && plain(wanted) == nil && len(report.Held()) > 0 {
		t.Errorf("all would compile together, and %d modules are held", len(report.Held()))
	}
	for _, s := range report.Held() {
		if _, isReadable := wanted[s.ID]; (isReadable || s.Deleted) && plain(after(now, s.ID, wanted)) == nil {
			t.Errorf("%s is held, and would compile with what is in force: %v", s.ID, s.Problems)
		}
	}
	return now
}

func describe(modules inForce) string {
	text := ""
	for _, id := range slices.SortedFunc(maps.Keys(modules), policy.ID.Compare) {
		text += fmt.Sprintf("\t%s %q\n", id, modules[id].Source)
	}
	return text
}
