package configmap

import (
	"cmp"
	"maps"
	"math"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// History is all that was recorded: the revisions of all ConfigMaps. It is never
// changed.
type History struct {
	revisions   map[types.NamespacedName][]Revision // the newest first
	inForce     policy.Set
	fingerprint string
}

// NewHistory makes a history of revisions in any order.
func NewHistory(revisions []Revision) *History {
	h := &History{
		revisions: make(map[types.NamespacedName][]Revision),
		inForce:   make(policy.Set),
	}
	for _, r := range revisions {
		name := types.NamespacedName{Namespace: r.Namespace, Name: r.Name}
		h.revisions[name] = append(h.revisions[name], r)
	}
	for _, all := range h.revisions {
		slices.SortFunc(all, func(a, b Revision) int { return cmp.Compare(b.Number, a.Number) })
		for id, m := range all[0].Modules {
			h.inForce[id] = m
		}
	}
	h.fingerprint = h.inForce.Fingerprint()
	return h
}

// InForce are the modules that were in force last, by the newest revision of each
// ConfigMap.
func (h *History) InForce() policy.Set { return h.inForce }

// Writes is how many revisions there are.
func (h *History) Writes() int {
	n := 0
	for _, all := range h.revisions {
		n += len(all)
	}
	return n
}

// Before are the modules that were in force as it was recorded before the last n
// revisions were written. Of a ConfigMap whose earlier revisions are no longer kept it is
// the earliest that is.
func (h *History) Before(n int) policy.Set {
	orders := make([]uint64, 0, h.Writes())
	for _, all := range h.revisions {
		for _, r := range all {
			orders = append(orders, r.Order)
		}
	}
	slices.Sort(orders)
	since := append(orders, math.MaxUint64)[max(0, len(orders)-n)]
	set := make(policy.Set)
	for _, all := range h.revisions {
		earlier := slices.IndexFunc(all, func(r Revision) bool { return r.Order < since })
		if earlier < 0 && all[len(all)-1].Number > 1 {
			earlier = len(all) - 1
		}
		if earlier >= 0 {
			maps.Copy(set, all[earlier].Modules)
		}
	}
	return set
}

// Fingerprint is that of the modules in force.
func (h *History) Fingerprint() string { return h.fingerprint }

// Of are the revisions of one ConfigMap, the newest first.
func (h *History) Of(name types.NamespacedName) []Revision { return h.revisions[name] }

// Names are the ConfigMaps that have revisions, in no order.
func (h *History) Names() []types.NamespacedName {
	names := make([]types.NamespacedName, 0, len(h.revisions))
	for name := range h.revisions {
		names = append(names, name)
	}
	return names
}
