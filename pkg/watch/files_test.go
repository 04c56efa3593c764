package watch_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/kube-rego/kube-rego/pkg/watch"
)

// configMap is a policy of the namespace with one key.
func configMap(namespace, name, rego string) string {
	head := "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: " + name + "\n"
	if namespace != "" {
		head += "  namespace: " + namespace + "\n"
	}
	return head + "  labels: {policy: rego}\ndata:\n  main: " + strconv.Quote(rego) + "\n"
}

// inFolder writes files and folders by their path and returns where.
func inFolder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		write(t, filepath.Join(dir, name), content)
	}
	return dir
}

func write(t *testing.T, file, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func newFiles(namespaces []string, paths ...string) (*watch.Files, error) {
	return watch.NewFiles(watch.FilesConfig{
		Paths:      paths,
		Namespaces: namespaces,
		Selectors:  []labels.Selector{labels.SelectorFromSet(labels.Set{"policy": "rego"})},
		Log:        slog.New(slog.DiscardHandler),
	})
}

// told is what the ConfigMaps say: namespace/name=text of the key main, sorted.
func told(configMaps []*corev1.ConfigMap) string {
	var all []string
	for _, cm := range configMaps {
		all = append(all, cm.Namespace+"/"+cm.Name+"="+cm.Data["main"])
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

func TestFilesOfAFolder(t *testing.T) {
	a, b := configMap("opa", "a", "1"), configMap("opa", "b", "2")
	for _, test := range []struct {
		name       string
		namespaces []string // none: opa
		files      map[string]string
		want       string
	}{
		{name: "an empty folder has none"},
		{name: "an empty file has none", files: map[string]string{"a.yaml": ""}},
		{name: "a file with comments and separators only has none", files: map[string]string{"a.yaml": "---\n# nothing\n---\n"}},
		{name: "a ConfigMap", files: map[string]string{"a.yaml": a}, want: "opa/a=1"},
		{name: "several files", files: map[string]string{"a.yaml": a, "b.yml": b}, want: "opa/a=1 opa/b=2"},
		{name: "several documents in a file", files: map[string]string{"a.yaml": "---\n" + a + "---\n" + b + "---\n"}, want: "opa/a=1 opa/b=2"},
		{name: "documents of a file written on Windows", files: map[string]string{"a.yaml": strings.ReplaceAll(a+"---\n"+b, "\n", "\r\n")}, want: "opa/a=1 opa/b=2"},
		{
			name:  "a file in JSON",
			files: map[string]string{"a.json": `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","namespace":"opa","labels":{"policy":"rego"}},"data":{"main":"1"}}`},
			want:  "opa/a=1",
		},
		{
			name:  "a list, as kubectl get writes it",
			files: map[string]string{"a.yaml": "apiVersion: v1\nkind: List\nitems:\n" + item(a) + item(b)},
			want:  "opa/a=1 opa/b=2",
		},
		{
			name:  "a list of ConfigMaps",
			files: map[string]string{"a.yaml": "apiVersion: v1\nkind: ConfigMapList\nitems:\n" + item(a)},
			want:  "opa/a=1",
		},
		{
			name: "objects of other kinds are somebody else's, with all their fields",
			files: map[string]string{"a.yaml": strings.Join([]string{
				strings.Replace(b, "kind: ConfigMap", "kind: Secret", 1) + "colour: blue\n",
				strings.Replace(b, "apiVersion: v1", "apiVersion: example.com/v1", 1) + "colour: blue\n",
				a,
			}, "---\n")},
			want: "opa/a=1",
		},
		{
			name: "files of other kinds and folders are not read",
			files: map[string]string{
				"a.yaml": a, "README.md": "# {", "b.rego": "package b", "b.yaml~": b, ".b.yaml.swp": "\x00", "requests/b.yaml": b,
			},
			want: "opa/a=1",
		},
		{name: "another value of the label is no policy", files: map[string]string{"a.yaml": strings.Replace(a, "policy: rego", "policy: cel", 1)}},
		{name: "no label is no policy", files: map[string]string{"a.yaml": strings.Replace(a, "labels:", "annotations:", 1)}},
		{name: "another namespace is not watched", files: map[string]string{"a.yaml": configMap("default", "a", "1")}},
		{
			name: "no namespace is the first that is watched", namespaces: []string{"opa", "team"},
			files: map[string]string{"a.yaml": configMap("", "a", "1"), "b.yaml": configMap("team", "b", "2")},
			want:  "opa/a=1 team/b=2",
		},
		{
			name: "all namespaces are watched, and no namespace is the default one", namespaces: []string{metav1.NamespaceAll},
			files: map[string]string{"a.yaml": configMap("", "a", "1"), "b.yaml": configMap("team", "b", "2")},
			want:  "default/a=1 team/b=2",
		},
		{
			name: "the same name in two namespaces", namespaces: []string{"opa", "team"},
			files: map[string]string{"a.yaml": configMap("opa", "a", "1") + "---\n" + configMap("team", "a", "2")},
			want:  "opa/a=1 team/a=2",
		},
		{
			name:  "what is no policy may come twice",
			files: map[string]string{"a.yaml": configMap("default", "a", "1"), "b.yaml": configMap("default", "a", "2")},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			namespaces := test.namespaces
			if namespaces == nil {
				namespaces = []string{"opa"}
			}
			files, err := newFiles(namespaces, inFolder(t, test.files))
			if err != nil {
				t.Fatal(err)
			}
			got, err := files.ConfigMaps()
			if err != nil {
				t.Fatal(err)
			}
			if got := told(got); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// item is a manifest as one item of a list.
func item(manifest string) string {
	return "  - " + strings.TrimSpace(strings.ReplaceAll(manifest, "\n", "\n    ")) + "\n"
}

func TestFilesThatAreBroken(t *testing.T) {
	a := configMap("opa", "a", "1")
	const unknown = `json: unknown field `
	for _, test := range []struct {
		name  string
		files map[string]string
		paths []string // in the folder; none: the folder
		want  string   // of the error; DIR stands for the folder
	}{
		{name: "no such file", paths: []string{"a.yaml"}, want: "reading manifests: stat DIR/a.yaml: no such file or directory"},
		{
			name: "broken YAML", files: map[string]string{"a.yaml": "a: b: c\n"},
			want: "reading DIR/a.yaml, document 1: yaml: mapping values are not allowed in this context",
		},
		{
			name: "broken YAML in the second document", files: map[string]string{"a.yaml": a + "---\na: [\n"},
			want: "reading DIR/a.yaml, document 2: yaml: line 1: did not find expected node content",
		},
		{
			name: "broken JSON", files: map[string]string{"a.json": `{"apiVersion": "v1", `},
			want: "reading DIR/a.json, document 1: yaml: line 1: did not find expected node content",
		},
		{
			name: "text that is no object", files: map[string]string{"a.yaml": "package system\n"},
			want: "reading DIR/a.yaml, document 1: this is no manifest of a Kubernetes object (Rego goes into the data of a ConfigMap)",
		},
		{
			name: "a field that ConfigMaps do not have", files: map[string]string{"a.yaml": a + "date:\n  main: typing error\n"},
			want: "reading DIR/a.yaml, document 1: " + unknown + `"date"`,
		},
		{
			name: "a field that metadata does not have", files: map[string]string{"a.yaml": strings.Replace(a, "labels:", "lables:", 1)},
			want: "reading DIR/a.yaml, document 1: " + unknown + `"lables"`,
		},
		{
			name: "a key twice", files: map[string]string{"a.yaml": a + "  main: \"2\"\n"},
			want: `reading DIR/a.yaml, document 1: yaml: unmarshal errors:` + "\n" + `  line 9: key "main" already set in map`,
		},
		{
			name: "text that is not UTF-8", files: map[string]string{"a.yaml": strings.Replace(a, `"1"`, "\"\xff\"", 1)},
			want: "reading DIR/a.yaml, document 1: yaml: invalid leading UTF-8 octet",
		},
		{
			name: "a ConfigMap without a name", files: map[string]string{"a.yaml": strings.Replace(a, "name: a", "generateName: a", 1)},
			want: "reading DIR/a.yaml, document 1: a ConfigMap without metadata.name",
		},
		{
			name: "a broken item of a list", files: map[string]string{"a.yaml": "apiVersion: v1\nkind: List\nitems:\n" + item(a) + item(strings.Replace(a, "name: a", "generateName: a", 1))},
			want: "reading DIR/a.yaml, document 1: item 1: a ConfigMap without metadata.name",
		},
		{
			name: "a ConfigMap twice in a file", files: map[string]string{"a.yaml": a + "---\n" + a},
			want: "ConfigMap opa/a in DIR/a.yaml is passed over: it is in DIR/a.yaml already",
		},
		{
			name: "a ConfigMap in two files", files: map[string]string{"a.yaml": a, "b.yaml": a},
			want: "ConfigMap opa/a in DIR/b.yaml is passed over: it is in DIR/a.yaml already",
		},
		{
			name: "a file that is named twice", files: map[string]string{"a.yaml": a}, paths: []string{"a.yaml", "a.yaml"},
			want: "ConfigMap opa/a in DIR/a.yaml is passed over: it is in DIR/a.yaml already",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := inFolder(t, test.files)
			paths := []string{dir}
			if test.paths != nil {
				paths = nil
				for _, path := range test.paths {
					paths = append(paths, filepath.Join(dir, path))
				}
			}
			_, err := newFiles([]string{"opa"}, paths...)
			if err == nil {
				t.Fatal("it was read")
			}
			if got := strings.ReplaceAll(err.Error(), dir, "DIR"); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

func TestFilesNamedOneByOne(t *testing.T) {
	dir := inFolder(t, map[string]string{
		"a.yaml": configMap("opa", "a", "1"), "b.yaml": configMap("opa", "b", "2"), "c.txt": configMap("opa", "c", "3"),
	})
	files, err := newFiles([]string{"opa"}, filepath.Join(dir, "a.yaml"), filepath.Join(dir, "c.txt"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := files.ConfigMaps()
	if err != nil || told(got) != "opa/a=1 opa/c=3" {
		t.Errorf("got %q, %v", told(got), err)
	}
}

func TestABrokenEditKeepsWhatWasRead(t *testing.T) {
	dir := inFolder(t, map[string]string{"a.yaml": configMap("opa", "a", "1"), "b.yaml": configMap("opa", "b", "1")})
	files, err := newFiles([]string{"opa"}, dir)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "a.yaml"), configMap("opa", "a", "2"))
	write(t, filepath.Join(dir, "b.yaml"), "a: b: c")
	got, err := files.ConfigMaps()
	if err == nil || !strings.Contains(err.Error(), "b.yaml, document 1") {
		t.Errorf("got the error %v", err)
	}
	if got := told(got); got != "opa/a=2 opa/b=1" {
		t.Errorf("got %q beside the error, want what was read last of the broken file alone", got)
	}
	write(t, filepath.Join(dir, "b.yaml"), configMap("opa", "b", "2"))
	got, err = files.ConfigMaps()
	if err != nil || told(got) != "opa/a=2 opa/b=2" {
		t.Errorf("got %q, %v after the repair", told(got), err)
	}
}

// Policies that were deleted are gone, whatever ails another file.
func TestADeletionCountsBesideABrokenFile(t *testing.T) {
	dir := inFolder(t, map[string]string{"a.yaml": configMap("opa", "a", "1")})
	files, err := newFiles([]string{"opa"}, dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "b.yaml"), "a: b: c")
	if got, err := files.ConfigMaps(); err == nil || got == nil || len(got) != 0 {
		t.Errorf("got %v, %v; want none, known to be none, and an error", got, err)
	}
}

func TestRunLooksAfterAChange(t *testing.T) {
	a, b := configMap("opa", "a", "1"), configMap("opa", "b", "1")
	for _, test := range []struct {
		name   string
		change func(t *testing.T, dir string)
		want   string
	}{
		{
			name:   "a file is edited",
			change: func(t *testing.T, dir string) { write(t, filepath.Join(dir, "a.yaml"), configMap("opa", "a", "2")) },
			want:   "opa/a=2 opa/b=1",
		},
		{
			name: "an editor moves its new version over the file",
			change: func(t *testing.T, dir string) {
				replace(t, filepath.Join(dir, "a.yaml"), configMap("opa", "a", "2"))
			},
			want: "opa/a=2 opa/b=1",
		},
		{
			name:   "a file is added",
			change: func(t *testing.T, dir string) { write(t, filepath.Join(dir, "c.yaml"), configMap("opa", "c", "1")) },
			want:   "opa/a=1 opa/b=1 opa/c=1",
		},
		{
			name: "a file is deleted",
			change: func(t *testing.T, dir string) {
				if err := os.Remove(filepath.Join(dir, "a.yaml")); err != nil {
					t.Fatal(err)
				}
			},
			want: "opa/b=1",
		},
		{
			name: "a folder mounted from a ConfigMap switches to its new version",
			change: func(t *testing.T, dir string) {
				// As the kubelet does: the file is a link into ..data, which is a
				// link that is moved over.
				write(t, filepath.Join(dir, "..2", "c.yaml"), configMap("opa", "c", "2"))
				link(t, filepath.Join("..data", "c.yaml"), filepath.Join(dir, "c.yaml"))
				link(t, "..2", filepath.Join(dir, "..data_tmp"))
				if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
					t.Fatal(err)
				}
			},
			want: "opa/a=1 opa/b=1 opa/c=2",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := inFolder(t, map[string]string{"a.yaml": a, "b.yaml": b})
			files, err := newFiles([]string{"opa"}, dir)
			if err != nil {
				t.Fatal(err)
			}
			looks := runQuietly(t, files)
			test.change(t, dir)
			awaitConfigMaps(t, looks, files, test.want)
		})
	}
}

// A file that is watched by its name is not lost when another takes its place.
func TestRunFollowsAFileThroughManyEdits(t *testing.T) {
	file := filepath.Join(inFolder(t, map[string]string{"a.yaml": configMap("opa", "a", "1")}), "a.yaml")
	files, err := newFiles([]string{"opa"}, file)
	if err != nil {
		t.Fatal(err)
	}
	looks := runQuietly(t, files)
	for _, version := range []string{"2", "3", "4"} {
		replace(t, file, configMap("opa", "a", version))
		awaitConfigMaps(t, looks, files, "opa/a="+version)
	}
}

func TestRunLooksWhenItStarts(t *testing.T) {
	dir := inFolder(t, map[string]string{"a.yaml": configMap("opa", "a", "1")})
	files, err := newFiles([]string{"opa"}, dir)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "a.yaml"), configMap("opa", "a", "2")) // nobody watches yet
	await(t, run(t, files))
	if got, err := files.ConfigMaps(); err != nil || told(got) != "opa/a=2" {
		t.Errorf("got %q, %v", told(got), err)
	}
}

// Whoever checks out another branch replaces the folder by another of the same
// name, which nobody has asked the operating system to watch.
func TestRunFollowsAFolderThatIsReplaced(t *testing.T) {
	dir := filepath.Join(inFolder(t, map[string]string{"policies/a.yaml": configMap("opa", "a", "1")}), "policies")
	files, err := newFiles([]string{"opa"}, dir)
	if err != nil {
		t.Fatal(err)
	}
	looks := run(t, files)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if got, err := files.ConfigMaps(); err == nil || told(got) != "opa/a=1" {
		t.Errorf("got %q, %v while there is no folder; want what was read last, and an error", told(got), err)
	}
	write(t, filepath.Join(dir, "a.yaml"), configMap("opa", "a", "2"))
	awaitConfigMaps(t, looks, files, "opa/a=2")
	write(t, filepath.Join(dir, "a.yaml"), configMap("opa", "a", "3"))
	awaitConfigMaps(t, looks, files, "opa/a=3")
}

// run runs files until the test ends, and tells of each look.
func run(t *testing.T, files *watch.Files) (looks <-chan struct{}) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	looked, ended := make(chan struct{}, 100), make(chan error, 1)
	go func() { ended <- files.Run(ctx, func() { looked <- struct{}{} }) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return looked
}

// runQuietly runs files, and leaves only the looks that something is changed for.
func runQuietly(t *testing.T, files *watch.Files) (looks <-chan struct{}) {
	t.Helper()
	files.WithoutRegularLooks()
	looks = run(t, files)
	await(t, looks) // when it starts
	return looks
}

// awaitConfigMaps waits for a look that finds these ConfigMaps.
func awaitConfigMaps(t *testing.T, looks <-chan struct{}, files *watch.Files, want string) {
	t.Helper()
	for {
		await(t, looks)
		if got, err := files.ConfigMaps(); err == nil && told(got) == want {
			return
		}
	}
}

// await waits for the next look. The limit is for a test that fails.
func await(t *testing.T, looks <-chan struct{}) {
	t.Helper()
	select {
	case <-looks:
	case <-time.After(30 * time.Second):
		t.Fatal("nobody looked")
	}
}

// replace moves a new version over a file, as editors do.
func replace(t *testing.T, file, content string) {
	t.Helper()
	write(t, file+".tmp", content)
	if err := os.Rename(file+".tmp", file); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, target, name string) {
	t.Helper()
	if err := os.Symlink(target, name); err != nil {
		t.Fatal(err)
	}
}
