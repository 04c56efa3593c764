package status

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"

	"github.com/kube-rego/kube-rego/pkg/configmap"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// term is the time in which this replica writes, and what it knows meanwhile.
type term struct {
	config   WriterConfig
	leads    func() bool // reports whether the term is not over yet
	recorder record.EventRecorder
	queue    workqueue.TypedRateLimitingInterface[types.NamespacedName]

	mu          sync.Mutex
	fingerprint string // of all modules in force
	desired     map[types.NamespacedName]desired
	written     map[types.NamespacedName]written
}

// desired is what is to be reported of one ConfigMap.
type desired struct {
	configMap   *corev1.ConfigMap // nil if it is not there, or no policy any more
	text        string            // the status
	held        []policy.Status
	pending     bool       // something is held only until what it reads is known
	modules     policy.Set // to be kept: in force, or no good here and still wanted
	fingerprint string     // of these modules
	revisions   []configmap.Revision
}

// good reports whether all of the ConfigMap is in force as wanted.
func (d desired) good() bool { return len(d.held) == 0 }

// written is what this term has reported of one ConfigMap. The zero value is nothing.
type written struct {
	news        bool   // another version than the one that was in force before this term
	reported    bool   // both of these, and by an event
	text        string // the status
	fingerprint string // of the modules in force
	revision    configmap.Revision
	writes      writes
	// waiting is since when the status waits for other replicas.
	waiting time.Time
}

func newTerm(config WriterConfig, leads func() bool, recorder record.EventRecorder) *term {
	return &term{
		config:   config,
		leads:    leads,
		recorder: recorder,
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.DefaultTypedControllerRateLimiter[types.NamespacedName]()),
		written: make(map[types.NamespacedName]written),
	}
}

// publish makes the desired report of each ConfigMap and hands those that need work to the
// workers.
func (t *term) publish(state State) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fingerprint = state.Report.Fingerprint
	t.desired = t.desiredOf(state)
	for name := range t.written {
		if _, ok := t.desired[name]; !ok {
			t.desired[name] = desired{fingerprint: nothing}
		}
	}
	for name, want := range t.desired {
		have := t.written[name]
		if want.knows(have.revision) {
			// From now on the informer has the word, also when somebody takes it away.
			have.revision = configmap.Revision{}
			t.written[name] = have
		}
		if t.needsWork(want, have) {
			t.queue.Add(name)
		}
	}
}

// nothing is the fingerprint of no modules.
var nothing = policy.Set{}.Fingerprint()

func (t *term) desiredOf(state State) map[types.NamespacedName]desired {
	all := make(map[types.NamespacedName]desired, len(state.ConfigMaps))
	statuses := make(map[types.NamespacedName][]policy.Status, len(state.ConfigMaps))
	for _, s := range state.Report.Modules {
		name := configmap.NameOf(s.ID)
		statuses[name] = append(statuses[name], s)
	}
	for name, modules := range byConfigMap(state.Keep) {
		all[name] = desired{modules: modules}
	}
	for _, cm := range state.ConfigMaps {
		name := types.NamespacedName{Namespace: cm.Namespace, Name: cm.Name}
		want := all[name]
		want.configMap = cm
		all[name] = want
	}
	for _, name := range state.History.Names() {
		if _, ok := all[name]; !ok {
			all[name] = desired{} // it is gone
		}
	}
	for name, want := range all {
		var warnings []policy.Problem
		if want.configMap != nil {
			warnings = t.config.Kinds.Warnings(want.configMap)
		}
		want.text = configmap.Status(statuses[name], warnings...)
		want.pending = slices.ContainsFunc(statuses[name], policy.Status.Pending)
		want.held = policy.Report{Modules: statuses[name]}.Held()
		want.fingerprint = want.modules.Fingerprint()
		want.revisions = state.History.Of(name)
		all[name] = want
	}
	return all
}

func byConfigMap(modules policy.Set) map[types.NamespacedName]policy.Set {
	sets := make(map[types.NamespacedName]policy.Set)
	for id, m := range modules {
		name := configmap.NameOf(id)
		if sets[name] == nil {
			sets[name] = make(policy.Set)
		}
		sets[name][id] = m
	}
	return sets
}

// needsWork reports whether there is something to write or to tell.
func (t *term) needsWork(want desired, have written) bool {
	switch {
	case !have.reported || have.text != want.text || have.fingerprint != want.fingerprint:
		return true
	case !want.recorded(have) || len(want.revisions) > historyLimit:
		return true
	case want.configMap == nil:
		return len(want.modules) == 0 // there is something to take away
	}
	return t.config.Annotation != "" && want.configMap.Annotations[t.config.Annotation] != want.text
}

// next works on one ConfigMap; false once the queue is shut down.
func (t *term) next(ctx context.Context) bool {
	name, shutdown := t.queue.Get()
	if shutdown {
		return false
	}
	defer t.queue.Done(name)
	if !t.leads() {
		t.queue.AddAfter(name, retryPeriod)
		return true
	}
	if err := t.reconcile(ctx, name); err != nil && ctx.Err() == nil {
		t.config.Log.Warn("the status could not be written; trying again", "configMap", name.String(), "error", err)
		t.queue.AddRateLimited(name)
		return true
	}
	t.queue.Forget(name)
	return true
}

// reconcile writes what is to be reported of one ConfigMap. The revision comes first:
// what is called ok also survives a restart.
func (t *term) reconcile(ctx context.Context, name types.NamespacedName) error {
	t.mu.Lock()
	want, ok := t.desired[name]
	have, fingerprint := t.written[name], t.fingerprint
	t.mu.Unlock()
	if !ok {
		return nil
	}
	if want.configMap == nil && len(want.modules) == 0 {
		return t.takeLeave(ctx, name, want)
	}
	have.news = have.news || !want.recorded(have)
	errRecord := t.record(ctx, name, want, &have)
	if want.pending && t.isPatient(name, &have) {
		t.remember(name, have)
		return errRecord // as a rule it takes less time to find out than to tell
	}
	if want.good() && (!want.recorded(have) || !t.everywhere(fingerprint)) {
		err := t.await(ctx, name, want, &have)
		t.remember(name, have)
		return errors.Join(errRecord, err)
	}
	have.waiting = time.Time{}
	told, err := t.annotate(ctx, name, want, want.text, &have)
	if told && errRecord == nil {
		t.announce(name, want, have)
		have.news, have.reported, have.text, have.fingerprint = false, true, want.text, want.fingerprint
	}
	t.remember(name, have)
	return errors.Join(errRecord, err)
}

// remember keeps what was told. A name has one worker at a time, so nobody else
// has changed it meanwhile.
func (t *term) remember(name types.NamespacedName, have written) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.written[name] = have
}

// everywhere reports whether every live replica has in force what we have.
func (t *term) everywhere(fingerprint string) bool {
	if !t.config.Replicas.Known() {
		return false
	}
	for _, r := range t.config.Replicas.List() {
		if r.Identity != t.config.Identity && r.State(fingerprint) == policy.ReplicaLagging {
			return false
		}
	}
	return true
}

// isPatient reports whether a change is not told yet, as what it waits for may be there
// at any moment; if not, it is looked at again.
func (t *term) isPatient(name types.NamespacedName, have *written) bool {
	if have.waiting.IsZero() {
		have.waiting = time.Now()
	}
	if time.Since(have.waiting) >= patience {
		return false
	}
	t.queue.AddAfter(name, patience)
	return true
}

// await looks again later whether all replicas have caught up. If they take long,
// a status of the version before is taken back meanwhile: it would be a lie.
func (t *term) await(ctx context.Context, name types.NamespacedName, want desired, have *written) error {
	if t.isPatient(name, have) {
		return nil
	}
	t.queue.AddAfter(name, lookAgain)
	changed := have.news || have.reported && have.fingerprint != want.fingerprint || !have.reported && isFresh(want.newest(*have))
	if t.config.Annotation == "" || want.configMap == nil || want.configMap.Annotations[t.config.Annotation] == "" || !changed {
		return nil
	}
	_, err := t.annotate(ctx, name, want, configmap.Pending, have)
	return err
}

// isFresh reports whether a revision is so young that the writer before us may not
// have come to say that it is not yet in force everywhere. It had a second to do
// so; the rest is the time of an election and what clocks differ.
func isFresh(r configmap.Revision) bool { return time.Since(r.Recorded) < staleAfter }

// tidy takes away, while ctx lasts, what others have left behind.
func (t *term) tidy(ctx context.Context) {
	if err := t.sweep(ctx); err != nil && ctx.Err() == nil {
		t.config.Log.Warn("statuses on ConfigMaps that are no policies stay", "error", err)
	}
	wait.UntilWithContext(ctx, func(ctx context.Context) {
		if err := t.config.Replicas.forget(ctx); err != nil && ctx.Err() == nil {
			t.config.Log.Warn("replicas that are gone are still listed", "error", err)
		}
	}, tidyEvery)
}

// forgotten drops what was told of a ConfigMap that is gone.
func (t *term) forgotten(name types.NamespacedName) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.written, name)
}
