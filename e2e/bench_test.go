package e2e_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-rego/kube-rego/e2e/kuberego"
)

// ancestor is how long kube-mgmt beside OPA 1.22 took to load 1,000 policy ConfigMaps on a real API server, measured on
// a machine of this size: one PUT, one compilation of everything and one annotation for each.
const ancestor = 556 * time.Second

// readiness is what is measured for one number of ConfigMaps.
type readiness struct {
	configMaps         int
	ready, allOK, edit time.Duration
}

// BenchmarkReady measures, on the real API server, the time from the start of the process to /readyz with all policies in
// force, to the annotation on the last of them, and from the edit of one policy to the first decision made with it.
func BenchmarkReady(b *testing.B) {
	var rows []readiness
	for _, n := range []int{1, 100, 1000} {
		b.Run(fmt.Sprintf("configmaps=%d", n), func(b *testing.B) {
			var row readiness
			for b.Loop() {
				row = measureReadiness(b, n)
			}
			b.ReportMetric(0, "ns/op") // includes the making of the ConfigMaps
			b.ReportMetric(row.ready.Seconds(), "s-to-ready")
			b.ReportMetric(row.allOK.Seconds(), "s-to-all-ok")
			b.ReportMetric(row.edit.Seconds(), "s-edit-to-decision")
			rows = append(rows, row)
		})
	}
	printReadiness(rows)
}

func measureReadiness(b *testing.B, n int) readiness {
	b.StopTimer()
	defer b.StartTimer()
	installation, first := install(b)
	if err := first.Stop(); err != nil {
		b.Fatal(err)
	}
	createPolicies(b, n)

	start := time.Now()
	instance, err := installation.Launch(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = instance.Stop() })
	row := readiness{configMaps: n}
	eventually(b, "ready", instance.Ready)
	row.ready = time.Since(start)
	if states, err := modules(b.Context(), instance); err != nil || len(states) != n+1 {
		b.Fatalf("ready with %d modules of %d: %v", len(states), n+1, err)
	}
	eventually(b, "every annotation", func(ctx context.Context) error { return allOK(ctx, n+1) })
	row.allOK = time.Since(start)
	row.edit = measureEdit(b, instance)
	return row
}

// createPolicies makes n policies of one package, and the entrypoint, with a few writers at once.
func createPolicies(b *testing.B, n int) {
	b.Helper()
	removePolicies(b)
	create(b, policy(opa, "main", "main", entrypoint))
	names := make(chan string)
	var writers sync.WaitGroup
	for range 8 {
		writers.Go(func() {
			for name := range names {
				cm := policy(opa, name, "main", denyLabel(name))
				if _, err := cluster.Client().CoreV1().ConfigMaps(opa).Create(b.Context(), cm, metav1.CreateOptions{}); err != nil {
					b.Error(err)
				}
			}
		})
	}
	for i := range n {
		names <- fmt.Sprintf("policy-%d", i)
	}
	close(names)
	writers.Wait()
}

// allOK is nil when n policies have the annotation that says ok.
func allOK(ctx context.Context, n int) error {
	list, err := cluster.Client().CoreV1().ConfigMaps(opa).List(ctx, metav1.ListOptions{LabelSelector: policyLabel})
	if err != nil {
		return err
	}
	ok := 0
	for _, cm := range list.Items {
		if cm.Annotations[statusAnnotation] == statusOK {
			ok++
		}
	}
	if ok != n {
		return fmt.Errorf("%d of %d", ok, n)
	}
	return nil
}

// measureEdit asks the webhook itself, over the same HTTPS, so that only kube-rego is measured.
func measureEdit(b *testing.B, instance *kuberego.Instance) time.Duration {
	b.Helper()
	ask := reviewer(b, instance)
	start := time.Now()
	create(b, policy(opa, "late", "main", denyLabel("late")))
	eventually(b, "the new policy decides", func(ctx context.Context) error {
		answer, err := ask(ctx, "late")
		if err == nil && !strings.Contains(answer, `"allowed":false`) {
			err = fmt.Errorf("got %s", answer)
		}
		return err
	})
	return time.Since(start)
}

func printReadiness(rows []readiness) {
	fmt.Println("\nOn the real API server, from the start of the process:")
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "ConfigMaps\tready\tall annotated\ta new policy decides after\t")
	for _, r := range rows {
		fmt.Fprintf(w, "%d\t%.2f s\t%.1f s\t%.3f s\t\n", r.configMaps, r.ready.Seconds(), r.allOK.Seconds(), r.edit.Seconds())
	}
	_ = w.Flush()
	for _, r := range rows {
		if r.configMaps == 1000 {
			fmt.Printf("kube-mgmt needed %.0f s for 1,000, annotations included (measured elsewhere): %.0f times as long\n\n",
				ancestor.Seconds(), ancestor.Seconds()/r.allOK.Seconds())
		}
	}
}
