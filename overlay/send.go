package overlay

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/overlay/handshake"
	"github.com/netctl/netctl/overlay/udp"
)

// padding is what packets are padded to a multiple of.
const padding = 16

// enough is how much of a piece is worth a system call of its own: a batch sends
// it without waiting for more.
const enough = udp.MaxPiece / 2

// sender makes pieces. It is one caller's at a time; they are pooled.
type sender struct {
	cut   packet.Segmenter
	buf   []byte
	nonce [chacha20poly1305.NonceSize]byte

	// The piece that is being made: messages for one peer, all as long as the first
	// but for the last.
	to     *peer
	off    int // length of the piece
	size   int // of the first message
	count  int // messages
	bytes  int // in them
	closed bool
}

func newSender() *sender { return &sender{buf: make([]byte, udp.MaxPiece)} }

// borrow takes a sender out of the pool, where putting it back is the caller's
// affair.
func (w *WireGuard) borrow() *sender {
	if s, ok := w.senders.Get().(*sender); ok {
		return s
	}
	return newSender()
}

// Send implements Engine.
func (w *WireGuard) Send(buf []byte) error {
	s := w.borrow()
	defer w.senders.Put(s)
	return w.sendNow(s, buf, true)
}

// sendNow is Send with a sender of the caller's, which may keep the last piece.
func (w *WireGuard) sendNow(s *sender, buf []byte, now bool) error {
	if !w.enter() {
		if done, err := w.sendEarly(s, buf); done {
			return err
		}
		if !w.enter() {
			return ErrClosed
		}
	}
	defer w.leave()
	err := w.send(s, buf)
	if now {
		if failed := w.flush(s); err == nil {
			err = failed
		}
	}
	if err == nil {
		w.count.txPackets.Add(1)
	}
	return err
}

// send routes a packet, seals it, and sends all full pieces.
func (w *WireGuard) send(s *sender, buf []byte) error {
	p, err := w.route(buf)
	if err != nil {
		return err
	}
	now := w.clock.now()
	kp := p.current.Load()
	if !kp.good(now) {
		return p.hold(s, buf, now)
	}
	arm, err := w.transmit(s, p, kp, buf, now)
	if arm { // also when the socket had no room: a part of the packet may have left
		p.remind(now + int64(deadAfter))
	}
	if now >= p.recheck.Load() {
		p.recheck.Store(now + int64(checkEvery))
		p.suspect()
	}
	if kp.worn(now) && kp.renewing.CompareAndSwap(false, true) {
		p.mu.Lock()
		p.initiate(now)
		p.mu.Unlock()
	}
	return err
}

// NewBatch implements Engine.
func (w *WireGuard) NewBatch() Batch { return &batch{w: w} }

type batch struct {
	w *WireGuard
	s *sender // nil: nothing was sent since the last Flush
}

// Send implements Batch.
func (b *batch) Send(buf []byte) error {
	if b.s == nil {
		b.s = b.w.borrow()
	}
	return b.w.sendNow(b.s, buf, false)
}

// Flush implements Batch.
func (b *batch) Flush() {
	s, w := b.s, b.w
	if s == nil {
		return
	}
	b.s = nil
	if s.count > 0 {
		if w.enter() {
			_ = w.flush(s) // what does not leave is counted
			w.leave()
		} else {
			w.count.drops[DropSend].Add(uint64(s.count))
			s.empty()
		}
	}
	w.senders.Put(s)
}

// sendEarly is Send before Start, when packets wait as they do for a handshake;
// after Stop nothing waits. done is false when the engine runs by now.
func (w *WireGuard) sendEarly(s *sender, buf []byte) (done bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stage == stageStarted {
		return false, nil
	}
	if w.stage != stageOpen {
		return true, ErrClosed
	}
	p, err := w.route(buf)
	if err != nil {
		return true, err
	}
	if err = p.hold(s, buf, w.clock.now()); err == nil {
		w.count.txPackets.Add(1)
	}
	return true, err
}

// route finds the peer for a packet.
func (w *WireGuard) route(buf []byte) (*peer, error) {
	dst, ok := destination(buf)
	if !ok {
		w.count.drop(DropMalformed)
		return nil, ErrMalformed
	}
	p, ok := w.routes.Load().Lookup(dst)
	if !ok {
		w.count.drop(DropNoPeer)
		return nil, ErrNoPeer
	}
	return p, nil
}

// destination reads where the packet wants to go.
func destination(buf []byte) (netip.Addr, bool) {
	if len(buf) < minIP4 || len(buf) > packet.MaxSize {
		return netip.Addr{}, false
	}
	switch buf[packet.VNetLen] >> 4 {
	case 4:
		return netip.AddrFrom4([4]byte(buf[dstIP4:])), true
	case 6:
		if len(buf) < minIP6 {
			return netip.Addr{}, false
		}
		return netip.AddrFrom16([16]byte(buf[dstIP6:])), true
	default:
		return netip.Addr{}, false
	}
}

// transmit cuts a packet, seals the segments where they lie and sends them in
// as few pieces as the kernel takes; the last may stay in s, for more to join it.
// arm: the caller must see to it that the peer's timer runs in deadAfter.
func (w *WireGuard) transmit(s *sender, p *peer, kp *keypair, buf []byte, now int64) (arm bool, err error) {
	mtu := p.pathMTU()
	if fault := s.cut.Reset(buf, mtu); fault != packet.FaultNone {
		w.count.drop(DropMalformed)
		return false, ErrMalformed
	}
	if s.cut.Size() > mtu {
		w.count.drop(DropTooBig)
		return false, ErrTooBig
	}
	n := uint64(s.cut.Count()) // at least 1
	last, ok := kp.number(n)
	if !ok {
		w.count.drop(DropNoSession)
		return false, ErrFull
	}
	err = w.sealAll(s, p, kp, last-n, mtu)
	if p.owed.Load() != 0 {
		p.owed.Store(0)
	}
	arm = p.unanswered.Load() == 0 && p.unanswered.CompareAndSwap(0, now)
	return arm, err
}

// sealAll adds the segments of s.cut to the piece, with counters from first on,
// and sends what is full.
func (w *WireGuard) sealAll(s *sender, p *peer, kp *keypair, first uint64, mtu int) error {
	room := padded(s.cut.Size(), mtu)
	size := room + handshake.Overhead // of all messages but the last
	if !s.takes(p, size) {
		_ = w.flush(s) // earlier packets: what does not leave is counted, and not this one's fault
	}
	for {
		if !s.takes(p, size) {
			if err := w.flush(s); err != nil {
				return err
			}
		}
		body := s.buf[s.off+handshake.TransportHeader:]
		n, ok := s.cut.Next(body[:room])
		if !ok {
			break
		}
		s.add(p, s.seal(kp, s.off, pad(body, n, mtu), first), n)
		first++
	}
	if s.full() || s.off >= enough {
		return w.flush(s)
	}
	return nil
}

// takes reports whether a message of that length, or less, may follow in the
// piece.
func (s *sender) takes(p *peer, size int) bool {
	return s.count == 0 || s.to == p && size <= s.size && !s.full() && s.off+size <= udp.MaxPiece
}

// full reports whether nothing may follow.
func (s *sender) full() bool {
	return s.closed || s.count == udp.MaxSegments || s.count > 0 && s.off+s.size > udp.MaxPiece
}

// add notes that a message of that size, with a packet of n bytes, ends the
// piece now.
func (s *sender) add(p *peer, size, n int) {
	if s.count == 0 {
		s.to, s.size = p, size
	}
	s.off += size
	s.count++
	s.bytes += n
	s.closed = size < s.size
}

// empty forgets the piece.
func (s *sender) empty() {
	s.to, s.off, s.size, s.count, s.bytes, s.closed = nil, 0, 0, 0, 0, false
}

// padded is the length of a packet of n bytes inside a message.
func padded(n, mtu int) int { return max(n, min((n+padding-1)&^(padding-1), mtu)) }

// pad clears what is sent behind a packet of n bytes, and returns its padded
// length.
func pad(body []byte, n, mtu int) int {
	all := padded(n, mtu)
	clear(body[n:all])
	return all
}

// seal makes a transport message of the n bytes behind the header at off, and
// returns its length.
func (s *sender) seal(kp *keypair, off, n int, counter uint64) int {
	msg := s.buf[off:]
	handshake.PutTransport(msg, kp.remote, counter)
	binary.LittleEndian.PutUint64(s.nonce[4:], counter)
	body := msg[handshake.TransportHeader : handshake.TransportHeader+n]
	kp.send.Seal(body[:0], s.nonce[:], body, nil)
	return n + handshake.Overhead
}

// flush sends the piece, if there is one.
func (w *WireGuard) flush(s *sender) error {
	if s.count == 0 {
		return nil
	}
	defer s.empty()
	p := s.to
	switch err := w.wire.Send(s.buf[:s.off], s.size, *p.endpoint.Load()); {
	case errors.Is(err, udp.ErrNarrow):
		p.suspect()
	case err != nil:
		return w.sendFailed(err, s.count)
	}
	p.txBytes.Add(uint64(s.off))
	w.count.txSegments.Add(uint64(s.count))
	w.count.txBytes.Add(uint64(s.bytes))
	w.count.txDatagrams.Add(uint64(s.count))
	w.count.txBatches.Add(1)
	return nil
}

// sendFailed counts the messages of a piece that did not leave. Only a socket without room is
// the sender's affair: it is like a queue without room.
func (w *WireGuard) sendFailed(err error, messages int) error {
	w.count.drops[DropSend].Add(uint64(messages))
	if errors.Is(err, udp.ErrBusy) {
		return ErrFull
	}
	return nil
}

// post sends one message that is not a packet's.
func (w *WireGuard) post(msg []byte, to netip.AddrPort) error {
	if err := w.wire.Send(msg, len(msg), to); err != nil && !errors.Is(err, udp.ErrNarrow) {
		w.count.drop(DropSend)
		return err
	}
	w.count.txDatagrams.Add(1)
	w.count.txBatches.Add(1)
	return nil
}

// sendEmpty sends a keepalive.
func (w *WireGuard) sendEmpty(p *peer, kp *keypair) {
	s := w.borrow()
	defer w.senders.Put(s)
	last, ok := kp.number(1)
	if !ok {
		return
	}
	n := s.seal(kp, 0, 0, last-1)
	if w.post(s.buf[:n], *p.endpoint.Load()) == nil {
		p.txBytes.Add(uint64(n))
	}
}
