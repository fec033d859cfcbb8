package packet

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
)

// A one's complement sum does not care in which byte order it is taken, as
// long as all of it is taken in one (RFC 1071 §2 B). Incremental updates here
// load and store little endian, which is a plain load on every machine we run
// on; full sums use gVisor's routine, which is big endian.

// fold reduces a sum of 32-bit words to 16 bits.
func fold(s uint64) uint16 {
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return uint16(s)
}

// update applies a sum of differences (new + ^old, 32-bit words) to the
// complete checksum in b, RFC 1624 equation 3.
func update(b []byte, diff uint64) {
	sum := binary.LittleEndian.Uint16(b)
	binary.LittleEndian.PutUint16(b, ^fold(uint64(^sum)+diff))
}

// updateUDP is update for UDP, where 0 says "no checksum": that stays, and a
// checksum that comes out as 0 is sent as its other representation.
func updateUDP(b []byte, diff uint64) {
	sum := binary.LittleEndian.Uint16(b)
	if sum == 0 {
		return
	}
	if sum = ^fold(uint64(^sum) + diff); sum == 0 {
		sum = 0xffff
	}
	binary.LittleEndian.PutUint16(b, sum)
}

// updatePartial applies a sum of differences to the uncomplemented
// pseudo-header sum that NEEDS_CSUM leaves in b.
func updatePartial(b []byte, diff uint64) {
	sum := binary.LittleEndian.Uint16(b)
	binary.LittleEndian.PutUint16(b, fold(uint64(sum)+diff))
}

// put32 stores v and returns its difference for update.
func put32(b []byte, v uint32) uint64 {
	old := binary.LittleEndian.Uint32(b)
	binary.LittleEndian.PutUint32(b, v)
	return uint64(v) + uint64(^old)
}

// put16 stores the big endian value v and returns its difference for update.
func put16(b []byte, v uint16) uint64 {
	old := binary.LittleEndian.Uint16(b)
	binary.BigEndian.PutUint16(b, v)
	return uint64(binary.LittleEndian.Uint16(b)) + uint64(^old)
}

// put128 stores an IPv6 address and returns its difference for update.
func put128(b []byte, a *Addr) uint64 {
	_ = b[15]
	o0, o1 := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
	n0, n1 := binary.LittleEndian.Uint64(a[:]), binary.LittleEndian.Uint64(a[8:])
	binary.LittleEndian.PutUint64(b, n0)
	binary.LittleEndian.PutUint64(b[8:], n1)
	return diff64(o0, n0) + diff64(o1, n1)
}

func diff64(o, n uint64) uint64 {
	return uint64(uint32(n)) + n>>32 + uint64(^uint32(o)) + (^o)>>32
}

// pseudo sums the pseudo-header of a transport packet of n bytes (RFC 9293
// §3.1, RFC 8200 §8.1), big endian, not complemented.
func pseudo(ip []byte, proto uint8, n int) uint16 {
	var sum uint16
	if ip[0]>>4 == 4 {
		sum = checksum.Checksum(ip[12:ip4Len], 0)
	} else {
		sum = checksum.Checksum(ip[8:ip6Len], 0)
	}
	sum = checksum.Combine(sum, uint16(proto))
	sum = checksum.Combine(sum, uint16(n>>16))
	return checksum.Combine(sum, uint16(n))
}

// seal4 writes the checksum of an IPv4 header.
func seal4(h []byte) {
	h[10], h[11] = 0, 0
	binary.BigEndian.PutUint16(h[10:], ^checksum.Checksum(h, 0))
}

// seal writes the complete transport checksum of the transport packet b, whose
// checksum field is at off, given its pseudo-header's sum.
func seal(b []byte, off int, sum uint16) {
	b[off], b[off+1] = 0, 0
	finish(b, off, sum)
}

// finish sums b, whatever its checksum field holds included, and stores the
// complement there: what hardware does for NEEDS_CSUM. Zero is written as
// 0xffff, which every protocol takes and UDP needs.
func finish(b []byte, off int, sum uint16) {
	sum = ^checksum.Checksum(b, sum)
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(b[off:], sum)
}

// Complete finishes a checksum that was left to hardware, so that the packet
// can be quoted, cut or shown. A super-packet has no checksum of its own; it
// is left alone.
func (p *Packet) Complete() {
	if !p.Partial || p.GSOSize > 0 {
		return
	}
	off := tcpChecksum
	if p.Tuple.Proto == ProtoUDP {
		off = udpChecksum
	}
	ip := p.IP()
	seal(ip[p.L4:], off, pseudo(ip, p.Tuple.Proto, len(ip)-p.L4))
	VNet{Flags: p.Buf[0] &^ VNetNeedsCsum}.Put(p.Buf)
	p.Partial = false
}
