package packet

import "encoding/binary"

// Fit says whether a packet can leave by a link.
type Fit uint8

// The fits. FitNone is no answer of LimitSegment.
const (
	FitNone     Fit = iota
	FitOK           // as it is now
	FitTooBig       // answer with TooBig and drop
	FitFragment     // Fragment4 may split it
)

// String names the fit.
func (f Fit) String() string {
	switch f {
	case FitNone:
		return "none"
	case FitOK:
		return "ok"
	case FitTooBig:
		return "too_big"
	case FitFragment:
		return "fragment"
	}
	return "invalid"
}

// minSegment is the smallest TCP segment LimitSegment will make of a
// super-packet: below it a link is not worth the name, and the number of
// packets explodes. Linux refuses smaller ones too (tcp_min_snd_mss less the
// options).
const minSegment = 8

// minMTU4 is what every IPv4 link takes unfragmented (RFC 791 §3.2): the
// longest header and eight bytes.
const minMTU4 = 68

// LimitSegment makes the packet fit a link of the given MTU if that needs no
// splitting. A TCP super-packet whose segments are too big gets smaller ones,
// which spares its sender a round trip; DF does not forbid that, since no
// packet of that size exists yet. Datagrams have borders that must stay.
func (p *Packet) LimitSegment(mtu int) Fit {
	size := len(p.Buf) - VNetLen
	if size <= mtu {
		return FitOK
	}
	if p.GSOSize > 0 {
		size = p.Payload + p.GSOSize
		if size <= mtu {
			return FitOK
		}
		room, total := mtu-p.Payload, len(p.Buf)-VNetLen-p.Payload
		if p.Tuple.Proto == ProtoTCP && room >= minSegment && (total+room-1)/room <= MaxSegments {
			p.GSOSize = room
			binary.LittleEndian.PutUint16(p.Buf[4:], uint16(room))
			return FitOK
		}
		if p.Tuple.Proto == ProtoTCP {
			return FitTooBig
		}
	}
	if p.Is4() && p.IP()[6]&(ip4DF>>8) == 0 {
		return FitFragment
	}
	return FitTooBig
}

// Fragment4 splits an IPv4 packet that is bigger than mtu (RFC 791 §3.2), DF
// or not: that was LimitSegment's business. A UDP super-packet is first cut
// into its datagrams. A fragment is split further. Each buffer has its own
// virtio-net header and is borrowed until emit returns. A checksum left to
// hardware is completed in p.Buf first, since no fragment could complete it.
// Nothing is emitted for IPv6 or an mtu below 68, the least every IPv4 link
// takes. Allocates: fragments are not a fast path.
func Fragment4(p *Packet, mtu int, emit func(buf []byte)) {
	if !p.Is4() || mtu < minMTU4 {
		return
	}
	if p.GSOSize == 0 {
		p.Complete()
		fragment4(p.IP(), mtu, make([]byte, VNetLen+min(mtu, len(p.Buf))), emit)
		return
	}
	var s Segmenter
	if s.Reset(p.Buf, 0) != FaultNone {
		return
	}
	datagram := make([]byte, s.Size())
	scratch := make([]byte, VNetLen+mtu)
	for {
		n, ok := s.Next(datagram)
		if !ok {
			return
		}
		fragment4(datagram[:n], mtu, scratch, emit)
	}
}

// fragment4 emits the fragments of the IPv4 packet ip, built in scratch.
func fragment4(ip []byte, mtu int, scratch []byte, emit func(buf []byte)) {
	VNet{}.Put(scratch)
	if len(ip) <= mtu {
		n := copy(scratch[VNetLen:], ip)
		emit(scratch[:VNetLen+n])
		return
	}
	hl := int(ip[0]&15) * 4
	field := binary.BigEndian.Uint16(ip[6:])
	offset := field & ip4OffsetMask
	data := ip[hl:]
	head := ip[:hl:hl]
	for first := true; len(data) > 0; first = false {
		if !first && len(head) > ip4Len {
			head = copiedOptions(head)
		}
		n := min(len(data), (mtu-len(head))&^7)
		more := field & ip4MF
		if n < len(data) {
			more = ip4MF
		} else {
			n = len(data)
		}
		out := scratch[VNetLen:]
		copy(out, head)
		size := len(head) + copy(out[len(head):], data[:n])
		out[0] = 0x40 | uint8(len(head)/4)
		binary.BigEndian.PutUint16(out[2:], uint16(size))
		binary.BigEndian.PutUint16(out[6:], field&^(ip4MF|ip4OffsetMask)|more|offset)
		seal4(out[:len(head)])
		emit(scratch[:VNetLen+size])
		data = data[n:]
		offset += uint16(n / 8)
	}
}

// copiedOptions returns the header later fragments carry: only the options
// whose copied flag is set, padded to four bytes.
func copiedOptions(head []byte) []byte {
	h := make([]byte, ip4Len, len(head))
	copy(h, head)
	for opt := head[ip4Len:]; len(opt) > 0 && opt[0] != 0; {
		n := 1
		if opt[0] != 1 {
			n = int(opt[1]) // Parse walked them before
		}
		if opt[0]&0x80 != 0 {
			h = append(h, opt[:n]...)
		}
		opt = opt[n:]
	}
	for len(h)%4 != 0 {
		h = append(h, 0)
	}
	return h
}
