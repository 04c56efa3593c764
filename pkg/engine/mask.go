package engine

import (
	_ "embed"

	"github.com/open-policy-agent/opa/v1/ast"
)

// maskSource is the mask of decision logs for those who define none.
//
//go:embed mask.rego
var maskSource string

// maskName is its name in locations.
const maskName = "kube-rego:mask.rego"

var maskPath = []string{systemPackage, "log", "mask"}

// addMask adds the mask for Secrets to the modules to compile, unless one of them
// defines a mask.
func (p *parser) addMask(trees map[string]*ast.Module) {
	if p.mask == nil {
		return
	}
	for _, tree := range trees {
		if isSystem(tree.Package.Path) && definesAt(tree, maskPath) {
			return
		}
	}
	trees[maskName] = p.mask
}

// definesAt reports whether a rule of a module is at a path, above or below it.
func definesAt(tree *ast.Module, at []string) bool {
	for _, rule := range tree.Rules {
		names := names(rule.Ref().GroundPrefix())
		if hasPrefix(names, at) || hasPrefix(at, names) {
			return true
		}
	}
	return false
}

// names are the names in a reference behind data, up to the first that is none.
func names(ref ast.Ref) []string {
	var names []string
	for _, term := range ref[1:] {
		name, ok := term.Value.(ast.String)
		if !ok {
			break
		}
		names = append(names, string(name))
	}
	return names
}
