package certs

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"

	"github.com/kube-rego/kube-rego/pkg/reload"
)

// ClientCA is the CAs whose clients may connect, in a file that somebody else
// keeps.
type ClientCA struct {
	file    string
	log     *slog.Logger
	current atomic.Pointer[caBundle]
}

// caBundle is what was read from the file.
type caBundle struct {
	pem  []byte
	pool *x509.CertPool
}

// NewClientCA reads a bundle of CA certificates, in PEM. Run keeps it new.
func NewClientCA(file string, log *slog.Logger) (*ClientCA, error) {
	c := &ClientCA{file: file, log: log}
	if _, err := c.reload(); err != nil {
		return nil, err
	}
	return c, nil
}

// Pool is the CAs as they were last read. It must not be changed.
func (c *ClientCA) Pool() *x509.CertPool { return c.current.Load().pool }

// Run reads the file again from time to time until ctx ends. One that holds no
// CA, or one that is broken, changes nothing.
func (c *ClientCA) Run(ctx context.Context) {
	reload.Run(ctx, "client CA", c.file, c.reload, c.log)
}

func (c *ClientCA) reload() (changed bool, err error) {
	data, err := os.ReadFile(c.file)
	if err != nil {
		return false, fmt.Errorf("reading the client CA: %w", err)
	}
	if old := c.current.Load(); old != nil && bytes.Equal(old.pem, data) {
		return false, nil
	}
	pool, err := readPool(data)
	if err != nil {
		return false, fmt.Errorf("reading the client CA in %s: %w", c.file, err)
	}
	c.current.Store(&caBundle{pem: data, pool: pool})
	return true, nil
}

// readPool is the pool of all certificates of a bundle. One that is broken is
// an error, and not left out as x509.CertPool does: a file that is half written
// would shut out the clients of its other half.
func readPool(bundle []byte) (*x509.CertPool, error) {
	begun := bytes.Count(bundle, []byte("-----BEGIN CERTIFICATE-----"))
	if begun == 0 {
		return nil, errors.New("there is no certificate in PEM")
	}
	pool, read := x509.NewCertPool(), 0
	for block, rest := pem.Decode(bundle); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		read++
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", read, err)
		}
		pool.AddCert(cert)
	}
	if read != begun {
		return nil, fmt.Errorf("of %d certificates %d are broken or cut off", begun, begun-read)
	}
	return pool, nil
}
