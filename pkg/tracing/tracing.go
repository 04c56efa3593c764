// Package tracing sends spans to a collector of OpenTelemetry, if the environment asks
// for that with the variables of OpenTelemetry's specification. It touches that
// collector alone, and no span holds an admitted object.
package tracing

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

const (
	// scope names us as the maker of the spans.
	scope = "github.com/kube-rego/kube-rego"
	// serviceName is ours unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES has another.
	serviceName = "kube-rego"
	// stopTimeout is how long the last spans are waited for at the end: a collector that
	// is away must not keep a pod.
	stopTimeout = 3 * time.Second
	// complaints come at most this often: while a collector is away each batch fails.
	complaints = time.Minute
)

// Tracing sends spans until it is stopped. A nil one does nothing.
type Tracing struct {
	provider *sdktrace.TracerProvider
	log      *slog.Logger
}

// Start is nil if nobody asks for spans, or they cannot be sent: whoever traces must not
// be able to stop decisions.
func Start(ctx context.Context, log *slog.Logger) *Tracing {
	log = log.With("component", "opentelemetry")
	if !wanted(log) {
		return nil
	}
	otel.SetLogger(logr.FromSlogHandler(log.Handler()))
	otel.SetErrorHandler(&complainer{log: log})
	exporter, err := newExporter(ctx)
	if err != nil {
		log.Error("no traces are sent", "error", err)
		return nil
	}
	about, err := resource.New(ctx,
		resource.WithHost(),
		resource.WithTelemetrySDK(),
		resource.WithAttributes(attribute.String("service.name", serviceName)),
		resource.WithFromEnv(), // the last has the last word
	)
	if err != nil {
		log.Warn("traces do not say all about their origin", "error", err)
	}
	log.Info("traces are sent")
	return &Tracing{
		// The sampler, limits and batches are as the environment has them.
		provider: sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(about)),
		log:      log,
	}
}

// Tracer makes spans; nil if there are none to make.
func (t *Tracing) Tracer() trace.Tracer {
	if t == nil {
		return nil
	}
	return t.provider.Tracer(scope)
}

// Stop sends what was not sent yet. The end does not wait long for that.
func (t *Tracing) Stop(ctx context.Context) {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		t.log.Warn("the last traces were not sent", "error", err)
	}
}

// wanted reports whether the environment asks for spans. A value that is empty is one
// that is not set.
func wanted(log *slog.Logger) bool {
	if strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") {
		return false
	}
	var exporters []string
	for name := range strings.SplitSeq(os.Getenv("OTEL_TRACES_EXPORTER"), ",") {
		switch name = strings.TrimSpace(name); name {
		case "":
		case "otlp", "none":
			exporters = append(exporters, name)
		default:
			log.Warn("OTEL_TRACES_EXPORTER: there are otlp and none", "value", name)
		}
	}
	switch {
	case slices.Contains(exporters, "none"):
		return false
	case slices.Contains(exporters, "otlp"):
		return true
	}
	return os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != ""
}

// newExporter speaks the protocol that the environment asks for. HTTP needs what gRPC
// needs too, so that gRPC adds but 0.2 MB to the 2 MB of all this.
func newExporter(ctx context.Context) (*otlptrace.Exporter, error) {
	protocol := os.Getenv("OTEL_EXPORTER_OTLP_PROTOCOL")
	if own := os.Getenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"); own != "" {
		protocol = own
	}
	switch protocol {
	case "grpc":
		return otlptracegrpc.New(ctx)
	case "", "http/protobuf", "http/json":
		return otlptracehttp.New(ctx) // it reads which of them
	}
	return nil, errors.New("OTEL_EXPORTER_OTLP_PROTOCOL: there are http/protobuf, http/json and grpc")
}

// complainer logs what goes wrong in the background.
type complainer struct {
	log *slog.Logger

	mu     sync.Mutex
	last   time.Time
	silent int // how many were not logged since
}

// Handle logs an error, unless there was one just before.
func (c *complainer) Handle(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.last) < complaints {
		c.silent++
		return
	}
	c.log.Warn("traces were not sent", "error", err, "more", c.silent)
	c.last, c.silent = time.Now(), 0
}

// Decider answers a query.
type Decider interface {
	Decide(ctx context.Context, path string, input any) (policy.Decision, error)
}

// Decider makes a span of each decision; without tracing it is the one that is given.
func (t *Tracing) Decider(d Decider) Decider {
	if t == nil {
		return d
	}
	return &decider{of: d, tracer: t.Tracer()}
}

type decider struct {
	of     Decider
	tracer trace.Tracer
}

// Decide is the decision of the decider that is traced.
func (d *decider) Decide(ctx context.Context, path string, input any) (policy.Decision, error) {
	ctx, span := d.tracer.Start(ctx, "decide")
	defer span.End()
	return d.of.Decide(ctx, path, input)
}
