// Package pathmtu finds how large a packet the way to a peer carries, where routers
// keep silent about what they drop, or their ICMP is filtered: both ends of a
// tunnel ask each other. It has no clock, no sockets and no locks; who uses it
// sends what [Search.Next] says, and tells it what was answered.
//
// In a round, which begins with every new session, under traffic every few seconds,
// and when the kernel has to cut datagrams, the peer is sent a probe of the largest packet and one of the floor:
//
//	both answered     nothing changes
//	the floor alone   the largest packet is the floor from now on, and a search
//	                  between the two raises it again
//	neither           the peer knows no probes, or is not there: nothing is learnt
//
// What is found holds for [Expiry], then the largest packet is tried again.
//
// Probes are packets inside the tunnel, so nobody else can answer or forge them,
// as ICMP can be; WireGuard elsewhere drops them, because they are no IP. The
// kernel's own knowledge, from ICMP, is the ceiling of a round: it can only lower
// the result, and not below the floor.
package pathmtu

import (
	"encoding/binary"
	"math/rand/v2"
	"time"
)

const (
	// Floor is what every way is believed to carry: with less there is no IPv6.
	Floor = 1280
	// Expiry is for how long a search's result holds.
	Expiry = 10 * time.Minute

	grain = 8 // how exactly the size is found
	tries = 4 // how often a size is asked for
	wait  = 300 * time.Millisecond
)

// Probe asks whether a packet of a size arrives, or says that it has.
type Probe struct {
	Answer bool
	Size   int // of the probe; an answer repeats it
	ID     uint64
}

// Size is the length of an answer, and the least of a probe: four bytes that say
// what it is, of which the first four bits are no version of IP; the length; the
// number. Zeros follow up to the probe's length.
const Size = 16

const (
	kindAsk    = 0x016e6374
	kindAnswer = 0x026e6374
)

// Put writes p to the first bytes of b.
func (p Probe) Put(b []byte) {
	kind := uint32(kindAsk)
	if p.Answer {
		kind = kindAnswer
	}
	binary.BigEndian.PutUint32(b, kind)
	binary.BigEndian.PutUint32(b[4:], uint32(p.Size)) // a packet's length
	binary.BigEndian.PutUint64(b[8:], p.ID)
}

// Parse reads what came out of the tunnel; false: it is no probe. The size that it
// names is the one that it has, or an answer's.
func Parse(b []byte) (p Probe, ok bool) {
	if len(b) < Size {
		return Probe{}, false
	}
	kind := binary.BigEndian.Uint32(b)
	p = Probe{Answer: kind == kindAnswer, Size: int(binary.BigEndian.Uint32(b[4:])), ID: binary.BigEndian.Uint64(b[8:])}
	return p, p.Answer || kind == kindAsk && p.Size == len(b)
}

// Search is what is known of one way. Times are in nanoseconds since any moment
// but the first.
type Search struct {
	most int // the largest packet that there can be
	mtu  int // what holds now

	due     int64 // when something is to be done, 0: nothing is under way
	size    int   // what is asked for now, 0: a round is to begin
	id      uint64
	asked   int  // how often
	floor   bool // the floor was answered
	first   int  // the round's first size
	good    int  // the largest that was answered in this round
	bad     int  // the smallest that was not
	heard   bool // anything was ever answered
	began   int64
	settled int64 // when a search had its result
}

// New returns a search that knows nothing, for packets up to a size.
func New(most int) Search { return Search{most: most, mtu: most} }

// MTU returns the largest packet.
func (s *Search) MTU() int { return s.mtu }

// Due returns when Next is to be called, 0: no round is under way.
func (s *Search) Due() int64 { return s.due }

// Began returns when the last round began, 0: there was none.
func (s *Search) Began() int64 { return s.began }

// Heard reports whether the peer knows probes.
func (s *Search) Heard() bool { return s.heard }

// Begin begins a round, unless one is under way, or there is nothing to find.
func (s *Search) Begin(now int64) {
	if s.due == 0 && s.most > Floor {
		s.size, s.due = 0, now
	}
}

// End ends the round.
func (s *Search) End() { s.due = 0 }

// Next does what is due: it returns the probes to send, 0 for none. ceiling is the
// largest packet that is worth a try.
func (s *Search) Next(ceiling int, now int64) (one, two Probe) {
	ceiling = max(Floor, min(ceiling, s.most))
	switch {
	case s.due == 0:
		return Probe{}, Probe{}
	case s.size == 0:
		s.began, s.good, s.bad, s.first = now, 0, ceiling+1, ceiling
		if s.mtu < ceiling && s.settled != 0 && now-s.settled < int64(Expiry) {
			s.first = s.mtu
		}
		s.ask(s.first)
	case s.asked == tries && !s.floor:
		s.due = 0
		return Probe{}, Probe{}
	case s.asked == tries:
		s.good, s.bad = max(s.good, Floor), s.size
		if s.narrow(now); s.due == 0 {
			return Probe{}, Probe{}
		}
	}
	s.asked++
	s.due = now + int64(wait)
	one = Probe{Size: s.size, ID: s.id}
	if s.size != Floor {
		two = Probe{Size: Floor, ID: s.id}
	}
	return one, two
}

// Answered takes an answer. Next may be due at once.
func (s *Search) Answered(p Probe, ceiling int, now int64) {
	if s.due == 0 || s.size == 0 || p.ID != s.id {
		return
	}
	s.heard = true
	ceiling = max(Floor, min(ceiling, s.most))
	switch {
	case p.Size != s.size:
		s.floor = s.floor || p.Size == Floor
	case s.size > ceiling: // it came, but in fragments
		s.first, s.bad = ceiling, ceiling+1
		s.ask(ceiling)
		s.due = now
	case s.size == s.first:
		s.mtu, s.due = s.size, 0
	default:
		s.good = s.size
		s.narrow(now)
	}
}

// ask goes on with another size.
func (s *Search) ask(size int) { s.size, s.asked, s.floor, s.id = size, 0, false, rand.Uint64() }

// narrow goes on between what is good and what is not, or ends the round.
func (s *Search) narrow(now int64) {
	s.mtu = s.good
	if s.bad-s.good <= grain {
		s.due, s.settled = 0, now
		return
	}
	s.ask((s.good + s.bad) / 2)
	s.due = now
}
