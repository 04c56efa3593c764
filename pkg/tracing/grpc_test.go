package tracing_test

import (
	"context"
	"log/slog"
	"net"
	"testing"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"

	"github.com/kube-rego/kube-rego/pkg/tracing"
)

// collector takes spans over gRPC and tells their names.
type collector struct {
	collectorpb.UnimplementedTraceServiceServer

	names chan string
}

func (c collector) Export(_ context.Context, request *collectorpb.ExportTraceServiceRequest) (*collectorpb.ExportTraceServiceResponse, error) {
	for _, of := range request.ResourceSpans {
		for _, scope := range of.ScopeSpans {
			for _, span := range scope.Spans {
				c.names <- span.Name
			}
		}
	}
	return &collectorpb.ExportTraceServiceResponse{}, nil
}

func TestSpansAreSentOverGRPC(t *testing.T) {
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, took := grpc.NewServer(), collector{names: make(chan string, 1)}
	collectorpb.RegisterTraceServiceServer(server, took)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	environment(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://" + listener.Addr().String(), "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"})
	sent := tracing.Start(t.Context(), slog.New(slog.DiscardHandler))
	if _, err := sent.Decider(nothing{}).Decide(t.Context(), "system/main", nil); err != nil {
		t.Fatal(err)
	}
	sent.Stop(t.Context())
	server.Stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	select {
	case name := <-took.names:
		if name != "decide" {
			t.Errorf("the span is %s", name)
		}
	default:
		t.Error("nothing came")
	}
}
