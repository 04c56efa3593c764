package replication

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/kube-rego/kube-rego/pkg/engine"
)

// writtenDown is data whose changes somebody writes down.
type writtenDown struct {
	Data
	arrived chan int // how many changes are in a batch; nil: nobody asks
	mu      sync.Mutex
	batches [][]string
}

func (d *writtenDown) Apply(changes ...engine.Change) {
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
	data := &writtenDown{arrived: make(chan int, changes)}
	b := &batcher{data: data}
	var want []string
	for n := range changes {
		want = append(want, fmt.Sprint(n))
		b.add(engine.Change{Path: []string{fmt.Sprint(n)}})
	}
	limit := time.After(time.Minute)
	for arrived := 0; arrived < changes; {
		select {
		case n := <-data.arrived:
			arrived += n
		case <-limit:
			t.Fatalf("%d of %d changes have arrived", arrived, changes)
		}
	}
	if got := data.all(); !slices.Equal(got, want) {
		t.Errorf("%d changes arrived, in another order or not all", len(got))
	}
	if n := len(data.batches); n > 1000 || len(data.batches[0]) != 1 {
		t.Errorf("there are %d batches, the first of %d changes", n, len(data.batches[0]))
	}
}

// What is flushed is there when flush returns, behind all that came before.
func TestFlush(t *testing.T) {
	data := &writtenDown{}
	b := &batcher{data: data}
	for n := range 100 {
		b.add(engine.Change{Path: []string{fmt.Sprint(n)}})
		if n%10 == 9 {
			b.flush()
			if got := data.all(); len(got) != n+1 || got[n] != fmt.Sprint(n) {
				t.Fatalf("after %d changes %d are there", n+1, len(got))
			}
		}
	}
}
