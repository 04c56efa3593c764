package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	corev1 "k8s.io/api/core/v1"

	"github.com/kube-rego/kube-rego/e2e/kuberego"
)

const (
	// modelSeed is that of the one sequence of every day, in which it comes to all that can happen.
	modelSeed = 4
	// modelTurns of modelBurst changes each, a quiet moment after each.
	modelTurns, modelBurst = 14, 36
)

// tellData answers with all of data.kubernetes if the label says so.
const tellData = `package system

main := {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": {"allowed": true, "status": status}}

default status := {}

status := {"message": json.marshal(data.kubernetes)} if input.request.object.metadata.labels.deny == "tell"
`

// Whatever happens to objects and to the connection, data is in the end what the cluster holds, and never goes back.
func TestDataFollowsTheCluster(t *testing.T) {
	sequences, first := number(t, soakVariable, 1), number(t, seedVariable, modelSeed)
	t.Logf("%d sequences; the seed of the first is %d", sequences, first)
	m := newModel(t)
	for seed := first; seed < first+sequences; seed++ {
		m.begin(seed)
		for turn := range modelTurns {
			m.turn(turn)
		}
		t.Logf("seed %d; so far %v", seed, m.done)
	}
	for _, what := range []string{"create", "update", "delete", "empty a namespace", "interrupt", "expire"} {
		if m.done[what] == 0 {
			t.Errorf("it never came to: %s", what)
		}
	}
}

// model makes changes at random. What the cluster holds is asked of the API server itself.
type model struct {
	*testing.T
	seed     int
	random   *rand.Rand
	proxy    *proxy
	instance *kuberego.Instance
	client   *http.Client
	objects  dynamic.Interface
	exists   map[string]bool // namespace/name of what was made
	versions map[string]int  // the newest resourceVersion seen in data, by path
	done     map[string]int
	story    []string
}

var modelNamespaces = []string{"model-a", "model-b", "model-c"}

func newModel(t *testing.T) *model {
	t.Helper()
	allowReading(t, "ingresses.networking.k8s.io", "priorityclasses.scheduling.k8s.io")
	for _, name := range modelNamespaces {
		createNamespace(t, name)
	}
	m := &model{
		T:        t,
		proxy:    newProxy(t, "ingresses", "priorityclasses"),
		versions: make(map[string]int),
		done:     make(map[string]int),
	}
	var err error
	if m.objects, err = dynamic.NewForConfig(cluster.RESTConfig()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.clear)
	_, m.instance = install(t, "--kubeconfig="+m.proxy.kubeconfig(t),
		"--replicate=networking.k8s.io/v1/ingresses", "--replicate-cluster=scheduling.k8s.io/v1/priorityclasses")
	create(t, policy(opa, "main", "main", tellData))
	annotation(t, opa, "main", is(statusOK))
	m.client = lastingClient(injectedCA(t))
	t.Cleanup(m.client.CloseIdleConnections)
	return m
}

// createNamespace makes a namespace, until the test ends.
func createNamespace(t testing.TB, name string) {
	t.Helper()
	namespaces := cluster.Client().CoreV1().Namespaces()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := namespaces.Create(t.Context(), namespace, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := namespaces.Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
}

// begin starts a sequence with nothing there.
func (m *model) begin(seed int) {
	m.clear()
	for _, namespace := range modelNamespaces {
		m.empty(namespace)
	}
	m.seed, m.random, m.exists, m.story = seed, rand.New(rand.NewPCG(uint64(seed), 0)), make(map[string]bool), nil
	m.settle("the start")
}

// clear removes what has no namespace.
func (m *model) clear() {
	for path := range m.exists {
		if namespace, name, _ := strings.Cut(path, "/"); namespace == "" {
			m.check(cluster.Client().SchedulingV1().PriorityClasses().Delete(context.Background(), name, metav1.DeleteOptions{}))
		}
	}
}

func (m *model) check(err error) {
	m.Helper()
	if err != nil {
		m.Error(err)
	}
}

// tell takes note of what is done, for the reader of a failure.
func (m *model) tell(what, where string) {
	m.done[what]++
	m.story = append(m.story, what+" "+where)
}

// turn makes changes, and in most turns the connection suffers meanwhile: it ends and goes on, or it ends and what was
// missed has to be listed.
func (m *model) turn(turn int) {
	m.story = nil
	m.changes()
	switch m.random.IntN(3) {
	case 0:
		m.tell("interrupt", "")
		m.proxy.interrupt(m.T)
		m.changes()
	case 1:
		m.tell("expire", "")
		expire := m.proxy.cut(m.T)
		m.changes()
		expire()
		m.changes()
	}
	m.settle(fmt.Sprintf("turn %d", turn))
}

func (m *model) changes() {
	for range modelBurst / 2 {
		m.change()
		if m.random.IntN(8) == 0 {
			m.look()
		}
	}
}

// change is one change of one object, or of all of a namespace.
func (m *model) change() {
	namespace, name := "", fmt.Sprintf("model-%d", m.random.IntN(6))
	if m.random.IntN(4) > 0 {
		namespace = modelNamespaces[m.random.IntN(len(modelNamespaces))]
	}
	path := namespace + "/" + name
	switch {
	case namespace != "" && m.random.IntN(40) == 0:
		m.tell("empty a namespace", namespace)
		m.empty(namespace)
	case !m.exists[path]:
		m.tell("create", path)
		m.create(namespace, name)
		m.exists[path] = true
	case m.random.IntN(3) > 0:
		m.tell("update", path)
		m.update(namespace, name)
	default:
		m.tell("delete", path)
		m.delete(namespace, name)
		delete(m.exists, path)
	}
}

func (m *model) empty(namespace string) {
	m.check(cluster.Client().NetworkingV1().Ingresses(namespace).
		DeleteCollection(m.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}))
	maps.DeleteFunc(m.exists, func(path string, _ bool) bool { return strings.HasPrefix(path, namespace+"/") })
}

func (m *model) create(namespace, name string) {
	if namespace == "" {
		_, err := cluster.Client().SchedulingV1().PriorityClasses().Create(m.Context(), m.priorityClass(name), metav1.CreateOptions{})
		m.check(err)
		return
	}
	_, err := cluster.Client().NetworkingV1().Ingresses(namespace).Create(m.Context(), m.ingress(name), metav1.CreateOptions{})
	m.check(err)
}

func (m *model) update(namespace, name string) {
	if namespace == "" {
		_, err := cluster.Client().SchedulingV1().PriorityClasses().Update(m.Context(), m.priorityClass(name), metav1.UpdateOptions{})
		m.check(err)
		return
	}
	_, err := cluster.Client().NetworkingV1().Ingresses(namespace).Update(m.Context(), m.ingress(name), metav1.UpdateOptions{})
	m.check(err)
}

func (m *model) delete(namespace, name string) {
	if namespace == "" {
		m.check(cluster.Client().SchedulingV1().PriorityClasses().Delete(m.Context(), name, metav1.DeleteOptions{}))
		return
	}
	m.check(cluster.Client().NetworkingV1().Ingresses(namespace).Delete(m.Context(), name, metav1.DeleteOptions{}))
}

// meta has now and then labels, annotations, and what kubectl writes there, alone or with others.
func (m *model) meta(name string) metav1.ObjectMeta {
	meta := metav1.ObjectMeta{Name: name}
	if m.random.IntN(2) == 0 {
		meta.Labels = map[string]string{"team": m.word(), "app.kubernetes.io/name": m.word()}
	}
	if m.random.IntN(2) == 0 {
		meta.Annotations = map[string]string{"kubectl.kubernetes.io/last-applied-configuration": `{"kind":"` + m.word() + `"}`}
	}
	if m.random.IntN(2) == 0 {
		metav1.SetMetaDataAnnotation(&meta, "example.com/note", m.word()+` ü "\u2028`)
	}
	return meta
}

// word is one of few, so that objects have much in common.
func (m *model) word() string {
	return []string{"", "one", "two", "three"}[m.random.IntN(4)]
}

// priorityClass has a number that follows from its name, as that may not change.
func (m *model) priorityClass(name string) *schedulingv1.PriorityClass {
	return &schedulingv1.PriorityClass{
		ObjectMeta:  m.meta(name),
		Value:       (int32(name[len(name)-1]) - '3') * 300_000_000,
		Description: strings.Repeat(m.word(), m.random.IntN(5)),
	}
}

func (m *model) ingress(name string) *networkingv1.Ingress {
	ingress := &networkingv1.Ingress{ObjectMeta: m.meta(name)}
	for n := range 1 + m.random.IntN(4) {
		prefix := networkingv1.PathTypePrefix
		ingress.Spec.Rules = append(ingress.Spec.Rules, networkingv1.IngressRule{
			Host: fmt.Sprintf("host-%d.example.com", m.random.IntN(10)),
			IngressRuleValue: networkingv1.IngressRuleValue{HTTP: &networkingv1.HTTPIngressRuleValue{
				Paths: []networkingv1.HTTPIngressPath{{
					Path: "/" + m.word(), PathType: &prefix,
					Backend: networkingv1.IngressBackend{Service: &networkingv1.IngressServiceBackend{
						Name: "service", Port: networkingv1.ServiceBackendPort{Number: int32(80 + n)},
					}},
				}},
			}},
		})
	}
	return ingress
}

// settle waits until data is what the cluster holds.
func (m *model) settle(when string) {
	m.Helper()
	defer func() {
		if m.Failed() {
			m.Logf("seed %d, %s:\n%s", m.seed, when, strings.Join(m.story, "\n"))
		}
	}()
	eventually(m, "data as the cluster, after "+when, func(context.Context) error {
		holds, told := m.cluster(), m.look()
		if reflect.DeepEqual(holds, told) {
			return nil
		}
		return fmt.Errorf("%s", difference("data.kubernetes", holds, told))
	})
	if m.Failed() {
		m.FailNow()
	}
}

// cluster is what data should be, by the API server.
func (m *model) cluster() map[string]any {
	m.Helper()
	ingresses, priorityClasses := make(map[string]any), make(map[string]any)
	for _, ingress := range m.list(networkingv1.SchemeGroupVersion.WithResource("ingresses")) {
		namespace, ok := ingresses[ingress.GetNamespace()].(map[string]any)
		if !ok {
			namespace = make(map[string]any)
			ingresses[ingress.GetNamespace()] = namespace
		}
		namespace[ingress.GetName()] = ingress.Object
	}
	for _, class := range m.list(schedulingv1.SchemeGroupVersion.WithResource("priorityclasses")) {
		priorityClasses[class.GetName()] = class.Object
	}
	text, err := json.Marshal(map[string]any{"ingresses": ingresses, "priorityclasses": priorityClasses})
	if err != nil {
		m.Fatal(err)
	}
	return m.decode(text)
}

// list is without what is not replicated.
func (m *model) list(resource schema.GroupVersionResource) []unstructured.Unstructured {
	m.Helper()
	list, err := m.objects.Resource(resource).List(m.Context(), metav1.ListOptions{})
	if err != nil {
		m.Fatal(err)
	}
	for _, object := range list.Items {
		object.SetManagedFields(nil)
		annotations := object.GetAnnotations()
		delete(annotations, "kubectl.kubernetes.io/last-applied-configuration")
		if len(annotations) == 0 {
			annotations = nil
		}
		object.SetAnnotations(annotations)
	}
	return list.Items
}

func (m *model) decode(text []byte) map[string]any {
	m.Helper()
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var decoded map[string]any
	if err := decoder.Decode(&decoded); err != nil {
		m.Fatalf("%v in %s", err, text)
	}
	return decoded
}

// look is data as a policy sees it. No object in it is older than it was before.
func (m *model) look() map[string]any {
	m.Helper()
	code, answer, err := review(m.Context(), m.client, m.instance, "tell")
	if err != nil || code != http.StatusOK {
		m.Fatalf("HTTP %d: %s, %v", code, answer, err)
	}
	var told struct {
		Response struct{ Status struct{ Message string } }
	}
	if err := json.Unmarshal([]byte(answer), &told); err != nil {
		m.Fatal(err)
	}
	tree := m.decode([]byte(told.Response.Status.Message))
	m.follow("", tree)
	return tree
}

// follow compares the version of every object with the one seen before.
func (m *model) follow(path string, tree map[string]any) {
	if meta, ok := tree["metadata"].(map[string]any); ok {
		version, err := strconv.Atoi(fmt.Sprint(meta["resourceVersion"]))
		if err != nil || version < m.versions[path] {
			m.Errorf("%s is at version %d (%v) and was at %d", path, version, err, m.versions[path])
		}
		m.versions[path] = version
		return
	}
	for key, value := range tree {
		if below, ok := value.(map[string]any); ok {
			m.follow(path+"/"+key, below)
		}
	}
}

// difference names the first place where two values are not the same.
func difference(path string, wanted, got any) string {
	w, ok := wanted.(map[string]any)
	g, okGot := got.(map[string]any)
	if !ok || !okGot {
		return fmt.Sprintf("%s: in the cluster %v, in data %v", path, wanted, got)
	}
	all := maps.Clone(w)
	maps.Copy(all, g)
	for _, key := range slices.Sorted(maps.Keys(all)) {
		if !reflect.DeepEqual(w[key], g[key]) {
			return difference(path+"."+key, w[key], g[key])
		}
	}
	return ""
}
