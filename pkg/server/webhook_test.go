package server_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-rego/kube-rego/pkg/admission"
	"github.com/kube-rego/kube-rego/pkg/compile"
	"github.com/kube-rego/kube-rego/pkg/engine"
	"github.com/kube-rego/kube-rego/pkg/policy"
	"github.com/kube-rego/kube-rego/pkg/server"
)

// entrypoint answers what the name of the request asks for, or the user of access.
const entrypoint = `package system
main := {"status": {"allowed": input.spec.user == "allow", "denied": input.spec.user == "deny"}} if input.kind == "SubjectAccessReview"
main := {"response": {"allowed": true}} if input.request.name == "allow"
main := {"response": {"allowed": false, "status": {"message": "no"}}} if input.request.name == "deny"
main := {"response": {"allowed": "yes"}} if input.request.name == "malformed"
main := {"response": {"allowed": count(slow) > 0}} if input.request.name == "slow"
slow contains [a, b, c] if {
	some a in numbers.range(1, 1000)
	some b in numbers.range(1, 1000)
	some c in numbers.range(1, 1000)
}`

func newReviewer(t *testing.T) *admission.Reviewer {
	t.Helper()
	compiler, err := compile.New(compile.Config{RegoVersion: policy.RegoV1, SystemNamespaces: []string{"opa"}})
	if err != nil {
		t.Fatal(err)
	}
	id := policy.ID{Namespace: "opa", Name: "main", Key: "main"}
	snapshot := compiler.Compile(compiler.Empty(), policy.NewSet(policy.Module{ID: id, Source: entrypoint}), nil)
	report := snapshot.Report()
	if held := report.Held(); len(held) > 0 {
		t.Fatalf("the policy of the test does not compile: %v", held)
	}
	e := engine.New()
	e.Activate(snapshot, report)
	return admission.NewReviewer(e, admission.Config{Entrypoint: "system/main"})
}

// review is an AdmissionReview of a request with this name.
func review(name string) string {
	return fmt.Sprintf(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u1","name":%q}}`, name)
}

// access is a SubjectAccessReview of a user with this name.
func access(user string) string {
	return fmt.Sprintf(`{"apiVersion":"authorization.k8s.io/v1","kind":"SubjectAccessReview","spec":{"user":%q,"resourceAttributes":{"verb":"get","resource":"pods","namespace":"a","name":"b"}}}`, user)
}

func ready() error { return nil }

var discard = slog.New(slog.DiscardHandler)

// withoutLength hides how long the body is.
type withoutLength struct{ io.Reader }

func send(t *testing.T, server *httptest.Server, method, path string, body io.Reader) (status int, header http.Header, answer string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, server.URL+path, body)
	if err != nil {
		t.Fatal(err)
	}
	response, err := server.Client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, response.Header, string(data)
}

// problem decodes the body of an error, which is a Status with this code.
func problem(t *testing.T, code int, body string) (reason, message string) {
	t.Helper()
	var s metav1.Status
	if err := json.Unmarshal([]byte(body), &s); err != nil {
		t.Fatalf("the error is no JSON: %v in %q", err, body)
	}
	if s.APIVersion != "v1" || s.Kind != "Status" || s.Status != "Failure" || int(s.Code) != code {
		t.Errorf("the error is no Status of %d: %s", code, body)
	}
	return string(s.Reason), s.Message
}

// decisionID is what differs between answers that say the same, and between errors.
var decisionID = regexp.MustCompile(`"auditAnnotations":{"decision-id":"[A-Z2-7]+","fingerprint":"[0-9a-f]{64}"(,"modules":"opa/main/main")?},| \(decision [A-Z2-7]+\)$`)

func TestWebhook(t *testing.T) {
	metrics := server.NewMetrics()
	webhook := httptest.NewServer(server.NewWebhook(server.WebhookConfig{Reviewer: newReviewer(t), Ready: ready, Metrics: metrics, Log: discard}))
	defer webhook.Close()
	const tooLarge = 7<<20 + 1
	for _, test := range []struct {
		name, method, path string
		body               io.Reader
		status             int
		answer             string // the whole body; or, of an error:
		reason, message    string
	}{
		{
			name: "an allowed request", method: "POST", path: "/", body: strings.NewReader(review("allow")), status: 200,
			answer: `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"allowed":true,"uid":"u1"}}`,
		},
		{
			name: "a denied request", method: "POST", path: "/?timeout=5s", body: strings.NewReader(review("deny")), status: 200,
			answer: `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"allowed":false,"status":{"code":403,"message":"no","reason":"Forbidden"},"uid":"u1"}}`,
		},
		{
			name: "a body whose length is not told", method: "POST", path: "/", body: withoutLength{strings.NewReader(review("allow"))}, status: 200,
			answer: `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"allowed":true,"uid":"u1"}}`,
		},
		{
			name: "access that is allowed", method: "POST", path: "/", body: strings.NewReader(access("allow")), status: 200,
			answer: `{"apiVersion":"authorization.k8s.io/v1","kind":"SubjectAccessReview","status":{"allowed":true,"denied":false}}`,
		},
		{
			name: "access without an opinion", method: "POST", path: "/", body: strings.NewReader(access("dana")), status: 200,
			answer: `{"apiVersion":"authorization.k8s.io/v1","kind":"SubjectAccessReview","status":{"allowed":false,"denied":false}}`,
		},
		{
			name: "a person with a browser", method: "GET", path: "/", status: 405,
			reason: "MethodNotAllowed", message: "this is an admission webhook: send an AdmissionReview with POST /",
		},
		{
			name: "another method", method: "PUT", path: "/", body: strings.NewReader(review("allow")), status: 405,
			reason: "MethodNotAllowed", message: "this is an admission webhook: send an AdmissionReview with POST /",
		},
		{
			name: "another path", method: "POST", path: "/v1/data/system/main", body: strings.NewReader(review("allow")), status: 404,
			reason: "NotFound", message: "nothing is served at /v1/data/system/main; AdmissionReviews go to POST /, /mutate or /validate",
		},
		{
			name: "an empty body", method: "POST", path: "/", status: 400,
			reason: "BadRequest", message: "no review to answer: the body is empty",
		},
		{
			name: "what is no AdmissionReview", method: "POST", path: "/", body: strings.NewReader(`{"kind":"Pod"}`), status: 400,
			reason: "BadRequest", message: `no review to answer: apiVersion is "" and kind is "Pod"; want AdmissionReview of admission.k8s.io/v1 or v1beta1, SubjectAccessReview of authorization.k8s.io/v1 or v1beta1 or ImageReview of imagepolicy.k8s.io/v1alpha1`,
		},
		{
			name: "a timeout that is no duration", method: "POST", path: "/?timeout=soon", body: strings.NewReader(review("allow")), status: 400,
			reason: "BadRequest", message: `timeout="soon" is not a positive duration such as 5s`,
		},
		{
			name: "a timeout below zero", method: "POST", path: "/?timeout=-1s", body: strings.NewReader(review("allow")), status: 400,
			reason: "BadRequest", message: `timeout="-1s" is not a positive duration such as 5s`,
		},
		{
			name: "a body that says it is too large", method: "POST", path: "/", body: bytes.NewReader(make([]byte, tooLarge)), status: 413,
			reason: "RequestEntityTooLarge", message: "the body is larger than 7340032 bytes",
		},
		{
			name: "a body that turns out too large", method: "POST", path: "/", body: withoutLength{bytes.NewReader(make([]byte, tooLarge))}, status: 413,
			reason: "RequestEntityTooLarge", message: "the body is larger than 7340032 bytes",
		},
		{
			name: "a body of 10 MiB", method: "POST", path: "/", body: bytes.NewReader(make([]byte, 10<<20)), status: 413,
			reason: "RequestEntityTooLarge", message: "the body is larger than 7340032 bytes",
		},
		{
			name: "a decision that is undefined", method: "POST", path: "/", body: strings.NewReader(review("nothing")), status: 500,
			reason: "InternalError", message: "decision system/main: undefined",
		},
		{
			name: "an answer that the API server would not take", method: "POST", path: "/", body: strings.NewReader(review("malformed")), status: 500,
			reason: "InternalError", message: "decision system/main: response.allowed is a string, want true or false (said by opa/main/main)",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			status, header, body := send(t, webhook, test.method, test.path, test.body)
			if status != test.status {
				t.Errorf("the status is %d, want %d", status, test.status)
			}
			if got := header.Get("Content-Type"); got != "application/json" {
				t.Errorf("the content type is %q", got)
			}
			if got, want := header.Get("Allow") == "POST", status == http.StatusMethodNotAllowed; got != want {
				t.Errorf("the header Allow is %q", header.Get("Allow"))
			}
			if test.answer != "" {
				if body := decisionID.ReplaceAllString(body, ""); body != test.answer {
					t.Errorf("got  %s\nwant %s", body, test.answer)
				}
				return
			}
			reason, message := problem(t, test.status, body)
			if reason != test.reason || decisionID.ReplaceAllString(message, "") != test.message {
				t.Errorf("got  %s: %s\nwant %s: %s", reason, message, test.reason, test.message)
			}
		})
	}
	t.Run("reviews are counted by their outcome, and nothing else is", func(t *testing.T) {
		counted(t, metrics, map[string]int{"allowed": 3, "denied": 2, "invalid": 7, "error": 1, "undefined": 1})
	})
}

// counted fails the test unless the metric counts these reviews by decision.
func counted(t *testing.T, metrics *server.Metrics, want map[string]int) {
	t.Helper()
	recorder := httptest.NewRecorder()
	metrics.Handler().ServeHTTP(recorder, httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
	series := regexp.MustCompile(`(?m)^kube_rego_admission_request_duration_seconds_count\{decision="(\w+)".*\} (\d+)$`)
	got := make(map[string]int)
	for _, match := range series.FindAllStringSubmatch(recorder.Body.String(), -1) {
		n, err := strconv.Atoi(match[2])
		if err != nil {
			t.Fatal(err)
		}
		got[match[1]] += n
	}
	if !maps.Equal(got, want) {
		t.Errorf("the reviews are counted as %v, want %v", got, want)
	}
}

func TestWebhookLogs(t *testing.T) {
	const about = ` uid=u1 operation="" kind="" namespace="" name=`
	for _, test := range []struct {
		name, body string
		want       []string // parts of the line; none: there is no line
	}{
		{name: "a denial is told", body: review("deny"), want: []string{"level=INFO msg=decision decisionID=", " review=AdmissionReview", about + `deny user="" modules=[opa/main/main] outcome=denied`}},
		{name: "no decision is a warning", body: review("nothing"), want: []string{
			`level=WARN msg="no decision" decisionID=`, about + `nothing user="" outcome=undefined action=fail status=500 remote=192.0.2.1:1234 error="decision system/main: undefined"`,
		}},
		{name: "what is allowed is not worth a line", body: review("allow")},
		{name: "a denial of access is told", body: access("deny"), want: []string{
			"level=INFO msg=decision decisionID=", ` review=SubjectAccessReview uid="" operation=get kind=pods namespace=a name=b user=deny outcome=denied`,
		}},
		{name: "that there is no opinion is not worth a line", body: access("dana")},
		{name: "what is no review has no names", body: `{}`, want: []string{`level=WARN msg="no decision" outcome=invalid status=400 remote=192.0.2.1:1234 error="no review to answer: `}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var lines bytes.Buffer
			webhook := server.NewWebhook(server.WebhookConfig{Reviewer: newReviewer(t), Ready: ready, Metrics: server.NewMetrics(), Log: slog.New(slog.NewTextHandler(&lines, nil))})
			webhook.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), "POST", "/", strings.NewReader(test.body)))
			if test.want == nil && lines.Len() > 0 {
				t.Errorf("got %s", &lines)
			}
			for _, want := range test.want {
				if !strings.Contains(lines.String(), want) {
					t.Errorf("got  %s\nwant %s", &lines, want)
				}
			}
		})
	}
}

func TestWebhookRefusesUntilReady(t *testing.T) {
	waiting := errors.New("waiting for the first list of ConfigMaps")
	metrics := server.NewMetrics()
	webhook := httptest.NewServer(server.NewWebhook(server.WebhookConfig{Reviewer: newReviewer(t), Ready: func() error { return waiting }, Metrics: metrics, Log: discard}))
	defer webhook.Close()
	status, _, body := send(t, webhook, "POST", "/", strings.NewReader(review("allow")))
	if reason, message := problem(t, status, body); status != 503 || reason != "ServiceUnavailable" || message != "kube-rego is not ready: the first whole policy set is not in force yet" {
		t.Errorf("got %d %s: %s", status, reason, message)
	}
	counted(t, metrics, map[string]int{"error": 1})
	waiting = nil // the answer came before this, so nobody reads it now
	if status, _, body = send(t, webhook, "POST", "/", strings.NewReader(review("allow"))); status != 200 {
		t.Errorf("got %d %s once it is ready", status, body)
	}
	counted(t, metrics, map[string]int{"error": 1, "allowed": 1})
}

// reviewerFunc is a reviewer that does what no policy can make the real one do.
type reviewerFunc func(ctx context.Context) (admission.Answer, error)

func (f reviewerFunc) Review(ctx context.Context, _ []byte) (admission.Answer, error) { return f(ctx) }

func TestWebhookTimesOut(t *testing.T) {
	untilTheEnd := reviewerFunc(func(ctx context.Context) (admission.Answer, error) {
		<-ctx.Done()
		return admission.Answer{}, fmt.Errorf("decision system/main: %w", ctx.Err())
	})
	metrics := server.NewMetrics()
	webhook := httptest.NewServer(server.NewWebhook(server.WebhookConfig{Reviewer: untilTheEnd, Ready: ready, Metrics: metrics, Log: discard}))
	defer webhook.Close()
	status, _, body := send(t, webhook, "POST", "/?timeout=1ms", strings.NewReader(review("allow")))
	if reason, message := problem(t, status, body); status != 504 || reason != "Timeout" || message != "decision system/main: context deadline exceeded" {
		t.Errorf("got %d %s: %s", status, reason, message)
	}
	counted(t, metrics, map[string]int{"timeout": 1})
}

func TestWebhookGivesTheTimeThatTheAPIServerGivesLessAMargin(t *testing.T) {
	for _, test := range []struct {
		path string
		want time.Duration
	}{
		{"/?timeout=1s", 900 * time.Millisecond},
		{"/?timeout=12s", 11500 * time.Millisecond},
		{"/?timeout=1h", 29500 * time.Millisecond},
		{"/", 9500 * time.Millisecond},
	} {
		t.Run(test.path, func(t *testing.T) {
			var deadline time.Time
			webhook := server.NewWebhook(server.WebhookConfig{Reviewer: reviewerFunc(func(ctx context.Context) (admission.Answer, error) {
				deadline, _ = ctx.Deadline()
				return admission.Answer{}, nil
			}), Ready: ready, Metrics: server.NewMetrics(), Log: discard})
			before := time.Now()
			webhook.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), "POST", test.path, strings.NewReader("{}")))
			if deadline.Before(before.Add(test.want)) || deadline.After(time.Now().Add(test.want)) {
				t.Errorf("the review had %s, want %s", deadline.Sub(before), test.want)
			}
		})
	}
}

// unread is a body that must not be read.
type unread struct{ t *testing.T }

func (u unread) Read([]byte) (int, error) {
	u.t.Error("the body is read")
	return 0, io.EOF
}

func TestWebhookDoesNotReadWhatSaysItIsTooLarge(t *testing.T) {
	webhook := server.NewWebhook(server.WebhookConfig{Reviewer: newReviewer(t), Ready: ready, Metrics: server.NewMetrics(), Log: discard})
	request := httptest.NewRequestWithContext(t.Context(), "POST", "/", unread{t})
	request.ContentLength = 10 << 20
	recorder := httptest.NewRecorder()
	webhook.ServeHTTP(recorder, request)
	if recorder.Code != http.StatusRequestEntityTooLarge {
		t.Errorf("the status is %d", recorder.Code)
	}
}

func TestWebhookEndsASlowPolicy(t *testing.T) {
	metrics := server.NewMetrics()
	webhook := httptest.NewServer(server.NewWebhook(server.WebhookConfig{Reviewer: newReviewer(t), Ready: ready, Metrics: metrics, Log: discard}))
	defer webhook.Close()
	status, _, body := send(t, webhook, "POST", "/?timeout=100ms", strings.NewReader(review("slow")))
	if reason, message := problem(t, status, body); status != 504 || reason != "Timeout" {
		t.Errorf("got %d %s: %s, want 504 Timeout", status, reason, message)
	}
	counted(t, metrics, map[string]int{"timeout": 1})
}

func TestWebhookLivesThroughAPanic(t *testing.T) {
	broken := true
	metrics := server.NewMetrics()
	webhook := httptest.NewServer(server.NewWebhook(server.WebhookConfig{Reviewer: reviewerFunc(func(context.Context) (admission.Answer, error) {
		if broken {
			panic("a bug with a secret in it")
		}
		return admission.Answer{Body: []byte(`{}`), Allowed: true}, nil
	}), Ready: ready, Metrics: metrics, Log: discard}))
	defer webhook.Close()
	status, _, body := send(t, webhook, "POST", "/", strings.NewReader(review("allow")))
	if reason, message := problem(t, status, body); status != 500 || reason != "InternalError" || message != "internal error" {
		t.Errorf("got %d %s: %s", status, reason, message)
	}
	counted(t, metrics, map[string]int{"error": 1})
	broken = false
	if status, _, body = send(t, webhook, "POST", "/", strings.NewReader(review("allow"))); status != 200 {
		t.Errorf("got %d %s after the panic", status, body)
	}
}

// What becomes of a review is counted, logged and remembered, whatever the answer is.
func TestWebhookAccountsForWhatIsNotDecided(t *testing.T) {
	for _, test := range []struct {
		name    string
		answer  admission.Answer
		err     error
		status  int
		outcome string
		action  string // of the fallback that is counted
		refused bool
		ranOut  bool
	}{
		{
			name: "nothing is said, and the API server decides", answer: admission.Answer{Review: "AdmissionReview", Cause: policy.ErrUndefined, Action: admission.Fail},
			err: policy.ErrUndefined, status: 500, outcome: "undefined", action: "fail", refused: true,
		},
		{
			name: "nothing is said, and that is a denial", answer: admission.Answer{Review: "AdmissionReview", Cause: policy.ErrUndefined, Action: admission.Deny},
			status: 200, outcome: "undefined", action: "deny", refused: true,
		},
		{
			name: "an error lets it pass", answer: admission.Answer{Review: "AdmissionReview", Cause: errors.New("conflict"), Action: admission.Allow, Allowed: true},
			status: 200, outcome: "error", action: "allow",
		},
		{
			name: "the time is up", answer: admission.Answer{Review: "AdmissionReview", Cause: context.DeadlineExceeded, Action: admission.Fail},
			err: context.DeadlineExceeded, status: 504, outcome: "timeout", action: "fail", refused: true, ranOut: true,
		},
		{
			name: "the time is up, and that is a denial", answer: admission.Answer{Review: "AdmissionReview", Cause: context.DeadlineExceeded, Action: admission.Deny},
			status: 200, outcome: "timeout", action: "deny", refused: true, ranOut: true,
		},
		{
			name: "who asked is gone", answer: admission.Answer{Review: "AdmissionReview", Cause: context.Canceled, Action: admission.Fail},
			err: context.Canceled, status: 503, outcome: "canceled",
		},
		{name: "a denial", answer: admission.Answer{Review: "AdmissionReview", Modules: []string{"opa/a/main"}}, status: 200, outcome: "denied", refused: true},
		{name: "no opinion", answer: admission.Answer{Review: "SubjectAccessReview", NoOpinion: true}, status: 200, outcome: "denied"},
	} {
		t.Run(test.name, func(t *testing.T) {
			metrics, refusals, ranOut := server.NewMetrics(), server.NewRefusals(), false
			test.answer.DecisionID, test.answer.Request = "d1", admission.Request{Operation: "CREATE", Name: "a"}
			webhook := server.NewWebhook(server.WebhookConfig{
				Reviewer:   reviewerFunc(func(context.Context) (admission.Answer, error) { return test.answer, test.err }),
				Entrypoint: "system/main", Ready: ready, Metrics: metrics, Refusals: refusals, Log: discard,
				RanOut: func(admission.Answer) { ranOut = true },
			})
			recorder := httptest.NewRecorder()
			webhook.ServeHTTP(recorder, httptest.NewRequestWithContext(t.Context(), "POST", "/", strings.NewReader("{}")))
			if recorder.Code != test.status || ranOut != test.ranOut {
				t.Errorf("the status is %d and ranOut %v, want %d and %v", recorder.Code, ranOut, test.status, test.ranOut)
			}
			counted(t, metrics, map[string]int{test.outcome: 1})
			body := httptest.NewRecorder()
			metrics.Handler().ServeHTTP(body, httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
			fallback := fmt.Sprintf("kube_rego_admission_fallbacks_total{action=%q,cause=%q} 1\n", test.action, test.outcome)
			if got := strings.Contains(body.Body.String(), fallback); got != (test.action != "") {
				t.Errorf("that %s is %v", fallback, got)
			}
			var remembered []string
			for _, r := range refusals.List() {
				remembered = append(remembered, fmt.Sprint(r.DecisionID, r.Operation, r.Name, r.Modules, r.Outcome))
			}
			var want []string
			if test.refused {
				want = []string{fmt.Sprint("d1", "CREATE", "a", test.answer.Modules, test.outcome)}
			}
			if !slices.Equal(remembered, want) {
				t.Errorf("remembered is %q, want %q", remembered, want)
			}
		})
	}
}

// The path says for what kind of webhook an answer is.
func TestWebhookHasAPathForEachKind(t *testing.T) {
	saying := func(name string) server.Reviewer {
		return reviewerFunc(func(context.Context) (admission.Answer, error) {
			return admission.Answer{Allowed: true, Body: []byte(name)}, nil
		})
	}
	webhook := httptest.NewServer(server.NewWebhook(server.WebhookConfig{
		Reviewer: saying("reviewer"), Validator: saying("validator"), Ready: ready, Metrics: server.NewMetrics(), Log: discard,
	}))
	defer webhook.Close()
	for path, want := range map[string]string{"/": "reviewer", "/mutate": "reviewer", "/validate": "validator"} {
		if status, _, body := send(t, webhook, "POST", path+"?timeout=1s", strings.NewReader("{}")); status != 200 || body != want {
			t.Errorf("%s: got %d %s, want %s", path, status, body, want)
		}
	}
}
