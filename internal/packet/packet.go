package packet

import (
	"encoding/binary"
	"net/netip"
	"strconv"
)

// Sizes every buffer of the datapath is made from.
const (
	// VNetLen is the length of the virtio-net header in front of every packet.
	VNetLen = 10
	// MaxSize is the size of a buffer that holds any (super-)packet: IPv4's
	// total length field is 16 bits, and IPv6 jumbograms are refused.
	MaxSize = VNetLen + 65535
	// MaxError is the size of a buffer that holds any error built here: an
	// ICMPv6 error may not exceed the minimum IPv6 MTU (RFC 4443 §2.4 c).
	MaxError = VNetLen + 1280
)

// Protocol numbers of the transports that have a meaning here.
const (
	ProtoICMP   = 1
	ProtoTCP    = 6
	ProtoUDP    = 17
	ProtoICMPv6 = 58
	ProtoSCTP   = 132
)

// TCP flag bits, as in Packet.TCPFlags.
const (
	TCPFin = 1 << iota
	TCPSyn
	TCPRst
	TCPPsh
	TCPAck
	TCPUrg
	TCPEce
	TCPCwr
)

// Addr is an IPv4 (as v4-mapped) or IPv6 address without a pointer, so that it
// can live in tables the garbage collector does not walk. The zero value is
// the IPv6 unspecified address.
type Addr [16]byte

// AddrFrom converts a valid netip address; zones are dropped, an invalid
// address becomes the zero Addr.
func AddrFrom(a netip.Addr) Addr {
	if !a.IsValid() {
		return Addr{}
	}
	return a.As16()
}

// Netip returns the address, IPv4 unmapped.
func (a Addr) Netip() netip.Addr { return netip.AddrFrom16(a).Unmap() }

// Is4 reports whether a holds an IPv4 address. Parse refuses IPv6 headers with
// v4-mapped addresses, so the two families can never be taken for each other.
func (a Addr) Is4() bool {
	return binary.LittleEndian.Uint64(a[:]) == 0 && binary.LittleEndian.Uint32(a[8:]) == 0xffff0000
}

// String formats the address for people.
func (a Addr) String() string { return a.Netip().String() }

// Tuple names a flow in one direction. It is comparable and pointer-free.
//
// Ports are zero for protocols without ports. An ICMP echo request carries its
// identifier as SrcPort and zero as DstPort, a reply the other way round, so
// that Reverse of a request's tuple is the tuple of its reply.
//
// Zone is not in the packet: Parse sets it to zero, and the router gives other
// numbers to packets that reach it by ways on which equal tuples can be different
// flows.
type Tuple struct {
	Src, Dst         Addr
	SrcPort, DstPort uint16
	Zone             uint16
	Proto            uint8
}

// Reverse returns the tuple of the answering direction, in zone zero.
func (t Tuple) Reverse() Tuple {
	return Tuple{Src: t.Dst, Dst: t.Src, SrcPort: t.DstPort, DstPort: t.SrcPort, Proto: t.Proto}
}

// String formats the tuple for people: "10.0.0.1:53 > 10.0.0.2:4000 proto 17".
func (t Tuple) String() string {
	src := netip.AddrPortFrom(t.Src.Netip(), t.SrcPort)
	dst := netip.AddrPortFrom(t.Dst.Netip(), t.DstPort)
	return src.String() + " > " + dst.String() + " proto " + strconv.Itoa(int(t.Proto))
}

// Kind says which part of a conversation a packet is.
type Kind uint8

// The kinds. KindNone is the zero value of a packet that was not parsed.
const (
	KindNone          Kind = iota
	KindWhole              // a whole packet (or super-packet), ports known
	KindFirstFragment      // first fragment, ports known
	KindLaterFragment      // any other fragment, ports zero, L4 zero
	KindICMPError          // Tuple = outer addresses, Inner = the quoted packet
)

// String names the kind.
func (k Kind) String() string {
	switch k {
	case KindNone:
		return "none"
	case KindWhole:
		return "whole"
	case KindFirstFragment:
		return "first_fragment"
	case KindLaterFragment:
		return "later_fragment"
	case KindICMPError:
		return "icmp_error"
	}
	return "invalid"
}

// FragKey names the datagram a fragment belongs to: what a table that lets
// later fragments follow the first one is keyed by. IPv4 counts the protocol
// in (RFC 791), IPv6 does not (RFC 8200 §4.5), so Proto is zero there.
type FragKey struct {
	Src, Dst Addr
	ID       uint32
	Proto    uint8
}

// Packet is a packet and what Parse found out about it. All offsets count from
// the start of the IP header. The zero value with Buf set is ready for Parse;
// a Packet may be parsed again and again. Not safe for concurrent use.
type Packet struct {
	// Buf is the virtio-net header and the IP packet, borrowed from the port
	// that read it. Parse trims bytes behind the IP packet's end.
	Buf []byte

	Tuple Tuple
	Inner Tuple // the quoted packet; only valid for KindICMPError

	L4      int // transport header; 0 when there is none (later fragments)
	Payload int // first byte behind the transport header; 0 when L4 is 0
	InnerIP int // quoted IP header; 0 unless KindICMPError
	InnerL4 int // quoted transport header; 0 when it was not quoted
	GSOSize int // payload bytes per segment of a super-packet, else 0

	FragID     uint32 // identification of a fragment
	FragOffset int    // offset of a fragment in bytes

	Kind     Kind
	TCPFlags uint8 // zero unless TCP
	ICMPType uint8 // zero unless ICMP
	ICMPCode uint8
	MoreFrag bool // more fragments follow
	Partial  bool // NEEDS_CSUM: the transport checksum is only the pseudo-header's sum
}

// IP returns the packet without its virtio-net header.
func (p *Packet) IP() []byte { return p.Buf[VNetLen:] }

// Is4 reports whether the packet is IPv4. Only after a successful Parse.
func (p *Packet) Is4() bool { return p.Buf[VNetLen]>>4 == 4 }

// Fragment returns the key of the datagram this fragment belongs to, made of
// the addresses it has now: call it before Apply.
func (p *Packet) Fragment() FragKey {
	k := FragKey{Src: p.Tuple.Src, Dst: p.Tuple.Dst, ID: p.FragID}
	if p.Is4() {
		k.Proto = p.Tuple.Proto
	}
	return k
}
