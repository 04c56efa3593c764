//go:build !race

// Package race lets tests build kube-rego with the race detector when they are built with it themselves.
package race

// Enabled says whether this program was built with the race detector.
const Enabled = false
