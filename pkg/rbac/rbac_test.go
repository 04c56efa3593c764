package rbac_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-rego/kube-rego/pkg/rbac"
)

// configMap is the policy opa/<name> with one key.
func configMap(name string, lines ...string) string {
	return "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: " + name + ", namespace: opa, labels: {openpolicyagent.org/policy: rego}}\n" +
		"data:\n  main: " + strconv.Quote(strings.Join(lines, "\n")) + "\n"
}

// definition is a CustomResourceDefinition.
func definition(group, plural string) string {
	return "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: any}\n" +
		"spec: {group: " + group + ", scope: Cluster, names: {plural: " + plural + "}, versions: [{name: v1alpha1, served: false}, {name: v1beta1, served: true}]}\n"
}

// list is what kubectl get -o yaml prints of several objects.
func list(objects ...string) string {
	text := "apiVersion: v1\nkind: List\nitems:\n"
	for _, object := range objects {
		text += "- " + strings.ReplaceAll(strings.TrimSuffix(object, "\n"), "\n", "\n  ") + "\n"
	}
	return text
}

func options(filenames ...string) rbac.Options {
	return rbac.Options{
		Filenames: filenames, ReplicatePath: "kubernetes", Name: rbac.DefaultName,
		PolicyLabel: "openpolicyagent.org/policy", PolicyValue: "rego", DataLabel: "openpolicyagent.org/data", DataValue: "opa",
	}
}

// given is what a person has: files in a folder, or standard input, and options.
type given struct {
	files   map[string]string
	stdin   string
	options func(*rbac.Options)
}

// run prints the role for a folder, and for standard input where there is one. The name
// of the folder is cut out of what it says.
func run(t *testing.T, g given) (stdout, stderr string, err error) {
	t.Helper()
	dir := t.TempDir()
	for name, content := range g.files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	o := options(dir)
	if g.stdin != "" {
		o.Filenames = []string{rbac.Stdin}
	}
	if g.options != nil {
		g.options(&o)
	}
	var out, told bytes.Buffer
	err = rbac.Run(t.Context(), o, strings.NewReader(g.stdin), &out, &told)
	if err != nil {
		err = errors.New(strings.ReplaceAll(err.Error(), dir+string(filepath.Separator), ""))
	}
	return out.String(), strings.ReplaceAll(told.String(), dir+string(filepath.Separator), ""), err
}

// rules are those of a role in short: group:resource,resource for each.
func rules(t *testing.T, role string) string {
	t.Helper()
	const head = "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata:\n  name: kube-rego-replication\nrules:"
	_, text, ok := strings.Cut(role, head)
	if !ok {
		t.Fatalf("this is no role:\n%s", role)
	}
	if strings.TrimSpace(text) == "[]" {
		return "none"
	}
	var short []string
	for rule := range strings.SplitSeq(text, "- apiGroups:\n") {
		group, rest, ok := strings.Cut(strings.TrimSpace(rule), "\n  resources:\n")
		if !ok {
			continue
		}
		resources, ok := strings.CutSuffix(rest, "\n  verbs:\n  - list\n  - watch")
		if !ok {
			t.Fatalf("not list and watch alone:\n%s", rule)
		}
		names := strings.Fields(strings.ReplaceAll(resources, "- ", ""))
		short = append(short, strings.Trim(strings.TrimPrefix(group, "- "), `"`)+":"+strings.Join(names, ","))
	}
	return strings.Join(short, " ")
}

func TestRules(t *testing.T) {
	reads := func(names ...string) string {
		lines := []string{"package k"}
		for i, name := range names {
			lines = append(lines, "p"+strconv.Itoa(i)+" := data.kubernetes."+name)
		}
		return configMap("reader", lines...)
	}
	explicit := func(namespaced, cluster string) func(*rbac.Options) {
		return func(o *rbac.Options) {
			o.Replicate, o.ReplicateCluster = strings.Fields(namespaced), strings.Fields(cluster)
		}
	}
	for _, test := range []struct {
		name  string
		given given
		want  string
	}{
		{
			"what policies read, by group, sorted",
			given{files: map[string]string{"b.yaml": reads("statefulsets", "pods.a.b"), "a.yml": configMap("other", "package k", "q := data.kubernetes.deployments", "r := data.kubernetes.namespaces")}},
			":namespaces,pods apps:deployments,statefulsets",
		},
		{"nothing", given{files: map[string]string{"a.yaml": configMap("a", "package k", "p := 1")}}, "none"},
		{"a name that another policy defines", given{files: map[string]string{"a.yaml": reads("admission.deny", "nodes"), "b.yaml": configMap("b", "package kubernetes.admission", "deny := 1")}}, ":nodes"},
		{"the core group goes before others", given{files: map[string]string{"a.yaml": reads("events")}}, ":events"},
		{"files in JSON", given{files: map[string]string{"a.json": `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","labels":{"openpolicyagent.org/policy":"rego"}},"data":{"main":"package k\np := data.kubernetes.jobs"}}`}}, "batch:jobs"},
		{"files with Rego, without those of tests", given{files: map[string]string{"a.rego": "package k\np := data.kubernetes.jobs", "a_test.rego": "package k_test\nq := data.kubernetes.secrets"}}, "batch:jobs"},
		{"folders in folders are not read, nor are other files", given{files: map[string]string{"a.rego": "package k\np := data.kubernetes.jobs", "sub/b.yaml": reads("pods"), "README.md": "# {"}}, "batch:jobs"},
		{"a list on standard input", given{stdin: list(reads("pods"), configMap("other", "package k", "q := data.kubernetes.jobs"), definition("example.com", "widgets"))}, ":pods batch:jobs"},
		{"old Rego beside new, and every namespace may have the entrypoint", given{files: map[string]string{
			"a.rego": "package k\np[x] { x = data.kubernetes.jobs[_] }", "b.yaml": configMap("b", "package system", "main := data.kubernetes.pods"),
			"c.rego": "package system\nlog := data.kubernetes.nodes",
		}}, ":nodes,pods batch:jobs"},
		{"a policy that does not compile with the rest", given{files: map[string]string{"a.rego": "package k\np := data.lib.f(data.kubernetes.jobs)"}}, "batch:jobs"},
		{"data is no policy, also if it is broken, and with both labels", given{files: map[string]string{
			"a.yaml": reads("pods"),
			"b.yaml": strings.ReplaceAll(configMap("b", "{"), "policy: rego", "data: opa"),
			"c.yaml": strings.ReplaceAll(configMap("c", "package k", "p := data.kubernetes.secrets"), "policy: rego", "policy: rego, openpolicyagent.org/data: opa"),
		}}, ":pods"},
		{"ConfigMaps of others, and other objects", given{files: map[string]string{"a.yaml": reads("pods"), "b.yaml": strings.ReplaceAll(configMap("b", "{"), "policy: rego", "policy: cel") + "---\nkind: Pod\napiVersion: v1\n"}}, ":pods"},
		{"what is no policy may come twice", given{files: map[string]string{
			"a.yaml": reads("pods"), "b.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\n", "c.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\n",
		}}, ":pods"},
		{"the resource of a CustomResourceDefinition", given{files: map[string]string{"a.yaml": reads("widgets", "pods"), "b.yaml": definition("example.com", "widgets")}}, ":pods example.com:widgets"},
		{"a definition that is there twice", given{files: map[string]string{"a.yaml": reads("widgets"), "b.yaml": definition("example.com", "widgets") + "---\n" + definition("example.com", "widgets")}}, "example.com:widgets"},
		{"a definition with the name of something in the core group", given{files: map[string]string{"a.yaml": reads("pods"), "b.yaml": definition("example.com", "pods")}}, ":pods"},
		{"what flags name, without any policy", given{options: func(o *rbac.Options) {
			o.Filenames, o.Replicate, o.ReplicateCluster = nil, []string{"v1/pods", "example.com/v1/widgets"}, []string{"v1/nodes"}
		}}, ":nodes,pods example.com:widgets"},
		{"what flags name beside what policies read", given{files: map[string]string{"a.yaml": reads("pods")}, options: explicit("v1/pods apps/v1/deployments", "")}, ":pods apps:deployments"},
		{"a flag says what an ambiguous name is", given{files: map[string]string{"a.yaml": reads("jobs"), "b.yaml": definition("example.com", "jobs")}, options: explicit("", "example.com/v1/jobs")}, "example.com:jobs"},
		{"a flag gives a name of its own, or a path", given{files: map[string]string{"a.yaml": reads("mine", "deep.er")}, options: explicit("v1/events=mine events.k8s.io/v1/events=deep/er", "")}, ":events events.k8s.io:events"},
		{"another path in data", given{files: map[string]string{"a.yaml": configMap("a", "package k", "p := data.my.cluster.pods", "q := data.kubernetes.secrets", "r := data.my.other")}, options: func(o *rbac.Options) { o.ReplicatePath = "my/cluster" }}, ":pods"},
	} {
		t.Run(test.name, func(t *testing.T) {
			stdout, stderr, err := run(t, test.given)
			if err != nil {
				t.Fatal(err)
			}
			if got := rules(t, stdout); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
			if test.want != "none" && stderr != "" {
				t.Errorf("it says %q", stderr)
			}
		})
	}
}

func TestRemarks(t *testing.T) {
	for _, test := range []struct {
		name  string
		given given
		want  []string
	}{
		{"nothing is read", given{stdin: configMap("a", "package k")}, []string{"kube-rego: the policies read no objects of the cluster: the role has no rules"}},
		{
			"Secrets are read", given{stdin: configMap("a", "package k", "p := data.kubernetes.secrets") + "---\n" + configMap("b", "package k", "", "q := data.kubernetes.secrets")},
			[]string{"kube-rego: warning: the role lets kube-rego read all Secrets (opa/a/main:2:6, opa/b/main:3:6): whoever may write policies can have them told"},
		},
		{
			"a flag names Secrets", given{stdin: configMap("a", "package k"), options: func(o *rbac.Options) { o.Replicate = []string{"v1/secrets"} }},
			[]string{"kube-rego: warning: the role lets kube-rego read all Secrets: whoever"},
		},
		{"somebody else's secrets are none", given{options: func(o *rbac.Options) { o.Filenames, o.Replicate = nil, []string{"example.com/v1/secrets"} }}, nil},
		{
			"a place names no resource", given{files: map[string]string{"a.rego": "package k\np := data.kubernetes[input.x]\nq := data.kubernetes.pods"}},
			[]string{"kube-rego: warning: a.rego:2:6: the text does not say which resource is read: "},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, stderr, err := run(t, test.given)
			if err != nil {
				t.Fatal(err)
			}
			lines := slices.Collect(strings.Lines(stderr))
			if !slices.EqualFunc(lines, test.want, strings.HasPrefix) {
				t.Errorf("got\n%swant\n%s", stderr, strings.Join(test.want, "\n"))
			}
		})
	}
}

// Of what is not known whole, nothing is printed.
func TestNoRole(t *testing.T) {
	const advice = "\nif the name is not misspelt: give --kubeconfig of a cluster that knows it, or the manifest of its CustomResourceDefinition"
	for _, test := range []struct {
		name  string
		given given
		want  []string // parts of the error, in this order
	}{
		{
			"a policy does not parse", given{files: map[string]string{"a.yaml": configMap("a", "package k", "p := ["), "b.rego": "package k\n\nq := data.kubernetes.pods)"}},
			[]string{"b.rego:3:", "rego_parse_error: ", "\n    q := data.kubernetes.pods)\n                             ^", "opa/a/main:2:", "rego_parse_error"},
		},
		{"a file is not text", given{files: map[string]string{"a.rego": "\xff"}}, []string{"a.rego: invalid_parameter: the file is not UTF-8 text"}},
		{
			"a name that nobody knows, where each is read first",
			given{files: map[string]string{"a.yaml": configMap("a", "package k", "p := data.kubernetes.widgets", "q := data.kubernetes.pod", "r := data.kubernetes.pods"), "b.rego": "package k\np := data.kubernetes.pod"}},
			[]string{
				"b.rego:2:6: data.kubernetes.pod: no policy here defines it, and no resource is known by that name\n",
				"opa/a/main:2:6: data.kubernetes.widgets: no policy here defines it, and no resource is known by that name" + advice,
			},
		},
		{
			"a name of two groups", given{files: map[string]string{"a.yaml": configMap("a", "package k", "p := data.kubernetes.widgets"), "b.yaml": definition("example.com", "widgets"), "c.yaml": definition("example.org", "widgets")}},
			[]string{"opa/a/main:2:6: data.kubernetes.widgets: it may be example.com/v1beta1/widgets or example.org/v1beta1/widgets: say which with --replicate or --replicate-cluster"},
		},
		{"no policy", given{files: map[string]string{"a.yaml": definition("example.com", "widgets")}}, []string{"no policy was found: neither a ConfigMap with the label openpolicyagent.org/policy=rego nor a .rego file"}},
		{"nothing on standard input", given{stdin: "\n"}, []string{"no policy was found"}},
		{"no folder", given{options: func(o *rbac.Options) { o.Filenames = []string{"missing"} }}, []string{"reading manifests: stat missing: no such file or directory"}},
		{"a file that is no YAML", given{files: map[string]string{"a.yaml": "---\n---\na: b: c"}}, []string{"reading a.yaml, document 2: "}},
		{"a broken item of a list", given{stdin: list(configMap("a", "package k"), "apiVersion: v1\nkind: ConfigMap\ncolour: blue\n")}, []string{`reading standard input, document 1: item 1: json: unknown field "colour"`}},
		{"a ConfigMap twice", given{files: map[string]string{"a.yaml": configMap("a", "package k"), "b.yaml": configMap("a", "package k")}}, []string{"reading b.yaml, document 1: ConfigMap opa/a is in ", "a.yaml already"}},
		{"a definition that would be the core group", given{stdin: definition(`""`, "secrets")}, []string{`document 1: a CustomResourceDefinition of the resource "secrets" of the group ""`}},
		{"a definition in a group of Kubernetes", given{stdin: definition("batch", "things")}, []string{`of the resource "things" of the group "batch", which nobody can define`}},
		{"a definition of all resources", given{stdin: definition("example.com", `"*"`)}, []string{`of the resource "*" of the group "example.com", which nobody can define`}},
		{"a definition of all groups", given{stdin: definition(`"*.*"`, "secrets")}, []string{`of the group "*.*"`}},
		{
			"a definition that nobody serves", given{stdin: configMap("a", "package k", "p := data.kubernetes.widgets") + "---\n" + strings.ReplaceAll(definition("example.com", "widgets"), "true", "false")},
			[]string{"data.kubernetes.widgets: no policy here defines it"},
		},
		{"escape sequences reach no terminal", given{stdin: configMap("a", "package k", `p := data.kubernetes["\u001b[2J"]`)}, []string{"data.kubernetes.\ufffd[2J: no policy"}},
		{"a cluster is named that cannot be read", given{stdin: configMap("a", "package k"), options: func(o *rbac.Options) { o.Kubeconfig = "missing" }}, []string{"reading the kubeconfig: "}},
	} {
		t.Run(test.name, func(t *testing.T) {
			stdout, stderr, err := run(t, test.given)
			if err == nil || stdout != "" || stderr != "" {
				t.Fatalf("got an error %v, and\n%s%s", err, stdout, stderr)
			}
			rest := err.Error()
			for _, part := range test.want {
				_, after, ok := strings.Cut(rest, part)
				if !ok {
					t.Fatalf("got  %s\nwant %q in it", err, part)
				}
				rest = after
			}
		})
	}
}

// With a kubeconfig the resources are those of the cluster, in the groups that it has.
func TestTheClusterKnowsItsResources(t *testing.T) {
	known := map[string]any{
		"/api":  metav1.APIVersions{Versions: []string{"v1"}},
		"/apis": metav1.APIGroupList{Groups: []metav1.APIGroup{{Name: "example.com", Versions: []metav1.GroupVersionForDiscovery{{GroupVersion: "example.com/v1", Version: "v1"}}, PreferredVersion: metav1.GroupVersionForDiscovery{GroupVersion: "example.com/v1", Version: "v1"}}}},
		"/api/v1": metav1.APIResourceList{GroupVersion: "v1", APIResources: []metav1.APIResource{
			{Name: "pods", Kind: "Pod", Namespaced: true, Verbs: metav1.Verbs{"list", "watch"}},
		}},
		"/apis/example.com/v1": metav1.APIResourceList{GroupVersion: "example.com/v1", APIResources: []metav1.APIResource{
			{Name: "workloads", Kind: "Workload", Verbs: metav1.Verbs{"list", "watch"}}, {Name: "reviews", Kind: "Review", Verbs: metav1.Verbs{"create"}},
		}},
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, ok := known[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer)
	}))
	t.Cleanup(server.Close)
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	text := "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: \"" + server.URL + "\"}}]\ncontexts: [{name: c, context: {cluster: c, user: c}}]\ncurrent-context: c\n"
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ask := func(o *rbac.Options) { o.Kubeconfig = kubeconfig }
	policy := configMap("a", "package k", "p := data.kubernetes.workloads", "q := data.kubernetes.pods", "r := data.kubernetes.widgets")
	stdout, _, err := run(t, given{stdin: policy + "---\n" + definition("example.com", "widgets"), options: ask})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := rules(t, stdout), ":pods example.com:widgets,workloads"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, name := range []string{"deployments", "reviews"} {
		_, _, err = run(t, given{stdin: configMap("a", "package k", "p := data.kubernetes."+name), options: ask})
		if err == nil || !strings.Contains(err.Error(), "data.kubernetes."+name+": no policy here") || strings.Contains(err.Error(), "--kubeconfig") {
			t.Errorf("what this cluster does not have: %v", err)
		}
	}
}

func TestTheSameRoleWhateverTheOrder(t *testing.T) {
	const want = `apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: another
rules:
- apiGroups:
  - ""
  resources:
  - nodes
  - pods
  verbs:
  - list
  - watch
- apiGroups:
  - apps
  resources:
  - deployments
  - replicasets
  verbs:
  - list
  - watch
`
	named := func(resources ...string) func(*rbac.Options) {
		return func(o *rbac.Options) { o.Filenames, o.Replicate, o.Name = nil, resources, "another" }
	}
	one, _, errOne := run(t, given{options: named("v1/pods", "apps/v1/deployments", "v1/nodes", "apps/v1/replicasets")})
	two, _, errTwo := run(t, given{options: named("apps/v1/replicasets", "v1/nodes", "apps/v1/deployments", "v1/pods")})
	if err := errors.Join(errOne, errTwo); err != nil {
		t.Fatal(err)
	}
	if one != two || !strings.HasPrefix(one, "# Generated by kube-rego rbac") || !strings.HasSuffix(one, "\n"+want) {
		t.Errorf("got\n%s\nand\n%s", one, two)
	}
}

// Somebody who typed -f - and nothing else can go away.
func TestReadingStandardInputEnds(t *testing.T) {
	in, never := io.Pipe()
	defer func() { _ = never.Close() }()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out bytes.Buffer
	if err := rbac.Run(ctx, options(rbac.Stdin), in, &out, &out); !errors.Is(err, context.Canceled) || out.Len() > 0 {
		t.Errorf("got %v and %q", err, out.String())
	}
}
