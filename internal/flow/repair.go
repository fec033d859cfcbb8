package flow

import (
	"fmt"
	"os"

	"github.com/netctl/netctl/internal/packet"
)

// repair makes a table that nobody else has open consistent again, whatever is
// in it. A process killed in the middle of a write leaves an odd sequence
// number, half a pair, a tag too many or too few, a held lock or a wrong count;
// a hostile file can hold anything. What is kept is exactly: pairs whose two
// slots name each other, one of them the reverse, both where their tuples hash
// to, no tuple twice. Tags, locks and counts are made anew.
//
// Only slots with a tag are looked at: one without is free whatever it holds,
// and reading it would make a sparse file take memory.
func (t *Table) repair() {
	for i := range t.locks {
		t.locks[i].Store(0)
	}
	for i := range t.owners {
		if t.owners[i].Load() != 0 {
			t.owners[i].Store(0)
		}
	}
	good := make([]bool, t.nslots) // by slot: tagged, and plausible by itself
	var forward []uint32
	tagged := 0
	for b := range t.tags {
		m := usedTags(t.tags[b].Load())
		if m == 0 {
			continue
		}
		t.tags[b].Store(0)
		for ; m != 0; m &= m - 1 {
			i := uint32(b)*bucketSize + firstTag(m)
			tagged++
			if good[i] = t.plausible(i); good[i] && flagsOf(t.slots[i][wordPorts].Load())&FlagReverse == 0 {
				forward = append(forward, i)
			}
		}
	}
	pairs := 0
	for _, i := range forward {
		if p := high(t.slots[i][wordPartner].Load()); p < t.nslots && good[p] && t.link(i, p) {
			pairs++
		}
	}
	t.head[headCount].Store(uint64(pairs))
	t.report.Adopted, t.report.Dropped = pairs, tagged-2*pairs
}

// plausible looks at one slot by itself.
func (t *Table) plausible(i uint32) bool {
	s := &t.slots[i]
	s0, ports := s[wordSeq].Load(), s[wordPorts].Load()
	if s0&1 != 0 || low(s0) == 0 || ports&usedMark == 0 {
		return false
	}
	if st := activity(s[wordActivity].Load()).state(); st == 0 || st >= numStates {
		return false
	}
	w := s.key()
	k := w.tuple()
	h := t.homeOf(&k)
	return i/bucketSize == h.b1 || i/bucketSize == h.b2
}

// link takes forward slot i and slot p into the table if they are a pair and
// neither tuple is taken: of doubles the first stays.
func (t *Table) link(i, p uint32) bool {
	if !t.wholePair(i, p) {
		return false
	}
	wa, wb := t.slots[i].key(), t.slots[p].key()
	ka, kb := wa.tuple(), wb.tuple()
	if ka == kb {
		return false
	}
	ha, hb := t.homeOf(&ka), t.homeOf(&kb)
	if _, ok := t.find(&ha); ok {
		return false
	}
	if _, ok := t.find(&hb); ok {
		return false
	}
	t.setTag(i, ha.tag)
	t.setTag(p, hb.tag)
	if owner := high(t.slots[i][wordSeq].Load()); owner != 0 {
		t.owners[owner%ownerSlots].Add(1)
	}
	return true
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

// resize copies the connections of a file with another number of slots into a
// table of the size that is asked for, in the same file.
func resize(f *os.File, slots int, cfg *Config) (*Table, error) {
	was := *cfg
	was.Slots = slots
	old, err := adopt(f, &was)
	if err != nil {
		return nil, err
	}
	type pair struct {
		k, rk packet.Tuple
		e, re Entry
	}
	pairs := make([]pair, 0, old.Len())
	old.each(func(i, seq uint32, w *key, e *Entry) bool {
		p := pair{k: w.tuple(), e: *e}
		if _, ok := old.Pair(makeRef(i, seq), &p.rk, &p.re); ok && e.Flags&FlagReverse == 0 {
			pairs = append(pairs, p)
		}
		return true
	})
	report := old.report
	if err := unmap(old.data); err != nil {
		return nil, err
	}
	t, err := create(f, cfg)
	if err != nil {
		return nil, fmt.Errorf("resize: %w", err)
	}
	t.report = Report{Resized: slots, Dropped: report.Dropped}
	for i := range pairs {
		p := &pairs[i]
		ref, res := t.Insert(&p.k, &p.rk, &p.e, &p.re, p.e.LastSeen)
		if res != Inserted {
			t.report.Dropped += 2
			continue
		}
		t.restore(ref, &p.e, &p.re)
	}
	t.report.Adopted = t.Len()
	return t, nil
}

// restore gives a copied pair its activity back.
func (t *Table) restore(ref Ref, e, re *Entry) {
	i := ref.slot()
	p := high(t.slots[i][wordPartner].Load())
	for _, x := range []struct {
		s *slot
		e *Entry
	}{{&t.slots[i], e}, {&t.slots[p], re}} {
		x.s[wordActivity].Store(uint64(makeActivity(x.e.LastSeen, x.e.State, x.e.FrontSlot)))
		x.s.setTally(x.e.Packets, x.e.Bytes)
	}
}
