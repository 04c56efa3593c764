package server

import (
	"encoding/json"
	"net/http"
)

// The codes of errors in the shape of OPA's REST API. OPA has no code for a
// method that is not allowed: it answers those without a body.
const (
	codeInternal         = "internal_error"
	codeInvalidParameter = "invalid_parameter"
	codeMethodNotAllowed = "method_not_allowed"
	codeNotFound         = "resource_not_found"
	codeUnauthorized     = "unauthorized"
)

// writeAPIError answers with an error as OPA words one: its clients read it by
// code and message.
func writeAPIError(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(struct { // a client that is gone hears nothing
		Code    string `json:"code"`
		Message string `json:"message"`
	}{code, message})
}
