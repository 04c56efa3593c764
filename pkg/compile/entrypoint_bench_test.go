package compile_test

import (
	"fmt"
	"os"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// BenchmarkEntrypoint makes decisions with the entrypoint that is built in, and prints how
// much longer they take than with one that is written by hand for the same policies.
func BenchmarkEntrypoint(b *testing.B) {
	const policies, decisions = 1000, 100
	input := map[string]any{
		"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
		"request": map[string]any{"uid": "u", "kind": map[string]any{"kind": "Pod"}, "object": map[string]any{"metadata": map[string]any{"name": "web"}}},
	}
	byHand := func(denials string) policy.Module {
		return module("main", 1, "package system",
			`main := {"apiVersion": input.apiVersion, "kind": input.kind, "response": response}`,
			`response := {"uid": input.request.uid, "allowed": true} if count(denials) == 0`,
			`response := {"uid": input.request.uid, "allowed": false, "status": {"code": 403, "message": concat(", ", denials)}} if count(denials) > 0`,
			`denials contains text if `+denials)
	}
	costs := make(map[string]time.Duration)
	layouts := []struct {
		name    string
		at      func(n int) string
		denials string
	}{
		{"one package", func(int) string { return "kubernetes.admission" }, "some text in data.kubernetes.admission.deny"},
		{"a package each", func(n int) string { return fmt.Sprintf("kubernetes.admission.team%d", n) }, "{ some name; some text in data.kubernetes.admission[name].deny }"},
	}
	for _, layout := range layouts {
		set := make(policy.Set)
		for n := range policies {
			m := module(fmt.Sprintf("team%d", n), int64(n), "package "+layout.at(n), "deny contains text if {",
				"\tinput.request.kind.kind == \"Pod\"",
				fmt.Sprintf("\tinput.request.object.metadata.name == \"team-%d\"", n),
				"\ttext := \"no\"\n}")
			set[m.ID] = m
		}
		for _, how := range []string{"by hand", "built in"} {
			name := layout.name + "/" + how
			b.Run(name, func(b *testing.B) {
				c := answering(b)
				if how == "by hand" {
					m := byHand(layout.denials)
					set[m.ID] = m
					defer delete(set, m.ID)
				}
				snapshot, report := compiled(c, c.Empty(), set)
				if held := report.Held(); len(held) > 0 {
					b.Fatal(held[0])
				}
				e := enforce(snapshot)
				for b.Loop() {
					for range decisions {
						if _, err := e.Decide(b.Context(), "system/main", input); err != nil {
							b.Fatal(err)
						}
					}
				}
				costs[name] = b.Elapsed() / time.Duration(b.N*decisions)
			})
		}
	}
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintf(out, "\ndecisions with %d policies\tby hand µs\tbuilt in µs\tratio\t\n", policies)
	for _, layout := range layouts {
		one, other := costs[layout.name+"/by hand"], costs[layout.name+"/built in"]
		if one > 0 && other > 0 {
			_, _ = fmt.Fprintf(out, "%s\t%.0f\t%.0f\t%.1f\t\n", layout.name, float64(one.Nanoseconds())/1e3, float64(other.Nanoseconds())/1e3, float64(other)/float64(one))
		}
	}
	_ = out.Flush()
}
