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

// setWaiting records why no set is in force yet; nil means that one is.
func (c *condition) setWaiting(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = err
}

// setSourceError records why the source cannot be read, and returns the previous error.
func (c *condition) setSourceError(err error) (before error) {
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

func (c *condition) ready() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.waiting
}

func (c *condition) healthy() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.busySince.IsZero() && time.Since(c.busySince) > stuckAfter {
		return fmt.Errorf("the policy loop has not come round for %s", time.Since(c.busySince).Round(time.Second))
	}
	return nil
}

func (c *condition) unreadable() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sourceError == nil {
		return ""
	}
	return c.sourceError.Error()
}

// Ready returns nil once a whole policy set is in force, or why none is yet.
func (l *Loop) Ready() error { return l.condition.ready() }

// Healthy returns nil unless the loop is stuck.
func (l *Loop) Healthy() error { return l.condition.healthy() }

// SourceError says why the newest policies could not be read; empty if they were.
func (l *Loop) SourceError() string { return l.condition.unreadable() }
