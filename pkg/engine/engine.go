// Package engine holds what is in force, behind one pointer, and makes decisions with it.
// [Engine.Activate] brings a compiled set into force whole; [Engine.Apply] changes the
// objects of the cluster beside it; [Engine.Decide] asks for a decision, and a [Record]
// says how it was made. Nothing else in the process keeps a copy of what is in force.
//
// The package is pure: what reaches beyond the process, such as OPA's bundles and its
// REST API, is package opa's.
package engine

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/version"

	"github.com/kube-rego/kube-rego/pkg/compile"
	"github.com/kube-rego/kube-rego/pkg/data"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// Engine enforces one snapshot at a time, over the data of that snapshot and that
// of the cluster. It may be used by several goroutines.
type Engine struct {
	environment atomic.Pointer[Environment]

	mu         sync.Mutex // serialises changes of what follows; decisions do not take it
	replicated *data.Tree
	current    atomic.Pointer[InForce]
}

// InForce is a snapshot in force and the newest data beside it: all that a decision
// sees.
type InForce struct {
	snapshot *compile.Snapshot
	report   policy.Report
	data     atomic.Pointer[data.Tree] // of the snapshot, its bundles and the cluster
	texts    func() []compile.Text     // of the snapshot, found out once

	mu      sync.Mutex
	queries map[string]*rego.PreparedEvalQuery // by path
}

func newInForce(snapshot *compile.Snapshot, report policy.Report) *InForce {
	return &InForce{
		snapshot: snapshot,
		report:   report,
		texts:    sync.OnceValue(snapshot.Texts),
		queries:  make(map[string]*rego.PreparedEvalQuery),
	}
}

// Snapshot returns the compiled policy set.
func (f *InForce) Snapshot() *compile.Snapshot { return f.snapshot }

// Report says what became of the set that the snapshot was made for.
func (f *InForce) Report() policy.Report { return f.report }

// Compiler returns OPA's compiler with the set, for queries. Nothing may be added to it.
// Its modules are those that the store lists, as they were parsed: the compiler itself has
// them gathered.
func (f *InForce) Compiler() *ast.Compiler {
	compiler := *f.snapshot.Compiler()
	compiler.Modules = make(map[string]*ast.Module)
	for _, text := range f.texts() {
		compiler.Modules[text.Name] = text.Tree
	}
	return &compiler
}

// Store reads the policies and the data. A transaction of it sees one state of the
// data, the newest when it began.
func (f *InForce) Store() storage.Store { return store{f} }

// New makes an engine with nothing in force.
func New() *Engine {
	e := &Engine{replicated: data.New()}
	e.environment.Store(&Environment{})
	return e
}

// SetEnvironment says what decisions have beside policies and data, and who hears
// of them.
func (e *Engine) SetEnvironment(environment Environment) { e.environment.Store(&environment) }

// InForce returns what decisions are made with now; nil before the first Activate.
func (e *Engine) InForce() *InForce { return e.current.Load() }

// Activate brings a snapshot into force, whole and at once, and what there is to report
// of it: a decision that is being made goes on with the one before. It is the only way
// there, and it always stores: two snapshots of the same modules may differ in their
// bundles, in what is held, and in what they know of it.
func (e *Engine) Activate(snapshot *compile.Snapshot, report policy.Report) {
	e.mu.Lock()
	defer e.mu.Unlock()
	next := newInForce(snapshot, report)
	next.data.Store(snapshot.Data().Merge(e.replicated))
	e.current.Store(next)
}

// Apply changes the data of the cluster, all of the changes at once and in their
// order. Decisions neither wait for it nor keep it waiting.
func (e *Engine) Apply(changes ...data.Change) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.replicated = e.replicated.With(changes...)
	if now := e.current.Load(); now != nil {
		now.data.Store(now.snapshot.Data().Merge(e.replicated))
	}
}

// Documents returns how many there are at and below a path of the data of the cluster.
func (e *Engine) Documents(path []string) int {
	e.mu.Lock()
	root := e.replicated
	e.mu.Unlock()
	return root.Documents(path)
}

// Decide asks for the decision at path, as policy.CheckPath takes it, with input: what
// encoding/json decodes to, with json.Number for numbers. The result has that
// form too. The error is policy.ErrUndefined if there is no such decision, and
// that of ctx if it ended before there was one.
//
// It does not use the sdk's Decision: that shares one tracker of evaluated rules
// between all decisions with one prepared query, and a rule with labels in its
// metadata makes two of them write to one map, which ends the process.
//
// Beside an error the decision has no result; the rest of it is there.
func (e *Engine) Decide(ctx context.Context, path string, input any) (policy.Decision, error) {
	record := Record{ID: rand.Text(), Path: strings.Trim(path, "/"), Input: input}
	environment := e.environment.Load()
	if now := e.current.Load(); now == nil {
		record.Err = fmt.Errorf("%w: no policy set is in force", policy.ErrUndefined)
	} else {
		now.decide(ctx, *environment, &record)
	}
	if ctx.Err() != nil {
		record.Err = ctx.Err() // OPA's own error says only that it was cancelled
	}
	decision := policy.Decision{ID: record.ID, Result: record.Result}
	if record.InForce != nil && record.InputValue != nil {
		decision.Fingerprint, decision.Witness = record.InForce.snapshot.Fingerprint(), record.witness()
	}
	if environment.Observe != nil {
		environment.Observe(record)
	}
	if record.Err != nil {
		return decision, fmt.Errorf("decision %s: %w", record.Path, record.Err)
	}
	return decision, nil
}

// decide makes a decision with one snapshot and one state of the data.
func (f *InForce) decide(ctx context.Context, environment Environment, record *Record) {
	record.InForce, record.Transaction = f, transaction{f.data.Load()}
	if record.InputValue, record.Err = ast.InterfaceToValue(record.Input); record.Err != nil {
		return
	}
	query, err := f.prepare(ctx, record.Path)
	if err != nil {
		record.Err = err
		return
	}
	results, err := query.Eval(ctx, environment.options(record)...)
	switch {
	case err != nil:
		record.Err = WithoutValues(err)
	case len(results) == 0:
		record.Err = undefined(f.snapshot, record.Path)
	default:
		record.Result = results[0].Expressions[0].Value
	}
}

// WithoutValues is an error of an evaluation without the values that it quotes: of rules
// that contradict each other OPA tells on a line each what they give, which may be taken
// from a Secret, and where. The places stay.
func WithoutValues(err error) error {
	var conflict *topdown.Error
	if !errors.As(err, &conflict) || conflict.Code != topdown.ConflictErr {
		return err
	}
	told := *conflict
	message, values, _ := strings.Cut(told.Message, ":")
	var places []string
	for line := range strings.Lines(values) {
		if i := strings.LastIndex(line, " at "); i >= 0 {
			places = append(places, strings.TrimSpace(line[i:]))
		}
	}
	if told.Message = message; len(places) > 0 {
		told.Message += " " + strings.Join(places, " and ")
	}
	return &told
}

func (f *InForce) prepare(ctx context.Context, path string) (*rego.PreparedEvalQuery, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if query, ok := f.queries[path]; ok {
		return query, nil
	}
	query, err := rego.New(
		rego.Query(compile.Ref(path).String()),
		rego.Compiler(f.snapshot.Compiler()),
		rego.Store(f.Store()),
		rego.Runtime(Runtime()),
	).PrepareForEval(ctx)
	if err != nil {
		return nil, err
	}
	f.queries[path] = &query
	return &query, nil
}

// Runtime is what opa.runtime() shows: nothing of the environment, which may hold
// secrets.
func Runtime() *ast.Term { return ast.NewTerm(ast.NewObject()) }

// Decides reports whether rules in force give the value at path, and only rules: there
// is no data at or below it.
func (e *Engine) Decides(path string) bool {
	f := e.current.Load()
	return f != nil && policy.CheckPath(path) == nil && f.snapshot.Defines(path) &&
		!f.data.Load().Has(strings.Split(strings.Trim(path, "/"), "/"))
}

// undefined is the error of a decision without a value, with the more frequent
// of the two reasons where it is the one.
func undefined(snapshot *compile.Snapshot, path string) error {
	if snapshot.Defines(path) {
		return policy.ErrUndefined
	}
	return fmt.Errorf("%w: no policy in force defines %s", policy.ErrUndefined, compile.Ref(path))
}

// Version returns the version of the OPA that is built in.
func Version() string { return version.Version }
