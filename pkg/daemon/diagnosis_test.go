package daemon

import (
	"errors"
	"testing"

	"github.com/kube-rego/kube-rego/pkg/enforce"
	"github.com/kube-rego/kube-rego/pkg/opa"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// part is one of what readiness depends on.
type part struct{ err error }

func (p part) Ready() error         { return p.err }
func (p part) Announced() error     { return p.err }
func (part) Healthy() error         { return nil }
func (part) Report() policy.Report  { return policy.Report{} }
func (part) SourceError() string    { return "" }
func (part) Bundles() []opa.Bundle  { return nil }
func (part) Plugins() []opa.Plugin  { return nil }
func (part) List() []policy.Replica { return nil }

func TestWhatReadinessDependsOn(t *testing.T) {
	set, bundles, certificate, lease := errors.New("the policy set"), errors.New("the bundles"), errors.New("the certificate"), errors.New("the Lease")
	for sentence, test := range map[string]struct {
		set, bundles, certificate, lease error
		alone                            bool // there are no other replicas
		ready, decidable                 error
	}{
		"all is there":                              {},
		"no policy set is in force yet":             {set: set, ready: set, decidable: set},
		"bundles are not in force":                  {bundles: bundles, ready: bundles, decidable: bundles},
		"the set waits for bundles: OPA names them": {set: enforce.ErrBundles, bundles: bundles, ready: bundles, decidable: bundles},
		"the set waits for bundles that OPA has":    {set: enforce.ErrBundles, ready: enforce.ErrBundles, decidable: enforce.ErrBundles},
		"there is no certificate":                   {certificate: certificate, ready: certificate},
		"other replicas do not know of this one":    {lease: lease, ready: lease},
		"there are no other replicas":               {lease: lease, alone: true},
		"the policy set comes first":                {set: set, bundles: bundles, certificate: certificate, lease: lease, ready: set, decidable: set},
	} {
		t.Run(sentence, func(t *testing.T) {
			d := diagnosis{policySet: part{test.set}, host: part{test.bundles}, certificate: part{test.certificate}}
			if !test.alone {
				d.replicas = part{test.lease}
			}
			if got := d.Ready(); !errors.Is(got, test.ready) || got == nil != (test.ready == nil) {
				t.Errorf("ready: got %v, want %v", got, test.ready)
			}
			if got := d.decidable(); !errors.Is(got, test.decidable) || got == nil != (test.decidable == nil) {
				t.Errorf("decidable: got %v, want %v", got, test.decidable)
			}
		})
	}
}
