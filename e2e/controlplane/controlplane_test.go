package controlplane

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/kube-rego/kube-rego/e2e/istio"
	"github.com/kube-rego/kube-rego/e2e/programs"
)

// TestControlPlane starts one control plane and asks it what the project relies on.
func TestControlPlane(t *testing.T) {
	built, err := programs.Build(t.Context(), programs.Config{Progress: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	c, err := Start(t.Context(), Config{Programs: built, Dir: t.TempDir(), Progress: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})

	t.Run("version", func(t *testing.T) { testVersion(t, c) })
	t.Run("RBAC", func(t *testing.T) { testRBAC(t, c) })
	t.Run("controllers", func(t *testing.T) { testControllers(t, c) })
	t.Run("custom resources", func(t *testing.T) { testCustomResources(t, c) })
	t.Run("webhook behind an ExternalName", func(t *testing.T) { testWebhook(t, c) })
	t.Run("a further API server", func(t *testing.T) { testAPIServer(t, c) })
	t.Run("stop", func(t *testing.T) { testStop(t, c) })
}

func testVersion(t *testing.T, c *ControlPlane) {
	version, err := c.Client().Discovery().ServerVersion()
	if err != nil {
		t.Fatal(err)
	}
	if version.GitVersion != c.KubernetesVersion() || version.GitTreeState != "clean" ||
		!strings.HasPrefix(c.KubernetesVersion(), "v"+version.Major+"."+version.Minor+".") {
		t.Errorf("the server says %+v, go.mod pins %s", version, c.KubernetesVersion())
	}
	for _, want := range []string{"Client Version: ", "Server Version: "} {
		if out := kubectl(t, c, nil, "version"); !strings.Contains(out, want+c.KubernetesVersion()+"\n") {
			t.Errorf("kubectl version does not say %s%s:\n%s", want, c.KubernetesVersion(), out)
		}
	}
}

func testRBAC(t *testing.T, c *ControlPlane) {
	ctx := t.Context()
	const namespace = "default"
	client := serviceAccountClient(t, c, namespace, "default")
	list := func() error {
		_, err := client.CoreV1().ConfigMaps(namespace).List(ctx, metav1.ListOptions{})
		return err
	}
	if err := list(); !apierrors.IsForbidden(err) {
		t.Fatalf("without a role: error %v, want forbidden", err)
	}

	role := &rbacv1.Role{
		ObjectMeta: metav1.ObjectMeta{Name: "reader"},
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: []string{"list"}}},
	}
	binding := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "reader"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "reader"},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: namespace, Name: "default"}},
	}
	if _, err := c.Client().RbacV1().Roles(namespace).Create(ctx, role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Client().RbacV1().RoleBindings(namespace).Create(ctx, binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the role is known to the authorizer", func() bool { return list() == nil })
	if _, err := client.CoreV1().Secrets(namespace).List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("list secrets with a role for ConfigMaps: error %v, want forbidden", err)
	}
}

func serviceAccountClient(t *testing.T, c *ControlPlane, namespace, name string) kubernetes.Interface {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := c.ServiceAccountKubeconfig(t.Context(), namespace, name, path); err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	if config.Insecure || config.CertData != nil {
		t.Error("the kubeconfig does more than log in with a token")
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func testControllers(t *testing.T, c *ControlPlane) {
	ctx := t.Context()
	const namespace = "default"
	replicas := int32(2)
	labels := map[string]string{"app": "data"}
	deployment := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "data"},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "data", Image: "example.com/data:1"}}},
			},
		},
	}
	if _, err := c.Client().AppsV1().Deployments(namespace).Create(ctx, deployment, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the ReplicaSet has its pods", func() bool {
		pods, err := c.Client().CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=data"})
		return err == nil && len(pods.Items) == int(replicas) && pods.Items[0].OwnerReferences[0].Kind == "ReplicaSet"
	})
}

func testCustomResources(t *testing.T, c *ControlPlane) {
	crd, err := istio.AuthorizationPolicyCRD(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	kubectl(t, c, strings.NewReader(string(crd)), "apply", "-f", "-")
	kubectl(t, c, nil, "wait", "--for=condition=Established", "crd/"+istio.AuthorizationPolicyCRDName)
	const policy = `{"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
		"metadata": {"name": "data", "namespace": "default"}, "spec": {"action": "ALLOW"}}`
	out := kubectl(t, c, strings.NewReader(policy), "apply", "-f", "-")
	if want := "authorizationpolicy.security.istio.io/data created\n"; out != want {
		t.Errorf("kubectl apply = %q, want %q", out, want)
	}
}

func kubectl(t *testing.T, c *ControlPlane, stdin io.Reader, args ...string) string {
	t.Helper()
	cmd := c.Kubectl(t.Context(), args...)
	cmd.Stdin = stdin
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// testWebhook shows that the API server reaches a webhook on this machine through a Service of type ExternalName.
func testWebhook(t *testing.T, c *ControlPlane) {
	ctx := t.Context()
	ca := mustAuthority(t, "webhook-ca")
	port := serveRefusals(t, ca)
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "webhook"},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "localhost"},
	}
	if _, err := c.Client().CoreV1().Services("default").Create(ctx, service, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err := c.Client().AdmissionregistrationV1().ValidatingWebhookConfigurations().
		Create(ctx, webhookConfiguration(ca, port), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}

	const want = `admission webhook "webhook.example.com" denied the request: not today`
	var answer error
	eventually(t, "the webhook refuses", func() bool {
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{GenerateName: "refused-"}}
		_, answer = c.Client().CoreV1().Secrets("default").Create(ctx, secret, metav1.CreateOptions{})
		return answer != nil && answer.Error() == want
	})
}

func webhookConfiguration(ca *authority, port int32) *admissionregistrationv1.ValidatingWebhookConfiguration {
	fail, none := admissionregistrationv1.Fail, admissionregistrationv1.SideEffectClassNone
	return &admissionregistrationv1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "webhook"},
		Webhooks: []admissionregistrationv1.ValidatingWebhook{{
			Name: "webhook.example.com",
			ClientConfig: admissionregistrationv1.WebhookClientConfig{
				Service:  &admissionregistrationv1.ServiceReference{Namespace: "default", Name: "webhook", Port: &port},
				CABundle: ca.certPEM(),
			},
			Rules: []admissionregistrationv1.RuleWithOperations{{
				Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
				Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"secrets"}},
			}},
			AdmissionReviewVersions: []string{"v1"},
			FailurePolicy:           &fail,
			SideEffects:             &none,
		}},
	}
}

// serveRefusals serves a webhook that refuses everything, and tells its port.
func serveRefusals(t *testing.T, ca *authority) int32 {
	t.Helper()
	pair, err := ca.server("webhook", "webhook.default.svc")
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := tls.X509KeyPair(pair.cert, pair.key)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var review admissionv1.AdmissionReview
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		review.Response = &admissionv1.AdmissionResponse{UID: review.Request.UID, Result: &metav1.Status{Message: "not today"}}
		_ = json.NewEncoder(w).Encode(review)
	}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
	server.StartTLS()
	t.Cleanup(server.Close)
	return int32(server.Listener.Addr().(*net.TCPAddr).Port)
}

func testStop(t *testing.T, c *ControlPlane) {
	ctx := context.Background()
	opened, err := Open(ctx, c.dir)
	if err != nil {
		t.Fatalf("Open while it runs: %v", err)
	}
	if opened.URL() != c.URL() {
		t.Errorf("Open found %s, want %s", opened.URL(), c.URL())
	}
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	for _, p := range c.processes {
		if p.Running() {
			t.Errorf("%s still runs", p.Name())
		}
	}
	host := strings.TrimPrefix(c.URL(), "https://")
	if connection, err := net.Dial("tcp", host); err == nil {
		connection.Close()
		t.Errorf("%s is still open", host)
	}
	if _, err := Open(ctx, c.dir); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%s does not run", programs.Etcd)) {
		t.Errorf("Open after Stop: error %v", err)
	}
}

// testAPIServer shows that a further API server serves the same objects, with what is different about it.
func testAPIServer(t *testing.T, c *ControlPlane) {
	further, err := c.StartAPIServer(t.Context(), APIServerConfig{Name: "further", Args: []string{"--max-requests-inflight=123"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := further.Stop(); err != nil {
			t.Error(err)
		}
	}()
	client, err := kubernetes.NewForConfig(further.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := client.CoreV1().Namespaces().Get(t.Context(), "default", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ours, err := c.Client().CoreV1().Namespaces().Get(t.Context(), "default", metav1.GetOptions{})
	if err != nil || ours.UID != theirs.UID || further.RESTConfig().Host == c.URL() {
		t.Errorf("namespace %s at %s, %s at %s, %v", theirs.UID, further.RESTConfig().Host, ours.UID, c.URL(), err)
	}
	flags, err := client.Discovery().RESTClient().Get().AbsPath("/flagz").DoRaw(t.Context())
	// What stands between a flag and its value is another character each time, so that nobody parses it.
	if err != nil || !regexp.MustCompile(`max-requests-inflight\W+123\b`).Match(flags) {
		t.Errorf("its flags are %s, %v", flags, err)
	}
}
