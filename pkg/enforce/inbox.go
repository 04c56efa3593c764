package enforce

import (
	"context"
	"time"

	"github.com/kube-rego/kube-rego/pkg/compile"
)

// Inbox is how others ask a loop for something. It exists before the loop, so that what
// the loop needs can be made with it.
type Inbox struct {
	looks     chan time.Time // one slot: "look again", and since when that is asked for
	proposals chan proposal
}

// proposal is a set of bundles that is to go into force.
type proposal struct {
	set    compile.BundleSet
	asked  time.Time
	answer chan error
}

// NewInbox makes an empty one.
func NewInbox() *Inbox {
	return &Inbox{looks: make(chan time.Time, 1), proposals: make(chan proposal)}
}

// Look asks for one more turn. It never blocks: if one is asked for already,
// that one sees the change too.
func (i *Inbox) Look() {
	select {
	case i.looks <- time.Now():
	default:
	}
}

// Propose brings bundles into force instead of those before, or says why not. A set
// without a bundle that was there is never refused: its configuration is gone. What is
// in force of it stays as long as something that is in force needs it.
func (i *Inbox) Propose(ctx context.Context, set compile.BundleSet) error {
	p := proposal{set: set, asked: time.Now(), answer: make(chan error, 1)}
	select {
	case i.proposals <- p:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-p.answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
