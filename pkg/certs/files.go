package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"

	"github.com/kube-rego/kube-rego/pkg/reload"
)

// Files is a serving certificate that somebody else makes and renews.
type Files struct {
	certFile, keyFile string
	log               *slog.Logger
	current           atomic.Pointer[filePair]
}

// filePair is what was read from the two files.
type filePair struct {
	cert, key []byte
	parsed    tls.Certificate
}

// NewFiles reads a certificate chain and its key, in PEM. Run keeps them new.
func NewFiles(certFile, keyFile string, log *slog.Logger) (*Files, error) {
	f := &Files{certFile: certFile, keyFile: keyFile, log: log}
	_, err := f.reload()
	return f, err
}

// Certificate is the certificate as it was last read.
func (f *Files) Certificate() *tls.Certificate { return &f.current.Load().parsed }

// Run reads the files again from time to time until ctx ends. Files that do not
// fit together, as in the middle of a renewal, change nothing.
func (f *Files) Run(ctx context.Context) {
	reload.Run(ctx, "serving certificate", f.certFile, f.reload, f.log)
}

func (f *Files) reload() (changed bool, err error) {
	cert, err := os.ReadFile(f.certFile)
	if err != nil {
		return false, fmt.Errorf("reading the serving certificate: %w", err)
	}
	key, err := os.ReadFile(f.keyFile)
	if err != nil {
		return false, fmt.Errorf("reading the serving key: %w", err)
	}
	if old := f.current.Load(); old != nil && bytes.Equal(old.cert, cert) && bytes.Equal(old.key, key) {
		return false, nil
	}
	parsed, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return false, fmt.Errorf("reading the serving certificate in %s with the key in %s: %w", f.certFile, f.keyFile, err)
	}
	f.current.Store(&filePair{cert: cert, key: key, parsed: parsed})
	return true, nil
}
