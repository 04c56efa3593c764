package compile

import (
	"crypto/sha256"
	"regexp"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/kube-rego/kube-rego/pkg/data"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// Snapshot is one compiled policy set, and what became of the set that it was made for.
// It never changes: decisions are made with a whole snapshot, and the next set is another
// one.
type Snapshot struct {
	contents
	data        *data.Tree // of the modules that are data, and of the bundles
	fingerprint string
	missing     []string // packages that trusted modules would have which are held and not in force
	report      policy.Report
}

// contents are what a snapshot is made of.
type contents struct {
	compiler *ast.Compiler
	modules  map[policy.ID]*module // in force
	bundles  *bundles
	// wanted is the set that it was made for.
	wanted map[policy.ID]*module
	// held are the wanted changes that it was made without, and why; warnings are of
	// modules that are in force as wanted.
	held, warnings map[policy.ID][]policy.Problem
	// refused are those of the held that do not compile with the rest. The others are held
	// for what they read or define: that may be settled by now, and costs nothing to try.
	refused map[policy.ID]bool
}

// newSnapshot computes all that every snapshot knows: no other way makes one.
func newSnapshot(c contents) *Snapshot {
	set := make(policy.Set, len(c.modules))
	for id, m := range c.modules {
		set[id] = m.Module
	}
	s := &Snapshot{
		contents:    c,
		data:        allData(c.modules, c.bundles),
		fingerprint: set.Fingerprint(),
		missing:     c.missingPackages(),
	}
	s.report = s.newReport()
	return s
}

// verdict returns the problems of a change if the snapshot was made without just that
// change, because it does not compile with the rest.
func (s *Snapshot) verdict(c change) ([]policy.Problem, bool) {
	var digest [sha256.Size]byte // of a deletion
	if m := s.wanted[c.id]; m != nil {
		digest = m.digest
	}
	return s.held[c.id], s.refused[c.id] && digest == c.digest()
}

// Fingerprint returns that of the modules in force.
func (s *Snapshot) Fingerprint() string { return s.fingerprint }

// Report says what became of each module of the set that the snapshot was made for.
func (s *Snapshot) Report() policy.Report { return s.report }

// IDs returns the names of the modules in force, sorted.
func (s *Snapshot) IDs() []policy.ID { return sortedIDs(s.modules) }

// Modules returns the modules in force.
func (s *Snapshot) Modules() policy.Set {
	set := make(policy.Set, len(s.modules))
	for id, m := range s.modules {
		set[id] = m.Module
	}
	return set
}

// Module returns the version of a module that is in force; false if none is.
func (s *Snapshot) Module(id policy.ID) (policy.Module, bool) {
	m, ok := s.modules[id]
	if !ok {
		return policy.Module{}, false
	}
	return m.Module, true
}

// Compiler returns OPA's compiler with the set. Nothing may be added to it. Its modules
// are gathered; Texts are the modules as they were parsed.
func (s *Snapshot) Compiler() *ast.Compiler { return s.compiler }

// Data returns the data of modules and bundles.
func (s *Snapshot) Data() *data.Tree { return s.data }

// Compiles is false for bundles alone that need a module.
func (s *Snapshot) Compiles() bool { return !s.compiler.Failed() }

// Defines reports whether a rule of the snapshot could give the decision at path a value.
func (s *Snapshot) Defines(path string) bool { return len(s.compiler.GetRules(Ref(path))) > 0 }

// Wants reports whether policies are to make the decision at a reference: a rule in force
// could give it a value, or a trusted module would have rules in its package, and is held
// and not in force in any version.
func (s *Snapshot) Wants(ref ast.Ref) bool {
	path := constantPath(ref)
	isMissing := len(path) > 0 && slices.Contains(s.missing, strings.Join(path[:len(path)-1], "."))
	return isMissing || len(s.compiler.GetRules(ref)) > 0
}

// BuiltinEntrypoint reports whether the entrypoint is the one that is built in, and whether
// that is so because a policy of the package system is held and not in force in any version.
func (s *Snapshot) BuiltinEntrypoint() (answers, instead bool) {
	answers = s.compiler.Modules[EntrypointFile] != nil
	return answers, answers && slices.Contains(s.missing, systemPackage)
}

// Ref returns the path of a decision as policies write it: data.system.main for
// system/main. Slashes around the path do no harm.
func Ref(path string) ast.Ref {
	ref := ast.DefaultRootRef
	for name := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		ref = ref.Append(ast.StringTerm(name))
	}
	return ref
}

// Text is a module in force as its author wrote it.
type Text struct {
	// Name is that of the module: namespace/name/key, or that of the file in a bundle.
	Name   string
	Source string
	// Tree is what the parser made of it.
	Tree *ast.Module
}

// Texts returns the Rego modules in force, sorted by name.
func (s *Snapshot) Texts() []Text {
	texts := make([]Text, 0, len(s.modules)+len(s.bundles.modules))
	for id, m := range s.modules {
		if m.ast != nil {
			texts = append(texts, Text{Name: id.String(), Source: m.Source, Tree: m.ast})
		}
	}
	for name, m := range s.bundles.modules {
		texts = append(texts, Text{Name: name, Source: m.Source, Tree: m.ast})
	}
	slices.SortFunc(texts, func(a, b Text) int { return strings.Compare(a.Name, b.Name) })
	return texts
}

// packageClause is how a module says which package it declares, also a broken module.
var packageClause = regexp.MustCompile(`(?m)^\s*package\s+(\w+(?:\.\w+|\["\w+"\])*)`)

// missingPackages returns the packages of held modules that are not in force in any
// version, if they may decide for the whole cluster.
func (c contents) missingPackages() []string {
	var packages []string
	for id := range c.held {
		m := c.wanted[id]
		if _, isInForce := c.modules[id]; !isInForce && m != nil && m.trusted {
			packages = append(packages, packagesOf(m)...)
		}
	}
	return packages
}

// packagesOf returns where a module has rules, or would have them.
func packagesOf(m *module) []string {
	var packages []string
	if m.ast != nil {
		for _, rule := range m.ast.Rules {
			if at := constantPath(rule.Ref().GroundPrefix()); len(at) > 0 {
				packages = append(packages, strings.Join(at[:len(at)-1], "."))
			}
		}
	}
	if clause := packageClause.FindStringSubmatch(m.Source); clause != nil {
		packages = append(packages, strings.NewReplacer(`["`, ".", `"]`, "").Replace(clause[1]))
	}
	return packages
}

// newReport says of each wanted module, and of each deleted one that is held, what is in
// force.
func (s *Snapshot) newReport() policy.Report {
	report := policy.Report{Fingerprint: s.fingerprint}
	for _, id := range sortedIDs(union(s.modules, s.wanted)) {
		report.Modules = append(report.Modules, s.status(id))
	}
	return report
}

func (s *Snapshot) status(id policy.ID) policy.Status {
	wanted, inForce := s.wanted[id], s.modules[id]
	status := policy.Status{
		ID:       id,
		Problems: inSource(s.held[id], wanted),
		Deleted:  wanted == nil,
		InForce:  policy.None,
	}
	if wanted != nil {
		status.Kind = wanted.Kind
	} else {
		status.Kind = inForce.Kind
	}
	if inForce == nil {
		return status
	}
	status.Version, status.InForce = inForce.version, policy.Current
	if status.Held() {
		status.InForce = policy.Previous
		return status
	}
	status.Warnings = inSource(s.warnings[id], wanted)
	return status
}

// inSource shows the lines that problems are about.
func inSource(problems []policy.Problem, m *module) []policy.Problem {
	if m == nil {
		return problems
	}
	shown := make([]policy.Problem, 0, len(problems))
	for _, p := range problems {
		shown = append(shown, p.In(m.Source))
	}
	return shown
}

func union(a, b map[policy.ID]*module) map[policy.ID]*module {
	all := make(map[policy.ID]*module, max(len(a), len(b)))
	for id, m := range a {
		all[id] = m
	}
	for id, m := range b {
		all[id] = m
	}
	return all
}
