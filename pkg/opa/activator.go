package opa

import (
	"path"
	"strings"

	"github.com/open-policy-agent/opa/v1/bundle"
)

// activatorName is the name under which OPA knows the activator.
const activatorName = "kube-rego"

// OPA has one table of activators for the process, which must be filled before the
// first bundle comes.
func init() { //nolint:gochecknoinits // as OPA's own plugins do
	bundle.RegisterActivator(activatorName, activator{})
	bundle.RegisterDefaultBundleActivator(activatorName)
}

// activator is OPA's own, but for one thing: a bundle may call functions of ConfigMaps.
// OPA compiles the bundles alone before it commits them; whether there is such a
// function is found out at the gate, where they are compiled with all the rest.
type activator struct{}

// Activate writes bundles to the store.
func (activator) Activate(options *bundle.ActivateOpts) error {
	if _, ok := options.Store.(*store); ok {
		options.Compiler = options.Compiler.WithAllowUndefinedFunctionCalls(true)
	}
	for name, b := range options.Bundles {
		nameModules(name, b)
	}
	return (&bundle.DefaultActivator{}).Activate(options)
}

// nameModules puts the name of a bundle before the paths of its modules. Where there is
// an activator that is not its own OPA reads all bundles as it reads those that it
// downloads, but forgets the name with those that come from disk: two of them with a file
// of the same name would overwrite each other.
func nameModules(name string, b *bundle.Bundle) {
	known := make(map[string]bool) // paths without the name
	for _, m := range b.Modules {
		known[m.Path] = true
	}
	isModule := func(r bundle.Raw) bool { return strings.HasSuffix(r.Path, bundle.RegoExt) }
	for _, r := range b.Raw {
		if isModule(r) && !known[r.Path] {
			return // with the name: the longest of these paths is no other's path without
		}
	}
	for i, r := range b.Raw {
		if isModule(r) {
			b.Raw[i].Path = path.Join(name, r.Path)
		}
	}
}
