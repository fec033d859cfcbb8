package announce

import (
	"encoding/binary"
	"net/netip"
)

// The messages, with their Ethernet headers.
const (
	protoARP  = 0x0806
	protoIPv6 = 0x86dd

	ethLen  = 14
	arpLen  = 28
	ip6Len  = 40
	nsLen   = 24 // of a neighbour solicitation without options
	naLen   = 32 // of an advertisement with the link-layer address
	icmpv6  = 58
	typeNS  = 135
	typeNA  = 136
	maxHops = 255

	// maxMessage is more than any of them has: options of a solicitation are few.
	maxMessage = 256
)

// everybody are all machines of a network.
var (
	broadcast = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff} //nolint:gochecknoglobals // a constant
	allNodes  = netip.MustParseAddr("ff02::1")              //nolint:gochecknoglobals // a constant
)

// asker is who wants to know.
type asker struct {
	mac  [6]byte
	addr netip.Addr // unspecified: it asks whether it may have the address itself
}

// question reads who has asked for which address; false: that is no question, or not
// one as it should be.
func question(b []byte) (target netip.Addr, from asker, ok bool) {
	if len(b) < ethLen {
		return
	}
	body := b[ethLen:]
	switch binary.BigEndian.Uint16(b[12:]) {
	case protoARP:
		return arpQuestion(body)
	case protoIPv6:
		return solicitation(b, body)
	}
	return
}

func arpQuestion(a []byte) (target netip.Addr, from asker, ok bool) {
	if len(a) < arpLen || binary.BigEndian.Uint64(a)>>16 != 0x0001_0800_0604 || binary.BigEndian.Uint16(a[6:]) != 1 {
		return
	}
	from = asker{mac: [6]byte(a[8:14]), addr: netip.AddrFrom4([4]byte(a[14:18]))}
	target = netip.AddrFrom4([4]byte(a[24:28]))
	// A sender that says it is the target announces and does not ask.
	return target, from, from.addr != target && from.mac[0]&1 == 0
}

func solicitation(eth, p []byte) (target netip.Addr, from asker, ok bool) {
	if len(p) < ip6Len+nsLen || p[0]>>4 != 6 || p[6] != icmpv6 || p[7] != maxHops {
		return
	}
	n := int(binary.BigEndian.Uint16(p[4:]))
	if n < nsLen || n > len(p)-ip6Len {
		return
	}
	icmp := p[ip6Len : ip6Len+n]
	if icmp[0] != typeNS || icmp[1] != 0 || checksum(p[8:40], icmp) != 0 {
		return
	}
	from = asker{mac: [6]byte(eth[6:12]), addr: netip.AddrFrom16([16]byte(p[8:24]))}
	target = netip.AddrFrom16([16]byte(icmp[8:24]))
	return target, from, !from.addr.IsMulticast() && from.addr != target && !target.IsMulticast() && from.mac[0]&1 == 0
}

// answer says to who asked that we have the address.
func answer(mac [6]byte, target netip.Addr, to asker) []byte {
	if target.Is4() {
		return arp(2, mac, target, to.mac, to)
	}
	if to.addr.IsUnspecified() {
		return advertisement(mac, target, multicastMAC(allNodes), allNodes, false)
	}
	return advertisement(mac, target, to.mac, to.addr, true)
}

// announcement says to everybody that we have the address: for IPv4 as a request and
// as a reply, since some listen to the one and some to the other (RFC 5227 §3).
func announcement(mac [6]byte, a netip.Addr) [][]byte {
	if a.Is4() {
		return [][]byte{arp(1, mac, a, broadcast, asker{addr: a}), arp(2, mac, a, broadcast, asker{broadcast, a})}
	}
	return [][]byte{advertisement(mac, a, multicastMAC(allNodes), allNodes, false)}
}

func arp(op uint16, mac [6]byte, from netip.Addr, eth [6]byte, to asker) []byte {
	b := ethernet(eth, mac, protoARP, arpLen)
	a := b[ethLen:]
	copy(a, []byte{0, 1, 8, 0, 6, 4})
	binary.BigEndian.PutUint16(a[6:], op)
	copy(a[8:], mac[:])
	f, t := from.As4(), to.addr.As4()
	copy(a[14:], f[:])
	copy(a[18:], to.mac[:])
	copy(a[24:], t[:])
	return b
}

// advertisement is a neighbour advertisement that overrides what is known.
func advertisement(mac [6]byte, target netip.Addr, eth [6]byte, to netip.Addr, solicited bool) []byte {
	b := ethernet(eth, mac, protoIPv6, ip6Len+naLen)
	p := b[ethLen:]
	p[0] = 6 << 4
	binary.BigEndian.PutUint16(p[4:], naLen)
	p[6], p[7] = icmpv6, maxHops
	src, dst := target.As16(), to.As16()
	copy(p[8:], src[:])
	copy(p[24:], dst[:])
	icmp := p[ip6Len:]
	icmp[0], icmp[4] = typeNA, 0x20 // override
	if solicited {
		icmp[4] |= 0x40
	}
	copy(icmp[8:], src[:])
	icmp[24], icmp[25] = 2, 1 // the target's link-layer address, 8 bytes
	copy(icmp[26:], mac[:])
	binary.BigEndian.PutUint16(icmp[2:], checksum(p[8:40], icmp))
	return b
}

func ethernet(to, from [6]byte, proto uint16, size int) []byte {
	b := make([]byte, ethLen+size)
	copy(b, to[:])
	copy(b[6:], from[:])
	binary.BigEndian.PutUint16(b[12:], proto)
	return b
}

// checksum is ICMPv6's over the pseudo-header and the message.
func checksum(addrs, icmp []byte) uint16 {
	sum := uint32(len(icmp)) + icmpv6 // a few hundred bytes at most
	add := func(b []byte) {
		for ; len(b) >= 2; b = b[2:] {
			sum += uint32(binary.BigEndian.Uint16(b))
		}
		if len(b) == 1 {
			sum += uint32(b[0]) << 8
		}
	}
	add(addrs)
	add(icmp)
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// multicastMAC is where a network brings what is for an IPv6 group.
func multicastMAC(a netip.Addr) [6]byte {
	b := a.As16()
	return [6]byte{0x33, 0x33, b[12], b[13], b[14], b[15]}
}

// solicitedNode is the group that is asked for an address.
func solicitedNode(a netip.Addr) netip.Addr {
	b := a.As16()
	return netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 11: 1, 12: 0xff, 13: b[13], 14: b[14], 15: b[15]})
}
