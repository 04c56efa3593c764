package e2e_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	utilrand "k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/client-go/rest"
)

const (
	// requester is the only user whose requests the webhooks of the table are asked about: what the test prepares, and
	// what controllers do, passes unasked.
	requester = "conformance"
	// patchAnnotation begins the keys under which an API server writes into its audit log what it applied.
	patchAnnotation = "patch.webhook.admission.k8s.io/"
	// notWanted is why every policy of the table refuses an object whose name begins with "bad".
	notWanted = "this name is not wanted"
)

// The servers of the table, by what is done where there is no decision. Of two servers that differ twice each of the
// four answers comes from one.
const (
	failing          = "fail"
	undefinedDenied  = "undefined-denied"
	undefinedAllowed = "undefined-allowed"
	strictReview     = "strict"
)

var serverArgs = map[string][]string{
	failing:          nil, // the default
	undefinedDenied:  {"--on-undefined=deny", "--on-error=allow"},
	undefinedAllowed: {"--on-undefined=allow", "--on-error=deny"},
	strictReview:     {"--strict-review"},
}

// hook is a webhook that an API server asks, about what is in one namespace.
type hook struct {
	mutating bool
	versions []string // of AdmissionReview, as the configuration lists them
	ignore   bool     // failurePolicy Ignore, not Fail
	server   string
}

// version is the one of AdmissionReview that the API server asks in.
func (h hook) version() string {
	known := slices.IndexFunc(h.versions, func(v string) bool { return v == "v1" || v == "v1beta1" })
	return h.versions[known]
}

func (h hook) String() string {
	kind, failurePolicy := "validating", "fail"
	if h.mutating {
		kind = "mutating"
	}
	if h.ignore {
		failurePolicy = "ignore"
	}
	return strings.Join(slices.Concat([]string{kind}, h.versions, []string{failurePolicy, "at", h.server}), "-")
}

// path is where it asks: a validating webhook must not be told of patches.
func (h hook) path() string {
	switch {
	case !h.mutating:
		return "validate"
	case h.ignore:
		return "mutate"
	}
	return ""
}

// name is what the API server calls it in refusals and in the audit log.
func (h hook) name() string { return h.String() + ".conformance.example.com" }

// stage is the control plane as the table needs it: an API server that writes an audit log, several servers of ours,
// and webhooks between them.
type stage struct {
	t       *testing.T
	suffix  string // of the namespaces
	url     string // of the API server
	client  *http.Client
	servers map[string]*standalone
	hooks   []hook
	// fingerprints are those of the policies in force, by server.
	fingerprints map[string]string
	audit        *bufio.Reader
	events       map[string]auditEvent
	tail         string // of the audit log, half a line
	made         int    // names
}

// newStage starts what the table needs, with these webhooks, until the test ends.
func newStage(t *testing.T, hooks []hook) *stage {
	t.Helper()
	s := &stage{t: t, suffix: utilrand.String(5), hooks: hooks, servers: map[string]*standalone{}, fingerprints: map[string]string{}, events: map[string]auditEvent{}}
	for _, h := range hooks {
		createNamespace(t, s.namespace(h))
	}
	ca, certificate, key := newServerCertificate(t)
	probe := policy(opa, "main", "main", "package system\n\nmain := {\"apiVersion\": input.apiVersion, \"kind\": input.kind, \"response\": "+
		`{"uid": input.request.uid, "allowed": false, "status": {"code": 403, "reason": "Forbidden", "message": "probe"}}}`+"\n")
	for _, h := range hooks {
		if s.servers[h.server] == nil {
			args := append([]string{"--tls-cert-file=" + certificate, "--tls-private-key-file=" + key}, serverArgs[h.server]...)
			s.servers[h.server] = newStandalone(t, []*corev1.ConfigMap{probe}, args...)
			s.servers[h.server].start(t)
		}
	}
	for name, server := range s.servers {
		server.waitReady(t)
		status, err := server.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		s.fingerprints[name] = status.Fingerprint
	}
	s.startAPIServer()
	s.register(ca)
	s.waitAsked()
	return s
}

func (s *stage) namespace(h hook) string { return h.String() + "-" + s.suffix }

// startAPIServer starts one that tells, about requests in our namespaces, what admission did.
func (s *stage) startAPIServer() {
	s.t.Helper()
	var namespaces []string
	for _, h := range s.hooks {
		namespaces = append(namespaces, s.namespace(h))
	}
	auditPolicy, err := json.Marshal(map[string]any{
		"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": []string{"RequestReceived", "ResponseStarted"},
		// At this level the patches are in the log.
		"rules": []map[string]any{{"level": "Request", "namespaces": namespaces}, {"level": "None"}},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	log := filepath.Join(s.t.TempDir(), "audit.log")
	server := startAPIServer(s.t, "conformance-apiserver", "--audit-log-path="+log, "--audit-policy-file="+writeFile(s.t, "audit.yaml", string(auditPolicy)))
	config := server.RESTConfig()
	config.Impersonate = rest.ImpersonationConfig{UserName: requester, Groups: []string{"system:masters"}}
	if s.client, err = rest.HTTPClientFor(config); err != nil {
		s.t.Fatal(err)
	}
	s.url = config.Host
	file, err := os.OpenFile(log, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = file.Close() })
	s.audit = bufio.NewReader(file)
}

// newServerCertificate makes a certificate for loopback that is its own CA.
func newServerCertificate(t *testing.T) (ca []byte, certificateFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kube-rego"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return ca, writeFile(t, "tls.crt", string(ca)), writeFile(t, "tls.key", string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: secret})))
}

// anyRequest is all that happens in a namespace.
var anyRequest = admissionregistrationv1.RuleWithOperations{
	Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.OperationAll},
	Rule:       admissionregistrationv1.Rule{APIGroups: []string{"*"}, APIVersions: []string{"*"}, Resources: []string{"*/*"}},
}

// register tells the API servers whom to ask.
func (s *stage) register(ca []byte) {
	s.t.Helper()
	name := "conformance-" + s.suffix
	validating := &admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name}}
	mutating := &admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, h := range s.hooks {
		if w := s.webhook(h, ca); h.mutating {
			mutating.Webhooks = append(mutating.Webhooks, w)
		} else {
			validating.Webhooks = append(validating.Webhooks, admissionregistrationv1.ValidatingWebhook{
				Name: w.Name, ClientConfig: w.ClientConfig, Rules: w.Rules, FailurePolicy: w.FailurePolicy, SideEffects: w.SideEffects,
				NamespaceSelector: w.NamespaceSelector, MatchConditions: w.MatchConditions, AdmissionReviewVersions: w.AdmissionReviewVersions,
				TimeoutSeconds: w.TimeoutSeconds,
			})
		}
	}
	client := cluster.Client().AdmissionregistrationV1()
	if _, err := client.ValidatingWebhookConfigurations().Create(s.t.Context(), validating, metav1.CreateOptions{}); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = client.ValidatingWebhookConfigurations().Delete(context.Background(), name, metav1.DeleteOptions{})
	})
	if _, err := client.MutatingWebhookConfigurations().Create(s.t.Context(), mutating, metav1.CreateOptions{}); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = client.MutatingWebhookConfigurations().Delete(context.Background(), name, metav1.DeleteOptions{})
	})
}

func (s *stage) webhook(h hook, ca []byte) admissionregistrationv1.MutatingWebhook {
	none, failurePolicy, url, seconds := admissionregistrationv1.SideEffectClassNone, admissionregistrationv1.Fail, s.servers[h.server].URL()+h.path(), int32(30)
	if h.ignore {
		failurePolicy = admissionregistrationv1.Ignore
	}
	return admissionregistrationv1.MutatingWebhook{
		Name:                    h.name(),
		ClientConfig:            admissionregistrationv1.WebhookClientConfig{URL: &url, CABundle: ca},
		Rules:                   []admissionregistrationv1.RuleWithOperations{anyRequest},
		FailurePolicy:           &failurePolicy,
		SideEffects:             &none,
		TimeoutSeconds:          &seconds,
		AdmissionReviewVersions: h.versions,
		NamespaceSelector:       &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: s.namespace(h)}},
		MatchConditions: []admissionregistrationv1.MatchCondition{
			{Name: "requester", Expression: fmt.Sprintf("request.userInfo.username == %q", requester)},
		},
	}
}

// waitAsked waits until the API server asks each webhook: it reads the configurations through an informer.
func (s *stage) waitAsked() {
	s.t.Helper()
	for _, h := range s.hooks {
		eventually(s.t, "the API server asks "+h.String(), func(context.Context) error {
			a, err := s.send(posted("/api/v1/namespaces/"+s.namespace(h)+"/configmaps?dryRun=All", `{"metadata": {"name": "probe"}}`), "probe")
			if err == nil && !strings.HasSuffix(a.told.Message, "probe") {
				err = fmt.Errorf("it answers %s", a)
			}
			return err
		})
	}
}

// enforce puts these policies into force at all servers, in place of those before.
func (s *stage) enforce(policies ...*corev1.ConfigMap) {
	s.t.Helper()
	main := policies[0]
	main.Data["main"] += "\n# " + s.fresh("case") + "\n" // never the same twice: it is seen in the fingerprint
	for _, server := range s.servers {
		server.replace(s.t, policies...)
	}
	for name, server := range s.servers {
		eventually(s.t, "the policies are in force at "+name, func(ctx context.Context) error {
			status, err := server.Status(ctx)
			if err != nil {
				return err
			}
			if status.Fingerprint == s.fingerprints[name] {
				return fmt.Errorf("the fingerprint is still %s", status.Fingerprint)
			}
			if len(status.Modules) != len(policies) {
				return fmt.Errorf("the modules are %+v", status.Modules)
			}
			for _, m := range status.Modules {
				if m.InForce != "current" || m.Deleted || len(m.Problems) > 0 {
					return fmt.Errorf("module %s: %+v", m.ID, m)
				}
			}
			s.fingerprints[name] = status.Fingerprint
			return nil
		})
	}
}

// replace puts ConfigMaps in place of all others, all at once: in between, one would be in force beside what was there before.
func (s *standalone) replace(t testing.TB, policies ...*corev1.ConfigMap) {
	t.Helper()
	var all strings.Builder
	for _, cm := range policies {
		cm.APIVersion, cm.Kind = "v1", "ConfigMap"
		text, err := json.Marshal(cm)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&all, "---\n%s\n", text)
	}
	first, err := filepath.Glob(filepath.Join(s.config.Manifests, "*.json")) // those that it was started with
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range first {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(s.config.Manifests, "policies.yaml")
	if err := os.WriteFile(file+".new", []byte(all.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

// fresh is a name that nothing has yet, with this beginning.
func (s *stage) fresh(beginning string) string {
	s.made++
	return fmt.Sprintf("%s-%d", beginning, s.made)
}

// request is one to the API server.
type request struct{ method, path, contentType, body string }

func posted(path, body string) request {
	return request{http.MethodPost, path, "application/json", body}
}

// reaction is what the API server then did.
type reaction struct {
	code     int
	body     string
	told     metav1.Status // if it is an error
	warnings []string
	event    auditEvent
}

func (r reaction) String() string {
	const enough = 2000
	return fmt.Sprintf("status %d, warnings %q, audit annotations %q: %.*s", r.code, r.warnings, r.event.Annotations, enough, r.body)
}

// sendAll sends requests as the requester, several at once, and tells what became of each.
func (s *stage) sendAll(requests []request) []reaction {
	s.t.Helper()
	reactions, ids, errs := make([]reaction, len(requests)), make([]string, len(requests)), make([]error, len(requests))
	for n := range requests {
		ids[n] = s.fresh("request")
	}
	eachAtOnce(len(requests), func(n int) { reactions[n], errs[n] = s.send(requests[n], ids[n]) })
	if err := errors.Join(errs...); err != nil {
		s.t.Fatal(err)
	}
	for n, id := range ids {
		reactions[n].event = s.event(id)
	}
	return reactions
}

// eachAtOnce does work for each number below n, a few at a time.
func eachAtOnce(n int, work func(int)) {
	numbers := make(chan int)
	var workers sync.WaitGroup
	for range 8 {
		workers.Go(func() {
			for number := range numbers {
				work(number)
			}
		})
	}
	for number := range n {
		numbers <- number
	}
	close(numbers)
	workers.Wait()
}

// send sends a request under this id, which the audit log has too.
func (s *stage) send(r request, id string) (reaction, error) {
	asked, err := http.NewRequestWithContext(s.t.Context(), r.method, s.url+r.path, strings.NewReader(r.body))
	if err != nil {
		return reaction{}, err
	}
	asked.Header.Set("Audit-Id", id)
	asked.Header.Set("Accept", "application/json")
	if r.body != "" {
		asked.Header.Set("Content-Type", r.contentType)
	}
	response, err := s.client.Do(asked)
	if err != nil {
		return reaction{}, err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return reaction{}, err
	}
	a := reaction{code: response.StatusCode, body: string(body)}
	warnings, errs := utilnet.ParseWarningHeaders(response.Header["Warning"])
	for _, w := range warnings {
		a.warnings = append(a.warnings, w.Text)
	}
	if a.code >= http.StatusBadRequest {
		_ = json.Unmarshal(body, &a.told) // what is no Status is seen in the body
	}
	return a, errors.Join(errs...)
}

// auditEvent is a line of the audit log.
type auditEvent struct {
	AuditID     string
	Annotations map[string]string
}

// event waits for the line of the audit log about a request: the API server writes it after it has answered.
func (s *stage) event(id string) auditEvent {
	s.t.Helper()
	eventually(s.t, id+" in the audit log", func(context.Context) error {
		for {
			text, err := s.audit.ReadString('\n')
			s.tail += text
			if err == io.EOF {
				break
			}
			if err != nil {
				return err
			}
			var e auditEvent
			if err := json.Unmarshal([]byte(s.tail), &e); err != nil {
				return err
			}
			s.events[e.AuditID], s.tail = e, ""
		}
		if _, found := s.events[id]; !found {
			return fmt.Errorf("it is not there")
		}
		return nil
	})
	e := s.events[id]
	delete(s.events, id)
	return e
}

// annotation is the audit annotation whose key begins so; "" if there is none.
func (e auditEvent) annotation(beginning string) string {
	for key, value := range e.Annotations {
		if strings.HasPrefix(key, beginning) {
			return value
		}
	}
	return ""
}
