package packet

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
)

// Coalescer merges the packets of a batch into super-packets, as the kernel's
// generic receive offload would: consecutive TCP segments of a flow that differ
// in nothing but sequence number and payload, and datagrams of a flow of equal
// size. Everything else passes through as it is. Whoever segments the result
// again gets the same bytes in the same order.
//
//	Add, Add, Add ...   the batch, borrowed until Flush
//	Flush               buffers with virtio-net header, borrowed until next Add
//
// Order within a flow is kept: a packet that cannot be merged ends the run of
// its flow, and one whose flow cannot be told (fragments, options,
// broken packets) ends all runs. Between flows order may change.
//
// Packets that a router has wrapped (see Wrap) are merged as what is inside them
// is, when their outer addresses are equal too: what comes out is a super-packet
// with one outer header, for Unwrap.
//
// The transport checksum of everything that is merged is verified first, since
// the super-packet carries none. A packet with a wrong one passes through and
// is dropped by its receiver.
//
// The zero value is ready and merges all it can. Memory grows to the biggest
// batch seen and is reused. Not safe for concurrent use.
type Coalescer struct {
	NoTCP, NoUDP bool // switches, for kernels that mishandle such super-packets

	p     Packet // scratch of Add
	pkts  []piece
	runs  []run
	last  [runBuckets]int32 // hash of a flow -> 1 + its latest run
	arena []byte
	out   [][]byte
}

// runBuckets is how many flows of a batch can be merged side by side. Two that
// share a bucket take turns and are merged less, never wrongly.
const runBuckets = 256

// maxDatagrams is how many datagrams one super-packet may hold
// (UDP_MAX_SEGMENTS of the kernels before 6.9, which refuse more).
const maxDatagrams = 64

// maxIP is the longest IP packet.
const maxIP = 65535

// piece is one packet that was added; pieces of a run are a linked list.
type piece struct {
	ip   []byte // borrowed until Flush; of a mergeable wrapped packet what is inside
	next int32  // 1 + the next piece of the run, 0: none
}

// run is what leaves as one packet.
type run struct {
	tuple       Tuple
	outer       []byte // header around the first piece of a wrapped run
	first, last int32  // pieces
	l4, payload int    // offsets, equal in all pieces
	size        int    // payload of each piece but the last
	total       int    // length of the super-packet, without outer
	count       int
	seq         uint32 // TCP: the sequence number that comes next
	open        bool   // another piece may follow
	verified    bool   // the first piece's checksum was verified
}

// Add takes one plain IP packet (no virtio-net header) of the batch, borrowed
// until Flush. It never fails: what it does not understand passes through.
func (c *Coalescer) Add(ip []byte) {
	if len(ip) == 0 || len(ip) > maxIP {
		return // not a packet: Parse could not be told of it either
	}
	if n := outerLen(ip); n > 0 && c.addWrapped(ip, n) {
		return
	}
	p := &c.p
	n, f := p.parseIP(ip)
	if f == FaultNone {
		ip = ip[:n] // a tunnel's padding
	}
	if f != FaultNone || p.Kind == KindFirstFragment || p.Kind == KindLaterFragment {
		clear(c.last[:])
		c.start(ip, nil, false)
		return
	}
	if p.Tuple.Proto != ProtoTCP && p.Tuple.Proto != ProtoUDP {
		c.start(ip, nil, false)
		return
	}
	c.merge(ip, nil)
}

// addWrapped is Add for a packet behind an outer header of n bytes. It returns
// false when what is inside cannot be merged: then the whole is a packet like
// any other.
func (c *Coalescer) addWrapped(ip []byte, n int) bool {
	p, in := &c.p, ip[n:]
	size, f := p.parseIP(in)
	if f != FaultNone || p.Kind != KindWhole || p.Tuple.Proto != ProtoTCP && p.Tuple.Proto != ProtoUDP {
		clear(c.last[:])
		return false
	}
	if n == ip4Len && int(binary.BigEndian.Uint16(ip[2:])) != n+size || n == ip6Len && int(binary.BigEndian.Uint16(ip[4:])) != size {
		clear(c.last[:])
		return false
	}
	c.merge(in[:size], ip[:n:n])
	return true
}

// merge adds the parsed TCP or UDP packet ip to the run of its flow, or begins
// one.
func (c *Coalescer) merge(ip, outer []byte) {
	slot := &c.last[bucket(&c.p.Tuple)]
	open := c.mergeable(ip)
	if open && *slot > 0 && c.extend(&c.runs[*slot-1], ip, outer) {
		return
	}
	*slot = c.start(ip, outer, open && !c.ends(ip))
}

// start begins a run with ip and returns 1 + its index.
func (c *Coalescer) start(ip, outer []byte, open bool) int32 {
	p := &c.p
	i := int32(len(c.pkts))
	c.pkts = append(c.pkts, piece{ip: ip})
	r := run{outer: outer, first: i, last: i, total: len(ip), count: 1, open: open}
	if open {
		r.tuple, r.l4, r.payload = p.Tuple, p.L4, p.Payload
		r.size = len(ip) - p.Payload
		if p.Tuple.Proto == ProtoTCP {
			r.seq = binary.BigEndian.Uint32(ip[p.L4+4:]) + uint32(r.size)
		}
	}
	c.runs = append(c.runs, r)
	return int32(len(c.runs))
}

// extend appends the parsed, mergeable packet ip to r if it belongs there.
func (c *Coalescer) extend(r *run, ip, outer []byte) bool {
	p := &c.p
	n := len(ip) - p.Payload
	if !r.open || r.tuple != p.Tuple || r.l4 != p.L4 || r.payload != p.Payload ||
		n > r.size || len(r.outer)+r.total+n > maxIP || !sameOuter(r.outer, outer) {
		return false
	}
	if p.Tuple.Proto == ProtoUDP && r.count == maxDatagrams || r.count == MaxSegments {
		return false
	}
	head := c.pkts[r.first].ip
	if !sameIP(head, ip, r.count) {
		return false
	}
	if p.Tuple.Proto == ProtoTCP && !sameTCP(head[r.l4:r.payload], ip[r.l4:r.payload], r.seq) {
		return false
	}
	if !r.verified {
		if !sound(head, &r.tuple, r.l4) {
			r.open = false
			return false
		}
		r.verified = true
	}
	if !sound(ip, &p.Tuple, p.L4) {
		return false
	}
	i := int32(len(c.pkts))
	c.pkts = append(c.pkts, piece{ip: ip})
	c.pkts[r.last].next = i + 1
	r.last = i
	r.seq += uint32(n)
	r.total += n
	r.count++
	r.open = n == r.size && !c.ends(ip)
	return true
}

// sameOuter reports whether two outer headers, or none, have the same ends: Wrap
// leaves no other choice.
func sameOuter(a, b []byte) bool {
	switch {
	case len(a) != len(b):
		return false
	case len(a) == ip4Len:
		return string(a[12:]) == string(b[12:])
	case len(a) == ip6Len:
		return string(a[:4]) == string(b[:4]) && string(a[8:]) == string(b[8:])
	default:
		return true
	}
}

// mergeable reports whether the parsed TCP or UDP packet ip can be part of a
// super-packet at all.
func (c *Coalescer) mergeable(ip []byte) bool {
	p := &c.p
	if p.L4 != ip4Len && ip[0]>>4 == 4 || p.L4 != ip6Len && ip[0]>>4 == 6 {
		return false // IP options, extension headers
	}
	n := len(ip) - p.Payload
	if n == 0 {
		return false
	}
	h := ip[p.L4:]
	if p.Tuple.Proto == ProtoUDP {
		return !c.NoUDP && int(binary.BigEndian.Uint16(h[4:])) == len(h) &&
			binary.BigEndian.Uint16(h[udpChecksum:]) != 0
	}
	return !c.NoTCP && p.TCPFlags&^(TCPPsh|TCPFin|TCPEce) == TCPAck
}

// ends reports whether nothing may follow ip in a super-packet.
func (c *Coalescer) ends(ip []byte) bool {
	return c.p.Tuple.Proto == ProtoTCP && ip[c.p.L4+13]&(TCPPsh|TCPFin) != 0
}

// sameIP reports whether the IP header of ip, the i-th of a run, says the same
// as the head's: class, TTL or flow label, DF. Without DF the identification
// matters, and must be what a Segmenter would write.
func sameIP(head, ip []byte, i int) bool {
	if head[0]>>4 == 6 {
		return binary.BigEndian.Uint32(head) == binary.BigEndian.Uint32(ip) && head[7] == ip[7]
	}
	if head[1] != ip[1] || head[6] != ip[6] || head[8] != ip[8] {
		return false
	}
	return head[6]&(ip4DF>>8) != 0 ||
		binary.BigEndian.Uint16(head[4:])+uint16(i) == binary.BigEndian.Uint16(ip[4:])
}

// sameTCP reports whether the TCP header h continues a run that began with
// head: everything equal but PSH, FIN and the checksum, sequence number next.
func sameTCP(head, h []byte, seq uint32) bool {
	const variable = TCPPsh | TCPFin
	return binary.BigEndian.Uint32(h[4:]) == seq &&
		binary.BigEndian.Uint32(h[8:]) == binary.BigEndian.Uint32(head[8:]) &&
		h[12] == head[12] && h[13]&^variable == head[13]&^variable &&
		binary.BigEndian.Uint16(h[14:]) == binary.BigEndian.Uint16(head[14:]) &&
		binary.BigEndian.Uint16(h[18:]) == binary.BigEndian.Uint16(head[18:]) &&
		string(h[tcpLen:]) == string(head[tcpLen:])
}

// sound verifies the transport checksum of a whole TCP or UDP packet.
func sound(ip []byte, t *Tuple, l4 int) bool {
	return checksum.Checksum(ip[l4:], pseudo(ip, t.Proto, len(ip)-l4)) == 0xffff
}

// bucket hashes a tuple.
func bucket(t *Tuple) uint64 {
	const k = 0x9e3779b97f4a7c15
	h := uint64(t.SrcPort)<<32 | uint64(t.DstPort)<<16 | uint64(t.Proto)
	h = (h ^ binary.LittleEndian.Uint64(t.Src[:])) * k
	h = (h ^ h>>32 ^ binary.LittleEndian.Uint64(t.Src[8:])) * k
	h = (h ^ h>>32 ^ binary.LittleEndian.Uint64(t.Dst[:])) * k
	h = (h ^ h>>32 ^ binary.LittleEndian.Uint64(t.Dst[8:])) * k
	return (h >> 32) % runBuckets
}

// Flush returns what was added since the last Flush, each packet with its
// virtio-net header. The buffers may be changed in place by the caller, and
// are borrowed until the next Add.
func (c *Coalescer) Flush() [][]byte {
	need := 0
	for i := range c.runs {
		need += VNetLen + c.runs[i].length()
	}
	if cap(c.arena) < need {
		c.arena = make([]byte, need)
	}
	rest := c.arena[:cap(c.arena)]
	c.out = c.out[:0]
	for i := range c.runs {
		n := VNetLen + c.runs[i].length()
		buf := rest[:n:n]
		c.write(buf, &c.runs[i])
		c.out = append(c.out, buf)
		rest = rest[n:]
	}
	clear(c.pkts) // borrowed buffers end here
	clear(c.runs)
	c.pkts, c.runs = c.pkts[:0], c.runs[:0]
	clear(c.last[:])
	return c.out
}

// length is that of the IP packet that leaves.
func (r *run) length() int { return len(r.outer) + r.total }

// write lays out the packet of r in buf, which has its exact size.
func (c *Coalescer) write(buf []byte, r *run) {
	outer := copy(buf[VNetLen:], r.outer)
	ip := buf[VNetLen+outer:]
	n := copy(ip, c.pkts[r.first].ip)
	if r.count == 1 {
		VNet{}.Put(buf)
		return
	}
	for i := c.pkts[r.first].next; i > 0; i = c.pkts[i-1].next {
		n += copy(ip[n:], c.pkts[i-1].ip[r.payload:])
	}
	setLength(ip, 0)
	h := ip[r.l4:]
	if outer > 0 {
		setLength(buf[VNetLen:], 0)
	}
	v := VNet{
		Flags: VNetNeedsCsum, HdrLen: uint16(outer + r.payload), GSOSize: uint16(r.size),
		ChecksumStart: uint16(outer + r.l4), ChecksumField: tcpChecksum,
	}
	switch {
	case r.tuple.Proto == ProtoUDP:
		v.GSOType, v.ChecksumField = GSOUDPL4, udpChecksum
		binary.BigEndian.PutUint16(h[4:], uint16(len(h)))
	case ip[0]>>4 == 4:
		v.GSOType = GSOTCPv4
	default:
		v.GSOType = GSOTCPv6
	}
	if r.tuple.Proto == ProtoTCP {
		h[13] |= c.pkts[r.last].ip[r.l4+13] & (TCPPsh | TCPFin)
	}
	v.Put(buf)
	sum := pseudo(ip, r.tuple.Proto, len(h))
	binary.BigEndian.PutUint16(h[v.ChecksumField:], sum)
}
