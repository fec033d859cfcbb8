package overlay

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/gaissmai/bart"

	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/overlay/handshake"
	"github.com/netctl/netctl/overlay/pathmtu"
	"github.com/netctl/netctl/overlay/udp"
)

// pieceSize is the longest piece that a socket gives: it joins no more than one
// IP packet could hold.
const pieceSize = 1 << 16

// errorPause is how long a reader rests after an error.
const errorPause = time.Millisecond

// reader is what one queue's goroutine needs: a batch of pieces, and what was in
// it.
type reader struct {
	w        *WireGuard
	bufs     [][]byte
	sizes    []int
	segments []int
	from     []netip.AddrPort
	pieces   []piece
	wait     sync.WaitGroup // for openers
	merge    packet.Coalescer
	routes   *bart.Table[*peer]

	// The run of messages of one session that is being counted.
	kp          *keypair
	at          netip.AddrPort // where the last came from
	src         netip.Addr     // the last inner source that was the peer's own
	bytes, data int            // since the run began: of messages, and packets in them

	segmentsIn, bytesIn int // of the batch, to be counted
}

// read is the goroutine of a queue: everything that happens to a received packet
// happens in it.
func (w *WireGuard) read(queue int) {
	r := &reader{
		w: w, bufs: make([][]byte, udp.Batch), sizes: make([]int, udp.Batch), segments: make([]int, udp.Batch),
		from: make([]netip.AddrPort, udp.Batch), pieces: make([]piece, udp.Batch),
	}
	for i := range r.bufs {
		r.bufs[i] = make([]byte, pieceSize)
		r.pieces[i].w = w
	}
	for failed := 0; ; {
		n, err := w.wire.Receive(queue, r.bufs, r.sizes, r.segments, r.from)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if failed++; failed == 1 {
				w.log.Warn("overlay socket not read", "err", err)
			}
			select {
			case <-w.quit:
				return
			case <-time.After(errorPause):
			}
			continue
		}
		failed = 0
		if !r.batch(n) {
			return
		}
	}
}

// batch opens n pieces and gives the sink what was in them; false: the engine
// has been stopped.
func (r *reader) batch(n int) bool {
	w := r.w
	if !w.enter() {
		return false
	}
	r.routes = w.routes.Load()
	for i := range n {
		r.pieces[i].buf, r.pieces[i].size = r.bufs[i][:r.sizes[i]], r.segments[i]
	}
	w.openAll(r.pieces[:n], &r.wait)
	datagrams := 0
	for i := range n {
		for j := range r.pieces[i].out {
			r.datagram(&r.pieces[i].out[j], r.from[i])
		}
		datagrams += len(r.pieces[i].out)
	}
	r.endRun()
	w.leave()
	w.count.rxDatagrams.Add(uint64(datagrams))
	w.count.rxBatches.Add(1)
	r.deliver()
	return true
}

// deliver gives the batch's packets to the sink.
func (r *reader) deliver() {
	if r.segmentsIn == 0 {
		return
	}
	out := r.merge.Flush()
	r.w.count.rxSegments.Add(uint64(r.segmentsIn))
	r.w.count.rxBytes.Add(uint64(r.bytesIn))
	r.w.count.rxPackets.Add(uint64(len(out)))
	r.segmentsIn, r.bytesIn = 0, 0
	if len(out) > 0 {
		r.w.cfg.Sink(out)
	}
}

// datagram handles one datagram, which may be anything.
func (r *reader) datagram(o *opened, from netip.AddrPort) {
	switch o.kind {
	case handshake.KindTransport:
		if o.kp == nil || !r.transport(o, from) {
			r.w.count.drop(DropForeign)
		}
	case 0:
		r.w.count.drop(DropForeign)
	default:
		r.w.admit(o.msg, o.kind, from)
	}
}

// transport handles an authentic transport message; false: it was seen before, or
// its session has ended.
func (r *reader) transport(o *opened, from netip.AddrPort) bool {
	kp := o.kp
	if kp != r.kp {
		r.endRun()
		r.kp, r.src = kp, netip.Addr{}
	}
	if !kp.accept(o.counter) {
		return false
	}
	r.at = from
	r.bytes += len(o.msg)
	if !kp.confirmed.Load() {
		kp.peer.confirm(kp)
	}
	if len(o.ip) == 0 {
		return true // a keepalive
	}
	if v, ok := pathmtu.Parse(o.ip); ok {
		r.probe(kp, v)
		return true
	}
	r.data++
	r.take(kp, o.ip)
	return true
}

// probe answers a probe of the path, or takes the answer to ours.
func (r *reader) probe(kp *keypair, v pathmtu.Probe) {
	if v.Answer {
		kp.peer.reached(v, r.w.clock.now())
		return
	}
	v.Answer = true
	r.w.sendProbe(kp.peer, kp, pathmtu.Size, v)
}

// take adds an opened packet to the batch, if its source is the peer's.
func (r *reader) take(kp *keypair, ip []byte) {
	src, n := source(ip)
	if n == 0 {
		r.w.count.drop(DropMalformed)
		return
	}
	if src != r.src {
		if p, ok := r.routes.Lookup(src); !ok || p != kp.peer {
			r.w.count.drop(DropSource)
			return
		}
		r.src = src
	}
	r.merge.Add(ip[:n])
	r.segmentsIn++
	r.bytesIn += n
}

// source reads where an opened packet says it is from, and its length without
// padding; 0: it is no packet.
func source(ip []byte) (netip.Addr, int) {
	const len4, len6, src4, src6 = 20, 40, 12, 8
	switch {
	case len(ip) >= len4 && ip[0]>>4 == 4:
		if n := int(binary.BigEndian.Uint16(ip[2:])); n >= len4 && n <= len(ip) {
			return netip.AddrFrom4([4]byte(ip[src4:])), n
		}
	case len(ip) >= len6 && ip[0]>>4 == 6:
		if n := len6 + int(binary.BigEndian.Uint16(ip[4:])); n <= len(ip) {
			return netip.AddrFrom16([16]byte(ip[src6:])), n
		}
	}
	return netip.Addr{}, 0
}

// endRun tells the peer what came from it since the run began.
func (r *reader) endRun() {
	kp := r.kp
	r.kp = nil
	if kp == nil || r.bytes == 0 {
		return
	}
	kp.peer.received(kp, r.bytes, r.data, r.at)
	r.bytes, r.data = 0, 0
}

// received notes that authentic messages came.
func (p *peer) received(kp *keypair, bytes, data int, from netip.AddrPort) {
	now := p.w.clock.now()
	p.rxBytes.Add(uint64(bytes))
	if p.unanswered.Load() != 0 {
		p.unanswered.Store(0)
	}
	if data > 0 && p.owed.Load() == 0 && p.owed.CompareAndSwap(0, now) {
		p.remind(now + int64(keepaliveTimeout))
	}
	if p.w.cfg.Roaming && *p.endpoint.Load() != from {
		p.mu.Lock()
		p.roam(from)
		p.mu.Unlock()
	}
	if kp.initiator && now-kp.created > int64(renewLate) && kp.renewing.CompareAndSwap(false, true) {
		p.mu.Lock()
		p.initiate(now)
		p.mu.Unlock()
	}
}
