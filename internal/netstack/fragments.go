package netstack

import (
	"encoding/binary"
	"slices"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/netctl/netctl/internal/packet"
)

// maxPieces bounds the fragments of one datagram: 64 KiB in pieces of the
// smallest MTU of IPv6 are 53.
const maxPieces = 128

// fragments puts datagrams together: a socket sends whole ones only. First
// come, first served: 8 datagrams per pod, 128 in all, 2 s each, so at most
// 8 MiB are held.
type fragments struct {
	counters *counters

	mu     sync.Mutex
	held   map[packet.FragKey]*datagram // guarded by mu
	perPod map[packet.Addr]int          // guarded by mu; no zero entries
}

// datagram is one being put together.
type datagram struct {
	began  time.Time
	header []byte // IP header of the first fragment, without options
	pieces []piece
	have   int // bytes in pieces
	total  int // length of the whole, -1 while the last fragment is missing
}

// piece is the data of one fragment, sorted by offset, never overlapping.
type piece struct {
	offset int
	data   []byte
}

func newFragments(c *counters) *fragments {
	return &fragments{
		counters: c,
		held:     make(map[packet.FragKey]*datagram),
		perPod:   make(map[packet.Addr]int),
	}
}

// reassemble adds a fragment, and receives the datagram when it is complete.
func (s *Stack) reassemble(p *packet.Packet, on *link) {
	buf := s.buffer()
	defer s.buffers.Put(buf)
	n := s.fragments.add(p, buf[:packet.MaxSize], time.Now())
	if n == 0 {
		return
	}
	whole := packet.Packet{Buf: buf[:n]}
	if packet.Parse(&whole) != packet.FaultNone || whole.Kind != packet.KindWhole {
		s.counters.drop(DropMalformed)
		return
	}
	s.counters.complete.Add(1)
	s.receive(&whole, on)
}

// add returns the length of the datagram in dst when it is complete, else 0.
func (f *fragments) add(p *packet.Packet, dst []byte, now time.Time) int {
	data, proto := fragmentData(p)
	if len(data) == 0 || (p.MoreFrag && len(data)%8 != 0) || p.FragOffset+len(data) > 65535-header.IPv6MinimumSize {
		f.counters.drop(DropFragment)
		return 0
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	key := p.Fragment()
	d := f.held[key]
	if d == nil {
		if d = f.begin(key, now); d == nil {
			f.counters.drop(DropFragLimit)
			return 0
		}
	}
	if p.FragOffset == 0 {
		d.header = plainHeader(p, proto)
	}
	if !d.insert(p.FragOffset, data, p.MoreFrag) {
		f.forget(key)
		f.counters.drop(DropFragment)
		return 0
	}
	if d.header == nil || d.have != d.total {
		return 0
	}
	f.forget(key)
	return d.assemble(dst)
}

// begin makes room for a datagram; nil when a bound is reached.
func (f *fragments) begin(key packet.FragKey, now time.Time) *datagram {
	if f.perPod[key.Src] >= fragmentsPerPod || len(f.held) >= fragmentsTotal {
		f.expireLocked(now)
		if f.perPod[key.Src] >= fragmentsPerPod || len(f.held) >= fragmentsTotal {
			return nil
		}
	}
	d := &datagram{began: now, total: -1}
	f.held[key] = d
	f.perPod[key.Src]++
	return d
}

func (f *fragments) forget(key packet.FragKey) {
	delete(f.held, key)
	if f.perPod[key.Src]--; f.perPod[key.Src] == 0 {
		delete(f.perPod, key.Src)
	}
}

// expire drops what was not completed in time.
func (f *fragments) expire(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.expireLocked(now)
}

func (f *fragments) expireLocked(now time.Time) {
	for key, d := range f.held {
		if now.Sub(d.began) >= fragmentTimeout {
			f.forget(key)
			f.counters.drop(DropFragTimeout)
		}
	}
}

// insert takes a piece; false: it contradicts what is there. An exact repeat
// is fine, an overlap is an attack (RFC 5722).
func (d *datagram) insert(offset int, data []byte, more bool) bool {
	end := offset + len(data)
	if !more {
		if d.total >= 0 && d.total != end {
			return false
		}
		d.total = end
	}
	i, found := slices.BinarySearchFunc(d.pieces, offset, func(p piece, o int) int { return p.offset - o })
	if found {
		return len(d.pieces[i].data) == len(data)
	}
	if i > 0 && d.pieces[i-1].offset+len(d.pieces[i-1].data) > offset {
		return false
	}
	if i < len(d.pieces) && d.pieces[i].offset < end {
		return false
	}
	if len(d.pieces) >= maxPieces {
		return false
	}
	d.pieces = slices.Insert(d.pieces, i, piece{offset, slices.Clone(data)})
	d.have += len(data)
	last := d.pieces[len(d.pieces)-1]
	return d.total < 0 || last.offset+len(last.data) <= d.total
}

// assemble writes virtio-net header, IP header and data; 0 if dst is too small.
func (d *datagram) assemble(dst []byte) int {
	n := packet.VNetLen + len(d.header)
	if n+d.total > len(dst) {
		return 0
	}
	packet.VNet{}.Put(dst)
	ip := dst[packet.VNetLen:]
	copy(ip, d.header)
	for _, p := range d.pieces {
		copy(dst[n+p.offset:], p.data)
	}
	if ip[0]>>4 == 6 {
		binary.BigEndian.PutUint16(ip[header.IPv6PayloadLenOffset:], uint16(d.total))
		return n + d.total
	}
	h := header.IPv4(ip)
	h.SetTotalLength(uint16(len(d.header) + d.total))
	h.SetChecksum(0)
	h.SetChecksum(^h.CalculateChecksum())
	return n + d.total
}

// fragmentData returns a fragment's part of the datagram and the protocol of
// the whole. Parse has checked the chain of headers; nil if it did not.
func fragmentData(p *packet.Packet) (data []byte, proto uint8) {
	ip := p.IP()
	if p.Is4() {
		return ip[int(ip[0]&0xf)*4:], ip[9]
	}
	next, at := ip[header.IPv6NextHeaderOffset], header.IPv6MinimumSize
	for at+8 <= len(ip) {
		switch header.IPv6ExtensionHeaderIdentifier(next) {
		case header.IPv6FragmentExtHdrIdentifier:
			return ip[at+8:], ip[at]
		case header.IPv6HopByHopOptionsExtHdrIdentifier, header.IPv6DestinationOptionsExtHdrIdentifier, header.IPv6RoutingExtHdrIdentifier:
			next, at = ip[at], at+(int(ip[at+1])+1)*8
		default:
			return nil, 0
		}
	}
	return nil, 0
}

// plainHeader returns the header of the whole datagram: no options, no
// fragmentation, lengths and checksum to be filled in.
func plainHeader(p *packet.Packet, proto uint8) []byte {
	if !p.Is4() {
		h := slices.Clone(p.IP()[:header.IPv6MinimumSize])
		h[header.IPv6NextHeaderOffset] = proto
		return h
	}
	h := header.IPv4(slices.Clone(p.IP()[:header.IPv4MinimumSize]))
	h.SetHeaderLength(header.IPv4MinimumSize)
	h.SetFlagsFragmentOffset(0, 0)
	return h
}

// emit sends a packet built here to the router, in fragments when it is bigger
// than the MTU: to the pod, this is the host that sends the datagram.
func (l *link) emit(buf []byte, mtu int) {
	if len(buf)-packet.VNetLen <= mtu {
		l.out(buf)
		return
	}
	if buf[packet.VNetLen]>>4 == 4 {
		l.fragment4(buf, mtu)
		return
	}
	l.fragment6(buf, mtu)
}

func (l *link) fragment4(buf []byte, mtu int) {
	ip := header.IPv4(buf[packet.VNetLen:])
	ip.SetID(uint16(l.owner.fragmentID.Add(1)))
	const l3 = header.IPv4MinimumSize
	l.cut(buf[packet.VNetLen+l3:], piecesOf{mtu, l3}, func(frag []byte, offset int, more bool) {
		copy(frag, ip[:l3])
		h := header.IPv4(frag)
		h.SetTotalLength(uint16(len(frag)))
		flags := uint8(0)
		if more {
			flags = header.IPv4FlagMoreFragments
		}
		h.SetFlagsFragmentOffset(flags, uint16(offset))
		h.SetChecksum(0)
		h.SetChecksum(^h.CalculateChecksum())
	})
}

func (l *link) fragment6(buf []byte, mtu int) {
	ip := buf[packet.VNetLen:]
	const l3 = header.IPv6MinimumSize
	id := l.owner.fragmentID.Add(1)
	l.cut(ip[l3:], piecesOf{mtu, l3 + header.IPv6FragmentHeaderSize}, func(frag []byte, offset int, more bool) {
		copy(frag, ip[:l3])
		binary.BigEndian.PutUint16(frag[header.IPv6PayloadLenOffset:], uint16(len(frag)-l3))
		frag[header.IPv6NextHeaderOffset] = uint8(header.IPv6FragmentHeader)
		field := uint16(offset)
		if more {
			field |= 1
		}
		frag[l3], frag[l3+1] = ip[header.IPv6NextHeaderOffset], 0
		binary.BigEndian.PutUint16(frag[l3+2:], field)
		binary.BigEndian.PutUint32(frag[l3+4:], id)
	})
}

// piecesOf is the size of fragments and of the headers that each of them has.
type piecesOf struct{ mtu, headers int }

// cut sends data in pieces that fit the MTU behind headers of the given
// length, which put writes: the packet so far, the piece's offset, and whether
// more follow.
func (l *link) cut(data []byte, of piecesOf, put func(frag []byte, offset int, more bool)) {
	buf, headers := l.owner.buffer(), of.headers
	defer l.owner.buffers.Put(buf)
	size := (of.mtu - headers) &^ 7
	for offset := 0; offset < len(data); offset += size {
		part := data[offset:min(offset+size, len(data))]
		packet.VNet{}.Put(buf[:])
		frag := buf[packet.VNetLen : packet.VNetLen+headers+len(part)]
		copy(frag[headers:], part)
		put(frag, offset, offset+size < len(data))
		l.out(buf[:packet.VNetLen+len(frag)])
	}
}
