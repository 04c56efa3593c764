package replication

import (
	"sync"
	"time"

	"github.com/kube-rego/kube-rego/pkg/data"
)

// batchInterval is how long changes are gathered. Each batch copies the branches it
// touches, 1 ms for a namespace of 10,000 objects (make bench), so that churn without end
// takes two percent of a core.
const batchInterval = 50 * time.Millisecond

// batcher hands changes to the engine, in their order: one at once if there was none
// for a while, and many together if they come fast.
type batcher struct {
	data Data

	mu        sync.Mutex
	pending   []data.Change
	scheduled bool
	last      time.Time
}

func (b *batcher) add(c data.Change) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pending = append(b.pending, c)
	if b.scheduled {
		return
	}
	if wait := batchInterval - time.Since(b.last); wait > 0 {
		b.scheduled = true
		time.AfterFunc(wait, b.flush)
		return
	}
	b.apply()
}

// flush applies what has gathered; when it returns, decisions see it.
func (b *batcher) flush() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.apply()
}

func (b *batcher) apply() {
	b.data.Apply(b.pending...)
	b.pending, b.scheduled, b.last = nil, false, time.Now()
}
