package admission_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/kube-rego/kube-rego/pkg/admission"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

const (
	access = `{"apiVersion":"authorization.k8s.io/v1","kind":"SubjectAccessReview","spec":{"user":"dana"}}`
	images = `{"apiVersion":"imagepolicy.k8s.io/v1alpha1","kind":"ImageReview","spec":{"containers":[{"image":"a"}],"namespace":"analytics"}}`
)

// answering is the policy that answers with this.
func answering(answer string) string {
	return `package system
main := ` + answer
}

func TestAnswersToOtherReviews(t *testing.T) {
	for _, test := range []struct {
		name, rego, body string
		want             string // the status that is sent
		allowed          bool
		noOpinion        bool
	}{
		{
			name: "access is allowed", body: access, allowed: true,
			rego: answering(`{"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "status": {"allowed": true}}`), want: `{"allowed":true}`,
		},
		{
			name: "access is denied", body: access,
			rego: answering(`{"status": {"allowed": false, "denied": true, "reason": "no <b>"}}`), want: `{"allowed":false,"denied":true,"reason":"no \u003cb\u003e"}`,
		},
		{
			name: "there is no opinion about access", body: access, noOpinion: true,
			rego: answering(`{"status": {"allowed": false, "reason": "not mine", "evaluationError": "half"}}`), want: `{"allowed":false,"evaluationError":"half","reason":"not mine"}`,
		},
		{
			name: "denied is null or false", body: access, noOpinion: true,
			rego: answering(`{"status": {"allowed": false, "denied": null}}`), want: `{"allowed":false,"denied":null}`,
		},
		{
			name: "another version and kind than those of the request are put right", body: access, allowed: true,
			rego: answering(`{"apiVersion": "authorization.k8s.io/v1beta1", "kind": "AdmissionReview", "status": {"allowed": true}}`), want: `{"allowed":true}`,
		},
		{
			name: "nothing but the status is sent", body: access, allowed: true,
			rego: answering(`object.union(input, {"metadata": 7, "status": {"allowed": true}})`), want: `{"allowed":true}`,
		},
		{
			name: "the policy sees the whole review", body: access, noOpinion: true,
			rego: answering(`{"status": {"allowed": false, "reason": json.marshal(input)}}`),
			want: `{"allowed":false,"reason":"{\"apiVersion\":\"authorization.k8s.io/v1\",\"kind\":\"SubjectAccessReview\",\"spec\":{\"user\":\"dana\"}}"}`,
		},
		{
			name: "an answer as to an AdmissionReview is put right", body: access, allowed: true,
			rego: answering(`{"response": {"allowed": true, "uid": "u1"}}`), want: `{"allowed":true}`,
		},
		{
			name: "so is a denial, which is no opinion there", body: access, noOpinion: true,
			rego: answering(`{"response": {"allowed": false, "status": {"reason": "no"}}}`), want: `{"allowed":false,"reason":"no"}`,
		},
		{
			name: "of reason and message the message counts", body: images,
			rego: answering(`{"response": {"allowed": false, "status": {"reason": "Forbidden", "message": "no"}}}`), want: `{"allowed":false,"reason":"no"}`,
		},
		{
			name: "but not an empty one", body: images,
			rego: answering(`{"response": {"allowed": false, "status": {"reason": "no", "message": ""}}}`), want: `{"allowed":false,"reason":"no"}`,
		},
		{
			name: "a status counts more than a response", body: access, noOpinion: true,
			rego: answering(`{"response": {"allowed": true}, "status": {"allowed": false}}`), want: `{"allowed":false}`,
		},
		{
			name: "images are allowed", body: images, allowed: true,
			rego: answering(`{"status": {"allowed": true, "auditAnnotations": {"policy": "images"}}}`), want: `{"allowed":true,"auditAnnotations":{"policy":"images"}}`,
		},
		{
			name: "images are denied", body: images,
			rego: answering(`{"status": {"allowed": false, "reason": input.spec.containers[0].image}}`), want: `{"allowed":false,"reason":"a"}`,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			answer, err := newReviewer(t, test.rego).Review(t.Context(), []byte(test.body))
			if err != nil {
				t.Fatal(err)
			}
			apiVersion, kind := "authorization.k8s.io/v1", "SubjectAccessReview"
			if test.body == images {
				apiVersion, kind = "imagepolicy.k8s.io/v1alpha1", "ImageReview"
			}
			if want := `{"apiVersion":"` + apiVersion + `","kind":"` + kind + `","status":` + test.want + `}`; string(answer.Body) != want {
				t.Errorf("got  %s\nwant %s", answer.Body, want)
			}
			if answer.Allowed != test.allowed || answer.NoOpinion != test.noOpinion || answer.Review != kind || answer.DecisionID == "" {
				t.Errorf("got %+v, want allowed %v, no opinion %v, a %s and the id of the decision", answer, test.allowed, test.noOpinion, kind)
			}
			accept(t, answer.Body, apiVersion, kind, "")
		})
	}
}

// An old API server asks in the version that it knows.
func TestAccessIsAnsweredInTheVersionThatAsks(t *testing.T) {
	body := strings.Replace(access, "/v1", "/v1beta1", 1)
	answer, err := newReviewer(t, answering(`{"apiVersion": "authorization.k8s.io/v1", "status": {"allowed": true}}`)).Review(t.Context(), []byte(body))
	if err != nil || !answer.Allowed {
		t.Fatalf("got %+v, %v", answer, err)
	}
	accept(t, answer.Body, "authorization.k8s.io/v1beta1", "SubjectAccessReview", "")
}

func TestNoAnswerToOtherReviewsIsNeverYes(t *testing.T) {
	for _, test := range []struct {
		name, body, rego string
		want             string // part of the error
		undefined        bool
	}{
		{name: "no status", body: access, rego: answering(`{"kind": "SubjectAccessReview"}`), want: "decision system/main: status is missing, want an object"},
		{name: "a status that is true", body: access, rego: answering(`{"status": true}`), want: "decision system/main: status is a boolean, want an object"},
		{name: "a response that is true", body: access, rego: answering(`{"response": true}`), want: "decision system/main: status is missing, want an object"},
		{name: "no allowed", body: access, rego: answering(`{"status": {"denied": false}}`), want: "decision system/main: status.allowed is missing, want true or false"},
		{name: "allowed in words", body: images, rego: answering(`{"status": {"allowed": "true"}}`), want: "decision system/main: status.allowed is a string, want true or false"},
		{name: "Allowed in large letters", body: access, rego: answering(`{"status": {"Allowed": true}}`), want: "decision system/main: status.allowed is missing, want true or false"},
		{name: "both allowed and denied", body: access, rego: answering(`{"status": {"allowed": true, "denied": true}}`), want: "decision system/main: status.allowed and status.denied are both true"},
		{name: "denied in words", body: access, rego: answering(`{"status": {"allowed": true, "denied": "yes"}}`), want: "decision system/main: status.denied is a JSON string, which the API server does not take there"},
		{name: "a reason that is a list", body: access, rego: answering(`{"status": {"allowed": false, "reason": ["a"]}}`), want: "decision system/main: status.reason is a JSON array"},
		{name: "an evaluation error that is an object", body: access, rego: answering(`{"status": {"allowed": false, "evaluationError": {}}}`), want: "decision system/main: status.evaluationError is a JSON object"},
		{name: "a reason that is a number, of images", body: images, rego: answering(`{"status": {"allowed": false, "reason": 1}}`), want: "decision system/main: status.reason is a JSON number"},
		{name: "an audit annotation that is a number", body: images, rego: answering(`{"status": {"allowed": true, "auditAnnotations": {"a": 1}}}`), want: "decision system/main: status.auditAnnotations is a JSON number"},
		{name: "a response without allowed", body: access, rego: answering(`{"response": {"uid": "u1"}}`), want: "decision system/main: response.allowed is missing, want true or false"},
		{name: "a response whose status is a text", body: access, rego: answering(`{"response": {"allowed": false, "status": "no"}}`), want: "decision system/main: response.status is a string, want an object"},
		{name: "a response whose message is a list", body: access, rego: answering(`{"response": {"allowed": false, "status": {"message": ["a"]}}}`), want: "decision system/main: status.reason is a JSON array"},
		{name: "an answer that is true", body: access, rego: answering(`true`), want: "decision system/main: the answer is a boolean, want an object with a status"},
		{name: "no rule", body: access, rego: `package other`, want: "decision system/main: undefined", undefined: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			answer, err := newReviewer(t, test.rego).Review(t.Context(), []byte(test.body))
			if err == nil {
				t.Fatalf("got the answer %s", answer.Body)
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("got  %s\nwant %s", err, test.want)
			}
			if answer.Allowed || answer.NoOpinion || answer.Body != nil {
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

func TestOtherReviewsThatAreMalformed(t *testing.T) {
	for _, test := range []struct{ name, body, want string }{
		{"access without a spec", `{"apiVersion":"authorization.k8s.io/v1","kind":"SubjectAccessReview"}`, "spec is missing, want an object"},
		{"access whose spec is a list", `{"apiVersion":"authorization.k8s.io/v1","kind":"SubjectAccessReview","spec":[]}`, "spec is an array, want an object"},
		{"images without a spec", `{"apiVersion":"imagepolicy.k8s.io/v1alpha1","kind":"ImageReview","spec":null}`, "spec is missing, want an object"},
		{"images in a version of another group", strings.Replace(images, "v1alpha1", "v1", 1), `apiVersion is "imagepolicy.k8s.io/v1" and kind is "ImageReview"; ` + wanted},
		{"access by the group of admission", strings.Replace(access, "authorization", "admission", 1), `apiVersion is "admission.k8s.io/v1" and kind is "SubjectAccessReview"; ` + wanted},
		{"access of the user who asks", strings.Replace(access, "Subject", "SelfSubject", 1), `apiVersion is "authorization.k8s.io/v1" and kind is "SelfSubjectAccessReview"; ` + wanted},
		{"a token", `{"apiVersion":"authentication.k8s.io/v1","kind":"TokenReview","spec":{}}`, `apiVersion is "authentication.k8s.io/v1" and kind is "TokenReview"; ` + wanted},
	} {
		t.Run(test.name, func(t *testing.T) {
			answer, err := newReviewer(t, answering(`{"status": {"allowed": true}}`)).Review(t.Context(), []byte(test.body))
			var invalid *admission.InvalidReviewError
			if !errors.As(err, &invalid) || err.Error() != "no review to answer: "+test.want {
				t.Errorf("got  %v\nwant %s", err, test.want)
			}
			if answer.Review != "" || answer.Body != nil {
				t.Errorf("it is answered: %+v", answer)
			}
		})
	}
}

func TestAnswerSaysWhatAccessWasAskedFor(t *testing.T) {
	const head = `{"apiVersion":"authorization.k8s.io/v1","kind":"SubjectAccessReview","spec":`
	for _, test := range []struct {
		name, body string
		want       admission.Request
	}{
		{
			"to an object",
			head + `{"user":"dana","resourceAttributes":{"namespace":"analytics","verb":"create","group":"","version":"v1","resource":"pods","subresource":"exec","name":"api"}}}`,
			admission.Request{Operation: "create", Kind: "pods/exec", Namespace: "analytics", Name: "api", User: "dana"},
		},
		{
			"to all objects of a resource", head + `{"user":"dana","resourceAttributes":{"verb":"list","resource":"nodes"}}}`,
			admission.Request{Operation: "list", Kind: "nodes", User: "dana"},
		},
		{
			"to a path", head + `{"user":"dana","nonResourceAttributes":{"verb":"get","path":"/metrics"}}}`,
			admission.Request{Operation: "get", Name: "/metrics", User: "dana"},
		},
		{"as far as it is text", head + `{"user":7,"resourceAttributes":[]}}`, admission.Request{}},
		{"for images", images, admission.Request{Kind: "Pod", Namespace: "analytics"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			answer, err := newReviewer(t, answering(`{"status": {"allowed": true}}`)).Review(t.Context(), []byte(test.body))
			if err != nil {
				t.Fatal(err)
			}
			if answer.Request != test.want {
				t.Errorf("got %+v, want %+v", answer.Request, test.want)
			}
		})
	}
}
