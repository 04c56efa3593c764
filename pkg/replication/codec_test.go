package replication

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/kube-rego/kube-rego/pkg/data"
)

func newCodec() codec { return codec{&data.Interner{}} }

func decode(t *testing.T, c codec, text string) runtime.Object {
	t.Helper()
	o, _, err := c.Decode([]byte(text), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// client-go's own reader is the oracle.
func TestObjectsAreReadAsTheyAre(t *testing.T) {
	c := newCodec()
	for name, text := range map[string]string{
		"a Pod": `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","namespace":"n","resourceVersion":"7","managedFields":[{"manager":"m"}],
			"annotations":{"a":"b","kubectl.kubernetes.io/last-applied-configuration":"{}"}},"spec":{"containers":[{"image":"i","args":["-x"],"n":1.5,"big":12345678901234567}],"t":true,"f":false,"nil":null}}`,
		"nothing but what is left out": `{"apiVersion":"v1","kind":"X","metadata":{"name":"p","annotations":{"kubectl.kubernetes.io/last-applied-configuration":"{}"}}}`,
		"characters":                   `{"apiVersion":"v1","kind":"X","metadata":{"name":"p"},"data":{"\u003ckey\u003e":"\"\\\/\b\f\n\r\t\u00e4\ud83d\ude00\u2028 ä😀","":""}}`,
		"numbers":                      `{"apiVersion":"v1","kind":"X","metadata":{"name":"p"},"n":[0,-1,1e3,1.0,0.1,-0.5,1E-7,9007199254740993]}`,
		"empty ones":                   `{"apiVersion":"v1","kind":"X","metadata":{"name":"p","annotations":{},"labels":{}},"a":[],"o":{},"l":[[],{}]}`,
		"more than 300 levels":         `{"apiVersion":"v1","kind":"X","metadata":{"name":"p","namespace":"n","resourceVersion":"3","managedFields":[]},"deep":` + strings.Repeat("[", 400) + strings.Repeat("]", 400) + `}`,
		"items of its own":             `{"apiVersion":"v1","kind":"X","metadata":{"name":"p"},"items":[1]}`,
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := decode(t, c, text).(*object)
			if !ok {
				t.Fatal("it is no object")
			}
			want := &unstructured.Unstructured{}
			decoder := json.NewDecoder(strings.NewReader(text))
			decoder.UseNumber()
			if err := decoder.Decode(&want.Object); err != nil {
				t.Fatal(err)
			}
			unstructured.RemoveNestedField(want.Object, "metadata", "managedFields")
			unstructured.RemoveNestedField(want.Object, "metadata", "annotations", lastApplied)
			if len(want.GetAnnotations()) == 0 {
				unstructured.RemoveNestedField(want.Object, "metadata", "annotations")
			}
			value, err := ast.InterfaceToValue(want.Object)
			if err != nil {
				t.Fatal(err)
			}
			if read := got.content.(interface{ Equal(*ast.Term) bool }); !read.Equal(ast.NewTerm(value)) {
				t.Errorf("got %v, want %v", got.content, value)
			}
			if got.Name != want.GetName() || got.Namespace != want.GetNamespace() || got.ResourceVersion != want.GetResourceVersion() ||
				got.Kind != want.GetKind() || got.APIVersion != want.GetAPIVersion() {
				t.Errorf("its metadata are %+v %+v", got.TypeMeta, got.ObjectMeta)
			}
		})
	}
}

func TestNumbersKeepTheirDigits(t *testing.T) {
	o, ok := decode(t, newCodec(), `{"apiVersion":"v1","kind":"X","metadata":{"name":"p"},"n":[9007199254740993,12345678901234567890123,0.1]}`).(*object)
	if !ok || !strings.Contains(o.content.(interface{ String() string }).String(), "[9007199254740993, 12345678901234567890123, 0.1]") {
		t.Errorf("got %v", o.content)
	}
}

func TestListsStatusesAndBookmarks(t *testing.T) {
	c := newCodec()
	list, ok := decode(t, c, `{"apiVersion":"apps/v1","kind":"DeploymentList","metadata":{"resourceVersion":"9","continue":"more"},"items":[
		{"metadata":{"name":"a","namespace":"n"}},{"apiVersion":"x/v1","kind":"Own","metadata":{"name":"b"}}]}`).(*objectList)
	if !ok || list.ResourceVersion != "9" || list.Continue != "more" || len(list.Items) != 2 {
		t.Fatalf("the list is %+v", list)
	}
	for i, want := range []metav1.TypeMeta{{APIVersion: "apps/v1", Kind: "Deployment"}, {APIVersion: "x/v1", Kind: "Own"}} {
		item, ok := list.Items[i].(*object)
		if !ok || item.TypeMeta != want || !strings.Contains(item.content.(interface{ String() string }).String(), `"kind": "`+want.Kind+`"`) {
			t.Errorf("item %d is %+v", i, list.Items[i])
		}
	}
	empty, ok := decode(t, c, `{"apiVersion":"v1","kind":"PodList","metadata":{"resourceVersion":"9"},"items":[]}`).(*objectList)
	if !ok || len(empty.Items) != 0 {
		t.Errorf("the empty list is %+v", empty)
	}
	status, ok := decode(t, c, `{"apiVersion":"v1","kind":"Status","status":"Failure","reason":"Expired","code":410}`).(*metav1.Status)
	if !ok || status.Code != 410 || status.Reason != metav1.StatusReasonExpired {
		t.Errorf("the status is %+v", status)
	}
	end, ok := decode(t, c, `{"apiVersion":"v1","kind":"Pod","metadata":{"resourceVersion":"12","annotations":{"k8s.io/initial-events-end":"true"}}}`).(*object)
	if !ok || end.Annotations[metav1.InitialEventsAnnotationKey] != "true" || end.ResourceVersion != "12" {
		t.Errorf("the bookmark is %+v", end)
	}
	for _, text := range []string{"", "{", "nonsense", `{"a":}`, "[1]", "3", `"text"`, "null"} {
		if o, _, err := c.Decode([]byte(text), nil, nil); err == nil {
			t.Errorf("%q was read as %v", text, o)
		}
	}
}

func TestFrames(t *testing.T) {
	for _, text := range []string{
		`{"type":"ADDED","object":{"kind":"Pod","metadata":{"name":"\u003ca\u003e"}}}`,
		`{"type":"DELETED","object":{"deep":` + strings.Repeat("[", 400) + strings.Repeat("]", 400) + `}}`,
	} {
		var got, want metav1.WatchEvent
		if _, _, err := (frames{}).Decode([]byte(text), nil, &got); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(text), &want); err != nil {
			t.Fatal(err)
		}
		var gotObject, wantObject any
		if err := json.Unmarshal(got.Object.Raw, &gotObject); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(want.Object.Raw, &wantObject); err != nil {
			t.Fatal(err)
		}
		if got.Type != want.Type || !reflect.DeepEqual(gotObject, wantObject) {
			t.Errorf("got %s %v", got.Type, gotObject)
		}
	}
	if _, _, err := (frames{}).Decode([]byte("{"), nil, &metav1.WatchEvent{}); err == nil {
		t.Error("half a frame was read")
	}
}
