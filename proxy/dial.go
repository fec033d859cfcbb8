package proxy

import (
	"fmt"
	"net/netip"
	"syscall"

	"github.com/netctl/netctl/internal/packet"
)

// What Dialable answers: it tells a client what a socket would.
var (
	ErrCircle = fmt.Errorf("backend is a service's address itself: %w", syscall.ECONNREFUSED)
	ErrHidden = fmt.Errorf("backend is no address of the network: %w", syscall.EHOSTUNREACH)
)

// Dialable says why a socket of the host must not be connected to a backend,
// nil when it may. EndpointSlices are written by users: one that names the node
// port of another node would have two nodes dial each other in circles, one
// that names a loopback address would open what only the host may reach.
func (t *Table) Dialable(backend netip.AddrPort, proto uint8) error {
	if a := backend.Addr(); !a.IsGlobalUnicast() || a.Is4In6() || a.Zone() != "" {
		return ErrHidden
	}
	if _, kind := t.Frontend(packet.AddrFrom(backend.Addr()), backend.Port(), proto); kind != KindNone {
		return ErrCircle
	}
	return nil
}
