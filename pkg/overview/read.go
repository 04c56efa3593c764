package overview

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	typedappsv1 "k8s.io/client-go/kubernetes/typed/apps/v1"
	typedcoordinationv1 "k8s.io/client-go/kubernetes/typed/coordination/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // the ways to log in that a person's kubeconfig may name
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/pager"

	"github.com/kube-rego/kube-rego/pkg/configmap"
	"github.com/kube-rego/kube-rego/pkg/status"
)

// requestTimeout is for one request, which asks for at most 500 objects: they may
// have 1 MiB each, and the line may be slow.
const requestTimeout = time.Minute

// reader reads the cluster.
type reader struct {
	Options
	client client
}

// client reads what the overview is made of.
type client struct {
	typedcorev1.ConfigMapsGetter
	typedappsv1.ControllerRevisionsGetter
	typedcoordinationv1.LeasesGetter
}

// connect makes a client as kubectl does: of the file that is named, or else of
// $KUBECONFIG, ~/.kube/config or the pod's own service account.
func connect(kubeconfig string) (client, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if clientcmd.IsEmptyConfig(err) {
		return client{}, errors.New("no cluster is configured: give --kubeconfig, or set KUBECONFIG")
	}
	if err != nil {
		return client{}, fmt.Errorf("reading the kubeconfig: %w", err)
	}
	config.Timeout = requestTimeout
	rest.AddUserAgent(config, "kube-rego-status")
	c, err := newClient(config)
	if err != nil {
		return client{}, fmt.Errorf("making a client: %w", err)
	}
	return c, nil
}

func newClient(config *rest.Config) (client, error) {
	shared, err := rest.HTTPClientFor(config)
	if err != nil {
		return client{}, err
	}
	core, errCore := typedcorev1.NewForConfigAndClient(config, shared)
	apps, errApps := typedappsv1.NewForConfigAndClient(config, shared)
	coordination, errCoordination := typedcoordinationv1.NewForConfigAndClient(config, shared)
	return client{core, apps, coordination}, errors.Join(errCore, errApps, errCoordination)
}

// overview reads all that kube-rego status tells. now is the time by which
// replicas are gone.
func (r *reader) overview(ctx context.Context, now time.Time) (Overview, error) {
	configMaps, err := r.configMaps(ctx)
	if err != nil {
		return Overview{}, err
	}
	newest, warnings, err := r.newest(ctx)
	if err != nil {
		return Overview{}, err
	}
	o := Overview{ConfigMaps: []ConfigMap{}, Warnings: warnings}
	for name, cm := range configMaps {
		o.ConfigMaps = append(o.ConfigMaps, r.describe(cm, newest[name]))
		delete(newest, name)
	}
	for _, revision := range newest {
		more, err := r.lingering(ctx, revision)
		if err != nil {
			return Overview{}, err
		}
		o.ConfigMaps = append(o.ConfigMaps, more...)
	}
	slices.SortFunc(o.ConfigMaps, byName)
	if len(o.ConfigMaps) == 0 {
		if r.Name != "" {
			return Overview{}, r.whyNot(ctx)
		}
		o.Warnings = append(o.Warnings, fmt.Sprintf("there is no ConfigMap with the label %s or %s in %s", r.kinds().Policy, r.kinds().Data, r.where()))
	}
	var warning string
	if o.Replicas, warning, err = r.replicas(ctx, now); warning != "" {
		o.Warnings = append(o.Warnings, warning)
	}
	return o, err
}

// where are the namespaces that were looked into, as a person says it.
func (r *reader) where() string {
	if r.AllNamespaces {
		return "any namespace"
	}
	return "namespace " + r.Namespace
}

// configMaps are the policies: all of them, or the one of the name.
func (r *reader) configMaps(ctx context.Context) (map[types.NamespacedName]*corev1.ConfigMap, error) {
	all := make(map[types.NamespacedName]*corev1.ConfigMap)
	for _, selector := range r.kinds().Selectors() {
		options := metav1.ListOptions{LabelSelector: selector.String()}
		if r.Name != "" {
			options.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, r.Name).String()
		}
		err := each(ctx, options, r.client.ConfigMaps(r.namespace()).List, func(cm *corev1.ConfigMap) {
			all[types.NamespacedName{Namespace: cm.Namespace, Name: cm.Name}] = cm
		})
		if err != nil {
			return nil, fmt.Errorf("listing ConfigMaps in %s: %w", r.where(), err)
		}
	}
	return all, nil
}

// newest are the newest revisions of the policies, and warnings of what may not be
// read or nobody understands.
func (r *reader) newest(ctx context.Context) (map[types.NamespacedName]configmap.Revision, []string, error) {
	newest := make(map[types.NamespacedName]configmap.Revision)
	var warnings []string
	err := r.revisions(ctx, func(revision configmap.Revision, _ *appsv1.ControllerRevision, err error) {
		name := types.NamespacedName{Namespace: revision.Namespace, Name: revision.Name}
		switch {
		case err != nil:
			warnings = append(warnings, "passed over, as kube-rego does: "+err.Error())
		case r.Name != "" && r.Name != revision.Name || !r.AllNamespaces && r.Namespace != revision.Namespace:
		case newest[name].Name == "" || newest[name].Number < revision.Number:
			newest[name] = revision
		}
	})
	if apierrors.IsForbidden(err) {
		return nil, []string{"revisions are not shown: " + err.Error()}, nil
	}
	slices.Sort(warnings)
	return newest, warnings, err
}

// revisions hands all revisions to do, in no order: each with the object that it is
// of, or with the error why it cannot be read.
func (r *reader) revisions(ctx context.Context, do func(configmap.Revision, *appsv1.ControllerRevision, error)) error {
	options := metav1.ListOptions{LabelSelector: labels.Set{configmap.ManagedByLabel: configmap.ManagedBy}.String()}
	err := each(ctx, options, r.client.ControllerRevisions(r.ReplicaNamespace).List, func(object *appsv1.ControllerRevision) {
		revision, err := configmap.ParseRevision(object)
		do(revision, object, err)
	})
	if err != nil {
		return fmt.Errorf("listing ControllerRevisions: %w", err)
	}
	return nil
}

// lingering is the row for a revision whose ConfigMap was not among the policies:
// none if nothing of it is in force.
func (r *reader) lingering(ctx context.Context, newest configmap.Revision) ([]ConfigMap, error) {
	if len(newest.Modules) == 0 {
		return nil, nil
	}
	cm, err := r.client.ConfigMaps(newest.Namespace).Get(ctx, newest.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return []ConfigMap{r.removed(nil, newest)}, nil
	case err != nil:
		return nil, fmt.Errorf("reading ConfigMap %s/%s: %w", newest.Namespace, newest.Name, err)
	case r.isPolicy(cm): // it came between the two lists
		return []ConfigMap{r.describe(cm, newest)}, nil
	}
	return []ConfigMap{r.removed(cm, newest)}, nil
}

func (r *reader) isPolicy(cm *corev1.ConfigMap) bool {
	return r.kinds().Match(cm.Labels)
}

// whyNot is why there is nothing to tell of the ConfigMap of the name; nil if it is
// a policy.
func (r *reader) whyNot(ctx context.Context) error {
	cm, err := r.client.ConfigMaps(r.Namespace).Get(ctx, r.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Errorf("ConfigMap %s/%s does not exist", r.Namespace, r.Name)
	case err != nil:
		return fmt.Errorf("reading ConfigMap %s/%s: %w", r.Namespace, r.Name, err)
	case !r.isPolicy(cm):
		return fmt.Errorf("ConfigMap %s/%s is no policy and no data: it has neither the label %s nor %s", r.Namespace, r.Name, r.kinds().Policy, r.kinds().Data)
	}
	return nil
}

// replicas are those that have a Lease; nil and a warning if Leases may not be
// read.
func (r *reader) replicas(ctx context.Context, now time.Time) ([]Replica, string, error) {
	all := []Replica{}
	options := metav1.ListOptions{LabelSelector: status.ReplicaSelector()}
	err := each(ctx, options, r.client.Leases(r.ReplicaNamespace).List, func(lease *coordinationv1.Lease) {
		if lease.Spec.RenewTime == nil {
			return
		}
		renewed := lease.Spec.RenewTime.Time
		if replica, ok := status.ReplicaOf(lease, now.Sub(renewed)); ok {
			all = append(all, Replica{Identity: replica.Identity, Gone: replica.Gone, Renewed: renewed, Fingerprint: replica.InForce})
		}
	})
	if apierrors.IsForbidden(err) {
		return nil, "replicas are not shown: " + err.Error(), nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("listing Leases in namespace %s: %w", r.ReplicaNamespace, err)
	}
	slices.SortFunc(all, func(a, b Replica) int { return cmp.Compare(a.Identity, b.Identity) })
	return all, "", nil
}

// each lists objects page by page, and hands each to do.
func each[Object any, List runtime.Object](
	ctx context.Context, options metav1.ListOptions,
	list func(context.Context, metav1.ListOptions) (List, error), do func(*Object),
) error {
	page := func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
		return list(ctx, options)
	}
	return pager.New(page).EachListItem(ctx, options, func(item runtime.Object) error {
		object, ok := any(item).(*Object)
		if !ok {
			return fmt.Errorf("got a %T", item)
		}
		do(object)
		return nil
	})
}
