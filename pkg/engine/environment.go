package engine

import (
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
	// Offline and Silent are the networks of decisions that are made once more, to find out
	// how they were made: http.send gives what it gave then, and where it gave nothing asks
	// nobody. Offline fails at once, Silent never answers.
	Offline, Silent topdown.CustomizeRoundTripper
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

	offline, silent topdown.CustomizeRoundTripper
}

// options evaluate a query for a record. Metrics are taken only where somebody hears of
// them.
func (e Environment) options(record *Record) []rego.EvalOption {
	record.Builtins, record.offline, record.silent = make(builtins.NDBCache), e.Offline, e.Silent
	options := []rego.EvalOption{
		rego.EvalParsedInput(record.InputValue),
		rego.EvalTransaction(record.Transaction),
		rego.EvalNDBuiltinCache(record.Builtins),
	}
	if e.Cache != nil {
		options = append(options, rego.EvalInterQueryBuiltinCache(e.Cache), rego.EvalInterQueryBuiltinValueCache(e.ValueCache))
	}
	if e.Observe == nil {
		return options
	}
	record.Metrics = metrics.New()
	return append(options, rego.EvalMetrics(record.Metrics))
}
