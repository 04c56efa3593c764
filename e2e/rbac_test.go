package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// replicationRole is the ClusterRole that the component replication binds and does not have.
const replicationRole = "kube-rego-replication"

// runRBAC runs kube-rego rbac, which must print a role and nothing else, and reads the role as the API server does.
func runRBAC(t *testing.T, stdin string, args ...string) (text string, role *rbacv1.ClusterRole) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), cluster.binary, append([]string{"rbac"}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	if err := cmd.Run(); err != nil || stderr.Len() > 0 {
		t.Fatalf("kube-rego rbac %q: %v, %s", args, err, stderr.String())
	}
	role = new(rbacv1.ClusterRole)
	if err := yaml.UnmarshalStrict(stdout.Bytes(), role); err != nil {
		t.Fatal(err)
	}
	return stdout.String(), role
}

// mayWatch waits until the API server says so: it learns of rights by a watch of its own.
func mayWatch(t *testing.T, resource string, wanted string) {
	t.Helper()
	eventually(t, "may kube-rego watch "+resource+": "+wanted, func(ctx context.Context) error {
		out, err := cluster.Kubectl(ctx, "auth", "can-i", "watch", resource, "-A", "--as=system:serviceaccount:opa:kube-rego").Output()
		if strings.TrimSpace(string(out)) != wanted {
			return fmt.Errorf("it says %q, %w", out, err)
		}
		return nil
	})
}

// giveRole applies a role as an admin does, and waits until kube-rego may watch exactly these resources, and not those.
func giveRole(t *testing.T, role *rbacv1.ClusterRole, watched, forbidden []string) {
	t.Helper()
	manifest, err := json.Marshal(role)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "role.json") // which kubectl takes too
	if err := os.WriteFile(file, manifest, 0o600); err != nil {
		t.Fatal(err)
	}
	kubectl(t, "apply", "-f", file)
	for _, resource := range watched {
		mayWatch(t, resource, "yes")
	}
	for _, resource := range forbidden {
		mayWatch(t, resource, "no")
	}
}

// without is the role less one of its rules.
func without(role *rbacv1.ClusterRole, rule int) *rbacv1.ClusterRole {
	less := role.DeepCopy()
	less.Rules = slices.Delete(less.Rules, rule, rule+1)
	return less
}

// takeRoleAway leaves the binding of the manifests with nothing to give.
func takeRoleAway(t *testing.T) {
	t.Helper()
	err := cluster.Client().RbacV1().ClusterRoles().Delete(context.Background(), replicationRole, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Error(err)
	}
}

// The role of kube-rego rbac is enough for --replicate-auto, and no rule of it can be spared.
func TestPoliciesGoIntoForceWithTheGeneratedRoleAndNotWithLess(t *testing.T) {
	applyRights(t, "replication")
	resources := []string{"namespaces", "ingresses.networking.k8s.io"} // in the order of the rules
	others := []string{"secrets", "pods", "networkpolicies.networking.k8s.io"}
	for missing, resource := range resources {
		path := func(n int) string { return "data.kubernetes." + schema.ParseGroupResource(resources[n]).Resource }
		t.Run("without "+resource, func(t *testing.T) {
			t.Cleanup(func() { takeRoleAway(t) })
			install(t, "--replicate-auto")
			create(t, policy(opa, "main", "main", entrypoint))
			create(t, policy(opa, "reader", "main", denyLabel("one")+"\nk contains data.kubernetes.namespaces[_].metadata.name\n\nk contains host if some host in data.kubernetes.ingresses[_][_].spec.rules\n"))
			annotation(t, opa, "reader", contains(`"status":"error"`, path(missing)+" is not known", "forbidden"))

			list := kubectl(t, "get", "configmaps", "-A", "-l", policyLabel+"=rego", "-o", "yaml")
			_, role := runRBAC(t, list, "-f", "-", "--kubeconfig", cluster.Kubeconfig())
			if role.Name != replicationRole || len(role.Rules) != len(resources) {
				t.Fatalf("got %v", role)
			}
			giveRole(t, without(role, missing), []string{resources[1-missing]}, append(others, resource))
			// That what may be read was read by now can be seen in what is still in the way.
			annotation(t, opa, "reader", func(status string) bool {
				return contains(`"status":"error"`, path(missing)+" is not known")(status) &&
					!strings.Contains(status, path(1-missing))
			})

			giveRole(t, role, resources, others)
			annotation(t, opa, "reader", is(statusOK))
			refuses(t, "one")
		})
	}
}

// What kube-rego rbac knows without a cluster is what the API server says.
func TestTheResourcesOfKubernetesAreKnownWithoutACluster(t *testing.T) {
	lists, err := cluster.Client().Discovery().ServerPreferredResources()
	if err != nil {
		t.Fatal(err)
	}
	wanted := make(map[string]string) // the group of each name
	for _, list := range lists {
		version, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range list.APIResources {
			_, known := wanted[r.Name]
			if slices.Contains(r.Verbs, "list") && slices.Contains(r.Verbs, "watch") && (!known || version.Group == "") {
				wanted[r.Name] = version.Group
			}
		}
	}
	if len(wanted) < 50 {
		t.Fatalf("the API server has only %v", wanted)
	}
	dir := t.TempDir()
	reads := "package k\n"
	for name := range wanted {
		if name != "secrets" { // which comes with a warning
			reads += fmt.Sprintf("\np_%[1]s := data.kubernetes.%[1]s\n", name)
		}
	}
	delete(wanted, "secrets")
	file, definitions := filepath.Join(dir, "reads.rego"), filepath.Join(dir, "definitions.yaml")
	err = errors.Join(
		os.WriteFile(file, []byte(reads), 0o600),
		os.WriteFile(definitions, []byte(kubectl(t, "get", "customresourcedefinitions", "-o", "yaml")), 0o600), // of other tests
	)
	if err != nil {
		t.Fatal(err)
	}
	text, role := runRBAC(t, "", "-f", file, "-f", definitions)
	for _, rule := range role.Rules {
		for _, name := range rule.Resources {
			if group, ok := wanted[name]; !ok || !slices.Equal(rule.APIGroups, []string{group}) {
				t.Errorf("%s is in the groups %q, want %q", name, rule.APIGroups, group)
			}
			delete(wanted, name)
		}
	}
	if len(wanted) > 0 {
		t.Errorf("not in the role: %v", wanted)
	}
	if asked, _ := runRBAC(t, "", "-f", file, "--kubeconfig", cluster.Kubeconfig()); asked != text {
		t.Errorf("with a cluster:\n%s\nwithout:\n%s", asked, text)
	}
}
