package daemon_test

import (
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
