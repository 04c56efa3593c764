package programs

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestBuildFlagsStampTheVersion(t *testing.T) {
	flags, err := buildFlags("v1.37.2")
	if err != nil {
		t.Fatal(err)
	}
	ldflags := flags[len(flags)-1]
	for _, want := range []string{"gitVersion=v1.37.2", "gitMajor=1", "gitMinor=37", "gitTreeState=clean"} {
		if !strings.Contains(ldflags, "-X k8s.io/component-base/version."+want) {
			t.Errorf("ldflags %q do not set %s", ldflags, want)
		}
	}
	if _, err := buildFlags("latest"); err == nil {
		t.Error("no error for a version that is none")
	}
}

// tinyModule makes a module that pins a k8s.io/kubernetes of its own, with the given body of its main function, and a
// program list with that one program.
func tinyModule(t *testing.T, body string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for name, content := range map[string]string{
		"go.mod":            "module tiny\n\ngo 1.26\n\nrequire k8s.io/kubernetes v1.2.3\n\nreplace k8s.io/kubernetes v1.2.3 => ./kubernetes\n",
		"go.sum":            "",
		"kubernetes/go.mod": "module k8s.io/kubernetes\n\ngo 1.26\n",
		"main.go":           "package main\n\nfunc main() { " + body + " }\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	previous := all
	all = []program{{"tiny", ".", "1 second"}}
	t.Cleanup(func() { all = previous })
	return dir
}

func TestBuildOnce(t *testing.T) {
	cfg := Config{ModuleDir: tinyModule(t, `println("hello")`), CacheDir: t.TempDir()}

	var said bytes.Buffer
	cfg.Progress = &said
	first, err := Build(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if first.KubernetesVersion != "v1.2.3" || !first.has("tiny") {
		t.Errorf("built %+v, want version v1.2.3 with the program in it", first)
	}
	if !strings.Contains(said.String(), "building tiny into "+first.Dir) {
		t.Errorf("progress = %q", said.String())
	}

	said.Reset()
	second, err := Build(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if second != first || said.Len() != 0 {
		t.Errorf("second Build = %+v saying %q, want %+v in silence", second, said.String(), first)
	}
}

func TestBuildAgainWhenVersionsChange(t *testing.T) {
	cfg := Config{ModuleDir: tinyModule(t, ""), CacheDir: t.TempDir()}
	first, err := Build(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(cfg.ModuleDir, "go.sum"), []byte("\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	second, err := Build(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if second.Dir == first.Dir {
		t.Error("another go.sum, and the same programs")
	}
}

func TestBuildErrorCarriesTheCompilersOutput(t *testing.T) {
	cfg := Config{ModuleDir: tinyModule(t, "notDeclared()"), CacheDir: t.TempDir()}
	_, err := Build(t.Context(), cfg)
	if err == nil || !strings.Contains(err.Error(), "build tiny") || !strings.Contains(err.Error(), "undefined: notDeclared") {
		t.Errorf("error = %v, want the program's name and the compiler's message", err)
	}
}

func TestConcurrentBuilds(t *testing.T) {
	cfg := Config{ModuleDir: tinyModule(t, ""), CacheDir: t.TempDir()}
	const callers = 4
	errs := make(chan error, callers)
	for range callers {
		go func() {
			_, err := Build(t.Context(), cfg)
			errs <- err
		}()
	}
	for range callers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}
