package opa

import (
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
	return (&bundle.DefaultActivator{}).Activate(options)
}
