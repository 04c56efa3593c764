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
	"fmt"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/logging"
	"github.com/open-policy-agent/opa/v1/plugins"
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
func (e *Engine) Decide(ctx context.Context, path string, input any) (policy.Decision, error) {
	result, err := e.opa.Decision(ctx, sdk.DecisionOptions{Path: path, Input: input})
	decision := policy.Decision{}
	if result != nil {
		decision.ID, decision.Result = result.ID, result.Result
	}
	switch {
	case err == nil:
		return decision, nil
	case sdk.IsUndefinedErr(err):
		err = policy.ErrUndefined
	case ctx.Err() != nil: // OPA's own error says only that it was cancelled
		err = fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	return decision, fmt.Errorf("decision %s: %w", strings.Trim(path, "/"), err)
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
