package process

import (
	"errors"
	"testing"
)

func TestStartTicks(t *testing.T) {
	const rest = " 1 42 42 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 8 0 987654 1000 200"
	for _, test := range []struct {
		name, stat, ticks string
		gone              bool
	}{
		{"running", "42 (etcd) S" + rest, "987654", false},
		{"a name made to confuse", "42 (a) Z 1 (b) R" + rest, "987654", false},
		{"zombie", "42 (etcd) Z" + rest, "", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			ticks, err := startTicks(test.stat)
			if ticks != test.ticks || errors.Is(err, errGone) != test.gone {
				t.Errorf("startTicks = %q, %v; want %q, gone %v", ticks, err, test.ticks, test.gone)
			}
		})
	}
	if _, err := startTicks("no stat"); err == nil || errors.Is(err, errGone) {
		t.Errorf("error for a text of another form = %v", err)
	}
}
