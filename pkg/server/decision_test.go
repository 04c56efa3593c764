package server_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/kube-rego/kube-rego/pkg/server"
)

// echo answers with what it was asked.
var echo = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	_, _ = fmt.Fprintf(w, "%s %s %d %q %v", r.Method, r.URL.RequestURI(), r.ContentLength, body, err)
})

// newDecisions is a webhook where rules decide at these paths, and the metrics of it.
func newDecisions(t *testing.T, data http.Handler, paths ...string) (*server.Webhook, *server.Metrics) {
	metrics := server.NewMetrics()
	return server.NewWebhook(server.WebhookConfig{
		Reviewer: newReviewer(t),
		Data:     data,
		Decides: func(path string) bool {
			for _, p := range paths {
				if p == path {
					return true
				}
			}
			return false
		},
		Ready:   ready,
		Metrics: metrics,
		Log:     discard,
	}), metrics
}

// apiProblem decodes the body of an error in the shape of OPA's REST API.
func apiProblem(t *testing.T, body string) (code, message string) {
	t.Helper()
	var e struct{ Code, Message string }
	if err := json.Unmarshal([]byte(body), &e); err != nil {
		t.Fatalf("the error is no JSON: %v in %q", err, body)
	}
	return e.Code, e.Message
}

func TestDecisions(t *testing.T) {
	// The odd ones would be taken if they could be said.
	handler, metrics := newDecisions(t, echo, "system/main", "authz/allow", "a.b/c d", "..", "x/../authz/allow", "authz//allow", "authz/allow/", "a/b%2Fc", "")
	webhook := httptest.NewServer(handler)
	defer webhook.Close()
	const tooLarge = 7<<20 + 1
	noRule := func(path string) string { return "no rule decides at " + path }
	for _, test := range []struct {
		name, method, path string
		body               io.Reader
		answer             string // what the handler of the data says; or, of an error:
		status             int
		code, message      string
		allow              string
	}{
		{
			name: "an authorization webhook's question", method: "POST", path: "/v0/data/authz/allow?timeout=3s", body: strings.NewReader(`{"kind":"SubjectAccessReview"}`),
			answer: `POST /v0/data/authz/allow?timeout=3s 30 "{\"kind\":\"SubjectAccessReview\"}" <nil>`,
		},
		{
			name: "an application's question", method: "POST", path: "/v1/data/system/main?pretty", body: strings.NewReader(`{"input":1}`),
			answer: `POST /v1/data/system/main?pretty 11 "{\"input\":1}" <nil>`,
		},
		{
			name: "a question without input", method: "GET", path: "/v1/data/authz/allow",
			answer: `GET /v1/data/authz/allow 0 "" <nil>`,
		},
		{
			name: "a body whose length is not told", method: "POST", path: "/v1/data/authz/allow", body: withoutLength{strings.NewReader(`{}`)},
			answer: `POST /v1/data/authz/allow 2 "{}" <nil>`,
		},
		{
			name: "a path with a dot and a space in its words", method: "GET", path: "/v1/data/a%2eb/c%20d",
			answer: `GET /v1/data/a%2eb/c%20d 0 "" <nil>`,
		},
		{
			name: "a path where no rule decides", method: "POST", path: "/v1/data/kubernetes/secrets", status: 404,
			code: "resource_not_found", message: noRule("/v1/data/kubernetes/secrets"),
		},
		{name: "all of data", method: "GET", path: "/v1/data", status: 404, code: "resource_not_found", message: noRule("/v1/data")},
		{name: "all of data, with a slash", method: "GET", path: "/v1/data/", status: 404, code: "resource_not_found", message: noRule("/v1/data/")},
		{name: "all of data, in the old API", method: "POST", path: "/v0/data", status: 404, code: "resource_not_found", message: noRule("/v0/data")},
		{name: "an empty segment", method: "GET", path: "/v1/data/authz//allow", status: 404, code: "resource_not_found", message: noRule("/v1/data/authz//allow")},
		{name: "a slash at the end", method: "GET", path: "/v1/data/authz/allow/", status: 404, code: "resource_not_found", message: noRule("/v1/data/authz/allow/")},
		{name: "dots for the folder above", method: "GET", path: "/v1/data/x/../authz/allow", status: 404, code: "resource_not_found", message: noRule("/v1/data/x/../authz/allow")},
		{name: "the same dots, encoded", method: "GET", path: "/v1/data/%2e%2e", status: 404, code: "resource_not_found", message: noRule("/v1/data/..")},
		{name: "an encoded slash", method: "GET", path: "/v1/data/authz%2Fallow", status: 404, code: "resource_not_found", message: noRule("/v1/data/authz/allow")},
		{name: "a slash that is encoded twice", method: "GET", path: "/v1/data/a/b%252Fc", status: 404, code: "resource_not_found", message: noRule("/v1/data/a/b%2Fc")},
		{
			name: "a write", method: "PUT", path: "/v1/data/authz/allow", body: strings.NewReader(`true`), status: 405, allow: "GET, POST",
			code: "method_not_allowed", message: "a decision is asked for with GET, POST",
		},
		{
			name: "a write where no rule decides", method: "DELETE", path: "/v1/data/kubernetes/secrets", status: 405, allow: "GET, POST",
			code: "method_not_allowed", message: "a decision is asked for with GET, POST",
		},
		{
			name: "a GET of the old API", method: "GET", path: "/v0/data/authz/allow", status: 405, allow: "POST",
			code: "method_not_allowed", message: "a decision is asked for with POST",
		},
		{
			name: "a timeout that is no duration", method: "POST", path: "/v1/data/authz/allow?timeout=soon", status: 400,
			code: "invalid_parameter", message: `timeout="soon" is not a positive duration such as 5s`,
		},
		{
			name: "a trace of the evaluation", method: "GET", path: "/v1/data/authz/allow?explain=full", status: 400,
			code: "invalid_parameter", message: "explain is not served here: it shows all data that the rules have read",
		},
		{
			name: "a body that says it is too large", method: "POST", path: "/v1/data/authz/allow", body: bytes.NewReader(make([]byte, tooLarge)), status: 413,
			code: "invalid_parameter", message: "the body is larger than 7340032 bytes",
		},
		{
			name: "a body that turns out too large", method: "POST", path: "/v0/data/authz/allow", body: withoutLength{bytes.NewReader(make([]byte, tooLarge))}, status: 413,
			code: "invalid_parameter", message: "the body is larger than 7340032 bytes",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			status, header, body := send(t, webhook, test.method, test.path, test.body)
			if test.answer != "" {
				if status != 200 || body != test.answer {
					t.Errorf("got  %d %s\nwant %s", status, body, test.answer)
				}
				return
			}
			code, message := apiProblem(t, body)
			if status != test.status || code != test.code || message != test.message {
				t.Errorf("got  %d %s: %s\nwant %d %s: %s", status, code, message, test.status, test.code, test.message)
			}
			if got := header.Get("Allow"); got != test.allow {
				t.Errorf("the header Allow is %q, want %q", got, test.allow)
			}
			if got := header.Get("Content-Type"); got != "application/json" {
				t.Errorf("the content type is %q", got)
			}
		})
	}
	t.Run("they are not counted as reviews", func(t *testing.T) { counted(t, metrics, nil) })
	t.Run("other paths are those of a webhook", func(t *testing.T) {
		for _, path := range []string{"/v1/policies", "/v1/query", "/v2/data/authz/allow", "/v1/datas/x", "/v1", "/v0/", "/health"} {
			status, _, body := send(t, webhook, "GET", path, nil)
			if reason, message := problem(t, 404, body); status != 404 || reason != "NotFound" || message != "nothing is served at "+path+"; AdmissionReviews go to POST /, /mutate or /validate" {
				t.Errorf("%s: got %d %s: %s", path, status, reason, message)
			}
		}
	})
}

// packed is a text in gzip.
func packed(t *testing.T, text []byte) []byte {
	t.Helper()
	var buffer bytes.Buffer
	w := gzip.NewWriter(&buffer)
	_, err := w.Write(text)
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return buffer.Bytes()
}

func TestDecisionsAboutPackedBodies(t *testing.T) {
	handler, _ := newDecisions(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(w, "%d %q %q %v", r.ContentLength, r.Header["Content-Encoding"], body, err)
	}), "authz/allow")
	whole := packed(t, []byte(`{"input":1}`))
	for _, test := range []struct {
		name, encoding string
		body           []byte
		status         int
		want           string // the answer, or the message of an error
	}{
		{name: "it is unpacked once", encoding: "gzip", body: whole, status: 200, want: `11 [] "{\"input\":1}" <nil>`},
		{name: "what is not packed is left alone", body: []byte(`{}`), status: 200, want: `2 [] "{}" <nil>`},
		{name: "what is no gzip", encoding: "gzip", body: []byte(`{"input":1}`), status: 400, want: "could not decompress the body: gzip: invalid header"},
		{name: "less than a header", encoding: "gzip", body: []byte("x"), status: 400, want: "could not decompress the body: unexpected EOF"},
		{name: "nothing", encoding: "gzip", status: 400, want: "could not decompress the body: EOF"},
		{name: "one that is cut off", encoding: "gzip", body: whole[:len(whole)-9], status: 400, want: "could not decompress the body: unexpected EOF"},
		{name: "as much as a body may hold", encoding: "gzip", body: packed(t, make([]byte, 7<<20)), status: 200},
		{name: "more than that", encoding: "gzip", body: packed(t, make([]byte, 7<<20+1)), status: 413, want: "the body is larger than 7340032 bytes"},
	} {
		t.Run(test.name, func(t *testing.T) {
			request := httptest.NewRequestWithContext(t.Context(), "POST", "/v1/data/authz/allow", bytes.NewReader(test.body))
			if test.encoding != "" {
				request.Header.Set("Content-Encoding", test.encoding)
			}
			recorder := httptest.NewRecorder()
			handler.ServeHTTP(recorder, request)
			got := recorder.Body.String()
			if test.status != 200 {
				_, got = apiProblem(t, got)
			}
			if recorder.Code != test.status || test.want != "" && got != test.want {
				t.Errorf("got  %d %s\nwant %d %s", recorder.Code, got, test.status, test.want)
			}
		})
	}
}

func TestDecisionsAreRefusedUntilReady(t *testing.T) {
	var lines bytes.Buffer
	webhook := httptest.NewServer(server.NewWebhook(server.WebhookConfig{
		Data: echo,
		Decides: func(string) bool {
			t.Error("it is asked what rules decide before there are all")
			return true
		},
		Ready:   func() error { return errors.New("waiting for the first list of ConfigMaps") },
		Metrics: server.NewMetrics(),
		Log:     slog.New(slog.NewTextHandler(&lines, nil)),
	}))
	defer webhook.Close()
	status, _, body := send(t, webhook, "POST", "/v1/data/authz/allow", nil)
	const want = "kube-rego is not ready: the first whole policy set is not in force yet"
	if code, message := apiProblem(t, body); status != 503 || code != "internal_error" || message != want {
		t.Errorf("got %d %s: %s", status, code, message)
	}
	if got, want := lines.String(), `level=WARN msg="no decision" path=/v1/data/authz/allow status=503 remote=127.0.0.1:`; !strings.Contains(got, want) ||
		!strings.Contains(got, `error="waiting for the first list of ConfigMaps"`) {
		t.Errorf("the log says %s", got)
	}
}

func TestDecisionsHaveADeadline(t *testing.T) {
	for _, test := range []struct {
		path string
		want time.Duration
	}{
		{"/v0/data/authz/allow?timeout=3s", 2700 * time.Millisecond},
		{"/v0/data/authz/allow?timeout=1h", 29500 * time.Millisecond},
		{"/v0/data/authz/allow", 9500 * time.Millisecond},
	} {
		t.Run(test.path, func(t *testing.T) {
			var deadline time.Time
			webhook, _ := newDecisions(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				deadline, _ = r.Context().Deadline()
			}), "authz/allow")
			before := time.Now()
			webhook.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), "POST", test.path, strings.NewReader("{}")))
			if deadline.Before(before.Add(test.want)) || deadline.After(time.Now().Add(test.want)) {
				t.Errorf("the decision had %s, want %s", deadline.Sub(before), test.want)
			}
		})
	}
}

func TestDecisionsLiveThroughAPanic(t *testing.T) {
	handler, metrics := newDecisions(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("a bug with a secret in it") }), "authz/allow")
	webhook := httptest.NewServer(handler)
	defer webhook.Close()
	status, _, body := send(t, webhook, "POST", "/v0/data/authz/allow", nil)
	if code, message := apiProblem(t, body); status != 500 || code != "internal_error" || message != "internal error" {
		t.Errorf("got %d %s: %s", status, code, message)
	}
	counted(t, metrics, nil)
}
