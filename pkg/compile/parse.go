package compile

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/kube-rego/kube-rego/pkg/data"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// module is one module as the parser left it: the wanted text with either its
// syntax tree or the problems that there is none for. It is never changed, so
// it is shared by every snapshot that holds it.
type module struct {
	policy.Module
	digest    [sha256.Size]byte
	trusted   bool        // its namespace may declare what decides for the whole cluster
	ast       *ast.Module // of Rego
	data      *ast.Term   // of data
	resources []resourceRef
	version   policy.RegoVersion
	problems  []policy.Problem
}

// path returns where a module stands: its package, or where its data is.
func (m *module) path() []string {
	if m.ast == nil {
		return dataPath(m.ID)
	}
	return constantPath(m.ast.Package.Path)
}

// as returns the parsed module as a module of the same content, whose object may be
// another or younger.
func (m *module) as(wanted policy.Module) *module {
	if m.Created.Equal(wanted.Created) && m.ObjectVersion == wanted.ObjectVersion {
		return m
	}
	c := *m
	c.Module = wanted
	return &c
}

// parser makes modules of texts. It parses each content once: what did not change since
// the last set comes from its cache.
type parser struct {
	language   *language
	version    policy.RegoVersion // of modules that do not say it
	trust      trust
	replicated Replicated
	cache      map[[sha256.Size]byte]*module
}

// parse parses a whole set and forgets what the set no longer holds.
func (p *parser) parse(set policy.Set) map[policy.ID]*module {
	modules := make(map[policy.ID]*module, len(set))
	cache := make(map[[sha256.Size]byte]*module, len(set))
	for id, m := range set {
		parsed := p.cached(m).as(m)
		modules[id], cache[parsed.digest] = parsed, parsed
	}
	p.cache = cache
	return modules
}

// peek parses a set beside the one that is wanted: the cache stays as it is.
func (p *parser) peek(set policy.Set) map[policy.ID]*module {
	modules := make(map[policy.ID]*module, len(set))
	for id, m := range set {
		modules[id] = p.cached(m)
	}
	return modules
}

// cached returns a module of this content from the cache, or parses it.
func (p *parser) cached(m policy.Module) *module {
	digest := m.Digest()
	if parsed, ok := p.cache[digest]; ok {
		return parsed
	}
	parsed := &module{Module: m, digest: digest, trusted: p.trust.has(m.ID.Namespace)}
	switch {
	case m.Defect != "":
		parsed.problems = []policy.Problem{{Code: policy.CodeDefect, Message: m.Defect}}
	case m.Kind == policy.Data:
		p.parseData(parsed)
	default:
		p.parseRego(parsed)
	}
	return parsed
}

func (p *parser) parseRego(m *module) {
	tree, version, err := p.language.parseVersion(m.Module, cmp.Or(m.Version, p.version))
	m.version = version
	switch {
	case err != nil:
		m.problems = p.language.problems(p.language.recoverErrors(m.Module, version, astErrors(err)))
	case !m.trusted && isSystem(tree.Package.Path):
		m.problems = []policy.Problem{untrustedPackage(m.ID, tree)}
	case nesting(tree) > maxNesting:
		m.problems = []policy.Problem{atPackage(tree, policy.CodeDefect,
			fmt.Sprintf("comprehensions are nested more than %d deep, which takes too long to compile", maxNesting))}
	default:
		m.ast, m.resources = tree, p.resourceRefs(tree)
	}
}

// resourceRefs returns the resources that a module reads, where that decides what is
// replicated.
func (p *parser) resourceRefs(tree *ast.Module) []resourceRef {
	if !p.replicated.Auto {
		return nil
	}
	return resourceRefs(tree, p.replicated.Path)
}

func (p *parser) parseData(m *module) {
	switch at := dataPath(m.ID); {
	case !m.trusted && at[0] == systemPackage:
		m.problems = []policy.Problem{untrustedData()}
		return
	case p.replicated.reserves(at):
		m.problems = []policy.Problem{{Code: policy.CodeDefect, Message: fmt.Sprintf("%s is where objects of the cluster are replicated: "+
			"another name, or another --replicate-path, keeps them apart", dataRef(at))}}
		return
	}
	term, err := data.Parse(m.Source)
	if err != nil {
		m.problems = []policy.Problem{{Code: policy.CodeDefect, Message: "the data cannot be read: " + err.Message, Row: err.Row, Col: err.Col}}
		return
	}
	m.data = term
}

// dataPath returns where a module that is data stands in data.
func dataPath(id policy.ID) []string { return []string{id.Namespace, id.Name, id.Key} }

// dataRef returns a path as policies write it.
func dataRef(at []string) string { return strings.Join(append([]string{"data"}, at...), ".") }

// dataOf returns the data of modules.
func dataOf(modules map[policy.ID]*module) *data.Tree {
	var changes []data.Change
	for id, m := range modules {
		if m.data != nil {
			changes = append(changes, data.Change{Path: dataPath(id), Content: data.NewDocument(m.data)})
		}
	}
	return data.New().With(changes...)
}

// atPackage returns a problem at the package clause of a module.
func atPackage(tree *ast.Module, code, message string) policy.Problem {
	return policy.Problem{Code: code, Message: message, Row: tree.Package.Loc().Row, Col: tree.Package.Loc().Col}
}

// maxNesting bounds comprehensions within comprehensions: OPA's type checker
// takes about 2.7 times as long for each level, 2 s at 14 levels. Policies in the
// field have four at most.
const maxNesting = 8

// nesting returns how deep comprehensions, and every bodies, stand within each other.
func nesting(x any) int {
	deepest := 0
	ast.WalkClosures(x, func(closure any) bool {
		deepest = max(deepest, 1+nestingWithin(closure))
		return true // its inside has been looked at
	})
	return deepest
}

// nestingWithin returns the nesting of what a closure consists of.
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

// constantPath returns the names in a reference behind data, up to the first part that
// is none.
func constantPath(ref ast.Ref) []string {
	var path []string
	for _, term := range ref[1:] {
		name, ok := term.Value.(ast.String)
		if !ok {
			break
		}
		path = append(path, string(name))
	}
	return path
}

func hasPrefix(path, prefix []string) bool {
	return len(path) >= len(prefix) && slices.Equal(path[:len(prefix)], prefix)
}

func sortedIDs(modules map[policy.ID]*module) []policy.ID {
	ids := make([]policy.ID, 0, len(modules))
	for id := range modules {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, policy.ID.Compare)
	return ids
}

// byPlace orders problems by row and column.
func byPlace(a, b policy.Problem) int {
	return cmp.Or(cmp.Compare(a.Row, b.Row), cmp.Compare(a.Col, b.Col))
}
