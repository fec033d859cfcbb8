// Package flow is the connection table: it remembers, for every tuple that the
// router has judged, the tuple to leave with, the exit port and the generations
// of the tables that judged it, so that only the first packet of a connection
// pays for service choice and policy.
//
// # Layout
//
// A connection is two slots, one per direction, each found by the tuple that
// its packets arrive with. A slot is 128 bytes, sixteen atomic 64-bit words and
// no pointer, so the table costs the garbage collector nothing and can live in
// a memory-mapped file that outlives the process.
//
//	header | stripe locks | owner counts | tags: 8 bytes per bucket | slots: 8 per bucket
//
// A tuple's keyed hash names two buckets and a one-byte tag. The tags of a
// bucket are one word, so a lookup reads one or two words and then only the
// slot that matches. Entries never move.
//
// # Invariants
//
//   - Readers take no lock: each slot is a seqlock made of atomics. An odd
//     sequence number means that a writer is inside.
//   - A slot, its bucket's tag word and its sequence number are changed only
//     under the stripe lock of its bucket; activity words (state, last seen,
//     counters) are changed by anyone, atomically.
//   - Those locks lie in the file. So a process that was killed while it changed
//     something left one that is held, and only then does Open look at every slot:
//     otherwise 150 000 connections are taken over in 5 ms instead of 150.
//   - Both slots of a connection appear and disappear in one step under the
//     locks of both, and each names the other.
//   - A full neighbourhood evicts what is over, expired or was never answered,
//     oldest first, and never an established connection: a flood of openings
//     costs the flooder its own entries.
//   - No owner holds more than its bound, so no pod can take the table.
//
// The hash is NH (as in UMAC, RFC 4418) with a key from the system's random
// source that is stored in the file: who does not know the key cannot aim at a
// bucket.
//
// # Versions
//
// A process maps only files of its own layout, and every table starts empty
// otherwise. What another version had reaches it in the encoding of package
// portable, in both directions, an upgrade and its rollback:
//
//   - At a handover the old process calls Export and the new one Import. Both
//     live: the new one, which cannot join the file, has put one of its own in its
//     place (Report says RefusedVersion and not Joined).
//   - A process that ends by Close leaves that encoding in a file beside the
//     table, which Open reads when it refuses the table for its version and
//     deletes in any case.
//   - A process that is killed leaves the mapped file only. Its successor is of
//     the same version, unless the program was changed at that very moment; the
//     table is then lost, and Report says so.
//
// So the layout may change at will, with version; who changes it keeps no reader
// of the former one. In the encoding a number is for ever: a field, state or flag
// whose meaning changes gets a new one.
//
// # Testing
//
// The map-based twin in twin_test.go gives the same answers as the table on
// random histories with a printed seed; run with -race for the concurrent
// test and with -fuzz=FuzzOpen for files written by somebody else.
package flow

import (
	"sync"
	"sync/atomic"

	"github.com/netctl/netctl/internal/mapfile"
	"github.com/netctl/netctl/internal/packet"
)

// Sizes with their reasons.
const (
	// DefaultSlots holds 262 144 connections in 64 MiB, of which only touched
	// pages count: twice what kube-proxy gives the kernel's table on a small node.
	DefaultSlots = 1 << 19
	// DefaultPerOwner is above the 10 000 connections that a pod must be able
	// to hold, and 1/16 of the default table.
	DefaultPerOwner = 16384

	minSlots  = 2 * bucketSize
	maxSlots  = 1 << 27 // the two bucket numbers and the tag are disjoint bits of the hash up to here
	slotWords = 16
	slotBytes = slotWords * 8
	// bucketSize is the number of slots whose tags fit one word.
	bucketSize = 8
	stripes    = 256
	// ownerSlots is the number of owner counts; owners with equal low 14 bits
	// share one. Owners are a node's ports, counted from one.
	ownerSlots = 1 << 14
)

// Flags says what a slot is.
type Flags uint8

// The flags of an Entry. FlagReverse is the table's own: Insert sets it on the
// slot of the replies and Update keeps it.
const (
	FlagReverse Flags = 1 << iota // the direction of the replies
	FlagNAT                       // Rewrite differs from the tuple that the packet came with
	FlagService                   // the destination was a frontend: FrontSlot and FrontGen are its generation's
	FlagWrapped                   // crosses nodes inside other IP packets; without FlagService, FrontSlot and FrontGen are the caller's
	FlagInbound                   // the client is behind a socket of this node
	flagEnd
)

// Entry is a plain copy of one direction of a connection.
type Entry struct {
	Rewrite packet.Rewrite // the tuple to leave with
	Out     uint32         // exit port

	// Generations of what judged it, and the index of its frontend's
	// generation (see FlagService and FlagWrapped).
	InGen, OutGen, FrontGen uint32
	FrontSlot               uint16
	Flags                   Flags

	// Owner is who the connection counts against; 0 is nobody and unbounded.
	Owner uint32

	// The rest is the table's: set by Insert and Seen, ignored by Update.
	State    State
	LastSeen uint32 // seconds, the caller's clock
	Packets  uint64 // of this direction
	Bytes    uint64
}

// Ref names a slot in the state in which it was found. It is never zero; a Ref
// whose slot has changed since is stale and every method ignores it.
type Ref uint64

func makeRef(slot uint32, seq uint32) Ref { return Ref(uint64(slot)<<32 | uint64(seq)) }

func (r Ref) slot() uint32 { return high(uint64(r)) }
func (r Ref) seq() uint32  { return low(uint64(r)) }

// Table is the connection table. All methods but Close may be called from any
// number of goroutines.
type Table struct {
	// Immutable after Open.
	file       *mapfile.File
	path       string // of the file, "" without one
	epoch      string
	key        [hashWords]uint64
	slots      []slot
	nslots     uint32
	tags       []atomic.Uint64 // one word of eight tags per bucket
	bucketMask uint32
	perOwner   uint32
	timeouts   Timeouts
	report     Report

	head   []atomic.Uint64
	locks  []atomic.Uint64 // stripe locks that a joined process shares
	owners []atomic.Uint64
	mu     [stripes]stripeLock // stripe locks among the goroutines of this process
	hand   atomic.Uint32       // the bucket at which Expire goes on

	unverified atomic.Int64  // how many buckets nobody has looked at since Open
	loose      atomic.Uint64 // slots thrown away that had no partner

	stats counters
}

type stripeLock struct {
	sync.Mutex
	_ [56]byte // one cache line each
}

// counters of this process.
type counters struct {
	inserted, removed, expired, evicted atomic.Uint64
	clash, ownerFull, tableFull, mended atomic.Uint64
}

// Lookup finds the connection that a packet with tuple k belongs to and copies
// its entry to e. It takes no lock and does not allocate. When it returns false
// e holds nothing of use.
func (t *Table) Lookup(k *packet.Tuple, e *Entry) (Ref, bool) {
	var w key
	w.set(k)
	h := hash(&t.key, &w)
	tag := tagOf(h)
	b1 := low(h) & t.bucketMask
	if r, ok := t.probe(b1, tag, &w, e); ok {
		return r, true
	}
	return t.probe(secondBucket(h, b1, t.bucketMask), tag, &w, e)
}

// probe looks for key w among the slots of bucket b whose tag is tag.
func (t *Table) probe(b uint32, tag uint64, w *key, e *Entry) (Ref, bool) {
	for m := matchTags(t.tags[b].Load(), tag); m != 0; m &= m - 1 {
		i := b*bucketSize + firstTag(m)
		if seq, ok := t.slots[i].read(w, e); ok {
			return makeRef(i, seq), true
		}
	}
	return 0, false
}

// Seen records one packet of size bytes on the connection that ref names, and
// moves its TCP state on. It writes the shared activity word at most once per
// second and direction unless the state changes, and does not allocate.
func (t *Table) Seen(ref Ref, size int, tcpFlags uint8, now uint32) {
	i := ref.slot()
	if i >= t.nslots {
		return
	}
	s := &t.slots[i]
	if low(s[wordSeq].Load()) != ref.seq() {
		return
	}
	n := tally(s[wordTally].Add(uint64(size)<<tallyShift | 1)) // a size is not negative
	if n&tallyFull != 0 {
		s.spill()
	}
	a := activity(s[wordActivity].Load())
	if a.lastSeen() == now && a.state().steady(tcpFlags) {
		return
	}
	t.advance(i, n.packets(), tcpFlags, now)
}

// Len returns the number of connections.
func (t *Table) Len() int {
	return int(t.head[headCount].Load()) // at most maxSlots
}

// Stats is a snapshot of the table's counters. Connections and Slots are the
// table's, the others count what this process did since Open.
type Stats struct {
	Connections, Slots          int
	Inserted, Removed           uint64
	Expired, Evicted            uint64
	Clash, OwnerFull, TableFull uint64
	Mended                      uint64 // times that another process died which had the table open
}

// Stats returns the counters.
func (t *Table) Stats() Stats {
	return Stats{
		Connections: t.Len(), Slots: len(t.slots),
		Inserted: t.stats.inserted.Load(), Removed: t.stats.removed.Load(),
		Expired: t.stats.expired.Load(), Evicted: t.stats.evicted.Load(),
		Clash: t.stats.clash.Load(), OwnerFull: t.stats.ownerFull.Load(), TableFull: t.stats.tableFull.Load(),
		Mended: t.stats.mended.Load(),
	}
}

// OwnerLen returns how many connections count against owner.
func (t *Table) OwnerLen(owner uint32) int {
	return int(t.owners[owner%ownerSlots].Load()) // at most maxSlots
}
