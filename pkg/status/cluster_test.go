package status

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	typedappsv1 "k8s.io/client-go/kubernetes/typed/apps/v1"
	typedcoordinationv1 "k8s.io/client-go/kubernetes/typed/coordination/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/metadata"

	"github.com/kube-rego/kube-rego/pkg/configmap"
	"github.com/kube-rego/kube-rego/pkg/internal/apitest"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

const (
	annotation = "openpolicyagent.org/policy-status"
	label      = "openpolicyagent.org/policy"
)

var kinds = configmap.NewKinds(label, "rego", "openpolicyagent.org/data", "opa")

// cluster is an API server, in a bubble, and the replicas that talk to it.
type cluster struct {
	*apitest.Server
	mu  sync.Mutex
	cut map[string]bool // the identities of replicas that have no connection
}

var errCut = errors.New("dial tcp: connection refused")

func newCluster() *cluster {
	c := &cluster{cut: make(map[string]bool), Server: apitest.New(
		apitest.Builtin("v1/configmaps", "ConfigMap", true),
		apitest.Builtin("v1/events", "Event", true),
		apitest.Builtin("apps/v1/controllerrevisions", "ControllerRevision", true),
		apitest.Builtin("coordination.k8s.io/v1/leases", "Lease", true),
	)}
	c.refuse(nil)
	return c
}

// refuse has requests refused as answer says, beside those of replicas that are cut off.
func (c *cluster) refuse(answer func(apitest.Request) error) {
	c.Intercept(func(r apitest.Request) error {
		c.mu.Lock()
		cut := c.cut[r.Client]
		c.mu.Unlock()
		if cut {
			return errCut
		}
		if answer != nil {
			return answer(r)
		}
		return nil
	})
}

// cutOff takes the connection from a replica, or gives it back. What it watches ends.
func (c *cluster) cutOff(identity string, cut bool) {
	c.mu.Lock()
	c.cut[identity] = cut
	c.mu.Unlock()
	c.HangUp()
}

// policy has somebody create a ConfigMap that is a policy, or edit it.
func (c *cluster) policy(name string, change func(*corev1.ConfigMap)) {
	cm := apitest.Get[corev1.ConfigMap](c.Server, "configmaps", "opa", name)
	if cm == nil {
		cm = &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "opa", Name: name, Labels: map[string]string{label: "rego"}}}
	}
	if change != nil {
		change(cm)
	}
	c.Put("configmaps", cm)
}

// says is what the annotation on a ConfigMap says; empty if there is none.
func (c *cluster) says(name string) string {
	if cm := apitest.Get[corev1.ConfigMap](c.Server, "configmaps", "opa", name); cm != nil {
		return cm.Annotations[annotation]
	}
	return ""
}

// saysNow is says when nothing is on its way any more.
func (c *cluster) saysNow(name string) string {
	synctest.Wait()
	return c.says(name)
}

// revisions are the numbers of those of a ConfigMap, in their order.
func (c *cluster) revisions(name string) []int64 {
	var numbers []int64
	for _, r := range c.history().Of(types.NamespacedName{Namespace: "opa", Name: name}) {
		numbers = append(numbers, r.Number)
	}
	slices.Sort(numbers)
	return numbers
}

func (c *cluster) history() *configmap.History {
	var all []configmap.Revision
	for _, o := range apitest.List[appsv1.ControllerRevision](c.Server, "controllerrevisions.apps") {
		r, err := configmap.ParseRevision(&o)
		if err != nil {
			panic(err)
		}
		all = append(all, r)
	}
	return configmap.NewHistory(all)
}

// events are the reasons and messages of those on a ConfigMap, in their order.
func (c *cluster) events(name string) []string {
	synctest.Wait()
	var all []string
	for _, e := range apitest.List[corev1.Event](c.Server, "events") {
		if e.InvolvedObject.Name == name {
			all = append(all, e.Reason+": "+e.Message)
		}
	}
	return all
}

// lease is the Lease of a replica; nil if there is none.
func (c *cluster) lease(identity string) *coordinationv1.Lease {
	for _, l := range apitest.List[coordinationv1.Lease](c.Server, "leases.coordination.k8s.io") {
		if l.Spec.HolderIdentity != nil && *l.Spec.HolderIdentity == identity && l.Name != leaseName {
			return &l
		}
	}
	return nil
}

// written are the writes of a replica, but for those to Leases.
func (c *cluster) written(identity string) []string {
	return c.Requests(func(r apitest.Request) bool {
		return r.Client == identity && r.Writes() && !strings.HasPrefix(r.Resource, "leases.")
	})
}

// after is how long it takes until something is so. It looks whenever the cluster has
// changed, and each second.
func (c *cluster) after(t *testing.T, what string, isSo func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	for {
		changed := c.Changed()
		synctest.Wait()
		switch took := time.Since(start); {
		case isSo():
			return took
		case took > 20*time.Minute:
			t.Fatalf("after %s still not: %s", took, what)
		}
		select {
		case <-changed:
		case <-time.After(time.Second):
		}
	}
}

// saysOK is how long it takes until the annotation says ok.
func (c *cluster) saysOK(t *testing.T, name string) time.Duration {
	t.Helper()
	return c.after(t, name+" says ok", func() bool { return c.says(name) == configmap.OK })
}

// module is the policy of a ConfigMap, in a version of its text.
func module(name, text string) policy.Module {
	return policy.Module{ID: policy.ID{Namespace: "opa", Name: name, Key: "main"}, Kind: policy.Rego, Source: text}
}

func nameOf(m policy.Module) types.NamespacedName { return configmap.NameOf(m.ID) }

// replica is one process: what it has in force the test says. It publishes that, as the
// daemon does, whenever something has changed in the cluster.
type replica struct {
	*cluster
	*Replicas
	writer   *Writer
	identity string
	looks    chan struct{}
	stop     func() // in good order

	mu      sync.Mutex
	inForce policy.Set
	held    []policy.Status
}

// start starts a replica that has these modules in force, until it is stopped or the test
// ends.
func (c *cluster) start(t *testing.T, identity string, inForce ...policy.Module) *replica {
	t.Helper()
	r := c.newReplica(t, identity)
	r.enforces(inForce...)
	r.run(t)
	return r
}

// run runs a replica until it is stopped or the test ends.
func (r *replica) run(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := r.Run(ctx, r.look); err != nil {
			t.Error(err)
		}
	})
	running.Go(func() {
		if err := r.writer.Run(ctx, r.look); err != nil {
			t.Error(err)
		}
	})
	running.Go(func() { r.publish(ctx) })
	r.stop = func() { cancel(); running.Wait() }
	t.Cleanup(r.stop)
	synctest.Wait()
}

// newReplica makes the parts of a replica. None of them runs yet.
func (c *cluster) newReplica(t *testing.T, identity string) *replica {
	t.Helper()
	r := &replica{cluster: c, identity: identity, looks: make(chan struct{}, 1)}
	config := c.Config()
	config.UserAgent = identity
	core, errCore := typedcorev1.NewForConfig(config)
	apps, errApps := typedappsv1.NewForConfig(config)
	leases, errLeases := typedcoordinationv1.NewForConfig(config)
	objects, errMetadata := metadata.NewForConfig(config)
	if err := errors.Join(errCore, errApps, errLeases, errMetadata); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	r.Replicas = NewReplicas(ReplicasConfig{Leases: leases, Namespace: "opa", Identity: identity, Log: log})
	r.writer = NewWriter(WriterConfig{
		ConfigMaps: core, Revisions: apps, Leases: leases, Events: core, Metadata: objects,
		Annotation: annotation, Namespaces: []string{metav1.NamespaceAll}, Kinds: kinds,
		Namespace: "opa", Identity: identity, Replicas: r.Replicas, Log: log,
	})
	return r
}

// look has the replica look again.
func (r *replica) look() {
	select {
	case r.looks <- struct{}{}:
	default:
	}
}

// enforces puts modules into force, and nothing else.
func (r *replica) enforces(modules ...policy.Module) {
	r.mu.Lock()
	r.inForce = policy.NewSet(modules...)
	r.mu.Unlock()
	r.look()
}

// holds says which changes are held.
func (r *replica) holds(statuses ...policy.Status) {
	r.mu.Lock()
	r.held = statuses
	r.mu.Unlock()
	r.look()
}

// publish says what is in force whenever there is something to look at.
func (r *replica) publish(ctx context.Context) {
	for {
		changed := r.Changed()
		state := r.state()
		r.Publish(state.Report.Fingerprint, fmt.Sprint(len(state.ConfigMaps)))
		r.writer.Publish(state)
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-r.looks:
		}
	}
}

// state is what there is to tell.
func (r *replica) state() State {
	state := State{History: r.history()}
	for _, cm := range apitest.List[corev1.ConfigMap](r.Server, "configmaps") {
		if kinds.Match(cm.Labels) {
			state.ConfigMaps = append(state.ConfigMaps, &cm)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	state.Keep = r.inForce
	state.Report = policy.Report{Fingerprint: r.inForce.Fingerprint(), Modules: slices.Clone(r.held)}
	for id := range r.inForce {
		if !slices.ContainsFunc(r.held, func(s policy.Status) bool { return s.ID == id }) {
			state.Report.Modules = append(state.Report.Modules, policy.Status{ID: id, InForce: policy.Current})
		}
	}
	return state
}

// broken is the status of a policy whose edit does not compile.
func broken(name string, inForce policy.InForce) policy.Status {
	return policy.Status{ID: module(name, "").ID, InForce: inForce, Problems: []policy.Problem{{Code: "rego_parse_error", Message: "unexpected }", Row: 1, Col: 2}}}
}
