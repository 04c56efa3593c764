// Package process starts programs of this machine that serve something, waits until they do, and ends them: by their
// name in a folder also when an earlier process of ours started them.
package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
)

const (
	// pollEvery is how often a condition is looked at. Everything asked is on this machine and answers in a millisecond.
	pollEvery = 50 * time.Millisecond
	// readyLimit bounds the wait for one program. On 2 cores kube-apiserver, the slowest, takes 2 to 3 seconds; the
	// rest is for a machine that is building something else meanwhile.
	readyLimit = 2 * time.Minute
	// stopLimit is how long a program may take to end by itself after SIGTERM: as long as a kubelet gives it. Measured: a
	// second at most, kube-rego with decision logs that nobody takes 5 s and on a busy machine more than 10, but an API
	// server whose etcd is gone has to be killed.
	stopLimit = 30 * time.Second
	// logLines is how many lines of its log an error about a program shows.
	logLines = 20
)

// ErrPortTaken says that a program did not start because a port that was chosen for it was in use when it came to
// bind it.
var ErrPortTaken = errors.New("a port was taken by another process")

// errGone says that a process does not run, or no longer.
var errGone = errors.New("no such process")

// Config says which program to start, and how.
type Config struct {
	// Dir is the working folder of the program, for its log <name>.log and for <name>.pid, where Find looks.
	Dir string
	// Name is what the program is called in messages and file names.
	Name string
	// Path is the program's file.
	Path string
	// Args are its arguments, without its own name.
	Args []string
	// Env is its whole environment. Nil: that of this process without its proxy settings.
	Env []string
	// Detached lets the program outlive this process. Otherwise it ends with it (on Linux also when this process is
	// killed; elsewhere Stop has to be called).
	Detached bool
}

// Process is a program that runs, or ran, started by us or by an earlier process of ours.
type Process struct {
	name string
	log  string // path
	pid  int
	// birth tells this process from a later one with the same pid.
	birth string
	// exited is closed when the process has ended and exitErr is set. Nil when an earlier process of ours started it.
	exited  chan struct{}
	exitErr error
}

// Start starts a program and does not wait until it is ready.
func Start(cfg Config) (*Process, error) {
	p := &Process{name: cfg.Name, log: logPath(cfg.Dir, cfg.Name), exited: make(chan struct{})}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, fmt.Errorf("start %s: create its log: %w", p.name, err)
	}
	defer log.Close() // the child has its own copy

	cmd := exec.Command(cfg.Path, cfg.Args...)
	cmd.Dir = cfg.Dir
	cmd.Env = cfg.Env
	if cmd.Env == nil {
		cmd.Env = WithoutProxies(os.Environ())
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = attributes(cfg.Detached)
	if err := p.start(cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	p.birth, err = birth(p.pid)
	if errors.Is(err, errGone) {
		<-p.exited
		return nil, p.failure(p.exitError())
	}
	if err == nil {
		err = os.WriteFile(pidPath(cfg.Dir, cfg.Name), fmt.Appendf(nil, "%d %s\n", p.pid, p.birth), 0o600)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: note its pid: %w", p.name, err), cmd.Process.Kill())
	}
	return p, nil
}

// start starts the command and sees to it that its end is noticed.
func (p *Process) start(cmd *exec.Cmd) error {
	started := make(chan error)
	go func() {
		// Linux kills the child when the thread that started it ends, so that thread waits here as long as the child runs.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.exitErr = cmd.Wait()
			close(p.exited)
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	p.pid = cmd.Process.Pid
	return nil
}

// Find is the process with this name that was started in dir. It is nil when none was; the process may be gone.
func Find(dir, name string) (*Process, error) {
	content, err := os.ReadFile(pidPath(dir, name))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", name, err)
	}
	number, birth, _ := strings.Cut(strings.TrimSpace(string(content)), " ")
	pid, err := strconv.Atoi(number)
	if err != nil || birth == "" {
		// A write that was cut short. Nothing can be said about the process, and guessing could hit another one.
		return nil, nil
	}
	return &Process{name: name, log: logPath(dir, name), pid: pid, birth: birth}, nil
}

func logPath(dir, name string) string { return filepath.Join(dir, name+".log") }
func pidPath(dir, name string) string { return filepath.Join(dir, name+".pid") }

// WithoutProxies is the environment without the proxy settings. All traffic of what is started here stays on
// loopback, but the API server calls a webhook by the name of its Service, and that would go to a proxy.
func WithoutProxies(environ []string) []string {
	var kept []string
	for _, variable := range environ {
		name, _, _ := strings.Cut(variable, "=")
		if !strings.HasSuffix(strings.ToLower(name), "_proxy") {
			kept = append(kept, variable)
		}
	}
	return kept
}

// Name is what the process is called in messages and file names.
func (p *Process) Name() string { return p.name }

// LogPath is the file with what the process writes to stdout and stderr.
func (p *Process) LogPath() string { return p.log }

// Running says whether the process has not ended yet. One that is stopped by SIGSTOP counts as running.
func (p *Process) Running() bool {
	born, err := birth(p.pid)
	return err == nil && born == p.birth
}

// WaitReady waits until ready returns nil. It gives up when the process ends, when ctx is done, and after two minutes.
func (p *Process) WaitReady(ctx context.Context, ready func(context.Context) error) error {
	var last error
	err := wait.PollUntilContextTimeout(ctx, pollEvery, readyLimit, true, func(ctx context.Context) (bool, error) {
		select {
		case <-p.exited:
			return false, p.exitError()
		default:
			last = ready(ctx)
			return last == nil, nil
		}
	})
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("start %s: %w", p.name, ctx.Err()) // not its fault: its log would lead astray
	case wait.Interrupted(err):
		return p.failure(fmt.Errorf("not ready after %s: %w", readyLimit, last))
	default:
		return p.failure(err)
	}
}

// exitError tells how the process ended. Call it after exited was closed.
func (p *Process) exitError() error {
	if p.exitErr == nil {
		return errors.New("it ended by itself")
	}
	return fmt.Errorf("it ended by itself: %w", p.exitErr)
}

// failure is the error for a start that went wrong for this reason, with the end of the log. It is an ErrPortTaken when
// the log says so.
func (p *Process) failure(reason error) error {
	if log, err := os.ReadFile(p.log); err == nil && bytes.Contains(log, []byte(syscall.EADDRINUSE.Error())) {
		reason = fmt.Errorf("%w: %w", ErrPortTaken, reason)
	}
	return p.Explain(fmt.Errorf("start %s: %w", p.name, reason))
}

// Explain adds the end of the log to an error that the process may have to do with.
func (p *Process) Explain(err error) error {
	log, readErr := os.ReadFile(p.log)
	if readErr != nil {
		return errors.Join(err, readErr)
	}
	return fmt.Errorf("%w; the end of %s:\n%s", err, p.log, lastLines(log, logLines))
}

func lastLines(text []byte, n int) []byte {
	lines := bytes.Split(bytes.TrimRight(text, "\n"), []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-n):], []byte("\n"))
}

// ExitError is nil when the process, started by us, has ended by itself with exit code 0, or how it ended.
func (p *Process) ExitError() error {
	<-p.exited
	return p.exitErr
}

// Stop ends the process: SIGTERM first, SIGKILL when it takes longer than 10 seconds. A process that is gone is fine.
func (p *Process) Stop() error {
	ended, err := p.end(syscall.SIGTERM)
	if ended || err != nil {
		return err
	}
	return p.Kill()
}

// Kill ends the process without a warning, by SIGKILL, and returns when it is gone. A process that is gone is fine.
func (p *Process) Kill() error {
	ended, err := p.end(syscall.SIGKILL)
	if err == nil && !ended {
		err = fmt.Errorf("stop %s: process %d still runs %s after SIGKILL", p.name, p.pid, stopLimit)
	}
	return err
}

// end sends a signal that should end the process and waits some time for that.
func (p *Process) end(signal syscall.Signal) (ended bool, err error) {
	if err := p.Signal(signal); err != nil {
		return false, err
	}
	gone := func(context.Context) (bool, error) { return !p.Running(), nil }
	err = wait.PollUntilContextTimeout(context.Background(), pollEvery, stopLimit, true, gone)
	if wait.Interrupted(err) {
		return false, nil
	}
	return err == nil, err
}

// Signal sends a signal to the process. A process that is gone is fine.
func (p *Process) Signal(signal syscall.Signal) error {
	// The handle comes before the look at the birth: on Linux it is a pidfd, which stays with the process it was opened
	// for, so that the signal cannot hit a newcomer with the same pid.
	handle, err := os.FindProcess(p.pid)
	if err != nil || !p.Running() {
		return nil
	}
	if err := handle.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("send %s to %s, process %d: %w", signal, p.name, p.pid, err)
	}
	return nil
}
