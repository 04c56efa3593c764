package server

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func writeToken(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// newTokenFile reads a token from a file with this text.
func newTokenFile(t *testing.T, text string) (*TokenFile, string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "token")
	writeToken(t, file, text)
	token, err := NewTokenFile(file, discard)
	if err != nil {
		t.Fatal(err)
	}
	return token, file
}

func TestTokenIsRequired(t *testing.T) {
	for _, test := range []struct {
		name, method, path string
		authorization      string
		passes             bool
	}{
		{name: "the token", authorization: "Bearer s3cret", passes: true},
		{name: "the token, the scheme in small letters", authorization: "bearer s3cret", passes: true},
		{name: "the token after two spaces", authorization: "Bearer  s3cret", passes: true},
		{name: "no token"},
		{name: "an empty token", authorization: "Bearer "},
		{name: "a scheme without a token", authorization: "Bearer"},
		{name: "a token without a scheme", authorization: "s3cret"},
		{name: "the token by another scheme", authorization: "Basic s3cret"},
		{name: "another token", authorization: "Bearer secret"},
		{name: "the beginning of the token", authorization: "Bearer s3cre"},
		{name: "more than the token", authorization: "Bearer s3crets"},
		{name: "the token in large letters", authorization: "Bearer S3CRET"},
		{name: "the token among others", authorization: "Bearer x, Bearer s3cret"},
		{name: "a probe of the kubelet", path: "/health", passes: true},
		{name: "a probe that asks for bundles", path: "/health?bundles", passes: true},
		{name: "a path below the probe's", path: "/health/live"},
		{name: "a path that looks like the probe's", path: "//health"},
		{name: "a path that leads to the probe's", path: "/v1/../health"},
		{name: "the probe's path, written to", method: "POST", path: "/health"},
	} {
		t.Run(test.name, func(t *testing.T) {
			token, _ := newTokenFile(t, "\n s3cret\r\n")
			handler := token.Require(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "in") }))
			method, path := test.method, test.path
			if method == "" {
				method = "GET"
			}
			if path == "" {
				path = "/v1/data/x"
			}
			request := httptest.NewRequestWithContext(t.Context(), method, "http://api", nil)
			request.URL.Path, request.URL.RawQuery, _ = strings.Cut(path, "?")
			if test.authorization != "" {
				request.Header.Set("Authorization", test.authorization)
			}
			recorder := httptest.NewRecorder()
			handler.ServeHTTP(recorder, request)
			if test.passes {
				if recorder.Code != 200 || recorder.Body.String() != "in" {
					t.Errorf("got %d %s", recorder.Code, recorder.Body)
				}
				return
			}
			const want = "{\n  \"code\": \"unauthorized\",\n  \"message\": \"the request needs the header Authorization: Bearer with the right token\"\n}\n"
			if recorder.Code != 401 || recorder.Body.String() != want {
				t.Errorf("got %d %s", recorder.Code, recorder.Body)
			}
			if got := recorder.Header(); got.Get("WWW-Authenticate") != "Bearer" || got.Get("Content-Type") != "application/json" {
				t.Errorf("the headers are %v", got)
			}
		})
	}
}

// hasToken reports whether a request with this token passes.
func hasToken(t *testing.T, token *TokenFile, text string) bool {
	request := httptest.NewRequestWithContext(t.Context(), "GET", "/", nil)
	request.Header.Set("Authorization", "Bearer "+text)
	return token.accepts(request)
}

func TestTokenReload(t *testing.T) {
	for _, test := range []struct {
		name    string
		edit    func(t *testing.T, file string)
		changed bool
		want    string // part of the error
		token   string
	}{
		{name: "a file that did not change is left alone", token: "first", edit: func(*testing.T, string) {}},
		{
			name: "white space around the token is no change", token: "first",
			edit: func(t *testing.T, file string) { writeToken(t, file, " first\n\n") },
		},
		{
			name: "another token takes the place of the first", token: "second", changed: true,
			edit: func(t *testing.T, file string) { writeToken(t, file, "second\n") },
		},
		{
			name: "an empty file changes nothing", token: "first", want: "the file is empty",
			edit: func(t *testing.T, file string) { writeToken(t, file, "") },
		},
		{
			name: "nothing but white space changes nothing", token: "first", want: "the file is empty",
			edit: func(t *testing.T, file string) { writeToken(t, file, " \n") },
		},
		{
			name: "two tokens change nothing", token: "first", want: "there is more than one word",
			edit: func(t *testing.T, file string) { writeToken(t, file, "second\nthird\n") },
		},
		{
			name: "a file that is gone changes nothing", token: "first", want: "reading the token: ",
			edit: func(t *testing.T, file string) {
				if err := os.Remove(file); err != nil {
					t.Fatal(err)
				}
			},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			token, file := newTokenFile(t, "first")
			test.edit(t, file)
			changed, err := token.reload()
			if changed != test.changed {
				t.Errorf("changed is %v, want %v", changed, test.changed)
			}
			switch {
			case test.want == "" && err != nil:
				t.Error(err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), file)):
				t.Errorf("got the error %v, want %q and the name of the file", err, test.want)
			}
			for _, text := range []string{"first", "second", "third", ""} {
				if got, want := hasToken(t, token, text), text == test.token; got != want {
					t.Errorf("the token %q passes: %v", text, got)
				}
			}
		})
	}
}

func TestNewTokenFileOfABadFile(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty")
	writeToken(t, empty, "\n")
	for _, test := range []struct{ name, file, want string }{
		{"no file", filepath.Join(t.TempDir(), "missing"), "reading the token: "},
		{"an empty file", empty, "the file is empty"},
	} {
		t.Run(test.name, func(t *testing.T) {
			token, err := NewTokenFile(test.file, discard)
			if token != nil || err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), test.file) {
				t.Errorf("got the error %v, want %q and the name of the file", err, test.want)
			}
		})
	}
}

// The time of this test is not the real one.
func TestTokenIsReadAgainAndNeverLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "token")
		writeToken(t, file, "s3cret-1")
		var lines bytes.Buffer
		token, err := NewTokenFile(file, slog.New(slog.NewTextHandler(&lines, nil)))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		stopped := make(chan struct{})
		go func() { token.Run(ctx); close(stopped) }()
		for _, step := range []struct{ text, token, log string }{
			{text: "s3cret-1", token: "s3cret-1"},
			{text: "s3cret-2 s3cret-3", token: "s3cret-1", log: `level=ERROR msg="a file cannot be reloaded; what it held before stays in use" what=token file=` + file},
			{text: "s3cret-4", token: "s3cret-4", log: `level=INFO msg="file reloaded" what=token file=` + file},
		} {
			lines.Reset()
			writeToken(t, file, step.text)
			time.Sleep(time.Minute)
			synctest.Wait()
			if !hasToken(t, token, step.token) {
				t.Errorf("the token %s does not pass", step.token)
			}
			got := lines.String()
			if !strings.Contains(got, step.log) || (step.log == "") != (got == "") {
				t.Errorf("the log says %q, want %q", got, step.log)
			}
			if strings.Contains(got, "s3cret") {
				t.Errorf("the log gives the token away: %s", got)
			}
		}
		cancel()
		<-stopped
	})
}
