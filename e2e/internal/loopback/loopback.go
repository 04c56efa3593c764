// Package loopback chooses addresses on this machine that no other machine can reach.
package loopback

import (
	"fmt"
	"net"
	"strconv"
)

// Host is the address everything listens on.
const Host = "127.0.0.1"

// Address is the address with this port.
func Address(port int) string { return net.JoinHostPort(Host, strconv.Itoa(port)) }

// FreePorts finds n ports that are free. Nothing keeps them free: the user has to be ready to try again.
func FreePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		listener, err := net.Listen("tcp", Address(0))
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		defer listener.Close() // all at the end, so that no port comes twice
		ports = append(ports, listener.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}
