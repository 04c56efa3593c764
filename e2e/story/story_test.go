package story

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kube-rego/kube-rego/e2e/internal/race"
	"github.com/kube-rego/kube-rego/e2e/kuberego"
	"github.com/kube-rego/kube-rego/e2e/programs"
)

// TestStory plays the story of the demo. A step builds on those before it, so the first that fails is the last.
func TestStory(t *testing.T) {
	dir := t.TempDir()
	stage := newStage(t, dir)
	for _, step := range stage.Steps() {
		passed := t.Run(step.Title, func(t *testing.T) {
			if err := stage.Play(t.Context(), step); err != nil {
				t.Error(err)
			}
		})
		if !passed {
			showLogs(t, dir)
			return
		}
	}
	if want := Count(stage.Steps()); stage.Held() != want {
		t.Errorf("%d expectations held, want all %d", stage.Held(), want)
	}
}

// newStage makes a stage in dir, and stops what is on it when the test ends.
func newStage(t *testing.T, dir string) *Stage {
	t.Helper()
	built, err := programs.Build(t.Context(), programs.Config{Progress: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	root, err := kuberego.Root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	binary, err := kuberego.Binary(t.Context(), kuberego.BuildConfig{Root: root, Dir: dir, Race: race.Enabled, Progress: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	stage, err := NewStage(Config{Programs: built, Binary: binary, Root: root, Dir: dir, Out: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stage.Stop(); err != nil {
			t.Error(err)
		}
		for log, content := range logs(t, dir) {
			if strings.Contains(content, "DATA RACE") {
				t.Errorf("%s:\n%s", log, content)
			}
		}
	})
	return stage
}

// showLogs shows what kube-rego wrote: the folder goes away with the test.
func showLogs(t *testing.T, dir string) {
	t.Helper()
	for log, content := range logs(t, dir) {
		t.Logf("%s:\n%s", log, content)
	}
}

// logs are what the processes of kube-rego wrote, by file.
func logs(t *testing.T, dir string) map[string]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*", "kube-rego", "*.log"))
	if err != nil {
		t.Fatal(err)
	}
	contents := make(map[string]string, len(files))
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Error(err)
		}
		contents[file] = string(content)
	}
	return contents
}
