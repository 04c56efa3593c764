// Package status writes on each ConfigMap what became of its policies, as an
// annotation. Nothing here is on the path to enforcement, and nothing that was
// written is ever read back as state.
package status

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/client-go/util/workqueue"

	"github.com/kube-rego/kube-rego/pkg/configmap"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// WriterConfig is what a Writer needs.
type WriterConfig struct {
	// Client patches ConfigMaps; its rate limit is the writer's.
	Client kubernetes.Interface
	// Annotation is the key to write.
	Annotation string
	// Namespace is where replicas find the Lease that says who writes.
	Namespace string
	// Identity tells this replica from others.
	Identity string
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
	// workers write at once. The API server answers a patch in about 10 ms and
	// the client's rate limit is what bounds the writer, so a few are enough.
	workers = 4
)

// Writer writes statuses where they differ from what is there. Of several
// replicas one is elected to write: two that have seen different histories would
// otherwise write against each other without end.
type Writer struct {
	config WriterConfig

	mu     sync.Mutex
	wanted map[types.NamespacedName]patch
	queue  queue // nil while another replica writes
}

type queue = workqueue.TypedRateLimitingInterface[types.NamespacedName]

// patch is one annotation to write on one version of a ConfigMap.
type patch struct {
	text            string
	resourceVersion string
}

// NewWriter makes a Writer; Run starts it.
func NewWriter(config WriterConfig) *Writer { return &Writer{config: config} }

// Publish says what became of the modules of configMaps. It replaces what was
// published before and returns at once; the writing follows.
//
// A status is written only on the version of the ConfigMap that it speaks of:
// if its author was faster, the next report is on its way.
func (w *Writer) Publish(configMaps []*corev1.ConfigMap, report policy.Report) {
	statuses := byConfigMap(report)
	wanted := make(map[types.NamespacedName]patch)
	for _, cm := range configMaps {
		name := types.NamespacedName{Namespace: cm.Namespace, Name: cm.Name}
		text := configmap.Status(statuses[name])
		if cm.Annotations[w.config.Annotation] != text {
			wanted[name] = patch{text: text, resourceVersion: cm.ResourceVersion}
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wanted = wanted // from now on the workers' too: they delete what they wrote
	w.enqueue()
}

// enqueue hands all that is wanted to the workers, if there are any. It is called
// with the lock held.
func (w *Writer) enqueue() {
	if w.queue == nil {
		return
	}
	for name := range w.wanted {
		w.queue.Add(name)
	}
}

func byConfigMap(report policy.Report) map[types.NamespacedName][]policy.Status {
	statuses := make(map[types.NamespacedName][]policy.Status)
	for _, s := range report.Modules {
		name := types.NamespacedName{Namespace: s.ID.Namespace, Name: s.ID.Name}
		statuses[name] = append(statuses[name], s)
	}
	return statuses
}

// Run takes part in the election until ctx ends, and writes while elected.
func (w *Writer) Run(ctx context.Context) error {
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: w.config.Namespace, Name: leaseName},
			Client:     w.config.Client.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: w.config.Identity},
		},
		LeaseDuration:   leaseDuration,
		RenewDeadline:   renewDeadline,
		RetryPeriod:     retryPeriod,
		ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: w.lead,
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return fmt.Errorf("electing the writer of statuses: %w", err)
	}
	for ctx.Err() == nil {
		elector.Run(ctx) // until ctx ends or the Lease is lost
	}
	return nil
}

// lead writes until ctx ends.
func (w *Writer) lead(ctx context.Context) {
	w.config.Log.Info("this replica writes the statuses")
	queue := workqueue.NewTypedRateLimitingQueue(
		workqueue.DefaultTypedControllerRateLimiter[types.NamespacedName]())
	w.use(queue)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for w.next(ctx, queue) {
			}
		})
	}
	<-ctx.Done()
	w.use(nil)
	queue.ShutDown()
	wg.Wait()
}

func (w *Writer) use(queue queue) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queue = queue
	w.enqueue()
}

// next writes one status; false once the queue is shut down.
func (w *Writer) next(ctx context.Context, queue queue) bool {
	name, shutdown := queue.Get()
	if shutdown {
		return false
	}
	defer queue.Done(name)
	if err := w.write(ctx, name); err != nil && ctx.Err() == nil {
		w.config.Log.Warn("the status could not be written; trying again", "configMap", name.String(), "error", err)
		queue.AddRateLimited(name)
		return true
	}
	queue.Forget(name)
	return true
}

func (w *Writer) write(ctx context.Context, name types.NamespacedName) error {
	w.mu.Lock()
	p, ok := w.wanted[name]
	w.mu.Unlock()
	if !ok {
		return nil
	}
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"resourceVersion": p.resourceVersion,
		"annotations":     map[string]string{w.config.Annotation: p.text},
	}})
	if err != nil {
		return fmt.Errorf("encoding the status: %w", err)
	}
	_, err = w.config.Client.CoreV1().ConfigMaps(name.Namespace).
		Patch(ctx, name.Name, types.MergePatchType, body, metav1.PatchOptions{})
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil // the ConfigMap has changed or is gone; so will the report
	}
	if err != nil {
		return fmt.Errorf("patching the annotation: %w", err)
	}
	w.written(name, p)
	return nil
}

// written forgets a patch that was applied, unless another is wanted by now.
func (w *Writer) written(name types.NamespacedName, p patch) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.wanted[name] == p {
		delete(w.wanted, name)
	}
}
