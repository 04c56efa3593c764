package controlplane

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kube-rego/kube-rego/e2e/internal/process"
	"github.com/kube-rego/kube-rego/e2e/programs"
)

// fakeEtcd is a set of programs of which the first to be started does this.
func fakeEtcd(t *testing.T, script string) programs.Built {
	t.Helper()
	built := programs.Built{Dir: t.TempDir()}
	if err := os.WriteFile(built.Path(programs.Etcd), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return built
}

func TestFailedStartShowsTheLog(t *testing.T) {
	built := fakeEtcd(t, "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21; do echo line $i; done; exit 3")
	_, err := Start(t.Context(), Config{Programs: built, Dir: t.TempDir()})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"start etcd: it ended by itself: exit status 3; the end of ", "line 2\n", "line 21"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error does not contain %q: %v", want, err)
		}
	}
	if strings.Contains(err.Error(), "line 1\n") {
		t.Errorf("error shows more than 20 lines: %v", err)
	}
}

func TestStartTriesOtherPorts(t *testing.T) {
	built := fakeEtcd(t, "echo listen tcp 127.0.0.1:1: bind: address already in use; exit 1")
	var said strings.Builder
	_, err := Start(t.Context(), Config{Programs: built, Dir: filepath.Join(t.TempDir(), "new"), Progress: &said})
	if !errors.Is(err, process.ErrPortTaken) {
		t.Errorf("error = %v", err)
	}
	if got := strings.Count(said.String(), "starting etcd\n"); got != attempts {
		t.Errorf("%d attempts, want %d; said:\n%s", got, attempts, said.String())
	}
}

func TestFoldersOfOthersAreLeftAlone(t *testing.T) {
	dir := t.TempDir()
	theirs := filepath.Join(dir, "precious")
	if err := os.WriteFile(theirs, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(t.Context(), Config{Dir: dir}); err == nil {
		t.Error("Start in a folder that is not empty: no error")
	}
	if _, err := Remove(t.Context(), dir); err == nil {
		t.Error("Remove of a folder that is no control plane: no error")
	}
	if _, err := os.Stat(theirs); err != nil {
		t.Error(err)
	}
}

// eventually waits until the condition holds, a minute at most.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for limit := time.After(time.Minute); !condition(); {
		select {
		case <-limit:
			t.Fatalf("waited a minute in vain until %s", what)
		case <-tick.C:
		}
	}
}
