package packet

import "encoding/binary"

// Packets whose source no peer may send from travel between nodes inside another
// IP packet, from router to router: IP-in-IP (RFC 2003, RFC 2473), both headers
// of one family.
const (
	protoIPIP = 4
	protoIPv6 = 41
	// wrapTTL marks what a router has wrapped itself: every packet of a pod or of
	// a node's processes has been through a router, which takes one off (RFC 5082).
	wrapTTL = 255
)

// WrapLen returns how many bytes Wrap puts in front of a packet.
func WrapLen(is4 bool) int {
	if is4 {
		return ip4Len
	}
	return ip6Len
}

// Wrap makes a wrapped packet of buf: room for a virtio-net header and WrapLen
// bytes, then an IP packet of the addresses' family without virtio-net header.
// Super-packets must be cut before.
func Wrap(buf []byte, src, dst *Addr) {
	clear(buf[:VNetLen])
	ip := buf[VNetLen:]
	if src.Is4() {
		clear(ip[:ip4Len])
		ip[0], ip[8], ip[9] = 0x45, wrapTTL, protoIPIP
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
		binary.BigEndian.PutUint16(ip[6:], ip4DF)
		copy(ip[12:], src[12:])
		copy(ip[16:], dst[12:])
		seal4(ip[:ip4Len])
		return
	}
	clear(ip[:ip6Len])
	ip[0], ip[6], ip[7] = 0x60, protoIPv6, wrapTTL
	binary.BigEndian.PutUint16(ip[4:], uint16(len(ip)-ip6Len))
	copy(ip[8:], src[:])
	copy(ip[24:], dst[:])
}

// Wrapped reports whether buf, with its virtio-net header, is a packet that a
// router has wrapped, and whose addresses it bears. It reads the outer header
// only.
func Wrapped(buf []byte) (src, dst Addr, ok bool) {
	if len(buf) <= VNetLen {
		return src, dst, false
	}
	ip := buf[VNetLen:]
	switch outerLen(ip) {
	case ip4Len:
		get4(&src, ip[12:])
		get4(&dst, ip[16:])
	case ip6Len:
		copy(src[:], ip[8:])
		copy(dst[:], ip[24:])
	default:
		return src, dst, false
	}
	return src, dst, true
}

// outerLen returns the length of the outer header of a wrapped packet, 0 when ip
// is none. What it accepts is what Wrap writes: no options, no fragments.
func outerLen(ip []byte) int {
	switch {
	case len(ip) > ip4Len && ip[0] == 0x45 && ip[9] == protoIPIP && ip[8] == wrapTTL:
		total := int(binary.BigEndian.Uint16(ip[2:]))
		if ip[ip4Len]>>4 == 4 && total > ip4Len && total <= len(ip) &&
			binary.BigEndian.Uint16(ip[6:])&(ip4MF|ip4OffsetMask) == 0 && sound4(ip[:ip4Len]) {
			return ip4Len
		}
	case len(ip) > ip6Len && ip[0]>>4 == 6 && ip[6] == protoIPv6 && ip[7] == wrapTTL:
		total := ip6Len + int(binary.BigEndian.Uint16(ip[4:]))
		if ip[ip6Len]>>4 == 6 && total > ip6Len && total <= len(ip) {
			return ip6Len
		}
	}
	return 0
}

// Unwrap takes the outer header off a packet that is Wrapped, in place, and
// returns the packet inside with its virtio-net header: a part of buf. It
// returns nil when the virtio-net header does not fit the packet inside.
func Unwrap(buf []byte) []byte {
	if len(buf) <= VNetLen {
		return nil
	}
	ip := buf[VNetLen:]
	n := outerLen(ip)
	var total int
	switch n {
	case ip4Len:
		total = int(binary.BigEndian.Uint16(ip[2:]))
	case ip6Len:
		total = ip6Len + int(binary.BigEndian.Uint16(ip[4:]))
	default:
		return nil
	}
	v := VNetFrom(buf)
	if v.Flags&VNetNeedsCsum != 0 || v.GSOType != GSONone {
		if int(v.ChecksumStart) < n || int(v.HdrLen) < n {
			return nil
		}
		v.ChecksumStart -= uint16(n) // not less than it, above
		v.HdrLen -= uint16(n)
	}
	v.Put(buf[n:])
	return buf[n : VNetLen+total]
}
