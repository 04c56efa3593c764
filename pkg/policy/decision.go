package policy

import (
	"context"
	"errors"
)

// Decision is the answer to one query against one snapshot.
type Decision struct {
	// ID is unique to this decision; logs name it.
	ID string
	// Result is the value that the policies gave, as encoding/json decodes it.
	Result any
	// Fingerprint is that of the set that it was made with; empty if there was none.
	Fingerprint string
	// Witness knows how it was made; nil if there was no set to make it with.
	Witness Witness
}

// Witness finds out how a decision was made, by making it once more, over the same set
// and the same data, without asking anything of the network again. That costs more than
// the decision did.
type Witness interface {
	// Speakers are the modules whose rules made the result what it is, sorted.
	Speakers(ctx context.Context) ([]string, error)
	// Suspects are the modules whose rules are being evaluated when ctx ends, the
	// innermost first; none if the evaluation ends before.
	Suspects(ctx context.Context) []string
}

// ErrUndefined says that no rule gives a value for the decision asked for.
var ErrUndefined = errors.New("undefined")
