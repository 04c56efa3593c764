// Package e2e_test drives kube-rego on a real control plane as its users do: through the API server, kubectl and HTTP. The
// story of the demo has its own tests in package story.
package e2e_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/kube-rego/kube-rego/e2e/controlplane"
	"github.com/kube-rego/kube-rego/e2e/internal/race"
	"github.com/kube-rego/kube-rego/e2e/kuberego"
	"github.com/kube-rego/kube-rego/e2e/programs"
)

const (
	opa              = "opa" // the namespace of kube-rego and, unless told otherwise, of the policies
	policyLabel      = "openpolicyagent.org/policy"
	statusAnnotation = "openpolicyagent.org/policy-status"
	statusOK         = `{"status":"ok"}`

	// pollEvery is how often a condition is looked at, limit how long it may take: a thousand times what it usually does,
	// since other tests may run on this machine.
	pollEvery = 20 * time.Millisecond
	limit     = time.Minute
)

// cluster is one control plane for all tests of this package, with the binary to test.
var cluster struct {
	*controlplane.ControlPlane
	root, binary, dir string
}

func TestMain(m *testing.M) {
	flag.Parse()
	if flag.Lookup("test.list").Value.String() != "" {
		os.Exit(m.Run()) // nothing will run
	}
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "kube-rego-e2e-")
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	cluster.dir = dir
	if cluster.root, err = kuberego.Root(ctx); err != nil {
		return 1, err
	}
	cluster.binary, err = kuberego.Binary(ctx, kuberego.BuildConfig{
		Root: cluster.root, Dir: dir, Race: race.Enabled, Progress: os.Stderr,
	})
	if err != nil {
		return 1, err
	}
	stopCluster, err := findCluster(ctx)
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, stopCluster()) }()
	if err := makeNamespace(ctx); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

// findCluster takes the control plane that the environment names, which whoever started it stops, or starts one.
func findCluster(ctx context.Context) (stop func() error, err error) {
	if dir := os.Getenv(controlplane.DirEnv); dir != "" {
		cluster.ControlPlane, err = controlplane.Open(ctx, dir)
		return func() error { return nil }, err
	}
	built, err := programs.Build(ctx, programs.Config{Progress: os.Stderr})
	if err != nil {
		return nil, err
	}
	cluster.ControlPlane, err = controlplane.Start(ctx, controlplane.Config{
		Programs: built, Dir: filepath.Join(cluster.dir, "cluster"),
	})
	if err != nil {
		return nil, err
	}
	return cluster.Stop, nil
}

// makeNamespace applies the manifest of the namespace, unless an earlier process has.
func makeNamespace(ctx context.Context) error {
	if _, err := cluster.Client().CoreV1().Namespaces().Get(ctx, opa, metav1.GetOptions{}); err == nil {
		return nil
	}
	namespace := filepath.Join(cluster.root, "manifests", "namespace.yaml")
	if out, err := cluster.Kubectl(ctx, "apply", "-f", namespace).CombinedOutput(); err != nil {
		return fmt.Errorf("make the namespace: %w\n%s", err, out)
	}
	return nil
}

// install applies the manifests and runs kube-rego until the test ends. Nothing is left of earlier tests.
func install(t testing.TB, args ...string) (*kuberego.Installation, *kuberego.Instance) {
	t.Helper()
	removePolicies(t)
	installation, instance, err := kuberego.Install(t.Context(), kuberego.Config{
		Cluster: cluster.ControlPlane, Root: cluster.root, Binary: cluster.binary, Dir: t.TempDir(), Args: args,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop(t, instance)
		// With failurePolicy Fail nobody could write any more.
		err := cluster.Client().AdmissionregistrationV1().ValidatingWebhookConfigurations().
			Delete(context.Background(), "kube-rego", metav1.DeleteOptions{})
		if err != nil {
			t.Error(err)
		}
	})
	return installation, instance
}

// stop ends an instance, and lets a race that it found fail the test.
func stop(t testing.TB, instance *kuberego.Instance) {
	t.Helper()
	if err := instance.Stop(); err != nil {
		t.Error(err)
	}
	log, err := os.ReadFile(instance.LogPath())
	if err != nil {
		t.Error(err)
	}
	for _, mark := range []string{"WARNING: DATA RACE", "panic"} {
		if strings.Contains(string(log), mark) {
			t.Errorf("kube-rego logged %q:\n%s", mark, log)
		}
	}
	if t.Failed() {
		t.Logf("the log of kube-rego:\n%s", log)
	}
}

// removePolicies deletes the ConfigMaps of earlier tests, labelled or not, and what kube-rego wrote beside them. No
// instance runs; one that was killed has left its Leases, and nobody should wait until they expire.
func removePolicies(t testing.TB) {
	t.Helper()
	ours := metav1.ListOptions{LabelSelector: "app.kubernetes.io/managed-by=kube-rego"}
	client := cluster.Client()
	for _, namespace := range []string{opa, metav1.NamespaceDefault} {
		err := errors.Join(
			client.CoreV1().ConfigMaps(namespace).DeleteCollection(t.Context(), metav1.DeleteOptions{},
				metav1.ListOptions{FieldSelector: "metadata.name!=kube-root-ca.crt"}),
			client.AppsV1().ControllerRevisions(namespace).DeleteCollection(t.Context(), metav1.DeleteOptions{}, ours),
			client.CoreV1().Events(namespace).DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}),
		)
		if err != nil {
			t.Fatal(err)
		}
	}
	err := client.CoordinationV1().Leases(opa).DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits until check returns nil.
func eventually(t testing.TB, what string, check func(context.Context) error) {
	t.Helper()
	var last error
	err := wait.PollUntilContextTimeout(t.Context(), pollEvery, limit, true, func(ctx context.Context) (bool, error) {
		err := check(ctx)
		if err == nil || last == nil || ctx.Err() == nil {
			last = err // that time is over says nothing
		}
		return err == nil, nil
	})
	if err != nil {
		t.Fatalf("not within %s: %s: %v", limit, what, last)
	}
}

// policy makes a policy ConfigMap; keys and sources alternate.
func policy(namespace, name string, keysAndSources ...string) *corev1.ConfigMap {
	cm := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{policyLabel: "rego"}},
		Data:       map[string]string{},
	}
	for n := 0; n < len(keysAndSources); n += 2 {
		cm.Data[keysAndSources[n]] = keysAndSources[n+1]
	}
	return cm
}

func create(t testing.TB, cm *corev1.ConfigMap) {
	t.Helper()
	if _, err := cluster.Client().CoreV1().ConfigMaps(cm.Namespace).Create(t.Context(), cm, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// edit changes a ConfigMap as an author does: what others wrote on it stays.
func edit(t testing.TB, namespace, name string, change func(*corev1.ConfigMap)) {
	t.Helper()
	eventually(t, "edit ConfigMap "+name, func(ctx context.Context) error {
		cm, err := cluster.Client().CoreV1().ConfigMaps(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		change(cm)
		_, err = cluster.Client().CoreV1().ConfigMaps(namespace).Update(ctx, cm, metav1.UpdateOptions{})
		return err
	})
}

// annotation waits until the status annotation of a ConfigMap is as wanted.
func annotation(t testing.TB, namespace, name string, wanted func(status string) bool) string {
	t.Helper()
	var status string
	eventually(t, "the status of "+namespace+"/"+name, func(ctx context.Context) error {
		cm, err := cluster.Client().CoreV1().ConfigMaps(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if status = cm.Annotations[statusAnnotation]; !wanted(status) {
			return fmt.Errorf("it is %q", status)
		}
		return nil
	})
	return status
}

func is(text string) func(string) bool { return func(s string) bool { return s == text } }

func contains(parts ...string) func(string) bool {
	return func(s string) bool {
		return !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(s, p) })
	}
}

// entrypoint answers with all that kubernetes.admission denies.
const entrypoint = `package system

main := {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}

response := {"allowed": count(denials) == 0, "status": {"message": concat(", ", denials)}}

denials contains message if some message in data.kubernetes.admission.deny
`

// denyLabel refuses ConfigMaps that carry the label deny with this value.
func denyLabel(value string) string {
	return fmt.Sprintf(`package kubernetes.admission

deny contains %[1]q if input.request.object.metadata.labels.deny == %[1]q
`, value)
}

// try asks the API server to create a ConfigMap with the label deny; its error is that of the webhook, if any.
func try(ctx context.Context, value string) error {
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "try-", Labels: map[string]string{"deny": value}}}
	_, err := cluster.Client().CoreV1().ConfigMaps(metav1.NamespaceDefault).
		Create(ctx, cm, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	return err
}

// refusal is what the API server says when kube-rego denies with this message.
func refusal(message string) string {
	return `admission webhook "webhook.openpolicyagent.org" denied the request: ` + message
}

// refuses waits until the label value is refused with exactly its own name as the message.
func refuses(t testing.TB, value string) {
	t.Helper()
	eventually(t, "refuse "+value, func(ctx context.Context) error {
		if err := try(ctx, value); err == nil || err.Error() != refusal(value) {
			return fmt.Errorf("got %w", err)
		}
		return nil
	})
}

// allows waits until the label value is accepted.
func allows(t testing.TB, value string) {
	t.Helper()
	eventually(t, "allow "+value, func(ctx context.Context) error { return try(ctx, value) })
}

// modules are the states of all modules, by id: "current", "previous" or "none".
func modules(ctx context.Context, instance *kuberego.Instance) (map[string]string, error) {
	status, err := instance.Status(ctx)
	if err != nil {
		return nil, err
	}
	states := make(map[string]string, len(status.Modules))
	for _, m := range status.Modules {
		states[m.ID] = m.InForce
	}
	return states, nil
}

// inForce waits until exactly these modules are known, in these states.
func inForce(t testing.TB, instance *kuberego.Instance, wanted map[string]string) {
	t.Helper()
	eventually(t, fmt.Sprintf("modules %v", wanted), func(ctx context.Context) error {
		states, err := modules(ctx, instance)
		if err == nil && !maps.Equal(states, wanted) {
			err = fmt.Errorf("they are %v", states)
		}
		return err
	})
}
