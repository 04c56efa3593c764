package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestWrongCommandLine(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"--no-such-flag", "flag provided but not defined: -no-such-flag"},
		{"again", `unexpected argument "again"`},
		{"--dir", "flag needs an argument"},
	} {
		t.Run(test.args, func(t *testing.T) {
			var out, errOut bytes.Buffer
			code := run(t.Context(), strings.Fields(test.args), &out, &errOut)
			said := errOut.String()
			if code != 2 || out.Len() > 0 || strings.Count(said, "\n") != 1 || !strings.Contains(said, test.want) {
				t.Errorf("exit code %d, stdout %q, stderr %q; want 2 and one line with %q", code, &out, said, test.want)
			}
		})
	}
}

func TestHelp(t *testing.T) {
	var out, errOut bytes.Buffer
	code := run(t.Context(), []string{"--help"}, &out, &errOut)
	if code != 0 || out.String() != usage || errOut.Len() > 0 {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, &out, &errOut)
	}
}

func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out, errOut bytes.Buffer
	code := run(ctx, []string{"--dir", filepath.Join(t.TempDir(), "demo")}, &out, &errOut)
	if code != 1 || !strings.Contains(errOut.String(), "demo: interrupted") {
		t.Errorf("exit code %d, stderr %q", code, &errOut)
	}
}

func TestLastWords(t *testing.T) {
	for _, test := range []struct {
		name       string
		err        error
		want, said string
	}{
		{"short", errors.New("a"), "a", ""},
		{"while playing", playError{errors.New("a"), "*.log"}, "a; logs: *.log", ""},
		{"long", playError{errors.New("a\nb"), "*.log"}, "a (and more, see above); logs: *.log", "\na\nb\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var said bytes.Buffer
			if got := lastWords(test.err, &said); got != test.want || said.String() != test.said {
				t.Errorf("%q after %q, want %q after %q", got, &said, test.want, test.said)
			}
		})
	}
}

func TestFolder(t *testing.T) {
	root := t.TempDir()
	ours, theirs := filepath.Join(root, "ours"), filepath.Join(root, "theirs")
	for range 2 {
		unlock, err := takeDir(t.Context(), ours, t.Output())
		if err != nil {
			t.Fatal(err)
		}
		unlock()
		if _, err := os.Stat(filepath.Join(ours, "left")); err == nil {
			t.Error("what an earlier demo left is still there")
		}
		write(t, filepath.Join(ours, "left"))
	}

	if err := os.Mkdir(theirs, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(theirs, "precious"))
	if _, err := takeDir(t.Context(), theirs, t.Output()); err == nil {
		t.Error("a folder that is not a demo's own is taken")
	}
	if _, err := os.Stat(filepath.Join(theirs, "precious")); err != nil {
		t.Error(err)
	}
}

func write(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
}
