package e2e_test

import (
	"cmp"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-rego/kube-rego/e2e/kuberego"
)

// event is one decision as it arrives at a collector.
type event struct {
	DecisionID string            `json:"decision_id"`
	Path       string            `json:"path"`
	Labels     map[string]string `json:"labels"`
	Input      json.RawMessage   `json:"input"`
	Result     json.RawMessage   `json:"result"`
	Erased     []string          `json:"erased"`
	Masked     []string          `json:"masked"`
	Custom     struct {
		Fingerprint string   `json:"fingerprint"`
		Modules     []string `json:"modules"`
	} `json:"custom"`
	raw string
}

// operation is what an AdmissionReview was about, such as "CREATE Secret".
func (e event) operation() string {
	var review struct {
		Request struct {
			Operation string
			Kind      struct{ Kind string }
		}
	}
	_ = json.Unmarshal(e.Input, &review)
	return review.Request.Operation + " " + review.Request.Kind.Kind
}

// collector takes decision logs as OPA sends them.
type collector struct {
	*httptest.Server

	mu     sync.Mutex
	events []event
	broken http.HandlerFunc // answers instead of us, if there is one
}

func newCollector(t testing.TB) *collector {
	t.Helper()
	c := &collector{}
	c.Server = httptest.NewServer(c)
	t.Cleanup(c.Close)
	return c
}

// ServeHTTP takes one chunk of events.
func (c *collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	broken := c.broken
	c.mu.Unlock()
	if broken != nil {
		broken(w, r)
		return
	}
	events, err := unpacked(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.events = append(c.events, events...)
}

func unpacked(r *http.Request) ([]event, error) {
	if r.Method != http.MethodPost || r.URL.Path != "/logs" {
		return nil, fmt.Errorf("decision logs come with POST /logs, not %s %s", r.Method, r.URL.Path)
	}
	unzipped, err := gzip.NewReader(r.Body)
	if err != nil {
		return nil, err
	}
	var all []json.RawMessage
	if err := json.NewDecoder(unzipped).Decode(&all); err != nil {
		return nil, err
	}
	events := make([]event, len(all))
	for n, raw := range all {
		if err := json.Unmarshal(raw, &events[n]); err != nil {
			return nil, err
		}
		events[n].raw = string(raw)
	}
	return events, nil
}

// answersWith lets another handler answer, until it is called with nil.
func (c *collector) answersWith(handler http.HandlerFunc) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broken = handler
}

// wait waits for an event.
func (c *collector) wait(t testing.TB, what string, wanted func(event) bool) event {
	t.Helper()
	var found event
	eventually(t, what+" in the decision logs", func(context.Context) error {
		all := c.all()
		n := slices.IndexFunc(all, wanted)
		if n < 0 {
			return fmt.Errorf("it is not among %d events", len(all))
		}
		found = all[n]
		return nil
	})
	return found
}

func (c *collector) all() []event {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.events)
}

// config is OPA's configuration of decision logs that go to the collector at once.
func (c *collector) config(more ...string) string {
	reporting := append([]string{"min_delay_seconds: 1", "max_delay_seconds: 1"}, more...)
	return fmt.Sprintf("services: {logs: {url: %s}}\ndecision_logs: {service: logs, reporting: {%s}}\n", c.URL, strings.Join(reporting, ", "))
}

// keeps fails if something secret has arrived.
func (c *collector) keeps(t *testing.T, secrets ...string) {
	t.Helper()
	for _, e := range c.all() {
		keepsSecret(t, e.raw, secrets...)
	}
}

// keepsSecret fails if something secret is in a text, as it is or as Kubernetes encodes it.
func keepsSecret(t *testing.T, text string, secrets ...string) {
	t.Helper()
	for _, secret := range secrets {
		for _, form := range []string{secret, base64.StdEncoding.EncodeToString([]byte(secret))} {
			if strings.Contains(text, form) {
				t.Errorf("%q is in %s", form, text)
			}
		}
	}
}

// What the user was refused can be found in the decision logs by the id in the audit log, and Secrets are not in them.
func TestDecisionLogsOnACluster(t *testing.T) {
	logs := newCollector(t)
	_, instance := install(t, opaConfig(t, logs.config()+"labels: {region: eu-central-1}\n"))
	createAnnotated(t, policy(opa, "main", "main", entrypoint), policy(opa, "rules", "main", denyLabel("no")))

	auditLog := filepath.Join(t.TempDir(), "audit.log")
	audited := startAPIServer(t, "audited-apiserver", "--audit-log-path="+auditLog, "--audit-policy-file="+writeFile(t, "audit.yaml",
		`{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [{"level": "Metadata", "resources": [{"resources": ["pods"]}]}]}`))
	refusedPod(t, audited)
	id := auditedID(t, auditLog)
	e := logs.wait(t, "decision "+id, func(e event) bool { return e.DecisionID == id })
	status, err := instance.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if e.operation() != "CREATE Pod" || e.Path != "system/main" || !contains(`"allowed":false`, `"no"`)(string(e.Result)) {
		t.Errorf("the decision is %s", e.raw)
	}
	if e.Custom.Fingerprint != status.Fingerprint || !contains("opa/main/main", "opa/rules/main")(strings.Join(e.Custom.Modules, " ")) {
		t.Errorf("made by %+v, want %s", e.Custom, status.Fingerprint)
	}
	if e.Labels["region"] != "eu-central-1" || e.Labels["id"] == "" || e.Labels["version"] == "" {
		t.Errorf("its labels are %v", e.Labels)
	}

	const first, second = "correct horse battery staple", "Tr0ub4dor and 3"
	for _, password := range []string{first, second} {
		applyObjects(t, "apiVersion: v1\nkind: Secret\nmetadata: {name: database, namespace: default}\nstringData: {password: "+password+"}\n")
	}
	deleteObjects(t, "default", "secret", "database")
	for _, operation := range []string{"CREATE Secret", "UPDATE Secret"} {
		e := logs.wait(t, operation, func(e event) bool { return e.operation() == operation })
		if !strings.Contains(string(e.Input), "database") || len(e.Erased)+len(e.Masked) == 0 {
			t.Errorf("%s: %s", operation, e.raw)
		}
	}
	logs.keeps(t, first, second)
}

// refusedPod tries to create a Pod that kube-rego refuses.
func refusedPod(t *testing.T, server apiServerOf) {
	t.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "refused", Labels: map[string]string{"deny": "no"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "registry.example.com/main"}}},
	}
	client := server.client(t).CoreV1().Pods(metav1.NamespaceDefault)
	eventually(t, "refuse the Pod", func(ctx context.Context) error {
		_, err := client.Create(ctx, pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err == nil || !strings.HasSuffix(err.Error(), refusal("no")) {
			return fmt.Errorf("got %w", err)
		}
		return nil
	})
}

// auditedID is the id of the decision about the last Pod in the audit log.
func auditedID(t *testing.T, path string) string {
	t.Helper()
	var id string
	eventually(t, "the decision in the audit log", func(context.Context) error {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(text)) {
			var event struct{ Annotations map[string]string }
			if err := json.Unmarshal([]byte(line), &event); err != nil {
				return err
			}
			id = cmp.Or(event.Annotations["webhook.openpolicyagent.org/decision-id"], id)
		}
		if id == "" {
			return fmt.Errorf("it is not in\n%s", text)
		}
		return nil
	})
	return id
}

// secretReview is about a Secret, in all ways in which its values can be in a review.
func secretReview(kind, secret string) string {
	encoded := base64.StdEncoding.EncodeToString([]byte(secret))
	object := func(name string) map[string]any {
		return map[string]any{
			"apiVersion": "v1", "kind": kind,
			"metadata": map[string]any{"name": name, "annotations": map[string]any{
				"kubectl.kubernetes.io/last-applied-configuration": fmt.Sprintf(`{"data":{"password":%q},"stringData":{"password":%q}}`, encoded, secret),
			}},
			"data": map[string]any{"password": encoded}, "stringData": map[string]any{"password": secret},
		}
	}
	text, err := json.Marshal(map[string]any{
		"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
		"request": map[string]any{
			"uid": "1", "operation": "UPDATE", "kind": map[string]any{"group": "", "version": "v1", "kind": kind},
			"resource": map[string]any{"group": "", "version": "v1", "resource": strings.ToLower(kind) + "s"},
			"object":   object("new"), "oldObject": object("old"),
		},
	})
	if err != nil {
		panic(err) // maps of strings can be marshalled
	}
	return string(text)
}

// askWebhook posts a body to the webhook and tells the answer.
func (s *standalone) askWebhook(t testing.TB, path, body string) string {
	t.Helper()
	status, text, err := send(t.Context(), anyCertificate, http.MethodPost, s.URL()+path, body)
	if err != nil || status != http.StatusOK {
		t.Fatalf("status %d, %v: %s", status, err, text)
	}
	return text
}

// What is logged of a decision: Secrets are masked, whoever asks; other objects are not.
func TestSecretsAreMasked(t *testing.T) {
	t.Parallel()
	const secret = "correct horse battery staple"
	logs := newCollector(t)
	s := serve(t, []*corev1.ConfigMap{policy(opa, "main", "main", entrypoint)}, opaConfig(t, logs.config()))
	s.askWebhook(t, "", secretReview("Secret", secret))
	if _, err := asked(t.Context(), s.Instance, "system/main", secretReview("Secret", secret)); err != nil {
		t.Fatal(err)
	}
	s.askWebhook(t, "v0/data/system/main", secretReview("Secret", secret))
	eventually(t, "three decisions", func(context.Context) error {
		if n := len(logs.all()); n != 3 {
			return fmt.Errorf("there are %d", n)
		}
		return nil
	})
	logs.keeps(t, secret)
	for _, e := range logs.all() {
		if !contains(`"name":"new"`, `"name":"old"`)(string(e.Input)) || len(e.Masked)+len(e.Erased) == 0 {
			t.Errorf("masked beyond use: %s", e.raw)
		}
	}
	s.askWebhook(t, "", secretReview("ConfigMap", "not secret"))
	logs.wait(t, "what is not secret", func(e event) bool { return strings.Contains(e.raw, "not secret") })
}

// Masks and drops are those of the policies, if a namespace that may define them does.
func TestMasksAndDropsOfPolicies(t *testing.T) {
	t.Parallel()
	logs := newCollector(t)
	s := serve(t, []*corev1.ConfigMap{
		policy(opa, "rules", "main", "package rules\n\nx := input.password\n"),
		policy(opa, "log", "main", `package system.log

mask contains "/input/password"

mask contains {"op": "upsert", "path": "/input/name", "value": "masked"}

drop if input.input.quiet
`),
		policy("team", "log", "main", "package system.log\n\ndrop if true\n"),
	}, "--namespaces=opa,team", opaConfig(t, logs.config()))
	heldModule(t, s.Instance, "team/log/main", "none", "system")
	for _, input := range []string{`{"quiet": true, "name": "first"}`, `{"password": "hunter2", "name": "second", "x": 1}`} {
		if _, err := asked(t.Context(), s.Instance, "rules/y", input); err != nil {
			t.Fatal(err)
		}
	}
	e := logs.wait(t, "the second decision", func(e event) bool { return e.Path == "rules/y" })
	if got := string(e.Input); got != `{"name":"masked","x":1}` {
		t.Errorf("its input is %s", got)
	}
	if !slices.Equal(e.Erased, []string{"/input/password"}) || !slices.Equal(e.Masked, []string{"/input/name"}) {
		t.Errorf("erased %q, masked %q", e.Erased, e.Masked)
	}
	logs.keeps(t, "hunter2")
	if n := len(logs.all()); n != 1 {
		t.Errorf("%d decisions were logged, want one", n)
	}
}

// The console is kube-rego's own log, and sees no Secrets either.
func TestDecisionLogsOnTheConsole(t *testing.T) {
	t.Parallel()
	const secret = "correct horse battery staple"
	s := serve(t, []*corev1.ConfigMap{policy(opa, "main", "main", entrypoint)}, opaConfig(t, "decision_logs: {console: true}\n"))
	var review struct {
		Response struct{ AuditAnnotations map[string]string }
	}
	if err := json.Unmarshal([]byte(s.askWebhook(t, "", secretReview("Secret", secret))), &review); err != nil {
		t.Fatal(err)
	}
	id := review.Response.AuditAnnotations["decision-id"]
	if id == "" {
		t.Fatalf("the audit annotations are %v", review.Response.AuditAnnotations)
	}
	var line string
	eventually(t, "the decision in the log", func(context.Context) error {
		text, err := os.ReadFile(s.LogPath())
		for line = range strings.Lines(string(text)) {
			if contains("openpolicyagent.org/decision_logs", id)(line) {
				return nil
			}
		}
		return fmt.Errorf("it is not there, %w", err)
	})
	if !contains("system/main", "oldObject")(line) {
		t.Errorf("the line is %s", line)
	}
	keepsSecret(t, line, secret)
}

// Decisions do not wait for their logs: what a collector does not take is dropped, and counted.
func TestDecisionsDoNotWaitForTheirLogs(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		sentence string
		answer   http.HandlerFunc // nil: none
		recovers bool
	}{
		{"it hangs", nil, false},
		{"it fails", fails(http.StatusInternalServerError), true},
	} {
		t.Run(c.sentence, func(t *testing.T) {
			logs := newCollector(t)
			answer := c.answer
			if answer == nil {
				ended := make(chan struct{})
				t.Cleanup(func() { close(ended) }) // before the collector is closed
				answer = func(http.ResponseWriter, *http.Request) { <-ended }
			}
			logs.answersWith(answer)
			s := serve(t, []*corev1.ConfigMap{policy(opa, "rules", "main", "package rules\n\nx := input.n\n")},
				opaConfig(t, logs.config("upload_size_limit_bytes: 2000", "buffer_size_limit_bytes: 10000")))
			askMany(t, s.Instance, 3000)
			dropped := func(ctx context.Context) error {
				n, err := metric(ctx, s.Instance, "kube_rego_decision_logs_dropped_total")
				if err == nil && n == 0 {
					err = fmt.Errorf("there are none")
				}
				return err
			}
			eventually(t, "dropped logs are counted", dropped)
			if err := s.Ready(t.Context()); err != nil {
				t.Error(err)
			}
			if !c.recovers {
				// The end does not wait for it either: not as long as a test waits, nor a kubelet.
				if err := s.Stop(); err != nil {
					t.Fatal(err)
				}
				if err := s.ExitError(); err != nil {
					t.Errorf("it ended with %v", err)
				}
				return
			}
			logs.answersWith(nil)
			if _, err := asked(t.Context(), s.Instance, "rules/later", `{}`); err != nil {
				t.Fatal(err)
			}
			logs.wait(t, "a decision after the outage", func(e event) bool { return e.Path == "rules/later" })
		})
	}
}

// askMany makes decisions, of which each must be made.
func askMany(t *testing.T, instance *kuberego.Instance, count int) {
	t.Helper()
	numbers := make(chan int)
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			for n := range numbers {
				got, err := asked(t.Context(), instance, "rules/x", fmt.Sprintf(`{"n": %d, "text": %q}`, n, strings.Repeat("x", 100)))
				if err != nil || got != fmt.Sprint(n) {
					t.Errorf("decision %d is %s, %v", n, got, err)
				}
			}
		})
	}
	for n := range count {
		numbers <- n
	}
	close(numbers)
	clients.Wait()
}
