package tracing_test

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/kube-rego/kube-rego/pkg/policy"
	"github.com/kube-rego/kube-rego/pkg/tracing"
)

// environment is what there is of OpenTelemetry's variables during the test.
func environment(t *testing.T, variables map[string]string) {
	t.Helper()
	for _, variable := range os.Environ() {
		if name, _, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "OTEL_") {
			t.Setenv(name, "")
		}
	}
	for name, value := range variables {
		t.Setenv(name, value)
	}
}

func TestWhoAsksForTraces(t *testing.T) {
	const nobody = "http://127.0.0.1:1" // nothing is sent
	for _, test := range []struct {
		name      string
		variables map[string]string
		want      bool
		log       string // a part of it
	}{
		{name: "nobody"},
		{name: "somebody who names the service only", variables: map[string]string{"OTEL_SERVICE_NAME": "x"}},
		{name: "an endpoint for all", variables: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": nobody}, want: true},
		{name: "an endpoint for traces", variables: map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": nobody}, want: true},
		{name: "the exporter, at its own endpoint", variables: map[string]string{"OTEL_TRACES_EXPORTER": "otlp"}, want: true},
		{name: "an exporter that is none", variables: map[string]string{"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": nobody}},
		{
			name: "an exporter that is not there", variables: map[string]string{"OTEL_TRACES_EXPORTER": "zipkin"},
			log: `level=WARN msg="OTEL_TRACES_EXPORTER: there are otlp and none" component=opentelemetry value=zipkin`,
		},
		{
			name: "two exporters, one of which is there", variables: map[string]string{"OTEL_TRACES_EXPORTER": "console, otlp"}, want: true,
			log: "value=console",
		},
		{name: "all is switched off", variables: map[string]string{"OTEL_SDK_DISABLED": "TRUE", "OTEL_EXPORTER_OTLP_ENDPOINT": nobody}},
		{name: "gRPC", variables: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": nobody, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, want: true},
		{
			name:      "gRPC, but not for traces",
			variables: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": nobody, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"},
			want:      true,
		},
		{
			name: "a protocol that nobody knows", variables: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": nobody, "OTEL_EXPORTER_OTLP_PROTOCOL": "smoke"},
			log: `level=ERROR msg="no traces are sent" component=opentelemetry error="OTEL_EXPORTER_OTLP_PROTOCOL: there are http/protobuf, http/json and grpc"`,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			environment(t, test.variables)
			var lines bytes.Buffer
			sent := tracing.Start(t.Context(), slog.New(slog.NewTextHandler(&lines, nil)))
			defer sent.Stop(t.Context())
			if got := sent != nil; got != test.want {
				t.Errorf("traces are sent: %t, want %t", got, test.want)
			}
			if !strings.Contains(lines.String(), test.log) {
				t.Errorf("the log is %s\nwant %s", &lines, test.log)
			}
			if (sent.Tracer() != nil) != test.want {
				t.Error("there is a tracer without traces, or none with them")
			}
		})
	}
}

// nothing decides nothing.
type nothing struct{}

func (nothing) Decide(context.Context, string, any) (policy.Decision, error) {
	return policy.Decision{}, nil
}

func TestWithoutTracesNothingStandsBetween(t *testing.T) {
	environment(t, nil)
	sent := tracing.Start(t.Context(), slog.New(slog.DiscardHandler))
	if got := sent.Decider(nothing{}); got != (nothing{}) {
		t.Errorf("decisions are made by %T", got)
	}
}

// Without a bound this test would run until the timeout of all.
func TestTheEndDoesNotWaitForACollectorThatHangs(t *testing.T) {
	asked, over := make(chan struct{}, 10), make(chan struct{})
	collector := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		asked <- struct{}{}
		<-over
	}))
	defer collector.Close()
	defer close(over)
	environment(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": collector.URL, "OTEL_EXPORTER_OTLP_TIMEOUT": "3600000", "OTEL_BSP_EXPORT_TIMEOUT": "3600000"})
	var lines bytes.Buffer
	sent := tracing.Start(t.Context(), slog.New(slog.NewTextHandler(&lines, nil)))
	if _, err := sent.Decider(nothing{}).Decide(t.Context(), "system/main", nil); err != nil {
		t.Fatal(err)
	}
	sent.Stop(t.Context())
	<-asked
	if want := "the last traces were not sent"; !strings.Contains(lines.String(), want) {
		t.Errorf("the log is %s\nwant %s", &lines, want)
	}
}
