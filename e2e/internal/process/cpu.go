package process

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// clockTick is the unit of times in /proc/<pid>/stat: Linux tells every program that it has 100 of them a second.
const clockTick = 10 * time.Millisecond

// CPUTime is how long the process has had processors, of all of them together. It is known on Linux only.
func (p *Process) CPUTime() (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if err != nil {
		return 0, fmt.Errorf("read the processor time of %s: %w", p.name, err)
	}
	return cpuTime(string(stat))
}

// cpuTime is what a process and the kernel for it have used, the 14th and the 15th field of proc_pid_stat(5).
func cpuTime(stat string) (time.Duration, error) {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	const user, system = 14 - 3, 15 - 3 // the third field is the first here
	if len(fields) <= system {
		return 0, fmt.Errorf("read the processor time of a process: unexpected text %q", stat)
	}
	var sum time.Duration
	for _, field := range []string{fields[user], fields[system]} {
		ticks, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read the processor time of a process: %w", err)
		}
		sum += time.Duration(ticks) * clockTick
	}
	return sum, nil
}
