package policy

import "errors"

// Decision is the answer to one query against one snapshot.
type Decision struct {
	// ID is unique to this decision; logs name it.
	ID string
	// Result is the value that the policies gave, as encoding/json decodes it.
	Result any
}

// ErrUndefined says that no rule gives a value for the decision asked for.
var ErrUndefined = errors.New("undefined")
