// Package packettest makes packets for tests and checks them, in the slowest
// and plainest way: it is the twin that the fast code of package packet is
// compared with, and therefore shares no code with it.
//
// Spec.Build writes a packet with its virtio-net header; Check says whether all
// checksums and lengths of one are right.
package packettest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net/netip"
)

// VNetLen is the length of the virtio-net header.
const VNetLen = 10

// Spec describes a packet. The zero value of every field but the addresses is
// fine; Proto 0 is UDP.
type Spec struct {
	Src, Dst netip.AddrPort // ports: TCP, UDP, SCTP; Src's is the identifier of an echo
	Proto    uint8
	Payload  []byte

	Flags      uint8 // TCP
	Seq, Ack   uint32
	TCPOptions []byte // multiple of 4

	ICMPType, ICMPCode uint8
	ICMPRest           uint16 // last two bytes of the ICMP header (sequence number)

	TTL, TOS  uint8  // TTL 0: 64
	ID        uint16 // IPv4
	DF        bool   // IPv4
	IPOptions []byte // IPv4, multiple of 4
	Ext       []byte // IPv6: extension headers; the last one's next header is patched
	ExtFirst  uint8  // protocol number of the first of them

	GSOSize int  // super-packet
	Partial bool // NEEDS_CSUM; implied by GSOSize
	NoUDP   bool // UDP without checksum (0)
}

// Build returns the packet with its virtio-net header.
func (s Spec) Build() []byte {
	if s.Proto == 0 {
		s.Proto = 17
	}
	if s.TTL == 0 {
		s.TTL = 64
	}
	l4 := s.transport()
	head := s.header(len(l4))
	ip := append(head, l4...)
	partial := s.Partial || s.GSOSize > 0
	s.checksums(ip, len(head), partial)
	vnet := make([]byte, VNetLen)
	if partial {
		field := map[uint8]uint16{6: 16, 17: 6}[s.Proto]
		vnet[0] = 1
		binary.LittleEndian.PutUint16(vnet[6:], uint16(len(head)))
		binary.LittleEndian.PutUint16(vnet[8:], field)
	}
	if s.GSOSize > 0 {
		vnet[1] = s.gsoType()
		binary.LittleEndian.PutUint16(vnet[2:], uint16(len(ip)-len(s.Payload)))
		binary.LittleEndian.PutUint16(vnet[4:], uint16(s.GSOSize))
	}
	return append(vnet, ip...)
}

func (s Spec) gsoType() uint8 {
	switch {
	case s.Proto == 17:
		return 5
	case s.Flags&0x80 != 0 && s.Src.Addr().Is4():
		return 0x81
	case s.Flags&0x80 != 0:
		return 0x84
	case s.Src.Addr().Is4():
		return 1
	}
	return 4
}

func (s Spec) transport() []byte {
	b := []byte{}
	put16 := func(v uint16) { b = binary.BigEndian.AppendUint16(b, v) }
	put32 := func(v uint32) { b = binary.BigEndian.AppendUint32(b, v) }
	switch s.Proto {
	case 6:
		put16(s.Src.Port())
		put16(s.Dst.Port())
		put32(s.Seq)
		put32(s.Ack)
		b = append(b, uint8(20+len(s.TCPOptions))/4<<4, s.Flags)
		put16(0x1234)
		put32(0)
		b = append(b, s.TCPOptions...)
	case 17:
		put16(s.Src.Port())
		put16(s.Dst.Port())
		put16(uint16(8 + len(s.Payload)))
		put16(0)
	case 132:
		put16(s.Src.Port())
		put16(s.Dst.Port())
		put32(0xfeedbeef)
		put32(0)
	case 1, 58:
		b = append(b, s.ICMPType, s.ICMPCode, 0, 0)
		put16(s.Src.Port())
		put16(s.ICMPRest)
	}
	return append(b, s.Payload...)
}

func (s Spec) header(n int) []byte {
	src, dst := s.Src.Addr().AsSlice(), s.Dst.Addr().AsSlice()
	if s.Src.Addr().Is4() {
		hl := 20 + len(s.IPOptions)
		b := []byte{0x40 | uint8(hl/4), s.TOS, 0, 0, 0, 0, 0, 0, s.TTL, s.Proto, 0, 0}
		binary.BigEndian.PutUint16(b[2:], uint16(hl+n))
		binary.BigEndian.PutUint16(b[4:], s.ID)
		if s.DF {
			b[6] = 0x40
		}
		b = append(append(append(b, src...), dst...), s.IPOptions...)
		binary.BigEndian.PutUint16(b[10:], ^Sum(b, 0))
		return b
	}
	b := []byte{0x60 | s.TOS>>4, s.TOS << 4, 0xab, 0xcd, 0, 0, s.Proto, s.TTL}
	binary.BigEndian.PutUint16(b[4:], uint16(n+len(s.Ext)))
	b = append(append(b, src...), dst...)
	if len(s.Ext) == 0 {
		return b
	}
	b[6] = s.ExtFirst
	ext := append([]byte{}, s.Ext...)
	last, proto := 0, s.ExtFirst
	for off := 0; off < len(ext); {
		last = off
		n := 8 * (1 + int(ext[off+1]))
		if proto == 44 {
			n = 8
		}
		proto = ext[off]
		off += n
	}
	ext[last] = s.Proto
	return append(b, ext...)
}

func (s Spec) checksums(ip []byte, l4 int, partial bool) {
	h := ip[l4:]
	sum := pseudo(ip, s.Proto, len(h))
	switch s.Proto {
	case 6, 17:
		field := 16
		if s.Proto == 17 {
			if s.NoUDP && !partial {
				return
			}
			field = 6
		}
		if !partial {
			if sum = ^Sum(h, uint32(sum)); sum == 0 {
				sum = 0xffff
			}
		}
		binary.BigEndian.PutUint16(h[field:], sum)
	case 1:
		binary.BigEndian.PutUint16(h[2:], ^Sum(h, 0))
	case 58:
		binary.BigEndian.PutUint16(h[2:], ^Sum(h, uint32(sum)))
	case 132:
		binary.LittleEndian.PutUint32(h[8:], crc32.Checksum(h, crc32.MakeTable(crc32.Castagnoli)))
	}
}

// Sum is RFC 1071's sum of b, one 16-bit word at a time, not complemented.
func Sum(b []byte, sum uint32) uint16 {
	for i, v := range b {
		if i%2 == 0 {
			sum += uint32(v) << 8
		} else {
			sum += uint32(v)
		}
		for sum > 0xffff {
			sum = sum>>16 + sum&0xffff
		}
	}
	return uint16(sum)
}

func pseudo(ip []byte, proto uint8, n int) uint16 {
	from, to := 8, 40
	if ip[0]>>4 == 4 {
		from, to = 12, 20
	}
	return Sum([]byte{0, proto, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}, uint32(Sum(ip[from:to], 0)))
}

// Check reports what is wrong with the lengths or checksums of buf, a packet
// with its virtio-net header that is no later fragment.
func Check(buf []byte) error {
	ip := buf[VNetLen:]
	if ip[0]>>4 == 4 {
		if Sum(ip[:int(ip[0]&15)*4], 0) != 0xffff {
			return errors.New("IPv4 header checksum")
		}
		if int(binary.BigEndian.Uint16(ip[2:])) != len(ip) {
			return fmt.Errorf("total length %d of %d bytes", binary.BigEndian.Uint16(ip[2:]), len(ip))
		}
		return checkTransport(buf, int(ip[0]&15)*4, ip[9])
	}
	if int(binary.BigEndian.Uint16(ip[4:]))+40 != len(ip) {
		return fmt.Errorf("payload length %d of %d bytes", binary.BigEndian.Uint16(ip[4:]), len(ip))
	}
	off, proto := 40, ip[6]
	for proto == 0 || proto == 43 || proto == 60 || proto == 44 {
		n := 8 * (1 + int(ip[off+1]))
		if proto == 44 {
			n = 8
		}
		proto, off = ip[off], off+n
	}
	return checkTransport(buf, off, proto)
}

func checkTransport(buf []byte, l4 int, proto uint8) error {
	ip := buf[VNetLen:]
	h := ip[l4:]
	sum := pseudo(ip, proto, len(h))
	field := 16
	switch proto {
	case 1, 58:
		if proto == 1 {
			sum = 0
		}
		if Sum(h, uint32(sum)) != 0xffff {
			return errors.New("ICMP checksum")
		}
		return nil
	case 132:
		c := append([]byte{}, h...)
		clear(c[8:12])
		if crc32.Checksum(c, crc32.MakeTable(crc32.Castagnoli)) != binary.LittleEndian.Uint32(h[8:]) {
			return errors.New("SCTP checksum")
		}
		return nil
	case 17:
		field = 6
	case 6:
	default:
		return nil
	}
	have := binary.BigEndian.Uint16(h[field:])
	if buf[0]&1 != 0 {
		if have%0xffff != sum%0xffff { // 0 and 0xffff are the same sum
			return fmt.Errorf("partial checksum %04x, want %04x", have, sum)
		}
		return nil
	}
	if proto == 17 && have == 0 {
		return nil
	}
	if Sum(h, uint32(sum)) != 0xffff {
		return fmt.Errorf("transport checksum of protocol %d", proto)
	}
	return nil
}

// Random returns a random valid packet: any family and protocol, with or
// without options, extension headers, partial checksum and segmentation.
func Random(r *rand.Rand) Spec {
	v4 := r.IntN(2) == 0
	s := Spec{
		Src: RandomAddr(r, v4), Dst: RandomAddr(r, v4),
		Payload: Bytes(r, r.IntN(300)), Seq: r.Uint32(), Ack: r.Uint32(),
		TTL: uint8(2 + r.IntN(250)), TOS: uint8(r.Uint32()), ID: uint16(r.Uint32()), DF: r.IntN(2) == 0,
	}
	s.Proto = []uint8{6, 6, 17, 17, 1, 132, 47}[r.IntN(7)]
	switch s.Proto {
	case 6:
		s.Flags = 0x10 | uint8(r.Uint32())&^0x06
		s.TCPOptions = [][]byte{nil, {1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8}}[r.IntN(2)]
		if r.IntN(4) == 0 {
			s.Flags = 0x02
			s.TCPOptions = [][]byte{{2, 4, 5, 180}, {1, 2, 4, 5, 180, 1, 1, 0}}[r.IntN(2)]
		}
	case 1:
		s.ICMPType, s.ICMPRest = []uint8{8, 0}[r.IntN(2)], uint16(r.Uint32())
		if !v4 {
			s.Proto, s.ICMPType = 58, []uint8{128, 129}[r.IntN(2)]
		}
	}
	if r.IntN(4) == 0 {
		s.IPOptions = []byte{1, 148, 4, 0, 0, 1, 1, 0}
		s.Ext, s.ExtFirst = []byte{60, 0, 1, 4, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0, 0, 0}, 0
	}
	if s.Proto == 6 || s.Proto == 17 {
		s.Partial = r.IntN(2) == 0
		s.NoUDP = v4 && r.IntN(8) == 0
		if s.Flags&0x02 == 0 && r.IntN(3) == 0 {
			s.GSOSize = 1 + r.IntN(1500)
			s.Payload = Bytes(r, s.GSOSize+1+r.IntN(min(60000-s.GSOSize, 60*s.GSOSize)))
		}
	}
	return s
}

// RandomAddr returns a random unicast address and port.
func RandomAddr(r *rand.Rand, v4 bool) netip.AddrPort {
	b := Bytes(r, 16)
	if b[0] = 0xfd; r.IntN(2) == 0 {
		clear(b[8:15])
	}
	port := uint16(r.Uint32())
	if v4 {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, b[1], b[2], b[3]}), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b)), port)
}

// Bytes returns n random bytes; now and then all of them 0 or 0xff, which is
// where one's complement arithmetic goes wrong.
func Bytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	switch r.IntN(8) {
	case 0:
	case 1:
		for i := range b {
			b[i] = 0xff
		}
	default:
		for i := range b {
			b[i] = byte(r.Uint32())
		}
	}
	return b
}
