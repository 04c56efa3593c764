package engine

import (
	"context"
	"iter"
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/topdown/builtins"

	"github.com/kube-rego/kube-rego/pkg/compile"
)

// maxSpeakers bounds the modules that are named: whoever reads them looks for the few
// that denied. With the longest names that Kubernetes allows they are 40 kB.
const maxSpeakers = 64

// maxQueries bounds what a trace remembers, to some megabytes.
const maxQueries = 1 << 16

// Speakers are the modules whose rules made the result what it is, sorted; maxSpeakers at
// most. Where none was true, as in an empty set, they are those that define the decision. A
// rule that was true, but that only rules use which were not, had no say. Tracing takes two
// to three times as long as the decision took.
func (r Record) Speakers(ctx context.Context) ([]string, error) {
	said := make(speakers)
	if err := r.rerun(ctx, said, r.offline); err != nil {
		return nil, err
	}
	compiler, decision := r.InForce.snapshot.Compiler(), compile.Ref(r.Path)
	modules := said.modules(compiler, decision)
	if len(modules) == 0 {
		modules = definers(compiler, decision)
	}
	return modules, nil
}

// Suspects are the modules whose rules are being evaluated when ctx ends, the innermost
// first; none if the evaluation ends before.
func (r Record) Suspects(ctx context.Context) []string {
	path := &pathTracer{open: make(map[uint64]step)}
	if err := r.rerun(ctx, path, r.silent); err == nil || ctx.Err() == nil {
		return nil
	}
	return path.modules()
}

// rerun makes the decision once more under a tracer. Built-ins give what they gave then.
func (r Record) rerun(ctx context.Context, tracer topdown.QueryTracer, network topdown.CustomizeRoundTripper) error {
	query, err := r.InForce.prepare(ctx, r.Path)
	if err != nil {
		return err
	}
	options := []rego.EvalOption{
		rego.EvalParsedInput(r.InputValue),
		rego.EvalTransaction(r.Transaction),
		rego.EvalNDBuiltinCache(r.Builtins),
		rego.EvalQueryTracer(tracer),
	}
	if network != nil {
		options = append(options, rego.EvalHTTPRoundTripper(network))
	}
	_, err = query.Eval(ctx, options...)
	return err
}

// witness is the record with a copy of what built-ins gave: making the decision once more
// adds to it, while others may be reading theirs.
func (r Record) witness() Record {
	gave := make(builtins.NDBCache, len(r.Builtins))
	for name, calls := range r.Builtins {
		gave[name] = calls.Copy()
	}
	r.Builtins = gave
	return r
}

// step is one query of an evaluation: the query that it is a part of, and the module if
// it is a rule.
type step struct {
	parent uint64
	module string
}

func stepOf(event topdown.Event) step {
	s := step{parent: event.ParentID}
	if rule, ok := event.Node.(*ast.Rule); ok {
		s.module = moduleOf(rule)
	}
	return s
}

// moduleOf is the module of a rule; empty for what is built in, of which no author knows.
func moduleOf(rule *ast.Rule) string {
	if rule.Location == nil || rule.Location.File == compile.EntrypointFile {
		return ""
	}
	return rule.Location.File
}

// speakers is a tracer that notes which rules were true.
type speakers map[*ast.Rule]struct{}

// Enabled is true.
func (speakers) Enabled() bool { return true }

// Config asks for events as they are.
func (speakers) Config() topdown.TraceConfig { return topdown.TraceConfig{} }

// TraceEvent notes a rule that was true.
func (s speakers) TraceEvent(event topdown.Event) {
	if event.Op != topdown.ExitOp {
		return
	}
	if rule, ok := event.Node.(*ast.Rule); ok {
		s[rule] = struct{}{}
	}
}

// modules are those of true rules that a decision uses by way of true rules. Which rules
// use which is asked of the compiler: the trace shows only who asked first, and the others
// found the value in OPA's cache.
func (s speakers) modules(compiler *ast.Compiler, decision ast.Ref) []string {
	var modules []string
	for open := compiler.GetRulesDynamicWithOpts(decision, ast.RulesOptions{IncludeHiddenModules: true}); len(open) > 0; {
		rule := open[len(open)-1]
		open = open[:len(open)-1]
		if _, ok := s[rule]; !ok {
			continue
		}
		delete(s, rule)
		if name := moduleOf(rule); name != "" && !slices.Contains(modules, name) && len(modules) < maxSpeakers {
			modules = append(modules, name)
		}
		for used := range compiler.Graph.Dependencies(rule) {
			if used, ok := used.(*ast.Rule); ok {
				open = append(open, used)
			}
		}
	}
	slices.Sort(modules)
	return modules
}

// definers are the modules that define a decision, sorted.
func definers(compiler *ast.Compiler, decision ast.Ref) []string {
	var modules []string
	for _, rule := range compiler.GetRules(decision) {
		if name := moduleOf(rule); name != "" && !slices.Contains(modules, name) && len(modules) < maxSpeakers {
			modules = append(modules, name)
		}
	}
	slices.Sort(modules)
	return modules
}

// pathTracer notes which queries lead to the one that is being evaluated.
type pathTracer struct {
	open map[uint64]step
	at   uint64
}

// Enabled is true.
func (*pathTracer) Enabled() bool { return true }

// Config asks for events as they are.
func (*pathTracer) Config() topdown.TraceConfig { return topdown.TraceConfig{} }

// TraceEvent notes where the evaluation is.
func (p *pathTracer) TraceEvent(event topdown.Event) {
	p.at = event.QueryID
	if event.Op != topdown.EnterOp {
		return
	}
	if len(p.open) >= maxQueries {
		p.prune(event.ParentID)
	}
	p.open[event.QueryID] = stepOf(event)
}

// prune forgets all but what leads to a query.
func (p *pathTracer) prune(to uint64) {
	kept := make(map[uint64]step)
	for at := range p.way(to) {
		kept[at] = p.open[at]
	}
	p.open = kept
}

// way are a query and those that it is a part of, up to the root, which has the number 0
// and is a part of itself.
func (p *pathTracer) way(from uint64) iter.Seq[uint64] {
	return func(yield func(uint64) bool) {
		for {
			s, ok := p.open[from]
			if !ok || !yield(from) || from == s.parent {
				return
			}
			from = s.parent
		}
	}
}

// modules are those on the way, the innermost first.
func (p *pathTracer) modules() []string {
	var modules []string
	for at := range p.way(p.at) {
		if m := p.open[at].module; m != "" && !slices.Contains(modules, m) {
			modules = append(modules, m)
		}
	}
	return modules
}
