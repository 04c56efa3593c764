// Package daemon wires the packages together, from the options of the command line to
// listeners that answer, and runs them until its context ends. The loop is enforce's, and
// the engine holds what is in force; here is only how the parts depend on each other.
package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/discovery"
	typedadmissionregistrationv1 "k8s.io/client-go/kubernetes/typed/admissionregistration/v1"
	typedappsv1 "k8s.io/client-go/kubernetes/typed/apps/v1"
	typedcoordinationv1 "k8s.io/client-go/kubernetes/typed/coordination/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/flowcontrol"

	"github.com/kube-rego/kube-rego/pkg/admission"
	"github.com/kube-rego/kube-rego/pkg/compile"
	"github.com/kube-rego/kube-rego/pkg/enforce"
	"github.com/kube-rego/kube-rego/pkg/engine"
	"github.com/kube-rego/kube-rego/pkg/opa"
	"github.com/kube-rego/kube-rego/pkg/policy"
	"github.com/kube-rego/kube-rego/pkg/replication"
	"github.com/kube-rego/kube-rego/pkg/server"
	"github.com/kube-rego/kube-rego/pkg/status"
	"github.com/kube-rego/kube-rego/pkg/tracing"
	"github.com/kube-rego/kube-rego/pkg/watch"
)

const (
	// clientQPS and clientBurst bound our own writes: a revision and a status for
	// each of 1,000 ConfigMaps take 20 s, and the API server hardly feels them.
	clientQPS   = 100
	clientBurst = 200
	// eventQPS bounds events apart, so that statuses never wait for them.
	eventQPS   = 20
	eventBurst = 40
	// discoveryTimeout bounds a question for the API server's resources, which knows no
	// context: stopping must not wait for it. It takes some 10 ms.
	discoveryTimeout = 10 * time.Second
)

// Run serves until ctx ends, and then drains. An error says why it could not.
func Run(ctx context.Context, o Options, log *slog.Logger) error {
	if err := o.Validate(); err != nil {
		return err
	}
	d := newDaemon(o, log)
	d.traces = tracing.Start(ctx, log)
	defer d.traces.Stop(ctx)
	var err error
	if d.source, err = d.newSource(); err != nil {
		return err
	}
	if err := d.prepare(); err != nil {
		return err
	}
	return d.run(ctx)
}

func newDaemon(o Options, log *slog.Logger) *daemon {
	return &daemon{
		options: o, log: log, inbox: enforce.NewInbox(), engine: engine.New(),
		metrics: server.NewMetrics(), certificate: newCertificate(), refusals: server.NewRefusals(),
	}
}

type daemon struct {
	options     Options
	log         *slog.Logger
	metrics     *server.Metrics
	source      source
	inbox       *enforce.Inbox
	engine      *engine.Engine
	loop        *enforce.Loop
	host        *opa.Host
	cluster     *cluster // nil with --manifests, like the next two
	writer      *status.Writer
	replicas    *status.Replicas
	replicator  *replication.Replicator // nil where nothing is replicated
	certificate *certificate
	runaways    *runaways
	refusals    *server.Refusals
	traces      *tracing.Tracing // nil where nobody asks for them
}

// cluster is how to reach the API server, and where in it we live.
type cluster struct {
	// The clients of these groups share one rate limit.
	core         typedcorev1.CoreV1Interface
	apps         typedappsv1.AppsV1Interface
	coordination typedcoordinationv1.CoordinationV1Interface
	admission    typedadmissionregistrationv1.AdmissionregistrationV1Interface
	events       typedcorev1.CoreV1Interface // at a rate of its own
	metadata     metadata.Interface
	config       *rest.Config
	discovery    discovery.DiscoveryInterface // does not wait for long
	namespace    string
}

// source is where ConfigMaps come from.
type source interface {
	enforce.Source
	// Run watches until ctx ends, and calls look whenever something may have changed.
	Run(ctx context.Context, look func()) error
}

// prepare makes all that can be made before anything runs.
func (d *daemon) prepare() error {
	configuration, err := d.configuration()
	if err != nil {
		return err
	}
	compiler, err := d.newCompiler(configuration)
	if err != nil {
		return err
	}
	d.runaways = &runaways{answers: make(chan admission.Answer, 1), ranOut: d.metrics.RanOut, log: d.log}
	d.host = d.newHost(configuration)
	if d.options.compilerReplicated().Path != nil {
		if d.replicator, err = d.newReplicator(); err != nil {
			return err
		}
	}
	d.loop = enforce.New(d.loopConfig(compiler))
	return nil
}

func (d *daemon) newCompiler(configuration opa.Configuration) (*compile.Compiler, error) {
	return compile.New(compile.Config{
		RegoVersion:      policy.RegoVersion(d.options.RegoVersion),
		Builtins:         d.options.Builtins,
		SystemNamespaces: d.systemNamespaces(),
		Replicated:       d.options.compilerReplicated(),
		MaskSecrets:      configuration.LogsDecisions(),
		Entrypoint:       strings.Trim(d.options.Entrypoint, "/") == DefaultEntrypoint,
	})
}

// loopConfig is what the loop needs. It leaves out what is nil in the daemon: a nil
// pointer in an interface is not nil.
func (d *daemon) loopConfig(compiler *compile.Compiler) enforce.Config {
	config := enforce.Config{
		Inbox:      d.inbox,
		Source:     d.source,
		Kinds:      d.options.kinds(),
		Compiler:   compiler,
		Engine:     d.engine,
		Bundles:    d.host,
		Entrypoint: d.options.Entrypoint,
		Recorder:   d.metrics,
		Log:        d.log,
	}
	if d.cluster != nil {
		config.Identity = identity()
		d.prepareStatus(config.Identity)
		config.Replicas, config.Publisher = d.replicas, d.writer
	}
	if d.replicator != nil {
		config.Replication = d.replicator
	}
	return config
}

// newReplicator makes what puts objects of the cluster into data.
func (d *daemon) newReplicator() (*replication.Replicator, error) {
	resources, path, err := d.options.replicated()
	if err != nil {
		return nil, err
	}
	return replication.New(replication.Config{
		REST:             d.cluster.config,
		Discovery:        d.cluster.discovery,
		Resources:        resources,
		Path:             path,
		IgnoreNamespaces: d.options.ReplicateIgnoreNamespaces,
		Data:             d.engine,
		Log:              d.log,
	})
}

// prepareStatus makes what reports to authors and other replicas what became of the
// policies.
func (d *daemon) prepareStatus(name string) {
	d.replicas = status.NewReplicas(status.ReplicasConfig{
		Leases:    d.cluster.coordination,
		Namespace: d.cluster.namespace,
		Identity:  name,
		Log:       d.log,
	})
	d.writer = status.NewWriter(status.WriterConfig{
		ConfigMaps: d.cluster.core,
		Revisions:  d.cluster.apps,
		Leases:     d.cluster.coordination,
		Metadata:   d.cluster.metadata,
		Events:     d.cluster.events,
		Annotation: d.options.StatusAnnotation,
		Namespaces: d.options.namespaces(),
		Kinds:      d.options.kinds(),
		Namespace:  d.cluster.namespace,
		Identity:   name,
		Replicas:   d.replicas,
		Log:        d.log,
	})
}

// systemNamespaces are those whose modules may declare packages under system: as
// the flag says, or else the first that is watched. Of all namespaces only our
// own is trusted.
func (d *daemon) systemNamespaces() []string {
	switch o := d.options; {
	case len(o.SystemNamespaces) > 0:
		return o.SystemNamespaces
	case o.Namespaces[0] != allNamespaces:
		return o.Namespaces[:1]
	case d.cluster != nil:
		return []string{d.cluster.namespace}
	}
	return []string{DefaultNamespace}
}

// identity tells this process from all others, and a person which pod it is.
func identity() string {
	host, err := os.Hostname()
	if err != nil {
		host = "kube-rego"
	}
	return host + "_" + rand.Text()
}

func (d *daemon) newSource() (source, error) {
	o := d.options
	if len(o.Manifests) > 0 {
		return watch.NewFiles(watch.FilesConfig{
			Paths:      o.Manifests,
			Namespaces: o.namespaces(),
			Selectors:  o.kinds().Selectors(),
			Log:        d.log,
		})
	}
	var err error
	if d.cluster, err = connect(o.Kubeconfig); err != nil {
		return nil, err
	}
	return watch.NewCluster(watch.ClusterConfig{
		ConfigMaps: d.cluster.core,
		Revisions:  d.cluster.apps,
		Namespaces: o.namespaces(),
		Home:       d.cluster.namespace,
		Selectors:  o.kinds().Selectors(),
		Log:        d.log,
	}), nil
}

// connect makes a client of the kubeconfig file, or of the pod's own service
// account. It never falls back on the kubeconfig of whoever started it: that
// may be an administrator's.
func connect(kubeconfig string) (*cluster, error) {
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		&clientcmd.ClientConfigLoadingRules{ExplicitPath: kubeconfig}, nil)
	config, err := loader.ClientConfig()
	if clientcmd.IsEmptyConfig(err) {
		return nil, errors.New("this is not a pod of a cluster: give --kubeconfig, or --manifests to do without one")
	}
	if err != nil {
		return nil, fmt.Errorf("reading the kubeconfig: %w", err)
	}
	namespace, _, err := loader.Namespace()
	if err != nil {
		return nil, fmt.Errorf("finding out our own namespace: %w", err)
	}
	config.QPS, config.Burst = clientQPS, clientBurst
	config.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	rest.AddUserAgent(config, "kube-rego")
	c := &cluster{namespace: namespace, config: config}
	if err := c.makeClients(); err != nil {
		return nil, fmt.Errorf("making a client: %w", err)
	}
	return c, nil
}

// makeClients makes clients of the few groups that are needed: a client of all
// of Kubernetes would be a good part of the program. They share connections.
func (c *cluster) makeClients() error {
	shared, err := rest.HTTPClientFor(c.config)
	if err != nil {
		return err
	}
	limited := rest.CopyConfig(c.config)
	limited.RateLimiter = flowcontrol.NewTokenBucketRateLimiter(clientQPS, clientBurst)
	events := rest.CopyConfig(c.config)
	events.QPS, events.Burst = eventQPS, eventBurst
	brief := rest.CopyConfig(c.config)
	brief.Timeout = discoveryTimeout
	var errs [7]error
	c.core, errs[0] = typedcorev1.NewForConfigAndClient(limited, shared)
	c.apps, errs[1] = typedappsv1.NewForConfigAndClient(limited, shared)
	c.coordination, errs[2] = typedcoordinationv1.NewForConfigAndClient(limited, shared)
	c.admission, errs[3] = typedadmissionregistrationv1.NewForConfigAndClient(limited, shared)
	c.events, errs[4] = typedcorev1.NewForConfigAndClient(events, shared)
	c.metadata, errs[5] = metadata.NewForConfigAndClient(c.config, shared)
	c.discovery, errs[6] = discovery.NewDiscoveryClientForConfig(brief)
	return errors.Join(errs[:]...)
}

// run runs all parts until ctx ends or one of them fails.
func (d *daemon) run(ctx context.Context) error {
	listeners, reloads, err := d.listeners()
	if err != nil {
		return err
	}
	for n, l := range listeners {
		if err := l.Listen(ctx, d.log); err != nil {
			for _, open := range listeners[:n] {
				open.Close()
			}
			return err
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	drained := make(chan struct{})
	group.Go(func() error {
		defer close(drained)
		return serve(ctx, listeners)
	})
	group.Go(func() error { return d.host.Run(ctx, drained) })
	for _, reload := range reloads {
		group.Go(func() error {
			reload(ctx)
			return nil
		})
	}
	group.Go(func() error { return d.certify(ctx) })
	group.Go(func() error {
		d.followRunaways(ctx)
		return nil
	})
	group.Go(func() error { return abandoned(ctx, d.source.Run, d.inbox.Look) })
	group.Go(func() error { return d.loop.Run(ctx) })
	group.Go(func() error {
		<-ctx.Done()
		d.log.Info("stopping: requests in flight are answered first")
		return nil
	})
	if d.cluster != nil {
		group.Go(func() error { return abandoned(ctx, d.writer.Run, d.inbox.Look) })
		group.Go(func() error { return abandoned(ctx, d.replicas.Run, d.inbox.Look) })
	}
	if d.replicator != nil {
		group.Go(func() error { return abandoned(ctx, d.replicator.Run, d.inbox.Look) })
	}
	if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// stopTimeout is how long what watches the API server is waited for at the end. While that
// does not answer, client-go sleeps up to 30 s and more between attempts, whatever the
// context says.
const stopTimeout = 5 * time.Second

// abandoned runs a part until it ends, or for some time after ctx has ended.
func abandoned(ctx context.Context, run func(context.Context, func()) error, look func()) error {
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, look) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-ended:
		return err
	case <-time.After(stopTimeout):
		return nil
	}
}
