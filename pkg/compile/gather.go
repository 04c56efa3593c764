package compile

import (
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// gather joins the modules that mean the same in one piece: those of one
// package with the same imports and the same Rego version. OPA's compiler
// collects the names that a package declares once for each module of it, so
// n modules in one package cost n²; gathered they cost n. Rules keep their
// location, and with it the name of the file that an error points to.
//
// Modules with annotations stay alone: an annotation is tied to the package
// or import node of its own module.
func gather(modules map[policy.ID]*module) map[string]*ast.Module {
	gathered := make(map[string]*ast.Module)
	names := make(map[string]string) // of the gathered module, by groupKey
	for _, id := range sortedIDs(modules) {
		tree := modules[id].ast
		if tree == nil {
			continue // data
		}
		if len(tree.Annotations) > 0 {
			gathered[id.String()] = tree
			continue
		}
		key := groupKey(tree)
		name, ok := names[key]
		if !ok {
			names[key] = id.String()
			gathered[id.String()] = shallowCopy(tree)
			continue
		}
		gathered[name].Rules = append(gathered[name].Rules, tree.Rules...)
	}
	return gathered
}

// groupKey is equal for two modules that may be gathered.
func groupKey(tree *ast.Module) string {
	var key strings.Builder
	key.WriteString(tree.RegoVersionSpan().String())
	key.WriteByte('\n')
	key.WriteString(tree.Package.Path.String())
	for _, i := range tree.Imports {
		key.WriteByte('\n')
		key.WriteString(i.String())
	}
	return key.String()
}

// shallowCopy makes room for the rules of others. The compiler copies a module
// before it changes anything in it, so the rules themselves may be shared.
func shallowCopy(tree *ast.Module) *ast.Module {
	c := *tree
	c.Rules = slices.Clone(tree.Rules)
	c.Comments = nil
	return &c
}
