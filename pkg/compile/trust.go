package compile

import (
	"fmt"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// systemPackage is where OPA looks for what decides about itself, and the
// webhook for its entrypoint.
const systemPackage = "system"

// trust names the namespaces whose modules may declare packages under system.
type trust []string

func (t trust) has(namespace string) bool { return slices.Contains(t, namespace) }

// hasAny reports whether one of the modules is of a trusted namespace. Others cannot keep
// a bundle out that owns everything.
func (t trust) hasAny(modules policy.Set) bool {
	for id := range modules {
		if t.has(id.Namespace) {
			return true
		}
	}
	return false
}

// isSystem reports whether a package, whose path begins with data, is system or
// below it.
func isSystem(path ast.Ref) bool {
	return len(path) > 1 && path[1].Value.Compare(ast.String(systemPackage)) == 0
}

func untrustedPackage(id policy.ID, tree *ast.Module) policy.Problem {
	return atPackage(tree, policy.CodeUnauthorized, fmt.Sprintf(
		"namespace %s may not declare package %s: packages under system decide for the whole cluster, "+
			"and --system-namespaces says who may declare them", id.Namespace, strings.TrimPrefix(tree.Package.Path.String(), "data.")))
}

func untrustedData() policy.Problem {
	return policy.Problem{Code: policy.CodeUnauthorized, Message: "the data of namespace system would be data.system, " +
		"which decides for the whole cluster; --system-namespaces says who may have a part in it"}
}
