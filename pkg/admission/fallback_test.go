package admission_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/kube-rego/kube-rego/pkg/admission"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

const (
	undefined = `package system
main := {"response": {"allowed": true}} if input.request.operation == "NEVER"`
	conflict = `package system
main := {"response": {"allowed": true}} if input.request
main := {"response": {"allowed": false}} if input.request.uid`
)

func TestWhatBecomesOfAReviewWithoutADecision(t *testing.T) {
	for _, test := range []struct {
		name, rego           string
		onUndefined, onError admission.Action
		allowed              bool
		want                 []string // parts of the answer; none: there is none
	}{
		{name: "by default there is no answer", rego: undefined},
		{name: "so it is with an error", rego: conflict},
		{name: "fail says the same", rego: undefined, onUndefined: admission.Fail, onError: admission.Allow},
		{name: "and of an error too", rego: conflict, onUndefined: admission.Allow, onError: admission.Fail},
		{
			name: "what is undefined is denied", rego: undefined, onUndefined: admission.Deny,
			want: []string{`"allowed":false`, `"code":403`, `"message":"refused without a decision: decision system/main: undefined (decision `, `, --on-undefined=deny)"`, `"reason":"Forbidden"`},
		},
		{
			name: "what is undefined is allowed, with a warning", rego: undefined, onUndefined: admission.Allow, allowed: true,
			want: []string{`"allowed":true`, `"warnings":["allowed without a decision: decision system/main: undefined (decision `, `, --on-undefined=allow)"]`},
		},
		{
			name: "rules that contradict each other are named in a denial", rego: conflict, onError: admission.Deny,
			want: []string{`"allowed":false`, `rule data.system.main produced conflicting values at opa/main/main:2 and at opa/main/main:3`, `, --on-error=deny)`},
		},
		{
			name: "and in a warning", rego: conflict, onError: admission.Allow, allowed: true,
			want: []string{`"allowed":true`, `rule data.system.main produced conflicting values at opa/main/main:2 and at opa/main/main:3`, `, --on-error=allow)`},
		},
		{
			name: "an answer that cannot be made right is an error", rego: allowedTo(`{"allowed": "yes"}`), onError: admission.Deny,
			want: []string{`"allowed":false`, `response.allowed is a string, want true or false (said by opa/main/main)`},
		},
		{
			name: "so is a patch that does not apply", rego: allowedTo(`{"allowed": true, "patch": [{"op": "remove", "path": "/spec/x"}]}`), onError: admission.Deny,
			want: []string{`"allowed":false`, `response.patch: operation 1 (remove /spec/x)`},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			reviewer := admission.NewReviewer(newEngine(t, test.rego), admission.Config{Entrypoint: "system/main", OnUndefined: test.onUndefined, OnError: test.onError})
			answer, err := reviewer.Review(t.Context(), []byte(asked("v1", `"uid":"u1","object":{"apiVersion":"v1","kind":"Pod","spec":{}}`)))
			if answer.Cause == nil {
				t.Error("it is not told why there is no decision")
			}
			if test.want == nil {
				if err == nil || answer.Body != nil || answer.Allowed || answer.Action != admission.Fail || !strings.HasSuffix(err.Error(), "(decision "+answer.DecisionID+")") {
					t.Errorf("got %+v, %v; want no answer, and an error with the id of the decision", answer, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			accept(t, answer.Body, "admission.k8s.io/v1", "AdmissionReview", "u1")
			for _, want := range append(test.want, `"decision-id":"`+answer.DecisionID+`"`, `"fingerprint":"`+answer.Fingerprint+`"`) {
				if !strings.Contains(string(answer.Body), want) {
					t.Errorf("got  %s\nwant %s", answer.Body, want)
				}
			}
			if answer.Allowed != test.allowed {
				t.Errorf("Allowed is %v", answer.Allowed)
			}
		})
	}
}

// Whoever authorizes by kube-rego must not be told yes because of an error.
func TestOtherReviewsAreNeverAnsweredWithoutADecision(t *testing.T) {
	for _, body := range []string{access, images} {
		reviewer := admission.NewReviewer(newEngine(t, undefined), admission.Config{Entrypoint: "system/main", OnUndefined: admission.Allow, OnError: admission.Allow})
		if answer, err := reviewer.Review(t.Context(), []byte(body)); !errors.Is(err, policy.ErrUndefined) || answer.Body != nil || answer.Allowed {
			t.Errorf("got %+v, %v", answer, err)
		}
	}
}

func TestAReviewThatRunsOutOfTime(t *testing.T) {
	reviewer := admission.NewReviewer(newEngine(t, allowAll), admission.Config{Entrypoint: "system/main", OnError: admission.Deny})
	ctx, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	answer, err := reviewer.Review(ctx, []byte(asked("v1", `"uid":"u1"`)))
	if err != nil || !errors.Is(answer.Cause, context.DeadlineExceeded) || answer.Witness == nil || answer.Allowed {
		t.Fatalf("got %+v, %v", answer, err)
	}
	if want := "refused without a decision: the policies did not come to a decision in the time that there was"; !strings.Contains(string(answer.Body), want) {
		t.Errorf("got  %s\nwant %s", answer.Body, want)
	}
}

// The API server takes no patch from a webhook that validates.
func TestAnswersToAValidatingWebhookHaveNoPatch(t *testing.T) {
	rego := allowedTo(`{"allowed": true, "patch": [{"op": "add", "path": "/metadata", "value": {}}], "patchType": "JSONPatch"}`)
	body := []byte(asked("v1", `"uid":"u1","object":{"apiVersion":"v1","kind":"Pod"}`))
	for validating, want := range map[bool]bool{true: false, false: true} {
		answer, err := admission.NewReviewer(newEngine(t, rego), admission.Config{Entrypoint: "system/main", Validating: validating}).Review(t.Context(), body)
		if err != nil {
			t.Fatal(err)
		}
		for _, field := range []string{`"patch":`, `"patchType":"JSONPatch"`} {
			if got := strings.Contains(string(answer.Body), field); got != want {
				t.Errorf("validating is %v, and %s in %s is %v", validating, field, answer.Body, got)
			}
		}
	}
}
