// Package programs builds the programs of a Kubernetes control plane from their Go modules, at the versions this module's
// go.mod pins, into a cache folder outside the source tree. Nothing but Go and the Go module proxy is needed.
//
// It uses the standard library only: the command that shows a newcomer what is being built must itself be compiled in
// seconds, before the long wait begins.
package programs

import (
	"cmp"
	"context"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/kube-rego/kube-rego/e2e/internal/filelock"
	"github.com/kube-rego/kube-rego/e2e/internal/gotool"
	"github.com/kube-rego/kube-rego/e2e/internal/progress"
)

// The names of the programs, as Built.Path takes them.
const (
	Etcd              = "etcd"
	Kubectl           = "kubectl"
	APIServer         = "kube-apiserver"
	ControllerManager = "kube-controller-manager"
)

// CacheEnv is the environment variable that names another cache folder.
const CacheEnv = "KUBE_REGO_CACHE"

// opa is no part of a control plane: a benchmark runs it beside kube-rego.
var opa = program{"opa", "github.com/open-policy-agent/opa", "40 seconds"}

// kubernetesModule is the module whose version the programs are stamped with.
const kubernetesModule = "k8s.io/kubernetes"

type program struct {
	name string
	pkg  string
	// usual is how long the build takes on 2 cores when this and the programs above it are built into an empty Go build
	// cache, downloads not counted. Measured on two machines with Go 1.26 and Kubernetes 1.37.
	usual string
}

// all lists the programs, those with the shortest wait first.
var all = []program{
	{Etcd, "go.etcd.io/etcd/server/v3", "1 minute"},
	{Kubectl, "k8s.io/kubernetes/cmd/kubectl", "1.5 minutes"},
	{APIServer, "k8s.io/kubernetes/cmd/kube-apiserver", "4 to 5.5 minutes"},
	{ControllerManager, "k8s.io/kubernetes/cmd/kube-controller-manager", "2 minutes"},
}

// Config says how to build the programs.
type Config struct {
	// ModuleDir is a folder of the Go module whose go.mod pins the programs. Empty: the current folder.
	ModuleDir string
	// CacheDir is the folder to keep the programs in, about 300 MB for each set of versions; it may be deleted at any time.
	// Empty: the environment variable KUBE_REGO_CACHE, or else kube-rego in the user's cache folder.
	CacheDir string
	// Progress is told what is being built, how long that usually takes, and at least every 10 seconds how long it took so
	// far. Nothing is written when everything is built already. Nil: silent.
	Progress io.Writer
}

// Built is one complete set of programs.
type Built struct {
	// Dir is the folder they are in.
	Dir string `json:"dir"`
	// KubernetesVersion is the version they are stamped with, like v1.37.2.
	KubernetesVersion string `json:"kubernetesVersion"`
}

// Path is the path of the program with this name.
func (b Built) Path(name string) string { return filepath.Join(b.Dir, name) }

// has says whether a program was built. Programs come to their place by an atomic rename, so being there is the proof.
func (b Built) has(name string) bool {
	_, err := os.Stat(b.Path(name))
	return err == nil
}

// Build builds the programs that are not in the cache yet. The first call takes minutes, later ones milliseconds. Several
// processes may call it at once: one builds, the others wait for it.
func Build(ctx context.Context, cfg Config) (Built, error) { return build(ctx, cfg, all) }

// BuildOPA builds the opa command like the other programs, which do not wait for it, and tells its path.
func BuildOPA(ctx context.Context, cfg Config) (string, error) {
	built, err := build(ctx, cfg, []program{opa})
	return built.Path(opa.name), err
}

func build(ctx context.Context, cfg Config, wanted []program) (Built, error) {
	if cfg.Progress == nil {
		cfg.Progress = io.Discard
	}
	r, err := newRecipe(ctx, cfg.ModuleDir)
	if err != nil {
		return Built{}, err
	}
	cache, err := cacheDir(cfg.CacheDir)
	if err != nil {
		return Built{}, err
	}
	built := Built{Dir: filepath.Join(cache, r.key), KubernetesVersion: r.version}
	if len(missing(built, wanted)) == 0 {
		return built, nil
	}
	if err := os.MkdirAll(built.Dir, 0o755); err != nil {
		return Built{}, fmt.Errorf("make the cache folder: %w", err)
	}
	return built, buildMissing(ctx, r, built, wanted, cfg.Progress)
}

func buildMissing(ctx context.Context, r recipe, built Built, wanted []program, out io.Writer) error {
	var unlock func()
	err := progress.During(out, "waiting for another build of the same programs", func() (err error) {
		unlock, err = filelock.Lock(ctx, built.Path("lock"))
		return err
	})
	if err != nil {
		return err
	}
	defer unlock()
	for _, p := range missing(built, wanted) {
		if err := r.build(ctx, p, built, out); err != nil {
			return err
		}
	}
	return nil
}

func missing(built Built, wanted []program) []program {
	var list []program
	for _, p := range wanted {
		if !built.has(p.name) {
			list = append(list, p)
		}
	}
	return list
}

func cacheDir(configured string) (string, error) {
	if dir := cmp.Or(configured, os.Getenv(CacheEnv)); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache folder (set %s to choose one): %w", CacheEnv, err)
	}
	return filepath.Join(dir, "kube-rego"), nil
}

// recipe is everything the programs are made from.
type recipe struct {
	moduleDir string
	version   string   // of Kubernetes, like v1.37.2
	flags     []string // of go build
	key       string   // names the recipe: another key, another program
}

func newRecipe(ctx context.Context, dir string) (recipe, error) {
	moduleDir, err := gotool.ModuleDir(ctx, dir)
	if err != nil {
		return recipe{}, err
	}
	target, err := goOutput(ctx, dir, "env", "GOVERSION", "GOOS", "GOARCH")
	if err != nil {
		return recipe{}, err
	}
	version, err := goOutput(ctx, dir, "list", "-m", "-f", "{{.Version}}", kubernetesModule)
	if err != nil {
		return recipe{}, err
	}
	flags, err := buildFlags(version)
	if err != nil {
		return recipe{}, err
	}
	r := recipe{moduleDir: moduleDir, version: version, flags: flags}
	r.key, err = r.hash(target)
	return r, err
}

// hash covers what the programs depend on: the pinned versions, the Go toolchain with its target, and the flags. It tells
// recipes apart and proves nothing, so FNV does: crypto/sha256 would add seconds to the compilation of this package.
func (r recipe) hash(target string) (string, error) {
	h := fnv.New64a()
	for _, name := range []string{"go.mod", "go.sum"} {
		content, err := os.ReadFile(filepath.Join(r.moduleDir, name))
		if err != nil {
			return "", fmt.Errorf("read the pinned versions: %w", err)
		}
		fmt.Fprintf(h, "%d\n%s", len(content), content)
	}
	// The path of the folder is left out: two checkouts share their programs.
	fmt.Fprintf(h, "%s\n%q", target, r.flags)
	return fmt.Sprintf("%016x", h.Sum64()), nil
}

// buildFlags stamps the version as the Kubernetes release scripts do: component-base is what the servers and kubectl report,
// client-go what they send as user agent.
func buildFlags(version string) ([]string, error) {
	parts := strings.Split(strings.TrimPrefix(version, "v"), ".")
	if len(parts) < 3 {
		return nil, fmt.Errorf("read the version of %s: %q is not of the form v1.2.3", kubernetesModule, version)
	}
	ldflags := []string{"-s", "-w"}
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		ldflags = append(ldflags,
			"-X", pkg+".gitVersion="+version,
			"-X", pkg+".gitMajor="+parts[0],
			"-X", pkg+".gitMinor="+parts[1],
			"-X", pkg+".gitTreeState=clean",
		)
	}
	return []string{"-trimpath", "-ldflags", strings.Join(ldflags, " ")}, nil
}

func (r recipe) build(ctx context.Context, p program, built Built, out io.Writer) error {
	fmt.Fprintf(out, "building %s into %s (from an empty Go build cache usually %s on 2 cores)\n", p.name, built.Dir, p.usual)
	start := time.Now()
	temporary := built.Path(p.name + ".unfinished") // the lock is held: nobody else writes it
	args := append([]string{"build"}, r.flags...)
	args = append(args, "-o", temporary, p.pkg)
	err := progress.During(out, "building "+p.name, func() error {
		_, err := goOutput(ctx, r.moduleDir, args...)
		return err
	})
	if err != nil {
		return fmt.Errorf("build %s: %w", p.name, err)
	}
	if err := os.Rename(temporary, built.Path(p.name)); err != nil {
		return fmt.Errorf("build %s: %w", p.name, err)
	}
	fmt.Fprintf(out, "built %s in %s\n", p.name, time.Since(start).Round(time.Second))
	return nil
}

// goOutput runs the go command in dir, for programs without C.
func goOutput(ctx context.Context, dir string, args ...string) (string, error) {
	return gotool.Output(ctx, dir, []string{"CGO_ENABLED=0"}, args...)
}
