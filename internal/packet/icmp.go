package packet

import "encoding/binary"

// Unreach is why a destination cannot be reached.
type Unreach uint8

// The reasons, as ICMP and ICMPv6 codes in unreachCodes.
const (
	UnreachPort  Unreach = iota // nobody listens; what kube-proxy's REJECT sends
	UnreachHost                 // the address has no owner or cannot be reached now
	UnreachNet                  // no route
	UnreachAdmin                // policy
	unreachEnd
)

// unreachCodes are the codes of type 3 (RFC 792, RFC 1812) and of ICMPv6 type
// 1 (RFC 4443).
//
//nolint:gochecknoglobals // a table known at compile time
var unreachCodes = [unreachEnd]struct{ v4, v6 uint8 }{
	UnreachPort:  {3, 4},
	UnreachHost:  {1, 3},
	UnreachNet:   {0, 0},
	UnreachAdmin: {13, 1},
}

// An ICMP error has at most 576 bytes (RFC 1812 §4.3.2.3), an ICMPv6 error at
// most the minimum MTU (RFC 4443 §2.4 c).
const (
	maxError4 = 576
	maxError6 = 1280
)

// TooBig builds the error for a packet that is bigger than the next link's
// mtu: ICMP fragmentation needed (RFC 1191) or ICMPv6 packet too big.
//
// Like every error builder here it writes into dst's capacity (MaxError is
// always enough) and returns the packet with its virtio-net header, or dst[:0]
// when nothing may or can be sent: see AnswersError; dst too small; from not of
// orig's family. It quotes orig as it is now, so call it before Apply.
func TooBig(dst []byte, orig *Packet, from Addr, mtu int) []byte {
	if orig.Is4() {
		return icmpErrorTo(dst, orig, from, icmpHead{3, 4, uint32(min(max(mtu, 0), 0xffff))})
	}
	return icmpErrorTo(dst, orig, from, icmpHead{2, 0, uint32(max(mtu, 0))})
}

// Unreachable builds an ICMP destination unreachable, as TooBig does.
func Unreachable(dst []byte, orig *Packet, from Addr, code Unreach) []byte {
	if code >= unreachEnd {
		return dst[:0]
	}
	if orig.Is4() {
		return icmpErrorTo(dst, orig, from, icmpHead{3, unreachCodes[code].v4, 0})
	}
	return icmpErrorTo(dst, orig, from, icmpHead{1, unreachCodes[code].v6, 0})
}

// TimeExceeded builds an ICMP "TTL exceeded in transit", as TooBig does.
func TimeExceeded(dst []byte, orig *Packet, from Addr) []byte {
	if orig.Is4() {
		return icmpErrorTo(dst, orig, from, icmpHead{11, 0, 0})
	}
	return icmpErrorTo(dst, orig, from, icmpHead{3, 0, 0})
}

// icmpHead is what the first eight bytes of an ICMP error say.
type icmpHead struct {
	typ, code uint8
	rest      uint32
}

func icmpErrorTo(dst []byte, orig *Packet, from Addr, e icmpHead) []byte {
	if !AnswersError(orig) || from.Is4() != orig.Is4() {
		return dst[:0]
	}
	proto, room := uint8(ProtoICMPv6), maxError6-ip6Len-icmpLen
	if orig.Is4() {
		proto, room = ProtoICMP, maxError4-ip4Len-icmpLen
	}
	quote := orig.IP()
	quote = quote[:min(len(quote), room)]
	buf, off := start(dst, from, orig.Tuple.Src, proto, icmpLen+len(quote))
	if buf == nil {
		return dst[:0]
	}
	h := buf[off:]
	h[0], h[1] = e.typ, e.code
	binary.BigEndian.PutUint32(h[4:], e.rest)
	copy(h[icmpLen:], quote)
	sealICMP(buf[VNetLen:], off-VNetLen)
	return buf
}

// AnswersError reports whether an ICMP error about orig may be sent at all
// (RFC 1122 §3.2.2, RFC 1812 §4.3.2.7, RFC 4443 §2.4 e): never about an ICMP
// error or redirect, a later fragment, a packet to more than one receiver, or
// from an address that is not one host's. Subnet broadcasts cannot be told.
func AnswersError(orig *Packet) bool {
	switch orig.Kind {
	case KindWhole, KindFirstFragment:
	case KindNone, KindLaterFragment, KindICMPError:
		return false
	}
	if p := orig.Tuple.Proto; orig.Payload > orig.L4 {
		if p == ProtoICMP && orig.Is4() && (orig.ICMPType == 5 || classify(p, orig.ICMPType) == icmpError) {
			return false
		}
		if p == ProtoICMPv6 && !orig.Is4() && (orig.ICMPType < 128 || orig.ICMPType == 137) {
			return false
		}
	}
	return answersFrom(orig)
}

// answersFrom reports whether the addresses of orig are those of two hosts.
func answersFrom(orig *Packet) bool {
	src, dst := orig.Tuple.Src, orig.Tuple.Dst
	return src.unicast() && !src.Netip().IsLoopback() && dst.unicast()
}

// unicast reports whether a can be the address of one host.
func (a Addr) unicast() bool {
	if a.Is4() {
		return a[12] != 0 && a[12] < 224 // 0/8, multicast, class E and broadcast
	}
	return a[0] != 0xff && a != Addr{}
}
