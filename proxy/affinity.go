package proxy

import (
	"hash/maphash"
	"maps"
	"slices"
	"sync"

	"github.com/netctl/netctl/internal/packet"
)

// DefaultAffinityEntries is the number of clients that are remembered, as many
// as Cilium does by default; their memory is 4 MiB once all are in use.
const DefaultAffinityEntries = 1 << 16

const (
	affinityShards = 64
	affinityWays   = 8 // entries among which the longest idle gives way
	// sweepEvery is how many seconds clients whose time is over stay when
	// nothing else changes. They only cost memory that is there anyway.
	sweepEvery = 60
)

// AffinityConfig says how large an Affinity is.
type AffinityConfig struct {
	Entries int // rounded up to a multiple of 512; DefaultAffinityEntries when 0
}

// Affinity remembers which client of which service port goes to which backend.
// It is bounded: among eight entries that may hold a client the one that was
// idle longest gives way. It outlives tables, and all its methods may be called
// from any number of goroutines.
type Affinity struct {
	seed   maphash.Seed
	shards []affinityShard
	sets   uint64 // of one shard

	mu    sync.Mutex
	pins  map[uint64]uint32 // what was swept with last, nil before; guarded by mu
	swept uint32            // when that was; guarded by mu
}

type affinityShard struct {
	mu      sync.Mutex
	entries []pinned // guarded by mu
	used    int      // how many entries are; guarded by mu
}

type pinKey struct {
	pin    uint64
	client packet.Addr
}

type pinned struct {
	key  pinKey
	addr packet.Addr
	port uint16
	used bool
	seen uint32 // when the last connection was opened
}

// NewAffinity returns an empty Affinity.
func NewAffinity(cfg AffinityConfig) *Affinity {
	n := cfg.Entries
	if n <= 0 {
		n = DefaultAffinityEntries
	}
	const unit = affinityShards * affinityWays
	sets := (n + unit - 1) / unit
	a := &Affinity{seed: maphash.MakeSeed(), shards: make([]affinityShard, affinityShards), sets: uint64(sets)}
	for i := range a.shards {
		a.shards[i].entries = make([]pinned, sets*affinityWays)
	}
	return a
}

// pick returns the backend that the client is pinned to while it is among
// list, and else pins it to another (AFF-3). The timeout starts anew with every
// connection (AFF-2).
func (a *Affinity) pick(f *Frontend, list []Backend, client packet.Addr, random, now uint32) Backend {
	k := pinKey{pin: f.pin, client: client}
	h := maphash.Comparable(a.seed, k)
	s := &a.shards[h%affinityShards]
	set := int(h / affinityShards % a.sets * affinityWays) // an index of entries
	s.mu.Lock()
	defer s.mu.Unlock()
	e := choosePinned(s.entries[set:set+affinityWays], k, now)
	if e.used && e.key == k && age(now, e.seen) < f.timeout {
		i, ok := slices.BinarySearchFunc(list, Backend{Addr: e.addr, Port: e.port}, compareBackends)
		if ok {
			e.seen = now
			return list[i]
		}
	}
	b := list[spread(random, len(list))]
	if !e.used {
		s.used++
	}
	*e = pinned{key: k, addr: b.Addr, port: b.Port, used: true, seen: now}
	return b
}

// choosePinned returns the entry of k, or else the one that gives way to it.
func choosePinned(set []pinned, k pinKey, now uint32) *pinned {
	worst := &set[0]
	for i := range set {
		e := &set[i]
		switch {
		case e.used && e.key == k:
			return e
		case !worst.used:
		case !e.used, age(now, e.seen) > age(now, worst.seen):
			worst = e
		}
	}
	return worst
}

// age is the seconds since seen; workers' clocks may differ by one.
func age(now, seen uint32) uint32 {
	if d := int32(now - seen); d > 0 { // wraps on purpose
		return uint32(d)
	}
	return 0
}

// Sweep forgets what t has no use for: the clients of service ports that are
// gone or no longer ask for affinity (AFF-5), and those whose time is over. It
// is called when t is published, and looks at the clients only when the
// affinities of t are others than before, or a minute has passed: meanwhile
// Pick waits.
func (a *Affinity) Sweep(t *Table, now uint32) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.pins != nil && age(now, a.swept) < sweepEvery && maps.Equal(a.pins, t.pins) {
		return
	}
	a.pins, a.swept = t.pins, now
	for i := range a.shards {
		a.shards[i].sweep(t, now)
	}
}

func (s *affinityShard) sweep(t *Table, now uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	left := s.used
	for i := range s.entries {
		if left == 0 {
			return
		}
		e := &s.entries[i]
		if !e.used {
			continue
		}
		left--
		if timeout, ok := t.pins[e.key.pin]; !ok || age(now, e.seen) >= timeout {
			*e = pinned{}
			s.used--
		}
	}
}

// Len returns the number of clients that are remembered.
func (a *Affinity) Len() int {
	n := 0
	for i := range a.shards {
		s := &a.shards[i]
		s.mu.Lock()
		n += s.used
		s.mu.Unlock()
	}
	return n
}
