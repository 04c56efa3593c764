package compile

import (
	"crypto/sha256"
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

// digest is that of the wanted module, and zero for a deletion.
func (c change) digest() [sha256.Size]byte {
	if c.to == nil {
		return [sha256.Size]byte{}
	}
	return c.to.digest
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
	linker *linker
	trials int // compilations that are left for finding culprits
	base   map[policy.ID]*module
	// bundles are in force and stay.
	bundles *bundles
	held    map[policy.ID][]policy.Problem
	// warnings are of modules that are in force as wanted, if they come to be.
	warnings map[policy.ID][]policy.Problem
}

// maxTrials bounds the compilations for finding culprits in one set: about a
// hundred changes that contradict others among 1,000. With 1,000 modules they
// take two minutes, with 10,000 twenty.
const maxTrials = 1000

// changes are the differences between the base and the parsed modules, oldest
// first; a module that did not parse is held at once.
//
// So is one that comes to read what is not known: it would find nothing where there
// may be something. One that is in force already stays.
func (s *settlement) changes(parsed map[policy.ID]*module, known policy.Resources) []change {
	owners := newNameOwners(s.linker.replicated, known, s.bundles, s.base, parsed)
	var changes []change
	for id, m := range parsed {
		from := s.base[id]
		problems, warnings := owners.check(m, from)
		switch {
		case len(m.problems) > 0:
			s.held[id] = m.problems
		case from != nil && from.digest == m.digest:
			s.warnings[id] = warnings
		case len(problems) > 0:
			s.held[id] = problems
		case s.bundles.owner(m) != nil:
			s.held[id] = []policy.Problem{s.bundles.owner(m).problem(m)}
		default:
			s.warnings[id] = warnings
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

// maxSingles is how many held changes are tried one by one after each change of
// the set. Each costs a compilation, 0.1 s at 1,000 modules, and clusters that
// live with more than a handful of broken policies should not wait for them.
const maxSingles = 16

// retry tries held changes again, together and then one by one, as long as that
// releases something and nobody interrupts.
func (s *settlement) retry(compiler *ast.Compiler, held []change, interrupted func() bool) *ast.Compiler {
	for len(held) > 0 && s.trials > 0 {
		compiler = s.add(compiler, held)
		if n := len(s.heldOf(held)); n == len(held) && 1 < n && n <= maxSingles {
			for _, c := range held {
				if interrupted() {
					return compiler
				}
				compiler = s.add(compiler, []change{c})
			}
		}
		left := s.heldOf(held)
		if len(left) == len(held) || interrupted() {
			break
		}
		held = left
	}
	return compiler
}

// add adds to the base all changes but those that do not compile with the
// rest. It returns the compiler of the new base, given that of the old one.
func (s *settlement) add(compiler *ast.Compiler, changes []change) *ast.Compiler {
	for _, c := range changes {
		delete(s.held, c.id)
	}
	for open := changes; len(open) > 0; open = s.open(open) {
		result, ok := s.try(open)
		switch {
		case ok:
			return result.compiler
		case breaksOthers(result, open) && s.trials <= 0:
			s.giveUp(open)
		case breaksOthers(result, open):
			s.holdCulprit(result, open)
		default:
			s.holdNamed(result, open)
		}
	}
	return compiler
}

// breaksOthers reports whether the errors are of a kind that does not name its
// cause: a clash, or an error in a module that is not among the changes.
func breaksOthers(r linked, changes []change) bool {
	changed := files(changes)
	return r.clash || slices.ContainsFunc(r.errors(), func(e *ast.Error) bool { return !changed[file(e)] })
}

// files are the modules that changes add or edit, as locations name them.
func files(changes []change) map[string]bool {
	all := make(map[string]bool, len(changes))
	for _, c := range changes {
		all[c.id.String()] = c.to != nil
	}
	return all
}

// holdCulprit holds the change that breaks others: the youngest of the shortest
// list, oldest first, that does so. r is the result of the whole list.
func (s *settlement) holdCulprit(r linked, changes []change) {
	good, bad := 0, len(changes) // the base alone is good
	for bad-good > 1 {
		middle := (good + bad) / 2
		tried := s.linker.link(apply(s.base, changes[:middle]), s.bundles)
		s.trials--
		if breaksOthers(tried, changes) {
			bad, r = middle, tried
		} else {
			good = middle
		}
	}
	culprit := changes[bad-1]
	s.held[culprit.id] = s.blame(r, culprit, changes)
}

// giveUp holds all changes, those that may be good too: to bring in what is left
// of a package in which much contradicts itself could let a door stand open.
func (s *settlement) giveUp(changes []change) {
	for _, c := range changes {
		s.held[c.id] = []policy.Problem{{
			Code: policy.CodeDefect,
			Message: "held with all other changes: too many of them contradict each other to find out which; " +
				"repair or remove those that are named",
		}}
	}
}

// try compiles the base with the changes, and makes that the base if it does.
func (s *settlement) try(changes []change) (_ linked, ok bool) {
	modules := apply(s.base, changes)
	result := s.linker.link(modules, s.bundles)
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

// heldOf are the changes that are held.
func (s *settlement) heldOf(changes []change) []change {
	return slices.DeleteFunc(slices.Clone(changes), func(c change) bool { return !s.isHeld(c) })
}

// holdNamed holds the changes that the errors name.
func (s *settlement) holdNamed(r linked, changes []change) {
	byFile := make(map[string][]policy.Problem)
	for _, e := range r.errors() {
		byFile[file(e)] = append(byFile[file(e)], s.linker.language.problem(e))
	}
	for _, c := range changes {
		if problems := byFile[c.id.String()]; len(problems) > 0 {
			slices.SortStableFunc(problems, byPlace)
			s.held[c.id] = slices.Compact(problems)
		}
	}
}

// blame words the errors of the shortest list that breaks others as problems of
// its last change: those that lie in it, or else those that it caused elsewhere.
// Errors in other changes of the list are theirs.
func (s *settlement) blame(r linked, culprit change, changes []change) []policy.Problem {
	changed := files(changes)
	var own, caused []policy.Problem
	for _, e := range r.errors() {
		problem := s.linker.language.problem(e)
		switch {
		case file(e) == culprit.id.String():
			if e.Location.Row == culprit.to.ast.Package.Loc().Row {
				problem.Row, problem.Col = place(culprit, e) // OPA names the package where it has no better place
			}
			own = append(own, problem)
		case r.clash || !changed[file(e)]:
			problem.Row, problem.Col = place(culprit, e)
			problem.Message = elsewhere(e, problem.Message)
			caused = append(caused, problem)
		}
	}
	if len(own) == 0 {
		own = caused
	}
	slices.SortStableFunc(own, byPlace)
	return slices.Compact(own)
}

// elsewhere adds to an error's text where the compiler saw it, unless the text
// says itself which places contradict each other.
func elsewhere(e *ast.Error, message string) string {
	if file(e) == "" || strings.Contains(message, " at ") {
		return message
	}
	return message + " (seen at " + e.Location.String() + ")"
}

// place is the rule of the change that the error's text names, or else its
// package clause; nowhere for a deleted module and for data.
func place(c change, e *ast.Error) (row, col int) {
	if c.to == nil || c.to.ast == nil {
		return 0, 0
	}
	words := strings.Fields(e.Message)
	for _, rule := range c.to.ast.Rules {
		if slices.Contains(words, rule.Ref().GroundPrefix().String()) {
			return rule.Loc().Row, rule.Loc().Col
		}
	}
	return c.to.ast.Package.Loc().Row, c.to.ast.Package.Loc().Col
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
