package flow_test

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/flow"
	"github.com/netctl/netctl/internal/packet"
)

func TestReopenKeepsConnections(t *testing.T) {
	t.Parallel()
	cfg := flow.Config{Path: filepath.Join(t.TempDir(), "flows"), Slots: 1 << 10, Epoch: "boot-1"}
	tab := open(t, cfg)
	if r := tab.Report(); r != (flow.Report{}) {
		t.Errorf("new table: %+v, want nothing to report", r)
	}
	const n = 200
	for i := range n {
		ref, res := insert(tab, tupleOf(i), uint32(1+i%3), 5)
		if res != flow.Inserted {
			t.Fatal(res)
		}
		establish(t, tab, ref)
	}
	want := dump(tab)
	if err := tab.Close(); err != nil {
		t.Fatal(err)
	}
	tab = open(t, cfg)
	defer tab.Close()
	if r := tab.Report(); r != (flow.Report{Adopted: n}) {
		t.Errorf("report = %+v, want %d adopted", r, n)
	}
	compare(t, dump(tab), want)
	if got := tab.OwnerLen(1); got != 67 {
		t.Errorf("owner 1 has %d, want 67", got)
	}
	check(t, tab)
}

func dump(tab *flow.Table) map[packet.Tuple]flow.Entry {
	out := map[packet.Tuple]flow.Entry{}
	tab.Each(func(k packet.Tuple, e flow.Entry) bool { out[k] = e; return true })
	return out
}

func compare(t *testing.T, got, want map[packet.Tuple]flow.Entry) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%d directions, want %d", len(got), len(want))
	}
	for k, e := range want {
		if got[k] != e {
			t.Errorf("%v = %+v, want %+v", k, got[k], e)
		}
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	put := func(at int, v byte) func([]byte) []byte {
		return func(b []byte) []byte { b[at] ^= v; return b }
	}
	tests := []struct {
		name  string
		spoil func([]byte) []byte
		want  flow.Refusal
	}{
		{"as it was", func(b []byte) []byte { return b }, flow.NotRefused},
		{"empty file", func([]byte) []byte { return nil }, flow.NotRefused},
		{"somebody's file", func([]byte) []byte { return []byte("hello") }, flow.RefusedForeign},
		{"somebody's long file", func([]byte) []byte { return make([]byte, 1<<20) }, flow.RefusedForeign},
		{"magic", put(0, 1), flow.RefusedForeign},
		{"version", put(flow.HeadVersion+4, 1), flow.RefusedVersion},
		{"slot size", put(flow.HeadVersion, 1), flow.RefusedVersion},
		{"header sum", put(flow.HeadSumByte, 1), flow.RefusedTorn},
		{"hash key", put(flow.HeadSumByte-1, 1), flow.RefusedTorn},
		{"cut short", func(b []byte) []byte { return b[:len(b)-1] }, flow.RefusedTorn},
		{"cut in the header", func(b []byte) []byte { return b[:40] }, flow.RefusedForeign},
		{"too long", func(b []byte) []byte { return append(b, 0) }, flow.RefusedTorn},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := flow.Config{Path: filepath.Join(t.TempDir(), "flows"), Slots: 64}
			tab, err := flow.Open(cfg)
			if err != nil {
				t.Fatal(err)
			}
			insert(tab, tupleOf(1), 1, 1)
			closeTable(t, tab)
			b, err := os.ReadFile(cfg.Path)
			if err != nil {
				t.Fatal(err)
			}
			b = tt.spoil(b)
			if err := os.WriteFile(cfg.Path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if tab, err = flow.Open(cfg); err != nil {
				t.Fatal(err)
			}
			defer closeTable(t, tab)
			if got := tab.Report().Refusal; got != tt.want {
				t.Errorf("refusal = %v, want %v", got, tt.want)
			}
			kept := tt.want == flow.NotRefused && tt.name != "empty file" || tt.want == flow.RefusedVersion // that one left it in words for all
			if kept != (tab.Len() == 1) {
				t.Errorf("%d connections", tab.Len())
			}
			if _, res := insert(tab, tupleOf(2), 1, 1); res != flow.Inserted {
				t.Errorf("insert afterwards: %v", res)
			}
			check(t, tab)
		})
	}
}

func closeTable(t *testing.T, tab *flow.Table) {
	t.Helper()
	if err := tab.Close(); err != nil {
		t.Error(err)
	}
}

func TestOtherEpochIsRefused(t *testing.T) {
	t.Parallel()
	cfg := flow.Config{Path: filepath.Join(t.TempDir(), "flows"), Slots: 64, Epoch: "boot-1"}
	tab := open(t, cfg)
	insert(tab, tupleOf(1), 0, 1)
	closeTable(t, tab)
	cfg.Epoch = "boot-2"
	tab = open(t, cfg)
	defer closeTable(t, tab)
	if r := tab.Report(); r.Refusal != flow.RefusedEpoch || tab.Len() != 0 {
		t.Errorf("report = %+v with %d connections, want refused and none", r, tab.Len())
	}
}

func TestOpenErrors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, cfg := range map[string]flow.Config{
		"slots no power of two": {Slots: 1000},
		"too few slots":         {Slots: 8},
		"too many slots":        {Slots: 1 << 28},
		"negative bound":        {PerOwner: -1},
		"join without a path":   {Join: true},
		"a directory":           {Path: dir, Slots: 64},
		"no such directory":     {Path: filepath.Join(dir, "no", "flows"), Slots: 64},
		"a device":              {Path: "/dev/null", Slots: 64},
	} {
		if tab, err := flow.Open(cfg); err == nil {
			t.Errorf("%s: opened, want an error", name)
			closeTable(t, tab)
		}
	}
}

func TestInUseAndJoin(t *testing.T) {
	t.Parallel()
	cfg := flow.Config{Path: filepath.Join(t.TempDir(), "flows"), Slots: 256, PerOwner: 2}
	old := open(t, cfg)
	insert(old, tupleOf(1), 5, 1)
	if tab, err := flow.Open(cfg); !errors.Is(err, flow.ErrInUse) {
		t.Errorf("second open: %v %v, want ErrInUse", tab, err)
	}
	cfg.Join, cfg.Slots = true, 1024 // the size is that of the living table
	next := open(t, cfg)
	if r := next.Report(); !r.Joined || r.Adopted != 1 {
		t.Errorf("report = %+v, want joined, 1 adopted", r)
	}
	insert(next, tupleOf(2), 5, 1)
	insert(old, tupleOf(3), 0, 1)
	for _, tab := range []*flow.Table{old, next} {
		for i := 1; i <= 3; i++ {
			state(t, tab, tupleOf(i))
		}
		check(t, tab)
	}
	closeTable(t, old)
	state(t, next, tupleOf(1))
	cfg.Join, cfg.Slots = false, 256
	if _, err := flow.Open(cfg); !errors.Is(err, flow.ErrInUse) {
		t.Errorf("open beside the successor: %v, want ErrInUse", err)
	}
	closeTable(t, next)
	last := open(t, cfg)
	defer closeTable(t, last)
	if r := last.Report(); r.Adopted != 3 || r.Joined {
		t.Errorf("report = %+v, want 3 adopted alone", r)
	}
}

func TestResizeKeepsConnections(t *testing.T) {
	t.Parallel()
	cfg := flow.Config{Path: filepath.Join(t.TempDir(), "flows"), Slots: 1 << 10}
	tab := open(t, cfg)
	for i := range 100 {
		ref, _ := insert(tab, tupleOf(i), uint32(i%4), 3)
		establish(t, tab, ref)
	}
	want := dump(tab)
	closeTable(t, tab)
	for _, slots := range []int{1 << 12, 1 << 9} {
		cfg.Slots = slots
		tab = open(t, cfg)
		if r := tab.Report(); r.Resized == 0 || r.Adopted != 100 || r.Dropped != 0 {
			t.Errorf("report = %+v, want 100 adopted from another size", r)
		}
		compare(t, dump(tab), want)
		check(t, tab)
		closeTable(t, tab)
	}
	cfg.Slots = 64
	tab = open(t, cfg)
	defer closeTable(t, tab)
	if r := tab.Report(); r.Adopted+r.Dropped/2 != 100 || r.Adopted < 20 {
		t.Errorf("report = %+v, want what fits", r)
	}
	check(t, tab)
}

// A table whose bytes were changed at random opens, keeps its invariants and
// goes on working; connections that were not hit stay.
func TestRepairRandomDamage(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 3))
	for round := range 200 {
		killed := round%2 == 0 // or somebody else wrote, whom Open does not expect
		cfg := flow.Config{Path: filepath.Join(t.TempDir(), "flows"), Slots: 128, PerOwner: 50}
		tab := open(t, cfg)
		const n = 30
		for i := range n {
			insert(tab, tupleOf(i), uint32(i%3), 1)
		}
		closeTable(t, tab)
		b, err := os.ReadFile(cfg.Path)
		if err != nil {
			t.Fatal(err)
		}
		const hits = 5
		slots := flow.SlotsByte(cfg.Slots)
		for range hits {
			at := slots + rng.IntN(cfg.Slots*flow.SlotBytes)
			switch rng.IntN(3) {
			case 0:
				b[at] ^= byte(1 + rng.IntN(255))
			case 1: // a writer was inside
				b[at/flow.SlotBytes*flow.SlotBytes] |= 1
			default: // tag lost or invented
				b[flow.TagsByte+rng.IntN(cfg.Slots)] ^= byte(1 + rng.IntN(255))
			}
		}
		if killed {
			binary.NativeEndian.PutUint64(b[flow.CountByte:], rng.Uint64())
			binary.NativeEndian.PutUint64(b[flow.LocksByte+8*rng.IntN(256):], 1)
		}
		if err := os.WriteFile(cfg.Path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		tab = open(t, cfg)
		if !killed {
			for i := range n {
				if ref, _ := insert(tab, tupleOf(i), uint32(i%3), 1); rng.IntN(9) == 0 {
					tab.Remove(ref)
					insert(tab, tupleOf(i), uint32(i%3), 1)
				}
			}
			verify(tab)
		}
		if tab.Report().Refusal != flow.NotRefused || tab.Len() < n-hits {
			t.Fatalf("report = %+v with %d connections, want at least %d", tab.Report(), tab.Len(), n-hits)
		}
		if err := tab.CheckAllBut(!killed); err != nil {
			t.Fatal(err)
		}
		for i := range n {
			insert(tab, tupleOf(i), uint32(i%3), 1)
		}
		if tab.Stats().Mended != 0 {
			t.Fatal("a lock was held after repair")
		}
		if err := tab.CheckAllBut(!killed); err != nil {
			t.Fatal(err)
		}
		closeTable(t, tab)
	}
}

// verify lets a minute pass, in which Expire looks at everything once.
func verify(tab *flow.Table) {
	for range flow.ExpireParts {
		tab.Expire(1)
	}
}

// A hostile file holds two connections with one reply tuple: one of them stays.
func TestRepairDoubles(t *testing.T) {
	t.Parallel()
	for name, reverse := range map[string]bool{"opener": false, "replies": true} {
		// Two buckets: every tuple may be in every slot.
		cfg := flow.Config{Path: filepath.Join(t.TempDir(), "flows"), Slots: 16}
		tab := open(t, cfg)
		insert(tab, tupleOf(1), 0, 1)
		insert(tab, tupleOf(2), 0, 1)
		closeTable(t, tab)
		b, err := os.ReadFile(cfg.Path)
		if err != nil {
			t.Fatal(err)
		}
		var found [][]byte
		for i := range cfg.Slots {
			s := b[flow.SlotsByte(cfg.Slots)+i*flow.SlotBytes:][:flow.SlotBytes]
			ports := binary.NativeEndian.Uint64(s[48:])
			if ports != 0 && (flow.Flags(ports)&flow.FlagReverse != 0) == reverse {
				found = append(found, s)
			}
		}
		copy(found[1][16:56], found[0][16:56]) // the key: addresses, ports, protocol
		if err := os.WriteFile(cfg.Path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		tab = open(t, cfg)
		verify(tab)
		if tab.Len() != 1 {
			t.Errorf("%s: %d connections, want one kept, one dropped", name, tab.Len())
		}
		check(t, tab)
		closeTable(t, tab)
	}
}

// FuzzOpen writes hostile bytes over a valid table and uses what Open makes of
// it: no panic, no endless loop, all invariants.
func FuzzOpen(f *testing.F) {
	const slots = 32
	valid := filepath.Join(f.TempDir(), "valid")
	tab := open(f, flow.Config{Path: valid, Slots: slots})
	for i := range 6 {
		insert(tab, tupleOf(i), uint32(i), 1)
	}
	if err := tab.Close(); err != nil {
		f.Fatal(err)
	}
	base, err := os.ReadFile(valid)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{}, []byte{}, []byte{}, uint16(0))
	f.Add(base[:8], base[flow.TagsByte:flow.TagsByte+slots], base[flow.SlotsByte(slots):], uint16(0))
	f.Add(base[:flow.HeadSumByte+8], []byte{1, 2, 3, 255}, base[flow.SlotsByte(slots)+256:], uint16(128))
	f.Add([]byte("nctlflow"), []byte{}, []byte{}, uint16(9))
	f.Fuzz(func(t *testing.T, head, tags, body []byte, at uint16) {
		b := append([]byte(nil), base...)
		copy(b, head)
		copy(b[flow.TagsByte:flow.TagsByte+slots], tags)
		area := b[flow.SlotsByte(slots):]
		copy(area[int(at)%len(area):], body)
		path := filepath.Join(t.TempDir(), "flows")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		tab, err := flow.Open(flow.Config{Path: path, Slots: slots})
		if err != nil {
			t.Fatal(err)
		}
		defer tab.Close()
		for i := range 20 { // before anything was verified
			ref, res := insert(tab, tupleOf(i), uint32(i), 1)
			if i%2 == 0 && (res == flow.Exists || res == flow.Inserted) {
				tab.Remove(ref)
			}
		}
		for k, e := range dump(tab) {
			send(tab, k, 0x17, 1)
			var other packet.Tuple
			if ref, ok := tab.Lookup(&k, &e); ok {
				tab.Pair(ref, &other, &e)
				tab.Update(ref, &e)
			}
		}
		verify(tab)
		if err := tab.CheckAllBut(true); err != nil {
			t.Fatal(err)
		}
		for k := range dump(tab) {
			send(tab, k, 0x17, 9)
		}
		for i := range 20 {
			insert(tab, tupleOf(i), uint32(i), 10)
		}
		expireAll(tab, 100)
		tab.RemoveAddr(tupleOf(3).Src)
		if err := tab.CheckAllBut(true); err != nil {
			t.Fatal(err)
		}
	})
}
