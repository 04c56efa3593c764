package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "write docs/flags.md anew")

func TestFlagsAreDocumented(t *testing.T) {
	file := filepath.Join("..", "..", "docs", "flags.md")
	want := flagReference(newServeCommand(), newStatusCommand(), newRBACCommand())
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("docs/flags.md is not what the flags say; renew it with: go test ./cmd/kube-rego -update")
	}
}

// flagReference is the page about the flags of all commands that have some.
func flagReference(commands ...*cobra.Command) string {
	var page strings.Builder
	page.WriteString("# The flags of kube-rego\n\n" +
		"Generated from the flags; run `go test ./cmd/kube-rego -update` to renew it.\n")
	for _, c := range commands {
		_, _ = fmt.Fprintf(&page, "\n## kube-rego %s\n\n%s.\n\n| flag | default | meaning |\n| --- | --- | --- |\n", c.Name(), c.Short)
		c.Flags().VisitAll(func(f *pflag.Flag) {
			_, meaning := pflag.UnquoteUsage(f)
			_, _ = fmt.Fprintf(&page, "| %s | %s | %s |\n", nameOf(f), defaultOf(f), strings.ReplaceAll(meaning, "|", `\|`))
		})
	}
	return page.String()
}

// nameOf is a flag's name as one would type it, with its short form if it has one.
func nameOf(f *pflag.Flag) string {
	name := "`--" + f.Name + "`"
	if f.Shorthand != "" {
		name += ", `-" + f.Shorthand + "`"
	}
	return name
}

// defaultOf is a flag's default as one would type it.
func defaultOf(f *pflag.Flag) string {
	value := f.DefValue
	if list, ok := f.Value.(pflag.SliceValue); ok {
		value = strings.Join(list.GetSlice(), ",")
	}
	if value == "" {
		return "none"
	}
	return "`" + value + "`"
}
