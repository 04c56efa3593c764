package reload

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

// The time of this test is not the real one.
func TestRunReadsFromTimeToTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lines bytes.Buffer
		log := slog.New(slog.NewTextHandler(&lines, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}}))
		type result struct {
			changed bool
			err     error
		}
		results := make(chan result, 1)
		reads := 0
		read := func() (bool, error) {
			r := <-results
			reads++
			return r.changed, r.err
		}
		ctx, cancel := context.WithCancel(t.Context())
		stopped := make(chan struct{})
		go func() { Run(ctx, "token", "/token", read, log); close(stopped) }()
		for n, step := range []struct {
			name   string
			result result
			log    string
		}{
			{name: "what has not changed is passed over in silence"},
			{
				name: "what cannot be read is logged", result: result{err: errors.New("it is empty")},
				log: `level=ERROR msg="a file cannot be reloaded; what it held before stays in use" what=token file=/token error="it is empty"` + "\n",
			},
			{name: "what has changed is logged", result: result{changed: true}, log: `level=INFO msg="file reloaded" what=token file=/token` + "\n"},
			{name: "what has changed once is logged once"},
		} {
			lines.Reset()
			results <- step.result
			time.Sleep(interval)
			synctest.Wait()
			if reads != n+1 {
				t.Errorf("%s: it was read %d times, want %d", step.name, reads, n+1)
			}
			if got := lines.String(); got != step.log {
				t.Errorf("%s: the log says %q, want %q", step.name, got, step.log)
			}
		}
		cancel()
		<-stopped
		time.Sleep(2 * interval)
		if reads != 4 {
			t.Errorf("it was read %d times, also after the end", reads)
		}
	})
}
