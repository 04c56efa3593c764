package configmap_test

import (
	"bytes"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/kube-rego/kube-rego/pkg/configmap"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// etcdLimit is what etcd takes by default (max-request-bytes).
const etcdLimit = 3 << 19

func revisionModule(name, key, source string) policy.Module {
	return policy.Module{
		ID:            policy.ID{Namespace: "opa", Name: name, Key: key},
		Source:        source,
		Version:       policy.RegoV0,
		Created:       time.Unix(1_700_000_000, 0).UTC(),
		ObjectVersion: 1<<63 + 1,
	}
}

// What is kept is what was in force, to the byte: it is enforced again.
func TestARevisionIsReadAsItWasWritten(t *testing.T) {
	for sentence, modules := range map[string]policy.Set{
		"no modules":                 policy.NewSet(),
		"two keys":                   policy.NewSet(revisionModule("rules", "a", "package a\n"), revisionModule("rules", "b", "package b\n")),
		"every kind of character":    policy.NewSet(revisionModule("rules", "a", "package a # <&>\u2028\"\\\t\r\n\x00\x01é😀")),
		"1 MiB that JSON makes long": policy.NewSet(revisionModule("rules", "a", strings.Repeat("\x01", 1<<20))),
		"1 MiB of tabs and quotes":   policy.NewSet(revisionModule("rules", "a", strings.Repeat("\t\"", 1<<19))),
	} {
		t.Run(sentence, func(t *testing.T) {
			want := configmap.NewRevision("opa", "opa", "rules", 7, modules)
			object, err := want.Object()
			if err != nil {
				t.Fatal(err)
			}
			if size := len(object.Data.Raw); size > etcdLimit {
				t.Errorf("it has %d bytes, and etcd takes %d", size, etcdLimit)
			}
			object.CreationTimestamp = metav1.Unix(1_800_000_000, 0)
			want.Recorded = object.CreationTimestamp.Time
			got, err := configmap.ParseRevision(object)
			if err != nil {
				t.Fatal(err)
			}
			if got.Fingerprint != want.Fingerprint || got.Number != 7 || !got.Recorded.Equal(want.Recorded) || len(got.Modules) != len(modules) {
				t.Fatalf("got  %.200v\nwant %.200v", got, want)
			}
			for id, m := range modules {
				read := got.Modules[id]
				read.Created = read.Created.UTC()
				if !reflect.DeepEqual(read, m) {
					t.Errorf("got  %.200v\nwant %.200v", read, m)
				}
			}
		})
	}
}

// A person gets a version back with kubectl alone, as long as it is not huge.
func TestARevisionCanBeReadByPeople(t *testing.T) {
	object, err := configmap.NewRevision("opa", "opa", "rules", 1, policy.NewSet(revisionModule("rules", "main", "package a # <&>\n"))).Object()
	if err != nil {
		t.Fatal(err)
	}
	want := `{"configMap":"rules","modules":{"main":{"source":"package a # <&>\n","regoVersion":"v0",` +
		`"created":"2023-11-14T22:13:20Z","objectVersion":"9223372036854775809"}}}`
	if got := string(object.Data.Raw); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if object.Name != "rules-1" || object.Namespace != "opa" || object.Labels["app.kubernetes.io/managed-by"] != "kube-rego" {
		t.Errorf("its metadata are %+v", object.ObjectMeta)
	}
	if len(object.OwnerReferences) > 0 {
		t.Error("it has an owner: the garbage collector would take it with a ConfigMap whose deletion is held")
	}
}

// Names of ConfigMaps may be as long as names get.
func TestEveryRevisionHasANameOfItsOwn(t *testing.T) {
	long := strings.Repeat("a", 252)
	seen := make(map[string]bool)
	for _, name := range []string{"a", "a-1", long + "b", long + "c", strings.Repeat("a.", 126) + "d", "b" + strings.Repeat("a.", 125) + "d"} {
		for _, number := range []int64{1, 11, 1<<63 - 1} {
			got := configmap.NewRevision("opa", "opa", name, number, nil).ObjectName
			if problems := validation.IsDNS1123Subdomain(got); seen[got] || len(problems) > 0 {
				t.Errorf("revision %d of %.20s…: name %q %v", number, name, got, problems)
			}
			seen[got] = true
		}
	}
}

// What somebody else has written is an error, and never the end.
func TestWhatIsNoRevisionIsAnError(t *testing.T) {
	for _, raw := range []string{
		``, `null`, `[]`, `{}`, `{"configMap":1}`, `{"configMap":""}`, `{"configMap":"a","packed":"AAAA"}`,
		`{"configMap":"a","modules":[]}`, `{"configMap":"a","modules":{"a":{"objectVersion":"-1"}}}`,
	} {
		object := &appsv1.ControllerRevision{
			ObjectMeta: metav1.ObjectMeta{Namespace: "opa", Name: "odd-1"}, Data: runtime.RawExtension{Raw: []byte(raw)},
		}
		if _, err := configmap.ParseRevision(object); err == nil || !strings.Contains(err.Error(), "opa/odd-1") {
			t.Errorf("%s: error %v, want one that names the object", raw, err)
		}
	}
}

func TestHistory(t *testing.T) {
	one := policy.NewSet(revisionModule("one", "main", "package one"))
	two := policy.NewSet(revisionModule("one", "main", "package two"))
	other := policy.NewSet(revisionModule("other", "main", "package other"))
	h := configmap.NewHistory([]configmap.Revision{
		configmap.NewRevision("opa", "opa", "one", 2, one),
		configmap.NewRevision("opa", "opa", "one", 10, two),
		configmap.NewRevision("opa", "opa", "other", 1, other),
		configmap.NewRevision("opa", "opa", "one", 9, one),
	})
	want := policy.NewSet(revisionModule("one", "main", "package two"), revisionModule("other", "main", "package other"))
	if !reflect.DeepEqual(h.InForce(), want) || h.Fingerprint() != want.Fingerprint() {
		t.Errorf("in force are %v, want the newest of each", h.InForce())
	}
	numbers := new(bytes.Buffer)
	for _, r := range h.Of(types.NamespacedName{Namespace: "opa", Name: "one"}) {
		numbers.WriteString(r.ObjectName + " ")
	}
	if got := numbers.String(); got != "one-10 one-9 one-2 " {
		t.Errorf("the revisions of one are %s", got)
	}
	if got := len(h.Names()); got != 2 {
		t.Errorf("%d ConfigMaps have revisions, want 2", got)
	}
}

// What was recorded can be looked at as it was some writes ago.
func TestHistoryBefore(t *testing.T) {
	revision := func(name string, number int64, order uint64, source string) configmap.Revision {
		r := configmap.NewRevision("opa", "opa", name, number, policy.NewSet(revisionModule(name, "main", source)))
		r.Order = order
		return r
	}
	h := configmap.NewHistory([]configmap.Revision{
		revision("caller", 1, 11, "package caller_one"),
		revision("library", 1, 10, "package library_one"),
		revision("caller", 2, 14, "package caller_two"),
		revision("library", 2, 13, "package library_two"),
		revision("old", 30, 12, "package old_thirty"), // its earlier revisions are not kept any more
	})
	for n, want := range []string{
		"package caller_two, package library_two, package old_thirty",
		"package caller_one, package library_two, package old_thirty",
		"package caller_one, package library_one, package old_thirty",
		"package caller_one, package library_one, package old_thirty",
		"package library_one, package old_thirty",
		"package old_thirty",
		"package old_thirty",
	} {
		var sources []string
		for _, m := range h.Before(n) {
			sources = append(sources, m.Source)
		}
		slices.Sort(sources)
		if got := strings.Join(sources, ", "); got != want {
			t.Errorf("before the last %d writes %s were in force, want %s", n, got, want)
		}
	}
}
