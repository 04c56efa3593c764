// Package compile makes policy sets that can go into force. It parses modules and
// bundles, links them into one set, settles which changes compile with the rest, and
// reports what became of each. All that it makes is a [Snapshot]; bringing one into
// force is the engine's.
//
// The package is pure: values in, values out, no client, no clock, no logger. OPA's
// sdk compiles nothing here, since it knows neither our capabilities nor a Rego version
// for each module.
//
//	Compiler ─ parser ─── language     reads text, words errors
//	         │            trust        who may declare what decides for the whole cluster
//	         ├ linker ─── built-in mask and entrypoint
//	         └ settlement              which changes go into force, and why others do not
package compile

import (
	"maps"
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// Config is what a Compiler needs.
type Config struct {
	// RegoVersion of modules that do not say it themselves.
	RegoVersion policy.RegoVersion
	// Builtins that are off by default and are to be on.
	Builtins []string
	// SystemNamespaces are those whose modules may declare packages under
	// system: the entrypoint, and what OPA itself asks for.
	SystemNamespaces []string
	// Replicated says where objects of the cluster are in data.
	Replicated Replicated
	// MaskSecrets adds a mask for decision logs where no policy defines one.
	MaskSecrets bool
	// Entrypoint adds data.system.main where no policy defines it and there are rules
	// that it can ask.
	Entrypoint bool
}

// Compiler makes snapshots. It keeps what it parsed; it is not safe for use by several
// goroutines.
type Compiler struct {
	parser *parser
	linker *linker
	trials int // maxTrials; fewer in tests
}

// New makes a compiler for modules that may call the built-ins of this OPA, less those
// that are off by default and not switched on. The error names a built-in that cannot be
// switched on.
func New(config Config) (*Compiler, error) {
	language, err := newLanguage(config.Builtins)
	if err != nil {
		return nil, err
	}
	linker, err := newLinker(language, config)
	if err != nil {
		return nil, err
	}
	return &Compiler{
		parser: &parser{
			language:   language,
			version:    config.RegoVersion,
			trust:      config.SystemNamespaces,
			replicated: config.Replicated,
		},
		linker: linker,
		trials: maxTrials,
	}, nil
}

// Empty returns the snapshot of a set without modules and bundles.
func (c *Compiler) Empty() *Snapshot { return c.bare(noBundles) }

// Bare returns a snapshot with the bundles of another, and without modules.
func (c *Compiler) Bare(s *Snapshot) *Snapshot { return c.bare(s.bundles) }

func (c *Compiler) bare(b *bundles) *Snapshot {
	return newSnapshot(contents{compiler: c.linker.link(nil, b).compiler, bundles: b})
}

// Compile brings as much of the wanted set into a new snapshot as compiles. A change since
// the previous snapshot that does not is held: of its module the previous version stays in,
// or none if there was none.
//
// Changes that the previous snapshot was made without are not tried, so that a good edit does
// not wait for broken ones; Retry does that.
//
// known says what is known of the resources that policies read by name. A change that comes
// to read one whose objects are not known is held; what reads it and is in force stays, with
// a warning. With nil nothing is held for what it reads.
func (c *Compiler) Compile(previous *Snapshot, wanted policy.Set, known policy.Resources) *Snapshot {
	return c.settle(previous, wanted, known, func(s *settlement, compiler *ast.Compiler, changes []change) *ast.Compiler {
		fresh := slices.DeleteFunc(slices.Clone(changes), func(ch change) bool {
			problems, held := previous.verdict(ch)
			if held {
				s.held[ch.id] = problems
			}
			return held
		})
		return s.add(compiler, fresh)
	})
}

// Retry tries again what Compile held for the same set: what it needed, or the other side
// of its clash, may have moved by now. It gives up early, between two compilations, if
// interrupted says so; nil never does.
func (c *Compiler) Retry(previous *Snapshot, wanted policy.Set, known policy.Resources, interrupted func() bool) *Snapshot {
	if interrupted == nil {
		interrupted = func() bool { return false }
	}
	return c.settle(previous, wanted, known, func(s *settlement, compiler *ast.Compiler, changes []change) *ast.Compiler {
		compiler = s.retry(compiler, changes, interrupted)
		s.explain(changes, interrupted)
		return compiler
	})
}

// Settle is Compile and then Retry: it tries all changes.
func (c *Compiler) Settle(previous *Snapshot, wanted policy.Set, known policy.Resources, interrupted func() bool) *Snapshot {
	return c.Retry(c.Compile(previous, wanted, known), wanted, known, interrupted)
}

// settle makes a snapshot with the changes since the previous one, which decide decides
// about.
func (c *Compiler) settle(
	previous *Snapshot, wanted policy.Set, known policy.Resources,
	decide func(*settlement, *ast.Compiler, []change) *ast.Compiler,
) *Snapshot {
	parsed := c.parser.parse(wanted)
	s := c.newSettlement(previous.modules, previous.bundles)
	changes := s.changes(parsed, known)
	compiler := decide(s, previous.compiler, changes)
	refused := make(map[policy.ID]bool)
	for _, ch := range s.heldOf(changes) {
		refused[ch.id] = true
	}
	return newSnapshot(contents{
		compiler: compiler,
		modules:  renew(s.base, parsed),
		bundles:  s.bundles,
		wanted:   parsed,
		held:     s.held,
		warnings: s.warnings,
		refused:  refused,
	})
}

func (c *Compiler) newSettlement(base map[policy.ID]*module, b *bundles) *settlement {
	return &settlement{
		linker:   c.linker,
		trials:   c.trials,
		base:     base,
		bundles:  b,
		held:     make(map[policy.ID][]policy.Problem),
		warnings: make(map[policy.ID][]policy.Problem),
	}
}

// renew takes over the modules that are in force as they are wanted, so that each is as
// young as the object that it was last seen in.
func renew(inForce, wanted map[policy.ID]*module) map[policy.ID]*module {
	modules := make(map[policy.ID]*module, len(inForce))
	for id, m := range inForce {
		if w := wanted[id]; w != nil && w.digest == m.digest {
			m = w
		}
		modules[id] = m
	}
	return modules
}

// Broken returns the problems of the modules of a set that cannot be read, so that nobody
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

// ResourceNames returns the names of the resources that modules read, sorted: modules in
// force in a snapshot (nil is none), modules that were in force last, and wanted ones.
// There are none unless what policies read is replicated.
func (c *Compiler) ResourceNames(inForce *Snapshot, recorded, wanted policy.Set) []string {
	if !c.parser.replicated.Auto {
		return nil
	}
	last := c.parser.peek(recorded)
	current, bundles := last, noBundles
	if inForce != nil {
		current, bundles = inForce.modules, inForce.bundles
	}
	own := declaredNames(c.parser.replicated.Path, bundles, current)
	names := make(map[string]bool)
	note := func(m *module) {
		for _, ref := range m.resources {
			if ref.name != "" && !own[ref.name] {
				names[ref.name] = true
			}
		}
	}
	for _, modules := range []map[policy.ID]*module{current, last, c.parser.parse(wanted)} {
		for _, m := range modules {
			note(m)
		}
	}
	for _, m := range bundles.modules {
		note(m)
	}
	return slices.Sorted(maps.Keys(names))
}

// UnknownResource returns the first resource that a module of the snapshot reads and whose
// objects are not known; false if there is none.
func (c *Compiler) UnknownResource(s *Snapshot, known policy.Resources) (policy.Resource, bool) {
	for _, name := range c.ResourceNames(s, nil, nil) {
		if r, ok := known[name]; ok && !r.Known() {
			return r, true
		}
	}
	return policy.Resource{}, false
}

// ResourceRef is a place where a module reads objects of the cluster.
type ResourceRef struct {
	Module policy.ID
	// Name is that of the resource; empty if the text does not say which.
	Name     string
	Row, Col int
}

// ResourceRefs returns the places where the modules of a set read objects of the cluster,
// for each name the first of each module, in the order of the modules.
func (c *Compiler) ResourceRefs(set policy.Set) []ResourceRef {
	modules := c.parser.parse(set)
	own := declaredNames(c.parser.replicated.Path, noBundles, modules)
	var refs []ResourceRef
	for _, id := range sortedIDs(modules) {
		for _, ref := range modules[id].resources {
			if !own[ref.name] {
				refs = append(refs, ResourceRef{Module: id, Name: ref.name, Row: ref.row, Col: ref.col})
			}
		}
	}
	return refs
}
