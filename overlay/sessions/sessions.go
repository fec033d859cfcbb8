// Package sessions keeps WireGuard sessions where they outlive the process: in a
// file in memory that two processes may have mapped at once.
//
//	header   magic, layout, slots, epoch, owner, checksum | used
//	slot     seal | peer, indices, role, time, keys | confirmed, received, heard | sent
//	slot ...
//
// One slot is one key pair. The words between the bars never change while the
// seal stands: it is their checksum, written last and cleared first, so whoever
// is killed between any two stores leaves a slot that is whole or none. The
// words after it are counters.
//
// Invariants:
//   - No nonce is used twice, whoever is killed when, and however many processes
//     send: a sender takes numbers from the slot's word by one atomic addition
//     before it uses them, and that word only ever grows. A new session in an old
//     slot goes on counting where the last one ended, so a process that still
//     holds the old keys cannot meet a number that it had.
//     What is exported takes numbers along that this table does not give out any
//     more, and a slot that counts beyond [MaxSent] is never given out again.
//   - One process at a time gives out slots: who serves has [Store.Lock], which the
//     kernel frees at its end.
//   - Received counters are kept as their maximum alone, and before a packet is
//     passed on. Who takes over refuses all up to it: a replay is never accepted,
//     at the price of packets that were overtaken just then.
//   - Keys never reach a disk: a path on anything but tmpfs is not used, and the
//     table is this process's own memory. Swap is the exception: a file's pages are
//     locked against it while a process has them and where it may (RLIMIT_MEMLOCK).
//   - A file is judged before it is used, and refused with a reason. It is never
//     truncated: one that is refused is replaced by a new one under its name, so
//     whoever has it mapped keeps it.
//
// Test it with any bytes as a file; no root needed.
package sessions

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/netctl/netctl/internal/mapfile"
)

// KeySize is the length of all keys.
const KeySize = 32

// Session is one key pair of a peer.
type Session struct {
	Peer          [KeySize]byte // public key
	Local, Remote uint32        // indices
	Initiator     bool          // we began the handshake
	Created       int64         // nanoseconds since boot
	Confirmed     int64         // likewise: since when we send with it; 0: not yet
	Handshake     int64         // Unix nanoseconds
	Send, Receive [KeySize]byte
	Sent          uint64 // counters below it are used
	Received      uint64 // counters below it are refused
	// Heard is the greatest timestamp of the peer's handshakes: who takes over must
	// not answer one that was recorded.
	Heard [HeardSize]byte
}

const (
	// HeardSize is the length of a handshake's timestamp.
	HeardSize = 12
	// MaxSent is the highest counter that a session begins with or is found with:
	// far more than can be sent in its life, far below the end of numbers. A slot
	// that counts higher was written by something else, and is not used again.
	MaxSent = 1 << 60
	// lease is how many numbers Export gives away of each session.
	lease = 1 << 40
)

// Words of the header.
const (
	headMagic  = 0
	headLayout = 1
	headSlots  = 2
	headEpoch  = 3
	headOwner  = 4
	headSum    = 5
	headUsed   = 64 // slots below it have been used; a cache line of its own
	headWords  = mapfile.HeadWords

	magic  = 0x7373657367746c6e // "nltgsess"
	layout = 1 + mapfile.Layout
)

// Words of a slot. What changes lies in cache lines that nothing else of the
// hot path shares.
const (
	slotSeal      = 0
	slotPeer      = 1 // 4 words
	slotIndices   = 5 // local 32 | remote 32
	slotRole      = 6
	slotCreated   = 7
	slotSend      = 8  // 4 words
	slotReceive   = 12 // 4 words
	sealed        = 16 // words below it, but the seal, are immutable
	slotConfirmed = 16
	slotHandshake = 17
	slotReceived  = 18
	slotHeard     = 19 // 2 words
	slotSent      = 24
	slotWords     = 32
)

// Store is a table of sessions. Slots are its user's to give out; one slot is
// written by one goroutine at a time, and its counters by all.
type Store struct {
	words  []atomic.Uint64
	slots  int
	file   *file // nil: this process's memory
	report Report

	warn  func(error)
	swaps bool // keys cannot be kept out of swap; guarded by mu

	mu   sync.Mutex
	free []int // of the used ones; guarded by mu
	used int   // guarded by mu
	lost int   // of the used ones, never to be given out; guarded by mu
}

// ErrFull says that there is no slot left, or no memory for one.
var ErrFull = errors.New("no room for another session")

func sizeWords(slots int) int { return headWords + slots*slotWords }

func (s *Store) slot(i int) []atomic.Uint64 {
	at := headWords + i*slotWords
	return s.words[at : at+slotWords : at+slotWords]
}

// Slots returns how many there are.
func (s *Store) Slots() int { return s.slots }

// Report returns what Open found.
func (s *Store) Report() Report { return s.report }

// Alloc returns a slot that nobody has. It is empty until Put.
func (s *Store) Alloc() (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.free); n > 0 {
		i := s.free[n-1]
		s.free = s.free[:n-1]
		return i, nil
	}
	if s.used == s.slots {
		return 0, fmt.Errorf("%w: all %d slots are taken", ErrFull, s.slots)
	}
	if err := s.reserve(s.used + 1); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrFull, err)
	}
	i := s.used
	s.used++
	s.words[headUsed].Store(uint64(s.used)) // at most slots
	if s.poisoned(i) {
		s.lost++
		return 0, fmt.Errorf("%w: slot %d counts too high", ErrFull, i) // the next one may be good
	}
	return i, nil
}

// poisoned reports whether a slot's counter could come to the end of numbers.
func (s *Store) poisoned(i int) bool { return s.Sent(i).Load() > MaxSent }

// Claim is Alloc of a certain slot.
func (s *Store) Claim(i int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at := slices.Index(s.free, i); at >= 0 {
		s.free = slices.Delete(s.free, at, at+1)
		return nil
	}
	if i < s.used || i >= s.slots {
		return fmt.Errorf("%w: slot %d is taken or does not exist", ErrFull, i)
	}
	if err := s.reserve(i + 1); err != nil {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	for ; s.used < i; s.used++ {
		s.giveBack(s.used)
	}
	s.used = i + 1
	s.words[headUsed].Store(uint64(s.used)) // at most slots
	if s.poisoned(i) {
		s.lost++
		return fmt.Errorf("%w: slot %d counts too high", ErrFull, i)
	}
	return nil
}

// Free wipes a slot and gives it back.
func (s *Store) Free(i int) {
	s.wipe(i)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.giveBack(i)
}

// giveBack makes a slot free for Alloc. It needs mu.
func (s *Store) giveBack(i int) {
	if s.poisoned(i) {
		s.lost++
		return
	}
	s.free = append(s.free, i)
}

// wipe ends the session of a slot. Its sent counter stays: see the package comment.
func (s *Store) wipe(i int) {
	w := s.slot(i)
	w[slotSeal].Store(0)
	for k := 1; k < slotHeard+2; k++ {
		w[k].Store(0)
	}
}

// Put publishes a session in a slot that Alloc gave. Its Sent is a lower bound:
// the slot's own counter stands if it is higher.
func (s *Store) Put(i int, v *Session) {
	s.wipe(i)
	w := s.slot(i)
	putKey(w[slotPeer:], &v.Peer)
	w[slotIndices].Store(uint64(v.Local)<<32 | uint64(v.Remote))
	w[slotRole].Store(boolWord(v.Initiator))
	w[slotCreated].Store(uint64(v.Created))     // bits
	w[slotHandshake].Store(uint64(v.Handshake)) // bits
	putKey(w[slotSend:], &v.Send)
	putKey(w[slotReceive:], &v.Receive)
	w[slotConfirmed].Store(uint64(v.Confirmed)) // bits
	w[slotReceived].Store(v.Received)
	w[slotHeard].Store(binary.BigEndian.Uint64(v.Heard[:]))
	w[slotHeard+1].Store(uint64(binary.BigEndian.Uint32(v.Heard[8:])))
	for {
		sent := w[slotSent].Load()
		if sent >= v.Sent || w[slotSent].CompareAndSwap(sent, v.Sent) {
			break
		}
	}
	w[slotSeal].Store(seal(w))
}

// Confirm notes since when we send with the session of a slot.
func (s *Store) Confirm(i int, at, handshake int64) {
	w := s.slot(i)
	w[slotHandshake].Store(uint64(handshake)) // bits
	w[slotConfirmed].Store(uint64(at))        // bits
}

// Sent is the counter that senders take numbers from, by addition.
func (s *Store) Sent(i int) *atomic.Uint64 { return &s.slot(i)[slotSent] }

// Received is one more than the highest counter that was received.
func (s *Store) Received(i int) *atomic.Uint64 { return &s.slot(i)[slotReceived] }

// Load calls yield for every session that is whole, and makes all other slots
// free. Nothing may have been given out before.
func (s *Store) Load(yield func(i int, v *Session) bool) {
	s.mu.Lock()
	s.free, s.lost = s.free[:0], 0
	s.used = int(min(s.words[headUsed].Load(), uint64(s.slots))) // at most slots
	if err := s.reserve(s.used); err != nil {
		s.used = 0 // what cannot be read safely is not there
	}
	used := s.used
	s.mu.Unlock()
	for i := range used {
		v, ok := s.read(i)
		if !ok {
			s.Free(i)
			continue
		}
		if !yield(i, v) {
			return
		}
	}
}

// Export calls yield for every session that is whole, for a process with another
// table. Numbers are given along, 2^40 from Sent on: this table's own sessions
// go on counting behind them, so neither can meet a number of the other.
func (s *Store) Export(yield func(v *Session) bool) {
	for i := range int(min(s.words[headUsed].Load(), uint64(s.slots))) { // at most slots
		v, ok := s.read(i)
		if !ok {
			continue
		}
		if v.Sent = s.Sent(i).Add(lease) - lease; !yield(v) {
			return
		}
	}
}

// Lock keeps other processes from taking the file into use; Unlock, or the end
// of the process, ends that.
func (s *Store) Lock() error {
	if s.file == nil {
		return nil
	}
	return mapfile.LockFile(s.file.f, true)
}

// Unlock is for who has the lock, or may have it.
func (s *Store) Unlock() error {
	if s.file == nil {
		return nil
	}
	return mapfile.UnlockFile(s.file.f)
}

// read takes one session out; false: none, or torn.
func (s *Store) read(i int) (*Session, bool) {
	w := s.slot(i)
	mark := w[slotSeal].Load()
	if mark == 0 || mark != seal(w) || w[slotRole].Load() > 1 {
		return nil, false
	}
	indices := w[slotIndices].Load()
	v := &Session{
		Local: uint32(indices >> 32), Remote: uint32(indices), // halves
		Initiator: w[slotRole].Load() == 1,
		Created:   int64(w[slotCreated].Load()), Confirmed: int64(w[slotConfirmed].Load()), Handshake: int64(w[slotHandshake].Load()), // bits
		Sent: w[slotSent].Load(), Received: w[slotReceived].Load(),
	}
	getKey(w[slotPeer:], &v.Peer)
	getKey(w[slotSend:], &v.Send)
	getKey(w[slotReceive:], &v.Receive)
	binary.BigEndian.PutUint64(v.Heard[:], w[slotHeard].Load())
	binary.BigEndian.PutUint32(v.Heard[8:], uint32(w[slotHeard+1].Load())) // its half
	if v.Created < 0 || v.Sent > MaxSent {
		return nil, false
	}
	return v, w[slotSeal].Load() == mark // not changed meanwhile
}

func boolWord(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

// InUse returns how many slots are given out.
func (s *Store) InUse() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used - len(s.free) - s.lost
}
