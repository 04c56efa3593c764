package engine

import (
	"crypto/sha256"
	"errors"
	"regexp"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// Snapshot is one compiled policy set. It never changes: decisions are made
// with a whole snapshot, and the next set is another one.
type Snapshot struct {
	compiler    *ast.Compiler
	data        *branch // of the modules that are data, and of the bundles
	modules     map[policy.ID]*module
	bundles     *Bundles
	fingerprint string
	held        map[policy.ID]verdict // of the set that it was made for
	missing     []string              // packages of held modules of trusted namespaces, of which nothing is in force
}

// verdict says that a change was held, and why.
type verdict struct {
	digest   [sha256.Size]byte // of the module wanted; zero if it was deleted
	problems []policy.Problem
}

// Fingerprint is that of the modules in force.
func (s *Snapshot) Fingerprint() string { return s.fingerprint }

// IDs name the modules in force, sorted.
func (s *Snapshot) IDs() []policy.ID { return sortedIDs(s.modules) }

func newSnapshot(compiler *ast.Compiler, modules map[policy.ID]*module, bundles *Bundles) *Snapshot {
	set := make(policy.Set, len(modules))
	for id, m := range modules {
		set[id] = m.Module
	}
	return &Snapshot{
		compiler:    compiler,
		data:        merge(merge(dataOf(modules), bundles.data), versionData()),
		modules:     modules,
		bundles:     bundles,
		fingerprint: set.Fingerprint(),
		held:        make(map[policy.ID]verdict),
	}
}

// Modules are the modules in force.
func (s *Snapshot) Modules() policy.Set {
	set := make(policy.Set, len(s.modules))
	for id, m := range s.modules {
		set[id] = m.Module
	}
	return set
}

// Module is the version of a module that is in force; false if none is.
func (s *Snapshot) Module(id policy.ID) (policy.Module, bool) {
	m, ok := s.modules[id]
	if !ok {
		return policy.Module{}, false
	}
	return m.Module, true
}

// Config is what a Compiler needs.
type Config struct {
	// RegoVersion of modules that do not say it themselves.
	RegoVersion policy.RegoVersion
	// Builtins that are off by default and are to be on.
	Builtins []string
	// SystemNamespaces are those whose modules may declare packages under
	// system: the entrypoint, and what OPA itself asks for.
	SystemNamespaces []string
	// Replicated says where objects of the cluster are in data.
	Replicated Replicated
	// MaskSecrets adds a mask for decision logs where no policy defines one.
	MaskSecrets bool
	// Entrypoint adds data.system.main where no policy defines it and there are rules
	// that it can ask.
	Entrypoint bool
}

// Compiler makes snapshots. It keeps what it parsed; it is not safe for use
// by several goroutines.
type Compiler struct {
	parser    parser
	trials    int // maxTrials; fewer in tests
	resources policy.Resources
}

// NewCompiler makes a compiler for modules that may call the built-ins of this
// OPA, less those that are off by default and not switched on.
func NewCompiler(config Config) (*Compiler, error) {
	capabilities, off, err := capabilities(config.Builtins)
	if err != nil {
		return nil, err
	}
	c := &Compiler{
		parser: parser{
			capabilities: capabilities,
			off:          off,
			version:      config.RegoVersion,
			trusted:      config.SystemNamespaces,
			replicated:   config.Replicated,
		},
		trials: maxTrials,
	}
	if config.MaskSecrets {
		if c.parser.mask, err = c.parser.parseText(maskName, maskSource, policy.RegoV1); err != nil {
			return nil, err
		}
	}
	if config.Entrypoint {
		if c.parser.entrypoint, err = c.parser.newEntrypoint(); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// Empty is the snapshot of a set without modules.
func (c *Compiler) Empty() *Snapshot {
	return newSnapshot(c.parser.compile(nil, noBundles).compiler, nil, noBundles)
}

// SetResources says what is known of the resources that policies read by name, until
// the next call. A change that comes to read one of which it is not known what there
// is is held; what reads it and is in force stays, with a warning. Without a call, and
// with nil, nothing is held for what it reads.
func (c *Compiler) SetResources(resources policy.Resources) { c.resources = resources }

// Compile brings as much of the wanted set into a new snapshot as compiles.
// A change since the previous snapshot that does not is held: of its module
// the previous version stays in, or none if there was none. The report says
// what became of each module.
//
// Changes that the previous snapshot was made without are not tried, so that a good edit does not
// wait for broken ones; Retry does that.
func (c *Compiler) Compile(previous *Snapshot, wanted policy.Set) (*Snapshot, policy.Report) {
	return c.settle(previous, wanted, func(s *settlement, compiler *ast.Compiler, changes []change) *ast.Compiler {
		fresh := slices.DeleteFunc(slices.Clone(changes), func(ch change) bool {
			before, ok := previous.held[ch.id]
			if ok = ok && before.digest == ch.digest(); ok {
				s.held[ch.id] = before.problems
			}
			return ok
		})
		return s.bring(compiler, fresh)
	})
}

// Retry tries again what Compile held for the same set: what it needed, or the
// other side of its clash, may have moved by now. It gives up early, between two
// compilations, if interrupted says so.
func (c *Compiler) Retry(previous *Snapshot, wanted policy.Set, interrupted func() bool) (*Snapshot, policy.Report) {
	return c.settle(previous, wanted, func(s *settlement, compiler *ast.Compiler, changes []change) *ast.Compiler {
		compiler = s.retry(compiler, changes, interrupted)
		s.explain(changes, interrupted)
		return compiler
	})
}

// settle makes a snapshot and its report with the changes since the previous
// one, which bring decides about.
func (c *Compiler) settle(
	previous *Snapshot, wanted policy.Set, bring func(*settlement, *ast.Compiler, []change) *ast.Compiler,
) (*Snapshot, policy.Report) {
	parsed := c.parser.parse(wanted)
	s := &settlement{
		parser:   &c.parser,
		trials:   c.trials,
		base:     previous.modules,
		bundles:  previous.bundles,
		held:     make(map[policy.ID][]policy.Problem),
		warnings: make(map[policy.ID][]policy.Problem),
	}
	changes := s.changes(parsed, c.resources)
	compiler := bring(s, previous.compiler, changes)
	snapshot := newSnapshot(compiler, renew(s.base, parsed), s.bundles)
	for _, ch := range changes {
		if problems, ok := s.held[ch.id]; ok {
			snapshot.held[ch.id] = verdict{digest: ch.digest(), problems: problems}
		}
	}
	snapshot.missing = c.missing(snapshot, s.held, parsed)
	return snapshot, report(snapshot, parsed, s)
}

// packageClause is how a module says which package it is of, also one that is broken.
var packageClause = regexp.MustCompile(`(?m)^\s*package\s+(\w+(?:\.\w+|\["\w+"\])*)`)

// missing are the packages of modules that nothing is in force of, if they may decide for
// the whole cluster.
func (c *Compiler) missing(s *Snapshot, held map[policy.ID][]policy.Problem, wanted map[policy.ID]*module) []string {
	var packages []string
	for id := range held {
		m := wanted[id]
		if _, isInForce := s.modules[id]; !isInForce && m != nil && slices.Contains(c.parser.trusted, id.Namespace) {
			packages = append(packages, packagesOf(m)...)
		}
	}
	return packages
}

// packagesOf are where a module has rules, or would have them.
func packagesOf(m *module) []string {
	var packages []string
	if m.ast != nil {
		for _, rule := range m.ast.Rules {
			if at := names(rule.Ref().GroundPrefix()); len(at) > 0 {
				packages = append(packages, strings.Join(at[:len(at)-1], "."))
			}
		}
	}
	if clause := packageClause.FindStringSubmatch(m.Source); clause != nil {
		packages = append(packages, strings.NewReplacer(`["`, ".", `"]`, "").Replace(clause[1]))
	}
	return packages
}

// renew takes over the modules that are in force as they are wanted, so that
// each is as young as the object that it was last seen in.
func renew(inForce, wanted map[policy.ID]*module) map[policy.ID]*module {
	modules := make(map[policy.ID]*module, len(inForce))
	for id, m := range inForce {
		if w := wanted[id]; w != nil && w.digest == m.digest {
			m = w
		}
		modules[id] = m
	}
	return modules
}

// report tells of each wanted module, and of each deleted one that is held,
// what is in force.
func report(snapshot *Snapshot, wanted map[policy.ID]*module, s *settlement) policy.Report {
	report := policy.Report{Fingerprint: snapshot.fingerprint}
	for _, id := range sortedIDs(union(snapshot.modules, wanted)) {
		m, isWanted := wanted[id]
		if !isWanted {
			m = snapshot.modules[id]
		}
		status := policy.Status{
			ID:       id,
			Kind:     m.Kind,
			Problems: inSource(s.held[id], wanted[id]),
			Deleted:  !isWanted,
			InForce:  policy.None,
		}
		if m, ok := snapshot.modules[id]; ok {
			status.Version, status.InForce = m.version, policy.Current
			status.Warnings = inSource(s.warnings[id], wanted[id])
			if status.Held() {
				status.InForce, status.Warnings = policy.Previous, nil
			}
		}
		report.Modules = append(report.Modules, status)
	}
	return report
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

// newCompiler is OPA's compiler as every set and every query is compiled.
func newCompiler(capabilities *ast.Capabilities) *ast.Compiler {
	return ast.NewCompiler().
		WithCapabilities(capabilities).
		SetErrorLimit(0). // every error of a stage: each names a module to hold
		WithDefaultRegoVersion(ast.RegoV1)
}

// result is one compilation: the compiler, and what went wrong.
type result struct {
	compiler *ast.Compiler
	// clash is true if the errors say that rules contradict each other. Which
	// of the parties is named is then an accident.
	clash bool
}

func (r result) errors() ast.Errors { return r.compiler.Errors }
func (r result) ok() bool           { return !r.compiler.Failed() }

// compile compiles modules and bundles as one set.
func (p *parser) compile(modules map[policy.ID]*module, bundles *Bundles) result {
	data := merge(merge(dataOf(modules), bundles.data), versionData())
	compiler := newCompiler(p.capabilities).WithPathConflictsCheck(func(path []string) (bool, error) {
		return covers(data, path) || p.replicated.covers(path), nil
	})
	clash := false
	for stage, before := range map[ast.StageID]ast.StageID{
		ast.StageSetAnnotationSet:   ast.StageParseMetadataBlocks,
		ast.StageCheckRuleConflicts: ast.StageRewriteWithValues,
	} {
		during(compiler, before, stage, &clash)
	}
	trees := gather(modules)
	for name, m := range bundles.modules {
		trees[name] = m.ast
	}
	p.addMask(trees)
	p.addEntrypoint(trees, data)
	compiler.Compile(trees)
	return result{compiler: compiler, clash: clash}
}

// during sets stopped if the compiler left the stage before and not the stage.
func during(compiler *ast.Compiler, before, stage ast.StageID, stopped *bool) {
	after := func(id ast.StageID, value bool) {
		compiler.WithStageAfterID(id, ast.CompilerStageDefinition{
			Name:       string(id) + "Passed",
			MetricName: "compile_stage_passed",
			Stage: func(*ast.Compiler) *ast.Error {
				*stopped = value
				return nil
			},
		})
	}
	after(before, true)
	after(stage, false)
}

// offByDefault are the built-ins that lend a policy author the authority of
// the process: its network, its environment and, as a JSON schema may refer to
// file:// as well, its files.
var offByDefault = []string{"http.send", "json.match_schema", "json.verify_schema", "net.lookup_ip_addr", "opa.runtime"}

// OffByDefault are the built-ins that a policy may call only if they were
// switched on.
func OffByDefault() []string { return slices.Clone(offByDefault) }

// capabilities are OPA's own without the built-ins that are off, and the names
// of these.
func capabilities(enabled []string) (*ast.Capabilities, []string, error) {
	for _, name := range enabled {
		if !slices.Contains(offByDefault, name) {
			return nil, nil, errors.New("built-in " + name + " is not one of those that are off by default")
		}
	}
	off := slices.DeleteFunc(OffByDefault(), func(name string) bool {
		return slices.Contains(enabled, name)
	})
	c := ast.CapabilitiesForThisVersion()
	c.Builtins = slices.DeleteFunc(c.Builtins, func(b *ast.Builtin) bool {
		return slices.Contains(off, b.Name)
	})
	// Built-ins that are not off reach the network too: json.match_schema fetches
	// what a schema refers to. The list holds for all, so it ends with the first
	// built-in for the network that is switched on.
	if !slices.Contains(enabled, "http.send") && !slices.Contains(enabled, "net.lookup_ip_addr") {
		c.AllowNet = []string{}
	}
	return c, off, nil
}
