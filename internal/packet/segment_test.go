package packet_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/internal/packet/packettest"
)

// segments cuts buf and returns the packets, each behind a zero virtio-net
// header so that they can be parsed and checked.
func segments(t *testing.T, buf []byte, mtu int) [][]byte {
	t.Helper()
	var s packet.Segmenter
	if f := s.Reset(buf, mtu); f != packet.FaultNone {
		t.Fatalf("Reset: %v", f)
	}
	var out [][]byte
	dst := make([]byte, s.Size())
	for {
		n, ok := s.Next(dst)
		if !ok {
			break
		}
		out = append(out, append(make([]byte, packet.VNetLen), dst[:n]...))
	}
	if len(out) != s.Count() {
		t.Fatalf("Count says %d, got %d", s.Count(), len(out))
	}
	if got := packet.Segments(buf, mtu); got != len(out) {
		t.Fatalf("Segments says %d, got %d", got, len(out))
	}
	return out
}

// naive builds the segments a super-packet stands for from its description.
func naive(spec packettest.Spec) [][]byte {
	size := spec.GSOSize
	spec.GSOSize, spec.Partial, spec.NoUDP = 0, false, spec.NoUDP && size == 0 && !spec.Partial
	if size == 0 {
		return [][]byte{spec.Build()}
	}
	var out [][]byte
	for rest, i := spec.Payload, 0; len(rest) > 0; i++ {
		one := spec
		one.Payload = rest[:min(size, len(rest))]
		rest = rest[len(one.Payload):]
		one.ID += uint16(i)
		one.Seq += uint32(i * size)
		if i > 0 {
			one.Flags &^= packet.TCPCwr
		}
		if len(rest) > 0 {
			one.Flags &^= packet.TCPPsh | packet.TCPFin
		}
		out = append(out, one.Build())
	}
	return out
}

// TestSegmentAgainstRebuild cuts random packets and compares every segment
// byte for byte with one built from its description.
func TestSegmentAgainstRebuild(t *testing.T) {
	t.Parallel()
	r := seeded(t)
	for range 400 {
		spec := packettest.Random(r)
		got, want := segments(t, spec.Build(), 0), naive(spec)
		if len(got) != len(want) {
			t.Fatalf("got %d segments, want %d", len(got), len(want))
		}
		for i := range got {
			if !bytes.Equal(got[i], want[i]) {
				t.Fatalf("segment %d of %+v:\n got %x\nwant %x", i, spec, got[i], want[i])
			}
		}
	}
}

func TestSegmentToMTU(t *testing.T) {
	t.Parallel()
	spec := packettest.Spec{Src: a6, Dst: b6, Proto: 6, Payload: make([]byte, 10000), GSOSize: 4000, Flags: packet.TCPAck}
	got := segments(t, spec.Build(), 1420)
	spec.GSOSize = 1360
	want := naive(spec)
	if len(got) != 8 {
		t.Fatalf("got %d segments, want 8", len(got))
	}
	for i := range got {
		if !bytes.Equal(got[i], want[i]) {
			t.Errorf("segment %d differs", i)
		}
	}
	udp := packettest.Spec{Src: a4, Dst: b4, Payload: make([]byte, 10000), GSOSize: 4000}
	if got := len(segments(t, udp.Build(), 1420)); got != 3 {
		t.Errorf("datagrams keep their borders: got %d packets, want 3", got)
	}
	var s packet.Segmenter
	if f := s.Reset(spec.Build(), 60); f != packet.FaultGSO || s.Count() != 0 {
		t.Errorf("mtu 60: got %v, %d packets", f, s.Count())
	}
	if packet.Segments([]byte("junk"), 0) != 0 {
		t.Error("junk makes packets")
	}
}

func TestSegmentIntoTooSmallBuffer(t *testing.T) {
	t.Parallel()
	var s packet.Segmenter
	s.Reset(packettest.Spec{Src: a4, Dst: b4, Payload: make([]byte, 100)}.Build(), 0)
	if n, ok := s.Next(make([]byte, 127)); ok || n != 0 {
		t.Errorf("128 bytes into 127: got %d %v", n, ok)
	}
	if n, ok := s.Next(make([]byte, 128)); !ok || n != 128 {
		t.Errorf("got %d %v", n, ok)
	}
}

// coalesce gives packets (each behind a virtio-net header) to a Coalescer.
func coalesce(c *packet.Coalescer, pkts [][]byte) [][]byte {
	for _, b := range pkts {
		c.Add(b[packet.VNetLen:])
	}
	return c.Flush()
}

// TestCoalesceUndoesSegment: what was cut and merged again is what it was.
func TestCoalesceUndoesSegment(t *testing.T) {
	t.Parallel()
	r := seeded(t)
	var c packet.Coalescer
	for range 300 {
		spec := mergeable(r)
		want := spec.Build()
		packet.Parse(&packet.Packet{Buf: want})
		got := coalesce(&c, segments(t, spec.Build(), 0))
		if len(got) != 1 || !samePacket(got[0], want) {
			t.Fatalf("%+v: got %d packets\n got %x\nwant %x", spec, len(got), got[0][:80], want[:80])
		}
		check(t, got[0])
		parse(t, got[0])
	}
}

// mergeable returns a random super-packet a Coalescer could have made.
func mergeable(r *rand.Rand) packettest.Spec {
	s := packettest.Random(r)
	s.IPOptions, s.Ext, s.NoUDP = nil, nil, false
	s.Flags = packet.TCPAck | s.Flags&(packet.TCPPsh|packet.TCPFin|packet.TCPEce)
	segs := 900
	if s.Proto = 6; r.IntN(2) == 0 {
		s.Proto, segs = 17, 64
	}
	s.GSOSize = 100 + r.IntN(1500)
	s.Payload = packettest.Bytes(r, s.GSOSize+1+r.IntN(min(segs*s.GSOSize, 65000)-s.GSOSize))
	return s
}

// coalesceTest is a batch and the payload bytes of each packet that comes out of
// a Coalescer: negative for those that were passed through as they were.
type coalesceTest struct {
	name string
	in   [][]byte
	want []int
}

func runCoalesce(t *testing.T, tests []coalesceTest) {
	t.Helper()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var c packet.Coalescer
			got := coalesce(&c, tt.in)
			if len(got) != len(tt.want) {
				t.Fatalf("got %d packets, want %d", len(got), len(tt.want))
			}
			for i, b := range got {
				p := parse(t, b)
				want := tt.want[i]
				if want < 0 {
					want = -want
				}
				if n := len(p.IP()) - p.Payload; n != want || (p.GSOSize > 0) != (tt.want[i] > 0) {
					t.Errorf("packet %d: %d bytes, gso_size %d, want %d", i, n, p.GSOSize, tt.want[i])
				}
			}
		})
	}
}

// with returns a packet made from a changed description.
func with(s packettest.Spec, change func(*packettest.Spec)) packettest.Spec {
	change(&s)
	return s
}

// samples are two consecutive TCP segments and a datagram per family.
type samples struct{ tcp, next, tcp6, next6, udp, udp6 packettest.Spec }

func newSamples() samples {
	var s samples
	s.tcp = packettest.Spec{Src: a4, Dst: b4, Proto: 6, Flags: packet.TCPAck, Seq: 100, DF: true, Payload: make([]byte, 100)}
	s.tcp6, s.udp = s.tcp, s.tcp
	s.tcp6.Src, s.tcp6.Dst = a6, b6
	s.udp.Proto = 17
	s.udp6 = s.tcp6
	s.udp6.Proto = 17
	s.next, s.next6 = s.tcp, s.tcp6
	s.next.Seq += 100
	s.next6.Seq += 100
	return s
}

func TestCoalesce(t *testing.T) {
	t.Parallel()
	all := newSamples()
	base, next, six, next6, udp, udp6 := all.tcp, all.next, all.tcp6, all.next6, all.udp, all.udp6
	runCoalesce(t, []coalesceTest{
		{"two tcp", [][]byte{base.Build(), next.Build()}, []int{200}},
		{"two tcp6", [][]byte{six.Build(), next6.Build()}, []int{200}},
		{"two udp", [][]byte{udp.Build(), udp.Build()}, []int{200}},
		{"two udp6", [][]byte{udp6.Build(), udp6.Build()}, []int{200}},
		{"flows side by side", [][]byte{base.Build(), six.Build(), udp.Build(), next.Build(), next6.Build(), udp.Build()}, []int{200, 200, 200}},
		{"gap", [][]byte{base.Build(), with(next, func(s *packettest.Spec) { s.Seq++ }).Build()}, []int{-100, -100}},
		{"retransmission", [][]byte{base.Build(), base.Build()}, []int{-100, -100}},
		{"other ack", [][]byte{base.Build(), with(next, func(s *packettest.Spec) { s.Ack++ }).Build()}, []int{-100, -100}},
		{"other ttl", [][]byte{base.Build(), with(next, func(s *packettest.Spec) { s.TTL = 9 }).Build()}, []int{-100, -100}},
		{"other ttl 6", [][]byte{six.Build(), with(next6, func(s *packettest.Spec) { s.TTL = 9 }).Build()}, []int{-100, -100}},
		{"other tos", [][]byte{base.Build(), with(next, func(s *packettest.Spec) { s.TOS = 3 }).Build()}, []int{-100, -100}},
		{"other class 6", [][]byte{six.Build(), with(next6, func(s *packettest.Spec) { s.TOS = 3 }).Build()}, []int{-100, -100}},
		{"other df", [][]byte{base.Build(), with(next, func(s *packettest.Spec) { s.DF = false }).Build()}, []int{-100, -100}},
		{"df, any id", [][]byte{base.Build(), with(next, func(s *packettest.Spec) { s.ID = 77 }).Build()}, []int{200}},
		{"no df, id not next", [][]byte{
			with(base, func(s *packettest.Spec) { s.DF = false }).Build(),
			with(next, func(s *packettest.Spec) { s.DF = false }).Build(),
		}, []int{-100, -100}},
		{"no df, id next", [][]byte{
			with(base, func(s *packettest.Spec) { s.DF, s.ID = false, 0xffff }).Build(),
			with(next, func(s *packettest.Spec) { s.DF, s.ID = false, 0 }).Build(),
		}, []int{200}},
	})
}

func TestCoalesceTCPFlagsAndOptions(t *testing.T) {
	t.Parallel()
	all := newSamples()
	base, next := all.tcp, all.next
	bad := func(s packettest.Spec) []byte { b := s.Build(); b[len(b)-1] ^= 0x55; return b }
	accurate := next.Build() // the AE flag of accurate ECN, beside the data offset
	tcp := accurate[packet.VNetLen+20:]
	tcp[12] |= 1
	binary.BigEndian.PutUint16(tcp[16:], ^packettest.Sum([]byte{1, 0}, uint32(^binary.BigEndian.Uint16(tcp[16:]))))
	check(t, accurate)
	runCoalesce(t, []coalesceTest{
		{"other options", [][]byte{
			with(base, func(s *packettest.Spec) { s.TCPOptions = []byte{1, 1, 1, 1} }).Build(),
			with(next, func(s *packettest.Spec) { s.TCPOptions = []byte{1, 1, 1, 0} }).Build(),
		}, []int{-100, -100}},
		{"ece differs", [][]byte{base.Build(), with(next, func(s *packettest.Spec) { s.Flags |= packet.TCPEce }).Build()}, []int{-100, -100}},
		{"ae differs", [][]byte{base.Build(), accurate}, []int{-100, -100}},
		{"cwr", [][]byte{with(base, func(s *packettest.Spec) { s.Flags |= packet.TCPCwr }).Build(), next.Build()}, []int{-100, -100}},
		{"psh ends", [][]byte{with(base, func(s *packettest.Spec) { s.Flags |= packet.TCPPsh }).Build(), next.Build()}, []int{-100, -100}},
		{"psh on the last", [][]byte{base.Build(), with(next, func(s *packettest.Spec) { s.Flags |= packet.TCPPsh }).Build()}, []int{200}},
		{"short one ends", [][]byte{
			base.Build(), with(next, func(s *packettest.Spec) { s.Payload = s.Payload[:50] }).Build(),
			with(next, func(s *packettest.Spec) { s.Seq += 50 }).Build(),
		}, []int{150, -100}},
		{"bigger one is not merged", [][]byte{base.Build(), with(next, func(s *packettest.Spec) { s.Payload = make([]byte, 101) }).Build()}, []int{-100, -101}},
		{"bare ack between", [][]byte{base.Build(), with(next, func(s *packettest.Spec) { s.Payload = nil }).Build(), next.Build()}, []int{-100, 0, -100}},
		{"syn", [][]byte{with(base, func(s *packettest.Spec) { s.Flags |= packet.TCPSyn }).Build(), next.Build()}, []int{-100, -100}},
		{"bad checksum first", [][]byte{bad(base), next.Build()}, []int{-100, -100}},
		{"bad checksum second", [][]byte{base.Build(), bad(next)}, []int{-100, -100}},
	})
}

func TestCoalesceOddPackets(t *testing.T) {
	t.Parallel()
	all := newSamples()
	base, next, udp := all.tcp, all.next, all.udp
	frag := udp.Build()[:packet.VNetLen+124]
	ip(2, 0, 124, 0, 0, 0x20)(frag)
	runCoalesce(t, []coalesceTest{
		{"fragment ends runs", [][]byte{udp.Build(), frag, udp.Build()}, []int{-100, -96, -100}},
		{"udp without checksum", [][]byte{
			with(udp, func(s *packettest.Spec) { s.NoUDP = true }).Build(),
			with(udp, func(s *packettest.Spec) { s.NoUDP = true }).Build(),
		}, []int{-100, -100}},
		{"empty datagrams", [][]byte{
			with(udp, func(s *packettest.Spec) { s.Payload = nil }).Build(),
			with(udp, func(s *packettest.Spec) { s.Payload = nil }).Build(),
		}, []int{0, 0}},
		{"tunnel padding", [][]byte{append(base.Build(), 0, 0), append(next.Build(), 0)}, []int{200}},
		{"ip options", [][]byte{
			with(base, func(s *packettest.Spec) { s.IPOptions = make([]byte, 4) }).Build(),
			with(next, func(s *packettest.Spec) { s.IPOptions = make([]byte, 4) }).Build(),
		}, []int{-100, -100}},
	})
}

func TestCoalescerSwitches(t *testing.T) {
	t.Parallel()
	for _, proto := range []uint8{6, 17} {
		spec := packettest.Spec{Src: a4, Dst: b4, Proto: proto, Payload: make([]byte, 500), GSOSize: 100, Flags: packet.TCPAck}
		segs := segments(t, spec.Build(), 0)
		c := packet.Coalescer{NoTCP: proto == 6, NoUDP: proto == 17}
		if got := coalesce(&c, segs); len(got) != 5 {
			t.Errorf("protocol %d switched off: got %d packets, want 5", proto, len(got))
		}
		c = packet.Coalescer{NoTCP: proto != 6, NoUDP: proto != 17}
		if got := coalesce(&c, segs); len(got) != 1 {
			t.Errorf("the other switched off: got %d packets, want 1", len(got))
		}
	}
}

func TestCoalescerBounds(t *testing.T) {
	t.Parallel()
	var in [][]byte
	for range 130 {
		in = append(in, packettest.Spec{Src: a4, Dst: b4, DF: true, Payload: make([]byte, 10)}.Build())
	}
	var c packet.Coalescer
	got := coalesce(&c, in)
	if len(got) != 3 || len(got[0]) != packet.VNetLen+28+640 {
		t.Errorf("130 datagrams make %d packets, the first of %d bytes", len(got), len(got[0]))
	}
	spec := packettest.Spec{Src: a6, Dst: b6, Proto: 6, Flags: packet.TCPAck, Payload: make([]byte, 1400)}
	for in = nil; len(in) < 60; spec.Seq += 1400 {
		in = append(in, spec.Build())
	}
	for _, b := range coalesce(&c, in) {
		if len(b) > packet.MaxSize {
			t.Errorf("a super-packet of %d bytes", len(b))
		}
		parse(t, b)
	}
}

// TestCoalesceKeepsOrder sends many flows with losses, repeats and odd packets
// through and compares each flow's bytes before and after.
func TestCoalesceKeepsOrder(t *testing.T) {
	t.Parallel()
	r := seeded(t)
	var c packet.Coalescer
	for range 100 {
		flows := make([]packettest.Spec, 5)
		for i := range flows {
			flows[i] = mergeable(r)
			flows[i].GSOSize, flows[i].Payload = 0, nil
		}
		var in [][]byte
		for range 128 {
			f := &flows[r.IntN(len(flows))]
			one := *f
			one.Payload = packettest.Bytes(r, 8*(1+r.IntN(2)*r.IntN(3)))
			b := one.Build()
			switch r.IntN(12) {
			case 0: // lost
			case 1:
				b[len(b)-1] ^= 1
				in = append(in, b)
			case 2:
				in = append(in, b, b)
			default:
				in = append(in, b)
			}
			f.Seq += uint32(len(one.Payload))
			f.ID++
		}
		want := byFlow(t, in)
		var after [][]byte
		for _, b := range coalesce(&c, in) {
			after = append(after, segments(t, bytes.Clone(b), 0)...)
		}
		got := byFlow(t, after)
		for k, w := range want {
			if !bytes.Equal(got[k], w) {
				t.Fatalf("flow %v:\n got %x\nwant %x", k, got[k], w)
			}
		}
	}
}

// byFlow concatenates the packets of each flow, transport header and payload.
func byFlow(t *testing.T, pkts [][]byte) map[packet.Tuple][]byte {
	t.Helper()
	m := map[packet.Tuple][]byte{}
	for _, b := range pkts {
		p := parse(t, bytes.Clone(b))
		m[p.Tuple] = append(m[p.Tuple], p.IP()[p.L4:]...)
	}
	return m
}

func TestSegmentAndCoalesceDoNotAllocate(t *testing.T) {
	spec := packettest.Spec{Src: a4, Dst: b4, Proto: 6, Flags: packet.TCPAck, Payload: make([]byte, 60000), GSOSize: 1380}
	buf := spec.Build()
	segs := segments(t, buf, 0)
	var s packet.Segmenter
	var c packet.Coalescer
	dst := make([]byte, 1500)
	coalesce(&c, segs)
	got := testing.AllocsPerRun(50, func() {
		s.Reset(buf, 1420)
		for ok := true; ok; {
			_, ok = s.Next(dst)
		}
		coalesce(&c, segs)
	})
	if got != 0 {
		t.Errorf("got %v allocations", got)
	}
}
