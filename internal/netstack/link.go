package netstack

import (
	"encoding/binary"
	"math/bits"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/netctl/netctl/internal/packet"
)

// link is a network card of gVisor's: segments of up to 64 KiB in both
// directions. There are two, which differ in who begins: the pods, whose
// packets leave by Config.Out, or the outside, for which they do by
// Config.Inbound. A connection keeps to the one that it began on.
//
// It advertises receive but not transmit checksum offload: with the latter,
// SYN-ACKs leave without any checksum and nothing in the packet says so, and no
// connection ever opens. Host GSO alone gives what the virtio-net header wants:
// data segments with the pseudo-header's sum, everything else complete.
type link struct {
	owner      *Stack
	id         tcpip.NICID
	cfgOut     func(buf []byte)
	dispatcher stack.NetworkDispatcher // set once by CreateNIC, before any packet
}

var (
	_ stack.LinkEndpoint = (*link)(nil)
	_ stack.GSOEndpoint  = (*link)(nil)
)

// MTU and the methods below implement stack.LinkEndpoint and stack.GSOEndpoint.
func (l *link) MTU() uint32                                { return uint32(l.owner.cfg.MTU) }
func (*link) SetMTU(uint32)                                {}
func (*link) MaxHeaderLength() uint16                      { return 0 }
func (*link) LinkAddress() tcpip.LinkAddress               { return "" }
func (*link) SetLinkAddress(tcpip.LinkAddress)             {}
func (l *link) IsAttached() bool                           { return l.dispatcher != nil }
func (*link) Wait()                                        {}
func (*link) Close()                                       {}
func (*link) SetOnCloseAction(func())                      {}
func (*link) AddHeader(*stack.PacketBuffer)                {}
func (*link) ParseHeader(*stack.PacketBuffer) bool         { return true }
func (*link) ARPHardwareType() header.ARPHardwareType      { return header.ARPHardwareNone }
func (*link) GSOMaxSize() uint32                           { return 65535 }
func (*link) SupportedGSO() stack.SupportedGSO             { return stack.HostGSOSupported }
func (*link) Capabilities() stack.LinkEndpointCapabilities { return stack.CapabilityRXChecksumOffload }

// out sends a packet to the router: this process', or the heir's.
func (l *link) out(buf []byte) {
	if h := l.owner.heir.Load(); h != nil {
		h.Packet(buf, l.id == nicInbound)
		return
	}
	l.cfgOut(buf)
}

// ready reports whether there is a router at the other end.
func (l *link) ready() bool { return l.cfgOut != nil || l.owner.heir.Load() != nil }

// Attach keeps the dispatcher when the stack is taken down (nil): a Write that
// is on its way then finds an interface that takes nothing, not none.
func (l *link) Attach(d stack.NetworkDispatcher) {
	if d != nil {
		l.dispatcher = d
	}
}

// WritePackets sends gVisor's segments to the router. Anything but TCP (the
// stack's own neighbour and multicast chatter) stays here.
func (l *link) WritePackets(list stack.PacketBufferList) (int, tcpip.Error) {
	buf := l.owner.buffer()
	defer l.owner.buffers.Put(buf)
	for _, pkt := range list.AsSlice() {
		if pkt.TransportProtocolNumber != header.TCPProtocolNumber {
			continue
		}
		if n := encode(buf[:], pkt); n > 0 {
			l.out(buf[:n])
		}
	}
	return list.Len(), nil
}

// encode writes virtio-net header and packet; 0 when it is no valid packet.
func encode(dst []byte, pkt *stack.PacketBuffer) int {
	n := packet.VNetLen
	for _, part := range pkt.AsSlices() {
		if len(part) > len(dst)-n {
			return 0
		}
		n += copy(dst[n:], part)
	}
	gso := &pkt.GSOOptions
	var vnet packet.VNet
	if gso.Type != stack.GSONone && gso.NeedsCsum {
		l3 := len(pkt.NetworkHeader().Slice())
		l4 := len(pkt.TransportHeader().Slice())
		vnet.Flags = packet.VNetNeedsCsum
		vnet.ChecksumStart = uint16(l3)
		vnet.ChecksumField = gso.CsumOffset
		vnet.HdrLen = uint16(l3 + l4)
		if n-packet.VNetLen-l3-l4 > int(gso.MSS) {
			vnet.GSOSize = gso.MSS
			vnet.GSOType = packet.GSOTCPv4
			if gso.Type == stack.GSOTCPv6 {
				vnet.GSOType = packet.GSOTCPv6
			}
		}
	}
	vnet.Put(dst)
	return n
}

// injectTCP copies a TCP packet into gVisor. Its IP header is replaced by one
// without options and extension headers: they mean nothing to a connection
// that ends here, and gVisor would answer some of them inside Write.
func (s *Stack) injectTCP(p *packet.Packet, on *link) {
	if !p.Partial && !verified(p) {
		s.counters.drop(DropChecksum)
		return
	}
	if p.Tuple.Dst.Netip().IsLoopback() || p.Tuple.Src.Netip().IsLoopback() {
		s.counters.drop(DropRefused) // gVisor would drop it without an answer
		s.enqueue(answer{buf: packet.Reset(make([]byte, packet.MaxError), p), on: on})
		return
	}
	segment := p.IP()[p.L4:]
	if p.Is4() {
		view := buffer.NewViewSize(header.IPv4MinimumSize + len(segment))
		b := view.AsSlice()
		copy(b, p.IP()[:header.IPv4MinimumSize])
		h := header.IPv4(b)
		h.SetHeaderLength(header.IPv4MinimumSize)
		h.SetTotalLength(uint16(len(b)))
		h.SetChecksum(0)
		h.SetChecksum(^h.CalculateChecksum())
		copy(b[header.IPv4MinimumSize:], segment)
		on.inject(header.IPv4ProtocolNumber, view)
		return
	}
	view := buffer.NewViewSize(header.IPv6MinimumSize + len(segment))
	b := view.AsSlice()
	copy(b, p.IP()[:header.IPv6MinimumSize])
	binary.BigEndian.PutUint16(b[header.IPv6PayloadLenOffset:], uint16(len(segment)))
	b[header.IPv6NextHeaderOffset] = packet.ProtoTCP
	copy(b[header.IPv6MinimumSize:], segment)
	on.inject(header.IPv6ProtocolNumber, view)
}

// inject hands gVisor a packet that it then owns.
func (l *link) inject(proto tcpip.NetworkProtocolNumber, view *buffer.View) {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(view)})
	l.dispatcher.DeliverNetworkPacket(proto, pkt)
	pkt.DecRef()
}

// verified reports whether the transport checksum of a packet with a complete
// one is right. gVisor is told not to look, because it cannot be told per
// packet, and most come with NEEDS_CSUM. The kernel has looked when it says so.
func verified(p *packet.Packet) bool {
	if packet.VNetFrom(p.Buf).Flags&packet.VNetDataValid != 0 {
		return true
	}
	ip := p.IP()
	var src, dst []byte
	if p.Is4() {
		src, dst = ip[12:16], ip[16:20]
	} else {
		src, dst = ip[8:24], ip[24:40]
	}
	l4 := ip[p.L4:]
	if p.Tuple.Proto == packet.ProtoUDP && len(l4) >= 8 && l4[6] == 0 && l4[7] == 0 {
		return p.Is4() // RFC 768: none was made; RFC 8200 §8.1: IPv6 must
	}
	var sum uint16
	if p.Tuple.Proto != packet.ProtoICMP {
		sum = pseudoSum(src, dst, p.Tuple.Proto, len(l4))
	}
	return checksum.Checksum(l4, sum) == 0xffff
}

// pseudoSum is the sum of the pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1).
func pseudoSum(src, dst []byte, proto uint8, length int) uint16 {
	sum := checksum.Checksum(src, 0)
	sum = checksum.Checksum(dst, sum)
	return add16(add16(sum, uint16(proto)), uint16(length))
}

// add16 adds in ones' complement.
func add16(a, b uint16) uint16 {
	sum, carry := bits.Add32(uint32(a)<<16, uint32(b)<<16, 0)
	return uint16(sum>>16) + uint16(carry)
}
