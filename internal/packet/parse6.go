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
