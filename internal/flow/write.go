package flow

import (
	"sync/atomic"

	"github.com/netctl/netctl/internal/packet"
)

// Result is the outcome of Insert.
type Result uint8

// The results of Insert.
const (
	Inserted  Result = iota + 1
	Exists           // somebody else's insert won: look up again
	Clash            // the replies' tuple belongs to another connection: choose another source port
	OwnerFull        // the owner has as many connections as it may
	TableFull        // no slot, and nothing near that may be evicted
)

// String returns the name of the result.
func (r Result) String() string {
	switch r {
	case Inserted:
		return "inserted"
	case Exists:
		return "exists"
	case Clash:
		return "clash"
	case OwnerFull:
		return "owner-full"
	case TableFull:
		return "table-full"
	default:
		return "invalid"
	}
}

// home is where a tuple may live.
type home struct {
	w      key
	tag    uint64
	b1, b2 uint32
}

func (t *Table) homeOf(k *packet.Tuple) home {
	var h home
	h.w.set(k)
	v := hash(&t.key, &h.w)
	h.tag = tagOf(v)
	h.b1 = low(v) & t.bucketMask
	h.b2 = secondBucket(v, h.b1, t.bucketMask)
	return h
}

// insertTries bounds the evictions that one Insert may cause.
const insertTries = 4

// Insert adds a connection: packets with tuple fwd get f, their replies, with
// tuple rev, get r. Both appear in one step or not at all. The connection
// counts against f.Owner. The Ref is that of fwd, also when it Exists.
//
// The state starts at New: call Seen for the packet that opened it.
func (t *Table) Insert(fwd, rev *packet.Tuple, f, r *Entry, now uint32) (Ref, Result) {
	if *fwd == *rev {
		t.stats.clash.Add(1)
		return 0, Clash
	}
	pair := [2]home{t.homeOf(fwd), t.homeOf(rev)}
	entries := [2]Entry{*f, *r}
	entries[0].Flags &^= FlagReverse
	entries[1].Flags |= FlagReverse
	for i := range entries {
		e := &entries[i]
		e.Owner, e.State, e.LastSeen, e.Packets, e.Bytes = f.Owner, New, now, 0, 0
	}
	var ref Ref
	var res Result
	for range insertTries {
		var h *home
		ref, res, h = t.insertOnce(&pair, &entries)
		if !t.makeRoom(res, h, f.Owner, now) {
			break
		}
	}
	switch res {
	case Inserted:
		t.stats.inserted.Add(1)
	case Clash:
		t.stats.clash.Add(1)
	case OwnerFull:
		t.stats.ownerFull.Add(1)
	case TableFull:
		t.stats.tableFull.Add(1)
	default:
	}
	return ref, res
}

// insertOnce does one attempt under the locks of all four buckets. When there is
// no room it names the home that lacks it.
func (t *Table) insertOnce(pair *[2]home, entries *[2]Entry) (Ref, Result, *home) {
	var set lockSet
	set.add(pair[0].b1)
	set.add(pair[0].b2)
	set.add(pair[1].b1)
	set.add(pair[1].b2)
	t.lock(&set)
	defer t.unlock(&set)
	if i, ok := t.find(&pair[0]); ok {
		return makeRef(i, low(t.slots[i][wordSeq].Load())), Exists, nil
	}
	if _, ok := t.find(&pair[1]); ok {
		return 0, Clash, nil
	}
	a, ok := t.free(&pair[0], noSlot)
	if !ok {
		return 0, TableFull, &pair[0]
	}
	b, ok := t.free(&pair[1], a)
	if !ok {
		return 0, TableFull, &pair[1]
	}
	if !t.charge(entries[0].Owner) {
		return 0, OwnerFull, &pair[0]
	}
	t.head[headCount].Add(1)
	// The replies' slot first: whoever finds the forward one finds a whole pair.
	t.put(b, a, &pair[1], &entries[1])
	return makeRef(a, t.put(a, b, &pair[0], &entries[0])), Inserted, nil
}

// put writes slot i and then shows it to readers.
func (t *Table) put(i, partner uint32, h *home, e *Entry) uint32 {
	s := &t.slots[i]
	s.begin()
	s.write(&h.w, e, partner)
	seq := s.end(e.Owner)
	t.setTag(i, h.tag)
	return seq
}

// find returns the slot that holds h's tuple. The caller holds its locks.
func (t *Table) find(h *home) (uint32, bool) {
	var e Entry
	for _, b := range [2]uint32{h.b1, h.b2} {
		for m := matchTags(t.tags[b].Load(), h.tag); m != 0; m &= m - 1 {
			i := b*bucketSize + firstTag(m)
			if _, ok := t.slots[i].read(&h.w, &e); ok {
				return i, true
			}
		}
	}
	return 0, false
}

const noSlot = ^uint32(0)

// preferFirst is the fill up to which the first bucket is taken without
// looking at the second: lookups then mostly end at the first.
const preferFirst = bucketSize * 3 / 4

// free returns a free slot for h other than not: the emptier bucket of two
// keeps all buckets even, so that none overflows before the table is nearly full.
func (t *Table) free(h *home, not uint32) (uint32, bool) {
	first, i := t.freeIn(h.b1, not)
	if first > bucketSize-preferFirst {
		return i, true
	}
	second, j := t.freeIn(h.b2, not)
	switch {
	case first == 0 && second == 0:
		return 0, false
	case second > first:
		return j, true
	default:
		return i, true
	}
}

// freeIn counts the free slots of bucket b and names one.
func (t *Table) freeIn(b, not uint32) (n int, slot uint32) {
	for m := matchTags(t.tags[b].Load(), 0); m != 0; m &= m - 1 {
		if i := b*bucketSize + firstTag(m); i != not {
			n, slot = n+1, i
		}
	}
	return n, slot
}

// charge counts one connection against owner, or reports that it has enough.
func (t *Table) charge(owner uint32) bool {
	if owner == 0 {
		return true
	}
	c := &t.owners[owner%ownerSlots]
	if c.Add(1) > uint64(t.perOwner) {
		c.Add(^uint64(0))
		return false
	}
	return true
}

// discharge undoes charge. A file may count less than it holds.
func (t *Table) discharge(owner uint32) {
	if owner == 0 {
		return
	}
	c := &t.owners[owner%ownerSlots]
	for n := c.Load(); n > 0 && !c.CompareAndSwap(n, n-1); n = c.Load() {
		continue
	}
}

// Update replaces the verdict of the direction that ref names: rewrite, exit,
// generations, FrontSlot and flags. Owner and activity stay. It returns the
// new Ref, and false when ref is stale.
func (t *Table) Update(ref Ref, e *Entry) (Ref, bool) {
	i := ref.slot()
	if i >= t.nslots {
		return 0, false
	}
	var set lockSet
	set.add(i / bucketSize)
	t.lock(&set)
	defer t.unlock(&set)
	s := &t.slots[i]
	if low(s[wordSeq].Load()) != ref.seq() || s[wordPorts].Load()&usedMark == 0 {
		return 0, false
	}
	owner := high(s[wordSeq].Load())
	partner := high(s[wordPartner].Load())
	ports := s[wordPorts].Load()
	keep := flagsOf(ports) & FlagReverse
	s.begin()
	s.writeVerdict(e, partner)
	s[wordPorts].Store(ports&^flagMask | uint64(e.Flags&flagMask&^FlagReverse|keep))
	setFrontSlot(&s[wordActivity], e.FrontSlot)
	return makeRef(i, s.end(owner)), true
}

// Pair copies the other direction of ref's connection: its tuple to k and its
// entry to e.
func (t *Table) Pair(ref Ref, k *packet.Tuple, e *Entry) (Ref, bool) {
	var w key
	var mine Entry
	i := ref.slot()
	if i >= t.nslots {
		return 0, false
	}
	seq, partner, ok := t.slots[i].snapshot(&w, &mine)
	if !ok || seq != ref.seq() || partner >= t.nslots {
		return 0, false
	}
	pseq, back, ok := t.slots[partner].snapshot(&w, e)
	if !ok || back != i {
		return 0, false
	}
	*k = w.tuple()
	return makeRef(partner, pseq), true
}

// Remove forgets the connection that ref names, both directions. It returns
// false when ref is stale.
func (t *Table) Remove(ref Ref) bool {
	if !t.remove(ref) {
		return false
	}
	t.stats.removed.Add(1)
	return true
}

func (t *Table) remove(ref Ref) bool {
	i := ref.slot()
	if i >= t.nslots {
		return false
	}
	partner := high(t.slots[i][wordPartner].Load())
	if partner >= t.nslots || partner == i {
		return false
	}
	var set lockSet
	set.add(i / bucketSize)
	set.add(partner / bucketSize)
	t.lock(&set)
	defer t.unlock(&set)
	s := &t.slots[i]
	s0 := s[wordSeq].Load()
	if low(s0) != ref.seq() || s[wordPorts].Load()&usedMark == 0 ||
		high(s[wordPartner].Load()) != partner || !t.tagged(i) {
		return false
	}
	if high(t.slots[partner][wordPartner].Load()) != i || !t.tagged(partner) {
		t.clearLoose(i) // a file that nobody has verified yet
		return true
	}
	t.clear(i)
	t.clear(partner)
	t.discharge(high(s0))
	t.head[headCount].Add(^uint64(0))
	return true
}

// clear frees one slot. The caller holds its lock.
func (t *Table) clear(i uint32) {
	t.setTag(i, 0)
	s := &t.slots[i]
	s.begin()
	s[wordPorts].Store(0)
	s.end(0)
}

func setFrontSlot(w *atomic.Uint64, front uint16) {
	for {
		old := activity(w.Load())
		if w.CompareAndSwap(uint64(old), uint64(makeActivity(old.lastSeen(), old.state(), front))) {
			return
		}
	}
}

// lockSet is up to four stripes in ascending order without doubles, so that
// no two writers wait for each other.
type lockSet struct {
	n   int
	ids [4]uint32
}

func (l *lockSet) add(bucket uint32) {
	id := bucket % stripes
	at := 0
	for at < l.n && l.ids[at] < id {
		at++
	}
	if at < l.n && l.ids[at] == id {
		return
	}
	copy(l.ids[at+1:], l.ids[at:l.n])
	l.ids[at] = id
	l.n++
}

func (t *Table) lock(l *lockSet) {
	for _, id := range l.ids[:l.n] {
		t.mu[id].Lock()
		t.file.Lock(&t.locks[id])
	}
}

func (t *Table) unlock(l *lockSet) {
	for _, id := range l.ids[:l.n] {
		t.file.Unlock(&t.locks[id])
		t.mu[id].Unlock()
	}
}
