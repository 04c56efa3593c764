// Command demo plays the story of the project on two clusters that it starts on this machine, showing each command
// and its answer, and stops them again.
//
// Run cmd/programs before it, as make demo does: that compiles in seconds and shows what is being built. What is built
// there is most of what this command is compiled from.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/kube-rego/kube-rego/e2e/controlplane"
	"github.com/kube-rego/kube-rego/e2e/internal/filelock"
	"github.com/kube-rego/kube-rego/e2e/internal/progress"
	"github.com/kube-rego/kube-rego/e2e/kuberego"
	"github.com/kube-rego/kube-rego/e2e/programs"
	"github.com/kube-rego/kube-rego/e2e/story"
)

const usage = `usage: demo [--dir DIR]

demo plays the story of the project on two clusters on this machine, and stops them again.

  --dir DIR  the folder for the clusters and their logs, emptied at the start
             (default: .local/demo in the folder of the project)
`

// marker is the file that marks a folder as a demo's own, to be emptied by the next one.
const marker = "this-folder-is-emptied-by-each-demo"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is the command; its result is the exit code: 2 for a wrong command line.
func run(ctx context.Context, args []string, out, errOut io.Writer) int {
	dir, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(out, usage)
		return 0
	}
	if err != nil {
		fmt.Fprintf(errOut, "demo: %v (see demo --help)\n", err)
		return 2
	}
	err = demo(ctx, dir, out)
	switch {
	case err == nil:
		return 0
	case ctx.Err() != nil:
		fmt.Fprintf(errOut, "\ndemo: interrupted, and stopped what it had started: %s\n", lastWords(err, errOut))
	default:
		fmt.Fprintf(errOut, "\ndemo: failed: %s\n", lastWords(err, errOut))
	}
	return 1
}

// playError is what went wrong while the story was played.
type playError struct {
	error
	logs string // where they are
}

// lastWords is an error in one line, for the end of the output, with the way to the logs. What does not fit is written
// before.
func lastWords(err error, errOut io.Writer) string {
	text := err.Error()
	first, _, more := strings.Cut(text, "\n")
	if more {
		fmt.Fprintf(errOut, "\n%s\n", text)
		first += " (and more, see above)"
	}
	if playing := (playError{}); errors.As(err, &playing) {
		first += "; logs: " + playing.logs
	}
	return first
}

func parse(args []string) (dir string, err error) {
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // it would print the usage after each error: more than the one line wanted
	flags.StringVar(&dir, "dir", "", "")
	if err := flags.Parse(args); err != nil {
		return "", err
	}
	if flags.NArg() > 0 {
		return "", fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	return dir, nil
}

func demo(ctx context.Context, dir string, out io.Writer) error {
	start := time.Now()
	root, err := kuberego.Root(ctx)
	if err != nil {
		return err
	}
	if dir == "" {
		dir = filepath.Join(root, ".local", "demo")
	}
	fmt.Fprintln(out, "demo: two clusters on this machine, for half a minute; the first time, after minutes of building")
	unlock, err := takeDir(ctx, dir, out)
	if err != nil {
		return err
	}
	defer unlock()
	built, err := programs.Build(ctx, programs.Config{Progress: out})
	if err != nil {
		return err
	}
	binary, err := kuberego.BuildBinary(ctx, kuberego.BuildConfig{Root: root, Dir: dir, Progress: out})
	if err != nil {
		return err
	}
	stage, err := story.NewStage(story.Config{Programs: built, Binary: binary, Root: root, Dir: dir, Out: out})
	if err != nil {
		return err
	}
	if err := play(ctx, stage, out); err != nil {
		return playError{err, filepath.Join(dir, "*", "*", "*.log")}
	}
	total := story.Count(stage.Steps())
	fmt.Fprintf(out, "\nThe clusters are stopped; their logs are in %s. For one that stays, type make cluster.\n", shown(root, dir))
	fmt.Fprintf(out, "demo: done: the story played on two clusters, %d of %d expectations held (took %s)\n",
		stage.Held(), total, time.Since(start).Round(time.Second))
	return nil
}

// shown is a folder as a person in the project's root types it.
func shown(root, dir string) string {
	absolute, err := filepath.Abs(dir)
	if err != nil {
		return dir
	}
	relative, err := filepath.Rel(root, absolute)
	if err != nil {
		return absolute
	}
	return relative
}

// play plays all steps and stops what they started.
func play(ctx context.Context, stage *story.Stage, out io.Writer) (err error) {
	defer func() {
		err = errors.Join(err, progress.During(out, "stopping the clusters", stage.Stop))
	}()
	for _, step := range stage.Steps() {
		if err := stage.Play(ctx, step); err != nil {
			return err
		}
	}
	return nil
}

// takeDir makes the folder, empty but for the marker, and keeps other demos away from it until unlock.
func takeDir(ctx context.Context, dir string, out io.Writer) (unlock func(), err error) {
	dir = filepath.Clean(dir)
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, fmt.Errorf("make the folder around %s: %w", dir, err)
	}
	err = progress.During(out, "waiting for another demo in the same folder", func() (err error) {
		unlock, err = filelock.Lock(ctx, dir+".lock")
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := emptyDir(ctx, dir); err != nil {
		unlock()
		return nil, err
	}
	return unlock, nil
}

// emptyDir clears away what an earlier demo left, its processes included, where the system did not end them with it.
func emptyDir(ctx context.Context, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look into the folder of the demo: %w", err)
	}
	if _, err := os.Stat(filepath.Join(dir, marker)); err != nil && len(entries) > 0 {
		return fmt.Errorf("use the folder %s: it is not empty, and not that of an earlier demo", dir)
	}
	for _, region := range story.Regions() {
		if _, err := controlplane.Remove(ctx, filepath.Join(dir, region, "control-plane")); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("empty the folder of the demo: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the folder of the demo: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, marker), nil, 0o644); err != nil {
		return fmt.Errorf("mark the folder of the demo: %w", err)
	}
	return nil
}
