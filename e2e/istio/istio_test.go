package istio

import (
	"strings"
	"testing"
)

const documents = `# made by a generator
kind: CustomResourceDefinition
metadata:
  name: others.example.com
---
kind: ConfigMap
metadata:
  name: wanted.example.com
---
kind: CustomResourceDefinition
metadata:
  name: wanted.example.com
spec: {group: example.com}
---
`

func TestFindCRD(t *testing.T) {
	crd, err := findCRD([]byte(documents), "wanted.example.com")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(crd), "group: example.com") || strings.Contains(string(crd), "---") {
		t.Errorf("document = %q", crd)
	}
	if _, err := findCRD([]byte(documents), "absent.example.com"); err == nil {
		t.Error("no error for a definition that is not there")
	}
}

func TestAuthorizationPolicyCRD(t *testing.T) {
	crd, err := AuthorizationPolicyCRD(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"name: " + AuthorizationPolicyCRDName, "kind: AuthorizationPolicy", "group: security.istio.io"} {
		if !strings.Contains(string(crd), want) {
			t.Errorf("the definition does not contain %q", want)
		}
	}
}
