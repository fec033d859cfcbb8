package proxy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/netctl/netctl/internal/mapfile"
	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/internal/portable"
)

// DefaultAffinityEntries is the number of clients that are remembered, as many
// as Cilium does by default; their memory is 4 MiB once all are in use.
const DefaultAffinityEntries = 1 << 16

const (
	affinityShards = 64
	affinityWays   = 8 // entries among which the longest idle gives way
	affinityUnit   = affinityShards * affinityWays
	maxAffinity    = 1 << 24
	// sweepEvery is how many seconds clients whose time is over stay when
	// nothing else changes. They only cost memory that is there anyway.
	sweepEvery = 60
)

// The layout in words: a line of the cache for each shard, then the entries of
// the first shard, and so on.
const (
	shardWords = 8
	shardsAt   = mapfile.HeadWords
	entriesAt  = shardsAt + affinityShards*shardWords
	entryWords = 8

	wordLock = 0 // of a shard
	wordUsed = 1 // how many entries of the shard are, or more
)

//nolint:gochecknoglobals // a description known at compile time
var affinityFormat = mapfile.Format{
	Name: "affinities", Magic: 0x736f74656d6f63, Version: 1, Unit: entryWords * 8, Min: affinityUnit, Max: maxAffinity,
	Words: func(entries int) int {
		if entries%affinityUnit != 0 {
			return -1
		}
		return entriesAt + entries*entryWords
	},
}

// AffinityConfig says how large an Affinity is and where.
type AffinityConfig struct {
	Entries int    // rounded up to a multiple of 512; DefaultAffinityEntries when 0
	Path    string // file to map; "" keeps them in this process's memory
	// Epoch names the time in which seconds have a meaning, such as the kernel's
	// boot id. A file of another epoch is refused.
	Epoch string
}

// Affinity remembers which client of which service port goes to which backend,
// by the backend's address and port. It is bounded: among eight entries that may
// hold a client the one that was idle longest gives way. It outlives tables, and
// with a path the process; during a handover two processes share it. All its
// methods but Close may be called from any number of goroutines.
//
// A process may be killed while it writes an entry. The word that says an entry
// is in use is cleared first and written last, so that such an entry is empty.
type Affinity struct {
	// Immutable after OpenAffinity.
	file   *mapfile.File
	cfg    AffinityConfig
	key    [mapfile.KeyWords]uint64
	shards []affinityShard
	sets   uint64 // of one shard
	report AffinityReport

	mu    sync.Mutex
	pins  map[uint64]uint32 // what was swept with last, nil before; guarded by mu
	swept uint32            // when that was; guarded by mu
}

// AffinityReport says what OpenAffinity found.
type AffinityReport struct {
	Refusal mapfile.Refusal // why the file that was there was not used
	Adopted int             // clients taken over
	Joined  bool            // another process has the file open too

	Imported  int   // clients that a process of another version left in words for all
	ImportErr error // why what it left could not be read
}

// String says it for a log.
func (r AffinityReport) String() string {
	out := fmt.Sprintf("%d clients taken over", r.Adopted+r.Imported)
	if r.Refusal != mapfile.NotRefused {
		out += fmt.Sprintf(", file refused: %s", r.Refusal)
	}
	if r.ImportErr != nil {
		out += fmt.Sprintf(", nor can what was left be read: %v", r.ImportErr)
	}
	return out
}

// affinityShard is the part of one lock, which keeps this process's goroutines
// apart, while the word keeps processes apart.
type affinityShard struct {
	mu      sync.Mutex
	head    []atomic.Uint64
	entries []pinned
}

// client is who is pinned: a service port's key and an address in two words.
type client struct {
	pin  uint64
	addr [2]uint64
}

func wordsOf(a packet.Addr) [2]uint64 {
	return [2]uint64{binary.LittleEndian.Uint64(a[0:8]), binary.LittleEndian.Uint64(a[8:16])}
}

func addrOf(w [2]uint64) (a packet.Addr) {
	binary.LittleEndian.PutUint64(a[0:8], w[0])
	binary.LittleEndian.PutUint64(a[8:16], w[1])
	return a
}

// pinned is one client:
//
//	0  pin
//	1  client's address, 16 bytes
//	3  backend's address, 16 bytes
//	5  last connection opened 32 | backend's port 16 | 0 | used 1
type pinned [entryWords]atomic.Uint64

const (
	wordPin     = 0
	wordClient  = 1
	wordBackend = 3
	wordSeen    = 5

	usedEntry = 1
)

// lastUse is what the last word of an entry says.
type lastUse uint64

func makeLastUse(seen uint32, port uint16) lastUse {
	return lastUse(uint64(seen)<<32 | uint64(port)<<16 | usedEntry)
}

func (c lastUse) used() bool   { return c&usedEntry != 0 }
func (c lastUse) seen() uint32 { return uint32(c >> 32) }
func (c lastUse) port() uint16 { return uint16(c >> 16) } // the named bits

func (e *pinned) last() lastUse { return lastUse(e[wordSeen].Load()) }

func (e *pinned) client() client {
	return client{pin: e[wordPin].Load(), addr: [2]uint64{e[wordClient].Load(), e[wordClient+1].Load()}}
}

func (e *pinned) backend() Backend {
	return Backend{Addr: addrOf([2]uint64{e[wordBackend].Load(), e[wordBackend+1].Load()}), Port: e.last().port()}
}

// is reports whether the entry is that of a client.
func (e *pinned) is(k *client) bool {
	return e[wordClient+1].Load() == k.addr[1] && e[wordClient].Load() == k.addr[0] && e[wordPin].Load() == k.pin && e.last().used()
}

// write fills the entry. The caller has the shard's lock.
func (e *pinned) write(k *client, b Backend, seen uint32) {
	backend := wordsOf(b.Addr)
	e[wordSeen].Store(0)
	e[wordPin].Store(k.pin)
	e[wordClient].Store(k.addr[0])
	e[wordClient+1].Store(k.addr[1])
	e[wordBackend].Store(backend[0])
	e[wordBackend+1].Store(backend[1])
	e[wordSeen].Store(uint64(makeLastUse(seen, b.Port)))
}

// NewAffinity returns an empty Affinity in this process's memory.
func NewAffinity(cfg AffinityConfig) *Affinity {
	cfg.Path = ""
	a, err := OpenAffinity(cfg)
	if err != nil {
		panic(err) // nothing but memory of our own was asked for
	}
	return a
}

// OpenAffinity opens or makes an Affinity. A file that is foreign, torn, of
// another version or of another epoch is replaced by an empty one, and Report
// says why. It joins a file that a living process has open.
func OpenAffinity(cfg AffinityConfig) (*Affinity, error) {
	if cfg.Entries <= 0 {
		cfg.Entries = DefaultAffinityEntries
	}
	if cfg.Entries > maxAffinity {
		return nil, fmt.Errorf("affinities: %d entries: want at most %d", cfg.Entries, maxAffinity)
	}
	cfg.Entries = (cfg.Entries + affinityUnit - 1) / affinityUnit * affinityUnit
	f, err := mapfile.Open(&affinityFormat, mapfile.Config{Path: cfg.Path, Units: cfg.Entries, Epoch: cfg.Epoch, Join: cfg.Path != ""})
	if err != nil {
		return nil, err
	}
	a := &Affinity{file: f, cfg: cfg}
	if err := a.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("open affinities %s: %w", cfg.Path, err), f.Close())
	}
	return a, nil
}

// resize puts the clients of a file of another size into one of ours.
func (a *Affinity) resize() error {
	var b bytes.Buffer
	if err := a.Export(&b); err != nil {
		return err
	}
	if err := a.file.Make(a.cfg.Entries); err != nil {
		return err
	}
	a.cut()
	_, err := a.Import(&b)
	return err
}

// open shows the file's words and, while it is ours alone, puts them in order.
func (a *Affinity) open() error {
	found := a.file.Report()
	a.report = AffinityReport{Refusal: found.Refusal, Joined: found.Joined}
	a.cut()
	if found.Joined && a.file.Died() { // the one before, beside one that retires
		a.recount()
	}
	if found.Found && !found.Joined {
		for i := range a.shards {
			a.shards[i].head[wordLock].Store(0)
		}
		a.recount()
		if a.file.Units() != a.cfg.Entries {
			if err := a.resize(); err != nil {
				return err
			}
		}
	}
	a.report.Adopted = a.Len()
	if a.cfg.Path != "" && !found.Joined {
		a.report.Imported, a.report.ImportErr = portable.Take(a.cfg.Path, found.Refusal == mapfile.RefusedVersion, a.Import)
	}
	return a.file.Share()
}

// cut shows the words as shards.
func (a *Affinity) cut() {
	w := a.file.Words()
	n := a.file.Units() / affinityShards
	a.key, a.sets, a.shards = a.file.Key(), uint64(n/affinityWays), make([]affinityShard, affinityShards) // not negative
	entries := mapfile.Records[pinned](w[entriesAt:])
	for i := range a.shards {
		a.shards[i].head = w[shardsAt+i*shardWords:][:shardWords]
		a.shards[i].entries = entries[i*n:][:n]
	}
}

// Report returns what OpenAffinity found.
func (a *Affinity) Report() AffinityReport { return a.report }

// Close undoes the mapping and releases the file, which stays. No other method
// may be called during or after Close: the memory is gone.
//
// Who has the file last leaves it for a successor of another version as well.
func (a *Affinity) Close() error {
	var err error
	if a.file.Last() {
		err = portable.Leave(a.cfg.Path, a.Export)
	}
	a.shards = nil
	return errors.Join(err, a.file.Close())
}

func (a *Affinity) lock(s *affinityShard) {
	s.mu.Lock()
	a.file.Lock(&s.head[wordLock])
}

func (a *Affinity) unlock(s *affinityShard) {
	a.file.Unlock(&s.head[wordLock])
	s.mu.Unlock()
}

// hash is NH over the pin and the client's address (RFC 4418), with the file's
// key: who does not know it cannot aim at an entry.
func (a *Affinity) hash(c *client) uint64 {
	k := &a.key
	h1, l1 := bits.Mul64(c.pin+k[0], c.addr[0]+k[1])
	h2, l2 := bits.Mul64(c.addr[1]+k[2], k[3])
	lo, carry := bits.Add64(l1, l2, 0)
	hi, _ := bits.Add64(h1, h2, carry)
	h, l := bits.Mul64(lo+k[4], hi+k[5])
	return h ^ l
}

// home returns the shard of a client and the entries that may hold it.
func (a *Affinity) home(c *client) (*affinityShard, []pinned) {
	h := a.hash(c)
	s := &a.shards[h%affinityShards]
	set, _ := bits.Mul64(h, a.sets) // the high bits, spread without a division
	return s, s.entries[set*affinityWays:][:affinityWays]
}

// pick returns the backend that the client is pinned to while it is among
// list, and else pins it to another (AFF-3). The timeout starts anew with every
// connection (AFF-2).
func (a *Affinity) pick(f *Frontend, list []Backend, addr packet.Addr, random, now uint32) Backend {
	c := client{pin: f.pin, addr: wordsOf(addr)}
	s, set := a.home(&c)
	a.lock(s)
	defer a.unlock(s)
	e, known := choosePinned(set, &c, now)
	was := e.last()
	if known && age(now, was.seen()) < f.timeout {
		if i, ok := slices.BinarySearchFunc(list, e.backend(), compareBackends); ok {
			if was.seen() != now {
				e[wordSeen].Store(uint64(makeLastUse(now, was.port())))
			}
			return list[i]
		}
	}
	b := list[spread(random, len(list))]
	if !was.used() {
		s.head[wordUsed].Add(1)
	}
	e.write(&c, b, now)
	return b
}

// choosePinned returns the entry of a client, or else the one that gives way
// to it.
func choosePinned(set []pinned, c *client, now uint32) (e *pinned, known bool) {
	worst := &set[0]
	oldest := worst.last()
	for i := range set {
		e := &set[i]
		if e.is(c) {
			return e, true
		}
		if o := e.last(); oldest.used() && (!o.used() || age(now, o.seen()) > age(now, oldest.seen())) {
			worst, oldest = e, o
		}
	}
	return worst, false
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
	if a.file.Died() {
		a.recount()
	}
	if a.pins != nil && age(now, a.swept) < sweepEvery && maps.Equal(a.pins, t.pins) {
		return
	}
	a.pins, a.swept = t.pins, now
	a.each(func(e *pinned) bool {
		timeout, ok := t.pins[e[wordPin].Load()]
		return ok && age(now, e.last().seen()) < timeout
	})
}

// each calls keep for every client, shard by shard under its lock, and forgets
// those for which it returns false.
func (a *Affinity) each(keep func(e *pinned) bool) {
	for i := range a.shards {
		s := &a.shards[i]
		a.lock(s)
		for left, at := s.head[wordUsed].Load(), 0; left > 0 && at < len(s.entries); at++ {
			e := &s.entries[at]
			if !e.last().used() {
				continue
			}
			left--
			if !keep(e) {
				e[wordSeen].Store(0)
				s.head[wordUsed].Add(^uint64(0))
			}
		}
		a.unlock(s)
	}
}

// recount puts the counts of shards right after a process died between an entry
// and its count. A shard that counts none was never written to, and reading it
// would make a sparse file take memory.
func (a *Affinity) recount() {
	for i := range a.shards {
		s := &a.shards[i]
		a.lock(s)
		if s.head[wordUsed].Load() > 0 {
			n := uint64(0)
			for at := range s.entries {
				if s.entries[at].last().used() {
					n++
				}
			}
			s.head[wordUsed].Store(n)
		}
		a.unlock(s)
	}
}

// Len returns the number of clients that are remembered.
func (a *Affinity) Len() int {
	n := uint64(0)
	for i := range a.shards {
		n += a.shards[i].head[wordUsed].Load()
	}
	return int(min(n, maxAffinity)) // a file may lie
}
