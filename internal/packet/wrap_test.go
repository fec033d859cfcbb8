package packet_test

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/internal/packet/packettest"
)

// routers are the ends of wrapped packets, by family.
func routers(is4 bool) (src, dst packet.Addr) {
	if is4 {
		return packet.AddrFrom(netip.MustParseAddr("10.1.1.2")), packet.AddrFrom(netip.MustParseAddr("10.1.2.2"))
	}
	return packet.AddrFrom(netip.MustParseAddr("fd00:1::2")), packet.AddrFrom(netip.MustParseAddr("fd00:2::2"))
}

// wrapped wraps a packet with its virtio-net header.
func wrapped(b []byte) []byte {
	is4 := b[packet.VNetLen]>>4 == 4
	out := append(make([]byte, packet.VNetLen+packet.WrapLen(is4)), b[packet.VNetLen:]...)
	src, dst := routers(is4)
	packet.Wrap(out, &src, &dst)
	return out
}

func TestWrapIsIPInIP(t *testing.T) {
	t.Parallel()
	for _, s := range []packettest.Spec{{Src: a4, Dst: b4, Payload: []byte("x")}, {Src: a6, Dst: b6, Payload: []byte("x")}} {
		inner := s.Build()
		is4 := s.Src.Addr().Is4()
		src, dst := routers(is4)
		twin := packettest.Spec{
			Src: netip.AddrPortFrom(src.Netip(), 0), Dst: netip.AddrPortFrom(dst.Netip(), 0), Proto: 41, TTL: 255, DF: true,
			Payload: inner[packet.VNetLen:],
		}
		if is4 {
			twin.Proto = 4
		}
		got, want := wrapped(inner), twin.Build()
		if !is4 {
			clear(want[packet.VNetLen+1 : packet.VNetLen+4]) // the flow label
		}
		if !bytes.Equal(got, want) {
			t.Errorf("\n got %x\nwant %x", got, want)
		}
		if a, b, ok := packet.Wrapped(got); !ok || a != src || b != dst {
			t.Errorf("wrapped by %v for %v, %v", a, b, ok)
		}
		// A tunnel pads.
		if back := packet.Unwrap(append(bytes.Clone(got), 0, 0, 0)); !bytes.Equal(back, inner) {
			t.Errorf("unwrapped\n got %x\nwant %x", back, inner)
		}
	}
}

func TestWhatIsNotWrapped(t *testing.T) {
	t.Parallel()
	for _, spec := range []packettest.Spec{{Src: a4, Dst: b4, Payload: []byte("x")}, {Src: a6, Dst: b6, Payload: []byte("x")}} {
		good := wrapped(spec.Build())
		edits := map[string]func(ip []byte){
			"a pod's own, one hop later": func(ip []byte) { ip[8]-- },
			"protocol":                   func(ip []byte) { ip[9] = 47 },
			"a fragment":                 func(ip []byte) { ip[6] = 0x20 },
			"options":                    func(ip []byte) { ip[0] = 0x46 },
			"too long":                   func(ip []byte) { ip[2]++ },
			"no content":                 func(ip []byte) { ip[2], ip[3] = 0, 20 },
			"the other family inside":    func(ip []byte) { ip[20] = 0x60 },
		}
		if spec.Src.Addr().Is6() {
			edits = map[string]func(ip []byte){
				"a pod's own, one hop later": func(ip []byte) { ip[7]-- },
				"next header":                func(ip []byte) { ip[6] = 4 },
				"too long":                   func(ip []byte) { ip[4]++ },
				"no content":                 func(ip []byte) { ip[4], ip[5] = 0, 0 },
				"the other family inside":    func(ip []byte) { ip[40] = 0x45 },
			}
		}
		for name, edit := range edits {
			b := bytes.Clone(good)
			edit(b[packet.VNetLen:])
			b = repaired(b)
			if _, _, ok := packet.Wrapped(b); ok {
				t.Errorf("%s: taken for wrapped", name)
			}
			if packet.Unwrap(b) != nil {
				t.Errorf("%s: unwrapped", name)
			}
		}
		for n := range good {
			if _, _, ok := packet.Wrapped(good[:n]); ok {
				t.Errorf("%d bytes of %d: taken for wrapped", n, len(good))
			}
		}
		if spec.Src.Addr().Is6() {
			continue
		}
		good[packet.VNetLen+10]++
		if _, _, ok := packet.Wrapped(good); ok {
			t.Error("wrong header checksum: taken for wrapped")
		}
	}
}

// TestWrappedSegmentsAreMerged: a super-packet that was cut, wrapped and merged
// is, unwrapped, what it was.
func TestWrappedSegmentsAreMerged(t *testing.T) {
	t.Parallel()
	r := seeded(t)
	var c packet.Coalescer
	for range 200 {
		spec := mergeable(r)
		want := spec.Build()
		packet.Parse(&packet.Packet{Buf: want})
		pkts := segments(t, spec.Build(), 0)
		for i := range pkts {
			pkts[i] = wrapped(pkts[i])
		}
		got := coalesce(&c, pkts)
		if len(got) != 1 {
			t.Fatalf("%+v: got %d packets", spec, len(got))
		}
		if n := packet.Segments(bytes.Clone(got[0]), 0); n != len(pkts) {
			t.Fatalf("%d segments are counted in %d", n, len(pkts))
		}
		if _, _, ok := packet.Wrapped(got[0]); !ok {
			t.Fatalf("no longer wrapped: %x", got[0][:80])
		}
		back := packet.Unwrap(got[0])
		if packet.Parse(&packet.Packet{Buf: back}) != packet.FaultNone || !samePacket(back, want) {
			t.Fatalf("%+v\n got %x\nwant %x", spec, back[:80], want[:80])
		}
		check(t, back)
	}
}

// Wrapped and plain packets of one flow, and those of other routers, stay apart.
func TestCoalesceMindsTheOuterHeader(t *testing.T) {
	t.Parallel()
	spec := packettest.Spec{Src: a4, Dst: b4, Proto: 6, Flags: packet.TCPAck, DF: true, Payload: make([]byte, 100)}
	next := spec
	next.Seq += 100
	other := wrapped(next.Build())
	other[packet.VNetLen+15]++
	for name, second := range map[string][]byte{"plain": next.Build(), "another router's": repaired(other)} {
		var c packet.Coalescer
		if got := coalesce(&c, [][]byte{wrapped(spec.Build()), second}); len(got) != 2 {
			t.Errorf("%s: merged", name)
		}
		if got := coalesce(&c, [][]byte{wrapped(spec.Build()), wrapped(next.Build())}); len(got) != 1 {
			t.Errorf("%s: not merged afterwards", name)
		}
	}
}

// FuzzUnwrap: what is unwrapped lies within what came, and parses or does not.
func FuzzUnwrap(f *testing.F) {
	seeds(f)
	for _, s := range []packettest.Spec{{Src: a4, Dst: b4, Payload: []byte("x")}, {Src: a6, Dst: b6, Proto: 6, Payload: []byte("x")}} {
		b := wrapped(s.Build())
		f.Add(b)
		f.Add(wrapped(b))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		b := repaired(data)
		var c packet.Coalescer
		if len(b) > packet.VNetLen {
			c.Add(b[packet.VNetLen:])
			c.Add(b[packet.VNetLen:])
			for _, m := range c.Flush() {
				packet.Segments(m, 0)
			}
		}
		_, _, ok := packet.Wrapped(b)
		in := packet.Unwrap(b)
		if in != nil && !ok {
			t.Fatal("unwrapped what is not wrapped")
		}
		if len(in) > 0 {
			packet.Parse(&packet.Packet{Buf: in})
		}
	})
}
