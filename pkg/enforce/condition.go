package enforce

import (
	"fmt"
	"sync"
	"time"
)

// stuckAfter is when the loop counts as stuck: the slowest turn known, a set of
// 10,000 modules of which hundreds contradict each other, takes 20 minutes.
const stuckAfter = 30 * time.Minute

// condition is what probes and /status read while the loop runs. Its fields are behind
// the mutex; only its methods touch them.
type condition struct {
	mu          sync.Mutex
	waiting     error // why no set is in force yet; nil once one is
	sourceError error
	busySince   time.Time // start of the turn; zero between turns
}

// wait says why no set is in force yet; nil: one is.
func (c *condition) wait(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = err
}

// source takes in whether the source could be read, and returns what was so before.
func (c *condition) source(err error) (before error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before, c.sourceError = c.sourceError, err
	return before
}

// during runs a piece of the loop's work.
func (c *condition) during(work func() error) error {
	c.busy(time.Now())
	defer c.busy(time.Time{})
	return work()
}

func (c *condition) busy(since time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busySince = since
}

// Ready returns nil once a whole policy set is in force, or why none is yet.
func (l *Loop) Ready() error {
	l.condition.mu.Lock()
	defer l.condition.mu.Unlock()
	return l.condition.waiting
}

// Healthy returns nil unless the loop is stuck.
func (l *Loop) Healthy() error {
	l.condition.mu.Lock()
	defer l.condition.mu.Unlock()
	if since := l.condition.busySince; !since.IsZero() && time.Since(since) > stuckAfter {
		return fmt.Errorf("the policy loop has not come round for %s", time.Since(since).Round(time.Second))
	}
	return nil
}

// SourceError says why the newest policies could not be read; empty if they were.
func (l *Loop) SourceError() string {
	l.condition.mu.Lock()
	defer l.condition.mu.Unlock()
	if l.condition.sourceError == nil {
		return ""
	}
	return l.condition.sourceError.Error()
}
