package enforce

import (
	"slices"
	"testing"
	"time"

	"github.com/kube-rego/kube-rego/pkg/compile"
	"github.com/kube-rego/kube-rego/pkg/configmap"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// version is the module opa/<name>/main in a version of its object.
func version(name string, number uint64, source string) policy.Module {
	return policy.Module{
		ID: policy.ID{Namespace: "opa", Name: name, Key: "main"}, Source: source, ObjectVersion: number, Created: time.Unix(1, 0),
	}
}

// recordedAs is what was recorded, each module as the revision of a number.
func recordedAs(number int64, modules ...policy.Module) *configmap.History {
	var revisions []configmap.Revision
	for _, m := range modules {
		revisions = append(revisions, configmap.NewRevision("opa", m.ID.Namespace, m.ID.Name, number, policy.NewSet(m)))
	}
	return configmap.NewHistory(revisions)
}

func TestPlan(t *testing.T) {
	good := version("a", 2, "package a\nx := 1")
	broken := version("a", 4, "package a\nx :=")
	later := version("a", 3, "package a\nx := 2")
	other := version("b", 2, "package b\ny := 1")
	renewed := good
	renewed.Created = time.Unix(9, 0)
	unknown := policy.Resources{"pods": {Name: "pods", State: policy.ResourceFailed}}

	// A replica that has good in force, and wants the broken edit of it.
	held := func(change func(*view)) view {
		v := viewOf(t, policy.NewSet(good), policy.NewSet(broken), recordedAs(1, good))
		change(&v)
		return v
	}
	// disagreeing has the writer come to another set of the same ConfigMaps, and record it.
	disagreeing := func(v *view, writers *configmap.History) {
		v.history, v.leader = writers, "writer"
		v.replicas = []policy.Replica{{Identity: "writer", Wanted: v.fingerprint, InForce: writers.Fingerprint()}}
	}
	for sentence, test := range map[string]struct {
		view view
		want plan
	}{
		"nothing is in force: what was recorded is restored": {
			view{inputs: inputs{history: recordedAs(1, good)}}, plan{base: onRestored, compile: true},
		},
		"all is as it was compiled last: nothing is to be done": {held(func(*view) {}), plan{}},
		"another set is wanted": {held(func(v *view) {
			v.wanted = policy.NewSet(broken, other)
			v.fingerprint = v.wanted.Fingerprint()
		}), plan{compile: true}},
		"more is known of what policies read":      {held(func(v *view) { v.resources = policy.Resources{"pods": {State: policy.ResourceLoaded}} }), plan{compile: true}},
		"what was compiled last is to be compiled": {held(func(v *view) { v.attempts.compiled = nil }), plan{compile: true}},

		"a later version of the held module was recorded": {
			held(func(v *view) { v.history = recordedAs(2, later) }), plan{base: onOverlay, overlay: policy.NewSet(later)},
		},
		"and has been tried": {held(func(v *view) {
			v.history, v.attempts.overlaid = recordedAs(2, later), policy.NewSet(later).Fingerprint()
		}), plan{}},
		"it was recorded of an object that is gone": {held(func(v *view) {
			gone := later
			gone.Created = renewed.Created
			v.history = recordedAs(2, gone)
		}), plan{}},
		"it was recorded while objects that policies read are not known": {held(func(v *view) {
			v.history, v.resources = recordedAs(2, later), unknown
			v.attempts.compiled = v.key()
		}), plan{}},

		"the writer has another set of the same ConfigMaps": {
			held(func(v *view) { disagreeing(v, recordedAs(1, good, other)) }), plan{base: onAdopted},
		},
		"and that has been tried": {held(func(v *view) {
			disagreeing(v, recordedAs(1, good, other))
			v.attempts.adopted = v.history.Fingerprint() + v.fingerprint
		}), plan{}},
		"the writer is this replica":   {held(func(v *view) { disagreeing(v, recordedAs(1, good, other)); v.identity = "writer" }), plan{}},
		"the writer is gone":           {held(func(v *view) { disagreeing(v, recordedAs(1, good, other)); v.replicas[0].Gone = true }), plan{}},
		"the writer wants another set": {held(func(v *view) { disagreeing(v, recordedAs(1, good, other)); v.replicas[0].Wanted = "other" }), plan{}},
		"the writer has not recorded its set yet": {
			held(func(v *view) { disagreeing(v, recordedAs(1, good, other)); v.replicas[0].InForce = "other" }), plan{},
		},
		"the set is compiled anew first": {held(func(v *view) {
			disagreeing(v, recordedAs(1, good, other))
			v.attempts.compiled = nil
		}), plan{compile: true}},

		"the writer has not seen a good version that is in force here": {
			view: func() view {
				v := viewOf(t, policy.NewSet(later), policy.NewSet(broken), recordedAs(7, good))
				disagreeing(&v, v.history)
				return v
			}(),
			want: plan{rescues: []rescue{{name: configmap.NameOf(later.ID), number: 8, modules: policy.NewSet(later)}}},
		},
		"it was recorded once, and the writer cannot use it": {
			view: func() view {
				v := viewOf(t, policy.NewSet(later), policy.NewSet(broken), recordedAs(7, good))
				disagreeing(&v, v.history)
				v.attempts.rescued = map[string]bool{policy.NewSet(later).Fingerprint(): true}
				return v
			}(),
			want: plan{base: onAdopted},
		},
		"what is in force here is no later version than the recorded one": {
			view: func() view {
				v := viewOf(t, policy.NewSet(good, other), policy.NewSet(broken, other), recordedAs(7, later))
				disagreeing(&v, v.history)
				return v
			}(),
			want: plan{base: onAdopted},
		},
	} {
		t.Run(sentence, func(t *testing.T) {
			if got := test.view.plan(); !samePlan(got, test.want) {
				t.Errorf("got  %+v\nwant %+v", got, test.want)
			} else if does := got.compile || got.base != onInForce || len(got.rescues) > 0; does != (got.why != "") {
				t.Errorf("the plan %+v does not say why", got)
			}
		})
	}
}

// viewOf is what a loop sees that has some modules in force and has compiled the wanted ones
// on them.
func viewOf(t *testing.T, inForce, wanted policy.Set, history *configmap.History) view {
	t.Helper()
	c, err := compile.New(compile.Config{RegoVersion: policy.RegoAuto})
	if err != nil {
		t.Fatal(err)
	}
	snapshot := c.Settle(c.Settle(c.Empty(), inForce, nil, nil), wanted, nil, nil)
	v := view{
		inputs:   inputs{history: history, wanted: wanted, fingerprint: wanted.Fingerprint()},
		inForce:  snapshot,
		report:   snapshot.Report(),
		identity: "ours",
	}
	v.attempts.compiled = v.key()
	return v
}

func samePlan(a, b plan) bool {
	return a.base == b.base && a.compile == b.compile && a.overlay.Fingerprint() == b.overlay.Fingerprint() &&
		slices.EqualFunc(a.rescues, b.rescues, func(a, b rescue) bool {
			return a.name == b.name && a.number == b.number && a.modules.Fingerprint() == b.modules.Fingerprint()
		})
}
