// Command sidebyside runs all tests of the project, and those that do not know each other at the same time.
//
// The tests of package e2e change what a cluster has only one of: kube-rego's namespace, its rights, its webhook
// configurations. So none of them may share a control plane with another that runs. But most of their time they wait, for
// watches, elections and canaries. So there are a few control planes: each worker has one and runs one test after the other
// on it, each test as a process of its own. The unit tests, and the packages that start control planes themselves, run
// beside them.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/kube-rego/kube-rego/e2e/internal/gotool"
	"github.com/kube-rego/kube-rego/e2e/kuberego"
	"github.com/kube-rego/kube-rego/e2e/programs"
)

// workersDefault suits two cores: with one control plane more, the tests take each other's time.
const workersDefault = 3

func main() {
	var cfg config
	flag.BoolVar(&cfg.race, "race", false, "run the unit tests and kube-rego with the race detector, which needs a C compiler")
	flag.IntVar(&cfg.workers, "workers", workersDefault, "how many control planes there are to run tests of package e2e on")
	flag.StringVar(&cfg.pattern, "run", "", "run only the tests of package e2e that match, and no others")
	flag.Parse()
	if flag.NArg() > 0 || cfg.workers < 1 {
		fmt.Fprintln(os.Stderr, "error: want flags only, and at least one worker")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, cfg, os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "error: %v\n", err)
		os.Exit(1)
	}
}

type config struct {
	race    bool
	workers int
	pattern string // of tests of package e2e; empty: all there is
}

func run(ctx context.Context, cfg config, out io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "kube-rego-tests-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	root, err := kuberego.Root(ctx)
	if err != nil {
		return err
	}
	s := &schedule{dir: dir, root: root, module: filepath.Join(root, "e2e"), cfg: cfg, report: newReport(out)}
	stop := s.report.watch()
	defer stop()

	// The unit tests need nothing of what is built here.
	unit := make(chan struct{})
	go func() {
		defer close(unit)
		if cfg.pattern == "" {
			s.do(ctx, s.unitTests(), nil)
		}
	}()
	err = s.build(ctx)
	if err == nil {
		err = s.work(ctx)
	}
	<-unit
	return errors.Join(err, s.report.finish())
}

// build makes what the tests of package e2e need, once for all of them.
func (s *schedule) build(ctx context.Context) (err error) {
	if s.built, err = programs.Build(ctx, programs.Config{Progress: s.report}); err != nil {
		return err
	}
	s.binary, err = kuberego.BuildBinary(ctx, kuberego.BuildConfig{Root: s.root, Dir: s.dir, Race: s.cfg.race, Progress: s.report})
	if err != nil {
		return err
	}
	// As the programs of the control plane are built, so that what both need is compiled once. It is kube-rego that may
	// have races; make lint vets.
	s.tests = filepath.Join(s.dir, "e2e.test")
	_, err = gotool.Output(ctx, s.module, withoutC, "test", "-c", "-trimpath", "-vet=off", "-o", s.tests, ".")
	return err
}

// withoutC is what programs without C are built with.
var withoutC = []string{"CGO_ENABLED=0"}
