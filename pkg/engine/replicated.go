package engine

import (
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
		ast.WalkRules(rule, func(r *ast.Rule) bool { // else rules too
			for _, part := range r.Head.Reference[min(1, len(r.Head.Reference)):] {
				visitor.Walk(part) // the visitor leaves it out
			}
			return false
		})
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

// defined are the names below the path that bundles and modules give to packages and
// rules of their own: no resources.
func defined(path []string, bundles *Bundles, sets ...map[policy.ID]*module) map[string]bool {
	names := make(map[string]bool)
	for _, m := range bundles.modules {
		define(names, m.ast, path)
	}
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

// Reads are the names of resources that modules read: those in force in a snapshot
// (nil is none), those that were in force last, and the wanted ones. They are sorted.
// There are none unless what policies read is replicated.
func (c *Compiler) Reads(inForce *Snapshot, recorded, wanted policy.Set) []string {
	if !c.parser.replicated.Auto {
		return nil
	}
	last := c.parser.read(recorded)
	known, bundles := last, noBundles
	if inForce != nil {
		known, bundles = inForce.modules, inForce.bundles
	}
	own := defined(c.parser.replicated.Path, bundles, known)
	names := make(map[string]bool)
	note := func(m *module) {
		for _, r := range m.reads {
			if r.name != "" && !own[r.name] {
				names[r.name] = true
			}
		}
	}
	for _, modules := range []map[policy.ID]*module{known, last, c.parser.parse(wanted)} {
		for _, m := range modules {
			note(m)
		}
	}
	for _, m := range bundles.modules {
		note(m)
	}
	return slices.Sorted(maps.Keys(names))
}

// Lacking is the first resource of which it is not known what there is, and that a
// module of the snapshot reads; false if there is none.
func (c *Compiler) Lacking(s *Snapshot, resources policy.Resources) (policy.Resource, bool) {
	for _, name := range c.Reads(s, nil, nil) {
		if r, ok := resources[name]; ok && !r.Known() {
			return r, true
		}
	}
	return policy.Resource{}, false
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
	own := defined(c.parser.replicated.Path, noBundles, modules)
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

// claims say who of modules and resources has a name below the path: a package that is
// in force, or else a resource that somebody reads.
type claims struct {
	replicated Replicated
	resources  policy.Resources
	own        map[string]bool    // names of packages and rules in force
	readers    map[string]*module // of others, by name: one in force, or the oldest that is wanted
	base       map[policy.ID]*module
}

func newClaims(replicated Replicated, resources policy.Resources, bundles *Bundles, base, wanted map[policy.ID]*module) claims {
	c := claims{
		replicated: replicated,
		resources:  resources,
		own:        defined(replicated.Path, bundles, base),
		readers:    make(map[string]*module),
		base:       base,
	}
	for _, m := range wanted {
		for _, r := range m.reads {
			if other := c.readers[r.name]; other == nil || m.Older(other.Module) < 0 {
				c.readers[r.name] = m
			}
		}
	}
	for _, m := range base {
		for _, r := range m.reads {
			c.readers[r.name] = m
		}
	}
	return c
}

// check says why a module cannot go into force in the place of the one before, which
// may be nil, and what else its author should know.
func (c claims) check(m, from *module) (problems, warnings []policy.Problem) {
	if c.resources == nil || !c.replicated.Auto {
		return nil, nil
	}
	before := make(map[string]bool)
	if from != nil {
		for _, r := range from.reads {
			before[r.name] = true
		}
	}
	for _, r := range m.reads {
		problem, known := c.read(r)
		switch {
		case problem.Code == "":
		case known || before[r.name] && problem.Code != policy.CodePending:
			warnings = append(warnings, problem)
		case !before[r.name]:
			problems = append(problems, problem)
		}
	}
	return append(problems, c.clashes(m)...), warnings
}

// read is what there is to say about one place that reads; no problem with a code if
// there is nothing. known is true if it is known what it will find.
func (c claims) read(r read) (problem policy.Problem, known bool) {
	resource, ok := c.resources[r.name]
	switch {
	case r.name == "" && len(c.replicated.Resources) > 0, c.own[r.name]:
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
func (c claims) clashes(m *module) []policy.Problem {
	names := make(map[string]bool)
	define(names, m.ast, c.replicated.Path)
	var problems []policy.Problem
	for _, name := range slices.Sorted(maps.Keys(names)) {
		reader, resource := c.readers[name], c.resources[name]
		if c.own[name] || reader == nil || reader.ID == m.ID || resource.Name == "" || !resource.Exists() {
			continue
		}
		if _, inForce := c.base[reader.ID]; !inForce && m.Older(reader.Module) < 0 {
			continue
		}
		problems = append(problems, policy.Problem{
			Code: policy.CodeDefect, Row: m.ast.Package.Loc().Row, Col: m.ast.Package.Loc().Col,
			Message: fmt.Sprintf("%s has the objects of the cluster that %s reads: call the package otherwise", resource.Path, reader.ID),
		})
	}
	return problems
}
