package compile

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// A set with more contradictions than can be looked into is held as a whole, and
// what was in force stays.
func TestTooManyContradictionsHoldTheWholeSet(t *testing.T) {
	c, err := New(Config{RegoVersion: policy.RegoAuto, SystemNamespaces: []string{"opa"}})
	if err != nil {
		t.Fatal(err)
	}
	c.trials = 6
	module := func(name, source string, age int64) policy.Module {
		return policy.Module{ID: policy.ID{Namespace: "opa", Name: name, Key: "main"}, Source: source, Created: time.Unix(age, 0)}
	}
	old := module("old", "package system\n\nmain := 1\n", 0)
	snapshot := c.Compile(c.Empty(), policy.NewSet(old), nil)
	set := policy.NewSet(old, module("good", "package k\n\ngood := 1\n", 1))
	for i := range int64(30) {
		m := module(fmt.Sprint("clash-", i), fmt.Sprintf("package k\n\ndefault x := %d\n", i), 2+i)
		set[m.ID] = m
	}
	snapshot = c.Compile(snapshot, set, nil)
	report := snapshot.Report()
	if ids := snapshot.IDs(); len(ids) != 1 || ids[0] != old.ID {
		t.Errorf("in force is %v, want only what was before", ids)
	}
	named := 0
	for _, s := range report.Held() {
		if strings.Contains(s.Problems[0].Message, "multiple default rules") {
			named++
		}
	}
	if held := len(report.Held()); held != 31 || named == 0 || named == held {
		t.Errorf("%d are held, %d of them by name", held, named)
	}

	c.trials = maxTrials
	if snapshot = c.Retry(snapshot, set, nil, nil); len(snapshot.IDs()) != 3 {
		t.Errorf("with the usual budget %v are in force, want the old, the good and the oldest of the clashing", snapshot.IDs())
	}
}
