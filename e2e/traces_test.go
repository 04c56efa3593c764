package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// spans are those that came to a collector.
type spans struct {
	mu  sync.Mutex
	all []*tracepb.Span
}

func (s *spans) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var request collectorpb.ExportTraceServiceRequest
	if err := errors.Join(err, proto.Unmarshal(body, &request)); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, of := range request.ResourceSpans {
		for _, scope := range of.ScopeSpans {
			s.all = append(s.all, scope.Spans...)
		}
	}
}

// named are the spans of this name, those with a parent or those without.
func (s *spans) named(name string, parent bool) []*tracepb.Span {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []*tracepb.Span
	for _, span := range s.all {
		if span.Name == name && parent == (len(span.ParentSpanId) > 0) {
			found = append(found, span)
		}
	}
	return found
}

// tracesPatch is what docs/operations.md shows. Argument: the collector.
const tracesPatch = `
spec:
  template:
    spec:
      containers:
        - name: kube-rego
          env:
            - {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: %q}
            - {name: OTEL_BSP_SCHEDULE_DELAY, value: "100"}
`

// Where the API server traces, reviews are parts of its traces.
func TestReviewsAreInTheTracesOfTheAPIServer(t *testing.T) {
	installation, first := install(t)
	create(t, policy(opa, "main", "main", entrypoint))
	create(t, policy(opa, "rules", "main", denyLabel("traced")))
	refuses(t, "traced")
	if err := first.Stop(); err != nil {
		t.Fatal(err)
	}

	received := &spans{}
	collector := httptest.NewServer(received)
	t.Cleanup(collector.Close)
	kubectl(t, "-n", opa, "patch", "deployment", "kube-rego", "--type=strategic", "-p", fmt.Sprintf(tracesPatch, collector.URL))
	t.Cleanup(func() { // apply leaves what a patch has added
		if err := cluster.Client().AppsV1().Deployments(opa).Delete(context.Background(), "kube-rego", metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	second, err := installation.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, second) })
	refuses(t, "traced")
	eventually(t, "a review of the API server that does not trace", func(context.Context) error {
		if n := len(received.named("review", false)); n == 0 {
			return errors.New("there is none")
		}
		return nil
	})
	if got := received.named("review", true); len(got) > 0 {
		t.Errorf("an API server that does not trace has a trace: %s", got)
	}

	// Nobody takes the spans of this API server itself.
	tracing := filepath.Join(t.TempDir(), "tracing.yaml")
	const configuration = "apiVersion: apiserver.config.k8s.io/v1beta1\nkind: TracingConfiguration\nsamplingRatePerMillion: 1000000\n"
	if err := os.WriteFile(tracing, []byte(configuration), 0o600); err != nil {
		t.Fatal(err)
	}
	server := startAPIServer(t, "tracing", "--tracing-config-file="+tracing)
	eventually(t, "the API server that traces asks about a write", func(ctx context.Context) error {
		cm := policy(metav1.NamespaceDefault, "traced")
		cm.Labels = map[string]string{"deny": "traced"}
		_, err := server.client(t).CoreV1().ConfigMaps(cm.Namespace).Create(ctx, cm, metav1.CreateOptions{})
		if err == nil || err.Error() != refusal("traced") {
			return fmt.Errorf("got %w", err)
		}
		return nil
	})
	eventually(t, "a review that is a part of its trace", func(context.Context) error {
		reviews, decisions := received.named("review", true), received.named("decide", true)
		for _, review := range reviews {
			for _, decision := range decisions {
				if bytes.Equal(decision.ParentSpanId, review.SpanId) && bytes.Equal(decision.TraceId, review.TraceId) {
					return nil
				}
			}
		}
		return fmt.Errorf("%d reviews are parts of a trace, and %d decisions", len(reviews), len(decisions))
	})
}
