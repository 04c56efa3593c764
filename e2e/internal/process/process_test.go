package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// starterEnv makes the test binary a parent that starts a sleeping process in the folder it names, and ends.
const starterEnv = "TEST_STARTER_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(starterEnv); dir != "" {
		if _, err := startSleeper(dir, os.Getenv("TEST_STARTER_DETACHED") == "true"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func startSleeper(dir string, detached bool) (*Process, error) {
	return Start(Config{Dir: dir, Name: "sleeper", Path: "/bin/sleep", Args: []string{"600"}, Detached: detached})
}

func TestProcessOutlivesItsParentOnlyWhenDetached(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux ends the child of a parent that ended")
	}
	for _, detached := range []bool{true, false} {
		t.Run(fmt.Sprintf("detached %v", detached), func(t *testing.T) {
			dir := t.TempDir()
			parent := exec.Command(os.Args[0])
			parent.Env = append(os.Environ(), starterEnv+"="+dir, fmt.Sprintf("TEST_STARTER_DETACHED=%v", detached))
			if out, err := parent.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			p, err := Find(dir, "sleeper")
			if err != nil || p == nil {
				t.Fatalf("Find = %v, %v", p, err)
			}
			if detached && !p.Running() {
				t.Error("the detached process ended with its parent")
			}
			if detached {
				if err := p.Stop(); err != nil {
					t.Error(err)
				}
			}
			eventually(t, "the process is gone", func() bool { return !p.Running() })
		})
	}
}

func TestStopSparesAnotherProcessWithThePid(t *testing.T) {
	dir := t.TempDir()
	p, err := startSleeper(dir, false)
	if err != nil {
		t.Fatal(err)
	}
	recycled := Process{name: "sleeper", pid: p.pid, birth: "an earlier one"}
	if err := recycled.Stop(); err != nil {
		t.Errorf("stop of a process that is gone: %v", err)
	}
	if !p.Running() {
		t.Fatal("the process that has the pid now was stopped")
	}

	found, err := Find(dir, "sleeper")
	if err != nil || found == nil || !found.Running() {
		t.Fatalf("Find = %+v, %v; want it running", found, err)
	}
	if err := found.Stop(); err != nil {
		t.Error(err)
	}
	<-p.exited
	if found.Running() {
		t.Error("the process still runs")
	}
}

func TestSignals(t *testing.T) {
	p, err := startSleeper(t.TempDir(), false)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(syscall.SIGSTOP); err != nil || !p.Running() {
		t.Errorf("after SIGSTOP: error %v, running %v; want it there, asleep", err, p.Running())
	}
	if err := p.Kill(); err != nil {
		t.Error(err)
	}
	<-p.exited
	if p.Running() {
		t.Error("the process survived SIGKILL")
	}
	if err := p.Kill(); err != nil {
		t.Errorf("Kill of a process that is gone: %v", err)
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("FROM_PARENT", "yes")
	t.Setenv("HTTPS_PROXY", "http://proxy.example.com")
	for _, test := range []struct {
		name string
		env  []string
		want string
	}{
		{"that of the parent", nil, "parent yes, given , proxy \n"},
		{"given", []string{"GIVEN=1"}, "parent , given 1, proxy \n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			const script = `echo "parent $FROM_PARENT, given $GIVEN, proxy $HTTPS_PROXY"; exec sleep 600`
			p, err := Start(Config{
				Dir: t.TempDir(), Name: "echo", Path: "/bin/sh", Args: []string{"-c", script}, Env: test.env,
			})
			if err != nil {
				t.Fatal(err)
			}
			said := func(context.Context) error {
				if log, err := os.ReadFile(p.LogPath()); err != nil || string(log) != test.want {
					return fmt.Errorf("log = %q, %w; want %q", log, err, test.want)
				}
				return nil
			}
			short, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if err := p.WaitReady(short, said); err != nil {
				t.Error(errors.Join(err, said(t.Context())))
			}
			if err := p.Stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestStartFailures(t *testing.T) {
	for _, test := range []struct {
		name, script string
		portTaken    bool
		want         string
	}{
		{"ends", "echo oh; exit 3", false, "start failing: it ended by itself: exit status 3; the end of "},
		{"port taken", "echo bind: address already in use; exit 1", true, "a port was taken by another process"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, err := Start(Config{Dir: t.TempDir(), Name: "failing", Path: "/bin/sh", Args: []string{"-c", test.script}})
			if err == nil { // it lived long enough to be seen
				err = p.WaitReady(t.Context(), func(context.Context) error { return errors.New("not yet") })
			}
			if err == nil || !strings.Contains(err.Error(), test.want) || errors.Is(err, ErrPortTaken) != test.portTaken {
				t.Errorf("error = %v; want %q, port taken %v", err, test.want, test.portTaken)
			}
		})
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	for _, content := range []string{"", "12", "no number"} {
		if err := os.WriteFile(pidPath(dir, "etcd"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if p, err := Find(dir, "etcd"); p != nil || err != nil {
			t.Errorf("with %q in the file: %+v, %v; want nothing", content, p, err)
		}
	}
	if p, err := Find(dir, "absent"); p != nil || err != nil {
		t.Errorf("with no file: %+v, %v; want nothing", p, err)
	}
}

func TestWithoutProxies(t *testing.T) {
	got := WithoutProxies([]string{"HOME=/home/me", "HTTPS_PROXY=x", "no_proxy=y", "GOPROXY=z"})
	if want := []string{"HOME=/home/me", "GOPROXY=z"}; !slices.Equal(got, want) {
		t.Errorf("WithoutProxies = %q, want %q", got, want)
	}
}

func TestLastLines(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{"", ""}, {"a\n", "a"}, {"a\nb\n", "a\nb"}, {"a\nb\nc\n", "b\nc"},
	} {
		if got := string(lastLines([]byte(test.text), 2)); got != test.want {
			t.Errorf("lastLines(%q, 2) = %q, want %q", test.text, got, test.want)
		}
	}
}

// eventually waits until the condition holds, a minute at most.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for limit := time.After(time.Minute); !condition(); {
		select {
		case <-limit:
			t.Fatalf("waited a minute in vain until %s", what)
		case <-tick.C:
		}
	}
}
