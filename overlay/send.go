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

// sender is what one call of Send needs: the piece that is being made. They are
// pooled.
type sender struct {
	cut   packet.Segmenter
	buf   []byte
	nonce [chacha20poly1305.NonceSize]byte
}

func newSender() *sender { return &sender{buf: make([]byte, udp.MaxPiece)} }

// Send implements Engine.
func (w *WireGuard) Send(buf []byte) error {
	if !w.enter() {
		if done, err := w.sendEarly(buf); done {
			return err
		}
		if !w.enter() {
			return ErrClosed
		}
	}
	defer w.leave()
	p, err := w.route(buf)
	if err != nil {
		return err
	}
	now := w.clock.now()
	kp := p.current.Load()
	if !kp.good(now) {
		if err = p.hold(buf, now); err == nil {
			w.count.txPackets.Add(1)
		}
		return err
	}
	arm, err := w.transmit(p, kp, buf, now)
	if arm { // also when the socket had no room: a part of the packet may have left
		p.remind(now + int64(deadAfter))
	}
	if kp.worn(now) && kp.renewing.CompareAndSwap(false, true) {
		p.mu.Lock()
		p.initiate(now)
		p.mu.Unlock()
	}
	if err != nil {
		return err
	}
	w.count.txPackets.Add(1)
	return nil
}

// sendEarly is Send before Start, when packets wait as they do for a handshake;
// after Stop nothing waits. done is false when the engine runs by now.
func (w *WireGuard) sendEarly(buf []byte) (done bool, err error) {
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
	if err = p.hold(buf, w.clock.now()); err == nil {
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
// as few pieces as the kernel takes. arm: the caller must see to it that the
// peer's timer runs in deadAfter.
func (w *WireGuard) transmit(p *peer, kp *keypair, buf []byte, now int64) (arm bool, err error) {
	s, ok := w.senders.Get().(*sender)
	if !ok {
		s = newSender()
	}
	defer w.senders.Put(s)
	if fault := s.cut.Reset(buf, w.cfg.MTU); fault != packet.FaultNone {
		w.count.drop(DropMalformed)
		return false, ErrMalformed
	}
	if s.cut.Size() > w.cfg.MTU {
		w.count.drop(DropTooBig)
		return false, ErrTooBig
	}
	n := uint64(s.cut.Count()) // at least 1
	last, ok := kp.number(n)
	if !ok {
		w.count.drop(DropNoSession)
		return false, ErrFull
	}
	err = w.sealAll(p, kp, s, last-n)
	if p.owed.Load() != 0 {
		p.owed.Store(0)
	}
	arm = p.unanswered.Load() == 0 && p.unanswered.CompareAndSwap(0, now)
	return arm, err
}

// sealAll sends the segments of s.cut, with counters from first on.
func (w *WireGuard) sealAll(p *peer, kp *keypair, s *sender, first uint64) error {
	room := w.padded(s.cut.Size())
	size := room + handshake.Overhead // of all datagrams but the last
	most := max(1, min(udp.MaxSegments, udp.MaxPiece/size))
	off, count, bytes := 0, 0, 0
	for {
		body := s.buf[off+handshake.TransportHeader:]
		n, ok := s.cut.Next(body[:room])
		if !ok {
			break
		}
		off += s.seal(kp, off, w.pad(body, n), first)
		first++
		count++
		bytes += n
		if count == most || off < count*size { // full, or a short one, which ends a piece
			if err := w.flush(p, s.buf[:off], size, count, bytes); err != nil {
				return err
			}
			off, count, bytes = 0, 0, 0
		}
	}
	if count == 0 {
		return nil
	}
	return w.flush(p, s.buf[:off], size, count, bytes)
}

// padded is the length of a packet of n bytes inside a message.
func (w *WireGuard) padded(n int) int {
	return max(n, min((n+padding-1)&^(padding-1), w.cfg.MTU))
}

// pad clears what is sent behind a packet of n bytes, and returns its padded
// length.
func (w *WireGuard) pad(body []byte, n int) int {
	padded := w.padded(n)
	clear(body[n:padded])
	return padded
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

// flush sends a piece.
func (w *WireGuard) flush(p *peer, piece []byte, size, count, bytes int) error {
	if err := w.wire.Send(piece, size, *p.endpoint.Load()); err != nil {
		return w.sendFailed(err)
	}
	p.txBytes.Add(uint64(len(piece)))
	w.count.txSegments.Add(uint64(count))
	w.count.txBytes.Add(uint64(bytes))
	w.count.txDatagrams.Add(uint64(count))
	w.count.txBatches.Add(1)
	return nil
}

// sendFailed counts a piece that did not leave. Only a socket without room is
// the sender's affair: it is like a queue without room.
func (w *WireGuard) sendFailed(err error) error {
	w.count.drop(DropSend)
	if errors.Is(err, udp.ErrBusy) {
		return ErrFull
	}
	return nil
}

// post sends one message that is not a packet's.
func (w *WireGuard) post(msg []byte, to netip.AddrPort) error {
	if err := w.wire.Send(msg, len(msg), to); err != nil {
		w.count.drop(DropSend)
		return err
	}
	w.count.txDatagrams.Add(1)
	w.count.txBatches.Add(1)
	return nil
}

// sendEmpty sends a keepalive.
func (w *WireGuard) sendEmpty(p *peer, kp *keypair) {
	s, ok := w.senders.Get().(*sender)
	if !ok {
		s = newSender()
	}
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
