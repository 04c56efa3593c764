package daemon

import (
	"cmp"
	"errors"
	"strings"

	"github.com/kube-rego/kube-rego/pkg/enforce"
	"github.com/kube-rego/kube-rego/pkg/opa"
	"github.com/kube-rego/kube-rego/pkg/policy"
	"github.com/kube-rego/kube-rego/pkg/server"
)

// diagnosis is the state of the whole process, for probes, /status and metrics: that of
// the loop, OPA's plugins, the certificate, and the other replicas.
type diagnosis struct {
	policySet
	host        host
	certificate interface{ Ready() error }
	replicas    replicas         // nil where there are no others
	leader      func() string    // identity of the replica that writes statuses
	replicated  resourceReporter // nil where nothing is replicated
}

// policySet is what the loop says of itself.
type policySet interface {
	Ready() error
	Healthy() error
	Report() policy.Report
	SourceError() string
}

type host interface {
	Ready() error
	Bundles() []opa.Bundle
	Plugins() []opa.Plugin
}

type replicas interface {
	// Announced returns nil once the other replicas know of this one.
	Announced() error
	List() []policy.Replica
}

type resourceReporter interface{ Resources() []policy.Resource }

func (d *daemon) diagnosis() diagnosis {
	state := diagnosis{policySet: d.loop, host: d.host, certificate: d.certificate}
	if d.replicas != nil {
		state.replicas, state.leader = d.replicas, d.writer.Leader
	}
	if d.replicator != nil {
		state.replicated = d.replicator
	}
	return state
}

// Ready returns nil while new requests are welcome: decisions can be made, over TLS, and
// other replicas wait for this one before they write ok.
func (d diagnosis) Ready() error {
	err := cmp.Or(d.decidable(), d.certificate.Ready())
	if err == nil && d.replicas != nil {
		err = d.replicas.Announced()
	}
	return err
}

// decidable returns nil while decisions can be made: with all policies and data.
func (d diagnosis) decidable() error {
	err, errHost := d.policySet.Ready(), d.host.Ready()
	if errors.Is(err, enforce.ErrBundles) && errHost != nil {
		return errHost // it names them
	}
	return cmp.Or(err, errHost)
}

func (d *daemon) decidable() error { return d.diagnosis().decidable() }

// Replicas returns all that are known, measured by what the writer has in force.
func (d diagnosis) Replicas() []server.Replica {
	if d.replicas == nil {
		return nil
	}
	all, leader := d.replicas.List(), d.leader()
	inForce := d.Report().Fingerprint
	for _, r := range all {
		if r.Identity == leader && !r.Gone {
			inForce = r.InForce
		}
	}
	shown := make([]server.Replica, 0, len(all))
	for _, r := range all {
		shown = append(shown, server.Replica{
			Identity: r.Identity, State: r.State(inForce), Fingerprint: r.InForce, Writer: r.Identity == leader,
		})
	}
	return shown
}

// Resources returns what is replicated.
func (d diagnosis) Resources() []policy.Resource {
	if d.replicated == nil {
		return nil
	}
	return d.replicated.Resources()
}

// Bundles returns those of OPA's configuration.
func (d diagnosis) Bundles() []server.Bundle {
	var shown []server.Bundle
	for _, b := range d.host.Bundles() {
		state := "active"
		switch {
		case b.Kept:
			state, b.Error = "kept", "it is configured no more, and stays in force as long as what is in force needs it"
		case b.Error != "":
			state = "failed"
		case b.Activated.IsZero():
			state = "loading"
		}
		roots := make([]string, 0, len(b.Roots))
		for _, root := range b.Roots {
			roots = append(roots, strings.Join(root, "/"))
		}
		shown = append(shown, server.Bundle{
			Name: b.Name, Revision: b.Revision, Roots: roots, State: state, Error: b.Error, LastSuccess: b.Activated,
		})
	}
	return shown
}

// Plugins returns those of OPA's configuration.
func (d diagnosis) Plugins() []server.Plugin {
	var shown []server.Plugin
	for _, p := range d.host.Plugins() {
		shown = append(shown, server.Plugin(p))
	}
	return shown
}
