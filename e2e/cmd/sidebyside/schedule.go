package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kube-rego/kube-rego/e2e/controlplane"
	"github.com/kube-rego/kube-rego/e2e/internal/gotool"
	"github.com/kube-rego/kube-rego/e2e/kuberego"
	"github.com/kube-rego/kube-rego/e2e/programs"
)

// testLimit bounds one test; the longest takes a minute when it has the machine for itself.
const testLimit = "15m"

// longest are the tests of package e2e that take longest, so that none of them is left for last.
var longest = []string{
	"TestTheStatusPageInABrowser", // the first time it may install the browser
	"TestTheAPIAnswersAsOPA",
	"TestRandomRestarts",
	"TestEveryAnswerIsOneThatTheAPIServerTakes",
	"TestUpgradeAndRollback",
	"TestEveryOperationIsDecided",
	"TestALibraryOutlivesItsNamespace",
	"TestASteadyClusterWritesNothing",
}

// schedule is one run of all tests.
type schedule struct {
	dir, root, module string // ours, the project, and its module e2e
	cfg               config
	report            *report
	built             programs.Built
	binary, tests     string // kube-rego, and the test program of package e2e
}

// job is a command that runs tests. It gets the environment that is given, beside our own.
type job struct {
	name string
	dir  string
	env  []string
	args []string
	// onCluster says that it needs a control plane for itself, which is empty or as another such job has left it.
	onCluster bool
}

// unitTests are with few sequences of the random ones: make soak plays many.
func (s *schedule) unitTests() job {
	args := []string{"go", "test", "-short", "-vet=off", "./..."}
	if s.cfg.race {
		args = slices.Insert(args, 2, "-race")
	}
	return job{name: "unit tests", dir: s.root, args: args}
}

// work runs what was built for, on as many control planes as there are workers.
func (s *schedule) work(ctx context.Context) error {
	jobs, err := s.jobs(ctx)
	if err != nil {
		return err
	}
	queue := make(chan job, len(jobs))
	for _, j := range jobs {
		queue <- j
	}
	close(queue)
	s.report.expect(len(jobs))
	var wg sync.WaitGroup
	errs := make([]error, s.cfg.workers)
	for n := range s.cfg.workers {
		wg.Go(func() {
			w := &worker{schedule: s, name: fmt.Sprintf("cluster-%d", n)}
			for j := range queue {
				if ctx.Err() != nil || errs[n] != nil {
					return
				}
				errs[n] = w.do(ctx, j)
			}
			errs[n] = errors.Join(errs[n], w.stop())
		})
	}
	wg.Wait()
	return errors.Join(append(errs, ctx.Err())...)
}

// jobs are the tests of package e2e and the other packages of its module, the longest first.
func (s *schedule) jobs(ctx context.Context) ([]job, error) {
	var jobs []job
	if s.cfg.pattern == "" {
		packages, err := s.otherPackages(ctx)
		if err != nil {
			return nil, err
		}
		// Not from Go's test cache: it does not see that kube-rego and manifests/, outside this module, have changed.
		args := []string{"go", "test", "-count=1", "-p=1", "-trimpath", "-vet=off", "-timeout=" + testLimit}
		jobs = append(jobs, job{
			name: "other packages of e2e", dir: s.module, args: append(args, packages...),
			env: append([]string{kuberego.BinaryEnv + "=" + s.binary}, withoutC...),
		})
	}
	names, err := s.list(ctx)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		jobs = append(jobs, job{
			name: name, dir: s.module, onCluster: true,
			args: []string{s.tests, "-test.run=^" + name + "$", "-test.timeout=" + testLimit, "-test.paniconexit0"},
			env:  []string{kuberego.BinaryEnv + "=" + s.binary},
		})
	}
	return jobs, nil
}

// otherPackages are those of this module with tests, without package e2e.
func (s *schedule) otherPackages(ctx context.Context) ([]string, error) {
	out, err := gotool.Output(ctx, s.module, withoutC, "list", "-f", "{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}", "./...")
	if err != nil {
		return nil, err
	}
	this, _, _ := strings.Cut(out, "\n") // the first is that of the module's own folder
	return slices.DeleteFunc(strings.Fields(out), func(path string) bool { return path == this }), nil
}

// list asks the test program for its tests.
func (s *schedule) list(ctx context.Context) ([]string, error) {
	pattern := s.cfg.pattern
	if pattern == "" {
		pattern = "."
	}
	cmd := exec.CommandContext(ctx, s.tests, "-test.list="+pattern)
	cmd.Dir = s.module
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list the tests: %w", err)
	}
	return order(string(out), s.cfg.pattern == "")
}

// order puts the longest tests first. The others stay as they are.
func order(listed string, all bool) ([]string, error) {
	names := strings.Fields(listed)
	names = slices.DeleteFunc(names, func(name string) bool { return !strings.HasPrefix(name, "Test") })
	if len(names) == 0 {
		return nil, errors.New("list the tests: there are none")
	}
	for _, name := range slices.Backward(longest) {
		n := slices.Index(names, name)
		switch {
		case n >= 0:
			names = slices.Insert(slices.Delete(names, n, n+1), 0, name)
		case all:
			return nil, fmt.Errorf("list the tests: there is no %s any more: change the list of the longest", name)
		}
	}
	return names, nil
}

// do runs a job and reports it. It says whether all was well.
func (s *schedule) do(ctx context.Context, j job, env []string) bool {
	cmd := exec.CommandContext(ctx, j.args[0], j.args[1:]...)
	cmd.Dir = j.dir
	cmd.Env = slices.Concat(os.Environ(), j.env, env)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	// An interrupted go command ends its tests; a killed one leaves them running.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	s.report.begin(j.name)
	err := cmd.Run()
	var cpu time.Duration
	if state := cmd.ProcessState; state != nil { // it has run
		cpu = state.UserTime() + state.SystemTime()
	}
	s.report.end(j.name, out.String(), cpu, err)
	return err == nil
}

// worker runs one job after the other. It starts a control plane for the first that needs one.
type worker struct {
	*schedule
	name    string
	cluster *controlplane.ControlPlane
	started int
}

// do is an error only where nothing more can be done.
func (w *worker) do(ctx context.Context, j job) error {
	if !j.onCluster {
		w.schedule.do(ctx, j, nil)
		return nil
	}
	dir := filepath.Join(w.dir, fmt.Sprintf("%s-%d", w.name, w.started))
	if w.cluster == nil {
		w.started++
		dir = filepath.Join(w.dir, fmt.Sprintf("%s-%d", w.name, w.started))
		var err error
		w.cluster, err = controlplane.Start(ctx, controlplane.Config{Programs: w.built, Dir: dir})
		if err != nil {
			return fmt.Errorf("start a control plane for %s: %w", j.name, err)
		}
	}
	if w.schedule.do(ctx, j, []string{controlplane.DirEnv + "=" + dir}) {
		return nil
	}
	return w.stop() // one that failed may leave anything behind
}

func (w *worker) stop() error {
	if w.cluster == nil {
		return nil
	}
	cluster := w.cluster
	w.cluster = nil
	return cluster.Stop()
}
