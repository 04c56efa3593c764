package controlplane

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/kube-rego/kube-rego/e2e/internal/loopback"
	"github.com/kube-rego/kube-rego/e2e/internal/process"
	"github.com/kube-rego/kube-rego/e2e/programs"
)

// APIServerConfig says how a further API server differs from the first.
type APIServerConfig struct {
	// Name is what it is called in messages and file names.
	Name string
	// Args are its arguments beside those of the first. They come last: a value wins over the one before, and a list is
	// added to it.
	Args []string
}

// APIServer is a further API server of a control plane: over the same etcd, with the same certificates. So it knows the
// same objects, and what is written through one of them is seen by the other.
type APIServer struct {
	process *process.Process
	config  *rest.Config
}

// StartAPIServer starts a further API server and returns when it is ready. Stop it before the control plane.
func (c *ControlPlane) StartAPIServer(ctx context.Context, cfg APIServerConfig) (*APIServer, error) {
	for attempt := 1; ; attempt++ {
		s, err := c.startAPIServer(ctx, cfg)
		if !errors.Is(err, process.ErrPortTaken) || attempt == attempts {
			return s, err
		}
	}
}

func (c *ControlPlane) startAPIServer(ctx context.Context, cfg APIServerConfig) (*APIServer, error) {
	ports, err := loopback.FreePorts(1)
	if err != nil {
		return nil, err
	}
	further := *c.setup
	further.API = ports[0]
	s := &APIServer{config: c.RESTConfig()}
	s.config.Host = "https://" + loopback.Address(further.API)
	s.process, err = process.Start(process.Config{
		Dir:  c.dir,
		Name: cfg.Name,
		Path: c.state.Programs.Path(programs.APIServer),
		Args: slices.Concat(further.apiServerArgs(), cfg.Args),
	})
	if err != nil {
		return nil, err
	}
	if err := s.waitReady(ctx); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

func (s *APIServer) waitReady(ctx context.Context) error {
	client, err := kubernetes.NewForConfig(s.config)
	if err != nil {
		return fmt.Errorf("make the admin's client: %w", err)
	}
	return s.process.WaitReady(ctx, func(ctx context.Context) error {
		return client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	})
}

// RESTConfig is the admin's client configuration for this API server, a copy.
func (s *APIServer) RESTConfig() *rest.Config { return rest.CopyConfig(s.config) }

// LogPath is the file with what it writes to stderr.
func (s *APIServer) LogPath() string { return s.process.LogPath() }

// Stop ends it, and leaves its log.
func (s *APIServer) Stop() error { return s.process.Stop() }
