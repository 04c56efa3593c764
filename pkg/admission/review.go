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
	"strings"
	"time"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// Decider answers a query. The input and the result are what encoding/json
// decodes to, with json.Number for numbers.
type Decider interface {
	Decide(ctx context.Context, path string, input any) (policy.Decision, error)
}

// Action is what becomes of a review about which the policies come to no decision.
type Action string

const (
	// Fail gives no answer, so that the failurePolicy of the webhook decides.
	Fail Action = "fail"
	// Deny answers no, and says why.
	Deny Action = "deny"
	// Allow answers yes, with a warning that says why.
	Allow Action = "allow"
)

// Config is what a Reviewer needs.
type Config struct {
	// Entrypoint is the decision that is asked for, such as system/main.
	Entrypoint string
	// Strict passes on only answers that are right as they are. Otherwise what is
	// known from the field is made right.
	Strict bool
	// OnUndefined is for an AdmissionReview about which no rule says anything, and
	// OnError for one about which the policies fail, run out of time, or say what
	// cannot be made right. Empty: Fail. Other kinds of reviews always fail.
	OnUndefined, OnError Action
	// Validating says that the answers are for validating webhooks, of which the API
	// server takes no patch.
	Validating bool
}

// Reviewer answers reviews with the decision of an entrypoint.
type Reviewer struct {
	decider Decider
	config  Config
}

// NewReviewer makes a reviewer that asks decider.
func NewReviewer(decider Decider, config Config) *Reviewer {
	return &Reviewer{decider: decider, config: config}
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
	// Cause is why the policies came to no decision; nil if they did. The answer is
	// then what Action says.
	Cause  error
	Action Action
	// DecisionID names the decision in logs.
	DecisionID string
	// Fingerprint is that of the set that it was made with.
	Fingerprint string
	// Modules are those that had a say, where the answer says more than yes.
	Modules []string
	// Witness knows more; nil if there was no set to make a decision with.
	Witness policy.Witness
	// Request says what was asked about.
	Request Request
}

// Request is what a log may tell of a request: never the object itself, which
// may hold secrets. The kind has the subresource behind a slash, as in Pod/status.
// Of access that is asked for the verb is the operation, and the resource, such as
// pods/exec, is the kind.
type Request struct {
	UID, Operation, Kind, Namespace, Name, User string
}

// maxText is how long a text of a request may be that is told: twice as many bytes as a
// name has in Kubernetes. The API server sends no longer ones, but others may.
const maxText = 512

// cut is the request with texts that are not too long to be told and remembered.
func (r Request) cut() Request {
	for _, s := range []*string{&r.UID, &r.Operation, &r.Kind, &r.Namespace, &r.Name, &r.User} {
		if len(*s) > maxText {
			*s = strings.ToValidUTF8((*s)[:maxText], "") + "…"
		}
	}
	return r
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
	decision, err := r.decider.Decide(ctx, r.config.Entrypoint, review.input)
	answer := Answer{
		Review:      review.kind.name,
		DecisionID:  decision.ID,
		Fingerprint: decision.Fingerprint,
		Witness:     decision.Witness,
		Request:     review.request,
	}
	var content map[string]any
	if err == nil {
		content, answer.Body, err = r.render(ctx, review, decision, &answer)
	}
	if err != nil {
		answer.Cause, answer.Action = outOfTime(err), r.action(review, err)
		if answer.Action == Fail {
			return answer, review.kind.fail(answer.Cause, decision.ID)
		}
		content = fallback(answer.Action, answer.Cause, review.uid, decision)
		if answer.Body, err = review.encode(content); err != nil {
			return answer, err
		}
	}
	answer.Allowed = content["allowed"] == true
	answer.NoOpinion = review.kind.name == subjectAccessReview && !answer.Allowed && content["denied"] != true
	return answer, nil
}

// render returns the answer that a decision makes, and its JSON.
func (r *Reviewer) render(ctx context.Context, review review, decision policy.Decision, answer *Answer) (map[string]any, []byte, error) {
	content, err := review.kind.answer(r.config, review, decision)
	if err == nil && review.kind.field == responseField {
		if says(content) {
			answer.Modules = speakers(ctx, decision)
		}
		explain(content, answer.Modules)
		annotate(content, decision, answer.Modules)
	}
	var body []byte
	if err == nil {
		body, err = review.encode(content)
	}
	if err != nil {
		answer.Modules = speakers(ctx, decision)
		return nil, nil, fmt.Errorf("decision %s: %w%s", r.config.Entrypoint, err, by(answer.Modules))
	}
	return content, body, nil
}

// action is what is to be done without a decision.
func (r *Reviewer) action(review review, err error) Action {
	action := r.config.OnError
	if errors.Is(err, policy.ErrUndefined) {
		action = r.config.OnUndefined
	}
	if action == "" || review.kind.field != responseField {
		return Fail
	}
	return action
}

// An answer waits until it is known which modules had a say for a quarter of the time that
// is left, and for maxSpeakersTime at most: a decision takes some milliseconds, and to make
// it once more under a trace three times as long. One that takes longer is told without.
const (
	speakersPart    = 4
	maxSpeakersTime = time.Second
)

func speakers(ctx context.Context, decision policy.Decision) []string {
	if decision.Witness == nil {
		return nil
	}
	limit := maxSpeakersTime
	if deadline, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(deadline)/speakersPart)
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	modules, err := decision.Witness.Speakers(ctx)
	if err != nil {
		return nil
	}
	return modules
}

// by names modules at the end of a sentence.
func by(modules []string) string {
	if len(modules) == 0 {
		return ""
	}
	return " (said by " + strings.Join(modules, ", ") + ")"
}

// outOfTime words the error of a decision whose time was up.
func outOfTime(err error) error {
	if !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("the policies did not come to a decision in the time that there was: %w", err)
}

// review is what must be known of a request to answer it.
type review struct {
	input      map[string]any
	apiVersion string
	kind       kind
	request    Request
	uid        string // whole, for the answer
}

// encode is the whole answer in JSON. What the API server could not decode is an error.
func (r review) encode(content map[string]any) ([]byte, error) {
	encoded, err := json.Marshal(map[string]any{"apiVersion": r.apiVersion, "kind": r.kind.name, r.kind.field: content})
	if err != nil {
		return nil, err
	}
	return encoded, decodable(encoded, r.kind.decoded())
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
	r.uid, r.request = r.request.UID, r.request.cut()
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
