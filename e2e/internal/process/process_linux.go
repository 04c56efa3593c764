package process

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
)

// attributes makes a process group of its own, so that Ctrl-C in the terminal reaches whoever started the program,
// and the order of stopping stays theirs. An attached process is killed by the kernel when its parent dies; a
// detached one gets a session of its own and outlives it.
func attributes(detached bool) *syscall.SysProcAttr {
	if detached {
		return &syscall.SysProcAttr{Setsid: true}
	}
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// birth tells when the process was born, in a form that no other process with this pid can have: the boot, and the
// clock ticks since then. It is errGone when no such process runs.
func birth(pid int) (string, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	// ESRCH: the process ended between the opening and the reading of the file.
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return "", errGone
	}
	if err != nil {
		return "", fmt.Errorf("read the state of process %d: %w", pid, err)
	}
	ticks, err := startTicks(string(stat))
	if err != nil {
		return "", err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the id of this boot: %w", err)
	}
	return strings.TrimSpace(string(boot)) + "/" + ticks, nil
}

// startTicks is the start time in the text of /proc/<pid>/stat, or errGone for a zombie: in a container nobody may
// reap the orphans. The fields are those of proc_pid_stat(5): pid, (name), state, …, starttime as the 22nd. The name
// may contain spaces and brackets, so the fields are counted from the last bracket on.
func startTicks(stat string) (string, error) {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	const state, startTime = 0, 22 - 3 // the third field is the first here
	if len(fields) <= startTime {
		return "", fmt.Errorf("read the start time of a process: unexpected text %q", stat)
	}
	if fields[state] == "Z" || fields[state] == "X" {
		return "", errGone
	}
	return fields[startTime], nil
}
