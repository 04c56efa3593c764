//go:build race

package e2e_test

// raceDetector is on: kube-rego is built with it too.
const raceDetector = true
