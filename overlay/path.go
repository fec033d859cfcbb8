package overlay

import (
	"net/netip"
	"time"

	"github.com/netctl/netctl/overlay/handshake"
	"github.com/netctl/netctl/overlay/pathmtu"
)

// A way can change at any time, so one under traffic is asked anew every checkEvery;
// one whose peer answers no probes only with every session. The kernel's word that
// it had to cut datagrams does not count more often, either: a way may be too
// narrow even for the floor.
const (
	checkEvery = 10 * time.Second
	checkDeaf  = rekeyAfterTime
)

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

// pathCeiling is the largest packet for which the kernel sees no obstacle.
func (p *peer) pathCeiling() int {
	if n := p.w.wire.LongestWhole(*p.endpoint.Load()); n > 0 {
		return n - handshake.Overhead
	}
	return p.w.cfg.MTU
}

// measure begins a round of probes, unless one is under way. It needs mu.
func (p *peer) measure(now int64) {
	p.path.Begin(now)
	if due := p.path.Due(); due != 0 {
		p.wake(due)
	}
}

// remeasure forgets what was found, because the way is another one. It needs mu.
func (p *peer) remeasure(now int64) {
	p.path = pathmtu.New(p.w.cfg.MTU)
	p.publishPath()
	if p.current.Load().good(now) {
		p.measure(now)
	}
}

// publishPath makes the search's result known to who sends. It needs mu.
func (p *peer) publishPath() {
	mtu := p.path.MTU()
	was := int(p.mtu.Swap(int32(mtu))) // at most maxMTU
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

// explore sends the probes that are due. It needs mu.
func (p *peer) explore(now int64) {
	kp := p.current.Load()
	if !kp.good(now) {
		p.path.End() // the next session begins again
		return
	}
	one, two := p.path.Next(p.pathCeiling(), now)
	p.publishPath()
	for _, v := range []pathmtu.Probe{one, two} {
		if v.Size > 0 {
			p.w.sendProbe(p, kp, v.Size, v)
		}
	}
}

// reached takes an answer.
func (p *peer) reached(v pathmtu.Probe, now int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone || p.path.Due() == 0 {
		return // before the kernel is asked: answers may come unasked
	}
	p.path.Answered(v, p.pathCeiling(), now)
	p.publishPath()
	if due := p.path.Due(); due != 0 {
		p.wake(due)
	}
}

// suspect sees to it that a round begins. It may be called with mu or without: who sets the alarm at the same
// moment may delay it, but every alarm has a tick behind it.
func (p *peer) suspect() {
	if p.suspected.CompareAndSwap(false, true) {
		p.alarm.Store(p.w.clock.now())
		p.timer.Reset(0)
	}
}

// suspicion begins that round. It needs mu.
func (p *peer) suspicion(now int64) {
	every := int64(checkDeaf)
	if p.path.Heard() {
		every = int64(checkEvery)
	}
	if last := p.path.Began(); last == 0 || now-last >= every {
		p.suspected.Store(false)
		p.measure(now)
	}
}

// sendProbe sends a probe of n bytes.
func (w *WireGuard) sendProbe(p *peer, kp *keypair, n int, v pathmtu.Probe) {
	s := w.borrow()
	defer w.senders.Put(s)
	last, ok := kp.number(1)
	if !ok {
		return
	}
	body := s.buf[handshake.TransportHeader:]
	clear(body[:n])
	v.Put(body)
	size := s.seal(kp, 0, n, last-1)
	if w.post(s.buf[:size], *p.endpoint.Load()) == nil {
		p.txBytes.Add(uint64(size))
	}
}
