package opa

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kube-rego/kube-rego/pkg/compile"
	"github.com/kube-rego/kube-rego/pkg/engine"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

func TestABundleComesThroughTheGate(t *testing.T) {
	s := serveBundles(t)
	s.put(t, "lib.tar.gz", map[string]string{
		".manifest": `{"revision":"r1","roots":["lib","x/y"],"rego_version":0}`,
		"lib.rego":  "package lib\np { data.opa_function.f(1) }", "x/y/data.json": `{"z":[1]}`,
	})
	h := run(t, fmt.Sprintf("services: {s: {url: %q}}\nbundles: {lib: {service: s, resource: lib.tar.gz, %s}}", s.URL, polling))
	eventually(t, "the bundle came", func() bool { return len(h.gate.last().Bundles) > 0 })
	set := h.gate.last()
	if b := set.Bundles[0]; b.Name != "lib" || b.Revision != "r1" || fmt.Sprint(b.Roots) != "[[lib] [x y]]" {
		t.Errorf("the bundle is %+v", b)
	}
	if len(set.Modules) != 1 || set.Modules[0].Name != "lib/lib.rego" || set.Modules[0].Version != policy.RegoV0 || !strings.HasPrefix(set.Modules[0].Source, "package lib\n") {
		t.Errorf("the modules are %+v", set.Modules)
	}
	if text := set.Data.String(); !strings.Contains(text, `"x": {"y": {"z": [1]}}`) {
		t.Errorf("the data is %s", text)
	}
	eventually(t, "ready", func() bool { return h.Ready() == nil && h.Complete() })
	before := set.Data.String()
	s.put(t, "lib.tar.gz", map[string]string{".manifest": `{"revision":"r2","roots":["lib","x/y"]}`, "x/y/data.json": `{"z":[2]}`})
	eventually(t, "the next one came", func() bool { return h.gate.last().Bundles[0].Revision == "r2" })
	if after := set.Data.String(); after != before {
		t.Errorf("what came first was changed to %s", after)
	}
	if plugins := h.Plugins(); len(plugins) != 1 || plugins[0].Name != "bundle" || plugins[0].State != "OK" {
		t.Errorf("the plugins are %+v", plugins)
	}
}

func TestABundleThatIsRefusedLeavesTheOneBefore(t *testing.T) {
	s := serveBundles(t)
	files := func(text string) map[string]string {
		return map[string]string{".manifest": `{"revision":"` + text + `","roots":["lib"]}`, "lib.rego": "package lib\np := " + text}
	}
	s.put(t, "lib.tar.gz", files("1"))
	h := run(t, fmt.Sprintf("services: {s: {url: %q}}\nbundles: {lib: {service: s, resource: lib.tar.gz, %s}}", s.URL, polling))
	eventually(t, "ready", func() bool { return h.Ready() == nil })
	h.gate.set(errors.New("it does not go with opa/a/main"))
	s.put(t, "lib.tar.gz", files("2"))
	eventually(t, "the refusal is known", func() bool { return h.Bundles()[0].Error == "it does not go with opa/a/main" })
	if err := h.Ready(); err != nil {
		t.Errorf("it is not ready any more: %v", err)
	}
	stored := func() string {
		ctx := t.Context()
		txn, err := h.store.NewTransaction(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer h.store.Abort(ctx, txn)
		text, err := h.store.GetPolicy(ctx, txn, "lib/lib.rego")
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if text := stored(); !strings.HasSuffix(text, "p := 1") {
		t.Errorf("stored is %s", text)
	}
	h.gate.set(nil)
	eventually(t, "the next one is let in", func() bool { return strings.HasSuffix(stored(), "p := 2") && h.Bundles()[0].Error == "" })
}

func TestWhatIsNotReadySaysWhy(t *testing.T) {
	s := serveBundles(t)
	h := run(t, fmt.Sprintf("services: {s: {url: %q}}\nbundles: {lib: {service: s, resource: none, %s}}", s.URL, polling))
	eventually(t, "the failure is known", func() bool { return h.Bundles()[0].Error != "" })
	if err := h.Ready(); err == nil || !strings.Contains(err.Error(), "waiting for OPA's bundle: lib: ") || !strings.Contains(err.Error(), "Not Found") {
		t.Errorf("got %v", err)
	}
	if h.Complete() {
		t.Error("it is complete")
	}
}

func TestAConfigurationThatOPADoesNotTake(t *testing.T) {
	for text, want := range map[string]string{
		"plugins: {none: {}}":                          `OPA's configuration: plugin "none" not registered`,
		"bundles: {b: {service: none}}":                `OPA's configuration: invalid configuration for bundle "b": service name "none" not found`,
		"services: [{name: s, url: [1]}]":              "OPA's configuration: ",
		"decision_logs: {service: none}":               `OPA's configuration: invalid service name "none" in decision_logs`,
		"server: {encoding: {gzip: {min_length: -5}}}": "OPA's configuration: ",
		"default_decision: 3":                          "OPA's configuration: ",
	} {
		c, err := parseConfiguration([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		h := New(Config{
			Configuration: c, RegoVersion: policy.RegoAuto, Engine: engine.New(), Gate: &gate{}, Look: func() {}, Registry: prometheus.NewRegistry(),
			Log: slog.New(slog.DiscardHandler),
		})
		drained := make(chan struct{})
		close(drained) // one that is taken ends at once
		if err := h.Run(t.Context(), drained); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: got %v", text, err)
		}
	}
}

// The status that OPA sends, and what Prometheus reads of it, tell of our answer.
func TestTheStatusOfABundleIsSent(t *testing.T) {
	s := serveBundles(t)
	s.put(t, "lib.tar.gz", map[string]string{".manifest": `{"revision":"r1","roots":["lib"]}`, "lib.rego": "package lib\np := 1"})
	h := run(t, fmt.Sprintf("services: {s: {url: %q}}\nstatus: {service: s, prometheus: true}\nbundles: {lib: {service: s, resource: lib.tar.gz, %s}}", s.URL, polling))
	eventually(t, "the revision is told", func() bool { return strings.Contains(s.heard(), `"active_revision":"r1"`) })
	h.gate.set(errors.New("it does not go with opa/a/main"))
	s.put(t, "lib.tar.gz", map[string]string{".manifest": `{"revision":"r2","roots":["lib"]}`, "lib.rego": "package lib\np := 2"})
	eventually(t, "the refusal is told", func() bool {
		return strings.Contains(s.heard(), "it does not go with opa/a/main") && strings.Contains(s.heard(), `"active_revision":"r1"`)
	})
	families, err := h.config.Registry.(*prometheus.Registry).Gather()
	var names []string
	for _, f := range families {
		names = append(names, f.GetName())
	}
	if err != nil || !slices.Contains(names, "bundle_failed_load_counter") {
		t.Errorf("there is no counter of failures in %v, %v", names, err)
	}
}

// What http.send got is kept as the configuration says, for decisions of the webhook too.
func TestAnswersAreCachedAsConfigured(t *testing.T) {
	for name, test := range map[string]struct {
		configuration string
		want          int64
	}{
		"kept":              {"{}", 1},
		"too large to keep": {"caching: {inter_query_builtin_cache: {max_size_bytes: 10}}", 3},
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int64
			other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				asked.Add(1)
				w.Header().Set("Content-Type", "application/json")
				_, _ = w.Write([]byte(`{"x": "a text of more than ten bytes"}`))
			}))
			defer other.Close()
			h := run(t, test.configuration)
			c, err := compile.New(compile.Config{RegoVersion: policy.RegoV1, Builtins: []string{"http.send"}})
			if err != nil {
				t.Fatal(err)
			}
			id := policy.ID{Namespace: "opa", Name: "a", Key: "main"}
			source := fmt.Sprintf("package k\nx := http.send({\"method\": \"get\", \"url\": %q, \"force_cache\": true, \"force_cache_duration_seconds\": 100}).body.x", other.URL)
			snapshot := c.Compile(c.Empty(), policy.NewSet(policy.Module{ID: id, Source: source}), nil)
			report := snapshot.Report()
			if len(report.Held()) > 0 {
				t.Fatalf("held: %v", report.Held())
			}
			h.engine.Activate(snapshot, snapshot.Report())
			for range 3 {
				if _, err := h.engine.Decide(t.Context(), "k/x", nil); err != nil {
					t.Fatal(err)
				}
			}
			if asked.Load() != test.want {
				t.Errorf("it was asked %d times, want %d", asked.Load(), test.want)
			}
		})
	}
}
