package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/kube-rego/kube-rego/e2e/kuberego"
)

// denyWhen is denyLabel with one more condition.
func denyWhen(value, condition string) string {
	return fmt.Sprintf(`package kubernetes.admission

deny contains %[1]q if {
	input.request.object.metadata.labels.deny == %[1]q
	%[2]s
}
`, value, condition)
}

// stillRefuses fails unless the label value is refused now: what was in force must not go for a moment.
func stillRefuses(t *testing.T, value string) {
	t.Helper()
	if err := try(t.Context(), value); err == nil || err.Error() != refusal(value) {
		t.Errorf("%s is not refused: %v", value, err)
	}
}

// The change that breaks others is held, wherever its error shows up: they stay in force, and are told nothing. When the
// cause is gone, it goes into force by itself.
func TestBlameLandsOnWhatChanged(t *testing.T) {
	_, instance := install(t)
	create(t, policy(opa, "main", "main", entrypoint))
	for _, c := range []struct {
		sentence string
		before   sources
		value    string // refused before, while the change is held, and in the end; empty: no decision depends on it
		change   sources
		culprit  string
		status   []string
		cure     sources
	}{{
		sentence: "a function that is renamed",
		before: sources{
			"function": "package lib.function\n\nf(x) := x\n",
			"user":     denyWhen("function", "data.lib.function.f(1) == 1"),
		},
		value:   "function",
		change:  sources{"function": "package lib.function\n\ng(x) := x\n"},
		culprit: "function",
		status: []string{`"inForce":"previous"`, "undefined function data.lib.function.f", "seen at opa/user/main:5",
			`"file":"opa/function/main","row":1,"col":1`},
		cure: sources{"user": denyWhen("function", "data.lib.function.g(1) == 1")},
	}, {
		sentence: "a rule that is renamed, and that others of its package name",
		before: sources{
			"rule": "package kubernetes.admission\n\nlimit := 1\n",
			"user": denyWhen("rule", "limit == 1"),
		},
		value:   "rule",
		change:  sources{"rule": "package kubernetes.admission\n\nbound := 1\n"},
		culprit: "rule",
		status:  []string{`"inForce":"previous"`, "var limit is unsafe", "seen at opa/user/main:5", `"file":"opa/rule/main"`},
		cure:    sources{"user": denyWhen("rule", "bound == 1")},
	}, {
		sentence: "a function that takes one argument more",
		before: sources{
			"arity": "package lib.arity\n\nother := 1\n\nf(x) := x\n",
			"user":  denyWhen("arity", "data.lib.arity.f(1) == 1"),
		},
		value:   "arity",
		change:  sources{"arity": "package lib.arity\n\nother := 1\n\nf(x, y) := x + y\n"},
		culprit: "arity",
		status:  []string{`"inForce":"previous"`, "function data.lib.arity.f has arity 2, got 1 argument", `"file":"opa/arity/main","row":5,"col":1`},
		cure:    sources{"user": denyWhen("arity", "data.lib.arity.f(1, 1) == 2")},
	}, {
		sentence: "a function whose result is of another type",
		before: sources{
			"type": "package lib.type\n\nf(x) := x + 1\n",
			"user": denyWhen("type", "data.lib.type.f(1) + 1 == 3"),
		},
		value:   "type",
		change:  sources{"type": "package lib.type\n\nf(_) := \"text\"\n"},
		culprit: "type",
		status:  []string{`"inForce":"previous"`, "plus: invalid argument(s)", `"file":"opa/type/main"`},
		cure:    sources{"user": denyWhen("type", `data.lib.type.f(1) == "text"`)},
	}, {
		sentence: "a second default of one rule",
		before:   sources{"z-first": "package defaults\n\ndefault allow := false\n"},
		change:   sources{"a-second": "package defaults\n\ndefault allow := true\n"},
		culprit:  "a-second",
		status:   []string{`"inForce":"none"`, "multiple default rules", "found at opa/a-second/main:3", `"file":"opa/a-second/main"`},
		cure:     sources{"z-first": "package defaults\n\nother := 1\n"},
	}, {
		sentence: "a package below a rule",
		before:   sources{"z-rule": "package above\n\nbelow := {\"x\": 1}\n"},
		change:   sources{"a-package": "package above.below\n\nx := 1\n"},
		culprit:  "a-package",
		status:   []string{`"inForce":"none"`, "data.above.below", `"file":"opa/a-package/main"`},
		cure:     sources{"z-rule": ""},
	}, {
		sentence: "a rule above a package",
		before:   sources{"z-package": "package over.under\n\nx := 1\n"},
		change:   sources{"a-rule": "package over\n\nunder := 1\n"},
		culprit:  "a-rule",
		status:   []string{`"inForce":"none"`, "data.over.under", `"file":"opa/a-rule/main","row":3,"col":1`},
		cure:     sources{"z-package": "package over.there\n\nx := 1\n"},
	}, {
		sentence: "an edit that contradicts a rule of a younger ConfigMap",
		before: sources{
			"a-old": "package clash\n\ny := 1\n",
			"b-new": "package clash\n\nx := 1\n",
		},
		change:  sources{"a-old": "package clash\n\nx contains 1\n"},
		culprit: "a-old",
		status:  []string{`"inForce":"previous"`, "conflicting rules data.clash.x", `"file":"opa/a-old/main","row":3,"col":1`},
		cure:    sources{"b-new": "package clash\n\nz := 1\n"},
	}, {
		sentence: "a recursion that runs through what is in force",
		before:   sources{"z-there": "package there\n\np := data.here.p\n"},
		change:   sources{"a-here": "package here\n\np := data.there.p\n"},
		culprit:  "a-here",
		status:   []string{`"inForce":"none"`, "rego_recursion_error", `"file":"opa/a-here/main"`},
		cure:     sources{"z-there": "package there\n\np := 1\n"},
	}} {
		ok := t.Run(c.sentence, func(t *testing.T) {
			c.before.apply(t)
			allCurrent(t, instance, c.before)
			if c.value != "" {
				refuses(t, c.value)
			}
			c.change.apply(t)
			text := annotation(t, opa, c.culprit, contains(c.status...))
			if strings.Count(text, `"file"`) != strings.Count(text, `"file":"opa/`+c.culprit+`/main"`) {
				t.Errorf("others are blamed too: %s", text)
			}
			if c.value != "" {
				stillRefuses(t, c.value)
			}
			onlyHeld(t, instance, "opa/"+c.culprit+"/main")
			for name := range c.before {
				if name != c.culprit {
					annotation(t, opa, name, is(statusOK))
				}
			}
			c.cure.apply(t)
			wanted := maps.Clone(c.before)
			maps.Copy(wanted, c.change)
			maps.Copy(wanted, c.cure)
			maps.DeleteFunc(wanted, func(_, source string) bool { return source == "" })
			allCurrent(t, instance, wanted)
			if c.value != "" {
				refuses(t, c.value)
			}
			for name := range wanted {
				wanted[name] = "" // for the next case
			}
			wanted.apply(t)
		})
		if !ok {
			return // what is left of it would break the others
		}
	}
}

// allCurrent waits until these ConfigMaps, in their newest version, and the entrypoint are all that is in force.
func allCurrent(t *testing.T, instance *kuberego.Instance, wanted sources) {
	t.Helper()
	modules := map[string]string{"opa/main/main": "current"}
	for name, source := range wanted {
		modules["opa/"+name+"/main"] = "current"
		recorded(t, name, "main", source)
		annotation(t, opa, name, is(statusOK))
	}
	inForce(t, instance, modules)
}

// onlyHeld fails unless this module is held and no other is.
func onlyHeld(t *testing.T, instance *kuberego.Instance, id string) {
	t.Helper()
	status, err := instance.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	held := false
	for _, m := range status.Modules {
		if (m.State == "held") != (m.ID == id) {
			t.Errorf("%s is %s", m.ID, m.State)
		}
		held = held || m.ID == id
	}
	if !held {
		t.Errorf("%s is not known", id)
	}
}

// The unit is the key: of one edit of one ConfigMap, what compiles goes into force.
func TestOneKeyIsHeldAndTheOthersGoIntoForce(t *testing.T) {
	_, instance := install(t)
	create(t, policy(opa, "main", "main", entrypoint))
	create(t, policy(opa, "rules", "bad", denyLabel("old-1"), "good", denyLabel("old-2"), "gone", denyLabel("old-3")))
	refuses(t, "old-3")
	edit(t, opa, "rules", func(cm *corev1.ConfigMap) {
		cm.Data = map[string]string{
			"bad":   "package kubernetes.admission\n\ndeny contains \"new-1\" if unknown\n",
			"good":  denyLabel("new-2"),
			"added": denyLabel("new-4"),
			"worse": "package kubernetes.admission\n\ndeny contains",
		}
	})
	status := annotation(t, opa, "rules", contains(`"opa/rules/bad","row":3`, `"opa/rules/worse","row":3`))
	if contains("rules/good")(status) || contains("rules/added")(status) {
		t.Errorf("a good key is blamed: %s", status)
	}
	for _, value := range []string{"old-1", "new-2", "new-4"} {
		refuses(t, value)
	}
	allows(t, "old-2")
	allows(t, "old-3")
	inForce(t, instance, map[string]string{
		"opa/main/main": "current", "opa/rules/bad": "previous", "opa/rules/good": "current",
		"opa/rules/added": "current", "opa/rules/worse": "none",
	})
	all := recorded(t, "rules", "added", denyLabel("new-4"))
	newest := all[len(all)-1].sources
	if newest["bad"] != denyLabel("old-1") || newest["worse"] != "" || newest["gone"] != "" {
		t.Errorf("the newest revision is %v, want what is in force", newest)
	}
}

// Policies that need each other come into force in whatever order they arrive, and go in whatever order they are deleted.
func TestHeldChangesAreReleasedInAnyOrder(t *testing.T) {
	_, instance := install(t)
	create(t, policy(opa, "main", "main", entrypoint))
	parts := []struct{ name, source string }{
		{"user", denyWhen("chain", "data.chain.middle.f(1) == 2")},
		{"middle", "package chain.middle\n\nf(x) := data.chain.last.f(x)\n"},
		{"last", "package chain.last\n\nf(x) := x + 1\n"},
	}
	for _, order := range [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
		t.Run(fmt.Sprint(order), func(t *testing.T) {
			wanted := sources{}
			for _, n := range order {
				create(t, policy(opa, parts[n].name, "main", parts[n].source))
				// Each is looked at before the next one comes.
				annotation(t, opa, parts[n].name, contains(`"status":`))
				wanted[parts[n].name] = parts[n].source
			}
			allCurrent(t, instance, wanted)
			refuses(t, "chain")
			for _, n := range order {
				remove(t, opa, parts[n].name)
			}
			inForce(t, instance, map[string]string{"opa/main/main": "current"})
			allows(t, "chain")
			for name := range wanted {
				forgotten(t, name)
			}
		})
	}
}

const (
	library     = "package library\n\nf(x) := x\n"
	libraryUser = `package kubernetes.admission

deny contains "library" if {
	input.request.object.metadata.labels.deny == "library"
	data.library.f(1) == 1
}
`
)

// Taking away what others call is held, in each of the ways to do it, until nobody calls it any more.
func TestALibraryThatIsTakenAwayIsHeld(t *testing.T) {
	_, instance := install(t)
	create(t, policy(opa, "main", "main", entrypoint))
	for _, c := range []struct {
		sentence string
		take     func(t *testing.T)
		status   func(string) bool // of the ConfigMap that is left; nil if there is none
		after    func(string) bool // of it in the end
	}{
		{"the ConfigMap is deleted", func(t *testing.T) { remove(t, opa, "library") }, nil, nil},
		{"the label is removed", func(t *testing.T) {
			edit(t, opa, "library", func(cm *corev1.ConfigMap) { delete(cm.Labels, policyLabel) })
		}, contains("deleting the module breaks the rest", "undefined function data.library.f", `"opa/library/lib"`), is("")},
		{"the key is removed", func(t *testing.T) {
			edit(t, opa, "library", func(cm *corev1.ConfigMap) { cm.Data = map[string]string{"other": "package other\n"} })
		}, contains("deleting the module breaks the rest", "undefined function data.library.f", `"opa/library/lib"`), is(statusOK)},
	} {
		ok := t.Run(c.sentence, func(t *testing.T) {
			create(t, policy(opa, "library", "lib", library))
			create(t, policy(opa, "user", "main", libraryUser))
			refuses(t, "library")
			annotation(t, opa, "library", is(statusOK))
			annotation(t, opa, "user", is(statusOK))
			c.take(t)
			eventually(t, "the library is held", func(ctx context.Context) error { return heldDeletion(ctx, instance, "opa/library/lib") })
			stillRefuses(t, "library")
			annotation(t, opa, "user", is(statusOK))
			if c.status != nil {
				annotation(t, opa, "library", c.status)
			}
			told(t, "library", "Warning PolicyHeld lib: its deletion is held, it stays in force", "undefined function data.library.f")
			recorded(t, "library", "lib", library)

			remove(t, opa, "user")
			eventually(t, "the library goes", func(ctx context.Context) error {
				states, err := modules(ctx, instance)
				if _, there := states["opa/library/lib"]; err == nil && there {
					err = fmt.Errorf("there are %v", states)
				}
				return err
			})
			if c.after != nil {
				annotation(t, opa, "library", c.after)
				remove(t, opa, "library")
			}
			forgotten(t, "library")
			forgotten(t, "user")
			inForce(t, instance, map[string]string{"opa/main/main": "current"})
		})
		if !ok {
			return
		}
	}
}

// heldDeletion is nil when a module is gone from the cluster, held, and in force.
func heldDeletion(ctx context.Context, instance *kuberego.Instance, id string) error {
	status, err := instance.Status(ctx)
	if err != nil {
		return err
	}
	for _, m := range status.Modules {
		if m.ID == id && m.Deleted && m.State == "held" && m.InForce == "previous" && len(m.Problems) > 0 {
			return nil
		}
	}
	return fmt.Errorf("the modules are %+v", status.Modules)
}

// Of each version that was in force there is one revision, ten at most; none of what is not, or of what is not Rego.
func TestRevisions(t *testing.T) {
	install(t)
	create(t, policy(opa, "main", "main", entrypoint))
	const edits = 13
	source := func(n int) string { return denyLabel(fmt.Sprintf("version-%d", n)) }
	create(t, policy(opa, "rules", "main", source(0)))
	recorded(t, "rules", "main", source(0))
	for n := 1; n <= edits; n++ {
		edit(t, opa, "rules", func(cm *corev1.ConfigMap) { cm.Data["main"] = source(n) })
		recorded(t, "rules", "main", source(n))
	}
	annotation(t, opa, "rules", is(statusOK))

	// None of these is a version that was in force.
	edit(t, opa, "rules", func(cm *corev1.ConfigMap) { cm.Labels["more"] = "labels" })
	edit(t, opa, "rules", func(cm *corev1.ConfigMap) { cm.Data["main"] = "package" })
	annotation(t, opa, "rules", contains(`"inForce":"previous"`))
	edit(t, opa, "rules", func(cm *corev1.ConfigMap) { cm.Data["main"] = source(edits) })
	annotation(t, opa, "rules", is(statusOK))

	keep(t, "rules", edits+1)
	all, err := revisions(t.Context(), opa, "rules")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range all {
		if want := source(int(r.number) - 1); r.sources["main"] != want || len(r.sources) != 1 {
			t.Errorf("revision %d is %q, want %q", r.number, r.sources, want)
		}
	}

	// Faster than the writer sees its own revisions come back.
	const burst = 40
	for n := range burst {
		edit(t, opa, "main", func(cm *corev1.ConfigMap) { cm.Data["more"] = source(n) })
	}
	recorded(t, "main", "more", source(burst-1))
	newest, err := revisions(t.Context(), opa, "main")
	if err != nil {
		t.Fatal(err)
	}
	keep(t, "main", newest[len(newest)-1].number)

	// What a writer has left that ended before it could tidy up.
	for range 3 {
		addRevision(t, "rules", source(edits))
	}
	keep(t, "rules", edits+4)

	// Somebody takes them all away: what is in force is kept again.
	kubectl(t, "delete", "controllerrevisions", "-n", opa, "-l", "app.kubernetes.io/managed-by=kube-rego")
	recorded(t, "rules", "main", source(edits))

	remove(t, opa, "rules")
	forgotten(t, "rules")
}

// keep waits until there are the ten newest revisions of a ConfigMap, or all where there were fewer.
func keep(t *testing.T, name string, newest int64) {
	t.Helper()
	eventually(t, "the ten newest revisions of "+name, func(ctx context.Context) error {
		all, err := revisions(ctx, opa, name)
		if err != nil {
			return err
		}
		want := min(10, int(newest))
		if len(all) != want || all[0].number != newest-int64(want)+1 || all[want-1].number != newest {
			return fmt.Errorf("%d are there, want %d up to %d: %v", len(all), want, newest, all)
		}
		return nil
	})
}

// Revisions that are no good any more, as after an update of OPA, are told of with the module and stop nothing.
func TestRevisionsThatAreNoGoodAnyMore(t *testing.T) {
	installation, first := install(t)
	create(t, policy(opa, "main", "main", entrypoint))
	for _, name := range []string{"broken", "fine", "unreadable"} {
		create(t, policy(opa, name, "main", denyLabel(name)))
		annotation(t, opa, name, is(statusOK))
	}
	if err := first.Stop(); err != nil {
		t.Fatal(err)
	}
	const bad = "package kubernetes.admission\n\ndeny contains data.nowhere.f(1)\n"
	addRevision(t, "broken", bad)
	addRevision(t, "fine", bad)
	addRevision(t, "unreadable", "")
	edit(t, opa, "broken", func(cm *corev1.ConfigMap) { cm.Data["main"] = "package broken.in.another.way if" })
	edit(t, opa, "unreadable", func(cm *corev1.ConfigMap) { cm.Data["main"] = "package" })

	second, err := installation.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, second) })
	annotation(t, opa, "broken", contains(`"inForce":"previous"`, `"rego_parse_error"`,
		"the version that was in force last does not compile any more: 3:", "undefined function data.nowhere.f"))
	inForce(t, second, map[string]string{
		"opa/main/main": "current", "opa/broken/main": "previous", "opa/fine/main": "current", "opa/unreadable/main": "previous",
	})
	refuses(t, "fine")
	refuses(t, "broken")               // by the newest that compiles
	refuses(t, "unreadable")           // by the newest that can be read
	recorded(t, "broken", "main", bad) // another process may be able to enforce it
	recorded(t, "fine", "main", denyLabel("fine"))

	edit(t, opa, "unreadable", func(cm *corev1.ConfigMap) { cm.Data["main"] = denyLabel("readable") })
	refuses(t, "readable")
	recorded(t, "unreadable", "main", denyLabel("readable"))
	edit(t, opa, "broken", func(cm *corev1.ConfigMap) { cm.Data["main"] = denyLabel("repaired") })
	refuses(t, "repaired")
	annotation(t, opa, "broken", is(statusOK))
}

// addRevision writes a revision of a ConfigMap newer than all others, with this source of the key main, or with data that
// nobody can read.
func addRevision(t *testing.T, name, source string) {
	t.Helper()
	all, err := revisions(t.Context(), opa, name)
	if err != nil || len(all) == 0 {
		t.Fatalf("the revisions of %s are %v, %v", name, all, err)
	}
	number := all[len(all)-1].number + 1
	cm, err := cluster.Client().CoreV1().ConfigMaps(opa).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	raw := []byte(`{"configMap":["` + name + `"]}`)
	if source != "" {
		raw, err = json.Marshal(revisionData{ConfigMap: name, Modules: map[string]revisionModule{
			"main": {Source: source, Created: metav1.Now(), ObjectVersion: cm.ResourceVersion},
		}})
		if err != nil {
			t.Fatal(err)
		}
	}
	object := &appsv1.ControllerRevision{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: opa, Name: fmt.Sprintf("%s-%d", name, number),
			Labels: map[string]string{"app.kubernetes.io/managed-by": "kube-rego"},
		},
		Revision: number,
		Data:     runtime.RawExtension{Raw: raw},
	}
	if _, err := cluster.Client().AppsV1().ControllerRevisions(opa).Create(t.Context(), object, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// Authors hear of their policies where kubectl describe shows it, once.
func TestEvents(t *testing.T) {
	install(t)
	create(t, policy(opa, "main", "main", entrypoint))
	create(t, policy(opa, "rules", "main", denyLabel("one")))
	told(t, "rules", "Normal PolicyInForce in force on every replica (revision 1)")
	edit(t, opa, "rules", func(cm *corev1.ConfigMap) { cm.Data["main"] = "package kubernetes.admission\n\ndeny contains }" })
	told(t, "rules", "Warning PolicyHeld main: held, the version before stays in force", "3:15: rego_parse_error: ")
	edit(t, opa, "rules", func(cm *corev1.ConfigMap) { cm.Data["main"] = denyLabel("two") })
	told(t, "rules", "Normal PolicyInForce in force on every replica (revision 2)")

	// Each of these makes kube-rego look at all policies again.
	edit(t, opa, "rules", func(cm *corev1.ConfigMap) { delete(cm.Annotations, statusAnnotation) })
	annotation(t, opa, "rules", is(statusOK))
	edit(t, opa, "rules", func(cm *corev1.ConfigMap) { cm.Labels["more"] = "labels" })
	for n := range 3 {
		name := fmt.Sprintf("more-%d", n)
		create(t, policy(opa, name, "main", denyLabel(name)))
		told(t, name, "Normal PolicyInForce")
	}
	all, err := events(t.Context(), "rules")
	if err != nil {
		t.Fatal(err)
	}
	for text, count := range all {
		if count != 1 {
			t.Errorf("told %d times: %s", count, text)
		}
	}
	if len(all) != 3 {
		t.Errorf("there are %d events, want 3: %v", len(all), all)
	}
}

// A ConfigMap that is no policy any more decides nothing, and says nothing of a policy.
func TestAPolicyThatIsNoneAnyMore(t *testing.T) {
	installation, first := install(t)
	create(t, policy(opa, "main", "main", entrypoint))
	create(t, policy(opa, "rules", "main", denyLabel("one")))
	refuses(t, "one")
	annotation(t, opa, "rules", is(statusOK))

	// From policy to something else, and back.
	edit(t, opa, "rules", func(cm *corev1.ConfigMap) { cm.Labels = map[string]string{policyLabel: "notes"} })
	allows(t, "one")
	annotation(t, opa, "rules", is(""))
	forgotten(t, "rules")
	edit(t, opa, "rules", func(cm *corev1.ConfigMap) { cm.Labels = map[string]string{policyLabel: "rego"} })
	refuses(t, "one")
	annotation(t, opa, "rules", is(statusOK))
	recorded(t, "rules", "main", denyLabel("one"))

	// Another name.
	remove(t, opa, "rules")
	create(t, policy(opa, "renamed", "main", denyLabel("one")))
	annotation(t, opa, "renamed", is(statusOK))
	inForce(t, first, map[string]string{"opa/main/main": "current", "opa/renamed/main": "current"})
	refuses(t, "one")
	forgotten(t, "rules")

	// The label goes from a policy that never was in force.
	create(t, policy(opa, "broken", "main", "package"))
	annotation(t, opa, "broken", contains(`"inForce":"none"`))
	edit(t, opa, "broken", func(cm *corev1.ConfigMap) { cm.Labels = nil })
	annotation(t, opa, "broken", is(""))

	// The label goes while nobody is there to see it, also from one of which there are no revisions.
	create(t, policy(opa, "never", "main", "package"))
	annotation(t, opa, "never", contains(`"inForce":"none"`))
	if err := first.Stop(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"renamed", "never"} {
		edit(t, opa, name, func(cm *corev1.ConfigMap) { cm.Labels = nil })
	}
	second, err := installation.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, second) })
	annotation(t, opa, "renamed", is(""))
	annotation(t, opa, "never", is(""))
	forgotten(t, "renamed")
	allows(t, "one")
}

// A namespace that is deleted takes its policies along, and one of the same name starts afresh.
func TestANamespaceIsDeleted(t *testing.T) {
	allowAllNamespaces(t)
	_, instance := install(t, "--namespaces=*")
	create(t, policy(opa, "main", "main", entrypoint))
	allows(t, "anything")
	const team = "team"
	namespaces := cluster.Client().CoreV1().Namespaces()
	for range 2 {
		namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: team}}
		if _, err := namespaces.Create(t.Context(), namespace, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = namespaces.Delete(context.Background(), team, metav1.DeleteOptions{}) })
		create(t, policy(team, "rules", "main", denyLabel(team)))
		refuses(t, team)
		annotation(t, team, "rules", is(statusOK))
		if err := namespaces.Delete(t.Context(), team, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		inForce(t, instance, map[string]string{"opa/main/main": "current"})
		allows(t, team)
		eventually(t, "the namespace is gone", func(ctx context.Context) error {
			_, err := namespaces.Get(ctx, team, metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				return nil
			}
			return fmt.Errorf("got %w", err)
		})
	}
}

// A library that others call outlives its namespace, also when all replicas die.
func TestALibraryOutlivesItsNamespace(t *testing.T) {
	allowAllNamespaces(t)
	installation, first := install(t, "--namespaces=*")
	const team = "library-team"
	namespaces := cluster.Client().CoreV1().Namespaces()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: team}}
	create(t, policy(opa, "main", "main", "package system\n\nmain := {\"response\": {\"allowed\": true}}\n"))
	annotation(t, opa, "main", is(statusOK))
	eventually(t, "the namespace", func(ctx context.Context) error {
		_, err := namespaces.Create(ctx, namespace, metav1.CreateOptions{})
		return err
	})
	t.Cleanup(func() { _ = namespaces.Delete(context.Background(), team, metav1.DeleteOptions{}) })
	create(t, policy(team, "library", "lib", library))
	create(t, policy(opa, "user", "main", libraryUser))
	annotation(t, team, "library", is(statusOK))
	annotation(t, opa, "user", is(statusOK))
	edit(t, opa, "main", func(cm *corev1.ConfigMap) { cm.Data["main"] = entrypoint })
	refuses(t, "library")

	if err := namespaces.Delete(t.Context(), team, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the namespace is gone", func(ctx context.Context) error {
		_, err := namespaces.Get(ctx, team, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("got %w", err)
	})
	want := map[string]string{"opa/main/main": "current", "opa/user/main": "current", team + "/library/lib": "previous"}
	inForce(t, first, want)
	if err := first.Kill(); err != nil {
		t.Fatal(err)
	}
	second, err := installation.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, second) })
	inForce(t, second, want)
	refuses(t, "library")
	remove(t, opa, "user")
	inForce(t, second, map[string]string{"opa/main/main": "current"})
	forgotten(t, "library")
}

// What decides for the whole cluster may be declared in trusted namespaces only.
func TestPackagesUnderSystem(t *testing.T) {
	for _, c := range []struct {
		sentence string
		args     []string
		status   func(string) bool
		state    string
		// What becomes of the label value that only the entrypoint in the other namespace denies.
		decision func(testing.TB, string)
	}{
		{"a namespace that is not trusted", nil,
			contains(`"inForce":"none"`, `"code":"unauthorized"`, "namespace default may not declare package system", "--system-namespaces"),
			"none", allows},
		{"a namespace that the flag names", []string{"--system-namespaces=opa,default"}, is(statusOK), "current", refuses},
	} {
		t.Run(c.sentence, func(t *testing.T) {
			allowAllNamespaces(t)
			_, instance := install(t, append([]string{"--namespaces=opa,default"}, c.args...)...)
			create(t, policy(opa, "main", "main", entrypoint))
			allows(t, "by-default")
			create(t, policy(metav1.NamespaceDefault, "more", "main", `package system

denials contains "by-default" if input.request.object.metadata.labels.deny == "by-default"
`))
			annotation(t, metav1.NamespaceDefault, "more", c.status)
			inForce(t, instance, map[string]string{"opa/main/main": "current", "default/more/main": c.state})
			c.decision(t, "by-default")
			annotation(t, opa, "main", is(statusOK))
		})
	}
}

// When a watch has expired, what happened meanwhile is in force all the same: additions, edits and deletions.
func TestAnExpiredWatch(t *testing.T) {
	through := newProxy(t)
	_, instance := install(t, "--kubeconfig="+through.kubeconfig(t))
	create(t, policy(opa, "main", "main", entrypoint))
	create(t, policy(opa, "edited", "main", denyLabel("before")))
	create(t, policy(opa, "deleted", "main", denyLabel("deleted")))
	for _, value := range []string{"before", "deleted"} {
		refuses(t, value)
	}
	annotation(t, opa, "deleted", is(statusOK))
	expire := through.cut(t)
	edit(t, opa, "edited", func(cm *corev1.ConfigMap) { cm.Data["main"] = denyLabel("after") })
	remove(t, opa, "deleted")
	create(t, policy(opa, "added", "main", denyLabel("added")))
	stillRefuses(t, "deleted") // nothing of it is known
	expire()
	for _, value := range []string{"after", "added"} {
		refuses(t, value)
	}
	for _, value := range []string{"before", "deleted"} {
		allows(t, value)
	}
	annotation(t, opa, "added", is(statusOK))
	forgotten(t, "deleted")
	inForce(t, instance, map[string]string{"opa/main/main": "current", "opa/edited/main": "current", "opa/added/main": "current"})
	// It is no trouble, so nobody is troubled with it.
	log, err := os.ReadFile(instance.LogPath())
	if err != nil {
		t.Fatal(err)
	}
	if contains("a watch failed")(string(log)) || contains("policies cannot be read")(string(log)) {
		t.Errorf("the log makes trouble of it:\n%s", log)
	}
}

// Somebody else writes on a ConfigMap that is no policy any more just when its status is taken away. No event tells of
// it, and the status goes all the same.
func TestAStatusGoesThoughSomebodyElseWrites(t *testing.T) {
	through := newProxy(t)
	install(t, "--kubeconfig="+through.kubeconfig(t))
	create(t, policy(opa, "main", "main", entrypoint))
	create(t, policy(opa, "rules", "main", "package")) // of which there are no revisions, whose end would be an event
	annotation(t, opa, "rules", contains(`"inForce":"none"`))
	interfered := through.beforePatch(func() {
		edit(t, opa, "rules", func(cm *corev1.ConfigMap) { cm.Labels = map[string]string{"written": "by-somebody-else"} })
	})
	edit(t, opa, "rules", func(cm *corev1.ConfigMap) { cm.Labels = nil })
	annotation(t, opa, "rules", is(""))
	if !interfered() {
		t.Error("nobody interfered")
	}
}
