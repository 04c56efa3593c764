// Package admission turns a review of the API server, an AdmissionReview or its
// kin, into a query, and what the policies answer into a review that the API
// server takes. It is pure: it knows neither HTTP nor OPA.
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

// Reviewer answers reviews with the decision of an entrypoint.
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
	// Review is the kind of what was sent; empty if that was no review.
	Review string
	// Body is the review to send back, in JSON.
	Body []byte
	// Allowed is what it says.
	Allowed bool
	// NoOpinion says that it neither allows nor denies, so that another
	// authorizer is asked. Only a SubjectAccessReview can be answered so.
	NoOpinion bool
	// DecisionID names the decision in logs.
	DecisionID string
	// Request says what was asked about.
	Request Request
}

// Request is what a log may tell of a request: never the object itself, which
// may hold secrets. Of access that is asked for the verb is the operation, and
// the resource, such as pods/exec, is the kind.
type Request struct {
	UID, Operation, Kind, Namespace, Name, User string
}

// InvalidReviewError says why what was sent cannot be answered.
type InvalidReviewError struct{ reason string }

// Error is the reason, in a sentence for who sent the review.
func (e *InvalidReviewError) Error() string { return "no review to answer: " + e.reason }

func invalid(format string, args ...any) error {
	return &InvalidReviewError{reason: fmt.Sprintf(format, args...)}
}

// Review answers the review in body. The error is an *InvalidReviewError if body
// holds none; any other error means that there is no decision, and never stands
// for yes.
func (r *Reviewer) Review(ctx context.Context, body []byte) (Answer, error) {
	review, err := decode(body)
	if err != nil {
		return Answer{}, err
	}
	decision, err := r.decider.Decide(ctx, r.entrypoint, review.input)
	answer := Answer{Review: review.kind.name, DecisionID: decision.ID, Request: review.request}
	if err != nil {
		return answer, err
	}
	content, err := review.kind.answer(decision, review.request.UID)
	if err != nil {
		return answer, fmt.Errorf("decision %s: %w", r.entrypoint, err)
	}
	encoded, err := json.Marshal(map[string]any{
		"apiVersion":      review.apiVersion,
		"kind":            review.kind.name,
		review.kind.field: content,
	})
	if err == nil {
		err = decodable(encoded, review.kind.decoded())
	}
	if err != nil {
		return answer, fmt.Errorf("decision %s: %w", r.entrypoint, err)
	}
	answer.Body, answer.Allowed = encoded, content["allowed"] == true
	answer.NoOpinion = review.kind.name == subjectAccessReview && !answer.Allowed && content["denied"] != true
	return answer, nil
}

// review is what must be known of a request to answer it.
type review struct {
	input      map[string]any
	apiVersion string
	kind       kind
	request    Request
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
	r := review{input: input, apiVersion: text(input["apiVersion"])}
	var err error
	if r.kind, err = findKind(r.apiVersion, text(input["kind"])); err != nil {
		return review{}, err
	}
	r.request, err = r.kind.describe(input)
	return r, err
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
