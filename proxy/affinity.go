package proxy

import (
	"hash/maphash"
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
}

type affinityShard struct {
	mu      sync.Mutex
	entries []pinned // guarded by mu
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
// is called when t is published.
func (a *Affinity) Sweep(t *Table, now uint32) {
	for i := range a.shards {
		a.shards[i].sweep(t, now)
	}
}

func (s *affinityShard) sweep(t *Table, now uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.entries {
		e := &s.entries[i]
		if timeout, ok := t.pins[e.key.pin]; e.used && (!ok || age(now, e.seen) >= timeout) {
			*e = pinned{}
		}
	}
}

// Len returns the number of clients that are remembered.
func (a *Affinity) Len() int {
	n := 0
	for i := range a.shards {
		s := &a.shards[i]
		s.mu.Lock()
		for j := range s.entries {
			if s.entries[j].used {
				n++
			}
		}
		s.mu.Unlock()
	}
	return n
}
