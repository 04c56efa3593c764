package server_test

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kube-rego/kube-rego/pkg/policy"
	"github.com/kube-rego/kube-rego/pkg/server"
)

// full is a process that has something to tell of everything, each text with this in it.
func full(text string) (stubState, *server.Refusals) {
	id := func(name string) policy.ID { return policy.ID{Namespace: "opa", Name: name, Key: text} }
	problem := policy.Problem{Code: "rego_parse_error", Message: "no\n" + text, Row: 3, Col: 4, Source: "\tx = " + text, Caret: "\t  ^"}
	state := stubState{
		ready:       errors.New("waiting for " + text),
		sourceError: "reading " + text,
		report: policy.Report{Fingerprint: "0123456789abcdef", Modules: []policy.Status{
			{ID: id("a-good"), InForce: policy.Current, Version: policy.RegoV1},
			{ID: id("b-warned"), InForce: policy.Current, Version: policy.RegoV1, Warnings: []policy.Problem{{Code: "label", Message: "two " + text}}},
			{ID: id("c-edited"), InForce: policy.Previous, Version: policy.RegoV0, Problems: []policy.Problem{problem, problem}},
			{ID: id("d-new"), InForce: policy.None, Problems: []policy.Problem{{Code: "invalid_parameter", Message: text}}},
			{ID: id("e-gone"), InForce: policy.Previous, Deleted: true, Problems: []policy.Problem{{Code: "rego_type_error", Message: text}}},
		}},
		replicas: []server.Replica{
			{Identity: text, State: policy.ReplicaInStep, Fingerprint: "0123456789abcdef", Writer: true},
			{Identity: "b", State: policy.ReplicaLagging, Fingerprint: text},
		},
		resources: []policy.Resource{{Name: text, Resource: "v1/" + text, Path: "data.kubernetes." + text, State: policy.ResourceFailed, Reason: "no " + text}},
		bundles:   []server.Bundle{{Name: text, Revision: text, Roots: []string{text, ""}, State: "failed", Error: "no " + text, LastSuccess: time.Unix(1e9, 0)}},
		plugins:   []server.Plugin{{Name: text, State: "ERROR", Message: text}},
	}
	refusals := server.NewRefusals()
	refusals.Add(server.Refusal{
		Time: time.Unix(1e9, 0), DecisionID: text, Operation: text, Kind: text, Namespace: text, Name: text, User: text,
		Fingerprint: text, Modules: []string{text}, Outcome: text,
	})
	return state, refusals
}

// look asks for the status as a client that takes these media types does.
func look(t *testing.T, handler http.Handler, path string, accept ...string) (status int, header http.Header, body string) {
	t.Helper()
	request := httptest.NewRequestWithContext(t.Context(), "GET", path, nil)
	request.Header["Accept"] = accept
	recorder := httptest.NewRecorder()
	handler.ServeHTTP(recorder, request)
	return recorder.Code, recorder.Header(), recorder.Body.String()
}

func TestTheStatusIsAPageForThoseWhoAskForOne(t *testing.T) {
	const (
		object = "application/json"
		page   = "text/html; charset=utf-8"
	)
	handler := server.NewDiagnostic(stubState{}, server.NewMetrics(), nil)
	for _, test := range []struct {
		name, path string
		accept     []string
		status     int
		want       string
	}{
		{name: "who says nothing gets JSON", path: "/status", want: object},
		{name: "who takes anything gets JSON", path: "/status", accept: []string{"*/*"}, want: object},
		{name: "who wants JSON gets it", path: "/status", accept: []string{"application/json"}, want: object},
		{name: "who wants something else gets JSON", path: "/status", accept: []string{"application/yaml"}, want: object},
		{name: "who takes both alike gets JSON", path: "/status", accept: []string{"text/html, application/json"}, want: object},
		{name: "who likes JSON better gets it", path: "/status", accept: []string{"text/html;q=0.5, application/json"}, want: object},
		{name: "who does not want HTML gets JSON", path: "/status", accept: []string{"text/html;q=0, */*"}, want: object},
		{name: "who says what nobody understands gets JSON", path: "/status", accept: []string{"text/html;;q, ,"}, want: object},
		{
			name: "a browser gets the page", path: "/status",
			accept: []string{"text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"}, want: page,
		},
		{name: "who likes HTML better gets the page", path: "/status", accept: []string{"application/json;q=0.9", "TEXT/HTML"}, want: page},
		{name: "who asks for the page gets it", path: "/status?format=html", accept: []string{"application/json"}, want: page},
		{name: "a browser gets JSON if it asks for that", path: "/status?format=json", accept: []string{"text/html"}, want: object},
		{name: "there is no third format", path: "/status?format=yaml", accept: []string{"text/html"}, status: 400, want: object},
	} {
		t.Run(test.name, func(t *testing.T) {
			status, header, body := look(t, handler, test.path, test.accept...)
			if status != cmp.Or(test.status, 200) || header.Get("Content-Type") != test.want {
				t.Errorf("got %d %s: %.200s", status, header.Get("Content-Type"), body)
			}
			if header.Get("Vary") != "Accept" || header.Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("the headers are %v", header)
			}
		})
	}
}

func TestThePageShowsEverythingAndNothingOfItIsMarkup(t *testing.T) {
	const text = `</pre></style><script>alert("1")</script>&amp;'` + "\u202e"
	const shown = `&lt;/pre&gt;&lt;/style&gt;&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt;&amp;amp;&#39;` + "\ufffd"
	state, refusals := full(text)
	_, header, body := look(t, server.NewDiagnostic(state, server.NewMetrics(), refusals), "/status?format=html")
	if strings.Contains(body, "<script") || strings.Contains(body, "\u202e") || strings.Contains(body, "alert(\"") {
		t.Errorf("a text of others became a part of the page: %s", body)
	}
	for _, want := range []string{
		"not ready", "waiting for " + shown, "reading " + shown, "0123456789ab", "3 held",
		"opa/c-edited/" + shown, "at row 3, column 4: no " + shown, "\tx = " + shown + "\n\t  ^</pre>", "the version before is in force",
		"opa/d-new/" + shown, "nothing of it is in force", "opa/e-gone/" + shown, "the deletion is held", "two " + shown,
		"no " + shown, "v1/" + shown, "data.kubernetes." + shown, "all of data", "2001-09-09 01:46:40 UTC",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("the page does not show %s", want)
		}
	}
	if got, want := strings.Count(body, shown), 36; got != want {
		t.Errorf("the text is on the page %d times, want %d", got, want)
	}
	_, style, _ := strings.Cut(body, "<style>")
	style, _, _ = strings.Cut(style, "</style>")
	sum := sha256.Sum256([]byte(style))
	if got, want := header.Get("Content-Security-Policy"), "default-src 'none'; style-src 'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+"'; img-src data:; "+
		"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"; got != want {
		t.Errorf("the browser is told %s\nwant %s", got, want)
	}
}

func TestWhatIsHeldComesFirst(t *testing.T) {
	state, _ := full("key")
	_, _, body := look(t, server.NewDiagnostic(state, server.NewMetrics(), nil), "/status?format=html")
	_, table, _ := strings.Cut(body, `<h2 id="modules">`)
	var places []int
	for _, name := range []string{"d-new", "c-edited", "e-gone", "b-warned", "a-good"} {
		places = append(places, strings.Index(table, "opa/"+name+"/key"))
	}
	if !slices.IsSorted(places) || places[0] < 0 {
		t.Errorf("the modules are at %v", places)
	}
}

func TestTheStatusHasRefusalsAndSinceWhen(t *testing.T) {
	refusals, metrics := server.NewRefusals(), server.NewMetrics()
	refusals.Add(server.Refusal{Time: time.Unix(1e9, 0).UTC(), DecisionID: "D1", Operation: "CREATE", Kind: "Pod", Namespace: "a", Name: "b", User: "u", Fingerprint: "f", Modules: []string{"m"}, Outcome: "denied"})
	refusals.Add(server.Refusal{Time: time.Unix(2e9, 0).UTC(), Outcome: "timeout"})
	metrics.Activated("f", time.Time{})
	_, _, body := look(t, server.NewDiagnostic(stubState{}, metrics, refusals), "/status")
	const want = `"refusals":[{"time":"2033-05-18T03:33:20Z","outcome":"timeout"},` +
		`{"time":"2001-09-09T01:46:40Z","decisionID":"D1","operation":"CREATE","kind":"Pod","namespace":"a","name":"b","user":"u","fingerprint":"f","modules":["m"],"outcome":"denied"}]}`
	if !strings.HasSuffix(body, want+"\n") {
		t.Errorf("got  %s\nwant …%s", body, want)
	}
	var got struct{ Since time.Time }
	if err := json.NewDecoder(strings.NewReader(body)).Decode(&got); err != nil && !errors.Is(err, io.EOF) || got.Since.IsZero() {
		t.Errorf("%v: it is in force since %s", err, got.Since)
	}
}
