package engine

import (
	"maps"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// change is one difference between what is in force and what is wanted: a
// module added or edited, or (to is nil) one deleted.
type change struct {
	id       policy.ID
	from, to *module
}

// older orders changes by the age of the objects that carry them. A deletion
// counts as the youngest: it happens to an object that was there before.
func older(a, b change) int {
	switch {
	case a.to == nil && b.to == nil:
		return a.id.Compare(b.id)
	case a.to == nil:
		return 1
	case b.to == nil:
		return -1
	}
	return a.to.Older(b.to.Module)
}

// settlement finds out which changes go into force. The base is in force and
// compiles; each change that would break it is held with its problems.
//
// Errors are where to look first, not the verdict. Most errors name the change
// that causes them. Two kinds do not: a clash names one party, not the one to
// blame, and an error in a module that did not change has its cause in a change
// elsewhere. For these the changes are tried, oldest first, so that of two
// that clash the older object wins on every replica.
type settlement struct {
	parser *parser
	base   map[policy.ID]*module
	held   map[policy.ID][]policy.Problem
}

// changes are the differences between the base and the parsed modules, oldest
// first; a module that did not parse is held at once.
func (s *settlement) changes(parsed map[policy.ID]*module) []change {
	var changes []change
	for id, m := range parsed {
		from := s.base[id]
		switch {
		case len(m.problems) > 0:
			s.held[id] = m.problems
		case from == nil || from.digest != m.digest:
			changes = append(changes, change{id: id, from: from, to: m})
		}
	}
	for id, from := range s.base {
		if _, ok := parsed[id]; !ok {
			changes = append(changes, change{id: id, from: from})
		}
	}
	slices.SortFunc(changes, older)
	return changes
}

// settle brings the changes into the base and holds those that break it. What
// was held gets a second chance against the result: the change that it clashed
// with, or the broken library that it was named for, may be held itself by now.
func (s *settlement) settle(compiler *ast.Compiler, changes []change) *ast.Compiler {
	compiler = s.bring(compiler, changes)
	again := slices.DeleteFunc(slices.Clone(changes), func(c change) bool { return !s.isHeld(c) })
	return s.bring(compiler, again)
}

// bring adds to the base all changes but those that do not compile with the
// rest. It returns the compiler of the new base, given that of the old one.
func (s *settlement) bring(compiler *ast.Compiler, changes []change) *ast.Compiler {
	for _, c := range changes {
		delete(s.held, c.id)
	}
	for open := changes; len(open) > 0; open = s.open(open) {
		result, ok := s.try(open)
		if ok {
			return result.compiler
		}
		if !s.holdNamed(result, open) {
			return s.divide(compiler, result, open)
		}
	}
	return compiler
}

// divide adds to the base the changes, oldest first, and holds each that does
// not compile with what was added before it, given the result of trying all of
// them. Halving the list costs about k·log2(n) compilations for k such changes
// among n.
func (s *settlement) divide(compiler *ast.Compiler, failed result, changes []change) *ast.Compiler {
	if len(changes) == 1 {
		s.held[changes[0].id] = s.blame(failed, changes[0])
		return compiler
	}
	half := len(changes) / 2
	for _, part := range [][]change{changes[:half], changes[half:]} {
		result, ok := s.try(part)
		if ok {
			compiler = result.compiler
			continue
		}
		compiler = s.divide(compiler, result, part)
	}
	return compiler
}

// try compiles the base with the changes, and makes that the base if it does.
func (s *settlement) try(changes []change) (_ result, ok bool) {
	modules := apply(s.base, changes)
	result := compile(s.parser.capabilities, modules)
	if !result.ok() {
		return result, false
	}
	s.base = modules
	return result, true
}

func (s *settlement) isHeld(c change) bool {
	_, held := s.held[c.id]
	return held
}

// open are the changes that are not held.
func (s *settlement) open(changes []change) []change {
	return slices.DeleteFunc(slices.Clone(changes), s.isHeld)
}

// holdNamed holds the changes that the errors name, if the errors are of a
// kind that names its cause.
func (s *settlement) holdNamed(r result, changes []change) bool {
	if r.clash {
		return false
	}
	byFile := make(map[string][]policy.Problem)
	for _, e := range r.errors() {
		if e.Location != nil {
			byFile[e.Location.File] = append(byFile[e.Location.File], s.parser.problem(e))
		}
	}
	named := false
	for _, c := range changes {
		if problems := byFile[c.id.String()]; c.to != nil && len(problems) > 0 {
			slices.SortStableFunc(problems, byPlace)
			s.held[c.id] = slices.Compact(problems)
			named = true
		}
	}
	return named
}

// blame words the errors that one change causes as problems of that change,
// wherever the compiler found them.
func (s *settlement) blame(r result, c change) []policy.Problem {
	var problems []policy.Problem
	for _, e := range r.errors() {
		problem := s.parser.problem(e)
		if e.Location == nil || e.Location.File != c.id.String() {
			problem.Row, problem.Col = place(c, e)
			problem.Message = elsewhere(e, problem.Message)
		}
		problems = append(problems, problem)
	}
	slices.SortStableFunc(problems, byPlace)
	return slices.Compact(problems)
}

// elsewhere adds to an error's text where the compiler saw it.
func elsewhere(e *ast.Error, message string) string {
	if e.Location == nil || e.Location.File == "" {
		return message
	}
	return message + " (seen at " + e.Location.String() + ")"
}

// place is the rule of the change that the error's text names, or else its
// package clause; nowhere for a deleted module.
func place(c change, e *ast.Error) (row, col int) {
	if c.to == nil {
		return 0, 0
	}
	location, length := c.to.ast.Package.Loc(), 0
	for _, rule := range c.to.ast.Rules {
		name := rule.Ref().GroundPrefix().String()
		if len(name) > length && strings.Contains(e.Message, name) {
			location, length = rule.Loc(), len(name)
		}
	}
	return location.Row, location.Col
}

// apply makes the modules that result from changes.
func apply(base map[policy.ID]*module, changes []change) map[policy.ID]*module {
	modules := make(map[policy.ID]*module, len(base)+len(changes))
	maps.Copy(modules, base)
	for _, c := range changes {
		if c.to == nil {
			delete(modules, c.id)
			continue
		}
		modules[c.id] = c.to
	}
	return modules
}
