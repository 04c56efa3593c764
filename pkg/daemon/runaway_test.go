package daemon_test

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

// A policy that takes all the time of a review is cancelled, and named where who runs
// kube-rego looks.
func TestARunawayPolicyIsNamed(t *testing.T) {
	d := start(t, map[string]string{
		"main": `package system
main := {"response": {"allowed": count(data.kubernetes.admission.deny) == 0}}`,
		"quick": `package kubernetes.admission
deny contains "no image" if input.request.object.image == ""`,
		"endless": `package kubernetes.admission
deny contains "found" if { some x in numbers.range(1, 30000); some y in numbers.range(1, 30000); x == y + 40000 }`,
	})
	d.awaitReady()
	body := `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u1","operation":"CREATE","object":{"image":"a"}}}`
	status, answer := d.do(http.MethodPost, d.webhook+"?timeout=300ms", strings.NewReader(body))
	if want := "the policies did not come to a decision in the time that there was"; status != http.StatusGatewayTimeout || !strings.Contains(string(answer), want) {
		t.Errorf("got %d %s, want 504 %s", status, answer, want)
	}
	deadline := time.Now().Add(time.Minute)
	for {
		_, metrics := d.get("/metrics")
		inLog := strings.Contains(d.log.String(), `msg="policy ran out of time"`) && strings.Contains(d.log.String(), `module=opa/endless/main calledBy=[opa/main/main]`)
		inMetrics := strings.Contains(string(metrics), `kube_rego_policy_timeouts_total{module="opa/endless/main"} 1`)
		if inLog && inMetrics {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("named in the log: %v, in the metrics: %v\n%s", inLog, inMetrics, d.log)
		}
		time.Sleep(10 * time.Millisecond) // between two looks
	}
}
