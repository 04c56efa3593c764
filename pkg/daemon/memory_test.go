package daemon

import (
	"testing"

	"github.com/kube-rego/kube-rego/pkg/configmap"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// A process with the wrong flag, or another OPA, must not forget what another
// process can enforce again.
func TestWhatIsNoGoodHereStaysRecorded(t *testing.T) {
	id := policy.ID{Namespace: "opa", Name: "rules", Key: "main"}
	version := func(source string) policy.Set { return policy.NewSet(policy.Module{ID: id, Source: source}) }
	history := configmap.NewHistory([]configmap.Revision{configmap.NewRevision("opa", "opa", "rules", 1, version("last good"))})
	lost := map[policy.ID][]policy.Problem{id: {{Code: "rego_type_error"}}}
	for sentence, c := range map[string]struct {
		lost                  map[policy.ID][]policy.Problem
		inForce, wanted, want policy.Set
	}{
		"wanted in a version that is broken too": {lost, policy.Set{}, version("broken"), version("last good")},
		"wanted no more":                         {lost, policy.Set{}, policy.Set{}, policy.Set{}},
		"another version is in force":            {lost, version("new"), version("new"), version("new")},
		"nothing was lost":                       {nil, policy.Set{}, version("broken"), policy.Set{}},
	} {
		m := memory{lost: c.lost}
		if got := m.keep(c.inForce, history, c.wanted); got.Fingerprint() != c.want.Fingerprint() {
			t.Errorf("%s: it keeps %v, want %v", sentence, got, c.want)
		}
	}
}
