package server_test

import (
	"errors"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/kube-rego/kube-rego/pkg/policy"
	"github.com/kube-rego/kube-rego/pkg/server"
)

// stubState is a process in a state that a real one is in for a moment only.
type stubState struct {
	resources      []policy.Resource
	healthy, ready error
	report         policy.Report
	sourceError    string
	replicas       []server.Replica
	bundles        []server.Bundle
	plugins        []server.Plugin
}

func (s stubState) Healthy() error        { return s.healthy }
func (s stubState) Ready() error          { return s.ready }
func (s stubState) Report() policy.Report { return s.report }
func (s stubState) SourceError() string   { return s.sourceError }

func (s stubState) Replicas() []server.Replica   { return s.replicas }
func (s stubState) Resources() []policy.Resource { return s.resources }
func (s stubState) Bundles() []server.Bundle     { return s.bundles }
func (s stubState) Plugins() []server.Plugin     { return s.plugins }

func TestDiagnostic(t *testing.T) {
	const (
		text   = "text/plain; charset=utf-8"
		object = "application/json"
		noPath = `{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure",` +
			`"message":"there are /healthz, /readyz, /metrics and /status","reason":"NotFound","code":404}` + "\n"
		waiting = "waiting for the first full list"
	)
	id := func(name string) policy.ID { return policy.ID{Namespace: "opa", Name: name, Key: "main"} }
	for _, test := range []struct {
		name, path  string
		state       stubState
		status      int
		contentType string
		want        string
	}{
		{name: "it is healthy", path: "/healthz", status: 200, contentType: text, want: "ok\n"},
		{
			name: "it is stuck, and says where", path: "/healthz", state: stubState{healthy: errors.New("the loop is stuck")},
			status: 503, contentType: text, want: "the loop is stuck\n",
		},
		{
			name: "what is not ready is healthy", path: "/healthz", state: stubState{ready: errors.New(waiting)},
			status: 200, contentType: text, want: "ok\n",
		},
		{name: "it is ready", path: "/readyz", status: 200, contentType: text, want: "ok\n"},
		{
			name: "it is not ready, and says why", path: "/readyz", state: stubState{ready: errors.New(waiting)},
			status: 503, contentType: text, want: waiting + "\n",
		},
		{
			name: "a broken source does not make it unready", path: "/readyz", state: stubState{sourceError: "broken"},
			status: 200, contentType: text, want: "ok\n",
		},
		{
			name: "the status before there is one", path: "/status", state: stubState{ready: errors.New(waiting)},
			status: 200, contentType: object, want: `{"ready":false,"reason":"` + waiting + `","modules":[]}` + "\n",
		},
		{
			name: "the status of every kind of replica", path: "/status", status: 200, contentType: object,
			state: stubState{report: policy.Report{Fingerprint: "f1"}, replicas: []server.Replica{
				{Identity: "a", State: policy.ReplicaInStep, Fingerprint: "f1", Writer: true},
				{Identity: "b", State: policy.ReplicaLagging, Fingerprint: "f0"},
			}},
			want: `{"ready":true,"fingerprint":"f1","replicas":[` +
				`{"identity":"a","state":"in_step","fingerprint":"f1","writer":true},` +
				`{"identity":"b","state":"lagging","fingerprint":"f0"}],"modules":[]}` + "\n",
		},
		{
			name: "the status of bundles in every state, and of plugins", path: "/status", status: 200, contentType: object,
			state: stubState{
				bundles: []server.Bundle{
					{
						Name: "team", Revision: "r7", Roots: []string{"team", "shared/lib"}, State: "active",
						LastSuccess: time.Date(2026, 11, 23, 17, 0, 0, 0, time.FixedZone("", 3600)),
					},
					{
						Name: "other", Revision: "r1", Roots: []string{""}, State: "failed", Error: "1 error <occurred>",
						LastSuccess: time.Date(2026, 11, 23, 16, 0, 0, 500_000_000, time.UTC),
					},
					{Name: "late", State: "loading"},
				},
				plugins: []server.Plugin{{Name: "bundle", State: "NOT_READY", Message: "late is on its way"}, {Name: "decision_logs", State: "OK"}},
			},
			want: `{"ready":true,"bundles":[` +
				`{"name":"team","revision":"r7","roots":["team","shared/lib"],"state":"active","lastSuccess":"2026-11-23T17:00:00+01:00"},` +
				`{"name":"other","revision":"r1","roots":[""],"state":"failed","error":"1 error <occurred>","lastSuccess":"2026-11-23T16:00:00.5Z"},` +
				`{"name":"late","state":"loading"}],` +
				`"plugins":[{"name":"bundle","state":"NOT_READY","message":"late is on its way"},{"name":"decision_logs","state":"OK"}],"modules":[]}` + "\n",
		},
		{
			name: "the status of every kind of module", path: "/status", status: 200, contentType: object,
			state: stubState{sourceError: "reading <a>", report: policy.Report{Fingerprint: "f1", Modules: []policy.Status{
				{ID: id("good"), InForce: policy.Current, Version: policy.RegoV1},
				{ID: id("edited"), InForce: policy.Previous, Version: policy.RegoV0, Problems: []policy.Problem{{Code: "rego_parse_error", Message: "no & no", Row: 3, Col: 4}}},
				{ID: id("new"), InForce: policy.None, Problems: []policy.Problem{{Code: "invalid_parameter", Message: "no text"}}},
				{ID: id("gone"), InForce: policy.Previous, Version: policy.RegoV1, Deleted: true, Problems: []policy.Problem{{Code: "rego_type_error", Message: "needed"}}},
			}}},
			want: `{"ready":true,"fingerprint":"f1","sourceError":"reading <a>","modules":[` +
				`{"module":"opa/good/main","state":"in_force","inForce":"current","regoVersion":"v1"},` +
				`{"module":"opa/edited/main","state":"held","inForce":"previous","regoVersion":"v0","problems":[{"code":"rego_parse_error","message":"no & no","row":3,"col":4}]},` +
				`{"module":"opa/new/main","state":"held","inForce":"none","problems":[{"code":"invalid_parameter","message":"no text"}]},` +
				`{"module":"opa/gone/main","state":"held","inForce":"previous","regoVersion":"v1","deleted":true,"problems":[{"code":"rego_type_error","message":"needed"}]}` +
				`]}` + "\n",
		},
		{name: "the root", path: "/", status: 404, contentType: object, want: noPath},
		{name: "another path", path: "/status/opa", status: 404, contentType: object, want: noPath},
	} {
		t.Run(test.name, func(t *testing.T) {
			diagnostic := httptest.NewServer(server.NewDiagnostic(test.state, server.NewMetrics(), nil))
			defer diagnostic.Close()
			status, header, body := send(t, diagnostic, "GET", test.path, nil)
			if status != test.status {
				t.Errorf("the status is %d, want %d", status, test.status)
			}
			if got := header.Get("Content-Type"); got != test.contentType {
				t.Errorf("the content type is %q, want %q", got, test.contentType)
			}
			if body != test.want {
				t.Errorf("got  %s\nwant %s", body, test.want)
			}
		})
	}
}

func TestMetricsHaveTheirNames(t *testing.T) {
	metrics := server.NewMetrics()
	webhook := httptest.NewServer(server.NewWebhook(server.WebhookConfig{Reviewer: newReviewer(t), Ready: ready, Metrics: metrics, Log: discard}))
	defer webhook.Close()
	send(t, webhook, "POST", "/", strings.NewReader(review("allow")))
	held := policy.Status{InForce: policy.Previous, Problems: []policy.Problem{{Code: "rego_parse_error"}}}
	fine := policy.Status{InForce: policy.Current}
	kept := policy.Status{InForce: policy.Previous, Deleted: true, Problems: []policy.Problem{{Code: "rego_type_error"}}}
	metrics.Reported(policy.Report{Modules: []policy.Status{held, fine, fine, kept}})

	diagnostic := httptest.NewServer(server.NewDiagnostic(stubState{replicas: []server.Replica{
		{Identity: "a", State: policy.ReplicaInStep, Writer: true}, {Identity: "b", State: policy.ReplicaInStep}, {Identity: "c", State: policy.ReplicaGone},
	}}, metrics, nil))
	defer diagnostic.Close()
	lines := func() string {
		status, _, body := send(t, diagnostic, "GET", "/metrics", nil)
		if status != 200 {
			t.Fatalf("the status is %d", status)
		}
		return body
	}
	got := lines()
	for _, line := range []string{
		`kube_rego_admission_request_duration_seconds_count{decision="allowed",entrypoint="",operation="none"} 1`,
		`kube_rego_modules{in_force="previous",state="held"} 2`,
		`kube_rego_held_changes{change="add"} 0`,
		`kube_rego_held_changes{change="edit"} 1`,
		`kube_rego_held_changes{change="delete"} 1`,
		`kube_rego_modules{in_force="current",state="in_force"} 2`,
		`kube_rego_replicas{state="in_step"} 2`,
		`kube_rego_replicas{state="lagging"} 0`,
		`kube_rego_replicas{state="gone"} 1`,
		`# TYPE go_goroutines gauge`,
		`# TYPE process_start_time_seconds gauge`,
	} {
		if !strings.Contains(got, line+"\n") {
			t.Errorf("there is no %s", line)
		}
	}
	metrics.Reported(policy.Report{})
	if got, want := lines(), `kube_rego_modules{in_force="previous",state="held"} 0`; !strings.Contains(got, want+"\n") {
		t.Errorf("there is no %s once nothing is held", want)
	}
}
