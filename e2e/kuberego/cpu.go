package kuberego

import "time"

// CPUTime is how long the process has had processors, of all of them together.
func (i *Instance) CPUTime() (time.Duration, error) { return i.process.CPUTime() }
