package compile

import (
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

const (
	// maxExplained is how many held modules are looked through for further
	// problems after a change of the set, and maxStages how often each. Every time
	// costs a compilation, 0.1 s at 1,000 modules.
	maxExplained = 4
	maxStages    = 2
)

// explain finds the problems of held modules that OPA's compiler did not come to:
// it stops at the first of its stages that fails. Without the rules that are
// known to be wrong it goes on.
func (s *settlement) explain(changes []change, interrupted func() bool) {
	held := slices.DeleteFunc(s.heldOf(changes), func(c change) bool { return c.to == nil || c.to.ast == nil })
	if len(held) > maxExplained {
		return
	}
	for _, c := range held {
		for range maxStages {
			if interrupted() {
				return
			}
			more := s.further(c)
			if len(more) == 0 {
				break
			}
			problems := append(slices.Clone(s.held[c.id]), more...)
			slices.SortStableFunc(problems, byPlace)
			s.held[c.id] = problems
		}
	}
}

// further compiles a held module without the rules that its problems are about,
// and gives the problems of the others.
func (s *settlement) further(c change) []policy.Problem {
	rest, dropped := without(c.to.ast, s.held[c.id])
	if len(dropped) == 0 {
		return nil
	}
	part := *c.to
	part.ast = rest
	tried := s.linker.link(apply(s.base, []change{{id: c.id, from: c.from, to: &part}}), s.bundles)
	if tried.clash {
		return nil // whose it is would have to be found out
	}
	var more []policy.Problem
	for _, e := range tried.errors() {
		if file(e) == c.id.String() && !mentions(e, dropped) {
			more = append(more, s.linker.language.problem(e))
		}
	}
	return more
}

// without is the module without the rules that problems lie in, and their names.
func without(tree *ast.Module, problems []policy.Problem) (*ast.Module, []string) {
	wrong := make(map[int]bool) // rows on which such rules begin
	for _, p := range problems {
		begin := 0
		for _, rule := range tree.Rules {
			if row := rule.Loc().Row; row <= p.Row {
				begin = max(begin, row)
			}
		}
		wrong[begin] = true
	}
	rest := shallowCopy(tree)
	var dropped []string
	rest.Rules = slices.DeleteFunc(rest.Rules, func(rule *ast.Rule) bool {
		if wrong[rule.Loc().Row] {
			dropped = append(dropped, rule.Ref().GroundPrefix().String())
			return true
		}
		return false
	})
	return rest, dropped
}

// mentions reports whether an error is about one of the rules that were left out:
// they are missing only here.
func mentions(e *ast.Error, names []string) bool {
	return slices.ContainsFunc(names, func(name string) bool {
		return slices.ContainsFunc(strings.FieldsFunc(e.Message, isSpaceOrColon), func(word string) bool {
			return word == name || strings.HasSuffix(name, "."+word) // within its package by its last part
		})
	})
}

func isSpaceOrColon(r rune) bool { return r == ' ' || r == ':' }
