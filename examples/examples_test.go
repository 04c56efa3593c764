// Package examples_test plays every example: each request of each case gets the
// answer that is written beside it.
package examples_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	admissionv1 "k8s.io/api/admission/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/kube-rego/kube-rego/pkg/admission"
	"github.com/kube-rego/kube-rego/pkg/compile"
	"github.com/kube-rego/kube-rego/pkg/configmap"
	"github.com/kube-rego/kube-rego/pkg/data"
	"github.com/kube-rego/kube-rego/pkg/engine"
	"github.com/kube-rego/kube-rego/pkg/policy"
	"github.com/kube-rego/kube-rego/pkg/watch"
)

func TestExamples(t *testing.T) {
	played := 0
	for _, requests := range glob(t, "*/requests") {
		folder := filepath.Dir(requests)
		t.Run(folder, func(t *testing.T) {
			reviewer := newReviewer(t, folder)
			files := glob(t, filepath.Join(requests, "*.json"))
			for _, file := range files {
				name := strings.TrimSuffix(filepath.Base(file), ".json")
				t.Run(name, func(t *testing.T) {
					want := strings.TrimSuffix(read(t, strings.TrimSuffix(file, ".json")+".want"), "\n")
					request := read(t, file)
					got, patch := answer(t, reviewer, request)
					if got != want {
						t.Errorf("got  %s\nwant %s", got, want)
					}
					// The API server asks again when other webhooks have changed something.
					if again, patch := answer(t, reviewer, patched(t, request, patch)); patch != nil {
						t.Errorf("asked again: %s", again)
					}
				})
				played++
			}
			if answers := glob(t, filepath.Join(requests, "*.want")); len(answers) != len(files) {
				t.Errorf("there are %d requests and %d answers", len(files), len(answers))
			}
		})
	}
	if played == 0 {
		t.Error("there is no example with a request")
	}
}

// newReviewer enforces the ConfigMaps of a folder as kube-rego serve does, with the
// objects of the folder replicated.
func newReviewer(t *testing.T, folder string) *admission.Reviewer {
	t.Helper()
	kinds := configmap.NewKinds("openpolicyagent.org/policy", "rego", "openpolicyagent.org/data", "opa")
	source, err := watch.NewFiles(watch.FilesConfig{
		Paths:      []string{folder},
		Namespaces: []string{"opa"},
		Selectors:  kinds.Selectors(),
		Log:        slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	configMaps, err := source.ConfigMaps()
	if err != nil {
		t.Fatal(err)
	}
	var modules []policy.Module
	for _, cm := range configMaps {
		modules = append(modules, kinds.Modules(cm)...)
	}
	if len(modules) == 0 {
		t.Fatal("there are no policies")
	}
	compiler, err := compile.New(compile.Config{
		RegoVersion: policy.RegoAuto, SystemNamespaces: []string{"opa"}, Replicated: compile.Replicated{Path: []string{"kubernetes"}}, Entrypoint: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	snapshot := compiler.Compile(compiler.Empty(), policy.NewSet(modules...), nil)
	report := snapshot.Report()
	for _, s := range report.Held() {
		t.Fatalf("%s is held: %v", s.ID, s.Problems)
	}
	opa := engine.New()
	opa.Apply(objects(t, folder)...)
	opa.Activate(snapshot, report)
	return admission.NewReviewer(opa, admission.Config{Entrypoint: "system/main"})
}

// objects puts what a folder has in objects/ where replication would put it.
func objects(t *testing.T, folder string) []data.Change {
	t.Helper()
	var interner data.Interner
	var changes []data.Change
	for _, file := range glob(t, filepath.Join(folder, "objects", "*.yaml")) {
		documents := utilyaml.NewYAMLOrJSONDecoder(strings.NewReader(read(t, file)), 4096)
		for {
			var object unstructured.Unstructured
			err := documents.Decode(&object)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			content, err := interner.Document(object.Object)
			if err != nil {
				t.Fatal(err)
			}
			resource, _ := meta.UnsafeGuessKindToResource(object.GroupVersionKind())
			path := []string{"kubernetes", resource.Resource, object.GetNamespace(), object.GetName()}
			path = slices.DeleteFunc(path, func(part string) bool { return part == "" }) // of the whole cluster
			changes = append(changes, data.Change{Path: path, Content: content})
		}
	}
	return changes
}

// answer is the answer to a request in the form of the .want files, and the patch in it.
func answer(t *testing.T, reviewer *admission.Reviewer, request string) (text string, patch []byte) {
	t.Helper()
	got, err := reviewer.Review(t.Context(), []byte(request))
	if err != nil {
		t.Fatal(err)
	}
	var review admissionv1.AdmissionReview
	if err := json.Unmarshal(got.Body, &review); err != nil {
		t.Fatal(err)
	}
	response := review.Response
	lines := []string{"allowed"}
	if !response.Allowed {
		lines[0] = "denied"
	}
	if response.Result != nil && response.Result.Message != "" {
		lines = append(lines, response.Result.Message)
	}
	return strings.Join(append(lines, operations(t, response.Patch)...), "\n"), response.Patch
}

// operations are those of a patch, each in a line.
func operations(t *testing.T, patch []byte) []string {
	t.Helper()
	if patch == nil {
		return nil
	}
	var all []struct {
		Op, Path string
		Value    json.RawMessage
	}
	if err := json.Unmarshal(patch, &all); err != nil {
		t.Fatal(err)
	}
	lines := make([]string, 0, len(all))
	for _, o := range all {
		lines = append(lines, strings.TrimSpace(o.Op+" "+o.Path+" "+string(o.Value)))
	}
	return lines
}

// patched is the request with a patch applied to its object, as the API server does.
func patched(t *testing.T, request string, patch []byte) string {
	t.Helper()
	if patch == nil {
		return request
	}
	var review map[string]any
	if err := json.Unmarshal([]byte(request), &review); err != nil {
		t.Fatal(err)
	}
	fields, _ := review["request"].(map[string]any)
	object, err := json.Marshal(fields["object"])
	if err != nil {
		t.Fatal(err)
	}
	decoded, err := jsonpatch.DecodePatch(patch)
	if err != nil {
		t.Fatal(err)
	}
	if object, err = decoded.Apply(object); err != nil {
		t.Fatal(err)
	}
	fields["object"] = json.RawMessage(object)
	again, err := json.Marshal(review)
	if err != nil {
		t.Fatal(err)
	}
	return string(again)
}

func TestManifestsAreYAML(t *testing.T) {
	parsed := 0
	for _, root := range []string{".", filepath.Join("..", "manifests")} {
		err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || filepath.Ext(path) != ".yaml" {
				return err
			}
			parsed++
			t.Run(filepath.ToSlash(path), func(t *testing.T) { parse(t, path) })
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	if parsed == 0 {
		t.Error("there are no manifests")
	}
}

// parse fails the test unless every document of a file is an object that
// kubectl can tell the kind of, with no key twice.
func parse(t *testing.T, file string) {
	t.Helper()
	documents := utilyaml.NewYAMLReader(bufio.NewReader(strings.NewReader(read(t, file))))
	n := 0
	for ; ; n++ {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		var whole map[string]any
		if err := yaml.UnmarshalStrict(document, &whole); err != nil {
			t.Fatalf("document %d: %v", n+1, err)
		}
		var object metav1.TypeMeta
		if err := yaml.Unmarshal(document, &object); err != nil {
			t.Fatalf("document %d: %v", n+1, err)
		}
		if object.APIVersion == "" || object.Kind == "" {
			t.Errorf("document %d has no apiVersion or no kind", n+1)
		}
	}
	if n == 0 {
		t.Error("there is no document")
	}
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func read(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
