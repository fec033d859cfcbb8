package packet

import "encoding/binary"

// IPv6 extension headers that are walked through. Everything else ends the
// chain and counts as the transport, AH included: nothing behind it may be
// rewritten anyway.
const (
	extHopByHop    = 0
	extRouting     = 43
	extFragment    = 44
	extDestination = 60
)

// maxExtensions bounds the walk: RFC 8200 §4.1 names at most seven headers,
// destination options counted twice.
const maxExtensions = 8

// quotedLen is how much of the transport header an ICMP error quotes at least.
const quotedLen = 8

func (p *Packet) parse6(ip []byte) (int, Fault) {
	if len(ip) < ip6Len {
		return 0, FaultShort
	}
	total := ip6Len + int(binary.BigEndian.Uint16(ip[4:]))
	if total > len(ip) || total > 65535 {
		return 0, FaultLength
	}
	ip = ip[:total]
	copy(p.Tuple.Src[:], ip[8:])
	copy(p.Tuple.Dst[:], ip[24:])
	if p.Tuple.Src.Is4() || p.Tuple.Dst.Is4() {
		return 0, FaultAddress
	}
	proto := ip[6]
	p.Tuple.Proto = proto
	if proto == ProtoTCP || proto == ProtoUDP {
		return total, p.parseTransport(ip, ip6Len)
	}
	c, f := walk(ip)
	if f != FaultNone {
		return 0, f
	}
	p.Tuple.Proto = c.proto
	if c.fragment > 0 {
		field := binary.BigEndian.Uint16(ip[c.fragment+2:])
		p.FragID = binary.BigEndian.Uint32(ip[c.fragment+4:])
		p.FragOffset = int(field &^ 7)
		p.MoreFrag = field&1 != 0
		if p.FragOffset > 0 || p.MoreFrag { // else atomic (RFC 6946): a whole packet
			if f := p.parseFragment(total - c.fragment - 8); f != FaultNone || p.FragOffset > 0 {
				return total, f
			}
		}
	}
	return total, p.parseTransport(ip, c.off)
}

// chain is where a walk through IPv6 extension headers ended.
type chain struct {
	off      int   // the transport header
	fragment int   // the fragment header, 0: none
	proto    uint8 // what the transport is
}

// walk follows the extension headers of ip, which holds at least the IPv6
// header. Of a later fragment it stops behind the fragment header. The result's
// off is within ip.
func walk(ip []byte) (chain, Fault) {
	c := chain{off: ip6Len, proto: ip[6]}
	for range maxExtensions {
		h := ip[c.off:]
		switch c.proto {
		case extHopByHop, extDestination, extRouting, extFragment:
			if len(h) < 8 {
				return c, FaultExtension
			}
		default:
			return c, FaultNone
		}
		n := 8
		switch c.proto {
		case extHopByHop:
			if c.off != ip6Len { // RFC 8200 §4.1: only first
				return c, FaultExtension
			}
			n += int(h[1]) * 8
		case extDestination:
			n += int(h[1]) * 8
		case extRouting:
			if h[3] != 0 { // segments left: the real destination is elsewhere
				return c, FaultRouting
			}
			n += int(h[1]) * 8
		case extFragment:
			if c.fragment > 0 {
				return c, FaultExtension
			}
			c.fragment = c.off
			if binary.BigEndian.Uint16(h[2:])&^7 != 0 {
				c.proto, c.off = h[0], c.off+n
				return c, FaultNone
			}
		}
		if n > len(h) {
			return c, FaultExtension
		}
		c.proto, c.off = h[0], c.off+n
	}
	return c, FaultExtension
}

// parseICMP reads the ICMP or ICMPv6 message at off.
func (p *Packet) parseICMP(ip []byte, off int) Fault {
	h := ip[off:]
	if len(h) < icmpLen {
		return FaultTransport
	}
	p.ICMPType, p.ICMPCode = h[0], h[1]
	p.Payload = off + icmpLen
	switch classify(p.Tuple.Proto, h[0]) {
	case icmpRequest:
		p.Tuple.SrcPort = binary.BigEndian.Uint16(h[4:])
	case icmpReply:
		p.Tuple.DstPort = binary.BigEndian.Uint16(h[4:])
	case icmpError:
		if p.Kind == KindWhole {
			p.Kind = KindICMPError
			return p.parseQuote(ip, off+icmpLen)
		}
	case icmpOther:
	}
	return FaultNone
}

// icmpClass is what an ICMP type means to a router.
type icmpClass uint8

const (
	icmpOther icmpClass = iota
	icmpRequest
	icmpReply
	icmpError // quotes a packet
)

func classify(proto, typ uint8) icmpClass {
	if proto == ProtoICMP {
		switch typ {
		case 8:
			return icmpRequest
		case 0:
			return icmpReply
		case 3, 4, 11, 12: // a redirect (5) is none of a translated flow's business
			return icmpError
		}
		return icmpOther
	}
	switch typ {
	case 128:
		return icmpRequest
	case 129:
		return icmpReply
	case 1, 2, 3, 4:
		return icmpError
	}
	return icmpOther
}

// parseQuote reads the packet quoted at off by an ICMP error. It is usually
// cut off, so its own length counts for nothing.
func (p *Packet) parseQuote(ip []byte, off int) Fault {
	q := ip[off:]
	p.InnerIP = off
	p.Inner = Tuple{}
	later := false
	n := 0
	if ip[0]>>4 == 4 {
		if len(q) < ip4Len || q[0]>>4 != 4 {
			return FaultQuote
		}
		n = int(q[0]&15) * 4
		if n < ip4Len || n > len(q) {
			return FaultQuote
		}
		get4(&p.Inner.Src, q[12:])
		get4(&p.Inner.Dst, q[16:])
		p.Inner.Proto = q[9]
		later = binary.BigEndian.Uint16(q[6:])&ip4OffsetMask != 0
	} else {
		if len(q) < ip6Len || q[0]>>4 != 6 {
			return FaultQuote
		}
		copy(p.Inner.Src[:], q[8:])
		copy(p.Inner.Dst[:], q[24:])
		c, f := walk(q)
		if f != FaultNone || p.Inner.Src.Is4() || p.Inner.Dst.Is4() {
			return FaultQuote
		}
		p.Inner.Proto, n = c.proto, c.off
		later = c.fragment > 0 && binary.BigEndian.Uint16(q[c.fragment+2:])&^7 != 0
	}
	if later {
		return FaultNone
	}
	return p.parseQuotedPorts(q[n:], off+n)
}

// parseQuotedPorts reads the eight bytes of transport header that every ICMP
// error quotes (RFC 792); more than them is not needed.
func (p *Packet) parseQuotedPorts(h []byte, off int) Fault {
	switch p.Inner.Proto {
	case ProtoTCP, ProtoUDP, ProtoSCTP:
		if len(h) < quotedLen {
			return FaultQuote
		}
		v := binary.BigEndian.Uint32(h)
		p.Inner.SrcPort, p.Inner.DstPort = uint16(v>>16), uint16(v)
	case ProtoICMP, ProtoICMPv6:
		if (p.Inner.Proto == ProtoICMP) != p.Inner.Src.Is4() {
			break // a protocol without meaning in this family
		}
		if len(h) < icmpLen {
			return FaultQuote
		}
		switch classify(p.Inner.Proto, h[0]) {
		case icmpRequest:
			p.Inner.SrcPort = binary.BigEndian.Uint16(h[4:])
		case icmpReply:
			p.Inner.DstPort = binary.BigEndian.Uint16(h[4:])
		case icmpError, icmpOther:
		}
	}
	p.InnerL4 = off
	return FaultNone
}
