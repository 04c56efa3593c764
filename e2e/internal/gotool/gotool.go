// Package gotool runs the go command. It uses the standard library only, like package programs, which needs it.
package gotool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Output is what the go command with these arguments, run in dir, writes to stdout. env is added to this process's
// environment; workspaces are off, so that go.mod alone decides. Its error carries what the command wrote to stderr:
// the compiler's messages.
func Output(ctx context.Context, dir string, env []string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), "GOWORK=off"), env...)
	// An interrupted go command ends its compilers; a killed one leaves them running.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", args[0], errors.Join(err, ctx.Err()), bytes.TrimSpace(stderr.Bytes()))
	}
	return strings.TrimSpace(stdout.String()), nil
}

// ModuleDir is the folder of the Go module that dir is in. An empty dir is the current folder.
func ModuleDir(ctx context.Context, dir string) (string, error) {
	goMod, err := Output(ctx, dir, nil, "env", "GOMOD")
	if err != nil {
		return "", err
	}
	if goMod == "" || goMod == os.DevNull {
		return "", fmt.Errorf("find go.mod: folder %q is in no Go module", dir)
	}
	return filepath.Dir(goMod), nil
}
