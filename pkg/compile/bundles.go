package compile

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/kube-rego/kube-rego/pkg/data"
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

// bundles are bundles that were parsed. They are one unit: all that is in them goes into
// force together with the modules, or nothing. They never change.
type bundles struct {
	source  *BundleSet // that they were parsed from; nil if there are others with them
	list    []Bundle
	modules map[string]*module // by the name in locations
	data    *data.Tree
}

// noBundles is the value of nothing.
var noBundles = &bundles{source: &BundleSet{}, data: data.New()}

// bundlePrefix tells files of bundles from modules of ConfigMaps, in locations and
// in lists of policies: bundle names and paths may look like namespaces and names.
const bundlePrefix = "bundle:"

// SharesBundles reports whether two snapshots have the same bundles in force.
func (s *Snapshot) SharesBundles(other *Snapshot) bool { return s.bundles == other.bundles }

// Bundles returns the bundles in force, sorted by name.
func (s *Snapshot) Bundles() []Bundle { return s.bundles.list }

// with returns the bundles and, of others, those of these names.
func (b *bundles) with(others *bundles, names []string) (*bundles, error) {
	kept := BundleSet{Data: others.data.Value()}
	both := &bundles{list: slices.Clone(b.list), modules: maps.Clone(b.modules)}
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
	both.data = dataOfBundles(kept).Merge(b.data)
	return both, nil
}

// bundleOf returns the bundle that a module is of: its name is in front of that of the file.
func (b *bundles) bundleOf(name string) string {
	owner := ""
	for _, bundle := range b.list {
		if strings.HasPrefix(name, bundlePrefix+bundle.Name+"/") && len(bundle.Name) > len(owner) {
			owner = bundle.Name
		}
	}
	return owner
}

func byName(a, b Bundle) int { return strings.Compare(a.Name, b.Name) }

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

// parseBundles reads the modules and the data of bundles.
func (p *parser) parseBundles(set BundleSet) (*bundles, error) {
	b := &bundles{
		source:  &set,
		list:    slices.Clone(set.Bundles),
		modules: make(map[string]*module, len(set.Modules)),
		data:    dataOfBundles(set),
	}
	slices.SortFunc(b.list, byName)
	var problems []string
	for _, m := range set.Modules {
		name := bundlePrefix + m.Name
		tree, err := p.language.parse(name, m.Source, m.Version)
		if err != nil {
			problems = append(problems, p.language.lines(astErrors(err))...)
			continue
		}
		b.modules[name] = &module{Module: policy.Module{Source: m.Source}, ast: tree, version: m.Version, resources: p.resourceRefs(tree)}
	}
	if len(problems) > 0 {
		return nil, listed(problems)
	}
	return b, nil
}

// dataOfBundles returns the data of bundles, root by root, so that what others have beside
// it has place.
func dataOfBundles(set BundleSet) *data.Tree {
	if set.Data == nil {
		return data.New()
	}
	var changes []data.Change
	put := func(at []string, value *ast.Term) {
		changes = append(changes, data.Change{Path: at, Content: data.NewDocument(value)})
	}
	putFields := func(at []string, object ast.Object) {
		object.Foreach(func(key, value *ast.Term) {
			if name, ok := key.Value.(ast.String); ok && (len(at) > 0 || string(name) != systemPackage) {
				put(append(slices.Clone(at), string(name)), value)
			}
		})
	}
	for _, bundle := range set.Bundles {
		for _, root := range bundle.Roots {
			if len(root) == 0 {
				putFields(nil, set.Data)
			} else if value := data.Find(set.Data, root); value != nil {
				put(root, ast.NewTerm(value))
			}
		}
	}
	if system, ok := data.Find(set.Data, []string{systemPackage}).(ast.Object); ok {
		putFields([]string{systemPackage}, system)
	}
	return data.New().With(changes...)
}
