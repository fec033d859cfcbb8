package packet_test

import (
	"bytes"
	"slices"
	"testing"

	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/internal/packet/packettest"
)

// seeds adds one packet of every sort. The files linux-* in testdata are
// captures from a TUN device with all offloads (Linux 6.18), named by family,
// protocol, kind, partial checksum and segmentation type.
func seeds(f *testing.F) {
	f.Helper()
	quote := packettest.Spec{Src: b4, Dst: a4, Payload: []byte("quoted")}.Build()[packet.VNetLen:]
	quote6 := packettest.Spec{Src: b6, Dst: a6, Proto: 6}.Build()[packet.VNetLen:]
	for _, s := range []packettest.Spec{
		{Src: a4, Dst: b4},
		{Src: a4, Dst: b4, Proto: 6, Flags: packet.TCPSyn, TCPOptions: []byte{1, 2, 4, 5, 180, 1, 1, 0}},
		{Src: a4, Dst: b4, Proto: 6, Flags: 0xd9, GSOSize: 100, Payload: make([]byte, 333)},
		{Src: a6, Dst: b6, Proto: 6, Flags: packet.TCPAck, GSOSize: 100, Payload: make([]byte, 333)},
		{Src: a4, Dst: b4, GSOSize: 100, Payload: make([]byte, 333)},
		{Src: a6, Dst: b6, ExtFirst: 0, Ext: make([]byte, 16), Partial: true},
		{Src: a6, Dst: b6, ExtFirst: 44, Ext: []byte{0, 0, 0, 1, 0, 0, 0, 7}, Payload: make([]byte, 64)},
		{Src: a4, Dst: b4, IPOptions: []byte{1, 148, 4, 0, 0, 7, 3, 4}, Payload: make([]byte, 300)},
		{Src: a4, Dst: b4, Proto: 1, ICMPType: 3, ICMPCode: 4, Payload: quote},
		{Src: a6, Dst: b6, Proto: 58, ICMPType: 2, Payload: quote6},
		{Src: a4, Dst: b4, Proto: 1, ICMPType: 8, Payload: []byte("ping")},
		{Src: a4, Dst: b4, Proto: 132, Payload: []byte("chunk")},
	} {
		f.Add(s.Build())
	}
}

// repaired returns a copy of a packet with its virtio-net header whose IPv4
// header checksum is right: else hardly a mutation would pass the first gate.
func repaired(b []byte) []byte {
	b = bytes.Clone(b)
	if len(b) <= packet.VNetLen || b[packet.VNetLen]>>4 != 4 {
		return b
	}
	if hl := int(b[packet.VNetLen]&15) * 4; hl >= 20 && packet.VNetLen+hl <= len(b) {
		reseal(b)
	}
	return b
}

// valid reports whether the checksums of a parsed packet can be and are right.
func valid(p *packet.Packet) bool {
	return p.Kind != packet.KindFirstFragment && p.Kind != packet.KindLaterFragment &&
		len(p.Data()) == len(p.IP())-p.Payload && packettest.Check(p.Buf) == nil
}

func FuzzParse(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		buf := repaired(data)
		p := &packet.Packet{Buf: slices.Clip(buf)}
		if packet.Parse(p) != packet.FaultNone {
			return
		}
		again := &packet.Packet{Buf: bytes.Clone(p.Buf)}
		if fault := packet.Parse(again); fault != packet.FaultNone || again.Tuple != p.Tuple || !bytes.Equal(again.Buf, p.Buf) {
			t.Fatalf("parsed twice: %v %v, then %v", fault, p.Tuple, again.Tuple)
		}
		ok := valid(p)
		fuzzAnswers(t, p)
		fuzzFit(t, p)
		p.DecrementTTL()
		p.ClampMSS(500)
		rw := packet.Rewrite{Src: packet.AddrFrom(b6.Addr()), Dst: packet.AddrFrom(a6.Addr()), SrcPort: 7, DstPort: 9}
		if p.Is4() {
			rw.Src, rw.Dst = packet.AddrFrom(b4.Addr()), packet.AddrFrom(a4.Addr())
		}
		p.Apply(&rw)
		p.ApplyICMPError(rw.Dst, rw.Src, &rw)
		if p.Tuple.Src != rw.Dst && p.Kind == packet.KindICMPError {
			t.Fatalf("outer source is %v", p.Tuple.Src)
		}
		if fault := packet.Parse(again); fault != packet.FaultNone {
			t.Fatal(fault)
		}
		if ok && !valid(p) {
			t.Fatalf("a valid packet became invalid: %v\n%x", packettest.Check(p.Buf), p.Buf)
		}
		final := &packet.Packet{Buf: p.Buf}
		if fault := packet.Parse(final); fault != packet.FaultNone || final.Tuple != p.Tuple || final.Inner != p.Inner {
			t.Fatalf("after the rewrite: %v %v %v, want %v %v", fault, final.Tuple, final.Inner, p.Tuple, p.Inner)
		}
	})
}

// fuzzAnswers builds every answer to p; each must parse and be valid.
func fuzzAnswers(t *testing.T, p *packet.Packet) {
	t.Helper()
	dst := make([]byte, packet.MaxError)
	from := packet.AddrFrom(b6.Addr())
	if p.Is4() {
		from = packet.AddrFrom(b4.Addr())
	}
	for i, b := range [][]byte{
		packet.TooBig(bytes.Clone(dst), p, from, 1280),
		packet.Unreachable(bytes.Clone(dst), p, from, packet.UnreachPort),
		packet.TimeExceeded(bytes.Clone(dst), p, from),
		packet.Reset(bytes.Clone(dst), p),
	} {
		if len(b) == 0 {
			continue
		}
		q := &packet.Packet{Buf: b}
		if fault := packet.Parse(q); fault != packet.FaultNone || !valid(q) {
			t.Fatalf("answer %d: %v %v\n%x\nto %x", i, fault, packettest.Check(b), b, p.Buf)
		}
		if i < 3 && (q.Kind != packet.KindICMPError || q.Inner != p.Tuple) {
			t.Fatalf("answer %d quotes %v, want %v", i, q.Inner, p.Tuple)
		}
	}
}

// fuzzFit makes p fit a small link; what comes out must parse and fit.
func fuzzFit(t *testing.T, p *packet.Packet) {
	t.Helper()
	const mtu = 128
	q := &packet.Packet{Buf: bytes.Clone(p.Buf)}
	if packet.Parse(q) != packet.FaultNone || q.LimitSegment(mtu) != packet.FitFragment {
		return
	}
	n := 0
	packet.Fragment4(q, mtu, func(b []byte) {
		n++
		r := &packet.Packet{Buf: bytes.Clone(b)}
		if fault := packet.Parse(r); fault != packet.FaultNone && fault != packet.FaultTransport || len(r.IP()) > mtu {
			t.Fatalf("fragment %d: %v, %d bytes\n%x", n, fault, len(b), b)
		}
	})
	if n < 2 {
		t.Fatalf("%d fragments of %d bytes", n, len(p.IP()))
	}
}

func FuzzSegment(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		p := &packet.Packet{Buf: repaired(data)}
		if packet.Parse(p) != packet.FaultNone {
			return
		}
		want := p.IP()[p.Payload:]
		var s packet.Segmenter
		if fault := s.Reset(p.Buf, 0); fault != packet.FaultNone {
			t.Fatalf("Reset: %v", fault)
		}
		var c packet.Coalescer
		for {
			dst := make([]byte, s.Size())
			n, ok := s.Next(dst)
			if !ok {
				break
			}
			q := &packet.Packet{Buf: append(make([]byte, packet.VNetLen), dst[:n]...)}
			if fault := packet.Parse(q); fault != packet.FaultNone || q.Tuple != p.Tuple {
				t.Fatalf("segment: %v %v, want %v", fault, q.Tuple, p.Tuple)
			}
			if p.Partial && !valid(q) {
				t.Fatalf("segment: %v\n%x", packettest.Check(q.Buf), q.Buf)
			}
			c.Add(dst[:n])
		}
		var got []byte
		for _, b := range c.Flush() {
			q := &packet.Packet{Buf: b}
			if fault := packet.Parse(q); fault != packet.FaultNone {
				t.Fatalf("merged: %v", fault)
			}
			got = append(got, q.IP()[q.Payload:]...)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("got %x\nwant %x", got, want)
		}
	})
}

// FuzzCoalesce reads the input as a program that sends packets of four flows,
// one operation of six bytes each; merges them, segments the result and expects
// every flow's transport bytes back, in order.
func FuzzCoalesce(f *testing.F) {
	f.Add([]byte{0, 10, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 2, 10, 0, 0, 0, 0, 0, 10, 8, 0, 0, 0})
	f.Add([]byte{8, 10, 0, 0, 0, 0, 8, 10, 0, 0, 0, 0, 10, 10, 0, 0, 0, 0, 0, 10, 8, 0, 0, 0})
	f.Add([]byte{1, 10, 0, 0, 0, 0, 1, 9, 0, 0, 0, 0, 3, 99, 0, 0, 0, 0, 3, 99, 8, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		in := program(data)
		var c packet.Coalescer
		want, got := map[packet.Tuple][]byte{}, map[packet.Tuple][]byte{}
		for _, b := range in {
			c.Add(b[packet.VNetLen:])
			collect(want, b)
		}
		for _, b := range c.Flush() {
			if _, _, ok := packet.Wrapped(b); ok {
				b = packet.Unwrap(b)
			}
			var s packet.Segmenter
			if s.Reset(b, 0) != packet.FaultNone {
				continue
			}
			dst := make([]byte, packet.VNetLen+s.Size())
			for {
				n, ok := s.Next(dst[packet.VNetLen:])
				if !ok {
					break
				}
				collect(got, dst[:packet.VNetLen+n])
			}
		}
		for k, w := range want {
			if !bytes.Equal(got[k], w) {
				t.Fatalf("flow %v:\n got %x\nwant %x", k, got[k], w)
			}
		}
	})
}

// collect appends the transport part of a packet to its flow's bytes.
func collect(m map[packet.Tuple][]byte, b []byte) {
	q := &packet.Packet{Buf: bytes.Clone(b)}
	if _, _, ok := packet.Wrapped(q.Buf); ok {
		q.Buf = packet.Unwrap(q.Buf)
	}
	if packet.Parse(q) == packet.FaultNone {
		m[q.Tuple] = append(m[q.Tuple], q.IP()[q.L4:]...)
	}
}

// program makes packets of the fuzzer's bytes: flow and whether it is wrapped, length, TCP flags, change
// of the sequence number, and a byte of the header to damage with what.
func program(data []byte) [][]byte {
	flows := [4]packettest.Spec{
		{Src: a4, Dst: b4, Proto: 6, DF: true},
		{Src: a6, Dst: b6, Proto: 6},
		{Src: a4, Dst: b4},
		{Src: a6, Dst: b6},
	}
	var out [][]byte
	for ; len(data) >= 6 && len(out) < 64; data = data[6:] {
		f := &flows[data[0]%4]
		one := *f
		one.Flags = packet.TCPAck ^ data[2]
		one.Seq += uint32(int8(data[3]))
		one.Payload = bytes.Repeat([]byte{byte(len(out))}, int(data[1])*(1+int(data[0]>>4)))
		one.Partial = false
		b := one.Build()
		if at := packet.VNetLen + int(data[4]); data[5] != 0 && at < len(b) {
			b[at] ^= data[5]
			b = repaired(b)
		}
		if data[0]&8 != 0 && b[packet.VNetLen]>>4 == f.Build()[packet.VNetLen]>>4 {
			b = wrapped(b)
		}
		out = append(out, b)
		f.Seq += uint32(len(one.Payload))
		f.ID++
	}
	return out
}
