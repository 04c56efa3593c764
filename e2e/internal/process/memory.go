package process

import (
	"fmt"
	"os"
	"strings"
)

// Memory is how much of the machine's memory a process has, in bytes.
type Memory struct {
	// Resident is now, VmRSS in proc_pid_status(5); Peak is the most it ever was, VmHWM.
	Resident, Peak int64
}

// Memory is that of the process. There is none to be had but on Linux.
func (p *Process) Memory() (Memory, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		return Memory{}, fmt.Errorf("read the memory of %s: %w", p.name, err)
	}
	return memory(string(status))
}

func memory(status string) (Memory, error) {
	var m Memory
	for line := range strings.Lines(status) {
		name, value, _ := strings.Cut(line, ":")
		field := map[string]*int64{"VmRSS": &m.Resident, "VmHWM": &m.Peak}[name]
		if field == nil {
			continue
		}
		if _, err := fmt.Sscanf(value, "%d kB", field); err != nil {
			return Memory{}, fmt.Errorf("read %s of a process: %w", name, err)
		}
		*field *= 1024
	}
	if m.Resident == 0 || m.Peak == 0 {
		return Memory{}, fmt.Errorf("read the memory of a process: there is none in %q", status)
	}
	return m, nil
}
