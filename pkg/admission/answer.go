package admission

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// normalise makes of a policy's answer a response that the API server takes:
// with the uid of its own request whatever the policy wrote, and with a denial
// told where a user reads it. The review's version and kind are the caller's to
// add: old entrypoints still answer admission.k8s.io/v1beta1, which Kubernetes
// refuses to convert.
//
// What cannot be made right is an error that names the field.
func normalise(decision policy.Decision, uid string) (map[string]any, error) {
	answer, ok := decision.Result.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("the answer is %s, want an object with a response", jsonType(decision.Result))
	}
	given, ok := answer["response"].(map[string]any)
	if !ok {
		return nil, fmt.Errorf("response is %s, want an object", jsonType(answer["response"]))
	}
	response := maps.Clone(given) // what the policies gave is not ours to change
	response["uid"] = uid
	allowed, ok := response["allowed"].(bool)
	if !ok {
		return nil, fmt.Errorf("response.allowed is %s, want true or false", jsonType(response["allowed"]))
	}
	status, err := statusOf(response)
	if err != nil {
		return nil, err
	}
	if !allowed && status != nil {
		response["status"] = explain(status)
	}
	annotate(response, decision.ID)
	return response, nil
}

// decisionIDKey is the audit annotation that leads from a line of the API
// server's audit log to the decision. The API server puts the name of the
// webhook and a slash before it.
const decisionIDKey = "decision-id"

// annotate puts the id of the decision among the audit annotations, unless the
// policy has put one there.
func annotate(response map[string]any, decisionID string) {
	given := response["auditAnnotations"]
	annotations, ok := given.(map[string]any)
	if decisionID == "" || given != nil && !ok {
		return // what is no object is an error, later
	}
	annotated := map[string]any{decisionIDKey: decisionID}
	maps.Copy(annotated, annotations)
	response["auditAnnotations"] = annotated
}

// decodable reports what of an answer the API server could not decode to into.
func decodable(body []byte, into any) error {
	err := json.Unmarshal(body, into)
	var wrongType *json.UnmarshalTypeError
	if errors.As(err, &wrongType) {
		return fmt.Errorf("%s is a JSON %s, which the API server does not take there", wrongType.Field, wrongType.Value)
	}
	return err
}

// statusOf is the response's status, or nil if it has none.
func statusOf(response map[string]any) (map[string]any, error) {
	switch status := response["status"].(type) {
	case nil:
		return nil, nil
	case map[string]any:
		return status, nil
	default:
		return nil, fmt.Errorf("response.status is %s, want an object", jsonType(status))
	}
}

// forbidden is the code of a denial: 403, as Kubernetes' own admission plugins
// answer (k8s.io/apiserver, admission.NewForbidden).
const forbidden = json.Number("403")

// explain words a denial as Kubernetes' own admission plugins do. Entrypoints
// in the field write its text into reason, where the API conventions want one
// word for machines and kubectl prints it beside the message: without a message
// that text becomes the message. Code and reason are filled in where they are
// missing.
func explain(status map[string]any) map[string]any {
	explained := maps.Clone(status)
	if reason := text(status["reason"]); reason != "" && text(status["message"]) == "" {
		explained["message"] = reason
		delete(explained, "reason")
	}
	if explained["code"] == nil {
		explained["code"] = forbidden
	}
	if explained["reason"] == nil && explained["code"] == forbidden {
		explained["reason"] = "Forbidden"
	}
	return explained
}

// jsonType names the JSON type of a decoded value, for messages.
func jsonType(v any) string {
	switch v.(type) {
	case nil:
		return "missing"
	case bool:
		return "a boolean"
	case string:
		return "a string"
	case json.Number, float64, int:
		return "a number"
	case []any:
		return "an array"
	case map[string]any:
		return "an object"
	}
	return fmt.Sprintf("a %T", v)
}
