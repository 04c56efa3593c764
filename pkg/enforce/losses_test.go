package enforce

import (
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
