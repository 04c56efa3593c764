// Package overview shows a person with a kubeconfig what became of the policies of
// a cluster: what their annotations say, what was recorded of them, and who
// enforces them. It only reads, and asks nobody but the API server.
//
// It reads other people's text. Nothing of it reaches a terminal before
// [policy.Printable] has been over it.
package overview

import (
	"cmp"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/kube-rego/kube-rego/pkg/configmap"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// The statuses of a ConfigMap beside those that its annotation can tell.
const (
	// statusNone: there is no annotation yet.
	statusNone = "none"
	// statusUnknown: nobody understands the annotation.
	statusUnknown = "unknown"
	// statusRemoved: the ConfigMap is gone or no policy any more, and something
	// of it stays in force, since the rest does not compile without it.
	statusRemoved = "removed"
)

// Overview is what kube-rego status tells. As JSON it is what -o json prints:
// fields may be added to it, and none is renamed.
type Overview struct {
	// ConfigMaps are ordered by namespace and name.
	ConfigMaps []ConfigMap `json:"configMaps"`
	// Replicas are those that have a Lease, by identity; null if Leases may not
	// be read.
	Replicas []Replica `json:"replicas"`
	// Warnings say what could not be read, and why.
	Warnings []string `json:"warnings,omitempty"`
}

// ConfigMap is what became of one policy ConfigMap.
type ConfigMap struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Status is ok, warning, pending, error, none, unknown or removed.
	Status string `json:"status"`
	// InForce is current, previous or none; left out if nothing says it.
	InForce policy.InForce `json:"inForce,omitempty"`
	// Revision is the number of the newest, and Recorded when that was written:
	// since then it is in force. Both are left out if there is none.
	Revision int64     `json:"revision,omitempty"`
	Recorded time.Time `json:"recorded,omitzero"`
	// Message is what there is to say beside the problems.
	Message string `json:"message,omitempty"`
	// Problems are why a change is held.
	Problems []Problem `json:"problems,omitempty"`
	// Warnings are about what is in force as wanted.
	Warnings []Problem `json:"warnings,omitempty"`
}

// Problem is one reason why a change is held.
type Problem struct {
	// Module is namespace/name/key.
	Module string `json:"module"`
	policy.Problem
}

// String is the problem in one line, its place first, as a compiler prints it.
func (p Problem) String() string {
	if p.Module == "" {
		return p.Problem.String()
	}
	if p.Row == 0 {
		return p.Module + ": " + p.Problem.String()
	}
	return p.Module + ":" + p.Problem.String()
}

// Replica is one process of kube-rego.
type Replica struct {
	Identity string `json:"identity"`
	// Gone is true for one that was not heard of for longer than it promised.
	Gone bool `json:"gone"`
	// Renewed is when it was last heard of.
	Renewed time.Time `json:"renewed"`
	// Fingerprint is that of the modules that it has in force.
	Fingerprint string `json:"fingerprint"`
}

const (
	outdated = "the text differs from the newest revision: it was edited a moment ago and nobody has looked yet, " +
		"no replica runs, or revisions cannot be written"
	lingering = "the ConfigMap is gone or no policy any more, and its newest revision stays in force: " +
		"the rest does not compile without it, or no replica runs"
)

// describe is what became of a ConfigMap, by its annotation and by its newest
// revision, which has the number 0 if there is none or it may not be read.
func (o Options) describe(cm *corev1.ConfigMap, newest configmap.Revision) ConfigMap {
	c := ConfigMap{Namespace: cm.Namespace, Name: cm.Name, Revision: newest.Number, Recorded: newest.Recorded}
	text, ok := cm.Annotations[o.StatusAnnotation]
	if !ok {
		c.Status, c.InForce = statusNone, policy.None
		if newest.Number > 0 {
			c.InForce = o.inForce(cm, newest)
		}
		return c
	}
	parsed, err := configmap.ParseStatus(text)
	if err != nil {
		parsed = configmap.ParsedStatus{Status: statusUnknown, Message: err.Error()}
	}
	c.Status, c.InForce, c.Message = parsed.Status, parsed.InForce, parsed.Message
	if parsed.Status == configmap.StatusOK || parsed.Status == configmap.StatusWarning {
		c.InForce = policy.Current
	}
	if parsed.InForce == "" && newest.Number > 0 {
		c.InForce = o.inForce(cm, newest)
	}
	if (parsed.Status == configmap.StatusOK || parsed.Status == configmap.StatusWarning) && c.InForce != policy.Current {
		c.Message = outdated
	}
	c.Problems, c.Warnings = located(cm, parsed.Problems), located(cm, parsed.Warnings)
	return c
}

// inForce says whether the newest revision is what the ConfigMap holds.
func (o Options) inForce(cm *corev1.ConfigMap, newest configmap.Revision) policy.InForce {
	modules := o.kinds().Modules(cm)
	state := policy.Current
	for _, m := range modules {
		recorded, ok := newest.Modules[m.ID]
		switch {
		case !ok:
			return policy.None
		case recorded.Digest() != m.Digest():
			state = policy.Previous
		}
	}
	if len(newest.Modules) > len(modules) {
		return policy.Previous // a key was removed, and that is held
	}
	return state
}

// located adds to each problem its line of the ConfigMap.
func located(cm *corev1.ConfigMap, parsed []configmap.ModuleProblem) []Problem {
	var problems []Problem
	for _, p := range parsed {
		problem := Problem{Module: p.Module, Problem: p.Problem}
		if key, ok := strings.CutPrefix(p.Module, cm.Namespace+"/"+cm.Name+"/"); ok {
			problem.Problem = p.In(cm.Data[key])
		}
		problems = append(problems, problem)
	}
	return problems
}

// removed is a ConfigMap that is no policy and of which a revision is in force.
// cm is nil if it is gone altogether.
func (o Options) removed(cm *corev1.ConfigMap, newest configmap.Revision) ConfigMap {
	c := ConfigMap{Namespace: newest.Namespace, Name: newest.Name, Revision: newest.Number, Recorded: newest.Recorded}
	if cm != nil {
		c = o.describe(cm, newest)
	}
	c.Status, c.InForce, c.Message = statusRemoved, policy.Previous, lingering
	return c
}

// byName orders ConfigMaps by namespace and name.
func byName(a, b ConfigMap) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}
