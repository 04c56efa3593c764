package e2e_test

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-rego/kube-rego/e2e/internal/loopback"
	"github.com/kube-rego/kube-rego/e2e/internal/race"
	"github.com/kube-rego/kube-rego/e2e/kuberego"
)

// beforeVariable names the commit to upgrade from. Without it the version before is this one, and the test is about a
// roll-out of the same program.
const beforeVariable = "KUBE_REGO_BEFORE"

// rolloutReplicas is how many replicas run, and one more while one takes the place of another.
const rolloutReplicas = 3

// A roll-out replaces replicas one by one while policies are edited, to this version and back to the one before. All the
// time the API server and we ask every replica, and nobody may decide otherwise than the policies say. Whatever was in force
// stays so, also where all replicas end at once and start from what the other version has recorded.
func TestUpgradeAndRollback(t *testing.T) {
	before, this := versionBefore(t), version{"this version", cluster.root, cluster.binary}
	r := newRollout(t, before)
	r.writePolicies()
	stopAsking := r.ask()

	r.roll(this, func() { r.editOther("other-2"); r.addData("data-2"); r.breakRules("deny contains }") })
	r.checkStatuses()
	r.startAllAnew(this, this)
	r.editOther("other-3") // of which only this version makes a record
	r.checkStatuses()

	r.roll(before, func() { r.editOther("other-4"); r.addData("data-3"); r.breakRules("deny contains data.nowhere.f(1)") })
	r.checkStatuses()
	r.startAllAnew(before, before)

	// The way that a Deployment with the strategy Recreate goes.
	r.startAllAnew(before, this)
	r.editOther("other-5")
	r.checkStatuses()
	r.startAllAnew(this, before)
	r.checkStatuses()

	stopAsking()
	t.Logf("%d decisions of replicas, which gave none %d times; %d through the API server, which got none %d times; %d wrong",
		r.decided.Load(), r.undecided.Load(), r.decidedThrough.Load(), r.undecidedThrough.Load(), r.wrong.Load())
	if r.decided.Load() == 0 || r.decidedThrough.Load() == 0 {
		t.Error("nobody was asked")
	}
}

// version is a program with its manifests.
type version struct{ name, root, binary string }

// versionBefore builds the version that the environment names, from git.
func versionBefore(t *testing.T) version {
	t.Helper()
	ref := os.Getenv(beforeVariable)
	if ref == "" {
		return version{"the same version", cluster.root, cluster.binary}
	}
	root := filepath.Join(t.TempDir(), "before")
	if err := checkOut(t.Context(), ref, root); err != nil {
		t.Fatal(err)
	}
	binary, err := kuberego.BuildBinary(t.Context(), kuberego.BuildConfig{
		Root: root, Dir: t.TempDir(), Race: race.Enabled, Progress: os.Stderr,
	})
	if err != nil {
		t.Fatal(err)
	}
	return version{"the version before, " + ref, root, binary}
}

// checkOut writes the files of a commit to a folder.
func checkOut(ctx context.Context, ref, dir string) error {
	git := exec.CommandContext(ctx, "git", "archive", "--format=tar", ref)
	git.Dir = cluster.root
	var stderr strings.Builder
	git.Stderr = &stderr
	files, err := git.StdoutPipe()
	if err != nil {
		return err
	}
	if err := git.Start(); err != nil {
		return fmt.Errorf("read the version before from git: %w", err)
	}
	unpacked := unpack(tar.NewReader(files), dir)
	if err := git.Wait(); err != nil {
		return fmt.Errorf("read the version before, %s, from git: %w: %s"+
			"(a shallow clone lacks it: git fetch --unshallow --tags; %s names another one)",
			ref, err, stderr.String(), beforeVariable)
	}
	return unpacked
}

func unpack(files *tar.Reader, dir string) error {
	for {
		header, err := files.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		path := filepath.Join(dir, filepath.FromSlash(header.Name))
		switch header.Typeflag {
		case tar.TypeDir:
			err = os.MkdirAll(path, 0o755)
		case tar.TypeReg:
			err = errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), writeAll(path, files))
		}
		if err != nil {
			return err
		}
	}
}

func writeAll(path string, content io.Reader) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, content)
	return errors.Join(err, file.Close())
}

// rollout is kube-rego on a cluster, in one version or two.
type rollout struct {
	*testing.T
	dir               string // goes away after the replicas
	service           *service
	client            *http.Client
	asking            context.Context // ends with the asking; nil before
	askers            sync.WaitGroup
	started, prepared int
	members           []*member // those that run

	mu sync.Mutex
	// refused says of each value whether it is to be refused, all the time.
	refused map[string]bool

	decided, undecided, decidedThrough, undecidedThrough, wrong atomic.Int64
}

// member is a replica that runs.
type member struct {
	*kuberego.Instance
	name    string
	leaving context.CancelFunc // nobody asks it any more
	left    chan struct{}      // closed then; nil when nobody asked
}

func newRollout(t *testing.T, v version) *rollout {
	removePolicies(t)
	r := &rollout{T: t, dir: t.TempDir(), service: newService(t), refused: make(map[string]bool)}
	t.Cleanup(func() {
		for _, m := range r.members {
			stop(t, m.Instance)
		}
		err := cluster.Client().AdmissionregistrationV1().ValidatingWebhookConfigurations().
			Delete(context.Background(), "kube-rego", metav1.DeleteOptions{})
		if err != nil {
			t.Error(err)
		}
	})
	r.apply(v)
	for range rolloutReplicas {
		r.start(v)
	}
	r.client = lastingClient(injectedCA(t))
	t.Cleanup(r.client.CloseIdleConnections)
	return r
}

// apply applies the manifests of a version.
func (r *rollout) apply(v version) {
	r.Helper()
	if err := r.prepare(v).Apply(r.Context()); err != nil {
		r.Fatalf("%s: %v", v.name, err)
	}
}

// prepare gives each replica an installation of its own: each start writes the kubeconfig anew, which another may be reading.
func (r *rollout) prepare(v version) *kuberego.Installation {
	r.Helper()
	r.prepared++
	installation, err := kuberego.Prepare(kuberego.Config{
		Cluster: cluster.ControlPlane, Root: v.root, Binary: v.binary,
		Dir: filepath.Join(r.dir, fmt.Sprint(r.prepared)), Port: r.service.port(),
	})
	if err != nil {
		r.Fatalf("%s: %v", v.name, err)
	}
	return installation
}

// start starts a replica, and lets the API server ask it as soon as it is ready.
func (r *rollout) start(v version) {
	r.Helper()
	installation := r.prepare(v)
	instance, err := installation.StartReplica(r.Context())
	if err != nil {
		r.Fatalf("%s: %v", v.name, err)
	}
	r.started++
	m := &member{Instance: instance, name: fmt.Sprintf("replica %d, %s", r.started, v.name)}
	r.members = append(r.members, m)
	r.service.add(instance.URL())
	if r.asking != nil {
		r.askMember(m)
	}
}

// end ends a replica as a Deployment does: new connections go to others by then.
func (r *rollout) end(m *member) {
	r.Helper()
	r.members = slices.DeleteFunc(r.members, func(other *member) bool { return other == m })
	r.service.remove(m.URL())
	stop(r, m.Instance)
	if m.left != nil {
		m.leaving()
		<-m.left
	}
}

// roll replaces one replica after the other. When the first has been replaced, it comes to halfway.
func (r *rollout) roll(to version, halfway func()) {
	r.Helper()
	asked, lost := r.decidedThrough.Load(), r.undecidedThrough.Load()
	r.apply(to)
	for n, old := range slices.Clone(r.members) {
		r.start(to)
		r.end(old)
		if n == 0 {
			halfway()
		}
	}
	inStep(r.T, r.members[0].Instance, rolloutReplicas)
	r.Logf("rolled to %s: the API server got %d decisions, and %d times none",
		to.name, r.decidedThrough.Load()-asked, r.undecidedThrough.Load()-lost)
}

// startAllAnew ends all replicas, of one version, and starts as many of the other.
func (r *rollout) startAllAnew(from, to version) {
	r.Helper()
	r.Logf("ending all of %s and starting all of %s", from.name, to.name)
	for _, old := range slices.Clone(r.members) {
		r.end(old)
	}
	if from != to {
		r.apply(to)
	}
	for range rolloutReplicas {
		r.start(to)
	}
	r.checkDecisions()
	inStep(r.T, r.members[0].Instance, rolloutReplicas)
}

// writePolicies writes some of each kind, also such as are held, and waits until they are judged.
func (r *rollout) writePolicies() {
	r.Helper()
	create(r, policy(opa, "main", "main", entrypoint))
	create(r, policy(opa, "core", "main", denyLabel("core")))
	create(r, policy(opa, "other", "main", denyLabel("other-1")))
	create(r, policy(opa, "library", "lib", library))
	create(r, policy(opa, "user", "main", libraryUser))
	create(r, policy(opa, "rules", "main", denyLabel("rules")))
	create(r, policy(opa, "reader", "main", readsData))
	create(r, document(opa, "names", "names.json", `["data-1"]`))
	for _, name := range []string{"main", "core", "other", "library", "user", "rules", "reader", "names"} {
		annotation(r, opa, name, is(statusOK))
	}
	create(r, policy(opa, "never", "main", "package kubernetes.admission\n\ndeny contains }\n"))
	r.breakRules("deny contains")
	remove(r.T, opa, "library")
	told(r.T, "library", "Warning PolicyHeld lib: its deletion is held")
	r.checkStatuses()
	for _, value := range []string{"core", "other-1", "library", "rules", "data-1"} {
		refuses(r, value)
		r.wait(value, true)
	}
	r.wait("anything-else", false)
}

// readsData denies the values that stand in the data ConfigMap names.
const readsData = `package kubernetes.admission

deny contains value if {
	value := input.request.object.metadata.labels.deny
	value in data.opa.names["names.json"]
}
`

// editOther lets the policy other refuse another value than before.
func (r *rollout) editOther(value string) {
	r.Helper()
	var before string
	r.mu.Lock()
	for v, refused := range r.refused {
		if refused && strings.HasPrefix(v, "other-") {
			before = v
			delete(r.refused, v)
		}
	}
	r.mu.Unlock()
	edit(r, opa, "other", func(cm *corev1.ConfigMap) { cm.Data["main"] = denyLabel(value) })
	r.wait(value, true)
	r.wait(before, false)
}

func (r *rollout) addData(value string) {
	r.Helper()
	edit(r, opa, "names", func(cm *corev1.ConfigMap) {
		cm.Data["names.json"] = strings.TrimSuffix(cm.Data["names.json"], "]") + fmt.Sprintf(", %q]", value)
	})
	r.wait(value, true)
}

// breakRules makes a broken edit, over a version that stays in force.
func (r *rollout) breakRules(text string) {
	r.Helper()
	edit(r, opa, "rules", func(cm *corev1.ConfigMap) { cm.Data["main"] = denyLabel("of-the-broken-edit") + text + "\n" })
}

// wait waits until all that run decide so about a value. From then on they are to do so all the time.
func (r *rollout) wait(value string, refused bool) {
	r.Helper()
	eventually(r, fmt.Sprintf("%s is refused: %v", value, refused), func(ctx context.Context) error {
		for _, m := range r.members {
			got, err := r.decision(ctx, m, value)
			if err == nil && got != refused {
				err = fmt.Errorf("%s decides otherwise", m.name)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refused[value] = refused
}

// checkDecisions asks every replica about every value.
func (r *rollout) checkDecisions() {
	r.Helper()
	for value, refused := range r.wanted() {
		for _, m := range r.members {
			got, err := r.decision(r.Context(), m, value)
			if err != nil || got != refused {
				r.Errorf("%s refuses %s: %v, want %v; %v", m.name, value, got, refused, err)
			}
		}
	}
}

func (r *rollout) wanted() map[string]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.refused)
}

// checkStatuses says that each ConfigMap says the truth: then it is recorded, too.
func (r *rollout) checkStatuses() {
	r.Helper()
	for _, name := range []string{"main", "core", "other", "user", "reader", "names"} {
		annotation(r, opa, name, is(statusOK))
	}
	annotation(r, opa, "rules", contains(`"status":"error"`, `"inForce":"previous"`))
	annotation(r, opa, "never", contains(`"status":"error"`, `"inForce":"none"`))
	for _, m := range r.members {
		inForce(r, m.Instance, map[string]string{
			"opa/main/main": "current", "opa/core/main": "current", "opa/other/main": "current", "opa/user/main": "current",
			"opa/reader/main": "current", "opa/names/names.json": "current",
			"opa/library/lib": "previous", "opa/rules/main": "previous", "opa/never/main": "none",
		})
	}
}

// ask asks all the time, until stop is called.
func (r *rollout) ask() (stop func()) {
	ctx, cancel := context.WithCancel(r.Context())
	r.asking = ctx
	for _, m := range r.members {
		r.askMember(m)
	}
	r.askers.Go(func() { r.askAgain(ctx, r.askThrough) })
	return func() {
		cancel()
		r.askers.Wait()
	}
}

// askMember asks a replica until it has ended.
func (r *rollout) askMember(m *member) {
	var ctx context.Context
	ctx, m.leaving = context.WithCancel(r.asking)
	m.left = make(chan struct{})
	r.askers.Go(func() {
		defer close(m.left)
		r.askAgain(ctx, func(ctx context.Context, value string, refused bool) { r.askOne(ctx, m, value, refused) })
	})
}

func (r *rollout) askAgain(ctx context.Context, ask func(context.Context, string, bool)) {
	for ctx.Err() == nil {
		for value, refused := range r.wanted() {
			ask(ctx, value, refused)
			time.Sleep(betweenProbes)
		}
	}
}

// stillWanted says whether a decision that was asked for is to be as it was then.
func (r *rollout) stillWanted(value string, refused bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	now, ok := r.refused[value]
	return ok && now == refused
}

func (r *rollout) askOne(ctx context.Context, m *member, value string, refused bool) {
	got, err := r.decision(ctx, m, value)
	switch {
	case ctx.Err() != nil || !r.stillWanted(value, refused):
	case errors.Is(err, errNotReady):
		r.undecided.Add(1)
	case err != nil || got != refused:
		r.blame("%s refuses %s: %v, want %v; %v", m.name, value, got, refused, err)
	default:
		r.decided.Add(1)
	}
}

// askThrough asks the API server, which asks one of the replicas.
func (r *rollout) askThrough(ctx context.Context, value string, refused bool) {
	err := try(ctx, value)
	switch {
	case ctx.Err() != nil || !r.stillWanted(value, refused):
	case err != nil && strings.Contains(err.Error(), "failed calling webhook"):
		r.undecidedThrough.Add(1)
	case refused && (err == nil || err.Error() != refusal(value)), !refused && err != nil:
		r.blame("the API server is to refuse %s: %v; its answer is %v", value, refused, err)
	default:
		r.decidedThrough.Add(1)
	}
}

// blame fails the test for a wrong decision, of which the first ones are enough.
func (r *rollout) blame(format string, args ...any) {
	if r.wrong.Add(1) <= detailed {
		r.Errorf(format, args...)
	}
}

// decision asks a replica whether it refuses a value. Any answer that is no decision, from one that is ready, is an error.
func (r *rollout) decision(ctx context.Context, m *member, value string) (refused bool, err error) {
	code, answer, err := review(ctx, r.client, m.Instance, value)
	switch {
	case err != nil:
		return false, fmt.Errorf("%w: %w", errNotReady, err)
	case code == http.StatusServiceUnavailable:
		return false, fmt.Errorf("%w: %s", errNotReady, answer)
	case code != http.StatusOK:
		return false, fmt.Errorf("HTTP %d: %s", code, answer)
	case contains(`"allowed":true`)(answer):
		return false, nil
	case contains(`"allowed":false`, fmt.Sprintf(`"message":%q`, value))(answer):
		return true, nil
	}
	return false, fmt.Errorf("the answer is %s", answer)
}

// service stands for the Service of kube-rego: each connection goes to the next of the replicas that are ready.
type service struct {
	listener net.Listener

	mu        sync.Mutex
	addresses []string
	next      int
}

// newService serves until the test ends.
func newService(t *testing.T) *service {
	t.Helper()
	listener, err := net.Listen("tcp", loopback.Address(0))
	if err != nil {
		t.Fatal(err)
	}
	s := &service{listener: listener}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go s.forward(connection)
		}
	}()
	return s
}

func (s *service) port() int { return s.listener.Addr().(*net.TCPAddr).Port }

func (s *service) add(instance string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addresses = append(s.addresses, host(instance))
}

func (s *service) remove(instance string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addresses = slices.DeleteFunc(s.addresses, func(address string) bool { return address == host(instance) })
}

// host is host and port of a URL.
func host(instance string) string {
	u, err := url.Parse(instance)
	if err != nil {
		return ""
	}
	return u.Host
}

func (s *service) choose() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.addresses) == 0 {
		return ""
	}
	s.next++
	return s.addresses[s.next%len(s.addresses)]
}

// forward passes on what comes and goes until one of the two has had enough.
func (s *service) forward(from net.Conn) {
	defer from.Close()
	to, err := net.Dial("tcp", s.choose())
	if err != nil {
		return
	}
	go func() {
		_, _ = io.Copy(to, from)
		to.Close()
	}()
	_, _ = io.Copy(from, to)
}
