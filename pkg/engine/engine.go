// Package engine parses and compiles policy sets, swaps the compiled set in, and
// makes decisions with it. It is pure: what reaches beyond the process, such as
// OPA's bundles and its REST API, is the room next to it.
//
// OPA's sdk compiles nothing here: it knows neither our capabilities nor a Rego
// version for each module, and would replace a good set by one that failed to
// compile. A Compiler makes a Snapshot, and Activate brings it into force whole.
package engine

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/version"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// Engine enforces one snapshot at a time, over the data of that snapshot and that
// of the cluster. It may be used by several goroutines.
type Engine struct {
	terms       terms
	environment atomic.Pointer[Environment]

	mu         sync.Mutex // serialises changes of what follows; decisions do not take it
	replicated *branch
	current    atomic.Pointer[InForce]
}

// InForce is a snapshot in force and the newest data beside it: all that a decision
// sees.
type InForce struct {
	snapshot *Snapshot
	data     atomic.Pointer[branch] // of the snapshot, its bundles and the cluster
	texts    func() []Text          // of the snapshot, found out once

	mu      sync.Mutex
	queries map[string]*rego.PreparedEvalQuery // by path
}

func newInForce(snapshot *Snapshot) *InForce {
	return &InForce{
		snapshot: snapshot,
		texts:    sync.OnceValue(snapshot.Texts),
		queries:  make(map[string]*rego.PreparedEvalQuery),
	}
}

// Snapshot is the compiled policy set.
func (f *InForce) Snapshot() *Snapshot { return f.snapshot }

// Compiler is OPA's compiler with the set, for queries. Nothing may be added to it. Its
// modules are those that the store lists, as they were parsed: the compiler itself has
// them gathered.
func (f *InForce) Compiler() *ast.Compiler {
	compiler := *f.snapshot.compiler
	compiler.Modules = make(map[string]*ast.Module)
	for _, text := range f.texts() {
		compiler.Modules[text.Name] = text.Tree
	}
	return &compiler
}

// Store reads the policies and the data. A transaction of it sees one state of the
// data, the newest when it began.
func (f *InForce) Store() storage.Store { return store{f} }

// New makes an engine without policies.
func New() *Engine {
	e := &Engine{replicated: newBranch(0)}
	e.environment.Store(&Environment{})
	return e
}

// SetEnvironment says what decisions have beside policies and data, and who hears
// of them.
func (e *Engine) SetEnvironment(environment Environment) { e.environment.Store(&environment) }

// InForce is what decisions are made with now; nil before the first Activate.
func (e *Engine) InForce() *InForce { return e.current.Load() }

// Activate brings a snapshot into force, whole and at once: a decision that is
// being made goes on with the one before.
func (e *Engine) Activate(snapshot *Snapshot) {
	e.mu.Lock()
	defer e.mu.Unlock()
	next := newInForce(snapshot)
	next.data.Store(merge(snapshot.data, e.replicated))
	e.current.Store(next)
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
		now.data.Store(merge(now.snapshot.data, e.replicated))
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
		decision.Fingerprint, decision.Witness = record.InForce.snapshot.fingerprint, record.witness()
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
		record.Err = undefined(f.snapshot.compiler, record.Path)
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
		rego.Query(reference(path).String()),
		rego.Compiler(f.snapshot.compiler),
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

// Claims reports whether the decision at a path is one that policies make: a rule of the
// snapshot could give it a value, or one of the package would if it were not held, of a
// module of which nothing is in force.
func (s *Snapshot) Claims(ref ast.Ref) bool {
	names := names(ref)
	own := len(names) > 0 && slices.Contains(s.missing, strings.Join(names[:len(names)-1], "."))
	return own || len(s.compiler.GetRules(ref)) > 0
}

// Decides reports whether rules in force give the value at path, and only rules: there
// is no data at or below it.
func (e *Engine) Decides(path string) bool {
	f := e.current.Load()
	return f != nil && CheckPath(path) == nil && f.snapshot.Defines(path) && lookupNode(f.data.Load(), strings.Split(strings.Trim(path, "/"), "/")) == nil
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

// versionData is what OPA has at data.system.version, in any set. What it tells of the
// build is that of OPA's own program and empty here.
var versionData = sync.OnceValue(func() *branch {
	e := newEdit(newBranch(0))
	e.set([]string{systemPackage, "version"}, document{ast.ObjectTerm(
		ast.Item(ast.StringTerm("version"), ast.StringTerm(version.Version)),
		ast.Item(ast.StringTerm("build_commit"), ast.StringTerm("")),
		ast.Item(ast.StringTerm("build_hostname"), ast.StringTerm("")),
		ast.Item(ast.StringTerm("build_timestamp"), ast.StringTerm("")),
	)})
	return e.root
})
