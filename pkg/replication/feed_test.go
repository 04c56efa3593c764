package replication

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// feeding is a feed, and what becomes of it.
type feeding struct {
	*feed
	data *writtenDown
	news int // how often its state changed
	// other and unknown are what discovery says.
	other   Resource
	unknown error
}

func newFeeding(t *testing.T) *feeding {
	t.Helper()
	resource, err := parseResource("apps/v1/deployments", true, []string{"kubernetes"})
	if err != nil {
		t.Fatal(err)
	}
	f := &feeding{data: &writtenDown{}}
	f.feed = &feed{
		Resource: resource, batches: &batcher{data: f.data}, data: f.data, state: policy.ResourceLoading, reason: waiting,
		changed:   func(*feed) { f.news++ },
		elsewhere: func(Resource) (Resource, error) { return f.other, f.unknown },
	}
	return f
}

// watches is what happens when the API server answers a watch, one for the first list
// or a later one.
func (f *feeding) watches(err error, first bool) {
	f.watched(err)
	if !first || err == nil {
		f.heard(context.Background(), err)
	}
}

func (f *feeding) lists(err error) { f.heard(context.Background(), err) }

func (f *feeding) gets(t *testing.T, objects ...any) {
	t.Helper()
	if err := f.Replace(objects, ""); err != nil {
		t.Error(err)
	}
}

func deployment(namespace, name string) *object {
	return &object{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
}

func TestWhatAFeedKnows(t *testing.T) {
	deployments := schema.GroupResource{Group: "apps", Resource: "deployments"}
	forbidden := func(verb string) error {
		return apierrors.NewForbidden(deployments, "", fmt.Errorf("cannot %s", verb))
	}
	notFound := apierrors.NewNotFound(deployments, "")
	for _, test := range []struct {
		name   string
		play   func(*testing.T, *feeding)
		state  policy.ResourceState
		reason string
		news   int
		writes int // to data
	}{
		{"the first list is loaded", func(t *testing.T, f *feeding) {
			f.watches(nil, true)
			f.gets(t, deployment("n", "a"))
		}, policy.ResourceLoaded, "", 1, 1},
		{"what is forbidden says so once, however often it is tried", func(_ *testing.T, f *feeding) {
			for range 5 {
				f.watches(forbidden("watch"), true)
				f.lists(forbidden("list"))
			}
		}, policy.ResourceFailed, forbidden("list").Error(), 1, 0},
		{"what may be listed and not watched is not known", func(t *testing.T, f *feeding) {
			for range 3 {
				f.watches(forbidden("watch"), true)
				f.lists(nil)
				f.gets(t)
				f.watches(forbidden("watch"), false)
			}
		}, policy.ResourceFailed, forbidden("watch").Error(), 1, 3},
		{"an API server that does not stream the first list", func(t *testing.T, f *feeding) {
			f.watches(apierrors.NewInvalid(schema.GroupKind{}, "", nil), true)
			f.lists(nil)
			f.gets(t)
			f.watches(nil, false)
		}, policy.ResourceLoaded, "", 1, 1},
		{"what does not exist has no objects", func(_ *testing.T, f *feeding) {
			f.watches(notFound, true)
			f.lists(notFound)
		}, policy.ResourceMissing, "the API server knows no resource apps/v1/deployments", 1, 1},
		{"what comes to exist is waited for", func(_ *testing.T, f *feeding) {
			f.lists(notFound)
			f.watches(nil, true)
		}, policy.ResourceLoading, waiting, 2, 1},
		{"what is there in another version is not gone", func(t *testing.T, f *feeding) {
			f.gets(t, deployment("n", "a"))
			f.other = Resource{GroupVersionResource: deployments.WithVersion("v2")}
			f.lists(notFound)
		}, policy.ResourceFailed, "the API server has it as apps/v2/deployments now", 2, 1},
		{"nobody can say whether it is there in another version", func(t *testing.T, f *feeding) {
			f.gets(t, deployment("n", "a"))
			f.unknown = errors.New("dial tcp")
			f.lists(notFound)
		}, policy.ResourceFailed, "the API server does not answer", 2, 1},
		{"an API server that is away leaves what was loaded", func(t *testing.T, f *feeding) {
			f.gets(t)
			for port := range 5 {
				f.watches(fmt.Errorf("read tcp 127.0.0.1:%d: connection reset", port), false)
			}
		}, policy.ResourceLoaded, "the API server does not answer", 2, 1},
		{"and is back", func(t *testing.T, f *feeding) {
			f.gets(t)
			f.watches(errors.New("connection reset"), false)
			f.watches(nil, false)
		}, policy.ResourceLoaded, "", 3, 1},
		{"a right that is given back", func(t *testing.T, f *feeding) {
			f.watches(forbidden("watch"), true)
			f.lists(forbidden("list"))
			f.watches(nil, true)
			f.gets(t)
		}, policy.ResourceLoaded, "", 2, 1},
		{"an object of another scope is told", func(t *testing.T, f *feeding) {
			if err := f.Replace([]any{deployment("", "a")}, ""); err == nil {
				t.Error("it was taken")
			}
		}, policy.ResourceFailed, "replicating apps/v1/deployments: its objects have no namespace", 1, 0},
		{"what is stopped writes nothing any more", func(t *testing.T, f *feeding) {
			f.gets(t)
			f.end()
			if err := errors.Join(f.Add(deployment("n", "a")), f.Update(deployment("n", "a")), f.Delete(deployment("n", "a"))); err != nil {
				t.Error(err)
			}
			f.batches.flush()
		}, policy.ResourceLoaded, "", 1, 1},
		{"nothing is heard of one whose time is over", func(_ *testing.T, f *feeding) {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			f.heard(ctx, notFound)
		}, policy.ResourceLoading, waiting, 0, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFeeding(t)
			test.play(t, f)
			if f.state != test.state || f.reason != test.reason {
				t.Errorf("it is %s, %q; want %s, %q", f.state, f.reason, test.state, test.reason)
			}
			if writes := len(slices.DeleteFunc(f.data.all(), func(path string) bool { return path != "kubernetes" })); f.news != test.news || writes != test.writes {
				t.Errorf("there were %d news and %d writes, want %d and %d", f.news, writes, test.news, test.writes)
			}
		})
	}
}

func TestResolve(t *testing.T) {
	resource := func(text string) Resource {
		r, err := parseResource(text, true, nil)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	resolver := NewResolver(resource("metrics.k8s.io/v1beta1/pods"), resource("v1/pods"), resource("networking.internal.knative.dev/v1alpha1/ingresses"),
		resource("networking.k8s.io/v1/ingresses"), resource("a.example.com/v1/widgets"), resource("b.example.com/v1/widgets"), resource("a.example.com/v2/gadgets"))
	for name, want := range map[string]string{
		"pods": "v1/pods", "ingresses": "networking.k8s.io/v1/ingresses", "gadgets": "a.example.com/v2/gadgets", "widgets": "failed", "nothing": "missing",
	} {
		got, state, err := resolver.Resolve(name)
		if err != nil && string(state) != want || err == nil && got.String() != want {
			t.Errorf("%s: got %s, %s, %v; want %s", name, got, state, err, want)
		}
	}
	resolver.failed = errors.New("a group does not answer")
	if _, state, _ := resolver.Resolve("nothing"); state != policy.ResourceFailed {
		t.Errorf("what a silent group may have is %s", state)
	}
	if other := resolver.other(resource("a.example.com/v1/gadgets")); other.String() != "a.example.com/v2/gadgets" {
		t.Errorf("the other version is %s", other)
	}
	if other := resolver.other(resource("networking.k8s.io/v1/ingresses")); other.Resource != "" {
		t.Errorf("the other version is %s", other)
	}
}
