package rbac

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/kube-rego/kube-rego/pkg/configmap"
	"github.com/kube-rego/kube-rego/pkg/policy"
	"github.com/kube-rego/kube-rego/pkg/replication"
	"github.com/kube-rego/kube-rego/pkg/watch"
)

// regoExtension is that of files that hold nothing but Rego; those with tests are left
// out of folders, since nobody enforces them.
const (
	regoExtension = ".rego"
	testSuffix    = "_test" + regoExtension
)

// reader gathers what the files hold.
type reader struct {
	kinds configmap.Kinds
	stdin io.Reader
	// policies are the modules with Rego, and defined the resources whose
	// CustomResourceDefinitions are there too.
	policies policy.Set
	defined  []replication.Resource
	// from is the file of each ConfigMap that holds policies.
	from map[string]string
}

// read reads a file, all files of a folder, or standard input.
func (r *reader) read(name string) error {
	if name == Stdin {
		text, err := io.ReadAll(r.stdin)
		if err != nil {
			return fmt.Errorf("reading standard input: %w", err)
		}
		return r.readManifests("standard input", text)
	}
	files, err := watch.Expand(name, append(watch.ManifestExtensions(), regoExtension)...)
	if err != nil {
		return err
	}
	var errs []error
	for _, file := range files {
		if file == name || !strings.HasSuffix(file, testSuffix) {
			errs = append(errs, r.readFile(file))
		}
	}
	return errors.Join(errs...)
}

func (r *reader) readFile(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("reading policies: %w", err)
	}
	if filepath.Ext(file) != regoExtension {
		return r.readManifests(file, text)
	}
	m := policy.Module{ID: policy.ID{Key: file}, Source: string(text)}
	if !utf8.Valid(text) {
		m.Defect = "the file is not UTF-8 text"
	}
	r.policies[m.ID] = m
	return nil
}

func (r *reader) readManifests(file string, text []byte) error {
	err := watch.ReadManifests(text, func(m watch.Manifest) error {
		if m.APIVersion == "apiextensions.k8s.io/v1" && m.Kind == "CustomResourceDefinition" {
			return r.addDefinition(m)
		}
		cm, err := m.ConfigMap()
		if err != nil || cm == nil {
			return err
		}
		return r.addConfigMap(file, cm)
	})
	if err != nil {
		return fmt.Errorf("reading %s, %w", file, err)
	}
	return nil
}

// addConfigMap takes the policies of a ConfigMap; it may have none.
func (r *reader) addConfigMap(file string, cm *corev1.ConfigMap) error {
	if cm.Namespace == "" {
		cm.Namespace = metav1.NamespaceDefault
	}
	if !r.kinds.Match(cm.Labels) {
		return nil
	}
	name := cm.Namespace + "/" + cm.Name
	if first, ok := r.from[name]; ok {
		return fmt.Errorf("ConfigMap %s is in %s already", name, first)
	}
	r.from[name] = file
	for _, m := range r.kinds.Modules(cm) {
		if m.Kind == policy.Rego {
			r.policies[m.ID] = m
		}
	}
	return nil
}

// definition is what must be known of a CustomResourceDefinition.
type definition struct {
	Spec struct {
		Group string `json:"group"`
		Names struct {
			Plural string `json:"plural"`
		} `json:"names"`
		Versions []struct {
			Name   string `json:"name"`
			Served bool   `json:"served"`
		} `json:"versions"`
	} `json:"spec"`
}

// addDefinition takes the resource of a CustomResourceDefinition. A name that is not one
// could become a right that nobody meant to give.
func (r *reader) addDefinition(m watch.Manifest) error {
	var d definition
	if err := json.Unmarshal(m.JSON, &d); err != nil {
		return err
	}
	group, plural := d.Spec.Group, d.Spec.Names.Plural
	if len(validation.IsDNS1123Subdomain(group)) > 0 || !strings.Contains(group, ".") || len(validation.IsDNS1035Label(plural)) > 0 {
		return fmt.Errorf("a CustomResourceDefinition of the resource %q of the group %q, which nobody can define", plural, group)
	}
	for _, version := range d.Spec.Versions {
		if version.Served {
			gvr := schema.GroupVersionResource{Group: group, Version: version.Name, Resource: plural}
			r.defined = append(r.defined, replication.Resource{GroupVersionResource: gvr})
			return nil
		}
	}
	return nil // that nobody serves can be read by nobody
}
