// Package overlaytest is an underlay in memory: wires with addresses of their
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
	"sync/atomic"
	"time"
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
	// ephemeral is the first port given to a wire that does not ask for one.
	ephemeral = 32768
	// maxLate is how long a reordered datagram waits for its successor.
	maxLate  = 2 * time.Millisecond
	headers4 = 28
	headers6 = 48
)

// Network connects wires and binds.
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

// SetMTU changes what the network carries.
func (n *Network) SetMTU(mtu int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cfg.MTU = mtu
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

// socket is an address on the network, for one who uses it or several in turn.
type socket struct {
	network *Network
	addrs   []netip.Addr

	believed atomic.Int32 // the longest datagram that reaches others whole, 0: any

	mu     sync.Mutex
	port   uint16 // 0: not open; guarded by mu
	users  int    // guarded by mu
	inbox  *inbox // guarded by mu
	failed error  // what sending returns; guarded by mu
}

// open opens the socket, or joins those who use it.
func (s *socket) open(port uint16) (*inbox, uint16, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.port == 0 {
		in := &inbox{queue: make(chan parcel, queueLen)}
		port, err := s.network.listen(s.addrs, port, in)
		if err != nil {
			return nil, 0, err
		}
		s.port, s.inbox = port, in
	}
	s.users++
	return s.inbox, s.port, nil
}

func (s *socket) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users--; s.users > 0 {
		return
	}
	s.network.mu.Lock()
	defer s.network.mu.Unlock()
	for _, a := range s.addrs {
		delete(s.network.binds, netip.AddrPortFrom(a, s.port))
	}
	s.port = 0
}

// source is the first address of the destination's family.
func (s *socket) source(to netip.AddrPort) (netip.AddrPort, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.port == 0 {
		return netip.AddrPort{}, net.ErrClosed
	}
	if s.failed != nil {
		return netip.AddrPort{}, s.failed
	}
	for _, a := range s.addrs {
		if a.Is4() == to.Addr().Is4() {
			return netip.AddrPortFrom(a, s.port), nil
		}
	}
	return netip.AddrPort{}, errors.New("network is unreachable")
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
	queue chan parcel
	next  *parcel // taken from the queue, not due yet; owned by receive

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

// receive waits for a datagram and calls yield for it and for all others that
// are there, until stop is closed or yield wants no more.
func (in *inbox) receive(stop <-chan struct{}, yield func(parcel) bool) error {
	if err := in.await(stop); err != nil {
		return err
	}
	for in.next != nil && time.Until(in.next.due) <= 0 {
		p := *in.next
		in.next = nil
		select {
		case next := <-in.queue:
			in.next = &next
		default:
		}
		if !yield(p) {
			break
		}
	}
	return nil
}

// await returns when next is due.
func (in *inbox) await(stop <-chan struct{}) error {
	select {
	case <-stop:
		return net.ErrClosed
	default:
	}
	if in.next == nil {
		select {
		case p := <-in.queue:
			in.next = &p
		case <-stop:
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
	case <-stop:
		return net.ErrClosed
	}
}
