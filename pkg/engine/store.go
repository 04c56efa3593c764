package engine

import (
	"context"

	"github.com/open-policy-agent/opa/v1/storage"
)

// store is OPA's way to read data. A transaction is a root: it sees one state for
// ever, and neither waits for a change nor keeps one waiting. OPA's own store in
// memory has one lock for all, and a commit waits for the slowest decision while
// all others wait for the commit.
type store struct {
	storage.PolicyNotSupported
	storage.TriggersNotSupported
	storage.WritesNotSupported
	root func() *branch
}

// transaction is a root that decisions read.
type transaction struct{ root *branch }

// ID is the same for all: nothing is ever committed.
func (transaction) ID() uint64 { return 1 }

// NewTransaction begins to read what there is now.
func (s store) NewTransaction(context.Context, ...storage.TransactionParams) (storage.Transaction, error) {
	return transaction{s.root()}, nil
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
	if value := lookup(t.root, path); value != nil {
		return value, nil
	}
	return nil, errNotFound
}

// Commit has nothing to do.
func (store) Commit(context.Context, storage.Transaction) error { return nil }

// Abort has nothing to do.
func (store) Abort(context.Context, storage.Transaction) {}

// Truncate is a write.
func (s store) Truncate(ctx context.Context, txn storage.Transaction, _ storage.TransactionParams, _ storage.Iterator) error {
	return s.Write(ctx, txn, storage.RemoveOp, nil, nil)
}
