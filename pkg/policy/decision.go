package policy

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
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

// pathPattern is what a path of a decision looks like: names between slashes.
var pathPattern = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_-]*(/[A-Za-z_][A-Za-z0-9_-]*)*$`)

// CheckPath returns an error unless path names a decision, such as system/main; slashes
// around it do no harm.
func CheckPath(path string) error {
	if !pathPattern.MatchString(strings.Trim(path, "/")) {
		return fmt.Errorf("%q is not the path of a decision: want, for example, system/main for data.system.main", path)
	}
	return nil
}
