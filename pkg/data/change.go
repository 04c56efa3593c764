package data

import "maps"

// Change puts a content at a path, whatever was there before, or takes away what is
// there.
type Change struct {
	// Path has at least one part.
	Path []string
	// Content to put there; nil takes away.
	Content Content
}

// With returns the tree with changes made in their order.
func (t *Tree) With(changes ...Change) *Tree {
	e := newEdit(t)
	e.apply(changes)
	return e.root
}

// NewCollection returns the content that changes of nothing result in. It stays also
// when its last document goes.
func NewCollection(changes ...Change) Content {
	e := newEdit(New())
	e.apply(changes)
	root := e.own(e.root)
	root.lasting = true
	return root
}

// edit makes a new root of an old one. What it makes itself it may change further;
// what it has found it copies first, each tree at most once.
type edit struct {
	root  *Tree
	fresh map[*Tree]bool
}

func newEdit(root *Tree) *edit {
	return &edit{root: root, fresh: make(map[*Tree]bool)}
}

func (e *edit) apply(changes []Change) {
	for _, c := range changes {
		if c.Content == nil {
			e.remove(c.Path)
			continue
		}
		e.set(c.Path, c.Content)
	}
}

// own returns t, or its copy if others can see t.
func (e *edit) own(t *Tree) *Tree {
	if e.fresh[t] {
		return t
	}
	c := New()
	c.children, c.lasting = maps.Clone(t.children), t.lasting
	e.fresh[c] = true
	return c
}

// set puts a content at the path, which is not empty. A document in the way gives
// place.
func (e *edit) set(path []string, content Content) {
	e.root = e.own(e.root)
	at := e.root
	for _, key := range path[:len(path)-1] {
		next, ok := at.children[key].(*Tree)
		if ok {
			next = e.own(next)
		} else {
			next = newTree(1)
			e.fresh[next] = true
		}
		at.children[key] = next
		at = next
	}
	at.children[path[len(path)-1]] = content
}

// remove takes away what is at the path, and the trees above that hold nothing else.
func (e *edit) remove(path []string) {
	if e.root.Has(path) {
		e.root = e.removeFrom(e.root, path)
	}
}

func (e *edit) removeFrom(t *Tree, path []string) *Tree {
	t = e.own(t)
	key := path[0]
	if len(path) == 1 {
		delete(t.children, key)
		return t
	}
	child, ok := t.children[key].(*Tree)
	if !ok {
		return t
	}
	child = e.removeFrom(child, path[1:])
	t.children[key] = child
	if len(child.children) == 0 && !child.lasting {
		delete(t.children, key)
	}
	return t
}
