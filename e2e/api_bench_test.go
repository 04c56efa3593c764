package e2e_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	uids "k8s.io/apimachinery/pkg/util/uuid"

	"github.com/kube-rego/kube-rego/e2e/internal/loopback"
	"github.com/kube-rego/kube-rego/e2e/internal/process"
	"github.com/kube-rego/kube-rego/e2e/programs"
)

const (
	// rounds is how often each process has its turn, of turnFor. One after another, in another order in each round, what
	// else the machine does concerns all of them alike.
	rounds, turnFor = 4, 1500 * time.Millisecond
	// manyClients ask at once, more than there are processors.
	manyClients = 8
	// warmUp is how many requests are made before anything is measured.
	warmUp = 200
	// restLook is how long a process must have used next to no processor time until it counts as resting, restLimit how
	// long that may take.
	restLook, restLimit = 100 * time.Millisecond, 20 * time.Second
	// changes are how many policies are changed one after another, and as many while requests come.
	changes = 10
	// changeEvery is how often a policy changes while requests come.
	changeEvery = 800 * time.Millisecond
	// following are the requests after the first one that sees a change.
	following = 100
)

// keepsConnections is a client as an application's, or the API server's: it keeps a connection for each request that may be
// under way, and believes every certificate.
var keepsConnections = &http.Client{Timeout: limit, Transport: &http.Transport{
	TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, MaxIdleConnsPerHost: 4 * manyClients,
}}

// subject is a process that is measured beside others.
type subject struct {
	name    string
	process interface{ CPUTime() (time.Duration, error) }
	url     string
	// bodies are what it is asked, one of them at random.
	bodies []string
	// dropped is how many decision logs it could not send; nil: it does not say.
	dropped func(context.Context) (float64, error)
	// answered is called after each answer, if there is one.
	answered func()
}

// ask makes one request, which must be answered.
func (s subject) ask(ctx context.Context) (string, error) {
	status, text, err := send(ctx, keepsConnections, http.MethodPost, s.url, s.bodies[rand.IntN(len(s.bodies))])
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("%s answers HTTP %d: %s", s.name, status, text)
	}
	if s.answered != nil {
		s.answered()
	}
	return text, err
}

func (s subject) cpuTime(b *testing.B) time.Duration {
	b.Helper()
	used, err := s.process.CPUTime()
	if err != nil {
		b.Fatal(err)
	}
	return used
}

// rest waits until the process has done all that it was asked to, decision logs included.
func (s subject) rest(b *testing.B) {
	b.Helper()
	for end := time.Now().Add(restLimit); time.Now().Before(end); {
		before := s.cpuTime(b)
		time.Sleep(restLook)
		if s.cpuTime(b)-before <= restLook/10 {
			return
		}
	}
}

// outcome is what it takes to ask a subject.
type outcome struct {
	times durations
	// asking is how long requests were made, cpu what the process has used for them and for what came of them.
	asking, cpu time.Duration
}

func (o outcome) rate() float64 { return float64(len(o.times)) / o.asking.Seconds() }

// cost is the processor time of one request.
func (o outcome) cost() time.Duration { return o.cpu / time.Duration(len(o.times)) }

// turn asks a subject for a while.
type turn func(*testing.B, subject) outcome

// sideBySide asks subjects one after another, in rounds.
func sideBySide(b *testing.B, subjects []subject, ask turn) []outcome {
	b.Helper()
	for _, s := range subjects {
		for range warmUp {
			if _, err := s.ask(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
		s.rest(b)
	}
	outcomes := make([]outcome, len(subjects))
	for round := range rounds {
		for n := range subjects {
			n = (n + round) % len(subjects)
			before := subjects[n].cpuTime(b)
			o := ask(b, subjects[n])
			subjects[n].rest(b)
			all := &outcomes[n]
			all.times = append(all.times, o.times...)
			all.asking += o.asking
			all.cpu += subjects[n].cpuTime(b) - before
		}
	}
	for n := range outcomes {
		sorted(outcomes[n].times)
	}
	return outcomes
}

// atFullSpeed lets so many clients ask, each again as soon as it has its answer.
func atFullSpeed(clients int) turn {
	return func(b *testing.B, s subject) outcome {
		times := make([]durations, clients)
		start := time.Now()
		var asking sync.WaitGroup
		for n := range clients {
			asking.Go(func() {
				for begun := time.Now(); begun.Sub(start) < turnFor; begun = time.Now() {
					if _, err := s.ask(b.Context()); err != nil {
						b.Error(err)
						return
					}
					times[n] = append(times[n], time.Since(begun))
				}
			})
		}
		asking.Wait()
		return outcome{times: slices.Concat(times...), asking: time.Since(start)}
	}
}

func named(clients int) string {
	if clients == 1 {
		return "1 client"
	}
	return fmt.Sprintf("%d clients", clients)
}

// atSteadyRate asks every reviewEvery, however long the answers take, while work runs.
func atSteadyRate(work func()) turn {
	return func(b *testing.B, s subject) outcome {
		start, ended := time.Now(), make(chan struct{})
		var mu sync.Mutex
		var times durations
		var asking sync.WaitGroup
		asking.Go(func() {
			for next := start; ; next = next.Add(reviewEvery) {
				select {
				case <-ended:
					return
				case <-time.After(time.Until(next)):
				}
				asking.Go(func() {
					if _, err := s.ask(b.Context()); err != nil {
						b.Error(err)
						return
					}
					took := time.Since(next) // so that a queue of ours counts, too
					mu.Lock()
					defer mu.Unlock()
					times = append(times, took)
				})
			}
		})
		work()
		close(ended)
		asking.Wait()
		return outcome{times: times, asking: time.Since(start)}
	}
}

// printOutcomes compares each with the first.
func printOutcomes(w io.Writer, what string, subjects []subject, outcomes []outcome) {
	first := outcomes[0]
	for n, o := range outcomes {
		fmt.Fprintf(w, "%s\t%s\t%.0f\t%s\t%s\t%s\t%.2f\t%.2f\t%.2f\t%.2f\t\n", what, subjects[n].name,
			o.rate(), inMicroseconds(o.times.quantile(0.5)), inMicroseconds(o.times.quantile(0.99)), inMicroseconds(o.cost()),
			o.rate()/first.rate(), ratio(o.times.quantile(0.5), first.times.quantile(0.5)),
			ratio(o.times.quantile(0.99), first.times.quantile(0.99)), ratio(o.cost(), first.cost()))
	}
}

const outcomeHead = "\tserver\trequests/s\tp50\tp99\tCPU each\tto the first: requests/s\tp50\tp99\tCPU each\t"

func ratio(one, other time.Duration) float64 { return float64(one) / float64(other) }

func inMicroseconds(d time.Duration) string { return fmt.Sprintf("%.0f µs", float64(d)/1e3) }

func newTable() *tabwriter.Writer {
	return tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
}

// kinds are what policies are about, one in eight about Pods.
var kinds = []string{"Pod", "Service", "Deployment", "Ingress", "Job", "CronJob", "StatefulSet", "DaemonSet"}

// aboutImages are policies of one package that look at the images of one kind each. Some refuse some of podReviews.
func aboutImages(n int) []*corev1.ConfigMap {
	var all []*corev1.ConfigMap
	for i := range n {
		all = append(all, policy(opa, fmt.Sprintf("policy-%d", i), "main", fmt.Sprintf(`package kubernetes.admission

deny contains message if {
	input.request.kind.kind == %q
	some container in input.request.object.spec.containers
	endswith(container.image, ":v1.%d.0")
	message := sprintf("%%s: version 1.%d is too old", [container.name])
}
`, kinds[i%len(kinds)], i, i)))
	}
	return all
}

// reviewCount is how many different reviews there are: the same again and again would compress to nothing in logs.
const reviewCount = 200

// podReviews are what an API server asks about Pods of as many Deployments, put between two texts.
func podReviews(b *testing.B, before, after string) []string {
	b.Helper()
	var all []string
	for n := range reviewCount {
		all = append(all, before+inJSON(b, podReview(n))+after)
	}
	return all
}

func podReview(n int) admissionv1.AdmissionReview {
	owner := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{
		Namespace: fmt.Sprintf("team-%02d", n%podNamespaces), Name: fmt.Sprintf("service-%d", n), UID: uids.NewUUID(),
	}}
	pod := newPod(owner, n, 0)
	pod.TypeMeta, pod.Status = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, corev1.PodStatus{}
	sidecar := pod.Spec.Containers[0]
	sidecar.Name, sidecar.Image = "sidecar", "registry.example.com/sidecar:v3.14.0"
	pod.Spec.Containers = append(pod.Spec.Containers, sidecar)
	kind := metav1.GroupVersionKind{Version: "v1", Kind: "Pod"}
	resource := metav1.GroupVersionResource{Version: "v1", Resource: "pods"}
	return admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"},
		Request: &admissionv1.AdmissionRequest{
			UID: uids.NewUUID(), Kind: kind, RequestKind: &kind, Resource: resource, RequestResource: &resource,
			Name: pod.Name, Namespace: pod.Namespace, Operation: admissionv1.Create,
			UserInfo: authenticationv1.UserInfo{
				Username: "system:serviceaccount:kube-system:replicaset-controller", UID: string(uids.NewUUID()),
				Groups: []string{"system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"},
			},
			Object:  runtime.RawExtension{Object: pod},
			Options: runtime.RawExtension{Raw: []byte(`{"kind":"CreateOptions","apiVersion":"meta.k8s.io/v1"}`)},
		},
	}
}

// accessReview is what an API server asks about a user.
const accessReview = `{"apiVersion":"authorization.k8s.io/v1","kind":"SubjectAccessReview","metadata":{"creationTimestamp":null},"spec":{` +
	`"resourceAttributes":{"namespace":"team-01","verb":"list","version":"v1","resource":"pods"},` +
	`"user":"jane","groups":["developers","system:authenticated"]},"status":{"allowed":false}}`

func inJSON(b *testing.B, value any) string {
	b.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		b.Fatal(err)
	}
	return string(text)
}

// runOPA runs OPA's own server until the benchmark ends, as in a pod with kube-mgmt but without its token and TLS.
func runOPA(b *testing.B, name string, args ...string) (p *process.Process, url string) {
	b.Helper()
	path, err := programs.BuildOPA(b.Context(), programs.Config{Progress: os.Stderr})
	if err != nil {
		b.Fatal(err)
	}
	for attempt := 1; ; attempt++ {
		ports, err := loopback.FreePorts(1)
		if err != nil {
			b.Fatal(err)
		}
		p, err := process.Start(process.Config{Dir: b.TempDir(), Name: "opa-" + name, Path: path, Args: slices.Concat(
			[]string{"run", "--server", "--addr=" + loopback.Address(ports[0]), "--skip-version-check"}, args)})
		if err != nil {
			b.Fatal(err)
		}
		url := "http://" + loopback.Address(ports[0])
		err = p.WaitReady(b.Context(), func(ctx context.Context) error {
			_, err := ask(ctx, http.MethodGet, url+"/health", nil)
			return err
		})
		if err == nil {
			b.Cleanup(func() { _ = p.Stop() })
			return p, url
		}
		_ = p.Stop()
		if !errors.Is(err, process.ErrPortTaken) || attempt == startAttempts {
			b.Fatal(err)
		}
	}
}

// asFiles writes the sources of ConfigMaps for OPA, which does not read those.
func asFiles(b *testing.B, policies []*corev1.ConfigMap) (dir string) {
	b.Helper()
	dir = b.TempDir()
	for _, cm := range policies {
		for key, source := range cm.Data {
			if err := os.WriteFile(filepath.Join(dir, cm.Name+"-"+key+".rego"), []byte(source), 0o600); err != nil {
				b.Fatal(err)
			}
		}
	}
	return dir
}

// besides are the servers of the same API over the same policies. The chart of kube-mgmt lets OPA log each request, which
// takes time, so there is one that does not, too.
func besides(b *testing.B, policies []*corev1.ConfigMap, path string, bodies []string) []subject {
	b.Helper()
	kubeRego := serve(b, policies)
	dir := asFiles(b, policies)
	quiet, quietURL := runOPA(b, "quiet", "--log-level=error", dir)
	chart, chartURL := runOPA(b, "chart", "--log-level=info", "--log-format=json", dir)
	subjects := []subject{
		{name: "kube-rego", process: kubeRego, url: kubeRego.APIURL() + path, bodies: bodies},
		{name: "OPA, no log", process: quiet, url: quietURL + path, bodies: bodies},
		{name: "OPA as in the chart", process: chart, url: chartURL + path, bodies: bodies},
	}
	var answers []string
	for _, s := range subjects {
		s.bodies = bodies[:1]
		answer, err := s.ask(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		answers = append(answers, answer)
	}
	if len(slices.Compact(answers)) != 1 {
		b.Fatalf("the answers differ: %s", answers)
	}
	return subjects
}

// BenchmarkAPI measures requests to OPA's REST API of kube-rego and of OPA's own server, side by side.
func BenchmarkAPI(b *testing.B) {
	reviews := podReviews(b, `{"input":`, `}`)
	authorization := []*corev1.ConfigMap{policy(opa, "authorization", "main", readers("jane"))}
	const admission = "/v1/data/kubernetes/admission/deny"
	for _, c := range []struct {
		name     string
		policies []*corev1.ConfigMap
		path     string
		bodies   []string
	}{
		{"modules=1", aboutImages(1), admission, reviews},
		{"modules=64", aboutImages(64), admission, reviews},
		{"modules=1000", aboutImages(1000), admission, reviews},
		{"SubjectAccessReview", authorization, "/v0/data/authorization/review", []string{accessReview}},
	} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				subjects := besides(b, c.policies, c.path, c.bodies)
				w := newTable()
				fmt.Printf("\nPOST %s with %.1f kB, %s:\n", c.path, kilobytes(len(c.bodies[0])), c.name)
				fmt.Fprintln(w, outcomeHead)
				for _, clients := range []int{1, manyClients} {
					outcomes := sideBySide(b, subjects, atFullSpeed(clients))
					printOutcomes(w, named(clients), subjects, outcomes)
				}
				_ = w.Flush()
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// withLogs are instances over the same policies that differ in whether decisions are logged. The first two do not differ:
// their ratio is what the machine makes of equals.
func withLogs(b *testing.B, bodies []string) []subject {
	b.Helper()
	taking, hanging := newCollector(b), newCollector(b)
	taking.answersWith(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
	ended := make(chan struct{})
	hanging.answersWith(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-ended:
		case <-r.Context().Done():
		}
	})
	b.Cleanup(func() { close(ended) })
	policies := append(aboutImages(64), policy(opa, "main", "main", entrypoint))
	var subjects []subject
	for _, c := range []struct {
		name string
		args []string
	}{
		{"no logs", nil},
		{"no logs, again", nil},
		{"a collector takes them", []string{opaConfig(b, taking.config())}},
		{"a collector hangs", []string{opaConfig(b, hanging.config("buffer_size_limit_bytes: 100000"))}},
	} {
		instance := serve(b, policies, c.args...).Instance
		subjects = append(subjects, subject{
			name: c.name, process: instance, url: instance.URL(), bodies: bodies,
			dropped: func(ctx context.Context) (float64, error) {
				return metric(ctx, instance, "kube_rego_decision_logs_dropped_total")
			},
		})
	}
	return subjects
}

// busyBeside lets a goroutine of ours use so much processor time after each answer, as the logging of a decision does. If it
// does not keep up, it leaves some out.
func (s subject) busyBeside(b *testing.B, cost time.Duration) subject {
	block := make([]byte, 1024)
	const samples = 10_000
	start := time.Now()
	for range samples {
		sha256.Sum256(block)
	}
	count := int(cost / (time.Since(start) / samples))
	queue := make(chan struct{}, 1024) // as kube-rego's
	b.Cleanup(func() { close(queue) })
	go func() {
		for range queue {
			for range count {
				sha256.Sum256(block)
			}
		}
	}()
	s.name = fmt.Sprintf("no logs, %s beside", inMicroseconds(cost))
	s.answered = func() {
		select {
		case queue <- struct{}{}:
		default:
		}
	}
	return s
}

// BenchmarkDecisionLogs measures the webhook's decisions while they are logged, beside the same while they are not. To log
// them takes processor time, which may be missing elsewhere: so there is a third kind of them, not logged, while something
// else takes as much. Logs are not to cost more than that.
func BenchmarkDecisionLogs(b *testing.B) {
	reviews := podReviews(b, "", "")
	for _, c := range []struct {
		name string
		ask  turn
	}{
		{"200 a second", atSteadyRate(func() { time.Sleep(turnFor) })},
		{named(1) + " at full speed", atFullSpeed(1)},
		{named(manyClients) + " at full speed", atFullSpeed(manyClients)},
	} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				subjects := withLogs(b, reviews)
				outcomes := sideBySide(b, subjects, c.ask)
				fmt.Printf("\nPOST / to the webhook with %.1f kB, over TLS, 64 modules:\n", kilobytes(len(reviews[0])))
				w := newTable()
				fmt.Fprintln(w, outcomeHead)
				printOutcomes(w, c.name, subjects, outcomes)
				if cost := outcomes[2].cost() - outcomes[0].cost(); cost > 0 {
					beside := []subject{subjects[0], subjects[0].busyBeside(b, cost)}
					printOutcomes(w, c.name, beside, sideBySide(b, beside, c.ask))
				}
				_ = w.Flush()
				printDropped(b, subjects, outcomes)
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

func printDropped(b *testing.B, subjects []subject, outcomes []outcome) {
	b.Helper()
	for n, s := range subjects {
		dropped, err := s.dropped(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		fmt.Printf("%s: of %d decisions %.0f are counted as not logged\n", s.name, len(outcomes[n].times)+warmUp, dropped)
	}
}

// changing is a server whose policies change.
type changing struct {
	subject
	// change makes a policy deny with this message, and returns when it is in force.
	change func(b *testing.B, message string)
}

// late is a policy that denies every Pod with a message.
func late(message string) string {
	return fmt.Sprintf("package kubernetes.admission\n\ndeny contains %q if input.request.kind.kind == \"Pod\"\n", message)
}

// changingServers are kube-rego and OPA over so many modules, and how to change one more.
func changingServers(b *testing.B, modules int) []changing {
	b.Helper()
	policies := aboutImages(modules)
	const path = "/v1/data/kubernetes/admission/deny"
	inputs := podReviews(b, `{"input":`, `}`)

	kubeRego := serve(b, append(slices.Clone(policies), policy(opa, "main", "main", entrypoint)))
	webhook := subject{name: "the webhook", url: kubeRego.URL(), bodies: podReviews(b, "", "")}
	server, url := runOPA(b, "changing", "--log-level=error", asFiles(b, policies))
	return []changing{
		{
			subject{name: "kube-rego", process: kubeRego, url: kubeRego.APIURL() + path, bodies: inputs},
			func(b *testing.B, message string) {
				kubeRego.apply(b, policy(opa, "late", "main", late(message)))
				// Not by the API, whose first answer is what counts.
				eventually(b, "the change is in force", func(ctx context.Context) error {
					answer, err := webhook.ask(ctx)
					if err == nil && !strings.Contains(answer, message) {
						err = fmt.Errorf("the webhook says %s", answer)
					}
					return err
				})
			},
		},
		{
			subject{name: "OPA", process: server, url: url + path, bodies: inputs},
			func(b *testing.B, message string) {
				if _, err := ask(b.Context(), http.MethodPut, url+"/v1/policies/late", []byte(late(message))); err != nil {
					b.Fatal(err)
				}
			},
		},
	}
}

// afterChange is how long requests take after a policy has changed.
type afterChange struct{ first, others durations }

// measureChanges changes a policy again and again, and asks when the change is in force.
func (c changing) measureChanges(b *testing.B) afterChange {
	b.Helper()
	var after afterChange
	for n := range changes {
		message := fmt.Sprintf("change %d of policies", n)
		c.change(b, message)
		c.rest(b)
		for asked := range 1 + following {
			start := time.Now()
			answer, err := c.ask(b.Context())
			took := time.Since(start)
			if err != nil || !strings.Contains(answer, message) {
				b.Fatalf("after %q %s answers %s, %v", message, c.name, answer, err)
			}
			if asked == 0 {
				after.first = append(after.first, took)
			} else {
				after.others = append(after.others, took)
			}
		}
	}
	return afterChange{sorted(after.first), sorted(after.others)}
}

// underLoad changes a policy again and again while requests come, between two times without changes.
func (c changing) underLoad(b *testing.B) (usual, during durations) {
	b.Helper()
	quiet := atSteadyRate(func() { time.Sleep(changes * changeEvery / 4) })
	usual = quiet(b, c.subject).times
	during = atSteadyRate(func() {
		for n, next := 0, time.Now(); n < changes; n++ {
			c.change(b, fmt.Sprintf("change %d under load", n))
			next = next.Add(changeEvery)
			time.Sleep(time.Until(next))
		}
	})(b, c.subject).times
	usual = append(usual, quiet(b, c.subject).times...)
	return sorted(usual), sorted(during)
}

// BenchmarkAPIChange measures how long requests to OPA's REST API take when policies change.
func BenchmarkAPIChange(b *testing.B) {
	for _, modules := range []int{1, 1000} {
		b.Run(fmt.Sprintf("modules=%d", modules), func(b *testing.B) {
			for b.Loop() {
				servers := changingServers(b, modules)
				fmt.Printf("\nPOST to /v1/data with %d modules, after a policy has changed:\n", modules)
				w := newTable()
				fmt.Fprintln(w, "server\tchanges\tfirst request: p50\tmax\tthe next 100: p50\tp99\tfirst to next, p50\t")
				for _, c := range servers {
					after := c.measureChanges(b)
					fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\t%.1f\t\n", c.name, changes,
						inMicroseconds(after.first.quantile(0.5)), inMicroseconds(after.first.quantile(1)),
						inMicroseconds(after.others.quantile(0.5)), inMicroseconds(after.others.quantile(0.99)),
						ratio(after.first.quantile(0.5), after.others.quantile(0.5)))
				}
				_ = w.Flush()
				fmt.Printf("\nThe same, 200 a second, while nothing changes and while a policy changes every %s or as fast as it can:\n", changeEvery)
				w = newTable()
				fmt.Fprintln(w, "server\tusual p50\tp99\tmax\twhile policies change: p50\tp99\tmax\tratio of p50\tp99\t")
				for _, c := range servers {
					usual, during := c.underLoad(b)
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%.2f\t%.2f\t\n", c.name,
						inMilliseconds(usual.quantile(0.5)), inMilliseconds(usual.quantile(0.99)), inMilliseconds(usual.quantile(1)),
						inMilliseconds(during.quantile(0.5)), inMilliseconds(during.quantile(0.99)), inMilliseconds(during.quantile(1)),
						ratio(during.quantile(0.5), usual.quantile(0.5)), ratio(during.quantile(0.99), usual.quantile(0.99)))
				}
				_ = w.Flush()
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}
