//go:build !linux

package process

import (
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// attributes makes a process group of its own, so that Ctrl-C in the terminal reaches whoever started the program,
// and the order of stopping stays theirs; a detached process gets a session of its own. That an attached process dies
// with its parent is known to Linux only: here Stop has to be called.
func attributes(detached bool) *syscall.SysProcAttr {
	if detached {
		return &syscall.SysProcAttr{Setsid: true}
	}
	return &syscall.SysProcAttr{Setpgid: true}
}

// birth tells when the process was born, to the second. It is errGone when no such process runs.
func birth(pid int) (string, error) {
	out, err := exec.Command("ps", "-o", "stat=,lstart=", "-p", strconv.Itoa(pid)).Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return "", errGone // how ps says that it found none
	}
	if err != nil {
		return "", fmt.Errorf("ask ps for process %d: %w", pid, err)
	}
	state, start, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
	if strings.HasPrefix(state, "Z") {
		return "", errGone
	}
	return strings.Join(strings.Fields(start), " "), nil
}
