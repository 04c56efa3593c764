package data

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
)

// native is the data at and below c as encoding/json would decode it.
func native(t *testing.T, c Content) any {
	t.Helper()
	value, err := ast.JSON(c.value())
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// The data after any edits is what a plain map would be, and a root that somebody
// holds stays as it was.
func TestEditsDoWhatAMapDoes(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	names := []string{"a", "b", "c"}
	root, model := New(), map[string]any{}
	type held struct {
		root *Tree
		want string
	}
	var all []held
	for step := range 2000 {
		e := newEdit(root)
		for range 1 + random.IntN(4) {
			path := make([]string, 3) // of one length, as documents never lie within each other
			for i := range path {
				path[i] = names[random.IntN(len(names))]
			}
			if random.IntN(2) == 0 {
				e.apply([]Change{{Path: path}})
				remove(model, path)
				continue
			}
			e.apply([]Change{{Path: path, Content: document{ast.IntNumberTerm(step)}}})
			set(model, path, step)
		}
		root = e.root
		text, err := json.Marshal(model)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, held{root, string(text)})
		if step%10 == 0 {
			all = append(all, held{all[0].root, all[0].want})
		}
	}
	for n, h := range all {
		got, err := json.Marshal(native(t, h.root))
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != h.want {
			t.Fatalf("root %d: got %s, want %s", n, got, h.want)
		}
	}
}

func set(model map[string]any, path []string, value any) {
	for _, key := range path[:len(path)-1] {
		next, ok := model[key].(map[string]any)
		if !ok {
			next = make(map[string]any)
			model[key] = next
		}
		model = next
	}
	model[path[len(path)-1]] = value
}

// remove takes away what is at the path and the maps that are empty then.
func remove(model map[string]any, path []string) {
	if len(path) == 1 {
		delete(model, path[0])
		return
	}
	next, ok := model[path[0]].(map[string]any)
	if !ok {
		return
	}
	remove(next, path[1:])
	if len(next) == 0 {
		delete(model, path[0])
	}
}

func TestACollectionStaysWhenItsLastDocumentGoes(t *testing.T) {
	e := newEdit(New())
	e.apply([]Change{
		{Path: []string{"kubernetes", "pods"}, Content: NewCollection(Change{Path: []string{"ns", "p"}, Content: document{ast.BooleanTerm(true)}})},
		{Path: []string{"kubernetes", "pods", "ns", "p"}},
	})
	if got, want := native(t, e.root), any(map[string]any{"kubernetes": map[string]any{"pods": map[string]any{}}}); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	e = newEdit(e.root) // what was read never changes
	e.apply([]Change{{Path: []string{"kubernetes", "pods"}}})
	if got := native(t, e.root); !reflect.DeepEqual(got, any(map[string]any{})) {
		t.Errorf("got %v, want nothing", got)
	}
}

// OPA's own store is the oracle: the same data, read at all paths there are and at
// some that there are not.
func TestReadsGiveWhatOPAsStoreGives(t *testing.T) {
	var content map[string]any
	text := `{"ns": {"cm": {"list": [1, {"x": [true, null]}, "y"], "object": {"a": {"b": "c"}, "0": "zero"}, "text": "t"}},
		"kubernetes": {"pods": {"ns": {"p": {"metadata": {"name": "p"}}}}, "nodes": {"n": {}}}}`
	if err := json.Unmarshal([]byte(text), &content); err != nil {
		t.Fatal(err)
	}
	e := newEdit(New())
	for _, path := range [][]string{
		{"ns", "cm", "list"}, {"ns", "cm", "object"}, {"ns", "cm", "text"}, {"kubernetes", "pods", "ns", "p"}, {"kubernetes", "nodes", "n"},
	} {
		value := any(content)
		for _, key := range path {
			value = value.(map[string]any)[key]
		}
		v, err := ast.InterfaceToValue(value)
		if err != nil {
			t.Fatal(err)
		}
		e.set(path, document{ast.NewTerm(v)})
	}
	oracle := inmem.NewFromObjectWithOpts(content, inmem.OptReturnASTValuesOnRead(true))
	keys := []string{"ns", "cm", "list", "object", "text", "kubernetes", "pods", "nodes", "p", "n", "metadata", "name", "a", "b", "x", "0", "1", "2", "3", "-1", "01", "-", ""}
	random, found := rand.New(rand.NewPCG(3, 4)), 0
	for range 200_000 {
		path := make(storage.Path, random.IntN(7))
		at := any(content)
		for i := range path {
			path[i] = keys[random.IntN(len(keys))]
			if m, ok := at.(map[string]any); ok && len(m) > 0 && random.IntN(4) > 0 { // mostly one that is there
				some := slices.Sorted(maps.Keys(m))
				path[i] = some[random.IntN(len(some))]
				at = m[path[i]]
			}
		}
		want, errWant := readFrom(oracle, path)
		got := e.root.Lookup(path)
		if storage.IsNotFound(errWant) != (got == nil) || got != nil && got.Compare(want) != 0 {
			t.Fatalf("%v: got %v; want %v, %v", path, got, want, errWant)
		}
		if got != nil {
			found++
		}
	}
	if found < 1000 {
		t.Errorf("only %d reads found something", found)
	}
}

func readFrom(s storage.Store, path storage.Path) (value ast.Value, err error) {
	ctx := context.Background()
	err = storage.Txn(ctx, s, storage.TransactionParams{}, func(txn storage.Transaction) error {
		found, err := s.Read(ctx, txn, path)
		value, _ = found.(ast.Value)
		return err
	})
	return value, err
}

// Equal parts of objects are one value, also when their objects came and went.
func TestDocumentsShareWhatIsEqual(t *testing.T) {
	var known Interner
	object := func(n int) map[string]any {
		return map[string]any{
			"metadata": map[string]any{"name": fmt.Sprint(n)},
			"spec":     map[string]any{"containers": []any{map[string]any{"image": "i", "args": []any{int64(1), 2.5, true, nil}}}},
		}
	}
	spec := func(term *ast.Term) *ast.Term {
		return term.Value.(ast.Object).Get(ast.StringTerm("spec"))
	}
	var kept []*ast.Term
	for n := range 5000 {
		term, err := known.term(object(n))
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 || n == 4999 {
			kept = append(kept, term)
		}
		if want, err := ast.InterfaceToValue(object(n)); err != nil || want.Compare(term.Value) != 0 {
			t.Fatalf("got %v, want %v, %v", term, want, err)
		}
	}
	if spec(kept[0]) != spec(kept[1]) {
		t.Error("two objects with one spec hold two of them")
	}
	if n := len(known.known); n > 4*5000/2 {
		t.Errorf("%d values are known, of objects most of which are gone", n)
	}
	if _, err := known.term(map[string]any{"a": func() {}}); err == nil {
		t.Error("an object that is no JSON was taken")
	}
}
