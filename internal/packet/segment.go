package packet

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
)

// Segments returns how many packets a Segmenter makes of buf, a packet with
// its virtio-net header, or of what is wrapped in it; 0 when it cannot be parsed.
// See Segmenter.Reset for mtu. It changes buf as Parse and Unwrap do.
func Segments(buf []byte, mtu int) int {
	if _, _, ok := Wrapped(buf); ok {
		buf = Unwrap(buf)
	}
	var s Segmenter
	if s.Reset(buf, mtu) != FaultNone {
		return 0
	}
	return s.Count()
}

// Segmenter cuts a super-packet into the packets it stands for, as a network
// card with segmentation offload would: plain IP packets without virtio-net
// header, every checksum complete. An ordinary packet comes out as itself, with
// its checksum completed where that was left to hardware.
//
// The zero value is ready for Reset and may be reused. Not safe for concurrent
// use. No allocation.
//
//	TCP  sequence numbers advance; CWR stays on the first segment only, FIN and
//	     PSH on the last only (RFC 3168 §6.1.2)
//	UDP  the length is each datagram's own
//	IPv4 the identification counts up from the super-packet's
type Segmenter struct {
	p     Packet
	size  int    // payload bytes per segment
	count int    // segments in all
	next  int    // the segment Next gives
	addrs uint16 // pseudo-header sum without the length
}

// Reset starts on buf, a packet with its virtio-net header, borrowed until the
// last Next. With mtu > 0 TCP segments are made small enough for it; datagrams
// and ordinary packets keep their size (LimitSegment is what refuses them).
func (s *Segmenter) Reset(buf []byte, mtu int) Fault {
	s.count, s.next = 0, 0
	s.p.Buf = buf
	if f := Parse(&s.p); f != FaultNone {
		return f
	}
	p := &s.p
	if mtu > 0 && p.Tuple.Proto == ProtoTCP && p.GSOSize > 0 && p.LimitSegment(mtu) != FitOK {
		return FaultGSO
	}
	s.size, s.count = len(p.Buf)-VNetLen-p.Payload, 1
	if p.GSOSize > 0 {
		n := s.size
		s.size = p.GSOSize
		s.count = (n + s.size - 1) / s.size
	}
	s.addrs = pseudo(p.IP(), p.Tuple.Proto, 0)
	return FaultNone
}

// Count returns how many packets Next gives in all since Reset.
func (s *Segmenter) Count() int { return s.count }

// Size returns the length of the largest of them.
func (s *Segmenter) Size() int {
	if s.count == 0 {
		return 0
	}
	return min(s.p.Payload+s.size, len(s.p.Buf)-VNetLen)
}

// Next writes the next packet to dst, which must hold Size bytes, and returns
// its length; false when there is none left or dst is too small.
func (s *Segmenter) Next(dst []byte) (n int, ok bool) {
	if s.next >= s.count || len(dst) < s.Size() {
		return 0, false
	}
	if s.p.GSOSize == 0 {
		s.next++
		return s.whole(dst), true
	}
	i := s.next
	s.next++
	p, ip := &s.p, s.p.IP()
	from := p.Payload + i*s.size
	data := ip[from:min(from+s.size, len(ip))]
	n = copy(dst, ip[:p.Payload])
	n += copy(dst[n:], data)
	dst = dst[:n]
	h := dst[p.L4:]
	field := tcpChecksum
	if p.Tuple.Proto == ProtoTCP {
		binary.BigEndian.PutUint32(h[4:], binary.BigEndian.Uint32(h[4:])+uint32(i*s.size))
		if i > 0 {
			h[13] &^= TCPCwr
		}
		if i < s.count-1 {
			h[13] &^= TCPFin | TCPPsh
		}
	} else {
		field = udpChecksum
		binary.BigEndian.PutUint16(h[4:], uint16(len(h)))
	}
	setLength(dst, i)
	seal(h, field, checksum.Combine(s.addrs, uint16(len(h))))
	return n, true
}

// setLength writes the IP length of a packet cut from a bigger one, and counts
// the IPv4 identification up by i.
func setLength(ip []byte, i int) {
	if ip[0]>>4 == 6 {
		binary.BigEndian.PutUint16(ip[4:], uint16(len(ip)-ip6Len))
		return
	}
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	binary.BigEndian.PutUint16(ip[4:], binary.BigEndian.Uint16(ip[4:])+uint16(i))
	seal4(ip[:int(ip[0]&15)*4])
}

// whole writes an ordinary packet.
func (s *Segmenter) whole(dst []byte) int {
	p, ip := &s.p, s.p.IP()
	n := copy(dst, ip)
	if !p.Partial {
		return n
	}
	field := tcpChecksum
	if p.Tuple.Proto == ProtoUDP {
		field = udpChecksum
	}
	h := dst[p.L4:n]
	seal(h, field, checksum.Combine(s.addrs, uint16(len(h))))
	return n
}
