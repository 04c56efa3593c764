package opa

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kube-rego/kube-rego/pkg/compile"
	"github.com/kube-rego/kube-rego/pkg/engine"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// A policy that waits for a service which does not answer is found, and that service is
// not asked again for it.
func TestWhoWaitsForTheNetworkIsFound(t *testing.T) {
	var asked atomic.Int64
	ended := make(chan struct{})
	service := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		select {
		case <-r.Context().Done():
		case <-ended:
		}
	}))
	defer service.Close()
	defer close(ended)
	compiler, err := compile.New(compile.Config{Builtins: []string{"http.send"}, SystemNamespaces: []string{"opa"}})
	if err != nil {
		t.Fatal(err)
	}
	id := policy.ID{Namespace: "opa", Name: "waits", Key: "main"}
	snapshot := compiler.Compile(compiler.Empty(), policy.NewSet(policy.Module{ID: id, Source: `package k
p := http.send({"method": "GET", "url": "` + service.URL + `", "timeout": "1m"}).status_code`}), nil)
	if held := snapshot.Report().Held(); len(held) > 0 {
		t.Fatal(held)
	}
	e := engine.New()
	e.SetEnvironment(engine.Environment{Offline: offline, Silent: silent})
	e.Activate(snapshot, snapshot.Report())
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	decision, err := e.Decide(ctx, "k/p", map[string]any{})
	if err == nil || asked.Load() != 1 {
		t.Fatalf("got %v, %v, and the service was asked %d times", decision, err, asked.Load())
	}
	again, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := decision.Witness.Speakers(t.Context()); asked.Load() != 1 {
		t.Errorf("who had a say asks the service: %v", err)
	}
	if got := strings.Join(decision.Witness.Suspects(again), " "); got != "opa/waits/main" || asked.Load() != 1 {
		t.Errorf("suspected is %q, and the service was asked %d times", got, asked.Load())
	}
}
