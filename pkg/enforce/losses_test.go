package enforce

import (
	"slices"
	"testing"

	"github.com/kube-rego/kube-rego/pkg/configmap"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// A process with the wrong flag, or another OPA, must not forget what another
// process can enforce again.
func TestWhatIsNoGoodHereStaysRecorded(t *testing.T) {
	id := policy.ID{Namespace: "opa", Name: "rules", Key: "main"}
	version := func(number uint64, source string) policy.Set {
		return policy.NewSet(policy.Module{ID: id, Source: source, ObjectVersion: number})
	}
	history := configmap.NewHistory([]configmap.Revision{configmap.NewRevision("opa", "opa", "rules", 1, version(2, "last good"))})
	lost := losses{id: {recorded: version(2, "last good")[id], problems: []policy.Problem{{Code: "rego_type_error"}}}}
	for sentence, c := range map[string]struct {
		lost                  losses
		inForce, wanted, want policy.Set
	}{
		"wanted in a version that is broken too": {lost, policy.Set{}, version(3, "broken"), version(2, "last good")},
		"wanted no more":                         {lost, policy.Set{}, policy.Set{}, policy.Set{}},
		"an earlier version is in force":         {lost, version(1, "earlier"), version(3, "broken"), version(2, "last good")},
		"another version is in force":            {lost, version(4, "new"), version(4, "new"), version(4, "new")},
		"nothing was lost":                       {nil, policy.Set{}, version(3, "broken"), policy.Set{}},
	} {
		if got := c.lost.keep(c.inForce, history, c.wanted); got.Fingerprint() != c.want.Fingerprint() {
			t.Errorf("%s: it keeps %v, want %v", sentence, got, c.want)
		}
	}
}

// Whoever repairs a module that is held reads also why its last good version is not in force.
func TestLossesAreExplained(t *testing.T) {
	good, other, broken := version("a", 2, "package a\nx := 1"), version("a", 3, "package a\nx := 2"), version("a", 4, "package a\nx :=")
	for sentence, test := range map[string]struct {
		inForce, wanted policy.Set
		explained       bool // and the loss is still one
	}{
		"nothing of it is in force":          {policy.Set{}, policy.NewSet(broken), true},
		"an earlier version is in force":     {policy.NewSet(version("a", 1, "package a\nx := 0")), policy.NewSet(broken), true},
		"that version is in force after all": {policy.NewSet(good), policy.NewSet(broken), false},
		"a later version is in force":        {policy.NewSet(other), policy.NewSet(broken), false},
		"it is in force as it is wanted":     {policy.Set{}, policy.NewSet(other), false},
	} {
		lost := losses{good.ID: {recorded: good, problems: []policy.Problem{{Code: "rego_type_error", Message: "no more"}}}}
		report := lost.explain(viewOf(t, test.inForce, test.wanted, nil).inForce)
		explained := slices.ContainsFunc(report.Modules[0].Problems, func(p policy.Problem) bool {
			return p.Code == "rego_type_error" && p.Message == "the version that was in force last does not compile any more: rego_type_error: no more"
		})
		if _, isLost := lost[good.ID]; explained != test.explained || isLost != test.explained {
			t.Errorf("%s: explained is %t, lost is %t, want %t; the problems are %v", sentence, explained, isLost, test.explained, report.Modules[0].Problems)
		}
	}
}
