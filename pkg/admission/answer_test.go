package admission_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/kube-rego/kube-rego/pkg/admission"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// allowedTo is the policy that answers with this response.
func allowedTo(response string) string {
	return `package system
main := {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": ` + response + `}`
}

// withoutOurs is the body of an answer without the annotations that lead to the decision,
// and fails the test if it has none that name it and the set.
func withoutOurs(t *testing.T, answer admission.Answer) string {
	t.Helper()
	decoder := json.NewDecoder(bytes.NewReader(answer.Body))
	decoder.UseNumber()
	var body map[string]any
	if err := decoder.Decode(&body); err != nil {
		t.Fatal(err)
	}
	response := body["response"].(map[string]any)
	annotations, _ := response["auditAnnotations"].(map[string]any)
	ours := map[string]string{"decision-id": answer.DecisionID, "fingerprint": answer.Fingerprint}
	if len(answer.Modules) > 0 {
		ours["modules"] = strings.Join(answer.Modules, ",")
	}
	for key, want := range ours {
		if want == "" || annotations[key] != want {
			t.Errorf("the annotation %s is %v, want %q", key, annotations[key], want)
		}
		delete(annotations, key)
	}
	if len(annotations) == 0 {
		delete(response, "auditAnnotations")
	}
	encoded, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	return string(encoded)
}

func TestAnswersOfPolicies(t *testing.T) {
	for _, test := range []struct {
		name, rego string
		want       string // the response that is sent
	}{
		{
			name: "an answer in v1 is sent as it is",
			rego: `package system
				main := {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": {"uid": input.request.uid, "allowed": true}}`,
			want: `{"allowed":true,"uid":"u1"}`,
		},
		{
			name: "an answer in v1beta1 gets the version of the request",
			rego: `package system
				main = {"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview", "response": {"uid": input.request.uid, "allowed": true}} { true }`,
			want: `{"allowed":true,"uid":"u1"}`,
		},
		{
			name: "an answer needs neither version nor kind",
			rego: `package system
				main := {"response": {"allowed": true}}`,
			want: `{"allowed":true,"uid":"u1"}`,
		},
		{name: "a missing uid is filled in", rego: allowedTo(`{"allowed": true}`), want: `{"allowed":true,"uid":"u1"}`},
		{name: "a wrong uid is put right", rego: allowedTo(`{"allowed": true, "uid": "u2"}`), want: `{"allowed":true,"uid":"u1"}`},
		{name: "a uid that is no text is put right", rego: allowedTo(`{"allowed": true, "uid": 7}`), want: `{"allowed":true,"uid":"u1"}`},
		{
			name: "a uid on the allowing branch only is filled in on the other",
			rego: `package system
				main = {"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview", "response": response}
				default response = {"allowed": false, "status": {"reason": "no"}}
				response = {"allowed": true, "uid": input.request.uid} { input.request.operation == "UPDATE" }`,
			want: `{"allowed":false,"status":{"code":403,"message":"no","reason":"Forbidden"},"uid":"u1"}`,
		},
		{
			name: "a text in reason goes where a person reads it",
			rego: allowedTo(`{"allowed": false, "status": {"reason": "no <b> & c"}}`),
			want: `{"allowed":false,"status":{"code":403,"message":"no \u003cb\u003e \u0026 c","reason":"Forbidden"},"uid":"u1"}`,
		},
		{
			name: "so it does beside an empty message",
			rego: allowedTo(`{"allowed": false, "status": {"reason": "no", "message": ""}}`),
			want: `{"allowed":false,"status":{"code":403,"message":"no","reason":"Forbidden"},"uid":"u1"}`,
		},
		{
			name: "a message is kept, and gets the code and the reason that are missing",
			rego: allowedTo(`{"allowed": false, "status": {"message": "no"}}`),
			want: `{"allowed":false,"status":{"code":403,"message":"no","reason":"Forbidden"},"uid":"u1"}`,
		},
		{
			name: "a code of 403 gets its reason",
			rego: allowedTo(`{"allowed": false, "status": {"message": "no", "code": 403}}`),
			want: `{"allowed":false,"status":{"code":403,"message":"no","reason":"Forbidden"},"uid":"u1"}`,
		},
		{
			name: "a status without a word gets a code and a reason",
			rego: allowedTo(`{"allowed": false, "status": {}}`),
			want: `{"allowed":false,"status":{"code":403,"message":"the policies gave no reason (said by opa/main/main)","reason":"Forbidden"},"uid":"u1"}`,
		},
		{
			name: "a reason beside a message is kept",
			rego: allowedTo(`{"allowed": false, "status": {"reason": "NotInTheList", "message": "no"}}`),
			want: `{"allowed":false,"status":{"code":403,"message":"no","reason":"NotInTheList"},"uid":"u1"}`,
		},
		{
			name: "another code is kept, and gets no reason that speaks of 403",
			rego: allowedTo(`{"allowed": false, "status": {"reason": "slow down", "code": 429}}`),
			want: `{"allowed":false,"status":{"code":429,"message":"slow down"},"uid":"u1"}`,
		},
		{
			name: "a denial without a word gets one", rego: allowedTo(`{"allowed": false}`),
			want: `{"allowed":false,"status":{"code":403,"message":"the policies gave no reason (said by opa/main/main)","reason":"Forbidden"},"uid":"u1"}`,
		},
		{
			name: "a denial with a status that is null does too", rego: allowedTo(`{"allowed": false, "status": null}`),
			want: `{"allowed":false,"status":{"code":403,"message":"the policies gave no reason (said by opa/main/main)","reason":"Forbidden"},"uid":"u1"}`,
		},
		{
			name: "a code that is no error, or none of HTTP, is 403", rego: allowedTo(`{"allowed": false, "status": {"message": "no", "code": 1000}}`),
			want: `{"allowed":false,"status":{"code":403,"message":"no","reason":"Forbidden"},"uid":"u1"}`,
		},
		{
			name: "so is one of success", rego: allowedTo(`{"allowed": false, "status": {"message": "no", "code": 200, "status": "Success"}}`),
			want: `{"allowed":false,"status":{"code":403,"message":"no","reason":"Forbidden"},"uid":"u1"}`,
		},
		{
			name: "a code in a text is a code", rego: allowedTo(`{"allowed": false, "status": {"message": "no", "code": "422"}}`),
			want: `{"allowed":false,"status":{"code":422,"message":"no"},"uid":"u1"}`,
		},
		{
			name: "details of a denial are sent as they are",
			rego: allowedTo(`{"allowed": false, "status": {"message": "no", "details": {"causes": [{"field": "spec.x", "message": "no x"}], "retryAfterSeconds": 3}}}`),
			want: `{"allowed":false,"status":{"code":403,"details":{"causes":[{"field":"spec.x","message":"no x"}],"retryAfterSeconds":3},"message":"no","reason":"Forbidden"},"uid":"u1"}`,
		},
		{
			name: "a single warning is a list of one", rego: allowedTo(`{"allowed": true, "warnings": "old"}`), want: `{"allowed":true,"uid":"u1","warnings":["old"]}`,
		},
		{
			name: "a warning that is no text becomes one, and loses what the API server would drop it for",
			rego: allowedTo(`{"allowed": true, "warnings": [{"a": 1}, "two\nlines", "", 7]}`), want: `{"allowed":true,"uid":"u1","warnings":["{\"a\":1}","two lines","7"]}`,
		},
		{
			name: "an annotation that is no text becomes one, and a key that is no name too",
			rego: allowedTo(`{"allowed": true, "auditAnnotations": {"a": 1, "team/rule of /3": "x", "": true}}`),
			want: `{"allowed":true,"auditAnnotations":{"a":"1","annotation":"true","team-rule-of--3":"x"},"uid":"u1"}`,
		},
		{
			name: "a patch beside a denial is left out",
			rego: allowedTo(`{"allowed": false, "status": {"message": "no"}, "patch": [{"op": "add", "path": "/metadata/labels", "value": {}}], "patchType": "JSONPatch"}`),
			want: `{"allowed":false,"status":{"code":403,"message":"no","reason":"Forbidden"},"uid":"u1"}`,
		},
		{
			name: "a patch that changes nothing is left out, with its type",
			rego: allowedTo(`{"allowed": true, "patch": [], "patchType": "JSONPatch"}`), want: `{"allowed":true,"uid":"u1"}`,
		},
		{
			name: "the reason of what is allowed is left alone",
			rego: allowedTo(`{"allowed": true, "status": {"reason": "because"}}`),
			want: `{"allowed":true,"status":{"reason":"because"},"uid":"u1"}`,
		},
		{
			name: "warnings and audit annotations are sent as they are",
			rego: allowedTo(`{"allowed": true, "warnings": ["old <api>", "older"], "auditAnnotations": {"policy": "images"}}`),
			want: `{"allowed":true,"auditAnnotations":{"policy":"images"},"uid":"u1","warnings":["old \u003capi\u003e","older"]}`,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			reviewer := newReviewer(t, test.rego)
			want := `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":` + test.want + `}`
			// Twice: the first answer must not change what OPA keeps for the second.
			for range 2 {
				answer, err := reviewer.Review(t.Context(), []byte(asked("v1", `"uid":"u1"`)))
				if err != nil {
					t.Fatal(err)
				}
				if got := withoutOurs(t, answer); got != want {
					t.Errorf("got  %s\nwant %s", got, want)
				}
				if want := strings.Contains(test.want, `"allowed":true`); answer.Allowed != want {
					t.Errorf("Allowed is %v, want %v", answer.Allowed, want)
				}
				accept(t, answer.Body, "admission.k8s.io/v1", "AdmissionReview", "u1")
			}
		})
	}
}

// constant is a decider that gives away the value that it keeps.
type constant struct{ value any }

func (c constant) Decide(context.Context, string, any) (policy.Decision, error) {
	return policy.Decision{ID: "d1", Result: c.value}, nil
}

func TestTheValueOfAPolicyIsNotWrittenTo(t *testing.T) {
	value := func() any {
		return map[string]any{"response": map[string]any{
			"uid": "u0", "allowed": false, "status": map[string]any{"reason": "no"}, "auditAnnotations": map[string]any{"policy": "images"},
		}}
	}
	kept := value()
	if _, err := admission.NewReviewer(constant{kept}, admission.Config{Entrypoint: "system/main"}).Review(t.Context(), []byte(asked("v1", `"uid":"u1"`))); err != nil {
		t.Fatal(err)
	}
	if want := value(); !reflect.DeepEqual(kept, want) {
		t.Errorf("it is now %v, want %v", kept, want)
	}
}

// A line of the API server's audit log leads to the decision.
func TestTheIDOfTheDecisionIsAnAuditAnnotation(t *testing.T) {
	for _, test := range []struct{ name, response, want string }{
		{"it is the only one", `{"allowed": true}`, `{"allowed":true,"auditAnnotations":{"decision-id":"d1"},"uid":"u1"}`},
		{"it is beside those of the policy", `{"allowed": true, "auditAnnotations": {"policy": "images"}}`,
			`{"allowed":true,"auditAnnotations":{"decision-id":"d1","policy":"images"},"uid":"u1"}`},
		{"one of the policy under that name is kept", `{"allowed": true, "auditAnnotations": {"decision-id": "mine"}}`,
			`{"allowed":true,"auditAnnotations":{"decision-id":"mine"},"uid":"u1"}`},
		{"it takes the place of null", `{"allowed": true, "auditAnnotations": null}`, `{"allowed":true,"auditAnnotations":{"decision-id":"d1"},"uid":"u1"}`},
		{"a denial has it too, and its text stays", `{"allowed": false, "status": {"message": "no"}}`,
			`{"allowed":false,"auditAnnotations":{"decision-id":"d1"},"status":{"code":403,"message":"no","reason":"Forbidden"},"uid":"u1"}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			var response any
			if err := json.Unmarshal([]byte(test.response), &response); err != nil {
				t.Fatal(err)
			}
			reviewer := admission.NewReviewer(constant{map[string]any{"response": response}}, admission.Config{Entrypoint: "system/main"})
			answer, err := reviewer.Review(t.Context(), []byte(asked("v1", `"uid":"u1"`)))
			if err != nil {
				t.Fatal(err)
			}
			if want := `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":` + test.want + `}`; string(answer.Body) != want {
				t.Errorf("got  %s\nwant %s", answer.Body, want)
			}
		})
	}
}

func TestNoAnswerIsNeverYes(t *testing.T) {
	for _, test := range []struct {
		name, rego string
		want       string // part of the error
		undefined  bool
	}{
		{name: "no response", rego: `package system
			main := {"apiVersion": "admission.k8s.io/v1"}`, want: "decision system/main: response is missing, want an object"},
		{name: "a response that is no object", rego: allowedTo(`["allowed"]`), want: "decision system/main: response is an array, want an object"},
		{name: "a response that is true", rego: allowedTo(`true`), want: "decision system/main: response is a boolean, want an object"},
		{name: "no allowed", rego: allowedTo(`{"uid": "u1"}`), want: "decision system/main: response.allowed is missing, want true or false"},
		{name: "allowed in words", rego: allowedTo(`{"allowed": "true"}`), want: "decision system/main: response.allowed is a string, want true or false"},
		{name: "allowed as a number", rego: allowedTo(`{"allowed": 1}`), want: "decision system/main: response.allowed is a number, want true or false"},
		{name: "a status that is a text", rego: allowedTo(`{"allowed": false, "status": "no"}`), want: "decision system/main: response.status is a string, want an object"},
		{name: "a decision that is true", rego: `package system
			main := true`, want: "decision system/main: the answer is a boolean, want an object with a response"},
		{name: "a decision that is a set", rego: `package system
			main contains "no"`, want: "decision system/main: the answer is an array, want an object with a response (said by opa/main/main)"},
		{name: "a decision that is an empty set", rego: `package system
			main contains "no" if input.never`, want: "decision system/main: the answer is an array, want an object with a response (said by opa/main/main)"},
		{name: "a decision that is null", rego: `package system
			main := null`, want: "decision system/main: the answer is missing, want an object with a response"},
		{name: "an undefined rule", rego: `package system
			main := {"response": {"allowed": true}} if input.request.operation == "NEVER"`, want: "decision system/main: undefined", undefined: true},
		{name: "no rule", rego: `package other`, want: "decision system/main: undefined", undefined: true},
		{name: "two rules that disagree", rego: `package system
			main := {"response": {"allowed": true}} if input.request
			main := {"response": {"allowed": false}} if input.request.uid`, want: "rule data.system.main produced conflicting values"},
	} {
		t.Run(test.name, func(t *testing.T) {
			answer, err := newReviewer(t, test.rego).Review(t.Context(), []byte(asked("v1", `"uid":"u1"`)))
			if err == nil {
				t.Fatalf("got the answer %s", answer.Body)
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("got  %s\nwant %s", err, test.want)
			}
			if answer.Allowed || answer.Body != nil {
				t.Errorf("there is an answer beside the error: %+v", answer)
			}
			if answer.DecisionID == "" {
				t.Error("the decision has no id to find it by")
			}
			if got := errors.Is(err, policy.ErrUndefined); got != test.undefined {
				t.Errorf("undefined is %v, want %v", got, test.undefined)
			}
			var invalid *admission.InvalidReviewError
			if errors.As(err, &invalid) {
				t.Error("the policy's mistake is blamed on who sent the review")
			}
		})
	}
}

// What the API server could not decode is an error that names the field: the
// person refused would read only that Go cannot unmarshal it.
func TestWhatTheAPIServerCannotDecodeIsAnError(t *testing.T) {
	for _, test := range []struct{ response, want string }{
		{`{"allowed": false, "status": {"message": ["a", "b"]}}`, "response.status.message is a JSON array"},
		{`{"allowed": false, "status": {"reason": {"a", "b"}}}`, "response.status.reason is a JSON array"},
		{`{"allowed": false, "status": {"message": "m", "code": 403.5}}`, "response.status.code is a number, want the number of an HTTP error"},
		{`{"allowed": false, "status": {"message": "m", "code": "no"}}`, "response.status.code is a string, want the number of an HTTP error"},
		{`{"allowed": true, "auditAnnotations": "none"}`, "response.auditAnnotations is a string, want an object"},
		{`{"allowed": true, "patch": "not base64!"}`, "response.patch: the text is neither JSON nor base64"},
		{`{"allowed": true, "patch": [{"op": "remove", "path": "/x/y"}]}`, "response.patch: there is nothing to change: request.object is null"},
		{`{"allowed": true, "patch": [], "patchType": 7}`, "response.patchType is a number"},
	} {
		t.Run(test.response, func(t *testing.T) {
			_, err := newReviewer(t, allowedTo(test.response)).Review(t.Context(), []byte(asked("v1", `"uid":"u1"`)))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %s", err, test.want)
			}
		})
	}
}
