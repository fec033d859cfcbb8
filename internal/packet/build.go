package packet

import (
	"encoding/binary"
	"net/netip"
)

// buildTTL is the TTL of every packet made here (the default Linux uses).
const buildTTL = 64

// start lays a virtio-net and an IP header for a transport packet of n bytes
// into dst and returns the buffer cut to size with the offset of the transport
// header in it. It returns nil when dst is too small, the families differ or
// the packet would be too long: then there is nothing to send.
func start(dst []byte, src, to Addr, proto uint8, n int) ([]byte, int) {
	hl := ip6Len
	if src.Is4() {
		hl = ip4Len
	}
	if src.Is4() != to.Is4() || VNetLen+hl+n > cap(dst) || hl+n > 65535 {
		return nil, 0
	}
	dst = dst[:VNetLen+hl+n]
	clear(dst[:VNetLen+hl])
	ip := dst[VNetLen:]
	if hl == ip6Len {
		ip[0], ip[6], ip[7] = 0x60, proto, buildTTL
		binary.BigEndian.PutUint16(ip[4:], uint16(n))
		copy(ip[8:], src[:])
		copy(ip[24:], to[:])
		return dst, VNetLen + hl
	}
	// DF with ID 0: an atomic datagram needs no identification (RFC 6864 §4.1).
	ip[0], ip[8], ip[9] = 0x45, buildTTL, proto
	binary.BigEndian.PutUint16(ip[2:], uint16(hl+n))
	binary.BigEndian.PutUint16(ip[6:], ip4DF)
	copy(ip[12:], src[12:])
	copy(ip[16:], to[12:])
	seal4(ip[:ip4Len])
	return dst, VNetLen + hl
}

// UDP builds a datagram in dst's capacity and returns it with its virtio-net
// header, checksum complete. It returns dst[:0] when dst is too small, the
// families differ or the payload is too long for one datagram.
func UDP(dst []byte, from, to netip.AddrPort, payload []byte) []byte {
	src, d := AddrFrom(from.Addr()), AddrFrom(to.Addr())
	buf, off := start(dst, src, d, ProtoUDP, udpLen+len(payload))
	if buf == nil {
		return dst[:0]
	}
	h := buf[off:]
	binary.BigEndian.PutUint16(h[0:], from.Port())
	binary.BigEndian.PutUint16(h[2:], to.Port())
	binary.BigEndian.PutUint16(h[4:], uint16(len(h)))
	copy(h[udpLen:], payload)
	seal(h, udpChecksum, pseudo(buf[VNetLen:], ProtoUDP, len(h)))
	return buf
}

// EchoHeader describes an ICMP or ICMPv6 echo message.
type EchoHeader struct {
	Src, Dst netip.Addr
	ID, Seq  uint16
	Reply    bool
}

// Echo builds an echo request or reply in dst's capacity, checksum complete;
// dst[:0] as UDP does.
func Echo(dst []byte, e EchoHeader, payload []byte) []byte {
	src, to := AddrFrom(e.Src), AddrFrom(e.Dst)
	proto, typ := uint8(ProtoICMPv6), uint8(128)
	if e.Reply {
		typ = 129
	}
	if src.Is4() {
		proto, typ = ProtoICMP, 8
		if e.Reply {
			typ = 0
		}
	}
	buf, off := start(dst, src, to, proto, icmpLen+len(payload))
	if buf == nil {
		return dst[:0]
	}
	h := buf[off:]
	h[0], h[1] = typ, 0
	binary.BigEndian.PutUint16(h[4:], e.ID)
	binary.BigEndian.PutUint16(h[6:], e.Seq)
	copy(h[icmpLen:], payload)
	sealICMP(buf[VNetLen:], off-VNetLen)
	return buf
}

// IsEcho reports whether the packet is a whole ICMP echo request or reply.
func (p *Packet) IsEcho() bool {
	if p.Kind != KindWhole || p.L4 == p.Payload || p.Is4() != (p.Tuple.Proto == ProtoICMP) {
		return false
	}
	if p.Tuple.Proto != ProtoICMP && p.Tuple.Proto != ProtoICMPv6 {
		return false
	}
	c := classify(p.Tuple.Proto, p.ICMPType)
	return c == icmpRequest || c == icmpReply
}

// EchoSeq returns the sequence number of an echo message, 0 of anything else.
func (p *Packet) EchoSeq() uint16 {
	if !p.IsEcho() {
		return 0
	}
	return binary.BigEndian.Uint16(p.IP()[p.L4+6:])
}

// Data returns what follows the transport header, of UDP as far as its own
// length says; nil when there is no transport header. Borrowed as Buf is.
func (p *Packet) Data() []byte {
	if p.L4 == 0 {
		return nil
	}
	ip := p.IP()
	if p.Tuple.Proto == ProtoUDP && p.Kind == KindWhole {
		return ip[p.Payload : p.L4+int(binary.BigEndian.Uint16(ip[p.L4+4:]))]
	}
	return ip[p.Payload:]
}

// sealICMP writes the checksum of the ICMP message at off.
func sealICMP(ip []byte, off int) {
	sum := uint16(0)
	if ip[0]>>4 == 6 {
		sum = pseudo(ip, ProtoICMPv6, len(ip)-off)
	}
	seal(ip[off:], icmpChecksum, sum)
}
