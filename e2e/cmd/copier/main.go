// Command copier does what kube-mgmt does beside OPA: it keeps all objects of a resource in an informer's cache, whole, and
// puts them into OPA's data, all at once at the start and then each that has changed. It is here to be measured.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os/signal"
	"syscall"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/workqueue"
)

func main() {
	kubeconfig := flag.String("kubeconfig", "", "how to log in")
	opa := flag.String("opa", "", "where OPA serves its REST API")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		log.Fatal(err)
	}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		log.Fatal(err)
	}
	c := &copier{objects: client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "pods"}), to: *opa + "/v1/data/kubernetes/pods"}
	if err := c.run(ctx); err != nil && ctx.Err() == nil {
		log.Fatal(err)
	}
}

type copier struct {
	objects dynamic.ResourceInterface
	to      string
}

// run copies until ctx ends.
func (c *copier) run(ctx context.Context) error {
	changed := workqueue.NewTyped[string]()
	add := func(object any) {
		if key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(object); err == nil {
			changed.Add(key)
		}
	}
	store, informer := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: &cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
				return c.objects.List(ctx, o)
			},
			WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
				return c.objects.Watch(ctx, o)
			},
		},
		ObjectType: &unstructured.Unstructured{},
		Handler:    cache.ResourceEventHandlerFuncs{AddFunc: add, UpdateFunc: func(_, object any) { add(object) }, DeleteFunc: add},
	})
	go informer.RunWithContext(ctx)
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		return ctx.Err()
	}
	for changed.Len() > 0 { // what came with the first list
		key, _ := changed.Get()
		changed.Done(key)
	}
	if err := c.putAll(ctx, store.List()); err != nil {
		return err
	}
	context.AfterFunc(ctx, changed.ShutDown)
	for {
		key, done := changed.Get()
		if done {
			return nil
		}
		if err := c.putOne(ctx, store, key); err != nil {
			return err
		}
		changed.Done(key)
	}
}

func (c *copier) putAll(ctx context.Context, objects []any) error {
	tree := make(map[string]map[string]any)
	for _, object := range objects {
		o, ok := object.(*unstructured.Unstructured)
		if !ok {
			return fmt.Errorf("got a %T", object)
		}
		if tree[o.GetNamespace()] == nil {
			tree[o.GetNamespace()] = make(map[string]any)
		}
		tree[o.GetNamespace()][o.GetName()] = o
	}
	return c.send(ctx, http.MethodPut, "", tree)
}

func (c *copier) putOne(ctx context.Context, store cache.Store, key string) error {
	object, exists, err := store.GetByKey(key)
	if err != nil {
		return err
	}
	if !exists {
		return c.send(ctx, http.MethodDelete, "/"+key, nil)
	}
	return c.send(ctx, http.MethodPut, "/"+key, object)
}

func (c *copier) send(ctx context.Context, method, path string, value any) error {
	body, err := json.Marshal(value)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, method, c.to+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return err
	}
	if response.StatusCode >= http.StatusBadRequest {
		return fmt.Errorf("OPA answers %s %s with %s", method, path, response.Status)
	}
	return nil
}
