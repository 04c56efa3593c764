package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// quietLimit is how long nothing is written while something runs.
	quietLimit = 20 * time.Second
	// slowestShown is how many of the slowest tests are named in the end.
	slowestShown = 10
)

// report writes the result of each job: a line for each that passes, all its output for one that does not.
type report struct {
	start time.Time

	mu      sync.Mutex
	out     io.Writer
	last    time.Time // of a line
	running map[string]time.Time
	took    map[string]time.Duration
	cpu     map[string]time.Duration
	failed  []string
	wanted  int // how many jobs there are in all
}

func newReport(out io.Writer) *report {
	now := time.Now()
	return &report{
		start: now, out: out, last: now, running: make(map[string]time.Time),
		took: make(map[string]time.Duration), cpu: make(map[string]time.Duration),
	}
}

// Write is for the progress of others.
func (r *report) Write(text []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = time.Now()
	return r.out.Write(text)
}

// expect says that there will be so many jobs more.
func (r *report) expect(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wanted += n
}

func (r *report) begin(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running[name] = time.Now()
}

// end reports what became of a job. cpu is the time that it and what it started had processors, without control planes.
func (r *report) end(name, output string, cpu time.Duration, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = time.Now()
	r.took[name] = time.Since(r.running[name])
	r.cpu[name] = cpu
	delete(r.running, name)
	if err == nil {
		fmt.Fprintf(r.out, "ok    %s\n", r.times(name))
		return
	}
	r.failed = append(r.failed, name)
	fmt.Fprintf(r.out, "FAIL  %s: %v\n%s\n", r.times(name), err, strings.TrimRight(output, "\n"))
}

// watch writes what runs when no line was written for a while, until stop is called.
func (r *report) watch() (stop func()) {
	done := make(chan struct{})
	tick := time.NewTicker(time.Second)
	go func() {
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				r.progress()
			}
		}
	}()
	return func() { close(done) }
}

func (r *report) progress() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(r.last) < quietLimit || len(r.running) == 0 {
		return
	}
	r.last = time.Now()
	fmt.Fprintf(r.out, "%s: %d of %d done, running: %s\n", time.Since(r.start).Round(time.Second), len(r.took), r.wanted,
		strings.Join(slices.Sorted(maps.Keys(r.running)), ", "))
}

// finish sums up. It is an error if a job failed.
func (r *report) finish() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	names := slices.SortedFunc(maps.Keys(r.took), func(a, b string) int { return cmp.Compare(r.took[b], r.took[a]) })
	fmt.Fprintf(r.out, "%d done in %s; the slowest:\n", len(names), time.Since(r.start).Round(time.Second))
	for _, name := range names[:min(len(names), slowestShown)] {
		fmt.Fprintf(r.out, "      %s\n", r.times(name))
	}
	fmt.Fprintf(r.out, "%d passed, %d failed\n", len(names)-len(r.failed), len(r.failed))
	if len(r.failed) > 0 {
		slices.Sort(r.failed)
		return fmt.Errorf("failed: %s", strings.Join(r.failed, ", "))
	}
	return nil
}

// times is how long a job took, and what it computed in that time: the rest it has waited.
func (r *report) times(name string) string {
	return fmt.Sprintf("%6.1fs, %6.1fs of processors  %s", r.took[name].Seconds(), r.cpu[name].Seconds(), name)
}
