package policy

import (
	"fmt"
	"slices"
	"strings"
)

// Problem is one reason why a change is held.
type Problem struct {
	// Code is OPA's name for the kind of error, such as rego_parse_error.
	Code string `json:"code"`
	// Message is what is wrong, in OPA's words.
	Message string `json:"message"`
	// Row and Col count from 1; both are 0 where there is no place to name.
	Row int `json:"row,omitempty"`
	Col int `json:"col,omitempty"`
	// Source is the line of the module at that place, and Caret points out the
	// column when it is written below it. Both are empty where there is none.
	Source string `json:"source,omitempty"`
	Caret  string `json:"caret,omitempty"`
}

// The codes of problems that are not OPA's own.
const (
	// CodeDefect is for a key that holds no Rego text at all; kube-mgmt uses
	// the same code for input that it cannot take.
	CodeDefect = "invalid_parameter"
	// CodeUnauthorized is for a module that its namespace is not trusted with;
	// it is what OPA's REST API calls a request that is not allowed.
	CodeUnauthorized = "unauthorized"
	// CodeUnavailable is for a module that reads objects of the cluster which are
	// not known.
	CodeUnavailable = "replication_error"
	// CodePending is for one that reads objects of the cluster which are about to
	// be known.
	CodePending = "replication_pending"
)

// String is the problem in one line, as a compiler prints it.
func (p Problem) String() string {
	if p.Row == 0 {
		return p.Code + ": " + p.Message
	}
	return fmt.Sprintf("%d:%d: %s: %s", p.Row, p.Col, p.Code, p.Message)
}

// maxExcerpt is how much of a long line is shown, in characters: what fits
// beside the place on a wide terminal.
const maxExcerpt = 160

// In adds to the problem the line of source that it is about. The source is the
// module's; columns count its characters.
func (p Problem) In(source string) Problem {
	p.Source, p.Caret = excerpt(source, p.Row, p.Col)
	return p
}

// excerpt is the line at row, or the part of it around col, and a caret below
// that column.
func excerpt(source string, row, col int) (line, caret string) {
	if row < 1 || col < 1 {
		return "", ""
	}
	n := 0
	for text := range strings.Lines(source) {
		if n++; n < row {
			continue
		}
		runes := []rune(strings.TrimRight(text, "\r\n"))
		start := max(0, min(col-1, len(runes))-maxExcerpt/2)
		end := min(len(runes), start+maxExcerpt)
		before := runes[start:max(start, min(col-1, end))]
		return string(runes[start:end]), blank(before) + "^"
	}
	return "", ""
}

// blank is as wide as the text: tabs stay, so that they align.
func blank(text []rune) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' {
			return r
		}
		return ' '
	}, string(text))
}

// InForce says which version of a module decisions are made with.
type InForce string

// Current: the wanted version. Previous: an earlier one. None: no version.
const (
	Current  InForce = "current"
	Previous InForce = "previous"
	None     InForce = "none"
)

// Status is what became of one module.
type Status struct {
	ID   ID
	Kind Kind
	// InForce is the version that decisions are made with.
	InForce InForce
	// Version is the Rego version of what is in force; empty if nothing is.
	Version RegoVersion
	// Deleted is true for a module that is gone from the wanted set and is
	// still in force, because the rest does not compile without it.
	Deleted bool
	// Problems is why the change is held; empty exactly if it is not.
	Problems []Problem
	// Warnings are what its author should know of what is in force as wanted.
	Warnings []Problem
}

// Pending reports whether the change is held by nothing but what is about to be
// known.
func (s Status) Pending() bool {
	return s.Held() && !slices.ContainsFunc(s.Problems, func(p Problem) bool { return p.Code != CodePending })
}

// Held reports whether the wanted version is not in force.
func (s Status) Held() bool { return len(s.Problems) > 0 }

// The states of a module, as metrics and /status name them.
const (
	StateInForce = "in_force"
	StateHeld    = "held"
)

// State is in one word what became of the module.
func (s Status) State() string {
	if s.Held() {
		return StateHeld
	}
	return StateInForce
}

// Report is what became of a whole set.
type Report struct {
	// Fingerprint is that of the modules in force.
	Fingerprint string
	// Modules are in the order of their ids.
	Modules []Status
}

// Held are the statuses of the changes that are not in force.
func (r Report) Held() []Status {
	var held []Status
	for _, s := range r.Modules {
		if s.Held() {
			held = append(held, s)
		}
	}
	return held
}
