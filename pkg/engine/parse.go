package engine

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// module is one module as the parser left it: the wanted text with either its
// syntax tree or the problems that there is none for. It is never changed, so
// it is shared by every snapshot that holds it.
type module struct {
	policy.Module
	digest   [sha256.Size]byte
	ast      *ast.Module // of Rego
	data     *ast.Term   // of data
	reads    []read
	version  policy.RegoVersion
	problems []policy.Problem
}

// parser parses each content once: what did not change since the last set
// comes from its cache.
type parser struct {
	capabilities *ast.Capabilities
	off          []string
	version      policy.RegoVersion
	trusted      []string // namespaces that may declare packages under system
	replicated   Replicated
	mask         *ast.Module // of decision logs, for sets that define none; may be nil
	entrypoint   *entrypoint // for sets that define none; may be nil
	cache        map[[sha256.Size]byte]*module
}

// parse parses a whole set and forgets what the set no longer holds.
func (p *parser) parse(set policy.Set) map[policy.ID]*module {
	modules := make(map[policy.ID]*module, len(set))
	cache := make(map[[sha256.Size]byte]*module, len(set))
	for id, m := range set {
		digest := m.Digest()
		parsed, ok := p.cache[digest]
		if !ok {
			parsed = p.parseModule(m)
			parsed.digest = digest
		}
		parsed = parsed.of(m)
		modules[id], cache[digest] = parsed, parsed
	}
	p.cache = cache
	return modules
}

// read is parse for a set beside the one that is wanted: the cache stays as it is.
func (p *parser) read(set policy.Set) map[policy.ID]*module {
	modules := make(map[policy.ID]*module, len(set))
	for id, m := range set {
		digest := m.Digest()
		parsed, ok := p.cache[digest]
		if !ok {
			parsed = p.parseModule(m)
			parsed.digest = digest
		}
		modules[id] = parsed
	}
	return modules
}

func (p *parser) parseModule(m policy.Module) *module {
	parsed := &module{Module: m}
	if m.Defect != "" {
		parsed.problems = []policy.Problem{{Code: policy.CodeDefect, Message: m.Defect}}
		return parsed
	}
	if m.Kind == policy.Data {
		p.parseData(parsed)
		return parsed
	}
	version := m.Version
	if version == "" {
		version = p.version
	}
	tree, version, err := p.parseVersion(m, version)
	parsed.version = version
	if err != nil {
		parsed.problems = p.problems(p.recoverErrors(m, version, astErrors(err)))
	}
	if err == nil {
		parsed.problems = p.refuse(m, tree)
	}
	if len(parsed.problems) == 0 {
		parsed.ast = tree
	}
	if parsed.ast != nil {
		parsed.reads = p.readsOf(tree)
	}
	return parsed
}

func (p *parser) parseData(m *module) {
	if problem := p.refuseData(m.ID); problem != nil {
		m.problems = []policy.Problem{*problem}
		return
	}
	term, problem := parseData(m.Source)
	if problem != nil {
		m.problems = []policy.Problem{*problem}
		return
	}
	m.data = term
}

// path is where a module that is data stands in data.
func path(id policy.ID) []string { return []string{id.Namespace, id.Name, id.Key} }

// refuseData gives the reason why there may be no data at the path of a module.
func (p *parser) refuseData(id policy.ID) *policy.Problem {
	switch {
	case id.Namespace == systemPackage && !slices.Contains(p.trusted, id.Namespace):
		return &policy.Problem{Code: policy.CodeUnauthorized, Message: "the data of namespace system would be data.system, " +
			"which decides for the whole cluster; --system-namespaces says who may have a part in it"}
	case p.replicated.reserves(path(id)):
		return &policy.Problem{Code: policy.CodeDefect, Message: fmt.Sprintf("data.%s.%s.%s is where objects of the cluster are replicated: "+
			"another name, or another --replicate-path, keeps them apart", id.Namespace, id.Name, id.Key)}
	}
	return nil
}

// dataOf is the data of modules.
func dataOf(modules map[policy.ID]*module) *branch {
	e := newEdit(newBranch(0))
	for id, m := range modules {
		if m.data != nil {
			e.set(path(id), document{m.data})
		}
	}
	return e.root
}

// of is the parsed module as a module of the same content, whose object may be
// another or younger.
func (m *module) of(wanted policy.Module) *module {
	if m.Created.Equal(wanted.Created) && m.ObjectVersion == wanted.ObjectVersion {
		return m
	}
	c := *m
	c.Module = wanted
	return &c
}

// systemPackage is where OPA looks for what decides about itself, and the
// webhook for its entrypoint.
const systemPackage = "system"

// refuse gives the reason why a module that OPA's parser takes is not taken here.
func (p *parser) refuse(m policy.Module, tree *ast.Module) []policy.Problem {
	problem := policy.Problem{Row: tree.Package.Loc().Row, Col: tree.Package.Loc().Col}
	switch {
	case isSystem(tree.Package.Path) && !slices.Contains(p.trusted, m.ID.Namespace):
		problem.Code = policy.CodeUnauthorized
		problem.Message = fmt.Sprintf("namespace %s may not declare package %s: packages under system decide for the whole cluster, "+
			"and --system-namespaces says who may declare them", m.ID.Namespace, strings.TrimPrefix(tree.Package.Path.String(), "data."))
	case nesting(tree) > maxNesting:
		problem.Code = policy.CodeDefect
		problem.Message = fmt.Sprintf("comprehensions are nested more than %d deep, which takes too long to compile", maxNesting)
	default:
		return nil
	}
	return []policy.Problem{problem}
}

// isSystem reports whether a package, whose path begins with data, is system or
// below it.
func isSystem(path ast.Ref) bool {
	return len(path) > 1 && path[1].Value.Compare(ast.String(systemPackage)) == 0
}

// maxNesting bounds comprehensions within comprehensions: OPA's type checker
// takes about 2.7 times as long for each level, 2 s at 14 levels. Policies in the
// field have four at most.
const maxNesting = 8

// nesting is how deep comprehensions, and every bodies, stand within each other.
func nesting(x any) int {
	deepest := 0
	ast.WalkClosures(x, func(closure any) bool {
		deepest = max(deepest, 1+nestingWithin(closure))
		return true // its inside has been looked at
	})
	return deepest
}

// nestingWithin is the nesting of what a closure consists of.
func nestingWithin(closure any) int {
	switch c := closure.(type) {
	case *ast.ArrayComprehension:
		return max(nesting(c.Term), nesting(c.Body))
	case *ast.SetComprehension:
		return max(nesting(c.Term), nesting(c.Body))
	case *ast.ObjectComprehension:
		return max(nesting(c.Key), nesting(c.Value), nesting(c.Body))
	case *ast.Every:
		return max(nesting(c.Domain), nesting(c.Body))
	}
	return 0
}

// parseVersion parses m in the version asked for. Auto tries Rego v1 first,
// with all that v1 forbids beyond its grammar, and then v0. If neither takes
// the text, the error is that of the version which got further into it: the
// other one stumbled over the first line that is not its language. If both fail
// on one line, it is the version in which more of the rest is right.
func (p *parser) parseVersion(m policy.Module, version policy.RegoVersion) (*ast.Module, policy.RegoVersion, error) {
	if version != policy.RegoAuto {
		tree, err := p.parseText(m.ID.String(), m.Source, version)
		return tree, version, err
	}
	v1, errV1 := p.parseText(m.ID.String(), m.Source, policy.RegoV1)
	if errV1 == nil {
		return v1, policy.RegoV1, nil
	}
	v0, errV0 := p.parseText(m.ID.String(), m.Source, policy.RegoV0)
	if errV0 == nil {
		return v0, policy.RegoV0, nil
	}
	rowV0, rowV1 := firstRow(errV0), firstRow(errV1)
	// A text that v1's grammar took is v1: it breaks one of v1's further rules.
	if v1 == nil && (rowV0 > rowV1 || rowV0 == rowV1 && p.likelier(m) == policy.RegoV0) {
		return nil, policy.RegoV0, errV0
	}
	return nil, policy.RegoV1, errV1
}

// parseText parses a text in one version. With an error of a rule that v1 has beyond
// its grammar it gives the tree too.
func (p *parser) parseText(name, source string, version policy.RegoVersion) (*ast.Module, error) {
	options := ast.ParserOptions{
		Capabilities:      p.capabilities,
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

// problems turns OPA's errors into problems, in the order of their place.
func (p *parser) problems(err error) []policy.Problem {
	var problems []policy.Problem
	for _, e := range astErrors(err) {
		problems = append(problems, p.problem(e))
	}
	slices.SortStableFunc(problems, byPlace)
	// Of several errors at one place the parser's first is the cause.
	return slices.CompactFunc(problems, func(a, b policy.Problem) bool { return byPlace(a, b) == 0 })
}

func (p *parser) problem(e *ast.Error) policy.Problem {
	problem := policy.Problem{Code: e.Code, Message: e.Message, Row: 1, Col: 1}
	if e.Location != nil && e.Location.Row > 0 {
		problem.Row, problem.Col = e.Location.Row, max(1, e.Location.Col) // OPA counts the end of the text as column 0
	}
	for _, name := range p.off {
		// Where a function is named and not called, its first part counts as a
		// variable.
		first, _, _ := strings.Cut(name, ".")
		if e.Message == "undefined function "+name || e.Message == "var "+first+" is unsafe" {
			problem.Message += ": the built-in " + name + " is off unless --enable-builtin=" + name + " switches it on"
		}
	}
	return problem
}

// astErrors are the single errors in an error of the parser or the compiler.
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

func firstRow(err error) int {
	row := 0
	for _, e := range astErrors(err) {
		if e.Location != nil && (row == 0 || e.Location.Row < row) {
			row = e.Location.Row
		}
	}
	return row
}

// byPlace orders problems by row and column.
func byPlace(a, b policy.Problem) int {
	return byPlaceOf(a.Row, a.Col, b.Row, b.Col)
}

func byPlaceOf(rowA, colA, rowB, colB int) int {
	return cmp.Or(cmp.Compare(rowA, rowB), cmp.Compare(colA, colB))
}
