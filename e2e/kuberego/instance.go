package kuberego

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/kube-rego/kube-rego/e2e/controlplane"
	"github.com/kube-rego/kube-rego/e2e/internal/process"
)

const (
	// pollEvery is how often a condition is looked at. Everything asked is on this machine.
	pollEvery = 50 * time.Millisecond
	// askedLimit bounds the wait until the API server asks. It takes about a second.
	askedLimit = time.Minute
	// answerLimit is how long kube-rego may take to answer about itself; it takes milliseconds.
	answerLimit = 10 * time.Second
	// reviews counts the admission reviews that were answered, by decision and other labels.
	reviews = "kube_rego_admission_request_duration_seconds_count"
)

// client talks to kube-rego without a proxy, whatever the environment says.
var client = &http.Client{Transport: &http.Transport{}, Timeout: answerLimit}

// Instance is one process of kube-rego.
type Instance struct {
	cluster    *controlplane.ControlPlane
	process    *process.Process
	args       []string
	address    string // of the webhook
	diagnostic string // of /status and its kin
	api        string // of OPA's REST API
}

// Status is what kube-rego says at /status.
type Status struct {
	// Ready says whether a whole policy set is in force; Reason why not.
	Ready  bool   `json:"ready"`
	Reason string `json:"reason"`
	// Fingerprint is that of the modules in force.
	Fingerprint string `json:"fingerprint"`
	// SourceError is why the policies could not be read; empty if they were.
	SourceError string `json:"sourceError"`
	// Replicas are all that it knows of, itself included.
	Replicas []Replica `json:"replicas"`
	// Replication are the resources whose objects are in data, or should be.
	Replication []Resource `json:"replication"`
	// Bundles are those that OPA's configuration names, Plugins the parts of OPA that it starts.
	Bundles []Bundle `json:"bundles"`
	Plugins []Plugin `json:"plugins"`
	Modules []Module `json:"modules"`
}

// Bundle is one of OPA's bundles.
type Bundle struct {
	Name string `json:"name"`
	// Revision and Roots are those of the one in force.
	Revision string   `json:"revision"`
	Roots    []string `json:"roots"`
	// State is active, failed, loading or kept; Error says why the newest is not in force, or why it is kept.
	State string `json:"state"`
	Error string `json:"error"`
	// LastSuccess is when the one in force was activated.
	LastSuccess string `json:"lastSuccess"`
}

// Plugin is a part of OPA that its configuration starts.
type Plugin struct {
	Name    string `json:"name"`
	State   string `json:"state"`
	Message string `json:"message"`
}

// Resource is a resource of the cluster whose objects policies read.
type Resource struct {
	// Resource is [group/]version/resource; empty if it is not known.
	Resource string `json:"resource"`
	// Path is where its objects are, such as data.kubernetes.pods.
	Path string `json:"path"`
	// State is loading, loaded, missing or failed; Reason why it is not loaded.
	State  string `json:"state"`
	Reason string `json:"reason"`
	// Objects is how many there are in data.
	Objects int `json:"objects"`
}

// Replica is what an instance knows of one of several, which may be itself.
type Replica struct {
	// Identity is the host and a random part, as several may run on one host.
	Identity string `json:"identity"`
	// State is in_step, lagging or gone, measured by what the writer has in force.
	State string `json:"state"`
	// Fingerprint is that of the modules it has in force.
	Fingerprint string `json:"fingerprint"`
	// Writer says that it is the one that writes statuses.
	Writer bool `json:"writer"`
}

// Module is what became of one key of one ConfigMap.
type Module struct {
	// ID is namespace/name/key.
	ID string `json:"module"`
	// Kind is data, or empty for policy.
	Kind string `json:"kind"`
	// State is in_force or held; InForce is the version decisions are made with: current, previous or none.
	State       string `json:"state"`
	InForce     string `json:"inForce"`
	RegoVersion string `json:"regoVersion"`
	// Deleted says that the module is gone from the cluster and still in force.
	Deleted  bool      `json:"deleted"`
	Problems []Problem `json:"problems"`
	// Warnings are what its author should know of what is in force as wanted.
	Warnings []Problem `json:"warnings"`
}

// Problem is one reason why a change is held, or a warning.
type Problem struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Row     int    `json:"row"`
	Col     int    `json:"col"`
}

// Args are the arguments it was started with, `serve` first.
func (i *Instance) Args() []string { return slices.Clone(i.args) }

// URL is the address of the webhook. Its certificate is for the Service; the CA is in the webhook configuration.
func (i *Instance) URL() string { return "https://" + i.address + "/" }

// APIURL is the address of OPA's REST API over plain HTTP, without a slash at the end.
func (i *Instance) APIURL() string { return "http://" + i.api }

// DiagnosticURL is the address of /healthz, /readyz, /metrics and /status, without a slash at the end.
func (i *Instance) DiagnosticURL() string { return "http://" + i.diagnostic }

// LogPath is the file with what it writes to stderr.
func (i *Instance) LogPath() string { return i.process.LogPath() }

// Running says whether the process has not ended yet.
func (i *Instance) Running() bool { return i.process.Running() }

// Stop ends the process as a kubelet does: SIGTERM, and SIGKILL when that takes too long.
func (i *Instance) Stop() error { return i.process.Stop() }

// ExitError is nil when the process, which must have been stopped, ended with exit code 0.
func (i *Instance) ExitError() error { return i.process.ExitError() }

// Kill ends the process without a warning.
func (i *Instance) Kill() error { return i.process.Kill() }

// Signal sends a signal to the process.
func (i *Instance) Signal(signal syscall.Signal) error { return i.process.Signal(signal) }

// WaitReady waits until /readyz says so.
func (i *Instance) WaitReady(ctx context.Context) error { return i.process.WaitReady(ctx, i.Ready) }

// Ready is nil when /readyz says so, or why it is not.
func (i *Instance) Ready(ctx context.Context) error {
	_, err := i.get(ctx, "/readyz")
	return err
}

// Status asks /status.
func (i *Instance) Status(ctx context.Context) (Status, error) {
	body, err := i.get(ctx, "/status")
	if err != nil {
		return Status{}, err
	}
	var status Status
	if err := json.Unmarshal(body, &status); err != nil {
		return Status{}, fmt.Errorf("read the status of kube-rego: %w", err)
	}
	return status, nil
}

// Reviews is how many admission reviews it has answered, whatever the answer was.
func (i *Instance) Reviews(ctx context.Context) (int, error) {
	body, err := i.get(ctx, "/metrics")
	if err != nil {
		return 0, err
	}
	return countReviews(string(body))
}

// countReviews sums up the counters in Prometheus' text format, of which there is one for each combination of labels.
func countReviews(metrics string) (int, error) {
	sum := 0
	for line := range strings.Lines(metrics) {
		series, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if metric, _, _ := strings.Cut(series, "{"); metric != reviews {
			continue
		}
		count, err := strconv.Atoi(value)
		if err != nil {
			return 0, fmt.Errorf("read the metric %s: %w", series, err)
		}
		sum += count
	}
	return sum, nil
}

func (i *Instance) get(ctx context.Context, path string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, i.DiagnosticURL()+path, nil)
	if err != nil {
		return nil, fmt.Errorf("ask kube-rego: %w", err)
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask kube-rego: %w", err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, fmt.Errorf("read kube-rego's answer to GET %s: %w", path, err)
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("kube-rego answers GET %s with %s: %s", path, response.Status, strings.TrimSpace(string(body)))
	}
	return body, nil
}

// WaitAsked waits until the API server asks this instance, and trusts its answers.
//
// The CA in the webhook configuration is not enough: the API server reads configurations through an informer of its
// own, so a write right after the CA came in may be refused for a certificate that is not trusted yet, or pass
// unasked. So canaries are written, each a dry run that leaves nothing behind, until one has arrived.
func (i *Instance) WaitAsked(ctx context.Context) error {
	before, err := i.Reviews(ctx)
	if err != nil {
		return err
	}
	var last error
	err = wait.PollUntilContextTimeout(ctx, pollEvery, askedLimit, true, func(ctx context.Context) (bool, error) {
		if last = i.trusted(ctx); last != nil {
			return false, nil
		}
		canary := i.writeCanary(ctx)
		now, err := i.Reviews(ctx)
		last = errors.Join(err, canary)
		return err == nil && now > before, nil
	})
	if err != nil {
		return i.process.Explain(fmt.Errorf("wait until the API server asks kube-rego: %w", errors.Join(err, last)))
	}
	return nil
}

// trusted says whether every webhook of the configuration has a CA.
func (i *Instance) trusted(ctx context.Context) error {
	configuration, err := i.cluster.Client().AdmissionregistrationV1().ValidatingWebhookConfigurations().
		Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("read the webhook configuration: %w", err)
	}
	for _, webhook := range configuration.Webhooks {
		if len(webhook.ClientConfig.CABundle) == 0 {
			return fmt.Errorf("webhook %s has no caBundle", webhook.Name)
		}
	}
	return nil
}

// writeCanary writes something that the webhook is asked about. Whether it is accepted says nothing here: there may
// be no policy yet, or one that refuses it.
func (i *Instance) writeCanary(ctx context.Context) error {
	canary := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "canary-"}}
	_, err := i.cluster.Client().CoreV1().ConfigMaps(metav1.NamespaceDefault).
		Create(ctx, canary, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil {
		return fmt.Errorf("write a canary: %w", err)
	}
	return nil
}
