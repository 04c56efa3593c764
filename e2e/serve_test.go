package e2e_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/kube-rego/kube-rego/e2e/kuberego"
)

// The set follows the ConfigMaps: keys added and removed, labels taken away, objects deleted.
func TestTheSetFollowsTheConfigMaps(t *testing.T) {
	_, instance := install(t)
	create(t, policy(opa, "main", "main", entrypoint))
	create(t, policy(opa, "rules", "one", denyLabel("one"), "two", denyLabel("two")))
	refuses(t, "one")
	refuses(t, "two")
	allows(t, "three")
	annotation(t, opa, "rules", is(statusOK))

	edit(t, opa, "rules", func(cm *corev1.ConfigMap) { delete(cm.Data, "one") })
	allows(t, "one")
	refuses(t, "two")

	edit(t, opa, "rules", func(cm *corev1.ConfigMap) { delete(cm.Labels, policyLabel) })
	allows(t, "two")
	inForce(t, instance, map[string]string{"opa/main/main": "current"})

	edit(t, opa, "rules", func(cm *corev1.ConfigMap) { cm.Labels = map[string]string{policyLabel: "rego"} })
	refuses(t, "two")
	if err := cluster.Client().CoreV1().ConfigMaps(opa).Delete(t.Context(), "rules", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	allows(t, "two")
}

// Only what carries the label with its value, in a watched namespace, is a policy.
func TestOnlyLabelledConfigMapsOfWatchedNamespacesArePolicies(t *testing.T) {
	_, instance := install(t)
	create(t, policy(opa, "main", "main", entrypoint))
	create(t, policy(opa, "rules", "main", denyLabel("mine")))
	refuses(t, "mine") // the next write is asked about too
	create(t, policy(metav1.NamespaceDefault, "elsewhere", "main", denyLabel("elsewhere")))
	other := policy(opa, "other", "main", denyLabel("other"))
	other.Labels[policyLabel] = "something-else"
	create(t, other)
	refuses(t, "mine")
	inForce(t, instance, map[string]string{"opa/main/main": "current", "opa/rules/main": "current"})
	allows(t, "elsewhere")
	allows(t, "other")
}

func TestAllNamespaces(t *testing.T) {
	allowAllNamespaces(t)
	// The components as a person names them in a kustomization; the API server checks its conditions.
	overlay := filepath.Join(cluster.dir, "all-namespaces")
	if err := os.MkdirAll(overlay, 0o755); err != nil {
		t.Fatal(err)
	}
	manifests, err := filepath.Rel(overlay, filepath.Join(cluster.root, "manifests"))
	if err != nil {
		t.Fatal(err)
	}
	kustomization := fmt.Sprintf("resources: [%[1]s]\ncomponents: [%[1]s/all-namespaces, %[1]s/replication]\n", manifests)
	if err := os.WriteFile(filepath.Join(overlay, "kustomization.yaml"), []byte(kustomization), 0o644); err != nil {
		t.Fatal(err)
	}
	if out := kubectl(t, "apply", "-k", overlay, "--dry-run=server", "-o", "yaml"); !contains("not-a-policy", "--namespaces=*", "--replicate-auto", "name: kube-rego-replication")(out) {
		t.Errorf("the components do not do their work:\n%s", out)
	}
	_, instance := install(t, "--namespaces=*")
	create(t, policy(opa, "main", "main", entrypoint))
	allows(t, "default") // the next write is asked about too
	create(t, policy(metav1.NamespaceDefault, "rules", "main", denyLabel("default")))
	refuses(t, "default")
	annotation(t, metav1.NamespaceDefault, "rules", is(statusOK))
	inForce(t, instance, map[string]string{"opa/main/main": "current", "default/rules/main": "current"})
}

// What is no good is told on its own ConfigMap; everything else is in force.
func TestBadPolicies(t *testing.T) {
	_, instance := install(t)
	create(t, policy(opa, "main", "main", entrypoint))
	create(t, policy(opa, "good", "main", denyLabel("good")))
	refuses(t, "good")
	binary := policy(opa, "binary")
	binary.BinaryData = map[string][]byte{"main": {0xff, 0xfe}}
	version := policy(opa, "version", "main", denyLabel("version"))
	version.Annotations = map[string]string{"openpolicyagent.org/rego-version": "v3"}
	for _, c := range []struct {
		sentence string
		cm       *corev1.ConfigMap
		status   func(string) bool
	}{
		{"Rego that does not parse", policy(opa, "typo", "main", "package kubernetes.admission\n\ndeny contains \"x\" if {\n"),
			contains(`"status":"error"`, `"rego_parse_error"`, `"file":"opa/typo/main"`, `"row":4,"col":1`, `"inForce":"none"`)},
		{"a key that is empty", policy(opa, "empty", "main", ""),
			contains("rego_parse_error", "empty module", `"file":"opa/empty/main","row":1,"col":1`)},
		{"only binaryData", binary, contains("invalid_parameter", "binaryData", `"file":"opa/binary/main"`)},
		{"an unknown Rego version", version, contains("invalid_parameter", `unknown Rego version \"v3\"`)},
		{"a function that is not there", policy(opa, "unknown", "main", "package a\n\nx := data.b.f(1)\n"),
			contains("rego_type_error", "undefined function data.b.f", `"row":3,"col":6`)},
		{"a built-in that is off", policy(opa, "http", "main", "package h\n\nx := http.send({\"method\": \"get\", \"url\": \"http://localhost\"})\n"),
			contains("undefined function http.send", "--enable-builtin=http.send")},
		{"a rule that contradicts another", policy(opa, "clash", "main", "package kubernetes.admission\n\ndeny := true\n"),
			contains("conflicting rules data.kubernetes.admission.deny", `"file":"opa/clash/main","row":3,"col":1`)},
		{"almost 1 MiB of Rego that does not parse", policy(opa, "big", "main", "package big\n"+strings.Repeat("x := = 1\n", 110_000)),
			contains("rego_parse_error", `"row":2`)},
	} {
		t.Run(c.sentence, func(t *testing.T) {
			create(t, c.cm)
			annotation(t, opa, c.cm.Name, c.status)
			refuses(t, "good")
			annotation(t, opa, "good", is(statusOK))
			states, err := modules(t.Context(), instance)
			if err != nil {
				t.Fatal(err)
			}
			if got := states["opa/"+c.cm.Name+"/main"]; got != "none" {
				t.Errorf("in force of it: %q, want none", got)
			}
		})
	}
	t.Run("one broken key leaves the others in force", func(t *testing.T) {
		create(t, policy(opa, "mixed", "bad", "package", "fine", denyLabel("fine")))
		refuses(t, "fine")
		annotation(t, opa, "mixed", contains(`"file":"opa/mixed/bad"`))
	})
	t.Run("almost 1 MiB of good Rego is in force", func(t *testing.T) {
		var rules strings.Builder
		for n := 0; rules.Len() < 1_000_000; n++ {
			fmt.Fprintf(&rules, "deny contains \"big-%[1]d\" if input.request.object.metadata.labels.deny == \"big-%[1]d\"\n\n", n)
		}
		create(t, policy(opa, "long", "main", "package kubernetes.admission\n\n"+rules.String()))
		refuses(t, "big-0")
		annotation(t, opa, "long", is(statusOK))
	})
}

// A broken edit changes nothing but the status; its repair brings the new version into force.
func TestABrokenEditIsHeld(t *testing.T) {
	_, instance := install(t)
	create(t, policy(opa, "main", "main", entrypoint))
	create(t, policy(opa, "rules", "main", denyLabel("old")))
	refuses(t, "old")
	edit(t, opa, "rules", func(cm *corev1.ConfigMap) { cm.Data["main"] = "package kubernetes.admission\n\ndeny contains }" })
	annotation(t, opa, "rules", contains(`"row":3`, `"inForce":"previous"`))
	inForce(t, instance, map[string]string{"opa/main/main": "current", "opa/rules/main": "previous"})
	refuses(t, "old")
	edit(t, opa, "rules", func(cm *corev1.ConfigMap) { cm.Data["main"] = denyLabel("new") })
	refuses(t, "new")
	allows(t, "old")
	annotation(t, opa, "rules", is(statusOK))
}

// No decision is never a yes: without an entrypoint, and with one whose answer makes no sense, the write is refused.
func TestNoDecisionIsNoYes(t *testing.T) {
	install(t)
	expect := func(parts ...string) {
		t.Helper()
		eventually(t, fmt.Sprintf("a refusal that says %q", parts), func(ctx context.Context) error {
			if err := try(ctx, "x"); err == nil || !contains(parts...)(err.Error()) {
				return fmt.Errorf("got %w", err)
			}
			return nil
		})
	}
	expect("failed calling webhook", "decision system/main: undefined")
	create(t, policy(opa, "main", "main", "package system\n\nmain := {\"response\": {\"uid\": input.request.uid}}\n"))
	expect("failed calling webhook", "response.allowed is missing")
	edit(t, opa, "main", func(cm *corev1.ConfigMap) {
		cm.Data["main"] = "package system\n\nmain := {\"response\": {\"allowed\": true}}\n\nmain := 1 if input.request\n"
	})
	expect("failed calling webhook", "eval_conflict_error")
}

// Somebody who takes the annotation away gets it back; a steady cluster is left alone.
func TestTheStatusIsKeptAndNotRewritten(t *testing.T) {
	install(t)
	create(t, policy(opa, "main", "main", entrypoint))
	annotation(t, opa, "main", is(statusOK))
	edit(t, opa, "main", func(cm *corev1.ConfigMap) { delete(cm.Annotations, statusAnnotation) })
	annotation(t, opa, "main", is(statusOK))
	before := patches(t)
	// Each of these makes kube-rego look at all statuses again, and is itself worth one write.
	const more = 5
	for n := range more {
		name := fmt.Sprintf("more-%d", n)
		create(t, policy(opa, name, "main", denyLabel(name)))
		annotation(t, opa, name, is(statusOK))
	}
	if written := patches(t) - before; written != more {
		t.Errorf("%d statuses were written, want one for each of %d new policies", written, more)
	}
}

// patches is how many patches of ConfigMaps the API server counts; a patch that changes nothing is seen nowhere else.
func patches(t *testing.T) int {
	t.Helper()
	return writes(t)["PATCH configmaps"]
}

func resourceVersion(t *testing.T, name string) string {
	t.Helper()
	cm, err := cluster.Client().CoreV1().ConfigMaps(opa).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return cm.ResourceVersion
}

// Of two replicas one writes, and both leave it at that.
func TestOneReplicaWrites(t *testing.T) {
	installation, _ := install(t)
	create(t, policy(opa, "main", "main", entrypoint))
	create(t, policy(opa, "rules", "main", denyLabel("old")))
	annotation(t, opa, "rules", is(statusOK))
	edit(t, opa, "rules", func(cm *corev1.ConfigMap) { cm.Data["main"] = "package" })
	annotation(t, opa, "rules", contains(`"inForce":"previous"`))
	second, err := installation.StartReplica(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, second) })
	inForce(t, second, map[string]string{"opa/main/main": "current", "opa/rules/main": "previous"})
	before := resourceVersion(t, "rules")
	// Each of these makes both replicas look at all statuses again.
	for n := range 5 {
		name := fmt.Sprintf("more-%d", n)
		create(t, policy(opa, name, "main", denyLabel(name)))
		annotation(t, opa, name, is(statusOK))
	}
	if after := resourceVersion(t, "rules"); after != before {
		t.Errorf("they write against each other: resource version %s, then %s", before, after)
	}
}

// kube-rego has the rights of the manifests and no others.
func TestTheServiceAccountMayDoNothingElse(t *testing.T) {
	installation, _ := install(t)
	config, err := clientcmd.BuildConfigFromFlags("", installation.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	c, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	for sentence, request := range map[string]func() error{
		"list Secrets of its namespace": func() error {
			_, err := c.CoreV1().Secrets(opa).List(ctx, metav1.ListOptions{})
			return err
		},
		"read another Secret": func() error {
			_, err := c.CoreV1().Secrets(opa).Get(ctx, "other", metav1.GetOptions{})
			return err
		},
		"list ConfigMaps of another namespace": func() error {
			_, err := c.CoreV1().ConfigMaps("default").List(ctx, metav1.ListOptions{})
			return err
		},
		"list pods": func() error {
			_, err := c.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
			return err
		},
		"delete a policy": func() error {
			return c.CoreV1().ConfigMaps(opa).Delete(ctx, "x", metav1.DeleteOptions{})
		},
		"delete its webhook configuration": func() error {
			return c.AdmissionregistrationV1().ValidatingWebhookConfigurations().Delete(ctx, "kube-rego", metav1.DeleteOptions{})
		},
		"read another webhook configuration": func() error {
			_, err := c.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(ctx, "x", metav1.GetOptions{})
			return err
		},
	} {
		if err := request(); err == nil || !strings.Contains(err.Error(), "is forbidden") {
			t.Errorf("%s: %v, want forbidden", sentence, err)
		}
	}
}

// Without the rights for its ConfigMaps kube-rego is not ready, says why, and refuses to decide.
func TestNotReadyWithoutTheFirstList(t *testing.T) {
	install(t)
	other, err := kuberego.Prepare(kuberego.Config{
		Cluster: cluster.ControlPlane, Root: cluster.root, Binary: cluster.binary, Dir: t.TempDir(),
		Args: []string{"--namespaces=opa,kube-public"},
	})
	if err != nil {
		t.Fatal(err)
	}
	instance, err := other.Launch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, instance) })
	eventually(t, "the reason in /readyz", func(ctx context.Context) error {
		err := instance.Ready(ctx)
		if err == nil {
			t.Fatal("it is ready")
		}
		if !contains("503", "kube-public", "forbidden")(err.Error()) {
			return err
		}
		return nil
	})
	answer, err := reviewer(t, instance)(t.Context(), "anything")
	if err != nil {
		t.Fatal(err)
	}
	if !contains(`"code":503`, `"reason":"ServiceUnavailable"`, "not ready")(answer) {
		t.Errorf("the webhook answers %s", answer)
	}
}

// When the policies can no longer be read, what is in force stays, and /status says so until they can be again.
func TestALostSourceIsTold(t *testing.T) {
	_, instance := install(t)
	create(t, policy(opa, "main", "main", entrypoint))
	create(t, policy(opa, "rules", "main", denyLabel("kept")))
	refuses(t, "kept")
	bindings := cluster.Client().RbacV1().RoleBindings(opa)
	binding, err := bindings.Get(t.Context(), "kube-rego", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := bindings.Delete(t.Context(), "kube-rego", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	sourceError := func(wanted func(string) bool) {
		t.Helper()
		eventually(t, "sourceError in /status", func(ctx context.Context) error {
			status, err := instance.Status(ctx)
			if err == nil && !wanted(status.SourceError) {
				err = fmt.Errorf("it is %q", status.SourceError)
			}
			return err
		})
	}
	sourceError(contains("namespace opa", "forbidden"))
	refuses(t, "kept")
	binding.ResourceVersion, binding.UID = "", ""
	if _, err := bindings.Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	sourceError(is(""))
	inForce(t, instance, map[string]string{"opa/main/main": "current", "opa/rules/main": "current"})
}

// SIGTERM is a clean end, also while requests come.
func TestItStopsCleanly(t *testing.T) {
	_, instance := install(t)
	create(t, policy(opa, "main", "main", entrypoint))
	allows(t, "anything")
	started := time.Now()
	if err := instance.Stop(); err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(instance.LogPath())
	if err != nil {
		t.Fatal(err)
	}
	if err := instance.ExitError(); err != nil {
		t.Errorf("it ended with %v", err)
	}
	if strings.Contains(string(log), "level=ERROR") || strings.Contains(string(log), "kube-rego: ") {
		t.Errorf("it did not stop cleanly after %s:\n%s", time.Since(started), log)
	}
}

func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := cluster.Kubectl(t.Context(), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}
