package kuberego

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/kube-rego/kube-rego/e2e/internal/gotool"
	"github.com/kube-rego/kube-rego/e2e/internal/progress"
)

// Root is the folder of the project: the one around this module. The current folder must be in this module.
func Root(ctx context.Context) (string, error) {
	module, err := gotool.ModuleDir(ctx, "")
	if err != nil {
		return "", err
	}
	root := filepath.Dir(module)
	if _, err := os.Stat(filepath.Join(root, "cmd", name)); err != nil {
		return "", fmt.Errorf("find the project around %s: %w", module, err)
	}
	return root, nil
}

// BinaryEnv names a program to test instead of one built from the sources: make test builds it once for all packages.
const BinaryEnv = "KUBE_REGO_BINARY"

// Binary is the path of the program that BinaryEnv names; without that, of one that BuildBinary builds.
func Binary(ctx context.Context, cfg BuildConfig) (string, error) {
	if path := os.Getenv(BinaryEnv); path != "" {
		return path, nil
	}
	return BuildBinary(ctx, cfg)
}

// BuildConfig says how to build kube-rego.
type BuildConfig struct {
	// Root is the folder of the project.
	Root string
	// Dir is the folder to put the program into; it is made when missing.
	Dir string
	// Race builds with the race detector, which needs a C compiler.
	Race bool
	// Progress is told what is being built, and at least every 10 seconds how long it took so far. Nil: silent.
	Progress io.Writer
}

// BuildBinary builds kube-rego and tells the path of the program.
func BuildBinary(ctx context.Context, cfg BuildConfig) (string, error) {
	out := cfg.Progress
	if out == nil {
		out = io.Discard
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return "", fmt.Errorf("find the folder for %s: %w", name, err)
	}
	path := filepath.Join(dir, name)
	env, args := []string{"CGO_ENABLED=0"}, []string{"build", "-trimpath"}
	if cfg.Race {
		// The flags of make test's go test -race, so that what both need is compiled once.
		env, args = []string{"CGO_ENABLED=1"}, []string{"build", "-race"}
	}
	args = append(args, "-o", path, "./cmd/"+name)

	fmt.Fprintf(out, "building %s (from an empty Go build cache usually 1 to 2 minutes on 2 cores)\n", name)
	start := time.Now()
	err = progress.During(out, "building "+name, func() error {
		_, err := gotool.Output(ctx, cfg.Root, env, args...)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("build %s: %w", name, err)
	}
	fmt.Fprintf(out, "built %s in %s\n", name, time.Since(start).Round(time.Second))
	return path, nil
}
