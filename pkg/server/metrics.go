package server

import (
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/kube-rego/kube-rego/pkg/admission"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// Metrics are what Prometheus reads of the process.
type Metrics struct {
	registry   *prometheus.Registry
	reviews    *prometheus.HistogramVec
	fallbacks  *prometheus.CounterVec
	timeouts   *prometheus.CounterVec
	ranOut     labelValues
	requests   *prometheus.HistogramVec
	dropped    prometheus.Counter
	modules    *prometheus.GaugeVec
	held       *prometheus.GaugeVec
	set        setCollector
	compiled   prometheus.Histogram
	propagated prometheus.Histogram
}

// durations are the buckets of how long a request took: from a small set in
// process (0.1 ms) to the longest a webhook may take.
var durations = []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 5, 30}

// compilations are the buckets of how long it takes to compile: from a few modules
// (1 ms) to thousands that contradict each other (minutes).
var compilations = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}

// NewMetrics makes the metrics in a registry of their own.
func NewMetrics() *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		reviews: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "kube_rego_admission_request_duration_seconds",
			Help:    "Time to answer a review, by its operation (other, unless it is an AdmissionReview), by what the policies came to (allowed, denied, invalid, undefined, error or timeout) and by the entrypoint.",
			Buckets: durations,
		}, []string{"operation", "decision", "entrypoint"}),
		fallbacks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kube_rego_admission_fallbacks_total",
			Help: "Reviews that no policy decided, by the cause (undefined, error or timeout) and by what was done instead (fail, deny or allow).",
		}, []string{"cause", "action"}),
		timeouts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kube_rego_policy_timeouts_total",
			Help: "Evaluations that ran out of time, by the module that was being evaluated; other stands for all beyond the first hundred.",
		}, []string{"module"}),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "kube_rego_api_request_duration_seconds",
			Help:    "Time to answer a request to OPA's REST API, by its handler, method and HTTP status.",
			Buckets: durations,
		}, []string{"handler", "method", "code"}),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kube_rego_decision_logs_dropped_total",
			Help: "Decisions that are missing in the decision log: they came faster than they could be logged.",
		}),
		modules: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "kube_rego_modules",
			Help: "Policy modules by state (in_force or held) and by the version that is in force (current, previous or none).",
		}, []string{"state", "in_force"}),
		held: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "kube_rego_held_changes",
			Help: "Changes of modules that are held, by change: add (nothing of the module is in force), edit or delete.",
		}, []string{"change"}),
		compiled: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "kube_rego_compile_duration_seconds",
			Help:    "Time to compile a policy set, with the attempts that it takes to find out what must be held.",
			Buckets: compilations,
		}),
		propagated: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "kube_rego_propagation_duration_seconds",
			Help:    "Time from the arrival of a change at this process (the event of a watch, or a bundle) until the policy set with it is in force here; the first set is not counted.",
			Buckets: compilations,
		}),
	}
	for _, cause := range []string{outcomeUndefined, outcomeError, outcomeTimeout} {
		for _, action := range []admission.Action{admission.Fail, admission.Deny, admission.Allow} {
			m.fallbacks.WithLabelValues(cause, string(action)) // a series that begins with 1 has no rate
		}
	}
	m.registry.MustRegister(m.held, &m.set, m.compiled, m.propagated, m.reviews, m.fallbacks, m.timeouts, m.requests, m.dropped, m.modules,
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// replicaCollector counts the replicas when it is asked: one that is gone changes
// its state by doing nothing.
type replicaCollector struct{ replicas func() []Replica }

var replicasDesc = prometheus.NewDesc("kube_rego_replicas",
	"Replicas by state: in_step, lagging (another policy set is in force there than at the writer) or gone (not heard of for longer than promised).",
	[]string{"state"}, nil)

// Describe names the one metric.
func (replicaCollector) Describe(descriptions chan<- *prometheus.Desc) { descriptions <- replicasDesc }

// Collect counts.
func (c replicaCollector) Collect(metrics chan<- prometheus.Metric) {
	count := map[string]int{policy.ReplicaInStep: 0, policy.ReplicaLagging: 0, policy.ReplicaGone: 0}
	for _, r := range c.replicas() {
		count[r.State]++
	}
	for state, n := range count {
		metrics <- prometheus.MustNewConstMetric(replicasDesc, prometheus.GaugeValue, float64(n), state)
	}
}

// resourceCollector counts replicated objects when it is asked.
type resourceCollector struct{ resources func() []policy.Resource }

var (
	objectsDesc = prometheus.NewDesc("kube_rego_replicated_objects",
		"Objects of the cluster in data, by resource and by path.", []string{"resource", "path"}, nil)
	resourcesDesc = prometheus.NewDesc("kube_rego_replicated_resources",
		"Replicated resources by state: loading (the first list is on its way), loaded, missing (the API server knows none of the name) or failed.",
		[]string{"state"}, nil)
)

// Describe names both metrics.
func (resourceCollector) Describe(descriptions chan<- *prometheus.Desc) {
	descriptions <- objectsDesc
	descriptions <- resourcesDesc
}

// Collect counts. Resources are as many as flags name and policies read.
func (c resourceCollector) Collect(metrics chan<- prometheus.Metric) {
	count := map[policy.ResourceState]int{
		policy.ResourceLoading: 0, policy.ResourceLoaded: 0, policy.ResourceMissing: 0, policy.ResourceFailed: 0,
	}
	for _, r := range c.resources() {
		count[r.State]++
		if r.State == policy.ResourceLoaded {
			metrics <- prometheus.MustNewConstMetric(objectsDesc, prometheus.GaugeValue, float64(r.Objects), r.Resource, r.Path)
		}
	}
	for state, n := range count {
		metrics <- prometheus.MustNewConstMetric(resourcesDesc, prometheus.GaugeValue, float64(n), string(state))
	}
}

// setCollector tells of the policy set in force. Its fingerprint is a label, of which
// there is one value at a time.
type setCollector struct {
	mu          sync.Mutex
	fingerprint string
	since       time.Time
	generation  int
}

func (c *setCollector) activated(fingerprint string, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fingerprint, c.since = fingerprint, at
	c.generation++
}

// Since is when the policy set in force went into force here; zero before there is one.
func (m *Metrics) Since() time.Time {
	m.set.mu.Lock()
	defer m.set.mu.Unlock()
	return m.set.since
}

var (
	setInfoDesc = prometheus.NewDesc("kube_rego_policy_set_info",
		"Always 1, and has the fingerprint of the policy set in force.", []string{"fingerprint"}, nil)
	setSinceDesc = prometheus.NewDesc("kube_rego_policy_set_activated_timestamp_seconds",
		"When the policy set in force went into force here: time() less this is its age.", nil, nil)
	setGenerationDesc = prometheus.NewDesc("kube_rego_policy_set_generation",
		"How many policy sets have gone into force since this process started.", nil, nil)
)

// Describe names the metrics.
func (*setCollector) Describe(descriptions chan<- *prometheus.Desc) {
	descriptions <- setInfoDesc
	descriptions <- setSinceDesc
	descriptions <- setGenerationDesc
}

// Collect tells nothing of a set before there is one.
func (c *setCollector) Collect(metrics chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	metrics <- prometheus.MustNewConstMetric(setGenerationDesc, prometheus.GaugeValue, float64(c.generation))
	if c.generation == 0 {
		return
	}
	metrics <- prometheus.MustNewConstMetric(setInfoDesc, prometheus.GaugeValue, 1, c.fingerprint)
	metrics <- prometheus.MustNewConstMetric(setSinceDesc, prometheus.GaugeValue, float64(c.since.UnixMilli())/1000)
}

// Handler serves the metrics in Prometheus' format.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// Reported counts the modules of a report by their state.
func (m *Metrics) Reported(report policy.Report) {
	count := map[[2]string]int{
		{policy.StateInForce, string(policy.Current)}: 0,
		{policy.StateHeld, string(policy.Previous)}:   0,
		{policy.StateHeld, string(policy.None)}:       0,
	}
	for _, s := range report.Modules {
		count[[2]string{s.State(), string(s.InForce)}]++
	}
	held := map[string]int{"add": 0, "edit": 0, "delete": 0}
	for _, s := range report.Held() {
		held[change(s)]++
	}
	for kind, n := range held {
		m.held.WithLabelValues(kind).Set(float64(n))
	}
	for labels, n := range count {
		m.modules.WithLabelValues(labels[:]...).Set(float64(n))
	}
}

// change is what the author of a held module wants of it.
func change(s policy.Status) string {
	switch {
	case s.Deleted:
		return "delete"
	case s.InForce == policy.None:
		return "add"
	}
	return "edit"
}

// Compiled measures how long it took to compile a set.
func (m *Metrics) Compiled(took time.Duration) { m.compiled.Observe(took.Seconds()) }

// Activated notes which set is in force from now on, and since when it was known that
// something had changed; zero for the first set.
func (m *Metrics) Activated(fingerprint string, noticed time.Time) {
	m.set.activated(fingerprint, time.Now())
	if !noticed.IsZero() {
		m.propagated.Observe(time.Since(noticed).Seconds())
	}
}

// DecisionLogDropped counts a decision that was not logged.
func (m *Metrics) DecisionLogDropped() { m.dropped.Inc() }

// Registry is for those who have metrics of their own to add.
func (m *Metrics) Registry() prometheus.Registerer { return m.registry }

// API is the metrics in the way that OPA's server asks for them.
func (m *Metrics) API() *APIMetrics { return &APIMetrics{requests: m.requests} }

// APIMetrics measures the handlers of OPA's REST API.
type APIMetrics struct{ requests *prometheus.HistogramVec }

// RegisterEndpoints adds none: the diagnostic listener serves all metrics.
func (*APIMetrics) RegisterEndpoints(func(path, method string, handler http.Handler)) {}

// InstrumentHandler measures the requests to a handler, under its label.
func (a *APIMetrics) InstrumentHandler(handler http.Handler, label string) http.Handler {
	return promhttp.InstrumentHandlerDuration(a.requests.MustCurryWith(prometheus.Labels{"handler": label}), handler)
}

// reviewed counts a review by what the policies came to, whatever was then made of
// that.
func (m *Metrics) reviewed(operation, decision, entrypoint string, took time.Duration) {
	m.reviews.WithLabelValues(operationLabel(operation), decision, entrypoint).Observe(took.Seconds())
}

// other stands for every value of a label that would be one too many.
const other = "other"

// operationLabel bounds the operations: the text of a request must not be able to make
// a series.
func operationLabel(operation string) string {
	switch operation {
	case "":
		return "none"
	case "CREATE", "UPDATE", "DELETE", "CONNECT":
		return operation
	}
	return other
}

// fellBack counts a review that no policy decided.
func (m *Metrics) fellBack(cause, action string) { m.fallbacks.WithLabelValues(cause, action).Inc() }

// RanOut counts an evaluation that was ended in this module.
func (m *Metrics) RanOut(module string) { m.timeouts.WithLabelValues(m.ranOut.bounded(module)).Inc() }

// maxNames is how many modules have a series of their own.
const maxNames = 100

// labelValues are the values that a label has had.
type labelValues struct {
	mu   sync.Mutex
	seen map[string]bool
}

// bounded is the name, or other if there are too many.
func (n *labelValues) bounded(name string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.seen[name] {
		return name
	}
	if len(n.seen) >= maxNames {
		return other
	}
	if n.seen == nil {
		n.seen = make(map[string]bool)
	}
	n.seen[name] = true
	return name
}
