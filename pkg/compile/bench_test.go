package compile

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// fieldSet are n modules of one package, as they are found in clusters: each
// looks at the kind of the object and at one label.
func fieldSet(n int) policy.Set {
	set := make(policy.Set, n)
	for i := range n {
		id := policy.ID{Namespace: "opa", Name: fmt.Sprintf("team-%05d", i), Key: "main"}
		set[id] = policy.Module{ID: id, Source: fmt.Sprintf(`package kubernetes.admission

deny contains msg if {
	input.request.kind.kind == "Pod"
	input.request.object.metadata.labels.team == "team-%05d"
	msg := sprintf("pod %%q: team-%05d must not run pods", [input.request.object.metadata.name])
}
`, i, i)}
	}
	return set
}

// BenchmarkCompile brings sets of one package into force from their sources, and
// prints what a module costs in a large set and what gathering saves.
func BenchmarkCompile(b *testing.B) {
	costs := make(map[int]time.Duration) // of one set
	sizes := []int{100, 1000, 5000, 10000}
	for _, n := range sizes {
		set := fieldSet(n)
		b.Run(fmt.Sprintf("modules=%d", n), func(b *testing.B) {
			for b.Loop() {
				c, err := New(Config{RegoVersion: policy.RegoAuto, SystemNamespaces: []string{"opa"}})
				if err != nil {
					b.Fatal(err)
				}
				if held := c.Compile(c.Empty(), set, nil).Report().Held(); len(held) > 0 {
					b.Fatal(held[0])
				}
			}
			costs[n] = b.Elapsed() / time.Duration(b.N)
			b.ReportMetric(perModule(costs[n], n), "µs/module")
		})
	}

	const alone, together = "gather=no", "gather=yes"
	gathering := make(map[string]time.Duration)
	for _, n := range []int{1000, 2000} {
		language, modules := parseAll(b, fieldSet(n))
		for _, how := range []string{alone, together} {
			run := func() *ast.Compiler { return ungathered(language, modules) }
			if how == together {
				run = func() *ast.Compiler {
					return (&linker{language: language}).link(modules, noBundles).compiler
				}
			}
			name := fmt.Sprintf("parsed/%s/modules=%d", how, n)
			b.Run(name, func(b *testing.B) {
				for b.Loop() {
					if c := run(); c.Failed() {
						b.Fatal(c.Errors)
					}
				}
				gathering[name] = b.Elapsed() / time.Duration(b.N)
				b.ReportMetric(perModule(gathering[name], n), "µs/module")
			})
		}
	}

	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(out, "\nmodules of one package\tms\tµs/module\t")
	for _, n := range sizes {
		if cost, ok := costs[n]; ok {
			_, _ = fmt.Fprintf(out, "%d\t%.1f\t%.1f\t\n", n, milliseconds(cost), perModule(cost, n))
		}
	}
	_ = out.Flush()
	if costs[1000] > 0 && costs[10000] > 0 {
		fmt.Printf("a module costs at 10,000 %.2f times what it costs at 1,000 (goal: at most 1.5)\n",
			perModule(costs[10000], 10000)/perModule(costs[1000], 1000))
	}
	for _, n := range []int{1000, 2000} {
		one := gathering[fmt.Sprintf("parsed/%s/modules=%d", alone, n)]
		all := gathering[fmt.Sprintf("parsed/%s/modules=%d", together, n)]
		if one > 0 && all > 0 {
			fmt.Printf("compiling %d parsed modules one by one takes %.1f times as long as gathered (%.0f ms, %.0f ms)\n",
				n, float64(one)/float64(all), milliseconds(one), milliseconds(all))
		}
	}
}

func parseAll(b *testing.B, set policy.Set) (*language, map[policy.ID]*module) {
	b.Helper()
	c, err := New(Config{RegoVersion: policy.RegoAuto, SystemNamespaces: []string{"opa"}})
	if err != nil {
		b.Fatal(err)
	}
	modules := c.parser.parse(set)
	if slices.ContainsFunc(sortedIDs(modules), func(id policy.ID) bool { return len(modules[id].problems) > 0 }) {
		b.Fatal("the set does not parse")
	}
	return c.parser.language, modules
}

func perModule(d time.Duration, n int) float64 { return float64(d.Nanoseconds()) / 1e3 / float64(n) }
func milliseconds(d time.Duration) float64     { return float64(d.Nanoseconds()) / 1e6 }
