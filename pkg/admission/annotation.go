package admission

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// The audit annotations that lead from a line of the API server's audit log to the
// decision, to the policy set, and to the modules that had a say. The API server puts the
// name of the webhook and a slash before each.
const (
	decisionIDKey  = "decision-id"
	fingerprintKey = "fingerprint"
	modulesKey     = "modules"
)

// maxKeyRunes is how long the name of a qualified name may be
// (k8s.io/apimachinery/pkg/util/validation).
const maxKeyRunes = 63

// annotate puts our annotations beside those of the policy, which come first.
func annotate(response map[string]any, decision policy.Decision, modules []string) {
	annotated := make(map[string]any)
	for key, value := range map[string]string{
		decisionIDKey:  decision.ID,
		fingerprintKey: decision.Fingerprint,
		modulesKey:     strings.Join(modules, ","),
	} {
		if value != "" {
			annotated[key] = value
		}
	}
	maps.Copy(annotated, object(response["auditAnnotations"]))
	if len(annotated) > 0 {
		response["auditAnnotations"] = annotated
	}
}

// setAnnotations puts right what the API server would take for no answer, or drop
// without a word to the user: values that are no texts, keys that are no names.
func setAnnotations(response map[string]any) error {
	given, ok := response["auditAnnotations"].(map[string]any)
	switch {
	case response["auditAnnotations"] == nil:
		delete(response, "auditAnnotations")
		return nil
	case !ok:
		return fmt.Errorf("response.auditAnnotations is %s, want an object", jsonType(response["auditAnnotations"]))
	}
	annotations := make(map[string]any, len(given))
	for _, key := range slices.Sorted(maps.Keys(given)) {
		if name := annotationKey(key); annotations[name] == nil {
			annotations[name] = asText(given[key])
		}
	}
	response["auditAnnotations"] = annotations
	return nil
}

// annotationKey is the name that the API server takes which is most like a key.
func annotationKey(key string) string {
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', strings.ContainsRune("-_.", r):
			return r
		}
		return '-'
	}, key)
	name = strings.Trim(name[:min(len(name), maxKeyRunes)], "-_.")
	if name == "" {
		return "annotation"
	}
	return name
}
