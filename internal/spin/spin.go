// Package spin says how long somebody who waits for packets looks again before it
// sleeps, so that two ends that talk do without its wake-ups.
package spin

import (
	"time"

	"github.com/netctl/netctl/internal/kernel"
)

const (
	// spinLooks is how often a worker that has just carried packets looks again in
	// any case: a wake-up costs more than a few empty looks.
	spinLooks = 8
	// spinTime is how long it goes on looking when that pays: about as long as the
	// two ends of a conversation take between two packets, whose round trip then
	// does without the worker's two wake-ups (half of it). Whoever takes longer
	// to answer does not notice one.
	spinTime = 50 * time.Microsecond
	// spareTime is for how long an answer to the question holds whether there is a
	// processor to spare.
	spareTime = time.Millisecond
)

// Spin says whether a worker that found nothing to carry looks again or sleeps.
// Beyond a few looks, it goes on when the last sleep was so short that looking
// would have been better, and never when somebody else could use the processor.
type Spin struct {
	spare func() bool      // whether there is a processor to spare
	now   func() time.Time // the clock
	end   func() error

	looks   int  // in vain since the last packet
	long    bool // look for spinTime
	pays    bool // the last sleep was a short one
	since   time.Time
	spared  bool // the last answer of spare
	checked time.Time
}

// New returns a Spin for one goroutine.
func New() *Spin {
	c := &calm{delay: kernel.NewDelay(), now: time.Now}
	return &Spin{spare: c.spare, now: time.Now, end: c.delay.Close}
}

// Close ends it.
func (s *Spin) Close() error { return s.end() }

// Again reports whether to look again at once.
func (s *Spin) Again() bool {
	if s.looks < spinLooks {
		return true
	}
	now := s.now()
	if s.looks == spinLooks {
		s.since = now
		s.long = s.pays && s.roomy(now)
	}
	return s.long && now.Sub(s.since) < spinTime
}

// roomy asks spare, but not for every packet.
func (s *Spin) roomy(now time.Time) bool {
	if s.checked.IsZero() || now.Sub(s.checked) >= spareTime {
		s.checked, s.spared = now, s.spare()
	}
	return s.spared
}

// Looked records the end of a look, in which something was carried or not, or of
// a sleep.
func (s *Spin) Looked(carried, slept bool) {
	switch {
	case slept:
		s.pays = s.now().Sub(s.since) < spinTime
		s.looks = 0
	case carried:
		s.looks = 0
	default:
		s.looks++
	}
}

// calm tells whether the worker gets the processor when it wants it, by how long it
// waited for one since the last answer.
type calm struct {
	delay  *kernel.Delay
	now    func() time.Time
	thread int
	waited time.Duration
	at     time.Time
	last   bool
}

// spare is spin's: no as long as others take more than a tenth of the time.
func (c *calm) spare() bool {
	thread, waited, err := c.delay.Waited()
	now := c.now()
	switch {
	case err != nil:
		c.last = false // where the kernel does not say, somebody else may need it
	case thread == c.thread:
		c.last = (waited-c.waited)*10 <= now.Sub(c.at)
	}
	c.thread, c.waited, c.at = thread, waited, now
	return c.last
}
