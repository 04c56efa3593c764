package overview

import (
	"reflect"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-rego/kube-rego/pkg/configmap"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

const annotation = "openpolicyagent.org/policy-status"

var testOptions = Options{
	PolicyLabel: "policy", PolicyValue: "rego", DataLabel: "data", DataValue: "opa", StatusAnnotation: annotation,
}

func newConfigMap(status string, data map[string]string) *corev1.ConfigMap {
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "opa", Name: "rules", Labels: map[string]string{"policy": "rego"}}, Data: data}
	if status != "" {
		cm.Annotations = map[string]string{annotation: status}
	}
	return cm
}

// newRevision is the revision with a number in which a ConfigMap held these data.
func newRevision(number int64, data map[string]string) configmap.Revision {
	set := policy.NewSet(testOptions.kinds().Modules(newConfigMap("", data))...)
	r := configmap.NewRevision("opa", "opa", "rules", number, set)
	r.Recorded = ago(time.Hour)
	return r
}

func TestDescribe(t *testing.T) {
	one, two := map[string]string{"main": "package one"}, map[string]string{"main": "package two"}
	more := map[string]string{"main": "package one", "more": "package more"}
	problem := policy.Problem{Code: "rego_parse_error", Message: "m", Row: 1, Col: 9}
	held := func(key string, inForce policy.InForce) string {
		return configmap.Status([]policy.Status{{
			ID: policy.ID{Namespace: "opa", Name: "rules", Key: key}, InForce: inForce, Problems: []policy.Problem{problem},
		}})
	}
	for _, test := range []struct {
		name   string
		cm     *corev1.ConfigMap
		newest configmap.Revision
		want   ConfigMap
	}{
		{"ok, and recorded", newConfigMap(configmap.OK, one), newRevision(3, one), ConfigMap{Status: "ok", InForce: policy.Current}},
		{"ok, and revisions may not be read", newConfigMap(configmap.OK, one), configmap.Revision{}, ConfigMap{Status: "ok", InForce: policy.Current}},
		{"ok, and there is nothing in it", newConfigMap(configmap.OK, nil), configmap.Revision{}, ConfigMap{Status: "ok", InForce: policy.Current}},
		{"ok that speaks of an older text", newConfigMap(configmap.OK, two), newRevision(3, one),
			ConfigMap{Status: "ok", InForce: policy.Previous, Message: outdated}},
		{"ok that speaks of a text without a key", newConfigMap(configmap.OK, more), newRevision(3, one),
			ConfigMap{Status: "ok", InForce: policy.None, Message: outdated}},
		{"ok that speaks of a text with one key more", newConfigMap(configmap.OK, one), newRevision(3, more),
			ConfigMap{Status: "ok", InForce: policy.Previous, Message: outdated}},
		{"pending, and recorded already", newConfigMap(configmap.Pending, two), newRevision(3, two),
			ConfigMap{Status: "pending", InForce: policy.Current, Message: "not yet in force on every replica"}},
		{"pending, and nothing says what is in force", newConfigMap(configmap.Pending, two), configmap.Revision{},
			ConfigMap{Status: "pending", Message: "not yet in force on every replica"}},
		{"held, with its line", newConfigMap(held("main", policy.Previous), two), newRevision(3, one),
			ConfigMap{Status: "error", InForce: policy.Previous, Problems: []Problem{{"opa/rules/main", problem.In("package two")}}}},
		{"held, and never in force", newConfigMap(held("main", policy.None), two), configmap.Revision{},
			ConfigMap{Status: "error", InForce: policy.None, Problems: []Problem{{"opa/rules/main", problem.In("package two")}}}},
		{"held, of a key that is not there", newConfigMap(held("other", policy.Previous), two), newRevision(3, one),
			ConfigMap{Status: "error", InForce: policy.Previous, Problems: []Problem{{"opa/rules/other", problem}}}},
		{"kube-mgmt's error, of a ConfigMap that is recorded", newConfigMap(`{"status":"error"}`, two), newRevision(3, one),
			ConfigMap{Status: "error", InForce: policy.Previous}},
		{"no annotation yet", newConfigMap("", one), configmap.Revision{}, ConfigMap{Status: "none", InForce: policy.None}},
		{"no annotation any more", newConfigMap("", one), newRevision(3, one), ConfigMap{Status: "none", InForce: policy.Current}},
		{"an annotation that nobody understands", newConfigMap("fine", one), newRevision(3, one),
			ConfigMap{Status: "unknown", InForce: policy.Current, Message: "reading the status: invalid character 'i' in literal false (expecting 'a')"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.want.Namespace, test.want.Name = "opa", "rules"
			if test.newest.Number > 0 {
				test.want.Revision, test.want.Recorded = 3, ago(time.Hour)
			}
			if got := testOptions.describe(test.cm, test.newest); !reflect.DeepEqual(got, test.want) {
				t.Errorf("got  %+v\nwant %+v", got, test.want)
			}
		})
	}
}

func TestAProblemOfAnotherConfigMapShowsNoLine(t *testing.T) {
	parsed := configmap.ModuleProblem{Module: "opa/rules-2/main", Problem: policy.Problem{Row: 1, Col: 1}}
	got := located(newConfigMap("", map[string]string{"main": "package a", "2/main": "package b"}), []configmap.ModuleProblem{parsed})
	if len(got) != 1 || got[0].Source != "" || got[0].Module != "opa/rules-2/main" {
		t.Errorf("got %+v", got)
	}
}

func TestRemoved(t *testing.T) {
	one := map[string]string{"main": "package one"}
	want := ConfigMap{
		Namespace: "opa", Name: "rules", Status: "removed", InForce: policy.Previous,
		Revision: 3, Recorded: ago(time.Hour), Message: lingering,
	}
	if got := testOptions.removed(nil, newRevision(3, one)); !reflect.DeepEqual(got, want) {
		t.Errorf("without a ConfigMap: got %+v\nwant %+v", got, want)
	}
	const text = `{"status":"error","error":{"errors":[{"code":"c","message":"m","location":{"file":"opa/rules/main"}}]},"inForce":"previous"}`
	want.Problems = []Problem{{"opa/rules/main", policy.Problem{Code: "c", Message: "m"}}}
	if got := testOptions.removed(newConfigMap(text, one), newRevision(3, one)); !reflect.DeepEqual(got, want) {
		t.Errorf("without a label: got %+v\nwant %+v", got, want)
	}
}
