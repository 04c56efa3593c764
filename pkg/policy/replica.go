package policy

// Replica is what one process of several says of itself.
type Replica struct {
	// Identity tells it from the others, and a person which pod it is.
	Identity string
	// InForce is the fingerprint of the modules that it decides with.
	InForce string
	// Wanted is the fingerprint of the set that it last looked at.
	Wanted string
	// Gone is true for one that has not been heard of for longer than it
	// promised: it has ended, it hangs, or it is cut off.
	Gone bool
}

// The states of a replica, as metrics and /status name them.
const (
	ReplicaInStep  = "in_step"
	ReplicaLagging = "lagging"
	ReplicaGone    = "gone"
)

// State is in one word where the replica is, measured by the fingerprint that
// all should have in force.
func (r Replica) State(inForce string) string {
	switch {
	case r.Gone:
		return ReplicaGone
	case r.InForce != inForce:
		return ReplicaLagging
	}
	return ReplicaInStep
}
