package admission

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	apiserver "gopkg.in/evanphx/json-patch.v4"
)

// What RFC 6902 refuses and the library of the API server does not.
var stricter = []string{
	": there is no ", // an index with a sign or a zero before it; what is copied, or tested for null
	": a value cannot be moved into itself",
	": the array has no such index",
	": it makes an object of another apiVersion or kind, or none at all",
}

// Patches that mostly apply, to objects with awkward names, held against the library
// of the API server in both directions: what is sent it applies, and does what was
// meant; what it would apply is not refused, but for a few reasons.
func TestRandomPatchesAgainstTheAPIServer(t *testing.T) {
	random := source{rand.New(rand.NewPCG(6902, 6901))}
	taken, refused := 0, 0
	for range rounds() {
		object := random.object()
		operations := random.operations(object)
		before, err := json.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		given, err := json.Marshal(operations)
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := apiserver.DecodePatch(given)
		if err != nil {
			t.Fatal(err)
		}
		want, applies := applyThere(theirs, before)
		patch, err := jsonPatch(operations, "", object, false)
		switch {
		case err == nil && !applies && patch == nil:
			// Nothing is sent: it only tests what the API server cannot.
		case err == nil && !applies:
			t.Fatalf("the API server does not apply\n%s\nto %s", given, before)
		case err == nil:
			taken++
			after := before
			if patch != nil {
				after = appliedThere(t, patch, object)
			}
			if got, want := decoded(t, string(after)), decoded(t, string(want)); !reflect.DeepEqual(got, want) {
				t.Fatalf("the patch %s\nof  %s\nfor %s\nmakes %v\nwant  %v", patch, given, before, got, want)
			}
		case applies && !containsAny(err.Error(), stricter):
			t.Fatalf("the API server applies\n%s\nto %s\nand the error is %v", given, before, err)
		default:
			refused++
		}
	}
	if taken < rounds()/10 || refused < rounds()/10 {
		t.Errorf("%d patches were taken and %d refused: too few of a kind to say anything", taken, refused)
	}
}

// What one random object becomes another by, as a whole and as a merge patch.
func TestRandomDifferencesAgainstTheAPIServer(t *testing.T) {
	random := source{rand.New(rand.NewPCG(7386, 6902))}
	for range rounds() {
		object, other := random.object(), random.object()
		for form, want := range map[string]any{formObject: other, formMergePatch: merged(object, other)} {
			patch, err := jsonPatch(other, form, object, true)
			if err != nil {
				t.Fatalf("%s of %v: %v", form, other, err)
			}
			var got any = object
			if patch != nil {
				got = decoded(t, string(appliedThere(t, patch, object)))
			}
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("%s: the patch %s\nof    %v\nmakes %v\nwant  %v", form, patch, object, got, want)
			}
		}
	}
}

// rounds is how many patches, or differences, are made up.
func rounds() int {
	if testing.Short() {
		return 2_500 // make soak makes the others too
	}
	return 10_000
}

func containsAny(text string, words []string) bool {
	for _, word := range words {
		if strings.Contains(text, word) {
			return true
		}
	}
	return false
}

// source is where random JSON comes from.
type source struct{ *rand.Rand }

func one[T any](s source, of ...T) T { return of[s.IntN(len(of))] }

func (s source) name() string { return one(s, "a", "b", "c", "a/b", "~1", "", "0", "-", "<é>") }

func (s source) object() map[string]any {
	object := make(map[string]any)
	for range s.IntN(5) {
		object[s.name()] = s.value(3)
	}
	return object
}

// value is some JSON, nested no deeper than levels.
func (s source) value(levels int) any {
	if levels > 0 && s.IntN(2) == 0 {
		if s.IntN(2) == 0 {
			object := make(map[string]any)
			for range s.IntN(4) {
				object[s.name()] = s.value(levels - 1)
			}
			return object
		}
		array := []any{}
		for range s.IntN(4) {
			array = append(array, s.value(levels-1))
		}
		return array
	}
	return one[any](s, nil, true, false, "", "x", "<&\u2028>", json.Number("0"), json.Number("1"), json.Number("1.0"), json.Number("9007199254740993"))
}

// operations are a few, most of which find what they look for in the object.
func (s source) operations(object any) []any {
	var operations []any
	for range 1 + s.IntN(4) {
		path := s.pointer(object)
		o := map[string]any{"op": one(s, "add", "add", "add", "remove", "replace", "replace", "move", "copy", "copy", "test"), "path": path}
		switch o["op"] {
		case "move", "copy":
			o["from"] = s.pointer(object)
		case "add", "replace":
			o["value"] = s.value(2)
		case "test":
			o["value"] = s.value(1)
			if found, err := (&document{root: map[string]any{"": object}}).get(strings.Split(path, "/")); err == nil && s.IntN(4) > 0 {
				o["value"] = found
			}
		}
		operations = append(operations, o)
	}
	return operations
}

// pointer leads, most of the time, to something in node or beside it.
func (s source) pointer(node any) string {
	if s.IntN(40) == 0 {
		return one(s, "", "/", "//", "/a/b/c/d")
	}
	pointer := ""
	for {
		token := s.name()
		switch at := node.(type) {
		case map[string]any:
			if _, ok := at[token]; !ok && len(at) > 0 && s.IntN(4) > 0 {
				token = one(s, slices.Sorted(maps.Keys(at))...)
			}
			node = at[token]
		case []any:
			i := s.IntN(len(at) + 1)
			token, node = fmt.Sprint(i), nil
			if i < len(at) {
				node = at[i]
			}
			if s.IntN(6) == 0 {
				token = one(s, "-", "-1", "01", "x", "99")
			}
		default:
			return pointer
		}
		pointer += "/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(token)
		if s.IntN(3) == 0 {
			return pointer
		}
	}
}
