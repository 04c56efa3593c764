package daemon_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-rego/kube-rego/pkg/daemon"
)

// running is a daemon that serves policies from a folder.
type running struct {
	t       *testing.T
	folder  string
	webhook string // the URL of each listener
	status  string
	api     string
	client  *http.Client
	log     *lines // all of it, debug included
	stop    func() error
}

// lines are what was logged.
type lines struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.String()
}

// start runs a daemon on ports of its own until the test ends. Its files are
// policies: the text of each key main by the name of its ConfigMap.
func start(t *testing.T, policies map[string]string) *running {
	t.Helper()
	var files []string
	for name, rego := range policies {
		files = append(files, name, rego)
	}
	return startIn(t, t.TempDir(), nil, files...)
}

// startIn is start over a folder, with options that the test changes, and more policies:
// names and texts alternate.
func startIn(t *testing.T, folder string, change func(*daemon.Options), policies ...string) *running {
	t.Helper()
	d := &running{t: t, folder: folder, log: &lines{}}
	for n := 0; n < len(policies); n += 2 {
		d.edit(policies[n], policies[n+1])
	}
	o := defaults()
	o.Manifests = []string{d.folder}
	o.Addr, o.DiagnosticAddr, o.APIAddr = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	if change != nil {
		change(&o)
	}

	listening := listeners{addresses: make(chan [2]string, 3)}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	log := slog.NewMultiHandler(listening, slog.NewTextHandler(d.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	go func() { ended <- daemon.Run(ctx, o, slog.New(log)) }()
	d.stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() {
		if err := d.stop(); err != nil {
			t.Error(err)
		}
	})
	for range 3 {
		select {
		case l := <-listening.addresses:
			switch l[0] {
			case "webhook":
				d.webhook = "https://" + l[1] + "/"
			case "diagnostic":
				d.status = "http://" + l[1]
			case "API":
				d.api = "http://" + l[1]
			}
		case err := <-ended:
			ended <- nil
			t.Fatalf("it ended: %v", err)
		}
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{
		// The CA is made in memory, and without a cluster there is no webhook
		// configuration to find it in. That clients trust it is tested in certs.
		InsecureSkipVerify: true,
	}}
	t.Cleanup(transport.CloseIdleConnections)
	d.client = &http.Client{Transport: transport}
	return d
}

// with is d for a test within the test.
func (d *running) with(t *testing.T) *running {
	within := *d
	within.t = t
	return &within
}

// listeners is a log of which only the addresses are read.
type listeners struct {
	addresses chan [2]string
}

func (listeners) Enabled(context.Context, slog.Level) bool { return true }
func (l listeners) WithAttrs([]slog.Attr) slog.Handler     { return l }
func (l listeners) WithGroup(string) slog.Handler          { return l }
func (l listeners) Handle(_ context.Context, r slog.Record) error {
	if r.Message != "listening" {
		return nil
	}
	var name, address string
	r.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "listener":
			name = a.Value.String()
		case "address":
			address = a.Value.String()
		}
		return true
	})
	l.addresses <- [2]string{name, address}
	return nil
}

// edit writes the ConfigMap of this name with one key, as an editor does.
func (d *running) edit(name, rego string) {
	d.t.Helper()
	object := map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]any{"name": name, "namespace": "opa", "labels": map[string]string{"openpolicyagent.org/policy": "rego"}},
		"data":     map[string]string{"main": rego},
	}
	data, err := json.Marshal(object)
	if err != nil {
		d.t.Fatal(err)
	}
	d.write(name+".json", data)
}

func (d *running) write(file string, data []byte) {
	d.t.Helper()
	path := filepath.Join(d.folder, file)
	if err := os.WriteFile(path+".tmp", data, 0o600); err != nil {
		d.t.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		d.t.Fatal(err)
	}
}

func (d *running) remove(file string) {
	d.t.Helper()
	if err := os.Remove(filepath.Join(d.folder, file)); err != nil {
		d.t.Fatal(err)
	}
}

// statusPage is /status.
type statusPage struct {
	Ready       bool
	Fingerprint string
	SourceError string
	Modules     []moduleStatus
	Bundles     []struct{ Name, Revision string }
}

// revision is that of a bundle in force.
func (p statusPage) revision(bundle string) string {
	for _, b := range p.Bundles {
		if b.Name == bundle {
			return b.Revision
		}
	}
	return ""
}

type moduleStatus struct {
	Module, State, InForce string
	Problems               []struct {
		Code, Message string
		Row, Col      int
	}
}

func (p statusPage) module(id string) moduleStatus {
	for _, m := range p.Modules {
		if m.Module == id {
			return m
		}
	}
	return moduleStatus{}
}

// state is what /status says of a module in a few words.
func (p statusPage) state(id string) string {
	m := p.module(id)
	return m.State + " " + m.InForce
}

// await reads /status until it is as wanted. The limit is for a test that fails.
func (d *running) await(what string, wanted func(statusPage) bool) statusPage {
	d.t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for {
		status, body := d.get("/status")
		var page statusPage
		if err := json.Unmarshal(body, &page); err != nil || status != http.StatusOK {
			d.t.Fatalf("/status is %d, %v: %.500s", status, err, body)
		}
		if wanted(page) {
			return page
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("%s: it did not come to that; /status is %.2000s", what, body)
		}
		time.Sleep(10 * time.Millisecond) // between two looks
	}
}

func (d *running) awaitReady() {
	d.t.Helper()
	d.await("ready", func(p statusPage) bool { return p.Ready })
}

// awaitState waits until a module is in a state.
func (d *running) awaitState(id, state string) moduleStatus {
	d.t.Helper()
	return d.await(id+" is "+state, func(p statusPage) bool { return p.state(id) == state }).module(id)
}

func (d *running) get(path string) (status int, body []byte) {
	d.t.Helper()
	return d.do(http.MethodGet, d.status+path, nil)
}

func (d *running) do(method, url string, body io.Reader) (int, []byte) {
	d.t.Helper()
	request, err := http.NewRequestWithContext(d.t.Context(), method, url, body)
	if err != nil {
		d.t.Fatal(err)
	}
	response, err := d.client.Do(request)
	if err != nil {
		d.t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	return response.StatusCode, data
}

// ask is the answer to the request for a pod with this image: yes, or the
// message of the denial.
func (d *running) ask(image string) string {
	d.t.Helper()
	body := fmt.Sprintf(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u1","object":{"image":%q}}}`, image)
	status, answer := d.do(http.MethodPost, d.webhook, strings.NewReader(body))
	var review struct {
		Response struct {
			UID     string
			Allowed bool
			Status  struct{ Message string }
		}
	}
	if err := json.Unmarshal(answer, &review); err != nil || status != http.StatusOK || review.Response.UID != "u1" {
		d.t.Fatalf("the answer is %d, %v: %s", status, err, answer)
	}
	if review.Response.Allowed {
		return "yes"
	}
	return review.Response.Status.Message
}

// wants fails the test unless the webhook answers so.
func (d *running) wants(image, answer string) {
	d.t.Helper()
	if got := d.ask(image); got != answer {
		d.t.Errorf("the answer about image %s is %q, want %q", image, got, answer)
	}
}

// The entrypoint of all tests, and a policy that refuses one image.
const (
	opaMain = `package system
main := {"response": {"allowed": count(denials) == 0, "status": {"reason": concat(", ", denials)}}}
denials contains message if some message in data.kubernetes.admission.deny`
	noCurl = `package kubernetes.admission
deny contains "no curl" if input.request.object.image == "curl"`
)

func TestDaemon(t *testing.T) {
	d := start(t, map[string]string{"opa-main": opaMain, "images": noCurl})
	d.awaitReady()

	t.Run("it is healthy and ready", func(t *testing.T) {
		d := d.with(t)
		for _, path := range []string{"/healthz", "/readyz"} {
			if status, body := d.get(path); status != 200 || string(body) != "ok\n" {
				t.Errorf("%s is %d %s", path, status, body)
			}
		}
	})
	t.Run("policies answer", func(t *testing.T) {
		d := d.with(t)
		d.wants("curl", "no curl")
		d.wants("nginx", "yes")
	})
	t.Run("a broken edit is told with its place, and the rule of before still refuses", func(t *testing.T) {
		d := d.with(t)
		d.edit("images", "package kubernetes.admission\n\ndeny contains \"no wget\" if input.request.object.image = = \"wget\"")
		got := d.awaitState("opa/images/main", "held previous")
		if len(got.Problems) == 0 || got.Problems[0].Code != "rego_parse_error" || got.Problems[0].Row != 3 || got.Problems[0].Col == 0 {
			t.Errorf("the problems are %+v", got.Problems)
		}
		d.wants("curl", "no curl")
		d.wants("wget", "yes")
	})
	t.Run("the repair goes into force", func(t *testing.T) {
		d := d.with(t)
		d.edit("images", strings.ReplaceAll(noCurl, "curl", "wget"))
		d.awaitState("opa/images/main", "in_force current")
		d.wants("curl", "yes")
		d.wants("wget", "no wget")
	})
	t.Run("a file with broken YAML is told, and changes nothing", func(t *testing.T) {
		d := d.with(t)
		d.write("broken.yaml", []byte("a: b: c"))
		got := d.await("a source error", func(p statusPage) bool { return p.SourceError != "" })
		if want := filepath.Join(d.folder, "broken.yaml") + ", document 1: "; !strings.Contains(got.SourceError, want) {
			t.Errorf("the source error is %q, want it to name %q", got.SourceError, want)
		}
		if !got.Ready {
			t.Error("it is not ready any more")
		}
		d.wants("wget", "no wget")
		d.remove("broken.yaml")
		d.await("no source error", func(p statusPage) bool { return p.SourceError == "" })
	})
	t.Run("an added policy joins in, and a deleted one goes", func(t *testing.T) {
		d := d.with(t)
		d.edit("more", strings.ReplaceAll(noCurl, "no curl", "really no wget")+"\ndeny contains \"really no wget\" if input.request.object.image == \"wget\"")
		d.awaitState("opa/more/main", "in_force current")
		d.wants("wget", "no wget, really no wget")
		d.remove("more.json")
		d.await("it is gone", func(p statusPage) bool { return p.state("opa/more/main") == " " })
		d.wants("wget", "no wget")
	})
	t.Run("a metric counts what is in force", func(t *testing.T) {
		d := d.with(t)
		if _, body := d.get("/metrics"); !bytes.Contains(body, []byte("kube_rego_modules{in_force=\"current\",state=\"in_force\"} 2\n")) {
			t.Error("it does not")
		}
	})
}

func TestDaemonWithBadPolicies(t *testing.T) {
	d := start(t, map[string]string{"opa-main": opaMain, "images": noCurl})
	d.awaitReady()
	for _, test := range []struct {
		name     string
		edit     func(*running)
		problems map[string]string // part of the first problem of each module that is held
	}{
		{
			name:     "a key that is empty",
			edit:     func(d *running) { d.edit("bad", "") },
			problems: map[string]string{"opa/bad/main": "empty module"},
		},
		{
			name:     "a key with nothing but a comment",
			edit:     func(d *running) { d.edit("bad", "# later\n") },
			problems: map[string]string{"opa/bad/main": "empty module"},
		},
		{
			name: "a ConfigMap with binaryData only",
			edit: func(d *running) {
				d.write("bad.json", []byte(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"bad","namespace":"opa",`+
					`"labels":{"openpolicyagent.org/policy":"rego"}},"binaryData":{"main":"//4="}}`))
			},
			problems: map[string]string{"opa/bad/main": `key "main" is in binaryData`},
		},
		{
			name: "two modules that clash",
			edit: func(d *running) {
				d.edit("bad", "package clash\n\nlimit := 1")
				d.awaitState("opa/bad/main", "in_force current")
				d.edit("worse", "package clash\n\nlimit contains 2")
			},
			problems: map[string]string{"opa/worse/main": "conflicting rules data.clash.limit found"},
		},
		{
			name:     "1 MiB of bad Rego in one line",
			edit:     func(d *running) { d.edit("bad", "package bad\n"+strings.Repeat("p { ", 1<<18)) },
			problems: map[string]string{"opa/bad/main": ""},
		},
		{
			name:     "1 MiB of bad Rego in many lines",
			edit:     func(d *running) { d.edit("bad", "package bad\n"+strings.Repeat("p = = 1\n", 1<<17)) },
			problems: map[string]string{"opa/bad/main": ""},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := d.with(t)
			test.edit(d)
			for id, want := range test.problems {
				got := d.awaitState(id, "held none")
				if len(got.Problems) == 0 || !strings.Contains(got.Problems[0].Message, want) || got.Problems[0].Code == "" {
					t.Errorf("the problems of %s are %.500v, want %q", id, got.Problems, want)
				}
			}
			d.wants("curl", "no curl")
			d.wants("nginx", "yes")
			for _, name := range []string{"bad", "worse"} {
				_ = os.Remove(filepath.Join(d.folder, name+".json"))
			}
			d.await("the two good modules", func(p statusPage) bool { return len(p.Modules) == 2 })
		})
	}
}

func TestDaemonWithAMebibyteOfRego(t *testing.T) {
	d := start(t, map[string]string{"opa-main": opaMain})
	d.awaitReady()
	var rego strings.Builder
	rego.WriteString("package kubernetes.admission\n\nimages := {\n")
	for i := 0; rego.Len() < 1<<20; i++ {
		_, _ = fmt.Fprintf(&rego, "\t\"registry.example.com/a/rather/long/name/of/a/repository/image-%d\",\n", i)
	}
	rego.WriteString("}\n\ndeny contains \"listed\" if input.request.object.image in images\n")
	d.edit("images", rego.String())
	d.awaitState("opa/images/main", "in_force current")
	d.wants("registry.example.com/a/rather/long/name/of/a/repository/image-1", "listed")
	d.wants("nginx", "yes")
}

func TestDaemonAnswersWhatIsNoReview(t *testing.T) {
	d := start(t, map[string]string{"opa-main": opaMain})
	d.awaitReady()
	for _, test := range []struct {
		name, method, body string
		want               int
	}{
		{"a person with a browser", http.MethodGet, "", http.StatusMethodNotAllowed},
		{"an empty body", http.MethodPost, "", http.StatusBadRequest},
		{"another object", http.MethodPost, `{"kind":"Pod"}`, http.StatusBadRequest},
		{"10 MiB", http.MethodPost, strings.Repeat(" ", 10<<20), http.StatusRequestEntityTooLarge},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := d.with(t)
			status, body := d.do(test.method, d.webhook, strings.NewReader(test.body))
			var s metav1.Status
			if err := json.Unmarshal(body, &s); err != nil || status != test.want || int(s.Code) != test.want || s.Message == "" {
				t.Errorf("got %d %s, want %d and a Status", status, body, test.want)
			}
		})
	}
	d.wants("nginx", "yes")
}

func TestDaemonStops(t *testing.T) {
	d := start(t, map[string]string{"opa-main": opaMain})
	d.awaitReady()
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	for _, url := range []string{d.webhook, d.status} {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if response, err := d.client.Do(request); err == nil {
			_ = response.Body.Close()
			t.Errorf("%s still answers", url)
		}
	}
}

func TestDaemonThatCannotStart(t *testing.T) {
	dir := t.TempDir()
	for _, test := range []struct {
		name   string
		change func(*daemon.Options)
		want   string
	}{
		{"options that are not valid", func(o *daemon.Options) { o.Addr = "8443" }, `--addr: "8443" is not an address`},
		{"no such manifest", func(o *daemon.Options) { o.Manifests = []string{filepath.Join(dir, "none")} }, "reading manifests: stat "},
		{
			"no such certificate",
			func(o *daemon.Options) {
				o.TLSCertFile, o.TLSPrivateKeyFile = filepath.Join(dir, "crt"), filepath.Join(dir, "key")
			},
			"reading the serving certificate: open ",
		},
		{"an address of somebody else", func(o *daemon.Options) { o.Addr = "192.0.2.1:8443" }, "listening for webhook: "},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := defaults()
			o.Manifests = []string{dir}
			o.Addr, o.DiagnosticAddr = "127.0.0.1:0", "127.0.0.1:0"
			test.change(&o)
			err := daemon.Run(t.Context(), o, slog.New(slog.DiscardHandler))
			if err == nil || !strings.HasPrefix(err.Error(), test.want) {
				t.Errorf("got the error %v, want %q", err, test.want)
			}
		})
	}
}
