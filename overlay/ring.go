package overlay

import (
	"sync"
	"sync/atomic"
)

// ring is the queue from the router's workers to the one goroutine that feeds
// WireGuard: packets lie one behind the other in one block of memory, bounded
// in bytes and in number.
//
//	arena  |#### free ####|pkt 7|packet 8 .....|pkt 9| free |skip|
//	                       ^ head slot's          ^ write
//
// A packet is contiguous; what is left at the end of the arena is skipped and
// counted to the packet that did not fit. Producers reserve under the lock
// and copy outside of it; the consumer stops at the first packet whose copy
// is not complete. There is one consumer.
type ring struct {
	arena []byte
	slots []slot // length is a power of two

	mu         sync.Mutex
	head, tail uint64 // of slots; guarded by mu
	write      int    // next free byte of the arena; guarded by mu
	used       int    // bytes taken, skipped ones included; guarded by mu
	closed     bool   // guarded by mu

	asleep atomic.Bool   // the consumer waits, or is about to
	ready  chan struct{} // capacity 1: there may be something to take
}

type slot struct {
	to       *window
	off, len int
	cost     int // len and the bytes skipped before it
	full     atomic.Bool
}

// newRing returns a ring of that many bytes and packets (a power of two).
func newRing(bytes, packets int) *ring {
	return &ring{
		arena: make([]byte, bytes),
		slots: make([]slot, packets),
		ready: make(chan struct{}, 1),
	}
}

// put copies buf into the ring, or returns ErrFull or ErrClosed.
func (r *ring) put(buf []byte, to *window) error {
	s, err := r.reserve(len(buf))
	if err != nil {
		return err
	}
	s.to = to
	copy(r.arena[s.off:s.off+s.len], buf)
	s.full.Store(true)
	// Sequential consistency: the consumer sets asleep before it looks at full.
	if r.asleep.Load() {
		r.signal()
	}
	return nil
}

func (r *ring) reserve(n int) (*slot, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, ErrClosed
	}
	if r.tail-r.head == uint64(len(r.slots)) {
		return nil, ErrFull
	}
	off, skip := r.write, 0
	if rest := len(r.arena) - off; rest < n {
		off, skip = 0, rest
	}
	if r.used+skip+n > len(r.arena) {
		return nil, ErrFull
	}
	s := &r.slots[r.tail&uint64(len(r.slots)-1)]
	s.off, s.len, s.cost = off, n, skip+n
	r.write = off + n
	r.used += s.cost
	r.tail++
	return s, nil
}

// peek returns the oldest packet without taking it; nil when there is none.
// It is borrowed: valid until pop.
func (r *ring) peek() ([]byte, *window) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.head == r.tail {
		return nil, nil
	}
	s := &r.slots[r.head&uint64(len(r.slots)-1)]
	if !s.full.Load() {
		return nil, nil
	}
	return r.arena[s.off : s.off+s.len], s.to
}

// pop removes the packet that peek returned.
func (r *ring) pop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &r.slots[r.head&uint64(len(r.slots)-1)]
	s.full.Store(false)
	s.to = nil
	r.head++
	r.used -= s.cost
}

// wait returns when there may be something to peek, or the ring is closed.
func (r *ring) wait() (open bool) {
	r.asleep.Store(true)
	defer r.asleep.Store(false)
	if buf, _ := r.peek(); buf != nil {
		return true
	}
	if r.isClosed() {
		return false
	}
	<-r.ready
	return !r.isClosed()
}

func (r *ring) isClosed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closed
}

func (r *ring) signal() {
	select {
	case r.ready <- struct{}{}:
	default:
	}
}

// close makes put fail and wait return.
func (r *ring) close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.signal()
}
