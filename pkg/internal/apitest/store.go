package apitest

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/json"
)

// key tells objects apart: a resource such as deployments.apps, namespace and name.
type key struct{ resource, namespace, name string }

// store has the objects and all that has happened to them. Objects in it are never
// changed.
type store struct {
	objects map[key]*unstructured.Unstructured
	version uint64 // of the last change
	changes []change
	// oldest is the version that one can still go on from.
	oldest uint64
}

// change is one thing that has happened. Either of before and after may be nil.
type change struct {
	version       uint64
	resource      string
	before, after *unstructured.Unstructured
}

// firstVersion is that of an empty store; no two tests shall agree by being near zero.
const firstVersion = 1000

func newStore() store {
	return store{objects: make(map[key]*unstructured.Unstructured), version: firstVersion, oldest: firstVersion}
}

// do answers a call about objects.
func (s *store) do(c call, body []byte) (any, error) {
	k := key{c.Resource, c.Namespace, c.Name}
	old := s.objects[k]
	gr := c.resource.GroupResource()
	switch c.Verb {
	case "list":
		return s.page(c)
	case "watch":
		return s.watch(c)
	case "create":
		o, err := read(body)
		if err != nil {
			return nil, err
		}
		if k.name = o.GetName(); s.objects[k] != nil {
			return nil, apierrors.NewAlreadyExists(gr, k.name)
		}
		return shown(c, s.set(k, o)), nil
	}
	if old == nil && c.Verb == "update" && c.Resource == "leases.coordination.k8s.io" {
		return nil, conflict(gr, k.name) // the real one would create it, but for its version
	}
	if old == nil {
		return nil, apierrors.NewNotFound(gr, k.name)
	}
	switch c.Verb {
	case "get":
		return shown(c, old), nil
	case "update":
		o, err := read(body)
		if err != nil {
			return nil, err
		}
		return s.replace(c, k, o)
	case "patch":
		var patch map[string]any
		if err := json.Unmarshal(body, &patch); err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
		o := old.DeepCopy()
		merge(o.Object, patch)
		return s.replace(c, k, o)
	}
	s.set(k, nil)
	return metav1.Status{Status: metav1.StatusSuccess}, nil
}

// replace puts an object in the place of one that is there, unless that is another
// version by now.
func (s *store) replace(c call, k key, o *unstructured.Unstructured) (any, error) {
	old := s.objects[k]
	if v := o.GetResourceVersion(); v != "" && v != old.GetResourceVersion() {
		return nil, conflict(c.resource.GroupResource(), k.name)
	}
	return shown(c, s.set(k, o)), nil
}

func conflict(gr schema.GroupResource, name string) error {
	return apierrors.NewConflict(gr, name, fmt.Errorf("the object has been modified; please apply your changes to the latest version and try again"))
}

func read(body []byte) (*unstructured.Unstructured, error) {
	o := &unstructured.Unstructured{}
	if err := json.Unmarshal(body, &o.Object); err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	return o, nil
}

// merge applies a merge patch (RFC 7386). Strategic ones are taken for such: on what has
// no lists it is the same.
func merge(into, patch map[string]any) {
	for name, value := range patch {
		inner, isMap := value.(map[string]any)
		old, wasMap := into[name].(map[string]any)
		switch {
		case value == nil:
			delete(into, name)
		case isMap && wasMap:
			merge(old, inner)
		case isMap:
			fresh := make(map[string]any)
			merge(fresh, inner)
			into[name] = fresh
		default:
			into[name] = value
		}
	}
}

// put is set for an object of any type.
func (s *store) put(resource string, object any) error {
	text, err := json.Marshal(object)
	if err != nil {
		return err
	}
	o, err := read(text)
	if err != nil {
		return err
	}
	s.set(key{resource, o.GetNamespace(), o.GetName()}, o)
	return nil
}

func (s *store) remove(resource, namespace, name string) { s.set(key{resource, namespace, name}, nil) }

// set stores an object, or removes it if that is nil. Storing what is there already
// changes nothing.
func (s *store) set(k key, o *unstructured.Unstructured) *unstructured.Unstructured {
	old := s.objects[k]
	if o != nil {
		o = o.DeepCopy()
		unstructured.RemoveNestedField(o.Object, "apiVersion")
		unstructured.RemoveNestedField(o.Object, "kind")
		o.SetNamespace(k.namespace)
		if old != nil {
			o.SetUID(old.GetUID())
			o.SetCreationTimestamp(old.GetCreationTimestamp())
			o.SetResourceVersion(old.GetResourceVersion())
			if reflect.DeepEqual(o.Object, old.Object) {
				return old
			}
		}
	}
	if o == nil && old == nil {
		return nil
	}
	s.version++
	if o == nil {
		delete(s.objects, k)
	} else {
		if old == nil {
			o.SetUID(types.UID("uid-" + strconv.FormatUint(s.version, 10)))
			if created := o.GetCreationTimestamp(); created.IsZero() {
				o.SetCreationTimestamp(metav1.NewTime(time.Now()))
			}
		}
		o.SetResourceVersion(strconv.FormatUint(s.version, 10))
		s.objects[k] = o
	}
	s.changes = append(s.changes, change{s.version, k.resource, old, o})
	return o
}

// expire forgets all changes.
func (s *store) expire() {
	s.version++
	s.oldest, s.changes = s.version, nil
}

// list is all objects of a resource, by namespace and name.
func (s *store) list(resource string) []*unstructured.Unstructured {
	var keys []key
	for k := range maps.Keys(s.objects) {
		if k.resource == resource {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b key) int {
		return cmp.Or(cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.name, b.name))
	})
	var all []*unstructured.Unstructured
	for _, k := range keys {
		all = append(all, s.objects[k])
	}
	return all
}

// shown is an object as the server sends it.
func shown(c call, o *unstructured.Unstructured) map[string]any {
	o = o.DeepCopy()
	o.SetAPIVersion(c.resource.GroupVersion().String())
	o.SetKind(c.resource.Kind)
	return o.Object
}

// page is a list of what a call selects, or the part of it that was asked for.
func (s *store) page(c call) (any, error) {
	selected, err := selectorOf(c)
	if err != nil {
		return nil, err
	}
	items := []any{}
	for _, o := range s.list(c.Resource) {
		if selected(o) {
			items = append(items, shown(c, o))
		}
	}
	metadata := map[string]any{"resourceVersion": strconv.FormatUint(s.version, 10)}
	from, _ := strconv.Atoi(c.query.Get("continue"))
	limit, _ := strconv.Atoi(c.query.Get("limit"))
	items = items[min(from, len(items)):]
	if limit > 0 && len(items) > limit {
		items = items[:limit]
		metadata["continue"] = strconv.Itoa(from + limit)
	}
	return map[string]any{
		"apiVersion": c.resource.GroupVersion().String(), "kind": c.resource.Kind + "List",
		"metadata": metadata, "items": items,
	}, nil
}

// selectorOf reports whether an object is one that a list or a watch asks for.
func selectorOf(c call) (func(*unstructured.Unstructured) bool, error) {
	byLabel, err := labels.Parse(c.query.Get("labelSelector"))
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	byField, err := fields.ParseSelector(c.query.Get("fieldSelector"))
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	return func(o *unstructured.Unstructured) bool {
		return o != nil && (c.Namespace == "" || o.GetNamespace() == c.Namespace) && byLabel.Matches(labels.Set(o.GetLabels())) &&
			byField.Matches(fields.Set{"metadata.name": o.GetName(), "metadata.namespace": o.GetNamespace()})
	}, nil
}
