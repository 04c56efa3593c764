package engine

import (
	"maps"
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// Replicated says where in data the objects of the cluster are.
type Replicated struct {
	// Path is below which each resource has a name; empty: nothing is replicated.
	Path []string
	// Resources are the paths of those that are replicated in any case.
	Resources [][]string
	// Auto is true if there are others below Path: those that policies read.
	Auto bool
}

// covers reports whether rules at a path would be in the way of objects.
func (r Replicated) covers(path []string) bool {
	return len(r.Path) > 0 && hasPrefix(r.Path, path) ||
		slices.ContainsFunc(r.Resources, func(resource []string) bool {
			return hasPrefix(path, resource) || hasPrefix(resource, path)
		})
}

// reserves reports whether data at a path would be in the way of objects, those of
// resources included that somebody may come to read.
func (r Replicated) reserves(path []string) bool {
	return r.covers(path) || len(r.Path) > 0 && hasPrefix(path, r.Path)
}

func hasPrefix(path, prefix []string) bool {
	return len(path) >= len(prefix) && slices.Equal(path[:len(prefix)], prefix)
}

// read is one place where a module reads objects of the cluster.
type read struct {
	name     string // of the resource; empty if the text does not say which
	row, col int
}

// reads are the places where a module reads below the path, the first for each
// name. They are in the text: what a rule makes of its input is not known.
func reads(tree *ast.Module, path []string) []read {
	aliases := make(map[ast.Var]ast.Ref)
	for _, i := range tree.Imports {
		if ref, ok := i.Path.Value.(ast.Ref); ok {
			aliases[i.Name()] = ref
		}
	}
	found := make(map[string]read)
	note := func(ref ast.Ref, at *ast.Location) {
		if name, ok := readBy(ref, path); ok {
			if _, known := found[name]; !known && at != nil {
				found[name] = read{name: name, row: at.Row, col: at.Col}
			}
		}
	}
	visitor := ast.NewGenericVisitor(nil)
	visit := func(x any) bool {
		switch x := x.(type) {
		case *ast.With:
			visitor.Walk(x.Value) // what it replaces is not read
			return true
		case *ast.Term:
			switch v := x.Value.(type) {
			case ast.Ref:
				note(resolve(v, aliases), x.Location)
				if _, ok := v[0].Value.(ast.Var); !ok {
					visitor.Walk(v[0])
				}
				for _, key := range v[1:] {
					visitor.Walk(key)
				}
				return true // an alias at its head is not read by itself
			case ast.Var:
				note(aliases[v], x.Location)
			}
		}
		return false
	}
	visitor = ast.NewGenericVisitor(visit)
	for _, rule := range tree.Rules {
		visitor.Walk(rule)
	}
	return slices.SortedFunc(maps.Values(found), func(a, b read) int { return byPlaceOf(a.row, a.col, b.row, b.col) })
}

// resolve puts the imported path in the place of its alias.
func resolve(ref ast.Ref, aliases map[ast.Var]ast.Ref) ast.Ref {
	head, ok := ref[0].Value.(ast.Var)
	if !ok || aliases[head] == nil {
		return ref
	}
	return aliases[head].Concat(ref[1:])
}

// readBy is the name of the resource that a reference reads; empty if it names none.
// It is false for one that leads elsewhere.
func readBy(ref ast.Ref, path []string) (name string, ok bool) {
	if len(ref) <= len(path) || !ref.HasPrefix(ast.DefaultRootRef) {
		return "", false
	}
	for i, key := range path {
		if s, ok := ref[i+1].Value.(ast.String); !ok || string(s) != key {
			return "", false
		}
	}
	if len(ref) == len(path)+1 {
		return "", true
	}
	s, _ := ref[len(path)+1].Value.(ast.String)
	return string(s), true
}

// defined are the names below the path that modules give to packages and rules of
// their own: no resources.
func defined(path []string, sets ...map[policy.ID]*module) map[string]bool {
	names := make(map[string]bool)
	for _, modules := range sets {
		for _, m := range modules {
			define(names, m.ast, path)
		}
	}
	return names
}

func define(names map[string]bool, tree *ast.Module, path []string) {
	if tree == nil {
		return
	}
	name, ok := readBy(tree.Package.Path, path)
	switch {
	case ok && name != "":
		names[name] = true
	case ok:
		for _, rule := range tree.Rules {
			names[string(rule.Head.Name)] = true
		}
	}
}

// Reads are the names of resources that the wanted modules read, and those that are
// in force in a snapshot (nil is none), sorted. There are none unless what policies
// read is replicated.
func (c *Compiler) Reads(inForce *Snapshot, wanted policy.Set) []string {
	if !c.parser.replicated.Auto {
		return nil
	}
	sets := []map[policy.ID]*module{c.parser.parse(wanted)}
	if inForce != nil {
		sets = append(sets, inForce.modules)
	}
	own := defined(c.parser.replicated.Path, sets...)
	names := make(map[string]bool)
	for _, modules := range sets {
		for _, m := range modules {
			for _, r := range m.reads {
				if r.name != "" && !own[r.name] {
					names[r.name] = true
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// Read is a place where a module reads objects of the cluster.
type Read struct {
	Module policy.ID
	// Name is that of the resource; empty if the text does not say which.
	Name     string
	Row, Col int
}

// Places are where the modules of a set read objects of the cluster, for each name the
// first of each module. They are in the order of the modules.
func (c *Compiler) Places(set policy.Set) []Read {
	modules := c.parser.parse(set)
	own := defined(c.parser.replicated.Path, modules)
	var places []Read
	for _, id := range sortedIDs(modules) {
		for _, r := range modules[id].reads {
			if !own[r.name] {
				places = append(places, Read{Module: id, Name: r.name, Row: r.row, Col: r.col})
			}
		}
	}
	return places
}

// Broken are the problems of the modules of a set that cannot be read, so that nobody
// knows what they ask of the cluster.
func (c *Compiler) Broken(set policy.Set) map[policy.ID][]policy.Problem {
	broken := make(map[policy.ID][]policy.Problem)
	for id, m := range c.parser.parse(set) {
		if len(m.problems) > 0 {
			broken[id] = inSource(m.problems, m)
		}
	}
	return broken
}

// missing are the problems of a module that reads what is not available.
func (m *module) missing(unavailable policy.Unavailable, own map[string]bool) []policy.Problem {
	var problems []policy.Problem
	for _, r := range m.reads {
		resource, ok := unavailable[r.name]
		if !ok || own[r.name] {
			continue
		}
		problem := resource.Problem()
		problem.Row, problem.Col = r.row, r.col
		problems = append(problems, problem)
	}
	return problems
}
