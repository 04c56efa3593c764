package certs_test

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/kube-rego/kube-rego/pkg/certs"
)

var hosts = []string{"*.opa.svc", "localhost", "127.0.0.1"}

func newBundle(t *testing.T, hosts []string, now time.Time) certs.Bundle {
	t.Helper()
	b, err := certs.NewBundle(hosts, now)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// handshake is what a client that trusts the bundle's CA says to its serving
// certificate under the name host.
func handshake(t *testing.T, b certs.Bundle, host string) error {
	t.Helper()
	cert, err := b.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(b.CA) {
		t.Fatal("the CA is not PEM")
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{*cert}})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, conn) // the handshake, and then until the client goes
		_ = conn.Close()
	}()
	dialer := tls.Dialer{Config: &tls.Config{RootCAs: roots, ServerName: host}}
	conn, refused := dialer.DialContext(t.Context(), "tcp", listener.Addr().String())
	if refused == nil {
		_ = conn.Close()
	}
	_ = listener.Close()
	<-served
	return refused
}

func TestNewBundleInAHandshake(t *testing.T) {
	b := newBundle(t, hosts, time.Now())
	other := newBundle(t, hosts, time.Now())
	mixed := b
	mixed.CA = other.CA
	for _, test := range []struct {
		name, host string
		bundle     certs.Bundle
		refused    string // part of the client's error; empty: it trusts
	}{
		{name: "a Service of the namespace", host: "kube-rego.opa.svc", bundle: b},
		{name: "a Service of any name", host: "opa.opa.svc", bundle: b},
		{name: "localhost", host: "localhost", bundle: b},
		{name: "the loopback address", host: "127.0.0.1", bundle: b},
		{name: "a Service of another namespace", host: "kube-rego.other.svc", bundle: b, refused: "not kube-rego.other.svc"},
		{name: "a name below a Service", host: "a.kube-rego.opa.svc", bundle: b, refused: "not a.kube-rego.opa.svc"},
		{name: "another address", host: "127.0.0.2", bundle: b, refused: "not 127.0.0.2"},
		{name: "another CA of the same name", host: "localhost", bundle: mixed, refused: "certificate signed by unknown authority"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := handshake(t, test.bundle, test.host)
			switch {
			case test.refused == "" && err != nil:
				t.Errorf("refused: %v", err)
			case test.refused != "" && err == nil:
				t.Error("trusted")
			case test.refused != "" && !strings.Contains(err.Error(), test.refused):
				t.Errorf("refused with %q, want %q", err, test.refused)
			}
		})
	}
}

func TestBundleKeepsTheKeyOfItsCA(t *testing.T) {
	b := newBundle(t, hosts, time.Now())
	if _, err := tls.X509KeyPair(b.CA, b.CAKey); err != nil {
		t.Error(err)
	}
}

func TestBundleValid(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	good := newBundle(t, hosts, now)
	other := newBundle(t, hosts, now)
	with := func(change func(*certs.Bundle)) certs.Bundle {
		b := good
		change(&b)
		return b
	}
	for _, test := range []struct {
		name   string
		bundle certs.Bundle
		hosts  []string
		now    time.Time
		want   string // part of the error; empty: it is valid
	}{
		{name: "a new bundle is valid", bundle: good, hosts: hosts, now: now},
		{name: "it is valid for a part of its hosts", bundle: good, hosts: []string{"localhost"}, now: now},
		{name: "a clock that is four minutes behind finds it valid", bundle: good, hosts: hosts, now: now.Add(-4 * time.Minute)},
		{name: "it is valid for nearly ten years", bundle: good, hosts: hosts, now: now.AddDate(10, 0, -4)},
		{name: "it expires after ten years", bundle: good, hosts: hosts, now: now.AddDate(10, 0, 1), want: "expired"},
		{name: "it is not valid before it was made", bundle: good, hosts: hosts, now: now.Add(-6 * time.Minute), want: "not yet valid"},
		{name: "another name is not covered", bundle: good, hosts: []string{"localhost", "*.other.svc"}, now: now, want: "the certificate does not cover *.other.svc"},
		{name: "another address is not covered", bundle: good, hosts: []string{"::1"}, now: now, want: "the certificate does not cover ::1"},
		{name: "nothing at all is not valid", bundle: certs.Bundle{}, hosts: hosts, now: now, want: "reading the serving certificate"},
		{name: "a missing CA", bundle: with(func(b *certs.Bundle) { b.CA = nil }), hosts: hosts, now: now, want: "there is no CA certificate"},
		{name: "a CA that is no PEM", bundle: with(func(b *certs.Bundle) { b.CA = []byte("CA") }), hosts: hosts, now: now, want: "there is no CA certificate"},
		{name: "the CA of another bundle", bundle: with(func(b *certs.Bundle) { b.CA = other.CA }), hosts: hosts, now: now, want: "unknown authority"},
		{name: "the key of another certificate", bundle: with(func(b *certs.Bundle) { b.Key = other.Key }), hosts: hosts, now: now, want: "private key does not match public key"},
		{name: "a missing key", bundle: with(func(b *certs.Bundle) { b.Key = nil }), hosts: hosts, now: now, want: "reading the serving certificate"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := test.bundle.Valid(test.hosts, test.now)
			switch {
			case test.want == "" && err != nil:
				t.Errorf("not valid: %v", err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("got the error %v, want %q", err, test.want)
			}
		})
	}
}
