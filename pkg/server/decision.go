package server

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// dataMethods are those that ask for a decision, by version of OPA's REST API.
var dataMethods = map[string][]string{
	"v0": {http.MethodPost},
	"v1": {http.MethodGet, http.MethodPost},
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
	timeout, err := reviewTimeout(r)
	if err != nil {
		h.refuse(w, r, err)
		return
	}
	body, err := readBody(w, r)
	if err != nil {
		h.refuse(w, r, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	r = r.WithContext(ctx)
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	h.config.Data.ServeHTTP(w, r)
}

// refuse answers with an error that left the request without a decision.
func (h *Webhook) refuse(w http.ResponseWriter, r *http.Request, err error) {
	status, _ := classify(err)
	code := codeInternal
	if status < http.StatusInternalServerError {
		code = codeInvalidParameter
	}
	h.config.Log.Warn("no decision", "path", r.URL.Path, "status", status, "remote", r.RemoteAddr, "error", err)
	writeAPIError(w, status, code, told(err))
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
