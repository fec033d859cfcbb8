package ipam

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// twin is the pool as one would write it down: no journal, no cursor, no queue
// tricks. Slow and plain.
type twin struct {
	blocks []netip.Prefix
	leases map[ID][]netip.Addr
	owner  map[ID]string
	old    []released // in the order of release
	floor  time.Duration
}

func (w *twin) clone() *twin {
	return &twin{
		blocks: w.blocks, leases: maps.Clone(w.leases), owner: maps.Clone(w.owner),
		old: slices.Clone(w.old), floor: w.floor,
	}
}

func (w *twin) used(a netip.Addr) bool {
	for _, l := range w.leases {
		if slices.Contains(l, a) {
			return true
		}
	}
	return false
}

// next returns the address that must come next.
func (w *twin) next(v6 bool, now time.Time) (netip.Addr, bool) {
	inBlock := func(a netip.Addr) bool {
		return slices.ContainsFunc(w.blocks, func(b netip.Prefix) bool { return b.Contains(a) })
	}
	for _, b := range w.blocks {
		if b.Addr().Is6() != v6 {
			continue
		}
		a := b.Addr().Next().Next().Next()
		for ; b.Contains(a.Next()); a = a.Next() {
			if !w.used(a) && !slices.ContainsFunc(w.old, func(r released) bool { return r.addr == a }) {
				return a, true
			}
		}
	}
	for _, r := range w.old {
		if r.addr.Is6() == v6 && inBlock(r.addr) {
			return r.addr, now.Sub(r.at) >= w.floor
		}
	}
	return netip.Addr{}, false
}

func (w *twin) allocate(id ID, uid string, want Families, now time.Time) ([]netip.Addr, bool) {
	if l, ok := w.leases[id]; ok {
		return l, true
	}
	var got []netip.Addr
	for i, f := range []Families{IPv4, IPv6} {
		if want&f == 0 {
			continue
		}
		a, ok := w.next(i == 1, now)
		if !ok {
			return nil, false
		}
		got = append(got, a)
	}
	w.old = slices.DeleteFunc(w.old, func(r released) bool { return slices.Contains(got, r.addr) })
	w.leases[id], w.owner[id] = got, uid
	return got, true
}

func (w *twin) release(id ID, now time.Time) {
	for _, a := range w.leases[id] {
		w.old = append(w.old, released{addr: a, at: now})
	}
	delete(w.leases, id)
	delete(w.owner, id)
}

// history is one random life of a pool beside its twin.
type history struct {
	t    *testing.T
	seed uint64
	rng  *rand.Rand
	now  time.Time
	disk *memory
	pool *Pool
	twin *twin
	// maybe is the twins as they are if one of the operations that failed since
	// the last change came true after all; a process that died, or whose disk
	// kept its line, may find any of them.
	maybe []*twin
}

func newHistory(t *testing.T, seed uint64) *history {
	h := &history{
		t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 1)), now: time.UnixMilli(1_700_000_000_000),
		twin: &twin{leases: map[ID][]netip.Addr{}, owner: map[ID]string{}, floor: 20 * time.Second},
	}
	h.disk = &memory{rng: rand.New(rand.NewPCG(seed, 2)), files: map[string][]byte{}, steps: -1}
	h.open()
	h.setBlocks()
	return h
}

func (h *history) fatalf(format string, args ...any) {
	h.t.Helper()
	h.t.Fatalf("seed %d: %s", h.seed, fmt.Sprintf(format, args...))
}

func (h *history) open() {
	h.t.Helper()
	p, err := Open(Config{
		Cooldown: 60 * time.Second, Floor: 20 * time.Second, LeakGrace: time.Minute,
		Now: func() time.Time { return h.now }, disk: h.disk,
	})
	if err != nil {
		h.fatalf("open: %v", err)
	}
	if p.Report().Broken() {
		h.fatalf("a crash broke the record: %+v", p.Report())
	}
	h.pool = p
	if err := p.SetBlocks(h.twin.blocks); err != nil {
		h.fatalf("set blocks: %v", err)
	}
}

// setBlocks gives the node some of a few blocks.
func (h *history) setBlocks() {
	h.twin.blocks = nil
	for _, s := range []string{"10.0.0.0/29", "10.0.0.16/28", "10.0.1.0/29", "fd00::/125", "fd00::40/123"} {
		if h.rng.IntN(4) > 0 {
			h.twin.blocks = append(h.twin.blocks, netip.MustParsePrefix(s))
		}
	}
	if err := h.pool.SetBlocks(h.twin.blocks); err != nil {
		h.fatalf("set blocks: %v", err)
	}
}

// check compares the pool with its twin.
func (h *history) check() {
	h.t.Helper()
	if diff := h.compare(h.twin); diff != "" {
		h.fatalf("%s", diff)
	}
}

func (h *history) compare(w *twin) string {
	got := map[ID][]netip.Addr{}
	seen := map[netip.Addr]ID{}
	for _, l := range h.pool.Leases() {
		got[l.ID] = l.Addresses
		if l.PodUID != w.owner[l.ID] {
			return fmt.Sprintf("%s is of pod %q, want %q", l.ID, l.PodUID, w.owner[l.ID])
		}
		for _, a := range l.Addresses {
			if other, twice := seen[a]; twice {
				h.fatalf("%s is leased to %s and %s", a, other, l.ID)
			}
			seen[a] = l.ID
		}
	}
	if !maps.EqualFunc(got, w.leases, slices.Equal[[]netip.Addr]) {
		return fmt.Sprintf("leases are %v, want %v", got, w.leases)
	}
	return ""
}

// reopen starts a new process on what the disk has.
func (h *history) reopen() {
	h.t.Helper()
	h.disk = &memory{rng: h.disk.rng, files: h.disk.files, steps: -1, flaky: 0}
	h.open()
	if diff := h.compare(h.twin); diff != "" {
		i := slices.IndexFunc(h.maybe, func(w *twin) bool { return h.compare(w) == "" })
		if i < 0 {
			h.fatalf("after a restart %s", diff)
		}
		h.maybe[i].blocks = h.twin.blocks
		h.twin = h.maybe[i]
	}
	h.maybe = nil
}

// do runs one random operation on both.
func (h *history) do() {
	h.t.Helper()
	h.now = h.now.Add(time.Duration(h.rng.IntN(12_000)) * time.Millisecond)
	id := ID{fmt.Sprintf("c%d", h.rng.IntN(24)), "eth0"}
	want := []Families{IPv4, IPv6, IPv4 | IPv6}[int(id.ContainerID[len(id.ContainerID)-1])%3]
	after := h.twin.clone()
	var err error
	switch h.rng.IntN(10) {
	case 0:
		h.setBlocks()
		return
	case 1, 2, 3, 4:
		_, err = h.pool.Release(id)
		after.release(id, h.now)
	default:
		var l Lease
		l, err = h.pool.Allocate(id, "uid-"+id.ContainerID, want)
		addresses, ok := after.allocate(id, "uid-"+id.ContainerID, want, h.now)
		if full, is := errors.AsType[*ExhaustedError](err); is {
			if ok {
				h.fatalf("allocate %s: %v, want %v", id, full, addresses)
			}
			return
		}
		if err == nil && (!ok || !slices.Equal(l.Addresses, addresses)) {
			h.fatalf("allocate %s: got %v, want %v (%t)", id, l.Addresses, addresses, ok)
		}
	}
	if err != nil {
		if !errors.Is(err, errCrashed) && !errors.Is(err, errFull) {
			h.fatalf("%s: %v", id, err)
		}
		h.maybe = append(h.maybe, after)
		return
	}
	if !maps.EqualFunc(h.twin.leases, after.leases, slices.Equal[[]netip.Addr]) {
		h.maybe = nil
	}
	h.twin = after
}

func TestPoolAgainstTwin(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		h := newHistory(t, seed)
		for range 400 {
			h.do()
			h.check()
			if h.rng.IntN(40) == 0 {
				h.reopen()
			}
		}
	}
}

func TestPoolSurvivesACrashAtEveryStep(t *testing.T) {
	t.Parallel()
	for seed := range uint64(6) {
		for crash := range 40 {
			h := newHistory(t, 1000+seed)
			h.pool.lines = compactAfter - 12 // so that a snapshot falls into the history
			h.disk.steps = crash
			for range 80 {
				h.do()
				if h.disk.dead {
					break
				}
				h.check()
			}
			h.reopen()
			for range 40 { // and life goes on
				h.do()
				h.check()
			}
		}
	}
}

func TestPoolSurvivesACrashWhileOpening(t *testing.T) {
	t.Parallel()
	for seed := range uint64(30) {
		h := newHistory(t, 2000+seed)
		for range 60 {
			h.do()
		}
		for steps := range 6 { // snapshot, rename, truncate
			h.disk = &memory{rng: h.disk.rng, files: h.disk.files, steps: steps}
			_, err := Open(Config{Now: func() time.Time { return h.now }, disk: h.disk})
			if err != nil && !errors.Is(err, errCrashed) {
				t.Fatal(err)
			}
		}
		h.reopen()
	}
}

func TestPoolSurvivesAFullDisk(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		h := newHistory(t, 3000+seed)
		h.disk.flaky = 3
		for i := range 300 {
			h.do()
			h.check()
			if i%37 == 36 {
				h.reopen()
				h.disk.flaky = 3
			}
		}
	}
}

func TestPoolFromAJournalCutAtEveryByte(t *testing.T) {
	t.Parallel()
	h := newHistory(t, 4000)
	type point struct {
		size int
		twin *twin
	}
	points := []point{{0, h.twin.clone()}}
	for range 60 {
		h.do()
		points = append(points, point{len(h.disk.files[journalName]), h.twin.clone()})
	}
	journal, snapshot := h.disk.files[journalName], h.disk.files[snapshotName]
	if len(journal) < 1500 {
		t.Fatalf("a journal of %d bytes shows little", len(journal))
	}
	for cut := range len(journal) + 1 {
		files := map[string][]byte{journalName: slices.Clone(journal[:cut])}
		if snapshot != nil {
			files[snapshotName] = snapshot
		}
		for _, p := range points {
			if p.size <= cut {
				h.twin = p.twin
			}
		}
		h.disk = &memory{rng: h.disk.rng, files: files, steps: -1}
		h.open()
		h.check()
	}
}

func TestPoolFromARecordDamagedAtEveryByte(t *testing.T) {
	t.Parallel()
	h := newHistory(t, 5000)
	for range 30 {
		h.do()
	}
	h.reopen() // makes a snapshot
	for range 30 {
		h.do()
	}
	want := len(h.twin.leases)
	for _, name := range []string{journalName, snapshotName} {
		data := h.disk.files[name]
		if len(data) == 0 {
			t.Fatalf("no %s", name)
		}
		for i := range data {
			files := maps.Clone(h.disk.files)
			files[name] = slices.Clone(data)
			files[name][i] ^= 1 << (i % 8)
			p, err := Open(Config{Now: func() time.Time { return h.now }, disk: &memory{files: files, steps: -1}})
			if err != nil {
				t.Fatalf("%s byte %d: %v", name, i, err)
			}
			cutTail := name == journalName && i == len(data)-1 // the last newline: as if it was never written
			if !p.Report().Broken() && !cutTail {
				t.Fatalf("%s byte %d: the damage was not noticed", name, i)
			}
			if p.Report().Broken() && len(files[damagedName]) == 0 {
				t.Fatalf("%s byte %d: the damaged record was not kept", name, i)
			}
			if got := len(p.Leases()); got < want-2 || got > want+2 {
				t.Fatalf("%s byte %d: %d leases, want about %d: one line must not take others with it", name, i, got, want)
			}
		}
	}
}
