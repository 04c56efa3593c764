package server

import (
	"net/http"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/kube-rego/kube-rego/pkg/admission"
)

// startSpan begins the span of a review, as a part of the trace that the request names:
// the API server's, if that traces.
func startSpan(tracer trace.Tracer, r *http.Request) (*http.Request, trace.Span) {
	if tracer == nil {
		return r, noop.Span{}
	}
	ctx := propagation.TraceContext{}.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
	ctx, span := tracer.Start(ctx, "review", trace.WithSpanKind(trace.SpanKindServer))
	return r.WithContext(ctx), span
}

// describe says in the span of a review what a log may tell of it too: never the object.
func describe(span trace.Span, answer admission.Answer, decision, entrypoint string) {
	if !span.IsRecording() {
		return
	}
	span.SetAttributes(
		attribute.String("kube_rego.review", answer.Review),
		attribute.String("kube_rego.operation", answer.Request.Operation),
		attribute.String("kube_rego.kind", answer.Request.Kind),
		attribute.String("kube_rego.namespace", answer.Request.Namespace),
		attribute.String("kube_rego.decision", decision),
		attribute.String("kube_rego.decision_id", answer.DecisionID),
		attribute.String("kube_rego.entrypoint", entrypoint),
		attribute.String("kube_rego.fingerprint", answer.Fingerprint),
	)
	if decision != outcomeAllowed && decision != outcomeDenied {
		span.SetStatus(codes.Error, decision)
	}
}
