package compile

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// ownership is a bundle and the root of it that is meant.
type ownership struct {
	bundle string
	root   []string
}

// owner returns the bundle that owns the path of a module, or a path below it; nil if
// none does.
func (b *bundles) owner(m *module) *ownership { return b.ownerOf(m.path()) }

func (b *bundles) ownerOf(at []string) *ownership {
	for _, bundle := range b.list {
		for _, root := range bundle.Roots {
			if hasPrefix(at, root) || hasPrefix(root, at) {
				return &ownership{bundle: bundle.Name, root: root}
			}
		}
	}
	return nil
}

// ownerOfAll returns the bundle that owns all of data; empty if none does.
func (b *bundles) ownerOfAll() string {
	for _, bundle := range b.list {
		if slices.ContainsFunc(bundle.Roots, func(root []string) bool { return len(root) == 0 }) {
			return bundle.Name
		}
	}
	return ""
}

func (o *ownership) problem(m *module) policy.Problem {
	message := fmt.Sprintf("%s is owned by bundle %s, which has the root %q: nobody else can define anything there",
		dataRef(m.path()), o.bundle, strings.Join(o.root, "/"))
	if m.ast == nil {
		return policy.Problem{Code: policy.CodeDefect, Message: message}
	}
	return atPackage(m.ast, policy.CodeDefect, message)
}

// conflicts says which modules in force, or objects of the cluster, are where a bundle
// has to be alone; nil if there are none.
func (b *bundles) conflicts(modules map[policy.ID]*module, replicated Replicated) error {
	var problems []string
	for _, id := range sortedIDs(modules) {
		if o := b.owner(modules[id]); o != nil {
			problems = append(problems, fmt.Sprintf("bundle %s has the root %q, and %s in it is defined by %s, which is in force: "+
				"narrower roots in the bundle's manifest, or another package, keep them apart",
				o.bundle, strings.Join(o.root, "/"), dataRef(modules[id].path()), id))
		}
	}
	for _, bundle := range b.list {
		for _, root := range bundle.Roots {
			if replicated.reserves(root) {
				problems = append(problems, fmt.Sprintf("bundle %s has the root %q, where objects of the cluster are replicated: "+
					"another root, or another --replicate-path, keeps them apart", bundle.Name, strings.Join(root, "/")))
			}
		}
	}
	if len(problems) > 0 {
		return listed(problems)
	}
	return nil
}

// Owns reports whether the bundles own a path of data that a text names, as problems
// name functions and rules.
func (s *Snapshot) Owns(text string) bool {
	for _, bundle := range s.bundles.list {
		for _, root := range bundle.Roots {
			if namesPath(text, dataRef(root)) {
				return true
			}
		}
	}
	return false
}

// namesPath reports whether a path stands in a text, whole or with more behind it.
func namesPath(text, path string) bool {
	for {
		_, rest, found := strings.Cut(text, path)
		if !found {
			return false
		}
		if rest == "" || !isNamePart(rest[0]) {
			return true
		}
		text = rest
	}
}

func isNamePart(c byte) bool {
	return c == '_' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// maxListed bounds the problems of a bundle that are listed: whoever repairs the first
// few sees the next ones.
const maxListed = 10

func listed(problems []string) error {
	slices.Sort(problems)
	problems = slices.Compact(problems)
	if more := len(problems) - maxListed; more > 0 {
		problems = append(problems[:maxListed], fmt.Sprintf("and %d more", more))
	}
	return errors.New(strings.Join(problems, "; "))
}
