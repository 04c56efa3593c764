package progress

import (
	"errors"
	"io"
	"testing"
	"time"
)

// signalWriter lets a step go on only after a line was written, so that the test needs no sleep.
type signalWriter struct{ lines chan string }

func (w signalWriter) Write(p []byte) (int, error) {
	select {
	case w.lines <- string(p):
	default: // the step has seen enough
	}
	return len(p), nil
}

func TestDuringSpeaksWhileTheStepRuns(t *testing.T) {
	w := signalWriter{lines: make(chan string, 1)}
	want := errors.New("the step's own error")
	err := during(w, "building etcd", time.Millisecond, func() error {
		if line := <-w.lines; line != "building etcd: 0s so far\n" {
			t.Errorf("line = %q", line)
		}
		return want
	})
	if !errors.Is(err, want) {
		t.Errorf("error = %v, want %v", err, want)
	}
}

func TestDuringIsSilentWhenTheStepIsQuick(t *testing.T) {
	w := signalWriter{lines: make(chan string, 1)}
	if err := during(w, "quick", time.Hour, func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	if len(w.lines) != 0 {
		t.Errorf("wrote %q", <-w.lines)
	}
	if err := During(io.Discard, "quick", func() error { return nil }); err != nil {
		t.Fatal(err)
	}
}
