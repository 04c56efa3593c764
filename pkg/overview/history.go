package overview

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-rego/kube-rego/pkg/compile"
	"github.com/kube-rego/kube-rego/pkg/configmap"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// History is what kube-rego status --history tells: what was in force of one
// ConfigMap. As JSON it is what -o json prints: fields may be added to it, and
// none is renamed.
type History struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Revisions are ordered by number, the newest first.
	Revisions []Revision `json:"revisions"`
	// Warnings say what could not be read, and why.
	Warnings []string `json:"warnings,omitempty"`
}

// Revision is what was in force at one time.
type Revision struct {
	Number   int64     `json:"revision"`
	Recorded time.Time `json:"recorded"`
	// Keys are sorted. Keys and Fingerprint are left out of a revision that
	// cannot be read; Error says why.
	Keys        []string `json:"keys,omitempty"`
	Fingerprint string   `json:"fingerprint,omitempty"`
	Error       string   `json:"error,omitempty"`
	// InForce is true for the newest.
	InForce bool `json:"inForce"`
	// Problems are why it would be held if it came back now.
	Problems []Problem `json:"problems,omitempty"`
}

// records are all revisions that could be read.
type records struct {
	all []configmap.Revision
	// own are the numbers of those of the one ConfigMap, and unreadable its
	// revisions that cannot be read.
	own        map[int64]configmap.Revision
	unreadable []Revision
}

// records reads all revisions, also of other ConfigMaps: what else is in force
// decides whether a revision compiles.
func (r *reader) records(ctx context.Context) (records, error) {
	found := records{own: make(map[int64]configmap.Revision)}
	err := r.revisions(ctx, func(revision configmap.Revision, object *appsv1.ControllerRevision, err error) {
		switch {
		case err == nil:
			found.all = append(found.all, revision)
			if revision.Namespace == r.Namespace && revision.Name == r.Name {
				found.own[revision.Number] = revision
			}
		case r.isNamedLikeOurs(object):
			found.unreadable = append(found.unreadable, Revision{
				Number: object.Revision, Recorded: object.CreationTimestamp.Time, Error: err.Error(),
			})
		}
	})
	return found, err
}

// isNamedLikeOurs reports whether an object that does not say which ConfigMap it is
// a revision of has the name that ours would have.
func (r *reader) isNamedLikeOurs(object *appsv1.ControllerRevision) bool {
	ours := configmap.NewRevision(r.ReplicaNamespace, r.Namespace, r.Name, object.Revision, nil)
	return object.Name == ours.ObjectName
}

// history reads all that kube-rego status --history tells.
func (r *reader) history(ctx context.Context) (History, error) {
	found, err := r.records(ctx)
	if err != nil {
		return History{}, err
	}
	h := History{Namespace: r.Namespace, Name: r.Name, Revisions: found.unreadable}
	if len(found.own) == 0 && len(found.unreadable) == 0 {
		h.Revisions = []Revision{}
		h.Warnings = append(h.Warnings, fmt.Sprintf("nothing of ConfigMap %s/%s was recorded yet", r.Namespace, r.Name))
		return h, r.whyNot(ctx)
	}
	if len(found.own) > 0 {
		checked, err := check(ctx, found)
		if err != nil {
			return History{}, err
		}
		h.Revisions = append(h.Revisions, checked...)
	}
	slices.SortFunc(h.Revisions, func(a, b Revision) int { return cmp.Compare(b.Number, a.Number) })
	return h, nil
}

// check tells of each revision of the one ConfigMap whether it would go into force
// if it came back now, on all that is in force, its own newest revision included.
func check(ctx context.Context, found records) ([]Revision, error) {
	compiler, err := newCompiler(found)
	if err != nil {
		return nil, err
	}
	interrupted := func() bool { return ctx.Err() != nil }
	last := configmap.NewHistory(found.all).InForce()
	base := compiler.Settle(compiler.Empty(), last, nil, interrupted)
	inForce := base.Modules() // without what does not compile here: that would be tried with each

	var revisions []Revision
	newest := slices.Max(slices.Collect(maps.Keys(found.own)))
	for number, recorded := range found.own {
		wanted := withRevision(inForce, recorded)
		report := compiler.Settle(base, wanted, nil, interrupted).Report()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		revisions = append(revisions, Revision{
			Number:      number,
			Recorded:    recorded.Recorded,
			Keys:        keys(recorded),
			Fingerprint: recorded.Fingerprint,
			InForce:     number == newest,
			Problems:    problems(report, recorded),
		})
	}
	return revisions, nil
}

// newCompiler allows all that flags of serve can allow: which of them are set is
// not known here, and what was in force was allowed then. Nothing is evaluated.
func newCompiler(found records) (*compile.Compiler, error) {
	return compile.New(compile.Config{
		RegoVersion:      policy.RegoAuto,
		Builtins:         compile.OffByDefault(),
		SystemNamespaces: namespaces(found.all),
	})
}

// namespaces are those of the revisions, each once.
func namespaces(revisions []configmap.Revision) []string {
	var all []string
	for _, r := range revisions {
		all = append(all, r.Namespace)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// withRevision is the set in which a ConfigMap has the modules of a revision.
func withRevision(set policy.Set, r configmap.Revision) policy.Set {
	wanted := maps.Clone(set)
	maps.DeleteFunc(wanted, func(id policy.ID, _ policy.Module) bool { return isOf(id, r) })
	maps.Copy(wanted, r.Modules)
	return wanted
}

func isOf(id policy.ID, r configmap.Revision) bool {
	return id.Namespace == r.Namespace && id.Name == r.Name
}

// keys are those of a revision's modules, sorted.
func keys(r configmap.Revision) []string {
	var all []string
	for _, id := range r.Modules.IDs() {
		all = append(all, id.Key)
	}
	return all
}

// problems are those that hold modules of the revision's ConfigMap.
func problems(report policy.Report, r configmap.Revision) []Problem {
	var all []Problem
	for _, s := range report.Held() {
		if !isOf(s.ID, r) {
			continue
		}
		for _, p := range s.Problems {
			all = append(all, Problem{Module: s.ID.String(), Problem: p})
		}
	}
	return all
}

// revision reads the one revision that is asked for.
func (r *reader) revision(ctx context.Context, number int64) (configmap.Revision, error) {
	found, err := r.records(ctx)
	if err != nil {
		return configmap.Revision{}, err
	}
	if revision, ok := found.own[number]; ok {
		return revision, nil
	}
	for _, u := range found.unreadable {
		if u.Number == number {
			return configmap.Revision{}, fmt.Errorf("revision %d of ConfigMap %s/%s: %s", number, r.Namespace, r.Name, oneLine(u.Error))
		}
	}
	if len(found.own) == 0 {
		if err := r.whyNot(ctx); err != nil {
			return configmap.Revision{}, err
		}
	}
	return configmap.Revision{}, fmt.Errorf("ConfigMap %s/%s has no revision %d: there are %s", r.Namespace, r.Name, number, numbers(found.own))
}

func numbers(revisions map[int64]configmap.Revision) string {
	if len(revisions) == 0 {
		return "none"
	}
	var all []string
	for _, n := range slices.Sorted(maps.Keys(revisions)) {
		all = append(all, fmt.Sprint(n))
	}
	return strings.Join(all, ", ")
}

// labels are those that made a ConfigMap what the revision says that it was.
func (o Options) labels(r configmap.Revision) map[string]string {
	for _, m := range r.Modules {
		if m.Kind == policy.Data {
			return map[string]string{o.DataLabel: o.DataValue}
		}
	}
	return map[string]string{o.PolicyLabel: o.PolicyValue}
}

// manifest is the ConfigMap that holds the modules of a revision and nothing else,
// so that kubectl takes it as it is.
func manifest(r configmap.Revision, labels map[string]string) *corev1.ConfigMap {
	cm := &corev1.ConfigMap{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{Namespace: r.Namespace, Name: r.Name, Labels: labels},
		Data:       make(map[string]string, len(r.Modules)),
	}
	for id, m := range r.Modules {
		cm.Data[id.Key] = m.Source
		if m.Version != "" {
			cm.Annotations = map[string]string{configmap.RegoVersionAnnotation: string(m.Version)}
		}
	}
	return cm
}
