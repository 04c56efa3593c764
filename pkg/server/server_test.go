package server

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kube-rego/kube-rego/pkg/certs"
)

var discard = slog.New(slog.DiscardHandler)

// serve listens and serves until the returned function is called, which
// returns what Serve does.
func serve(t *testing.T, l *Listener) (stop func() error) {
	t.Helper()
	l.Address = "127.0.0.1:0"
	if err := l.Listen(t.Context(), discard); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- l.Serve(ctx) }()
	t.Cleanup(cancel)
	return func() error {
		cancel()
		return <-served
	}
}

func get(t *testing.T, client *http.Client, url string) (string, error) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	return string(body), err
}

var hello = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	_, _ = fmt.Fprintf(w, "hello, TLS %v", r.TLS != nil)
})

// newClient has connections of its own.
func newClient(t *testing.T, config *tls.Config) *http.Client {
	transport := &http.Transport{TLSClientConfig: config}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func TestListenerServesPlainHTTP(t *testing.T) {
	l := &Listener{Name: "diagnostic", Handler: hello}
	stop := serve(t, l)
	got, err := get(t, newClient(t, nil), "http://"+l.listener.Addr().String())
	if err != nil || got != "hello, TLS false" {
		t.Errorf("got %q, %v", got, err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestListenerServesTheCertificateOfNow(t *testing.T) {
	bundle, err := certs.NewBundle([]string{"localhost"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle.CA)
	waiting := make(chan struct{})
	l := &Listener{Name: "webhook", Handler: hello, Certificate: func() (*tls.Certificate, error) {
		select {
		case <-waiting:
			return bundle.Certificate()
		default:
			return nil, errors.New("waiting for the serving certificate")
		}
	}}
	stop := serve(t, l)
	url := "https://" + l.listener.Addr().String()
	client := newClient(t, &tls.Config{RootCAs: roots, ServerName: "localhost"})

	if _, err := get(t, client, url); err == nil {
		t.Error("it answers before there is a certificate")
	}
	close(waiting)
	got, err := get(t, client, url)
	if err != nil || got != "hello, TLS true" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := get(t, newClient(t, nil), url); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a client that does not know the CA got the error %v", err)
	}
	old := &tls.Config{RootCAs: roots, ServerName: "localhost"}
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	if _, err := get(t, newClient(t, old), url); err == nil || !strings.Contains(err.Error(), "protocol version") {
		t.Errorf("a client that speaks TLS 1.1 got the error %v", err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// newClientPair is a CA and the certificate of a client that it signed.
func newClientPair(t *testing.T) (*x509.CertPool, tls.Certificate) {
	t.Helper()
	bundle, err := certs.NewBundle([]string{"unused"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	ca, err := tls.X509KeyPair(bundle.CA, bundle.CAKey)
	if err != nil {
		t.Fatal(err)
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	client := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "dana"},
		NotAfter:     time.Now().Add(time.Hour),
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, client, ca.Leaf, public, ca.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca.Leaf)
	return pool, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}
}

func TestListenerAsksForAClientCertificateOfTheCAsOfNow(t *testing.T) {
	bundle, err := certs.NewBundle([]string{"localhost"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle.CA)
	firstPool, first := newClientPair(t)
	secondPool, second := newClientPair(t)
	var trusted atomic.Pointer[x509.CertPool]
	var shown atomic.Pointer[http.Request]
	l := &Listener{
		Name:        "api",
		Handler:     http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { shown.Store(r) }),
		Certificate: bundle.Certificate,
		ClientCAs:   trusted.Load,
	}
	stop := serve(t, l)
	url := "https://" + l.listener.Addr().String()
	// One cache for all handshakes: a session must not outlive the CA of its client.
	sessions := tls.NewLRUClientSessionCache(8)
	ask := func(version uint16, client ...tls.Certificate) error {
		config := &tls.Config{
			RootCAs: roots, ServerName: "localhost", ClientSessionCache: sessions, MaxVersion: version,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				if client == nil {
					return new(tls.Certificate), nil
				}
				return &client[0], nil // also where the server does not name its CA
			},
		}
		http2 := newClient(t, config)
		http2.Transport.(*http.Transport).ForceAttemptHTTP2 = true
		_, err := get(t, http2, url)
		return err
	}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			for _, test := range []struct {
				name    string
				trusted *x509.CertPool
				client  []tls.Certificate
				taken   bool
			}{
				{name: "a client of the CA is let in", trusted: firstPool, client: []tls.Certificate{first}, taken: true},
				{name: "one without a certificate is not", trusted: firstPool},
				{name: "one of another CA is not", trusted: firstPool, client: []tls.Certificate{second}},
				{name: "once the CA is another, the first client is not", trusted: secondPool, client: []tls.Certificate{first}},
				{name: "but the other one is", trusted: secondPool, client: []tls.Certificate{second}, taken: true},
				{name: "no CA lets nobody in", trusted: x509.NewCertPool(), client: []tls.Certificate{first}},
				{name: "nor do CAs that are not known", client: []tls.Certificate{first}},
			} {
				t.Run(test.name, func(t *testing.T) {
					trusted.Store(test.trusted)
					shown.Store(nil)
					if err := ask(version, test.client...); (err == nil) != test.taken {
						t.Errorf("got the error %v", err)
					}
					request := shown.Load()
					if (request != nil) != test.taken {
						t.Fatalf("the request has reached the handler: %v", request != nil)
					}
					if test.taken && (len(request.TLS.VerifiedChains) == 0 || request.ProtoMajor != 2) {
						t.Errorf("the handler does not see a verified client by HTTP/2: %v, %s", request.TLS.VerifiedChains, request.Proto)
					}
				})
			}
		})
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// Without a pool crypto/tls trusts every CA that the system trusts.
func TestListenerLetsNobodyInByTheCAsOfTheSystem(t *testing.T) {
	l := &Listener{Name: "api", ClientCAs: func() *x509.CertPool { return nil }}
	if config, err := l.tlsConfig().GetConfigForClient(nil); err == nil {
		t.Errorf("a client is asked for a certificate of %v", config.ClientCAs)
	}
}

func TestListenerAsksForNoClientCertificateOverPlainHTTP(t *testing.T) {
	l := &Listener{Name: "api", Address: "127.0.0.1:0", Handler: hello, ClientCAs: x509.NewCertPool}
	err := l.Listen(t.Context(), discard)
	if err == nil || err.Error() != "listening for api: client certificates cannot be asked for over plain HTTP" {
		t.Errorf("got the error %v", err)
	}
}

func TestListenerLetsARequestInFlightFinish(t *testing.T) {
	started, finish := make(chan struct{}), make(chan struct{})
	l := &Listener{Name: "webhook", Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(started)
		<-finish
		if err := r.Context().Err(); err != nil {
			_, _ = fmt.Fprintf(w, "cut short: %v", err)
			return
		}
		_, _ = io.WriteString(w, "finished")
	})}
	stop := serve(t, l)
	address := l.listener.Addr().String()
	type result struct {
		body string
		err  error
	}
	answered, stopped := make(chan result, 1), make(chan error, 1)
	client := newClient(t, nil)
	go func() {
		body, err := get(t, client, "http://"+address)
		answered <- result{body, err}
	}()
	<-started
	go func() { stopped <- stop() }()
	for refused := false; !refused; { // until no new connection is taken
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", address)
		if refused = err != nil; !refused {
			_ = conn.Close()
		}
	}
	select {
	case err := <-stopped:
		t.Fatalf("it stopped with %v before the request in flight finished", err)
	case r := <-answered:
		t.Fatalf("the request in flight was answered %q, %v", r.body, r.err)
	default:
	}
	close(finish)
	if r := <-answered; r.err != nil || r.body != "finished" {
		t.Errorf("the request in flight got %q, %v", r.body, r.err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

func TestListenOnATakenAddress(t *testing.T) {
	taken, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	for _, test := range []struct{ name, address, want string }{
		{"an address in use", taken.Addr().String(), "address already in use"},
		{"an address of nobody", "not-a-port:http-and-more", "listen tcp"},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := &Listener{Name: "webhook", Address: test.address, Handler: hello}
			err := l.Listen(t.Context(), discard)
			if err == nil || !strings.HasPrefix(err.Error(), "listening for webhook: ") || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got the error %v, want one that names the listener and says %q", err, test.want)
			}
		})
	}
}

func TestServeOfABrokenListener(t *testing.T) {
	l := &Listener{Name: "webhook", Address: "127.0.0.1:0", Handler: hello}
	if err := l.Listen(t.Context(), discard); err != nil {
		t.Fatal(err)
	}
	_ = l.listener.Close()
	if err := l.Serve(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "serving webhook: ") {
		t.Errorf("got the error %v", err)
	}
}
