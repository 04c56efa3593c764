package opa

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kube-rego/kube-rego/pkg/compile"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

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

// To find out who had a say asks nobody anything again.
func TestTheLogDoesNotAskTheNetwork(t *testing.T) {
	var asked atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer other.Close()
	s := serveBundles(t)
	h := run(t, fmt.Sprintf("services: {s: {url: %q}}\ndecision_logs: {service: s, reporting: {min_delay_seconds: 1, max_delay_seconds: 1}}", s.URL))
	c, err := compile.New(compile.Config{RegoVersion: policy.RegoV1, Builtins: []string{"http.send"}})
	if err != nil {
		t.Fatal(err)
	}
	id := policy.ID{Namespace: "opa", Name: "a", Key: "main"}
	source := fmt.Sprintf("package k\nx := http.send({\"method\": \"get\", \"url\": %q}).status_code", other.URL)
	snapshot := c.Compile(c.Empty(), policy.NewSet(policy.Module{ID: id, Source: source}), nil)
	h.engine.Activate(snapshot, snapshot.Report())
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
