package controlplane

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"

	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/kube-rego/kube-rego/e2e/internal/loopback"
)

const (
	// etcdName is the name of etcd's only member; it warns about its own default.
	etcdName = "kube-rego"
	// serviceRange is where the cluster IPs of Services come from; serviceIP, its first, is that of the API server. Nothing
	// routes to them here. The range is one that RFC 5737 keeps free for documentation.
	serviceRange = "192.0.2.0/24"
	serviceIP    = "192.0.2.1"
	// serviceAccountIssuer is the issuer that tokens of service accounts name, as kubeadm has it.
	serviceAccountIssuer = "https://kubernetes.default.svc.cluster.local"
)

// setup is what the programs are started with. Its files are in dir.
type setup struct {
	dir string
	ports
	etcdClient *http.Client // nil when another process started it
}

// ports are where the programs listen.
type ports struct {
	Etcd     int `json:"etcd"`
	EtcdPeer int `json:"etcdPeer"`
	API      int `json:"api"`
}

func choosePorts() (ports, error) {
	free, err := loopback.FreePorts(3)
	if err != nil {
		return ports{}, err
	}
	return ports{Etcd: free[0], EtcdPeer: free[1], API: free[2]}, nil
}

// newSetup writes certificates and kubeconfigs.
func newSetup(dir string, chosen ports) (*setup, error) {
	s := &setup{dir: dir, ports: chosen}
	if err := s.setUpEtcd(); err != nil {
		return nil, fmt.Errorf("set up etcd: %w", err)
	}
	if err := s.setUpKubernetes(); err != nil {
		return nil, fmt.Errorf("set up Kubernetes: %w", err)
	}
	return s, nil
}

// setUpEtcd gives etcd an authority of its own, so that no client of Kubernetes can go round the API server.
func (s *setup) setUpEtcd() error {
	ca, err := newAuthority("etcd-ca")
	if err != nil {
		return err
	}
	server, err := ca.server("etcd", loopback.Host)
	if err != nil {
		return err
	}
	client, err := ca.client("kube-apiserver")
	if err != nil {
		return err
	}
	s.etcdClient, err = httpClient(ca, client)
	if err != nil {
		return err
	}
	return s.write(map[string][]byte{
		"etcd-ca.crt":     ca.certPEM(),
		"etcd.crt":        server.cert,
		"etcd.key":        server.key,
		"etcd-client.crt": client.cert,
		"etcd-client.key": client.key,
	})
}

func (s *setup) setUpKubernetes() error {
	ca, err := newAuthority("kubernetes-ca")
	if err != nil {
		return err
	}
	server, err := ca.server("kube-apiserver", loopback.Host, "localhost", serviceIP, "kubernetes", "kubernetes.default", "kubernetes.default.svc")
	if err != nil {
		return err
	}
	tokenKey, err := newKey()
	if err != nil {
		return err
	}
	tokenKeyPEM, err := encodeKey(tokenKey)
	if err != nil {
		return err
	}
	err = s.write(map[string][]byte{
		"ca.crt":              ca.certPEM(),
		"apiserver.crt":       server.cert,
		"apiserver.key":       server.key,
		"service-account.key": tokenKeyPEM,
	})
	if err != nil {
		return err
	}
	if err := s.writeClientKubeconfig(ca, adminKubeconfig, "kubernetes-admin", "system:masters"); err != nil {
		return err
	}
	return s.writeClientKubeconfig(ca, "controller-manager.kubeconfig", "system:kube-controller-manager")
}

// writeClientKubeconfig issues a client certificate and writes a kubeconfig with it.
func (s *setup) writeClientKubeconfig(ca *authority, file, user string, groups ...string) error {
	pair, err := ca.client(user, groups...)
	if err != nil {
		return err
	}
	cluster := &clientcmdapi.Cluster{
		Server:                   "https://" + loopback.Address(s.API),
		CertificateAuthorityData: ca.certPEM(),
	}
	login := &clientcmdapi.AuthInfo{ClientCertificateData: pair.cert, ClientKeyData: pair.key}
	return writeKubeconfig(s.path(file), cluster, user, login, "")
}

func (s *setup) path(file string) string { return filepath.Join(s.dir, file) }

func (s *setup) write(files map[string][]byte) error {
	for name, content := range files {
		if err := os.WriteFile(s.path(name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (s *setup) etcdArgs() []string {
	client, peer := "https://"+loopback.Address(s.Etcd), "https://"+loopback.Address(s.EtcdPeer)
	return []string{
		"--name=" + etcdName,
		"--data-dir=" + s.path("etcd"),
		"--listen-client-urls=" + client,
		"--advertise-client-urls=" + client,
		"--trusted-ca-file=" + s.path("etcd-ca.crt"),
		"--cert-file=" + s.path("etcd.crt"),
		"--key-file=" + s.path("etcd.key"),
		"--client-cert-auth=true",
		// There is no peer, but etcd listens for one.
		"--listen-peer-urls=" + peer,
		"--initial-advertise-peer-urls=" + peer,
		"--initial-cluster=" + etcdName + "=" + peer,
		"--peer-trusted-ca-file=" + s.path("etcd-ca.crt"),
		"--peer-cert-file=" + s.path("etcd.crt"),
		"--peer-key-file=" + s.path("etcd.key"),
		"--peer-client-cert-auth=true",
		// The data is thrown away in the end: no need to wait for the disk.
		"--unsafe-no-fsync=true",
		"--log-level=warn",
	}
}

// etcdReady asks etcd's own health endpoint.
func (s *setup) etcdReady(ctx context.Context) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+loopback.Address(s.Etcd)+"/readyz", nil)
	if err != nil {
		return err
	}
	response, err := s.etcdClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", request.URL, response.Status)
	}
	return nil
}

func (s *setup) apiServerArgs() []string {
	return []string{
		"--bind-address=" + loopback.Host,
		"--secure-port=" + strconv.Itoa(s.API),
		"--tls-cert-file=" + s.path("apiserver.crt"),
		"--tls-private-key-file=" + s.path("apiserver.key"),
		"--client-ca-file=" + s.path("ca.crt"),
		"--anonymous-auth=false",
		"--authorization-mode=Node,RBAC",
		"--etcd-servers=https://" + loopback.Address(s.Etcd),
		"--etcd-cafile=" + s.path("etcd-ca.crt"),
		"--etcd-certfile=" + s.path("etcd-client.crt"),
		"--etcd-keyfile=" + s.path("etcd-client.key"),
		"--service-cluster-ip-range=" + serviceRange,
		"--service-account-issuer=" + serviceAccountIssuer,
		"--service-account-key-file=" + s.path("service-account.key"),
		"--service-account-signing-key-file=" + s.path("service-account.key"),
		// With no address given the API server looks for one on an interface with a default route, and fails where there is
		// none. Loopback is not allowed in the endpoints of a Service, so it must not publish itself there.
		"--advertise-address=" + loopback.Host,
		"--endpoint-reconciler-type=none",
	}
}

func (s *setup) controllerManagerArgs() []string {
	kubeconfig := s.path("controller-manager.kubeconfig")
	return []string{
		"--kubeconfig=" + kubeconfig,
		"--use-service-account-credentials=true",
		"--service-account-private-key-file=" + s.path("service-account.key"),
		"--root-ca-file=" + s.path("ca.crt"),
		"--leader-elect=false",
		// Nobody asks it anything, so it serves nothing.
		"--bind-address=" + loopback.Host,
		"--secure-port=0",
		// Every controller fetches a token at the start; with the defaults (20 requests a second) they queue up for seconds.
		"--kube-api-qps=200",
		"--kube-api-burst=400",
	}
}

func httpClient(ca *authority, login keyPair) (*http.Client, error) {
	certificate, err := tls.X509KeyPair(login.cert, login.key)
	if err != nil {
		return nil, fmt.Errorf("read a client certificate: %w", err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.certificate)
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{certificate}},
		DisableKeepAlives: true, // asked a few times at the start and never again
	}}, nil
}
