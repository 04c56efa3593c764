package process

import "testing"

func TestMemory(t *testing.T) {
	got, err := memory("Name:\tkube-rego\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\nThreads:\t12\n")
	if want := (Memory{Resident: 1 << 20, Peak: 2 << 20}); got != want || err != nil {
		t.Errorf("memory = %+v, %v; want %+v", got, err, want)
	}
	for _, status := range []string{"Name:\tkthreadd\n", "VmHWM:\tmuch\n"} {
		if _, err := memory(status); err == nil {
			t.Errorf("no error for %q", status)
		}
	}
}
