// Package daemon wires the rooms together and holds the only loop: ConfigMaps
// in, a policy set in force, statuses out.
package daemon

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/kube-rego/kube-rego/pkg/admission"
	"github.com/kube-rego/kube-rego/pkg/engine"
	"github.com/kube-rego/kube-rego/pkg/policy"
	"github.com/kube-rego/kube-rego/pkg/server"
	"github.com/kube-rego/kube-rego/pkg/status"
	"github.com/kube-rego/kube-rego/pkg/watch"
)

const (
	// clientQPS and clientBurst bound our own writes: the statuses of 1,000
	// ConfigMaps take 20 s, and the API server hardly feels them.
	clientQPS   = 50
	clientBurst = 100
)

// Run serves until ctx ends, and then drains. An error says why it could not.
func Run(ctx context.Context, o Options, log *slog.Logger) error {
	if err := o.Validate(); err != nil {
		return err
	}
	d := &daemon{options: o, log: log, metrics: server.NewMetrics(), certificate: newCertificate()}
	if err := d.prepare(ctx); err != nil {
		return err
	}
	defer d.loop.engine.Stop(context.WithoutCancel(ctx))
	return d.run(ctx)
}

type daemon struct {
	options     Options
	log         *slog.Logger
	metrics     *server.Metrics
	loop        *loop
	cluster     *cluster       // nil with --manifests
	writer      *status.Writer // nil where no status is written
	certificate *certificate
}

// cluster is how to reach the API server, and where in it we live.
type cluster struct {
	client    kubernetes.Interface
	namespace string
}

// prepare makes all that can be made before anything runs.
func (d *daemon) prepare(ctx context.Context) error {
	compiler, err := engine.NewCompiler(policy.RegoVersion(d.options.RegoVersion), d.options.Builtins...)
	if err != nil {
		return err
	}
	source, err := d.source()
	if err != nil {
		return err
	}
	opa, err := engine.New(ctx)
	if err != nil {
		return err
	}
	d.loop = &loop{
		source:     source,
		entrypoint: d.options.Entrypoint,
		compiler:   compiler,
		engine:     opa,
		recorder:   d.metrics,
		log:        d.log,
		trigger:    make(chan struct{}, 1),
		snapshot:   compiler.Empty(),
		state:      state{waiting: watch.ErrNotSynced},
	}
	if d.cluster != nil && d.options.StatusAnnotation != "" {
		d.writer = status.NewWriter(status.WriterConfig{
			Client:     d.cluster.client,
			Annotation: d.options.StatusAnnotation,
			Namespace:  d.cluster.namespace,
			Identity:   identity(),
			Log:        d.log,
		})
		d.loop.publisher = d.writer
	}
	return nil
}

// identity tells this process from all others, and a person which pod it is.
func identity() string {
	host, err := os.Hostname()
	if err != nil {
		host = "kube-rego"
	}
	return host + "_" + rand.Text()
}

func (d *daemon) source() (Source, error) {
	o := d.options
	if len(o.Manifests) > 0 {
		return watch.NewFiles(watch.FilesConfig{
			Paths:      o.Manifests,
			Namespaces: o.namespaces(),
			Selector:   o.selector(),
			Log:        d.log,
		})
	}
	var err error
	if d.cluster, err = connect(o.Kubeconfig); err != nil {
		return nil, err
	}
	return watch.NewCluster(watch.ClusterConfig{
		Client:     d.cluster.client,
		Namespaces: o.namespaces(),
		Selector:   o.selector().String(),
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
	client, err := kubernetes.NewForConfig(rest.AddUserAgent(config, "kube-rego"))
	if err != nil {
		return nil, fmt.Errorf("making a client: %w", err)
	}
	return &cluster{client: client, namespace: namespace}, nil
}

// run runs all parts until ctx ends or one of them fails.
func (d *daemon) run(ctx context.Context) error {
	listeners := []*server.Listener{
		{Name: "diagnostic", Address: d.options.DiagnosticAddr, Handler: server.NewDiagnostic(diagnosis{d.loop, d.certificate}, d.metrics)},
		{Name: "webhook", Address: d.options.Addr, Handler: d.webhook(), Certificate: d.certificate.Get},
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
	for _, l := range listeners {
		group.Go(func() error { return l.Serve(ctx) })
	}
	group.Go(func() error { return d.certify(ctx) })
	group.Go(func() error { return d.loop.source.Run(ctx, d.loop.look) })
	group.Go(func() error { return d.loop.run(ctx) })
	group.Go(func() error {
		<-ctx.Done()
		d.log.Info("stopping: requests in flight are answered first")
		return nil
	})
	if d.writer != nil {
		group.Go(func() error { return d.writer.Run(ctx) })
	}
	if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func (d *daemon) webhook() http.Handler {
	reviewer := admission.NewReviewer(d.loop.engine, d.options.Entrypoint)
	return server.NewWebhook(reviewer, d.loop.Ready, d.metrics, d.log)
}

// diagnosis is the state of the whole process: that of the loop, and ready only
// if there is a certificate too.
type diagnosis struct {
	*loop
	certificate *certificate
}

// Ready is nil while new requests are welcome.
func (d diagnosis) Ready() error {
	return cmp.Or(d.loop.Ready(), d.certificate.Ready())
}
