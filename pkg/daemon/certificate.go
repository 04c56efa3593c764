package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/kube-rego/kube-rego/pkg/certs"
)

// certificateRetry is how soon a Secret that cannot be read or written is tried
// again: as often as a person looks whether it has worked by now.
const certificateRetry = 5 * time.Second

// certificate is the serving certificate, which may be waited for.
type certificate struct {
	mu      sync.Mutex
	get     func() (*tls.Certificate, error)
	waiting error
}

func newCertificate() *certificate {
	return &certificate{waiting: errors.New("waiting for the serving certificate")}
}

// Get is the certificate to serve with now.
func (c *certificate) Get() (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting != nil {
		return nil, c.waiting
	}
	return c.get()
}

// Ready is nil once there is a certificate, or why there is none yet.
func (c *certificate) Ready() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.waiting
}

func (c *certificate) use(get func() (*tls.Certificate, error)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.get, c.waiting = get, nil
}

func (c *certificate) failed(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = err
}

// hosts are the names that our own certificate is good for: any Service of the
// namespace, and this machine. With a wildcard there is nothing to configure,
// and the webhook's Service may have the name that it always had.
func hosts(namespace string) []string {
	local := []string{"localhost", "127.0.0.1", "::1"}
	if namespace == "" {
		return local
	}
	return append(local, "*."+namespace+".svc", "*."+namespace+".svc.cluster.local")
}

// certify runs until ctx ends and sees to the serving certificate: from files
// where they are given, else from the Secret that replicas share, else made for
// this process alone.
func (d *daemon) certify(ctx context.Context) error {
	switch o := d.options; {
	case o.TLSCertFile != "":
		files, err := certs.NewFiles(o.TLSCertFile, o.TLSPrivateKeyFile, d.log)
		if err != nil {
			return err
		}
		d.certificate.use(func() (*tls.Certificate, error) { return files.Certificate(), nil })
		files.Run(ctx)
		return nil
	case d.cluster != nil:
		return d.certifyShared(ctx)
	}
	bundle, err := certs.NewBundle(hosts(""), time.Now())
	if err != nil {
		return err
	}
	return d.useBundle(bundle)
}

// certifyShared shares a bundle with the other replicas, and keeps its CA in
// the webhook configurations.
func (d *daemon) certifyShared(ctx context.Context) error {
	if err := d.waitForBundle(ctx); err != nil {
		return err
	}
	certs.NewInjector(certs.InjectorConfig{
		WebhookConfigurations: d.cluster.admission,
		Namespace:             d.cluster.namespace,
		Names:                 d.options.WebhookConfigurations,
		CA:                    d.sharedCA,
		Log:                   d.log,
	}).Run(ctx)
	return nil
}

// sharedCA takes over the bundle that the replicas share now.
func (d *daemon) sharedCA(ctx context.Context) ([]byte, error) {
	namespace := d.cluster.namespace
	secrets := d.cluster.core.Secrets(namespace)
	bundle, err := certs.Shared(ctx, secrets, hosts(namespace), time.Now())
	if err != nil {
		return nil, fmt.Errorf("namespace %s: %w", namespace, err)
	}
	return bundle.CA, d.useBundle(bundle)
}

func (d *daemon) useBundle(bundle certs.Bundle) error {
	pair, err := bundle.Certificate()
	if err != nil {
		return err
	}
	d.certificate.use(func() (*tls.Certificate, error) { return pair, nil })
	return nil
}

// waitForBundle tries until there is a bundle or ctx ends.
func (d *daemon) waitForBundle(ctx context.Context) error {
	for {
		_, err := d.sharedCA(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		d.certificate.failed(err)
		d.log.Error("there is no serving certificate yet; trying again", "error", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(certificateRetry):
		}
	}
}
