// Package server has the listeners: HTTPS for the API server's webhook, plain
// HTTP for probes, metrics and status. It knows the limits of a request and how
// to drain; what a request means is package admission's to know. It touches the
// network and the clock, and no cluster.
package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// The bounds of one connection. The API server gives a webhook 30 s at most
// (timeoutSeconds in admissionregistration.k8s.io/v1), so nothing that it waits
// for takes longer; idle connections are kept longer than its own 90 s
// (net/http, DefaultTransport.IdleConnTimeout), so that it is the one to close
// them.
const (
	headerTimeout = 10 * time.Second
	readTimeout   = 30 * time.Second
	writeTimeout  = 40 * time.Second
	idleTimeout   = 2 * time.Minute
	// drainTimeout is how long requests in flight may take after a signal to
	// stop: the default grace period of a pod is 30 s.
	drainTimeout = 20 * time.Second
)

// Listener is one address with what is served there.
type Listener struct {
	// Name of the listener in logs and errors.
	Name string
	// Address to listen on, host:port.
	Address string
	// Handler of the requests.
	Handler http.Handler
	// Certificate is the serving certificate of now, or why there is none yet;
	// nil for plain HTTP.
	Certificate func() (*tls.Certificate, error)
	// ClientCAs are those of now that a client's certificate must be signed by;
	// nil if none is asked for. There must be a Certificate beside it.
	ClientCAs func() *x509.CertPool

	listener net.Listener
	server   *http.Server
}

// Listen opens the address, so that a bad one is an error before anything is
// served.
func (l *Listener) Listen(ctx context.Context, log *slog.Logger) error {
	if l.ClientCAs != nil && l.Certificate == nil {
		return fmt.Errorf("listening for %s: client certificates cannot be asked for over plain HTTP", l.Name)
	}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", l.Address)
	if err != nil {
		return fmt.Errorf("listening for %s: %w", l.Name, err)
	}
	l.listener = listener
	l.server = &http.Server{
		Handler:           l.Handler,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		// Most of these are TLS handshakes that failed: a client that does not
		// trust our CA is the most frequent trouble of a webhook.
		ErrorLog: slog.NewLogLogger(log.With("listener", l.Name).Handler(), slog.LevelWarn),
	}
	if l.Certificate != nil {
		l.server.TLSConfig = l.tlsConfig()
	}
	log.Info("listening", "listener", l.Name, "address", listener.Addr().String())
	return nil
}

func (l *Listener) tlsConfig() *tls.Config {
	config := &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return l.Certificate()
		},
	}
	if l.ClientCAs == nil {
		return config
	}
	// As net/http has it. It tells only its own copy of this config.
	config.NextProtos = []string{"h2", "http/1.1"}
	config.ClientAuth = tls.RequireAndVerifyClientCert
	// A session that is resumed was verified by the CAs of another time.
	config.SessionTicketsDisabled = true
	config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		pool := l.ClientCAs()
		if pool == nil { // crypto/tls would take the CAs of the system
			return nil, errors.New("there are no client CAs")
		}
		now := config.Clone()
		now.ClientCAs = pool
		return now, nil
	}
	return config
}

// Close gives up an address that is not served yet.
func (l *Listener) Close() { _ = l.listener.Close() }

// Serve answers requests until ctx ends, and then lets those in flight finish.
func (l *Listener) Serve(ctx context.Context) error {
	failed := make(chan error, 1)
	go func() {
		if l.Certificate != nil {
			failed <- l.server.ServeTLS(l.listener, "", "")
			return
		}
		failed <- l.server.Serve(l.listener)
	}()
	select {
	case err := <-failed:
		return fmt.Errorf("serving %s: %w", l.Name, err)
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	if err := l.server.Shutdown(drain); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("draining %s: %w", l.Name, err)
	}
	return nil
}
