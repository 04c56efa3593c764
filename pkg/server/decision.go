package server

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// dataMethods are those that ask for a decision, by version of OPA's REST API.
var dataMethods = map[string][]string{
	"v0": {http.MethodPost},
	"v1": {http.MethodGet, http.MethodPost},
}

// private are parameters of OPA's REST API that show more than the decision to whoever
// reaches the webhook.
var private = map[string]string{
	"explain":     "all data that the rules have read",
	"instrument":  "how the policies are made",
	"provenance":  "which bundles there are",
	"rule_labels": "how the policies are made",
}

// isDataPath reports whether a path is one of those that decisions are below.
func isDataPath(path string) bool {
	return path == "/v0/data" || path == "/v1/data" || strings.HasPrefix(path, "/v0/data/") || strings.HasPrefix(path, "/v1/data/")
}

// data hands on a request for a decision that rules make, within the limits of
// a review. Its errors have the shape of OPA's REST API.
func (h *Webhook) data(w http.ResponseWriter, r *http.Request) {
	defer h.recovered(func() { writeAPIError(w, http.StatusInternalServerError, codeInternal, internalError) })
	version, path, ok := decisionPath(r.URL)
	if !ok {
		noDecision(w, r)
		return
	}
	if methods := dataMethods[version]; !slices.Contains(methods, r.Method) {
		allow := strings.Join(methods, ", ")
		w.Header().Set("Allow", allow)
		writeAPIError(w, http.StatusMethodNotAllowed, codeMethodNotAllowed, "a decision is asked for with "+allow)
		return
	}
	if err := h.config.Ready(); err != nil {
		h.refuse(w, r, &notReadyError{err})
		return
	}
	if !h.config.Decides(path) {
		noDecision(w, r)
		return
	}
	timeout, body, err := readQuestion(w, r)
	if err != nil {
		h.refuse(w, r, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	r = r.Clone(ctx)
	r.Header.Del("Content-Encoding")
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	h.config.Data.ServeHTTP(w, r)
}

// readQuestion is how long the answer to a request may take and its body, or
// what is wrong with it.
func readQuestion(w http.ResponseWriter, r *http.Request) (time.Duration, []byte, error) {
	for parameter, why := range private {
		if r.URL.Query().Has(parameter) {
			return 0, nil, &badRequestError{parameter + " is not served here: it shows " + why}
		}
	}
	timeout, err := reviewTimeout(r)
	if err != nil {
		return 0, nil, err
	}
	body, err := readBody(w, r)
	if err == nil && strings.Contains(r.Header.Get("Content-Encoding"), "gzip") { // as OPA looks for it
		body, err = unpack(body)
	}
	return timeout, body, err
}

// unpack is what a body in gzip holds. OPA would unpack it as well, to more than
// half a gigabyte.
func unpack(packed []byte) ([]byte, error) {
	var body []byte
	reader, err := gzip.NewReader(bytes.NewReader(packed))
	if err == nil {
		body, err = io.ReadAll(io.LimitReader(reader, maxBodyBytes+1))
	}
	switch {
	case err != nil:
		return nil, &badRequestError{fmt.Sprintf("could not decompress the body: %v", err)}
	case len(body) > maxBodyBytes:
		return nil, errTooLarge
	}
	return body, nil
}

// refuse answers with an error that left the request without a decision.
func (h *Webhook) refuse(w http.ResponseWriter, r *http.Request, err error) {
	status, _ := classify(err)
	code := codeInternal
	if status < http.StatusInternalServerError {
		code = codeInvalidParameter
	}
	h.config.Log.Warn("no decision", "path", r.URL.Path, "status", status, "remote", r.RemoteAddr, "error", err)
	writeAPIError(w, status, code, publicMessage(err))
}

func noDecision(w http.ResponseWriter, r *http.Request) {
	writeAPIError(w, http.StatusNotFound, codeNotFound, fmt.Sprintf("no rule decides at %s", r.URL.Path))
}

// decisionPath is the version of the API and the path that a URL asks for. A
// path that others could read in another way than we do is none: what is asked
// about here must be what is evaluated then.
func decisionPath(u *url.URL) (version, path string, ok bool) {
	segments := strings.Split(strings.TrimPrefix(u.EscapedPath(), "/"), "/")
	for n, escaped := range segments {
		segment, err := url.PathUnescape(escaped)
		switch {
		case err != nil, segment == "", segment == ".", segment == "..", strings.ContainsAny(segment, `/%"`):
			return "", "", false
		}
		segments[n] = segment
	}
	if len(segments) < 3 { // all of data is no decision
		return "", "", false
	}
	return segments[0], strings.Join(segments[2:], "/"), true
}
