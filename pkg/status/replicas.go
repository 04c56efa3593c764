package status

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/wait"
	typedcoordinationv1 "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/kube-rego/kube-rego/pkg/configmap"
	"github.com/kube-rego/kube-rego/pkg/informer"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

const (
	// replicaDuration is how long a replica that is not heard of still counts. It
	// is that of the election: a kubelet takes 6 s, as manifests/ has it, to keep
	// requests from a replica that does not answer.
	replicaDuration = leaseDuration
	// renewEvery leaves room for two renewals that fail.
	renewEvery = replicaDuration / 3
	// publishPause lies between two writes of one Lease while the set keeps
	// changing.
	publishPause = 100 * time.Millisecond
	// staleAfter is when a Lease that was never renewed here is taken for that of
	// a process that has ended, by the clocks of two machines: far more than they
	// differ.
	staleAfter = 2 * time.Minute
	// forgetAfter is how long a replica that is gone stays visible: long enough
	// for whoever was paged to see it.
	forgetAfter = 10 * time.Minute
	// farewell is how long a replica that stops tries to say so.
	farewell = 2 * time.Second
)

const (
	replicaPrefix = "kube-rego-"
	// componentLabel tells the Leases of replicas from other objects of ours.
	componentLabel = "app.kubernetes.io/component"
	component      = "replica"
	// The annotations on the Lease of a replica are fingerprints: of the modules
	// in force, and of the set that they were made of.
	inForceAnnotation = "openpolicyagent.org/in-force"
	wantedAnnotation  = "openpolicyagent.org/wanted"
)

// ReplicasConfig is what Replicas need.
type ReplicasConfig struct {
	// Leases reads and writes Leases.
	Leases typedcoordinationv1.LeasesGetter
	// Namespace is where the replicas have their Leases.
	Namespace string
	// Identity tells this replica from others.
	Identity string
	// Log is told when a Lease cannot be written.
	Log *slog.Logger
}

// Replicas know what every replica has in force. Each says it on a Lease of its
// own, and watches those of the others.
type Replicas struct {
	config   ReplicasConfig
	name     string // of our Lease
	informer cache.SharedIndexInformer
	changed  chan struct{} // one slot: what we have in force has changed

	mu    sync.Mutex
	own   policy.Replica
	lease *coordinationv1.Lease // as we last wrote it
	wrote time.Time
	seen  map[string]renewal // by the name of the Lease
}

// renewal is when a Lease was last seen to be renewed, by our own clock.
type renewal struct {
	renewed         time.Time // as the Lease says
	at              time.Time
	heard           bool // it was renewed while we watched
	inForce, wanted string
}

// NewReplicas makes Replicas; Run starts them.
func NewReplicas(config ReplicasConfig) *Replicas {
	return &Replicas{
		config: config,
		name:   replicaPrefix + strings.ToLower(rand.Text()[:10]),
		informer: informer.New(config.Leases.Leases(config.Namespace), &coordinationv1.Lease{},
			metav1.ListOptions{LabelSelector: ReplicaSelector()}),
		changed: make(chan struct{}, 1),
		own:     policy.Replica{Identity: config.Identity},
		seen:    make(map[string]renewal),
	}
}

func replicaLabels() map[string]string {
	return map[string]string{configmap.ManagedByLabel: configmap.ManagedBy, componentLabel: component}
}

// ReplicaSelector is the label selector of the Leases of replicas.
func ReplicaSelector() string { return labels.Set(replicaLabels()).String() }

// ReplicaOf is the replica that a Lease is of, if nothing was heard of it for so
// long; false for a Lease that does not say whose it is and when it was renewed.
func ReplicaOf(lease *coordinationv1.Lease, unheard time.Duration) (policy.Replica, bool) {
	if lease.Spec.HolderIdentity == nil || lease.Spec.RenewTime == nil {
		return policy.Replica{}, false
	}
	return policy.Replica{
		Identity: *lease.Spec.HolderIdentity,
		InForce:  lease.Annotations[inForceAnnotation],
		Wanted:   lease.Annotations[wantedAnnotation],
		Gone:     unheard > replicaDuration,
	}, true
}

// Publish says what this replica has in force, as fingerprints. It returns at
// once.
func (r *Replicas) Publish(inForce, wanted string) {
	r.mu.Lock()
	changed := r.own.InForce != inForce || r.own.Wanted != wanted
	r.own.InForce, r.own.Wanted = inForce, wanted
	r.mu.Unlock()
	if !changed {
		return
	}
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// Run publishes and watches until ctx ends, and calls look when another replica
// may have changed; look must not block.
func (r *Replicas) Run(ctx context.Context, look func()) error {
	_, err := r.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { r.noteRenewal(o, look) },
		UpdateFunc: func(_, o any) { r.noteRenewal(o, look) },
		DeleteFunc: func(o any) { r.noteRemoval(o, look) },
	})
	if err != nil {
		return fmt.Errorf("watching the Leases of replicas: %w", err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { r.informer.RunWithContext(ctx) })
	r.publish(ctx)
	wg.Wait()
	return nil
}

// noteRenewal remembers when a Lease was renewed, and looks if there is more to
// it than that.
func (r *Replicas) noteRenewal(object any, look func()) {
	lease, ok := object.(*coordinationv1.Lease)
	if !ok || lease.Spec.RenewTime == nil {
		return
	}
	now := renewal{
		renewed: lease.Spec.RenewTime.Time,
		at:      time.Now(),
		inForce: lease.Annotations[inForceAnnotation],
		wanted:  lease.Annotations[wantedAnnotation],
	}
	r.mu.Lock()
	before, known := r.seen[lease.Name]
	now.heard = before.heard || known && !before.renewed.Equal(now.renewed)
	if known && before.renewed.Equal(now.renewed) {
		now.at = before.at
	}
	r.seen[lease.Name] = now
	r.mu.Unlock()
	if !known || before.inForce != now.inForce || before.wanted != now.wanted {
		look()
	}
}

func (r *Replicas) noteRemoval(object any, look func()) {
	if name, err := cache.DeletionHandlingMetaNamespaceKeyFunc(object); err == nil {
		r.mu.Lock()
		delete(r.seen, strings.TrimPrefix(name, r.config.Namespace+"/"))
		r.mu.Unlock()
	}
	look()
}

// publish keeps our Lease until ctx ends, and then takes it away.
func (r *Replicas) publish(ctx context.Context) {
	var failing error
	wait.UntilWithContext(ctx, func(ctx context.Context) {
		select {
		case <-ctx.Done():
			return
		case <-r.changed:
		case <-time.After(renewEvery):
		}
		err := r.write(ctx)
		if err != nil && ctx.Err() == nil && (failing == nil || failing.Error() != err.Error()) {
			r.config.Log.Warn("this replica cannot say what it has in force; trying again", "error", err)
		}
		failing = err
	}, publishPause)
	r.withdraw(context.WithoutCancel(ctx))
}

// write writes our Lease, once there is something to say.
func (r *Replicas) write(ctx context.Context) error {
	r.mu.Lock()
	own, lease := r.own, r.lease
	r.mu.Unlock()
	if own.InForce == "" {
		return nil // not ready: nobody waits for us
	}
	leases := r.config.Leases.Leases(r.config.Namespace)
	var err error
	if lease == nil {
		lease, err = leases.Create(ctx, r.filled(&coordinationv1.Lease{}, own), metav1.CreateOptions{})
	} else {
		lease, err = leases.Update(ctx, r.filled(lease.DeepCopy(), own), metav1.UpdateOptions{})
	}
	if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
		lease, err = leases.Get(ctx, r.name, metav1.GetOptions{}) // the next renewal is of that
	}
	if apierrors.IsNotFound(err) { // also behind a conflict: an update of a Lease that is gone counts as one
		lease, err = leases.Create(ctx, r.filled(&coordinationv1.Lease{}, own), metav1.CreateOptions{})
	}
	if err != nil {
		return fmt.Errorf("writing Lease %s/%s: %w", r.config.Namespace, r.name, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lease = lease
	if time.Since(r.wrote) > replicaDuration {
		r.wakeUp()
	}
	r.wrote = time.Now()
	return nil
}

// wakeUp gives the others time to be heard of again after this process was
// suspended or cut off: they may have renewed their Leases meanwhile.
func (r *Replicas) wakeUp() {
	for name, s := range r.seen {
		s.at = time.Now()
		r.seen[name] = s
	}
}

func (r *Replicas) filled(lease *coordinationv1.Lease, own policy.Replica) *coordinationv1.Lease {
	now := metav1.NowMicro()
	seconds := int32(replicaDuration / time.Second)
	lease.Namespace, lease.Name, lease.Labels = r.config.Namespace, r.name, replicaLabels()
	lease.Annotations = map[string]string{inForceAnnotation: own.InForce, wantedAnnotation: own.Wanted}
	lease.Spec.HolderIdentity, lease.Spec.LeaseDurationSeconds, lease.Spec.RenewTime = &own.Identity, &seconds, &now
	if lease.Spec.AcquireTime == nil {
		lease.Spec.AcquireTime = &now
	}
	return lease
}

// withdraw takes our Lease away, so that nobody waits for a replica that stops.
func (r *Replicas) withdraw(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, farewell)
	defer cancel()
	err := r.config.Leases.Leases(r.config.Namespace).Delete(ctx, r.name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		r.config.Log.Warn("the Lease of this replica stays until it expires", "error", err)
	}
}

// List is what is known of the replicas, this one included, by their identity.
func (r *Replicas) List() []policy.Replica {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []policy.Replica
	if r.own.InForce != "" {
		all = append(all, r.own)
	}
	for _, lease := range r.leases() {
		if replica, ok := ReplicaOf(lease, r.unheard(lease)); ok && lease.Name != r.name {
			all = append(all, replica)
		}
	}
	slices.SortFunc(all, func(a, b policy.Replica) int { return cmp.Compare(a.Identity, b.Identity) })
	return all
}

// Known reports whether it is known what the other replicas have in force: not
// before their Leases are listed, and not while this process is cut off. It hears
// of others as long as it hears of itself; a renewal of theirs may be as much
// older than ours as there is between two.
func (r *Replicas) Known() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.informer.HasSynced() && time.Since(r.wrote) < replicaDuration &&
		time.Since(r.seen[r.name].at) < replicaDuration-renewEvery
}

// Announced is nil once the other replicas can know of this one, or why they
// cannot yet: a writer that does not know of it does not wait for it.
func (r *Replicas) Announced() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lease == nil {
		return errors.New("waiting to tell the other replicas what is in force here: the Lease of this replica is not written yet")
	}
	return nil
}

func (r *Replicas) leases() []*coordinationv1.Lease {
	var all []*coordinationv1.Lease
	for _, object := range r.informer.GetStore().List() {
		lease, ok := object.(*coordinationv1.Lease)
		if ok && lease.Spec.HolderIdentity != nil && lease.Spec.RenewTime != nil {
			all = append(all, lease)
		}
	}
	return all
}

// unheard is for how long nothing was heard of a replica. A process that starts
// takes the Leases that it finds for renewed just now, since the clock that they
// were written by may differ from its own, but for those that are old by any
// clock.
func (r *Replicas) unheard(lease *coordinationv1.Lease) time.Duration {
	seen, ok := r.seen[lease.Name]
	if age := time.Since(lease.Spec.RenewTime.Time); age > staleAfter && !seen.heard {
		return age
	}
	if !ok {
		return 0
	}
	return time.Since(seen.at)
}

// forget removes the Leases of replicas that are gone for long.
func (r *Replicas) forget(ctx context.Context) error {
	r.mu.Lock()
	var names []string
	for _, lease := range r.leases() {
		if lease.Name != r.name && r.unheard(lease) > forgetAfter {
			names = append(names, lease.Name)
		}
	}
	r.mu.Unlock()
	var errs []error
	for _, name := range names {
		err := r.config.Leases.Leases(r.config.Namespace).Delete(ctx, name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("removing Lease %s/%s of a replica that is gone: %w", r.config.Namespace, name, err))
		}
	}
	return errors.Join(errs...)
}
