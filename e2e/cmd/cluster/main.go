// Command cluster starts and stops a local Kubernetes control plane that outlives it.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/kube-rego/kube-rego/e2e/controlplane"
	"github.com/kube-rego/kube-rego/e2e/programs"
)

const usage = `usage:
  cluster up --dir DIR --kubeconfig FILE [--stop-command TEXT]
  cluster down --dir DIR

up starts etcd, kube-apiserver and kube-controller-manager in DIR and writes the admin's kubeconfig to FILE; when they run
already it only writes FILE. down stops them and removes DIR.

  --dir DIR            the folder of the control plane
  --kubeconfig FILE    where to write the admin's kubeconfig
  --stop-command TEXT  what up tells its user to type to stop the control plane (default: this command's down)
`

// usageError is an error of the command line.
type usageError struct{ error }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is the command; its result is the exit code: 2 for a wrong command line.
func run(ctx context.Context, args []string, out, errOut io.Writer) int {
	err := dispatch(ctx, args, out)
	var wrongUsage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &wrongUsage):
		fmt.Fprintf(errOut, "error: %v (see cluster --help)\n", err)
		return 2
	default:
		fmt.Fprintf(errOut, "error: %v\n", err)
		return 1
	}
}

func dispatch(ctx context.Context, args []string, out io.Writer) error {
	if len(args) == 0 {
		return usageError{errors.New("no command: up or down")}
	}
	switch args[0] {
	case "up":
		return up(ctx, args[1:], out)
	case "down":
		return down(ctx, args[1:], out)
	case "help", "-h", "-help", "--help":
		_, err := io.WriteString(out, usage)
		return err
	default:
		return usageError{fmt.Errorf("unknown command %q: up or down", args[0])}
	}
}

func up(ctx context.Context, args []string, out io.Writer) error {
	var dir, kubeconfig, stopCommand string
	flags := flag.NewFlagSet("up", flag.ContinueOnError)
	pathVar(flags, &dir, "dir")
	pathVar(flags, &kubeconfig, "kubeconfig")
	flags.StringVar(&stopCommand, "stop-command", "", "")
	if help, err := parse(flags, args, out, "dir", "kubeconfig"); help || err != nil {
		return err
	}

	start := time.Now()
	built, err := programs.Build(ctx, programs.Config{Progress: out})
	if err != nil {
		return err
	}
	c, found, err := controlplane.Up(ctx, controlplane.Config{Programs: built, Dir: dir, Progress: out})
	if err != nil {
		return err
	}
	if err := c.WriteKubeconfig(kubeconfig); err != nil {
		return err
	}
	if found {
		fmt.Fprintf(out, "Kubernetes %s is running already at %s\n", c.KubernetesVersion(), c.URL())
	} else {
		fmt.Fprintf(out, "Kubernetes %s is ready at %s after %s\n", c.KubernetesVersion(), c.URL(), time.Since(start).Round(100*time.Millisecond))
	}
	fmt.Fprintf(out, "  use it:   export KUBECONFIG=%s\n", quote(kubeconfig))
	fmt.Fprintf(out, "            %s get namespaces\n", quote(built.Path(programs.Kubectl)))
	fmt.Fprintf(out, "  logs:     %s\n", filepath.Join(dir, "*.log"))
	fmt.Fprintf(out, "  stop it:  %s\n", cmp.Or(stopCommand, "go run ./cmd/cluster down --dir "+quote(dir)))
	return nil
}

func down(ctx context.Context, args []string, out io.Writer) error {
	var dir string
	flags := flag.NewFlagSet("down", flag.ContinueOnError)
	pathVar(flags, &dir, "dir")
	if help, err := parse(flags, args, out, "dir"); help || err != nil {
		return err
	}
	found, err := controlplane.Remove(ctx, dir)
	if err != nil {
		return err
	}
	if found {
		fmt.Fprintf(out, "stopped the control plane and removed %s\n", dir)
	} else {
		fmt.Fprintf(out, "nothing to stop: there is no %s\n", dir)
	}
	return nil
}

// pathVar defines a flag for a path. The path is made absolute: the user may be in another folder than this command.
func pathVar(flags *flag.FlagSet, path *string, name string) {
	flags.Func(name, "", func(value string) (err error) {
		if value == "" {
			return errors.New("empty path")
		}
		*path, err = filepath.Abs(value)
		return err
	})
}

// parse parses the command line, all errors being usage errors. It tells whether it gave the help that was asked for.
func parse(flags *flag.FlagSet, args []string, out io.Writer, required ...string) (help bool, err error) {
	flags.SetOutput(io.Discard) // it would print the usage after each error: more than the one line promised
	err = flags.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		_, err := io.WriteString(out, usage)
		return true, err
	}
	if err != nil {
		return false, usageError{err}
	}
	if flags.NArg() > 0 {
		return false, usageError{fmt.Errorf("unexpected argument %q", flags.Arg(0))}
	}
	given := map[string]bool{}
	flags.Visit(func(f *flag.Flag) { given[f.Name] = true })
	for _, name := range required {
		if !given[name] {
			return false, usageError{fmt.Errorf("flag missing: --%s", name)}
		}
	}
	return false, nil
}

// quote makes a path safe to paste into a shell.
func quote(path string) string {
	if !strings.ContainsAny(path, " \t\n\"'\\$`&|;<>()*?[]#~!{}") {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}
