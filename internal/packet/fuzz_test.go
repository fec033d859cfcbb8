package packet_test

import (
	"bytes"
	"testing"

	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/internal/packet/packettest"
)

// seeds adds one packet of every sort; testdata holds real captures.
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

// valid reports whether the checksums of a parsed packet can be and are right.
func valid(p *packet.Packet) bool {
	return p.Kind != packet.KindFirstFragment && p.Kind != packet.KindLaterFragment &&
		len(p.Data()) == len(p.IP())-p.Payload && packettest.Check(p.Buf) == nil
}

func FuzzParse(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		buf := bytes.Clone(data)
		p := &packet.Packet{Buf: buf[:len(buf):len(buf)]}
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
		packet.EchoReply(make([]byte, packet.MaxSize), p),
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
		p := &packet.Packet{Buf: bytes.Clone(data)}
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

// FuzzCoalesce cuts the input into packets by two-byte lengths, merges them,
// segments the result and expects every packet's transport bytes back.
func FuzzCoalesce(f *testing.F) {
	var batch []byte
	for i := range 4 {
		b := packettest.Spec{
			Src: a4, Dst: b4, Proto: 6, Flags: packet.TCPAck, Seq: uint32(i * 10), DF: true, Payload: make([]byte, 10),
		}.Build()[packet.VNetLen:]
		batch = append(append(batch, 0, byte(len(b))), b...)
		b = packettest.Spec{Src: a6, Dst: b6, Payload: make([]byte, 10)}.Build()[packet.VNetLen:]
		batch = append(append(batch, 0, byte(len(b))), b...)
	}
	f.Add(batch)
	f.Fuzz(func(t *testing.T, data []byte) {
		var c packet.Coalescer
		want, got := map[packet.Tuple][]byte{}, map[packet.Tuple][]byte{}
		collect := func(m map[packet.Tuple][]byte, ip []byte) {
			q := &packet.Packet{Buf: append(make([]byte, packet.VNetLen), ip...)}
			if packet.Parse(q) == packet.FaultNone {
				m[q.Tuple] = append(m[q.Tuple], q.IP()[q.L4:]...)
			}
		}
		for len(data) >= 2 {
			n := min(int(data[0])<<8|int(data[1]), len(data)-2)
			ip := data[2 : 2+n]
			data = data[2+n:]
			collect(want, ip)
			c.Add(ip)
		}
		for _, b := range c.Flush() {
			var s packet.Segmenter
			if s.Reset(b, 0) != packet.FaultNone {
				continue
			}
			dst := make([]byte, s.Size())
			for {
				n, ok := s.Next(dst)
				if !ok {
					break
				}
				collect(got, dst[:n])
			}
		}
		for k, w := range want {
			if !bytes.Equal(got[k], w) {
				t.Fatalf("flow %v:\n got %x\nwant %x", k, got[k], w)
			}
		}
	})
}
