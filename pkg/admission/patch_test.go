package admission

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	apiserver "gopkg.in/evanphx/json-patch.v4"
)

// pod is the object that is patched, with members whose names need escapes and a
// number that no float64 holds.
const pod = `{
	"apiVersion": "v1", "kind": "Pod",
	"metadata": {"name": "api", "labels": {"app": "api", "a/b~c": "1"}, "generation": 9007199254740993},
	"spec": {"containers": [{"name": "api", "image": "api:1", "env": [{"name": "PASSWORD", "value": "hunter2"}]}, {"name": "log", "image": "log:1"}], "nodeName": null}
}`

func decoded(t testing.TB, content string) any {
	t.Helper()
	value, err := decodeJSON([]byte(content))
	if err != nil {
		t.Fatalf("%v: %s", err, content)
	}
	return value
}

// quoted is a text in JSON.
func quoted(text string) string {
	content, err := json.Marshal(text)
	if err != nil {
		panic(err)
	}
	return string(content)
}

func TestAPatchIsMadeOfEveryForm(t *testing.T) {
	const label = `[{"op":"add","path":"/metadata/labels/team","value":"a>>>???b"}]`
	const labelled = `[{"op":"add","path":"/metadata/labels/team","value":"a\u003e\u003e\u003e???b"}]`
	if encoded := base64.StdEncoding.EncodeToString([]byte(label)); !strings.Contains(encoded, "+") || !strings.Contains(encoded, "/") {
		t.Fatalf("the two alphabets of base64 write the same: %s", encoded)
	}
	changed := strings.Replace(pod, `"app": "api"`, `"app": "api", "team": "a>>>???b"`, 1)
	for _, test := range []struct {
		name, given, patchType string
		want                   string // none if empty
	}{
		{name: "an array of operations", given: label, want: labelled},
		{name: "an array of operations, and the type that says so", given: label, patchType: "JSONPatch", want: labelled},
		{name: "one operation", given: strings.Trim(label, "[]"), want: labelled},
		{name: "a merge patch", given: `{"metadata": {"labels": {"team": "a>>>???b"}}}`, want: labelled},
		{name: "a merge patch, and the type that says so", given: `{"metadata": {"labels": {"team": "a>>>???b"}}}`, patchType: "MergePatch", want: labelled},
		{
			name: "a merge patch that says what kind it is for", given: `{"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": {"team": "a>>>???b"}}}`,
			patchType: "MergePatch", want: labelled,
		},
		{name: "the whole object", given: changed, want: labelled},
		{name: "the whole object, and the type that says so", given: changed, patchType: "Object", want: labelled},
		{name: "JSON text of operations", given: quoted("\n" + label), want: labelled},
		{name: "JSON text of one operation", given: quoted(strings.Trim(label, "[]")), want: labelled},
		{name: "JSON text of a merge patch", given: quoted(`{"metadata": {"labels": {"team": "a>>>???b"}}}`), want: labelled},
		{name: "JSON text of the whole object", given: quoted(changed), want: labelled},
		{name: "base64", given: quoted(base64.StdEncoding.EncodeToString([]byte(label))), want: labelled},
		{name: "base64 without padding", given: quoted(base64.RawStdEncoding.EncodeToString([]byte(label))), want: labelled},
		{name: "URL-safe base64", given: quoted(base64.URLEncoding.EncodeToString([]byte(label))), want: labelled},
		{name: "URL-safe base64 without padding", given: quoted(base64.RawURLEncoding.EncodeToString([]byte(label))), want: labelled},
		{name: "base64 in lines", given: quoted(base64.StdEncoding.EncodeToString([]byte(label))[:40] + "\n" + base64.StdEncoding.EncodeToString([]byte(label))[40:] + "\n"), want: labelled},
		{name: "base64 of one operation", given: quoted(base64.StdEncoding.EncodeToString([]byte(strings.Trim(label, "[]")))), want: labelled},
		{name: "base64 of a merge patch", given: quoted(base64.StdEncoding.EncodeToString([]byte(`{"metadata": {"labels": {"team": "a>>>???b"}}}`))), want: labelled},
		{name: "base64 of the whole object", given: quoted(base64.StdEncoding.EncodeToString([]byte(changed))), want: labelled},

		{name: "null", given: `null`},
		{name: "no operation", given: `[]`},
		{name: "an empty text", given: `""`},
		{name: "a text of no operation", given: `"[]"`},
		{name: "base64 of no operation", given: `"W10="`},
		{name: "base64 of null", given: `"bnVsbA=="`},
		{name: "an empty merge patch", given: `{}`},
		{name: "a merge patch that changes nothing", given: `{"metadata": {"labels": {"app": "api", "team": null}}}`},
		{name: "the object as it is", given: pod},
		{name: "an operation that changes nothing", given: `[{"op": "add", "path": "/metadata/labels/app", "value": "api"}]`},
		{name: "operations that undo each other", given: `[{"op": "add", "path": "/x", "value": 1}, {"op": "remove", "path": "/x"}]`},
		{name: "a test that holds", given: `[{"op": "test", "path": "/metadata/labels/app", "value": "api"}]`},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := jsonPatch(decoded(t, test.given), test.patchType, decoded(t, pod), true)
			if err != nil || string(got) != test.want {
				t.Errorf("got  %s, %v\nwant %s", got, err, test.want)
			}
		})
	}
}

func TestAPatchDoesWhatItSays(t *testing.T) {
	for _, test := range []struct {
		name, given string
		want        string // the patch that is sent
		result      string // what has become of the spec, or of the labels
	}{
		{
			name: "every operation", given: `[
				{"op": "test", "path": "/spec/containers/0/name", "value": "api"},
				{"op": "add", "path": "/spec/containers/-", "value": {"name": "side"}},
				{"op": "add", "path": "/spec/containers/0", "value": {"name": "first"}},
				{"op": "replace", "path": "/spec/containers/1/image", "value": "api:2"},
				{"op": "copy", "from": "/spec/containers/1/image", "path": "/spec/containers/0/image"},
				{"op": "move", "from": "/spec/containers/1/env", "path": "/spec/containers/2/env"},
				{"op": "remove", "path": "/spec/containers/1"}]`,
			want: `[{"op":"test","path":"/spec/containers/0/name","value":"api"},` +
				`{"op":"add","path":"/spec/containers/-","value":{"name":"side"}},` +
				`{"op":"add","path":"/spec/containers/0","value":{"name":"first"}},` +
				`{"op":"replace","path":"/spec/containers/1/image","value":"api:2"},` +
				`{"op":"copy","from":"/spec/containers/1/image","path":"/spec/containers/0/image"},` +
				`{"op":"move","from":"/spec/containers/1/env","path":"/spec/containers/2/env"},` +
				`{"op":"remove","path":"/spec/containers/1"}]`,
			result: `{"containers":[{"image":"api:2","name":"first"},{"env":[{"name":"PASSWORD","value":"hunter2"}],"image":"log:1","name":"log"},{"name":"side"}],"nodeName":null}`,
		},
		{
			name: "a value of null is a value", given: `[{"op": "add", "path": "/spec", "value": null}]`,
			want: `[{"op":"add","path":"/spec","value":null}]`, result: `null`,
		},
		{
			name: "names with escapes", given: `[{"op": "add", "path": "/spec", "value": {"a/b~1": 1}}, {"op": "replace", "path": "/spec/a~1b~01", "value": 2}]`,
			want:   `[{"op":"add","path":"/spec","value":{"a/b~1":1}},{"op":"replace","path":"/spec/a~1b~01","value":2}]`,
			result: `{"a/b~1":2}`,
		},
		{
			name: "members that RFC 6902 does not know are left out", given: `[{"op": "remove", "path": "/spec/containers", "value": 1, "from": "x", "comment": "y"}]`,
			want: `[{"op":"remove","path":"/spec/containers"}]`, result: `{"nodeName":null}`,
		},
		{
			name: "a number that no float64 holds", given: `[{"op": "copy", "from": "/metadata/generation", "path": "/spec"}, {"op": "test", "path": "/spec", "value": 9007199254740993}]`,
			want:   `[{"op":"copy","from":"/metadata/generation","path":"/spec"},{"op":"test","path":"/spec","value":9007199254740993}]`,
			result: `9007199254740993`,
		},
		{
			name: "numbers that are one float64 are two numbers", given: `{"spec": 123456789012345678901234567890, "metadata": {"generation": 9007199254740992}}`,
			want:   `[{"op":"replace","path":"/spec","value":123456789012345678901234567890},{"op":"replace","path":"/metadata/generation","value":9007199254740992}]`,
			result: `123456789012345678901234567890`,
		},
		{
			name: "a merge patch removes with null, and a list takes the place of another", given: `{"spec": {"nodeName": null, "containers": [{"name": "only", "env": [null]}]}}`,
			want: `[{"op":"remove","path":"/spec/nodeName"},{"op":"remove","path":"/spec/containers/1"},` +
				`{"op":"remove","path":"/spec/containers/0/image"},{"op":"replace","path":"/spec/containers/0/name","value":"only"},` +
				`{"op":"replace","path":"/spec/containers/0/env/0","value":null}]`,
			result: `{"containers":[{"env":[null],"name":"only"}]}`,
		},
		{
			name: "replace of what is not there is an add, as the API server has it",
			given: `[{"op": "replace", "path": "/spec/priority", "value": 1}, {"op": "replace", "path": "/spec/priority", "value": 2},
				{"op": "remove", "path": "/spec/containers"}]`,
			want: `[{"op":"add","path":"/spec/priority","value":1},{"op":"replace","path":"/spec/priority","value":2},` +
				`{"op":"remove","path":"/spec/containers"}]`,
			result: `{"nodeName":null,"priority":2}`,
		},
		{
			name: "a merge patch makes what is missing", given: `{"spec": {"affinity": {"nodeAffinity": {"weight": 1, "nothing": null}}, "containers": null}}`,
			want:   `[{"op":"add","path":"/spec/affinity","value":{"nodeAffinity":{"weight":1}}},{"op":"remove","path":"/spec/containers"}]`,
			result: `{"affinity":{"nodeAffinity":{"weight":1}},"nodeName":null}`,
		},
		{
			name: "a merge patch of what is no object", given: `{"spec": {"containers": {"name": "x", "y": null}}}`,
			want:   `[{"op":"replace","path":"/spec/containers","value":{"name":"x"}}]`,
			result: `{"containers":{"name":"x"},"nodeName":null}`,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			patch, err := jsonPatch(decoded(t, test.given), "", decoded(t, pod), false)
			if err != nil {
				t.Fatal(err)
			}
			if string(patch) != test.want {
				t.Errorf("got  %s\nwant %s", patch, test.want)
			}
			var result map[string]json.RawMessage
			if err := json.Unmarshal(appliedThere(t, patch, decoded(t, pod)), &result); err != nil {
				t.Fatal(err)
			}
			if got := string(result["spec"]); got != test.result {
				t.Errorf("the spec is %s\nwant        %s", got, test.result)
			}
		})
	}
}

// appliedThere is what the API server makes of the object.
func appliedThere(t testing.TB, patch []byte, object any) []byte {
	t.Helper()
	before, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := apiserver.DecodePatch(patch)
	if err != nil {
		t.Fatalf("the API server does not read the patch: %v\n%s", err, patch)
	}
	after, err := theirs.Apply(before)
	if err != nil {
		t.Fatalf("the API server does not apply the patch: %v\n%s", err, patch)
	}
	return after
}

// The secrets of the object and of the patch are all hunter2.
func TestAPatchThatIsNoneSaysWhere(t *testing.T) {
	one := func(operation string) string {
		return `[{"op": "add", "path": "/x", "value": "hunter2"}, ` + operation + `]`
	}
	deep := strings.Repeat(`{"a":`, 600) + `"hunter2"` + strings.Repeat("}", 600)
	for _, test := range []struct {
		name, given, patchType string
		object                 string // a pod if empty
		want                   string // the whole error
	}{
		{name: "a number", given: `7`, want: "response.patch is a number, want operations, a merge patch, a whole object, or a text of these"},
		{name: "true", given: `true`, patchType: "JSONPatch", want: "response.patch is a boolean, want operations, a merge patch, a whole object, or a text of these"},
		{name: "a type that is not known", given: `[]`, patchType: "hunter2", want: "response.patchType is none of JSONPatch, MergePatch and Object"},
		{name: "an array as a merge patch", given: `[{"a": 1}]`, patchType: "MergePatch", want: "response.patch is an array, want an object where response.patchType is MergePatch"},
		{name: "an array as a whole object", given: `[{"a": 1}]`, patchType: "Object", want: "response.patch is an array, want an object where response.patchType is Object"},
		{name: "a merge patch as operations", given: `{"spec": "hunter2"}`, patchType: "JSONPatch", want: "response.patch: operation 1: op is missing, want a string"},
		{name: "a text that is neither", given: `"hunter2 is it"`, want: "response.patch: the text is neither JSON nor base64"},
		{name: "base64 of no JSON", given: `"aHVudGVyMg=="`, want: "response.patch: the text, or what it is the base64 of, is not JSON"},
		{name: "JSON that breaks off", given: `"[{\"op\":\"hunter2"`, want: "response.patch: the text, or what it is the base64 of, is not JSON"},
		{name: "JSON with more after it", given: `"[] hunter2"`, want: "response.patch: the text, or what it is the base64 of, is not JSON"},
		{name: "base64 of a text", given: `"Imh1bnRlcjIi"`, want: "response.patch: the text holds a text again, want a patch"},

		{name: "an operation that is none", given: one(`"hunter2"`), want: "response.patch: operation 2: it is a string, want an object with op and path"},
		{name: "no op", given: one(`{"path": "/x"}`), want: "response.patch: operation 2 (/x): op is missing, want a string"},
		{name: "an op that is not known", given: one(`{"op": "hunter2", "path": "/x"}`), want: "response.patch: operation 2 (/x): op is none of add, remove, replace, move, copy and test"},
		{name: "an op in capitals", given: one(`{"op": "Add", "path": "/x", "value": 1}`), want: "response.patch: operation 2 (/x): op is none of add, remove, replace, move, copy and test"},
		{name: "no path", given: one(`{"op": "remove"}`), want: "response.patch: operation 2 (remove): path is missing, want a string"},
		{name: "a path that is a list", given: one(`{"op": "remove", "path": ["spec"]}`), want: "response.patch: operation 2 (remove): path is an array, want a string"},
		{name: "a path without its slash", given: one(`{"op": "remove", "path": "spec/x"}`), want: "response.patch: operation 2 (remove spec/x): path is no JSON pointer: it does not begin with /"},
		{
			name: "a path with half an escape", given: one(`{"op": "remove", "path": "/spec/~x"}`),
			want: "response.patch: operation 2 (remove /spec/~x): path is no JSON pointer: a ~ in it stands before neither 0 nor 1",
		},
		{name: "no value", given: one(`{"op": "add", "path": "/y"}`), want: "response.patch: operation 2 (add /y): value is missing"},
		{name: "no from", given: one(`{"op": "move", "path": "/y"}`), want: "response.patch: operation 2 (move /y): from is missing, want a string"},
		{name: "a from without its slash", given: one(`{"op": "copy", "path": "/y", "from": "x"}`), want: "response.patch: operation 2 (copy /y): from is no JSON pointer: it does not begin with /"},

		{name: "to remove what is not there", given: one(`{"op": "remove", "path": "/spec/x"}`), want: "response.patch: operation 2 (remove /spec/x): there is no /spec/x"},
		{name: "to replace what is not there", given: one(`{"op": "replace", "path": "/spec/x", "value": 1}`), want: "response.patch: operation 2 (replace /spec/x): there is no /spec/x"},
		{
			name: "to add where there is nothing to add to", given: one(`{"op": "add", "path": "/metadata/annotations/a~1b", "value": 1}`),
			want: "response.patch: operation 2 (add /metadata/annotations/a~1b): there is no /metadata/annotations",
		},
		{name: "to add to a text", given: one(`{"op": "add", "path": "/x/y", "value": 1}`), want: "response.patch: operation 2 (add /x/y): what it is to be added to is neither an object nor an array"},
		{name: "to add to null", given: one(`{"op": "add", "path": "/spec/nodeName/y", "value": 1}`), want: "response.patch: operation 2 (add /spec/nodeName/y): what it is to be added to is neither an object nor an array"},
		{name: "to add after the end", given: one(`{"op": "add", "path": "/spec/containers/3", "value": 1}`), want: "response.patch: operation 2 (add /spec/containers/3): the array has no such index"},
		{name: "to add at a name in an array", given: one(`{"op": "add", "path": "/spec/containers/x", "value": 1}`), want: "response.patch: operation 2 (add /spec/containers/x): the array has no such index"},
		{name: "to remove from the end, negatively", given: one(`{"op": "remove", "path": "/spec/containers/-1"}`), want: "response.patch: operation 2 (remove /spec/containers/-1): there is no /spec/containers/-1"},
		{name: "an index with a zero before it", given: one(`{"op": "remove", "path": "/spec/containers/01"}`), want: "response.patch: operation 2 (remove /spec/containers/01): there is no /spec/containers/01"},
		{name: "to remove what is after the end", given: one(`{"op": "remove", "path": "/spec/containers/-"}`), want: "response.patch: operation 2 (remove /spec/containers/-): there is no /spec/containers/-"},
		{name: "to copy what is not there", given: one(`{"op": "copy", "from": "/y", "path": "/z"}`), want: "response.patch: operation 2 (copy /z): there is no /y"},
		{name: "to move what is not there", given: one(`{"op": "move", "from": "/y", "path": "/z"}`), want: "response.patch: operation 2 (move /z): there is no /y"},
		{name: "to move something into itself", given: one(`{"op": "move", "from": "/spec", "path": "/spec/x"}`), want: "response.patch: operation 2 (move /spec/x): a value cannot be moved into itself"},
		{name: "a test that fails", given: one(`{"op": "test", "path": "/x", "value": "hunter"}`), want: "response.patch: operation 2 (test /x): another value is there"},
		{name: "a test for null where nothing is", given: one(`{"op": "test", "path": "/y", "value": null}`), want: "response.patch: operation 2 (test /y): there is no /y"},

		{
			name: "what RFC 6902 allows and the API server does not do", given: `[{"op": "test", "path": "/kind", "value": "Pod"}, {"op": "add", "path": "", "value": ` + pod + `}, {"op": "add", "path": "/x", "value": 1}]`,
			want: "response.patch: operation 2 (add): the API server does not apply it, though RFC 6902 does",
		},
		{
			name: "what makes the API server's library panic", given: `[{"op": "test", "path": "/a", "value": [null]}, {"op": "add", "path": "/x", "value": 1}]`,
			object: `{"a": [null]}`, want: "response.patch: operation 1 (test /a): the API server does not apply it, though RFC 6902 does",
		},
		{name: "another kind", given: `[{"op": "add", "path": "/kind", "value": "Secret"}]`, want: "response.patch: it makes an object of another apiVersion or kind, or none at all"},
		{name: "no kind", given: `{"kind": null}`, want: "response.patch: it makes an object of another apiVersion or kind, or none at all"},
		{name: "a whole object of another version", given: `{"apiVersion": "v2", "kind": "Pod"}`, want: "response.patch: it makes an object of another apiVersion or kind, or none at all"},
		{name: "a list in its place", given: `[{"op": "replace", "path": "", "value": []}]`, want: "response.patch: it makes an object of another apiVersion or kind, or none at all"},
		{name: "nothing in its place", given: `[{"op": "remove", "path": ""}]`, want: "response.patch: it makes an object of another apiVersion or kind, or none at all"},

		{name: "an operation where there is no object", given: one(`{"op": "add", "path": "/y", "value": 1}`), object: `null`, want: "response.patch: there is nothing to change: request.object is null, as it is when an object is deleted"},
		{name: "a merge patch where there is no object", given: `{"spec": {"x": "hunter2"}}`, object: `null`, want: "response.patch: there is nothing to change: request.object is null, as it is when an object is deleted"},
		{name: "a whole object where there was none", given: pod, object: `null`, want: "response.patch: there is nothing to change: request.object is null, as it is when an object is deleted"},
		{name: "an object that is none", given: one(`{"op": "add", "path": "/y", "value": 1}`), object: `["hunter2"]`, want: "response.patch: there is nothing to change: request.object is an array, want an object"},

		{name: "too many levels", given: one(`{"op": "add", "path": "/y", "value": ` + deep + `}, {"op": "copy", "from": "/y", "path": "/y` + strings.Repeat("/a", 599) + `"}`), want: "response.patch: operation 3 (copy /y" + strings.Repeat("/a", 99) + "…): the object would be nested more than 1000 levels deep"},
		{name: "too many levels by moves", given: one(`{"op": "add", "path": "/y", "value": ` + deep + `}, {"op": "add", "path": "/z", "value": ` + deep + `}, {"op": "move", "from": "/y", "path": "/z` + strings.Repeat("/a", 599) + `"}`), want: "response.patch: operation 4 (move /z" + strings.Repeat("/a", 99) + "…): the object would be nested more than 1000 levels deep"},
		{name: "an object of too many levels", given: one(`{"op": "add", "path": "/y", "value": 1}`), object: `{"a":` + deep + `,"b":` + strings.Replace(deep, `"hunter2"`, deep, 1) + `}`, want: "response.patch: the object would be nested more than 1000 levels deep"},
	} {
		t.Run(test.name, func(t *testing.T) {
			object := test.object
			if object == "" {
				object = pod
			}
			patch, err := jsonPatch(decoded(t, test.given), test.patchType, decoded(t, object), true)
			if err == nil {
				t.Fatalf("got the patch %s", patch)
			}
			if err.Error() != test.want {
				t.Errorf("got  %s\nwant %s", err, test.want)
			}
			if patch != nil {
				t.Errorf("there is a patch beside the error: %s", patch)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error tells a secret: %s", err)
			}
		})
	}
}

func TestReplaceOfNothingIsNotAlwaysAnAdd(t *testing.T) {
	for _, test := range []struct{ name, path, want string }{
		{"in what is not there either", "/metadata/annotations/a", "there is no /metadata/annotations"},
		{"in an array", "/spec/containers/2", "there is no /spec/containers/2"},
		{"in a text", "/metadata/name/x", "there is no /metadata/name/x"},
	} {
		t.Run(test.name, func(t *testing.T) {
			given := []any{map[string]any{"op": "replace", "path": test.path, "value": "x"}}
			_, err := jsonPatch(given, "", decoded(t, pod), false)
			if want := "response.patch: operation 1 (replace " + test.path + "): " + test.want; err == nil || err.Error() != want {
				t.Errorf("got the error %v\nwant          %s", err, want)
			}
		})
	}
}

// What a hostile policy sends costs no more than the API server allows a client.
func TestPatchesAreBounded(t *testing.T) {
	var many []any
	for i := range maxOperations {
		many = append(many, map[string]any{"op": "add", "path": fmt.Sprint("/x", i), "value": true})
	}
	// Each copy doubles what is there: 60 of them would be 2^60 bytes.
	double := []any{map[string]any{"op": "add", "path": "/x", "value": []any{strings.Repeat("x", 1000)}}}
	for range 60 {
		double = append(double, map[string]any{"op": "copy", "from": "/x", "path": "/x/-"})
	}
	for _, test := range []struct {
		name  string
		given any
		want  string // the error, if any
	}{
		{name: "as many operations as there may be", given: many},
		{name: "one more", given: append(many[:len(many):len(many)], many[0]), want: "response.patch: it has 10001 operations, and the API server takes no more than 10000 of a client"},
		{name: "copies of copies", given: double, want: "response.patch: operation 13 (copy /x/-): so far more than 3145728 bytes are copied, the most that the API server takes"},
		{name: "a long value", given: []any{map[string]any{"op": "add", "path": "/x", "value": strings.Repeat("x", maxPatchBytes-100)}}},
		{name: "a longer value", given: []any{map[string]any{"op": "add", "path": "/x", "value": strings.Repeat("x", maxPatchBytes)}}, want: "response.patch: it is longer than 3145728 bytes, the most that the API server takes of a client"},
		{name: "a longer text", given: strings.Repeat("W", 2*maxPatchBytes), want: "response.patch: it is longer than 3145728 bytes, the most that the API server takes of a client"},
	} {
		t.Run(test.name, func(t *testing.T) {
			patch, err := jsonPatch(test.given, "", decoded(t, pod), true)
			if test.want == "" {
				if err != nil || patch == nil {
					t.Fatalf("there is no patch, with the error %v", err)
				}
				appliedThere(t, patch, decoded(t, pod))
				return
			}
			if err == nil || err.Error() != test.want {
				t.Errorf("got the error %v\nwant          %s", err, test.want)
			}
		})
	}
}

// So many operations may not be sent, but one that replaces all may.
func TestALongDifferenceIsTheWholeObject(t *testing.T) {
	changed, ok := decoded(t, pod).(map[string]any)
	if !ok {
		t.Fatal("the pod is no object")
	}
	for i := range maxOperations + 1 {
		changed[fmt.Sprint("x", i)] = json.Number("1")
	}
	patch, err := jsonPatch(changed, "", decoded(t, pod), true)
	if err != nil {
		t.Fatal(err)
	}
	if want := `[{"op":"replace","path":"","value":{`; !bytes.HasPrefix(patch, []byte(want)) {
		t.Errorf("the patch begins with %.60s", patch)
	}
	if got := decoded(t, string(appliedThere(t, patch, decoded(t, pod)))); !reflect.DeepEqual(got, any(changed)) {
		t.Error("it makes another object")
	}
}

// The same answer is the same bytes, so that two audit logs can be compared.
func TestADifferenceIsTheSameEveryTime(t *testing.T) {
	const before = `{"a": [1, 2, 3, {"x": 1, "y": 2}], "b": {"c": 1, "d": 2, "e": 3}, "l": [1], "m": {"10": 1, "9": 2}}`
	const after = `{"a": [{"z": 1}], "b": {"f": [1], "g": 2}, "l": [1,2,3,4,5,6,7,8,9,10,11,12,13], "n": 1, "o": {"p": 2}}`
	want := decoded(t, after)
	var first []byte
	for range 50 {
		object, given := decoded(t, before), decoded(t, after)
		patch, err := jsonPatch(given, formObject, object, true)
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = patch
		}
		if !bytes.Equal(first, patch) {
			t.Fatalf("once it was\n%s\nand then\n%s", first, patch)
		}
		if !reflect.DeepEqual(object, decoded(t, before)) || !reflect.DeepEqual(given, want) {
			t.Fatal("what was given has changed")
		}
	}
	if got := decoded(t, string(appliedThere(t, first, decoded(t, before)))); !reflect.DeepEqual(got, want) {
		t.Errorf("it makes %v\nof %s", got, first)
	}
}

func TestWhatAPolicyGaveIsNotWrittenTo(t *testing.T) {
	const given = `[{"op": "add", "path": "/x", "value": {"y": [1]}}, {"op": "add", "path": "/x/y/0", "value": 2},
		{"op": "remove", "path": "/metadata/labels/app"}, {"op": "move", "from": "/spec/containers/0", "path": "/spec/containers/1"}]`
	object, patch := decoded(t, pod), decoded(t, given)
	if _, err := jsonPatch(patch, "", object, false); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(object, decoded(t, pod)) {
		t.Error("the object has changed")
	}
	if !reflect.DeepEqual(patch, decoded(t, given)) {
		t.Error("the patch has changed")
	}
}

// FuzzJSONPatch holds what is sent against the library of the API server: it must
// take the patch, and make of the object what was meant.
func FuzzJSONPatch(f *testing.F) {
	for _, seed := range []struct{ given, patchType, object string }{
		{`[{"op":"add","path":"/metadata/labels/a~1b","value":"<&>"},{"op":"test","path":"/metadata/labels/a~1b","value":"<&>"}]`, "", pod},
		{`[{"op":"move","from":"/spec/containers/0","path":"/spec/containers/-"},{"op":"copy","from":"/spec","path":"/spec/containers/1"}]`, "JSONPatch", pod},
		{`[{"op":"replace","path":"","value":{"apiVersion":"v1","kind":"Pod"}},{"op":"remove","path":"/metadata"}]`, "", pod},
		{`[{"op":"test","path":"/a","value":[null]},{"op":"replace","path":"/a/0","value":1e400}]`, "", `{"a":[null]}`},
		{`[{"op":"add","path":"/a/-1","value":1},{"op":"remove","path":"/a/01"}]`, "", `{"a":[1]}`},
		{`[{"op":"add","path":"/b","value":null},{"op":"copy","from":"/b","path":"/c"},{"op":"add","path":"/c/d","value":1}]`, "", `{}`},
		{`{"metadata":{"labels":null,"":{"/":1,"~":2}},"spec":{"containers":[{"a":null}]}}`, "", pod},
		{`{"a":9007199254740993,"b":[1,[2],{"c":null}]}`, "Object", `{"a":9007199254740992,"b":[[2],1]}`},
		{`{"a":{"b":null,"c":{"d":null}}}`, "MergePatch", `{"a":[1]}`},
		{`"W3sib3AiOiJhZGQiLCJwYXRoIjoiL3giLCJ2YWx1ZSI6MX1d"`, "", `{"y":-0.0}`},
		{`"eyJhIjoxfQ"`, "", `{"\u2028":"\ud800"}`},
		{`[{"op":"replace","path":"/a","value":1},{"op":"replace","path":"/b/c","value":1}]`, "", `{"b":{}}`},
		{`"[]"`, "Object", `null`},
	} {
		f.Add([]byte(seed.given), seed.patchType, []byte(seed.object), false)
		f.Add([]byte(seed.given), seed.patchType, []byte(seed.object), true)
	}
	f.Fuzz(func(t *testing.T, givenJSON []byte, patchType string, objectJSON []byte, strict bool) {
		given, err := decodeJSON(givenJSON)
		if err != nil {
			return
		}
		object, err := decodeJSON(objectJSON)
		if err != nil {
			return
		}
		patch, err := jsonPatch(given, patchType, object, strict)
		again, errAgain := jsonPatch(decoded(t, string(givenJSON)), patchType, decoded(t, string(objectJSON)), strict)
		if !bytes.Equal(patch, again) || fmt.Sprint(err) != fmt.Sprint(errAgain) {
			t.Errorf("once  %s, %v\ntwice %s, %v", patch, err, again, errAgain)
		}
		if !reflect.DeepEqual(given, decoded(t, string(givenJSON))) || !reflect.DeepEqual(object, decoded(t, string(objectJSON))) {
			t.Error("what was given has changed")
		}
		if err != nil {
			if patch != nil || !strings.HasPrefix(err.Error(), "response.patch") {
				t.Errorf("got %s beside the error %v", patch, err)
			}
			return
		}
		after := object
		if patch != nil {
			after = decoded(t, string(appliedThere(t, patch, object)))
			if again, err := jsonPatch(decoded(t, string(patch)), formJSONPatch, object, true); err != nil || !bytes.Equal(again, patch) {
				t.Errorf("of the patch %s it makes %s, %v", patch, again, err)
			}
		}
		if want, known := meant(t, given, patchType, object); known && !reflect.DeepEqual(after, want) {
			t.Errorf("the patch %s\nof    %s\nmakes %v\nwant  %v", patch, objectJSON, after, want)
		}
	})
}

// meant is what a patch that is taken is to make of an object, as far as the
// library of the API server knows it too.
func meant(t *testing.T, given any, patchType string, object any) (any, bool) {
	t.Helper()
	given, err := untext(given)
	if err != nil || given == nil {
		return object, err == nil
	}
	form, err := formOf(given, patchType)
	if err != nil {
		t.Fatal(err)
	}
	content, err := json.Marshal(given)
	if err != nil {
		t.Fatal(err)
	}
	before, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	var after []byte
	switch form {
	case formObject:
		return given, true
	case formMergePatch:
		if bytes.Contains(content, []byte("[")) || object == nil {
			return nil, false // it takes the nulls out of arrays, which RFC 7386 does not
		}
		after, err = apiserver.MergePatch(before, content)
	default:
		if content[0] == '{' {
			content = []byte("[" + string(content) + "]")
		}
		if string(content) == "[]" {
			return object, true
		}
		operations, decodeErr := apiserver.DecodePatch(content)
		if decodeErr != nil {
			t.Fatal(decodeErr)
		}
		after, err = operations.Apply(before)
	}
	if err != nil {
		t.Fatalf("the library of the API server does not take it as it was given: %v", err)
	}
	return decoded(t, string(after)), true
}
