package admission

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// normalise makes of a policy's answer a response that the API server takes:
// with the uid of its own request whatever the policy wrote, with a denial told
// where a user reads it, and with a patch that applies. The review's version and
// kind are the caller's to add: old entrypoints still answer
// admission.k8s.io/v1beta1, which Kubernetes refuses to convert.
//
// What cannot be made right is an error that names the field.
func normalise(config Config, review review, decision policy.Decision) (map[string]any, error) {
	answer, ok := decision.Result.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("the answer is %s, want an object with a response", jsonType(decision.Result))
	}
	given, ok := answer[responseField].(map[string]any)
	if !ok {
		return nil, fmt.Errorf("response is %s, want an object", jsonType(answer[responseField]))
	}
	if config.Strict {
		if err := strictly(answer, given, review); err != nil {
			return nil, err
		}
	}
	response := maps.Clone(given) // what the policies gave is not ours to change
	response["uid"] = review.uid
	allowed, ok := response["allowed"].(bool)
	if !ok {
		return nil, fmt.Errorf("response.allowed is %s, want true or false", jsonType(response["allowed"]))
	}
	setWarnings(response)
	err := errors.Join(setStatus(response, allowed), setPatch(response, config, review), setAnnotations(response))
	return response, err
}

// says reports whether an answer says more than yes.
func says(content map[string]any) bool {
	return content["allowed"] != true || content["patch"] != nil || content["warnings"] != nil
}

// setStatus puts right how a denial is told.
func setStatus(response map[string]any, allowed bool) error {
	status, err := statusOf(response)
	if err != nil {
		return err
	}
	if allowed {
		return nil
	}
	response["status"], err = worded(status)
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

// firstError and lastError are the HTTP statuses that say that something went wrong.
const firstError, lastError = 400, 599

// worded words a denial as Kubernetes' own admission plugins do. Entrypoints
// in the field write its text into reason, where the API conventions want one
// word for machines and kubectl prints it beside the message: without a message
// that text becomes the message. Code and reason are filled in where they are
// missing.
func worded(status map[string]any) (map[string]any, error) {
	worded := maps.Clone(status)
	if worded == nil {
		worded = make(map[string]any)
	}
	delete(worded, "status") // the API server fills it in, but for words that clients do not know
	if reason := text(worded["reason"]); reason != "" && isEmpty(worded["message"]) {
		worded["message"] = reason
		delete(worded, "reason")
	}
	code, err := statusCode(worded["code"])
	if err != nil {
		return nil, err
	}
	worded["code"] = code
	if worded["reason"] == nil && code == forbidden {
		worded["reason"] = "Forbidden"
	}
	return worded, nil
}

// statusCode is the HTTP status of a denial. The API server makes 400 of one below 400,
// and ends the request without an answer for one that HTTP does not know.
func statusCode(given any) (json.Number, error) {
	if given == nil {
		return forbidden, nil
	}
	digits := text(given)
	if number, ok := given.(json.Number); ok {
		digits = number.String()
	}
	code, err := strconv.ParseInt(digits, 10, 64)
	switch {
	case err != nil:
		return "", fmt.Errorf("response.status.code is %s, want the number of an HTTP error", jsonType(given))
	case code < firstError || code > lastError:
		return forbidden, nil
	}
	return json.Number(digits), nil
}

// isEmpty reports whether a field says nothing.
func isEmpty(v any) bool { return v == nil || v == "" }

// explain gives a denial without a word one.
func explain(response map[string]any, modules []string) {
	status := object(response["status"])
	if response["allowed"] == true || !isEmpty(status["message"]) {
		return
	}
	explained := maps.Clone(status)
	explained["message"] = "the policies gave no reason" + by(modules)
	response["status"] = explained
}

// setPatch puts right a patch. One beside a denial, and one for a webhook that may not
// change anything, is left out.
func setPatch(response map[string]any, config Config, review review) error {
	given, asked := response["patch"], response["patchType"]
	delete(response, "patch")
	delete(response, "patchType")
	if given == nil || response["allowed"] != true || config.Validating {
		return nil
	}
	patchType, ok := asked.(string)
	if asked != nil && !ok {
		return fmt.Errorf("response.patchType is %s, want %q", jsonType(asked), patchTypeJSON)
	}
	patch, err := jsonPatch(given, patchType, object(review.input["request"])["object"], config.Strict)
	if err != nil || patch == nil {
		return err
	}
	response["patch"], response["patchType"] = base64.StdEncoding.EncodeToString(patch), patchTypeJSON
	return nil
}

// patchTypeJSON is the one that the API server takes.
const patchTypeJSON = "JSONPatch"

// fallback is the response to a review about which there is no decision.
func fallback(action Action, cause error, uid string, decision policy.Decision) map[string]any {
	response := map[string]any{"uid": uid, "allowed": action == Allow}
	flag := "--on-error"
	if errors.Is(cause, policy.ErrUndefined) {
		flag = "--on-undefined"
	}
	why := fmt.Sprintf("%v (decision %s, %s=%s)", cause, decision.ID, flag, action)
	if action == Allow {
		response["warnings"] = shortened([]string{printable("allowed without a decision: " + why)})
	} else {
		response["status"] = map[string]any{"code": forbidden, "reason": "Forbidden", "message": "refused without a decision: " + why}
	}
	annotate(response, decision, nil)
	return response
}

// decodable reports what of an answer the API server could not decode to into.
func decodable(body []byte, into any) error {
	err := json.Unmarshal(body, into)
	var wrongType *json.UnmarshalTypeError
	if errors.As(err, &wrongType) {
		kind, _, _ := strings.Cut(wrongType.Value, " ") // of a number it is followed by the number
		return fmt.Errorf("%s is a JSON %s, which the API server does not take there", wrongType.Field, kind)
	}
	return err
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

// asText is a value as text: itself if it is one, or else its JSON.
func asText(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	encoded, err := json.Marshal(v)
	if err != nil {
		return jsonType(v)
	}
	return strings.TrimSpace(string(encoded))
}
