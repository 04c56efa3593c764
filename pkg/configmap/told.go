package configmap

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// The words of a status.
const (
	ToldOK      = "ok"
	ToldPending = "pending"
	ToldError   = "error"
	ToldWarning = "warning"
)

// Told is what the status annotation of a ConfigMap says.
type Told struct {
	// Status is one of the words above.
	Status string
	// InForce is what an error says is in force instead; empty if it does not,
	// as kube-mgmt's.
	InForce policy.InForce
	// Message is what the problems do not say: what is waited for, or how many
	// of them are not shown. It is empty as a rule.
	Message string
	// Problems are in the order in which they are told.
	Problems []ToldProblem
	// Warnings are about what is in force as wanted.
	Warnings []ToldProblem
}

// ToldProblem is a problem and the module that it is of.
type ToldProblem struct {
	Module string // its id, as a policy.ID writes itself
	policy.Problem
}

// ParseStatus reads a text that Status, Pending or kube-mgmt has written. Anybody
// who may edit the ConfigMap may have put another one there: it is for people to
// read, and nothing else is to be made of it.
func ParseStatus(text string) (Told, error) {
	var s struct {
		status
		Message string `json:"message"`
	}
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return Told{}, fmt.Errorf("reading the status: %w", err)
	}
	switch s.Status {
	case ToldOK, ToldPending:
		return Told{Status: s.Status, Message: s.Message}, nil
	case ToldWarning:
		return Told{Status: s.Status, Warnings: toldProblems(s.Warnings)}, nil
	case ToldError:
		return toldError(s.status)
	}
	return Told{}, fmt.Errorf("reading the status: unknown status %q", s.Status)
}

func toldError(s status) (Told, error) {
	told := Told{Status: s.Status, InForce: s.InForce, Warnings: toldProblems(s.Warnings)}
	switch s.InForce {
	case policy.Previous, policy.None, "":
	default:
		return Told{}, fmt.Errorf("reading the status: unknown version in force %q", s.InForce)
	}
	if s.Error == nil {
		return told, nil
	}
	told.Message = s.Error.Message
	told.Problems = toldProblems(s.Error.Errors)
	if len(told.Problems) > 0 {
		told.Message = strings.TrimPrefix(strings.TrimPrefix(told.Message, compiling), ": ")
	}
	return told, nil
}

func toldProblems(errs []moduleError) []ToldProblem {
	var problems []ToldProblem
	for _, e := range errs {
		problems = append(problems, ToldProblem{
			Module:  e.Location.File,
			Problem: policy.Problem{Code: e.Code, Message: e.Message, Row: e.Location.Row, Col: e.Location.Col},
		})
	}
	return problems
}
