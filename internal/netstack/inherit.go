package netstack

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/netctl/netctl/internal/packet"
)

// Predecessor is the Stack that was here before, in a process that finishes its
// connections, or the wire to it.
type Predecessor interface {
	// Packet passes on a packet of one of its connections, without waiting; false:
	// there is no room. The buffer is borrowed.
	Packet(buf []byte, inbound bool) bool
	// Forget passes on Stack.Forget.
	Forget(pod netip.Addr)
}

// maxInherited bounds what a predecessor can make us remember.
const maxInherited = 1 << 18

// Inheritance is the Heir of a Predecessor: it lets this Stack pass on what is
// not its own. A pod's SYN with a tuple of the predecessor's goes there as well:
// it meets the connection that it would have met without a change of processes,
// and is returned if nothing is left of that.
type Inheritance struct {
	stack *Stack
	from  Predecessor
	size  atomic.Int64 // of tuples

	mu     sync.RWMutex
	tuples map[packet.Tuple]count // guarded by mu; one that moves along a chain of processes is here twice for a moment
	heir   Heir                   // guarded by mu; nil: stack serves
}

var _ Heir = (*Inheritance)(nil)

// Inherit makes the Stack the successor of another one. There is one at a time:
// a predecessor of a predecessor is reached through it.
func (s *Stack) Inherit(from Predecessor) *Inheritance {
	e := &Inheritance{stack: s, from: from, tuples: make(map[packet.Tuple]count)}
	s.elder.Store(e)
	return e
}

// isElders reports whether a tuple is a predecessor's.
func (s *Stack) isElders(t packet.Tuple) bool {
	e := s.elder.Load()
	return e != nil && e.has(&t)
}

func (e *Inheritance) has(t *packet.Tuple) bool {
	if e.size.Load() == 0 {
		return false
	}
	e.mu.RLock()
	_, ok := e.tuples[*t]
	e.mu.RUnlock()
	return ok
}

// take passes a packet on that belongs to the predecessor; false: it does not.
func (e *Inheritance) take(p *packet.Packet, on *link) bool {
	if e.size.Load() == 0 {
		return false
	}
	t := p.Tuple
	if p.Kind == packet.KindICMPError {
		t = p.Inner.Reverse() // an answer to what it quotes
	}
	if !e.has(&t) {
		return false
	}
	if !e.from.Packet(p.Buf, on.id == nicInbound) {
		e.stack.counters.drop(DropElder)
	}
	return true
}

// Began and the methods below are those of Heir.
func (e *Inheritance) Began(t packet.Tuple, inbound bool) {
	if e.stack.live.has(t) {
		return // it is ours already: whoever is there now has the better claim
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.tuples) >= maxInherited {
		return // more than the bounds of any Stack allow
	}
	n := e.tuples[t].n + 1
	e.tuples[t] = count{n, inbound}
	e.size.Store(int64(len(e.tuples)))
	if e.heir != nil && n == 1 {
		e.heir.Began(t, inbound)
	}
}

// Ended takes a tuple out.
func (e *Inheritance) Ended(t packet.Tuple) { e.forgetTuple(t) }

func (e *Inheritance) forgetTuple(t packet.Tuple) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.remove(t) && e.heir != nil {
		e.heir.Ended(t)
	}
}

// remove takes a tuple out once; false: it was not there, or still is. Called
// with mu held.
func (e *Inheritance) remove(t packet.Tuple) bool {
	c, ok := e.tuples[t]
	if c.n > 1 {
		e.tuples[t] = count{c.n - 1, c.inbound}
		return false
	}
	delete(e.tuples, t)
	e.size.Store(int64(len(e.tuples)))
	return ok
}

// Packet sends what the predecessor emits as if it were this Stack's own.
func (e *Inheritance) Packet(buf []byte, inbound bool) {
	if on := e.link(inbound); on.ready() {
		on.out(buf)
	}
}

// Return takes a packet that the predecessor got and should not have. It does
// not go back there, whatever its tuple.
func (e *Inheritance) Return(buf []byte, inbound bool) {
	if e.stack.closing.Load() {
		return
	}
	if p, ok := e.stack.parse(buf); ok && p.Kind == packet.KindWhole {
		e.stack.dispatch(&p, e.link(inbound))
	}
}

// Flow takes a flow of datagrams over. One that finds no room is closed, and
// begins anew with the pod's next datagram.
func (e *Inheritance) Flow(f Flow, fd int) {
	if e.passOn(f, fd) {
		return
	}
	// Until the flow is here, its packets go to the predecessor and are returned:
	// none of them may find neither and begin another flow.
	defer e.forgetTuple(f.Tuple)
	if err := e.stack.datagrams.adopt(f, fd); err != nil {
		e.stack.log.Debug("a flow of the predecessor was not taken over", "flow", f.Tuple.String(), "error", err)
		return
	}
	e.stack.counters.adopted.Add(1)
}

// passOn gives a flow to the heir; false: there is none. The lock is held
// meanwhile, so that no packet for the flow is returned before.
func (e *Inheritance) passOn(f Flow, fd int) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.heir == nil {
		return false
	}
	// In this order: a Stack without tuples is idle, and one that is idle may end
	// before the heir has the flow.
	e.heir.Flow(f, fd) // which is word enough that the tuple has ended
	e.remove(f.Tuple)
	return true
}

func (e *Inheritance) link(inbound bool) *link {
	if inbound {
		return e.stack.inLink
	}
	return e.stack.link
}

// retire tells the heir of what the predecessor still has.
func (e *Inheritance) retire(h Heir) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.heir = h
	if h == nil {
		return
	}
	for t, c := range e.tuples {
		h.Began(t, c.inbound)
	}
}

// Close ends the inheritance as if it had never been: the predecessor serves
// again.
func (e *Inheritance) Close() { e.drop() }

// Lost ends the inheritance: the predecessor is gone. What it still had is lost,
// and pods with TCP connections among that hear of it at once.
func (e *Inheritance) Lost() {
	for t, c := range e.drop() {
		e.stack.Knock(t, c.inbound)
	}
}

// drop forgets everything and returns what that was.
func (e *Inheritance) drop() map[packet.Tuple]count {
	e.stack.elder.CompareAndSwap(e, nil)
	e.mu.Lock()
	lost := e.tuples
	e.tuples = make(map[packet.Tuple]count)
	e.size.Store(0)
	h := e.heir
	e.mu.Unlock()
	if h != nil {
		for t := range lost {
			h.Ended(t)
		}
	}
	return lost
}

// Knock makes a pod find out that a TCP connection's other end is gone, though
// it may wait for data for ever: it is sent a segment that it must answer
// (RFC 9293 §3.10.7.4: not acceptable, so an ACK is due), and the answer, which
// belongs to no connection here, is answered with a reset. The tuple is that of
// the pod's packets. Nothing is sent for a connection that is alive.
func (s *Stack) Knock(t packet.Tuple, inbound bool) {
	on := s.link
	if inbound {
		on = s.inLink
	}
	if t.Proto != packet.ProtoTCP || s.closing.Load() || !on.ready() || s.live.has(t) || s.isElders(t) {
		return
	}
	buf := make([]byte, packet.MaxError)
	// Of two sequence numbers that are half the space apart, at most one is within
	// the pod's window.
	for _, seq := range []uint32{0, 1 << 31} {
		if out := bareACK(buf, t.Reverse(), seq); len(out) > 0 {
			on.out(out)
		}
	}
}

// bareACK builds a TCP segment without data or options.
func bareACK(dst []byte, t packet.Tuple, seq uint32) []byte {
	src, to := t.Src.Netip(), t.Dst.Netip()
	if src.Is4() != to.Is4() {
		return nil
	}
	hl, proto := header.IPv6MinimumSize, pseudoSum(t.Src[:], t.Dst[:], packet.ProtoTCP, header.TCPMinimumSize)
	if src.Is4() {
		hl, proto = header.IPv4MinimumSize, pseudoSum(t.Src[12:], t.Dst[12:], packet.ProtoTCP, header.TCPMinimumSize)
	}
	buf := dst[:packet.VNetLen+hl+header.TCPMinimumSize]
	clear(buf)
	ip := buf[packet.VNetLen:]
	tcp := header.TCP(ip[hl:])
	tcp.Encode(&header.TCPFields{
		SrcPort: t.SrcPort, DstPort: t.DstPort, SeqNum: seq, DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagAck,
	})
	tcp.SetChecksum(^tcp.CalculateChecksum(proto))
	const ttl = 64
	if !src.Is4() {
		ip[0], ip[6], ip[7] = 0x60, packet.ProtoTCP, ttl
		binary.BigEndian.PutUint16(ip[4:], header.TCPMinimumSize)
		copy(ip[8:], t.Src[:])
		copy(ip[24:], t.Dst[:])
		return buf
	}
	h := header.IPv4(ip)
	ip[0], ip[6], ip[8], ip[9] = 0x45, 0x40, ttl, packet.ProtoTCP
	h.SetTotalLength(uint16(len(ip)))
	copy(ip[12:], t.Src[12:])
	copy(ip[16:], t.Dst[12:])
	h.SetChecksum(^h.CalculateChecksum())
	return buf
}

// adoptSocket makes a flow's socket of a received descriptor, which it owns in
// any case. A descriptor of anything else is refused.
func adoptSocket(backend netip.AddrPort, fd int) (socket, error) {
	if err := checkSocket(backend, fd); err != nil {
		unix.Close(fd)
		return socket{}, err
	}
	file := os.NewFile(uintptr(fd), "flow") // non-blocking: goes to the poller
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return socket{}, fmt.Errorf("adopted socket: %w", err)
	}
	reportErrors(raw, backend.Addr().Is4())
	discoverMTU(raw, backend.Addr().Is4(), false) // as a new socket's
	return socket{conn: file, raw: raw}, nil
}

func checkSocket(backend netip.AddrPort, fd int) error {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return fmt.Errorf("adopted socket: %w", err)
	}
	sa, err := unix.Getpeername(fd)
	if err != nil {
		return fmt.Errorf("adopted socket: %w", err)
	}
	var peer netip.AddrPort
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		peer = netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		peer = netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	if kind != unix.SOCK_DGRAM || peer.Addr().Is4() != backend.Addr().Is4() {
		return fmt.Errorf("adopted socket of type %d speaks to %s, not to a backend like %s by datagrams", kind, peer, backend)
	}
	return unix.SetNonblock(fd, true)
}
