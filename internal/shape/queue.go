package shape

import (
	"sync"
	"sync/atomic"

	"github.com/netctl/netctl/internal/packet"
)

// slots is how many packets wait at most: of maxQueue, more than MTU-sized ones can
// be. Smaller ones are limited by their number.
const slots = 512

// sizes are those of buffers: for an ordinary packet, one of a few segments, the
// largest super-packet.
//
//nolint:gochecknoglobals // a table known at compile time
var sizes = [...]int{2 << 10, 8 << 10, packet.MaxSize}

// queue is a bounded queue for any number of producers and one consumer at a time,
// in which nobody waits for anybody: a slot's turn says whose it is (D. Vyukov's
// bounded queue). Buffers are shared between the slots, so an idle queue costs
// nothing but them.
type queue struct {
	slots [slots]slot
	tail  atomic.Uint64
	head  uint64 // the consumer's
	free  [len(sizes)]sync.Pool
}

type slot struct {
	turn atomic.Uint64 // position it is free for; that plus one when it is filled
	buf  *[]byte
	size int // of the packet in buf
}

func newQueue() *queue {
	q := new(queue)
	for i := range q.slots {
		q.slots[i].turn.Store(uint64(i))
	}
	return q
}

// push appends a copy of buf; it reports false when all slots are taken.
func (q *queue) push(buf []byte) bool {
	for {
		at := q.tail.Load()
		s := &q.slots[at%slots]
		switch turn := s.turn.Load(); {
		case turn == at && q.tail.CompareAndSwap(at, at+1):
			s.buf, s.size = q.buffer(len(buf)), len(buf)
			copy(*s.buf, buf)
			s.turn.Store(at + 1)
			return true
		case turn < at:
			return false
		}
	}
}

// front returns the oldest packet, nil when there is none yet.
func (q *queue) front() []byte {
	s := &q.slots[q.head%slots]
	if s.turn.Load() != q.head+1 {
		return nil
	}
	return (*s.buf)[:s.size]
}

// pop takes the oldest packet out.
func (q *queue) pop() {
	s := &q.slots[q.head%slots]
	q.recycle(s.buf)
	s.buf = nil
	s.turn.Store(q.head + slots)
	q.head++
}

func (q *queue) buffer(n int) *[]byte {
	class := 0
	for n > sizes[class] {
		class++
	}
	if b, ok := q.free[class].Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, sizes[class])
	return &b
}

func (q *queue) recycle(b *[]byte) {
	for class, size := range sizes {
		if len(*b) == size {
			q.free[class].Put(b)
		}
	}
}
