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
	"strings"
	"sync"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/logging"
	"github.com/open-policy-agent/opa/v1/plugins"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/sdk"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/version"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// Engine is an in-process OPA that enforces one snapshot at a time. It may be
// used by several goroutines.
type Engine struct {
	opa     *sdk.OPA
	manager *plugins.Manager

	mu      sync.Mutex
	queries queries
}

// New starts an OPA without policies. It runs until Stop.
func New(ctx context.Context) (*Engine, error) {
	e := new(Engine)
	var err error
	e.opa, err = sdk.New(ctx, sdk.Options{
		Store: inmem.NewWithOpts(
			inmem.OptReturnASTValuesOnRead(true), // saves a conversion on every read of data
			inmem.OptRoundTripOnWrite(false),     // nobody else holds what we write
		),
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
	return nil
}

// Decide asks for the decision at path, such as system/main, with input: what
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
	if err != nil {
		if ctx.Err() != nil { // OPA's own error says only that it was cancelled
			err = fmt.Errorf("%w: %w", ctx.Err(), err)
		}
		return decision, fmt.Errorf("decision %s: %w", strings.Trim(path, "/"), err)
	}
	decision.Result = result
	return decision, nil
}

func (e *Engine) evaluate(ctx context.Context, path string, input any) (any, error) {
	value, err := ast.InterfaceToValue(input)
	if err != nil {
		return nil, err
	}
	// While the transaction is open no snapshot is swapped in.
	store := e.manager.Store
	txn, err := store.NewTransaction(ctx)
	if err != nil {
		return nil, err
	}
	defer store.Abort(ctx, txn)
	query, err := e.prepare(ctx, e.manager.GetCompiler(), txn, path)
	if err != nil {
		return nil, err
	}
	results, err := query.Eval(ctx, rego.EvalTransaction(txn), rego.EvalTime(time.Now()), rego.EvalParsedInput(value))
	switch {
	case err != nil:
		return nil, err
	case len(results) == 0:
		return nil, policy.ErrUndefined
	}
	return results[0].Expressions[0].Value, nil
}

// queries are the prepared queries of one compiler, by path.
type queries struct {
	compiler *ast.Compiler
	byPath   map[string]*rego.PreparedEvalQuery
}

func (e *Engine) prepare(ctx context.Context, compiler *ast.Compiler, txn storage.Transaction, path string) (*rego.PreparedEvalQuery, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.queries.compiler != compiler {
		e.queries = queries{compiler: compiler, byPath: make(map[string]*rego.PreparedEvalQuery)}
	}
	path = strings.Trim(path, "/")
	if query, ok := e.queries.byPath[path]; ok {
		return query, nil
	}
	parsed, ok := storage.ParsePath("/" + path)
	if !ok {
		return nil, CheckPath(path)
	}
	query, err := rego.New(
		rego.Query(parsed.Ref(ast.DefaultRootDocument).String()),
		rego.Compiler(compiler),
		rego.Store(e.manager.Store),
		rego.Transaction(txn),
		rego.Runtime(e.manager.Info),
	).PrepareForEval(ctx)
	if err != nil {
		return nil, err
	}
	e.queries.byPath[path] = &query
	return &query, nil
}

// CheckPath reports whether path names a decision, such as system/main.
func CheckPath(path string) error {
	if _, ok := storage.ParsePath("/" + strings.Trim(path, "/")); !ok || strings.Trim(path, "/") == "" {
		return fmt.Errorf("%q is not the path of a decision: want, for example, system/main", path)
	}
	return nil
}

// Version is the version of the OPA that is built in.
func Version() string { return version.Version }
