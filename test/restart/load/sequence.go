package load

import (
	"sync"
	"time"
)

// window is how many numbers a sequence remembers: more than a minute of a
// thousand a second.
const window = 1 << 17

// sequence says what happened to numbered packets, at their receiver.
type sequence struct {
	mu      sync.Mutex
	begun   bool
	highest uint64
	seen    [window / 64]uint64 // the numbers up to highest, by their last bits
	last    time.Time           // when one came
	sent    time.Duration       // when the newest was sent, by the sender's clock
	counts  Counts
}

// arrive notes a packet. A packet that is older than the window counts as late, and
// as lost, which it was for whoever waited.
func (s *sequence) arrive(number uint64, sent time.Duration, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.begun {
		s.counts.Gap = max(s.counts.Gap, now.Sub(s.last))
	} else {
		s.begun, s.highest = true, number-1
	}
	s.last, s.sent = now, max(s.sent, sent)
	switch {
	case number > s.highest:
		missing := number - s.highest - 1
		s.counts.Sent += int(missing) + 1
		s.counts.Lost += int(missing)
		if missing >= window {
			s.seen = [window / 64]uint64{}
		} else {
			for n := s.highest + 1; n <= number; n++ {
				s.forget(n)
			}
		}
		s.highest = number
		s.remember(number)
	case s.highest-number >= window:
		s.counts.Reordered++
	case s.remembers(number):
		s.counts.Duplicates++
	default:
		s.remember(number)
		s.counts.Reordered++
		s.counts.Lost--
	}
}

func (s *sequence) bit(n uint64) (word *uint64, mask uint64) {
	n %= window
	return &s.seen[n/64], 1 << (n % 64)
}

func (s *sequence) remember(n uint64) {
	word, mask := s.bit(n)
	*word |= mask
}

func (s *sequence) forget(n uint64) {
	word, mask := s.bit(n)
	*word &^= mask
}

func (s *sequence) remembers(n uint64) bool {
	word, mask := s.bit(n)
	return *word&mask != 0
}

// astray notes a packet that came to, or from, somebody else.
func (s *sequence) astray() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.Wrong++
}

// fail notes an error of the socket.
func (s *sequence) fail() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.Failed++
}

// newest returns when the newest packet that came was sent.
func (s *sequence) newest() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent
}

// cut returns the counts and begins again. A silence that goes on counts here, and
// in the next counts it counts whole.
func (s *sequence) cut(now time.Time) Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.counts
	if s.begun {
		c.Gap = max(c.Gap, now.Sub(s.last))
	}
	s.counts = Counts{}
	return c
}
