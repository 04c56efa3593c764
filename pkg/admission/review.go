// Package admission turns the API server's AdmissionReview into a query and
// what the policies answer into an AdmissionReview that the API server takes.
// It is pure: it knows neither HTTP nor OPA.
package admission

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// Decider answers a query. The input and the result are what encoding/json
// decodes to, with json.Number for numbers.
type Decider interface {
	Decide(ctx context.Context, path string, input any) (policy.Decision, error)
}

// Reviewer answers AdmissionReviews with the decision of an entrypoint.
type Reviewer struct {
	decider    Decider
	entrypoint string
}

// NewReviewer makes a reviewer that asks decider for the decision entrypoint,
// such as system/main.
func NewReviewer(decider Decider, entrypoint string) *Reviewer {
	return &Reviewer{decider: decider, entrypoint: entrypoint}
}

// Answer is the answer to one review.
type Answer struct {
	// Body is the AdmissionReview to send, in JSON.
	Body []byte
	// Allowed is what it says.
	Allowed bool
	// DecisionID names the decision in logs.
	DecisionID string
	// Request says what was asked about.
	Request Request
}

// Request is what a log may tell of a request: never the object itself, which
// may hold secrets.
type Request struct {
	UID, Operation, Kind, Namespace, Name, User string
}

// InvalidReviewError says why what was sent is no AdmissionReview.
type InvalidReviewError struct{ reason string }

// Error is the reason, in a sentence for who sent the review.
func (e *InvalidReviewError) Error() string { return "not an AdmissionReview: " + e.reason }

func invalid(format string, args ...any) error {
	return &InvalidReviewError{reason: fmt.Sprintf(format, args...)}
}

// Review answers the AdmissionReview in body. The error is an
// *InvalidReviewError if body holds none; any other error means that there is
// no decision, and never stands for yes.
func (r *Reviewer) Review(ctx context.Context, body []byte) (Answer, error) {
	review, err := decode(body)
	if err != nil {
		return Answer{}, err
	}
	decision, err := r.decider.Decide(ctx, r.entrypoint, review.input)
	answer := Answer{DecisionID: decision.ID, Request: review.request}
	if err != nil {
		return answer, err
	}
	response, err := normalise(decision.Result, review.request.UID)
	if err != nil {
		return answer, fmt.Errorf("decision %s: %w", r.entrypoint, err)
	}
	encoded, err := json.Marshal(map[string]any{
		"apiVersion": review.apiVersion,
		"kind":       kind,
		"response":   response,
	})
	if err == nil {
		err = decodable(encoded)
	}
	if err != nil {
		return answer, fmt.Errorf("decision %s: %w", r.entrypoint, err)
	}
	answer.Body, answer.Allowed = encoded, response["allowed"] == true
	return answer, nil
}

// review is what must be known of a request to answer it.
type review struct {
	input      map[string]any
	apiVersion string
	request    Request
}

// kind and versions of the only thing that the API server sends to a webhook.
const kind = "AdmissionReview"

var versions = map[string]bool{
	"admission.k8s.io/v1":      true,
	"admission.k8s.io/v1beta1": true,
}

func decode(body []byte) (review, error) {
	if len(bytes.TrimSpace(body)) == 0 {
		return review{}, invalid("the body is empty")
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.UseNumber() // as OPA reads numbers: without loss
	var input map[string]any
	if err := decoder.Decode(&input); err != nil {
		return review{}, invalid("%s", jsonError(err, decoder.InputOffset()))
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return review{}, invalid("there is more after the JSON object, at byte %d", decoder.InputOffset())
	}
	r := review{input: input}
	r.apiVersion, _ = input["apiVersion"].(string)
	if k, _ := input["kind"].(string); k != kind || !versions[r.apiVersion] {
		return review{}, invalid("apiVersion is %q and kind is %q; want admission.k8s.io/v1 (or v1beta1) and %s", r.apiVersion, k, kind)
	}
	request, ok := input["request"].(map[string]any)
	if !ok {
		return review{}, invalid("request is %s, want an object", jsonType(input["request"]))
	}
	if r.request = describe(request); r.request.UID == "" {
		return review{}, invalid("request.uid is %s, want one that is not empty", jsonType(request["uid"]))
	}
	return r, nil
}

func describe(request map[string]any) Request {
	kind, _ := request["kind"].(map[string]any)
	user, _ := request["userInfo"].(map[string]any)
	return Request{
		UID:       text(request["uid"]),
		Operation: text(request["operation"]),
		Kind:      text(kind["kind"]),
		Namespace: text(request["namespace"]),
		Name:      text(request["name"]),
		User:      text(user["username"]),
	}
}

// text is v if it is a string.
func text(v any) string {
	s, _ := v.(string)
	return s
}

// jsonError words an error of encoding/json without Go's type names.
func jsonError(err error, offset int64) string {
	var wrongType *json.UnmarshalTypeError
	if errors.As(err, &wrongType) {
		return "the body is a JSON " + wrongType.Value + ", want an object"
	}
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		offset = syntax.Offset
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return "the body is cut off in the middle of its JSON"
	}
	return fmt.Sprintf("the body is not JSON: %v, at byte %d", err, offset)
}
