package main

import (
	"fmt"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/kube-rego/kube-rego/pkg/engine"
)

// version is stamped by the Makefile; a plain go build leaves it to the module
// version that Go records.
var version string

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of kube-rego, of its OPA and of Go",
		Args:  noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			own, golang := buildVersion()
			_, err := fmt.Fprintf(c.OutOrStdout(), "kube-rego %s\nOPA %s\nGo %s\n", own, engine.Version(), golang)
			return err
		},
	}
}

func buildVersion() (own, golang string) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return version, ""
	}
	if version == "" {
		return info.Main.Version, info.GoVersion
	}
	return version, info.GoVersion
}
