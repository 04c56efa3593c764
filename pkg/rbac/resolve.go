package rbac

import (
	"fmt"
	"regexp"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/kubernetes/scheme"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // the ways to log in that a person's kubeconfig may name
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/kube-rego/kube-rego/pkg/replication"
)

// requestTimeout is for one request about the resources of a cluster.
const requestTimeout = time.Minute

// discover asks a cluster for its resources.
func discover(kubeconfig string) (*replication.Resolver, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("reading the kubeconfig: %w", err)
	}
	config.Timeout = requestTimeout
	rest.AddUserAgent(config, "kube-rego-rbac")
	client, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("making a client: %w", err)
	}
	return replication.Discover(client)
}

// stable are the versions of Kubernetes' own APIs that are served unless a cluster is
// told otherwise. A resource that has no other version may well be somebody else's in
// the cluster: Kueue has workloads, too.
var stable = regexp.MustCompile(`^v[0-9]+$`)

// builtin are the resources of Kubernetes itself.
func builtin() *replication.Resolver {
	r := replication.NewResolver(
		// They are in every cluster, and of libraries that have no other use here.
		named("apiextensions.k8s.io", "customresourcedefinitions"),
		named("apiregistration.k8s.io", "apiservices"),
	)
	for _, version := range scheme.Scheme.PrioritizedVersionsAllGroups() {
		if !stable.MatchString(version.Version) {
			continue
		}
		for kind := range scheme.Scheme.KnownTypes(version) {
			if watchable(version.WithKind(kind)) {
				plural, _ := meta.UnsafeGuessKindToResource(version.WithKind(kind))
				r.Add(replication.Resource{GroupVersionResource: plural})
			}
		}
	}
	return r
}

func named(group, plural string) replication.Resource {
	return replication.Resource{GroupVersionResource: schema.GroupVersionResource{Group: group, Version: "v1", Resource: plural}}
}

// watchable reports whether a kind is that of objects which can be listed and watched.
// All others are asked or told something, such as a SubjectAccessReview.
func watchable(kind schema.GroupVersionKind) bool {
	if kind.Kind == "ComponentStatus" {
		return false // it can be listed only
	}
	object, err := scheme.Scheme.New(kind)
	if err != nil {
		return false
	}
	_, isObject := object.(metav1.Object)
	return isObject && scheme.Scheme.Recognizes(kind.GroupVersion().WithKind(kind.Kind+"List"))
}
