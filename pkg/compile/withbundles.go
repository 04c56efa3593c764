package compile

import (
	"fmt"
	"maps"
	"slices"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// WithBundles makes of a snapshot one with these bundles instead of its own; it returns
// the same one if that has them already. The error says why that does not compile: modules
// that are in force stay in force, and a bundle that would break them does not come in. It
// is an [UnknownReadsError] if a bundle reads objects that are not known.
//
// A bundle and a module may need each other. So where it takes them, wanted modules that
// were held come into force with the bundles. Of the snapshot's own bundles those that
// are named in keep stay. known is as for Compile.
func (c *Compiler) WithBundles(
	previous *Snapshot, set BundleSet, wanted policy.Set, known policy.Resources, keep ...string,
) (*Snapshot, error) {
	if source := previous.bundles.source; source != nil && source.equal(set) {
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
	if err := bundles.conflicts(previous.modules, c.parser.replicated); err != nil {
		return nil, err
	}
	if owner := bundles.ownerOfAll(); owner != "" && owner != previous.bundles.ownerOfAll() && c.parser.trust.hasAny(wanted) {
		return nil, fmt.Errorf("bundle %s has no roots in its manifest, so it owns all of data, and no policy of a ConfigMap could be in force: give it roots", owner)
	}
	if err := c.unknownReads(previous, bundles, known); err != nil {
		return nil, err
	}
	result := c.linker.link(previous.modules, bundles)
	if result.ok() {
		return previous.with(result, previous.modules, bundles, previous.warnings), nil
	}
	next := c.linkWithWanted(previous, bundles, wanted, known)
	if next == nil {
		return nil, listed(c.linker.language.lines(result.errors()))
	}
	return next, nil
}

// with returns s with other modules and bundles. It reports on the same wanted set; a
// module that came with the bundles counts as wanted and is no longer held.
func (s *Snapshot) with(result linked, modules map[policy.ID]*module, b *bundles, warnings map[policy.ID][]policy.Problem) *Snapshot {
	next := contents{
		compiler: result.compiler, modules: modules, bundles: b,
		wanted: union(s.wanted, nil), held: maps.Clone(s.held), warnings: warnings,
		refused: make(map[policy.ID]bool),
	}
	for id := range s.refused {
		// What is in force in another version may go with these bundles: it is tried first.
		next.refused[id] = modules[id] == nil
	}
	for id, m := range modules {
		if m != s.modules[id] {
			next.wanted[id] = m
			delete(next.held, id)
		}
	}
	return newSnapshot(next)
}

// linkWithWanted adds wanted modules until bundles compile with what is in force; nil if
// they do not. It leaves out the modules that errors name.
func (c *Compiler) linkWithWanted(previous *Snapshot, b *bundles, wanted policy.Set, known policy.Resources) *Snapshot {
	s := c.newSettlement(previous.modules, b)
	maps.Copy(s.warnings, previous.warnings)
	open := slices.DeleteFunc(s.changes(c.parser.parse(wanted), known), func(ch change) bool { return ch.to == nil })
	for range c.trials {
		if len(open) == 0 {
			break
		}
		result, ok := s.try(open)
		if ok {
			return previous.with(result, s.base, b, s.warnings)
		}
		if breaksOthers(result, open) {
			break
		}
		s.holdNamed(result, open)
		open = s.open(open)
	}
	return nil
}

// UnknownReadsError says which objects of the cluster bundles read that are not known.
type UnknownReadsError struct {
	// Names of the resources.
	Names []string
	text  string
}

func (e *UnknownReadsError) Error() string { return e.text }

// unknownReads is an error if bundles come to read what is not known: they would find
// nothing where there may be something.
func (c *Compiler) unknownReads(previous *Snapshot, b *bundles, known policy.Resources) error {
	if known == nil || !c.parser.replicated.Auto {
		return nil
	}
	already := make(map[string]bool)
	for _, m := range previous.bundles.modules {
		for _, ref := range m.resources {
			already[ref.name] = true
		}
	}
	owners := newNameOwners(c.parser.replicated, known, b, previous.modules, nil)
	unknown := make(map[string]string)
	for name, m := range b.modules {
		for _, ref := range m.resources {
			problem, isKnown := owners.of(ref)
			if problem.Code != "" && !isKnown && !already[ref.name] {
				unknown[ref.name] = fmt.Sprintf("%s:%d: %s: %s", name, problem.Row, problem.Code, problem.Message)
			}
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	return &UnknownReadsError{Names: slices.Sorted(maps.Keys(unknown)), text: listed(slices.Collect(maps.Values(unknown))).Error()}
}
