// Package configmap translates between ConfigMaps and policies: a labelled
// ConfigMap to modules, a report to the annotation that its author reads.
// It is pure: values in, values out.
package configmap

import (
	"fmt"
	"strconv"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// RegoVersionAnnotation on a ConfigMap says in which version of Rego its
// modules are written: auto, v0 or v1.
const RegoVersionAnnotation = "openpolicyagent.org/rego-version"

// Modules are the modules of a ConfigMap, one for each key; none if its labels say
// that it holds none. A key that holds no text is a module with a defect: its
// author labelled it, so it must not be passed over in silence.
func (k Kinds) Modules(cm *corev1.ConfigMap) []policy.Module {
	kind, ok := k.of(cm)
	if !ok {
		return nil
	}
	var version policy.RegoVersion
	var defect string
	if kind == policy.Rego {
		version, defect = regoVersion(cm)
	}
	modules := make([]policy.Module, 0, len(cm.Data)+len(cm.BinaryData))
	for key, source := range cm.Data {
		m := newModule(cm, key, kind)
		m.Source, m.Version, m.Defect = source, version, defect
		if !utf8.ValidString(source) {
			m.Defect = fmt.Sprintf("key %q is not UTF-8 text", key)
		}
		modules = append(modules, m)
	}
	for key := range cm.BinaryData {
		m := newModule(cm, key, kind)
		m.Defect = fmt.Sprintf("key %q is in binaryData, where kubectl puts what is not UTF-8 text; only data is read", key)
		modules = append(modules, m)
	}
	return modules
}

func newModule(cm *corev1.ConfigMap, key string, kind policy.Kind) policy.Module {
	return policy.Module{
		Kind:          kind,
		ID:            policy.ID{Namespace: cm.Namespace, Name: cm.Name, Key: key},
		Created:       cm.CreationTimestamp.Time,
		ObjectVersion: ObjectVersion(cm),
	}
}

// NameOf returns the name of the ConfigMap that a module is a key of.
func NameOf(id policy.ID) types.NamespacedName {
	return types.NamespacedName{Namespace: id.Namespace, Name: id.Name}
}

// ObjectVersion is the object's resource version, which is a number that grows
// (k8s.io/apimachinery/pkg/util/resourceversion), or 0 if it has none, as in a
// file.
func ObjectVersion(object metav1.Object) uint64 {
	version, err := strconv.ParseUint(object.GetResourceVersion(), 10, 64)
	if err != nil {
		return 0
	}
	return version
}

func regoVersion(cm *corev1.ConfigMap) (version policy.RegoVersion, defect string) {
	value, ok := cm.Annotations[RegoVersionAnnotation]
	if !ok {
		return "", ""
	}
	version, err := policy.ParseRegoVersion(value)
	if err != nil {
		return "", fmt.Sprintf("annotation %s: %v", RegoVersionAnnotation, err)
	}
	return version, ""
}
