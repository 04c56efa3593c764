package engine

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/storage"

	"github.com/kube-rego/kube-rego/pkg/compile"
	"github.com/kube-rego/kube-rego/pkg/data"
)

// store is OPA's way to read what is in force. A transaction is a root of the data:
// it sees one state for ever, and neither waits for a change nor keeps one waiting.
// OPA's own store in memory has one lock for all, and a commit waits for the slowest
// decision while all others wait for the commit.
type store struct{ inForce *InForce }

// transaction is a root that decisions read.
type transaction struct{ root *data.Tree }

// ID is the same for all: nothing is ever committed.
func (transaction) ID() uint64 { return 1 }

// NewTransaction begins to read what there is now.
func (s store) NewTransaction(context.Context, ...storage.TransactionParams) (storage.Transaction, error) {
	return transaction{s.inForce.data.Load()}, nil
}

// errNotFound is the same for all paths: that there is nothing is the most frequent
// answer of all, and OPA looks at its code only.
var errNotFound = &storage.Error{Code: storage.NotFoundErr, Message: "no data"}

// Read gives the value at a path, as an ast.Value that nobody may change.
func (store) Read(_ context.Context, txn storage.Transaction, path storage.Path) (any, error) {
	t, ok := txn.(transaction)
	if !ok {
		return nil, &storage.Error{Code: storage.InvalidTransactionErr, Message: "a transaction of another store"}
	}
	if value := t.root.Lookup(path); value != nil {
		return value, nil
	}
	return nil, errNotFound
}

// ListPolicies gives the names of the modules in force, sorted.
func (s store) ListPolicies(context.Context, storage.Transaction) ([]string, error) {
	texts := s.inForce.texts()
	names := make([]string, 0, len(texts))
	for _, text := range texts {
		names = append(names, text.Name)
	}
	return names, nil
}

// GetPolicy gives the text of a module in force.
func (s store) GetPolicy(_ context.Context, _ storage.Transaction, name string) ([]byte, error) {
	texts := s.inForce.texts()
	i, found := slices.BinarySearchFunc(texts, name, func(t compile.Text, name string) int { return strings.Compare(t.Name, name) })
	if !found {
		return nil, &storage.Error{Code: storage.NotFoundErr, Message: fmt.Sprintf("policy id %q", name)}
	}
	return []byte(texts[i].Source), nil
}

// Register accepts whoever wants to hear of commits: there are none.
func (store) Register(context.Context, storage.Transaction, storage.TriggerConfig) (storage.TriggerHandle, error) {
	return noTrigger{}, nil
}

type noTrigger struct{}

func (noTrigger) Unregister(context.Context, storage.Transaction) {}

// errReadOnly is the error of every write.
var errReadOnly = &storage.Error{Code: storage.InternalErr, Message: "what is in force is changed by the ConfigMaps that it comes from"}

// Write is refused.
func (store) Write(context.Context, storage.Transaction, storage.PatchOp, storage.Path, any) error {
	return errReadOnly
}

// Truncate is a write.
func (store) Truncate(context.Context, storage.Transaction, storage.TransactionParams, storage.Iterator) error {
	return errReadOnly
}

// UpsertPolicy is a write.
func (store) UpsertPolicy(context.Context, storage.Transaction, string, []byte) error {
	return errReadOnly
}

// DeletePolicy is a write.
func (store) DeletePolicy(context.Context, storage.Transaction, string) error { return errReadOnly }

// Commit has nothing to do.
func (store) Commit(context.Context, storage.Transaction) error { return nil }

// Abort has nothing to do.
func (store) Abort(context.Context, storage.Transaction) {}

// Owns reports whether a transaction is one of those that decisions read with.
func Owns(txn storage.Transaction) bool {
	_, ok := txn.(transaction)
	return ok
}
