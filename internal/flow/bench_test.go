package flow_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/netctl/netctl/internal/flow"
	"github.com/netctl/netctl/internal/packet"
)

// tupleOf returns the n-th of many tuples, half of them IPv6.
func tupleOf(n int) packet.Tuple {
	src := netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})
	dst := netip.AddrFrom4([4]byte{10, 96, 0, byte(n % 7)})
	if n%2 == 1 {
		src = netip.AddrFrom16([16]byte{0xfd, 0, 13: byte(n >> 16), 14: byte(n >> 8), 15: byte(n)})
		dst = netip.AddrFrom16([16]byte{0xfd, 1, 15: byte(n % 7)})
	}
	return packet.Tuple{Src: packet.AddrFrom(src), Dst: packet.AddrFrom(dst), SrcPort: uint16(1024 + n%60000), DstPort: 80, Proto: 6}
}

// establish walks a TCP connection through its handshake.
func establish(tb testing.TB, t *flow.Table, ref flow.Ref) {
	tb.Helper()
	var k packet.Tuple
	var e flow.Entry
	back, ok := t.Pair(ref, &k, &e)
	if !ok {
		tb.Fatal("no pair")
	}
	t.Seen(ref, 60, packet.TCPSyn, 1)
	t.Seen(back, 60, packet.TCPSyn|packet.TCPAck, 1)
	t.Seen(ref, 52, packet.TCPAck, 1)
}

func fill(tb testing.TB, t *flow.Table, n int) []packet.Tuple {
	tb.Helper()
	keys := make([]packet.Tuple, n)
	for i := range keys {
		keys[i] = tupleOf(i)
		rev := keys[i].Reverse()
		ref, res := t.Insert(&keys[i], &rev, &flow.Entry{}, &flow.Entry{}, 1)
		if res != flow.Inserted {
			tb.Fatalf("insert %d: %v", i, res)
		}
		establish(tb, t, ref)
	}
	rand.New(rand.NewPCG(1, 2)).Shuffle(n, func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	return keys
}

func BenchmarkLookupSeen(b *testing.B) {
	for _, n := range []int{1_000, 100_000, 1_000_000} {
		slots := 1 << 12
		for slots < n*4 {
			slots *= 2
		}
		t := open(b, flow.Config{Slots: slots})
		keys := fill(b, t, n)
		b.Run(fmt.Sprintf("flows=%d/hot", n), func(b *testing.B) { benchLookup(b, t, keys[:1]) })
		b.Run(fmt.Sprintf("flows=%d/random", n), func(b *testing.B) { benchLookup(b, t, keys) })
		b.Run(fmt.Sprintf("flows=%d/miss", n), func(b *testing.B) {
			b.ReportAllocs()
			var e flow.Entry
			i := 0
			for b.Loop() {
				k := keys[i]
				k.Proto = 17
				if _, ok := t.Lookup(&k, &e); ok {
					b.Fatal("found")
				}
				if i++; i == len(keys) {
					i = 0
				}
			}
		})
	}
}

func benchLookup(b *testing.B, t *flow.Table, keys []packet.Tuple) {
	b.Helper()
	b.ReportAllocs()
	var e flow.Entry
	i := 0
	for b.Loop() {
		ref, ok := t.Lookup(&keys[i], &e)
		if !ok {
			b.Fatal("lost")
		}
		t.Seen(ref, 1400, 0x10, 1)
		if i++; i == len(keys) {
			i = 0
		}
	}
}

// BenchmarkOpen is how long a start waits for the table of its predecessor.
func BenchmarkOpen(b *testing.B) {
	for _, size := range []struct{ slots, flows int }{{1 << 19, 10_000}, {1 << 19, 150_000}, {1 << 22, 1_000_000}} {
		b.Run(fmt.Sprintf("slots=%d/flows=%d", size.slots, size.flows), func(b *testing.B) {
			dir, err := os.MkdirTemp("/dev/shm", "flow") //nolint:usetesting // must be in memory
			if err != nil {
				b.Skip("needs a file system in memory:", err)
			}
			defer os.RemoveAll(dir)
			cfg := flow.Config{Path: filepath.Join(dir, "flows"), Slots: size.slots}
			t := open(b, cfg)
			fill(b, t, size.flows)
			for b.Loop() {
				b.StopTimer()
				if err := t.Close(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				t = open(b, cfg)
			}
			if t.Len() != size.flows {
				b.Fatalf("%d connections", t.Len())
			}
			if err := t.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}

func BenchmarkInsertRemove(b *testing.B) {
	t := open(b, flow.Config{Slots: 1 << 19})
	fill(b, t, 100_000)
	b.ReportAllocs()
	f, r := flow.Entry{Owner: 7}, flow.Entry{}
	n := 200_000
	for b.Loop() {
		k := tupleOf(n)
		n++
		rev := k.Reverse()
		ref, res := t.Insert(&k, &rev, &f, &r, 1)
		if res != flow.Inserted || !t.Remove(ref) {
			b.Fatal(res)
		}
	}
}

func BenchmarkExpire(b *testing.B) {
	t := open(b, flow.Config{Slots: 1 << 19})
	fill(b, t, 100_000)
	b.ReportAllocs()
	for b.Loop() {
		t.Expire(2)
	}
}

// BenchmarkPortable is what a handover to another version costs.
func BenchmarkPortable(b *testing.B) {
	for _, n := range []int{10_000, 150_000} {
		old := open(b, flow.Config{})
		fill(b, old, n)
		var stream bytes.Buffer
		b.Run(fmt.Sprintf("export/flows=%d", n), func(b *testing.B) {
			for b.Loop() {
				stream.Reset()
				if err := old.Export(&stream); err != nil {
					b.Fatal(err)
				}
			}
			b.SetBytes(int64(stream.Len()))
		})
		b.Run(fmt.Sprintf("import/flows=%d", n), func(b *testing.B) {
			next := open(b, flow.Config{})
			for b.Loop() {
				if got, err := next.Import(bytes.NewReader(stream.Bytes())); got < n*99/100 || err != nil {
					b.Fatal(got, err)
				}
			}
		})
	}
}
