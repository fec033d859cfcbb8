package packet

import (
	"encoding/binary"
	"math/bits"
)

// Rewrite is the tuple a packet shall leave with. Its addresses must be of the
// packet's own family. For ICMP echo the ports follow Tuple: the identifier is
// SrcPort of a request and DstPort of a reply.
type Rewrite struct {
	Src, Dst         Addr
	SrcPort, DstPort uint16
}

// Apply gives the packet the rewrite's addresses and ports, and p.Tuple with
// it. Checksums change incrementally; with NEEDS_CSUM only the pseudo-header's
// part, without the ports; a UDP checksum of 0 stays 0. Later fragments and
// protocols without ports get the addresses only. Of an ICMP error only the
// outer addresses change: see ApplyICMPError. No allocation.
//
// SCTP's CRC covers the whole datagram, so the ports of an SCTP first fragment
// cannot be changed correctly: the receiver will drop it.
func (p *Packet) Apply(rw *Rewrite) {
	ip := p.Buf[VNetLen:]
	diff := putAddrs(ip, &rw.Src, &rw.Dst)
	p.Tuple.Src, p.Tuple.Dst = rw.Src, rw.Dst
	if p.L4 == 0 {
		return
	}
	h := ip[p.L4:]
	switch p.Tuple.Proto {
	case ProtoTCP:
		if p.Partial {
			p.putPorts(h, rw)
			updatePartial(h[tcpChecksum:], diff)
			return
		}
		update(h[tcpChecksum:], diff+p.putPorts(h, rw))
	case ProtoUDP:
		if p.Partial {
			p.putPorts(h, rw)
			updatePartial(h[udpChecksum:], diff)
			return
		}
		updateUDP(h[udpChecksum:], diff+p.putPorts(h, rw))
	case ProtoSCTP:
		p.applySCTP(h, rw)
	case ProtoICMP, ProtoICMPv6:
		p.applyICMP(h, rw, diff)
	}
}

// putAddrs writes the addresses, keeps the IPv4 header checksum right and
// returns the difference for the transport checksum.
func putAddrs(ip []byte, src, dst *Addr) uint64 {
	if ip[0]>>4 == 4 {
		_ = ip[19]
		diff := put32(ip[12:], binary.LittleEndian.Uint32(src[12:])) +
			put32(ip[16:], binary.LittleEndian.Uint32(dst[12:]))
		update(ip[10:], diff)
		return diff
	}
	_ = ip[39]
	return put128(ip[8:], src) + put128(ip[24:], dst)
}

func (p *Packet) putPorts(h []byte, rw *Rewrite) uint64 {
	p.Tuple.SrcPort, p.Tuple.DstPort = rw.SrcPort, rw.DstPort
	return putPorts(h, rw)
}

func putPorts(h []byte, rw *Rewrite) uint64 {
	return put32(h, bits.ReverseBytes32(uint32(rw.SrcPort)<<16|uint32(rw.DstPort)))
}

// applyICMP finishes Apply for ICMP and ICMPv6; diff is that of the addresses,
// which only ICMPv6 sums.
func (p *Packet) applyICMP(h []byte, rw *Rewrite, diff uint64) {
	is4 := p.Is4()
	if is4 != (p.Tuple.Proto == ProtoICMP) {
		return // the other family's protocol number: opaque
	}
	if is4 {
		diff = 0
	}
	switch classify(p.Tuple.Proto, p.ICMPType) {
	case icmpRequest:
		diff += put16(h[4:], rw.SrcPort)
		p.Tuple.SrcPort = rw.SrcPort
	case icmpReply:
		diff += put16(h[4:], rw.DstPort)
		p.Tuple.DstPort = rw.DstPort
	case icmpError, icmpOther:
	}
	update(h[icmpChecksum:], diff)
}

// ApplyICMPError translates an ICMP error (RFC 5508 §4.2): outerSrc and
// outerDst replace the addresses of the error itself, inner the tuple of the
// packet it quotes, in the quoted packet's own direction. Every checksum that
// was quoted is carried along, then the error's own. p.Tuple and p.Inner are
// updated. On another kind of packet only the outer addresses change.
func (p *Packet) ApplyICMPError(outerSrc, outerDst Addr, inner *Rewrite) {
	if p.Kind != KindICMPError {
		p.Apply(&Rewrite{outerSrc, outerDst, p.Tuple.SrcPort, p.Tuple.DstPort})
		return
	}
	ip := p.IP()
	diff := putAddrs(ip, &outerSrc, &outerDst)
	p.Tuple.Src, p.Tuple.Dst = outerSrc, outerDst
	q := ip[p.InnerIP:]
	before := binary.LittleEndian.Uint16(q[10:])
	addrs := putAddrs(q, &inner.Src, &inner.Dst)
	if p.Is4() { // ICMP sums no pseudo-header, but the quoted header's checksum
		diff = uint64(^before) + uint64(binary.LittleEndian.Uint16(q[10:]))
	}
	diff += addrs
	p.Inner.Src, p.Inner.Dst = inner.Src, inner.Dst
	if p.InnerL4 > 0 {
		diff += p.applyQuoted(ip[p.InnerL4:], inner, addrs)
	}
	update(ip[p.L4+icmpChecksum:], diff)
}

// applyQuoted rewrites the quoted transport header, of which eight bytes or
// more are there, and returns all differences it made.
func (p *Packet) applyQuoted(h []byte, rw *Rewrite, addrs uint64) uint64 {
	var field int
	var ports uint64
	switch p.Inner.Proto {
	case ProtoTCP:
		field, ports = tcpChecksum, p.putQuoted(h, rw)
	case ProtoUDP:
		field, ports = udpChecksum, p.putQuoted(h, rw)
	case ProtoSCTP: // the CRC of a cut packet cannot be kept; nobody checks it
		return p.putQuoted(h, rw)
	case ProtoICMP, ProtoICMPv6:
		if p.Is4() != (p.Inner.Proto == ProtoICMP) {
			return 0
		}
		if p.Is4() {
			addrs = 0
		}
		switch field = icmpChecksum; classify(p.Inner.Proto, h[0]) {
		case icmpRequest:
			ports = put16(h[4:], rw.SrcPort)
			p.Inner.SrcPort = rw.SrcPort
		case icmpReply:
			ports = put16(h[4:], rw.DstPort)
			p.Inner.DstPort = rw.DstPort
		case icmpError, icmpOther:
		}
	default:
		return 0
	}
	if field+2 > len(h) {
		return ports
	}
	before := binary.LittleEndian.Uint16(h[field:])
	if p.Inner.Proto == ProtoUDP {
		updateUDP(h[field:], addrs+ports)
	} else {
		update(h[field:], addrs+ports)
	}
	return ports + uint64(^before) + uint64(binary.LittleEndian.Uint16(h[field:]))
}

func (p *Packet) putQuoted(h []byte, rw *Rewrite) uint64 {
	p.Inner.SrcPort, p.Inner.DstPort = rw.SrcPort, rw.DstPort
	return putPorts(h, rw)
}
