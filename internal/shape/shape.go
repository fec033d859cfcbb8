// Package shape holds a port's traffic to a rate in each direction.
//
//	what the port sends     is left where it is, in its own device, until its time has come
//	what the port is sent   waits in a short queue, and is dropped when that is full
//
// A packet counts with its IP bytes, a super-packet with all of its. The walk
// never waits here: a bucket is one atomic word, the queue has no lock, and what
// waits is written by a timer's goroutine. A port without limits has no Shaper.
//
// Tests run on a fake clock.
package shape

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/netctl/netctl/internal/packet"
)

// ErrFull means that more waits for the port than its rate allows for.
var ErrFull = errors.New("more than the port's rate")

// Shaper holds one port to its limits. Its methods may be called by any goroutine,
// but Wait and Sent by one at a time.
type Shaper struct {
	write func([]byte) error
	began time.Time // the clock's zero
	in    bucket
	out   bucket

	waiting atomic.Int64 // bytes that wait, until they are written
	armed   atomic.Bool  // somebody will look at the queue
	queue   *queue
	timer   *time.Timer

	held, heldBytes  atomic.Uint64
	dropped          atomic.Uint64
	pauses, pausedNs atomic.Uint64

	mu sync.Mutex // of those who empty the queue
}

// Stats are what limits did to a port.
type Stats struct {
	Limits Limits
	// Held are packets to the port that waited for their time, Dropped those that
	// found the queue full. Waiting are the bytes that wait now.
	Held, HeldBytes, Dropped uint64
	Waiting                  int64
	// Pauses is how often the port's own packets were left in its device, Paused for
	// how long altogether.
	Pauses uint64
	Paused time.Duration
}

// New returns a Shaper without limits for the port that write writes to.
func New(write func([]byte) error) *Shaper {
	s := &Shaper{write: write, began: time.Now(), queue: newQueue()}
	s.timer = time.AfterFunc(time.Hour, s.drain)
	s.timer.Stop()
	return s
}

func (s *Shaper) now() int64 { return int64(time.Since(s.began)) }

// Set changes the limits, from the next packet on. What waits is held to them, too.
func (s *Shaper) Set(l Limits) {
	if s.Limits() == l {
		return
	}
	now := s.now()
	s.in.set(paceOf(l.In), now)
	s.out.set(paceOf(l.Out), now)
	if s.waiting.Load() > 0 {
		s.timer.Reset(0)
	}
}

// Limits returns what was set.
func (s *Shaper) Limits() Limits {
	var l Limits
	if p := s.in.pace.Load(); p != nil {
		l.In = p.rate
	}
	if p := s.out.pace.Load(); p != nil {
		l.Out = p.rate
	}
	return l
}

// Wait returns how long the port's next packet has to stay unread, 0 when its time
// has come.
func (s *Shaper) Wait() time.Duration {
	if s.out.pace.Load() == nil {
		return 0
	}
	return s.out.wait(s.now())
}

// Sent counts a packet that was read from the port, with its virtio-net header.
func (s *Shaper) Sent(n int) {
	if p := s.out.pace.Load(); p != nil {
		s.out.take(p, s.now(), n-packet.VNetLen)
	}
}

// Paused counts a pause.
func (s *Shaper) Paused(d time.Duration) {
	s.pauses.Add(1)
	s.pausedNs.Add(uint64(d))
}

// Write sends a packet to the port: now, or when its time has come, in order. It
// does not keep buf. The error is the port's or ErrFull.
func (s *Shaper) Write(buf []byte) error {
	n, p, limit := len(buf)-packet.VNetLen, s.in.pace.Load(), int64(maxQueue)
	if s.waiting.Load() == 0 && (p == nil || s.in.take(p, s.now(), n)) {
		return s.write(buf)
	}
	if p != nil {
		limit = p.queue
	}
	// Whoever finds room gets in whole, or a slow port would never be sent a
	// super-packet.
	if s.waiting.Add(int64(n))-int64(n) >= limit || !s.queue.push(buf) {
		s.waiting.Add(-int64(n))
		s.dropped.Add(1)
		return ErrFull
	}
	s.held.Add(1)
	s.heldBytes.Add(uint64(n))
	if s.armed.CompareAndSwap(false, true) {
		s.timer.Reset(s.in.wait(s.now()))
	}
	return nil
}

// drain writes what may pass, and comes again for the rest.
func (s *Shaper) drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		buf := s.queue.front()
		if buf == nil {
			s.armed.Store(false)
			// Who came in between has found it armed, and counts on us.
			if s.queue.front() == nil || !s.armed.CompareAndSwap(false, true) {
				return
			}
			continue
		}
		n := len(buf) - packet.VNetLen
		if p, now := s.in.pace.Load(), s.now(); p != nil && !s.in.take(p, now, n) {
			s.timer.Reset(s.in.wait(now))
			return
		}
		if err := s.write(buf); err != nil {
			s.dropped.Add(1) // its device is full or gone
		}
		s.queue.pop()
		s.waiting.Add(-int64(n))
	}
}

// Stats returns what the limits did.
func (s *Shaper) Stats() Stats {
	return Stats{
		Limits: s.Limits(), Held: s.held.Load(), HeldBytes: s.heldBytes.Load(), Dropped: s.dropped.Load(), Waiting: s.waiting.Load(),
		Pauses: s.pauses.Load(), Paused: time.Duration(s.pausedNs.Load()),
	}
}
