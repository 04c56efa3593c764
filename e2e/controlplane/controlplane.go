// Package controlplane runs a real Kubernetes control plane on this machine: etcd, kube-apiserver and
// kube-controller-manager on loopback, with RBAC on and certificates of its own. It needs no container engine, no kubelet
// and no network.
//
// Where a cluster has a kubelet and kube-proxy to run a webhook's pod and route to its Service, here the webhook is a process
// on this machine, and its Service is of type ExternalName with externalName "localhost". For a webhook whose clientConfig
// names that Service, the API server's default resolver (ResolveCluster in k8s.io/apiserver/pkg/util/proxy, chosen by
// buildServiceResolver in k8s.io/kubernetes/cmd/kube-apiserver/app, as --enable-aggregator-routing is off) dials
// localhost:<clientConfig.service.port>; the ports of the Service itself are not looked at. The TLS server name stays
// <name>.<namespace>.svc, as on any cluster.
package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/kube-rego/kube-rego/e2e/internal/filelock"
	"github.com/kube-rego/kube-rego/e2e/internal/process"
	"github.com/kube-rego/kube-rego/e2e/internal/progress"
	"github.com/kube-rego/kube-rego/e2e/programs"
)

const (
	// DirEnv names the folder of a control plane that runs, for tests that need not start one of their own.
	DirEnv = "KUBE_REGO_CONTROL_PLANE"

	// stateFile marks a folder as that of a control plane and keeps what Open needs.
	stateFile = "control-plane.json"
	// attempts is how often a start is tried when another process takes a port between our choice and its use.
	attempts = 3
	// answerLimit is how long Open waits for the answers of a control plane that runs; they take milliseconds.
	answerLimit = 10 * time.Second
)

// Config says which control plane to start, and where.
type Config struct {
	// Programs are the programs to run, from programs.Build.
	Programs programs.Built
	// Dir is the folder for etcd's data, certificates, kubeconfigs, pid files and logs; absent or empty at the start.
	Dir string
	// Detached lets the processes outlive this one, until Remove. Otherwise they end with it (on Linux also when it is
	// killed; elsewhere Stop has to be called).
	Detached bool
	// Progress is told what is being started, at least every 10 seconds. Nil: silent.
	Progress io.Writer
}

// ControlPlane is a control plane that runs.
type ControlPlane struct {
	state     state
	setup     *setup
	dir       string
	processes []*process.Process // in the order they were started
	config    *rest.Config
	client    kubernetes.Interface
}

// state is what is kept in the folder for Open.
type state struct {
	Programs programs.Built `json:"programs"`
	Ports    ports          `json:"ports"`
}

// Start starts a control plane and returns when /readyz is ok and the namespace default has its service account default,
// without which no pod can be created. When that fails, what was started is stopped, and the logs stay in the folder.
func Start(ctx context.Context, cfg Config) (*ControlPlane, error) {
	if cfg.Progress == nil {
		cfg.Progress = io.Discard
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("find the folder of the control plane: %w", err)
	}
	cfg.Dir = dir
	for attempt := 1; ; attempt++ {
		c, err := startOnce(ctx, cfg)
		if !errors.Is(err, process.ErrPortTaken) || attempt == attempts {
			return c, err
		}
		fmt.Fprintf(cfg.Progress, "%v; trying again with other ports\n", process.ErrPortTaken)
		if err := remove(cfg.Dir); err != nil {
			return nil, err
		}
	}
}

func startOnce(ctx context.Context, cfg Config) (_ *ControlPlane, err error) {
	s, err := prepare(cfg)
	if err != nil {
		return nil, err
	}
	c, err := load(cfg.Dir)
	if err != nil {
		return nil, err
	}
	c.setup = s // which can ask etcd, too
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Stop())
		}
	}()
	for _, program := range []struct {
		name  string
		args  []string
		ready func(context.Context) error
	}{
		{programs.Etcd, s.etcdArgs(), s.etcdReady},
		{programs.APIServer, s.apiServerArgs(), c.apiServerReady},
		{programs.ControllerManager, s.controllerManagerArgs(), c.controllerManagerReady},
	} {
		fmt.Fprintf(cfg.Progress, "starting %s\n", program.name)
		p, err := process.Start(process.Config{
			Dir:      cfg.Dir,
			Name:     program.name,
			Path:     cfg.Programs.Path(program.name),
			Args:     program.args,
			Detached: cfg.Detached,
		})
		if err != nil {
			return nil, err
		}
		c.processes = append(c.processes, p)
		err = progress.During(cfg.Progress, "starting "+program.name, func() error { return p.WaitReady(ctx, program.ready) })
		if err != nil {
			return nil, err
		}
	}
	return c, nil
}

// prepare fills the folder: the state first, as it marks the folder as ours.
func prepare(cfg Config) (*setup, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of the control plane: %w", err)
	}
	entries, err := os.ReadDir(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("look into the folder of the control plane: %w", err)
	}
	if len(entries) > 0 {
		return nil, fmt.Errorf("start a control plane in %s: the folder is not empty", cfg.Dir)
	}
	chosen, err := choosePorts()
	if err != nil {
		return nil, err
	}
	content, err := json.Marshal(state{Programs: cfg.Programs, Ports: chosen})
	if err != nil {
		return nil, fmt.Errorf("encode the state of the control plane: %w", err)
	}
	if err := os.WriteFile(filepath.Join(cfg.Dir, stateFile), content, 0o600); err != nil {
		return nil, fmt.Errorf("write the state of the control plane: %w", err)
	}
	return newSetup(cfg.Dir, chosen)
}

// load reads back what prepare wrote, without the processes.
func load(dir string) (*ControlPlane, error) {
	c := &ControlPlane{dir: dir}
	content, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err != nil {
		return nil, fmt.Errorf("read the state of the control plane: %w", err)
	}
	if err := json.Unmarshal(content, &c.state); err != nil {
		return nil, fmt.Errorf("read the state of the control plane in %s: %w", dir, err)
	}
	c.setup = &setup{dir: dir, ports: c.state.Ports}
	c.config, err = clientcmd.BuildConfigFromFlags("", c.Kubeconfig())
	if err != nil {
		return nil, fmt.Errorf("read the admin's kubeconfig: %w", err)
	}
	c.config.QPS = -1 // no limit: the API server limits by itself, and tests should not wait
	c.client, err = kubernetes.NewForConfig(c.config)
	if err != nil {
		return nil, fmt.Errorf("make the admin's client: %w", err)
	}
	return c, nil
}

// Open finds the control plane that another process started in the folder. It is an error when one of its processes is gone
// or when it does not answer.
func Open(ctx context.Context, dir string) (*ControlPlane, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("find the folder of the control plane: %w", err)
	}
	c, err := load(dir)
	if err != nil {
		return nil, err
	}
	c.processes, err = findProcesses(dir)
	if err != nil {
		return nil, err
	}
	if len(c.processes) < len(startOrder) {
		return nil, fmt.Errorf("open the control plane in %s: it was never started completely", dir)
	}
	for _, p := range c.processes {
		if !p.Running() {
			return nil, fmt.Errorf("open the control plane in %s: %s does not run", dir, p.Name())
		}
	}
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	if err := errors.Join(c.apiServerReady(ctx), c.controllerManagerReady(ctx)); err != nil {
		return nil, fmt.Errorf("open the control plane in %s: %w", dir, err)
	}
	return c, nil
}

// startOrder is the order of the programs; they are stopped in reverse.
var startOrder = []string{programs.Etcd, programs.APIServer, programs.ControllerManager}

func findProcesses(dir string) ([]*process.Process, error) {
	var found []*process.Process
	for _, name := range startOrder {
		p, err := process.Find(dir, name)
		if err != nil {
			return nil, err
		}
		if p != nil {
			found = append(found, p)
		}
	}
	return found, nil
}

// Up finds the control plane in cfg.Dir or, when it does not run or is not healthy, clears what is left of it and starts it
// detached. It tells whether it was found running. Only one Up or Remove works on a folder at a time.
func Up(ctx context.Context, cfg Config) (c *ControlPlane, found bool, err error) {
	unlock, err := lockDir(ctx, cfg.Dir)
	if err != nil {
		return nil, false, err
	}
	defer unlock()
	if c, err := Open(ctx, cfg.Dir); err == nil {
		return c, true, nil
	}
	if err := remove(cfg.Dir); err != nil {
		return nil, false, err
	}
	cfg.Detached = true
	c, err = Start(ctx, cfg)
	return c, false, err
}

// Remove stops what was started in the folder, in order, and removes the folder. It tells whether there was anything to
// remove. A folder that is not that of a control plane is left alone, with an error.
func Remove(ctx context.Context, dir string) (found bool, err error) {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	unlock, err := lockDir(ctx, dir)
	if err != nil {
		return false, err
	}
	defer unlock()
	return true, remove(dir)
}

// lockDir locks a file beside the folder, as the folder itself comes and goes.
func lockDir(ctx context.Context, dir string) (unlock func(), err error) {
	dir = filepath.Clean(dir)
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, fmt.Errorf("make the folder around %s: %w", dir, err)
	}
	return filelock.Lock(ctx, dir+".lock")
}

func remove(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove the control plane: %w", err)
	}
	if _, err := os.Stat(filepath.Join(dir, stateFile)); err != nil && len(entries) > 0 {
		return fmt.Errorf("remove the control plane in %s: this is another kind of folder, it has no %s", dir, stateFile)
	}
	processes, err := findProcesses(dir)
	if err != nil {
		return err
	}
	if err := stopAll(processes); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove the control plane: %w", err)
	}
	return nil
}

// Stop ends the processes, last started first, and leaves the folder with its logs. It takes a second or two, and at most
// a minute for each process.
func (c *ControlPlane) Stop() error { return stopAll(c.processes) }

func stopAll(processes []*process.Process) error {
	var errs []error
	for i := len(processes) - 1; i >= 0; i-- {
		errs = append(errs, processes[i].Stop())
	}
	return errors.Join(errs...)
}

func (c *ControlPlane) apiServerReady(ctx context.Context) error {
	return c.client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
}

// controllerManagerReady looks at what the controllers do: the program serves no port of its own.
func (c *ControlPlane) controllerManagerReady(ctx context.Context) error {
	_, err := c.client.CoreV1().ServiceAccounts(metav1.NamespaceDefault).Get(ctx, "default", metav1.GetOptions{})
	return err
}

// KubernetesVersion is the version of the control plane, like v1.37.2.
func (c *ControlPlane) KubernetesVersion() string { return c.state.Programs.KubernetesVersion }

// URL is the address of the API server, like https://127.0.0.1:34567.
func (c *ControlPlane) URL() string { return c.config.Host }

// RESTConfig is the admin's client configuration, a copy. It has no client-side rate limit.
func (c *ControlPlane) RESTConfig() *rest.Config { return rest.CopyConfig(c.config) }

// Client is a client with the admin's rights.
func (c *ControlPlane) Client() kubernetes.Interface { return c.client }

// Kubectl is the kubectl command with these arguments, ready to be run, with the admin's rights. It is the kubectl of the
// same Kubernetes version, and knows nothing of the user's own clusters, preferences and cache.
func (c *ControlPlane) Kubectl(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, c.state.Programs.Path(programs.Kubectl), args...)
	cmd.Env = append(process.WithoutProxies(os.Environ()),
		"KUBECONFIG="+c.Kubeconfig(),
		"KUBECACHEDIR="+filepath.Join(c.dir, "kubectl-cache"),
		"KUBERC=off",
	)
	return cmd
}
