package replication

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// check finds out whether a resource that a flag names is namespaced as the flag
// says, and can be watched. Of one that does not exist yet, or of an API server that
// does not answer, nothing is known.
func check(client discovery.ServerResourcesInterface, r Resource) error {
	list, err := client.ServerResourcesForGroupVersion(r.GroupVersion().String())
	builtin := scheme.Scheme.IsGroupRegistered(r.Group)
	if apierrors.IsNotFound(err) && builtin {
		return fmt.Errorf("%s: the API server does not serve %s", r, r.GroupVersion())
	}
	if list == nil {
		return nil // the list of its objects will say why, again and again
	}
	for _, known := range list.APIResources {
		switch {
		case known.Name != r.Resource:
			continue
		case known.Namespaced && !r.Namespaced:
			return fmt.Errorf("%s has objects in namespaces: it goes with --replicate, not --replicate-cluster", r)
		case !known.Namespaced && r.Namespaced:
			return fmt.Errorf("%s has objects for the whole cluster: it goes with --replicate-cluster, not --replicate", r)
		case !watchable(known):
			return fmt.Errorf("%s cannot be replicated: the API server does not let anybody list and watch it", r)
		}
		return nil
	}
	if builtin { // others may come to have it
		return fmt.Errorf("%s: the API server has no such resource in %s", r, r.GroupVersion())
	}
	return nil
}

func watchable(r metav1.APIResource) bool {
	return slices.Contains(r.Verbs, "list") && slices.Contains(r.Verbs, "watch")
}

// Resolver knows resources by their plurals.
type Resolver struct {
	known map[string][]Resource // without path
	// failed says of which groups nothing is known; nil if there are none.
	failed error
}

// NewResolver makes a Resolver of nothing but these resources.
func NewResolver(resources ...Resource) *Resolver {
	r := &Resolver{known: make(map[string][]Resource)}
	for _, resource := range resources {
		r.Add(resource)
	}
	return r
}

// Add makes one more resource known. One that is known stays, in the version that it
// was added in.
func (r *Resolver) Add(resource Resource) {
	for _, other := range r.known[resource.Resource] {
		if other.Group == resource.Group {
			return
		}
	}
	r.known[resource.Resource] = append(r.known[resource.Resource], resource)
}

// Discover asks the API server for all of its resources, each in the version that it
// prefers.
func Discover(client discovery.ServerResourcesInterface) (*Resolver, error) {
	lists, err := client.ServerPreferredResources()
	var some *discovery.ErrGroupDiscoveryFailed
	if err != nil && !errors.As(err, &some) {
		return nil, fmt.Errorf("asking the API server for its resources: %w", err)
	}
	r := NewResolver()
	r.failed = err
	for _, list := range lists {
		version, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			return nil, fmt.Errorf("asking the API server for its resources: %w", err)
		}
		for _, resource := range list.APIResources {
			if watchable(resource) && !strings.Contains(resource.Name, "/") {
				r.Add(Resource{GroupVersionResource: version.WithResource(resource.Name), Namespaced: resource.Namespaced})
			}
		}
	}
	return r, nil
}

// other is the version in which the API server has a resource, if it is not the one
// that is named; or else the zero value.
func (r *Resolver) other(resource Resource) Resource {
	for _, known := range r.known[resource.Resource] {
		if known.Group == resource.Group && known.Version != resource.Version {
			return known
		}
	}
	return Resource{}
}

// Resolve is the resource that policies mean by a name. That of the core group goes
// before all others, such as the pods of a metrics server, and those of Kubernetes
// before those of a CRD: what somebody installs does not change what is meant. With an
// error the state says whether there is none, or it is not known which.
func (r *Resolver) Resolve(name string) (Resource, policy.ResourceState, error) {
	candidates := r.known[name]
	for _, goesFirst := range []func(group string) bool{
		func(group string) bool { return group == "" },
		scheme.Scheme.IsGroupRegistered,
	} {
		for _, c := range candidates {
			if goesFirst(c.Group) {
				return c, policy.ResourceLoading, nil
			}
		}
	}
	switch {
	case len(candidates) == 1:
		return candidates[0], policy.ResourceLoading, nil
	case len(candidates) > 1:
		var names []string
		for _, c := range candidates {
			names = append(names, c.String())
		}
		slices.Sort(names)
		return Resource{}, policy.ResourceFailed, fmt.Errorf("it may be %s: say which with --replicate or --replicate-cluster",
			strings.Join(names, " or "))
	case r.failed != nil:
		return Resource{}, policy.ResourceFailed, r.failed
	}
	return Resource{}, policy.ResourceMissing, errors.New("the API server knows no resource of that name that can be watched")
}
