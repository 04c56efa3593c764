package kuberego

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/kube-rego/kube-rego/e2e/internal/loopback"
	"github.com/kube-rego/kube-rego/e2e/internal/process"
)

// StandaloneConfig says how to run kube-rego without a cluster.
type StandaloneConfig struct {
	// Binary is the program, from BuildBinary.
	Binary string
	// Dir is the folder for its log; it is made when missing. A second one in it writes over the log of the first.
	Dir string
	// Manifests is the folder with its ConfigMaps.
	Manifests string
	// Args are further arguments. They come last, so they win over ours.
	Args []string
	// Env is its whole environment, as NAME=value.
	Env []string
}

// StartStandalone starts an instance that reads ConfigMaps from files. It returns when /status answers: whether it is
// ready by then is for the caller to see.
func StartStandalone(ctx context.Context, cfg StandaloneConfig) (*Instance, error) {
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the folder of the log: %w", err)
	}
	for attempt := 1; ; attempt++ {
		instance, err := startStandalone(ctx, cfg)
		if !errors.Is(err, process.ErrPortTaken) || attempt == attempts {
			return instance, err
		}
	}
}

func startStandalone(ctx context.Context, cfg StandaloneConfig) (*Instance, error) {
	instance := &Instance{}
	if err := instance.chooseAddresses(); err != nil {
		return nil, err
	}
	instance.args = slices.Concat([]string{"serve", "--manifests=" + cfg.Manifests}, instance.addressArgs(), cfg.Args)
	var err error
	instance.process, err = process.Start(process.Config{
		Dir:  cfg.Dir,
		Name: name,
		Path: cfg.Binary,
		Args: instance.args,
		Env:  append([]string{}, cfg.Env...), // nil would be our own
	})
	if err != nil {
		return nil, err
	}
	err = instance.process.WaitReady(ctx, func(ctx context.Context) error {
		_, err := instance.Status(ctx)
		return err
	})
	if err != nil {
		return nil, errors.Join(err, instance.Stop())
	}
	return instance, nil
}

// chooseAddresses chooses where it listens.
func (i *Instance) chooseAddresses() error {
	ports, err := loopback.FreePorts(3)
	if err != nil {
		return err
	}
	i.address, i.diagnostic, i.api = loopback.Address(ports[0]), loopback.Address(ports[1]), loopback.Address(ports[2])
	return nil
}

func (i *Instance) addressArgs() []string {
	return []string{"--addr=" + i.address, "--diagnostic-addr=" + i.diagnostic, "--api-addr=" + i.api}
}
