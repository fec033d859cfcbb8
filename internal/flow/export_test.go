package flow

import "fmt"

// Check reports the first broken invariant of a table at rest.
func (t *Table) Check() error { return t.CheckAllBut(false) }

// CheckAllBut can leave out the counts of owners: somebody else's file may begin
// with any.
func (t *Table) CheckAllBut(counts bool) error {
	slots, owners := 0, map[uint32]int{}
	for b := range t.tags {
		for m := usedTags(t.tags[b].Load()); m != 0; m &= m - 1 {
			i := uint32(b)*bucketSize + firstTag(m)
			slots++
			if err := t.checkSlot(i, owners); err != nil {
				return err
			}
		}
	}
	if slots != 2*t.Len() {
		return fmt.Errorf("%d slots are used, %d connections counted", slots, t.Len())
	}
	for o, n := range owners {
		if counts {
			break
		}
		if got := t.OwnerLen(o); got != n {
			return fmt.Errorf("owner %d has %d connections, %d counted", o, n, got)
		}
	}
	return nil
}

func (t *Table) checkSlot(i uint32, owners map[uint32]int) error {
	var w, pw key
	var e, pe Entry
	_, p, ok := t.slots[i].snapshot(&w, &e)
	if !ok {
		return fmt.Errorf("slot %d has a tag and is free or being written", i)
	}
	if p >= t.nslots {
		return fmt.Errorf("slot %d: partner %d is outside", i, p)
	}
	_, back, ok := t.slots[p].snapshot(&pw, &pe)
	if !ok || back != i {
		return fmt.Errorf("slot %d: partner %d names %d (used %v)", i, p, back, ok)
	}
	if (e.Flags^pe.Flags)&FlagReverse == 0 || e.Owner != pe.Owner {
		return fmt.Errorf("slots %d and %d are no pair", i, p)
	}
	k := w.tuple()
	h := t.homeOf(&k)
	if at, ok := t.find(&h); !ok || at != i {
		return fmt.Errorf("slot %d: its tuple is found at %d (%v)", i, at, ok)
	}
	if e.Owner != 0 && e.Flags&FlagReverse == 0 {
		owners[e.Owner]++
	}
	return nil
}

// HashOf shows the hash to the test of its spread.
func (t *Table) HashOf(k [5]uint64) uint64 { w := key(k); return hash(&t.key, &w) }

// Layout positions for tests that break files.
const (
	HeadSumByte  = 12 * 8
	HeadVersion  = 1 * 8
	BucketSize   = bucketSize
	ExpireParts  = expireParts
	TagsByte     = tagsAt * 8
	SlotBytes    = slotBytes
	LocksByte    = locksAt * 8
	CountByte    = headCount * 8
	SpillMaximum = 1 << 23
)

// SlotsByte returns where the slots begin.
func SlotsByte(slots int) int { return slotsAt(slots) * 8 }
