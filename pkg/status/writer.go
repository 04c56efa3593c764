// Package status reports to the authors of policies what became of them, and keeps
// what was in force for the next start: an annotation and events on each
// ConfigMap, revisions beside it, and a Lease for each replica.
//
// Nothing here is on the path to enforcement. One elected replica writes, and of what
// it writes only the revisions and the Leases are read back; the annotation never is.
package status

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	typedappsv1 "k8s.io/client-go/kubernetes/typed/apps/v1"
	typedcoordinationv1 "k8s.io/client-go/kubernetes/typed/coordination/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/kube-rego/kube-rego/pkg/configmap"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// WriterConfig is what a Writer needs.
type WriterConfig struct {
	// ConfigMaps, Revisions and Leases write statuses, revisions and who is
	// elected; they share one rate limit, which is the writer's.
	ConfigMaps typedcorev1.ConfigMapsGetter
	Revisions  typedappsv1.ControllerRevisionsGetter
	Leases     typedcoordinationv1.LeasesGetter
	// Metadata finds ConfigMaps that carry a status and are no policies.
	Metadata metadata.Interface
	// Events writes events, at a rate of its own: they may wait.
	Events typedcorev1.EventsGetter
	// Annotation is the key of the status; empty: none is written.
	Annotation string
	// Namespaces are those of the policies; metav1.NamespaceAll stands for all.
	Namespaces []string
	// Kinds tells policies and data from other ConfigMaps.
	Kinds configmap.Kinds
	// Namespace is where replicas find the Lease that says who writes, and the
	// revisions.
	Namespace string
	// Identity tells this replica from others.
	Identity string
	// Replicas know who has what in force.
	Replicas *Replicas
	// Log is told of what could not be written.
	Log *slog.Logger
}

const (
	// leaseName is the Lease of the one replica that writes.
	leaseName = "kube-rego"
	// The times of the election are those of Kubernetes' own controllers
	// (k8s.io/component-base/config/v1alpha1, RecommendedDefaultLeaderElectionConfiguration).
	leaseDuration = 15 * time.Second
	renewDeadline = 10 * time.Second
	retryPeriod   = 2 * time.Second
	// workers write at once. The API server answers a write in about 10 ms and
	// the client's rate limit is what bounds the writer, so a few are enough.
	workers = 4
	// rescueBuffer is how many rescues wait; further ones are asked for again.
	rescueBuffer = 100
	// tidyEvery is how often the writer looks for replicas that are gone for long.
	tidyEvery = time.Minute
)

// State is what there is to tell.
type State struct {
	// ConfigMaps are the policies as they were when the set was made.
	ConfigMaps []*corev1.ConfigMap
	// Report is what became of them.
	Report policy.Report
	// Keep are the modules to record: those in force, and those that were in force
	// last and are no good in this process, but may be in another.
	Keep policy.Set
	// History is what was recorded before.
	History *configmap.History
}

// Writer writes what differs from what is there. Of several replicas one is
// elected to write: two that have seen different histories would otherwise write
// against each other without end.
type Writer struct {
	config WriterConfig

	mu      sync.Mutex
	elector *leaderelection.LeaderElector // nil until Run
	rescues chan configmap.Revision
	state   *State // nil until the first is published
	term    *term  // nil while another replica writes
}

// NewWriter makes a Writer; Run starts it.
func NewWriter(config WriterConfig) *Writer {
	return &Writer{config: config, rescues: make(chan configmap.Revision, rescueBuffer)}
}

// Publish says what became of the policies. It replaces what was published before
// and returns at once; the writing follows.
func (w *Writer) Publish(state State) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.state = &state
	if w.term != nil {
		w.term.publish(state)
	}
}

// Leader is the identity of the replica that writes; empty while none is known.
func (w *Writer) Leader() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.elector == nil {
		return ""
	}
	return w.elector.GetLeader()
}

// leads reports whether this replica is the writer now. A process that was
// suspended learns only some seconds later that its term is over: the elector
// goes on trying to renew a Lease that is another's by now.
func (w *Writer) leads() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.elector.IsLeader() && w.elector.Check(0) == nil
}

// Run takes part in the election until ctx ends, and writes while elected. It
// calls look when another replica was elected; look must not block.
func (w *Writer) Run(ctx context.Context, look func()) error {
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: w.config.Namespace, Name: leaseName},
			Client:     w.config.Leases,
			LockConfig: resourcelock.ResourceLockConfig{Identity: w.config.Identity},
		},
		LeaseDuration:   leaseDuration,
		RenewDeadline:   renewDeadline,
		RetryPeriod:     retryPeriod,
		ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: w.lead,
			OnStoppedLeading: func() {},
			OnNewLeader:      func(string) { look() },
		},
	})
	if err != nil {
		return fmt.Errorf("electing the writer of statuses: %w", err)
	}
	w.mu.Lock()
	w.elector = elector
	w.mu.Unlock()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { w.rescue(ctx) })
	for ctx.Err() == nil {
		elector.Run(ctx) // until ctx ends or the Lease is lost
	}
	return nil
}

// Rescue records modules of a ConfigMap that are in force here in a later version
// than the writer knows, as the revision of this number. It is the one thing that
// a replica writes which is not the writer: the last writer has died before it
// recorded them, and the next never saw them. It returns at once.
func (w *Writer) Rescue(name types.NamespacedName, number int64, modules policy.Set) {
	select {
	case w.rescues <- configmap.NewRevision(w.config.Namespace, name.Namespace, name.Name, number, modules):
	default:
	}
}

func (w *Writer) rescue(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case revision := <-w.rescues:
			if err := create(ctx, w.config.Revisions, revision); err != nil && ctx.Err() == nil {
				w.config.Log.Error("a good version that only this replica knows could not be recorded",
					"configMap", revision.Namespace+"/"+revision.Name, "error", err)
			}
		}
	}
}

// lead writes until ctx ends.
func (w *Writer) lead(ctx context.Context) {
	w.config.Log.Info("this replica writes the statuses")
	t := newTerm(w.config, w.leads, newRecorder(ctx, w.config.Events))
	w.begin(t)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for t.next(ctx) {
			}
		})
	}
	wg.Go(func() { t.tidy(ctx) })
	<-ctx.Done()
	w.end(t)
	t.queue.ShutDown()
	wg.Wait()
}

// begin hands what was published to a new term.
func (w *Writer) begin(t *term) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.term = t
	if w.state != nil {
		t.publish(*w.state)
	}
}

// end forgets a term that is over, unless the next one has begun already.
func (w *Writer) end(t *term) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.term == t {
		w.term = nil
	}
}
