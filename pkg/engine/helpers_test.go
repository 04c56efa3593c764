package engine_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/kube-rego/kube-rego/pkg/compile"
	"github.com/kube-rego/kube-rego/pkg/engine"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// module is the key main of the ConfigMap opa/<name>, created at a second.
func module(name string, created int64, lines ...string) policy.Module {
	return policy.Module{
		ID:      policy.ID{Namespace: "opa", Name: name, Key: "main"},
		Created: time.Unix(created, 0),
		Source:  strings.Join(lines, "\n"),
	}
}

// dataModule is module for data.
func dataModule(name string, created int64, source string) policy.Module {
	m := module(name, created, source)
	m.Kind = policy.Data
	return m
}

func newCompiler(t testing.TB) *compile.Compiler {
	t.Helper()
	c, err := compile.New(compile.Config{RegoVersion: policy.RegoAuto, SystemNamespaces: []string{"opa"}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func activate(e *engine.Engine, s *compile.Snapshot) { e.Activate(s, s.Report()) }

// enforcing is an engine with these modules in force, all of them.
func enforcing(t testing.TB, modules ...policy.Module) *engine.Engine {
	t.Helper()
	c := newCompiler(t)
	snapshot := c.Compile(c.Empty(), policy.NewSet(modules...), nil)
	if held := snapshot.Report().Held(); len(held) > 0 {
		t.Fatalf("held: %v", held)
	}
	e := engine.New()
	activate(e, snapshot)
	return e
}

// decide gives a decision as JSON; an error begins with a word for its kind.
func decide(t testing.TB, e *engine.Engine, path string, input any) string {
	t.Helper()
	decision, err := e.Decide(t.Context(), path, input)
	switch {
	case errors.Is(err, policy.ErrUndefined):
		return "undefined"
	case err != nil:
		return "error: " + err.Error()
	}
	text, err := json.Marshal(decision.Result)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
