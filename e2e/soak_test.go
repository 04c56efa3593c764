package e2e_test

import (
	"os"
	"strconv"
	"testing"
)

const (
	// restartsVariable says how many restarts there are to be, soakVariable how many random sequences.
	restartsVariable = "KUBE_REGO_RESTARTS"
	soakVariable     = "KUBE_REGO_SOAK"
	// seedVariable is that of the first sequence; each further one has the next.
	seedVariable = "KUBE_REGO_SEED"
)

// number is what a variable of the environment says; without it, what is for everyday.
func number(t *testing.T, variable string, everyday int) int {
	t.Helper()
	text, ok := os.LookupEnv(variable)
	if !ok {
		return everyday
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s is %q, want a number from 1 on", variable, text)
	}
	return n
}
