package flow_test

import (
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/netctl/netctl/internal/flow"
	"github.com/netctl/netctl/internal/packet"
)

// TestConcurrent has many goroutines do everything at once on few tuples; every
// entry that a lookup gives must be one that somebody wrote whole.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	tab := open(t, flow.Config{Slots: 512, PerOwner: 60})
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 7))
			for range 20_000 {
				concurrentStep(t, tab, rng)
			}
		})
	}
	wg.Wait()
	check(t, tab)
}

// stamp makes an entry all of whose words are the same number.
func stamp(n uint32, owner uint32) flow.Entry {
	var a packet.Addr
	for i := range 4 {
		a[i*4], a[i*4+1], a[i*4+2], a[i*4+3] = byte(n), byte(n>>8), byte(n>>16), byte(n>>24)
	}
	return flow.Entry{
		Rewrite: packet.Rewrite{Src: a, Dst: a, SrcPort: uint16(n), DstPort: uint16(n)},
		Out:     n, InGen: n, OutGen: n, FrontGen: n, Owner: owner,
	}
}

func concurrentStep(t *testing.T, tab *flow.Table, rng *rand.Rand) {
	t.Helper()
	k := tupleOf(rng.IntN(300))
	if rng.IntN(2) == 0 {
		k = k.Reverse()
	}
	var e flow.Entry
	ref, ok := tab.Lookup(&k, &e)
	if ok {
		if want := stamp(e.Out, e.Owner); e.Rewrite != want.Rewrite || e.InGen != e.Out || e.OutGen != e.Out || e.FrontGen != e.Out {
			t.Errorf("torn entry %+v", e)
		}
	}
	n := rng.Uint32()
	switch op := rng.IntN(20); {
	case op == 0:
		tab.Expire(rng.Uint32N(100))
	case op == 1 && rng.IntN(20) == 0:
		tab.RemoveAddr(k.Src)
	case op < 4 && ok:
		tab.Remove(ref)
	case op < 8 && ok:
		e = stamp(n, 0)
		tab.Update(ref, &e)
	case op < 14 && ok:
		tab.Seen(ref, 10, uint8(n), rng.Uint32N(100))
	default:
		rev := k.Reverse()
		f, r := stamp(n, n%5), stamp(n+1, 0)
		tab.Insert(&k, &rev, &f, &r, rng.Uint32N(100))
	}
}

// TestNoTornReads has two goroutines update one entry while two read it: a copy
// must be one that was written whole.
func TestNoTornReads(t *testing.T) {
	t.Parallel()
	tab := open(t, flow.Config{Slots: 16})
	k := tupleOf(1)
	f := stamp(1, 0)
	rev := k.Reverse()
	if _, res := tab.Insert(&k, &rev, &f, &f, 1); res != flow.Inserted {
		t.Fatal(res)
	}
	var wg sync.WaitGroup
	for g := range 2 {
		wg.Go(func() {
			var e flow.Entry
			for i := range uint32(100_000) {
				ref, _ := tab.Lookup(&k, &e)
				next := stamp((i*2+uint32(g))*0x9e3779b9, 0)
				tab.Update(ref, &next)
			}
		})
		wg.Go(func() {
			var e flow.Entry
			for range 200_000 {
				_, ok := tab.Lookup(&k, &e)
				want := stamp(e.Out, 0)
				if ok && (e.Rewrite != want.Rewrite || e.InGen != e.Out || e.OutGen != e.Out || e.FrontGen != e.Out) {
					t.Errorf("torn entry %+v", e)
					return
				}
			}
		})
	}
	wg.Wait()
}
