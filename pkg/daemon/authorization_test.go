package daemon_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/kube-rego/kube-rego/pkg/daemon"
)

// A policy for the API that has a mistake lets nobody in, whichever way it came to be held
// with nothing in force: the author wanted somebody kept out.
func TestTheAPIRefusesWhileItsPolicyIsHeld(t *testing.T) {
	const broken = "package system.authz\nallow := = false"
	policies := map[string]string{
		"main": `package system` + "\n" + `main := {"response": {"allowed": true}}`,
		"app":  "package app\nx := 42",
	}
	d := start(t, policies)
	d.awaitReady()
	d.wantsAPI("at the start", http.StatusOK)

	d.edit("authz", broken)
	d.awaitState("opa/authz/main", "held none")
	d.wantsAPI("once its policy is added, and held", refused)
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}

	d = startIn(t, d.folder, nil)
	d.awaitState("opa/authz/main", "held none")
	d.wantsAPI("after a restart", refused)
	d.remove("authz.json")
	d.await("the policy is gone", func(p statusPage) bool { return len(p.Modules) == 2 })
	d.wantsAPI("once its policy is gone", http.StatusOK)
}

// So it is when a bundle comes, which makes a new set of what is in force.
func TestTheAPIRefusesWhileItsPolicyIsHeldAndABundleComes(t *testing.T) {
	bundles := serveBundle(t, "r1")
	d := startIn(t, t.TempDir(), func(o *daemon.Options) { o.OPAConfig = bundles.configuration(t) },
		"main", "package system\nmain := {\"response\": {\"allowed\": true}}",
		"app", "package app\nx := 42",
		"authz", "package system.authz\nallow := = false")
	d.await("the first bundle", func(p statusPage) bool { return p.Ready && p.revision("bun") == "r1" })
	d.wantsAPI("with the first bundle", refused)
	bundles.revision.Store("r2")
	d.await("the second bundle", func(p statusPage) bool { return p.revision("bun") == "r2" })
	d.wantsAPI("with the second bundle", refused)
	d.remove("authz.json")
	d.await("the policy is gone", func(p statusPage) bool { return len(p.Modules) == 2 })
	d.wantsAPI("once its policy is gone", http.StatusOK)
}

// refused is OPA's own answer where its authorization has no decision.
const refused = http.StatusInternalServerError

// wantsAPI asks the API for a value.
func (d *running) wantsAPI(when string, want int) {
	d.t.Helper()
	status, body := d.do(http.MethodGet, d.api+"/v1/data/app/x", nil)
	text := map[int]string{http.StatusOK: `{"result":42}`, refused: "authorization policy missing or undefined"}[want]
	if status != want || !strings.Contains(string(body), text) {
		d.t.Errorf("%s: the API answers %d %s, want %d", when, status, body, want)
	}
}

// bundleService serves the bundle bun, whose root is bun, in one revision after the other.
type bundleService struct {
	*httptest.Server
	revision atomic.Value
}

func serveBundle(t *testing.T, revision string) *bundleService {
	t.Helper()
	s := &bundleService{}
	s.revision.Store(revision)
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err := s.write(w); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *bundleService) write(w http.ResponseWriter) error {
	revision := s.revision.Load()
	files := [][2]string{
		{".manifest", fmt.Sprintf(`{"revision": %q, "roots": ["bun"]}`, revision)},
		{"bun.rego", fmt.Sprintf("package bun\nrevision := %q", revision)},
	}
	var packed bytes.Buffer
	zip := gzip.NewWriter(&packed)
	archive := tar.NewWriter(zip)
	for _, file := range files {
		if err := archive.WriteHeader(&tar.Header{Name: file[0], Size: int64(len(file[1])), Mode: 0o600}); err != nil {
			return err
		}
		if _, err := archive.Write([]byte(file[1])); err != nil {
			return err
		}
	}
	if err := errors.Join(archive.Close(), zip.Close()); err != nil {
		return err
	}
	_, err := w.Write(packed.Bytes())
	return err
}

// configuration is a file with OPA's configuration that fetches the bundle.
func (s *bundleService) configuration(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "opa.yaml")
	text := fmt.Sprintf(`{"services": {"s": {"url": %q}}, "bundles": {"bun": {"service": "s", "resource": "bun",
		"polling": {"min_delay_seconds": 1, "max_delay_seconds": 1}}}}`, s.URL)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
