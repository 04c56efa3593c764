package configmap_test

import (
	"reflect"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kube-rego/kube-rego/pkg/configmap"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

var kinds = configmap.NewKinds("policy", "rego", "data", "opa")

func TestModules(t *testing.T) {
	created := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	const (
		inBinaryData = ` is in binaryData, where kubectl puts what is not UTF-8 text; only data is read`
		badVersion   = `annotation openpolicyagent.org/rego-version: unknown Rego version "v2": want auto, v0 or v1`
	)
	id := func(key string) policy.ID { return policy.ID{Namespace: "opa", Name: "rules", Key: key} }
	for _, test := range []struct {
		name       string
		annotation string // of the Rego version; empty: none
		data       map[string]string
		binaryData map[string][]byte
		want       []policy.Module
	}{
		{name: "an empty ConfigMap has no modules"},
		{
			name: "each key of data is a module",
			data: map[string]string{"a": "package a", "b.rego": "package b"},
			want: []policy.Module{
				{ID: id("a"), Source: "package a", Created: created},
				{ID: id("b.rego"), Source: "package b", Created: created},
			},
		},
		{
			name: "an empty key is a module without text, for the compiler to refuse",
			data: map[string]string{"a": ""},
			want: []policy.Module{{ID: id("a"), Created: created}},
		},
		{
			name:       "a key of binaryData is a module with a defect",
			binaryData: map[string][]byte{"a": {0xff, 0xfe}},
			want:       []policy.Module{{ID: id("a"), Created: created, Defect: `key "a"` + inBinaryData}},
		},
		{
			name:       "text in binaryData is a defect too",
			binaryData: map[string][]byte{"a": []byte("package a")},
			want:       []policy.Module{{ID: id("a"), Created: created, Defect: `key "a"` + inBinaryData}},
		},
		{
			name:       "binaryData does not touch the keys of data beside it",
			data:       map[string]string{"a": "package a"},
			binaryData: map[string][]byte{"b": {0}},
			want: []policy.Module{
				{ID: id("a"), Source: "package a", Created: created},
				{ID: id("b"), Created: created, Defect: `key "b"` + inBinaryData},
			},
		},
		{
			name: "invalid UTF-8 in data is a defect",
			data: map[string]string{"a": "package a # \xff"},
			want: []policy.Module{{ID: id("a"), Source: "package a # \xff", Created: created, Defect: `key "a" is not UTF-8 text`}},
		},
		{
			name:       "the annotation gives the Rego version of every key",
			annotation: "v0",
			data:       map[string]string{"a": "package a", "b": "package b"},
			want: []policy.Module{
				{ID: id("a"), Source: "package a", Created: created, Version: policy.RegoV0},
				{ID: id("b"), Source: "package b", Created: created, Version: policy.RegoV0},
			},
		},
		{
			name:       "the annotation may ask to find the version out",
			annotation: "auto",
			data:       map[string]string{"a": "package a"},
			want:       []policy.Module{{ID: id("a"), Source: "package a", Created: created, Version: policy.RegoAuto}},
		},
		{
			name:       "an annotation that nobody understands is a defect of every key",
			annotation: "v2",
			data:       map[string]string{"a": "package a", "b": "package b"},
			want: []policy.Module{
				{ID: id("a"), Source: "package a", Created: created, Defect: badVersion},
				{ID: id("b"), Source: "package b", Created: created, Defect: badVersion},
			},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			cm := &corev1.ConfigMap{
				ObjectMeta: metav1.ObjectMeta{
					Namespace: "opa", Name: "rules", CreationTimestamp: metav1.NewTime(created), Labels: map[string]string{"policy": "rego"},
				},
				Data:       test.data,
				BinaryData: test.binaryData,
			}
			if test.annotation != "" {
				cm.Annotations = map[string]string{configmap.RegoVersionAnnotation: test.annotation}
			}
			got := kinds.Modules(cm)
			slices.SortFunc(got, func(a, b policy.Module) int { return a.ID.Compare(b.ID) })
			if len(got) != len(test.want) || len(got) > 0 && !reflect.DeepEqual(got, test.want) {
				t.Errorf("got  %+v\nwant %+v", got, test.want)
			}
		})
	}
}

func TestNameOf(t *testing.T) {
	got := configmap.NameOf(policy.ID{Namespace: "opa", Name: "rules", Key: "main"})
	if want := (types.NamespacedName{Namespace: "opa", Name: "rules"}); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
