package admission_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	admissionv1beta1 "k8s.io/api/admission/v1beta1"
	authorizationv1 "k8s.io/api/authorization/v1"
	authorizationv1beta1 "k8s.io/api/authorization/v1beta1"
	imagepolicyv1alpha1 "k8s.io/api/imagepolicy/v1alpha1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"

	"github.com/kube-rego/kube-rego/pkg/admission"
	"github.com/kube-rego/kube-rego/pkg/compile"
	"github.com/kube-rego/kube-rego/pkg/engine"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// newReviewer asks system/main of an OPA with one module.
func newReviewer(t testing.TB, rego string) *admission.Reviewer {
	t.Helper()
	return admission.NewReviewer(newEngine(t, rego), admission.Config{Entrypoint: "system/main"})
}

// newEngine enforces a module opa/main/main.
func newEngine(t testing.TB, rego string) *engine.Engine {
	t.Helper()
	compiler, err := compile.New(compile.Config{RegoVersion: policy.RegoAuto, SystemNamespaces: []string{"opa"}})
	if err != nil {
		t.Fatal(err)
	}
	id := policy.ID{Namespace: "opa", Name: "main", Key: "main"}
	snapshot := compiler.Compile(compiler.Empty(), policy.NewSet(policy.Module{ID: id, Source: rego}), nil)
	report := snapshot.Report()
	if held := report.Held(); len(held) > 0 {
		t.Fatalf("the policy of the test does not compile: %v", held)
	}
	e := engine.New()
	e.Activate(snapshot, report)
	return e
}

// allowAll answers as entrypoints did before admission.k8s.io/v1.
const allowAll = `package system
main := {"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview", "response": {"allowed": true}}`

// asked is an AdmissionReview of the version with the fields of its request.
func asked(version, request string) string {
	return fmt.Sprintf(`{"apiVersion":"admission.k8s.io/%s","kind":"AdmissionReview","request":{%s}}`, version, request)
}

// wanted is what the error of another kind names.
const wanted = "want AdmissionReview of admission.k8s.io/v1 or v1beta1, SubjectAccessReview of authorization.k8s.io/v1 or v1beta1 or ImageReview of imagepolicy.k8s.io/v1alpha1"

func TestReviewOfWhatWasSent(t *testing.T) {
	const v1 = `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"allowed":true,"uid":"u1"}}`
	for _, test := range []struct {
		name, body string
		want       string // the answer, or
		wantErr    string // the part of the error after "no review to answer: "
	}{
		{name: "v1 is answered in v1", body: asked("v1", `"uid":"u1"`), want: v1},
		{
			name: "v1beta1 is answered in v1beta1", body: asked("v1beta1", `"uid":"u1"`),
			want: `{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview","response":{"allowed":true,"uid":"u1"}}`,
		},
		{name: "white space around the object does not matter", body: "\n " + asked("v1", `"uid":"u1"`) + " \n", want: v1},
		{name: "of a key that comes twice the last counts", body: asked("v1", `"uid":"u0","uid":"u1"`), want: v1},
		{
			name: "a uid of any text comes back as it was", body: asked("v1", `"uid":"<\u0000\"é"`),
			want: `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"allowed":true,"uid":"\u003c\u0000\"é"}}`,
		},

		{name: "an empty body", body: "", wantErr: "the body is empty"},
		{name: "nothing but white space", body: " \r\n\t", wantErr: "the body is empty"},
		{name: "JSON that is cut off", body: `{"apiVersion":"admission.k8s.io/v1","kind":`, wantErr: "the body is cut off in the middle of its JSON"},
		{name: "what is no JSON", body: `<html>`, wantErr: "the body is not JSON: invalid character '<' looking for beginning of value, at byte 1"},
		{name: "an array", body: `[` + asked("v1", `"uid":"u1"`) + `]`, wantErr: "the body is a JSON array, want an object"},
		{name: "a string", body: `"review"`, wantErr: "the body is a JSON string, want an object"},
		{name: "null", body: `null`, wantErr: `apiVersion is "" and kind is ""; ` + wanted},
		{name: "a second object", body: `{} {}`, wantErr: "there is more after the JSON object, at byte 4"},
		{name: "what is no JSON after the object", body: `{}x`, wantErr: "there is more after the JSON object, at byte 2"},
		{
			name: "another kind", body: `{"apiVersion":"admission.k8s.io/v1","kind":"Pod","request":{"uid":"u1"}}`,
			wantErr: `apiVersion is "admission.k8s.io/v1" and kind is "Pod"; ` + wanted,
		},
		{
			name: "a version that is not known", body: asked("v2", `"uid":"u1"`),
			wantErr: `apiVersion is "admission.k8s.io/v2" and kind is "AdmissionReview"; ` + wanted,
		},
		{
			name: "an apiVersion that is a number", body: `{"apiVersion":1,"kind":"AdmissionReview","request":{"uid":"u1"}}`,
			wantErr: `apiVersion is "" and kind is "AdmissionReview"; ` + wanted,
		},
		{name: "no request", body: `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}`, wantErr: "request is missing"},
		{name: "no uid", body: asked("v1", ``), wantErr: "request.uid is missing"},
		{name: "an empty uid", body: asked("v1", `"uid":""`), wantErr: "request.uid is a string, want one that is not empty"},
		{
			name: "20,000 levels", body: asked("v1", `"uid":"u1","object":`+strings.Repeat("[", 20000)+strings.Repeat("]", 20000)),
			wantErr: "the body is not JSON: invalid character '[' exceeded max depth, at byte ",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			answer, err := newReviewer(t, allowAll).Review(t.Context(), []byte(test.body))
			if test.wantErr == "" {
				if err != nil {
					t.Fatal(err)
				}
				if got := withoutOurs(t, answer); got != test.want {
					t.Errorf("got  %s\nwant %s", got, test.want)
				}
				return
			}
			var invalid *admission.InvalidReviewError
			if !errors.As(err, &invalid) {
				t.Fatalf("got the error %v, want an InvalidReviewError", err)
			}
			if want := "no review to answer: " + test.wantErr; !strings.HasPrefix(err.Error(), want) {
				t.Errorf("got  %s\nwant %s", err, want)
			}
		})
	}
}

func TestAnswerSaysWhatWasAskedAbout(t *testing.T) {
	reviewer := newReviewer(t, `package system
main := {"response": {"allowed": true}} if input.request.operation == "CREATE"`)
	want := admission.Request{UID: "u1", Operation: "CREATE", Kind: "Pod", Namespace: "analytics", Name: "api", User: "dana"}
	for _, test := range []struct {
		name, request string
		want          admission.Request
		undefined     bool
	}{
		{
			name: "beside a decision", want: want,
			request: `"uid":"u1","operation":"CREATE","kind":{"group":"","version":"v1","kind":"Pod"},"namespace":"analytics","name":"api","userInfo":{"username":"dana"}`,
		},
		{
			name: "a subresource", want: admission.Request{UID: "u1", Operation: "CREATE", Kind: "Eviction/eviction"},
			request: `"uid":"u1","operation":"CREATE","kind":{"group":"policy","version":"v1","kind":"Eviction"},"subResource":"eviction"`,
		},
		{
			name: "texts that nobody has so long are cut", want: admission.Request{UID: "u1", Operation: "CREATE", Name: strings.Repeat("n", 512) + "…"},
			request: `"uid":"u1","operation":"CREATE","name":"` + strings.Repeat("n", 1000) + `"`,
		},
		{
			name: "where there is no decision", want: admission.Request{UID: "u1", Operation: "DELETE"}, undefined: true,
			request: `"uid":"u1","operation":"DELETE"`,
		},
		{
			name: "as far as it is text", want: admission.Request{UID: "u1", Operation: "CREATE"},
			request: `"uid":"u1","operation":"CREATE","kind":"Pod","namespace":1,"name":null,"userInfo":[]`,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			answer, err := reviewer.Review(t.Context(), []byte(asked("v1", test.request)))
			if got := errors.Is(err, policy.ErrUndefined); got != test.undefined {
				t.Errorf("got the error %v", err)
			}
			if answer.Request != test.want {
				t.Errorf("got %+v, want %+v", answer.Request, test.want)
			}
		})
	}
}

func TestDeepReviewIsDecided(t *testing.T) {
	body := asked("v1", `"uid":"u1","object":`+strings.Repeat(`{"a":`, 5000)+`1`+strings.Repeat("}", 5000))
	answer, err := newReviewer(t, allowAll).Review(t.Context(), []byte(body))
	if err != nil || !answer.Allowed {
		t.Errorf("got %v, %v, want it allowed", answer.Allowed, err)
	}
}

func TestNumbersReachThePolicyAsTheyAre(t *testing.T) {
	reviewer := newReviewer(t, `package system
main := {"response": {"allowed": false, "status": {"message": json.marshal(input.request.object)}}}`)
	for _, number := range []string{"9007199254740993", "123456789012345678901234567890", "0.1000000000000000055511151231257827"} {
		t.Run(number, func(t *testing.T) {
			answer, err := reviewer.Review(t.Context(), []byte(asked("v1", `"uid":"u1","object":`+number)))
			if err != nil {
				t.Fatal(err)
			}
			var got admissionv1.AdmissionReview
			if err := json.Unmarshal(answer.Body, &got); err != nil {
				t.Fatal(err)
			}
			if got.Response.Result.Message != number {
				t.Errorf("the policy saw %s", got.Response.Result.Message)
			}
		})
	}
}

// apiServer decodes an answer as the API server does, and strict takes nothing that
// Kubernetes does not know either.
var (
	apiServer = serializer.NewCodecFactory(reviews).UniversalDeserializer()
	strict    = serializer.NewCodecFactory(reviews, serializer.EnableStrict).UniversalDeserializer()
)

// reviews are the reviews that Kubernetes knows.
var reviews = func() *runtime.Scheme {
	scheme := runtime.NewScheme()
	utilruntime.Must(admissionv1.AddToScheme(scheme))
	utilruntime.Must(admissionv1beta1.AddToScheme(scheme))
	utilruntime.Must(authorizationv1.AddToScheme(scheme))
	utilruntime.Must(authorizationv1beta1.AddToScheme(scheme))
	utilruntime.Must(imagepolicyv1alpha1.AddToScheme(scheme))
	return scheme
}()

// accept fails the test unless the API server takes the answer to a request
// of this version, kind and uid, if it has one.
func accept(t *testing.T, answer []byte, apiVersion, kind, uid string) {
	t.Helper()
	object, gvk, err := apiServer.Decode(answer, nil, nil)
	if err != nil {
		t.Fatalf("the API server refuses the answer: %v\n%s", err, answer)
	}
	if got := gvk.GroupVersion().String(); got != apiVersion || gvk.Kind != kind {
		t.Errorf("the answer is a %s %s, want a %s %s", got, gvk.Kind, apiVersion, kind)
	}
	var got string
	switch review := object.(type) {
	case *admissionv1.AdmissionReview:
		got = string(review.Response.UID)
	case *admissionv1beta1.AdmissionReview:
		got = string(review.Response.UID)
	case *authorizationv1.SubjectAccessReview:
		if review.Status.Allowed && review.Status.Denied {
			t.Errorf("the answer is yes and no: %s", answer)
		}
	}
	if got != uid {
		t.Errorf("the answer is to %q, want %q", got, uid)
	}
}

func FuzzReview(f *testing.F) {
	// Both branches, a message that the sender chooses, and to a spec with a status
	// that status, whatever it is.
	reviewer := newReviewer(f, `package system
main := {"apiVersion": "admission.k8s.io/v1beta1", "response": response} if not input.spec.status
main := {"status": input.spec.status} if input.spec.status
default response := {"allowed": true}
response := {"allowed": false, "uid": "wrong", "status": {"reason": sprintf("%v", [input.request.object])}} if input.request.object`)
	for _, body := range []string{
		asked("v1", `"uid":"u1"`),
		asked("v1beta1", `"uid":"u1","object":{"kind":"Pod","n":1e400}`),
		asked("v1", `"uid":"u1","object":"\u0000\ud800<"`),
		asked("v1", `"uid":"u0","uid":"u1"`),
		asked("v1", `"uid":"u1","operation":"CREATE","kind":{"group":"","version":"v1","kind":"Pod"},"namespace":"n","name":"a","userInfo":{"username":"dana"}`),
		asked("v1beta1", `"uid":"u1","UID":"u2","operation":null,"dryRun":true,"options":{"a":1}`),
		asked("v1", `"uid":"u1","object":[[[]]]`) + "\n",
		asked("v2", `"uid":"u1"`),
		`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}`,
		access, images,
		`{"apiVersion":"authorization.k8s.io/v1beta1","kind":"SubjectAccessReview","spec":{"status":{"allowed":true,"denied":false,"reason":"\u0000"}}}`,
		`{"apiVersion":"authorization.k8s.io/v1","kind":"SubjectAccessReview","spec":{"status":{"allowed":true,"denied":true}}}`,
		`{"apiVersion":"authorization.k8s.io/v1","kind":"SubjectAccessReview","spec":{"status":{"allowed":true,"Denied":1,"reason":["a"]}}}`,
		`{"apiVersion":"imagepolicy.k8s.io/v1alpha1","kind":"ImageReview","spec":{"status":{"allowed":false,"auditAnnotations":{"a":null}}}}`,
		`{} {}`, `[]`, `null`, ``, `{"`, "\xff",
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		answer, err := reviewer.Review(t.Context(), body)
		if want, ok := whatKubernetesReads(body); ok {
			var invalid *admission.InvalidReviewError
			if errors.As(err, &invalid) || answer.Request != want {
				t.Errorf("%s\nis read as %+v, %v\nwant       %+v", body, answer.Request, err, want)
			}
		}
		if err != nil {
			if answer.Body != nil || answer.Allowed || answer.NoOpinion {
				t.Errorf("there is an answer beside the error %v", err)
			}
			return
		}
		var sent map[string]any
		decoder := json.NewDecoder(bytes.NewReader(body))
		decoder.UseNumber()
		if err := decoder.Decode(&sent); err != nil {
			t.Fatalf("answered what is no JSON: %v", err)
		}
		apiVersion, _ := sent["apiVersion"].(string)
		kind, _ := sent["kind"].(string)
		var uid string
		if kind == "AdmissionReview" {
			request, _ := sent["request"].(map[string]any)
			uid, _ = request["uid"].(string)
		}
		accept(t, answer.Body, apiVersion, kind, uid)
	})
}

// whatKubernetesReads is what a review asks about, if the code of the API server takes it
// for one that can be answered.
func whatKubernetesReads(body []byte) (admission.Request, bool) {
	object, _, err := strict.Decode(body, nil, nil)
	if err != nil || !json.Valid(body) { // it reads YAML too
		return admission.Request{}, false
	}
	switch review := object.(type) {
	case *admissionv1.AdmissionReview:
		if r := review.Request; r != nil && r.UID != "" {
			return admission.Request{
				UID: string(r.UID), Operation: string(r.Operation), Kind: strings.TrimSuffix(r.Kind.Kind+"/"+r.SubResource, "/"), Namespace: r.Namespace, Name: r.Name, User: r.UserInfo.Username,
			}, true
		}
	case *admissionv1beta1.AdmissionReview:
		if r := review.Request; r != nil && r.UID != "" {
			return admission.Request{
				UID: string(r.UID), Operation: string(r.Operation), Kind: strings.TrimSuffix(r.Kind.Kind+"/"+r.SubResource, "/"), Namespace: r.Namespace, Name: r.Name, User: r.UserInfo.Username,
			}, true
		}
	case *authorizationv1.SubjectAccessReview:
		if r := review.Spec.ResourceAttributes; r != nil && review.Spec.NonResourceAttributes == nil {
			return admission.Request{
				Operation: r.Verb, Kind: strings.TrimSuffix(r.Resource+"/"+r.Subresource, "/"), Namespace: r.Namespace, Name: r.Name, User: review.Spec.User,
			}, true
		}
	}
	return admission.Request{}, false
}
