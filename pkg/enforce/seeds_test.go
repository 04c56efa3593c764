package enforce

import (
	"os"
	"strconv"
	"testing"
)

// seeds returns those of a test's sequences: as many as the test asks for, from its first
// one on, or as KUBE_REGO_SOAK and KUBE_REGO_SEED say (make soak).
func seeds(t *testing.T, first uint64, n int) []uint64 {
	t.Helper()
	if testing.Short() {
		n /= 4 // make soak plays many
	}
	n, first = number(t, "KUBE_REGO_SOAK", n), number(t, "KUBE_REGO_SEED", first)
	t.Logf("%d sequences from seed %d on", n, first)
	all := make([]uint64, n)
	for i := range all {
		all[i] = first + uint64(i)
	}
	return all
}

// number reads a number from the environment.
func number[N int | uint64](t *testing.T, variable string, otherwise N) N {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 63)
	if err != nil {
		t.Fatalf("%s: %v", variable, err)
	}
	return N(n)
}

// areSeedsGiven reports whether the environment says which seeds to play.
func areSeedsGiven() bool { return os.Getenv("KUBE_REGO_SEED") != "" }
