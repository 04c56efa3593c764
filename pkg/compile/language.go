package compile

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// offByDefault are the built-ins that lend a policy author the authority of
// the process: its network, its environment and, as a JSON schema may refer to
// file:// as well, its files.
var offByDefault = []string{"http.send", "json.match_schema", "json.verify_schema", "net.lookup_ip_addr", "opa.runtime"}

// OffByDefault returns the built-ins that a policy may call only if they were switched
// on.
func OffByDefault() []string { return slices.Clone(offByDefault) }

// language is the Rego that is accepted: OPA's, less the built-ins that are off. It reads
// texts and words what OPA finds wrong in them.
type language struct {
	capabilities *ast.Capabilities
	off          []string // built-ins
}

func newLanguage(enabled []string) (*language, error) {
	for _, name := range enabled {
		if !slices.Contains(offByDefault, name) {
			return nil, errors.New("built-in " + name + " is not one of those that are off by default")
		}
	}
	off := slices.DeleteFunc(OffByDefault(), func(name string) bool { return slices.Contains(enabled, name) })
	c := ast.CapabilitiesForThisVersion()
	c.Builtins = slices.DeleteFunc(c.Builtins, func(b *ast.Builtin) bool { return slices.Contains(off, b.Name) })
	// Built-ins that are not off reach the network too: json.match_schema fetches
	// what a schema refers to. The list holds for all, so it ends with the first
	// built-in for the network that is switched on.
	if !slices.Contains(enabled, "http.send") && !slices.Contains(enabled, "net.lookup_ip_addr") {
		c.AllowNet = []string{}
	}
	return &language{capabilities: c, off: off}, nil
}

// newCompiler returns OPA's compiler as every set is compiled.
func (l *language) newCompiler() *ast.Compiler {
	return ast.NewCompiler().
		WithCapabilities(l.capabilities).
		SetErrorLimit(0). // every error of a stage: each names a module to hold
		WithDefaultRegoVersion(ast.RegoV1)
}

// parse parses a text in one version. With an error of a rule that v1 has beyond its
// grammar it returns the tree too.
func (l *language) parse(name, source string, version policy.RegoVersion) (*ast.Module, error) {
	options := ast.ParserOptions{
		Capabilities:      l.capabilities,
		ProcessAnnotation: true, // as OPA's own server does
		RegoVersion:       ast.RegoV0,
	}
	if version == policy.RegoV1 {
		options.RegoVersion = ast.RegoV1
	}
	tree, err := ast.ParseModuleWithOpts(name, source, options)
	if err != nil {
		return nil, err
	}
	if version == policy.RegoV1 {
		if errs := ast.CheckRegoV1(tree); len(errs) > 0 {
			return tree, errs
		}
	}
	return tree, nil
}

// parseVersion parses m in the version asked for. Auto tries Rego v1 first,
// with all that v1 forbids beyond its grammar, and then v0. If neither takes
// the text, the error is that of the version which got further into it: the
// other one stumbled over the first line that is not its language. If both fail
// on one line, it is the version in which more of the rest is right.
func (l *language) parseVersion(m policy.Module, version policy.RegoVersion) (*ast.Module, policy.RegoVersion, error) {
	if version != policy.RegoAuto {
		tree, err := l.parse(m.ID.String(), m.Source, version)
		return tree, version, err
	}
	v1, errV1 := l.parse(m.ID.String(), m.Source, policy.RegoV1)
	if errV1 == nil {
		return v1, policy.RegoV1, nil
	}
	v0, errV0 := l.parse(m.ID.String(), m.Source, policy.RegoV0)
	if errV0 == nil {
		return v0, policy.RegoV0, nil
	}
	rowV0, rowV1 := firstRow(errV0), firstRow(errV1)
	// A text that v1's grammar took is v1: it breaks one of v1's further rules.
	if v1 == nil && (rowV0 > rowV1 || rowV0 == rowV1 && l.likelier(m) == policy.RegoV0) {
		return nil, policy.RegoV0, errV0
	}
	return nil, policy.RegoV1, errV1
}

// problems turns OPA's errors into problems, in the order of their place.
func (l *language) problems(err error) []policy.Problem {
	var problems []policy.Problem
	for _, e := range astErrors(err) {
		problems = append(problems, l.problem(e))
	}
	slices.SortStableFunc(problems, byPlace)
	// Of several errors at one place the parser's first is the cause.
	return slices.CompactFunc(problems, func(a, b policy.Problem) bool { return byPlace(a, b) == 0 })
}

func (l *language) problem(e *ast.Error) policy.Problem {
	problem := policy.Problem{Code: e.Code, Message: e.Message, Row: 1, Col: 1}
	if e.Location != nil && e.Location.Row > 0 {
		problem.Row, problem.Col = e.Location.Row, max(1, e.Location.Col) // OPA counts the end of the text as column 0
	}
	for _, name := range l.off {
		// Where a function is named and not called, its first part counts as a
		// variable.
		first, _, _ := strings.Cut(name, ".")
		if e.Message == "undefined function "+name || e.Message == "var "+first+" is unsafe" {
			problem.Message += ": the built-in " + name + " is off unless --enable-builtin=" + name + " switches it on"
		}
	}
	return problem
}

// lines words errors in one line each, with their place.
func (l *language) lines(errs ast.Errors) []string {
	lines := make([]string, 0, len(errs))
	for _, e := range errs {
		lines = append(lines, l.line(e))
	}
	return lines
}

func (l *language) line(e *ast.Error) string {
	problem := l.problem(e)
	if file(e) == "" {
		return fmt.Sprintf("%s: %s", problem.Code, problem.Message)
	}
	return fmt.Sprintf("%s:%d: %s: %s", file(e), problem.Row, problem.Code, problem.Message)
}

// astErrors returns the single errors in an error of OPA's parser or compiler.
func astErrors(err error) ast.Errors {
	if err == nil {
		return nil
	}
	var several ast.Errors
	if errors.As(err, &several) {
		return several
	}
	var one *ast.Error
	if errors.As(err, &one) {
		return ast.Errors{one}
	}
	return ast.Errors{{Code: ast.ParseErr, Message: err.Error()}}
}

// file returns the module that an error lies in; empty if it lies in none.
func file(e *ast.Error) string {
	if e.Location == nil {
		return ""
	}
	return e.Location.File
}

func firstRow(err error) int {
	row := 0
	for _, e := range astErrors(err) {
		if e.Location != nil && (row == 0 || e.Location.Row < row) {
			row = e.Location.Row
		}
	}
	return row
}
