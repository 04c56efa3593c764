// Package engine is the only room that imports OPA. It parses and compiles
// policy sets, swaps the compiled set into an in-process OPA, and makes
// decisions with it.
//
// OPA's sdk compiles nothing here: it knows neither our capabilities nor a Rego
// version for each module, and would replace a good set by one that failed to
// compile. A Compiler makes a Snapshot, and Activate hands it over whole.
package engine

import (
	"context"
	"crypto/rand"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/logging"
	"github.com/open-policy-agent/opa/v1/plugins"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/sdk"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/version"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// Engine is an in-process OPA that enforces one snapshot at a time, over the data
// of that snapshot and that of the cluster. It may be used by several goroutines.
type Engine struct {
	opa     *sdk.OPA
	manager *plugins.Manager
	terms   terms

	mu         sync.Mutex // serialises changes of what follows; decisions do not take it
	snapshot   *Snapshot
	replicated *branch
	current    atomic.Pointer[state]
}

// state is all that a decision sees: a snapshot in force, and all data.
type state struct {
	*enforced
	data *branch
}

// enforced is a snapshot in force, with the queries that were prepared for it.
type enforced struct {
	compiler *ast.Compiler

	mu      sync.Mutex
	queries map[string]*rego.PreparedEvalQuery // by path
}

// New starts an OPA without policies. It runs until Stop.
func New(ctx context.Context) (*Engine, error) {
	e := &Engine{replicated: newBranch(0)}
	var err error
	e.opa, err = sdk.New(ctx, sdk.Options{
		Logger:        logging.NewNoOpLogger(),
		ConsoleLogger: logging.NewNoOpLogger(),
		Ready:         make(chan struct{}), // there is no plugin to wait for
		ManagerOpts: []func(*plugins.Manager){
			func(m *plugins.Manager) { e.manager = m },
			// What opa.runtime() shows: nothing of the environment, which
			// may hold secrets.
			plugins.Info(ast.NewTerm(ast.NewObject())),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("starting OPA: %w", err)
	}
	return e, nil
}

// Stop ends the OPA.
func (e *Engine) Stop(ctx context.Context) { e.opa.Stop(ctx) }

// Activate brings a snapshot into force, whole and at once: a decision that is
// being made goes on with the one before.
func (e *Engine) Activate(ctx context.Context, snapshot *Snapshot) error {
	params := storage.TransactionParams{Write: true, Context: storage.NewContext()}
	plugins.SetCompilerOnContext(params.Context, snapshot.compiler)
	nothing := func(storage.Transaction) error { return nil }
	if err := storage.Txn(ctx, e.manager.Store, params, nothing); err != nil {
		return fmt.Errorf("activating policy set %s: %w", snapshot.fingerprint, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.snapshot = snapshot
	e.current.Store(&state{
		enforced: &enforced{compiler: snapshot.compiler, queries: make(map[string]*rego.PreparedEvalQuery)},
		data:     merge(snapshot.data, e.replicated),
	})
	return nil
}

// Apply changes the data of the cluster, all of the changes at once and in their
// order. Decisions neither wait for it nor keep it waiting.
func (e *Engine) Apply(changes ...Change) {
	e.mu.Lock()
	defer e.mu.Unlock()
	edit := newEdit(e.replicated)
	edit.apply(changes)
	e.replicated = edit.root
	if now := e.current.Load(); now != nil {
		e.current.Store(&state{enforced: now.enforced, data: merge(e.snapshot.data, e.replicated)})
	}
}

// Decide asks for the decision at path, as CheckPath takes it, with input: what
// encoding/json decodes to, with json.Number for numbers. The result has that
// form too. The error is policy.ErrUndefined if there is no such decision, and
// that of ctx if it ended before there was one.
//
// It does not use the sdk's Decision: that shares one tracker of evaluated rules
// between all decisions with one prepared query, and a rule with labels in its
// metadata makes two of them write to one map, which ends the process.
func (e *Engine) Decide(ctx context.Context, path string, input any) (policy.Decision, error) {
	decision := policy.Decision{ID: rand.Text()}
	result, err := e.evaluate(ctx, path, input)
	if ctx.Err() != nil {
		err = ctx.Err() // OPA's own error says only that it was cancelled
	}
	if err != nil {
		return decision, fmt.Errorf("decision %s: %w", strings.Trim(path, "/"), err)
	}
	decision.Result = result
	return decision, nil
}

func (e *Engine) evaluate(ctx context.Context, path string, input any) (any, error) {
	now := e.current.Load() // one snapshot and one state of the data, from here to the answer
	if now == nil {
		return nil, fmt.Errorf("%w: no policy set is in force", policy.ErrUndefined)
	}
	value, err := ast.InterfaceToValue(input)
	if err != nil {
		return nil, err
	}
	query, err := e.prepare(ctx, now.enforced, path)
	if err != nil {
		return nil, err
	}
	results, err := query.Eval(ctx, rego.EvalParsedInput(value), rego.EvalTransaction(transaction{now.data}))
	switch {
	case err != nil:
		return nil, err
	case len(results) == 0:
		return nil, undefined(now.compiler, path)
	}
	return results[0].Expressions[0].Value, nil
}

func (e *Engine) prepare(ctx context.Context, enforced *enforced, path string) (*rego.PreparedEvalQuery, error) {
	enforced.mu.Lock()
	defer enforced.mu.Unlock()
	if query, ok := enforced.queries[path]; ok {
		return query, nil
	}
	query, err := rego.New(
		rego.Query(reference(path).String()),
		rego.Compiler(enforced.compiler),
		rego.Store(store{root: func() *branch { return e.current.Load().data }}),
		rego.Runtime(e.manager.Info),
	).PrepareForEval(ctx)
	if err != nil {
		return nil, err
	}
	enforced.queries[path] = &query
	return &query, nil
}

// pathPattern is what a path of a decision looks like: names between slashes.
var pathPattern = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_-]*(/[A-Za-z_][A-Za-z0-9_-]*)*$`)

// CheckPath reports whether path names a decision, such as system/main; slashes
// around it do no harm.
func CheckPath(path string) error {
	if !pathPattern.MatchString(strings.Trim(path, "/")) {
		return fmt.Errorf("%q is not the path of a decision: want, for example, system/main for data.system.main", path)
	}
	return nil
}

// reference is a path as policies write it: data.system.main for system/main.
func reference(path string) ast.Ref {
	ref := ast.DefaultRootRef
	for name := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		ref = ref.Append(ast.StringTerm(name))
	}
	return ref
}

// Defines reports whether a rule of the snapshot could give the decision at
// path a value.
func (s *Snapshot) Defines(path string) bool { return defines(s.compiler, path) }

func defines(compiler *ast.Compiler, path string) bool {
	return len(compiler.GetRules(reference(path))) > 0
}

// undefined is the error of a decision without a value, with the more frequent
// of the two reasons where it is the one.
func undefined(compiler *ast.Compiler, path string) error {
	if defines(compiler, path) {
		return policy.ErrUndefined
	}
	return fmt.Errorf("%w: no policy in force defines %s", policy.ErrUndefined, reference(path))
}

// Version is the version of the OPA that is built in.
func Version() string { return version.Version }
