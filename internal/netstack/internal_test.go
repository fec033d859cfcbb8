package netstack

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/netctl/netctl/internal/packet"
)

// fragmentOf builds one IPv4 fragment.
func fragmentOf(t testing.TB, id uint16, offset int, data []byte, more bool) *packet.Packet {
	t.Helper()
	b := make([]byte, packet.VNetLen+header.IPv4MinimumSize+len(data))
	h := header.IPv4(b[packet.VNetLen:])
	flags := uint8(0)
	if more {
		flags = header.IPv4FlagMoreFragments
	}
	h.Encode(&header.IPv4Fields{
		TotalLength: uint16(len(h)), ID: id, Flags: flags, FragmentOffset: uint16(offset), TTL: 64, Protocol: packet.ProtoUDP,
	})
	copy(h[12:], []byte{10, 0, 0, 1, 192, 0, 2, 1})
	h.SetChecksum(0)
	h.SetChecksum(^h.CalculateChecksum())
	copy(h[header.IPv4MinimumSize:], data)
	p := &packet.Packet{Buf: b}
	if f := packet.Parse(p); f != packet.FaultNone {
		t.Fatalf("fragment at %d: %s", offset, f)
	}
	return p
}

// The slow twin is the datagram itself: whatever way it is cut, shuffled and
// repeated, it must come out again, once.
func TestFragmentsInAnyOrder(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 0))
	now := time.Now()
	for round := range 300 {
		data := make([]byte, 16+r.IntN(9000))
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		// A UDP header whose length is right, so that the first fragment parses.
		copy(data, []byte{0, 1, 0, 2, byte(len(data) >> 8), byte(len(data)), 0, 0})
		var parts []*packet.Packet
		for off := 0; off < len(data); {
			end := min(off+8*(1+r.IntN(150)), len(data))
			parts = append(parts, fragmentOf(t, uint16(round), off, data[off:end], end < len(data)))
			off = end
		}
		if len(parts) == 1 || len(parts) > maxPieces {
			continue // one part is no fragment
		}
		repeated := append(slices.Clip(parts), parts[:len(parts)/2]...)
		r.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
		f := newFragments(new(counters))
		dst := make([]byte, packet.MaxSize)
		for i, p := range parts {
			n := f.add(p, dst, now)
			if last := i == len(parts)-1; (n > 0) != last {
				t.Fatalf("seed %d round %d: part %d of %d gave %d bytes", seed, round, i+1, len(parts), n)
			} else if last && !bytes.Equal(dst[packet.VNetLen+header.IPv4MinimumSize:n], data) {
				t.Fatalf("seed %d round %d: another datagram came out", seed, round)
			}
		}
		if len(f.held)+len(f.perPod) != 0 {
			t.Fatalf("seed %d round %d: something is left", seed, round)
		}
		for _, p := range repeated[len(parts):] {
			f.add(p, dst, now) // begins a new one, as repeats of a finished one do
		}
		f.expire(now.Add(fragmentTimeout))
		if len(f.held)+len(f.perPod) != 0 {
			t.Fatalf("seed %d round %d: not expired", seed, round)
		}
	}
}

func TestFragmentsThatContradict(t *testing.T) {
	t.Parallel()
	data := make([]byte, 64)
	copy(data, []byte{0, 1, 0, 2, 0, 64, 0, 0})
	for name, second := range map[string]*packet.Packet{
		"overlap from behind":  fragmentOf(t, 1, 24, data[:16], true),
		"overlap from before":  fragmentOf(t, 1, 8, data[:32], true),
		"same start, longer":   fragmentOf(t, 1, 16, data[:48], true),
		"end before the known": fragmentOf(t, 1, 8, data[:8], false),
	} {
		c := new(counters)
		f := newFragments(c)
		dst := make([]byte, packet.MaxSize)
		f.add(fragmentOf(t, 1, 16, data[:16], true), dst, time.Now())
		if n := f.add(second, dst, time.Now()); n != 0 || c.drops[DropFragment].Load() != 1 || len(f.held) != 0 {
			t.Errorf("%s: %d bytes, %d dropped, %d held", name, n, c.drops[DropFragment].Load(), len(f.held))
		}
	}
}

// sock_extended_err of a port unreachable and of a packet too big, with the
// control header, written by hand after linux/errqueue.h for little endian.
// TestUDPRefused and TestUDPTooBigForThePath read the kernel's own.
var errorMessages = [][]byte{
	append(control(0, 11, 32), 111, 0, 0, 0, 2, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0),
	append(control(0, 11, 32), 90, 0, 0, 0, 1, 0, 0, 0, 20, 5, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
}

// control is a struct cmsghdr for n bytes.
func control(level, typ, n byte) []byte {
	return []byte{16 + n, 0, 0, 0, 0, 0, 0, 0, level, 0, 0, 0, typ, 0, 0, 0}
}

func TestParseError(t *testing.T) {
	t.Parallel()
	want := []networkError{
		{kind: kindUnreachable, code: packet.UnreachPort, from: netip.MustParseAddr("192.0.2.1")},
		{kind: kindTooBig, mtu: 1300},
	}
	for i, m := range errorMessages {
		if got := parseError(m, true); got != want[i] {
			t.Errorf("message %d: %+v, want %+v", i, got, want[i])
		}
		if got := parseError(m, false); got != (networkError{}) {
			t.Errorf("message %d taken for IPv6: %+v", i, got)
		}
	}
}

func FuzzParseError(f *testing.F) {
	for _, m := range errorMessages {
		f.Add(m, true)
	}
	f.Fuzz(func(t *testing.T, b []byte, is4 bool) {
		if e := parseError(b, is4); e.kind == kindNone && e != (networkError{}) {
			t.Errorf("no error, but %+v", e)
		}
	})
}

func TestDropNames(t *testing.T) {
	t.Parallel()
	seen := make(map[string]bool)
	for d := range Drop(Drops) {
		if d.String() == "" || seen[d.String()] {
			t.Errorf("reason %d has no name of its own: %q", d, d)
		}
		seen[d.String()] = true
	}
	if got := fmt.Sprint(Drop(200)); got != "invalid" {
		t.Errorf("unknown reason is %q", got)
	}
}

func TestExpiry(t *testing.T) {
	t.Parallel()
	c := &spliced{}
	sweeps := func() (n int) {
		for n = 1; !c.expired(); n++ {
		}
		return n
	}
	if got := sweeps(); got != idleSweeps+1 {
		t.Errorf("idle connection lives %d sweeps, want %d", got, idleSweeps+1)
	}
	c.moved.Add(1)
	c.halfClosed.Store(true)
	if got := sweeps(); got != halfClosedSweeps+2 { // one sees the byte
		t.Errorf("half-closed connection lives %d sweeps, want %d", got, halfClosedSweeps+2)
	}
}

// fullPredecessor takes no packet.
type fullPredecessor struct{}

func (fullPredecessor) Packet([]byte, bool) bool { return false }
func (fullPredecessor) Forget(netip.Addr)        {}

// BenchmarkPredecessor is what a packet of this stack's own pays for connections
// that may be a predecessor's.
func BenchmarkPredecessor(b *testing.B) {
	s, err := New(Config{Out: func([]byte) {}})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	tuple := func(i int) packet.Tuple {
		return packet.Tuple{
			Src: packet.AddrFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 16), byte(i >> 8)})), SrcPort: uint16(i),
			Dst: packet.AddrFrom(netip.MustParseAddr("192.0.2.1")), DstPort: 443, Proto: packet.ProtoTCP,
		}
	}
	for _, set := range []struct {
		name string
		size int
	}{{"none", -1}, {"ended", 0}, {"1", 1}, {"16k", 16 << 10}} {
		b.Run(set.name, func(b *testing.B) {
			s.elder.Store(nil)
			if set.size >= 0 {
				e := s.Inherit(fullPredecessor{})
				for i := range set.size {
					e.Began(tuple(i), false)
				}
			}
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				p := packet.Packet{Tuple: tuple(1 << 20)}
				for i := 0; pb.Next(); i++ {
					p.Tuple.SrcPort = uint16(i)
					if e := s.elder.Load(); e != nil && e.take(&p, s.link) {
						b.Fatal("taken")
					}
				}
			})
		})
	}
}

// BenchmarkRetire is what a retired stack with many connections tells its heir.
func BenchmarkRetire(b *testing.B) {
	old, err := New(Config{Out: func([]byte) {}})
	if err != nil {
		b.Fatal(err)
	}
	defer old.Close()
	next, err := New(Config{Out: func([]byte) {}})
	if err != nil {
		b.Fatal(err)
	}
	defer next.Close()
	const many = 16 << 10
	for i := range many {
		old.live.begin(packet.Tuple{SrcPort: uint16(i), DstPort: uint16(i >> 16), Proto: packet.ProtoTCP})
	}
	b.ResetTimer()
	for range b.N {
		old.Retire(next.Inherit(fullPredecessor{}))
		old.Reinstate()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/many, "ns/connection")
}
