package compile

import (
	"cmp"
	"fmt"
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

// resourceRef is one place where a module reads objects of the cluster.
type resourceRef struct {
	name     string // of the resource; empty if the text does not say which
	row, col int
}

// resourceRefs returns the places where a module reads below the path, the first for each
// name. They are in the text: what a rule makes of its input is unknown.
func resourceRefs(tree *ast.Module, path []string) []resourceRef {
	aliases := make(map[ast.Var]ast.Ref)
	for _, i := range tree.Imports {
		if ref, ok := i.Path.Value.(ast.Ref); ok {
			aliases[i.Name()] = ref
		}
	}
	found := make(map[string]resourceRef)
	note := func(ref ast.Ref, at *ast.Location) {
		if name, ok := resourceIn(ref, path); ok {
			if _, known := found[name]; !known && at != nil {
				found[name] = resourceRef{name: name, row: at.Row, col: at.Col}
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
		ast.WalkRules(rule, func(r *ast.Rule) bool { // else rules too
			for _, part := range r.Head.Reference[min(1, len(r.Head.Reference)):] {
				visitor.Walk(part) // the visitor leaves it out
			}
			return false
		})
		visitor.Walk(rule)
	}
	return slices.SortedFunc(maps.Values(found), func(a, b resourceRef) int {
		return cmp.Or(cmp.Compare(a.row, b.row), cmp.Compare(a.col, b.col))
	})
}

// resolve puts the imported path in the place of its alias.
func resolve(ref ast.Ref, aliases map[ast.Var]ast.Ref) ast.Ref {
	head, ok := ref[0].Value.(ast.Var)
	if !ok || aliases[head] == nil {
		return ref
	}
	return aliases[head].Concat(ref[1:])
}

// resourceIn returns the name of the resource that a reference reads; empty if it names
// none. It is false for a reference that leads elsewhere.
func resourceIn(ref ast.Ref, path []string) (name string, ok bool) {
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

// declaredNames returns the names below the path that bundles and modules give to packages
// and rules of their own: no resources.
func declaredNames(path []string, bundles *bundles, sets ...map[policy.ID]*module) map[string]bool {
	names := make(map[string]bool)
	for _, m := range bundles.modules {
		addDeclared(names, m.ast, path)
	}
	for _, modules := range sets {
		for _, m := range modules {
			addDeclared(names, m.ast, path)
		}
	}
	return names
}

func addDeclared(names map[string]bool, tree *ast.Module, path []string) {
	if tree == nil {
		return
	}
	name, ok := resourceIn(tree.Package.Path, path)
	switch {
	case ok && name != "":
		names[name] = true
	case ok:
		for _, rule := range tree.Rules {
			names[string(rule.Head.Name)] = true
		}
	}
}

// nameOwners says whose a name below the path is: that of a package in force, or else that
// of a resource that some module reads.
type nameOwners struct {
	replicated Replicated
	known      policy.Resources
	own        map[string]bool    // names of packages and rules in force
	readers    map[string]*module // of others, by name: one in force, or the oldest that is wanted
	base       map[policy.ID]*module
}

func newNameOwners(replicated Replicated, known policy.Resources, bundles *bundles, base, wanted map[policy.ID]*module) nameOwners {
	o := nameOwners{
		replicated: replicated,
		known:      known,
		own:        declaredNames(replicated.Path, bundles, base),
		readers:    make(map[string]*module),
		base:       base,
	}
	for _, m := range wanted {
		for _, r := range m.resources {
			if other := o.readers[r.name]; other == nil || m.Older(other.Module) < 0 {
				o.readers[r.name] = m
			}
		}
	}
	for _, m := range base {
		for _, r := range m.resources {
			o.readers[r.name] = m
		}
	}
	return o
}

// check says why a module cannot go into force in the place of the one before, which
// may be nil, and what else its author should know.
func (o nameOwners) check(m, from *module) (problems, warnings []policy.Problem) {
	if o.known == nil || !o.replicated.Auto {
		return nil, nil
	}
	before := make(map[string]bool)
	if from != nil {
		for _, r := range from.resources {
			before[r.name] = true
		}
	}
	for _, r := range m.resources {
		problem, known := o.of(r)
		switch {
		case problem.Code == "":
		case known || before[r.name] && problem.Code != policy.CodePending:
			warnings = append(warnings, problem)
		case !before[r.name]:
			problems = append(problems, problem)
		}
	}
	return append(problems, o.clashes(m)...), warnings
}

// of returns what is to be said about one place that reads; a problem without a code says
// nothing. known is true if it is known what the place will find.
func (o nameOwners) of(r resourceRef) (problem policy.Problem, known bool) {
	resource, ok := o.known[r.name]
	switch {
	case r.name == "" && len(o.replicated.Resources) > 0, o.own[r.name]:
		return policy.Problem{}, true
	case r.name == "":
		known = true
		problem = policy.Problem{Code: policy.CodeUnavailable, Message: "the text does not say which resource is read: " +
			"of those that no other place names nothing is replicated, unless --replicate does"}
	case !ok:
		problem = policy.Problem{Code: policy.CodePending, Message: r.name + " is not known yet"}
	case resource.State == policy.ResourceLoaded:
		return policy.Problem{}, true
	default:
		problem, known = resource.Problem(), resource.Known()
	}
	problem.Row, problem.Col = r.row, r.col
	return problem, known
}

// clashes are the names that a module would define and that mean resources: somebody
// in force reads them, or somebody older.
func (o nameOwners) clashes(m *module) []policy.Problem {
	names := make(map[string]bool)
	addDeclared(names, m.ast, o.replicated.Path)
	var problems []policy.Problem
	for _, name := range slices.Sorted(maps.Keys(names)) {
		reader, resource := o.readers[name], o.known[name]
		if o.own[name] || reader == nil || reader.ID == m.ID || resource.Name == "" || !resource.Exists() {
			continue
		}
		if _, inForce := o.base[reader.ID]; !inForce && m.Older(reader.Module) < 0 {
			continue
		}
		problems = append(problems, policy.Problem{
			Code: policy.CodeDefect, Row: m.ast.Package.Loc().Row, Col: m.ast.Package.Loc().Col,
			Message: fmt.Sprintf("%s has the objects of the cluster that %s reads: rename the package", resource.Path, reader.ID),
		})
	}
	return problems
}
