package kuberego

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/kube-rego/kube-rego/e2e/controlplane"
	"github.com/kube-rego/kube-rego/e2e/internal/loopback"
	"github.com/kube-rego/kube-rego/e2e/internal/race"
	"github.com/kube-rego/kube-rego/e2e/programs"
)

// TestInstallation lives through what tests do to an installation, on one control plane.
func TestInstallation(t *testing.T) {
	cfg := newConfig(t)
	i, err := Prepare(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := i.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}

	// Another process takes the port before kube-rego does.
	port := i.port
	thief, err := net.Listen("tcp", loopback.Address(port))
	if err != nil {
		t.Fatal(err)
	}
	defer thief.Close()
	first := start(t, i.Start)
	if i.port == port || first.URL() != "https://"+loopback.Address(i.port)+"/" {
		t.Errorf("URL = %s with port %d taken", first.URL(), port)
	}
	waitAsked(t, first)
	testStatus(t, first)
	testArgs(t, i, first)
	testEnvironment(t, first)

	replica := start(t, i.StartReplica)
	if replica.URL() == first.URL() || !first.Running() || !replica.Running() {
		t.Errorf("a replica at %s, running %v, beside the first at %s, running %v",
			replica.URL(), replica.Running(), first.URL(), first.Running())
	}

	if err := first.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := first.Ready(t.Context()); err == nil || first.Running() {
		t.Error("the instance is ready after Kill")
	}
	again := start(t, i.Start)
	if again.URL() != first.URL() || again.LogPath() == first.LogPath() {
		t.Errorf("started again at %s with log %s, want %s and another log", again.URL(), again.LogPath(), first.URL())
	}
	waitAsked(t, again)
}

// newConfig builds everything and starts a control plane.
func newConfig(t *testing.T) Config {
	t.Helper()
	root, err := Root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	built, err := programs.Build(t.Context(), programs.Config{Progress: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	binary, err := Binary(t.Context(), BuildConfig{Root: root, Dir: t.TempDir(), Race: race.Enabled, Progress: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	cluster, err := controlplane.Start(t.Context(), controlplane.Config{
		Programs: built, Dir: t.TempDir(), Progress: t.Output(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Stop(); err != nil {
			t.Error(err)
		}
	})
	return Config{Cluster: cluster, Root: root, Binary: binary, Dir: t.TempDir(), Args: []string{"--log-level=debug"}}
}

func start(t *testing.T, start func(context.Context) (*Instance, error)) *Instance {
	t.Helper()
	instance, err := start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := instance.Stop(); err != nil {
			t.Error(err)
		}
	})
	return instance
}

func waitAsked(t *testing.T, instance *Instance) {
	t.Helper()
	if err := instance.WaitAsked(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n, err := instance.Reviews(t.Context()); n == 0 || err != nil {
		t.Errorf("Reviews = %d, %v", n, err)
	}
}

func testStatus(t *testing.T, instance *Instance) {
	status, err := instance.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !status.Ready || status.Fingerprint == "" || len(status.Modules) != 0 {
		t.Errorf("status = %+v, want ready with an empty set", status)
	}
}

// testArgs says that what is in the Deployment comes first, and what the test wants last.
func testArgs(t *testing.T, i *Installation, instance *Instance) {
	container, err := i.container(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	args, theirs := instance.Args(), container.Args
	if args[0] != "serve" || !slices.Equal(args[:len(theirs)], theirs) || args[len(args)-1] != "--log-level=debug" {
		t.Errorf("args = %q, those of the Deployment %q", args, theirs)
	}
}

func testEnvironment(t *testing.T, instance *Instance) {
	if runtime.GOOS != "linux" {
		return // nobody else shows the environment of a process as a file
	}
	pid, err := os.ReadFile(strings.TrimSuffix(instance.LogPath(), ".log") + ".pid")
	if err != nil {
		t.Fatal(err)
	}
	environ, err := os.ReadFile(filepath.Join("/proc", strings.Fields(string(pid))[0], "environ"))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimRight(string(environ), "\x00"); got != "GOMEMLIMIT=460MiB" {
		t.Errorf("environment = %q, want that of the Deployment", got)
	}
}

func TestInstallFailures(t *testing.T) {
	dir := t.TempDir()
	if _, err := Prepare(Config{Root: filepath.Join(dir, "absent"), Dir: dir}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Prepare without manifests: error %v", err)
	}
	_, err := BuildBinary(t.Context(), BuildConfig{Root: dir, Dir: dir})
	if err == nil || !strings.Contains(err.Error(), "build kube-rego: ") || !strings.Contains(err.Error(), "go.mod") {
		t.Errorf("BuildBinary where there is no project: error %v, want that of the go command", err)
	}
}

func TestCountReviews(t *testing.T) {
	const metrics = `# HELP kube_rego_admission_request_duration_seconds Time to answer an admission review.
# TYPE kube_rego_admission_request_duration_seconds histogram
kube_rego_admission_request_duration_seconds_bucket{decision="allowed",le="+Inf"} 100
kube_rego_admission_request_duration_seconds_sum{decision="allowed"} 0.5
kube_rego_admission_request_duration_seconds_count{decision="allowed"} 20
kube_rego_admission_request_duration_seconds_count{decision="denied"} 3
kube_rego_modules{state="held"} 1000
`
	if n, err := countReviews(metrics); n != 23 || err != nil {
		t.Errorf("countReviews = %d, %v; want 23", n, err)
	}
	if _, err := countReviews(reviews + "{} many\n"); err == nil {
		t.Error("no error for a count that is no number")
	}
}

func TestEnvironmentIsNeverInherited(t *testing.T) {
	if env := environment(corev1.Container{}); env == nil || len(env) != 0 {
		t.Errorf("environment of a container that sets none = %#v, want an empty one", env)
	}
}
