package loopback

import (
	"net"
	"testing"
)

func TestFreePorts(t *testing.T) {
	const n = 20
	ports, err := FreePorts(n)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int]bool{}
	for _, port := range ports {
		listener, err := net.Listen("tcp", Address(port))
		if err != nil {
			t.Error(err)
			continue
		}
		defer listener.Close()
		seen[port] = true
	}
	if len(seen) != n {
		t.Errorf("%d different ports, want %d", len(seen), n)
	}
}
