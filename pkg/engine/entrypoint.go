package engine

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// entrypointSource answers the webhook for those who define no entrypoint.
//
//go:embed entrypoint.rego
var entrypointSource string

// entrypointName is its name in locations.
const entrypointName = "kube-rego:entrypoint.rego"

var (
	entrypointPath = []string{systemPackage, "main"}
	// admissionPath is the package whose rules the entrypoint asks, with those below.
	admissionPath = []string{"kubernetes", "admission"}
)

// spoken are the rules that the entrypoint asks, in the order of its source.
var spoken = []string{"deny", "warn", "patch"}

// saidName is that of the function that tells what these rules say.
const saidName = "_kube_rego_said"

// entrypoint makes the module of the entrypoint, which lists the rules that it asks: it
// never evaluates the others of their packages, and data is never taken for a rule.
type entrypoint struct {
	rest *ast.Module // without the lists
	// last is what was made for lists, and these: most sets have those of the set before.
	last  *ast.Module
	lists string
}

func (p *parser) newEntrypoint() (*entrypoint, error) {
	tree, err := p.parseText(entrypointName, entrypointSource, policy.RegoV1)
	if err != nil {
		return nil, err
	}
	tree.Rules = slices.DeleteFunc(tree.Rules, func(rule *ast.Rule) bool { return rule.Head.Name == saidName })
	return &entrypoint{rest: tree}, nil
}

// addEntrypoint adds the entrypoint to the modules to compile, unless one of them defines
// it, or there is data. Where there is nothing that it could ask there is no decision.
func (p *parser) addEntrypoint(trees map[string]*ast.Module, data *branch) {
	if p.entrypoint == nil || covers(data, entrypointPath) || p.replicated.covers(entrypointPath) {
		return
	}
	asked := make(map[string][][]string)
	for _, tree := range trees {
		if isSystem(tree.Package.Path) && declaresAt(tree, entrypointPath) {
			return
		}
		ask(asked, tree)
	}
	if len(asked) > 0 {
		trees[entrypointName] = p.entrypoint.module(p, listsOf(asked))
	}
}

// ask adds what there is to ask in a module: of each name the packages below
// kubernetes.admission with a rule that is called so.
func ask(asked map[string][][]string, tree *ast.Module) {
	own := names(tree.Package.Path)
	if !hasPrefix(own, admissionPath) && !hasPrefix(admissionPath, own) {
		return
	}
	for _, rule := range tree.Rules {
		path := names(rule.Ref().GroundPrefix())
		if len(rule.Head.Args) > 0 || !hasPrefix(path, admissionPath) {
			continue
		}
		// The name of a package is none of a rule, also where it is the same.
		for i := max(len(own), len(admissionPath)); i < len(path); i++ {
			if slices.Contains(spoken, path[i]) {
				asked[path[i]] = append(asked[path[i]], path[len(admissionPath):i])
				break
			}
		}
	}
}

// listsOf writes the function that tells what the rules say. For packages equally far
// below it takes one expression: one for each would take OPA six times as long.
func listsOf(asked map[string][][]string) string {
	var text strings.Builder
	fmt.Fprintf(&text, "package %s\n", systemPackage)
	for _, name := range spoken {
		fmt.Fprintf(&text, "\n%s(%q) := [\n", saidName, name)
		byDepth := make(map[int][][]string)
		for _, at := range asked[name] {
			byDepth[len(at)] = append(byDepth[len(at)], at)
		}
		for _, depth := range slices.Sorted(maps.Keys(byDepth)) {
			text.WriteString(listOf(name, depth, byDepth[depth]))
		}
		text.WriteString("]\n")
	}
	return text.String()
}

// listOf writes what the rules of one name say in packages that are equally far below.
func listOf(name string, depth int, packages [][]string) string {
	slices.SortFunc(packages, slices.Compare)
	packages = slices.CompactFunc(packages, slices.Equal)
	variables := make([]string, depth)
	for i := range variables {
		variables[i] = fmt.Sprintf("p%d", i+1)
	}
	at := "[" + strings.Join(variables, ", ") + "]"
	some, path := "", ""
	if depth > 0 {
		text, _ := json.Marshal(packages) // strings always have a form in JSON
		some = fmt.Sprintf("some %s in %s; ", at, text)
		path = "[" + strings.Join(variables, "][") + "]"
	}
	return fmt.Sprintf("\t[[%s, said] | %ssaid := %s%s.%s; said != set()],\n", at, some, dataPath(admissionPath), path, name)
}

// module is the whole module with these lists. If they did not parse it would not compile,
// and nothing that they are needed for would come into force.
func (e *entrypoint) module(p *parser, lists string) *ast.Module {
	if e.last != nil && e.lists == lists {
		return e.last
	}
	whole := shallowCopy(e.rest)
	if said, err := p.parseText(entrypointName, lists, policy.RegoV1); err == nil {
		whole.Rules = append(whole.Rules, said.Rules...)
	}
	e.last, e.lists = whole, lists
	return whole
}

// declaresAt is definesAt, and true also of a package there that has no rules.
func declaresAt(tree *ast.Module, at []string) bool {
	return hasPrefix(names(tree.Package.Path), at) || definesAt(tree, at)
}

// AnswersItself reports whether the entrypoint is the one that is built in, and whether
// that is so because a policy of the package system is held, of which nothing is in force.
func (s *Snapshot) AnswersItself() (itself, instead bool) {
	itself = s.compiler.Modules[entrypointName] != nil
	return itself, itself && slices.Contains(s.missing, systemPackage)
}
