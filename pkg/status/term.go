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
	targets     map[types.NamespacedName]target
	done        map[types.NamespacedName]done
}

// target is what is to be told of one ConfigMap.
type target struct {
	configMap   *corev1.ConfigMap // nil if it is not there, or no policy any more
	text        string            // the status
	held        []policy.Status
	pending     bool       // something is held only until what it reads is known
	modules     policy.Set // to be kept: in force, or no good here and still wanted
	fingerprint string     // of these modules
	revisions   []configmap.Revision
}

// good reports whether all of the ConfigMap is in force as wanted.
func (t target) good() bool { return len(t.held) == 0 }

// done is what this term has told of one ConfigMap. The zero value is nothing.
type done struct {
	news        bool   // another version than the one that was in force before this term
	told        bool   // both of these, and by an event
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
		done: make(map[types.NamespacedName]done),
	}
}

// publish makes a target of each ConfigMap and hands those that need work to the
// workers.
func (t *term) publish(state State) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fingerprint = state.Report.Fingerprint
	t.targets = t.targetsOf(state)
	for name := range t.done {
		if _, ok := t.targets[name]; !ok {
			t.targets[name] = target{fingerprint: nothing}
		}
	}
	for name, target := range t.targets {
		done := t.done[name]
		if target.knows(done.revision) {
			// From now on the informer has the word, also when somebody takes it away.
			done.revision = configmap.Revision{}
			t.done[name] = done
		}
		if t.needsWork(target, done) {
			t.queue.Add(name)
		}
	}
}

// nothing is the fingerprint of no modules.
var nothing = policy.Set{}.Fingerprint()

func (t *term) targetsOf(state State) map[types.NamespacedName]target {
	all := make(map[types.NamespacedName]target, len(state.ConfigMaps))
	statuses := make(map[types.NamespacedName][]policy.Status, len(state.ConfigMaps))
	for _, s := range state.Report.Modules {
		name := configmap.NameOf(s.ID)
		statuses[name] = append(statuses[name], s)
	}
	for name, modules := range byConfigMap(state.Keep) {
		all[name] = target{modules: modules}
	}
	for _, cm := range state.ConfigMaps {
		name := types.NamespacedName{Namespace: cm.Namespace, Name: cm.Name}
		target := all[name]
		target.configMap = cm
		all[name] = target
	}
	for _, name := range state.History.Names() {
		if _, ok := all[name]; !ok {
			all[name] = target{} // it is gone
		}
	}
	for name, target := range all {
		var warnings []policy.Problem
		if target.configMap != nil {
			warnings = t.config.Kinds.Warnings(target.configMap)
		}
		target.text = configmap.Status(statuses[name], warnings...)
		target.pending = slices.ContainsFunc(statuses[name], policy.Status.Pending)
		target.held = policy.Report{Modules: statuses[name]}.Held()
		target.fingerprint = target.modules.Fingerprint()
		target.revisions = state.History.Of(name)
		all[name] = target
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
func (t *term) needsWork(target target, done done) bool {
	switch {
	case !done.told || done.text != target.text || done.fingerprint != target.fingerprint:
		return true
	case !target.recorded(done) || len(target.revisions) > historyLimit:
		return true
	case target.configMap == nil:
		return len(target.modules) == 0 // there is something to take away
	}
	return t.config.Annotation != "" && target.configMap.Annotations[t.config.Annotation] != target.text
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
	if err := t.tell(ctx, name); err != nil && ctx.Err() == nil {
		t.config.Log.Warn("the status could not be written; trying again", "configMap", name.String(), "error", err)
		t.queue.AddRateLimited(name)
		return true
	}
	t.queue.Forget(name)
	return true
}

// tell writes what there is to tell of one ConfigMap. The revision comes first:
// what is called ok also survives a restart.
func (t *term) tell(ctx context.Context, name types.NamespacedName) error {
	t.mu.Lock()
	target, ok := t.targets[name]
	done, fingerprint := t.done[name], t.fingerprint
	t.mu.Unlock()
	if !ok {
		return nil
	}
	if target.configMap == nil && len(target.modules) == 0 {
		return t.takeLeave(ctx, name, target)
	}
	done.news = done.news || !target.recorded(done)
	errRecord := t.record(ctx, name, target, &done)
	if target.pending && t.isPatient(name, &done) {
		t.remember(name, done)
		return errRecord // as a rule it takes less time to find out than to tell
	}
	if target.good() && (!target.recorded(done) || !t.everywhere(fingerprint)) {
		err := t.await(ctx, name, target, &done)
		t.remember(name, done)
		return errors.Join(errRecord, err)
	}
	done.waiting = time.Time{}
	told, err := t.annotate(ctx, name, target, target.text, &done)
	if told && errRecord == nil {
		t.announce(name, target, done)
		done.news, done.told, done.text, done.fingerprint = false, true, target.text, target.fingerprint
	}
	t.remember(name, done)
	return errors.Join(errRecord, err)
}

// remember keeps what was told. A name has one worker at a time, so nobody else
// has changed it meanwhile.
func (t *term) remember(name types.NamespacedName, done done) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.done[name] = done
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
func (t *term) isPatient(name types.NamespacedName, done *done) bool {
	if done.waiting.IsZero() {
		done.waiting = time.Now()
	}
	if time.Since(done.waiting) >= patience {
		return false
	}
	t.queue.AddAfter(name, patience)
	return true
}

// await looks again later whether all replicas have caught up. If they take long,
// a status of the version before is taken back meanwhile: it would be a lie.
func (t *term) await(ctx context.Context, name types.NamespacedName, target target, done *done) error {
	if t.isPatient(name, done) {
		return nil
	}
	t.queue.AddAfter(name, lookAgain)
	changed := done.news || done.told && done.fingerprint != target.fingerprint || !done.told && isFresh(target.newest(*done))
	if t.config.Annotation == "" || target.configMap == nil || target.configMap.Annotations[t.config.Annotation] == "" || !changed {
		return nil
	}
	_, err := t.annotate(ctx, name, target, configmap.Pending, done)
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
	delete(t.done, name)
}
