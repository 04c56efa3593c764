// Package istio gives the tests the AuthorizationPolicy of a mesh without the mesh: the API server accepts the objects once
// it has their CustomResourceDefinition.
package istio

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"

	// The definitions are a YAML file in the module istio.io/api. The smallest package of it is imported so that go.mod
	// pins the module and whoever compiles this has it on disk.
	_ "istio.io/api/label"
)

// AuthorizationPolicyCRDName is the name of the CustomResourceDefinition of AuthorizationPolicy.
const AuthorizationPolicyCRDName = "authorizationpolicies.security.istio.io"

// AuthorizationPolicyCRD is the CustomResourceDefinition of AuthorizationPolicy, as YAML, from the istio.io/api module
// that this module's go.mod pins. The current folder must be in this module, as it is in a test.
func AuthorizationPolicyCRD(ctx context.Context) ([]byte, error) {
	dir, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "istio.io/api").Output()
	if err != nil {
		return nil, fmt.Errorf("find the module istio.io/api: %w", err)
	}
	path := filepath.Join(strings.TrimSpace(string(dir)), "kubernetes", "customresourcedefinitions.gen.yaml")
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the CustomResourceDefinitions of istio.io/api: %w", err)
	}
	return findCRD(content, AuthorizationPolicyCRDName)
}

// findCRD is the document of a multi-document YAML that is the CustomResourceDefinition with this name.
func findCRD(documents []byte, name string) ([]byte, error) {
	reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(documents)))
	for {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("find the CustomResourceDefinition %s: not among the documents", name)
		}
		if err != nil {
			return nil, fmt.Errorf("split the CustomResourceDefinitions: %w", err)
		}
		if !bytes.Contains(document, []byte(name)) {
			continue // parsing every document would take half a second
		}
		var object metav1.PartialObjectMetadata
		if err := utilyaml.Unmarshal(document, &object); err != nil {
			return nil, fmt.Errorf("parse a CustomResourceDefinition: %w", err)
		}
		if object.Kind == "CustomResourceDefinition" && object.Name == name {
			return document, nil
		}
	}
}
