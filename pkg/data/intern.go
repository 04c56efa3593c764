package data

import (
	"fmt"
	"sync"
	"weak"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/valyala/fastjson"
)

// Interner makes documents of objects and holds equal parts of them once: the pods of
// a Deployment differ in some ten fields. It forgets a value that no document needs any
// more. The zero value is ready; several goroutines may use it.
type Interner struct {
	mu    sync.Mutex
	known map[int]weak.Pointer[ast.Term] // by hash; of two with one hash the newer
	sweep int                            // how many there may be before those that are gone are looked for
}

// firstSweep is so small that it costs nothing.
const firstSweep = 1024

// Document returns an object as a content. The object has the form to which encoding/json
// decodes, or that of Kubernetes' unstructured objects; the error says what has not.
func (t *Interner) Document(object map[string]any) (Content, error) {
	term, err := t.term(object)
	if err != nil {
		return nil, fmt.Errorf("reading an object: %w", err)
	}
	return document{term}, nil
}

// Read returns a parsed object as a content, without a detour by maps: of 10,000 objects
// that come at the start most parts are known already.
func (t *Interner) Read(object *fastjson.Value) Content {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.forgetSome()
	return document{t.read(object)}
}

func (t *Interner) term(object map[string]any) (*ast.Term, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.forgetSome()
	return t.convert(object)
}

// read returns the term of a value that was parsed.
func (t *Interner) read(v *fastjson.Value) *ast.Term {
	switch v.Type() {
	case fastjson.TypeObject:
		object := v.GetObject()
		items := make([][2]*ast.Term, 0, object.Len())
		object.Visit(func(key []byte, value *fastjson.Value) {
			items = append(items, [2]*ast.Term{t.text(key), t.read(value)})
		})
		return t.once(ast.NewObject(items...))
	case fastjson.TypeArray:
		values := v.GetArray()
		elements := make([]*ast.Term, 0, len(values))
		for _, value := range values {
			elements = append(elements, t.read(value))
		}
		return t.once(ast.NewArray(elements...))
	case fastjson.TypeString:
		return t.text(v.GetStringBytes())
	case fastjson.TypeNumber:
		return t.once(ast.Number(v.MarshalTo(nil)))
	case fastjson.TypeTrue, fastjson.TypeFalse:
		return ast.InternedTerm(v.GetBool())
	case fastjson.TypeNull:
	}
	return ast.InternedNullTerm
}

// text is once for a string, which it does not make if it knows it.
func (t *Interner) text(b []byte) *ast.Term {
	s := ast.String(b)
	if known := t.known[s.Hash()].Value(); known != nil {
		if text, ok := known.Value.(ast.String); ok && text == s {
			return known
		}
	}
	return t.once(s)
}

func (t *Interner) convert(x any) (*ast.Term, error) {
	switch x := x.(type) {
	case map[string]any:
		items := make([][2]*ast.Term, 0, len(x))
		for key, value := range x {
			term, err := t.convert(value)
			if err != nil {
				return nil, err
			}
			items = append(items, [2]*ast.Term{t.once(ast.String(key)), term})
		}
		return t.once(ast.NewObject(items...)), nil
	case []any:
		elements := make([]*ast.Term, 0, len(x))
		for _, value := range x {
			term, err := t.convert(value)
			if err != nil {
				return nil, err
			}
			elements = append(elements, term)
		}
		return t.once(ast.NewArray(elements...)), nil
	}
	value, err := ast.InterfaceToValue(x)
	if err != nil {
		return nil, err
	}
	return t.once(value), nil
}

// once returns the term of a value, which is the same for equal values.
func (t *Interner) once(value ast.Value) *ast.Term {
	hash := value.Hash()
	if known := t.known[hash].Value(); known != nil && known.Value.Compare(value) == 0 {
		return known
	}
	term := ast.NewTerm(value)
	if t.known == nil {
		t.known = make(map[int]weak.Pointer[ast.Term])
	}
	t.known[hash] = weak.Make(term)
	return term
}

// forgetSome calls forget if it is time.
func (t *Interner) forgetSome() {
	if len(t.known) >= t.sweep {
		t.forget()
	}
}

// forget drops the values that are gone. It comes again when there are twice as
// many as now, so that it costs each value as much as making it at most.
func (t *Interner) forget() {
	for hash, known := range t.known {
		if known.Value() == nil {
			delete(t.known, hash)
		}
	}
	t.sweep = max(firstSweep, 2*len(t.known))
}
