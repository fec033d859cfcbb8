package flow

import (
	"fmt"
	"math/bits"
	"runtime"
	"sync"
)

// repair makes a table consistent again, whatever is in it. The caller has it
// alone, or holds all of its locks. A process killed in the middle of a write
// leaves an odd sequence number, half a pair, a tag too many or too few, or a
// wrong count; a hostile file can hold anything. What is kept is exactly: pairs
// whose two slots name each other, one of them the reverse, both where their
// tuples hash to, no tuple twice. Counts are made anew. What is in order is not
// touched, so that readers find it all the time. It returns the number of
// connections and that of the slots which it threw away.
//
// Only slots with a tag are looked at: one without is free whatever it holds,
// and reading it would make a sparse file take memory.
func (t *Table) repair() (connections, dropped int) {
	kept := make([]bool, t.nslots)
	parts := make([]count, min(runtime.GOMAXPROCS(0), maxRepairers))
	var wg sync.WaitGroup
	n := len(t.tags) / len(parts)
	for k := range parts {
		from, to := k*n, (k+1)*n
		if k == len(parts)-1 {
			to = len(t.tags)
		}
		wg.Go(func() { parts[k] = t.survey(from, to, kept) })
	}
	wg.Wait()
	owners := make(map[uint32]uint64)
	for _, c := range parts {
		connections += c.pairs
		dropped += c.tagged
		for o, n := range c.owners {
			owners[o] += n
		}
	}
	dropped -= 2 * connections
	if dropped != 0 {
		t.eachTagged(0, len(t.tags), func(i uint32) {
			if !kept[i] {
				t.clear(i)
			}
		})
	}
	for i := range t.owners {
		if n := owners[uint32(i)]; t.owners[i].Load() != n { // at most ownerSlots
			t.owners[i].Store(n)
		}
	}
	t.head[headCount].Store(uint64(connections)) // not negative
	return connections, dropped
}

// maxRepairers bounds the goroutines of repair, which mostly wait for memory.
const maxRepairers = 8

// count is what was found in a part of the table.
type count struct {
	tagged, pairs int
	owners        map[uint32]uint64 // pairs by their owner's count
}

// survey marks the slots of the pairs that are in order and whose forward slot
// is in some buckets. It changes nothing in the table.
func (t *Table) survey(from, to int, kept []bool) count {
	c := count{owners: make(map[uint32]uint64)}
	t.eachTagged(from, to, func(i uint32) {
		c.tagged++
		p, ok := t.pairAt(i)
		if !ok {
			return
		}
		kept[i], kept[p] = true, true // of one pair only
		c.pairs++
		if owner := high(t.slots[i][wordSeq].Load()); owner != 0 {
			c.owners[owner%ownerSlots]++
		}
	})
	return c
}

// interrupted reports whether a process was killed while it changed the table:
// it does so under locks, which lie in the file, so that without one that is held
// everything is whole. The tags are counted as well, which costs next to nothing.
func (t *Table) interrupted() bool {
	for i := range t.locks {
		if t.locks[i].Load() != 0 {
			return true
		}
	}
	used := 0
	for b := range t.tags {
		used += bits.OnesCount64(usedTags(t.tags[b].Load()))
	}
	return uint64(used) != 2*t.head[headCount].Load() // not negative
}

// verify throws away what repair would, in one bucket of a table in use.
func (t *Table) verify(b uint32) {
	for m := usedTags(t.tags[b].Load()); m != 0; m &= m - 1 {
		i := b*bucketSize + firstTag(m)
		p := high(t.slots[i][wordPartner].Load())
		var set lockSet
		set.add(b)
		if p < t.nslots {
			set.add(p / bucketSize)
		}
		t.lock(&set)
		if t.tagged(i) && high(t.slots[i][wordPartner].Load()) == p && !t.whole(i, p) {
			t.clearLoose(i)
		}
		t.unlock(&set)
	}
}

// whole reports whether slots i and p are a pair that is in order. The caller
// has the locks of both.
func (t *Table) whole(i, p uint32) bool {
	if p >= t.nslots {
		return false
	}
	if flagsOf(t.slots[i][wordPorts].Load())&FlagReverse != 0 {
		i, p = p, i
	}
	found, ok := t.pairAt(i)
	return ok && found == p
}

func (t *Table) tagged(i uint32) bool { return t.tags[i/bucketSize].Load()>>(i%bucketSize*8)&0xff != 0 }

// clearLoose frees a slot without a partner. Two of them were counted as one
// connection. The caller holds its lock.
func (t *Table) clearLoose(i uint32) {
	t.clear(i)
	if t.loose.Add(1)%2 == 0 {
		t.head[headCount].Add(^uint64(0))
	}
}

// eachTagged calls f for every slot of some buckets that has a tag.
func (t *Table) eachTagged(from, to int, f func(i uint32)) {
	for b := from; b < to; b++ {
		for m := usedTags(t.tags[b].Load()); m != 0; m &= m - 1 {
			f(uint32(b)*bucketSize + firstTag(m))
		}
	}
}

// mend repairs what a process left that died while it shared the table.
func (t *Table) mend() {
	for id := range t.locks {
		t.mu[id].Lock()
		t.file.Lock(&t.locks[id])
	}
	t.file.Died() // of the same process: its locks are ours now
	t.repair()
	for id := range t.locks {
		t.file.Unlock(&t.locks[id])
		t.mu[id].Unlock()
	}
	t.stats.mended.Add(1)
}

// pairAt returns the partner of a forward slot when both are in order and the
// ones that lookups of their tuples find: of doubles the first stays.
func (t *Table) pairAt(i uint32) (uint32, bool) {
	if flagsOf(t.slots[i][wordPorts].Load())&FlagReverse != 0 {
		return 0, false
	}
	p := high(t.slots[i][wordPartner].Load())
	if p >= t.nslots || !t.wholePair(i, p) {
		return 0, false
	}
	a, ok := t.sound(i)
	if !ok {
		return 0, false
	}
	b, ok := t.sound(p)
	if !ok || a.w == b.w {
		return 0, false
	}
	first, ok := t.find(&a)
	if !ok || first != i {
		return 0, false
	}
	first, ok = t.find(&b)
	return p, ok && first == p
}

// sound looks at one slot by itself, and returns where its tuple may live.
func (t *Table) sound(i uint32) (home, bool) {
	s := &t.slots[i]
	s0, ports := s[wordSeq].Load(), s[wordPorts].Load()
	if s0&1 != 0 || low(s0) == 0 || ports&usedMark == 0 {
		return home{}, false
	}
	if st := activity(s[wordActivity].Load()).state(); st == 0 || st >= numStates {
		return home{}, false
	}
	w := s.key()
	k := w.tuple()
	h := t.homeOf(&k)
	tag := t.tags[i/bucketSize].Load() >> (i % bucketSize * 8) & 0xff
	return h, tag == h.tag && (i/bucketSize == h.b1 || i/bucketSize == h.b2)
}

// wholePair reports whether forward slot i and slot p name each other and
// belong to one owner.
func (t *Table) wholePair(i, p uint32) bool {
	if p == i {
		return false
	}
	a, b := &t.slots[i], &t.slots[p]
	ports := b[wordPorts].Load()
	return ports&usedMark != 0 && flagsOf(ports)&FlagReverse != 0 && high(b[wordPartner].Load()) == i &&
		high(a[wordSeq].Load()) == high(b[wordSeq].Load())
}

// key returns the key words without looking at the sequence number.
func (s *slot) key() key {
	var w key
	for i := range 4 {
		w[i] = s[wordKey+i].Load()
	}
	w[4] = s[wordPorts].Load() &^ flagMask
	return w
}

// resize copies the connections of a table that nobody else has into one of the
// size that is asked for, in the same file.
func resize(old *Table, cfg *Config) (*Table, error) {
	pairs := make([]pair, 0, old.Len())
	old.eachPair(func(p *pair) bool {
		pairs = append(pairs, *p)
		return true
	})
	report := Report{Resized: int(old.nslots), Dropped: old.report.Dropped}
	if err := old.file.Make(cfg.Slots); err != nil {
		return nil, fmt.Errorf("resize: %w", err)
	}
	t := build(old.file, cfg)
	t.report = report
	for i := range pairs {
		if !t.replace(&pairs[i]) {
			t.report.Dropped += 2
		}
	}
	t.report.Adopted = t.Len()
	return t, nil
}
