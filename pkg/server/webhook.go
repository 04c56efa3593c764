package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"time"

	"go.opentelemetry.io/otel/trace"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-rego/kube-rego/pkg/admission"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

const (
	// maxBodyBytes bounds a review. The API server takes objects of at most
	// 3 MiB (k8s.io/apiserver, MaxRequestBodyBytes), and a review holds two of
	// them, the object and the old object, with little around them.
	maxBodyBytes = 7 << 20
	// The API server asks with ?timeout=; without it we take the default that it
	// gives a webhook, and never more than it allows (timeoutSeconds in
	// admissionregistration.k8s.io/v1).
	defaultTimeout = 10 * time.Second
	maxTimeout     = 30 * time.Second
)

// Reviewer answers the review in body.
type Reviewer interface {
	Review(ctx context.Context, body []byte) (admission.Answer, error)
}

// WebhookConfig is what a Webhook needs.
type WebhookConfig struct {
	// Reviewer answers the reviews that come to POST / and POST /mutate, and Validator
	// those that come to POST /validate: the API server takes no patch from a webhook
	// that validates, and its review does not say what it is for.
	Reviewer, Validator Reviewer
	// Entrypoint is the decision that both ask for, as metrics name it.
	Entrypoint string
	// RanOut hears of each review whose policies did not come to a decision in time;
	// it must not block. nil: nobody does.
	RanOut func(admission.Answer)
	// Refusals remember what was not allowed; nil: nobody does.
	Refusals *Refusals
	// Data answers at /v0/data/<path> and /v1/data/<path>, as OPA's REST API
	// does; nil if nothing is served there.
	Data http.Handler
	// Decides reports whether rules decide the path, such as system/main. Where
	// they do not nothing is evaluated: documents that are merely there, such as
	// objects of the cluster, are not for whoever can reach the webhook.
	Decides func(path string) bool
	// Ready is nil, or why all must be refused: what is in force is not the whole
	// policy set.
	Ready func() error
	// Metrics count the reviews.
	Metrics *Metrics
	// Log is told of what was refused.
	Log *slog.Logger
	// Tracer makes a span of each review; nil: there are none.
	Tracer trace.Tracer
}

// Webhook answers the API server, and whoever asks for a single decision.
type Webhook struct{ config WebhookConfig }

// NewWebhook makes the handler of the webhook's listener.
func NewWebhook(config WebhookConfig) *Webhook { return &Webhook{config: config} }

// ServeHTTP answers reviews and requests for decisions, and all else with an error in
// JSON.
func (h *Webhook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	reviewer := h.reviewer(r.URL.Path)
	switch {
	case h.config.Data != nil && isDataPath(r.URL.Path):
		h.data(w, r)
	case reviewer == nil:
		writeError(w, http.StatusNotFound, fmt.Sprintf("nothing is served at %s; AdmissionReviews go to POST /, /mutate or /validate", r.URL.Path))
	case r.Method != http.MethodPost:
		w.Header().Set("Allow", http.MethodPost)
		writeError(w, http.StatusMethodNotAllowed, "this is an admission webhook: send an AdmissionReview with POST "+r.URL.Path)
	default:
		h.review(w, r, reviewer)
	}
}

// reviewer is who answers reviews at a path; nil if nobody does.
func (h *Webhook) reviewer(path string) Reviewer {
	switch path {
	case "/", "/mutate":
		return h.config.Reviewer
	case "/validate":
		return h.config.Validator
	}
	return nil
}

// The outcomes of a review, as metrics and logs name them: what the policies came to,
// whatever is then made of it.
const (
	outcomeAllowed   = "allowed"
	outcomeDenied    = "denied"    // or it was for another authorizer to say
	outcomeInvalid   = "invalid"   // the request was no review
	outcomeUndefined = "undefined" // no rule says anything
	outcomeTimeout   = "timeout"   // the policies took too long
	outcomeError     = "error"     // they failed, or said what cannot be passed on
	outcomeCanceled  = "canceled"  // who asked is gone, and hears no answer
)

func (h *Webhook) review(w http.ResponseWriter, r *http.Request, reviewer Reviewer) {
	defer h.recovered(func() {
		h.config.Metrics.reviewed("", outcomeError, h.config.Entrypoint, 0)
		writeError(w, http.StatusInternalServerError, internalError)
	})
	r, span := startSpan(h.config.Tracer, r)
	defer span.End()
	start := time.Now()
	answer, err := h.answer(w, r, reviewer)
	status, outcome := http.StatusOK, outcomeOf(answer)
	if err != nil {
		status, outcome = classify(err)
	}
	took := time.Since(start)
	h.config.Metrics.reviewed(answer.Request.Operation, outcome, h.config.Entrypoint, took)
	h.account(r, answer, err, outcome, status, took)
	describe(span, answer, outcome, h.config.Entrypoint)
	if err != nil {
		writeError(w, status, publicMessage(err))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(answer.Body) // a client that is gone hears nothing
}

// outcomeOf is what the policies came to.
func outcomeOf(answer admission.Answer) string {
	switch {
	case answer.Cause != nil:
		_, outcome := classify(answer.Cause)
		return outcome
	case answer.Allowed:
		return outcomeAllowed
	}
	return outcomeDenied
}

// account tells of an answer, or of why there is none: the log, the metrics, and what is
// remembered of refusals.
func (h *Webhook) account(r *http.Request, answer admission.Answer, err error, outcome string, status int, took time.Duration) {
	switch {
	case outcome == outcomeCanceled:
		about(h.config.Log, answer).Info("no decision", "outcome", outcome, "remote", r.RemoteAddr, "took", took)
	case answer.Cause != nil:
		h.config.Metrics.fellBack(outcome, string(answer.Action))
		about(h.config.Log, answer).Warn("no decision", "outcome", outcome, "action", answer.Action, "status", status, "remote", r.RemoteAddr, "error", answer.Cause)
	case err != nil:
		about(h.config.Log, answer).Warn("no decision", "outcome", outcome, "status", status, "remote", r.RemoteAddr, "error", err)
	default:
		h.logDecision(r.Context(), answer, outcome)
	}
	if (outcome == outcomeTimeout || outcome == outcomeCanceled && took > slow) && h.config.RanOut != nil {
		h.config.RanOut(answer)
	}
	if outcome != outcomeCanceled && !answer.Allowed && !answer.NoOpinion && answer.Review != "" && h.config.Refusals != nil {
		h.config.Refusals.Add(refusal(answer, outcome))
	}
}

// slow is how long a decision takes that has run away, if who asked hung up before the time
// was over that it gave: the API server gives the time that is left to it in whole seconds,
// rounded up, and waits for a second at least.
const slow = 900 * time.Millisecond

// logDecision logs a decision. What is not denied is most of it, and seldom logged.
func (h *Webhook) logDecision(ctx context.Context, answer admission.Answer, outcome string) {
	level := slog.LevelInfo
	if answer.Allowed || answer.NoOpinion {
		level = slog.LevelDebug
	}
	if !h.config.Log.Enabled(ctx, level) {
		return
	}
	log := about(h.config.Log, answer)
	if len(answer.Modules) > 0 {
		log = log.With("modules", answer.Modules)
	}
	log.Log(ctx, level, "decision", "outcome", outcome)
}

func refusal(answer admission.Answer, outcome string) Refusal {
	r := answer.Request
	return Refusal{
		Time: time.Now(), DecisionID: answer.DecisionID, Operation: r.Operation, Kind: r.Kind, Namespace: r.Namespace, Name: r.Name,
		User: r.User, Fingerprint: answer.Fingerprint, Modules: answer.Modules, Outcome: outcome,
	}
}

// publicMessage returns what whoever made the request reads of an error: not what ails us
// until we are ready, which is for those who can read /readyz.
func publicMessage(err error) string {
	var notReady *notReadyError
	if errors.As(err, &notReady) {
		return "kube-rego is not ready: the first whole policy set is not in force yet"
	}
	return err.Error()
}

// about is the log for lines that speak of one decision.
func about(log *slog.Logger, answer admission.Answer) *slog.Logger {
	if answer.Review == "" {
		return log // it was no review
	}
	r := answer.Request
	return log.With("decisionID", answer.DecisionID, "review", answer.Review, "uid", r.UID, "operation", r.Operation,
		"kind", r.Kind, "namespace", r.Namespace, "name", r.Name, "user", r.User)
}

func (h *Webhook) answer(w http.ResponseWriter, r *http.Request, reviewer Reviewer) (admission.Answer, error) {
	if err := h.config.Ready(); err != nil {
		return admission.Answer{}, &notReadyError{err}
	}
	timeout, err := reviewTimeout(r)
	if err != nil {
		return admission.Answer{}, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	body, err := readBody(w, r)
	if err != nil {
		return admission.Answer{}, err
	}
	return reviewer.Review(ctx, body)
}

// readBody reads the request's body. A body that says it is too large is not
// read at all: so the client hears why instead of a broken connection.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if r.ContentLength > maxBodyBytes {
		return nil, errTooLarge
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBodyBytes))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, errTooLarge
	case err != nil:
		return nil, &badRequestError{fmt.Sprintf("reading the body: %v", err)}
	}
	return body, nil
}

// The answer must be on its way before the API server gives up: a tenth of its time is
// kept for that, and never more than maxMargin.
const (
	marginPart = 10
	maxMargin  = 500 * time.Millisecond
)

// reviewTimeout is how long the policies may take. The API server says in whole seconds,
// rounded up, how long it waits.
func reviewTimeout(r *http.Request) (time.Duration, error) {
	timeout := defaultTimeout
	if value := r.URL.Query().Get("timeout"); value != "" {
		var err error
		if timeout, err = time.ParseDuration(value); err != nil || timeout <= 0 {
			return 0, &badRequestError{fmt.Sprintf("timeout=%q is not a positive duration such as 5s", value)}
		}
	}
	timeout = min(timeout, maxTimeout)
	return timeout - min(timeout/marginPart, maxMargin), nil
}

// errTooLarge is the error of a body beyond maxBodyBytes.
var errTooLarge = fmt.Errorf("the body is larger than %d bytes", maxBodyBytes)

type notReadyError struct{ error }

type badRequestError struct{ text string }

func (e *badRequestError) Error() string { return e.text }

// classify is the one place where an error becomes an HTTP status. A status
// other than 200 leaves the decision to the webhook's failurePolicy.
func classify(err error) (status int, outcome string) {
	var (
		invalid  *admission.InvalidReviewError
		bad      *badRequestError
		notReady *notReadyError
	)
	switch {
	case errors.As(err, &invalid), errors.As(err, &bad):
		return http.StatusBadRequest, outcomeInvalid
	case errors.Is(err, errTooLarge):
		return http.StatusRequestEntityTooLarge, outcomeInvalid
	case errors.As(err, &notReady):
		return http.StatusServiceUnavailable, outcomeError
	case errors.Is(err, context.DeadlineExceeded):
		return http.StatusGatewayTimeout, outcomeTimeout
	case errors.Is(err, context.Canceled):
		return http.StatusServiceUnavailable, outcomeCanceled
	case errors.Is(err, policy.ErrUndefined):
		return http.StatusInternalServerError, outcomeUndefined
	}
	return http.StatusInternalServerError, outcomeError
}

// internalError is all that is told of a panic.
const internalError = "internal error"

// recovered turns a panic into an answer: one request must not be able to end
// the process that all others depend on.
func (h *Webhook) recovered(answer func()) {
	p := recover()
	if p == nil {
		return
	}
	h.config.Log.Error("panic while answering a request", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	answer()
}

// writeError answers with an error as Kubernetes words one: of an HTTP error the
// API server passes on to its user only what it finds in a Status.
func writeError(w http.ResponseWriter, status int, message string) {
	writeJSON(w, status, metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
		Status:   metav1.StatusFailure,
		Message:  message,
		Reason:   reasons[status],
		Code:     int32(status), //nolint:gosec // G115: HTTP statuses have three digits
	})
}

// reasons are Kubernetes' words for the HTTP statuses that we answer with.
var reasons = map[int]metav1.StatusReason{
	http.StatusBadRequest:            metav1.StatusReasonBadRequest,
	http.StatusNotFound:              metav1.StatusReasonNotFound,
	http.StatusMethodNotAllowed:      metav1.StatusReasonMethodNotAllowed,
	http.StatusRequestEntityTooLarge: metav1.StatusReasonRequestEntityTooLarge,
	http.StatusInternalServerError:   metav1.StatusReasonInternalError,
	http.StatusServiceUnavailable:    metav1.StatusReasonServiceUnavailable,
	http.StatusGatewayTimeout:        metav1.StatusReasonTimeout,
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	_ = e.Encode(body) // a client that is gone hears nothing
}
