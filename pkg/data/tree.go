// Package data holds the documents that policies read, in a [Tree] that never
// changes. Whoever changes data makes a new root, which shares all that stayed the
// same with the old one: a reader that holds a root sees one state of all data and
// waits for nobody.
//
// [Parse] reads a document of JSON or YAML, [Interner] reads objects of the cluster
// so that equal parts of them are one value. The package knows nothing of policies;
// it imports OPA's values and no package of ours, and does no I/O.
package data

import (
	"maps"
	"strconv"
	"sync"

	"github.com/open-policy-agent/opa/v1/ast"
)

// Content is what stands at one path: a document or a [Tree]. It never changes once
// it can be reached from a root.
type Content interface {
	value() ast.Value
}

// document is one value from somewhere: a key of a ConfigMap, or an object of the
// cluster.
type document struct{ *ast.Term }

func (d document) value() ast.Value { return d.Value }

// NewDocument returns a value as a content.
func NewDocument(term *ast.Term) Content { return document{term} }

// Tree is the data at and below one path.
type Tree struct {
	children map[string]Content
	// lasting is true for a tree that stays when its last child goes: a resource without
	// objects differs from a resource that nobody knows.
	lasting bool

	// object is all of it as one value, made when it is first asked for. Policies
	// seldom ask: they name the object that they want.
	object func() ast.Object
}

// New returns a tree without data.
func New() *Tree { return newTree(0) }

func newTree(size int) *Tree {
	t := &Tree{children: make(map[string]Content, size)}
	t.object = sync.OnceValue(t.join)
	return t
}

// Value returns all data of the tree as one object.
func (t *Tree) Value() ast.Object { return t.object() }

func (t *Tree) value() ast.Value { return t.object() }

func (t *Tree) join() ast.Object {
	items := make([][2]*ast.Term, 0, len(t.children))
	for key, child := range t.children {
		d, ok := child.(document)
		if !ok {
			d = document{ast.NewTerm(child.value())}
		}
		items = append(items, [2]*ast.Term{ast.StringTerm(key), d.Term})
	}
	return ast.NewObject(items...)
}

// Lookup returns the value at a path, which may lead into a document; nil if there
// is none.
func (t *Tree) Lookup(path []string) ast.Value {
	var at Content = t
	for i, key := range path {
		tree, ok := at.(*Tree)
		if !ok {
			return Find(at.value(), path[i:])
		}
		if at = tree.children[key]; at == nil {
			return nil
		}
	}
	return at.value()
}

// Find returns the value at a path within a document; nil if there is none.
func Find(value ast.Value, path []string) ast.Value {
	for _, key := range path {
		var term *ast.Term
		switch v := value.(type) {
		case ast.Object:
			term = v.Get(ast.StringTerm(key))
		case *ast.Array:
			if i, err := strconv.Atoi(key); err == nil && 0 <= i && i < v.Len() {
				term = v.Elem(i)
			}
		}
		if term == nil {
			return nil
		}
		value = term.Value
	}
	return value
}

// Has reports whether a document or a tree stands at a path. It does not look into
// documents.
func (t *Tree) Has(path []string) bool { return t.at(path) != nil }

func (t *Tree) at(path []string) Content {
	var at Content = t
	for _, key := range path {
		tree, ok := at.(*Tree)
		if !ok || tree.children[key] == nil {
			return nil
		}
		at = tree.children[key]
	}
	return at
}

// Covers reports whether rules at a path and the data are in each other's way: there
// is data at the path, or the path leads through a value that has no fields.
func (t *Tree) Covers(path []string) bool {
	var at Content = t
	for i, key := range path {
		tree, ok := at.(*Tree)
		if !ok {
			return coversDocument(at.value(), path[i:])
		}
		if at = tree.children[key]; at == nil {
			return false
		}
	}
	return true
}

func coversDocument(value ast.Value, path []string) bool {
	for _, key := range path {
		object, ok := value.(ast.Object)
		if !ok {
			return true
		}
		term := object.Get(ast.StringTerm(key))
		if term == nil {
			return false
		}
		value = term.Value
	}
	return true
}

// Documents returns how many documents there are at and below a path.
func (t *Tree) Documents(path []string) int {
	at := t.at(path)
	if at == nil {
		return 0
	}
	return count(at)
}

func count(c Content) int {
	t, ok := c.(*Tree)
	if !ok {
		return 1
	}
	documents := 0
	for _, child := range t.children {
		documents += count(child)
	}
	return documents
}

// Merge returns the data of both trees. They must have no documents in common: trees
// meet only above the path at which replicated objects begin.
func (t *Tree) Merge(other *Tree) *Tree {
	if len(other.children) == 0 {
		return t
	}
	merged := New()
	merged.children, merged.lasting = maps.Clone(t.children), t.lasting || other.lasting
	for key, child := range other.children {
		ours, ok := merged.children[key].(*Tree)
		theirs, okOther := child.(*Tree)
		if ok && okOther {
			child = ours.Merge(theirs)
		}
		merged.children[key] = child
	}
	return merged
}
