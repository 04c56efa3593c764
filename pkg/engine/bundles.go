package engine

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// Bundle is what is known of one of OPA's bundles.
type Bundle struct {
	Name string
	// Revision as its author wrote it; may be empty.
	Revision string
	// Roots are the paths that it owns: nobody else defines anything there. An empty
	// path owns all.
	Roots [][]string
}

// BundleModule is a module of a bundle.
type BundleModule struct {
	// Name is that of the file, behind the name of its bundle.
	Name   string
	Source string
	// Version is v0 or v1.
	Version policy.RegoVersion
}

// BundleSet is what all bundles want together.
type BundleSet struct {
	Bundles []Bundle
	Modules []BundleModule
	// Data is all of it, with what OPA keeps of bundles at system.
	Data ast.Object
}

// Bundles are the bundles in force. They are one unit: all that is in them goes into
// force together with the modules, or nothing. They never change.
type Bundles struct {
	made    *BundleSet // of which they are made; nil if there are others with them
	list    []Bundle
	modules map[string]*module // by the name in locations
	data    *branch
}

// noBundles is the value of nothing.
var noBundles = &Bundles{made: &BundleSet{}, data: newBranch(0)}

// bundlePrefix tells files of bundles from modules of ConfigMaps, in locations and
// in lists of policies: bundle names and paths may look like namespaces and names.
const bundlePrefix = "bundle:"

// Compiles is false for bundles alone that need a module.
func (s *Snapshot) Compiles() bool { return !s.compiler.Failed() }

// Owns reports whether the bundles own a path of data that a text names, as problems
// name functions and rules.
func (s *Snapshot) Owns(text string) bool {
	for _, bundle := range s.bundles.list {
		for _, root := range bundle.Roots {
			if namesPath(text, dataPath(root)) {
				return true
			}
		}
	}
	return false
}

// namesPath reports whether a path stands in a text, whole or with more behind it.
func namesPath(text, path string) bool {
	for {
		_, rest, found := strings.Cut(text, path)
		if !found {
			return false
		}
		if rest == "" || !isNamePart(rest[0]) {
			return true
		}
		text = rest
	}
}

func isNamePart(c byte) bool {
	return c == '_' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// trusts reports whether one of the modules is of a namespace that may declare what
// decides for the whole cluster. Others cannot keep a bundle out that owns everything.
func (p *parser) trusts(modules policy.Set) bool {
	for id := range modules {
		if slices.Contains(p.trusted, id.Namespace) {
			return true
		}
	}
	return false
}

// Bundles are the bundles in force, sorted by name.
func (s *Snapshot) Bundles() []Bundle { return s.bundles.list }

// WithBundles makes of a snapshot one with these bundles instead of its own; the same
// one if it has them already. The error says why that does not compile: what is in force
// of the modules stays in force, and a bundle that would break it does not come in. It is
// an UnknownReadsError if a bundle reads objects of which it is not known what there is.
//
// A bundle and a module may need each other. So where it takes them, wanted modules that
// were held come into force with the bundles. Of the snapshot's own bundles those that
// are named in keep stay.
func (c *Compiler) WithBundles(previous *Snapshot, set BundleSet, wanted policy.Set, keep ...string) (*Snapshot, error) {
	if made := previous.bundles.made; made != nil && made.equal(set) {
		return previous, nil
	}
	bundles, err := c.parser.parseBundles(set)
	if err != nil {
		return nil, err
	}
	if len(keep) > 0 {
		if bundles, err = bundles.with(previous.bundles, keep); err != nil {
			return nil, err
		}
	}
	if err := bundles.claims(previous.modules, c.parser.replicated); err != nil {
		return nil, err
	}
	if owner := bundles.ownerOfAll(); owner != "" && owner != previous.bundles.ownerOfAll() && c.parser.trusts(wanted) {
		return nil, fmt.Errorf("bundle %s has no roots in its manifest, so it owns all of data, and no policy of a ConfigMap could be in force: give it roots", owner)
	}
	if err := c.unknownReads(previous, bundles); err != nil {
		return nil, err
	}
	result, modules := c.parser.compile(previous.modules, bundles), previous.modules
	if !result.ok() {
		problems := listed(c.parser.problemsOf(result.errors()))
		if result, modules = c.together(previous, bundles, wanted); result.compiler == nil {
			return nil, problems
		}
	}
	next := newSnapshot(result.compiler, modules, bundles)
	for id, v := range previous.held {
		if _, ok := modules[id]; !ok {
			next.held[id] = v
		}
	}
	return next, nil
}

// UnknownReadsError says which objects of the cluster bundles read, and that it is not
// known what there is.
type UnknownReadsError struct {
	// Names of the resources.
	Names []string
	text  string
}

func (e *UnknownReadsError) Error() string { return e.text }

// unknownReads is an error if bundles come to read what is not known: they would find
// nothing where there may be something.
func (c *Compiler) unknownReads(previous *Snapshot, bundles *Bundles) error {
	if c.resources == nil || !c.parser.replicated.Auto {
		return nil
	}
	already := make(map[string]bool)
	for _, m := range previous.bundles.modules {
		for _, r := range m.reads {
			already[r.name] = true
		}
	}
	claims := newClaims(c.parser.replicated, c.resources, bundles, previous.modules, nil)
	unknown := make(map[string]string)
	for name, m := range bundles.modules {
		for _, r := range m.reads {
			problem, known := claims.read(r)
			if problem.Code != "" && !known && !already[r.name] {
				unknown[r.name] = fmt.Sprintf("%s:%d: %s: %s", name, problem.Row, problem.Code, problem.Message)
			}
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	return &UnknownReadsError{Names: slices.Sorted(maps.Keys(unknown)), text: listed(slices.Collect(maps.Values(unknown))).Error()}
}

// with are the bundles and, of others, those of these names.
func (b *Bundles) with(others *Bundles, names []string) (*Bundles, error) {
	kept := BundleSet{Data: others.data.value().(ast.Object)} //nolint:forcetypeassert // a branch is an object
	both := &Bundles{list: slices.Clone(b.list), modules: maps.Clone(b.modules)}
	for _, bundle := range others.list {
		if !slices.Contains(names, bundle.Name) {
			continue
		}
		for _, root := range bundle.Roots {
			if o := b.ownerOf(root); o != nil {
				return nil, fmt.Errorf("bundle %s has the root %q, and in it is bundle %s, which is configured no more "+
					"and stays in force as long as what is in force needs it", o.bundle, strings.Join(o.root, "/"), bundle.Name)
			}
		}
		kept.Bundles = append(kept.Bundles, bundle)
	}
	both.list = append(both.list, kept.Bundles...)
	slices.SortFunc(both.list, byName)
	for name, m := range others.modules {
		if owner := others.bundleOf(name); slices.Contains(names, owner) {
			both.modules[name] = m
		}
	}
	both.data = merge(dataOfBundles(kept), b.data)
	return both, nil
}

// bundleOf is the bundle that a module is of: its name is in front of that of the file.
func (b *Bundles) bundleOf(name string) string {
	owner := ""
	for _, bundle := range b.list {
		if strings.HasPrefix(name, bundlePrefix+bundle.Name+"/") && len(bundle.Name) > len(owner) {
			owner = bundle.Name
		}
	}
	return owner
}

func byName(a, b Bundle) int { return strings.Compare(a.Name, b.Name) }

// together adds wanted modules until bundles compile with what there is; no compiler if
// they do not. Of the modules those are left out that errors name.
func (c *Compiler) together(previous *Snapshot, bundles *Bundles, wanted policy.Set) (result, map[policy.ID]*module) {
	s := &settlement{
		parser: &c.parser, base: previous.modules, bundles: bundles,
		held: make(map[policy.ID][]policy.Problem), warnings: make(map[policy.ID][]policy.Problem),
	}
	open := slices.DeleteFunc(s.changes(c.parser.parse(wanted), c.resources), func(c change) bool { return c.to == nil })
	for range c.trials {
		if len(open) == 0 {
			break
		}
		r, ok := s.try(open)
		if ok {
			return r, s.base
		}
		if breaksOthers(r, open) {
			break
		}
		s.holdNamed(r, open)
		open = s.open(open)
	}
	return result{}, nil
}

// equal reports whether two sets mean the same.
func (s BundleSet) equal(other BundleSet) bool {
	same := func(a, b Bundle) bool {
		return a.Name == b.Name && a.Revision == b.Revision && slices.EqualFunc(a.Roots, b.Roots, slices.Equal)
	}
	return slices.EqualFunc(s.Bundles, other.Bundles, same) && slices.Equal(s.Modules, other.Modules) && equalData(s.Data, other.Data)
}

func equalData(a, b ast.Object) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Hash() == b.Hash() && a.Compare(b) == 0
}

// Bare is a snapshot with the bundles of another, and without modules.
func (c *Compiler) Bare(s *Snapshot) *Snapshot {
	return newSnapshot(c.parser.compile(nil, s.bundles).compiler, nil, s.bundles)
}

// parseBundles reads the modules and the data of bundles.
func (p *parser) parseBundles(set BundleSet) (*Bundles, error) {
	b := &Bundles{
		made:    &set,
		list:    slices.Clone(set.Bundles),
		modules: make(map[string]*module, len(set.Modules)),
		data:    dataOfBundles(set),
	}
	slices.SortFunc(b.list, byName)
	var problems []string
	for _, m := range set.Modules {
		name := bundlePrefix + m.Name
		tree, err := p.parseText(name, m.Source, m.Version)
		if err != nil {
			for _, e := range astErrors(err) {
				problems = append(problems, p.describe(e))
			}
			continue
		}
		b.modules[name] = &module{Module: policy.Module{Source: m.Source}, ast: tree, version: m.Version, reads: p.readsOf(tree)}
	}
	if len(problems) > 0 {
		return nil, listed(problems)
	}
	return b, nil
}

// readsOf are the resources that a module reads, where that decides what is replicated.
func (p *parser) readsOf(tree *ast.Module) []read {
	if !p.replicated.Auto {
		return nil
	}
	return reads(tree, p.replicated.Path)
}

// problemsOf are errors of the compiler in one line each, with their place.
func (p *parser) problemsOf(errs ast.Errors) []string {
	problems := make([]string, 0, len(errs))
	for _, e := range errs {
		problems = append(problems, p.describe(e))
	}
	return problems
}

func (p *parser) describe(e *ast.Error) string {
	problem := p.problem(e)
	if file(e) == "" {
		return fmt.Sprintf("%s: %s", problem.Code, problem.Message)
	}
	return fmt.Sprintf("%s:%d: %s: %s", file(e), problem.Row, problem.Code, problem.Message)
}

// maxListed bounds the problems of a bundle that are told: whoever repairs the first
// few sees the next ones.
const maxListed = 10

func listed(problems []string) error {
	slices.Sort(problems)
	problems = slices.Compact(problems)
	if more := len(problems) - maxListed; more > 0 {
		problems = append(problems[:maxListed], fmt.Sprintf("and %d more", more))
	}
	return errors.New(strings.Join(problems, "; "))
}

// dataOfBundles is the data of bundles, root by root, so that what others have beside
// it has place.
func dataOfBundles(set BundleSet) *branch {
	if set.Data == nil {
		return newBranch(0)
	}
	e := newEdit(newBranch(0))
	each := func(at []string, object ast.Object) {
		object.Foreach(func(key, value *ast.Term) {
			if name, ok := key.Value.(ast.String); ok && (len(at) > 0 || string(name) != systemPackage) {
				e.set(append(slices.Clone(at), string(name)), document{value})
			}
		})
	}
	for _, bundle := range set.Bundles {
		for _, root := range bundle.Roots {
			if len(root) == 0 {
				each(nil, set.Data)
			} else if value := find(set.Data, root); value != nil {
				e.set(root, document{ast.NewTerm(value)})
			}
		}
	}
	if system, ok := find(set.Data, []string{systemPackage}).(ast.Object); ok {
		each([]string{systemPackage}, system)
	}
	return e.root
}

// path is where a module stands: its package, or where its data is.
func (m *module) path() []string {
	if m.ast == nil {
		return path(m.ID)
	}
	return names(m.ast.Package.Path)
}

// ownership is a bundle and the root of it that is meant.
type ownership struct {
	bundle string
	root   []string
}

// owner is the bundle that owns the path of a module, or a path below it; nil if
// none does.
func (b *Bundles) owner(m *module) *ownership { return b.ownerOf(m.path()) }

func (b *Bundles) ownerOf(at []string) *ownership {
	for _, bundle := range b.list {
		for _, root := range bundle.Roots {
			if hasPrefix(at, root) || hasPrefix(root, at) {
				return &ownership{bundle: bundle.Name, root: root}
			}
		}
	}
	return nil
}

// ownerOfAll is the bundle that owns all of data; empty if none does.
func (b *Bundles) ownerOfAll() string {
	for _, bundle := range b.list {
		if slices.ContainsFunc(bundle.Roots, func(root []string) bool { return len(root) == 0 }) {
			return bundle.Name
		}
	}
	return ""
}

func (o *ownership) problem(m *module) policy.Problem {
	problem := policy.Problem{Code: policy.CodeDefect, Message: fmt.Sprintf(
		"%s is owned by bundle %s, which has the root %q: nobody else can define anything there",
		dataPath(m.path()), o.bundle, strings.Join(o.root, "/"))}
	if m.ast != nil {
		problem.Row, problem.Col = m.ast.Package.Loc().Row, m.ast.Package.Loc().Col
	}
	return problem
}

// dataPath is a path as policies write it.
func dataPath(at []string) string { return strings.Join(append([]string{"data"}, at...), ".") }

// claims reports which modules in force, or objects of the cluster, are where a
// bundle claims to be alone.
func (b *Bundles) claims(modules map[policy.ID]*module, replicated Replicated) error {
	var problems []string
	for _, id := range sortedIDs(modules) {
		if o := b.owner(modules[id]); o != nil {
			problems = append(problems, fmt.Sprintf("bundle %s has the root %q, and %s in it is defined by %s, which is in force: "+
				"narrower roots in the bundle's manifest, or another package, keep them apart",
				o.bundle, strings.Join(o.root, "/"), dataPath(modules[id].path()), id))
		}
	}
	for _, bundle := range b.list {
		for _, root := range bundle.Roots {
			if replicated.reserves(root) {
				problems = append(problems, fmt.Sprintf("bundle %s has the root %q, where objects of the cluster are replicated: "+
					"another root, or another --replicate-path, keeps them apart", bundle.Name, strings.Join(root, "/")))
			}
		}
	}
	if len(problems) > 0 {
		return listed(problems)
	}
	return nil
}

// Text is a module in force as its author wrote it.
type Text struct {
	// Name is that of the module: namespace/name/key, or that of the file in a bundle.
	Name   string
	Source string
	// Tree is what the parser made of it.
	Tree *ast.Module
}

// Texts are the Rego modules in force, sorted by name.
func (s *Snapshot) Texts() []Text {
	texts := make([]Text, 0, len(s.modules)+len(s.bundles.modules))
	for id, m := range s.modules {
		if m.ast != nil {
			texts = append(texts, Text{Name: id.String(), Source: m.Source, Tree: m.ast})
		}
	}
	for name, m := range s.bundles.modules {
		texts = append(texts, Text{Name: name, Source: m.Source, Tree: m.ast})
	}
	slices.SortFunc(texts, func(a, b Text) int { return strings.Compare(a.Name, b.Name) })
	return texts
}
