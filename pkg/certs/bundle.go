// Package certs has the webhook's certificates: it makes a CA and a serving
// certificate, shares them between replicas in a Secret, reads them from files
// where somebody else makes them, and puts the CA into webhook configurations.
// It also reads the CAs whose clients may connect.
//
// It touches the Secret and the webhook configurations that its configuration
// names, and the files; it never overwrites a Secret or a CA that is not ours.
//
// Rotation has its place in [Shared], which replaces a bundle that is no longer
// valid. So far that happens at the start, and whenever a webhook configuration
// holds another CA than ours; nothing renews a certificate as time goes by.
package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"time"
)

const (
	// lifetime of the CA and of the serving certificate: ten years, as
	// client-go's own self-signed certificates have (util/cert, duration365d
	// times ten), since nothing rotates them yet.
	lifetime = 10 * 365 * 24 * time.Hour
	// backdate allows for clocks that differ between nodes.
	backdate = 5 * time.Minute
)

// Bundle is a CA and a serving certificate that it signed, in PEM. The CA's
// key is kept so that a new serving certificate needs no new CA.
type Bundle struct {
	CA    []byte
	CAKey []byte
	Cert  []byte
	Key   []byte
}

// NewBundle makes a CA and a serving certificate for hosts: DNS names, among
// them wildcards, and IP addresses.
func NewBundle(hosts []string, now time.Time) (Bundle, error) {
	ca, caKey, err := issue(&x509.Certificate{
		Subject:               pkix.Name{CommonName: "kube-rego CA"},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}, nil, nil, now)
	if err != nil {
		return Bundle{}, fmt.Errorf("making a CA: %w", err)
	}
	serving := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "kube-rego"},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			serving.IPAddresses = append(serving.IPAddresses, ip)
			continue
		}
		serving.DNSNames = append(serving.DNSNames, host)
	}
	cert, key, err := issue(serving, ca, caKey, now)
	if err != nil {
		return Bundle{}, fmt.Errorf("making a serving certificate: %w", err)
	}
	return encodeBundle(ca, caKey, cert, key)
}

// issue fills in and signs a certificate with a new key; without a parent it
// signs itself.
func issue(template, parent *x509.Certificate, parentKey crypto.Signer, now time.Time) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)) // RFC 5280: at most 20 octets
	if err != nil {
		return nil, nil, err
	}
	template.SerialNumber = serial
	template.NotBefore, template.NotAfter = now.Add(-backdate), now.Add(lifetime)
	if parent == nil {
		parent, parentKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return cert, key, err
}

func encodeBundle(ca *x509.Certificate, caKey *ecdsa.PrivateKey, cert *x509.Certificate, key *ecdsa.PrivateKey) (Bundle, error) {
	caKeyDER, err := x509.MarshalPKCS8PrivateKey(caKey)
	if err != nil {
		return Bundle{}, fmt.Errorf("encoding the CA's key: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Bundle{}, fmt.Errorf("encoding the serving key: %w", err)
	}
	return Bundle{
		CA:    encodePEM("CERTIFICATE", ca.Raw),
		CAKey: encodePEM("PRIVATE KEY", caKeyDER),
		Cert:  encodePEM("CERTIFICATE", cert.Raw),
		Key:   encodePEM("PRIVATE KEY", keyDER),
	}, nil
}

func encodePEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// Certificate is the serving certificate with its key.
func (b Bundle) Certificate() (*tls.Certificate, error) {
	cert, err := tls.X509KeyPair(b.Cert, b.Key)
	if err != nil {
		return nil, fmt.Errorf("reading the serving certificate: %w", err)
	}
	return &cert, nil
}

// Valid reports why clients that trust the bundle's CA would refuse its
// serving certificate for one of the hosts at the given time; nil if none
// would.
func (b Bundle) Valid(hosts []string, now time.Time) error {
	cert, err := b.Certificate()
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(b.CA) {
		return errors.New("there is no CA certificate")
	}
	if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now}); err != nil {
		return err
	}
	names := make(map[string]bool)
	for _, name := range cert.Leaf.DNSNames {
		names[name] = true
	}
	for _, ip := range cert.Leaf.IPAddresses {
		names[ip.String()] = true
	}
	for _, host := range hosts {
		if !names[host] {
			return fmt.Errorf("the certificate does not cover %s", host)
		}
	}
	return nil
}
