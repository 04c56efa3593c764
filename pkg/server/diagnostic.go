package server

import (
	"net/http"
	"time"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// State is what the process knows of itself.
type State interface {
	// Healthy is nil, or why the process must be started anew.
	Healthy() error
	// Ready is nil, or why no decision can be made now.
	Ready() error
	// Report is what became of the policy set last looked at.
	Report() policy.Report
	// SourceError is why the policy set is not the newest; empty if it is.
	SourceError() string
	// Replicas are all that are known, this one included; none where there is no
	// way to know of others.
	Replicas() []Replica
	// Resources are those whose objects are replicated, or should be.
	Resources() []policy.Resource
	// Bundles and Plugins are those of OPA's configuration.
	Bundles() []Bundle
	Plugins() []Plugin
}

// Bundle is what is known of one of OPA's bundles.
type Bundle struct {
	Name string `json:"name"`
	// Revision in force, as the bundle's author wrote it.
	Revision string `json:"revision,omitempty"`
	// Roots are the paths of data that it owns, of the revision in force.
	Roots []string `json:"roots,omitempty"`
	// State is active, failed (what was in force before still is), loading, or kept (it
	// is configured no more, and what is in force needs it).
	State string `json:"state"`
	// Error is why it failed.
	Error string `json:"error,omitempty"`
	// LastSuccess is when it last went into force.
	LastSuccess time.Time `json:"lastSuccess,omitzero"`
}

// Plugin is the state of one of OPA's plugins.
type Plugin struct {
	Name string `json:"name"`
	// State in OPA's words: OK, NOT_READY, WARN or ERROR.
	State   string `json:"state"`
	Message string `json:"message,omitempty"`
}

// Replica is what is known of one of several processes.
type Replica struct {
	// Identity tells a person which pod it is.
	Identity string `json:"identity"`
	// State is in_step, lagging or gone.
	State string `json:"state"`
	// Fingerprint is that of the modules that it decides with.
	Fingerprint string `json:"fingerprint"`
	// Writer is true for the one that writes statuses.
	Writer bool `json:"writer,omitempty"`
}

// NewDiagnostic is the handler of the diagnostic listener: /healthz, /readyz,
// /metrics and /status. It shows the refusals that it is given; nil: none.
func NewDiagnostic(state State, metrics *Metrics, refusals *Refusals) http.Handler {
	metrics.registry.MustRegister(replicaCollector{state.Replicas}, resourceCollector{state.Resources})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", probe(state.Healthy))
	mux.HandleFunc("GET /readyz", probe(state.Ready))
	mux.Handle("GET /metrics", metrics.Handler())
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		body := statusBody(state)
		body.Since, body.Refusals = metrics.Since(), refusals.List()
		serveStatus(w, r, body)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		writeError(w, http.StatusNotFound, "there are /healthz, /readyz, /metrics and /status")
	})
	return mux
}

func probe(check func() error) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if err := check(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ok\n"))
	}
}

// status is the body of /status.
type status struct {
	Ready bool `json:"ready"`
	// Reason why it is not ready.
	Reason      string `json:"reason,omitempty"`
	Fingerprint string `json:"fingerprint,omitempty"`
	// Since is when that set went into force here.
	Since       time.Time      `json:"since,omitzero"`
	SourceError string         `json:"sourceError,omitempty"`
	Replicas    []Replica      `json:"replicas,omitempty"`
	Replication []resource     `json:"replication,omitempty"`
	Bundles     []Bundle       `json:"bundles,omitempty"`
	Plugins     []Plugin       `json:"plugins,omitempty"`
	Modules     []moduleStatus `json:"modules"`
	// Refusals are the latest of this process, newest first.
	Refusals []Refusal `json:"refusals,omitempty"`
}

// resource is one whose objects policies read.
type resource struct {
	// Resource is [group/]version/resource; left out if it is not known.
	Resource string               `json:"resource,omitempty"`
	Path     string               `json:"path"`
	State    policy.ResourceState `json:"state"`
	Reason   string               `json:"reason,omitempty"`
	Objects  int                  `json:"objects"`
}

type moduleStatus struct {
	Module      string             `json:"module"`
	Kind        policy.Kind        `json:"kind,omitempty"`
	State       string             `json:"state"`
	InForce     policy.InForce     `json:"inForce"`
	RegoVersion policy.RegoVersion `json:"regoVersion,omitempty"`
	Deleted     bool               `json:"deleted,omitempty"`
	Problems    []policy.Problem   `json:"problems,omitempty"`
	Warnings    []policy.Problem   `json:"warnings,omitempty"`
}

func statusBody(state State) status {
	report := state.Report()
	body := status{
		Ready:       true,
		Fingerprint: report.Fingerprint,
		SourceError: state.SourceError(),
		Replicas:    state.Replicas(),
		Bundles:     state.Bundles(),
		Plugins:     state.Plugins(),
		Modules:     make([]moduleStatus, 0, len(report.Modules)),
	}
	if err := state.Ready(); err != nil {
		body.Ready, body.Reason = false, err.Error()
	}
	for _, r := range state.Resources() {
		body.Replication = append(body.Replication, resource{
			Resource: r.Resource, Path: r.Path, State: r.State, Reason: r.Reason, Objects: r.Objects,
		})
	}
	for _, m := range report.Modules {
		body.Modules = append(body.Modules, moduleStatus{
			Module:      m.ID.String(),
			Kind:        m.Kind,
			State:       m.State(),
			InForce:     m.InForce,
			RegoVersion: m.Version,
			Deleted:     m.Deleted,
			Problems:    m.Problems,
			Warnings:    m.Warnings,
		})
	}
	return body
}
