package engine_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/storage"

	"github.com/kube-rego/kube-rego/pkg/compile"
	"github.com/kube-rego/kube-rego/pkg/engine"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

func TestTheStoreShowsWhatIsInForce(t *testing.T) {
	ctx := t.Context()
	c := newCompiler(t)
	snapshot, err := c.WithBundles(c.Empty(), compile.BundleSet{
		Bundles: []compile.Bundle{{Name: "authz", Roots: [][]string{{"lib"}}}},
		Modules: []compile.BundleModule{{Name: "authz/lib.rego", Version: policy.RegoV1, Source: "package lib\nf(x) := x"}},
	}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	snapshot = c.Settle(snapshot, policy.NewSet(module("a", 1, "package k", "x := 1"), module("b", 1, "package k", "y := 1"), dataModule("list", 1, `[1]`)), nil, nil)
	e := engine.New()
	activate(e, snapshot)
	now := e.InForce()
	txn := storage.NewTransactionOrDie(ctx, now.Store())
	names, err := now.Store().ListPolicies(ctx, txn)
	if want := []string{"bundle:authz/lib.rego", "opa/a/main", "opa/b/main"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("got %v, %v, want %v", names, err, want)
	}
	for _, name := range names {
		text, err := now.Store().GetPolicy(ctx, txn, name)
		if err != nil {
			t.Error(err)
		}
		tree := now.Compiler().Modules[name]
		if tree == nil || !strings.HasPrefix(string(text), tree.Package.String()) || len(tree.Rules) != 1 {
			t.Errorf("%s is %s, and its tree %v", name, text, tree)
		}
	}
	if _, err := now.Store().GetPolicy(ctx, txn, "opa/c/main"); !storage.IsNotFound(err) {
		t.Errorf("a module that is not there: got %v", err)
	}
}

func TestARecordTellsWhoHadASay(t *testing.T) {
	e := enforcing(t,
		module("main", 1, "package system", `main := {"deny": data.k.deny, "at": time.now_ns()}`),
		module("one", 1, "package k", `deny contains "one" if input.x > 1`),
		module("two", 1, "package k", `deny contains "two" if input.x > 2`, "other := 1"),
	)
	var records []engine.Record
	e.SetEnvironment(engine.Environment{Observe: func(r engine.Record) { records = append(records, r) }})
	decide(t, e, "/system/main", map[string]any{"x": json.Number("2")})
	decide(t, e, "k/nothing", nil)
	if len(records) != 2 {
		t.Fatalf("there are %d records", len(records))
	}
	r := records[0]
	modules, err := r.Speakers(t.Context())
	if want := []string{"opa/main/main", "opa/one/main"}; err != nil || !slices.Equal(modules, want) {
		t.Errorf("got %v, %v, want %v", modules, err, want)
	}
	if r.Path != "system/main" || r.ID == "" || r.Err != nil || r.InForce.Snapshot().Fingerprint() == "" || len(r.Builtins) != 1 || r.InputValue.String() != `{"x": 2}` {
		t.Errorf("got %+v", r)
	}
	if r := records[1]; r.Err == nil || r.Result != nil {
		t.Errorf("an undefined decision: got %+v", r)
	}
}
