package opa

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

func TestWhatTheAPIServes(t *testing.T) {
	h := run(t, "{}", "package k\nx := 1")
	const read, refused, nothing = "read", "refused", "nothing"
	served := map[string]map[string]bool{
		"/": {"POST": true}, "/v0/data": {"POST": true}, "/v0/data/k/x": {"POST": true}, "/v1/data": {"GET": true, "POST": true}, "/v1/data/k": {"GET": true, "POST": true},
		"/v1/query": {"GET": true, "POST": true}, "/v1/compile": {"POST": true}, "/v1/compile/k/x": {"GET": true, "POST": true}, "/v1/policies": {"GET": true}, "/v1/policies/opa/m0/main": {"GET": true},
		"/v1/config": {"GET": true}, "/v1/status": {"GET": true}, "/health": {"GET": true}, "/health/live": {"GET": true},
		"/metrics": {}, "/debug/pprof/heap": {}, "/v1": {}, "/v2/data": {}, "/v1/datax": {}, "/v1/config/x": {}, "/v0/policies": {}, "/healthz": {}, "/v1/query/x": {},
	}
	for path, methods := range served {
		for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "WRITE"} {
			if method == "CONNECT" {
				continue // net/http's mux redirects nothing there, and no client sends it
			}
			want := nothing
			switch {
			case methods[method]:
				want = read
			case len(methods) > 0:
				want = refused
			}
			recorder := httptest.NewRecorder()
			h.API().ServeHTTP(recorder, httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader("{}")))
			body, err := io.ReadAll(recorder.Body)
			if err != nil {
				t.Fatal(err)
			}
			got := read
			switch {
			case recorder.Code == http.StatusMethodNotAllowed && strings.Contains(string(body), "policies and data are ConfigMaps here"):
				got = refused
			case recorder.Code == http.StatusNotFound && strings.Contains(string(body), "nothing is served at "+path):
				got = nothing
			}
			if got != want {
				t.Errorf("%s %s: it is %s (%d %s), want %s", method, path, got, recorder.Code, body, want)
			}
		}
	}
}

// An answer is made with one set, whatever goes into force meanwhile.
func TestAnAnswerIsOfOneSet(t *testing.T) {
	version := func(n int) []string {
		return []string{fmt.Sprintf("package k\nx := [%d, data.l.y]", n), fmt.Sprintf("package l\ny := %d", n)}
	}
	h := run(t, "{}", version(0)...)
	api := httptest.NewServer(h.API())
	defer api.Close()
	done := make(chan struct{})
	var editing sync.WaitGroup
	editing.Go(func() {
		for n := 1; ; n++ {
			select {
			case <-done:
				return
			default:
				h.enforce(t, version(n)...)
			}
		}
	})
	for range 300 {
		response, err := http.Get(api.URL + "/v1/data/k/x")
		if err != nil {
			t.Fatal(err)
		}
		var answer struct{ Result [2]int }
		if err := errors.Join(json.NewDecoder(response.Body).Decode(&answer), response.Body.Close()); err != nil {
			t.Fatal(err)
		}
		if answer.Result[0] != answer.Result[1] {
			t.Fatalf("an answer is of two sets: %v", answer.Result)
		}
	}
	close(done)
	editing.Wait()
	h.enforce(t, version(-1)...)
	recorder := httptest.NewRecorder()
	h.API().ServeHTTP(recorder, httptest.NewRequestWithContext(t.Context(), "GET", "/v1/data/k/x", nil))
	if got := recorder.Body.String(); got != "{\"result\":[-1,-1]}\n" {
		t.Errorf("the last set answers %s", got)
	}
}

// Who may ask is decided by system.authz where there is one.
func TestPoliciesDecideWhoMayAsk(t *testing.T) {
	const rules = "package system.authz\ndefault allow := false\nallow if input.identity == \"alice\"\nallow if input.path == [\"health\"]"
	for _, test := range []struct {
		name, token, path string
		modules           []string
		always            bool
		want              int
	}{
		{name: "nobody decides", path: "/v1/data", want: 200},
		{name: "nobody decides, and somebody must", path: "/v1/data", always: true, want: 500},
		{name: "it may", path: "/v1/data", token: "alice", modules: []string{rules}, want: 200},
		{name: "it may not", path: "/v1/data", token: "bob", modules: []string{rules}, want: 401},
		{name: "it does not say who it is", path: "/v1/policies", modules: []string{rules}, want: 401},
		{name: "it asks for what all may have", path: "/health", modules: []string{rules}, want: 200},
		{name: "the rules were never good", path: "/v1/data", modules: []string{"package system.authz\nallow if x y"}, want: 500},
		{name: "the rules were never good, in another spelling", path: "/v1/data", modules: []string{"package system[\"authz\"]\nallow if x y"}, want: 500},
		{name: "the rules call what there is not", path: "/v1/data", modules: []string{"package system\nauthz.allow := data.nowhere.f(1) # x y"}, want: 500},
		{name: "it asks for nothing that is served", path: "/metrics", modules: []string{rules}, want: 401},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := run(t, "{}", test.modules...)
			h.config.API.Authorize = test.always
			request := httptest.NewRequestWithContext(t.Context(), "GET", test.path, nil)
			if test.token != "" {
				request.Header.Set("Authorization", "Bearer "+test.token)
			}
			recorder := httptest.NewRecorder()
			h.API().ServeHTTP(recorder, request)
			if recorder.Code != test.want {
				t.Errorf("got %d %s, want %d", recorder.Code, recorder.Body, test.want)
			}
		})
	}
}

func TestABodyThatOnlySaysItIsCompressed(t *testing.T) {
	h := run(t, "{}", "package k\nx := input")
	for name, body := range map[string]string{"nothing": "", "text": `{"input":1}`, "the beginning of a header": "\x1f\x8b"} {
		request := httptest.NewRequestWithContext(t.Context(), "POST", "/v1/data/k/x", strings.NewReader(body))
		request.Header.Set("Content-Encoding", "gzip")
		recorder := httptest.NewRecorder()
		h.API().ServeHTTP(recorder, request)
		if recorder.Code != http.StatusBadRequest || !strings.Contains(recorder.Body.String(), "could not decompress the body") {
			t.Errorf("%s: got %d %s", name, recorder.Code, recorder.Body)
		}
	}
}
