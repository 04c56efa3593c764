package opa

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kube-rego/kube-rego/pkg/compile"
	"github.com/kube-rego/kube-rego/pkg/engine"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// limit is how long a test waits for what should come at once.
const limit = 30 * time.Second

// gate lets bundles in, or not, and keeps what came.
type gate struct {
	mu     sync.Mutex
	refuse error
	came   []compile.BundleSet
}

func (g *gate) Propose(_ context.Context, set compile.BundleSet) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.refuse == nil {
		g.came = append(g.came, set)
	}
	return g.refuse
}

func (g *gate) set(refuse error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refuse = refuse
}

func (g *gate) last() compile.BundleSet {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.came) == 0 {
		return compile.BundleSet{}
	}
	return g.came[len(g.came)-1]
}

// running is a host that runs until the test ends.
type running struct {
	*Host
	gate     *gate
	engine   *engine.Engine
	compiler *compile.Compiler
	dropped  atomic.Int64
	drained  chan struct{}
	end      func() error
}

func run(t *testing.T, configuration string, modules ...string) *running {
	t.Helper()
	c, err := parseConfiguration([]byte(configuration))
	if err != nil {
		t.Fatal(err)
	}
	r := &running{gate: &gate{}, engine: engine.New(), drained: make(chan struct{})}
	r.compiler, err = compile.New(compile.Config{RegoVersion: policy.RegoAuto, SystemNamespaces: []string{"opa"}, MaskSecrets: c.LogsDecisions()})
	if err != nil {
		t.Fatal(err)
	}
	r.enforce(t, modules...)
	r.Host = New(Config{
		Configuration: c, RegoVersion: policy.RegoAuto, Engine: r.engine, Gate: r.gate, Look: func() {},
		Registry: prometheus.NewRegistry(), Dropped: func() { r.dropped.Add(1) },
		API: APIConfig{Ready: func() error { return nil }}, Log: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx, r.drained) }()
	r.end = sync.OnceValue(func() error {
		cancel()
		close(r.drained)
		return <-ended
	})
	t.Cleanup(func() {
		if err := r.end(); err != nil {
			t.Error(err)
		}
	})
	eventually(t, "the plugins run", func() bool { return r.running() != nil })
	return r
}

func (r *running) enforce(t *testing.T, modules ...string) {
	t.Helper()
	set := make(policy.Set)
	for n, source := range modules {
		id := policy.ID{Namespace: "opa", Name: fmt.Sprintf("m%d", n), Key: "main"}
		set[id] = policy.Module{ID: id, Source: source}
	}
	snapshot := r.compiler.Compile(r.compiler.Empty(), set, nil)
	report := snapshot.Report()
	for _, s := range report.Held() {
		if !strings.HasSuffix(set[s.ID].Source, "x y") { // which is meant to be
			t.Fatalf("%s is held: %v", s.ID, s.Problems)
		}
	}
	r.engine.Activate(snapshot, snapshot.Report())
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !is(); {
		if time.Now().After(deadline) {
			t.Fatalf("it did not come to this: %s", what)
		}
		time.Sleep(5 * time.Millisecond) // between two looks
	}
}

// service serves bundles, and takes what is sent to /logs.
type service struct {
	*httptest.Server
	mu      sync.Mutex
	bundles map[string][]byte
	events  []map[string]any
	status  string        // the last that was sent to /status
	hang    chan struct{} // closed when /logs may answer; nil: at once
}

func serveBundles(t *testing.T) *service {
	t.Helper()
	s := &service{bundles: make(map[string][]byte)}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/logs":
		s.take(w, r)
		return
	case "/status":
		s.hear(r)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	bundle, ok := s.bundles[strings.TrimPrefix(r.URL.Path, "/")]
	if !ok {
		http.Error(w, "there is none", http.StatusNotFound)
		return
	}
	_, _ = w.Write(bundle)
}

func (s *service) take(w http.ResponseWriter, r *http.Request) {
	if s.hang != nil {
		<-s.hang
	}
	unzipped, err := gzip.NewReader(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var events []map[string]any
	if err := json.NewDecoder(unzipped).Decode(&events); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, events...)
}

// hear takes in a status.
func (s *service) hear(r *http.Request) {
	text, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status = string(text)
}

func (s *service) heard() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

func (s *service) taken() []map[string]any {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.events)
}

// put makes a bundle of files.
func (s *service) put(t *testing.T, name string, files map[string]string) {
	t.Helper()
	var packed bytes.Buffer
	zip := gzip.NewWriter(&packed)
	archive := tar.NewWriter(zip)
	for file, text := range files {
		if err := archive.WriteHeader(&tar.Header{Name: file, Size: int64(len(text)), Mode: 0o600}); err != nil {
			t.Fatal(err)
		}
		if _, err := archive.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(archive.Close(), zip.Close()); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bundles[name] = packed.Bytes()
}

const polling = "polling: {min_delay_seconds: 1, max_delay_seconds: 1}"
