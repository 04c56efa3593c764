package engine

import (
	"context"
	"maps"
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/metrics"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/topdown/builtins"
	"github.com/open-policy-agent/opa/v1/topdown/cache"
)

// Environment is what decisions have beside policies and data.
type Environment struct {
	// Cache and ValueCache keep what built-ins learn beyond one decision, such as
	// the answers that http.send got; nil: nothing is kept.
	Cache      cache.InterQueryCache
	ValueCache cache.InterQueryValueCache
	// Observe hears of each decision, before its answer goes out: it must not keep
	// the decision waiting. nil: nobody does.
	Observe func(Record)
}

// Record is all there is to tell of one decision. Nothing in it may be changed.
type Record struct {
	// ID of the decision.
	ID string
	// Path of the decision that was asked for, without slashes around it.
	Path string
	// InForce is what it was made with; nil if there was nothing yet.
	InForce *InForce
	// Transaction sees the data that it was made with, in InForce's store.
	Transaction storage.Transaction
	// Input as it was given, and as OPA's value.
	Input      any
	InputValue ast.Value
	// Result, or else Err.
	Result any
	Err    error
	// Metrics of the evaluation.
	Metrics metrics.Metrics
	// Builtins are what built-ins gave that give something else each time.
	Builtins builtins.NDBCache
}

// options evaluate a query for a record. What a record has beside the result is
// found out only where somebody hears of it.
func (e Environment) options(record *Record) []rego.EvalOption {
	options := []rego.EvalOption{rego.EvalParsedInput(record.InputValue), rego.EvalTransaction(record.Transaction)}
	if e.Cache != nil {
		options = append(options, rego.EvalInterQueryBuiltinCache(e.Cache), rego.EvalInterQueryBuiltinValueCache(e.ValueCache))
	}
	if e.Observe == nil {
		return options
	}
	record.Metrics, record.Builtins = metrics.New(), make(builtins.NDBCache)
	return append(options, rego.EvalMetrics(record.Metrics), rego.EvalNDBuiltinCache(record.Builtins))
}

// Speakers are the modules with rules that were true on the way to the result, sorted;
// maxSpeakers at most. It makes the decision once more, with a trace, which takes two to
// three times as long as the decision took: too long to be done before the answer goes out.
// Built-ins give what they gave then, and nothing is asked of the network again.
func (r Record) Speakers(ctx context.Context) ([]string, error) {
	query, err := r.InForce.prepare(ctx, r.Path)
	if err != nil {
		return nil, err
	}
	var found speakers
	_, err = query.Eval(ctx,
		rego.EvalParsedInput(r.InputValue),
		rego.EvalTransaction(r.Transaction),
		rego.EvalNDBuiltinCache(r.Builtins),
		rego.EvalQueryTracer(&found))
	return slices.Sorted(maps.Keys(found)), err
}

// maxSpeakers bounds the modules that are named: whoever reads them looks for the few
// that denied. With the longest names that Kubernetes allows they are 40 kB.
const maxSpeakers = 64

// speakers is a tracer that only notes which modules had a say.
type speakers map[string]struct{}

// Enabled is true.
func (*speakers) Enabled() bool { return true }

// Config asks for events as they are.
func (*speakers) Config() topdown.TraceConfig { return topdown.TraceConfig{} }

// TraceEvent notes the module of a rule that was true.
func (s *speakers) TraceEvent(event topdown.Event) {
	if event.Op != topdown.ExitOp || len(*s) == maxSpeakers {
		return
	}
	rule, ok := event.Node.(*ast.Rule)
	if !ok || rule.Location == nil {
		return
	}
	if *s == nil {
		*s = make(speakers)
	}
	(*s)[rule.Location.File] = struct{}{}
}
