package daemon_test

import (
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// collector takes spans as OpenTelemetry's collector does over HTTP.
type collector struct {
	t      *testing.T
	url    string
	closed chan struct{} // nobody is answered before it is

	mu       sync.Mutex
	resource map[string]string
	spans    []*tracepb.Span
}

func collect(t *testing.T) *collector {
	t.Helper()
	c := &collector{t: t, closed: make(chan struct{})}
	server := httptest.NewServer(c)
	t.Cleanup(server.Close)
	c.url = server.URL
	return c
}

func (c *collector) answer() { close(c.closed) }

func (c *collector) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	<-c.closed
	body, err := io.ReadAll(r.Body)
	var request collectorpb.ExportTraceServiceRequest
	if err == nil {
		err = proto.Unmarshal(body, &request)
	}
	if err != nil || r.URL.Path != "/v1/traces" {
		c.t.Errorf("POST %s: %v", r.URL.Path, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, of := range request.ResourceSpans {
		c.resource = texts(of.Resource.Attributes)
		for _, scope := range of.ScopeSpans {
			c.spans = append(c.spans, scope.Spans...)
		}
	}
}

// texts are attributes that are texts.
func texts(attributes []*commonpb.KeyValue) map[string]string {
	all := make(map[string]string, len(attributes))
	for _, a := range attributes {
		all[a.Key] = a.Value.GetStringValue()
	}
	return all
}

// named are the spans of this name that came.
func (c *collector) named(name string) []*tracepb.Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	var named []*tracepb.Span
	for _, s := range c.spans {
		if s.Name == name {
			named = append(named, s)
		}
	}
	return named
}

const tracedReview = `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u1","operation":"CREATE",` +
	`"kind":{"group":"","version":"v1","kind":"Secret"},"namespace":"default","name":"n1","object":{"image":"curl","data":{"password":"hunter2"}}}}`

func TestReviewsAreTraced(t *testing.T) {
	const (
		trace  = "4bf92f3577b34da6a3ce929d0e0e4736"
		parent = "00f067aa0ba902b7"
	)
	c := collect(t)
	c.answer()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", c.url)
	d := start(t, map[string]string{"opa-main": opaMain, "images": noCurl})
	d.awaitReady()
	fingerprint := d.await("it is in force", func(p statusPage) bool { return p.Fingerprint != "" }).Fingerprint
	request, err := http.NewRequestWithContext(t.Context(), "POST", d.webhook, strings.NewReader(tracedReview))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("traceparent", "00-"+trace+"-"+parent+"-01")
	response, err := d.client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	d.do("POST", d.webhook, strings.NewReader("{}"))
	if err := d.stop(); err != nil { // what was not sent yet is sent at the end
		t.Fatal(err)
	}

	reviews, decisions := c.named("review"), c.named("decide")
	if len(reviews) != 2 || len(decisions) != 1 {
		t.Fatalf("there are %d spans of reviews and %d of decisions", len(reviews), len(decisions))
	}
	review, invalid, decision := reviews[0], reviews[1], decisions[0]
	if hex.EncodeToString(review.TraceId) != trace || hex.EncodeToString(review.ParentSpanId) != parent || review.Kind != tracepb.Span_SPAN_KIND_SERVER {
		t.Errorf("the review is %s", review)
	}
	if string(decision.ParentSpanId) != string(review.SpanId) || string(decision.TraceId) != string(review.TraceId) {
		t.Errorf("the decision is no part of the review: %s", decision)
	}
	got := texts(review.Attributes)
	if len(got["kube_rego.decision_id"]) < 20 {
		t.Errorf("the id of the decision is %q", got["kube_rego.decision_id"])
	}
	delete(got, "kube_rego.decision_id")
	want := map[string]string{
		"kube_rego.review": "AdmissionReview", "kube_rego.operation": "CREATE", "kube_rego.kind": "Secret", "kube_rego.namespace": "default",
		"kube_rego.decision": "denied", "kube_rego.entrypoint": "system/main", "kube_rego.fingerprint": fingerprint,
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the review says %v\nwant %v", got, want)
	}
	if review.Status.GetCode() != tracepb.Status_STATUS_CODE_UNSET || invalid.Status.GetCode() != tracepb.Status_STATUS_CODE_ERROR || invalid.Status.Message != "invalid" {
		t.Errorf("the states are %s and %s", review.Status, invalid.Status)
	}
	if len(invalid.ParentSpanId) != 0 {
		t.Errorf("a request that names no trace is a part of one: %s", invalid)
	}
	if c.resource["service.name"] != "kube-rego" {
		t.Errorf("the spans are of %v", c.resource)
	}
	for _, s := range []*tracepb.Span{review, decision} {
		if strings.Contains(s.String(), "hunter2") {
			t.Errorf("the span shows the object: %s", s)
		}
	}
}

func TestTheEnvironmentNamesTheService(t *testing.T) {
	c := collect(t)
	c.answer()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", c.url)
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
	t.Setenv("OTEL_SERVICE_NAME", "policies")
	d := start(t, map[string]string{"opa-main": opaMain})
	d.awaitReady()
	d.ask("nginx")
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	if c.resource["service.name"] != "policies" || c.resource["deployment.environment.name"] != "test" {
		t.Errorf("the spans are of %v", c.resource)
	}
}

// The collector answers once all reviews are answered, and not before. If a review waited
// for it, this test would run until the timeout of all.
func TestACollectorThatHangsDelaysNoAnswer(t *testing.T) {
	c := collect(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", c.url)
	t.Setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600000")
	t.Setenv("OTEL_BSP_EXPORT_TIMEOUT", "3600000")
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
	t.Setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
	t.Setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
	d := start(t, map[string]string{"opa-main": opaMain, "images": noCurl})
	d.awaitReady()
	for range 50 {
		d.wants("curl", "no curl")
	}
	c.answer()
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	if n := len(c.named("review")); n == 0 || n > 49 {
		t.Errorf("%d of 50 spans came, want some but not all", n)
	}
}
