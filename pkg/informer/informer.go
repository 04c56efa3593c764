// Package informer makes informers of single resources. client-go makes them in
// factories that know every resource of Kubernetes, and a program that uses one
// carries them all; this package knows only the clients that it is given.
package informer

import (
	"context"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// Resource lists and watches objects of one kind, as every typed client of
// client-go does.
type Resource[List runtime.Object] interface {
	List(ctx context.Context, options metav1.ListOptions) (List, error)
	Watch(ctx context.Context, options metav1.ListOptions) (watch.Interface, error)
}

// New makes an informer of the objects of resource that selectors select: the
// API server applies the label and the field selector, so that other objects
// never cross the network. object is an empty one of their kind.
func New[List runtime.Object](resource Resource[List], object runtime.Object, selectors metav1.ListOptions) cache.SharedIndexInformer {
	selected := func(options metav1.ListOptions) metav1.ListOptions {
		options.LabelSelector, options.FieldSelector = selectors.LabelSelector, selectors.FieldSelector
		return options
	}
	return cache.NewSharedIndexInformer(cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			return resource.List(ctx, selected(options))
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			return resource.Watch(ctx, selected(options))
		},
	}, resource), object, 0, cache.Indexers{})
}
