package e2e_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/kube-rego/kube-rego/e2e/controlplane"
)

// anyCertificate is a client that believes every certificate: without a cluster nobody hands out the CA.
var anyCertificate = &http.Client{Timeout: limit, Transport: &http.Transport{
	TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true,
}}

// apiServerOf is a further API server of the cluster.
type apiServerOf struct{ *controlplane.APIServer }

// startAPIServer runs a further API server, with these arguments beside those of the first, until the test ends.
func startAPIServer(t *testing.T, name string, args ...string) apiServerOf {
	t.Helper()
	server, err := cluster.StartAPIServer(t.Context(), controlplane.APIServerConfig{Name: name, Args: args})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	return apiServerOf{server}
}

// client has the admin's rights.
func (s apiServerOf) client(t *testing.T) kubernetes.Interface { return s.as(t, "") }

// as is a client of this user, or of the admin.
func (s apiServerOf) as(t *testing.T, user string) kubernetes.Interface {
	t.Helper()
	config := s.RESTConfig()
	config.Impersonate = rest.ImpersonationConfig{UserName: user}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// asksForAuthorization are the arguments with which an API server asks whether it may do what its own rules do not allow.
func asksForAuthorization(t *testing.T, server clientcmdapi.Cluster, login clientcmdapi.AuthInfo) []string {
	t.Helper()
	return []string{
		"--authorization-mode=Webhook", // after those of the first
		"--authorization-webhook-version=v1",
		"--authorization-webhook-config-file=" + webhookKubeconfig(t, server, login),
		// An edit of the policy is to be seen at once.
		"--authorization-webhook-cache-authorized-ttl=1ns",
		"--authorization-webhook-cache-unauthorized-ttl=1ns",
	}
}

// webhookKubeconfig is the file that tells an API server where to ask, and who it is.
func webhookKubeconfig(t *testing.T, server clientcmdapi.Cluster, login clientcmdapi.AuthInfo) string {
	t.Helper()
	config := clientcmdapi.NewConfig()
	config.Clusters["kube-rego"], config.AuthInfos["apiserver"] = &server, &login
	config.Contexts["webhook"] = &clientcmdapi.Context{Cluster: "kube-rego", AuthInfo: "apiserver"}
	config.CurrentContext = "webhook"
	path := filepath.Join(t.TempDir(), "webhook.kubeconfig")
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// readers lets a user read.
func readers(user string) string {
	return fmt.Sprintf(`package authorization

review := {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "status": status}

status := {"allowed": true} if may

status := {"allowed": false, "reason": sprintf("%%s may only read", [input.spec.user])} if not may

may if {
	input.kind == "SubjectAccessReview"
	input.spec.user == %q
	input.spec.resourceAttributes.verb in {"get", "list"}
}
`, user)
}

// asksAboutImages are the arguments with which an API server asks about the images of Pods.
func asksAboutImages(t *testing.T, server clientcmdapi.Cluster) []string {
	t.Helper()
	config := fmt.Sprintf(`{"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AdmissionConfiguration", "plugins": [{"name": "ImagePolicyWebhook",
  "configuration": {"imagePolicy": {"kubeConfigFile": %q, "defaultAllow": false}}}]}`, webhookKubeconfig(t, server, clientcmdapi.AuthInfo{}))
	return []string{"--enable-admission-plugins=ImagePolicyWebhook", "--admission-control-config-file=" + writeFile(t, "admission.yaml", config)}
}

// refusesImages fails unless the API server refuses Pods with images that otherReviews refuses, for its reason.
func refusesImages(t *testing.T, server apiServerOf) {
	t.Helper()
	pods := server.client(t).CoreV1().Pods(metav1.NamespaceDefault)
	for image, ok := range map[string]bool{"registry.example.com/y": true, "evil/x": false} {
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "images"},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: image}}},
		}
		_, err := pods.Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if ok && err != nil || !ok && (err == nil || !contains("image policy webhook", "not of ours: "+image)(err.Error())) {
			t.Errorf("%s: %v", image, err)
		}
	}
}

// Policies in ConfigMaps decide for an API server whether users may do what they ask for, and which images Pods have.
func TestWebhooksOfAnAPIServer(t *testing.T) {
	// Over plain HTTP an API server sends no token, so this is how it shows who it is.
	ca, certificate := newClientCertificate(t)
	_, instance := install(t, "--api-tls-client-ca-file="+ca)
	createAnnotated(t, policy(opa, "main", "main", otherReviews), policy(opa, "authorization", "main", readers("jane")))
	webhook := clientcmdapi.Cluster{CertificateAuthorityData: injectedCA(t), TLSServerName: "kube-rego.opa.svc", Server: instance.URL()}
	authorization, api := webhook, webhook
	authorization.Server += "v0/data/authorization/review"
	api.Server = "https" + strings.TrimPrefix(instance.APIURL(), "http") + "/v0/data/authorization/review"
	for _, c := range []struct {
		sentence, name string
		args           []string
		images         bool
	}{
		{"at the address of the webhook, by its CA", "webhook-apiserver",
			slices.Concat(asksForAuthorization(t, authorization, clientcmdapi.AuthInfo{}), asksAboutImages(t, webhook)), true},
		{"at the address of the API, with a certificate", "api-apiserver", asksForAuthorization(t, api, certificate.login()), false},
	} {
		t.Run(c.sentence, func(t *testing.T) {
			server := startAPIServer(t, c.name, c.args...)
			if c.images {
				refusesImages(t, server)
			}
			jane, joe := server.as(t, "jane"), server.as(t, "joe")
			mayRead(t, jane)
			for user, client := range map[string]kubernetes.Interface{"jane": jane, "joe": joe} {
				err := client.CoreV1().ConfigMaps(opa).Delete(t.Context(), "main", metav1.DeleteOptions{})
				if !apierrors.IsForbidden(err) || !contains(user+" may only read")(err.Error()) {
					t.Errorf("%s deletes: %v", user, err)
				}
			}
			if err := read(t.Context(), joe); !apierrors.IsForbidden(err) {
				t.Errorf("joe reads: %v", err)
			}
			edit(t, opa, "authorization", func(cm *corev1.ConfigMap) { cm.Data["main"] = readers("joe") })
			mayRead(t, joe)
			mayNotRead(t, jane, apierrors.IsForbidden)
			// No decision is no yes.
			edit(t, opa, "authorization", func(cm *corev1.ConfigMap) { cm.Data["main"] = "package authorization\n\nx := 1\n" })
			mayNotRead(t, joe, apierrors.IsInternalError)
			edit(t, opa, "authorization", func(cm *corev1.ConfigMap) { cm.Data["main"] = readers("jane") })
			mayRead(t, jane)
		})
	}
}

func read(ctx context.Context, client kubernetes.Interface) error {
	_, err := client.CoreV1().ConfigMaps(opa).List(ctx, metav1.ListOptions{})
	return err
}

func mayRead(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	eventually(t, "reading is allowed", func(ctx context.Context) error { return read(ctx, client) })
}

// mayNotRead waits until reading fails in this way.
func mayNotRead(t *testing.T, client kubernetes.Interface, failed func(error) bool) {
	t.Helper()
	eventually(t, "reading is refused", func(ctx context.Context) error {
		err := read(ctx, client)
		if failed(err) {
			return nil
		}
		return fmt.Errorf("got %w", err)
	})
}

// otherReviews answers what comes to POST / and is no AdmissionReview.
const otherReviews = `package system

main := {"apiVersion": input.apiVersion, "kind": input.kind, "status": status} if input.kind != "AdmissionReview"

main := {"apiVersion": input.apiVersion, "kind": input.kind, "response": {"allowed": true}} if input.kind == "AdmissionReview"

status := {"allowed": input.spec.user == "jane"} if input.kind == "SubjectAccessReview"

status := {"allowed": count(bad) == 0, "reason": concat("; ", bad)} if input.kind == "ImageReview"

bad contains concat(": ", ["not of ours", c.image]) if {
	some c in input.spec.containers
	not startswith(c.image, "registry.example.com/")
}
`

// Other reviews of Kubernetes than those of admission are answered as the policy says, without further ado.
func TestOtherReviews(t *testing.T) {
	t.Parallel()
	s := serve(t, []*corev1.ConfigMap{policy(opa, "main", "main", otherReviews)})
	for _, c := range []struct{ sentence, body, status string }{
		{"a SubjectAccessReview that is allowed",
			`{"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {"user": "jane"}}`, `{"allowed":true}`},
		{"a SubjectAccessReview that is refused",
			`{"apiVersion": "authorization.k8s.io/v1beta1", "kind": "SubjectAccessReview", "spec": {"user": "joe"}}`, `{"allowed":false}`},
		{"an ImageReview",
			`{"apiVersion": "imagepolicy.k8s.io/v1alpha1", "kind": "ImageReview", "spec": {"containers": [{"image": "evil/x"}, {"image": "registry.example.com/y"}]}}`,
			`{"allowed":false,"reason":"not of ours: evil/x"}`},
	} {
		t.Run(c.sentence, func(t *testing.T) {
			var asked, answer struct {
				APIVersion, Kind string
				Status           json.RawMessage
			}
			text := s.askWebhook(t, "", c.body)
			if err := errors.Join(json.Unmarshal([]byte(c.body), &asked), json.Unmarshal([]byte(text), &answer)); err != nil {
				t.Fatal(err)
			}
			if answer.APIVersion != asked.APIVersion || answer.Kind != asked.Kind || string(answer.Status) != c.status {
				t.Errorf("the answer is %s, want the status %s", text, c.status)
			}
		})
	}
	s.apply(t, policy(opa, "main", "main", "package system\n\nother := 1\n"))
	const body = `{"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {"user": "jane"}}`
	eventually(t, "no decision is no yes", func(ctx context.Context) error {
		status, text, err := send(ctx, anyCertificate, http.MethodPost, s.URL(), body)
		if err == nil && (status < http.StatusBadRequest || contains("allowed")(text)) {
			err = fmt.Errorf("status %d: %s", status, text)
		}
		return err
	})
}
