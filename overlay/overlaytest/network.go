// Package overlaytest is an underlay in memory: binds with addresses of their
// own on one Network, which loses, delays, reorders and shows datagrams as a
// test asks it to.
//
// Engines on it are real: only the sockets are not. Nothing here blocks
// outside of channels, so a whole cluster runs in a synctest bubble. Randomness
// comes from the seed alone, although the order in which goroutines draw from
// it is theirs.
package overlaytest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// Datagram is what a Network carries. Its payload must not be kept or changed.
type Datagram struct {
	From, To netip.AddrPort
	Payload  []byte
}

// Config says how a Network treats datagrams. The zero value loses nothing.
type Config struct {
	Seed    uint64
	Loss    float64       // share of datagrams that are lost, 0 to 1
	Reorder float64       // share of datagrams that arrive after their successor, 0 to 1
	Delay   time.Duration // on the way; 0: none
	MTU     int           // larger datagrams (IP and UDP header included) are lost; 0: any
	// Tap sees every datagram that is sent, also those that will be lost. It is
	// called from the senders' goroutines, several at once.
	Tap func(Datagram)
}

const (
	// queueLen is a socket's receive buffer in datagrams.
	queueLen = 4096
	// ephemeral is the first port given to a bind that does not ask for one.
	ephemeral = 32768
	// maxLate is how long a reordered datagram waits for its successor.
	maxLate  = 2 * time.Millisecond
	headers4 = 28
	headers6 = 48
)

// Network connects binds.
type Network struct {
	tap func(Datagram)

	mu    sync.Mutex
	cfg   Config                    // guarded by mu
	rng   *rand.Rand                // guarded by mu
	binds map[netip.AddrPort]*inbox // guarded by mu
	cut   map[[2]netip.Addr]bool    // directions that are broken; guarded by mu
	port  uint16                    // last ephemeral port; guarded by mu
}

// New returns a network.
func New(cfg Config) *Network {
	return &Network{
		cfg: cfg, tap: cfg.Tap, rng: rand.New(rand.NewPCG(cfg.Seed, 0)),
		binds: make(map[netip.AddrPort]*inbox), cut: make(map[[2]netip.Addr]bool), port: ephemeral,
	}
}

// SetLoss changes the share of datagrams that are lost.
func (n *Network) SetLoss(share float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cfg.Loss = share
}

// SetCut breaks or mends the way from one address to another, in this
// direction alone.
func (n *Network) SetCut(from, to netip.Addr, broken bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[[2]netip.Addr{from, to}] = broken
}

// Inject delivers a datagram that nobody on the network has sent.
func (n *Network) Inject(d Datagram) {
	n.mu.Lock()
	in := n.binds[d.To]
	n.mu.Unlock()
	if in != nil {
		in.deliver(parcel{from: d.From, payload: slices.Clone(d.Payload)}, false)
	}
}

// Bind returns a bind that has these addresses. It serves one engine.
func (n *Network) Bind(addrs ...netip.Addr) *Bind {
	return &Bind{network: n, addrs: addrs}
}

// Bind is a node's sockets on a Network.
type Bind struct {
	network *Network
	addrs   []netip.Addr

	mu     sync.Mutex
	port   uint16 // 0: not open; guarded by mu
	inbox  *inbox // guarded by mu
	failed error  // what Send returns; guarded by mu
}

var _ conn.Bind = (*Bind)(nil)

// Open listens on all addresses of the bind.
func (b *Bind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.port != 0 {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	in := &inbox{queue: make(chan parcel, queueLen), closed: make(chan struct{})}
	port, err := b.network.listen(b.addrs, port, in)
	if err != nil {
		return nil, 0, err
	}
	b.port, b.inbox = port, in
	return []conn.ReceiveFunc{in.receive}, port, nil
}

func (n *Network) listen(addrs []netip.Addr, port uint16, in *inbox) (uint16, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if port == 0 {
		n.port++
		port = n.port
	}
	for _, a := range addrs {
		if n.binds[netip.AddrPortFrom(a, port)] != nil {
			return 0, fmt.Errorf("listen on %s port %d: address already in use", a, port)
		}
	}
	for _, a := range addrs {
		n.binds[netip.AddrPortFrom(a, port)] = in
	}
	return port, nil
}

// Close stops listening.
func (b *Bind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.port == 0 {
		return nil
	}
	b.network.mu.Lock()
	defer b.network.mu.Unlock()
	for _, a := range b.addrs {
		delete(b.network.binds, netip.AddrPortFrom(a, b.port))
	}
	close(b.inbox.closed)
	b.port = 0
	return nil
}

// Fail makes Send return err, as a network that is down does; nil mends it.
func (b *Bind) Fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failed = err
}

// Send delivers the datagrams as the network pleases.
func (b *Bind) Send(bufs [][]byte, ep conn.Endpoint) error {
	to, ok := ep.(Endpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	from, err := b.source(to.AddrPort)
	if err != nil {
		return err
	}
	for _, buf := range bufs {
		b.network.send(Datagram{From: from, To: to.AddrPort, Payload: buf})
	}
	return nil
}

// source is the bind's first address of the destination's family.
func (b *Bind) source(to netip.AddrPort) (netip.AddrPort, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.port == 0 {
		return netip.AddrPort{}, net.ErrClosed
	}
	if b.failed != nil {
		return netip.AddrPort{}, b.failed
	}
	for _, a := range b.addrs {
		if a.Is4() == to.Addr().Is4() {
			return netip.AddrPortFrom(a, b.port), nil
		}
	}
	return netip.AddrPort{}, errors.New("network is unreachable")
}

func (n *Network) send(d Datagram) {
	if n.tap != nil {
		n.tap(d)
	}
	in, late, delay := n.fate(d)
	if in == nil {
		return
	}
	p := parcel{from: d.From, payload: slices.Clone(d.Payload)}
	if delay > 0 {
		p.due = time.Now().Add(delay)
	}
	in.deliver(p, late)
}

// fate decides what becomes of a datagram: lost (nil), late, or neither.
func (n *Network) fate(d Datagram) (in *inbox, late bool, delay time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	headers := headers4
	if d.To.Addr().Is6() {
		headers = headers6
	}
	if n.cut[[2]netip.Addr{d.From.Addr(), d.To.Addr()}] ||
		n.cfg.MTU > 0 && len(d.Payload)+headers > n.cfg.MTU ||
		n.cfg.Loss > 0 && n.rng.Float64() < n.cfg.Loss {
		return nil, false, 0
	}
	late = n.cfg.Reorder > 0 && n.rng.Float64() < n.cfg.Reorder
	return n.binds[d.To], late, n.cfg.Delay
}

// parcel is a datagram on its way; due is zero without a delay.
type parcel struct {
	from    netip.AddrPort
	payload []byte
	due     time.Time
}

// inbox is a socket's receive buffer and the wire before it. One goroutine
// receives.
type inbox struct {
	queue  chan parcel
	closed chan struct{}
	next   *parcel // taken from the queue, not due yet; owned by receive

	mu   sync.Mutex
	late *parcel // waits for its successor; guarded by mu
}

func (in *inbox) deliver(p parcel, late bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if late && in.late == nil {
		in.late = &p
		time.AfterFunc(maxLate, in.flush)
		return
	}
	in.put(p)
	in.flushLocked()
}

// flush delivers a late datagram whose successor does not come.
func (in *inbox) flush() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.flushLocked()
}

func (in *inbox) flushLocked() {
	if in.late != nil {
		in.put(*in.late)
		in.late = nil
	}
}

// put drops what does not fit, as a socket does.
func (in *inbox) put(p parcel) {
	select {
	case in.queue <- p:
	default:
	}
}

// receive waits for a datagram and returns it with all others that are there.
func (in *inbox) receive(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
	if err := in.await(); err != nil {
		return 0, err
	}
	n := 0
	for in.next != nil && n < len(bufs) && time.Until(in.next.due) <= 0 {
		sizes[n] = copy(bufs[n], in.next.payload)
		eps[n] = Endpoint{in.next.from}
		n++
		in.next = nil
		select {
		case p := <-in.queue:
			in.next = &p
		default:
		}
	}
	return n, nil
}

// await returns when next is due.
func (in *inbox) await() error {
	if in.next == nil {
		select {
		case p := <-in.queue:
			in.next = &p
		case <-in.closed:
			return net.ErrClosed
		}
	}
	wait := time.Until(in.next.due)
	if wait <= 0 {
		return nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-in.closed:
		return net.ErrClosed
	}
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
