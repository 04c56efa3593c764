package opa

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/bundle"
	"github.com/open-policy-agent/opa/v1/plugins"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"

	"github.com/kube-rego/kube-rego/pkg/compile"
	"github.com/kube-rego/kube-rego/pkg/engine"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// Gate decides about bundles.
type Gate interface {
	// Propose brings bundles into force instead of those before, or says why they
	// cannot be. It returns only then, or when ctx ends. A set that lacks a bundle is
	// one whose configuration is gone: it cannot be refused, and what is in force of it
	// may stay so.
	Propose(ctx context.Context, set compile.BundleSet) error
}

// store is what OPA's plugins write bundles to: OPA's own store, with a gate. OPA has
// unpacked, verified and compiled a bundle by itself when it commits; here the commit
// waits for the answer whether the bundle goes with all that is in force, so that one
// that does not fails like any other, and the last good one stays.
type store struct {
	storage.Store
	gate    Gate
	engine  *engine.Engine
	version policy.RegoVersion // of modules of bundles that do not say it
	// alive ends when the process is to end: nobody answers at the gate then.
	alive context.Context
	// initialized is called when a manager is made and its plugins do not run yet.
	initialized func()

	mu     sync.Mutex
	active bool // a bundle is there
	commit func(context.Context, storage.Transaction, storage.TriggerEvent)

	using sync.Mutex // held while OPA's manager is told which compiler there is
	used  *engine.InForce
}

func newStore(e *engine.Engine, gate Gate, version policy.RegoVersion) *store {
	return &store{Store: inmem.NewWithOpts(inmem.OptReturnASTValuesOnRead(true)), gate: gate, engine: e, version: version}
}

// writing is a transaction that changes bundles.
type writing struct {
	storage.Transaction
	context *storage.Context // that its triggers get
	changed bool
}

// NewTransaction begins a transaction.
func (s *store) NewTransaction(ctx context.Context, params ...storage.TransactionParams) (storage.Transaction, error) {
	txn, err := s.Store.NewTransaction(ctx, params...)
	if err != nil || len(params) == 0 || !params[0].Write {
		return txn, err
	}
	return &writing{Transaction: txn, context: params[0].Context}, nil
}

// own is the transaction as the store below knows it.
func own(txn storage.Transaction) storage.Transaction {
	if w, ok := txn.(*writing); ok {
		return w.Transaction
	}
	return txn
}

func change(txn storage.Transaction) storage.Transaction {
	if w, ok := txn.(*writing); ok {
		w.changed = true
	}
	return own(txn)
}

// Read reads bundles, or with a transaction of a decision what that saw.
func (s *store) Read(ctx context.Context, txn storage.Transaction, path storage.Path) (any, error) {
	if engine.Owns(txn) {
		return s.engine.InForce().Store().Read(ctx, txn, path)
	}
	return s.Store.Read(ctx, own(txn), path)
}

// Write changes data of bundles.
func (s *store) Write(ctx context.Context, txn storage.Transaction, op storage.PatchOp, path storage.Path, value any) error {
	return s.Store.Write(ctx, change(txn), op, path, value)
}

// Truncate replaces data of bundles.
func (s *store) Truncate(ctx context.Context, txn storage.Transaction, params storage.TransactionParams, it storage.Iterator) error {
	return s.Store.Truncate(ctx, change(txn), params, it)
}

// ListPolicies lists policies of bundles.
func (s *store) ListPolicies(ctx context.Context, txn storage.Transaction) ([]string, error) {
	return s.Store.ListPolicies(ctx, own(txn))
}

// GetPolicy reads a policy of a bundle.
func (s *store) GetPolicy(ctx context.Context, txn storage.Transaction, id string) ([]byte, error) {
	return s.Store.GetPolicy(ctx, own(txn), id)
}

// UpsertPolicy changes a policy of a bundle.
func (s *store) UpsertPolicy(ctx context.Context, txn storage.Transaction, id string, text []byte) error {
	return s.Store.UpsertPolicy(ctx, change(txn), id, text)
}

// DeletePolicy removes a policy of a bundle.
func (s *store) DeletePolicy(ctx context.Context, txn storage.Transaction, id string) error {
	return s.Store.DeletePolicy(ctx, change(txn), id)
}

// Register is for OPA's manager, the first to come, which learns by a trigger which
// compiler there is. Others have nothing to do with that.
func (s *store) Register(ctx context.Context, txn storage.Transaction, config storage.TriggerConfig) (storage.TriggerHandle, error) {
	s.mu.Lock()
	first := s.commit == nil
	if first {
		s.commit = config.OnCommit
	}
	s.mu.Unlock()
	if !first {
		return inert{}, nil
	}
	s.initialized()
	handle, err := s.Store.Register(ctx, own(txn), config)
	return trigger{handle}, err
}

type inert struct{}

// Unregister does nothing.
func (inert) Unregister(context.Context, storage.Transaction) {}

type trigger struct{ handle storage.TriggerHandle }

// Unregister takes the trigger away.
func (t trigger) Unregister(ctx context.Context, txn storage.Transaction) {
	t.handle.Unregister(ctx, own(txn))
}

// Abort forgets the changes.
func (s *store) Abort(ctx context.Context, txn storage.Transaction) { s.Store.Abort(ctx, own(txn)) }

// Commit asks the gate, and only then is there something new.
func (s *store) Commit(ctx context.Context, txn storage.Transaction) error {
	w, ok := txn.(*writing)
	if !ok || !w.changed {
		return s.Store.Commit(ctx, own(txn))
	}
	if err := s.pass(ctx, w); err != nil {
		s.Store.Abort(ctx, w.Transaction) // nobody else does after a commit
		return err
	}
	s.using.Lock()
	defer s.using.Unlock()
	if now := s.engine.InForce(); now != nil && w.context != nil {
		// Not the one that OPA made of the bundles alone.
		plugins.SetCompilerOnContext(w.context, now.Compiler())
		s.used = now
	}
	return s.Store.Commit(ctx, w.Transaction)
}

func (s *store) pass(ctx context.Context, w *writing) error {
	set, err := s.read(ctx, w.Transaction)
	if err != nil {
		return fmt.Errorf("reading what the bundles hold: %w", err)
	}
	s.mu.Lock()
	active := s.active
	s.mu.Unlock()
	if !active && len(set.Bundles) == 0 {
		return nil // OPA writes its version at the start
	}
	asking, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.alive, cancel)() //nolint:contextcheck // it ends too when the process does
	err = s.gate.Propose(asking, set)
	if err != nil && s.alive.Err() == nil {
		return err // the plugin ends the process if it cannot take bundles away
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active = len(set.Bundles) > 0
	return nil
}

// use has OPA's plugins evaluate with a policy set, and gives what ends that.
func (s *store) use(ctx context.Context, f *engine.InForce, txn storage.Transaction) (end func()) {
	s.using.Lock()
	if s.used == f {
		return s.using.Unlock
	}
	s.mu.Lock()
	onCommit := s.commit
	s.mu.Unlock()
	event := storage.TriggerEvent{Context: storage.NewContext()}
	plugins.SetCompilerOnContext(event.Context, f.Compiler())
	onCommit(ctx, txn, event)
	s.used = f
	return s.using.Unlock
}

// read reads what a transaction would leave behind.
func (s *store) read(ctx context.Context, txn storage.Transaction) (compile.BundleSet, error) {
	var set compile.BundleSet
	root, err := s.Store.Read(ctx, txn, storage.RootPath)
	if err != nil {
		return set, err
	}
	if data, ok := root.(ast.Object); ok {
		set.Data = data.Copy() // OPA's store changes objects where they are
	}
	if set.Bundles, err = listBundles(ctx, s.Store, txn); err != nil {
		return set, err
	}
	names, err := s.Store.ListPolicies(ctx, txn)
	if err != nil {
		return set, err
	}
	slices.Sort(names)
	for _, name := range names {
		text, err := s.Store.GetPolicy(ctx, txn, name)
		if err != nil {
			return set, err
		}
		version, err := s.versionOf(ctx, txn, name)
		if err != nil {
			return set, err
		}
		set.Modules = append(set.Modules, compile.BundleModule{Name: name, Source: string(text), Version: version})
	}
	return set, nil
}

// legacyBundle is the name for the one bundle of a configuration that has bundle
// instead of bundles.
const legacyBundle = "bundle"

func listBundles(ctx context.Context, s storage.Store, txn storage.Transaction) ([]compile.Bundle, error) {
	names, err := bundle.ReadBundleNamesFromStore(ctx, s, txn)
	if err != nil && !storage.IsNotFound(err) {
		return nil, err
	}
	slices.Sort(names)
	var bundles []compile.Bundle
	for _, name := range names {
		b, err := readManifest(ctx, s, txn, name, bundle.ManifestStoragePath(name))
		if err != nil {
			return nil, err
		}
		bundles = append(bundles, b)
	}
	if len(bundles) > 0 {
		return bundles, nil
	}
	b, err := readManifest(ctx, s, txn, legacyBundle, storage.Path{"system", "bundle", "manifest"})
	if storage.IsNotFound(err) {
		return nil, nil
	}
	return []compile.Bundle{b}, err
}

func readManifest(ctx context.Context, s storage.Store, txn storage.Transaction, name string, at storage.Path) (compile.Bundle, error) {
	b := compile.Bundle{Name: name}
	value, err := s.Read(ctx, txn, at)
	if err != nil {
		return b, err
	}
	stored, ok := value.(ast.Value)
	if !ok {
		return b, fmt.Errorf("the manifest of bundle %s is a %T", name, value)
	}
	manifest, err := ast.JSON(stored)
	if err != nil {
		return b, err
	}
	fields, _ := manifest.(map[string]any)
	b.Revision, _ = fields["revision"].(string)
	roots, _ := fields["roots"].([]any)
	if len(roots) == 0 {
		roots = []any{""} // as OPA reads a manifest without roots
	}
	for _, root := range roots {
		text, _ := root.(string)
		b.Roots = append(b.Roots, split(text))
	}
	return b, nil
}

// split are the names in a path, none if it is empty.
func split(path string) []string {
	path = strings.Trim(path, "/")
	if path == "" {
		return nil
	}
	return strings.Split(path, "/")
}

// versionOf is the Rego version of a module of a bundle: OPA keeps it where it is not
// the one that all have.
func (s *store) versionOf(ctx context.Context, txn storage.Transaction, name string) (policy.RegoVersion, error) {
	path := append(slices.Clone(bundle.ModulesInfoBasePath), strings.Trim(name, "/"), "rego_version")
	value, err := s.Store.Read(ctx, txn, path)
	switch {
	case storage.IsNotFound(err):
		return s.version, nil
	case err != nil:
		return "", err
	}
	if number, ok := value.(ast.Number); ok && number == ast.Number("0") {
		return policy.RegoV0, nil
	}
	return policy.RegoV1, nil
}
