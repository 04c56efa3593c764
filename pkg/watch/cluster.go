// Package watch knows the ConfigMaps as they are now, from a cluster or from
// files, and what was recorded of them. An event means only "look again": the
// package never looks at what changed, and in which order, so no state can get
// stuck. It lists and watches, and writes nothing.
package watch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	typedappsv1 "k8s.io/client-go/kubernetes/typed/apps/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/kube-rego/kube-rego/pkg/configmap"
	"github.com/kube-rego/kube-rego/pkg/informer"
)

// ErrNotSynced says that the first full list of ConfigMaps, or that of their
// revisions, is not there yet.
var ErrNotSynced = errors.New("waiting for the first full list")

const (
	// contactInterval is how often the API server is asked whether it still
	// answers: a watch whose server is gone is retried in silence.
	contactInterval = 5 * time.Second
	// contactTimeout is how long it may take; it takes milliseconds.
	contactTimeout = 10 * time.Second
)

// ClusterConfig is what a Cluster needs.
type ClusterConfig struct {
	// ConfigMaps reads ConfigMaps.
	ConfigMaps typedcorev1.ConfigMapsGetter
	// Revisions reads their revisions.
	Revisions typedappsv1.ControllerRevisionsGetter
	// Namespaces to watch; metav1.NamespaceAll stands for all of them.
	Namespaces []string
	// Home is the namespace of the revisions.
	Home string
	// Selectors are the label selectors that the API server applies, so that other
	// ConfigMaps never cross the network. An object that several select counts once.
	Selectors []labels.Selector
	// Log is told when a watch fails.
	Log *slog.Logger
}

// Cluster watches the labelled ConfigMaps of a cluster, with an informer for each
// namespace and selector, and the revisions that were recorded of them.
type Cluster struct {
	config     ClusterConfig
	configMaps []*namespaceInformer
	revisions  *namespaceInformer

	mu      sync.Mutex
	history *configmap.History // nil: to be made anew
}

// namespaceInformer is an informer of one namespace and what ails it.
type namespaceInformer struct {
	cache.SharedIndexInformer
	transform cache.TransformFunc
	what      string // the resource, as a person calls it
	namespace string
	selector  string

	mu  sync.Mutex
	err error
}

// NewCluster makes a Cluster; Run starts it.
func NewCluster(config ClusterConfig) *Cluster {
	c := &Cluster{config: config}
	for _, namespace := range config.Namespaces {
		for _, selector := range config.Selectors {
			c.configMaps = append(c.configMaps, &namespaceInformer{
				SharedIndexInformer: informer.New(config.ConfigMaps.ConfigMaps(namespace), &corev1.ConfigMap{},
					metav1.ListOptions{LabelSelector: selector.String()}),
				transform: trim,
				what:      "ConfigMaps",
				namespace: namespace,
				selector:  selector.String(),
			})
		}
	}
	c.revisions = &namespaceInformer{
		SharedIndexInformer: informer.New(config.Revisions.ControllerRevisions(config.Home), &appsv1.ControllerRevision{},
			metav1.ListOptions{LabelSelector: labels.Set{configmap.ManagedByLabel: configmap.ManagedBy}.String()}),
		transform: c.parse,
		what:      "ControllerRevisions",
		namespace: config.Home,
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

// recorded is a revision as the informer keeps it: read once, and not kept as
// JSON beside it.
type recorded struct {
	metav1.ObjectMeta
	revision configmap.Revision
	err      error
}

func (c *Cluster) parse(object any) (any, error) {
	cr, ok := object.(*appsv1.ControllerRevision)
	if !ok {
		return object, nil
	}
	cr.ManagedFields = nil
	r := &recorded{ObjectMeta: cr.ObjectMeta}
	if r.revision, r.err = configmap.ParseRevision(cr); r.err != nil {
		c.config.Log.Error("a revision cannot be read and is passed over", "error", r.err)
	}
	return r, nil
}

// Run watches until ctx ends. It calls look after every change, from several
// goroutines at once; look must not block.
func (c *Cluster) Run(ctx context.Context, look func()) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	changed := func() {
		c.forget()
		look()
	}
	if err := c.prepare(c.revisions, changed); err != nil {
		return err
	}
	wg.Go(func() { c.revisions.RunWithContext(ctx) })
	wg.Go(func() {
		if cache.WaitForCacheSync(ctx.Done(), c.revisions.HasSynced) {
			changed()
		}
	})
	for _, i := range c.configMaps {
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
	if err := i.SetTransform(i.transform); err != nil {
		return fmt.Errorf("watching %s in namespace %s: %w", i.what, i.name(), err)
	}
	err := i.SetWatchErrorHandlerWithContext(func(ctx context.Context, _ *cache.Reflector, err error) {
		if ctx.Err() != nil || isRoutine(err) {
			return
		}
		i.failed(err)
		look() // whoever waits for the first list hears why
		c.config.Log.Warn("a watch failed; trying again", "resource", i.what, "namespace", i.name(), "error", err)
	})
	if err != nil {
		return fmt.Errorf("watching %s in namespace %s: %w", i.what, i.name(), err)
	}
	_, err = i.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { look() },
		UpdateFunc: func(_, _ any) { look() },
		DeleteFunc: func(any) { look() },
	})
	if err != nil {
		return fmt.Errorf("watching %s in namespace %s: %w", i.what, i.name(), err)
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
	_, err := c.config.ConfigMaps.ConfigMaps(i.namespace).List(ctx, metav1.ListOptions{
		LabelSelector: i.selector,
		Limit:         1,
	})
	return err
}

// ConfigMaps are the labelled ConfigMaps as they were last seen, in no order.
// They must not be changed. The error is ErrNotSynced, without ConfigMaps, until
// the first full list of every namespace is there. Later an error beside them
// says why there may be newer ones.
func (c *Cluster) ConfigMaps() ([]*corev1.ConfigMap, error) {
	found := make(map[types.NamespacedName]*corev1.ConfigMap)
	var errs []error
	for _, i := range c.configMaps {
		if !i.HasSynced() {
			return nil, i.notSynced()
		}
		for _, object := range i.GetStore().List() {
			cm, ok := object.(*corev1.ConfigMap)
			if !ok {
				return nil, fmt.Errorf("informer of namespace %s holds a %T", i.name(), object)
			}
			name := types.NamespacedName{Namespace: cm.Namespace, Name: cm.Name}
			// One of two informers may be behind.
			if other := found[name]; other == nil || configmap.ObjectVersion(other) < configmap.ObjectVersion(cm) {
				found[name] = cm
			}
		}
		errs = append(errs, i.trouble())
	}
	return slices.AppendSeq(make([]*corev1.ConfigMap, 0, len(found)), maps.Values(found)), errors.Join(errs...)
}

// History is what was recorded of the ConfigMaps of the watched namespaces, as it
// was last seen. The error is ErrNotSynced until the first full list is there.
func (c *Cluster) History() (*configmap.History, error) {
	if !c.revisions.HasSynced() {
		return nil, c.revisions.notSynced()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.history == nil {
		var all []configmap.Revision
		for _, object := range c.revisions.GetStore().List() {
			if r, ok := object.(*recorded); ok && r.err == nil && c.watches(r.revision.Namespace) {
				all = append(all, r.revision)
			}
		}
		c.history = configmap.NewHistory(all)
	}
	return c.history, nil
}

// watches reports whether the ConfigMaps of a namespace are watched: of those that
// are not, nothing is known, and their revisions stay as they are.
func (c *Cluster) watches(namespace string) bool {
	return slices.Contains(c.config.Namespaces, metav1.NamespaceAll) || slices.Contains(c.config.Namespaces, namespace)
}

// forget lets the history be made anew of what the informers hold now.
func (c *Cluster) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.history = nil
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
	return fmt.Errorf("listing %s in namespace %s: %w", i.what, i.name(), i.err)
}

// notSynced is ErrNotSynced with the last error that the API server gave.
func (i *namespaceInformer) notSynced() error {
	if err := i.trouble(); err != nil {
		return fmt.Errorf("%w of %s: %w", ErrNotSynced, i.what, err)
	}
	return fmt.Errorf("%w of %s", ErrNotSynced, i.what)
}

// name is the namespace as a person writes it.
func (i *namespaceInformer) name() string {
	if i.namespace == metav1.NamespaceAll {
		return "*"
	}
	return i.namespace
}
