package e2e_test

import (
	"cmp"
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/kube-rego/kube-rego/e2e/kuberego"
)

// What tests of several replicas and of what is kept in the cluster need beside the helpers of main_test.go.

// allowAllNamespaces gives kube-rego the rights of the component all-namespaces, which go beyond those of the base, until
// the test ends.
func allowAllNamespaces(t *testing.T) {
	t.Helper()
	applyRights(t, "all-namespaces")
}

// applyRights applies the RBAC of a component of the manifests until the test ends.
func applyRights(t *testing.T, component string) {
	t.Helper()
	rbac := filepath.Join(cluster.root, "manifests", component, "rbac.yaml")
	kubectl(t, "apply", "-f", rbac)
	t.Cleanup(func() {
		if out, err := cluster.Kubectl(context.Background(), "delete", "-f", rbac).CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
}

// startReplica starts one more instance, until the test ends, and tells its identity.
func startReplica(t *testing.T, installation *kuberego.Installation, beside *kuberego.Instance) (*kuberego.Instance, string) {
	t.Helper()
	before := replicas(t, beside)
	instance, err := installation.StartReplica(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, instance) })
	var identity string
	eventually(t, "the new replica in /status of another", func(ctx context.Context) error {
		status, err := beside.Status(ctx)
		for _, r := range status.Replicas {
			if _, known := before[r.Identity]; !known {
				identity = r.Identity
			}
		}
		if err == nil && identity == "" {
			err = fmt.Errorf("it knows %v", status.Replicas)
		}
		return err
	})
	return instance, identity
}

// replicas are the states of all replicas, by identity, as an instance sees them.
func replicas(t *testing.T, instance *kuberego.Instance) map[string]string {
	t.Helper()
	status, err := instance.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return states(status)
}

func states(status kuberego.Status) map[string]string {
	all := make(map[string]string, len(status.Replicas))
	for _, r := range status.Replicas {
		all[r.Identity] = r.State
	}
	return all
}

// inStep waits until an instance knows exactly n replicas, all of them in step, and one of them the writer.
func inStep(t *testing.T, instance *kuberego.Instance, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d replicas in step", n), func(ctx context.Context) error {
		status, err := instance.Status(ctx)
		if err != nil {
			return err
		}
		writers := 0
		for _, r := range status.Replicas {
			if r.Writer {
				writers++
			}
			if r.State != "in_step" || r.Fingerprint != status.Fingerprint {
				writers = -n
			}
		}
		if len(status.Replicas) != n || writers != 1 {
			return fmt.Errorf("it has %s in force and knows %+v", status.Fingerprint, status.Replicas)
		}
		return nil
	})
}

// writerOf is the identity of the replica that writes, as an instance knows it; empty if it knows none.
func writerOf(ctx context.Context, instance *kuberego.Instance) (string, error) {
	status, err := instance.Status(ctx)
	for _, r := range status.Replicas {
		if r.Writer {
			return r.Identity, err
		}
	}
	return "", err
}

// freeze stops a process as a machine does that hangs: its connections stay open, and nothing comes through them. The
// function that is returned lets it go on; the end of the test does so too.
func freeze(t *testing.T, instance *kuberego.Instance) (thaw func()) {
	t.Helper()
	signal := func(s syscall.Signal) {
		if err := instance.Signal(s); err != nil {
			t.Error(err)
		}
	}
	signal(syscall.SIGSTOP)
	thaw = func() { signal(syscall.SIGCONT) }
	t.Cleanup(thaw)
	return thaw
}

// metric is the value of one series of an instance, named with its labels.
func metric(ctx context.Context, instance *kuberego.Instance, series string) (float64, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, instance.DiagnosticURL()+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	response, err := http.DefaultTransport.RoundTrip(request) // no proxy is asked for loopback
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(body)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), series+" "); ok {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, fmt.Errorf("there is no metric %s", series)
}

// writes is how many writes the API server counts, by verb and resource, as in "PATCH configmaps".
func writes(t *testing.T) map[string]int {
	t.Helper()
	metrics, err := cluster.Client().Discovery().RESTClient().Get().AbsPath("/metrics").DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	counts := make(map[string]int)
	for line := range strings.Lines(string(metrics)) {
		series, value, _ := strings.Cut(strings.TrimSpace(line), "} ")
		if !strings.HasPrefix(series, "apiserver_request_total{") {
			continue
		}
		verb := label(series, "verb")
		if !slices.Contains([]string{"POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"}, verb) {
			continue
		}
		n, err := strconv.Atoi(value)
		if err != nil {
			t.Fatal(err)
		}
		counts[verb+" "+label(series, "resource")] += n
	}
	return counts
}

// label is the value of a label of a series in Prometheus' text format.
func label(series, name string) string {
	_, after, _ := strings.Cut(series, name+`="`)
	value, _, _ := strings.Cut(after, `"`)
	return value
}

// writesSince are the writes that were counted since before, without those that are zero.
func writesSince(t *testing.T, before map[string]int) map[string]int {
	t.Helper()
	now := writes(t)
	maps.DeleteFunc(now, func(what string, n int) bool { return n == before[what] })
	for what := range now {
		now[what] -= before[what]
	}
	return now
}

// quiet waits until nothing but Leases was written for some seconds.
func quiet(t *testing.T) {
	t.Helper()
	const span = 3 * time.Second
	last, since := writes(t), time.Now()
	eventually(t, "nobody writes", func(context.Context) error {
		if changed := withoutLeases(writesSince(t, last)); len(changed) > 0 {
			last, since = writes(t), time.Now()
		}
		if time.Since(since) < span {
			return fmt.Errorf("somebody wrote %s ago", time.Since(since))
		}
		return nil
	})
}

// withoutLeases returns the counts without what replicas write all the time, and without what is left to do about
// namespaces of earlier tests: kube-rego has no right to write pods and namespaces.
func withoutLeases(counts map[string]int) map[string]int {
	maps.DeleteFunc(counts, func(what string, _ int) bool {
		_, resource, _ := strings.Cut(what, " ")
		return slices.Contains([]string{"leases", "pods", "namespaces"}, resource)
	})
	return counts
}

// revision is a ControllerRevision as a person reads it.
type revision struct {
	object  string // its name
	number  int64
	sources map[string]string // by key
}

// revisionData is the data of a ControllerRevision in its plain form.
type revisionData struct {
	ConfigMap string                    `json:"configMap"`
	Modules   map[string]revisionModule `json:"modules"`
}

type revisionModule struct {
	Source        string      `json:"source"`
	Created       metav1.Time `json:"created"`
	ObjectVersion string      `json:"objectVersion"`
}

// revisions are those of one ConfigMap, the oldest first.
func revisions(ctx context.Context, namespace, name string) ([]revision, error) {
	list, err := cluster.Client().AppsV1().ControllerRevisions(namespace).
		List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/managed-by=kube-rego"})
	if err != nil {
		return nil, err
	}
	var found []revision
	for _, item := range list.Items {
		var data revisionData
		if err := json.Unmarshal(item.Data.Raw, &data); err != nil || data.ConfigMap != name {
			continue
		}
		r := revision{object: item.Name, number: item.Revision, sources: make(map[string]string)}
		for key, m := range data.Modules {
			r.sources[key] = m.Source
		}
		found = append(found, r)
	}
	slices.SortFunc(found, func(a, b revision) int { return cmp.Compare(a.number, b.number) })
	return found, nil
}

// recorded waits until the newest revision of a ConfigMap in the namespace opa has this source of a key, and tells them all.
func recorded(t *testing.T, name, key, source string) []revision {
	t.Helper()
	var all []revision
	eventually(t, "a revision of "+name, func(ctx context.Context) error {
		var err error
		if all, err = revisions(ctx, opa, name); err != nil {
			return err
		}
		if len(all) == 0 || all[len(all)-1].sources[key] != source {
			return fmt.Errorf("they are %v", all)
		}
		return nil
	})
	return all
}

// forgotten waits until a ConfigMap in the namespace opa has no revisions any more.
func forgotten(t *testing.T, name string) {
	t.Helper()
	eventually(t, "no revision of "+name, func(ctx context.Context) error {
		all, err := revisions(ctx, opa, name)
		if err == nil && len(all) > 0 {
			err = fmt.Errorf("there are %v", all)
		}
		return err
	})
}

// events are those about one ConfigMap in the namespace opa: how often each was raised, by type, reason and message.
func events(ctx context.Context, name string) (map[string]int32, error) {
	list, err := cluster.Client().CoreV1().Events(opa).List(ctx, metav1.ListOptions{
		FieldSelector: "involvedObject.kind=ConfigMap,involvedObject.name=" + name,
	})
	if err != nil {
		return nil, err
	}
	all := make(map[string]int32)
	for _, e := range list.Items {
		all[strings.Join([]string{e.Type, e.Reason, e.Message}, " ")] += e.Count
	}
	return all, nil
}

// told waits for an event about a ConfigMap that begins like this and has these parts.
func told(t *testing.T, name, start string, parts ...string) {
	t.Helper()
	eventually(t, "the event "+start+" on "+name, func(ctx context.Context) error {
		all, err := events(ctx, name)
		if err != nil {
			return err
		}
		for text := range all {
			if strings.HasPrefix(text, start) && contains(parts...)(text) {
				return nil
			}
		}
		return fmt.Errorf("there are %v", all)
	})
}

// remove deletes a ConfigMap.
func remove(t *testing.T, namespace, name string) {
	t.Helper()
	if err := cluster.Client().CoreV1().ConfigMaps(namespace).Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

// sources is what the key main of ConfigMaps in the namespace opa is to be, by name; empty: the ConfigMap goes.
type sources map[string]string

// apply makes it so, as kubectl does: one after the other, here by name.
func (s sources) apply(t *testing.T) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(s)) {
		source := s[name]
		if source == "" {
			remove(t, opa, name)
			continue
		}
		cm := policy(opa, name, "main", source)
		_, err := cluster.Client().CoreV1().ConfigMaps(opa).Create(t.Context(), cm, metav1.CreateOptions{})
		switch {
		case apierrors.IsAlreadyExists(err):
			edit(t, opa, name, func(cm *corev1.ConfigMap) { cm.Data["main"] = source })
		case err != nil:
			t.Fatal(err)
		}
	}
}

// proxy stands between kube-rego and the API server, so that a test can do what the network and others do to it.
type proxy struct {
	*httptest.Server
	resources []string // it has to do with

	mu      sync.Mutex
	watches map[*http.Request]context.CancelFunc
	gap     chan struct{} // not nil between cut and expire
	expired int           // watches that were refused as too old since cut
	patch   func()        // to be called before the next patch of a ConfigMap; nil: nothing
	kept    chan struct{} // not nil while requests are kept back
}

// newProxy has to do with ConfigMaps, unless it is told with which resources instead.
func newProxy(t *testing.T, resources ...string) *proxy {
	t.Helper()
	if len(resources) == 0 {
		resources = []string{"configmaps"}
	}
	config := cluster.RESTConfig()
	target, err := url.Parse(config.Host)
	if err != nil {
		t.Fatal(err)
	}
	// Without the admin's certificate: kube-rego's own token goes through.
	transport, err := rest.TransportFor(&rest.Config{TLSClientConfig: rest.TLSClientConfig{CAData: config.CAData}})
	if err != nil {
		t.Fatal(err)
	}
	forward := &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport:     transport,
		FlushInterval: -1, // an event of a watch must not wait for the next one
	}
	p := &proxy{resources: resources, watches: make(map[*http.Request]context.CancelFunc)}
	// TLS, as client-go sends no token without.
	p.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if slices.ContainsFunc(p.resources, func(name string) bool { return strings.Contains(r.URL.Path, "/"+name) }) {
			p.wait(r)
			if r = p.intervene(w, r); r == nil {
				return
			}
			defer p.ended(r)
		}
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(p.Close)
	return p
}

// keepBack lets nothing about its resources through until release is called.
func (p *proxy) keepBack(t *testing.T) (release func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	kept := make(chan struct{})
	p.kept = kept
	release = sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		close(kept)
		p.kept = nil
	})
	t.Cleanup(release) // or the proxy could not be closed
	return release
}

// wait returns when a request may go on.
func (p *proxy) wait(r *http.Request) {
	p.mu.Lock()
	kept := p.kept
	p.mu.Unlock()
	if kept == nil {
		return
	}
	select {
	case <-kept:
	case <-r.Context().Done():
	}
}

// intervene is the request to pass on; nil if it has been answered.
func (p *proxy) intervene(w http.ResponseWriter, r *http.Request) *http.Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	query := r.URL.Query()
	switch {
	case r.Method == http.MethodPatch && p.patch != nil:
		p.patch()
		p.patch = nil
	case query.Get("watch") == "" || query.Get("sendInitialEvents") == "true":
	case p.gap != nil:
		gap := p.gap
		p.mu.Unlock()
		<-gap
		p.mu.Lock()
		p.expired++
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusGone)
		_ = json.NewEncoder(w).Encode(apierrors.NewResourceExpired("too old resource version").Status())
		return nil
	}
	if query.Get("watch") != "" {
		ctx, cancel := context.WithCancel(r.Context())
		r = r.WithContext(ctx)
		p.watches[r] = cancel
	}
	return r
}

func (p *proxy) ended(r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if cancel, ok := p.watches[r]; ok {
		cancel()
		delete(p.watches, r)
	}
}

// watching is how many watches there are.
func (p *proxy) watching() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.watches)
}

// interrupt ends the watches; the next ones go on where these were.
func (p *proxy) interrupt(t *testing.T) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.watches) == 0 {
		t.Errorf("nobody watches %v", p.resources)
	}
	for _, cancel := range p.watches {
		cancel()
	}
}

// cut ends the watches. Until expire is called nothing is heard from them; then they are refused once, as by an API server
// whose memory does not reach back so far.
func (p *proxy) cut(t *testing.T) (expire func()) {
	p.mu.Lock()
	p.gap, p.expired = make(chan struct{}), 0
	p.mu.Unlock()
	p.interrupt(t)
	mend := sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		close(p.gap)
		p.gap = nil
	})
	t.Cleanup(mend) // or the proxy could not be closed
	return func() {
		mend()
		eventually(t, "a watch was refused as too old", func(context.Context) error {
			p.mu.Lock()
			defer p.mu.Unlock()
			if p.expired == 0 {
				return fmt.Errorf("none was")
			}
			return nil
		})
	}
}

// beforePatch does something once, right before kube-rego's next patch of a ConfigMap arrives. What it returns says
// whether that has happened.
func (p *proxy) beforePatch(do func()) (done func() bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.patch = do
	return func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.patch == nil
	}
}

// kubeconfig is a file with which kube-rego logs in as its service account, by way of the proxy.
func (p *proxy) kubeconfig(t *testing.T) string {
	t.Helper()
	kubectl(t, "apply", "-f", filepath.Join(cluster.root, "manifests", "serviceaccount.yaml")) // before install does
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := cluster.ServiceAccountKubeconfig(t.Context(), opa, "kube-rego", path); err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.LoadFromFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range config.Clusters {
		c.Server = p.URL
		c.CertificateAuthorityData = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate().Raw})
	}
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		t.Fatal(err)
	}
	return path
}
