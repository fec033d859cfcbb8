package ipam

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// space is the free addresses of one family: in each block a cursor below which
// every address was used before, and a queue of released addresses, the oldest
// first. Addresses above the cursors go first, in order; then the queue. So
// taking and releasing cost the same with ten addresses and with a million, and
// a released address comes back as late as possible.
type space struct {
	blocks []*span
	fresh  int        // blocks before this one have nothing above their cursors
	queue  []released // from head on; an entry counts if free agrees
	head   int
	free   map[netip.Addr]uint64 // which entry of the queue stands for an address
	parked []released            // like queue, for what is in none of the present blocks
	leased map[netip.Addr]*Lease // the pool's
	held   map[netip.Addr]bool   // in nobody's lease, and not to be handed out
}

// span is one block.
type span struct {
	prefix netip.Prefix
	cursor uint64 // offset of the next address that was never used
	end    uint64 // one past the last offset for pods
}

// released is a free address that was used before.
type released struct {
	addr netip.Addr
	at   time.Time
	seq  uint64
}

func newSpace(leased map[netip.Addr]*Lease) space {
	return space{free: map[netip.Addr]uint64{}, leased: leased}
}

// setBlocks changes which blocks there are. Released addresses of a block that
// goes away keep their place for its return.
func (s *space) setBlocks(prefixes []netip.Prefix) {
	var blocks []*span
	for _, p := range prefixes {
		i := slices.IndexFunc(s.blocks, func(b *span) bool { return b.prefix == p })
		if i >= 0 {
			blocks = append(blocks, s.blocks[i])
			continue
		}
		blocks = append(blocks, &span{prefix: p, cursor: firstPod, end: size(p) - 1})
	}
	s.blocks, s.fresh = blocks, 0
	all := s.released()
	s.queue, s.head, s.parked = nil, 0, nil
	for _, r := range all {
		if s.block(r.addr) != nil {
			s.queue = append(s.queue, r)
		} else {
			s.parked = append(s.parked, r)
		}
	}
}

// released returns all released addresses, the oldest first.
func (s *space) released() []released {
	out := make([]released, 0, len(s.free))
	for _, list := range [][]released{s.parked, s.queue[s.head:]} {
		for _, r := range list {
			if s.free[r.addr] == r.seq {
				out = append(out, r)
			}
		}
	}
	slices.SortStableFunc(out, func(a, b released) int { return cmp.Compare(a.seq, b.seq) })
	return out
}

// block returns the block that an address is in.
func (s *space) block(a netip.Addr) *span {
	for _, b := range s.blocks {
		if b.prefix.Contains(a) {
			return b
		}
	}
	return nil
}

// forPods reports whether an address of a block may be given to a pod.
func (b *span) forPods(a netip.Addr) bool {
	o := offsetIn(b.prefix, a)
	return o >= firstPod && o < b.end
}

// supply says where an address comes from.
type supply uint8

const (
	supplyNone    supply = iota // there is none
	supplyFresh                 // never used, as far as the record goes
	supplyCooled                // the cool-down is over
	supplyCooling               // it is not, but there is nothing else
)

// next returns the address to hand out now, without taking it. An address that
// was released less than floor ago is not handed out at all.
func (s *space) next(now time.Time, floor, cooldown time.Duration) (netip.Addr, supply) {
	for ; s.fresh < len(s.blocks); s.fresh++ {
		b := s.blocks[s.fresh]
		for ; b.cursor < b.end; b.cursor++ {
			a := addrAt(b.prefix, b.cursor)
			if _, used := s.free[a]; !used && s.leased[a] == nil && !s.held[a] {
				return a, supplyFresh
			}
		}
	}
	for ; s.head < len(s.queue); s.head++ {
		r := &s.queue[s.head]
		if s.free[r.addr] != r.seq || !s.block(r.addr).forPods(r.addr) {
			continue // taken since, or not for pods in a block of another size
		}
		if s.held[r.addr] {
			delete(s.free, r.addr) // hold puts it back
			continue
		}
		if r.at.After(now) { // the clock was set back: start to count again
			r.at = now
		}
		switch age := now.Sub(r.at); {
		case age >= cooldown:
			return r.addr, supplyCooled
		case age >= floor:
			return r.addr, supplyCooling
		default:
			return netip.Addr{}, supplyNone // all others were released later
		}
	}
	return netip.Addr{}, supplyNone
}

// take marks an address as not free. Its entry in the queue is skipped later.
func (s *space) take(a netip.Addr) {
	delete(s.free, a)
	if s.head > 1024 && s.head > len(s.queue)/2 {
		s.queue = slices.Clone(s.queue[s.head:])
		s.head = 0
	}
	if len(s.parked) > 1024 && len(s.parked) > 2*len(s.free) {
		s.parked = slices.DeleteFunc(s.parked, func(r released) bool { return s.free[r.addr] != r.seq })
	}
}

// put adds a released address at the end of the queue.
func (s *space) put(r released) {
	s.free[r.addr] = r.seq
	if s.block(r.addr) == nil {
		s.parked = append(s.parked, r)
		return
	}
	s.queue = append(s.queue, r)
}

// hold makes the held addresses these. One that no longer is rests as if it had
// been released, unless it is beyond the cursor or leased.
func (s *space) hold(addrs map[netip.Addr]bool, now time.Time, seq uint64) {
	for a := range s.held {
		b := s.block(a)
		_, free := s.free[a]
		if !addrs[a] && !free && s.leased[a] == nil && b != nil && offsetIn(b.prefix, a) < b.cursor {
			s.put(released{addr: a, at: now, seq: seq})
		}
	}
	s.held = addrs
}

// usage counts. It costs as much as there are addresses in use or cooling.
func (s *space) usage(now time.Time, cooldown time.Duration) Usage {
	u := Usage{Blocks: len(s.blocks)}
	for _, b := range s.blocks {
		u.Total += size(b.prefix)
		u.Reserved += reservedPerBlock
	}
	for a := range s.held {
		if _, free := s.free[a]; !free && s.leased[a] == nil {
			if b := s.block(a); b != nil && b.forPods(a) {
				u.Reserved++
			}
		}
	}
	for _, r := range s.queue[s.head:] {
		if s.free[r.addr] == r.seq && now.Sub(r.at) < cooldown {
			u.Cooling++
		}
	}
	return u
}
