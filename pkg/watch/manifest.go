package watch

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	corev1 "k8s.io/api/core/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// Manifest is one object of a file, of which is known what it is.
type Manifest struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	// JSON is the object itself.
	JSON json.RawMessage `json:"-"`
}

// ManifestExtensions are those of the files in a folder that hold manifests.
func ManifestExtensions() []string { return []string{".yaml", ".yml", ".json"} }

// ReadManifests calls visit for each object in a YAML or JSON text, also for those in
// lists. An error says in which document it is.
func ReadManifests(text []byte, visit func(Manifest) error) error {
	documents := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	for n := 1; ; n++ {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = readDocument(document, visit)
		}
		if err != nil {
			return fmt.Errorf("document %d: %w", n, err)
		}
	}
}

// readDocument visits the objects of one YAML document.
func readDocument(document []byte, visit func(Manifest) error) error {
	object, err := yaml.YAMLToJSONStrict(document)
	if err != nil {
		return err
	}
	if bytes.Equal(object, []byte("null")) {
		return nil // nothing but comments
	}
	return visitObject(object, visit)
}

func visitObject(object json.RawMessage, visit func(Manifest) error) error {
	m := Manifest{JSON: object}
	if err := json.Unmarshal(object, &m); err != nil {
		return errors.New("this is no manifest of a Kubernetes object (Rego goes into the data of a ConfigMap)")
	}
	if m.APIVersion != "v1" || m.Kind != "List" && m.Kind != "ConfigMapList" {
		return visit(m)
	}
	var list struct {
		Items []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(object, &list); err != nil {
		return errors.New("the items of this list are no list")
	}
	for i, item := range list.Items {
		if err := visitObject(item, visit); err != nil {
			return fmt.Errorf("item %d: %w", i, err)
		}
	}
	return nil
}

// ConfigMap is the object as a ConfigMap; nil if it is something else. It is as
// strict as kubectl: an unknown field or a number for a text is an error.
func (m Manifest) ConfigMap() (*corev1.ConfigMap, error) {
	if m.APIVersion != "v1" || m.Kind != "ConfigMap" {
		return nil, nil
	}
	cm := new(corev1.ConfigMap)
	decoder := json.NewDecoder(bytes.NewReader(m.JSON))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(cm); err != nil {
		return nil, err
	}
	if cm.Name == "" {
		return nil, errors.New("a ConfigMap without metadata.name")
	}
	return cm, nil
}

// Expand is path itself, or, if it is a folder, the files in it with one of the
// extensions, sorted.
func Expand(path string, extensions ...string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("reading manifests: %w", err)
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, fmt.Errorf("reading manifests: %w", err)
	}
	var files []string
	for _, entry := range entries {
		if !entry.IsDir() && slices.Contains(extensions, filepath.Ext(entry.Name())) {
			files = append(files, filepath.Join(path, entry.Name()))
		}
	}
	return files, nil
}
