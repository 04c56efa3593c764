package daemon_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
)

// Objects hold secrets, and logs are kept by others. The policy of the test makes of an
// object all that a policy could.
func TestTheLogNeverShowsAnObject(t *testing.T) {
	const marker = "hunter2"
	d := start(t, map[string]string{"opa-main": `package system

secret := input.request.object.data.password

main := {"response": {"allowed": true, "warnings": [secret]}} if input.request.name == "allowed"
main := {"response": {"allowed": false, "status": {"message": secret}}} if input.request.name == "denied"
main := {"response": {"allowed": false, "status": {"reason": secret}}} if input.request.name == "denied-in-the-old-way"
main := {"response": {"allowed": true}} if input.request.name == "conflict"
main := {"response": {"allowed": false, "status": {"message": secret}}} if input.request.name == "conflict"
main := secret if input.request.name == "no-object"
main := {"response": {"allowed": secret}} if input.request.name == "no-boolean"
main := {"response": {"allowed": false, "status": secret}} if input.request.name == "no-status"
main := {"response": {"allowed": false, "status": {"code": secret}}} if input.request.name == "no-code"
main := {"response": {"allowed": true, "warnings": secret}} if input.request.name == "no-warnings"
main := {"response": {"allowed": true, "auditAnnotations": secret}} if input.request.name == "no-annotations"
main := {"response": {"allowed": true, "patch": secret}} if input.request.name == "no-patch"
main := {"response": {"allowed": true, "patch": [{"op": "test", "path": "/data/password", "value": concat("", ["not ", secret])}]}} if input.request.name == "patch-that-does-not-apply"
main := {"response": {"allowed": true, "patch": [{"op": secret, "path": "/data/password"}]}} if input.request.name == "patch-of-no-operation"
main := {"response": {"allowed": true, "patch": [secret]}} if input.request.name == "patch-of-texts"
main := {"response": {"allowed": true, "patchType": secret, "patch": []}} if input.request.name == "patch-of-no-type"
main := {"response": {"allowed": object.get({}, to_number(secret), true)}} if input.request.name == "built-in-that-fails"
`, "app": "package app\nx := input.password"})
	d.awaitReady()
	ask := func(body string) int {
		status, _ := d.do("POST", d.webhook, strings.NewReader(body))
		return status
	}
	const object = `{"apiVersion":"v1","kind":"Secret","data":{"password":"` + marker + `"}}`
	const review = `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u1","operation":"UPDATE","name":%q,` +
		`"object":` + object + `,"oldObject":` + object + `,"options":` + object + `}}`
	names := []string{
		"allowed", "denied", "denied-in-the-old-way", "conflict", "undefined", "no-object", "no-boolean", "no-status", "no-code", "no-warnings", "no-annotations",
		"no-patch", "patch-that-does-not-apply", "patch-of-no-operation", "patch-of-texts", "patch-of-no-type", "built-in-that-fails",
	}
	for _, name := range names {
		ask(fmt.Sprintf(review, name))
	}
	broken := map[string]string{
		"cut off":             strings.TrimSuffix(fmt.Sprintf(review, "cut-off"), "}}"),
		"no JSON":             fmt.Sprintf(review, "no-json") + marker,
		"no review":           object,
		"a text":              `"` + marker + `"`,
		"a request of a text": `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":"` + marker + `"}`,
	}
	for what, body := range broken {
		if status := ask(body); status == 200 {
			t.Errorf("%s: it was answered", what)
		}
	}
	for _, url := range []string{d.webhook + "v0/data/app/x", d.api + "/v0/data/app/x"} {
		if status, _ := d.do("POST", url, strings.NewReader(`{"password":"`+marker+`"}`)); status != 200 {
			t.Errorf("%s is %d", url, status)
		}
	}

	if err := d.stop(); err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(d.log.String()) {
		if strings.Contains(line, marker) {
			t.Errorf("the log shows the object: %s", line)
		}
	}
	for _, name := range names {
		about := regexp.MustCompile(` decisionID=[A-Z2-7]+ .* name=` + name + " ")
		if !about.MatchString(d.log.String()) {
			t.Errorf("the log does not tell of %s with the id of the decision", name)
		}
	}
}
