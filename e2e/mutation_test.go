package e2e_test

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// mutated is the namespace in which these tests write.
const mutated = "mutated"

// The component as a person names it in a kustomization: the API server takes both configurations, with different paths.
func TestMutatingComponent(t *testing.T) {
	overlay := t.TempDir()
	manifests, err := filepath.Rel(overlay, filepath.Join(cluster.root, "manifests"))
	if err != nil {
		t.Fatal(err)
	}
	kustomization := fmt.Sprintf("resources: [%[1]s]\ncomponents: [%[1]s/mutating]\n", manifests)
	if err := os.WriteFile(filepath.Join(overlay, "kustomization.yaml"), []byte(kustomization), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := kubectl(t, "apply", "-k", overlay, "--dry-run=server", "-o", "yaml"); !contains("kind: MutatingWebhookConfiguration", "path: /mutate", "path: /validate", "reinvocationPolicy: IfNeeded")(out) {
		t.Errorf("the component does not do its work:\n%s", out)
	}
}

// The examples that patch, all at once and beside another webhook that patches: what is stored is what they say, and
// nothing is done twice.
func TestMutation(t *testing.T) {
	install(t)
	for _, example := range []string{"sidecar", "labels-and-annotations", "image-registry", "node-affinity"} {
		kubectl(t, "apply", "-f", filepath.Join(cluster.root, "examples", example))
	}
	for _, name := range []string{"opa-sidecar", "opa-labels", "opa-image-registry", "opa-node-affinity"} {
		annotation(t, opa, name, is(statusOK))
	}
	mutate(t)
	asked := injectToo(t)
	namespaceIsMade(t)

	t.Run("a pod is stored as the policies say, asked about again after another webhook", func(t *testing.T) {
		stored := createMutated(t, appPod("app"))
		checkMutated(t, stored)
		if got := asked(); got == 0 {
			t.Error("the other webhook was never asked")
		}
	})
	t.Run("a dry run shows the same and stores nothing", func(t *testing.T) {
		pods := cluster.Client().CoreV1().Pods(mutated)
		shown, err := pods.Create(t.Context(), appPod("dry"), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err != nil {
			t.Fatal(err)
		}
		checkMutated(t, shown)
		if _, err := pods.Get(t.Context(), "dry", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("it is there: %v", err)
		}
	})
	t.Run("an ephemeral container comes from the registry, and those before it are left alone", func(t *testing.T) {
		pod := createMutated(t, appPod("debugged"))
		for _, name := range []string{"first", "second"} {
			pod.Spec.EphemeralContainers = append(pod.Spec.EphemeralContainers, corev1.EphemeralContainer{
				EphemeralContainerCommon: corev1.EphemeralContainerCommon{
					Name: name, Image: "busybox:1.37", ImagePullPolicy: corev1.PullIfNotPresent, TerminationMessagePolicy: corev1.TerminationMessageReadFile,
				},
			})
			var err error
			if pod, err = cluster.Client().CoreV1().Pods(mutated).UpdateEphemeralContainers(t.Context(), pod.Name, pod, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		for _, c := range pod.Spec.EphemeralContainers {
			if c.Image != "registry.example.com/docker.io/library/busybox:1.37" {
				t.Errorf("ephemeral container %s has image %s", c.Name, c.Image)
			}
		}
	})
	for how, args := range map[string][]string{"kubectl apply": nil, "kubectl apply --server-side": {"--server-side", "--force-conflicts"}} {
		t.Run(how+" a second time changes nothing", func(t *testing.T) {
			applyTwice(t, appPod("applied"), args...)
			applyTwice(t, &corev1.Namespace{
				TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: metav1.ObjectMeta{Name: mutated, Labels: map[string]string{"mine": "too"}},
			}, args...)
		})
	}
	t.Run("what an edit takes away is set again, and what is wrong is refused", func(t *testing.T) {
		kubectl(t, "label", "namespace", mutated, "example.com/cost-centre-")
		namespace, err := cluster.Client().CoreV1().Namespaces().Get(t.Context(), mutated, metav1.GetOptions{})
		if err != nil || namespace.Labels["example.com/cost-centre"] != "unassigned" {
			t.Errorf("the labels are %v, %v", namespace.Labels, err)
		}
		namespace.Labels["example.com/cost-centre"] = "0815"
		_, err = cluster.Client().CoreV1().Namespaces().Update(t.Context(), namespace, metav1.UpdateOptions{})
		if want := `admission webhook "mutate.openpolicyagent.org" denied the request: there is no cost centre "0815"`; err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	})
}

// mutate makes the API server ask kube-rego about what it may change, as the component does, until the test ends.
func mutate(t *testing.T) {
	t.Helper()
	manifest, err := os.ReadFile(filepath.Join(cluster.root, "manifests", "mutating", "webhook.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	configuration := new(admissionregistrationv1.MutatingWebhookConfiguration)
	if err := yaml.UnmarshalStrict(manifest, configuration); err != nil {
		t.Fatal(err)
	}
	client := cluster.Client().AdmissionregistrationV1()
	validating, err := client.ValidatingWebhookConfigurations().Get(t.Context(), configuration.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range configuration.Webhooks {
		configuration.Webhooks[i].ClientConfig.Service.Port = validating.Webhooks[0].ClientConfig.Service.Port // there are no nodes
	}
	configure(t, configuration)
}

// configure makes a configuration for the time of the test.
func configure(t *testing.T, configuration *admissionregistrationv1.MutatingWebhookConfiguration) {
	t.Helper()
	configurations := cluster.Client().AdmissionregistrationV1().MutatingWebhookConfigurations()
	if _, err := configurations.Create(t.Context(), configuration, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := configurations.Delete(context.Background(), configuration.Name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
}

// injectToo makes another webhook, asked after kube-rego, that gives each pod a container whose image is not of the registry. It
// says how often it was asked.
func injectToo(t *testing.T) (asked func() int64) {
	t.Helper()
	injector := new(injector)
	server := httptest.NewTLSServer(injector)
	t.Cleanup(server.Close)
	fail, none, ifNeeded := admissionregistrationv1.Fail, admissionregistrationv1.SideEffectClassNone, admissionregistrationv1.IfNeededReinvocationPolicy
	configure(t, &admissionregistrationv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "later"}, // than kube-rego: they are asked in the order of their names
		Webhooks: []admissionregistrationv1.MutatingWebhook{{
			Name: "later.example.com",
			ClientConfig: admissionregistrationv1.WebhookClientConfig{
				URL: &server.URL, CABundle: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}),
			},
			Rules: []admissionregistrationv1.RuleWithOperations{{
				Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
				Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}},
			}},
			NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: mutated}},
			FailurePolicy:     &fail, SideEffects: &none, ReinvocationPolicy: &ifNeeded, AdmissionReviewVersions: []string{"v1"},
		}},
	})
	return injector.asked.Load
}

// namespaceIsMade makes the namespace for the time of the test, as soon as the API server asks who sets its labels.
func namespaceIsMade(t *testing.T) {
	t.Helper()
	namespaces := cluster.Client().CoreV1().Namespaces()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: mutated}}
	eventually(t, "a label on a namespace", func(ctx context.Context) error {
		shown, err := namespaces.Create(ctx, namespace, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err == nil && shown.Labels["example.com/cost-centre"] == "" {
			err = errors.New("it has none")
		}
		return err
	})
	if _, err := namespaces.Create(t.Context(), namespace, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := namespaces.Delete(context.Background(), mutated, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	eventually(t, "the service account of pods, and both webhooks", func(ctx context.Context) error {
		shown, err := cluster.Client().CoreV1().Pods(mutated).Create(ctx, appPod("first"), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err == nil && len(shown.Spec.Containers) != 2 {
			err = errors.New("the pod has no container of the other webhook")
		}
		return err
	})
}

// appPod is a pod that all examples have something to say about.
func appPod(name string) *corev1.Pod {
	no := false
	return &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Namespace: mutated, Labels: map[string]string{"example.com/region": "eu-central-1"}, Annotations: map[string]string{"example.com/ship-logs": "true"},
		},
		Spec: corev1.PodSpec{
			AutomountServiceAccountToken: &no,
			InitContainers:               []corev1.Container{{Name: "migrate", Image: "ghcr.io/example/migrate:1"}},
			Containers:                   []corev1.Container{{Name: "app", Image: "nginx"}},
		},
	}
}

// createMutated creates a pod, and reads what is stored.
func createMutated(t *testing.T, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	pods := cluster.Client().CoreV1().Pods(mutated)
	if _, err := pods.Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	stored, err := pods.Get(t.Context(), pod.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return stored
}

// checkMutated checks that an appPod is as all examples want it.
func checkMutated(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	images := make(map[string]string)
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		if images[c.Name] != "" {
			t.Errorf("there are two containers %s", c.Name)
		}
		images[c.Name] = c.Image
	}
	want := map[string]string{
		"migrate":     "registry.example.com/ghcr.io/example/migrate:1",
		"log-shipper": "registry.example.com/log-shipper:1.4",
		"app":         "registry.example.com/docker.io/library/nginx",
		"injected":    "registry.example.com/docker.io/library/redis", // by who was asked after kube-rego: so that was asked again
	}
	if !maps.Equal(images, want) {
		t.Errorf("the images are %v\nwant %v", images, want)
	}
	if len(pod.Spec.Volumes) != 1 || pod.Spec.Volumes[0].Name != "logs" {
		t.Errorf("the volumes are %v, want one for logs", pod.Spec.Volumes)
	}
	affinity, err := json.Marshal(pod.Spec.Affinity)
	if err != nil || string(affinity) != `{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":`+
		`[{"matchExpressions":[{"key":"topology.kubernetes.io/region","operator":"In","values":["eu-central-1"]}]}]}}}` {
		t.Errorf("the affinity is %s, %v", affinity, err)
	}
	if pod.Labels["example.com/cost-centre"] != "unassigned" || pod.Annotations["example.com/contact"] != "platform@example.com" {
		t.Errorf("the labels are %v, the annotations %v", pod.Labels, pod.Annotations)
	}
}

// applyTwice applies an object as kubectl does, and checks that the second time changed nothing.
func applyTwice(t *testing.T, object metav1.Object, args ...string) {
	t.Helper()
	manifest, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "object.json")
	if err := os.WriteFile(file, manifest, 0o600); err != nil {
		t.Fatal(err)
	}
	apply := func() string {
		kubectl(t, append([]string{"apply", "-f", file}, args...)...)
		return kubectl(t, "get", "-f", file, "-o", "jsonpath={.metadata.resourceVersion}")
	}
	if first, second := apply(), apply(); first != second {
		t.Errorf("%s was changed: resource version %s, then %s", object.GetName(), first, second)
	}
}

// injector is a webhook that gives each pod a container.
type injector struct{ asked atomic.Int64 }

// ServeHTTP answers a review.
func (i *injector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.asked.Add(1)
	var review admissionv1.AdmissionReview
	var pod corev1.Pod
	err := json.NewDecoder(r.Body).Decode(&review)
	if err == nil {
		err = json.Unmarshal(review.Request.Object.Raw, &pod)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	review.Response = &admissionv1.AdmissionResponse{UID: review.Request.UID, Allowed: true}
	if !slices.ContainsFunc(pod.Spec.Containers, func(c corev1.Container) bool { return c.Name == "injected" }) {
		form := admissionv1.PatchTypeJSONPatch
		review.Response.PatchType = &form
		review.Response.Patch = []byte(`[{"op": "add", "path": "/spec/containers/-", "value": {"name": "injected", "image": "redis"}}]`)
	}
	review.Request = nil
	_ = json.NewEncoder(w).Encode(review)
}
