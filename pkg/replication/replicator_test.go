package replication

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"

	"github.com/kube-rego/kube-rego/internal/apitest"
	"github.com/kube-rego/kube-rego/pkg/engine"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// replicating is a Replicator that runs in a bubble, between an API server and data.
type replicating struct {
	*apitest.Server
	*Replicator
	data  *countedData
	looks atomic.Int64 // how often it has said that there is more or less
	err   error        // of Run, once it has ended
	stop  func()
}

// countedData is data of which one knows how often it was changed.
type countedData struct {
	*engine.Engine
	applied atomic.Int64
}

func (d *countedData) Apply(changes ...engine.Change) {
	d.applied.Add(1)
	d.Engine.Apply(changes...)
}

// newReplicating makes a Replicator for an API server with pods, widgets and nodes.
func newReplicating(t *testing.T, change func(*Config)) *replicating {
	t.Helper()
	api := apitest.New(
		apitest.Builtin("v1/pods", "Pod", true),
		apitest.Builtin("v1/nodes", "Node", false),
		apitest.Builtin("apps/v1/deployments", "Deployment", true),
		apitest.Builtin("example.com/v1/widgets", "Widget", true),
	)
	client, err := discovery.NewDiscoveryClientForConfig(api.Config())
	if err != nil {
		t.Fatal(err)
	}
	r := &replicating{Server: api, data: &countedData{Engine: engine.New()}}
	config := Config{
		REST: api.Config(), Discovery: client, Path: []string{"kubernetes"}, Data: r.data, Log: slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&config)
	}
	if r.Replicator, err = New(config); err != nil {
		t.Fatal(err)
	}
	return r
}

// run runs it until the test ends, or stop is called.
func (r *replicating) run(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.err = r.Run(ctx, func() { r.looks.Add(1) })
	}()
	r.stop = func() { cancel(); <-ended }
	t.Cleanup(r.stop)
	synctest.Wait()
}

// puts has somebody create or replace an object.
func (r *replicating) puts(resource, namespace, name string) {
	r.Put(resource, metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}})
}

// settles waits until all that has happened has reached data.
func (r *replicating) settles() {
	time.Sleep(batchInterval)
	synctest.Wait()
}

// is fails the test unless a resource is known under its name in this state, for a
// reason with these words, and data has so many objects of it.
func (r *replicating) is(t *testing.T, name string, state policy.ResourceState, reason string, objects int) {
	t.Helper()
	r.settles()
	got, ok := r.ByName()[name]
	switch {
	case !ok:
		t.Errorf("nobody knows of %s", name)
	case got.State != state || !strings.Contains(got.Reason, reason) || (reason == "") != (got.Reason == ""):
		t.Errorf("%s is %s, %q; want %s, %q", name, got.State, got.Reason, state, reason)
	}
	if n := r.data.Documents([]string{"kubernetes", name}); n != objects {
		t.Errorf("data has %d objects of %s, want %d", n, name, objects)
	}
}

// has reports whether data has an object.
func (r *replicating) has(path ...string) bool {
	return r.data.Documents(append([]string{"kubernetes"}, path...)) > 0
}

// waits fails the test unless Waiting says so in these words; empty: it waits for nothing.
func (r *replicating) waits(t *testing.T, want string) {
	t.Helper()
	err := r.Waiting()
	if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
		t.Errorf("it waits for %v, want %q", err, want)
	}
}

// watches is how many watches of a resource were asked for.
func (r *replicating) watches(resource string) int {
	return len(r.Requests(func(q apitest.Request) bool { return q.Verb == "watch" && q.Resource == resource }))
}

// refuse answers requests for a resource with an error, those with one of the verbs.
func refuse(err error, resource string, verbs ...string) func(apitest.Request) error {
	return func(r apitest.Request) error {
		for _, verb := range verbs {
			if r.Verb == verb && r.Resource == resource {
				return err
			}
		}
		return nil
	}
}

func forbidden(resource, verb string) error {
	return apierrors.NewForbidden(schema.GroupResource{Resource: resource}, "", fmt.Errorf("nobody may %s", verb))
}

var errNoConnection = errors.New("dial tcp: connection refused")

func TestReplicator(t *testing.T) {
	for _, test := range []struct {
		name string
		play func(*testing.T, *replicating)
	}{
		{"what nobody wants is not asked for", func(t *testing.T, r *replicating) {
			r.run(t)
			time.Sleep(time.Hour)
			r.waits(t, "")
			if all := r.Requests(func(apitest.Request) bool { return true }); len(all) > 0 || len(r.Resources()) > 0 {
				t.Errorf("it has asked for %q", all)
			}
		}},
		{"what a policy reads is waited for until its first list is loaded", func(t *testing.T, r *replicating) {
			r.puts("pods", "n", "a")
			r.Intercept(func(q apitest.Request) error {
				if q.Resource == "pods" {
					time.Sleep(10 * time.Second) // the answer takes that long
				}
				return nil
			})
			r.Want([]string{"pods"})
			r.waits(t, "data.kubernetes.pods: waiting for the first list")
			r.run(t)
			time.Sleep(9 * time.Second)
			r.is(t, "pods", policy.ResourceLoading, "waiting for the first list", 0)
			r.waits(t, "data.kubernetes.pods: waiting for the first list")
			looks := r.looks.Load()
			time.Sleep(time.Second)
			r.is(t, "pods", policy.ResourceLoaded, "", 1)
			r.waits(t, "")
			if r.looks.Load() == looks {
				t.Error("nobody was told to look")
			}
		}},
		{"data follows objects that come, change and go", func(t *testing.T, r *replicating) {
			r.Want([]string{"pods", "nodes"})
			r.run(t)
			r.is(t, "pods", policy.ResourceLoaded, "", 0)
			r.puts("pods", "n", "a")
			r.puts("pods", "n", "b")
			r.puts("pods", "m", "a")
			r.puts("nodes", "", "one")
			r.is(t, "pods", policy.ResourceLoaded, "", 3)
			r.is(t, "nodes", policy.ResourceLoaded, "", 1)
			r.Remove("pods", "n", "a")
			r.is(t, "pods", policy.ResourceLoaded, "", 2)
			if r.has("pods", "n", "a") || !r.has("pods", "n", "b") || !r.has("nodes", "one") {
				t.Error("another object than the one that was removed is gone")
			}
			if n := r.Resources()[1].Objects; n != 2 {
				t.Errorf("it counts %d pods, want 2", n)
			}
		}},
		{"what no policy reads any more goes, and is not watched", func(t *testing.T, r *replicating) {
			r.puts("pods", "n", "a")
			r.puts("nodes", "", "one")
			r.Want([]string{"pods", "nodes"})
			r.run(t)
			r.is(t, "pods", policy.ResourceLoaded, "", 1)
			r.Want([]string{"nodes"})
			r.settles()
			r.puts("pods", "n", "b")
			time.Sleep(time.Hour)
			if _, ok := r.ByName()["pods"]; ok || r.has("pods") {
				t.Error("the pods are still there")
			}
			if n := r.watches("pods"); n != 1 {
				t.Errorf("the pods were watched %d times, want once", n)
			}
			r.is(t, "nodes", policy.ResourceLoaded, "", 1)
			r.Want([]string{"nodes", "pods"})
			r.is(t, "pods", policy.ResourceLoaded, "", 2)
		}},
		{"a resource that does not exist has no objects, and is looked for again", func(t *testing.T, r *replicating) {
			r.Want([]string{"gadgets"})
			r.run(t)
			r.is(t, "gadgets", policy.ResourceMissing, "the API server knows no resource of that name", 0)
			r.waits(t, "")
			time.Sleep(time.Hour)
			r.Serve(apitest.Builtin("example.com/v1/gadgets", "Gadget", true))
			r.puts("gadgets.example.com", "n", "a")
			time.Sleep(discoverEvery)
			r.is(t, "gadgets", policy.ResourceLoaded, "", 1)
		}},
		{"what cannot be watched is no resource", func(t *testing.T, r *replicating) {
			reviews := apitest.Builtin("example.com/v1/reviews", "Review", true)
			reviews.Verbs = []string{"create"}
			r.Serve(reviews)
			r.Want([]string{"reviews"})
			r.run(t)
			r.is(t, "reviews", policy.ResourceMissing, "that can be watched", 0)
		}},
		{"what may not be listed is not known, and does not hold up others", func(t *testing.T, r *replicating) {
			r.puts("pods", "n", "a")
			r.puts("nodes", "", "one")
			r.Intercept(refuse(forbidden("pods", "list"), "pods", "list", "watch"))
			r.Want([]string{"pods", "nodes"})
			r.run(t)
			r.is(t, "pods", policy.ResourceFailed, "nobody may list", 0)
			r.is(t, "nodes", policy.ResourceLoaded, "", 1)
			r.waits(t, "")
			looks := r.looks.Load()
			time.Sleep(time.Hour)
			if r.looks.Load() != looks {
				t.Error("it says again and again what is no news")
			}
			r.Intercept(nil)
			time.Sleep(2 * lastRetry)
			r.is(t, "pods", policy.ResourceLoaded, "", 1)
		}},
		{"what may be listed and not watched is not known", func(t *testing.T, r *replicating) {
			r.puts("pods", "n", "a")
			r.Intercept(refuse(forbidden("pods", "watch"), "pods", "watch"))
			r.Want([]string{"pods"})
			r.run(t)
			r.is(t, "pods", policy.ResourceFailed, "nobody may watch", 1)
		}},
		{"a right that is taken away makes what was loaded unknown", func(t *testing.T, r *replicating) {
			r.Want([]string{"pods"})
			r.run(t)
			r.is(t, "pods", policy.ResourceLoaded, "", 0)
			r.Intercept(refuse(forbidden("pods", "list"), "pods", "list", "watch"))
			r.HangUp()
			time.Sleep(2 * lastRetry)
			r.is(t, "pods", policy.ResourceFailed, "nobody may list", 0)
		}},
		{"one name of two groups is not known, until one of them is gone", func(t *testing.T, r *replicating) {
			r.Serve(apitest.Builtin("example.org/v1/widgets", "Widget", true))
			r.puts("widgets.example.org", "n", "a")
			r.Want([]string{"widgets"})
			r.run(t)
			r.is(t, "widgets", policy.ResourceFailed,
				"it may be example.com/v1/widgets or example.org/v1/widgets: say which with --replicate or --replicate-cluster", 0)
			r.waits(t, "")
			looks := r.looks.Load()
			if looks == 0 {
				t.Error("nobody was told to look")
			}
			time.Sleep(time.Hour)
			if r.looks.Load() != looks {
				t.Error("it says again and again what is no news")
			}
			r.Withdraw("widgets.example.com")
			time.Sleep(discoverEvery)
			r.is(t, "widgets", policy.ResourceLoaded, "", 1)
		}},
		{"what somebody installs does not change what a name of Kubernetes means", func(t *testing.T, r *replicating) {
			r.Serve(apitest.Builtin("metrics.example.com/v1/pods", "PodMetrics", true))
			r.Serve(apitest.Builtin("a.example.com/v1/deployments", "Deployment", true))
			r.Want([]string{"pods", "deployments"})
			r.run(t)
			r.settles()
			if got := r.ByName()["pods"].Resource + " " + r.ByName()["deployments"].Resource; got != "v1/pods apps/v1/deployments" {
				t.Errorf("it follows %s", got)
			}
		}},
		{"a group that does not answer leaves what it may have unknown, and the others known", func(t *testing.T, r *replicating) {
			r.Serve(apitest.Builtin("metrics.example.com/v1/gadgets", "Gadget", true))
			r.Intercept(func(q apitest.Request) error {
				if q.Path == "/apis/metrics.example.com/v1" {
					return apierrors.NewServiceUnavailable("the server is currently unable to handle the request")
				}
				return nil
			})
			r.Want([]string{"gadgets", "pods"})
			r.run(t)
			r.is(t, "gadgets", policy.ResourceFailed, "metrics.example.com/v1", 0)
			r.is(t, "pods", policy.ResourceLoaded, "", 0)
			r.waits(t, "")
			r.Intercept(nil)
			time.Sleep(discoverEvery)
			r.is(t, "gadgets", policy.ResourceLoaded, "", 0)
		}},
		{"without an API server nothing is known, until it is there", func(t *testing.T, r *replicating) {
			r.puts("pods", "n", "a")
			r.Intercept(func(apitest.Request) error { return errNoConnection })
			r.Want([]string{"pods"})
			r.run(t)
			r.is(t, "pods", policy.ResourceFailed, "asking the API server for its resources", 0)
			r.Intercept(nil)
			time.Sleep(discoverEvery)
			r.is(t, "pods", policy.ResourceLoaded, "", 1)
		}},
		{"what was loaded stays while the API server is away, and is caught up with", func(t *testing.T, r *replicating) {
			r.puts("pods", "n", "a")
			r.puts("pods", "n", "b")
			r.Want([]string{"pods"})
			r.run(t)
			r.Intercept(func(apitest.Request) error { return errNoConnection })
			r.HangUp()
			time.Sleep(time.Minute)
			r.Remove("pods", "n", "a")
			r.puts("pods", "n", "c")
			r.puts("pods", "n", "d")
			r.is(t, "pods", policy.ResourceLoaded, "the API server does not answer", 2)
			r.waits(t, "")
			r.Intercept(nil)
			time.Sleep(2 * lastRetry)
			r.is(t, "pods", policy.ResourceLoaded, "", 3)
			if r.has("pods", "n", "a") {
				t.Error("what was removed meanwhile is still there")
			}
		}},
		{"where the API server has forgotten what happened, all is listed anew", func(t *testing.T, r *replicating) {
			r.puts("pods", "n", "a")
			r.Want([]string{"pods"})
			r.run(t)
			r.is(t, "pods", policy.ResourceLoaded, "", 1)
			r.Intercept(func(apitest.Request) error { return errNoConnection })
			r.HangUp()
			r.Remove("pods", "n", "a")
			r.puts("pods", "n", "b")
			r.Expire()
			r.Intercept(nil)
			time.Sleep(2 * lastRetry)
			r.is(t, "pods", policy.ResourceLoaded, "", 1)
			if r.has("pods", "n", "a") || !r.has("pods", "n", "b") {
				t.Error("data is not as the cluster is")
			}
		}},
		{"a resource that is uninstalled takes its objects along, and comes back", func(t *testing.T, r *replicating) {
			r.puts("widgets.example.com", "n", "a")
			r.Want([]string{"widgets"})
			r.run(t)
			r.is(t, "widgets", policy.ResourceLoaded, "", 1)
			r.Withdraw("widgets.example.com")
			time.Sleep(2 * lastRetry)
			r.is(t, "widgets", policy.ResourceMissing, "the API server knows no resource", 0)
			r.waits(t, "")
			r.Serve(apitest.Builtin("example.com/v2/widgets", "Widget", true))
			time.Sleep(discoverEvery)
			r.is(t, "widgets", policy.ResourceLoaded, "", 1)
		}},
		{"a resource that moves to another version keeps its objects on the way", func(t *testing.T, r *replicating) {
			r.puts("widgets.example.com", "n", "a")
			r.Want([]string{"widgets"})
			r.run(t)
			r.is(t, "widgets", policy.ResourceLoaded, "", 1)
			lost := false
			r.Intercept(func(apitest.Request) error {
				lost = lost || !r.has("widgets", "n", "a")
				return nil
			})
			r.Serve(apitest.Builtin("example.com/v2/widgets", "Widget", true))
			time.Sleep(2 * lastRetry)
			r.is(t, "widgets", policy.ResourceLoaded, "", 1)
			if got := r.ByName()["widgets"].Resource; got != "example.com/v2/widgets" || lost {
				t.Errorf("it follows %s; its objects were gone on the way: %t", got, lost)
			}
		}},
		{"objects that come fast go into data together", func(t *testing.T, r *replicating) {
			r.Want([]string{"pods"})
			r.run(t)
			r.settles()
			before := r.data.applied.Load()
			for n := range 1000 {
				r.puts("pods", "n", fmt.Sprint("pod-", n))
			}
			r.is(t, "pods", policy.ResourceLoaded, "", 1000)
			if n := r.data.applied.Load() - before; n > 2 {
				t.Errorf("data was changed %d times, want one at once and one with the rest", n)
			}
		}},
		{"nothing goes into data when it has stopped", func(t *testing.T, r *replicating) {
			r.Want([]string{"pods"})
			r.run(t)
			r.settles()
			r.stop()
			r.puts("pods", "n", "a")
			r.is(t, "pods", policy.ResourceLoaded, "", 0)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test.play(t, newReplicating(t, nil)) })
		})
	}
}

// flags are the resources of these texts, as --replicate and --replicate-cluster name
// them.
func flags(t *testing.T, namespaced, cluster string) func(*Config) {
	t.Helper()
	resources, _, err := ParseFlags(strings.Fields(namespaced), strings.Fields(cluster), "kubernetes")
	if err != nil {
		t.Fatal(err)
	}
	return func(c *Config) { c.Resources = resources }
}

func TestReplicatorOfFlags(t *testing.T) {
	for _, test := range []struct {
		name                string
		namespaced, cluster string
		play                func(*testing.T, *replicating)
	}{
		{"what a flag names is replicated whatever policies read", "v1/pods", "v1/nodes", func(t *testing.T, r *replicating) {
			r.puts("pods", "n", "a")
			r.puts("nodes", "", "one")
			r.waits(t, "v1/pods: waiting for the first list")
			r.run(t)
			r.is(t, "pods", policy.ResourceLoaded, "", 1)
			r.is(t, "nodes", policy.ResourceLoaded, "", 1)
			r.waits(t, "")
			r.Want(nil)
			r.is(t, "pods", policy.ResourceLoaded, "", 1)
		}},
		{"what a flag names is followed once, also if a policy reads it", "v1/pods", "", func(t *testing.T, r *replicating) {
			r.Want([]string{"pods"})
			r.run(t)
			r.is(t, "pods", policy.ResourceLoaded, "", 0)
			if n := r.watches("pods"); n != 1 || len(r.Resources()) != 1 {
				t.Errorf("it is watched %d times, for %d resources", n, len(r.Resources()))
			}
		}},
		{"what a flag names and may not be listed is waited for", "v1/pods", "", func(t *testing.T, r *replicating) {
			r.Intercept(refuse(forbidden("pods", "list"), "pods", "list", "watch"))
			r.run(t)
			r.is(t, "pods", policy.ResourceFailed, "nobody may list", 0)
			r.waits(t, "v1/pods: ")
			r.Intercept(nil)
			time.Sleep(2 * lastRetry)
			r.waits(t, "")
		}},
		{"what a flag names and does not exist is not waited for", "example.net/v1/gizmos", "", func(t *testing.T, r *replicating) {
			r.run(t)
			r.is(t, "gizmos", policy.ResourceMissing, "the API server knows no resource example.net/v1/gizmos", 0)
			r.waits(t, "")
		}},
		{"below one name nothing is known while one of several is not", "v1/pods=all/pods example.com/v1/widgets=all/widgets", "", func(t *testing.T, r *replicating) {
			r.Intercept(refuse(forbidden("pods", "list"), "pods", "list", "watch"))
			r.run(t)
			r.is(t, "all", policy.ResourceFailed, "nobody may list", 0)
			r.Intercept(nil)
			time.Sleep(2 * lastRetry)
			r.is(t, "all", policy.ResourceLoaded, "", 0)
			r.Intercept(refuse(forbidden("widgets", "list"), "widgets.example.com", "list", "watch"))
			r.HangUp()
			time.Sleep(2 * lastRetry)
			r.is(t, "all", policy.ResourceFailed, "nobody may list", 0)
		}},
		{"a flag says which of two groups is meant", "example.org/v1/widgets", "", func(t *testing.T, r *replicating) {
			r.Serve(apitest.Builtin("example.org/v1/widgets", "Widget", true))
			r.puts("widgets.example.org", "n", "a")
			r.Want([]string{"widgets"})
			r.run(t)
			r.is(t, "widgets", policy.ResourceLoaded, "", 1)
			if n := r.watches("widgets.example.com"); n > 0 {
				t.Error("the other one is watched")
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				test.play(t, newReplicating(t, flags(t, test.namespaced, test.cluster)))
			})
		})
	}
}

func TestObjectsOfIgnoredNamespacesStayOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReplicating(t, func(c *Config) { c.IgnoreNamespaces = []string{"kube-system", "quiet"} })
		r.puts("pods", "kube-system", "a")
		r.puts("pods", "n", "a")
		r.puts("nodes", "", "one")
		r.Want([]string{"pods", "nodes"})
		r.run(t)
		r.puts("pods", "quiet", "a")
		r.is(t, "pods", policy.ResourceLoaded, "", 1)
		r.is(t, "nodes", policy.ResourceLoaded, "", 1)
		if !r.has("pods", "n", "a") {
			t.Error("those that remain are of an ignored namespace")
		}
	})
}

func TestAMistakeInAFlagEndsTheReplicator(t *testing.T) {
	for _, test := range []struct{ name, namespaced, cluster, want string }{
		{"namespaced objects as clusterwide", "", "v1/pods", "it goes with --replicate, not --replicate-cluster"},
		{"clusterwide objects as namespaced", "v1/nodes", "", "it goes with --replicate-cluster, not --replicate"},
		{"no resource of Kubernetes", "v1/pod", "", "v1/pod: the API server has no such resource in v1"},
		{"no version of Kubernetes", "apps/v9/deployments", "", "the API server does not serve apps/v9"},
		{"what cannot be watched", "v1/bindings", "", "does not let anybody list and watch it"},
		{"two mistakes at once", "v1/nodes", "v1/pods", "not --replicate\nv1/pods has objects in namespaces"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newReplicating(t, flags(t, test.namespaced, test.cluster))
				bindings := apitest.Builtin("v1/bindings", "Binding", true)
				bindings.Verbs = []string{"create"}
				r.Serve(bindings)
				r.run(t)
				time.Sleep(time.Minute)
				r.stop()
				if r.err == nil || !strings.Contains(r.err.Error(), test.want) {
					t.Errorf("got the error %v, want %q", r.err, test.want)
				}
			})
		})
	}
}
