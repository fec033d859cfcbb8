package overlay

import (
	"bytes"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/netctl/netctl/overlay/handshake"
	"github.com/netctl/netctl/overlay/pathmtu"
)

// The timers, from the whitepaper's section 6.
const (
	rekeyTimeout     = 5 * time.Second
	rekeyJitter      = 334 * time.Millisecond
	rekeyAttemptTime = 90 * time.Second
	keepaliveTimeout = 10 * time.Second
	// deadAfter is how long a peer may be silent after we sent a packet.
	deadAfter = keepaliveTimeout + rekeyTimeout
	// renewLate is when a received packet, not only a sent one, renews a session.
	renewLate = rejectAfterTime - keepaliveTimeout - rekeyTimeout
	// shakeEvery bounds how often one peer's initiations are answered.
	shakeEvery = 20 * time.Millisecond

	// A peer that is new, or that we meet again after a restart, is greeted sooner
	// and more often than WireGuard repeats a handshake: two nodes learn of each
	// other at about the same time, and a node's first packets should not wait
	// for seconds because the other was not there yet.
	greetAgain   = time.Second
	maxGreetings = 5

	// waitingCost is what a waiting packet costs besides its bytes.
	waitingCost = 256
	// peerShare is the part of the bytes that may wait that one peer can have.
	peerShare = 4
)

// peer is one peer's state. The hot paths read the atomics; all else is for
// handshakes, timers and packets without a session.
type peer struct {
	w        *WireGuard
	key      Key
	lower    bool                           // our key is lower than the peer's
	endpoint atomic.Pointer[netip.AddrPort] // never nil
	current  atomic.Pointer[keypair]        // written under mu
	rxBytes  atomic.Uint64
	txBytes  atomic.Uint64
	mtu      atomic.Int32 // of packets to it; written under mu
	// The way to the peer is to be asked anew: now, and when a packet is sent then.
	suspected atomic.Bool
	recheck   atomic.Int64
	// When the first packet was sent that nothing was received after, and received
	// that nothing was sent after; 0: none.
	unanswered, owed atomic.Int64
	alarm            atomic.Int64 // when the timer fires, 0: not set; written under mu, and by suspect

	mu             sync.Mutex
	previous, next *keypair
	gone           bool // removed
	signer         handshake.Signer
	attempt        *attempt
	queued         bool  // in begins
	yielded        int64 // the peer's handshake shall have ended before it, or ours begins; 0: none is awaited
	pause          int64 // no handshake begins before it, 0: at any time
	began          int64 // the first of a series of attempts
	greetings      int   // attempts that are greetings, still to come
	heard          handshake.Timestamp
	heardAt        int64
	shaken         int64 // when the last handshake ended, Unix nanoseconds
	waiting        [][]byte
	waitingBytes   int
	timer          *time.Timer
	path           pathmtu.Search
}

// attempt is a handshake that we began.
type attempt struct {
	state *handshake.Initiator
	slot  int
	index uint32
	until int64 // repeated after it
}

func (w *WireGuard) newPeer(v Peer) *peer {
	p := &peer{w: w, key: v.PublicKey, lower: bytes.Compare(w.self[:], v.PublicKey[:]) < 0, signer: handshake.NewSigner(v.PublicKey)}
	p.endpoint.Store(&v.Endpoint)
	p.path = pathmtu.New(w.cfg.MTU)
	p.mtu.Store(int32(w.cfg.MTU)) // at most maxMTU
	p.timer = time.AfterFunc(math.MaxInt64, p.tick)
	return p
}

// begin greets the peer if there is no session with it.
func (p *peer) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.w.clock.now()
	if kp := p.current.Load(); kp.good(now) {
		p.release(kp, now)
		p.measure(now)
		p.wake(now) // its timers
		return
	}
	p.greetings = maxGreetings
	p.initiate(now)
}

// halt stops the timer.
func (p *peer) halt() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timer.Stop()
}

// remove ends everything of the peer, and returns the greatest timestamp that it
// heard.
func (p *peer) remove() handshake.Timestamp {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gone = true
	p.timer.Stop()
	p.giveUp()
	if p.pathMTU() != p.w.cfg.MTU {
		p.w.narrow.Add(-1)
	}
	current := p.current.Load()
	p.current.Store(nil)
	for _, kp := range []*keypair{current, p.previous, p.next} {
		p.w.retire(kp)
	}
	p.previous, p.next = nil, nil
	return p.heard
}

// adopt takes over key pairs of the process before us. What was confirmed last
// is the current one.
func (p *peer) adopt(pairs []resumed) {
	p.mu.Lock()
	defer p.mu.Unlock()
	slices.SortFunc(pairs, func(a, b resumed) int {
		return int(min(1, max(-1, b.order()-a.order())))
	})
	for _, r := range pairs {
		p.shaken = max(p.shaken, r.Handshake)
		if heard := handshake.Timestamp(r.Heard); heard.After(p.heard) {
			p.heard = heard
		}
		p.own(r.pair)
		switch {
		case r.Confirmed == 0 && p.next == nil:
			p.next = r.pair
		case r.Confirmed != 0 && p.current.Load() == nil:
			p.current.Store(r.pair)
		case r.Confirmed != 0 && p.previous == nil:
			p.previous = r.pair
		default:
			p.w.retire(r.pair)
		}
	}
}

// wake sees to it that tick runs at that time or before. It needs mu.
func (p *peer) wake(at int64) {
	if p.gone || p.alarm.Load() != 0 && p.alarm.Load() <= at {
		return
	}
	p.alarm.Store(at)
	p.timer.Reset(time.Duration(max(0, at-p.w.clock.now())))
}

// remind is wake for who does not have mu. It is quick when the timer is set
// early enough, as it is under traffic.
func (p *peer) remind(at int64) {
	if alarm := p.alarm.Load(); alarm != 0 && alarm <= at {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wake(at)
}

// tick is the peer's timer: it does what is due and sets itself again.
func (p *peer) tick() {
	if !p.w.enter() {
		return
	}
	defer p.w.leave()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone {
		return
	}
	now := p.w.clock.now()
	p.alarm.Store(0)
	p.expire(now)
	switch a := p.attempt; {
	case a == nil || now < a.until:
	case now-p.began > int64(rekeyAttemptTime):
		p.w.log.Debug("overlay peer does not answer", "peer", p.key)
		p.giveUp()
	default:
		p.initiate(now)
	}
	if p.yielded != 0 && now >= p.yielded {
		p.yielded = 0
		p.initiate(now)
	}
	if p.pause != 0 && now >= p.pause {
		p.pause = 0
		if kp := p.current.Load(); kp != nil {
			kp.renewing.Store(false) // or it would never be asked for again
		}
		if len(p.waiting) > 0 {
			p.initiate(now)
		}
	}
	if at := p.unanswered.Load(); at != 0 && now-at >= int64(deadAfter) && p.unanswered.CompareAndSwap(at, 0) {
		p.initiate(now)
	}
	if at := p.owed.Load(); at != 0 && now-at >= int64(keepaliveTimeout) {
		p.keepalive(now)
	}
	if p.suspected.Load() {
		p.suspicion(now)
	}
	if due := p.path.Due(); due != 0 && now >= due {
		p.explore(now)
	}
	if next := p.nextTick(); next != math.MaxInt64 {
		p.wake(next)
	}
}

// nextTick returns when something is due next.
func (p *peer) nextTick() int64 {
	at := int64(math.MaxInt64)
	if p.attempt != nil {
		at = p.attempt.until
	}
	for _, due := range []int64{p.pause, p.yielded, p.path.Due()} {
		if due != 0 {
			at = min(at, due)
		}
	}
	for _, kp := range []*keypair{p.current.Load(), p.previous, p.next} {
		if kp != nil {
			at = min(at, kp.created+int64(rejectAfterTime))
		}
	}
	if since := p.unanswered.Load(); since != 0 {
		at = min(at, since+int64(deadAfter))
	}
	if since := p.owed.Load(); since != 0 {
		at = min(at, since+int64(keepaliveTimeout))
	}
	return at
}

// expire wipes the keys that are over.
func (p *peer) expire(now int64) {
	if kp := p.current.Load(); kp != nil && !kp.good(now) {
		p.current.Store(nil)
		p.unanswered.Store(0)
		p.owed.Store(0)
		p.w.retire(kp)
	}
	for _, kp := range []**keypair{&p.previous, &p.next} {
		if *kp != nil && !(*kp).good(now) {
			p.w.retire(*kp)
			*kp = nil
		}
	}
}

// giveUp ends the attempt, and with it the wait of packets.
func (p *peer) giveUp() {
	p.abandon()
	p.w.count.drops[DropNoSession].Add(uint64(len(p.waiting)))
	p.forget()
}

// abandon ends the attempt.
func (p *peer) abandon() {
	if p.attempt == nil {
		return
	}
	p.w.land(p.attempt.index)
	p.w.store.Free(p.attempt.slot)
	p.attempt = nil
}

// forget empties the queue.
func (p *peer) forget() {
	p.w.held.Add(-int64(p.waitingBytes))
	p.waiting, p.waitingBytes = nil, 0
}

// hold keeps a packet until there is a session, and sees to it that there will
// be one.
func (p *peer) hold(s *sender, buf []byte, now int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone {
		p.w.count.drop(DropNoPeer)
		return ErrNoPeer
	}
	if kp := p.current.Load(); kp.good(now) { // it came while we took the lock
		_, err := p.w.transmit(s, p, kp, buf, now)
		p.wake(now + int64(deadAfter))
		return err
	}
	if p.pause != 0 { // nothing would ever release it
		p.w.count.drop(DropNoSession)
		return ErrFull
	}
	p.initiate(now)
	cost := len(buf) + waitingCost
	limit := p.w.cfg.QueueBytes
	for len(p.waiting) > 0 && p.waitingBytes+cost > limit/peerShare {
		p.dropOldest()
	}
	// What peers that are dead let wait must not keep others from their handshake's
	// first packet: there is as much room again for those.
	if len(p.waiting) == 0 {
		limit *= 2
	}
	if p.w.held.Add(int64(cost)) > int64(limit)+waitingCost {
		p.w.held.Add(-int64(cost))
		p.w.count.drop(DropFull)
		return ErrFull
	}
	p.waiting = append(p.waiting, slices.Clone(buf))
	p.waitingBytes += cost
	return nil
}

// dropOldest makes room for a newer packet: of those that wait it is the one that
// is needed least.
func (p *peer) dropOldest() {
	cost := len(p.waiting[0]) + waitingCost
	p.waiting[0] = nil
	p.waiting = p.waiting[1:]
	p.waitingBytes -= cost
	p.w.held.Add(-int64(cost))
	p.w.count.drop(DropNoSession)
}

// release sends what has waited. Nobody can overtake: senders find no session
// until it is done. It reports whether there was anything.
func (p *peer) release(kp *keypair, now int64) bool {
	any := len(p.waiting) > 0
	s := p.w.borrow()
	defer p.w.senders.Put(s)
	for _, buf := range p.waiting {
		if arm, _ := p.w.transmit(s, p, kp, buf, now); arm { // a failure is counted
			p.wake(now + int64(deadAfter))
		}
	}
	_ = p.w.flush(s) // likewise
	p.forget()
	return any
}

// keepalive sends an empty packet.
func (p *peer) keepalive(now int64) {
	if kp := p.current.Load(); kp.good(now) {
		p.w.sendEmpty(p, kp)
	}
	p.owed.Store(0)
}

// patience is how long an attempt waits for its answer.
func (p *peer) patience() time.Duration {
	if p.greetings == 0 {
		return rekeyTimeout + rand.N(rekeyJitter)
	}
	p.greetings--
	if p.lower {
		return greetAgain
	}
	return 2 * greetAgain // so that two greetings that have met do not meet again
}
