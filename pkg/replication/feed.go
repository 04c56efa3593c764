package replication

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/kube-rego/kube-rego/pkg/data"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

const (
	// firstRetry and lastRetry bound how often a list is tried again that failed:
	// somebody waits for a resource that was just installed, or a right that was just
	// given.
	firstRetry = 500 * time.Millisecond
	lastRetry  = 5 * time.Second
	// retrySteps are more than it takes from the one to the other.
	retrySteps = 10
)

// feed keeps data as one resource is in the cluster. It is the store of a reflector,
// and keeps no object itself.
type feed struct {
	Resource
	ignore  []string // namespaces
	client  rest.Interface
	data    Data
	batches *batcher
	changed func(f *feed) // is called when the state has changed; must not block
	// elsewhere is the version in which the API server has the resource, if another.
	elsewhere func(Resource) (Resource, error)

	mu     sync.Mutex
	state  policy.ResourceState
	reason string
	denied error // why it may not be watched; nil if it may, as far as one knows
	moved  bool  // the API server has it in another version now
	ended  bool  // data is no longer ours
}

// run follows the resource until ctx ends.
func (f *feed) run(ctx context.Context) {
	source := cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			list, err := f.get(f.options(o)).Do(ctx).Get()
			f.heard(ctx, err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.Watch = true
			w, err := f.get(f.options(o)).Watch(ctx)
			f.watched(err)
			if o.SendInitialEvents == nil || err == nil {
				f.heard(ctx, err) // else a list comes next, which says it better
			}
			return w, err
		},
	}, f.client)
	reflector := cache.NewReflectorWithOptions(source, &object{}, f, cache.ReflectorOptions{
		Name:            f.String(),
		TypeDescription: f.String(),
		Backoff:         &wait.Backoff{Duration: firstRetry, Cap: lastRetry, Steps: retrySteps, Factor: 2, Jitter: 0.2},
	})
	reflector.RunWithContext(ctx)
}

// parameters are how options are written into a request, for all groups alike.
var parameters = func() runtime.ParameterCodec {
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	return runtime.NewParameterCodec(scheme)
}()

// get is a request for the objects.
func (f *feed) get(o metav1.ListOptions) *rest.Request {
	path := []string{"apis", f.Group, f.Version, f.GroupVersionResource.Resource}
	if f.Group == "" {
		path = []string{"api", f.Version, f.GroupVersionResource.Resource}
	}
	return f.client.Get().AbsPath(path...).SpecificallyVersionedParams(&o, parameters, schema.GroupVersion{Version: "v1"})
}

// options leave out the namespaces that are ignored: their objects never cross the
// network.
func (f *feed) options(o metav1.ListOptions) metav1.ListOptions {
	if !f.Namespaced {
		return o
	}
	var others []fields.Selector
	for _, namespace := range f.ignore {
		others = append(others, fields.OneTermNotEqualSelector("metadata.namespace", namespace))
	}
	o.FieldSelector = fields.AndSelectors(others...).String()
	return o
}

// watched takes note of whether the resource may be watched: one that may only be listed
// is never up to date.
func (f *feed) watched(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case err == nil:
		f.denied = nil
	case isDenied(err):
		f.denied = err
	}
}

func isDenied(err error) bool { return apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) }

// heard takes note of what the API server answers.
func (f *feed) heard(ctx context.Context, err error) {
	switch {
	case ctx.Err() != nil:
	case err == nil:
		f.become(func() {
			switch f.state {
			case policy.ResourceLoaded:
				f.reason = ""
			case policy.ResourceMissing:
				f.state, f.reason = policy.ResourceLoading, waiting
			case policy.ResourceLoading, policy.ResourceFailed: // until the list is there
			}
		})
	case apierrors.IsNotFound(err), apierrors.IsMethodNotSupported(err):
		f.absent()
	case isDenied(err):
		f.become(func() { f.state, f.reason = policy.ResourceFailed, err.Error() })
	case errors.Is(err, io.EOF), apierrors.IsResourceExpired(err), apierrors.IsGone(err):
		// A watch that ends as watches do.
	default:
		f.become(func() {
			if f.reason = reasonOf(err); f.state != policy.ResourceLoaded {
				f.state = policy.ResourceFailed
			}
		})
	}
}

// absent takes note that there is no such resource, so that there are no objects of it.
// If it is there in another version, there may be.
func (f *feed) absent() {
	other, err := f.elsewhere(f.Resource)
	switch {
	case err != nil:
		f.become(func() { f.state, f.reason = policy.ResourceFailed, reasonOf(err) })
	case other.Resource != "":
		f.become(func() {
			f.state, f.reason, f.moved = policy.ResourceFailed, fmt.Sprintf("the API server has it as %s now", other), true
		})
	default:
		f.replace(nil)
		f.become(func() { f.state, f.reason = policy.ResourceMissing, "the API server knows no resource "+f.String() })
	}
}

func (f *feed) hasMoved() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.moved
}

// reasonOf is the same for the same trouble: errors of a connection name its ports.
func reasonOf(err error) string {
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		return err.Error()
	}
	return "the API server does not answer"
}

const waiting = "waiting for the first list"

// become changes the state, and says so if that is news.
func (f *feed) become(change func()) {
	f.mu.Lock()
	state, reason := f.state, f.reason
	change()
	news := f.state != state || f.reason != reason
	f.mu.Unlock()
	if news {
		f.changed(f)
	}
}

// counted is status with the number of objects, which takes a look at each namespace.
func (f *feed) counted() policy.Resource {
	s := f.status()
	s.Objects = f.data.Documents(f.Path)
	return s
}

// status is what is known of the resource, but for the number of its objects.
func (f *feed) status() policy.Resource {
	f.mu.Lock()
	defer f.mu.Unlock()
	return policy.Resource{
		Name:     f.Path[len(f.Path)-1],
		Resource: f.String(),
		Path:     "data." + strings.Join(f.Path, "."),
		State:    f.state,
		Reason:   f.reason,
	}
}

// pathOf is where an object is below the resource.
func (f *feed) pathOf(namespace, name string) ([]string, error) {
	switch {
	case !f.Namespaced && namespace == "":
		return []string{name}, nil
	case f.Namespaced && namespace != "":
		return []string{namespace, name}, nil
	case f.Namespaced:
		return nil, fmt.Errorf("replicating %s: its objects have no namespace", f)
	}
	return nil, fmt.Errorf("replicating %s: its objects have namespaces", f)
}

// changeOf is the change that puts an object into data below the resource. An error is
// also our state: the reflector goes on without the object, and nobody else would know.
func (f *feed) changeOf(o any) (data.Change, error) {
	item, ok := o.(*object)
	if !ok {
		return data.Change{}, fmt.Errorf("replicating %s: got a %T", f, o)
	}
	path, err := f.pathOf(item.Namespace, item.Name)
	if err != nil {
		f.become(func() { f.state, f.reason = policy.ResourceFailed, err.Error() })
		return data.Change{}, err
	}
	return data.Change{Path: path, Content: item.content}, nil
}

// Add puts an object into data.
func (f *feed) Add(o any) error { return f.Update(o) }

// Update puts an object into data, in the place of what is there of it.
func (f *feed) Update(o any) error {
	change, err := f.changeOf(o)
	if err != nil {
		return err
	}
	change.Path = slices.Concat(f.Path, change.Path)
	f.emit(change)
	return nil
}

// Delete takes an object out of data.
func (f *feed) Delete(o any) error {
	change, err := f.changeOf(o)
	if err != nil {
		return err
	}
	f.emit(data.Change{Path: slices.Concat(f.Path, change.Path)})
	return nil
}

// Replace makes data hold these objects and no others, all at once.
func (f *feed) Replace(objects []any, _ string) error {
	changes := make([]data.Change, 0, len(objects))
	for _, o := range objects {
		change, err := f.changeOf(o)
		if err != nil {
			return err
		}
		changes = append(changes, change)
	}
	f.replace(changes)
	f.become(func() {
		f.state, f.reason = policy.ResourceLoaded, ""
		if f.denied != nil {
			f.state, f.reason = policy.ResourceFailed, f.denied.Error()
		}
	})
	return nil
}

func (f *feed) replace(changes []data.Change) {
	f.emit(data.Change{Path: f.Path, Content: data.NewCollection(changes...)})
	f.batches.flush()
}

// emit changes data, unless that is no longer ours: what is left of a reflector that was
// stopped may still call.
func (f *feed) emit(c data.Change) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.ended {
		f.batches.add(c)
	}
}

// end is called when another may write to our path.
func (f *feed) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = true
}

// Resync has nothing to do: nothing here changes by itself.
func (f *feed) Resync() error { return nil }
