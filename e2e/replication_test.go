package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kube-rego/kube-rego/e2e/kuberego"
)

// NetworkPolicies stand for all objects with namespaces: nobody but these tests makes any.
const networkPolicies = "networkpolicies.networking.k8s.io"

// networkPolicy is one whose pods have this label.
func networkPolicy(namespace, name, app string) string {
	return fmt.Sprintf(`apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  namespace: %s
  name: %s
  annotations:
    note: kept
spec:
  podSelector:
    matchLabels:
      app: %q
`, namespace, name, app)
}

// applyObjects applies manifests as kubectl does, with its annotation.
func applyObjects(t *testing.T, manifests ...string) {
	t.Helper()
	eventually(t, "apply objects", func(ctx context.Context) error {
		cmd := cluster.Kubectl(ctx, "apply", "-f", "-")
		cmd.Stdin = strings.NewReader(strings.Join(manifests, "---\n"))
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// deleteObjects deletes objects when the test ends, whatever became of them. Those of a namespace that is deleted may be
// there for a while, and the next test would see them.
func deleteObjects(t *testing.T, namespace, resource string, names ...string) {
	t.Helper()
	t.Cleanup(func() {
		args := append([]string{"delete", "--ignore-not-found", resource, "-n", namespace}, names...)
		if out, err := cluster.Kubectl(context.Background(), args...).CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
}

// apps are the labels of the NetworkPolicies in data, by namespace and name.
const apps = `{sprintf("%s/%s", [namespace, name]): p.spec.podSelector.matchLabels.app |
	some namespace, all in data.kubernetes.networkpolicies
	some name, p in all
}`

// replicated waits until /status says this of the resource at a path, and returns all that it says of it.
func replicated(t *testing.T, instance *kuberego.Instance, path, state string) kuberego.Resource {
	t.Helper()
	var found kuberego.Resource
	eventually(t, path+" is "+state, func(ctx context.Context) error {
		status, err := instance.Status(ctx)
		for _, r := range status.Replication {
			if r.Path == path && r.State == state {
				found = r
				return nil
			}
		}
		return fmt.Errorf("there are %+v: %w", status.Replication, err)
	})
	return found
}

// notReplicated waits until /status knows no resource at a path.
func notReplicated(t *testing.T, instance *kuberego.Instance, path string) {
	t.Helper()
	eventually(t, path+" is not there", func(ctx context.Context) error {
		status, err := instance.Status(ctx)
		for _, r := range status.Replication {
			if r.Path == path {
				err = fmt.Errorf("it is %+v", r)
			}
		}
		return err
	})
}

// launch starts one more kube-rego with other arguments, which the API server does not ask, until the test ends.
func launch(t *testing.T, args ...string) *kuberego.Instance {
	t.Helper()
	other, err := kuberego.Prepare(kuberego.Config{
		Cluster: cluster.ControlPlane, Root: cluster.root, Binary: cluster.binary, Dir: t.TempDir(), Args: args,
	})
	if err != nil {
		t.Fatal(err)
	}
	instance, err := other.Launch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, instance) })
	return instance
}

// notReady waits until an instance says at /readyz and /status why it is not ready, and gives its reviews no answer.
func notReady(t *testing.T, instance *kuberego.Instance, reasons ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("not ready for %q", reasons), func(ctx context.Context) error {
		err := instance.Ready(ctx)
		if err == nil {
			t.Fatal("it is ready")
		}
		if !contains(append(reasons, "503")...)(err.Error()) {
			return err
		}
		return nil
	})
	status, err := instance.Status(t.Context())
	if err != nil || status.Ready || !contains(reasons...)(status.Reason) {
		t.Errorf("/status says %+v, %v", status, err)
	}
	answer, err := reviewer(t, instance)(t.Context(), "anything")
	if err != nil || !contains(`"code":503`, `"reason":"ServiceUnavailable"`)(answer) {
		t.Errorf("the webhook answers %s, %v", answer, err)
	}
}

func ready(t *testing.T, instance *kuberego.Instance) {
	t.Helper()
	eventually(t, "ready", instance.Ready)
}

// The classic of the field: of two Ingresses with one host the second is refused.
func TestAnIngressWithAHostThatIsTaken(t *testing.T) {
	allowReading(t, "ingresses.networking.k8s.io")
	createNamespace(t, "blog")
	install(t, "--replicate=networking.k8s.io/v1/ingresses")
	kubectl(t, "apply", "-f", filepath.Join(cluster.root, "examples", "unique-ingress-host"))
	annotation(t, opa, "opa-unique-ingress-host", is(statusOK))
	annotation(t, opa, "opa-main", is(statusOK))
	ingress := func(ctx context.Context, namespace, name, host string) error {
		out, err := cluster.Kubectl(ctx, "create", "ingress", name, "-n", namespace, "--rule="+host+"/*=storefront:80").CombinedOutput()
		if err != nil {
			err = errors.New(strings.TrimSpace(string(out)))
		}
		return err
	}
	deleteObjects(t, "default", "ingress", "storefront", "other")
	deleteObjects(t, "blog", "ingress", "copy")
	if err := ingress(t.Context(), "default", "storefront", "shop.example.com"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the host is taken", func(ctx context.Context) error {
		cmd := cluster.Kubectl(ctx, "create", "ingress", "copy", "-n", "blog", "--rule=shop.example.com/*=copy:80", "--dry-run=server")
		if out, err := cmd.CombinedOutput(); err == nil || !contains(refusal(`host "shop.example.com" is taken by Ingress default/storefront`))(string(out)) {
			return fmt.Errorf("got %w: %s", err, out)
		}
		return nil
	})
	if err := ingress(t.Context(), "default", "other", "other.example.com"); err != nil {
		t.Errorf("another host: %v", err)
	}
	kubectl(t, "annotate", "ingress", "-n", "default", "storefront", "changed=yes") // it may keep its own host
	kubectl(t, "delete", "ingress", "-n", "default", "storefront")
	eventually(t, "the host is free again", func(ctx context.Context) error { return ingress(ctx, "blog", "copy", "shop.example.com") })
}

// The other classic: what a Pod may do is said by a label of its Namespace.
func TestAPodThatItsNamespaceDoesNotAllow(t *testing.T) {
	allowReading(t, "namespaces")
	const name = "routing"
	createNamespace(t, name)
	install(t, "--replicate-cluster=v1/namespaces")
	kubectl(t, "apply", "-f", filepath.Join(cluster.root, "examples", "namespace-label"))
	annotation(t, opa, "opa-namespace-label", is(statusOK))
	annotation(t, opa, "opa-main", is(statusOK))
	pod := func(ctx context.Context) (string, error) {
		out, err := cluster.Kubectl(ctx, "run", "proxy", "-n", name, "--image=registry.example.com/proxy", "--dry-run=server",
			`--overrides={"spec":{"hostNetwork":true}}`).CombinedOutput()
		return string(out), err
	}
	refused := func(context.Context) error {
		out, err := pod(t.Context())
		if err == nil || !contains(refusal(`hostNetwork: namespace "routing" has no label example.com/host-network=allowed`))(out) {
			return fmt.Errorf("got %w: %s", err, out)
		}
		return nil
	}
	eventually(t, "the Pod is refused", refused)
	kubectl(t, "label", "namespace", name, "example.com/host-network=allowed")
	eventually(t, "the Pod is allowed", func(ctx context.Context) error {
		out, err := pod(ctx)
		if err != nil {
			return fmt.Errorf("got %w: %s", err, out)
		}
		return nil
	})
	kubectl(t, "label", "namespace", name, "example.com/host-network-")
	eventually(t, "the Pod is refused again", refused)
}

// Objects are where policies look for them, without what says nothing about them, and as they are in the cluster.
func TestWhereReplicatedObjectsAre(t *testing.T) {
	allowReading(t, networkPolicies, "namespaces")
	createNamespace(t, "seen")
	createNamespace(t, "ignored")
	deleteObjects(t, "default", "networkpolicy", "one")
	deleteObjects(t, "ignored", "networkpolicy", "two")
	deleteObjects(t, "seen", "networkpolicy", "three")
	applyObjects(t, networkPolicy("default", "one", "1"), networkPolicy("ignored", "two", "2"))
	_, instance := install(t, "--replicate=networking.k8s.io/v1/networkpolicies", "--replicate-cluster=v1/namespaces",
		"--replicate-path=cluster/now", "--replicate-ignore-namespaces=ignored")
	there := strings.ReplaceAll(apps, "data.kubernetes.", "data.cluster.now.")
	object := func(namespace, name string) string {
		return fmt.Sprintf(`[p.apiVersion, p.kind, p.metadata.annotations, object.keys(p.metadata), object.keys(p)] |
	p := data.cluster.now.networkpolicies[%q][%q]`, namespace, name)
	}
	createAnnotated(t,
		policy(opa, "main", "main", entrypoint),
		policy(opa, "tell", "apps", denyTelling("apps", there),
			"listed", denyTelling("listed", "["+object("default", "one")+"]"),
			"watched", denyTelling("watched", "["+object("seen", "three")+"]"),
			"namespaces", denyTelling("namespaces", `[name | some name, n in data.cluster.now.namespaces; n.metadata.name == name; name in {"default", "ignored"}]`),
			"elsewhere", denyTelling("elsewhere", "data.kubernetes.networkpolicies")),
	)
	tells(t, "apps", `[{"default/one":"1"}]`)
	tells(t, "namespaces", `[["default","ignored"]]`)
	tells(t, "elsewhere", `[]`)
	applyObjects(t, networkPolicy("seen", "three", "3"))
	tells(t, "apps", `[{"default/one":"1","seen/three":"3"}]`)
	for _, value := range []string{"listed", "watched"} {
		tells(t, value, `[[["networking.k8s.io/v1","NetworkPolicy",{"note":"kept"},`+
			`["annotations","creationTimestamp","generation","name","namespace","resourceVersion","uid"],["apiVersion","kind","metadata","spec"]]]]`)
	}
	applyObjects(t, networkPolicy("default", "one", "4"), networkPolicy("ignored", "two", "5"))
	tells(t, "apps", `[{"default/one":"4","seen/three":"3"}]`)
	kubectl(t, "delete", "networkpolicy", "-n", "seen", "three")
	tells(t, "apps", `[{"default/one":"4"}]`)
	kubectl(t, "delete", "networkpolicy", "-n", "default", "one")
	tells(t, "apps", `[{}]`)
	if r := replicated(t, instance, "data.cluster.now.networkpolicies", "loaded"); r.Objects != 0 || r.Resource != "networking.k8s.io/v1/networkpolicies" {
		t.Errorf("/status says %+v", r)
	}
}

// widgets are a custom resource.
const widgets = `apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: widgets.example.com
spec:
  group: example.com
  names: {plural: widgets, singular: widget, kind: Widget}
  scope: Namespaced
  versions:
    - name: v1
      served: true
      storage: true
      schema:
        openAPIV3Schema:
          type: object
          x-kubernetes-preserve-unknown-fields: true
`

const oneWidget = `apiVersion: example.com/v1
kind: Widget
metadata:
  namespace: default
  name: one
spec: {size: 3}
`

// widgetSizes are the sizes of the widgets in data, and whether there is anything at their path.
const widgetSizes = `[data.kubernetes.widgets == {}, {name: w.spec.size | some name, w in data.kubernetes.widgets["default"]}]`

// installWidgets installs the custom resource until the test ends or the function that is returned is called.
func installWidgets(t *testing.T) (uninstall func()) {
	t.Helper()
	applyObjects(t, widgets)
	uninstall = sync.OnceFunc(func() {
		if out, err := cluster.Kubectl(context.Background(), "delete", "crd", "widgets.example.com").CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
	t.Cleanup(uninstall)
	return uninstall
}

// A resource that is not there has no objects, and nobody waits for it; it is followed when it comes, as often as it does.
func TestACustomResourceThatComesAndGoes(t *testing.T) {
	allowReading(t, "widgets.example.com")
	_, instance := install(t, "--replicate=example.com/v1/widgets")
	createAnnotated(t, policy(opa, "main", "main", entrypoint), policy(opa, "tell", "main", denyTelling("widgets", widgetSizes)))
	const nothing = `[[true,{}]]`
	for range 2 {
		tells(t, "widgets", nothing)
		if r := replicated(t, instance, "data.kubernetes.widgets", "missing"); !contains("example.com/v1/widgets")(r.Reason) {
			t.Errorf("the reason is %q", r.Reason)
		}
		uninstall := installWidgets(t)
		replicated(t, instance, "data.kubernetes.widgets", "loaded")
		applyObjects(t, oneWidget)
		tells(t, "widgets", `[[false,{"one":3}]]`)
		uninstall()
	}
	replicated(t, instance, "data.kubernetes.widgets", "missing")
	tells(t, "widgets", nothing)
	annotation(t, opa, "tell", is(statusOK))
}

// What a flag names and rights do not allow keeps kube-rego from being ready, and it says so until they do.
func TestAResourceThatIsForbidden(t *testing.T) {
	install(t)
	createAnnotated(t, policy(opa, "main", "main", entrypoint))
	instance := launch(t, "--replicate=networking.k8s.io/v1/networkpolicies", "--replicate=v1/pods")
	notReady(t, instance, "forbidden", "waiting for replicated objects")
	for _, name := range []string{"networkpolicies", "pods"} {
		if r := replicated(t, instance, "data.kubernetes."+name, "failed"); !contains(name+`" in API group`, "is forbidden")(r.Reason) {
			t.Errorf("the reason is %q", r.Reason)
		}
	}
	allowReading(t, "pods")
	replicated(t, instance, "data.kubernetes.pods", "loaded")
	notReady(t, instance, "networkpolicies", "forbidden")
	allowReading(t, networkPolicies)
	ready(t, instance)
	replicated(t, instance, "data.kubernetes.networkpolicies", "loaded")
}

// Nothing is decided before the first list of everything is there.
func TestReadyWithTheFirstList(t *testing.T) {
	allowReading(t, networkPolicies)
	deleteObjects(t, "default", "networkpolicy", "one")
	applyObjects(t, networkPolicy("default", "one", "1"))
	install(t)
	// Without the rest of the policies this would be no decision, so both say the same where nothing is replicated.
	createAnnotated(t, policy(opa, "main", "main", entrypoint), policy(opa, "tell", "main", denyTelling("apps", apps)))
	through := newProxy(t, "networkpolicies")
	release := through.keepBack(t)
	instance := launch(t, "--kubeconfig="+through.kubeconfig(t), "--replicate=networking.k8s.io/v1/networkpolicies")
	notReady(t, instance, "waiting for replicated objects: networking.k8s.io/v1/networkpolicies: waiting for the first list")
	replicated(t, instance, "data.kubernetes.networkpolicies", "loading")
	ask := reviewer(t, instance)
	release()
	eventually(t, "the first decision", func(ctx context.Context) error {
		answer, err := ask(ctx, "apps")
		if err == nil && contains(`"code":503`)(answer) {
			err = errors.New(answer)
		}
		if err == nil && !contains(`default/one`)(answer) {
			t.Fatalf("a decision without the objects: %s", answer)
		}
		return err
	})
	ready(t, instance)
}

// runServe runs kube-rego serve, which is to end by itself.
func runServe(t *testing.T, args ...string) printed {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, cluster.binary, append([]string{"serve", "--addr=127.0.0.1:0", "--diagnostic-addr=127.0.0.1:0"}, args...)...)
	cmd.Stderr = &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return printed{stderr: stderr.String(), code: cmd.ProcessState.ExitCode()}
}

// Flags that cannot be followed end kube-rego with a reason before it does anything.
func TestReplicationFlagsThatCannotBeFollowed(t *testing.T) {
	installation, _ := install(t)
	kubeconfig := "--kubeconfig=" + installation.Kubeconfig()
	for _, c := range []struct {
		sentence string
		args     []string
		code     int
		stderr   []string
	}{
		{"no version", []string{"--replicate=pods"}, 2, []string{"--replicate: ", `"pods" is not [group/]version/resource, such as v1/pods`}},
		{"too many parts", []string{"--replicate=apps/v1/deployments/status"}, 2, []string{`"apps/v1/deployments/status" is not [group/]version/resource`}},
		{"a kind", []string{"--replicate=v1/Pod"}, 2, []string{`"v1/Pod": a resource is a plural in small letters, such as pods for the kind Pod`}},
		{"no group", []string{"--replicate=apps/deployments"}, 2, []string{`"apps/deployments": what has no group has the version v1`}},
		{"an empty part", []string{"--replicate=/v1/"}, 2, []string{`"/v1/" is not [group/]version/resource`}},
		{"two groups with one plural", []string{"--replicate=v1/events", "--replicate=events.k8s.io/v1/events"}, 2,
			[]string{"v1/events and events.k8s.io/v1/events would both be data.kubernetes.events: give one a path of its own, such as events.k8s.io/v1/events=events-k8s-io-events"}},
		{"one resource twice", []string{"--replicate=v1/pods", "--replicate=v1/pods"}, 2, []string{"v1/pods is named twice"}},
		{"a path that is none", []string{"--replicate-path=a//b"}, 2, []string{`--replicate-path: "a//b" is not a path in data`}},
		{"a path below system", []string{"--replicate-path=system/main"}, 2, []string{"what is below system decides for the whole cluster"}},
		{"a namespace that is none", []string{"--replicate-ignore-namespaces=A_B"}, 2, []string{`--replicate-ignore-namespaces: "A_B"`}},
		{"manifests", []string{"--replicate-auto", "--manifests=."}, 2, []string{"--replicate-auto need a cluster"}},
		{"objects in namespaces, said to be of the whole cluster", []string{kubeconfig, "--replicate-cluster=v1/pods"}, 1,
			[]string{"v1/pods has objects in namespaces: it goes with --replicate, not --replicate-cluster"}},
		{"objects of the whole cluster, said to be in namespaces", []string{kubeconfig, "--replicate=v1/namespaces"}, 1,
			[]string{"v1/namespaces has objects for the whole cluster: it goes with --replicate-cluster, not --replicate"}},
		{"what cannot be watched", []string{kubeconfig, "--replicate=v1/bindings"}, 1, []string{"v1/bindings cannot be replicated"}},
	} {
		t.Run(c.sentence, func(t *testing.T) {
			got := runServe(t, c.args...)
			last := got.stderr[strings.LastIndex(strings.TrimSuffix(got.stderr, "\n"), "\n")+1:]
			if got.code != c.code || !contains(append(c.stderr, "kube-rego: ")...)(last) {
				t.Errorf("exit code %d, want %d: %s", got.code, c.code, got.stderr)
			}
		})
	}
}

// Two groups with one plural go beside each other where one has a path of its own.
func TestTwoGroupsWithOnePlural(t *testing.T) {
	allowReading(t, "events", "events.events.k8s.io")
	_, instance := install(t, "--replicate=v1/events", "--replicate=events.k8s.io/v1/events=new/events")
	createAnnotated(t, policy(opa, "main", "main", entrypoint), policy(opa, "tell", "main",
		denyTelling("events", `{[e.apiVersion, n.apiVersion] | some name, e in data.kubernetes.events.opa; n := data.kubernetes.new.events.opa[name]}`)))
	tells(t, "events", `[[["v1","events.k8s.io/v1"]]]`) // of kube-rego itself
	for path, resource := range map[string]string{"data.kubernetes.events": "v1/events", "data.kubernetes.new.events": "events.k8s.io/v1/events"} {
		if r := replicated(t, instance, path, "loaded"); r.Resource != resource {
			t.Errorf("%s is %+v", path, r)
		}
	}
}

// What policies read is replicated as long as they do, and no decision sees it before it is there.
func TestReplicationFollowsWhatPoliciesRead(t *testing.T) {
	allowReading(t, networkPolicies)
	deleteObjects(t, "default", "networkpolicy", "one")
	applyObjects(t, networkPolicy("default", "one", "1"))
	through := newProxy(t, "networkpolicies")
	_, instance := install(t, "--replicate-auto", "--kubeconfig="+through.kubeconfig(t))
	createAnnotated(t, policy(opa, "main", "main", entrypoint), policy(opa, "other", "main", denyLabel("other")))
	const path = "data.kubernetes.networkpolicies"
	stopped := func(context.Context) error {
		if n := through.watching(); n > 0 {
			return fmt.Errorf("there are %d watches", n)
		}
		return nil
	}
	for range 2 {
		notReplicated(t, instance, path)
		eventually(t, "nobody watches", stopped)
		create(t, policy(opa, "tell", "main", denyTelling("apps", apps)))
		eventually(t, "the first decision", func(ctx context.Context) error {
			err := try(ctx, "apps")
			switch {
			case err == nil:
				return errors.New("it is not in force")
			case err.Error() != refusal(`[{"default/one":"1"}]`):
				t.Fatalf("a decision without the objects: %v", err)
			}
			return nil
		})
		annotation(t, opa, "tell", is(statusOK))
		if r := replicated(t, instance, path, "loaded"); r.Resource != "networking.k8s.io/v1/networkpolicies" || r.Objects != 1 {
			t.Errorf("/status says %+v", r)
		}
		create(t, policy(opa, "more", "main", denyTelling("more", "count(data.kubernetes.networkpolicies)")))
		tells(t, "more", `[1]`)
		remove(t, opa, "tell")
		allows(t, "apps")
		stillTells(t, "more", `[1]`) // which reads it too
		remove(t, opa, "more")
		refuses(t, "other")
	}
	notReplicated(t, instance, path)
	eventually(t, "nobody watches", stopped)
}

// A policy that reads what is not allowed is held, and says so at the place; it goes into force by itself when that changes. What
// does not exist has no objects, and the policy that reads it warns.
// Of one that is in force nothing is taken back, but a start does not go on as if there were no objects.
func TestPoliciesThatReadWhatCannotBeReplicated(t *testing.T) {
	allowReading(t, "widgets.example.com")
	deleteObjects(t, "default", "networkpolicy", "one")
	applyObjects(t, networkPolicy("default", "one", "1"))
	through := newProxy(t, "networkpolicies")
	installation, instance := install(t, "--replicate-auto", "--kubeconfig="+through.kubeconfig(t))
	createAnnotated(t, policy(opa, "main", "main", entrypoint), policy(opa, "good", "main", denyLabel("good")))
	create(t, policy(opa, "missing", "main", denyTelling("widgets", widgetSizes)))
	create(t, policy(opa, "forbidden", "main", denyTelling("apps", apps)))
	create(t, policy(opa, "after", "main", denyLabel("after")))
	annotation(t, opa, "missing", contains(`"status":"warning"`, `"code":"replication_error"`, "data.kubernetes.widgets has no objects",
		`"location":{"file":"opa/missing/main","row":3,"col":39}`))
	annotation(t, opa, "forbidden", contains(`"inForce":"none"`, `"code":"replication_error"`, "data.kubernetes.networkpolicies is not known",
		"is forbidden", `"location":{"file":"opa/forbidden/main","row":4,"col":`))
	for _, value := range []string{"good", "after"} {
		refuses(t, value)
		annotation(t, opa, value, is(statusOK))
	}
	allows(t, "apps")
	tells(t, "widgets", `[[true,{}]]`)
	ready(t, instance)
	replicated(t, instance, "data.kubernetes.widgets", "missing")
	replicated(t, instance, "data.kubernetes.networkpolicies", "failed")

	uninstall := installWidgets(t)
	annotation(t, opa, "missing", is(statusOK))
	tells(t, "widgets", `[[true,{}]]`)
	forbid := allowReading(t, networkPolicies)
	annotation(t, opa, "forbidden", is(statusOK))
	tells(t, "apps", `[{"default/one":"1"}]`)

	t.Run("the right is taken away", func(t *testing.T) {
		forbid()
		through.interrupt(t)
		annotation(t, opa, "forbidden", contains(`"status":"warning"`, `"code":"replication_error"`, "is forbidden", `"file":"opa/forbidden/main","row":4`))
		stillTells(t, "apps", `[{"default/one":"1"}]`)
		annotation(t, opa, "missing", is(statusOK))
		ready(t, instance)
		starting, err := installation.Launch(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { stop(t, starting) })
		notReady(t, starting, "data.kubernetes.networkpolicies", "is forbidden")
		allowReading(t, networkPolicies)
		ready(t, starting)
		annotation(t, opa, "forbidden", is(statusOK))
		refusesItself(t, starting, "good")
	})
	t.Run("the resource goes", func(t *testing.T) {
		applyObjects(t, oneWidget)
		tells(t, "widgets", `[[false,{"one":3}]]`)
		uninstall()
		annotation(t, opa, "missing", contains(`"status":"warning"`, `"code":"replication_error"`, `"file":"opa/missing/main","row":3`))
		tells(t, "widgets", `[[true,{}]]`)
		installWidgets(t)
		annotation(t, opa, "missing", is(statusOK))
	})
}

// While policies are edited and objects change, each decision is made with one version of both.
func TestADecisionSeesOneStateOfPoliciesAndObjects(t *testing.T) {
	allowReading(t, networkPolicies)
	deleteObjects(t, "default", "networkpolicy", "one")
	applyObjects(t, networkPolicy("default", "one", "0")+"      twin: \"0\"\n")
	_, instance := install(t, "--replicate=networking.k8s.io/v1/networkpolicies")
	// Two policies that say the same: a decision with different versions of them, or of the object that they read, says two
	// things.
	write := func(cm *corev1.ConfigMap, generation int) {
		for key, label := range map[string]string{"left": "app", "right": "twin"} {
			cm.Data[key] = denyTelling("state", fmt.Sprintf(
				`[%d, to_number(data.kubernetes.networkpolicies["default"].one.spec.podSelector.matchLabels.%s)]`, generation, label))
		}
	}
	rules := policy(opa, "rules")
	write(rules, 0)
	createAnnotated(t, policy(opa, "main", "main", entrypoint), rules)
	tells(t, "state", `[[0,0]]`)

	asker := lastingClient(injectedCA(t))
	t.Cleanup(asker.CloseIdleConnections)
	const edits, changes = 30, 90
	ctx, cancel := context.WithCancel(t.Context())
	var asking, writing sync.WaitGroup
	seen := make(map[[2]int]bool)
	asking.Go(func() {
		for before := [2]int{}; ctx.Err() == nil; {
			state, err := stateOf(t.Context(), asker, instance)
			if err != nil {
				t.Error(err)
				return
			}
			if state[0] < before[0] || state[1] < before[1] {
				t.Errorf("a decision with %v after one with %v", state, before)
			}
			before, seen[state] = state, true
		}
	})
	writing.Go(func() {
		for n := range edits {
			edit(t, opa, "rules", func(cm *corev1.ConfigMap) { write(cm, n+1) })
		}
	})
	writing.Go(func() {
		for n := range changes {
			patch := fmt.Sprintf(`{"spec":{"podSelector":{"matchLabels":{"app":"%[1]d","twin":"%[1]d"}}}}`, n+1)
			_, err := cluster.Client().NetworkingV1().NetworkPolicies(metav1.NamespaceDefault).
				Patch(t.Context(), "one", types.MergePatchType, []byte(patch), metav1.PatchOptions{})
			if err != nil {
				t.Error(err)
			}
		}
	})
	writing.Wait()
	tells(t, "state", fmt.Sprintf(`[[%d,%d]]`, edits, changes))
	cancel()
	asking.Wait()
	if len(seen) < 3 {
		t.Errorf("all decisions were made with %v", seen)
	}
	t.Logf("decisions with %d states", len(seen))
}

// stateMessage is the only message of a decision that is made with one state.
var stateMessage = regexp.MustCompile(`"message":"\[\[([0-9]+),([0-9]+)\]\]"`)

// stateOf is the generations of policy and object that an instance decides with.
func stateOf(ctx context.Context, asker *http.Client, instance *kuberego.Instance) (state [2]int, err error) {
	code, answer, err := review(ctx, asker, instance, "state")
	if err != nil {
		return state, err
	}
	found := stateMessage.FindStringSubmatch(answer)
	if code != http.StatusOK || found == nil {
		return state, fmt.Errorf("HTTP %d, not one state: %s", code, answer)
	}
	for n := range state {
		if state[n], err = strconv.Atoi(found[n+1]); err != nil {
			return state, err
		}
	}
	return state, nil
}

// allowReading gives kube-rego the right to list and watch resources, named resource.group, until the test ends or the
// function that is returned is called. Both return when the API server knows of it.
func allowReading(t testing.TB, resources ...string) (forbid func()) {
	t.Helper()
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "read-" + strings.Join(resources, "-")}}
	for _, resource := range resources {
		r := schema.ParseGroupResource(resource)
		role.Rules = append(role.Rules, rbacv1.PolicyRule{
			APIGroups: []string{r.Group}, Resources: []string{r.Resource}, Verbs: []string{"list", "watch"},
		})
	}
	rbac := cluster.Client().RbacV1()
	if _, err := rbac.ClusterRoles().Create(t.Context(), role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err := rbac.ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: role.Name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role.Name},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: opa, Name: "kube-rego"}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	takeAway := sync.OnceFunc(func() {
		err := errors.Join(
			rbac.ClusterRoleBindings().Delete(context.Background(), role.Name, metav1.DeleteOptions{}),
			rbac.ClusterRoles().Delete(context.Background(), role.Name, metav1.DeleteOptions{}),
		)
		if err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(takeAway)
	for _, resource := range resources {
		allowed(t, schema.ParseGroupResource(resource), true)
	}
	return func() {
		takeAway()
		for _, resource := range resources {
			allowed(t, schema.ParseGroupResource(resource), false)
		}
	}
}

// allowed waits until the API server knows whether kube-rego may watch a resource: it learns of rights by a watch of its own.
func allowed(t testing.TB, resource schema.GroupResource, wanted bool) {
	t.Helper()
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User:               "system:serviceaccount:opa:kube-rego",
		ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "watch", Group: resource.Group, Resource: resource.Resource},
	}}
	eventually(t, fmt.Sprintf("the right to watch %s is %v", resource, wanted), func(ctx context.Context) error {
		answer, err := cluster.Client().AuthorizationV1().SubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
		if err == nil && answer.Status.Allowed != wanted {
			err = fmt.Errorf("it is not: %s", strings.TrimSpace(answer.Status.Reason))
		}
		return err
	})
}

// A broken edit of a policy that reads objects does not let the version before decide over nothing after a restart.
func TestABrokenEditOfAPolicyThatReadsObjectsSurvives(t *testing.T) {
	forbid := allowReading(t, networkPolicies)
	deleteObjects(t, "default", "networkpolicy", "one")
	applyObjects(t, networkPolicy("default", "one", "1"))
	installation, first := install(t, "--replicate-auto")
	createAnnotated(t, policy(opa, "main", "main", entrypoint), policy(opa, "tell", "main", denyTelling("apps", apps)))
	recorded(t, "tell", "main", denyTelling("apps", apps))
	edit(t, opa, "tell", func(cm *corev1.ConfigMap) { cm.Data["main"] = "package" })
	annotation(t, opa, "tell", contains(`"inForce":"previous"`))
	second, err := installation.StartReplica(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, second) })
	answer, err := reviewer(t, second)(t.Context(), "apps") // its first decision
	if err != nil || !contains("default/one")(answer) {
		t.Errorf("it decides %s, %v", answer, err)
	}
	inForce(t, first, map[string]string{"opa/main/main": "current", "opa/tell/main": "previous"})
	forbid()
	third, err := installation.Launch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, third) })
	notReady(t, third, "data.kubernetes.networkpolicies", "is forbidden")
}
