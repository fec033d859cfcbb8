package overlaytest

import (
	"fmt"
	"net/netip"
	"sync"

	"golang.zx2c4.com/wireguard/conn"
)

// Bind is a node's sockets on a Network, for a wireguard-go device: the other
// implementation that an engine is tested against.
type Bind struct {
	socket *socket

	mu   sync.Mutex
	stop chan struct{} // of the current Open; guarded by mu
}

var _ conn.Bind = (*Bind)(nil)

// Bind returns a bind that has these addresses. It serves one device.
func (n *Network) Bind(addrs ...netip.Addr) *Bind {
	return &Bind{socket: &socket{network: n, addrs: addrs}}
}

// Open listens on all addresses of the bind.
func (b *Bind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stop != nil {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	in, port, err := b.socket.open(port)
	if err != nil {
		return nil, 0, err
	}
	stop := make(chan struct{})
	b.stop = stop
	receive := func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		n := 0
		err := in.receive(stop, func(p parcel) bool {
			sizes[n], eps[n] = copy(bufs[n], p.payload), Endpoint{p.from}
			n++
			return n < len(bufs)
		})
		return n, err
	}
	return []conn.ReceiveFunc{receive}, port, nil
}

// Close stops listening.
func (b *Bind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stop != nil {
		close(b.stop)
		b.stop = nil
		b.socket.close()
	}
	return nil
}

// Send delivers the datagrams as the network pleases.
func (b *Bind) Send(bufs [][]byte, ep conn.Endpoint) error {
	to, ok := ep.(Endpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	from, err := b.socket.source(to.AddrPort)
	if err != nil {
		return err
	}
	for _, buf := range bufs {
		b.socket.network.send(Datagram{From: from, To: to.AddrPort, Payload: buf})
	}
	return nil
}

// ParseEndpoint reads "address:port".
func (*Bind) ParseEndpoint(s string) (conn.Endpoint, error) {
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, fmt.Errorf("endpoint: %w", err)
	}
	return Endpoint{a}, nil
}

// SetMark does nothing.
func (*Bind) SetMark(uint32) error { return nil }

// BatchSize is that of the real sockets.
func (*Bind) BatchSize() int { return conn.IdealBatchSize }

// Endpoint is an address on a Network.
type Endpoint struct{ netip.AddrPort }

// ClearSrc does nothing: a bind chooses the source by family.
func (Endpoint) ClearSrc() {}

// SrcToString returns nothing.
func (Endpoint) SrcToString() string { return "" }

// DstToString returns "address:port".
func (e Endpoint) DstToString() string { return e.String() }

// DstToBytes returns the address as handshake cookies use it.
func (e Endpoint) DstToBytes() []byte {
	b, _ := e.MarshalBinary()
	return b
}

// DstIP returns the address.
func (e Endpoint) DstIP() netip.Addr { return e.Addr() }

// SrcIP returns nothing.
func (Endpoint) SrcIP() netip.Addr { return netip.Addr{} }
