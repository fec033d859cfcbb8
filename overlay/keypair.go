package overlay

import (
	"crypto/cipher"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.zx2c4.com/wireguard/replay"

	"github.com/netctl/netctl/overlay/handshake"
	"github.com/netctl/netctl/overlay/sessions"
)

// The limits of a session, from the whitepaper's section 6.1.
const (
	rekeyAfterMessages  = 1 << 60
	rejectAfterMessages = 1<<64 - 1<<13 - 1
	rekeyAfterTime      = 120 * time.Second
	rejectAfterTime     = 180 * time.Second
	// rekeyLater is added to rekeyAfterTime at the end with the higher key: when
	// both ends began a session at once, only one renews them.
	rekeyLater = 5 * time.Second
	// renewJitter spreads the renewal of sessions that were made in one moment, as
	// those of a node that starts. It is less than rekeyLater.
	renewJitter = 4 * time.Second
)

// keypair is one session's keys and counters.
type keypair struct {
	peer          *peer
	slot          int
	local, remote uint32
	initiator     bool
	created       int64         // since boot
	renew         time.Duration // age at which we, as initiator, renew it
	confirmed     atomic.Bool   // it is, or was, what we send with
	renewing      atomic.Bool   // a handshake was asked for

	send    cipher.AEAD
	sent    *atomic.Uint64 // the store's
	base    uint64         // sent when it was made
	receive cipher.AEAD

	mu       sync.Mutex
	received *atomic.Uint64 // the store's; guarded by mu
	floor    uint64         // counters below it were for the process before us; immutable
	filter   replay.Filter  // guarded by mu
	retired  bool           // the slot is somebody else's; guarded by mu
}

// newKeypair publishes a session in the slot and makes what is needed to use it.
func (p *peer) newKeypair(slot int, v *sessions.Session) (*keypair, error) {
	p.w.store.Put(slot, v)
	kp, err := p.w.openKeypair(slot, v)
	if err != nil {
		return nil, err
	}
	p.own(kp)
	return kp, nil
}

// openKeypair makes what is needed to use a session that is in the store.
func (w *WireGuard) openKeypair(slot int, v *sessions.Session) (*keypair, error) {
	kp := &keypair{
		slot: slot, local: v.Local, remote: v.Remote, initiator: v.Initiator, created: v.Created, renew: rekeyAfterTime,
		sent: w.store.Sent(slot), received: w.store.Received(slot), floor: v.Received,
	}
	kp.base = kp.sent.Load()
	kp.confirmed.Store(v.Confirmed != 0)
	var err, err2 error
	kp.send, err = chacha20poly1305.New(v.Send[:])
	kp.receive, err2 = chacha20poly1305.New(v.Receive[:])
	return kp, errors.Join(err, err2)
}

// own makes the key pair p's, for receivers to find. It needs p.mu.
func (p *peer) own(kp *keypair) {
	kp.peer = p
	kp.renew = rekeyAfterTime + rand.N(renewJitter)
	if !p.lower {
		kp.renew += rekeyLater
	}
	p.w.table[kp.slot].Store(kp)
}

// retire ends a key pair; nil is none. It needs the peer's mu.
func (w *WireGuard) retire(kp *keypair) {
	if kp == nil {
		return
	}
	kp.mu.Lock()
	kp.retired = true
	kp.mu.Unlock()
	w.table[kp.slot].CompareAndSwap(kp, nil)
	w.store.Free(kp.slot)
}

// good reports whether the session may still be used.
func (kp *keypair) good(now int64) bool { return kp != nil && now-kp.created < int64(rejectAfterTime) }

// worn reports whether the sender must ask for a new session.
func (kp *keypair) worn(now int64) bool {
	return kp.initiator && now-kp.created > int64(kp.renew) || kp.sent.Load()-kp.base > rekeyAfterMessages
}

// number takes n numbers for messages, and returns one more than the last. They
// are ours before they are used, and nobody's after, whatever becomes of us.
// false: the session has none left.
func (kp *keypair) number(n uint64) (last uint64, ok bool) {
	if kp.sent.Load() >= rejectAfterMessages { // or the sum could begin anew
		return 0, false
	}
	last = kp.sent.Add(n)
	return last, last <= rejectAfterMessages
}

// accept reports whether an authentic message with that counter is new, and
// notes it: in the store first, so that no process ever accepts it again.
func (kp *keypair) accept(counter uint64) bool {
	kp.mu.Lock()
	defer kp.mu.Unlock()
	if kp.retired || counter < kp.floor || !kp.filter.ValidateCounter(counter, rejectAfterMessages) {
		return false
	}
	if counter >= kp.received.Load() {
		kp.received.Store(counter + 1)
	}
	return true
}

// newIndex returns an index that leads to the slot and says nothing else.
func (w *WireGuard) newIndex(slot int) (uint32, error) {
	var b [4]byte
	if _, err := crand.Read(b[:]); err != nil {
		return 0, fmt.Errorf("session index: %w", err)
	}
	n := uint32(len(w.table))                                          // a power of two, see sessions.DefaultSlots
	return binary.NativeEndian.Uint32(b[:])&^(n-1) | uint32(slot), nil // below n
}

// find returns the key pair of a transport message.
func (w *WireGuard) find(index uint32) *keypair {
	kp := w.table[int(index)&(len(w.table)-1)].Load()
	if kp == nil || kp.local != index {
		return nil
	}
	return kp
}

// session describes keys that a handshake gave.
func (p *peer) session(local, remote uint32, initiator bool, keys *handshake.Keys, now int64) *sessions.Session {
	v := &sessions.Session{
		Peer: p.key, Local: local, Remote: remote, Initiator: initiator, Created: now, Send: keys.Send, Receive: keys.Receive,
		Heard: p.heard,
	}
	if initiator {
		v.Confirmed, v.Handshake = now, time.Now().UnixNano()
	}
	return v
}
