package shape

import (
	"sync/atomic"
	"time"
)

const (
	// burst is how much of its time a limited port may make up for at once after it
	// was idle, or after those that serve it were late: a tick of a timer is a
	// millisecond, and on a busy machine several.
	burst = 25 * time.Millisecond
	// minBurst and maxBurst bound a burst that somebody asks for: below it the rate
	// is not reached, above it there is hardly a limit. Runtimes ask for 4 Gbit when
	// nothing is said of a burst.
	minBurst = 5 * time.Millisecond
	maxBurst = time.Second
	// queueTime is how long a packet waits at most for a port that is sent more than
	// its rate, as the reference plugin has it; minQueue is what a TCP connection
	// needs to keep a slow one busy, maxQueue what a fast one may cost.
	queueTime = 25 * time.Millisecond
	minQueue  = 32 << 10
	maxQueue  = 512 << 10
)

// Rate is a limit; the zero Rate is none.
type Rate struct {
	Bits  uint64 // per second, of IP packets
	Burst uint64 // bits that may pass at once after a pause; 0: what suits the rate
}

// Limits are those of one port.
type Limits struct {
	In  Rate // what it is sent
	Out Rate // what it sends
}

// pace is a Rate, ready for use. It is immutable.
type pace struct {
	rate    Rate
	perByte float64 // nanoseconds
	depth   int64   // nanoseconds: the burst
	queue   int64   // bytes
}

// paceOf returns nil for no limit.
func paceOf(r Rate) *pace {
	if r.Bits == 0 {
		return nil
	}
	p := &pace{rate: r, perByte: 8 * float64(time.Second) / float64(r.Bits), depth: int64(burst)}
	if r.Burst > 0 {
		asked := float64(r.Burst) / 8 * p.perByte
		p.depth = int64(min(max(asked, float64(minBurst)), float64(maxBurst)))
	}
	p.queue = int64(min(max(float64(queueTime)/p.perByte, minQueue), maxQueue))
	return p
}

// bucket holds one direction to its rate. What has passed is due at a moment; the
// next packet passes when that moment is there, whatever its size: it goes into
// debt by that. So a super-packet passes a slow port, and the rate holds over time.
// There is no lock to wait for.
type bucket struct {
	pace atomic.Pointer[pace] // nil: no limit
	due  atomic.Int64         // nanoseconds of the Shaper's clock
}

// set changes the rate and forgives what is owed under the one before.
func (b *bucket) set(p *pace, now int64) {
	b.pace.Store(p)
	b.due.Store(min(b.due.Load(), now))
}

// take lets a packet of n bytes pass, or says that it is too early.
func (b *bucket) take(p *pace, now int64, n int) bool {
	cost := int64(float64(n) * p.perByte)
	for {
		due := b.due.Load()
		if due > now {
			return false
		}
		if b.due.CompareAndSwap(due, max(due, now-p.depth)+cost) {
			return true
		}
	}
}

// wait returns how long the next packet has to wait.
func (b *bucket) wait(now int64) time.Duration {
	return time.Duration(max(b.due.Load()-now, 0))
}
