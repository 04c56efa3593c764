// Package policy holds the words that every other package speaks: module, policy
// set, problem, report. It knows neither Kubernetes nor OPA; the standard
// library is all it imports.
//
// A [Module] is one key of one labelled ConfigMap: Rego, or data that policies
// read. All modules together are the [Set] that somebody wants. Package compile
// brings as much of it as compiles into a snapshot and answers with a [Report]: of
// each module, what is in force and, if that is not what was wanted, the [Problem]s
// that hold the change back.
package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"slices"
	"time"
)

// ID names a module: the ConfigMap's namespace and name, and the key in it.
type ID struct {
	Namespace string
	Name      string
	Key       string
}

// String is the form in which a module is named everywhere: in errors,
// annotations and logs, and as the file name in OPA's locations.
func (id ID) String() string { return id.Namespace + "/" + id.Name + "/" + id.Key }

// Compare orders modules by namespace, name and key.
func (id ID) Compare(other ID) int {
	return cmp.Or(
		cmp.Compare(id.Namespace, other.Namespace),
		cmp.Compare(id.Name, other.Name),
		cmp.Compare(id.Key, other.Key),
	)
}

// RegoVersion says which version of the Rego language a module is written in.
type RegoVersion string

// The versions a module can ask for. Auto finds it out from the source.
const (
	RegoAuto RegoVersion = "auto"
	RegoV0   RegoVersion = "v0"
	RegoV1   RegoVersion = "v1"
)

// ParseRegoVersion reads a version as a flag or an annotation gives it.
func ParseRegoVersion(s string) (RegoVersion, error) {
	switch v := RegoVersion(s); v {
	case RegoAuto, RegoV0, RegoV1:
		return v, nil
	}
	return "", fmt.Errorf("unknown Rego version %q: want auto, v0 or v1", s)
}

// Kind says what the text of a module is.
type Kind string

// Rego is policy. Data is a JSON or YAML document that policies read at
// data.<namespace>.<name>.<key>.
const (
	Rego Kind = ""
	Data Kind = "data"
)

// Module is the wanted version of one module.
type Module struct {
	ID     ID
	Kind   Kind
	Source string
	// Version is how Source is to be read; empty means that the author said
	// nothing.
	Version RegoVersion
	// Created is when the object that carries the module was created: of two
	// changes that clash the older object wins.
	Created time.Time
	// ObjectVersion orders the versions of that object: it is larger after
	// every write to it. 0 is unknown, and older than all others.
	ObjectVersion uint64
	// Defect says why Source could not be read at all; empty for a module
	// that could. A defective module is held like one that does not parse.
	Defect string
}

// Digest is a hash of all that decides what the module means.
func (m Module) Digest() [sha256.Size]byte {
	h := sha256.New()
	write(h, m.ID.String(), string(m.Version), m.Source, m.Defect)
	if m.Kind != Rego {
		write(h, string(m.Kind))
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// Older orders modules by the age of their object, then by name, so that all
// replicas agree whatever order they saw the changes in.
func (m Module) Older(other Module) int {
	return cmp.Or(m.Created.Compare(other.Created), m.ID.Compare(other.ID))
}

// Set is a policy set: all modules of all sources, each once.
type Set map[ID]Module

// NewSet makes a set of modules.
func NewSet(modules ...Module) Set {
	set := make(Set, len(modules))
	for _, m := range modules {
		set[m.ID] = m
	}
	return set
}

// IDs are the names of the set's modules, sorted.
func (s Set) IDs() []ID {
	ids := make([]ID, 0, len(s))
	for id := range s {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, ID.Compare)
	return ids
}

// Fingerprint is the same for two sets exactly if they hold the same modules:
// a SHA-256, in hexadecimal.
func (s Set) Fingerprint() string {
	h := sha256.New()
	for _, id := range s.IDs() {
		digest := s[id].Digest()
		h.Write(digest[:])
	}
	return hex.EncodeToString(h.Sum(nil))
}

// write adds strings to a hash, each behind its length, so that no two lists
// of strings look alike.
func write(h hash.Hash, parts ...string) {
	for _, p := range parts {
		_, _ = fmt.Fprintf(h, "%d:", len(p))
		_, _ = io.WriteString(h, p)
	}
}
