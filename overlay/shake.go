package overlay

import (
	"net/netip"
	"time"

	"github.com/netctl/netctl/overlay/handshake"
)

const (
	// maxShakes bounds the handshake messages that wait to be computed: a quarter of
	// a second of work, so that the peers of a large cluster may greet us at once.
	maxShakes = 1024
	// loadedAt is from how many on we are under load, and ask for cookies.
	loadedAt = maxShakes / 8
	// maxCookies bounds the cookies that wait. They are no load: whoever sees our
	// indices could send them without end, and make us refuse handshakes.
	maxCookies = 64
	// restTime is how long a peer rests when a handshake could not begin, and
	// complainEvery how often that is said.
	restTime      = time.Second
	complainEvery = 10 * time.Second
	// repliesPerSecond and replyBurst bound the cookies that we make: readers make
	// them, and addresses that were forged get them.
	repliesPerSecond = 1000
	replyBurst       = 100
	// loadedFor is how long.
	loadedFor = time.Second
)

// shake is a handshake message on its way from a reader to compute.
type shake struct {
	from netip.AddrPort
	size int
	msg  [handshake.InitiationSize]byte // the longest
}

// admit lets a handshake message in that is worth the computation. It is called
// by readers, and costs them two hashes, or nothing where nobody waits for it.
func (w *WireGuard) admit(msg []byte, kind handshake.Kind, from netip.AddrPort) {
	queue := w.shakes
	switch {
	case kind == handshake.KindCookie:
		if w.signerOf(handshake.Receiver(msg)) == nil {
			w.count.drop(DropHandshake)
			return
		}
		queue = w.cookies
	case kind == handshake.KindResponse && w.flyer(handshake.Receiver(msg)) == nil:
		w.count.drop(DropHandshake)
		return
	case !w.admitCostly(msg, from):
		return
	}
	s := shake{from: from, size: len(msg)}
	copy(s.msg[:], msg)
	select {
	case queue <- s:
	default:
		w.count.drop(DropHandshake)
	}
}

// admitCostly reports whether an initiation or response may be computed.
func (w *WireGuard) admitCostly(msg []byte, from netip.AddrPort) bool {
	if !w.guard.Knows(msg) {
		w.count.drop(DropHandshake)
		return false
	}
	now := time.Now()
	if len(w.shakes) >= loadedAt {
		w.loaded.Store(w.clock.now() + int64(loadedFor))
	} else if w.clock.now() >= w.loaded.Load() {
		return true
	}
	if !w.guard.Proves(msg, from, now) {
		if !w.replies.Take(now) {
			w.count.drop(DropHandshake)
			return false
		}
		var reply [handshake.CookieSize]byte
		if err := w.guard.Reply(&reply, msg, from, now); err == nil {
			_ = w.post(reply[:], from) // whoever needs it asks again
		}
		return false
	}
	if !w.limiter.Allow(from.Addr(), now) {
		w.count.drop(DropHandshake)
		return false
	}
	return true
}

// compute is the goroutine for public-key operations: they take a fifth of a
// millisecond, which packets should not wait for.
func (w *WireGuard) compute() {
	for {
		select {
		case s := <-w.shakes:
			w.computeOne(&s)
		case s := <-w.cookies:
			w.computeOne(&s)
		case p := <-w.begins:
			if w.enter() {
				p.launch()
				w.leave()
			}
		case <-w.quit:
			return
		}
	}
}

func (w *WireGuard) computeOne(s *shake) {
	if w.enter() {
		w.shake(s.msg[:s.size], s.from)
		w.leave()
	}
}

func (w *WireGuard) shake(msg []byte, from netip.AddrPort) {
	ok := false
	switch handshake.KindOf(msg) {
	case handshake.KindInitiation:
		r, err := w.id.Accept(msg)
		if err != nil {
			break
		}
		if p := (*w.known.Load())[Key(r.Peer)]; p != nil {
			ok = p.answer(r, from)
		}
	case handshake.KindResponse:
		if p := w.flyer(handshake.Receiver(msg)); p != nil {
			ok = p.finish(msg, from)
		}
	case handshake.KindCookie:
		ok = w.learn(msg)
	case handshake.KindTransport: // never comes here
	}
	if !ok {
		w.count.drop(DropHandshake)
	}
}

// learn gives a cookie to whose message it answers.
func (w *WireGuard) learn(msg []byte) bool {
	p := w.signerOf(handshake.Receiver(msg))
	if p == nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.signer.Learn(msg, time.Now())
}

// signerOf returns to whom a message of ours with that index went; nil: nobody.
func (w *WireGuard) signerOf(index uint32) *peer {
	if p := w.flyer(index); p != nil {
		return p
	}
	if kp := w.find(index); kp != nil {
		return kp.peer
	}
	return nil
}

// fly notes that an answer to this index will be for p.
func (w *WireGuard) fly(index uint32, p *peer) {
	w.inmu.Lock()
	defer w.inmu.Unlock()
	w.flying[index] = p
}

func (w *WireGuard) land(index uint32) {
	w.inmu.Lock()
	defer w.inmu.Unlock()
	delete(w.flying, index)
}

func (w *WireGuard) flyer(index uint32) *peer {
	w.inmu.Lock()
	defer w.inmu.Unlock()
	return w.flying[index]
}

// initiate asks for a handshake, unless one is under way. The one who computes
// begins it: nobody who carries packets waits for public-key operations. It
// needs mu.
func (p *peer) initiate(now int64) {
	if !p.w.running.Load() || p.gone || p.queued || p.pause != 0 || p.yielded != 0 || p.attempt != nil && now < p.attempt.until {
		return
	}
	select {
	case p.w.begins <- p:
		p.queued = true
	default: // full of peers that are gone
		p.rest(now)
	}
}

// rest forbids handshakes for a while, after one could not even begin. It needs
// mu.
func (p *peer) rest(now int64) {
	p.pause = now + int64(restTime)
	p.wake(p.pause)
}

// launch begins the handshake that was asked for.
func (p *peer) launch() {
	slot, index, ok := p.prepare()
	if !ok {
		return
	}
	was := p.current.Load()
	var msg [handshake.InitiationSize]byte
	state, err := p.w.id.Initiate(&msg, p.key, index)

	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.w.clock.now()
	if err != nil {
		p.w.store.Free(slot)
		p.fail(err, now)
		return
	}
	if now := p.current.Load(); p.gone || now != was && now != nil { // removed, or the peer was faster
		p.w.store.Free(slot)
		return
	}
	p.attempt = &attempt{state: state, slot: slot, index: index, until: now + int64(p.patience())}
	p.wake(p.attempt.until)
	p.signer.Sign(msg[:], time.Now())
	p.w.fly(index, p)
	if err := p.w.post(msg[:], *p.endpoint.Load()); err != nil {
		p.w.log.Debug("overlay handshake not sent", "peer", p.key, "err", err) // it is repeated
	}
}

// prepare takes a slot for a handshake; false: there shall be none.
func (p *peer) prepare() (slot int, index uint32, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.queued = false
	now := p.w.clock.now()
	if p.gone || p.attempt != nil && now < p.attempt.until {
		return 0, 0, false
	}
	if p.attempt == nil && p.next != nil && now-p.next.created < int64(greetAgain) {
		// The peer was faster, and has our answer any moment. Two handshakes at once
		// would cost twice, and some ends lose packets between them.
		p.yielded = now + int64(greetAgain)
		p.wake(p.yielded)
		return 0, 0, false
	}
	if p.attempt == nil {
		p.began = now
	}
	p.abandon()
	slot, index, err := p.takeSlot()
	if err != nil {
		p.fail(err, now)
		return 0, 0, false
	}
	return slot, index, true
}

// takeSlot takes a slot and an index for it. Where there is none, a session that
// nobody uses yet makes room. It needs mu.
func (p *peer) takeSlot() (slot int, index uint32, err error) {
	slot, err = p.w.store.Alloc()
	if err != nil && p.next != nil {
		p.w.retire(p.next)
		p.next = nil
		slot, err = p.w.store.Alloc()
	}
	if err != nil {
		return 0, 0, err
	}
	if index, err = p.w.newIndex(slot); err != nil {
		p.w.store.Free(slot)
	}
	return slot, index, err
}

// fail ends what could not begin, and the wait for it. It needs mu.
func (p *peer) fail(err error, now int64) {
	if last := p.w.complained.Load(); now-last >= int64(complainEvery) && p.w.complained.CompareAndSwap(last, now) {
		p.w.log.Warn("overlay handshake not begun", "peer", p.key, "err", err)
	}
	p.giveUp()
	p.rest(now)
}

// answer responds to a peer's initiation. The new session is used when the peer
// has shown that it has it, too.
func (p *peer) answer(r *handshake.Responder, from netip.AddrPort) bool {
	slot, index, ok := p.hear(r)
	if !ok {
		return false
	}
	var msg [handshake.ResponseSize]byte
	remote, keys, err := r.Respond(&msg, index)

	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil || p.gone {
		p.w.store.Free(slot)
		return false
	}
	now := p.w.clock.now()
	kp, err := p.newKeypair(slot, p.session(index, remote, false, &keys, now))
	if err != nil {
		p.w.store.Free(slot)
		p.w.log.Debug("overlay handshake not answered", "peer", p.key, "err", err)
		return false
	}
	p.w.retire(p.next)
	p.next = kp
	p.roam(from)
	p.wake(now + int64(rejectAfterTime))
	p.signer.Sign(msg[:], time.Now())
	if err := p.w.post(msg[:], *p.endpoint.Load()); err != nil {
		p.w.log.Debug("overlay response not sent", "peer", p.key, "err", err) // the peer asks again
	}
	return true
}

// hear notes an initiation, and takes a slot for the answer; false: it is an old
// one, or there shall be no answer.
func (p *peer) hear(r *handshake.Responder) (slot int, index uint32, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.w.clock.now()
	if p.gone || !r.Timestamp.After(p.heard) || p.heardAt != 0 && now-p.heardAt < int64(shakeEvery) {
		return 0, 0, false
	}
	p.heard, p.heardAt = r.Timestamp, now
	slot, index, err := p.takeSlot()
	if err != nil {
		p.w.log.Debug("overlay handshake not answered", "peer", p.key, "err", err)
		return 0, 0, false
	}
	return slot, index, true
}

// finish takes the response to our initiation. An empty packet shows the peer
// that we have the session, if no other does.
func (p *peer) finish(msg []byte, from netip.AddrPort) bool {
	p.mu.Lock()
	a := p.attempt
	p.mu.Unlock()
	if a == nil || a.index != handshake.Receiver(msg) {
		return false
	}
	remote, keys, err := a.state.Finish(msg)
	if err != nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone || p.attempt != a { // ended meanwhile
		return false
	}
	now := p.w.clock.now()
	p.w.land(a.index)
	p.attempt = nil
	kp, err := p.newKeypair(a.slot, p.session(a.index, remote, true, &keys, now))
	if err != nil {
		p.w.store.Free(a.slot)
		return false
	}
	p.roam(from)
	old := p.current.Load()
	p.w.retire(p.previous)
	p.previous = old
	if next := p.next; next != nil { // the peer's own, begun at the same time: it may send with it
		p.w.retire(old)
		p.previous, p.next = next, nil
		next.confirmed.Store(true)
		p.w.store.Confirm(next.slot, next.created, p.shaken) // before kp
	}
	p.use(kp, now)
	return true
}

// confirm makes the next key pair the current one, because the peer uses it.
func (p *peer) confirm(kp *keypair) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone || p.next != kp {
		return
	}
	p.abandon() // one handshake is enough
	now := p.w.clock.now()
	p.w.retire(p.previous)
	p.previous, p.next = p.current.Load(), nil
	p.use(kp, now)
}

// use begins to send with kp.
func (p *peer) use(kp *keypair, now int64) {
	p.greetings, p.yielded = 0, 0
	p.shaken = time.Now().UnixNano()
	p.w.store.Confirm(kp.slot, now, p.shaken)
	p.unanswered.Store(0)
	// A session that is over must not be found meanwhile, or what is sent now
	// would overtake what has waited.
	if old := p.current.Load(); !old.good(now) {
		p.current.Store(nil)
	}
	if !p.release(kp, now) && kp.initiator {
		p.w.sendEmpty(p, kp)
	}
	p.current.Store(kp)
	kp.confirmed.Store(true)
	p.measure(now)
	p.wake(now + int64(rejectAfterTime))
	p.w.log.Debug("overlay session", "peer", p.key, "initiator", kp.initiator)
}

// roam follows the peer, where that is allowed. It needs mu.
func (p *peer) roam(from netip.AddrPort) {
	if p.w.cfg.Roaming && *p.endpoint.Load() != from {
		p.endpoint.Store(&from)
		p.remeasure(p.w.clock.now())
	}
}
