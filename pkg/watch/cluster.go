// Package watch knows the ConfigMaps as they are now, from a cluster or from
// files. An event means only "look again": what changed, and in which order, is
// never looked at, so there is no state to get stuck in.
package watch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// ErrNotSynced says that the first full list of ConfigMaps is not there yet.
var ErrNotSynced = errors.New("waiting for the first full list of ConfigMaps")

const (
	// contactInterval is how often the API server is asked whether it still
	// answers: a watch whose server is gone is retried in silence.
	contactInterval = 5 * time.Second
	// contactTimeout is how long it may take; it takes milliseconds.
	contactTimeout = 10 * time.Second
)

// ClusterConfig is what a Cluster needs.
type ClusterConfig struct {
	// Client reads ConfigMaps.
	Client kubernetes.Interface
	// Namespaces to watch; metav1.NamespaceAll stands for all of them.
	Namespaces []string
	// Selector is the label selector that the API server applies, so that
	// ConfigMaps that are no policies never cross the network.
	Selector string
	// Log is told when a watch fails.
	Log *slog.Logger
}

// Cluster watches the labelled ConfigMaps of a cluster, with one informer for
// each namespace.
type Cluster struct {
	config    ClusterConfig
	informers []*namespaceInformer
}

// namespaceInformer is the informer of one namespace and what ails it.
type namespaceInformer struct {
	cache.SharedIndexInformer
	namespace string

	mu  sync.Mutex
	err error
}

// NewCluster makes a Cluster; Run starts it.
func NewCluster(config ClusterConfig) *Cluster {
	c := &Cluster{config: config}
	for _, namespace := range config.Namespaces {
		factory := informers.NewSharedInformerFactoryWithOptions(config.Client, 0,
			informers.WithNamespace(namespace),
			informers.WithTransform(trim),
			informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = config.Selector }),
		)
		c.informers = append(c.informers, &namespaceInformer{
			SharedIndexInformer: factory.Core().V1().ConfigMaps().Informer(),
			namespace:           namespace,
		})
	}
	return c
}

// trim drops what nobody here reads before the informer keeps it.
func trim(object any) (any, error) {
	if cm, ok := object.(*corev1.ConfigMap); ok {
		cm.ManagedFields = nil
	}
	return object, nil
}

// Run watches until ctx ends. It calls look after every change, from several
// goroutines at once; look must not block.
func (c *Cluster) Run(ctx context.Context, look func()) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, i := range c.informers {
		if err := c.prepare(i, look); err != nil {
			return err
		}
		wg.Go(func() { i.RunWithContext(ctx) })
		wg.Go(func() {
			// An empty namespace raises no event: look once it is known.
			if cache.WaitForCacheSync(ctx.Done(), i.HasSynced) {
				look()
			}
		})
		wg.Go(func() { c.keepContact(ctx, i, look) })
	}
	<-ctx.Done()
	return nil
}

func (c *Cluster) prepare(i *namespaceInformer, look func()) error {
	err := i.SetWatchErrorHandlerWithContext(func(ctx context.Context, _ *cache.Reflector, err error) {
		if ctx.Err() != nil || isRoutine(err) {
			return
		}
		i.failed(err)
		look() // whoever waits for the first list hears why
		c.config.Log.Warn("watching ConfigMaps failed; trying again", "namespace", i.name(), "error", err)
	})
	if err != nil {
		return fmt.Errorf("watching ConfigMaps in namespace %s: %w", i.name(), err)
	}
	_, err = i.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { look() },
		UpdateFunc: func(_, _ any) { look() },
		DeleteFunc: func(any) { look() },
	})
	if err != nil {
		return fmt.Errorf("watching ConfigMaps in namespace %s: %w", i.name(), err)
	}
	return nil
}

// isRoutine reports whether a watch ended as watches do: closed by the server, or
// because its resource version is too old by now. The informer starts over, and
// nothing is wrong.
func isRoutine(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		apierrors.IsResourceExpired(err) || apierrors.IsGone(err)
}

// keepContact asks for one of the ConfigMaps from time to time, and looks again
// when the API server stops or starts to answer.
func (c *Cluster) keepContact(ctx context.Context, i *namespaceInformer, look func()) {
	ticker := time.NewTicker(contactInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if changed := i.failed(c.contact(ctx, i)); changed && ctx.Err() == nil {
			look()
		}
	}
}

func (c *Cluster) contact(ctx context.Context, i *namespaceInformer) error {
	ctx, cancel := context.WithTimeout(ctx, contactTimeout)
	defer cancel()
	_, err := c.config.Client.CoreV1().ConfigMaps(i.namespace).List(ctx, metav1.ListOptions{
		LabelSelector: c.config.Selector,
		Limit:         1,
	})
	return err
}

// ConfigMaps are the labelled ConfigMaps as they were last seen, in no order.
// They must not be changed. The error is ErrNotSynced, without ConfigMaps, until
// the first full list of every namespace is there. Later an error beside them
// says why there may be newer ones.
func (c *Cluster) ConfigMaps() ([]*corev1.ConfigMap, error) {
	var all []*corev1.ConfigMap
	var errs []error
	for _, i := range c.informers {
		if !i.HasSynced() {
			return nil, i.notSynced()
		}
		for _, object := range i.GetStore().List() {
			cm, ok := object.(*corev1.ConfigMap)
			if !ok {
				return nil, fmt.Errorf("informer of namespace %s holds a %T", i.name(), object)
			}
			all = append(all, cm)
		}
		errs = append(errs, i.trouble())
	}
	return all, errors.Join(errs...)
}

// failed notes the last error of the API server, nil for an answer, and reports
// whether that is news.
func (i *namespaceInformer) failed(err error) (changed bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	changed = (err == nil) != (i.err == nil)
	i.err = err
	return changed
}

// trouble is the last error of the API server; nil if it answered since.
func (i *namespaceInformer) trouble() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.err == nil {
		return nil
	}
	return fmt.Errorf("listing ConfigMaps in namespace %s: %w", i.name(), i.err)
}

// notSynced is ErrNotSynced with the last error that the API server gave.
func (i *namespaceInformer) notSynced() error {
	if err := i.trouble(); err != nil {
		return fmt.Errorf("%w: %w", ErrNotSynced, err)
	}
	return ErrNotSynced
}

// name is the namespace as a person writes it.
func (i *namespaceInformer) name() string {
	if i.namespace == metav1.NamespaceAll {
		return "*"
	}
	return i.namespace
}
