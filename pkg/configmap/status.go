package configmap

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// The bounds of an annotation. All annotations of an object together may have
// 256 KiB (k8s.io/apimachinery, TotalAnnotationSizeLimitB), and others want
// some of it too: a person reads ten errors at a time, and no message of OPA's
// that can be acted on is longer than a page.
const (
	maxErrors       = 10
	maxMessageBytes = 1000
	maxStatusBytes  = 16000
)

// OK is the status of a ConfigMap of which all is in force; it is compared byte for byte by scripts in the field.
const OK = `{"status":"ok"}`

// Pending is the status of a ConfigMap whose new version is in force on some
// replicas and not yet on others. It names none of them, so that it need not be
// written anew whenever one has caught up: /status has their names.
const Pending = `{"status":"pending","message":"not yet in force on every replica"}`

// status has kube-mgmt's shape, and says beside it what is in force.
type status struct {
	Status   string         `json:"status"`
	Error    *statusError   `json:"error,omitempty"`
	InForce  policy.InForce `json:"inForce,omitempty"`
	Warnings []moduleError  `json:"warnings,omitempty"`
}

type statusError struct {
	Code    string        `json:"code"`
	Message string        `json:"message"`
	Errors  []moduleError `json:"errors"`
}

type moduleError struct {
	Code     string   `json:"code"`
	Message  string   `json:"message"`
	Location location `json:"location"`
}

type location struct {
	File string `json:"file"`
	Row  int    `json:"row"`
	Col  int    `json:"col"`
}

// Status is the text of the status annotation of a ConfigMap whose modules
// have the given statuses: exactly {"status":"ok"} if all that it holds is in
// force and there is nothing to say about it. Or else each problem with its place,
// or, if all is in force, each warning; those of the ConfigMap itself come last.
func Status(modules []policy.Status, warnings ...policy.Problem) string {
	s := status{Status: StatusError, InForce: policy.Previous}
	var errs []moduleError
	for _, m := range modules {
		if m.Held() && m.InForce == policy.None {
			s.InForce = policy.None
		}
		errs = append(errs, moduleErrors(m)...)
		for _, w := range m.Warnings {
			s.Warnings = append(s.Warnings, newModuleError(m.ID.String(), w))
		}
	}
	for _, w := range warnings {
		s.Warnings = append(s.Warnings, newModuleError("", w))
	}
	s.Warnings = s.Warnings[:min(len(s.Warnings), maxErrors)]
	switch {
	case len(errs) == 0 && len(s.Warnings) == 0:
		return OK
	case len(errs) == 0:
		s.Status, s.InForce = StatusWarning, ""
		return encode(s)
	}
	text := ""
	for shown := min(len(errs), maxErrors); text == "" || len(text) > maxStatusBytes && shown > 0; shown-- {
		s.Error = &statusError{
			Code:    "invalid_parameter",
			Message: message(shown, len(errs)),
			Errors:  errs[:shown],
		}
		text = encode(s)
	}
	return text
}

func moduleErrors(m policy.Status) []moduleError {
	errs := make([]moduleError, 0, len(m.Problems))
	for _, p := range m.Problems {
		message := p.Message
		if m.Deleted {
			message = "deleting the module breaks the rest: " + message
		}
		p.Message = message
		errs = append(errs, newModuleError(m.ID.String(), p))
	}
	return errs
}

func newModuleError(module string, p policy.Problem) moduleError {
	return moduleError{
		Code:     shorten(p.Code),
		Message:  shorten(p.Message),
		Location: location{File: module, Row: p.Row, Col: p.Col},
	}
}

// compiling is the message above all problems, in OPA's words.
const compiling = "error(s) occurred while compiling module(s)"

func message(shown, all int) string {
	if shown == all {
		return compiling
	}
	return fmt.Sprintf("%s: %d, of which the first %d are shown", compiling, all, shown)
}

func shorten(s string) string {
	if len(s) <= maxMessageBytes {
		return s
	}
	return strings.ToValidUTF8(s[:maxMessageBytes], "") + "…"
}

func encode(s status) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // people read this
	if err := e.Encode(s); err != nil {
		// Strings and numbers always encode.
		panic(err)
	}
	return strings.TrimSuffix(b.String(), "\n")
}
