package daemon_test

import (
	"strings"
	"testing"
)

func TestWhatTheListenersServe(t *testing.T) {
	d := start(t, map[string]string{
		"app": "package app\nallow if input.user == \"alice\"\nlist := data.opa",
		"main": `package system
main := {"apiVersion": input.apiVersion, "kind": input.kind, "status": {"allowed": input.spec.user == "alice"}}`,
	})
	d.awaitReady()
	const review = `{"apiVersion":"authorization.k8s.io/v1","kind":"SubjectAccessReview","spec":{"user":"alice"}}`
	for _, test := range []struct {
		name, method, url, body string
		status                  int
		want                    string // in the body
	}{
		{"a decision of the API", "POST", d.api + "/v1/data/app/allow", `{"input":{"user":"alice"}}`, 200, `{"result":true}`},
		{"one without a value", "POST", d.api + "/v1/data/app/allow", `{"input":{}}`, 200, `{}`},
		{"one without a value in the old form", "POST", d.api + "/v0/data/app/allow", `{}`, 404, "undefined_document"},
		{"the default decision", "POST", d.api + "/", review, 200, `"allowed":true`},
		{"a query", "GET", d.api + "/v1/query?q=x=1", "", 200, `{"result":[{"x":1}]}`},
		{"all data", "GET", d.api + "/v1/data", "", 200, `"app":{`},
		{"policies", "GET", d.api + "/v1/policies/opa/app/main", "", 200, `"id":"opa/app/main"`},
		{"its health", "GET", d.api + "/health?plugins&bundles", "", 200, `{}`},
		{"a write", "PUT", d.api + "/v1/policies/x", "package x", 405, "policies and data are ConfigMaps here"},
		{"what OPA does not serve", "GET", d.api + "/debug/pprof/", "", 404, "nothing is served at /debug/pprof/"},
		{"a review of access to the webhook", "POST", d.webhook, review, 200, `"allowed":true`},
		{"a decision of the webhook's port", "POST", d.webhook + "v0/data/app/allow", `{"user":"alice"}`, 200, "true"},
		{"data at the webhook's port", "GET", d.webhook + "v1/data/system/version", "", 404, "resource_not_found"},
		{"policies at the webhook's port", "GET", d.webhook + "v1/policies", "", 404, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			status, body := d.with(t).do(test.method, test.url, strings.NewReader(test.body))
			if status != test.status || !strings.Contains(string(body), test.want) {
				t.Errorf("got %d %s\nwant %d …%s…", status, body, test.status, test.want)
			}
		})
	}
}
