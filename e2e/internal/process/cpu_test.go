package process

import (
	"testing"
	"time"
)

func TestCPUTime(t *testing.T) {
	got, err := cpuTime("42 (kube (rego) x) S 1 42 42 0 -1 4194304 900 0 3 0 150 50 7 8 20 0 9 0 123456 0 0")
	if want := 2 * time.Second; got != want || err != nil {
		t.Errorf("cpuTime = %s, %v; want %s", got, err, want)
	}
	for _, stat := range []string{"", "42 (x) S 1 42", "42 (x) S 1 42 42 0 -1 4194304 900 0 3 0 much 50 7 8"} {
		if _, err := cpuTime(stat); err == nil {
			t.Errorf("no error for %q", stat)
		}
	}
}
