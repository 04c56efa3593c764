// Command kube-rego enforces the policies that a cluster keeps in ConfigMaps. It turns
// flags into options and errors into exit codes; package daemon does the rest.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// The exit codes: 1 for what went wrong, 2 for a command line that nobody can
// follow.
const (
	exitError = 1
	exitUsage = 2
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	root := newRootCommand()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	command, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	var usage *usageError
	if errors.As(err, &usage) {
		_, _ = fmt.Fprintf(stderr, "kube-rego: %s (see %s --help)\n", oneLine(err), command.CommandPath())
		return exitUsage
	}
	_, _ = fmt.Fprintf(stderr, "kube-rego: %s\n", err)
	return exitError
}

// usageError is a mistake in the command line.
type usageError struct{ error }

func (e *usageError) Unwrap() error { return e.error }

// oneLine joins the errors that errors.Join puts on lines of their own.
func oneLine(err error) string {
	return strings.Join(strings.Split(err.Error(), "\n"), "; ")
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "kube-rego",
		Short: "Enforce the policies that a cluster keeps in ConfigMaps",
		Long: `kube-rego watches ConfigMaps labelled openpolicyagent.org/policy=rego, runs the
Rego in them in an in-process Open Policy Agent, writes on each whether it is in
force, and answers the API server's admission webhook.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          noArguments,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	root.AddCommand(newServeCommand(), newStatusCommand(), newRBACCommand(), newVersionCommand())
	return root
}

// noArguments refuses arguments, which on the root command are the names of
// commands that do not exist.
func noArguments(c *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return nil
	case c.HasParent():
		return &usageError{fmt.Errorf("%s takes no arguments, got %q", c.CommandPath(), args[0])}
	}
	return &usageError{fmt.Errorf("unknown command %q", args[0])}
}
