package e2e_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/kube-rego/kube-rego/e2e/kuberego"
	"github.com/kube-rego/kube-rego/e2e/programs"
)

// libBundle is a library, and a decision that asks a ConfigMap.
var libBundle = bundle{
	".manifest":     manifest("1", "lib"),
	"lib/data.json": `{"registry": "good/"}`,
	"lib/images.rego": `package lib.images

trusted(image) if startswith(image, data.lib.registry)

banned contains image if {
	some image in input.images
	data.team.banned.image(image)
}
`,
}

// libPolicies are ConfigMaps of which one asks the bundle, and one is asked by it.
func libPolicies() []*corev1.ConfigMap {
	return []*corev1.ConfigMap{
		policy(opa, "rules", "main", `package team.rules

import data.lib.images

deny contains sprintf("%s is not of %s", [image, data.lib.registry]) if {
	some image in input.images
	not images.trusted(image)
}
`),
		policy(opa, "banned", "main", `package team.banned

image(name) if name in data.opa.images.list
`),
		document(opa, "images", "list", `["old"]`),
	}
}

const someImages = `{"images": ["good/a", "new", "old"]}`

// Bundles and ConfigMaps are one policy set: each reads the other, and follows its changes.
func TestBundlesAndConfigMapsDecideTogether(t *testing.T) {
	t.Parallel()
	files := newFileServer(t)
	files.put(t, "lib.tar.gz", libBundle)
	s := serve(t, libPolicies(), opaConfig(t, bundleConfig(files, "lib")))
	decides(t, s.Instance, "team/rules/deny", someImages, `["new is not of good/","old is not of good/"]`)
	decides(t, s.Instance, "lib/images/banned", someImages, `["old"]`)
	if b := activeBundle(t, s.Instance, "lib", "1"); len(b.Roots) != 1 || b.Roots[0] != "lib" || b.LastSuccess == "" {
		t.Errorf("the bundle is %+v", b)
	}
	before, err := s.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	files.waitAnswered(t, "304 /lib.tar.gz") // it is not loaded again and again

	files.put(t, "lib.tar.gz", libBundle.with(".manifest", manifest("2", "lib"), "lib/data.json", `{"registry": "new"}`))
	decides(t, s.Instance, "team/rules/deny", someImages, `["good/a is not of new","old is not of new"]`)
	activeBundle(t, s.Instance, "lib", "2")
	s.apply(t, document(opa, "images", "list", `["new"]`))
	decides(t, s.Instance, "lib/images/banned", someImages, `["new"]`)
	after, err := s.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if before.Fingerprint == after.Fingerprint {
		t.Errorf("another bundle and other data, and still the fingerprint %s", after.Fingerprint)
	}
}

// A bundle that cannot be had, or cannot be in force, changes nothing but its own status, which says why.
func TestABundleThatIsRefusedChangesNothing(t *testing.T) {
	t.Parallel()
	const file = "lib.tar.gz"
	files := newFileServer(t)
	files.put(t, file, libBundle)
	s := serve(t, libPolicies(), opaConfig(t, bundleConfig(files, "lib")+"status: {console: true}\n"))
	second := libBundle.with(".manifest", manifest("2", "lib"))
	images := second["lib/images.rego"]
	for _, c := range []struct {
		sentence string
		bundle   bundle           // to be served, or
		answer   http.HandlerFunc // to be given
		reason   []string
	}{
		{"Rego that does not parse", second.with("lib/images.rego", images+"\nx if {\n"), nil,
			[]string{"rego_parse_error", "lib/images.rego"}},
		{"a built-in that is off", second.with("lib/send.rego", "package lib.send\n\nx := http.send({\"method\": \"get\", \"url\": \"http://127.0.0.1\"})\n"), nil,
			[]string{"undefined function http.send", "--enable-builtin=http.send", "lib/send.rego"}},
		{"a function that is gone, and that a ConfigMap in force calls", second.with("lib/images.rego", "package lib.images\n\nx := 1\n"), nil,
			[]string{"undefined function data.lib.images.trusted", "opa/rules/main"}},
		{"a function of a ConfigMap that is not there", second.with("lib/call.rego", "package lib.call\n\nx := data.team.nothing.f(1)\n"), nil,
			[]string{"undefined function data.team.nothing.f", "lib/call.rego"}},
		{"a root in which a ConfigMap defines something", second.with(".manifest", manifest("2", "lib", "team/banned")), nil,
			[]string{`"team/banned"`, "opa/banned/main"}},
		{"a root in which a ConfigMap has data", second.with(".manifest", manifest("2", "lib", "opa/images")), nil,
			[]string{`"opa/images"`, "opa/images/list"}},
		{"no roots, which are all", second.with(".manifest", `{"revision": "2"}`), nil,
			[]string{`root ""`, "opa/banned/main", "opa/rules/main"}},
		{"a file outside of its roots", second.with("other/other.rego", "package other\n\nx := 1\n"), nil,
			[]string{"manifest roots [lib] do not permit", "other/other.rego"}},
		{"data where there is a rule", second.with("lib/images/data.json", `{"banned": 1}`), nil,
			[]string{"conflicting rule for data path lib/images/banned"}},
		{"no archive", nil, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("this is no archive")) }, []string{"archive read failed"}},
		{"a service that fails", nil, fails(http.StatusInternalServerError), []string{"Internal Server Error"}},
		{"a bundle that is gone", nil, fails(http.StatusNotFound), []string{"Not Found"}},
		{"a service that hangs up", nil, hangsUp, []string{"EOF"}},
	} {
		t.Run(c.sentence, func(t *testing.T) {
			if c.bundle != nil {
				files.put(t, file, c.bundle)
			}
			files.answersWith(c.answer)
			failedBundle(t, s.Instance, "lib", "1", c.reason...)
			stillDecides(t, s.Instance, "team/rules/deny", someImages, `["new is not of good/","old is not of good/"]`)
			stillDecides(t, s.Instance, "lib/images/banned", someImages, `["old"]`)
			if err := s.Ready(t.Context()); err != nil {
				t.Error(err)
			}
			currentModule(t, s.Instance, "opa/rules/main")
			if told := toldByOPA(t, s.Instance, "lib"); told.ActiveRevision != "1" || told.Code == "" || told.Message == "" {
				t.Errorf("/v1/status tells %+v", told)
			}
		})
	}
	files.put(t, file, second)
	files.answersWith(nil)
	activeBundle(t, s.Instance, "lib", "2")
}

// bundleStatus is what OPA's own status tells of a bundle.
type bundleStatus struct {
	ActiveRevision string `json:"active_revision"`
	Code           string `json:"code"`
	Message        string `json:"message"`
}

func toldByOPA(t *testing.T, instance *kuberego.Instance, name string) bundleStatus {
	t.Helper()
	status, text, err := send(t.Context(), nil, http.MethodGet, instance.APIURL()+"/v1/status", "")
	if err != nil || status != http.StatusOK {
		t.Fatalf("status %d, %v: %s", status, err, text)
	}
	var body struct {
		Result struct{ Bundles map[string]bundleStatus }
	}
	if err := json.Unmarshal([]byte(text), &body); err != nil {
		t.Fatal(err)
	}
	return body.Result.Bundles[name]
}

// A bundle is in force only if its signature is that of the key in OPA's configuration.
func TestSignedBundles(t *testing.T) {
	t.Parallel()
	libBundle := libBundle.with("lib/images.rego", "package lib.images\n\ntrusted(image) if startswith(image, data.lib.registry)\n") // opa build sees nothing else
	private, public := newKeyPair(t)
	other, _ := newKeyPair(t)
	files := newFileServer(t)
	files.putBytes("lib.tar.gz", signed(t, libBundle, private))
	s := serve(t, libPolicies(), opaConfig(t, strings.Replace(bundleConfig(files, "lib"),
		"resource:", "signing: {keyid: author}, resource:", 1)+fmt.Sprintf("keys: {author: {algorithm: ES256, key: %q}}\n", public)))
	activeBundle(t, s.Instance, "lib", "1")

	second := libBundle.with(".manifest", manifest("2", "lib"))
	files.putBytes("lib.tar.gz", signed(t, second, other))
	failedBundle(t, s.Instance, "lib", "1", "verif")
	files.put(t, "lib.tar.gz", second)
	failedBundle(t, s.Instance, "lib", "1", "missing .signatures.json")
	stillDecides(t, s.Instance, "team/rules/deny", someImages, `["new is not of good/","old is not of good/"]`)
	files.putBytes("lib.tar.gz", signed(t, second, private))
	activeBundle(t, s.Instance, "lib", "2")
}

// newKeyPair is a key to sign with, and one to verify with, in PEM.
func newKeyPair(t *testing.T) (private, public string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	known, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	inPEM := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	return inPEM("EC PRIVATE KEY", secret), inPEM("PUBLIC KEY", known)
}

// signed is the archive of a bundle that `opa build` makes and signs with this key.
func signed(t *testing.T, b bundle, private string) []byte {
	t.Helper()
	path, err := programs.BuildOPA(t.Context(), programs.Config{Progress: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	dir, archive := t.TempDir(), filepath.Join(t.TempDir(), "bundle.tar.gz")
	for name, text := range b {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.CommandContext(t.Context(), path, "build", "--bundle", dir, "--output", archive,
		"--signing-alg=ES256", "--signing-key="+writeFile(t, "key.pem", private)).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	content, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// A bundle that is kept on disk is in force after a start without its service.
func TestABundleThatIsKeptOnDisk(t *testing.T) {
	t.Parallel()
	files := newFileServer(t)
	files.put(t, "lib.tar.gz", libBundle)
	s := newStandalone(t, libPolicies(), opaConfig(t, fmt.Sprintf("persistence_directory: %q\n", t.TempDir())+
		strings.Replace(bundleConfig(files, "lib"), "resource:", "persist: true, resource:", 1)))
	s.start(t)
	s.waitReady(t)
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	files.Close()
	s.config.Dir = t.TempDir()
	s.start(t)
	s.waitReady(t)
	stillDecides(t, s.Instance, "team/rules/deny", someImages, `["new is not of good/","old is not of good/"]`)
	failedBundle(t, s.Instance, "lib", "1", "connection refused")
	stillDecides(t, s.Instance, "lib/images/banned", someImages, `["old"]`)
}

// notReadyFor waits until /readyz says why it is not, with these parts.
func notReadyFor(t *testing.T, instance *kuberego.Instance, parts ...string) {
	t.Helper()
	eventually(t, "the reason in /readyz", func(ctx context.Context) error {
		err := instance.Ready(ctx)
		if err == nil {
			t.Fatal("it is ready")
		}
		if !contains(append(parts, "503")...)(err.Error()) {
			return err
		}
		return nil
	})
}

// Bundles are beside each other where their roots are; one in old Rego too.
func TestSeveralBundles(t *testing.T) {
	t.Parallel()
	files := newFileServer(t)
	files.put(t, "lib.tar.gz", libBundle)
	files.put(t, "old.tar.gz", bundle{
		".manifest":      `{"revision": "1", "roots": ["old"], "rego_version": 0}`,
		"old/rules.rego": "package old\n\ndeny[message] {\n\tinput.images[_] == data.old.image\n\tmessage := \"old\"\n}\n",
		"old/data.json":  `{"image": "old"}`,
	})
	s := serve(t, libPolicies(), opaConfig(t, bundleConfig(files, "lib", "old")))
	stillDecides(t, s.Instance, "old/deny", someImages, `["old"]`)
	stillDecides(t, s.Instance, "lib/images/banned", someImages, `["old"]`)

	files.put(t, "old.tar.gz", bundle{".manifest": manifest("2", "lib/images"), "lib/images/x.rego": "package lib.images\n\nx := 1\n"})
	failedBundle(t, s.Instance, "old", "1", "overlapping roots")
	activeBundle(t, s.Instance, "lib", "1")
	stillDecides(t, s.Instance, "old/deny", someImages, `["old"]`)
	stillDecides(t, s.Instance, "lib/images/x", someImages, `undefined`)
}

// A delta changes data of the bundle that is in force.
func TestADeltaBundle(t *testing.T) {
	t.Parallel()
	files := newFileServer(t)
	files.put(t, "lib.tar.gz", libBundle)
	s := serve(t, libPolicies(), opaConfig(t, bundleConfig(files, "lib")))
	files.put(t, "lib.tar.gz", bundle{
		".manifest":  manifest("2", "lib"),
		"patch.json": `{"data": [{"op": "replace", "path": "/lib/registry", "value": "o"}, {"op": "upsert", "path": "/lib/more", "value": [1]}]}`,
	})
	decides(t, s.Instance, "team/rules/deny", someImages, `["good/a is not of o","new is not of o"]`)
	decides(t, s.Instance, "lib/more", `{}`, `[1]`)
	activeBundle(t, s.Instance, "lib", "2")
	stillDecides(t, s.Instance, "lib/images/banned", someImages, `["old"]`)
	s.apply(t, document(opa, "images", "list", `["new"]`)) // compiling anew keeps the delta
	decides(t, s.Instance, "lib/images/banned", someImages, `["new"]`)
	stillDecides(t, s.Instance, "lib/more", `{}`, `[1]`)
}

// OPA's configuration may come from a bundle itself, and change.
func TestDiscovery(t *testing.T) {
	t.Parallel()
	files, logs := newFileServer(t), newCollector(t)
	files.put(t, "lib.tar.gz", libBundle)
	files.put(t, "more.tar.gz", bundle{".manifest": manifest("1", "more"), "more/more.rego": "package more\n\nx := 1\n"})
	discover := func(bundles ...string) {
		config := map[string]any{"decision_logs": map[string]any{"service": "logs", "reporting": map[string]int{"min_delay_seconds": 1, "max_delay_seconds": 1}}}
		all := make(map[string]any)
		for _, name := range bundles {
			all[name] = map[string]any{"service": "files", "resource": name + ".tar.gz",
				"polling": map[string]int{"min_delay_seconds": 1, "max_delay_seconds": 1}}
		}
		config["bundles"] = all
		text, err := json.Marshal(map[string]any{"discovered": config})
		if err != nil {
			t.Fatal(err)
		}
		files.put(t, "discovery.tar.gz", bundle{"data.json": string(text)})
	}
	discover("lib")
	s := serve(t, libPolicies(), opaConfig(t, fmt.Sprintf(
		"services: {files: {url: %s}, logs: {url: %s}}\ndiscovery: {service: files, resource: discovery.tar.gz, decision: discovered, %s}\n",
		files.URL, logs.URL, polling)))
	decides(t, s.Instance, "team/rules/deny", someImages, `["new is not of good/","old is not of good/"]`)
	activeBundle(t, s.Instance, "lib", "1")
	logs.wait(t, "the decision", func(e event) bool { return e.Path == "team/rules/deny" })

	discover("lib", "more")
	decides(t, s.Instance, "more/x", `{}`, `1`)
	activeBundle(t, s.Instance, "more", "1")

	// A ConfigMap calls a function of the bundle that goes: so it stays as long as it is needed.
	discover("more")
	withBundles(t, s.Instance, "lib is kept", func(all map[string]kuberego.Bundle) bool {
		return all["lib"].State == "kept" && contains("configured no more")(all["lib"].Error)
	})
	waitLogged(t, s, "configured no more", "lib", "opa/rules/main")
	stillDecides(t, s.Instance, "team/rules/deny", someImages, `["new is not of good/","old is not of good/"]`)
	stillDecides(t, s.Instance, "more/x", `{}`, `1`)
	currentModule(t, s.Instance, "opa/rules/main")
	s.apply(t, policy(opa, "rules", "main", "package team.rules\n\ndeny contains data.more.x\n"))
	decides(t, s.Instance, "team/rules/deny", `{}`, `[1]`)
	decides(t, s.Instance, "lib/images", `{}`, `undefined`)
	withBundles(t, s.Instance, "only more", func(all map[string]kuberego.Bundle) bool { return len(all) == 2 && all["more"].State == "active" })
	s.apply(t, libPolicies()[0])
	heldModule(t, s.Instance, "opa/rules/main", "previous", "data.lib.images.trusted")
	discover("more", "lib")
	decides(t, s.Instance, "team/rules/deny", someImages, `["new is not of good/","old is not of good/"]`)
	currentModule(t, s.Instance, "opa/rules/main")
}

// clusterBundle has a function that the webhook's decisions need.
var clusterBundle = bundle{
	".manifest":     manifest("1", "lib", "opa/limits"),
	"lib/core.rego": "package lib.core\n\nbad(value) if value == \"bad\"\n",
}

// On a cluster the author of a ConfigMap reads on it which bundle is in its way, and a start goes on without the service.
func TestBundlesOnACluster(t *testing.T) {
	files := newFileServer(t)
	files.put(t, "lib.tar.gz", clusterBundle)
	installation, instance := install(t, opaConfig(t, bundleConfig(files, "lib")))
	create(t, policy(opa, "main", "main", entrypoint))
	create(t, policy(opa, "bad", "main", `package kubernetes.admission

deny contains "bad" if data.lib.core.bad(input.request.object.metadata.labels.deny)
`))
	refuses(t, "bad")
	annotation(t, opa, "bad", is(statusOK))

	create(t, policy(opa, "extra", "main", "package lib.extra\n\nx := 1\n"))
	create(t, document(opa, "limits", "most", "3"))
	for name, root := range map[string]string{"extra": "lib", "limits": "opa/limits"} {
		annotation(t, opa, name, contains(`"status":"error"`, "bundle lib", root, `"inForce":"none"`))
	}
	files.put(t, "lib.tar.gz", clusterBundle.with(".manifest", manifest("2", "lib/core")))
	for _, name := range []string{"extra", "limits"} {
		annotation(t, opa, name, is(statusOK))
	}

	// A start while the service is down.
	files.answersWith(fails(http.StatusServiceUnavailable))
	if err := instance.Stop(); err != nil {
		t.Fatal(err)
	}
	second, err := installation.Launch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, second) })
	create(t, policy(opa, "other", "main", denyLabel("other")))
	annotation(t, opa, "other", is(statusOK))
	notReadyFor(t, second, "bundle", "lib")
	currentModule(t, second, "opa/extra/main")
	files.answersWith(nil)
	if err := second.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	inForce(t, second, map[string]string{
		"opa/main/main": "current", "opa/bad/main": "current", "opa/extra/main": "current", "opa/limits/most": "current", "opa/other/main": "current",
	})
	annotation(t, opa, "bad", is(statusOK))
}
