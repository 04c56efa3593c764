package admission

import (
	"errors"
	"fmt"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// accessStatus makes of a policy's answer the status of a SubjectAccessReview.
// The API server's authorizer takes a status that both allows and denies for an
// error, and logs it where no author of a policy looks.
func accessStatus(_ Config, _ review, decision policy.Decision) (map[string]any, error) {
	status, err := reviewStatus(decision.Result)
	if err == nil && status["allowed"] == true && status["denied"] == true {
		err = errors.New("status.allowed and status.denied are both true")
	}
	return status, err
}

// imageStatus makes of a policy's answer the status of an ImageReview.
func imageStatus(_ Config, _ review, decision policy.Decision) (map[string]any, error) {
	return reviewStatus(decision.Result)
}

// reviewStatus is the status in a policy's answer. A policy that answers every
// review as if it were an AdmissionReview gives a response instead, and what
// that says becomes the status. Types of other fields than allowed are for
// decodable to look at.
func reviewStatus(result any) (map[string]any, error) {
	answer, ok := result.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("the answer is %s, want an object with a status", jsonType(result))
	}
	if response, ok := answer["response"].(map[string]any); ok && answer["status"] == nil {
		return fromResponse(response)
	}
	given, ok := answer["status"].(map[string]any)
	if !ok {
		return nil, fmt.Errorf("status is %s, want an object", jsonType(answer["status"]))
	}
	if _, ok := given["allowed"].(bool); !ok {
		return nil, fmt.Errorf("status.allowed is %s, want true or false", jsonType(given["allowed"]))
	}
	return given, nil
}

// fromResponse is the status that says what the response of an AdmissionReview
// does.
func fromResponse(response map[string]any) (map[string]any, error) {
	allowed, ok := response["allowed"].(bool)
	if !ok {
		return nil, fmt.Errorf("response.allowed is %s, want true or false", jsonType(response["allowed"]))
	}
	said, err := statusOf(response)
	if err != nil {
		return nil, err
	}
	status := map[string]any{"allowed": allowed}
	for _, field := range []string{"reason", "message"} { // a message is the longer text
		if text := said[field]; text != nil && text != "" {
			status["reason"] = text
		}
	}
	return status, nil
}
