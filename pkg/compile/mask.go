package compile

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
func (l *linker) addMask(trees map[string]*ast.Module) {
	if l.mask == nil {
		return
	}
	for _, tree := range trees {
		if isSystem(tree.Package.Path) && definesAt(tree, maskPath) {
			return
		}
	}
	trees[maskName] = l.mask
}

// definesAt reports whether a rule of a module is at a path, above or below it.
func definesAt(tree *ast.Module, at []string) bool {
	for _, rule := range tree.Rules {
		path := constantPath(rule.Ref().GroundPrefix())
		if hasPrefix(path, at) || hasPrefix(at, path) {
			return true
		}
	}
	return false
}
