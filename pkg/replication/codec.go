package replication

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/valyala/fastjson"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	serializer "k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/client-go/rest"

	"github.com/kube-rego/kube-rego/pkg/data"
)

// object is an object of the cluster as it comes from the API server: of its metadata what
// a reflector looks at, and all of it as a content for data. client-go's unstructured
// objects are parsed three times, into maps that are thrown away at once.
type object struct {
	metav1.TypeMeta
	metav1.ObjectMeta
	content data.Content
}

// DeepCopyObject is a copy: the content never changes.
func (o *object) DeepCopyObject() runtime.Object {
	c := *o
	return &c
}

// objectList is a list of them.
type objectList struct {
	metav1.TypeMeta
	metav1.ListMeta
	Items []runtime.Object
}

// DeepCopyObject is a copy; its items are the same.
func (l *objectList) DeepCopyObject() runtime.Object {
	c := *l
	return &c
}

// newClient makes a client for objects of any kind.
func newClient(config *rest.Config) (rest.Interface, error) {
	config = rest.CopyConfig(config)
	config.ContentConfig = rest.ContentConfig{
		AcceptContentTypes: runtime.ContentTypeJSON, ContentType: runtime.ContentTypeJSON,
		GroupVersion: &schema.GroupVersion{}, NegotiatedSerializer: codec{&data.Interner{}},
	}
	client, err := rest.RESTClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("making a client for objects of any kind: %w", err)
	}
	return client, nil
}

// codec reads what the API server sends about objects of any kind. It implements
// runtime.NegotiatedSerializer, and runtime.Serializer for the objects themselves.
type codec struct{ documents *data.Interner }

// SupportedMediaTypes is JSON, and that alone.
func (c codec) SupportedMediaTypes() []runtime.SerializerInfo {
	return []runtime.SerializerInfo{{
		MediaType: runtime.ContentTypeJSON, MediaTypeType: "application", MediaTypeSubType: "json", EncodesAsText: true, Serializer: c,
		StreamSerializer: &runtime.StreamSerializerInfo{EncodesAsText: true, Serializer: frames{}, Framer: serializer.Framer},
	}}
}

// EncoderForVersion is for writing, which nobody does.
func (c codec) EncoderForVersion(runtime.Encoder, runtime.GroupVersioner) runtime.Encoder { return c }

// DecoderToVersion is the same for all versions.
func (c codec) DecoderToVersion(runtime.Decoder, runtime.GroupVersioner) runtime.Decoder { return c }

// Encode is for writing, which nobody does.
func (codec) Encode(runtime.Object, io.Writer) error { return errors.ErrUnsupported }

// Identifier names the codec.
func (codec) Identifier() runtime.Identifier { return "kube-rego" }

// parsers keep their memory from one object to the next.
var parsers fastjson.ParserPool

// Decode reads a Status, a list, or an object.
func (c codec) Decode(text []byte, _ *schema.GroupVersionKind, _ runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	parser := parsers.Get()
	defer parsers.Put(parser) // nothing of what it made is kept
	value, err := parser.ParseBytes(text)
	if err != nil || value.Type() != fastjson.TypeObject {
		return c.decodeSlowly(text)
	}
	kind := metav1.TypeMeta{APIVersion: string(value.GetStringBytes("apiVersion")), Kind: string(value.GetStringBytes("kind"))}
	gvk := kind.GroupVersionKind()
	switch {
	case kind.APIVersion == "v1" && kind.Kind == "Status":
		status := &metav1.Status{}
		return status, &gvk, json.Unmarshal(text, status)
	case isArray(value.Get("items")) && !value.Exists("metadata", "name"):
		return c.list(kind, value), &gvk, nil
	}
	return c.object(value), &gvk, nil
}

func isArray(value *fastjson.Value) bool { return value != nil && value.Type() == fastjson.TypeArray }

// list reads a list. Its items may leave out their kind, which follows from its own.
func (c codec) list(kind metav1.TypeMeta, value *fastjson.Value) *objectList {
	list := &objectList{TypeMeta: kind}
	list.ResourceVersion = string(value.GetStringBytes("metadata", "resourceVersion"))
	list.Continue = string(value.GetStringBytes("metadata", "continue"))
	var arena fastjson.Arena
	for _, item := range value.GetArray("items") {
		if !item.Exists("kind") {
			item.Set("apiVersion", arena.NewString(kind.APIVersion))
			item.Set("kind", arena.NewString(strings.TrimSuffix(kind.Kind, "List")))
		}
		list.Items = append(list.Items, c.object(item))
	}
	return list
}

// lastApplied is the annotation in which kubectl keeps the whole object once more.
const lastApplied = "kubectl.kubernetes.io/last-applied-configuration"

// object reads an object, without what says nothing about it but who wrote it and what
// kubectl has applied: often more than half of it.
func (c codec) object(value *fastjson.Value) *object {
	text := func(keys ...string) string { return string(value.GetStringBytes(keys...)) }
	o := &object{}
	o.APIVersion, o.Kind = text("apiVersion"), text("kind")
	o.Namespace, o.Name, o.ResourceVersion = text("metadata", "namespace"), text("metadata", "name"), text("metadata", "resourceVersion")
	if end := text("metadata", "annotations", metav1.InitialEventsAnnotationKey); end != "" {
		o.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: end}
	}
	if metadata := value.Get("metadata"); metadata != nil {
		metadata.Del("managedFields")
		if annotations := metadata.GetObject("annotations"); annotations != nil {
			if annotations.Del(lastApplied); annotations.Len() == 0 {
				metadata.Del("annotations")
			}
		}
	}
	o.content = c.documents.Read(value)
	return o
}

// decodeSlowly is for what the fast parser does not take: it gives up at 300 levels.
func (c codec) decodeSlowly(text []byte) (runtime.Object, *schema.GroupVersionKind, error) {
	read, gvk, err := unstructured.UnstructuredJSONScheme.Decode(text, nil, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("reading what the API server sent: %w", err)
	}
	switch read := read.(type) {
	case *unstructured.UnstructuredList:
		list := &objectList{TypeMeta: metav1.TypeMeta{APIVersion: read.GetAPIVersion(), Kind: read.GetKind()}}
		list.ResourceVersion, list.Continue = read.GetResourceVersion(), read.GetContinue()
		for i := range read.Items {
			o, err := c.slowly(&read.Items[i])
			if err != nil {
				return nil, nil, err
			}
			list.Items = append(list.Items, o)
		}
		return list, gvk, nil
	case *unstructured.Unstructured:
		o, err := c.slowly(read)
		return o, gvk, err
	}
	return nil, nil, fmt.Errorf("reading what the API server sent: got a %T", read)
}

func (c codec) slowly(u *unstructured.Unstructured) (*object, error) {
	o := &object{TypeMeta: metav1.TypeMeta{APIVersion: u.GetAPIVersion(), Kind: u.GetKind()}}
	o.Namespace, o.Name, o.ResourceVersion = u.GetNamespace(), u.GetName(), u.GetResourceVersion()
	unstructured.RemoveNestedField(u.Object, "metadata", "managedFields")
	unstructured.RemoveNestedField(u.Object, "metadata", "annotations", lastApplied)
	if len(u.GetAnnotations()) == 0 {
		unstructured.RemoveNestedField(u.Object, "metadata", "annotations")
	}
	var err error
	if o.content, err = c.documents.Document(u.Object); err != nil {
		return nil, fmt.Errorf("reading %s %s/%s: %w", o.Kind, o.Namespace, o.Name, err)
	}
	return o, nil
}

// frames reads the events of a watch, and leaves the objects in them to codec.
type frames struct{}

// Decode reads an event.
func (frames) Decode(text []byte, _ *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	event, ok := into.(*metav1.WatchEvent)
	if !ok {
		return nil, nil, fmt.Errorf("reading a watch: want a WatchEvent, got a %T", into)
	}
	parser := parsers.Get()
	defer parsers.Put(parser)
	value, err := parser.ParseBytes(text)
	if err != nil || !value.Exists("object") {
		return event, nil, json.Unmarshal(text, event)
	}
	event.Type = string(value.GetStringBytes("type"))
	event.Object.Raw = value.Get("object").MarshalTo(nil)
	return event, nil, nil
}

// Encode is for writing, which nobody does.
func (frames) Encode(runtime.Object, io.Writer) error { return errors.ErrUnsupported }

// Identifier names the codec.
func (frames) Identifier() runtime.Identifier { return "kube-rego-watch" }
