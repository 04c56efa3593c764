package replication

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/kube-rego/kube-rego/pkg/data"
)

// writtenDown is data whose changes somebody writes down.
type writtenDown struct {
	Data
	arrived chan int // how many changes are in a batch; nil: nobody asks
	mu      sync.Mutex
	batches [][]string
}

func (d *writtenDown) Apply(changes ...data.Change) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var batch []string
	for _, c := range changes {
		batch = append(batch, c.Path[0])
	}
	d.batches = append(d.batches, batch)
	if d.arrived != nil {
		d.arrived <- len(batch)
	}
}

func (d *writtenDown) all() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Concat(d.batches...)
}

// Changes that come fast go together, none is lost, and their order stays.
func TestChangesGoInBatches(t *testing.T) {
	const changes = 10_000
	written := &writtenDown{arrived: make(chan int, changes)}
	b := &batcher{data: written}
	var want []string
	for n := range changes {
		want = append(want, fmt.Sprint(n))
		b.add(data.Change{Path: []string{fmt.Sprint(n)}})
	}
	limit := time.After(time.Minute)
	for arrived := 0; arrived < changes; {
		select {
		case n := <-written.arrived:
			arrived += n
		case <-limit:
			t.Fatalf("%d of %d changes have arrived", arrived, changes)
		}
	}
	if got := written.all(); !slices.Equal(got, want) {
		t.Errorf("%d changes arrived, in another order or not all", len(got))
	}
	if n := len(written.batches); n > 1000 || len(written.batches[0]) != 1 {
		t.Errorf("there are %d batches, the first of %d changes", n, len(written.batches[0]))
	}
}

// What is flushed is there when flush returns, behind all that came before.
func TestFlush(t *testing.T) {
	written := &writtenDown{}
	b := &batcher{data: written}
	for n := range 100 {
		b.add(data.Change{Path: []string{fmt.Sprint(n)}})
		if n%10 == 9 {
			b.flush()
			if got := written.all(); len(got) != n+1 || got[n] != fmt.Sprint(n) {
				t.Fatalf("after %d changes %d are there", n+1, len(got))
			}
		}
	}
}
