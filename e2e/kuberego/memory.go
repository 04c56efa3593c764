package kuberego

import "github.com/kube-rego/kube-rego/e2e/internal/process"

// Memory is how much of the machine's memory the process has.
func (i *Instance) Memory() (process.Memory, error) { return i.process.Memory() }
