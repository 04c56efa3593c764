package daemon_test

import (
	"net/http"
	"strings"
	"testing"
)

// The policies of those who write no entrypoint are asked; who writes one replaces what asks
// them, with the same set.
func TestTheBuiltInEntrypoint(t *testing.T) {
	d := start(t, map[string]string{"images": noCurl})
	d.awaitReady()
	d.wants("curl", "no curl")
	d.wants("nginx", "yes")
	if status, body := d.do(http.MethodPost, d.api+"/v1/data/system/main", strings.NewReader(`{"input": {"apiVersion": "a", "kind": "b", "request": {"uid": "u"}}}`)); status != http.StatusOK ||
		!strings.Contains(string(body), `"response":{"allowed":true,"uid":"u"}`) {
		t.Errorf("the API answers %d: %s", status, body)
	}
	if status, body := d.do(http.MethodGet, d.api+"/v1/policies", nil); status != http.StatusOK || strings.Contains(string(body), "entrypoint.rego") {
		t.Errorf("the policies are %d: %s", status, body)
	}

	d.edit("opa-main", "package system\nmain := {\"response\": {\"allowed\": false, \"status\": {\"message\": \"mine\"}}}")
	d.awaitState("opa/opa-main/main", "in_force current")
	d.wants("nginx", "mine")
	d.wants("curl", "mine")

	d.remove("opa-main.json")
	page := d.await("the module to be gone", func(p statusPage) bool { return len(p.Modules) == 1 })
	if page.state("opa/images/main") != "in_force current" {
		t.Errorf("of the policy /status says %q", page.state("opa/images/main"))
	}
	d.wants("curl", "no curl")
	d.wants("nginx", "yes")
}

// The one that is held replaces nothing, and the log says who answers.
func TestTheBuiltInEntrypointInsteadOfOneThatIsHeld(t *testing.T) {
	d := start(t, map[string]string{"images": noCurl, "opa-main": "package system\nmain := {"})
	d.awaitReady()
	d.wants("curl", "no curl")
	d.await("the log says who answers", func(statusPage) bool {
		return strings.Contains(d.log.String(), "the built-in entrypoint answers instead")
	})
}
