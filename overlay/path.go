package overlay

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/netctl/netctl/overlay/handshake"
)

// The way to a peer may carry less than the link that it begins on, and tell
// nobody: routers that drop what is too big often keep silent, or their ICMP is
// filtered. So both ends ask each other. With every new session, which is every
// two minutes under traffic, and when the kernel says that the way has become
// narrow, a peer is sent a probe of the largest packet and one of the floor:
//
//	both answered     nothing changes
//	the floor alone   the largest packet is the floor from now on, and a search
//	                  between the two raises it again
//	neither           it is no netctl, or is not there: nothing is learnt
//
// What is found holds for pathExpiry, then the largest packet is tried again. The
// router reads it ([Engine.PathMTU]): it lowers the MSS of connections, cuts
// super-packets smaller, and tells senders the size.
//
// Probes are packets inside the tunnel, so nobody else can answer or forge them,
// as ICMP can be; WireGuard elsewhere drops them, because they are no IP. The
// kernel's own knowledge, from ICMP, can only lower the result, and not below the
// floor: what is bigger than it believes leaves in fragments.
const (
	// pathFloor is what every way is believed to carry: less could not carry IPv6.
	pathFloor = 1280
	// pathGrain is how exactly a search finds the size.
	pathGrain = 8
	// probeTries is how often a probe is sent, probeWait how long an answer is
	// awaited before the next.
	probeTries = 4
	probeWait  = 300 * time.Millisecond
	pathExpiry = 10 * time.Minute
	// suspectEvery is how often the kernel's word begins a round at most.
	suspectEvery = 10 * time.Second
)

// A probe is four bytes that say so, its own length and a number that the answer
// repeats, and zeros up to its length. Its first four bits are no version of IP.
const (
	probeAsk    = 0x016e6374
	probeAnswer = 0x026e6374
	probeSize   = 16
)

// probe is a parsed one.
type probe struct {
	kind uint32
	size int
	id   uint64
}

func putProbe(b []byte, p probe) {
	binary.BigEndian.PutUint32(b, p.kind)
	binary.BigEndian.PutUint32(b[4:], uint32(p.size)) // a packet's length
	binary.BigEndian.PutUint64(b[8:], p.id)
}

// parseProbe reads what was opened; false: it is no probe. An answer is padded as
// all packets are.
func parseProbe(b []byte) (p probe, ok bool) {
	if len(b) < probeSize {
		return probe{}, false
	}
	p = probe{kind: binary.BigEndian.Uint32(b), size: int(binary.BigEndian.Uint32(b[4:])), id: binary.BigEndian.Uint64(b[8:])}
	return p, p.kind == probeAsk && p.size == len(b) || p.kind == probeAnswer
}

// path is a round of probes. All of it is guarded by the peer's mu.
type path struct {
	due   int64 // when something is to be done, 0: nothing is under way
	size  int   // asked for now, 0: a round is to begin
	id    uint64
	tries int
	floor bool  // the floor was answered
	first int   // the round's first size
	good  int   // the largest that was answered in this round
	bad   int   // the smallest that was not
	began int64 // when the last round did
	since int64 // when a search has found what holds
}

// PathMTU implements Engine.
func (w *WireGuard) PathMTU(dst netip.Addr) int {
	if w.narrow.Load() == 0 {
		return w.cfg.MTU
	}
	if p, ok := w.routes.Load().Lookup(dst); ok {
		return p.pathMTU()
	}
	return w.cfg.MTU
}

// pathMTU is the largest packet for the peer.
func (p *peer) pathMTU() int { return int(p.mtu.Load()) }

// pathCeiling is the largest packet that is worth a try.
func (p *peer) pathCeiling() int {
	mtu := p.w.cfg.MTU
	if n := p.w.wire.LongestWhole(*p.endpoint.Load()); n > 0 {
		mtu = min(mtu, max(n-handshake.Overhead, pathFloor))
	}
	return mtu
}

// measure begins a round, unless one is under way. It needs mu.
func (p *peer) measure(now int64) {
	if p.path.due == 0 && p.w.cfg.MTU > pathFloor {
		p.path.size, p.path.due = 0, now
		p.wake(now)
	}
}

// remeasure begins anew, because the way is another one. It needs mu.
func (p *peer) remeasure(now int64) {
	p.path = path{}
	p.setPath(p.w.cfg.MTU)
	if p.current.Load().good(now) {
		p.measure(now)
	}
}

// setPath changes the largest packet. It needs mu.
func (p *peer) setPath(mtu int) {
	was := int(p.mtu.Swap(int32(mtu)))
	if was == mtu {
		return
	}
	most := p.w.cfg.MTU
	if was == most {
		p.w.narrow.Add(1)
	} else if mtu == most {
		p.w.narrow.Add(-1)
	}
	p.w.log.Info("overlay path", "peer", p.key, "mtu", mtu, "was", was)
}

// explore does what is due in a round. It needs mu.
func (p *peer) explore(now int64) {
	t, kp := &p.path, p.current.Load()
	if !kp.good(now) {
		t.due = 0 // the next session begins again
		return
	}
	if t.size == 0 {
		ceiling := p.pathCeiling()
		t.began, t.good, t.bad = now, 0, ceiling+1
		t.first = ceiling
		if mtu := p.pathMTU(); mtu < ceiling && now-t.since < int64(pathExpiry) {
			t.first = mtu
		}
		t.step(t.first)
	}
	if t.tries == probeTries {
		p.unreached(now)
	}
	if t.due == 0 {
		return
	}
	t.tries++
	t.due = now + int64(probeWait)
	p.w.sendProbe(p, kp, t.size, probe{kind: probeAsk, size: t.size, id: t.id})
	if t.size != pathFloor {
		p.w.sendProbe(p, kp, pathFloor, probe{kind: probeAsk, size: pathFloor, id: t.id})
	}
}

// step asks for another size.
func (t *path) step(size int) { t.size, t.tries, t.floor, t.id = size, 0, false, rand.Uint64() }

// unreached ends a step that had no answer.
func (p *peer) unreached(now int64) {
	t := &p.path
	if !t.floor {
		t.due = 0
		return
	}
	t.good, t.bad = max(t.good, pathFloor), t.size
	p.search(now)
}

// reached takes an answer.
func (p *peer) reached(a probe, now int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := &p.path
	if t.due == 0 || t.size == 0 || a.id != t.id {
		return
	}
	if a.size != t.size {
		t.floor = t.floor || a.size == pathFloor
		return
	}
	if ceiling := p.pathCeiling(); t.size > ceiling { // it came in fragments
		t.first, t.bad = ceiling, ceiling+1
		t.step(ceiling)
		t.due = now
		p.wake(now)
		return
	}
	t.good = t.size
	if t.size == t.first {
		t.bad = t.good // whether it is more is not asked in this round
	}
	p.search(now)
}

// search goes on between what is good and what is not, or ends the round.
func (p *peer) search(now int64) {
	t := &p.path
	p.setPath(t.good)
	if t.bad-t.good > pathGrain {
		t.step((t.good + t.bad) / 2)
		t.due = now
		p.wake(now)
		return
	}
	t.due = 0
	if t.size != t.first || t.bad != t.good { // what was found holds from now on
		t.since = now
	}
}

// suspect sees to it that a round begins, because the kernel had to cut datagrams
// for the peer. It may be called with mu or without.
func (p *peer) suspect() {
	if p.suspected.CompareAndSwap(false, true) {
		p.timer.Reset(0)
	}
}

// suspicion begins that round, but not one after the other: a way may be too
// narrow even for the floor. It needs mu.
func (p *peer) suspicion(now int64) {
	if p.path.began != 0 && now-p.path.began < int64(suspectEvery) {
		return
	}
	p.suspected.Store(false)
	p.measure(now)
}

// sendProbe sends a probe of n bytes.
func (w *WireGuard) sendProbe(p *peer, kp *keypair, n int, v probe) {
	s := w.borrow()
	defer w.senders.Put(s)
	last, ok := kp.number(1)
	if !ok {
		return
	}
	body := s.buf[handshake.TransportHeader:]
	clear(body[:n])
	putProbe(body, v)
	size := s.seal(kp, 0, n, last-1)
	if w.post(s.buf[:size], *p.endpoint.Load()) == nil {
		p.txBytes.Add(uint64(size))
	}
}
