// Package progress tells a waiting person what is being done.
package progress

import (
	"fmt"
	"io"
	"time"
)

// heartbeat is how often a running step is reported. The promise is one line every 10 seconds; a second is kept in hand
// for a busy machine.
const heartbeat = 9 * time.Second

// During runs step and writes one line with the time passed to w every few seconds until step returns. It writes nothing
// when step is quick. Its error is that of step.
func During(w io.Writer, what string, step func() error) error {
	return during(w, what, heartbeat, step)
}

func during(w io.Writer, what string, every time.Duration, step func() error) error {
	start := time.Now()
	done := make(chan error, 1)
	go func() { done <- step() }()

	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-tick.C:
			fmt.Fprintf(w, "%s: %s so far\n", what, time.Since(start).Round(time.Second))
		}
	}
}
