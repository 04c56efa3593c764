package engine_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

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

// in is the module with a version that its author chose.
func in(version policy.RegoVersion, m policy.Module) policy.Module {
	m.Version = version
	return m
}

func newCompiler(t testing.TB, version policy.RegoVersion, enabled ...string) *engine.Compiler {
	t.Helper()
	c, err := engine.NewCompiler(engine.Config{RegoVersion: version, Builtins: enabled, SystemNamespaces: []string{"opa"}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// settle brings into force all of a set that compiles: what is fresh, and then
// what was held.
func settle(c *engine.Compiler, previous *engine.Snapshot, set policy.Set) (*engine.Snapshot, policy.Report) {
	snapshot, _ := c.Compile(previous, set)
	return c.Retry(snapshot, set, func() bool { return false })
}

func newEngine(t testing.TB) *engine.Engine {
	t.Helper()
	e := engine.New()
	return e
}

func activate(t testing.TB, e *engine.Engine, s *engine.Snapshot) {
	t.Helper()
	e.Activate(s)
}

// enforcing is an engine with these modules in force, all of them.
func enforcing(t testing.TB, enabled []string, modules ...policy.Module) *engine.Engine {
	t.Helper()
	c := newCompiler(t, policy.RegoAuto, enabled...)
	snapshot, report := c.Compile(c.Empty(), policy.NewSet(modules...))
	if held := report.Held(); len(held) > 0 {
		t.Fatalf("held: %v", held)
	}
	e := newEngine(t)
	activate(t, e, snapshot)
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

// like reports whether text is what the pattern says; in a pattern … stands
// for any text, and any text may follow it.
func like(text, pattern string) bool {
	first, rest, _ := strings.Cut(pattern, "…")
	if !strings.HasPrefix(text, first) {
		return false
	}
	text = text[len(first):]
	for part := range strings.SplitSeq(rest, "…") {
		i := strings.Index(text, part)
		if i < 0 {
			return false
		}
		text = text[i+len(part):]
	}
	return true
}

// want is what a test expects of one module: "current v1", "previous v0",
// "none", "previous v1 deleted", and behind it its problems as patterns. A last
// pattern … stands for any further problems.
type want []string

func (w want) differs(s policy.Status) string {
	state := string(s.InForce)
	if s.Version != "" {
		state += " " + string(s.Version)
	}
	if s.Deleted {
		state += " deleted"
	}
	patterns, problems := w[1:], texts(s.Problems)
	if n := len(patterns); n > 0 && patterns[n-1] == "…" {
		patterns = patterns[:n-1]
		problems = problems[:min(len(patterns), len(problems))]
	}
	if state == w[0] && slices.EqualFunc(problems, patterns, like) {
		return ""
	}
	got := append([]string{state}, texts(s.Problems)...)
	return fmt.Sprintf("%s:\n\tgot  %s\n\twant %s", s.ID.Name, strings.Join(got, "\n\t     "), strings.Join(w, "\n\t     "))
}

func texts(problems []policy.Problem) []string {
	var all []string
	for _, p := range problems {
		all = append(all, p.String())
	}
	return all
}

// checkReport compares a report with what is wanted of each module, by the
// names of their ConfigMaps.
func checkReport(t *testing.T, report policy.Report, wants map[string]want) {
	t.Helper()
	missing := maps.Clone(wants)
	for _, s := range report.Modules {
		w, ok := wants[s.ID.Name]
		if !ok {
			t.Errorf("%s: reported, and nobody asked for it: %+v", s.ID.Name, s)
			continue
		}
		delete(missing, s.ID.Name)
		if difference := w.differs(s); difference != "" {
			t.Error(difference)
		}
	}
	for name := range missing {
		t.Errorf("%s: not in the report", name)
	}
	if !slices.IsSortedFunc(report.Modules, func(a, b policy.Status) int { return a.ID.Compare(b.ID) }) {
		t.Error("the report is not in the order of the ids")
	}
}
