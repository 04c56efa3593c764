package configmap

import (
	"k8s.io/apimachinery/pkg/labels"

	corev1 "k8s.io/api/core/v1"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// Kinds says which labels make a ConfigMap a policy, and which make it data. With
// both it is data, as for kube-mgmt.
type Kinds struct {
	Policy, Data labels.Selector
}

// NewKinds makes Kinds of a label for each.
func NewKinds(policyLabel, policyValue, dataLabel, dataValue string) Kinds {
	return Kinds{
		Policy: labels.SelectorFromSet(labels.Set{policyLabel: policyValue}),
		Data:   labels.SelectorFromSet(labels.Set{dataLabel: dataValue}),
	}
}

// Selectors are those of Kinds that select anything.
func (k Kinds) Selectors() []labels.Selector {
	var all []labels.Selector
	for _, s := range []labels.Selector{k.Policy, k.Data} {
		if _, selectable := s.Requirements(); selectable {
			all = append(all, s)
		}
	}
	return all
}

// Match reports whether an object with these labels is a policy or data.
func (k Kinds) Match(object map[string]string) bool {
	return k.Policy.Matches(labels.Set(object)) || k.Data.Matches(labels.Set(object))
}

// of is what a ConfigMap holds; false if nothing.
func (k Kinds) of(cm *corev1.ConfigMap) (policy.Kind, bool) {
	if k.Data.Matches(labels.Set(cm.Labels)) {
		return policy.Data, true
	}
	return policy.Rego, k.Policy.Matches(labels.Set(cm.Labels))
}

// Warnings are what the author of a ConfigMap should know of its labels.
func (k Kinds) Warnings(cm *corev1.ConfigMap) []policy.Problem {
	if !k.Policy.Matches(labels.Set(cm.Labels)) || !k.Data.Matches(labels.Set(cm.Labels)) {
		return nil
	}
	return []policy.Problem{{
		Code:    policy.CodeDefect,
		Message: "labelled " + k.Policy.String() + " and " + k.Data.String() + ": it is data, and nothing in it is policy; take one label away",
	}}
}
