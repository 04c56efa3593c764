package admission_test

import (
	"strings"
	"testing"

	"github.com/kube-rego/kube-rego/pkg/admission"
)

// strictly asks an entrypoint whose answers are passed on as they are or not at all.
func strictly(t *testing.T, rego string) (admission.Answer, error) {
	t.Helper()
	reviewer := admission.NewReviewer(newEngine(t, rego), admission.Config{Entrypoint: "system/main", Strict: true})
	return reviewer.Review(t.Context(), []byte(asked("v1", `"uid":"u1","object":{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"}}`)))
}

func TestStrictReviewPassesOnWhatIsRight(t *testing.T) {
	for _, test := range []struct{ name, response, want string }{
		{"yes", `{"uid": "u1", "allowed": true}`, `{"allowed":true,"uid":"u1"}`},
		{"no, with a message", `{"uid": "u1", "allowed": false, "status": {"message": "no"}}`, `{"allowed":false,"status":{"code":403,"message":"no","reason":"Forbidden"},"uid":"u1"}`},
		{
			"warnings and annotations", `{"uid": "u1", "allowed": true, "warnings": ["old"], "auditAnnotations": {"policy": "images"}}`,
			`{"allowed":true,"auditAnnotations":{"policy":"images"},"uid":"u1","warnings":["old"]}`,
		},
		{
			"a patch", `{"uid": "u1", "allowed": true, "patchType": "JSONPatch", "patch": base64.encode("[{\"op\":\"add\",\"path\":\"/metadata/labels\",\"value\":{}}]")}`,
			`{"allowed":true,"patch":"W3sib3AiOiJhZGQiLCJwYXRoIjoiL21ldGFkYXRhL2xhYmVscyIsInZhbHVlIjp7fX1d","patchType":"JSONPatch","uid":"u1"}`,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			answer, err := strictly(t, allowedTo(test.response))
			if err != nil {
				t.Fatal(err)
			}
			if got, want := withoutOurs(t, answer), `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":`+test.want+`}`; got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

func TestStrictReviewNamesWhatIsNotRight(t *testing.T) {
	for _, test := range []struct{ name, rego, want string }{
		{"an old version", `package system
			main := {"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview", "response": {"uid": "u1", "allowed": true}}`, `apiVersion is "admission.k8s.io/v1beta1", want "admission.k8s.io/v1"`},
		{"no kind", `package system
			main := {"apiVersion": "admission.k8s.io/v1", "response": {"uid": "u1", "allowed": true}}`, `kind is missing, want "AdmissionReview"`},
		{"a misspelt kind", `package system
			main := {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReveiw", "response": {"uid": "u1", "allowed": true}}`, `kind is "AdmissionReveiw", want "AdmissionReview"`},
		{"no uid", allowedTo(`{"allowed": true}`), `response.uid is missing, want that of the request`},
		{"another uid", allowedTo(`{"uid": "u2", "allowed": true}`), `response.uid is "u2", want that of the request`},
		{"a reason only", allowedTo(`{"uid": "u1", "allowed": false, "status": {"reason": "no"}}`), `response.status.message is missing: a denial must say why`},
		{"no word at all", allowedTo(`{"uid": "u1", "allowed": false}`), `response.status.message is missing: a denial must say why`},
		{"a code in a text", allowedTo(`{"uid": "u1", "allowed": false, "status": {"message": "no", "code": "403"}}`), `response.status.code is not the number of an HTTP error`},
		{"a code of success", allowedTo(`{"uid": "u1", "allowed": false, "status": {"message": "no", "code": 200}}`), `response.status.code is not the number of an HTTP error`},
		{"a patch without its type", allowedTo(`{"uid": "u1", "allowed": true, "patch": "W10="}`), `response.patchType is missing, want "JSONPatch"`},
		{"a patch as an array", allowedTo(`{"uid": "u1", "allowed": true, "patch": [], "patchType": "JSONPatch"}`), `response.patch is an array, want base64`},
		{"a type without a patch", allowedTo(`{"uid": "u1", "allowed": true, "patchType": "JSONPatch"}`), `response.patch is missing, want base64`},
		{"a patch in JSON", allowedTo(`{"uid": "u1", "allowed": true, "patch": "[]", "patchType": "JSONPatch"}`), `response.patch is not the base64 of a JSON patch`},
		{"a patch in URL-safe base64", allowedTo(`{"uid": "u1", "allowed": true, "patch": "W3siYSI6Ij8_Pz4-PiJ9XQ==", "patchType": "JSONPatch"}`), `response.patch is not the base64 of a JSON patch`},
		{"a patch beside a denial", allowedTo(`{"uid": "u1", "allowed": false, "status": {"message": "no"}, "patch": "W10=", "patchType": "JSONPatch"}`), `response.patch stands beside a denial`},
		{
			"a patch that does not apply", allowedTo(`{"uid": "u1", "allowed": true, "patchType": "JSONPatch", "patch": base64.encode("[{\"op\":\"replace\",\"path\":\"/metadata/labels/a\",\"value\":\"b\"}]")}`),
			`response.patch: operation 1 (replace /metadata/labels/a)`,
		},
		{"one warning that is no list", allowedTo(`{"uid": "u1", "allowed": true, "warnings": "old"}`), `response.warnings is a string, want an array`},
		{"a warning that is dropped", allowedTo(`{"uid": "u1", "allowed": true, "warnings": ["a", "b\nc"]}`), `response.warnings[1] is no text that the API server shows`},
		{"an annotation that is no text", allowedTo(`{"uid": "u1", "allowed": true, "auditAnnotations": {"a": 1}}`), `response.auditAnnotations["a"] is a number, want a string`},
		{"an annotation that is dropped", allowedTo(`{"uid": "u1", "allowed": true, "auditAnnotations": {"a/b": "x"}}`), `response.auditAnnotations["a/b"]: the API server takes no such key`},
		{"allowed in words", allowedTo(`{"uid": "u1", "allowed": "true"}`), `response.allowed is a string, want true or false`},
	} {
		t.Run(test.name, func(t *testing.T) {
			answer, err := strictly(t, test.rego)
			if err == nil {
				t.Fatalf("it is passed on: %s", answer.Body)
			}
			if want := "decision system/main: " + test.want; !strings.HasPrefix(err.Error(), want) || !strings.Contains(err.Error(), "(said by opa/main/main)") {
				t.Errorf("got  %v\nwant %s, said by opa/main/main", err, want)
			}
			if answer.Allowed || answer.Body != nil {
				t.Errorf("there is an answer beside the error: %+v", answer)
			}
		})
	}
}
