package overlaytest

import (
	"net/netip"
	"sync"
)

// Wire is a node's sockets on a Network, for an engine.
type Wire struct {
	socket *socket
	inbox  *inbox // set by Listen
	stop   chan struct{}
	once   sync.Once // of Interrupt
	closed sync.Once
}

// Wire returns a wire that has these addresses. It serves one engine.
func (n *Network) Wire(addrs ...netip.Addr) *Wire {
	return &Wire{socket: &socket{network: n, addrs: addrs}, stop: make(chan struct{})}
}

// Share returns a wire with the same sockets for another engine, as a process
// has that was handed them. Both may send; one at a time may receive.
func (w *Wire) Share() *Wire { return &Wire{socket: w.socket, stop: make(chan struct{})} }

// Listen opens the sockets.
func (w *Wire) Listen(port uint16) (queues int, actual uint16, err error) {
	w.inbox, actual, err = w.socket.open(port)
	return 1, actual, err
}

// Receive waits for datagrams and returns those that are there.
func (w *Wire) Receive(_ int, bufs [][]byte, sizes, segments []int, from []netip.AddrPort) (int, error) {
	n := 0
	err := w.inbox.receive(w.stop, func(p parcel) bool {
		sizes[n] = copy(bufs[n], p.payload)
		segments[n], from[n] = sizes[n], p.from
		n++
		return n < len(bufs)
	})
	return n, err
}

// Send delivers the datagrams as the network pleases.
func (w *Wire) Send(buf []byte, size int, to netip.AddrPort) error {
	from, err := w.socket.source(to)
	if err != nil {
		return err
	}
	for len(buf) > 0 {
		n := min(size, len(buf))
		w.socket.network.send(Datagram{From: from, To: to, Payload: buf[:n]})
		buf = buf[n:]
	}
	return nil
}

// LongestWhole returns what Believe has set.
func (w *Wire) LongestWhole(netip.AddrPort) int { return int(w.socket.believed.Load()) }

// Believe sets what LongestWhole returns, as ICMP does that comes to a kernel.
func (w *Wire) Believe(n int) { w.socket.believed.Store(int32(n)) }

// Fail makes Send return err, as a network that is down does; nil mends it.
func (w *Wire) Fail(err error) {
	w.socket.mu.Lock()
	defer w.socket.mu.Unlock()
	w.socket.failed = err
}

// Interrupt ends Receive.
func (w *Wire) Interrupt() { w.once.Do(func() { close(w.stop) }) }

// Close stops listening.
func (w *Wire) Close() error {
	w.Interrupt()
	w.closed.Do(w.socket.close)
	return nil
}
