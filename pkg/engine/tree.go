package engine

import (
	"maps"
	"strconv"
	"sync"

	"github.com/open-policy-agent/opa/v1/ast"
)

// node is data at and below one path: a *branch, or a document. It never changes
// once it can be reached from a root, so a decision that holds a root sees one
// state of all data, and whoever changes data makes a new root and waits for
// nobody.
type node interface {
	value() ast.Value
}

// document is one value from somewhere: a key of a ConfigMap, or an object of the
// cluster.
type document struct{ *ast.Term }

func (d document) value() ast.Value { return d.Value }

// branch is what lies between the root and the documents.
type branch struct {
	children map[string]node
	// lasting is true for one that stays when its last child goes: no objects of a
	// resource are something else than a resource that nobody knows.
	lasting bool

	// whole is all of it as one value. Policies seldom ask for that: as a rule they
	// name the object that they want, and only who looks through all needs it.
	whole func() ast.Value
}

func newBranch(size int) *branch {
	b := &branch{children: make(map[string]node, size)}
	b.whole = sync.OnceValue(b.join)
	return b
}

func (b *branch) value() ast.Value { return b.whole() }

func (b *branch) join() ast.Value {
	items := make([][2]*ast.Term, 0, len(b.children))
	for key, child := range b.children {
		term := ast.NewTerm(child.value())
		if d, ok := child.(document); ok {
			term = d.Term
		}
		items = append(items, [2]*ast.Term{ast.StringTerm(key), term})
	}
	return ast.NewObject(items...)
}

// lookup is the value at a path below n; nil if there is none.
func lookup(n node, path []string) ast.Value {
	for i, key := range path {
		b, ok := n.(*branch)
		if !ok {
			return find(n.value(), path[i:])
		}
		if n = b.children[key]; n == nil {
			return nil
		}
	}
	return n.value()
}

// find is the value at a path within a document; nil if there is none.
func find(value ast.Value, path []string) ast.Value {
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

// covers reports whether rules at a path would be in the way of data, or data in
// theirs: there is data at the path, or it leads through a value that has no
// fields.
func covers(n node, path []string) bool {
	for i, key := range path {
		b, ok := n.(*branch)
		if !ok {
			return coversDocument(n.value(), path[i:])
		}
		if n = b.children[key]; n == nil {
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

// edit makes a new root of an old one. What it makes itself it may change further;
// what it has found it copies first, each branch at most once.
type edit struct {
	root  *branch
	fresh map[*branch]bool
}

func newEdit(root *branch) *edit {
	return &edit{root: root, fresh: make(map[*branch]bool)}
}

// own is b, or its copy if others can see b.
func (e *edit) own(b *branch) *branch {
	if e.fresh[b] {
		return b
	}
	c := newBranch(0)
	c.children, c.lasting = maps.Clone(b.children), b.lasting
	e.fresh[c] = true
	return c
}

// set puts n at the path, which is not empty. A document in the way gives place.
func (e *edit) set(path []string, n node) {
	e.root = e.own(e.root)
	at := e.root
	for _, key := range path[:len(path)-1] {
		next, ok := at.children[key].(*branch)
		if ok {
			next = e.own(next)
		} else {
			next = newBranch(1)
			e.fresh[next] = true
		}
		at.children[key] = next
		at = next
	}
	at.children[path[len(path)-1]] = n
}

// remove takes away what is at the path, and the branches above that hold nothing
// else.
func (e *edit) remove(path []string) {
	if lookupNode(e.root, path) == nil {
		return
	}
	e.root = e.removeFrom(e.root, path)
}

func (e *edit) removeFrom(b *branch, path []string) *branch {
	b = e.own(b)
	key := path[0]
	if len(path) == 1 {
		delete(b.children, key)
		return b
	}
	child, ok := b.children[key].(*branch)
	if !ok {
		return b
	}
	child = e.removeFrom(child, path[1:])
	b.children[key] = child
	if len(child.children) == 0 && !child.lasting {
		delete(b.children, key)
	}
	return b
}

func lookupNode(n node, path []string) node {
	for _, key := range path {
		b, ok := n.(*branch)
		if !ok || b.children[key] == nil {
			return nil
		}
		n = b.children[key]
	}
	return n
}

// merge is the data of both. They have no documents in common, and branches only
// where the path of replicated objects begins.
func merge(a, b *branch) *branch {
	if len(b.children) == 0 {
		return a
	}
	merged := newBranch(0)
	merged.children, merged.lasting = maps.Clone(a.children), a.lasting || b.lasting
	for key, child := range b.children {
		below, ok := merged.children[key].(*branch)
		other, okOther := child.(*branch)
		if ok && okOther {
			child = merge(below, other)
		}
		merged.children[key] = child
	}
	return merged
}

// count is the number of documents at and below n.
func count(n node) int {
	b, ok := n.(*branch)
	if !ok {
		return 1
	}
	documents := 0
	for _, child := range b.children {
		documents += count(child)
	}
	return documents
}
