package server_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/kube-rego/kube-rego/pkg/server"
)

// opaMetrics is the interface of OPA's server that APIMetrics stands in for.
type opaMetrics interface {
	RegisterEndpoints(registrar func(path, method string, handler http.Handler))
	InstrumentHandler(handler http.Handler, label string) http.Handler
}

// exposed fails the test unless the metrics have these lines.
func exposed(t *testing.T, metrics *server.Metrics, lines ...string) {
	t.Helper()
	recorder := httptest.NewRecorder()
	metrics.Handler().ServeHTTP(recorder, httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
	for _, line := range lines {
		if !strings.Contains(recorder.Body.String(), line+"\n") {
			t.Errorf("there is no %s", line)
		}
	}
}

// lint fails the test for what promtool check metrics would find fault with.
func lint(t *testing.T, metrics *server.Metrics) {
	t.Helper()
	recorder := httptest.NewRecorder()
	metrics.Handler().ServeHTTP(recorder, httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
	problems, err := promlint.New(recorder.Body).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestAPIRequestsAreMeasured(t *testing.T) {
	metrics := server.NewMetrics()
	var api opaMetrics = metrics.API()
	api.RegisterEndpoints(func(path, _ string, _ http.Handler) { t.Errorf("%s is served by the API", path) })
	handler := api.InstrumentHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			w.WriteHeader(http.StatusNotFound)
		}
	}), "v1/data")
	for _, method := range []string{"GET", "POST", "POST", "A_METHOD_OF_SOMEBODY"} {
		handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), method, "/v1/data", nil))
	}
	exposed(t, metrics,
		`kube_rego_api_request_duration_seconds_count{code="404",handler="v1/data",method="get"} 1`,
		`kube_rego_api_request_duration_seconds_count{code="200",handler="v1/data",method="post"} 2`,
		`kube_rego_api_request_duration_seconds_count{code="200",handler="v1/data",method="unknown"} 1`,
		`kube_rego_api_request_duration_seconds_bucket{code="200",handler="v1/data",method="post",le="30"} 2`,
	)
}

func TestDroppedDecisionLogsAreCounted(t *testing.T) {
	metrics := server.NewMetrics()
	exposed(t, metrics, "kube_rego_decision_logs_dropped_total 0")
	metrics.DecisionLogDropped()
	metrics.DecisionLogDropped()
	exposed(t, metrics, "kube_rego_decision_logs_dropped_total 2")
}

func TestMetricsOfOthersAreServed(t *testing.T) {
	metrics := server.NewMetrics()
	metrics.Registry().MustRegister(prometheus.NewCounter(prometheus.CounterOpts{Name: "plugin_status_total", Help: "of a plugin"}))
	exposed(t, metrics, "plugin_status_total 0")
}

func TestModulesThatRunOutOfTimeAreCountedByName(t *testing.T) {
	metrics := server.NewMetrics()
	for n := range 120 {
		metrics.RanOut(fmt.Sprintf("opa/loop%d/main", n))
	}
	metrics.RanOut("opa/loop99/main")
	exposed(t, metrics,
		`kube_rego_policy_timeouts_total{module="opa/loop0/main"} 1`,
		`kube_rego_policy_timeouts_total{module="opa/loop99/main"} 2`,
		`kube_rego_policy_timeouts_total{module="other"} 20`,
	)
	lint(t, metrics)
}
