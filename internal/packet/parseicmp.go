package packet

import "encoding/binary"

// quotedLen is how much of the transport header an ICMP error quotes at least.
const quotedLen = 8

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
	var later bool
	var n int
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
