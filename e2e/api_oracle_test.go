package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-rego/kube-rego/e2e/internal/loopback"
	"github.com/kube-rego/kube-rego/e2e/internal/process"
	"github.com/kube-rego/kube-rego/e2e/programs"
)

// The oracle of OPA's REST API is an `opa run --server` of the version that kube-rego has inside: it knows the same policies
// and data, is asked the same, and kube-rego must answer the same. Where it does not on purpose, deviations says so.

// startAttempts is how often a server is started when another process takes its port first.
const startAttempts = 3

// apiServer is a process that answers OPA's REST API.
type apiServer struct{ address string }

// apiProgram is how to start one.
type apiProgram struct {
	name, path, dir string
	// addresses is on how many it listens. The first is that of the API.
	addresses int
	// args are its arguments.
	args func(addresses []string) []string
	env  []string
	// ready is the path that says 200 when it is ready, at the last address.
	ready string
}

func (p apiProgram) start(t *testing.T) apiServer {
	t.Helper()
	for attempt := 1; ; attempt++ {
		server, err := p.try(t)
		if err == nil {
			return server
		}
		if !errors.Is(err, process.ErrPortTaken) || attempt == startAttempts {
			t.Fatal(err)
		}
	}
}

// try starts it once, and waits until it is ready.
func (p apiProgram) try(t *testing.T) (apiServer, error) {
	t.Helper()
	ports, err := loopback.FreePorts(p.addresses)
	if err != nil {
		return apiServer{}, err
	}
	var addresses []string
	for _, port := range ports {
		addresses = append(addresses, loopback.Address(port))
	}
	started, err := process.Start(process.Config{
		Dir: p.dir, Name: p.name, Path: p.path, Args: p.args(addresses), Env: p.env,
	})
	if err != nil {
		return apiServer{}, err
	}
	t.Cleanup(func() { endServer(t, p.name, started) })
	err = started.WaitReady(t.Context(), func(ctx context.Context) error {
		a, err := exchange(ctx, addresses[p.addresses-1], question{method: "GET", target: p.ready})
		if err == nil && a.status != http.StatusOK {
			err = fmt.Errorf("it says %s", a)
		}
		return err
	})
	return apiServer{addresses[0]}, err
}

// endServer ends a server, and lets a race or a panic of kube-rego fail the test. OPA has a panic or two.
func endServer(t *testing.T, name string, p *process.Process) {
	t.Helper()
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	log, err := os.ReadFile(p.LogPath())
	if err != nil {
		t.Error(err)
	}
	if name == "opa" {
		return
	}
	for _, mark := range []string{"WARNING: DATA RACE", "panic", "level=ERROR"} {
		if strings.Contains(string(log), mark) {
			t.Errorf("kube-rego logged %q", mark)
		}
	}
	if t.Failed() {
		t.Logf("the log of kube-rego:\n%s", shortened(string(log)))
	}
}

func shortened(text string) string {
	const most = 4000
	if len(text) <= most {
		return text
	}
	return fmt.Sprintf("%s… (%d bytes)", text[:most], len(text))
}

// oracleCase is what both servers know, and how they are started.
type oracleCase struct {
	// policies is the folder in testdata/oracle with the policies: namespace/name/key.
	policies string
	// opa and kubeRego are arguments beside those that all have.
	opa, kubeRego []string
	// config is OPA's configuration; empty: none. Its variables are those of env.
	config string
	env    []string
}

// withEnvironment gives both servers their environment: the places of bundles among others.
func (c oracleCase) withEnvironment(t *testing.T) oracleCase {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"first", "second"} {
		cmd := exec.CommandContext(t.Context(), oracleBinary(t), "build", "--bundle", ".", "--output", filepath.Join(dir, name+".tar.gz"))
		cmd.Dir = filepath.Join(oracleDir, "bundles", name)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build the bundle %s: %v\n%s", name, err, out)
		}
	}
	c.env = []string{"ORACLE_OWNER=an owner of the environment", "ORACLE_BUNDLES=" + filepath.ToSlash(dir)}
	return c
}

func oracleBinary(t *testing.T) string {
	t.Helper()
	binary, err := programs.BuildOPA(t.Context(), programs.Config{Progress: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	return binary
}

const oracleDir = "testdata/oracle"

// startOracle runs OPA in the folder of the policies, so that their ids are the same as here: namespace/name/key.
func (c oracleCase) startOracle(t *testing.T) apiServer {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(oracleDir, c.policies))); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"run", "--server", "--log-level=error", "--skip-version-check"}, c.opa...)
	if c.config != "" {
		args = append(args, "--config-file="+c.writeConfig(t))
	}
	for id := range c.sources(t) {
		args = append(args, filepath.FromSlash(id))
	}
	args = append(args, absolute(t, filepath.Join(oracleDir, "data.json")))
	program := apiProgram{name: "opa", path: oracleBinary(t), dir: dir, env: c.env, addresses: 2, ready: "/health?bundles"}
	program.args = func(addresses []string) []string {
		return append(args, "--addr="+addresses[0], "--diagnostic-addr="+addresses[1])
	}
	return program.start(t)
}

// startKubeRego runs kube-rego with the same policies and data as ConfigMaps.
func (c oracleCase) startKubeRego(t *testing.T) apiServer {
	t.Helper()
	manifests := t.TempDir()
	for _, cm := range c.configMaps(t) {
		text, err := json.Marshal(cm)
		if err != nil {
			t.Fatal(err)
		}
		file := fmt.Sprintf("%s.%s.%s.json", cm.Labels[policyLabel]+cm.Labels[dataLabel], cm.Namespace, cm.Name)
		if err := os.WriteFile(filepath.Join(manifests, file), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	args := append([]string{"serve", "--manifests=" + manifests, "--namespaces=opa,team"}, c.kubeRego...)
	if c.config != "" {
		args = append(args, "--opa-config="+c.writeConfig(t))
	}
	program := apiProgram{name: "kube-rego", path: cluster.binary, dir: t.TempDir(), env: c.env, addresses: 3, ready: "/readyz"}
	program.args = func(addresses []string) []string {
		return append(args, "--api-addr="+addresses[0], "--addr="+addresses[1], "--diagnostic-addr="+addresses[2])
	}
	return program.start(t)
}

func (c oracleCase) writeConfig(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "opa.yaml")
	if err := os.WriteFile(file, []byte(c.config), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

func absolute(t *testing.T, path string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// sources are the texts of the policies by id.
func (c oracleCase) sources(t *testing.T) map[string]string {
	t.Helper()
	root := os.DirFS(filepath.Join(oracleDir, c.policies))
	found := map[string]string{}
	err := fs.WalkDir(root, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := fs.ReadFile(root, path)
		found[path] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// configMaps are the policies and data as ConfigMaps. In data.json the first level is the namespace, the second the name and
// the third the key.
func (c oracleCase) configMaps(t *testing.T) []*corev1.ConfigMap {
	t.Helper()
	var list []*corev1.ConfigMap
	for id, source := range c.sources(t) {
		parts := strings.Split(id, "/")
		if len(parts) != 3 {
			t.Fatalf("%s is not namespace/name/key", id)
		}
		// One ConfigMap for each key would do, but names are theirs alone.
		at := slices.IndexFunc(list, func(cm *corev1.ConfigMap) bool { return cm.Namespace == parts[0] && cm.Name == parts[1] })
		if at < 0 {
			at, list = len(list), append(list, policy(parts[0], parts[1]))
		}
		list[at].Data[parts[2]] = source
	}
	text, err := os.ReadFile(filepath.Join(oracleDir, "data.json"))
	if err != nil {
		t.Fatal(err)
	}
	var data map[string]map[string]map[string]json.RawMessage
	if err := json.Unmarshal(text, &data); err != nil {
		t.Fatal(err)
	}
	for namespace, names := range data {
		for name, keys := range names {
			cm := document(namespace, name)
			for key, value := range keys {
				cm.Data[key] = string(value)
			}
			list = append(list, cm)
		}
	}
	for _, cm := range list {
		cm.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"}
	}
	return list
}

// comparison is what servers were asked, and what came of it.
type comparison struct {
	oracle, other apiServer
	// second is another oracle, which must agree with the first.
	second apiServer
	// known are the deviations that are meant; seen counts them.
	known []deviation
	seen  map[string]int
}

func (c *comparison) ask(t *testing.T, all []questions) {
	t.Helper()
	for _, group := range all {
		t.Run(group.sentence, func(t *testing.T) {
			for _, q := range group.list {
				c.askOne(t, q)
			}
		})
	}
	t.Logf("%d questions", count(all))
}

func count(list []questions) int {
	n := 0
	for _, group := range list {
		n += len(group.list)
	}
	return n
}

func (c *comparison) askOne(t *testing.T, q question) {
	t.Helper()
	want, err := exchange(t.Context(), c.oracle.address, q)
	if err != nil {
		t.Errorf("%s: %v", q.name(), err)
		return
	}
	got, err := exchange(t.Context(), c.other.address, q)
	if err != nil {
		t.Errorf("%s: %v", q.name(), err)
		return
	}
	want, got = want.normalised(q), got.normalised(q)
	c.askSecond(t, q, want)
	differ := same(want, got)
	plain, mended := got, want
	var means []string
	for _, d := range c.known {
		if !d.concerns(q, want) {
			continue
		}
		means = append(means, d.what)
		c.seen[d.what]++
		if err := d.mend(q, &mended, &got); err != nil {
			t.Errorf("%s: deviation %q, but %v", q.name(), d.what, err)
		}
	}
	if len(means) > 0 && differ == "" {
		t.Errorf("%s: the answers are the same, so there is no deviation %q any more:\n%s", q.name(), means, plain)
	}
	if len(means) > 0 { // the length of what was mended says nothing
		mended.header, got.header = mended.header.Clone(), got.header.Clone()
		mended.header.Del("Content-Length")
		got.header.Del("Content-Length")
	}
	if differ := same(mended, got); differ != "" {
		theirs, ours := around(want.String(), plain.String())
		t.Errorf("%s: %s differ, beside %q\n--- OPA:\n%s\n--- kube-rego:\n%s", q.name(), differ, means, theirs, ours)
	}
}

// askSecond says that an OPA beside another gives the same answer: the question has one answer only, and normalised takes
// away enough.
func (c *comparison) askSecond(t *testing.T, q question, want answer) {
	t.Helper()
	got, err := exchange(t.Context(), c.second.address, q)
	if err != nil {
		t.Errorf("%s, to the second oracle: %v", q.name(), err)
		return
	}
	if got := got.normalised(q); same(want, got) != "" {
		first, second := around(want.String(), got.String())
		t.Errorf("%s: two oracles differ in %s\n--- one:\n%s\n--- the other:\n%s", q.name(), same(want, got), first, second)
	}
}

// The cases that some deviations are to be seen in.
const (
	configured = "a configuration"
	bundled    = "bundles beside"
)

// oracleConfig is a configuration of OPA, for both.
const oracleConfig = `labels:
  environment: test
  owner: ${ORACLE_OWNER}
default_decision: app/rbac/allow
default_authorization_decision: some/where/else
decision_logs: {console: true}
status: {console: true}
nd_builtin_cache: true
caching: {inter_query_builtin_cache: {max_size_bytes: 1000000}}
server:
  encoding: {gzip: {min_length: 100, compression_level: 1}}
  decoding: {max_length: 2000, gzip: {max_length: 3000}}
services:
  control: {url: "http://127.0.0.1:1", headers: {X-Header: value}, credentials: {bearer: {token: secret}}}
keys:
  one: {algorithm: HS256, key: secret}
`

// besideConfig has two bundles, which both have a file main.rego.
const besideConfig = `bundles:
  first: {resource: "file://${ORACLE_BUNDLES}/first.tar.gz"}
  second: {resource: "file://${ORACLE_BUNDLES}/second.tar.gz"}
status: {console: true}
`

// The cases, each with its questions.
var oracleCases = []struct {
	sentence string
	servers  oracleCase
	ask      func() []questions
}{
	{"policies and data", oracleCase{policies: "v1"}, allQuestions},
	{"Rego v0", oracleCase{policies: "v0", opa: []string{"--v0-compatible"}}, versionZeroQuestions},
	{configured, oracleCase{policies: "v1", config: oracleConfig}, configurationQuestions},
	{bundled, oracleCase{policies: "v1", config: besideConfig}, bundleQuestions},
	{"a policy that says who may ask", oracleCase{
		policies: "authz", opa: []string{"--authentication=token", "--authorization=basic"}, kubeRego: []string{"--api-authorization=basic"},
	}, authorizationQuestions},
}

// kube-rego answers OPA's REST API as OPA does, but for what is written down. Two oracles are asked, and agree.
func TestTheAPIAnswersAsOPA(t *testing.T) {
	seen, ran := map[string]int{}, 0
	for _, c := range oracleCases {
		t.Run(c.sentence, func(t *testing.T) {
			ran++
			known := slices.DeleteFunc(slices.Clone(deviations), func(d deviation) bool { return d.only != "" && d.only != c.sentence })
			servers := c.servers.withEnvironment(t)
			all := comparison{
				oracle: servers.startOracle(t), second: servers.startOracle(t), other: servers.startKubeRego(t),
				known: known, seen: seen,
			}
			before := everything(t, all.other)
			all.ask(t, c.ask())
			if after := everything(t, all.other); after != before {
				before, after := around(before, after)
				t.Errorf("asking has changed what is there\n--- before:\n%s\n--- after:\n%s", before, after)
			}
		})
	}
	for _, d := range deviations {
		if seen[d.what] == 0 && ran == len(oracleCases) {
			t.Errorf("no question shows this deviation any more: %s", d.what)
		}
	}
}

// everything is what a server has: its policies and data, and what it decides without an input.
func everything(t *testing.T, server apiServer) string {
	t.Helper()
	var texts []string
	for _, target := range []string{"/v1/policies", "/v1/data", "/v1/data/system", "/v1/config"} {
		q := question{method: "GET", target: target, headers: []string{"Authorization: Bearer root"}}
		a, err := exchange(t.Context(), server.address, q)
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, a.normalised(q).String())
	}
	return strings.Join(texts, "\n")
}

// Whoever moves from OPA to kube-rego reads in docs/api.md what differs, and why.
func TestTheDocumentationHasAllDeviations(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(cluster.root, "docs", "api.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "| what | why |\n| --- | --- |\n")
	table, _, _ = strings.Cut(table, "\n\n")
	var want []string
	for _, d := range deviations {
		want = append(want, fmt.Sprintf("| %s | %s |", d.what, d.because))
	}
	if got, want := strings.TrimSpace(table), strings.Join(want, "\n"); got != want {
		t.Errorf("docs/api.md has\n%s\n\nand should have\n%s", got, want)
	}
}
