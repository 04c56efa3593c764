package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// printed is what a command line comes back with.
type printed struct {
	stdout, stderr string
	code           int
}

// runStatus runs kube-rego status with the rights of a kubeconfig.
func runStatus(t *testing.T, kubeconfig string, args ...string) printed {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), cluster.binary, append([]string{"status"}, args...)...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig)
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return printed{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// statusPrints runs kube-rego status as the admin; it must come to an end without a word on stderr.
func statusPrints(t *testing.T, args ...string) string {
	t.Helper()
	a := runStatus(t, cluster.Kubeconfig(), args...)
	if a.code != 0 || a.stderr != "" {
		t.Fatalf("kube-rego status %q: exit code %d, %s", args, a.code, a.stderr)
	}
	return a.stdout
}

// statusFails runs kube-rego status, which must say nothing but why it cannot.
func statusFails(t *testing.T, kubeconfig, stderr string, args ...string) {
	t.Helper()
	if got, want := runStatus(t, kubeconfig, args...), (printed{stderr: stderr + "\n", code: 1}); got != want {
		t.Errorf("kube-rego status %q: got %+v, want %+v", args, got, want)
	}
}

// matches compares texts in which <age> stands for any age, <fingerprint> for any fingerprint and ~ for any spaces.
func matches(t *testing.T, got, want string) {
	t.Helper()
	pattern := regexp.QuoteMeta(want)
	for mark, anything := range map[string]string{"<age>": `[0-9]+[ms][0-9s]*`, "<fingerprint>": `[0-9a-f]{12}`, "~": ` +`} {
		pattern = strings.ReplaceAll(pattern, mark, anything)
	}
	if !regexp.MustCompile("^" + pattern + "$").MatchString(got) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// waitRevision waits until a revision is there and its ConfigMap is in force everywhere.
func waitRevision(t *testing.T, namespace, revision, configMap string) {
	t.Helper()
	eventually(t, "revision "+revision, func(ctx context.Context) error {
		_, err := cluster.Client().AppsV1().ControllerRevisions(namespace).Get(ctx, revision, metav1.GetOptions{})
		return err
	})
	annotation(t, namespace, configMap, is(statusOK))
}

func handmadeRevision(t *testing.T, name string, number int64, data string) {
	t.Helper()
	revisions := cluster.Client().AppsV1().ControllerRevisions(opa)
	err := revisions.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	if err != nil {
		t.Fatal(err)
	}
	_, err = revisions.Create(t.Context(), &appsv1.ControllerRevision{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app.kubernetes.io/managed-by": "kube-rego"}},
		Revision:   number,
		Data:       runtime.RawExtension{Raw: []byte(data)},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// What an author and an administrator read with kube-rego status, from the first good version to the way back to it.
func TestStatusCommand(t *testing.T) {
	install(t)
	create(t, policy(opa, "main", "main", entrypoint))
	waitRevision(t, opa, "main-1", "main")
	create(t, policy(opa, "rules", "main", denyLabel("one")))
	waitRevision(t, opa, "rules-1", "rules")
	for n, value := range []string{"two", "three"} {
		edit(t, opa, "rules", func(cm *corev1.ConfigMap) { cm.Data["main"] = denyLabel(value) })
		waitRevision(t, opa, []string{"rules-2", "rules-3"}[n], "rules")
	}

	t.Run("all is in force", func(t *testing.T) {
		matches(t, statusPrints(t), `NAMESPACE   NAME    STATUS   IN-FORCE   REVISION   AGE
opa         main    ok       current    1          <age>
opa         rules   ok       current    3          <age>

replicas: 1 live, 1 with the same policies in force (<fingerprint>)
`)
	})
	t.Run("the history, and a way back with kubectl", statusWayBack)
	edit(t, opa, "rules", func(cm *corev1.ConfigMap) {
		cm.Data["main"] = "package kubernetes.admission\n\ndeny contains \"x\" if input.a == = 1 # \x1b[31m\n"
	})
	annotation(t, opa, "rules", contains(`"inForce":"previous"`))
	t.Run("a held policy, with its line and no escape sequence", statusHeld)
	t.Run("a revision that does not compile, and one that nobody understands", statusBadRevisions)
	t.Run("what is no policy", func(t *testing.T) {
		statusFails(t, cluster.Kubeconfig(), "kube-rego: ConfigMap opa/nope does not exist", "nope")
		statusFails(t, cluster.Kubeconfig(), "kube-rego: ConfigMap opa/nope does not exist", "--history", "nope")
		statusFails(t, cluster.Kubeconfig(), "kube-rego: ConfigMap default/kube-root-ca.crt is no policy and no data: "+
			"it has neither the label openpolicyagent.org/policy=rego nor openpolicyagent.org/data=opa", "-n", "default", "kube-root-ca.crt")
		matches(t, statusPrints(t, "-n", "kube-public", "--kube-rego-namespace", "kube-public"),
			`there is no ConfigMap with the label openpolicyagent.org/policy=rego or openpolicyagent.org/data=opa in namespace kube-public

replicas: none is live in the namespace of kube-rego (--kube-rego-namespace)
`)
	})
	t.Run("all namespaces", func(t *testing.T) {
		create(t, policy(metav1.NamespaceDefault, "elsewhere", "main", denyLabel("elsewhere")))
		matches(t, statusPrints(t, "-A"), `NAMESPACE   NAME        STATUS     IN-FORCE   REVISION   AGE
default     elsewhere   none yet   none       -          -
opa         main        ok         current    1          <age>
opa         rules       error      previous   4          <age>

opa/rules/main:3:33: rego_parse_error: unexpected eq token
    deny contains "x" if input.a == = 1 # �[31m
                                    ^

passed over, as kube-rego does: reading revision opa/rules-0: it does not say of which ConfigMap

replicas: 1 live, 1 with the same policies in force (<fingerprint>)
`)
	})
	kubectl(t, "delete", "-n", opa, "controllerrevision", "rules-0")
	t.Run("the rights of the reader", statusRights)
	t.Run("a removal that is held", statusHeldRemoval)
	t.Run("a replica that is gone", statusGoneReplica)
}

func statusWayBack(t *testing.T) {
	matches(t, statusPrints(t, "--history", "rules"), `REVISION   RECORDED~KEYS   FINGERPRINT    STATE
3          <age>~main   <fingerprint>   in force
2          <age>~main   <fingerprint>
1          <age>~main   <fingerprint>
`)
	matches(t, statusPrints(t, "--history", "rules", "--revision", "1"), "# opa/rules/main, revision 1\n"+denyLabel("one"))
	statusFails(t, cluster.Kubeconfig(), "kube-rego: ConfigMap opa/rules has no revision 7: there are 1, 2, 3", "--history", "rules", "--revision", "7")

	file := filepath.Join(t.TempDir(), "rules-1.json")
	if err := os.WriteFile(file, []byte(statusPrints(t, "--history", "rules", "--revision", "1", "-o", "json")), 0o644); err != nil {
		t.Fatal(err)
	}
	kubectl(t, "patch", "-n", opa, "configmap", "rules", "--type", "merge", "--patch-file", file)
	waitRevision(t, opa, "rules-4", "rules")
	refuses(t, "one")
	allows(t, "three")

	// The way of the help text that does without kube-rego.
	source := kubectl(t, "get", "-n", opa, "controllerrevision", "rules-3", "-o", "jsonpath={.data.modules.main.source}")
	if source != denyLabel("three") {
		t.Errorf("kubectl reads %q of revision 3", source)
	}
}

func statusHeld(t *testing.T) {
	matches(t, statusPrints(t, "rules"), `NAMESPACE   NAME    STATUS   IN-FORCE   REVISION   AGE
opa         rules   error    previous   4          <age>

opa/rules/main:3:33: rego_parse_error: unexpected eq token
    deny contains "x" if input.a == = 1 # �[31m
                                    ^

replicas: 1 live, 1 with the same policies in force (<fingerprint>)
`)
	var got struct {
		ConfigMaps []struct {
			Namespace, Name, Status, InForce string
			Revision                         int
			Recorded                         time.Time
			Problems                         []struct {
				Module, Code, Source, Caret string
				Row, Col                    int
			}
		}
		Replicas []struct {
			Identity, Fingerprint string
			Gone                  bool
		}
	}
	text := statusPrints(t, "rules", "-o", "json")
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(text, "\x1b") || len(got.ConfigMaps) != 1 || len(got.ConfigMaps[0].Problems) != 1 || len(got.Replicas) != 1 {
		t.Fatalf("as JSON it is %s", text)
	}
	rules, problem := got.ConfigMaps[0], got.ConfigMaps[0].Problems[0]
	if rules.Name != "rules" || rules.Status != "error" || rules.InForce != "previous" || rules.Revision != 4 || rules.Recorded.IsZero() ||
		problem.Module != "opa/rules/main" || problem.Code != "rego_parse_error" || problem.Row != 3 || problem.Col != 33 ||
		!strings.HasSuffix(problem.Source, "# \x1b[31m") || problem.Caret != strings.Repeat(" ", 32)+"^" || got.Replicas[0].Gone {
		t.Errorf("as JSON it is %s", text)
	}
}

func statusBadRevisions(t *testing.T) {
	handmadeRevision(t, "rules-2", 2,
		`{"configMap":"rules","modules":{"main":{"source":"package kubernetes.admission\n\ndeny contains x if input.y\n"},"more":{"source":"package more"}}}`)
	handmadeRevision(t, "rules-0", 0, `{"modules":{}}`)
	want := printed{
		stdout: `REVISION   RECORDED~KEYS        FINGERPRINT    STATE
4          <age>~main        <fingerprint>   in force
3          <age>~main        <fingerprint>
2          <age>~main,more   <fingerprint>   does not compile: opa/rules/main:3:15: rego_unsafe_var_error: var x is unsafe
1          <age>~main        <fingerprint>
0          <age>~-           -              cannot be read: reading revision opa/rules-0: it does not say of which ConfigMap
`,
		stderr: "kube-rego: of 5 revisions of ConfigMap opa/rules 1 could not be read\n",
		code:   1,
	}
	got := runStatus(t, cluster.Kubeconfig(), "--history", "rules")
	matches(t, got.stdout, want.stdout)
	if got.stderr != want.stderr || got.code != want.code {
		t.Errorf("got exit code %d and %q, want %d and %q", got.code, got.stderr, want.code, want.stderr)
	}
	statusFails(t, cluster.Kubeconfig(), "kube-rego: revision 0 of ConfigMap opa/rules: reading revision opa/rules-0: it does not say of which ConfigMap",
		"--history", "rules", "--revision", "0")
}

// Whoever may read less is told less, and why.
func statusRights(t *testing.T) {
	ctx, client := t.Context(), cluster.Client()
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "status-author"}}
	if _, err := client.CoreV1().ServiceAccounts(opa).Create(ctx, account, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.CoreV1().ServiceAccounts(opa).Delete(context.Background(), account.Name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	author := filepath.Join(t.TempDir(), "author")
	if err := cluster.ServiceAccountKubeconfig(ctx, opa, account.Name, author); err != nil {
		t.Fatal(err)
	}
	const user = `User "system:serviceaccount:opa:status-author" cannot list resource `
	statusFails(t, author, `kube-rego: listing ConfigMaps in namespace opa: configmaps is forbidden: `+user+
		`"configmaps" in API group "" in the namespace "opa"`)

	allow := func(name, group, resource string) {
		t.Helper()
		kubectl(t, "create", "-n", opa, "role", name, "--verb=get,list", "--resource="+resource+group)
		kubectl(t, "create", "-n", opa, "rolebinding", name, "--role="+name, "--serviceaccount=opa:status-author")
		t.Cleanup(func() {
			err := errors.Join(
				client.RbacV1().RoleBindings(opa).Delete(context.Background(), name, metav1.DeleteOptions{}),
				client.RbacV1().Roles(opa).Delete(context.Background(), name, metav1.DeleteOptions{}),
			)
			if err != nil {
				t.Error(err)
			}
		})
	}
	allow("status-configmaps", "", "configmaps")
	// The API server learns of a binding through a watch of its own.
	var got printed
	eventually(t, "the right to read ConfigMaps", func(context.Context) error {
		if got = runStatus(t, author, "main"); got.code != 0 {
			return errors.New(got.stderr)
		}
		return nil
	})
	matches(t, got.stdout, `NAMESPACE   NAME   STATUS   IN-FORCE   REVISION   AGE
opa         main   ok       current    -          -

revisions are not shown: listing ControllerRevisions: controllerrevisions.apps is forbidden: `+user+
		`"controllerrevisions" in API group "apps" in the namespace "opa"
replicas are not shown: leases.coordination.k8s.io is forbidden: `+user+
		`"leases" in API group "coordination.k8s.io" in the namespace "opa"
`)
	statusFails(t, author, `kube-rego: listing ControllerRevisions: controllerrevisions.apps is forbidden: `+user+
		`"controllerrevisions" in API group "apps" in the namespace "opa"`, "--history", "main")

	allow("status-revisions", ".apps", "controllerrevisions")
	eventually(t, "the right to read revisions", func(context.Context) error {
		if got = runStatus(t, author, "--history", "main"); got.code != 0 {
			return errors.New(got.stderr)
		}
		return nil
	})
	matches(t, got.stdout, `REVISION   RECORDED~KEYS   FINGERPRINT    STATE
1          <age>~main   <fingerprint>   in force
`)
}

// The ConfigMap is gone, and what it held is still there.
func statusHeldRemoval(t *testing.T) {
	create(t, policy(opa, "lib", "main", "package lib\n\nf(x) := x\n"))
	waitRevision(t, opa, "lib-1", "lib")
	create(t, policy(opa, "needy", "main", "package needy\n\ny := data.lib.f(1)\n"))
	waitRevision(t, opa, "needy-1", "needy")
	if err := cluster.Client().CoreV1().ConfigMaps(opa).Delete(t.Context(), "lib", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	matches(t, statusPrints(t, "lib"), `NAMESPACE   NAME   STATUS    IN-FORCE   REVISION   AGE
opa         lib    removed   previous   1          <age>

opa/lib: the ConfigMap is gone or no policy any more, and its newest revision stays in force: the rest does not compile without it, or no replica runs

replicas: 1 live, 1 with the same policies in force (<fingerprint>)
`)
	matches(t, statusPrints(t, "--history", "lib"), `REVISION   RECORDED~KEYS   FINGERPRINT    STATE
1          <age>~main   <fingerprint>   in force
`)
}

func statusGoneReplica(t *testing.T) {
	// Too long ago to be alive by any clock, and not long enough to be forgotten.
	holder, renewed := "kube-rego-hangs", metav1.NewMicroTime(time.Now().Add(-5*time.Minute))
	lease := &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{
			Name:   "kube-rego-hangs",
			Labels: map[string]string{"app.kubernetes.io/managed-by": "kube-rego", "app.kubernetes.io/component": "replica"},
		},
		Spec: coordinationv1.LeaseSpec{HolderIdentity: &holder, RenewTime: &renewed},
	}
	if _, err := cluster.Client().CoordinationV1().Leases(opa).Create(t.Context(), lease, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	matches(t, statusPrints(t, "main"), `NAMESPACE   NAME   STATUS   IN-FORCE   REVISION   AGE
opa         main   ok       current    1          <age>

replicas: 1 live, 1 with the same policies in force (<fingerprint>)
replica kube-rego-hangs is gone: not heard of for <age>
`)
}
