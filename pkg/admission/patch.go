package admission

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sort"
	"strconv"
	"strings"

	difference "gomodules.xyz/jsonpatch/v2"
	apiserver "gopkg.in/evanphx/json-patch.v4"
)

// The bounds of a patch are those that the API server has for one that a client
// sends (k8s.io/apiserver): maxJSONPatchOperations, MaxRequestBodyBytes and
// JSONPatchMaxCopyBytes. It holds the patch of a webhook to the last alone.
const (
	maxOperations  = 10_000
	maxPatchBytes  = 3 << 20
	maxCopiedBytes = 3 << 20
)

// The forms in which a policy may give a patch. JSONPatch is that of RFC 6902,
// MergePatch that of RFC 7386, and Object is the whole object as it is to be.
const (
	formJSONPatch  = "JSONPatch"
	formMergePatch = "MergePatch"
	formObject     = "Object"
)

// operation is one operation of a JSON patch. Its value is JSON, so that a null
// is there and what is missing is not.
type operation struct {
	Op    string          `json:"op"`
	From  *string         `json:"from,omitempty"`
	Path  string          `json:"path"`
	Value json.RawMessage `json:"value,omitempty"`
}

// jsonPatch makes of what a policy gave as response.patch and response.patchType
// the JSON patch that does the same to the object of the request, in JSON. It is
// nil if nothing changes. The values are what encoding/json decodes to, with
// json.Number for numbers, and are not changed.
//
// A patch is sent only if RFC 6902 and the library of the API server both take
// it and come to the same: what does not apply there fails the request of a user
// who cannot help it. Unless strict, replace of what is not there is sent as the
// add that the API server makes of it. No error quotes a value of the patch or of
// the object, which may be a secret.
func jsonPatch(given any, patchType string, object any, strict bool) ([]byte, error) {
	given, err := untext(given)
	if given == nil || err != nil {
		return nil, prefixed("response.patch: ", err)
	}
	form, err := formOf(given, patchType)
	if err != nil {
		return nil, err
	}
	operations, err := operationsOf(form, given, object)
	if err != nil {
		return nil, prefixed("response.patch: ", err)
	}
	patch, err := checked(operations, object, strict)
	return patch, prefixed("response.patch: ", err)
}

// prefixed puts words before an error, if there is one.
func prefixed(words string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s%w", words, err)
}

// untext is the value that given is the text of, in JSON or in base64 of JSON.
// Any other value is given itself.
func untext(given any) (any, error) {
	text, ok := given.(string)
	if !ok {
		return given, nil
	}
	if len(text) > base64.StdEncoding.EncodedLen(maxPatchBytes) {
		return nil, errTooLong
	}
	text = strings.TrimSpace(text)
	content := []byte(text)
	if !strings.HasPrefix(text, "[") && !strings.HasPrefix(text, "{") { // neither is in an alphabet of base64
		var err error
		if content, err = base64.RawStdEncoding.DecodeString(standard.Replace(strings.TrimRight(text, "="))); err != nil {
			return nil, errors.New("the text is neither JSON nor base64")
		}
	}
	if len(bytes.TrimSpace(content)) == 0 {
		return nil, nil
	}
	value, err := decodeJSON(content)
	if err != nil {
		return nil, errors.New("the text, or what it is the base64 of, is not JSON") // the error of encoding/json quotes it
	}
	if _, again := value.(string); again {
		return nil, errors.New("the text holds a text again, want a patch")
	}
	return value, nil
}

// standard turns the URL-safe alphabet of base64 into the standard one.
var standard = strings.NewReplacer("-", "+", "_", "/")

var errTooLong = fmt.Errorf("it is longer than %d bytes, the most that the API server takes of a client", maxPatchBytes)

// decodeJSON decodes one JSON value, numbers without loss.
func decodeJSON(content []byte) (any, error) {
	decoder := json.NewDecoder(bytes.NewReader(content))
	decoder.UseNumber()
	var value any
	if err := decoder.Decode(&value); err != nil {
		return nil, err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is more after the JSON value")
	}
	return value, nil
}

// formOf is the form that patchType names, or else the one that given has.
func formOf(given any, patchType string) (string, error) {
	members, isObject := given.(map[string]any)
	_, isArray := given.([]any)
	if !isObject && !isArray {
		return "", fmt.Errorf("response.patch is %s, want operations, a merge patch, a whole object, or a text of these", jsonType(given))
	}
	switch patchType {
	case "":
	case formJSONPatch:
		return formJSONPatch, nil
	case formMergePatch, formObject:
		if !isObject {
			return "", fmt.Errorf("response.patch is %s, want an object where response.patchType is %s", jsonType(given), patchType)
		}
		return patchType, nil
	default:
		return "", fmt.Errorf("response.patchType is none of %s, %s and %s", formJSONPatch, formMergePatch, formObject)
	}
	switch {
	case isArray || has(members, "op"):
		return formJSONPatch, nil
	case has(members, "apiVersion") && has(members, "kind"):
		return formObject, nil
	}
	return formMergePatch, nil
}

func has(members map[string]any, name string) bool {
	_, ok := members[name]
	return ok
}

// operationsOf is the patch in given as the operations of a JSON patch.
func operationsOf(form string, given, object any) ([]operation, error) {
	switch form {
	case formMergePatch:
		if members, _ := given.(map[string]any); len(members) == 0 {
			return nil, nil
		}
		return operationsBetween(object, merged(object, given))
	case formObject:
		return operationsBetween(object, given)
	}
	list, ok := given.([]any)
	if !ok {
		list = []any{given}
	}
	if len(list) > maxOperations {
		return nil, fmt.Errorf("it has %d operations, and the API server takes no more than %d of a client", len(list), maxOperations)
	}
	operations := make([]operation, len(list))
	for i, one := range list {
		var err error
		if operations[i], err = operationOf(one); err != nil {
			return nil, operations[i].failed(i, err)
		}
	}
	return operations, nil
}

// operationOf reads an operation as RFC 6902 wants it. Members that it does not
// know are ignored, as it says.
func operationOf(given any) (operation, error) {
	members, ok := given.(map[string]any)
	if !ok {
		return operation{}, fmt.Errorf("it is %s, want an object with op and path", jsonType(given))
	}
	o := operation{Op: text(members["op"]), Path: text(members["path"])}
	if _, ok := members["op"].(string); !ok {
		return o, fmt.Errorf("op is %s, want a string", jsonType(members["op"]))
	}
	needs, ok := needed[o.Op]
	if !ok {
		return o, errors.New("op is none of add, remove, replace, move, copy and test")
	}
	if err := checkPointer("path", members["path"]); err != nil {
		return o, err
	}
	switch needs {
	case "from":
		if err := checkPointer("from", members["from"]); err != nil {
			return o, err
		}
		from := text(members["from"])
		o.From = &from
	case "value":
		value, ok := members["value"]
		if !ok {
			return o, errors.New("value is missing")
		}
		var err error
		o.Value, err = json.Marshal(value)
		return o, err
	}
	return o, nil
}

// needed is what an operation needs beside its path.
var needed = map[string]string{"add": "value", "remove": "", "replace": "value", "move": "from", "copy": "from", "test": "value"}

// checkPointer says what keeps a member from being a JSON pointer (RFC 6901).
func checkPointer(name string, member any) error {
	pointer, ok := member.(string)
	switch {
	case !ok:
		return fmt.Errorf("%s is %s, want a string", name, jsonType(member))
	case pointer != "" && pointer[0] != '/':
		return fmt.Errorf("%s is no JSON pointer: it does not begin with /", name)
	case strings.Count(pointer, "~") != strings.Count(pointer, "~0")+strings.Count(pointer, "~1"):
		return fmt.Errorf("%s is no JSON pointer: a ~ in it stands before neither 0 nor 1", name)
	}
	return nil
}

// failed says which operation has failed; the first is number 1. An op that is not
// known may be any text, a secret even, and is not told.
func (o operation) failed(index int, err error) error {
	title := shown(o.Path)
	if _, known := needed[o.Op]; known {
		title = strings.TrimSpace(o.Op + " " + title)
	}
	if title == "" {
		return fmt.Errorf("operation %d: %w", index+1, err)
	}
	return fmt.Errorf("operation %d (%s): %w", index+1, title, err)
}

// shown is a text as a line of an error has room for it.
func shown(text string) string {
	const enough = 200
	rest := ""
	if len(text) > enough {
		text, rest = text[:enough], "…"
	}
	quoted := strconv.Quote(strings.ToValidUTF8(text, ""))
	return strings.NewReplacer(`\"`, `"`, `\\`, `\`).Replace(quoted[1:len(quoted)-1]) + rest
}

// merged is target with a merge patch applied, word for word as RFC 7386 has it.
func merged(target, patch any) any {
	changes, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	members, _ := target.(map[string]any)
	result := make(map[string]any, len(members))
	maps.Copy(result, members)
	for name, value := range changes {
		if value == nil {
			delete(result, name)
		} else {
			result[name] = merged(result[name], value)
		}
	}
	return result
}

// operationsBetween is what makes changed of object, in an order that is the same
// every time.
func operationsBetween(object, changed any) ([]operation, error) {
	if err := patchable(object); err != nil {
		return nil, err
	}
	before, err := json.Marshal(object)
	if err != nil {
		return nil, err
	}
	after, err := json.Marshal(changed)
	if err != nil {
		return nil, err
	}
	found, err := difference.CreatePatch(before, after)
	if err != nil {
		return nil, err
	}
	if len(found) > maxOperations {
		return []operation{{Op: "replace", Path: "", Value: after}}, nil
	}
	slices.SortFunc(found, inOrder)
	operations := make([]operation, len(found))
	for i, one := range found {
		operations[i] = operation{Op: one.Operation, Path: one.Path}
		if needed[one.Operation] != "value" {
			continue
		}
		if operations[i].Value, err = json.Marshal(one.Value); err != nil {
			return nil, err
		}
	}
	return operations, nil
}

// patchable says why there is nothing to patch. The API server refuses a patch
// where it has sent no object.
func patchable(object any) error {
	if _, ok := object.(map[string]any); ok {
		return nil
	}
	if object == nil {
		return errors.New("there is nothing to change: request.object is null, as it is when an object is deleted")
	}
	return fmt.Errorf("there is nothing to change: request.object is %s, want an object", jsonType(object))
}

// inOrder sorts the operations of a difference, which come in the order of a map,
// and so in another one every time. What is removed from an array goes from its end, what is
// added goes to its end; no other two depend on each other.
func inOrder(a, b difference.Operation) int {
	aParent, bParent := a.Path[:strings.LastIndex(a.Path, "/")], b.Path[:strings.LastIndex(b.Path, "/")]
	byIndex := cmp.Or(cmp.Compare(len(a.Path), len(b.Path)), cmp.Compare(a.Path, b.Path))
	if a.Operation == "remove" {
		byIndex = -byIndex
	}
	return cmp.Or(cmp.Compare(aParent, bParent), cmp.Compare(a.Operation, b.Operation), byIndex)
}

// checked is the patch of these operations, in JSON, if it applies to the object
// and changes it.
func checked(operations []operation, object any, strict bool) ([]byte, error) {
	if len(operations) == 0 {
		return nil, nil
	}
	if err := patchable(object); err != nil {
		return nil, err
	}
	before, err := json.Marshal(object)
	if err != nil {
		return nil, err
	}
	operations, after, err := apply(operations, before, strict)
	if err != nil || bytes.Equal(before, after) {
		return nil, err
	}
	patch, err := json.Marshal(operations)
	if err != nil {
		return nil, err
	}
	if len(patch) > maxPatchBytes {
		return nil, errTooLong
	}
	if err := agreed(operations, patch, before, after); err != nil {
		return nil, err
	}
	return patch, nil
}

// agreed says where the library of the API server does not make after of before.
func agreed(operations []operation, patch, before, after []byte) error {
	theirs, err := apiserver.DecodePatch(patch)
	if err != nil {
		return err
	}
	result, ok := applyThere(theirs, before)
	if !ok {
		failing := sort.Search(len(theirs)-1, func(i int) bool {
			_, ok := applyThere(theirs[:i+1], before)
			return !ok
		})
		return operations[failing].failed(failing, errors.New("the API server does not apply it, though RFC 6902 does"))
	}
	if !bytes.Equal(result, after) {
		return errors.New("the API server makes another object of it than RFC 6902 does")
	}
	return nil
}

// applyThere applies a patch with the library that the API server does it with.
func applyThere(patch apiserver.Patch, object []byte) (result []byte, ok bool) {
	// It panics where it meets a null in an array that is tested.
	defer func() {
		if recover() != nil {
			result, ok = nil, false
		}
	}()
	result, err := patch.Apply(object)
	return result, err == nil
}
