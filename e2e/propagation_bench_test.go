package e2e_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/kube-rego/kube-rego/e2e/kuberego"
)

const (
	// reviewEvery makes 200 reviews a second, the writes of a busy cluster.
	reviewEvery = 5 * time.Millisecond
	// usualFor is how long decisions are watched while nothing else happens: 2,000 of them.
	usualFor = 10 * time.Second
	// quietLimit is how long the events of all policies may take; those of 1,000 take 50 s.
	quietLimit = 5 * time.Minute
	// betweenLooks lies between two questions whether a new rule is in force.
	betweenLooks = time.Millisecond
	// propagationGoal is what the p99 of write to decision may be at 1,000 modules, slowdownGoal how much longer decisions
	// may take meanwhile.
	propagationGoal = 500 * time.Millisecond
	slowdownGoal    = 2
)

// durations are sorted.
type durations []time.Duration

func sorted(all []time.Duration) durations {
	slices.Sort(all)
	return all
}

// quantile is the smallest duration that a share of all does not exceed.
func (d durations) quantile(share float64) time.Duration {
	return d[min(int(share*float64(len(d))), len(d)-1)]
}

// above is the share of those that are longer.
func (d durations) above(bound time.Duration) float64 {
	n, _ := slices.BinarySearch(d, bound+1)
	return float64(len(d)-n) / float64(len(d))
}

// propagation is what is measured for one number of modules.
type propagation struct {
	modules int
	// write is the API server's part, decided the whole time from the write to the first decision.
	write, decided durations
	// usual are decisions while nothing changes, during those while policies are edited one after another. others are those
	// while as many ConfigMaps are written that are no policies: what the API server and etcd take of the same cores.
	usual, others, during durations
}

// slow is what counts as a slow decision.
func (p propagation) slow() time.Duration { return slowdownGoal * p.usual.quantile(0.99) }

// BenchmarkPropagation measures, on the real API server, the time from the write of a ConfigMap to the first decision with the
// new rule, and what that costs the decisions that are made meanwhile, 200 a second. All of it shares the cores of one
// machine: kube-rego, the API server, etcd, and those who ask.
func BenchmarkPropagation(b *testing.B) {
	var rows []propagation
	for _, c := range []struct{ modules, edits int }{{10, 200}, {100, 200}, {1000, 100}} {
		b.Run(fmt.Sprintf("modules=%d", c.modules), func(b *testing.B) {
			var row propagation
			for b.Loop() {
				row = measurePropagation(b, c.modules, c.edits)
			}
			b.ReportMetric(0, "ns/op") // includes the making of the ConfigMaps
			b.ReportMetric(milliseconds(row.decided.quantile(0.5)), "ms-p50")
			b.ReportMetric(milliseconds(row.decided.quantile(0.99)), "ms-p99")
			rows = append(rows, row)
		})
	}
	printPropagation(rows)
}

func measurePropagation(b *testing.B, modules, edits int) propagation {
	b.StopTimer()
	defer b.StartTimer()
	removeRevisions(b) // the writer would have to do it
	_, instance := install(b)
	createPolicies(b, modules-1) // and the entrypoint
	eventually(b, "every annotation", func(ctx context.Context) error { return allOK(ctx, modules) })
	waitQuiet(b)
	client := lastingClient(injectedCA(b))
	defer client.CloseIdleConnections()

	p := propagation{modules: modules}
	p.usual = measureDecisions(b, client, instance, func() { askInVain(b, client, instance, func() { time.Sleep(usualFor) }) })
	var write, decided []time.Duration
	p.during = measureDecisions(b, client, instance, func() {
		for n := range edits {
			name := fmt.Sprintf("policy-%d", rand.IntN(modules-1))
			w, d := measureWrite(b, client, instance, name, fmt.Sprintf("edit-%d", n))
			write, decided = append(write, w), append(decided, d)
		}
	})
	p.write, p.decided = sorted(write), sorted(decided)
	p.others = measureDecisions(b, client, instance, func() {
		askInVain(b, client, instance, func() { writeOthers(b, edits, p.decided.quantile(0.5)) })
	})
	return p
}

// askInVain asks the question of measureWrite while work runs, so that all times are alike in what is asked.
func askInVain(b *testing.B, c *http.Client, instance *kuberego.Instance, work func()) {
	ctx, cancel := context.WithCancel(b.Context())
	var asking sync.WaitGroup
	asking.Go(func() { waitDenied(ctx, c, instance, "never", make(chan time.Time, 1)) })
	work()
	cancel()
	asking.Wait()
}

// writeOthers writes a ConfigMap that is no policy, so many times and so often.
func writeOthers(b *testing.B, n int, every time.Duration) {
	b.Helper()
	bystander := policy(opa, "bystander", "main", "")
	bystander.Labels = nil
	create(b, bystander)
	for next := time.Now(); n > 0; n-- {
		edit(b, opa, "bystander", func(cm *corev1.ConfigMap) { cm.Data["main"] = denyLabel(fmt.Sprint(n)) })
		next = next.Add(every)
		time.Sleep(time.Until(next))
	}
}

// waitQuiet waits until kube-rego has told of all policies: events come at 20 a second.
func waitQuiet(b *testing.B) {
	b.Helper()
	before := int64(-1)
	err := wait.PollUntilContextTimeout(b.Context(), time.Second, quietLimit, true, func(ctx context.Context) (bool, error) {
		list, err := cluster.Client().CoreV1().Events(opa).List(ctx, metav1.ListOptions{Limit: 1})
		if err != nil {
			return false, err
		}
		var now int64
		if list.RemainingItemCount != nil {
			now = *list.RemainingItemCount
		}
		quiet := now == before
		before = now
		return quiet, nil
	})
	if err != nil {
		b.Fatalf("wait for the last event: %v", err)
	}
}

// measureDecisions asks at a steady rate, however long the answers take, while work runs.
func measureDecisions(b *testing.B, c *http.Client, instance *kuberego.Instance, work func()) durations {
	ctx, cancel := context.WithCancel(b.Context())
	var mu sync.Mutex
	var all []time.Duration
	var asking sync.WaitGroup
	asking.Go(func() {
		for next := time.Now(); ctx.Err() == nil; next = next.Add(reviewEvery) {
			time.Sleep(time.Until(next))
			asking.Go(func() {
				took := measureDecision(b, c, instance)
				mu.Lock()
				defer mu.Unlock()
				all = append(all, took)
			})
		}
	})
	work()
	cancel()
	asking.Wait()
	return sorted(all)
}

func measureDecision(b *testing.B, c *http.Client, instance *kuberego.Instance) time.Duration {
	start := time.Now()
	code, answer, err := review(b.Context(), c, instance, "nothing")
	if err != nil || code != http.StatusOK {
		b.Errorf("no decision: HTTP %d, %s, %v", code, answer, err)
	}
	return time.Since(start)
}

// measureWrite lets a policy deny this label value, and tells how long the write takes, and how long it is until the first
// decision from before the write.
func measureWrite(b *testing.B, c *http.Client, instance *kuberego.Instance, name, value string) (write, decided time.Duration) {
	b.Helper()
	configMaps := cluster.Client().CoreV1().ConfigMaps(opa)
	cm, err := configMaps.Get(b.Context(), name, metav1.GetOptions{})
	if err != nil {
		b.Fatal(err)
	}
	cm.Data["main"] = denyLabel(value)
	denied := make(chan time.Time, 1)
	ctx, cancel := context.WithTimeout(b.Context(), limit)
	defer cancel()
	go waitDenied(ctx, c, instance, value, denied)

	start := time.Now()
	_, err = configMaps.Update(b.Context(), cm, metav1.UpdateOptions{})
	write = time.Since(start)
	if apierrors.IsConflict(err) { // the writer of the statuses was there in between
		return measureWrite(b, c, instance, name, value)
	}
	if err != nil {
		b.Fatal(err)
	}
	select {
	case at := <-denied:
		return write, at.Sub(start)
	case <-ctx.Done():
		b.Fatalf("not within %s: a decision with the new rule of %s", limit, name)
		return 0, 0
	}
}

// waitDenied asks until the label value is denied, and tells when it was.
func waitDenied(ctx context.Context, c *http.Client, instance *kuberego.Instance, value string, denied chan<- time.Time) {
	for ctx.Err() == nil {
		_, answer, err := review(ctx, c, instance, value)
		if err == nil && strings.Contains(answer, `"allowed":false`) {
			denied <- time.Now()
			return
		}
		time.Sleep(betweenLooks)
	}
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func printPropagation(rows []propagation) {
	fmt.Println("\nFrom the write of a ConfigMap to the first decision with the new rule, one edit after another:")
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "modules\tedits\tp50\tp99\tof which the API's write: p50\tp99\tgoal for p99\t")
	for _, p := range rows {
		goal := "-"
		if p.modules == 1000 {
			goal = fmt.Sprintf("%.0f ms", milliseconds(propagationGoal))
		}
		fmt.Fprintf(w, "%d\t%d\t%s\t%s\t%s\t%s\t%s\t\n", p.modules, len(p.decided),
			inMilliseconds(p.decided.quantile(0.5)), inMilliseconds(p.decided.quantile(0.99)),
			inMilliseconds(p.write.quantile(0.5)), inMilliseconds(p.write.quantile(0.99)), goal)
	}
	_ = w.Flush()

	fmt.Println("\nDecisions, 200 a second, while nothing changes, while as much else is written, and while that happens:")
	w = tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "modules\t\tdecisions\tp50\tp99\tmax\tratio of p99\tslower than twice the usual p99\t")
	for _, p := range rows {
		for _, d := range []struct {
			name string
			durations
		}{{"usual", p.usual}, {"while others write", p.others}, {"while policies change", p.during}} {
			fmt.Fprintf(w, "%d\t%s\t%d\t%s\t%s\t%s\t%.2f\t%.2f %%\t\n", p.modules, d.name, len(d.durations),
				inMilliseconds(d.quantile(0.5)), inMilliseconds(d.quantile(0.99)), inMilliseconds(d.quantile(1)),
				float64(d.quantile(0.99))/float64(p.usual.quantile(0.99)), 100*d.above(p.slow()))
		}
	}
	_ = w.Flush()
	fmt.Printf("goal: no ratio above %d\n\n", slowdownGoal)
}

func inMilliseconds(d time.Duration) string { return fmt.Sprintf("%.1f ms", milliseconds(d)) }
