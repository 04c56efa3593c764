// Package kuberego builds kube-rego and installs it on a control plane of package controlplane, from the project's
// own manifests. As there is no kubelet, a process on this machine stands for the pod: with the arguments and
// environment of the Deployment, and as the service account, with a token of its own.
package kuberego

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-rego/kube-rego/e2e/controlplane"
	"github.com/kube-rego/kube-rego/e2e/internal/loopback"
	"github.com/kube-rego/kube-rego/e2e/internal/process"
)

const (
	// name is what the manifests call the Deployment and its container, the Service, the service account and the webhook
	// configuration; the program has it too.
	name = "kube-rego"
	// namespace is where the manifests put it.
	namespace = "opa"
	// attempts is how often a start is tried when another process takes a port between our choice and its use.
	attempts = 3
)

// Config says what to install, and where.
type Config struct {
	// Cluster is the control plane to install on.
	Cluster *controlplane.ControlPlane
	// Root is the folder of the project, whose manifests are applied.
	Root string
	// Binary is the program, from BuildBinary.
	Binary string
	// Dir is the folder for the kustomize overlay, the kubeconfig and the logs; it is made when missing.
	Dir string
	// Args are further arguments of every instance. They come last, so they win over those of the Deployment.
	Args []string
	// Port is where the API server asks, if something else than Start listens there. Zero: it is chosen.
	Port int
}

// Installation is kube-rego on one control plane: what is in the cluster, and the processes that stand for its pods.
type Installation struct {
	cfg Config
	// port is where the API server asks.
	port int
	// started counts the instances, to tell their logs apart.
	started int
}

// Install applies the manifests, starts an instance, and waits until the API server asks it about what is written.
func Install(ctx context.Context, cfg Config) (*Installation, *Instance, error) {
	i, err := Prepare(cfg)
	if err != nil {
		return nil, nil, err
	}
	if err := i.Apply(ctx); err != nil {
		return nil, nil, err
	}
	instance, err := i.Start(ctx)
	if err != nil {
		return nil, nil, err
	}
	if err := instance.WaitAsked(ctx); err != nil {
		return nil, nil, errors.Join(err, instance.Stop())
	}
	return i, instance, nil
}

// Prepare chooses the port of the webhook and writes the overlay. Nothing is in the cluster yet: Apply and Start
// follow.
func Prepare(cfg Config) (*Installation, error) {
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("find the folder of the installation: %w", err)
	}
	cfg.Dir = dir
	i := &Installation{cfg: cfg, port: cfg.Port}
	if cfg.Port != 0 {
		return i, i.writeOverlay()
	}
	return i, i.choosePort()
}

// choosePort chooses where the API server will ask. Apply makes it known.
func (i *Installation) choosePort() error {
	ports, err := loopback.FreePorts(1)
	if err != nil {
		return err
	}
	i.port = ports[0]
	return i.writeOverlay()
}

// Overlay is the folder to give to `kubectl apply -k`.
func (i *Installation) Overlay() string { return filepath.Join(i.cfg.Dir, "overlay") }

// Kubeconfig is the file with which the instances log in, as their service account. Start writes it.
func (i *Installation) Kubeconfig() string { return filepath.Join(i.cfg.Dir, "kubeconfig") }

// overlay is what differs from a cluster with nodes. Package controlplane says how the API server finds its way through
// the Service. Arguments: the path to the manifests, the port.
const overlay = `# The manifests of kube-rego, for a control plane without nodes: a process on this machine is the pod.
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources:
  - %s
patches:
  - patch: |
      apiVersion: v1
      kind: Service
      metadata:
        name: kube-rego
        namespace: opa
      spec:
        type: ExternalName
        externalName: localhost
  - target:
      kind: ValidatingWebhookConfiguration
      name: kube-rego
    patch: |
      - op: replace
        path: /webhooks/0/clientConfig/service/port
        value: %d
  - patch: |
      apiVersion: apps/v1
      kind: Deployment
      metadata:
        name: kube-rego
        namespace: opa
      spec:
        replicas: 0
`

func (i *Installation) writeOverlay() error {
	if err := os.MkdirAll(i.Overlay(), 0o755); err != nil {
		return fmt.Errorf("make the folder of the overlay: %w", err)
	}
	manifests, err := relative(i.Overlay(), filepath.Join(i.cfg.Root, "manifests"))
	if err != nil {
		return fmt.Errorf("find the way from the overlay to the manifests: %w", err)
	}
	file := filepath.Join(i.Overlay(), "kustomization.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, overlay, filepath.ToSlash(manifests), i.port), 0o644); err != nil {
		return fmt.Errorf("write the overlay: %w", err)
	}
	return nil
}

// relative is the path from one folder to another: kustomize takes no absolute ones, and follows symbolic links first.
func relative(from, to string) (string, error) {
	from, err := filepath.EvalSymlinks(from)
	if err != nil {
		return "", err
	}
	to, err = filepath.EvalSymlinks(to)
	if err != nil {
		return "", err
	}
	return filepath.Rel(from, to)
}

// Apply applies the overlay. From then on until an instance is ready and known to the API server, writes outside the
// exempt namespaces are refused.
//
// Two flags keep kubectl from reading the schemas of the whole API first, which takes it 1.5 s of a processor, each time:
// package e2e has a test that applies the manifests with validation.
func (i *Installation) Apply(ctx context.Context) error {
	out, err := i.cfg.Cluster.Kubectl(ctx, "apply", "-k", i.Overlay(), "--validate=false", "--openapi-patch=false").CombinedOutput()
	if err != nil {
		return fmt.Errorf("apply the manifests: %w\n%s", err, bytes.TrimSpace(out))
	}
	return nil
}

// Start starts an instance where the API server asks, and returns when it is ready. Another that was there must be
// stopped.
func (i *Installation) Start(ctx context.Context) (*Instance, error) {
	for attempt := 1; ; attempt++ {
		instance, err := i.start(ctx, i.port)
		if !errors.Is(err, process.ErrPortTaken) || attempt == attempts {
			return instance, err
		}
		if err := errors.Join(i.choosePort(), i.Apply(ctx)); err != nil {
			return nil, err
		}
	}
}

// StartReplica starts a further instance and returns when it is ready. It watches and works as the others do, but the
// Service here leads to one port only, so the API server does not ask it.
func (i *Installation) StartReplica(ctx context.Context) (*Instance, error) {
	for attempt := 1; ; attempt++ {
		ports, err := loopback.FreePorts(1)
		if err != nil {
			return nil, err
		}
		instance, err := i.start(ctx, ports[0])
		if !errors.Is(err, process.ErrPortTaken) || attempt == attempts {
			return instance, err
		}
	}
}

// Launch starts a further instance like StartReplica, but does not wait until it is ready: for looking at what comes
// before. It has these arguments beside those of all.
func (i *Installation) Launch(ctx context.Context, args ...string) (*Instance, error) {
	ports, err := loopback.FreePorts(1)
	if err != nil {
		return nil, err
	}
	return i.launch(ctx, ports[0], args...)
}

func (i *Installation) start(ctx context.Context, port int) (*Instance, error) {
	instance, err := i.launch(ctx, port)
	if err != nil {
		return nil, err
	}
	if err := instance.WaitReady(ctx); err != nil {
		return nil, errors.Join(err, instance.Stop())
	}
	return instance, nil
}

func (i *Installation) launch(ctx context.Context, port int, args ...string) (*Instance, error) {
	container, err := i.container(ctx)
	if err != nil {
		return nil, err
	}
	if err := i.cfg.Cluster.ServiceAccountKubeconfig(ctx, namespace, name, i.Kubeconfig()); err != nil {
		return nil, err
	}
	i.started++
	instance := &Instance{cluster: i.cfg.Cluster}
	if err := instance.chooseAddresses(); err != nil {
		return nil, err
	}
	instance.address = loopback.Address(port)
	instance.args = slices.Concat(container.Args, []string{"--kubeconfig=" + i.Kubeconfig()}, instance.addressArgs(), i.cfg.Args, args)
	instance.process, err = process.Start(process.Config{
		Dir:  i.cfg.Dir,
		Name: fmt.Sprintf("%s-%d", name, i.started),
		Path: i.cfg.Binary,
		Args: instance.args,
		Env:  environment(container),
	})
	return instance, err
}

// container is what the Deployment in the cluster says about the program.
func (i *Installation) container(ctx context.Context) (corev1.Container, error) {
	deployment, err := i.cfg.Cluster.Client().AppsV1().Deployments(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return corev1.Container{}, fmt.Errorf("read the Deployment: %w", err)
	}
	for _, container := range deployment.Spec.Template.Spec.Containers {
		if container.Name == name {
			return container, nil
		}
	}
	return corev1.Container{}, fmt.Errorf("read the Deployment: it has no container %q", name)
}

// environment is that of the container and nothing else: with the environment of whoever runs the tests, kube-rego
// could get at the admin's kubeconfig or a proxy. It is never nil, which would mean just that environment.
func environment(container corev1.Container) []string {
	env := []string{}
	for _, variable := range container.Env {
		env = append(env, variable.Name+"="+variable.Value)
	}
	return env
}
