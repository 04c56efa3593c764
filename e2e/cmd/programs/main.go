// Command programs builds the programs of the control plane into the cache, showing progress, and does nothing when they
// are there. Run it before the tests: their own output is held back while they run, and the first build takes minutes.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/kube-rego/kube-rego/e2e/programs"
)

func main() {
	if len(os.Args) > 1 {
		fmt.Fprintf(os.Stderr, "error: unexpected argument %q: this command takes none\n", os.Args[1])
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	built, err := programs.Build(ctx, programs.Config{Progress: os.Stderr})
	if err != nil {
		fmt.Fprintf(os.Stderr, "error: %v\n", err)
		os.Exit(1)
	}
	fmt.Println(built.Dir)
}
