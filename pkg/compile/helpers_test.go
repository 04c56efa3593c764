package compile_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
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

// in is the module with a version that its author chose.
func in(version policy.RegoVersion, m policy.Module) policy.Module {
	m.Version = version
	return m
}

func newCompiler(t testing.TB, version policy.RegoVersion, enabled ...string) *compile.Compiler {
	t.Helper()
	c, err := compile.New(compile.Config{RegoVersion: version, Builtins: enabled, SystemNamespaces: []string{"opa"}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// compiled is the snapshot that Compile makes, and its report.
func compiled(c *compile.Compiler, previous *compile.Snapshot, set policy.Set) (*compile.Snapshot, policy.Report) {
	snapshot := c.Compile(previous, set, nil)
	return snapshot, snapshot.Report()
}

// retried is the snapshot that Retry makes, and its report.
func retried(c *compile.Compiler, previous *compile.Snapshot, set policy.Set, interrupted func() bool) (*compile.Snapshot, policy.Report) {
	snapshot := c.Retry(previous, set, nil, interrupted)
	return snapshot, snapshot.Report()
}

// settle brings into force all of a set that compiles: what is fresh, and then
// what was held.
func settle(c *compile.Compiler, previous *compile.Snapshot, set policy.Set) (*compile.Snapshot, policy.Report) {
	return settleWith(c, previous, set, nil)
}

// settleWith is settle with what is known of resources.
func settleWith(c *compile.Compiler, previous *compile.Snapshot, set policy.Set, known policy.Resources) (*compile.Snapshot, policy.Report) {
	snapshot := c.Settle(previous, set, known, nil)
	return snapshot, snapshot.Report()
}

// enforce is an engine with a snapshot in force.
func enforce(s *compile.Snapshot) *engine.Engine {
	e := engine.New()
	e.Activate(s, s.Report())
	return e
}

// enforcing is an engine with these modules in force, all of them.
func enforcing(t testing.TB, enabled []string, modules ...policy.Module) *engine.Engine {
	t.Helper()
	c := newCompiler(t, policy.RegoAuto, enabled...)
	snapshot, report := compiled(c, c.Empty(), policy.NewSet(modules...))
	if held := report.Held(); len(held) > 0 {
		t.Fatalf("held: %v", held)
	}
	return enforce(snapshot)
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
