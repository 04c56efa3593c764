package compile

import (
	"sync"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/version"

	"github.com/kube-rego/kube-rego/pkg/data"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// linker compiles modules and bundles as one set, with what is built in for sets that do
// not define it.
type linker struct {
	language   *language
	replicated Replicated
	mask       *ast.Module // nil: none is built in
	entrypoint *entrypoint // nil: none is built in
}

func newLinker(l *language, config Config) (*linker, error) {
	linker := &linker{language: l, replicated: config.Replicated}
	var err error
	if config.MaskSecrets {
		if linker.mask, err = l.parse(maskName, maskSource, policy.RegoV1); err != nil {
			return nil, err
		}
	}
	if config.Entrypoint {
		if linker.entrypoint, err = newEntrypoint(l); err != nil {
			return nil, err
		}
	}
	return linker, nil
}

// linked is one compilation: the compiler, and what went wrong.
type linked struct {
	compiler *ast.Compiler
	// clash is true if the errors say that rules contradict each other. Which
	// of the parties is named is then an accident.
	clash bool
}

func (l linked) errors() ast.Errors { return l.compiler.Errors }
func (l linked) ok() bool           { return !l.compiler.Failed() }

// link compiles modules and bundles as one set.
func (l *linker) link(modules map[policy.ID]*module, bundles *bundles) linked {
	tree := allData(modules, bundles)
	compiler := l.language.newCompiler().WithPathConflictsCheck(func(path []string) (bool, error) {
		return tree.Covers(path) || l.replicated.covers(path), nil
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
	l.addMask(trees)
	l.addEntrypoint(trees, tree)
	compiler.Compile(trees)
	return linked{compiler: compiler, clash: clash}
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

// allData returns the data of a set.
func allData(modules map[policy.ID]*module, bundles *bundles) *data.Tree {
	return dataOf(modules).Merge(bundles.data).Merge(versionData())
}

// versionData returns what OPA has at data.system.version, in any set. What it says of the
// build is that of OPA's own program and empty here.
var versionData = sync.OnceValue(func() *data.Tree {
	return data.New().With(data.Change{
		Path: []string{systemPackage, "version"},
		Content: data.NewDocument(ast.ObjectTerm(
			ast.Item(ast.StringTerm("version"), ast.StringTerm(version.Version)),
			ast.Item(ast.StringTerm("build_commit"), ast.StringTerm("")),
			ast.Item(ast.StringTerm("build_hostname"), ast.StringTerm("")),
			ast.Item(ast.StringTerm("build_timestamp"), ast.StringTerm("")),
		)),
	})
})
