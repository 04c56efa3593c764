package configmap

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// The words of a status.
const (
	StatusOK      = "ok"
	StatusPending = "pending"
	StatusError   = "error"
	StatusWarning = "warning"
)

// ParsedStatus is what the status annotation of a ConfigMap says.
type ParsedStatus struct {
	// Status is one of the words above.
	Status string
	// InForce is what an error says is in force instead; empty if it does not,
	// as kube-mgmt's.
	InForce policy.InForce
	// Message is what the problems do not say: what is waited for, or how many
	// of them are not shown. It is empty as a rule.
	Message string
	// Problems are in the order in which they are parsed.
	Problems []ModuleProblem
	// Warnings are about what is in force as wanted.
	Warnings []ModuleProblem
}

// ModuleProblem is a problem and the module that it is of.
type ModuleProblem struct {
	Module string // its id, as a policy.ID writes itself
	policy.Problem
}

// ParseStatus reads a text that Status, Pending or kube-mgmt has written. Anybody
// who may edit the ConfigMap may have put another one there: it is for people to
// read, and nothing else is to be made of it.
func ParseStatus(text string) (ParsedStatus, error) {
	var s struct {
		status
		Message string `json:"message"`
	}
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return ParsedStatus{}, fmt.Errorf("reading the status: %w", err)
	}
	switch s.Status {
	case StatusOK, StatusPending:
		return ParsedStatus{Status: s.Status, Message: s.Message}, nil
	case StatusWarning:
		return ParsedStatus{Status: s.Status, Warnings: moduleProblems(s.Warnings)}, nil
	case StatusError:
		return parseError(s.status)
	}
	return ParsedStatus{}, fmt.Errorf("reading the status: unknown status %q", s.Status)
}

func parseError(s status) (ParsedStatus, error) {
	parsed := ParsedStatus{Status: s.Status, InForce: s.InForce, Warnings: moduleProblems(s.Warnings)}
	switch s.InForce {
	case policy.Previous, policy.None, "":
	default:
		return ParsedStatus{}, fmt.Errorf("reading the status: unknown version in force %q", s.InForce)
	}
	if s.Error == nil {
		return parsed, nil
	}
	parsed.Message = s.Error.Message
	parsed.Problems = moduleProblems(s.Error.Errors)
	if len(parsed.Problems) > 0 {
		parsed.Message = strings.TrimPrefix(strings.TrimPrefix(parsed.Message, compiling), ": ")
	}
	return parsed, nil
}

func moduleProblems(errs []moduleError) []ModuleProblem {
	var problems []ModuleProblem
	for _, e := range errs {
		problems = append(problems, ModuleProblem{
			Module:  e.Location.File,
			Problem: policy.Problem{Code: e.Code, Message: e.Message, Row: e.Location.Row, Col: e.Location.Col},
		})
	}
	return problems
}
