package controlplane

import (
	"crypto/tls"
	"crypto/x509"
	"slices"
	"testing"
)

func TestCertificates(t *testing.T) {
	ca, other := mustAuthority(t, "ca"), mustAuthority(t, "another")
	server, err := ca.server("server", "127.0.0.1", "webhook.opa.svc")
	if err != nil {
		t.Fatal(err)
	}
	client, err := ca.client("admin", "system:masters")
	if err != nil {
		t.Fatal(err)
	}
	serverUse, clientUse := x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth

	for _, test := range []struct {
		name  string
		pair  keyPair
		roots *authority
		host  string
		use   x509.ExtKeyUsage
		ok    bool
	}{
		{"server by address", server, ca, "127.0.0.1", serverUse, true},
		{"server by name", server, ca, "webhook.opa.svc", serverUse, true},
		{"server by another name", server, ca, "localhost", serverUse, false},
		{"server of another authority", server, other, "127.0.0.1", serverUse, false},
		{"server as client", server, ca, "", clientUse, false},
		{"client", client, ca, "", clientUse, true},
		{"client of another authority", client, other, "", clientUse, false},
		{"client as server", client, ca, "", serverUse, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			roots := x509.NewCertPool()
			if !roots.AppendCertsFromPEM(test.roots.certPEM()) {
				t.Fatal("the authority's certificate is not PEM")
			}
			_, err := parse(t, test.pair).Verify(x509.VerifyOptions{
				DNSName: test.host, Roots: roots, KeyUsages: []x509.ExtKeyUsage{test.use},
			})
			if (err == nil) != test.ok {
				t.Errorf("Verify error = %v, want ok %v", err, test.ok)
			}
		})
	}

	subject := parse(t, client).Subject
	if subject.CommonName != "admin" || !slices.Equal(subject.Organization, []string{"system:masters"}) {
		t.Errorf("subject = %s", subject)
	}
}

func mustAuthority(t *testing.T, name string) *authority {
	t.Helper()
	ca, err := newAuthority(name)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// parse also checks that the key is that of the certificate.
func parse(t *testing.T, pair keyPair) *x509.Certificate {
	t.Helper()
	certificate, err := tls.X509KeyPair(pair.cert, pair.key)
	if err != nil {
		t.Fatal(err)
	}
	return certificate.Leaf
}
