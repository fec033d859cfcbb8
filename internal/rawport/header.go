package rawport

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/netctl/netctl/internal/packet"
)

const (
	header4, header6 = 20, 40
	tcpChecksum      = 16
	udpChecksum      = 6
	tcpCwr           = 0x80
	dontFragment     = 0x4000
	fragmentHeader   = 8
	protoFragment    = 44
)

// header is what is known of an IPv6 header that the kernel has taken off.
type header struct {
	src, dst           [16]byte
	proto, hops, class uint8
}

// note takes a control message in.
func (h *header) note(kind int, data []byte) {
	switch {
	case kind == unix.IPV6_PKTINFO && len(data) >= len(h.dst):
		h.dst = [16]byte(data)
	case kind == unix.IPV6_HOPLIMIT && len(data) >= 4:
		h.hops = uint8(binary.NativeEndian.Uint32(data))
	case kind == unix.IPV6_TCLASS && len(data) >= 4:
		h.class = uint8(binary.NativeEndian.Uint32(data))
	}
}

// put writes the header of a packet with n bytes behind it.
func (h *header) put(ip []byte, n int) {
	clear(ip[:header6])
	binary.BigEndian.PutUint16(ip, 6<<12|uint16(h.class)<<4)
	binary.BigEndian.PutUint16(ip[4:], uint16(n))
	ip[6], ip[7] = h.proto, h.hops
	copy(ip[8:], h.src[:])
	copy(ip[24:], h.dst[:])
}

// describe writes the virtio-net header, which raw sockets do not give. A
// checksum that is the pseudo-header's sum was left to hardware, or is what the
// kernel leaves in packets that it has merged; the size of their segments is
// forgotten, so they are cut to what fits. false: there is no sense in the packet.
func describe(buf []byte, mtu int) bool {
	packet.VNet{}.Put(buf)
	ip := buf[packet.VNetLen:]
	if len(ip) < header4 {
		return false
	}
	l4, proto := header6, uint8(0)
	if ip[0]>>4 == 4 {
		l4, proto = int(ip[0]&15)*4, ip[9]
	} else if len(ip) >= header6 {
		proto = ip[6]
	}
	field, least := tcpChecksum, header4
	switch proto {
	case packet.ProtoTCP:
	case packet.ProtoUDP:
		field, least = udpChecksum, fragmentHeader
	default:
		return true
	}
	if len(ip) < l4+least {
		return false
	}
	h := ip[l4:]
	if binary.BigEndian.Uint16(h[field:]) != pseudo(ip, proto, len(h)) {
		return true
	}
	v := packet.VNet{Flags: packet.VNetNeedsCsum, ChecksumStart: uint16(l4), ChecksumField: uint16(field)}
	if proto == packet.ProtoTCP && len(ip) > mtu {
		merged(&v, ip, l4, mtu)
	}
	v.Put(buf)
	return true
}

// merged describes a TCP packet that the kernel has put together.
func merged(v *packet.VNet, ip []byte, l4, mtu int) {
	h := ip[l4:]
	head := l4 + int(h[12]>>4)*4
	if head >= mtu {
		return
	}
	v.GSOType, v.HdrLen, v.GSOSize = packet.GSOTCPv4, uint16(head), uint16(mtu-head)
	if ip[0]>>4 == 6 {
		v.GSOType = packet.GSOTCPv6
	}
	if h[13]&tcpCwr != 0 {
		v.GSOType |= packet.GSOECN
	}
}

// pseudo sums the pseudo-header of a transport packet of n bytes.
func pseudo(ip []byte, proto uint8, n int) uint16 {
	addrs := ip[12:header4]
	if ip[0]>>4 == 6 {
		addrs = ip[8:header6]
	}
	return sum(addrs, uint32(proto)+uint32(n))
}

func sum(b []byte, s uint32) uint16 {
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	s = s>>16 + s&0xffff
	return uint16(s>>16 + s)
}

// refragment delivers a datagram that the kernel has put together of fragments,
// and that its pod can only be given in such.
func refragment(buf []byte, mtu int, id uint32, out func([]byte)) {
	var p packet.Packet
	p.Buf = buf
	if packet.Parse(&p) != packet.FaultNone || p.GSOSize > 0 {
		return
	}
	p.Complete()
	ip := p.IP()
	if p.Is4() {
		// The router cuts it, which its own mark must not forbid.
		binary.BigEndian.PutUint16(ip[6:], binary.BigEndian.Uint16(ip[6:])&^dontFragment)
		h := ip[:int(ip[0]&15)*4]
		h[10], h[11] = 0, 0
		binary.BigEndian.PutUint16(h[10:], ^sum(h, 0))
		out(p.Buf)
		return
	}
	fragment6(ip, mtu, id, out)
}

// fragment6 cuts an IPv6 datagram (RFC 8200 §4.5).
func fragment6(ip []byte, mtu int, id uint32, out func([]byte)) {
	const room = packet.VNetLen + header6 + fragmentHeader
	data := ip[header6:]
	size := (mtu - header6 - fragmentHeader) &^ 7
	piece := make([]byte, room+size)
	for off := 0; off < len(data); off += size {
		n := min(size, len(data)-off)
		one := piece[:room+n]
		packet.VNet{}.Put(one)
		h := one[packet.VNetLen:]
		copy(h, ip[:header6])
		binary.BigEndian.PutUint16(h[4:], uint16(fragmentHeader+n))
		f := h[header6:]
		f[0], f[1], h[6] = h[6], 0, protoFragment
		more := uint16(0)
		if off+n < len(data) {
			more = 1
		}
		binary.BigEndian.PutUint16(f[2:], uint16(off)|more)
		binary.BigEndian.PutUint32(f[4:], id)
		copy(f[fragmentHeader:], data[off:off+n])
		out(one)
	}
}
