package daemon

import (
	"os"
	"path/filepath"
	"testing"

	"k8s.io/client-go/rest"
)

const kubeconfig = `
apiVersion: v1
kind: Config
current-context: test
contexts:
- name: test
  context: {cluster: test, namespace: opa}
clusters:
- name: test
  cluster: {server: "http://127.0.0.1:1"}
`

// The writers share one rate limit, whatever they write. Events have another one, so
// that statuses never wait for them.
func TestWritersShareOneRateLimit(t *testing.T) {
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(file, []byte(kubeconfig), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := connect(file)
	if err != nil {
		t.Fatal(err)
	}
	limiter := c.core.RESTClient().GetRateLimiter()
	if limiter.QPS() != clientQPS {
		t.Errorf("the limit is %g requests in a second, want %d", limiter.QPS(), clientQPS)
	}
	for name, client := range map[string]rest.Interface{
		"apps": c.apps.RESTClient(), "coordination": c.coordination.RESTClient(), "admissionregistration": c.admission.RESTClient(),
	} {
		if client.GetRateLimiter() != limiter {
			t.Errorf("the client of %s has a rate limit of its own", name)
		}
	}
	events := c.events.RESTClient().GetRateLimiter()
	if events == limiter || events.QPS() != eventQPS {
		t.Errorf("events have the limit of the writers, or %g requests in a second instead of %d", events.QPS(), eventQPS)
	}
	if c.namespace != "opa" {
		t.Errorf("the namespace is %q", c.namespace)
	}
}
