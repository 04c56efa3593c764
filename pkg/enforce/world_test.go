package enforce

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kube-rego/kube-rego/pkg/configmap"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

const (
	dataLabel   = "openpolicyagent.org/data"
	policyLabel = "openpolicyagent.org/policy"
	// trustedNamespace is the only one that may declare packages under system.
	trustedNamespace = "opa"
	revisionLimit    = 10
)

// texts are what modules are made of, in groups that have to do with each other:
// good ones, broken ones, and such as are good or not by what else there is, and
// by where they are.
var texts = [][]string{{
	"package lib\nf(x) := x + 1",
	"package lib\nf(x) := x + 2\ng(x) := x",
	"package lib\nf(x) := data.base.h(x)\ng(x) := x",
	"package lib\ng(x) := f(x)",
	"package lib\nf(x, y) := x + y",
	"package base\nh(x) := x",
	"package base\nh(x) := data.lib.g(x)",
	"package k\nimport data.lib\np := lib.f(input.x)",
	"package k\nq := data.lib.g(data.lib.f(1))",
	"package k\nr := data.lib.f(1, 2)",
	"package k\nallow { data.lib.f(1) > 2 }",
	"package system\nmain := data.lib.f(input.x)",
}, {
	"package k\ndeny contains input.x if input.x > 1",
	"package k\ndeny[x] { x := 2 }",
	"package k\ndeny := 3",
	"package k.deny\nx := 1",
	"package k\ndefault allow := true",
	"package k\ndefault allow := false\nallow if data.lib.f(input.x) > 2",
	"package k\np := 3",
	"package k\np := any([input.x == 1, false])",
	"package system\nmain := {\"deny\": data.k.deny, \"x\": input.x}",
	"package system\ndefault main := \"no\"\nmain := \"yes\" if data.k.allow",
	"package system\nmain contains 1",
	"package system.log\nmask contains \"/input\"",
	"# METADATA\n# scope: package\n# title: one\npackage k\nr := 1",
	"# METADATA\n# scope: package\n# title: two\npackage k\nr := 2",
}, {
	"package one\np := data.two.q",
	"package two\nq := data.one.p",
	"package two\nq := \"text\"",
	"package three\ns := 1 + data.two.q",
	"package two\nq := 2",
}, {
	"package k\np :=",
	"package k\np := y",
	"package base\nh(x) := x + y",
	"package k\nq := http.send({})",
	"not rego",
	"",
}, {
	"package opa.a\nx := 1",
	"package opa.a.x\nlimit := 1",
	"package team.a.x.list\ny contains 1",
	"package team\na := data.k.p",
	"package k\np := data.opa.a.x",
	"package k\nq := data.opa.a.x.limit + data.lib.f(1)",
	"package system\nmain := data.team",
}}

// dataTexts are what data is made of: good ones, broken ones, and such as are in the
// way of rules, or not.
var dataTexts = []string{
	`{"limit": 1}`,
	`{"limit": {"x": 2}}`,
	"list:\n- y\n- z\n",
	`{"list": {"y": "text"}}`,
	"3",
	"'text'",
	"text",
	"{",
	`{"limit": 1, "limit": 2}`,
	"a: b: c",
}

// world is a cluster in memory: the objects of it are replaced, never changed.
type world struct {
	random     *rand.Rand
	names      []types.NamespacedName
	keys       []string
	texts      []string // those of this world, few enough to meet
	version    int      // resource version of the last write
	clock      int64    // two objects may be of the same second, as in a cluster
	configMaps map[types.NamespacedName]*corev1.ConfigMap
	revisions  map[types.NamespacedName][]*appsv1.ControllerRevision // the newest last
	last       types.NamespacedName                                  // that was edited: people edit one thing several times
	edits      int
	story      []string
}

func newWorld(seed uint64) *world {
	w := &world{
		random:     rand.New(rand.NewPCG(seed, 3)),
		names:      []types.NamespacedName{named("opa", "a"), named("opa", "b"), named("team", "a"), named("team", "b")},
		keys:       []string{"x", "y", "z"},
		configMaps: make(map[types.NamespacedName]*corev1.ConfigMap),
		revisions:  make(map[types.NamespacedName][]*appsv1.ControllerRevision),
	}
	for _, group := range [][]string{pick(w.random, texts[:2]), pick(w.random, texts[:3]), texts[3], pick(w.random, [][]string{nil, texts[4]})} {
		group = slices.Clone(group)
		w.random.Shuffle(len(group), func(i, j int) { group[i], group[j] = group[j], group[i] })
		w.texts = append(w.texts, group[:(1+len(group))/2]...)
	}
	w.names = w.names[:3+w.random.IntN(2)]
	w.last = w.names[0]
	w.keys = w.keys[:1+w.random.IntN(3)]
	return w
}

func named(namespace, name string) types.NamespacedName {
	return types.NamespacedName{Namespace: namespace, Name: name}
}

func pick[T any](random *rand.Rand, all []T) T { return all[random.IntN(len(all))] }

// tell adds to what is printed if the test fails.
func (w *world) tell(format string, args ...any) {
	w.story = append(w.story, fmt.Sprintf(format, args...))
}

// edit does something to one ConfigMap that a user might do.
func (w *world) edit() {
	if w.random.IntN(2) == 0 {
		w.last = pick(w.random, w.names)
	}
	name := w.last
	cm, ok := w.configMaps[name]
	what := w.random.IntN(20)
	switch {
	case !ok:
		w.write("create", w.newConfigMap(name))
	case what == 0:
		w.delete(cm)
	case what == 1:
		w.delete(cm)
		w.write("create again", w.newConfigMap(name))
	default:
		w.write(w.change(cm.DeepCopy(), what))
	}
	w.edits++
}

// change makes another version of a ConfigMap, and says in what it differs.
func (w *world) change(cm *corev1.ConfigMap, what int) (string, *corev1.ConfigMap) {
	key := pick(w.random, w.keys)
	switch what {
	case 2, 3:
		if isWatched(cm) {
			delete(cm.Labels, pick(w.random, []string{policyLabel, policyLabel, dataLabel}))
			return "take the label from", cm
		}
		fallthrough
	case 4:
		return "label", w.label(cm)
	case 5:
		cm.Annotations = map[string]string{configmap.RegoVersionAnnotation: pick(w.random, []string{"v0", "v1", "auto", "v2"})}
		return "set the version of", cm
	case 6:
		cm.Annotations = nil
		return "take the version from", cm
	case 7:
		cm.Annotations = maps.Clone(cm.Annotations)
		metav1.SetMetaDataAnnotation(&cm.ObjectMeta, "touched", fmt.Sprint(w.version))
		return "touch", cm
	case 8, 9:
		delete(cm.Data, key)
		delete(cm.BinaryData, key)
		return "remove a key from", cm
	case 10:
		delete(cm.Data, key)
		cm.BinaryData = map[string][]byte{key: {0xff}}
		return "put binary data into", cm
	}
	delete(cm.BinaryData, key)
	if cm.Data == nil {
		cm.Data = make(map[string]string)
	}
	cm.Data[key] = w.text(cm)
	return "edit", cm
}

// label makes a ConfigMap a policy, or data, or both; its texts go with that, as a
// rule.
func (w *world) label(cm *corev1.ConfigMap) *corev1.ConfigMap {
	cm.Labels = pick(w.random, []map[string]string{
		{policyLabel: "rego"}, {policyLabel: "rego"}, {dataLabel: "opa"}, {policyLabel: "rego", dataLabel: "opa"},
	})
	for key := range cm.Data {
		if w.random.IntN(3) > 0 {
			cm.Data[key] = w.text(cm)
		}
	}
	return cm
}

// text is one for a ConfigMap with these labels.
func (w *world) text(cm *corev1.ConfigMap) string {
	if isData(cm) {
		return pick(w.random, dataTexts)
	}
	return pick(w.random, w.texts)
}

func isData(cm *corev1.ConfigMap) bool { return cm.Labels[dataLabel] == "opa" }

// isWatched reports whether a ConfigMap is policy or data.
func isWatched(cm *corev1.ConfigMap) bool { return isData(cm) || cm.Labels[policyLabel] == "rego" }

func (w *world) newConfigMap(name types.NamespacedName) *corev1.ConfigMap {
	w.clock += w.random.Int64N(2)
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{
		Namespace:         name.Namespace,
		Name:              name.Name,
		Labels:            map[string]string{policyLabel: "rego"},
		CreationTimestamp: metav1.Unix(w.clock, 0),
	}}
	cm.Data = make(map[string]string)
	if w.random.IntN(5) == 0 {
		w.label(cm)
	}
	for range 1 + w.random.IntN(len(w.keys)) {
		cm.Data[pick(w.random, w.keys)] = w.text(cm)
	}
	return cm
}

func (w *world) write(what string, cm *corev1.ConfigMap) {
	w.version++
	cm.ResourceVersion = fmt.Sprint(w.version)
	w.configMaps[named(cm.Namespace, cm.Name)] = cm
	w.tell("%s %s/%s: labels %v, annotations %v, created %d, version %s, data %q, binary %q", what, cm.Namespace, cm.Name,
		cm.Labels, cm.Annotations, cm.CreationTimestamp.Unix(), cm.ResourceVersion, cm.Data, cm.BinaryData)
}

func (w *world) delete(cm *corev1.ConfigMap) {
	w.version++
	delete(w.configMaps, named(cm.Namespace, cm.Name))
	w.tell("delete %s/%s", cm.Namespace, cm.Name)
}

func (w *world) Run(context.Context, func()) error { return nil }

// ConfigMaps are those with the label, in no order.
func (w *world) ConfigMaps() ([]*corev1.ConfigMap, error) {
	var all []*corev1.ConfigMap
	for _, cm := range w.configMaps {
		if isWatched(cm) {
			all = append(all, cm)
		}
	}
	return all, nil
}

func (w *world) History() (*configmap.History, error) {
	var all []configmap.Revision
	for _, objects := range w.revisions {
		for _, object := range objects {
			r, err := configmap.ParseRevision(object)
			if err != nil {
				return nil, err
			}
			all = append(all, r)
		}
	}
	return configmap.NewHistory(all), nil
}

// recorder writes revisions as the elected writer does, of what it knows.
type recorder struct {
	configMaps []*corev1.ConfigMap
	inForce    policy.Set
	history    *configmap.History
}

// names are the ConfigMaps of which there may be something to record.
func (r recorder) names() []types.NamespacedName {
	names := r.history.Names()
	for id := range r.inForce {
		names = append(names, named(id.Namespace, id.Name))
	}
	slices.SortFunc(names, func(a, b types.NamespacedName) int { return strings.Compare(a.String(), b.String()) })
	return slices.Compact(names)
}

func (r recorder) isPolicy(name types.NamespacedName) bool {
	return slices.ContainsFunc(r.configMaps, func(cm *corev1.ConfigMap) bool {
		return named(cm.Namespace, cm.Name) == name
	})
}

// record keeps what is in force of one ConfigMap, and forgets one of which there
// is nothing left; the cluster has the last word on that. A revision of that number
// may be there already, which this writer does not know of yet: then it has to look
// again first.
func (r recorder) record(w *world, name types.NamespacedName) error {
	inForce := maps.Clone(r.inForce)
	maps.DeleteFunc(inForce, func(id policy.ID, _ policy.Module) bool {
		return id.Namespace != name.Namespace || id.Name != name.Name
	})
	if !r.isPolicy(name) && len(inForce) == 0 {
		if cm, ok := w.configMaps[name]; ok && isWatched(cm) {
			return nil
		}
		w.tell("forget the revisions of %s", name)
		delete(w.revisions, name)
		return nil
	}
	var newest configmap.Revision
	if of := r.history.Of(name); len(of) > 0 {
		newest = of[0]
	}
	next := configmap.NewRevision("opa", name.Namespace, name.Name, newest.Number+1, inForce)
	if newest.Fingerprint == next.Fingerprint || newest.Number == 0 && len(inForce) == 0 {
		return nil
	}
	object, err := next.Object()
	if err != nil {
		return err
	}
	known := w.revisions[name]
	if slices.ContainsFunc(known, func(o *appsv1.ControllerRevision) bool { return o.Name == object.Name }) {
		return nil
	}
	w.version++
	object.ResourceVersion = fmt.Sprint(w.version)
	w.tell("record %s: %s", object.Name, describe(inForce))
	w.revisions[name] = append(known, object)[max(0, len(known)+1-revisionLimit):]
	return nil
}

// describe tells of modules what matters, in the order of their names.
func describe(modules policy.Set) string {
	var all []string
	for _, id := range modules.IDs() {
		m := modules[id]
		all = append(all, fmt.Sprintf("%s %s%s%q of version %d", id, m.Kind, m.Version, m.Source, m.ObjectVersion))
	}
	return strings.Join(all, "; ")
}
