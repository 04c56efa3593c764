package e2e_test

import (
	"context"
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
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// What cannot be followed ends kube-rego with a reason before it decides anything.
func TestConfigurationsThatCannotBeFollowed(t *testing.T) {
	t.Parallel()
	services := "services: {files: {url: http://127.0.0.1:1}}\n"
	missing := filepath.Join(t.TempDir(), "missing")
	empty := writeFile(t, "empty", " \n")
	nonsense := writeFile(t, "nonsense", "nonsense")
	for _, c := range []struct {
		sentence string
		args     []string
		code     int
		stderr   []string
	}{
		{"YAML that is broken", []string{opaConfig(t, "services: {")}, 1, []string{"opa.yaml", "yaml"}},
		{"YAML that is no object", []string{opaConfig(t, "- services")}, 1, []string{"opa.yaml"}},
		{"a file that is not there", []string{"--opa-config=" + missing}, 1, []string{missing, "no such file"}},
		{"a plugin that nobody knows", []string{opaConfig(t, "plugins: {teleport: {}}")}, 1, []string{"teleport"}},
		{"a bundle of a service that is not there", []string{opaConfig(t, services+"bundles: {lib: {service: elsewhere}}")}, 1,
			[]string{`bundle "lib"`, `"elsewhere" not found`}},
		{"decision logs for a service that is not there", []string{opaConfig(t, services+"decision_logs: {service: elsewhere}")}, 1,
			[]string{"decision_logs", "elsewhere"}},
		{"a status for a service that is not there", []string{opaConfig(t, services+"status: {service: elsewhere}")}, 1, []string{"status", "elsewhere"}},
		{"discovery without a resource", []string{opaConfig(t, services+"discovery: {service: files}")}, 1, []string{"discovery.resource"}},
		{"a key of an algorithm that nobody knows", []string{opaConfig(t, "keys: {author: {algorithm: ROT13, key: x}}")}, 1, []string{"ROT13"}},
		{"a key that is not there", []string{opaConfig(t, services+"bundles: {lib: {service: files, signing: {keyid: author}}}")}, 1, []string{"author"}},
		{"polling backwards", []string{opaConfig(t, services+"bundles: {lib: {service: files, polling: {min_delay_seconds: 2, max_delay_seconds: 1}}}")}, 1,
			[]string{"polling delay"}},
		{"a token that is not there", []string{"--api-token-file=" + missing}, 1, []string{missing, "no such file"}},
		{"a token that is empty", []string{"--api-token-file=" + empty}, 1, []string{empty, "empty"}},
		{"a CA of clients that is not there", []string{"--api-tls-client-ca-file=" + missing}, 1, []string{missing, "no such file"}},
		{"a CA of clients that is none", []string{"--tls-client-ca-file=" + nonsense}, 1, []string{nonsense}},
		{"an API for everybody on the network", []string{"--api-addr=0.0.0.0:0"}, 2,
			[]string{"--api-addr", "0.0.0.0", "--api-token-file", "--api-tls-client-ca-file", "--api-authorization=basic"}},
		{"an API for everybody on all addresses", []string{"--api-addr=:0"}, 2, []string{"--api-addr", "--api-token-file"}},
		{"an API at a name", []string{"--api-addr=opa.example.com:8181"}, 2, []string{"--api-addr", "--api-token-file"}},
		{"an address that is none", []string{"--api-addr=8181"}, 2, []string{"--api-addr", `"8181"`}},
		{"an authorization that nobody knows", []string{"--api-authorization=maybe"}, 2, []string{"--api-authorization", "maybe", "auto", "basic"}},
	} {
		t.Run(c.sentence, func(t *testing.T) {
			got := runServe(t, append([]string{"--manifests=" + t.TempDir(), "--api-addr=127.0.0.1:0"}, c.args...)...)
			if got.code != c.code || !contains(append(c.stderr, "kube-rego: ")...)(got.stderr) {
				t.Errorf("exit code %d, want %d; want %q in: %s", got.code, c.code, c.stderr, got.stderr)
			}
			if last := lastLine(got.stderr); !strings.HasPrefix(last, "kube-rego: ") {
				t.Errorf("its last words are %q", last)
			}
		})
	}
}

func lastLine(text string) string {
	text = strings.TrimSuffix(text, "\n")
	return text[strings.LastIndex(text, "\n")+1:]
}

// A service that is down is seen in the status, and policies of ConfigMaps go on.
func TestServicesThatAreDown(t *testing.T) {
	t.Parallel()
	s := newStandalone(t, libPolicies(), opaConfig(t, `services: {down: {url: http://127.0.0.1:1}}
bundles: {lib: {service: down, `+polling+`}}
status: {service: down}
decision_logs: {service: down, reporting: {min_delay_seconds: 1, max_delay_seconds: 1}}
`))
	s.start(t)
	failedBundle(t, s.Instance, "lib", "", "connection refused")
	notReadyFor(t, s.Instance, "bundle", "lib")
	currentModule(t, s.Instance, "opa/banned/main")
	heldModule(t, s.Instance, "opa/rules/main", "none", "data.lib.images.trusted")
	eventually(t, "plugins in /status", func(ctx context.Context) error {
		status, err := s.Status(ctx)
		if err != nil {
			return err
		}
		states := make(map[string]string)
		for _, p := range status.Plugins {
			states[p.Name] = p.State
		}
		if states["bundle"] != "NOT_READY" || states["decision_logs"] == "" || states["status"] == "" {
			return fmt.Errorf("they are %+v", status.Plugins)
		}
		return nil
	})
	status, text, err := send(t.Context(), nil, http.MethodGet, s.APIURL()+"/health?bundles", "")
	if err != nil || status < http.StatusInternalServerError {
		t.Errorf("/health?bundles: status %d, %v: %s", status, err, text)
	}
	s.apply(t, policy(opa, "later", "main", "package later\n\nx := 1\n"))
	currentModule(t, s.Instance, "opa/later/main")
}

// The environment stands in for ${NAME} in the configuration; what is not set stays as it is, as in OPA.
func TestTheEnvironmentInTheConfiguration(t *testing.T) {
	t.Parallel()
	files := newFileServer(t)
	files.put(t, "lib.tar.gz", libBundle)
	s := newStandalone(t, libPolicies(), opaConfig(t, `services: {files: {url: "${FILES_URL}", credentials: {bearer: {token: "${FILES_TOKEN}"}}}}
bundles: {lib: {service: files, resource: lib.tar.gz, `+polling+`}}
labels: {region: "${REGION}", unset: "x${UNSET}y"}
`))
	s.config.Env = []string{"FILES_URL=" + files.URL, "FILES_TOKEN=secret-of-files", "REGION=eu-central-1"}
	s.start(t)
	s.waitReady(t)
	if got := files.lastHeader("Authorization"); got != "Bearer secret-of-files" {
		t.Errorf("the service was asked with %q", got)
	}
	// What the API tells of the configuration has no credentials.
	status, text, err := send(t.Context(), nil, http.MethodGet, s.APIURL()+"/v1/config", "")
	if err != nil || status != http.StatusOK {
		t.Fatalf("status %d, %v: %s", status, err, text)
	}
	if !contains(`"region":"eu-central-1"`, `"unset":"x${UNSET}y"`, files.URL)(text) || strings.Contains(text, "secret-of-files") {
		t.Errorf("the configuration is %s", text)
	}
}

// apiStatus is what a decision over the API is answered with.
func apiStatus(ctx context.Context, s *standalone, header ...string) (int, error) {
	status, _, err := send(ctx, nil, http.MethodPost, s.APIURL()+"/v1/data/rules/x", `{}`, header...)
	return status, err
}

// answersAPI waits until a decision over the API is answered with this status.
func answersAPI(t *testing.T, s *standalone, status int, header ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("status %d for %q", status, header), func(ctx context.Context) error {
		got, err := apiStatus(ctx, s, header...)
		if err == nil && got != status {
			err = fmt.Errorf("got %d", got)
		}
		return err
	})
}

// stillAnswersAPI fails unless a decision over the API is answered with this status now.
func stillAnswersAPI(t *testing.T, s *standalone, status int, header ...string) {
	t.Helper()
	if got, err := apiStatus(t.Context(), s, header...); err != nil || got != status {
		t.Errorf("status %d, %v for %q; want %d", got, err, header, status)
	}
}

func oneRule() []*corev1.ConfigMap {
	return []*corev1.ConfigMap{policy(opa, "rules", "main", "package rules\n\nx := 1\n")}
}

// With a token nobody is heard who does not show it.
func TestTheTokenOfTheAPI(t *testing.T) {
	t.Parallel()
	s := serve(t, oneRule(), "--api-token-file="+writeFile(t, "token", "first\n"))
	const name = "Authorization"
	stillAnswersAPI(t, s, http.StatusOK, name, "Bearer first")
	for _, header := range [][]string{nil, {name, "Bearer second"}, {name, "Bearer "}, {name, "first"}, {name, "Basic first"}, {name, "Bearer first2"}} {
		stillAnswersAPI(t, s, http.StatusUnauthorized, header...)
	}
	status, text, err := send(t.Context(), nil, http.MethodGet, s.APIURL()+"/v1/policies", "")
	if err != nil || status != http.StatusUnauthorized || !contains(`"code"`, "unauthorized", `"message"`)(text) {
		t.Errorf("status %d, %v: %s", status, err, text)
	}
	// A kubelet has no token.
	if status, text, err := send(t.Context(), nil, http.MethodGet, s.APIURL()+"/health", ""); err != nil || status != http.StatusOK {
		t.Errorf("status %d, %v: %s", status, err, text)
	}
}

// The token follows its file. A file without one keeps the token before, and nobody gets in without.
func TestTheTokenOfTheAPIFollowsItsFile(t *testing.T) {
	t.Parallel()
	const name = "Authorization"
	type changed struct {
		sentence string
		change   func(file string) error
		logged   []string
		token    string

		file     string
		instance *standalone
	}
	all := []*changed{
		{sentence: "another token", change: func(file string) error { rewrite(t, file, "second\n"); return nil }, token: "second"},
		{sentence: "an empty file", change: func(file string) error { return os.WriteFile(file, nil, 0o600) },
			logged: []string{"level=ERROR", "empty"}, token: "first"},
		{sentence: "no file", change: os.Remove, logged: []string{"level=ERROR", "no such file"}, token: "first"},
	}
	// All at once: a file is looked at every 10 seconds.
	for _, c := range all {
		c.file = writeFile(t, "token", "first\n")
		c.instance = serve(t, oneRule(), "--api-token-file="+c.file)
		if err := c.change(c.file); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range all {
		t.Run(c.sentence, func(t *testing.T) {
			if c.logged != nil {
				waitLogged(t, c.instance, append(c.logged, c.file)...)
			}
			answersAPI(t, c.instance, http.StatusOK, name, "Bearer "+c.token)
			for _, token := range []string{"first", "second", ""} {
				if token != c.token {
					stillAnswersAPI(t, c.instance, http.StatusUnauthorized, name, "Bearer "+token)
				}
			}
		})
	}
}

// rewrite replaces a file as a kubelet does: whole.
func rewrite(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// waitLogged waits for a line in the log with these parts.
func waitLogged(t *testing.T, s *standalone, parts ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%q in the log", parts), func(context.Context) error {
		log, err := os.ReadFile(s.LogPath())
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(log)) {
			if contains(parts...)(line) {
				return nil
			}
		}
		return errors.New("it is not there")
	})
}

// Where clients have to show a certificate, nobody else is heard.
func TestClientCertificates(t *testing.T) {
	t.Parallel()
	ca, good := newClientCertificate(t)
	_, other := newClientCertificate(t)
	s := newStandalone(t, oneRule(), "--api-tls-client-ca-file="+ca, "--tls-client-ca-file="+ca)
	s.start(t)
	s.waitReady(t)
	for name, url := range map[string]string{"api": "https" + strings.TrimPrefix(s.APIURL(), "http"), "webhook": strings.TrimSuffix(s.URL(), "/")} {
		for _, c := range []struct {
			sentence    string
			certificate []tls.Certificate
			ok          bool
		}{{"with a certificate", []tls.Certificate{good.Certificate}, true}, {"without", nil, false}, {"of another CA", []tls.Certificate{other.Certificate}, false}} {
			t.Run(name+" "+c.sentence, func(t *testing.T) {
				client := &http.Client{Timeout: limit, Transport: &http.Transport{
					TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: c.certificate}, DisableKeepAlives: true,
				}}
				status, text, err := send(t.Context(), client, http.MethodPost, url+"/v0/data/rules/x", `{}`)
				if c.ok && (err != nil || status != http.StatusOK || text != "1") {
					t.Errorf("status %d, %v: %s", status, err, text)
				}
				if !c.ok && err == nil {
					t.Errorf("status %d: %s", status, text)
				}
			})
		}
	}
	if status, text, err := send(t.Context(), nil, http.MethodPost, s.APIURL()+"/v0/data/rules/x", `{}`); err == nil && status == http.StatusOK {
		t.Errorf("plain HTTP is answered with %s", text)
	}
}

// clientCertificate is a certificate to log in with.
type clientCertificate struct {
	tls.Certificate
	certificate, key []byte // in PEM
}

// login is the certificate as a kubeconfig has it.
func (c clientCertificate) login() clientcmdapi.AuthInfo {
	return clientcmdapi.AuthInfo{ClientCertificateData: c.certificate, ClientKeyData: c.key}
}

// newClientCertificate makes a CA, whose file it tells, and a certificate of it.
func newClientCertificate(t *testing.T) (caFile string, client clientCertificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := func(name string) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}
	}
	ca := template("a CA")
	ca.IsCA, ca.BasicConstraintsValid, ca.KeyUsage = true, true, x509.KeyUsageCertSign
	var encoded [2][]byte
	for n, c := range []*x509.Certificate{ca, template("a client")} {
		der, err := x509.CreateCertificate(rand.Reader, c, ca, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		encoded[n] = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	secret, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	client.certificate, client.key = encoded[1], pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: secret})
	if client.Certificate, err = tls.X509KeyPair(client.certificate, client.key); err != nil {
		t.Fatal(err)
	}
	return writeFile(t, "ca.pem", string(encoded[0])), client
}

// authz lets a user with this token read one path.
func authz(token string) *corev1.ConfigMap {
	return policy(opa, "authz", "main", fmt.Sprintf(`package system.authz

default allow := false

allow if {
	input.identity == %q
	input.path == ["v1", "data", "rules", "x"]
}

allow if input.path == ["health"]
`, token))
}

// The API is for whom system.authz of a trusted namespace allows it; of another namespace it is held.
func TestAuthorizationOfTheAPI(t *testing.T) {
	t.Parallel()
	const name = "Authorization"
	theirs := authz("mallory")
	theirs.Namespace = "team"
	args := []string{"--namespaces=opa,team"}
	t.Run("auto: where there is one", func(t *testing.T) {
		t.Parallel()
		s := serve(t, append(oneRule(), theirs), append(args, "--api-token-file="+writeFile(t, "token", "jane"))...)
		heldModule(t, s.Instance, "team/authz/main", "none", "system")
		stillAnswersAPI(t, s, http.StatusOK, name, "Bearer jane")
		s.apply(t, authz("jane"))
		currentModule(t, s.Instance, "opa/authz/main")
		stillAnswersAPI(t, s, http.StatusOK, name, "Bearer jane")
		stillAnswersAPI(t, s, http.StatusUnauthorized)
		status, text, err := send(t.Context(), nil, http.MethodGet, s.APIURL()+"/v1/policies", "", name, "Bearer jane")
		if err != nil || status != http.StatusUnauthorized || !contains("unauthorized")(text) {
			t.Errorf("status %d, %v: %s", status, err, text)
		}
		s.apply(t, authz("joe"))
		answersAPI(t, s, http.StatusUnauthorized, name, "Bearer jane")
	})
	t.Run("basic: always", func(t *testing.T) {
		t.Parallel()
		s := serve(t, append(oneRule(), theirs), append(args, "--api-authorization=basic")...)
		heldModule(t, s.Instance, "team/authz/main", "none", "system")
		for _, token := range []string{"Bearer jane", "Bearer mallory"} {
			if got, err := apiStatus(t.Context(), s, name, token); err != nil || got < http.StatusBadRequest {
				t.Errorf("%s gets status %d, %v without a policy", token, got, err)
			}
		}
		s.apply(t, authz("jane"))
		answersAPI(t, s, http.StatusOK, name, "Bearer jane")
		stillAnswersAPI(t, s, http.StatusUnauthorized, name, "Bearer mallory")
		if err := os.Remove(s.file(authz(""))); err != nil {
			t.Fatal(err)
		}
		eventually(t, "nothing is allowed without a policy", func(ctx context.Context) error {
			got, err := apiStatus(ctx, s, name, "Bearer jane")
			if err == nil && got < http.StatusBadRequest {
				err = fmt.Errorf("got %d", got)
			}
			return err
		})
	})
}
