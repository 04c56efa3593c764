package compile

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/kube-rego/kube-rego/pkg/data"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// entrypointSource answers the webhook for those who define no entrypoint.
//
//go:embed entrypoint.rego
var entrypointSource string

// EntrypointFile is the name of the built-in entrypoint in locations.
const EntrypointFile = "kube-rego:entrypoint.rego"

var (
	entrypointPath = []string{systemPackage, "main"}
	// admissionPath is the package whose rules the entrypoint asks, with those below.
	admissionPath = []string{"kubernetes", "admission"}
)

// askedRules are the rules that the entrypoint asks, in the order of its source.
var askedRules = []string{"deny", "warn", "patch"}

// listName is that of the function that lists what these rules say.
const listName = "_kube_rego_said"

// entrypoint makes the module of the entrypoint, which lists the rules that it asks: it
// never evaluates the others of their packages, and data is never taken for a rule.
type entrypoint struct {
	language *language
	rest     *ast.Module // without the lists
	// last is what was made for lists, and these: most sets have those of the set before.
	last  *ast.Module
	lists string
}

func newEntrypoint(l *language) (*entrypoint, error) {
	tree, err := l.parse(EntrypointFile, entrypointSource, policy.RegoV1)
	if err != nil {
		return nil, err
	}
	tree.Rules = slices.DeleteFunc(tree.Rules, func(rule *ast.Rule) bool { return rule.Head.Name == listName })
	return &entrypoint{language: l, rest: tree}, nil
}

// addEntrypoint adds the entrypoint to the modules to compile, unless one of them defines
// it, or there is data. Where there is nothing that it could ask there is no decision.
func (l *linker) addEntrypoint(trees map[string]*ast.Module, tree *data.Tree) {
	if l.entrypoint == nil || tree.Covers(entrypointPath) || l.replicated.covers(entrypointPath) {
		return
	}
	packages := make(map[string][][]string)
	for _, module := range trees {
		if isSystem(module.Package.Path) && declaresAt(module, entrypointPath) {
			return
		}
		addAsked(packages, module)
	}
	if len(packages) > 0 {
		trees[EntrypointFile] = l.entrypoint.module(listsOf(packages))
	}
}

// addAsked adds what the entrypoint asks in a module: for the name of each rule the
// packages below kubernetes.admission that have it.
func addAsked(packages map[string][][]string, tree *ast.Module) {
	own := constantPath(tree.Package.Path)
	if !hasPrefix(own, admissionPath) && !hasPrefix(admissionPath, own) {
		return
	}
	for _, rule := range tree.Rules {
		path := constantPath(rule.Ref().GroundPrefix())
		if len(rule.Head.Args) > 0 || !hasPrefix(path, admissionPath) {
			continue
		}
		// The name of a package is none of a rule, also where it is the same.
		for i := max(len(own), len(admissionPath)); i < len(path); i++ {
			if slices.Contains(askedRules, path[i]) {
				packages[path[i]] = append(packages[path[i]], path[len(admissionPath):i])
				break
			}
		}
	}
}

// listsOf writes the function that lists what the rules say. For packages equally far
// below it takes one expression: one for each would take OPA six times as long.
func listsOf(packages map[string][][]string) string {
	var text strings.Builder
	fmt.Fprintf(&text, "package %s\n", systemPackage)
	for _, name := range askedRules {
		fmt.Fprintf(&text, "\n%s(%q) := [\n", listName, name)
		byDepth := make(map[int][][]string)
		for _, at := range packages[name] {
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
	return fmt.Sprintf("\t[[%s, said] | %ssaid := %s%s.%s; said != set()],\n", at, some, dataRef(admissionPath), path, name)
}

// module is the whole module with these lists. If they did not parse it would not compile,
// and nothing that they are needed for would come into force.
func (e *entrypoint) module(lists string) *ast.Module {
	if e.last != nil && e.lists == lists {
		return e.last
	}
	whole := shallowCopy(e.rest)
	if list, err := e.language.parse(EntrypointFile, lists, policy.RegoV1); err == nil {
		whole.Rules = append(whole.Rules, list.Rules...)
	}
	e.last, e.lists = whole, lists
	return whole
}

// declaresAt is definesAt, and true also of a package there that has no rules.
func declaresAt(tree *ast.Module, at []string) bool {
	return hasPrefix(constantPath(tree.Package.Path), at) || definesAt(tree, at)
}
