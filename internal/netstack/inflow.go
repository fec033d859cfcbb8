package netstack

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/internal/quota"
)

// inFlows are the conversations of datagrams that Datagrams opened, by the
// tuple of the pod's answers. They own no goroutine and no socket: a flow lives
// until its owner closes it, the pod's port is closed or the pod is gone.
type inFlows struct {
	stack *Stack
	quota *quota.Quota

	mu     sync.RWMutex
	flows  map[packet.Tuple]*InFlow // guarded by mu
	closed bool                     // guarded by mu
	heir   Heir                     // guarded by mu; nil: this stack serves
}

// InFlow is one conversation of datagrams between a client outside and a pod.
type InFlow struct {
	set     *inFlows
	key     packet.Tuple // of the pod's answers
	receive func(data []byte)

	mtu   atomic.Int32
	ended atomic.Uint32 // syscall.Errno; 0: open
}

func newInFlows(s *Stack) *inFlows {
	return &inFlows{
		stack: s, quota: share(s.cfg.Limits.InboundFlows, s.cfg.Limits.InboundFlowsPerClient),
		flows: make(map[packet.Tuple]*InFlow),
	}
}

// Datagrams opens a conversation of datagrams into the cluster that comes from
// src; a source port in use towards dst is replaced. The pod's datagrams go to
// receive, whose buffer is borrowed: it is called inside Write, so it must not
// block. The caller owes the flow Close, and decides when it has been idle for
// too long.
func (s *Stack) Datagrams(src, dst netip.AddrPort, receive func(data []byte)) (*InFlow, error) {
	return s.openInFlow(src, dst, receive, (*inFlows).add)
}

// Resume is Datagrams for a conversation that a predecessor had: src stays as it
// was, and packets for it go to the predecessor no more.
func (s *Stack) Resume(src, dst netip.AddrPort, receive func(data []byte)) (*InFlow, error) {
	return s.openInFlow(src, dst, receive, (*inFlows).take)
}

func (s *Stack) openInFlow(src, dst netip.AddrPort, receive func(data []byte),
	enter func(d *inFlows, f *InFlow, src, dst netip.AddrPort) error,
) (*InFlow, error) {
	if err := s.checkEnds(src, dst); err != nil {
		return nil, err
	}
	d, owner := s.inFlows, quota.Client(src.Addr())
	if d.quota.Take(owner) == quota.None {
		s.counters.drop(DropInboundLimit)
		return nil, ErrLimit
	}
	f := &InFlow{set: d, receive: receive}
	f.mtu.Store(int32(s.cfg.MTU))
	if err := enter(d, f, src, dst); err != nil {
		d.quota.Give(owner)
		return nil, err
	}
	return f, nil
}

// add enters the flow under a tuple that nobody uses.
func (d *inFlows) add(f *InFlow, src, dst netip.AddrPort) error {
	key := answersOf(src, dst)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return ErrClosed
	}
	for range sourcePorts {
		if key.DstPort != 0 && d.flows[key] == nil && !d.stack.datagrams.has(&key) && !d.stack.isElders(key) {
			f.key = key
			d.flows[key] = f
			if d.heir != nil {
				d.heir.Began(key, true)
			}
			return nil
		}
		key.DstPort = freePort()
	}
	return syscall.EADDRINUSE
}

// take enters the flow under the tuple that it had in a predecessor.
func (d *inFlows) take(f *InFlow, src, dst netip.AddrPort) error {
	key := answersOf(src, dst)
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.closed:
		return ErrClosed
	case key.DstPort == 0 || d.flows[key] != nil || d.stack.datagrams.has(&key):
		return syscall.EADDRINUSE
	}
	f.key = key
	d.flows[key] = f
	if e := d.stack.elder.Load(); e != nil {
		e.forgetTuple(key)
	}
	if d.heir != nil {
		d.heir.Began(key, true)
	}
	return nil
}

// answersOf is the tuple of the answers that go from dst to src.
func answersOf(src, dst netip.AddrPort) packet.Tuple {
	return packet.Tuple{
		Src: packet.AddrFrom(dst.Addr()), SrcPort: dst.Port(),
		Dst: packet.AddrFrom(src.Addr()), DstPort: src.Port(), Proto: packet.ProtoUDP,
	}
}

// LocalAddr is what the pod sees as the client.
func (f *InFlow) LocalAddr() netip.AddrPort {
	return netip.AddrPortFrom(f.key.Dst.Netip(), f.key.DstPort)
}

// Send sends one datagram to the pod. After an ICMP error about an earlier one
// the flow is closed and the error the errno that says so: net.ErrClosed after
// Close.
func (f *InFlow) Send(data []byte) error {
	if e := syscall.Errno(f.ended.Load()); e != 0 {
		return errEnded(e)
	}
	s := f.set.stack
	buf := s.buffer()
	defer s.buffers.Put(buf)
	out := packet.UDP(buf[:packet.MaxSize], f.LocalAddr(), netip.AddrPortFrom(f.key.Src.Netip(), f.key.SrcPort), data)
	if len(out) == 0 {
		return syscall.EMSGSIZE
	}
	if f.key.Src.Is4() {
		// The client's own router would have been allowed to cut it, as far as
		// is known here: a path that is narrower than it looks does so.
		ip := header.IPv4(out[packet.VNetLen:])
		ip.SetID(uint16(s.fragmentID.Add(1)))
		ip.SetFlagsFragmentOffset(0, 0)
		ip.SetChecksum(0)
		ip.SetChecksum(^ip.CalculateChecksum())
	}
	s.counters.bytesDown.Add(uint64(len(data)))
	s.inLink.emit(out, int(f.mtu.Load()))
	return nil
}

func errEnded(e syscall.Errno) error {
	if e == syscall.ESHUTDOWN {
		return net.ErrClosed
	}
	return e
}

// Close ends the flow. A receive that is running may still be. Idempotent.
func (f *InFlow) Close() { f.end(syscall.ESHUTDOWN) }

// end closes the flow for a reason; the first one counts.
func (f *InFlow) end(why syscall.Errno) {
	if !f.ended.CompareAndSwap(0, uint32(why)) {
		return
	}
	f.set.mu.Lock()
	delete(f.set.flows, f.key)
	if h := f.set.heir; h != nil {
		h.Ended(f.key)
	}
	f.set.mu.Unlock()
	f.set.quota.Give(quota.Client(f.key.Dst.Netip()))
}

func (d *inFlows) flow(key packet.Tuple) *InFlow {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.flows[key]
}

// receive passes a pod's datagram, or those of a super-packet, to its flow;
// false: there is none.
func (d *inFlows) receive(p *packet.Packet) bool {
	f := d.flow(p.Tuple)
	if f == nil {
		return false
	}
	if !p.Partial && p.GSOSize == 0 && !verified(p) {
		d.stack.counters.drop(DropChecksum)
		return true
	}
	payload, size := p.Data(), p.GSOSize
	d.stack.counters.bytesUp.Add(uint64(len(payload)))
	if size == 0 || len(payload) == 0 {
		f.receive(payload)
		return true
	}
	for len(payload) > 0 {
		n := min(size, len(payload))
		f.receive(payload[:n])
		payload = payload[n:]
	}
	return true
}

// receiveError takes an ICMP error about a datagram of a flow; false: there is
// no such flow.
func (d *inFlows) receiveError(p *packet.Packet) bool {
	f := d.flow(p.Inner.Reverse())
	if f == nil {
		return false
	}
	why, mtu := meaning(p)
	switch {
	case why != 0:
		f.end(why)
	case mtu >= minMTU && int32(mtu) < f.mtu.Load():
		f.mtu.Store(int32(mtu)) // the next one is cut
	}
	return true
}

// minMTU is the smallest that an IPv6 path can have; what claims less lies.
const minMTU = 1280

// meaning reads an ICMP error: what ends a flow, or the path's MTU. Others, such
// as a hop limit that was exceeded, may pass.
func meaning(p *packet.Packet) (syscall.Errno, int) {
	icmp := p.IP()[p.L4:]
	is4 := p.Is4()
	switch {
	case is4 && p.ICMPType == 3 && p.ICMPCode == 4 && len(icmp) >= 8:
		return 0, int(binary.BigEndian.Uint16(icmp[6:]))
	case !is4 && p.ICMPType == 2 && len(icmp) >= 8:
		return 0, int(min(binary.BigEndian.Uint32(icmp[4:]), 65535))
	case is4 && p.ICMPType == 3 && (p.ICMPCode == 3 || p.ICMPCode == 2), !is4 && p.ICMPType == 1 && p.ICMPCode == 4:
		return syscall.ECONNREFUSED, 0
	case is4 && p.ICMPType == 3, !is4 && p.ICMPType == 1:
		return syscall.EHOSTUNREACH, 0
	}
	return 0, 0
}

// forget ends the flows of a pod.
func (d *inFlows) forget(pod netip.Addr) {
	src := packet.AddrFrom(pod)
	d.endIf(syscall.EHOSTUNREACH, func(f *InFlow) bool { return f.key.Src == src })
}

// close ends all flows; there will be no new ones.
func (d *inFlows) close() {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	d.endIf(syscall.ESHUTDOWN, func(*InFlow) bool { return true })
}

func (d *inFlows) endIf(why syscall.Errno, match func(*InFlow) bool) {
	d.mu.RLock()
	var list []*InFlow
	for _, f := range d.flows {
		if match(f) {
			list = append(list, f)
		}
	}
	d.mu.RUnlock()
	for _, f := range list {
		f.end(why)
	}
}
