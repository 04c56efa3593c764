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

	"github.com/kube-rego/kube-rego/pkg/engine"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// limit is how long a test waits for what should come at once.
const limit = 30 * time.Second

// gate lets bundles in, or not, and keeps what came.
type gate struct {
	mu     sync.Mutex
	refuse error
	came   []engine.BundleSet
}

func (g *gate) Propose(_ context.Context, set engine.BundleSet) error {
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

func (g *gate) last() engine.BundleSet {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.came) == 0 {
		return engine.BundleSet{}
	}
	return g.came[len(g.came)-1]
}

// running is a host that runs until the test ends.
type running struct {
	*Host
	gate     *gate
	engine   *engine.Engine
	compiler *engine.Compiler
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
	r.compiler, err = engine.NewCompiler(engine.Config{RegoVersion: policy.RegoAuto, SystemNamespaces: []string{"opa"}, MaskSecrets: c.LogsDecisions()})
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
	snapshot, report := r.compiler.Compile(r.compiler.Empty(), set)
	for _, s := range report.Held() {
		if !strings.HasSuffix(set[s.ID].Source, "x y") { // which is meant to be
			t.Fatalf("%s is held: %v", s.ID, s.Problems)
		}
	}
	r.engine.Activate(snapshot)
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

func TestDecisionsAreLogged(t *testing.T) {
	s := serveBundles(t)
	h := run(t, fmt.Sprintf("services: {s: {url: %q}}\nlabels: {a: b}\ndecision_logs: {service: s, reporting: {min_delay_seconds: 1, max_delay_seconds: 1}}", s.URL),
		"package k\ndeny contains \"no\" if input.x > 1\nother := 1", "package unused\ny := 2")
	secret := map[string]any{"x": json.Number("2"), "object": map[string]any{"kind": "Secret", "data": map[string]any{"a": "b"}}}
	decision, err := h.engine.Decide(t.Context(), "k/deny", secret)
	if err != nil {
		t.Fatal(err)
	}
	undefined, err := h.engine.Decide(t.Context(), "k/nothing", nil)
	if !errors.Is(err, policy.ErrUndefined) {
		t.Fatal(err)
	}
	api := httptest.NewServer(h.API())
	defer api.Close()
	response, err := http.Post(api.URL+"/v1/data/k/deny", "application/json", strings.NewReader(`{"input":{"x":3}}`))
	if err != nil {
		t.Fatal(err)
	}
	var answer struct {
		DecisionID string `json:"decision_id"`
	}
	if err := errors.Join(json.NewDecoder(response.Body).Decode(&answer), response.Body.Close()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all have arrived", func() bool { return len(s.taken()) == 3 })
	events := s.taken()
	fingerprint := h.engine.InForce().Snapshot().Fingerprint()
	for n, want := range []struct{ id, path, result, input, modules string }{
		{decision.ID, "k/deny", "[no]", "map[object:map[kind:Secret] x:2]", "[opa/m0/main]"},
		{undefined.ID, "k/nothing", "<nil>", "<nil>", "<nil>"},
		{answer.DecisionID, "k/deny", "[no]", "map[x:3]", ""},
	} {
		e := events[n]
		custom, _ := e["custom"].(map[string]any)
		if e["decision_id"] != want.id || want.id == "" || e["path"] != want.path || fmt.Sprint(e["result"]) != want.result || fmt.Sprint(e["input"]) != want.input {
			t.Errorf("event %d is %v", n, e)
		}
		if custom["fingerprint"] != fingerprint || want.modules != "" && fmt.Sprint(custom["modules"]) != want.modules {
			t.Errorf("event %d has custom %v", n, custom)
		}
	}
	if events[0]["erased"] == nil || events[1]["error"] == nil || events[0]["requested_by"] != nil || events[2]["requested_by"] == nil {
		t.Errorf("the events are %v", events)
	}
	if object := secret["object"].(map[string]any); object["data"] == nil {
		t.Error("the input of the decision itself was masked")
	}
}

// Logs never keep a decision waiting: what cannot be logged is counted.
func TestACollectorThatHangsHoldsUpNothing(t *testing.T) {
	s := serveBundles(t)
	s.hang = make(chan struct{})
	h := run(t, fmt.Sprintf("services: {s: {url: %q}}\ndecision_logs: {service: s, reporting: {buffer_size_limit_bytes: 2000, upload_size_limit_bytes: 200, min_delay_seconds: 1, max_delay_seconds: 1}}", s.URL),
		"package k\nx := 1")
	defer close(s.hang)
	for range 8 { // never more than the queue holds: what is dropped is dropped by OPA's plugin
		for range 200 {
			if _, err := h.engine.Decide(t.Context(), "k/x", nil); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "the queue is empty", func() bool { return len(h.logs.queue) == 0 })
	}
	eventually(t, "drops are counted", func() bool { return h.dropped.Load() > 0 })
}

// A decision that takes for ever is not made again for the log, nor a mask waited for.
func TestASlowPolicyDoesNotStopTheLog(t *testing.T) {
	const slow = "count([1 | some i in numbers.range(1, 3000); some j in numbers.range(1, 3000); some k in numbers.range(1, 3000); i * j * k == -1])"
	s := serveBundles(t)
	h := run(t, fmt.Sprintf("services: {s: {url: %q}}\ndecision_logs: {service: s, reporting: {min_delay_seconds: 1, max_delay_seconds: 1}}", s.URL),
		"package k\nn := "+slow+"\nx := 1", "package system.log\nmask contains \"/input\" if {\n\tinput.input == \"slow\"\n\t"+slow+" == 0\n}")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := h.engine.Decide(ctx, "k/n", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	for _, input := range []any{"slow", "quick"} {
		if _, err := h.engine.Decide(t.Context(), "k/x", input); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "what could be masked arrived", func() bool { return len(s.taken()) == 2 })
	if events := s.taken(); events[0]["path"] != "k/n" || events[1]["input"] != "quick" {
		t.Errorf("the events are %v", events)
	}
}

// What OPA's masks and errors do not cover is covered.
func TestNoSecretGetsIntoTheLog(t *testing.T) {
	s := serveBundles(t)
	h := run(t, fmt.Sprintf("services: {s: {url: %q}}\nnd_builtin_cache: true\ndecision_logs: {service: s, reporting: {min_delay_seconds: 1, max_delay_seconds: 1}}", s.URL),
		"package k\nr := x if some x in input.data\nn := rand.intn(json.marshal(input), 5)")
	secret := map[string]any{"kind": "Secret", "data": map[string]any{"a": "SEKRIT1", "b": "SEKRIT2"}}
	if _, err := h.engine.Decide(t.Context(), "k/r", secret); err == nil || strings.Contains(err.Error(), "SEKRIT") {
		t.Errorf("the conflict is told as %v", err)
	}
	if _, err := h.engine.Decide(t.Context(), "k/n", secret); err != nil {
		t.Error(err)
	}
	body := `{"query":"x = input", "input": {"kind": "Secret", "data": {"a": "SEKRIT1"}}}`
	for path, body := range map[string]string{"/v1/query": body, "/v1/data/k/r": `{"input": {"kind": "Secret", "data": {"a": "SEKRIT1", "b": "SEKRIT2"}}}`} {
		h.API().ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), "POST", path, strings.NewReader(body)))
	}
	eventually(t, "all have arrived", func() bool { return len(s.taken()) == 4 })
	for _, e := range s.taken() {
		text, err := json.Marshal(e)
		if err != nil || strings.Contains(string(text), "SEKRIT") {
			t.Errorf("an event is %s, %v", text, err)
		}
	}
}

func TestWhatDoesNotFitIsCounted(t *testing.T) {
	var dropped int
	l := newDecisionLogs(&Host{config: Config{Dropped: func() { dropped++ }}})
	for range maxQueued + 5 {
		l.add(event{})
	}
	if dropped != 5 {
		t.Errorf("%d are counted, want 5", dropped)
	}
}

func TestTheBudgetIsATenth(t *testing.T) {
	var b budget
	start := time.Unix(100, 0)
	if !b.open(start) {
		t.Error("nothing was spent yet")
	}
	b.spend(start, time.Second)
	for after, want := range map[time.Duration]bool{0: false, 9 * time.Second: false, 10 * time.Second: true} {
		if got := b.open(start.Add(after)); got != want {
			t.Errorf("after %s: got %v", after, got)
		}
	}
}

func TestWhatTheAPIServes(t *testing.T) {
	h := run(t, "{}", "package k\nx := 1")
	const read, refused, nothing = "read", "refused", "nothing"
	served := map[string]map[string]bool{
		"/": {"POST": true}, "/v0/data": {"POST": true}, "/v0/data/k/x": {"POST": true}, "/v1/data": {"GET": true, "POST": true}, "/v1/data/k": {"GET": true, "POST": true},
		"/v1/query": {"GET": true, "POST": true}, "/v1/compile": {"POST": true}, "/v1/compile/k/x": {"GET": true, "POST": true}, "/v1/policies": {"GET": true}, "/v1/policies/opa/m0/main": {"GET": true},
		"/v1/config": {"GET": true}, "/v1/status": {"GET": true}, "/health": {"GET": true}, "/health/live": {"GET": true},
		"/metrics": {}, "/debug/pprof/heap": {}, "/v1": {}, "/v2/data": {}, "/v1/datax": {}, "/v1/config/x": {}, "/v0/policies": {}, "/healthz": {}, "/v1/query/x": {},
	}
	for path, methods := range served {
		for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "WRITE"} {
			if method == "CONNECT" {
				continue // net/http's mux redirects nothing there, and no client sends it
			}
			want := nothing
			switch {
			case methods[method]:
				want = read
			case len(methods) > 0:
				want = refused
			}
			recorder := httptest.NewRecorder()
			h.API().ServeHTTP(recorder, httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader("{}")))
			body, err := io.ReadAll(recorder.Body)
			if err != nil {
				t.Fatal(err)
			}
			got := read
			switch {
			case recorder.Code == http.StatusMethodNotAllowed && strings.Contains(string(body), "policies and data are ConfigMaps here"):
				got = refused
			case recorder.Code == http.StatusNotFound && strings.Contains(string(body), "nothing is served at "+path):
				got = nothing
			}
			if got != want {
				t.Errorf("%s %s: it is %s (%d %s), want %s", method, path, got, recorder.Code, body, want)
			}
		}
	}
}

// An answer is made with one set, whatever goes into force meanwhile.
func TestAnAnswerIsOfOneSet(t *testing.T) {
	version := func(n int) []string {
		return []string{fmt.Sprintf("package k\nx := [%d, data.l.y]", n), fmt.Sprintf("package l\ny := %d", n)}
	}
	h := run(t, "{}", version(0)...)
	api := httptest.NewServer(h.API())
	defer api.Close()
	done := make(chan struct{})
	var editing sync.WaitGroup
	editing.Go(func() {
		for n := 1; ; n++ {
			select {
			case <-done:
				return
			default:
				h.enforce(t, version(n)...)
			}
		}
	})
	for range 300 {
		response, err := http.Get(api.URL + "/v1/data/k/x")
		if err != nil {
			t.Fatal(err)
		}
		var answer struct{ Result [2]int }
		if err := errors.Join(json.NewDecoder(response.Body).Decode(&answer), response.Body.Close()); err != nil {
			t.Fatal(err)
		}
		if answer.Result[0] != answer.Result[1] {
			t.Fatalf("an answer is of two sets: %v", answer.Result)
		}
	}
	close(done)
	editing.Wait()
	h.enforce(t, version(-1)...)
	recorder := httptest.NewRecorder()
	h.API().ServeHTTP(recorder, httptest.NewRequestWithContext(t.Context(), "GET", "/v1/data/k/x", nil))
	if got := recorder.Body.String(); got != "{\"result\":[-1,-1]}\n" {
		t.Errorf("the last set answers %s", got)
	}
}

// Who may ask is decided by system.authz where there is one.
func TestPoliciesDecideWhoMayAsk(t *testing.T) {
	const rules = "package system.authz\ndefault allow := false\nallow if input.identity == \"alice\"\nallow if input.path == [\"health\"]"
	for _, test := range []struct {
		name, token, path string
		modules           []string
		always            bool
		want              int
	}{
		{name: "nobody decides", path: "/v1/data", want: 200},
		{name: "nobody decides, and somebody must", path: "/v1/data", always: true, want: 500},
		{name: "it may", path: "/v1/data", token: "alice", modules: []string{rules}, want: 200},
		{name: "it may not", path: "/v1/data", token: "bob", modules: []string{rules}, want: 401},
		{name: "it does not say who it is", path: "/v1/policies", modules: []string{rules}, want: 401},
		{name: "it asks for what all may have", path: "/health", modules: []string{rules}, want: 200},
		{name: "the rules were never good", path: "/v1/data", modules: []string{"package system.authz\nallow if x y"}, want: 500},
		{name: "the rules were never good, in another spelling", path: "/v1/data", modules: []string{"package system[\"authz\"]\nallow if x y"}, want: 500},
		{name: "the rules call what there is not", path: "/v1/data", modules: []string{"package system\nauthz.allow := data.nowhere.f(1) # x y"}, want: 500},
		{name: "it asks for nothing that is served", path: "/metrics", modules: []string{rules}, want: 401},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := run(t, "{}", test.modules...)
			h.config.API.Authorize = test.always
			request := httptest.NewRequestWithContext(t.Context(), "GET", test.path, nil)
			if test.token != "" {
				request.Header.Set("Authorization", "Bearer "+test.token)
			}
			recorder := httptest.NewRecorder()
			h.API().ServeHTTP(recorder, request)
			if recorder.Code != test.want {
				t.Errorf("got %d %s, want %d", recorder.Code, recorder.Body, test.want)
			}
		})
	}
}

func TestABodyThatOnlySaysItIsCompressed(t *testing.T) {
	h := run(t, "{}", "package k\nx := input")
	for name, body := range map[string]string{"nothing": "", "text": `{"input":1}`, "the beginning of a header": "\x1f\x8b"} {
		request := httptest.NewRequestWithContext(t.Context(), "POST", "/v1/data/k/x", strings.NewReader(body))
		request.Header.Set("Content-Encoding", "gzip")
		recorder := httptest.NewRecorder()
		h.API().ServeHTTP(recorder, request)
		if recorder.Code != http.StatusBadRequest || !strings.Contains(recorder.Body.String(), "could not decompress the body") {
			t.Errorf("%s: got %d %s", name, recorder.Code, recorder.Body)
		}
	}
}

// To find out who had a say asks nobody anything again.
func TestTheLogDoesNotAskTheNetwork(t *testing.T) {
	var asked atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer other.Close()
	s := serveBundles(t)
	h := run(t, fmt.Sprintf("services: {s: {url: %q}}\ndecision_logs: {service: s, reporting: {min_delay_seconds: 1, max_delay_seconds: 1}}", s.URL))
	c, err := engine.NewCompiler(engine.Config{RegoVersion: policy.RegoV1, Builtins: []string{"http.send"}})
	if err != nil {
		t.Fatal(err)
	}
	id := policy.ID{Namespace: "opa", Name: "a", Key: "main"}
	source := fmt.Sprintf("package k\nx := http.send({\"method\": \"get\", \"url\": %q}).status_code", other.URL)
	snapshot, _ := c.Compile(c.Empty(), policy.NewSet(policy.Module{ID: id, Source: source}))
	h.engine.Activate(snapshot)
	if _, err := h.engine.Decide(t.Context(), "k/x", nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the webhook's decision arrived", func() bool { return len(s.taken()) == 1 })
	h.API().ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), "GET", "/v1/data/k/x", nil))
	eventually(t, "the API's decision arrived", func() bool { return len(s.taken()) == 2 })
	if n := asked.Load(); n != 2 {
		t.Errorf("two decisions asked %d times", n)
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
			c, err := engine.NewCompiler(engine.Config{RegoVersion: policy.RegoV1, Builtins: []string{"http.send"}})
			if err != nil {
				t.Fatal(err)
			}
			id := policy.ID{Namespace: "opa", Name: "a", Key: "main"}
			source := fmt.Sprintf("package k\nx := http.send({\"method\": \"get\", \"url\": %q, \"force_cache\": true, \"force_cache_duration_seconds\": 100}).body.x", other.URL)
			snapshot, report := c.Compile(c.Empty(), policy.NewSet(policy.Module{ID: id, Source: source}))
			if len(report.Held()) > 0 {
				t.Fatalf("held: %v", report.Held())
			}
			h.engine.Activate(snapshot)
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
