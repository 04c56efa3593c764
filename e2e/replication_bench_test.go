package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"

	"github.com/kube-rego/kube-rego/e2e/internal/gotool"
	"github.com/kube-rego/kube-rego/e2e/internal/process"
	"github.com/kube-rego/kube-rego/e2e/kuberego"
)

const (
	// podCount is how many Pods are replicated.
	podCount = 10_000
	// settleFor is how long processes are left alone before their memory counts: longer than the two minutes after which Go's
	// runtime collects garbage in any case. It gives back what is free bit by bit, so then they are looked at as long as
	// one has changed by more than a hundredth since the last look, but not for ever.
	settleFor, settleEvery, settleLimit = 3 * time.Minute, 30 * time.Second, 6 * time.Minute
	// churnFor is how long decisions are watched, churnEvery how often an object is changed meanwhile: 100 a second.
	churnFor, churnEvery = 20 * time.Second, 10 * time.Millisecond
	// What kube-rego may take of the memory of OPA, and of OPA and a program that copies; and how much longer decisions may
	// take while objects change.
	aloneGoal, togetherGoal, churnGoal = 0.5, 1.0 / 3, 1.5
)

// BenchmarkReplication measures, with 10,000 Pods in the real API server, the memory that it takes to have them in data, the
// time until they are there, and what it costs decisions when they change.
func BenchmarkReplication(b *testing.B) {
	pods := createPods(b, podCount)
	allowReading(b, "pods")
	b.Run("memory", func(b *testing.B) {
		for b.Loop() {
			printMemory(measureMemory(b, pods))
		}
		b.ReportMetric(0, "ns/op")
	})
	b.Run("ready", func(b *testing.B) {
		for b.Loop() {
			measureReplicated(b, pods)
		}
		b.ReportMetric(0, "ns/op")
	})
	b.Run("decisions", func(b *testing.B) {
		for b.Loop() {
			printChurn(measureChurn(b, pods))
		}
		b.ReportMetric(0, "ns/op")
	})
}

// readsPod reads one Pod by its namespace and name.
func readsPod(p *pods) string {
	return fmt.Sprintf(`package kubernetes.admission

deny contains "the pod is gone" if not data.kubernetes.pods[%q][%q].metadata.uid
`, p.names[0].Namespace, p.names[0].Name)
}

// readsNamespace looks through all Pods of one namespace.
func readsNamespace(p *pods) string {
	return fmt.Sprintf(`package kubernetes.admission

deny contains pod.metadata.name if {
	some pod in data.kubernetes.pods[%q]
	pod.metadata.labels.deny == input.request.object.metadata.labels.deny
}
`, p.names[0].Namespace)
}

// footprint is the memory of a process before it has the objects, and after.
type footprint struct {
	name          string
	empty, loaded process.Memory
	measure       func() (process.Memory, error)
}

// memories are those that are compared, and the size of one object on average, as it is and without what is not replicated.
type memories struct {
	kubeRego, whole, trimmed, copier *footprint
	size, trimmedSize                int
	settled                          time.Duration
}

func measureMemory(b *testing.B, pods *pods) memories {
	m := memories{
		kubeRego: &footprint{name: "kube-rego"},
		whole:    &footprint{name: "OPA, sent them as they are"},
		trimmed:  &footprint{name: "OPA, sent them without managedFields"},
		copier:   &footprint{name: "the program that copies them to OPA"},
	}
	wait := m.startKubeRego(b, pods)
	opaWhole := startOPA(b, "whole", m.whole)
	opaTrimmed := startOPA(b, "trimmed", m.trimmed)
	startCopier(b, opaWhole, m.copier)
	m.send(b, opaTrimmed)
	last := pods.names[len(pods.names)-1]
	eventually(b, "OPA has the last of the pods", func(ctx context.Context) error {
		answer, err := ask(ctx, http.MethodGet, opaWhole+"/v1/data/kubernetes/pods/"+last.String()+"/metadata/uid", nil)
		if err == nil && !bytes.Contains(answer, []byte("result")) {
			err = fmt.Errorf("it says %s", answer)
		}
		return err
	})
	wait()
	m.settled = settle(b, m.kubeRego, m.whole, m.trimmed, m.copier)
	return m
}

func (m *memories) startKubeRego(b *testing.B, pods *pods) (wait func()) {
	installation, first := install(b)
	create(b, policy(opa, "main", "main", entrypoint))
	create(b, policy(opa, "rules", "main", readsPod(pods)))
	annotation(b, opa, "rules", is(statusOK))
	m.kubeRego.measure = first.Memory
	m.kubeRego.empty = measured(b, m.kubeRego)
	if err := first.Stop(); err != nil {
		b.Fatal(err)
	}
	instance := launchReplicating(b, installation)
	m.kubeRego.measure = instance.Memory
	return func() { eventually(b, "ready", instance.Ready) }
}

// launchReplicating starts another instance, one that replicates Pods.
func launchReplicating(b *testing.B, installation *kuberego.Installation) *kuberego.Instance {
	b.Helper()
	instance, err := installation.Launch(b.Context(), "--replicate=v1/pods")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = instance.Stop() })
	return instance
}

func measured(b *testing.B, f *footprint) process.Memory {
	b.Helper()
	memory, err := f.measure()
	if err != nil {
		b.Fatal(err)
	}
	return memory
}

// startOPA runs OPA's own server, as in a pod with kube-mgmt.
func startOPA(b *testing.B, name string, f *footprint) (url string) {
	b.Helper()
	p, url := runOPA(b, name, "--log-level=error")
	f.measure = p.Memory
	f.empty = measured(b, f)
	return url
}

// startCopier runs the program that does what kube-mgmt does.
func startCopier(b *testing.B, opa string, f *footprint) {
	b.Helper()
	path := filepath.Join(b.TempDir(), "copier")
	_, err := gotool.Output(b.Context(), "", []string{"CGO_ENABLED=0"}, "build", "-trimpath", "-o", path, "./cmd/copier")
	if err != nil {
		b.Fatal(err)
	}
	p, err := process.Start(process.Config{
		Dir: b.TempDir(), Name: "copier", Path: path, Args: []string{"--kubeconfig=" + cluster.Kubeconfig(), "--opa=" + opa},
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = p.Stop() })
	f.measure = p.Memory
	f.empty = measured(b, f)
}

// send puts the pods into OPA all at once, without what is not replicated.
func (m *memories) send(b *testing.B, url string) {
	b.Helper()
	client, err := dynamic.NewForConfig(cluster.RESTConfig())
	if err != nil {
		b.Fatal(err)
	}
	list, err := client.Resource(corev1.SchemeGroupVersion.WithResource("pods")).List(b.Context(), metav1.ListOptions{})
	if err != nil {
		b.Fatal(err)
	}
	m.size = averageSize(b, list.Items)
	tree := make(map[string]map[string]any)
	for _, pod := range list.Items {
		pod.SetManagedFields(nil)
		if tree[pod.GetNamespace()] == nil {
			tree[pod.GetNamespace()] = make(map[string]any)
		}
		tree[pod.GetNamespace()][pod.GetName()] = pod.Object
	}
	m.trimmedSize = averageSize(b, list.Items)
	body, err := json.Marshal(tree)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := ask(b.Context(), http.MethodPut, url+"/v1/data/kubernetes/pods", body); err != nil {
		b.Fatal(err)
	}
}

// averageSize is how many bytes an object has in JSON.
func averageSize(b *testing.B, objects []unstructured.Unstructured) int {
	b.Helper()
	sum := 0
	for _, object := range objects {
		text, err := json.Marshal(object.Object)
		if err != nil {
			b.Fatal(err)
		}
		sum += len(text)
	}
	return sum / len(objects)
}

// ask sends a request without a proxy.
func ask(ctx context.Context, method, url string, body []byte) (answer []byte, err error) {
	request, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultTransport.RoundTrip(request) // no proxy is asked for loopback
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	answer, err = io.ReadAll(response.Body)
	if response.StatusCode >= http.StatusBadRequest {
		err = errors.Join(err, fmt.Errorf("%s: %s", response.Status, answer))
	}
	return answer, err
}

// settle waits until the garbage of loading is gone, and tells how long that took.
func settle(b *testing.B, all ...*footprint) time.Duration {
	b.Helper()
	start := time.Now()
	for {
		time.Sleep(settleEvery)
		settled := true
		for _, f := range all {
			before := f.loaded.Resident
			f.loaded = measured(b, f)
			change := math.Abs(float64(f.loaded.Resident - before))
			settled = settled && change < float64(before)/100
		}
		if took := time.Since(start); took >= settleLimit || settled && took >= settleFor {
			return took
		}
	}
}

func printMemory(m memories) {
	fmt.Printf("\nMemory with %d Pods of %.1f kB (%.1f kB without managedFields), %.0f s after the last was loaded:\n",
		podCount, kilobytes(m.size), kilobytes(m.trimmedSize), m.settled.Seconds())
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "process\tresident\twithout Pods\tat most\tof kube-rego's\tgoal\t")
	together := &footprint{name: "OPA, as they are, and that program"}
	for _, f := range []*footprint{m.whole, m.copier} {
		together.empty.Resident += f.empty.Resident
		together.loaded.Resident += f.loaded.Resident
		together.loaded.Peak += f.loaded.Peak
	}
	for _, row := range []struct {
		*footprint
		goal float64
	}{{m.kubeRego, 0}, {m.whole, aloneGoal}, {m.trimmed, aloneGoal}, {m.copier, 0}, {together, togetherGoal}} {
		goal := "-"
		if row.goal > 0 {
			goal = fmt.Sprintf("%.1f times", 1/row.goal)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%.2f times\t%s\t\n", row.name, inMegabytes(row.loaded.Resident), inMegabytes(row.empty.Resident),
			inMegabytes(row.loaded.Peak), float64(row.loaded.Resident)/float64(m.kubeRego.loaded.Resident), goal)
	}
	_ = w.Flush()
}

func kilobytes(n int) float64        { return float64(n) / 1e3 }
func inMegabytes(bytes int64) string { return fmt.Sprintf("%.0f MB", float64(bytes)/1e6) }

// measureReplicated tells the time from the start of the process until it decides with all Pods.
func measureReplicated(b *testing.B, pods *pods) {
	installation, first := install(b)
	create(b, policy(opa, "main", "main", entrypoint))
	create(b, policy(opa, "rules", "main", readsPod(pods)))
	annotation(b, opa, "rules", is(statusOK))
	if err := first.Stop(); err != nil {
		b.Fatal(err)
	}
	var all []time.Duration
	for range 5 {
		start := time.Now()
		instance := launchReplicating(b, installation)
		eventually(b, "ready", instance.Ready)
		all = append(all, time.Since(start))
		if err := instance.Stop(); err != nil {
			b.Fatal(err)
		}
	}
	times := sorted(all)
	b.ReportMetric(times.quantile(0.5).Seconds(), "s-to-ready")
	fmt.Printf("\nFrom the start of the process to ready with %d Pods: %.2f s (of %d starts the fastest %.2f s, the slowest %.2f s)\n",
		len(pods.names), times.quantile(0.5).Seconds(), len(times), times[0].Seconds(), times.quantile(1).Seconds())
}

// churn is what decisions of one policy take.
type churn struct {
	name string
	// usual are decisions while nothing changes, others those while objects change that are not replicated, during those
	// while objects change that are.
	usual, others, during durations
}

// bystanders is a namespace whose Pods are not replicated.
const bystanders = "bystanders"

func measureChurn(b *testing.B, pods *pods) []churn {
	others := createBystanders(b)
	_, instance := install(b, "--replicate=v1/pods", "--replicate-ignore-namespaces="+bystanders)
	create(b, policy(opa, "main", "main", entrypoint))
	client := lastingClient(injectedCA(b))
	defer client.CloseIdleConnections()
	var rows []churn
	for _, c := range []struct{ name, source string }{
		{"one Pod by its name", readsPod(pods)},
		{fmt.Sprintf("all %d Pods of a namespace", podCount/podNamespaces), readsNamespace(pods)},
	} {
		create(b, policy(opa, "rules", "main", c.source))
		annotation(b, opa, "rules", is(statusOK))
		row := churn{name: c.name}
		row.usual = measureDecisions(b, client, instance, func() { time.Sleep(churnFor) })
		row.others = measureDecisions(b, client, instance, func() { touchAll(b, others) })
		row.during = measureDecisions(b, client, instance, func() { touchAll(b, pods) })
		rows = append(rows, row)
		if err := cluster.Client().CoreV1().ConfigMaps(opa).Delete(b.Context(), "rules", metav1.DeleteOptions{}); err != nil {
			b.Fatal(err)
		}
	}
	return rows
}

// createBystanders makes the Pods of one more Deployment.
func createBystanders(b *testing.B) *pods {
	b.Helper()
	p := &pods{namespaces: []string{bystanders}}
	createPodNamespace(b, bystanders)
	b.Cleanup(p.remove)
	p.createDeploymentOf(b, bystanders, "bystander", podCount/podsPerDeployment, func(pod *corev1.Pod) {
		if err := createPod(b.Context(), pod); err != nil {
			b.Fatal(err)
		}
	})
	return p
}

// touchAll changes pods, one after another at random, at a steady rate however long that takes.
func touchAll(b *testing.B, pods *pods) {
	var writers sync.WaitGroup
	defer writers.Wait()
	for next, end := time.Now(), time.Now().Add(churnFor); next.Before(end); next = next.Add(churnEvery) {
		time.Sleep(time.Until(next))
		name := pods.names[rand.IntN(len(pods.names))]
		writers.Go(func() {
			if err := touch(b.Context(), name); err != nil {
				b.Error(err)
			}
		})
	}
}

func printChurn(rows []churn) {
	fmt.Printf("\nDecisions with %d Pods in data, 200 a second, while nothing changes, while 100 Pods a second change that are not\n"+
		"replicated, and while 100 a second change that are:\n", podCount)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "the policy reads\t\tdecisions\tp50\tp99\tmax\tratio of p99\t")
	for _, row := range rows {
		for _, d := range []struct {
			name string
			durations
		}{{"usual", row.usual}, {"while others change", row.others}, {"while they change", row.during}} {
			fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\t%.2f\t\n", row.name, d.name, len(d.durations),
				inMilliseconds(d.quantile(0.5)), inMilliseconds(d.quantile(0.99)), inMilliseconds(d.quantile(1)),
				float64(d.quantile(0.99))/float64(row.usual.quantile(0.99)))
		}
	}
	_ = w.Flush()
	fmt.Printf("goal: no ratio above %.1f\n\n", churnGoal)
}
