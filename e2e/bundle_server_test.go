package e2e_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/kube-rego/kube-rego/e2e/kuberego"
)

// What tests of OPA's configuration need: bundles, a server of them, and kube-rego without a cluster.

// bundle is one of OPA's bundles: texts by path.
type bundle map[string]string

// archive is the bundle as OPA downloads it.
func (b bundle) archive(t testing.TB) []byte {
	t.Helper()
	var buffer bytes.Buffer
	zipped := gzip.NewWriter(&buffer)
	files := tar.NewWriter(zipped)
	for _, path := range slices.Sorted(maps.Keys(b)) {
		if err := files.WriteHeader(&tar.Header{Name: "/" + path, Mode: 0o600, Size: int64(len(b[path]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(files, b[path]); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []io.Closer{files, zipped} {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return buffer.Bytes()
}

// with is the bundle with other texts; paths and texts alternate. A text that is empty takes the file away.
func (b bundle) with(pathsAndTexts ...string) bundle {
	other := maps.Clone(b)
	for n := 0; n < len(pathsAndTexts); n += 2 {
		other[pathsAndTexts[n]] = pathsAndTexts[n+1]
		if pathsAndTexts[n+1] == "" {
			delete(other, pathsAndTexts[n])
		}
	}
	return other
}

// manifest is the text of the file .manifest.
func manifest(revision string, roots ...string) string {
	text, err := json.Marshal(map[string]any{"revision": revision, "roots": roots})
	if err != nil {
		panic(err) // strings can be marshalled
	}
	return string(text)
}

// fileServer serves bundles as nginx does: with an ETag, and 304 to whoever has the newest.
type fileServer struct {
	*httptest.Server

	mu       sync.Mutex
	files    map[string][]byte
	broken   http.HandlerFunc // answers instead of us, if there is one
	answered map[string]int   // how often: "304 /lib.tar.gz"
	header   http.Header      // of the last request
}

func newFileServer(t testing.TB) *fileServer {
	t.Helper()
	s := &fileServer{files: make(map[string][]byte), answered: make(map[string]int)}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

// ServeHTTP answers one request.
func (s *fileServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	content, found := s.files[strings.TrimPrefix(r.URL.Path, "/")]
	broken := s.broken
	s.header = r.Header
	s.mu.Unlock()
	told := &toldStatus{ResponseWriter: w, status: http.StatusOK}
	switch {
	case broken != nil:
		broken(told, r)
	case !found:
		http.NotFound(told, r)
	default:
		told.Header().Set("ETag", fmt.Sprintf("%q", fmt.Sprintf("%x", sha256.Sum256(content))))
		http.ServeContent(told, r, r.URL.Path, time.Time{}, bytes.NewReader(content))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answered[fmt.Sprintf("%d %s", told.status, r.URL.Path)]++
}

// toldStatus remembers which status was answered.
type toldStatus struct {
	http.ResponseWriter
	status int
}

// WriteHeader notes the status.
func (t *toldStatus) WriteHeader(status int) {
	t.status = status
	t.ResponseWriter.WriteHeader(status)
}

// put serves a bundle under this name from now on.
func (s *fileServer) put(t testing.TB, name string, b bundle) {
	t.Helper()
	s.putBytes(name, b.archive(t))
}

func (s *fileServer) putBytes(name string, content []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files[name] = content
}

// answersWith lets another handler answer everything, until it is called with nil.
func (s *fileServer) answersWith(handler http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = handler
}

// fails is a handler that answers with this status.
func fails(status int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "broken on purpose", status) }
}

// hangsUp is a handler that answers nothing.
func hangsUp(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

// waitAnswered waits until an answer such as "304 /lib.tar.gz" was given.
func (s *fileServer) waitAnswered(t testing.TB, what string) {
	t.Helper()
	s.mu.Lock()
	before := s.answered[what]
	s.mu.Unlock()
	eventually(t, "the answer "+what, func(context.Context) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.answered[what] == before {
			return fmt.Errorf("there were %v", s.answered)
		}
		return nil
	})
}

// lastHeader is the header of the last request, by name.
func (s *fileServer) lastHeader(name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.header.Get(name)
}

// polling asks a service every second, the shortest time that OPA knows.
const polling = `polling: {min_delay_seconds: 1, max_delay_seconds: 1}`

// bundleConfig is OPA's configuration of bundles, each served under its own name.
func bundleConfig(s *fileServer, names ...string) string {
	var text strings.Builder
	fmt.Fprintf(&text, "services: {files: {url: %s}}\nbundles:\n", s.URL)
	for _, name := range names {
		fmt.Fprintf(&text, "  %[1]s: {service: files, resource: %[1]s.tar.gz, %[2]s}\n", name, polling)
	}
	return text.String()
}

// writeFile writes a file for the test and tells its path.
func writeFile(t testing.TB, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// opaConfig is the argument for a configuration of OPA.
func opaConfig(t testing.TB, content string) string {
	t.Helper()
	return "--opa-config=" + writeFile(t, "opa.yaml", content)
}

// standalone is kube-rego without a cluster.
type standalone struct {
	*kuberego.Instance
	config kuberego.StandaloneConfig
}

// newStandalone prepares kube-rego with these ConfigMaps.
func newStandalone(t testing.TB, policies []*corev1.ConfigMap, args ...string) *standalone {
	t.Helper()
	s := &standalone{config: kuberego.StandaloneConfig{
		Binary: cluster.binary, Dir: t.TempDir(), Manifests: t.TempDir(), Args: args,
	}}
	s.apply(t, policies...)
	return s
}

// serve runs kube-rego with these ConfigMaps until the test ends, and waits until it is ready.
func serve(t testing.TB, policies []*corev1.ConfigMap, args ...string) *standalone {
	t.Helper()
	s := newStandalone(t, policies, args...)
	s.start(t)
	s.waitReady(t)
	return s
}

// start starts it, and waits until /status answers.
func (s *standalone) start(t testing.TB) {
	t.Helper()
	instance, err := kuberego.StartStandalone(t.Context(), s.config)
	if err != nil {
		t.Fatal(err)
	}
	s.Instance = instance
	t.Cleanup(func() { stop(t, instance) })
}

func (s *standalone) waitReady(t testing.TB) {
	t.Helper()
	if err := s.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// apply writes ConfigMaps, each into a file of its own.
func (s *standalone) apply(t testing.TB, policies ...*corev1.ConfigMap) {
	t.Helper()
	for _, cm := range policies {
		cm.APIVersion, cm.Kind = "v1", "ConfigMap"
		text, err := json.Marshal(cm)
		if err != nil {
			t.Fatal(err)
		}
		// Made whole elsewhere and put there at once: half a file would be half a policy.
		path := s.file(cm)
		if err := os.WriteFile(path+".new", text, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
}

func (s *standalone) file(cm *corev1.ConfigMap) string {
	return filepath.Join(s.config.Manifests, cm.Namespace+"-"+cm.Name+".json")
}

// withBundles waits until the bundles are as wanted.
func withBundles(t testing.TB, instance *kuberego.Instance, what string, wanted func(map[string]kuberego.Bundle) bool) {
	t.Helper()
	eventually(t, what, func(ctx context.Context) error {
		status, err := instance.Status(ctx)
		if err != nil {
			return err
		}
		all := make(map[string]kuberego.Bundle, len(status.Bundles))
		for _, b := range status.Bundles {
			all[b.Name] = b
		}
		if !wanted(all) {
			return fmt.Errorf("they are %+v", status.Bundles)
		}
		return nil
	})
}

// activeBundle waits until this revision of a bundle is in force.
func activeBundle(t testing.TB, instance *kuberego.Instance, name, revision string) kuberego.Bundle {
	t.Helper()
	var b kuberego.Bundle
	withBundles(t, instance, "bundle "+name+" "+revision, func(all map[string]kuberego.Bundle) bool {
		b = all[name]
		return b.State == "active" && b.Revision == revision && b.Error == ""
	})
	return b
}

// failedBundle waits until a bundle has failed for a reason with these parts, while this revision stays in force.
func failedBundle(t testing.TB, instance *kuberego.Instance, name, revision string, reason ...string) {
	t.Helper()
	withBundles(t, instance, fmt.Sprintf("bundle %s fails with %q", name, reason), func(all map[string]kuberego.Bundle) bool {
		b := all[name]
		return b.State == "failed" && b.Revision == revision && contains(reason...)(b.Error)
	})
}

// module is what /status tells of a module, once it is as wanted.
func module(t testing.TB, instance *kuberego.Instance, id string, wanted func(kuberego.Module) bool) kuberego.Module {
	t.Helper()
	var found kuberego.Module
	eventually(t, "the state of "+id, func(ctx context.Context) error {
		status, err := instance.Status(ctx)
		if err != nil {
			return err
		}
		n := slices.IndexFunc(status.Modules, func(m kuberego.Module) bool { return m.ID == id })
		if n < 0 {
			return fmt.Errorf("it is not there")
		}
		if found = status.Modules[n]; !wanted(found) {
			return fmt.Errorf("it is %+v", found)
		}
		return nil
	})
	return found
}

func currentModule(t testing.TB, instance *kuberego.Instance, id string) {
	t.Helper()
	module(t, instance, id, func(m kuberego.Module) bool { return m.State == "in_force" && m.InForce == "current" })
}

// heldModule waits until a module is held, with this version in force, for a reason with these parts.
func heldModule(t testing.TB, instance *kuberego.Instance, id, inForce string, reason ...string) {
	t.Helper()
	module(t, instance, id, func(m kuberego.Module) bool {
		return m.State == "held" && m.InForce == inForce &&
			slices.ContainsFunc(m.Problems, func(p kuberego.Problem) bool { return contains(reason...)(p.Code + " " + p.Message) })
	})
}

// send sends a request and tells status and body. A client that is nil asks without a proxy.
func send(ctx context.Context, c *http.Client, method, url, body string, header ...string) (int, string, error) {
	request, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	for n := 0; n < len(header); n += 2 {
		request.Header.Set(header[n], header[n+1])
	}
	do := http.DefaultTransport.RoundTrip // no proxy is asked for loopback
	if c != nil {
		do = c.Do
	}
	response, err := do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return response.StatusCode, strings.TrimSpace(string(text)), err
}

// asked is the value of a decision in JSON; "undefined" if it is.
func asked(ctx context.Context, instance *kuberego.Instance, path, input string) (string, error) {
	status, text, err := send(ctx, nil, http.MethodPost, instance.APIURL()+"/v1/data/"+path, `{"input": `+input+`}`)
	if err != nil {
		return "", err
	}
	var body struct{ Result json.RawMessage }
	if err := json.Unmarshal([]byte(text), &body); err != nil || status != http.StatusOK {
		return "", fmt.Errorf("status %d: %s", status, text)
	}
	if body.Result == nil {
		return "undefined", nil
	}
	return string(body.Result), nil
}

// decides waits until a decision is this JSON.
func decides(t testing.TB, instance *kuberego.Instance, path, input, wanted string) {
	t.Helper()
	eventually(t, path+" is "+wanted, func(ctx context.Context) error {
		got, err := asked(ctx, instance, path, input)
		if err == nil && got != wanted {
			err = fmt.Errorf("it is %s", got)
		}
		return err
	})
}

// stillDecides fails unless a decision is this JSON now.
func stillDecides(t testing.TB, instance *kuberego.Instance, path, input, wanted string) {
	t.Helper()
	if got, err := asked(t.Context(), instance, path, input); err != nil || got != wanted {
		t.Errorf("%s is %s, %v; want %s", path, got, err, wanted)
	}
}
