package admission_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kube-rego/kube-rego/pkg/admission"
	"github.com/kube-rego/kube-rego/pkg/compile"
	"github.com/kube-rego/kube-rego/pkg/engine"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// silently is a decider whose decisions nobody can ask how they were made.
type silently struct{ admission.Decider }

func (s silently) Decide(ctx context.Context, path string, input any) (policy.Decision, error) {
	decision, err := s.Decider.Decide(ctx, path, input)
	decision.Witness = nil
	return decision, err
}

// BenchmarkReview answers a review of a pod, over 100 policies, and says what it costs to
// find out who had a say: the time of each to that of the same answer without.
func BenchmarkReview(b *testing.B) {
	e := manyPolicies(b, 100)
	body, err := os.ReadFile(filepath.Join("..", "..", "examples", "pod-allowlist", "requests", "image-not-allowed.json"))
	if err != nil {
		b.Fatal(err)
	}
	for name, body := range map[string]string{
		"allowed": string(body),
		"denied":  strings.Replace(string(body), `"labels": {`, `"labels": {"deny": "7",`, 1),
		"patched": strings.Replace(string(body), `"labels": {`, `"labels": {"patch": "7",`, 1),
	} {
		b.Run(name, func(b *testing.B) {
			with := admission.NewReviewer(e, admission.Config{Entrypoint: "system/main"})
			without := admission.NewReviewer(silently{e}, admission.Config{Entrypoint: "system/main"})
			var took [2]float64 // ns, side by side
			reviews := 0.0
			for b.Loop() {
				for n, reviewer := range []*admission.Reviewer{with, without} {
					start := time.Now()
					for range 100 {
						if _, err := reviewer.Review(b.Context(), []byte(body)); err != nil {
							b.Fatal(err)
						}
					}
					took[n] += float64(time.Since(start))
				}
				reviews += 100
			}
			b.ReportMetric(took[0]/1000/reviews, "µs/review")
			b.ReportMetric(took[0]/took[1], "with/without")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// manyPolicies looks at labels of pods.
func manyPolicies(b *testing.B, n int) *engine.Engine {
	b.Helper()
	set := policy.NewSet(policy.Module{ID: policy.ID{Namespace: "opa", Name: "main", Key: "main"}, Source: `package system
main := {"response": response}
response := {"allowed": true, "patch": data.kubernetes.admission.patch} if not denied
response := {"allowed": false, "status": {"message": concat(", ", data.kubernetes.admission.deny)}} if denied
denied if count(data.kubernetes.admission.deny) > 0`})
	for i := range n {
		m := policy.Module{ID: policy.ID{Namespace: "opa", Name: fmt.Sprint("rule-", i), Key: "main"}, Source: fmt.Sprintf(`package kubernetes.admission
deny contains "no %[1]d" if input.request.object.metadata.labels.deny == "%[1]d"
patch contains {"op": "add", "path": "/metadata/labels/x", "value": "y"} if input.request.object.metadata.labels.patch == "%[1]d"`, i)}
		set[m.ID] = m
	}
	compiler, err := compile.New(compile.Config{RegoVersion: policy.RegoAuto, SystemNamespaces: []string{"opa"}})
	if err != nil {
		b.Fatal(err)
	}
	snapshot := compiler.Compile(compiler.Empty(), set, nil)
	report := snapshot.Report()
	if held := report.Held(); len(held) > 0 {
		b.Fatalf("%d are held, such as %v", len(held), held[0])
	}
	e := engine.New()
	e.Activate(snapshot, report)
	return e
}
