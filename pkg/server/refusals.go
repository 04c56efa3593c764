package server

import (
	"slices"
	"sync"
	"time"
)

// Refusal is what may be told of a review that was not allowed: never the object, nor a
// message of a policy, which may quote it.
type Refusal struct {
	Time       time.Time `json:"time"`
	DecisionID string    `json:"decisionID,omitempty"`
	Operation  string    `json:"operation,omitempty"`
	Kind       string    `json:"kind,omitempty"`
	Namespace  string    `json:"namespace,omitempty"`
	Name       string    `json:"name,omitempty"`
	User       string    `json:"user,omitempty"`
	// Fingerprint is that of the policy set that was asked.
	Fingerprint string `json:"fingerprint,omitempty"`
	// Modules are those that had a say.
	Modules []string `json:"modules,omitempty"`
	// Outcome is why it was refused: the policies denied it, or did not come to a
	// decision.
	Outcome string `json:"outcome"`
}

// maxRefusals is how many refusals are remembered.
const maxRefusals = 100

// Refusals are the latest. They are of this process only, and gone when it ends.
type Refusals struct {
	mu   sync.Mutex
	ring []Refusal
	next int // where the oldest is, once the ring is full
}

// NewRefusals makes an empty list.
func NewRefusals() *Refusals { return &Refusals{} }

// Add remembers one, and forgets the oldest if there are too many.
func (r *Refusals) Add(refusal Refusal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.ring) < maxRefusals {
		r.ring = append(r.ring, refusal)
		return
	}
	r.ring[r.next] = refusal
	r.next = (r.next + 1) % maxRefusals
}

// List is a copy, newest first.
func (r *Refusals) List() []Refusal {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	list := slices.Concat(r.ring[r.next:], r.ring[:r.next])
	slices.Reverse(list)
	return list
}
