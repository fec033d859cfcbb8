package packet

import "encoding/binary"

// The order here is the order a packet meets it: Parse, the IP header, the
// transport header, and last the virtio-net header, which is judged by what
// the others turned out to be.

// Offsets and lengths of the fixed headers.
const (
	ip4Len  = 20
	ip6Len  = 40
	tcpLen  = 20
	udpLen  = 8
	icmpLen = 8
	sctpLen = 12

	tcpChecksum  = 16
	udpChecksum  = 6
	icmpChecksum = 2
	sctpChecksum = 8
)

// IPv4 fragmentation field.
const (
	ip4DF         = 0x4000
	ip4MF         = 0x2000
	ip4OffsetMask = 0x1fff
)

// Parse reads the headers of p.Buf and fills the other fields. It never trusts
// a length, does not allocate, and is the only function here that may be given
// arbitrary bytes. On a fault the other fields are undefined.
//
// It changes p.Buf in three harmless ways: bytes behind the IP packet are cut
// off, the virtio-net header is brought to the form the kernel itself would
// write (hdr_len exact, unused fields zero, a super-packet of one segment
// becomes an ordinary packet), and a checksum left to hardware in a place that
// is not TCP's or UDP's own is completed.
func Parse(p *Packet) Fault {
	if len(p.Buf) <= VNetLen {
		return FaultShort
	}
	n, f := p.parseIP(p.Buf[VNetLen:])
	if f != FaultNone {
		return f
	}
	p.Buf = p.Buf[:VNetLen+n]
	return p.parseVNet()
}

// parseIP fills p from ip, which is not empty, and returns the length of the
// packet that starts there. It leaves p.Buf, GSOSize and Partial alone.
func (p *Packet) parseIP(ip []byte) (int, Fault) {
	p.L4, p.Payload, p.InnerIP, p.InnerL4 = 0, 0, 0, 0
	p.FragID, p.FragOffset, p.MoreFrag = 0, 0, false
	p.TCPFlags, p.ICMPType, p.ICMPCode = 0, 0, 0
	p.Tuple.SrcPort, p.Tuple.DstPort, p.Tuple.Zone = 0, 0, 0
	p.Kind = KindWhole
	switch ip[0] >> 4 {
	case 4:
		return p.parse4(ip)
	case 6:
		return p.parse6(ip)
	}
	return 0, FaultVersion
}

func (p *Packet) parse4(ip []byte) (int, Fault) {
	if len(ip) < ip4Len {
		return 0, FaultShort
	}
	hl := int(ip[0]&15) * 4
	total := int(binary.BigEndian.Uint16(ip[2:]))
	if hl < ip4Len || total < hl || total > len(ip) {
		return 0, FaultLength
	}
	ip = ip[:total]
	if !sound4(ip[:hl]) {
		return 0, FaultChecksum
	}
	get4(&p.Tuple.Src, ip[12:])
	get4(&p.Tuple.Dst, ip[16:])
	p.Tuple.Proto = ip[9]
	if hl > ip4Len {
		if f := checkOptions(ip[ip4Len:hl]); f != FaultNone {
			return 0, f
		}
	}
	if frag := binary.BigEndian.Uint16(ip[6:]); frag&(ip4MF|ip4OffsetMask) != 0 {
		p.FragID = uint32(binary.BigEndian.Uint16(ip[4:]))
		p.MoreFrag = frag&ip4MF != 0
		p.FragOffset = int(frag&ip4OffsetMask) * 8
		if f := p.parseFragment(total - hl); f != FaultNone || p.FragOffset > 0 {
			return total, f
		}
	}
	return total, p.parseTransport(ip, hl)
}

// parseFragment judges a fragment with n bytes of data.
func (p *Packet) parseFragment(n int) Fault {
	switch {
	case p.MoreFrag && n%8 != 0, n == 0: // RFC 791, RFC 8200 §4.5
		return FaultFragment
	case p.FragOffset+n > 65535: // the "ping of death"
		return FaultFragment
	case p.FragOffset == 8 && p.Tuple.Proto == ProtoTCP: // would overwrite the flags, RFC 3128
		return FaultFragment
	}
	p.Kind = KindFirstFragment
	if p.FragOffset > 0 {
		p.Kind = KindLaterFragment
	}
	return FaultNone
}

// checkOptions walks IPv4 options. Source routes are refused: they carry the
// packet past the destination that policy looked at.
func checkOptions(opt []byte) Fault {
	for len(opt) > 0 {
		switch opt[0] {
		case 0: // end of list
			return FaultNone
		case 1: // no operation
			opt = opt[1:]
			continue
		case 131, 137: // LSRR, SSRR
			return FaultRouting
		}
		if len(opt) < 2 || opt[1] < 2 || int(opt[1]) > len(opt) {
			return FaultOptions
		}
		opt = opt[opt[1]:]
	}
	return FaultNone
}

// parseTransport reads the transport header at off; p.Tuple.Proto is set.
func (p *Packet) parseTransport(ip []byte, off int) Fault {
	p.L4, p.Payload = off, off
	h := ip[off:]
	switch p.Tuple.Proto {
	case ProtoTCP:
		if len(h) < tcpLen {
			return FaultTransport
		}
		n := int(h[12]>>4) * 4
		if n < tcpLen || n > len(h) {
			return FaultTransport
		}
		p.setPorts(h)
		p.TCPFlags = h[13]
		p.Payload = off + n
	case ProtoUDP:
		if len(h) < udpLen {
			return FaultTransport
		}
		n := int(binary.BigEndian.Uint16(h[4:]))
		if n < udpLen || (n > len(h) && p.Kind == KindWhole) {
			return FaultTransport
		}
		p.setPorts(h)
		p.Payload = off + udpLen
	case ProtoSCTP:
		if len(h) < sctpLen {
			return FaultTransport
		}
		p.setPorts(h)
		p.Payload = off + sctpLen
	case ProtoICMP, ProtoICMPv6:
		if (p.Tuple.Proto == ProtoICMP) == (ip[0]>>4 == 4) {
			return p.parseICMP(ip, off)
		}
	}
	return FaultNone
}

func (p *Packet) setPorts(h []byte) {
	v := binary.BigEndian.Uint32(h)
	p.Tuple.SrcPort, p.Tuple.DstPort = uint16(v>>16), uint16(v)
}

// sound4 verifies the checksum of an IPv4 header. A router must (RFC 1812
// §5.2.2): an incremental update would keep a wrong one wrong, but building
// fragments from it would make it right.
func sound4(h []byte) bool {
	var sum uint64
	for ; len(h) >= 4; h = h[4:] {
		sum += uint64(binary.LittleEndian.Uint32(h))
	}
	return fold(sum) == 0xffff
}

// get4 stores an IPv4 address from a header as v4-mapped.
func get4(a *Addr, b []byte) {
	v := binary.LittleEndian.Uint32(b)
	binary.LittleEndian.PutUint64(a[:8], 0)
	binary.LittleEndian.PutUint64(a[8:], uint64(v)<<32|0xffff0000)
}
