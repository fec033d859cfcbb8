package flow

import "github.com/netctl/netctl/internal/packet"

// expireParts is the number of calls of Expire that look at the whole table.
const expireParts = 60

// Expire looks at the next sixtieth of the table and forgets what has been idle
// for longer than its timeout. Called once a second it is a clock hand that
// comes by every minute. It returns the number of connections that it freed.
//
// In the first minute it verifies what Open took over. When a process that shared
// the table has died since, it repairs what that one left: writers wait meanwhile.
func (t *Table) Expire(now uint32) int {
	if t.file.Died() {
		t.mend()
	}
	part := (t.bucketMask + expireParts) / expireParts
	hand := t.hand.Add(part) - part
	verify := t.unverified.Load() > 0
	if verify {
		t.unverified.Add(-int64(part))
	}
	freed := 0
	for n := range part {
		b := (hand + n) & t.bucketMask
		if verify {
			t.verify(b)
		}
		for m := usedTags(t.tags[b].Load()); m != 0; m &= m - 1 {
			c, ok := t.inspect(b*bucketSize+firstTag(m), now)
			if ok && !c.reverse && c.expired && t.remove(c.ref) {
				freed++
			}
		}
	}
	t.stats.expired.Add(uint64(freed))
	return freed
}

// usedTags returns a word with the high bit of every byte set that is not zero.
func usedTags(word uint64) uint64 { return ^matchTags(word, 0) & highBits }

// candidate is what eviction and expiry need to know of a slot.
type candidate struct {
	ref              Ref
	owner            uint32
	age              uint32
	state            State
	reverse, expired bool
}

// inspect reads slot i and the last packet of both directions.
func (t *Table) inspect(i, now uint32) (candidate, bool) {
	var w key
	var e Entry
	s := &t.slots[i]
	seq, partner, ok := s.snapshot(&w, &e)
	if !ok || partner >= t.nslots {
		return candidate{}, false
	}
	pull(s, now)
	pull(&t.slots[partner], now)
	seen := e.LastSeen
	if o := activity(t.slots[partner][wordActivity].Load()).lastSeen(); after(o, seen) > 0 {
		seen = o
	}
	k := w.tuple()
	c := candidate{ref: makeRef(i, seq), owner: e.Owner, state: e.State, reverse: e.Flags&FlagReverse != 0}
	if age := after(now, seen); age > 0 {
		c.age = uint32(age)
	}
	port := k.DstPort
	if c.reverse {
		port = k.SrcPort
	}
	c.expired = c.age > t.timeouts.of(k.Proto, e.State, port)
	return c, true
}

// maxSkew is how many seconds the clocks of workers may differ.
const maxSkew = 2

// pull brings a last packet from the future (the clock was set back, or the
// file lies) to now, so that the entry ages like any other.
func pull(s *slot, now uint32) {
	a := activity(s[wordActivity].Load())
	if after(a.lastSeen(), now) > maxSkew {
		s[wordActivity].CompareAndSwap(uint64(a), uint64(makeActivity(now, a.state(), a.frontSlot())))
	}
}

// rank says how little a connection is worth; 0 may not be evicted.
func (c *candidate) rank(own bool) int {
	switch {
	case c.expired:
		return 3
	case c.state.Over():
		return 2
	case c.state.unanswered(), own && c.state == Replied:
		return 1
	default:
		return 0
	}
}

// worse keeps the least worthy of two candidates, the longest idle among equals.
func (c *candidate) worse(o *candidate, own bool) bool {
	if a, b := c.rank(own), o.rank(own); a != b {
		return a > b
	}
	return c.age > o.age
}

// Insert looks for something that a full owner can do without in ownerScan buckets
// at a time, at the default sizes about eight of its slots. Once in three thousand
// times not one is there, so it looks further then: up to ownerScans times, or the
// pod would be refused a connection although it has others that are over. Who has
// nothing but live connections pays for that with each try.
const (
	ownerScan  = 16
	ownerScans = 8
)

// makeRoom evicts one connection after an Insert that found no room for h, and
// reports whether to try again.
func (t *Table) makeRoom(res Result, h *home, owner, now uint32) bool {
	s := search{now: now}
	switch res {
	case TableFull:
		s.buckets(t, h.b1, 1)
		s.buckets(t, h.b2, 1)
	case OwnerFull:
		s.own, s.owner = true, owner
		for n := uint32(0); n < ownerScans && s.worst.ref == 0; n++ {
			s.buckets(t, h.b1+n*ownerScan, ownerScan)
		}
	default:
		return false
	}
	if s.worst.ref == 0 {
		return false
	}
	if t.remove(s.worst.ref) {
		t.stats.evicted.Add(1)
	}
	return true // if it was gone already there is room as well
}

// search looks for what is least worth keeping, with own only among owner's.
type search struct {
	now, owner uint32
	own        bool
	worst      candidate
}

// buckets looks at every used slot of n buckets from b on.
func (s *search) buckets(t *Table, b, n uint32) {
	for k := range min(n, t.bucketMask+1) {
		at := (b + k) & t.bucketMask
		for m := usedTags(t.tags[at].Load()); m != 0; m &= m - 1 {
			i := at*bucketSize + firstTag(m)
			if s.own && high(t.slots[i][wordSeq].Load()) != s.owner {
				continue
			}
			c, ok := t.inspect(i, s.now)
			if ok && c.rank(s.own) > 0 && (s.worst.ref == 0 || c.worse(&s.worst, s.own)) {
				s.worst = c
			}
		}
	}
}

// Each calls f for every direction of every connection until f returns false.
// It holds no lock: connections that come or go meanwhile may be left out.
func (t *Table) Each(f func(k packet.Tuple, e Entry) bool) {
	t.each(func(_ uint32, _ uint32, w *key, e *Entry) bool { return f(w.tuple(), *e) })
}

func (t *Table) each(f func(i, seq uint32, w *key, e *Entry) bool) {
	var w key
	var e Entry
	for b := range t.tags {
		for m := usedTags(t.tags[b].Load()); m != 0; m &= m - 1 {
			i := uint32(b)*bucketSize + firstTag(m)
			if seq, _, ok := t.slots[i].snapshot(&w, &e); ok && !f(i, seq, &w, &e) {
				return
			}
		}
	}
}

// RemoveFunc forgets every connection for one of whose directions f returns
// true, and returns how many.
func (t *Table) RemoveFunc(f func(k packet.Tuple, e Entry) bool) int {
	n := 0
	t.each(func(i, seq uint32, w *key, e *Entry) bool {
		if f(w.tuple(), *e) && t.Remove(makeRef(i, seq)) {
			n++
		}
		return true
	})
	return n
}

// RemoveAddr forgets every connection in which a takes part, as an address
// that packets carry or one that they are rewritten to. It is called when a
// pod is gone, before its address is given to another.
func (t *Table) RemoveAddr(a packet.Addr) int {
	return t.RemoveFunc(func(k packet.Tuple, e Entry) bool {
		return k.Src == a || k.Dst == a || e.Rewrite.Src == a || e.Rewrite.Dst == a
	})
}
