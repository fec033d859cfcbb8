package packet_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/internal/packet/packettest"
)

// seeded returns a generator and prints what it takes to repeat the run.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// rewriteOf returns the Rewrite that makes a packet of spec look like want.
func rewriteOf(want packettest.Spec) *packet.Rewrite {
	rw := &packet.Rewrite{
		Src: packet.AddrFrom(want.Src.Addr()), Dst: packet.AddrFrom(want.Dst.Addr()),
		SrcPort: want.Src.Port(), DstPort: want.Dst.Port(),
	}
	if reply := want.ICMPType == 0 || want.ICMPType == 129; (want.Proto == 1 || want.Proto == 58) && reply {
		rw.DstPort = want.Src.Port() // the identifier is a reply's destination
	}
	return rw
}

// TestApplyAgainstRebuild compares the incremental rewrite with a packet that
// is built anew from the rewritten description.
func TestApplyAgainstRebuild(t *testing.T) {
	t.Parallel()
	r := seeded(t)
	for range 4000 {
		spec := packettest.Random(r)
		want := spec
		v4 := spec.Src.Addr().Is4()
		if want.Src = packettest.RandomAddr(r, v4); r.IntN(2) == 0 {
			want.Dst = packettest.RandomAddr(r, v4)
		}
		want.TTL--
		p := parse(t, spec.Build())
		if !p.DecrementTTL() {
			t.Fatal("expired")
		}
		p.Apply(rewriteOf(want))
		if got := want.Build(); !samePacket(p.Buf, got) {
			t.Fatalf("spec %+v\n got %x\nwant %x", want, p.Buf[:min(len(p.Buf), 100)], got[:min(len(got), 100)])
		}
		again := &packet.Packet{Buf: p.Buf}
		if f := packet.Parse(again); f != packet.FaultNone || again.Tuple != p.Tuple {
			t.Fatalf("%v: tuple is %v, the packet says %v", f, p.Tuple, again.Tuple)
		}
	}
}

// samePacket compares byte for byte, except that a partial checksum may be
// either of one's complement's two zeros.
func samePacket(got, want []byte) bool {
	if got[0]&1 != 0 && len(got) == len(want) {
		at := packet.VNetLen + int(binary.LittleEndian.Uint16(want[6:])) + int(binary.LittleEndian.Uint16(want[8:]))
		if binary.BigEndian.Uint16(got[at:])%0xffff == binary.BigEndian.Uint16(want[at:])%0xffff {
			got = bytes.Clone(got)
			copy(got[at:at+2], want[at:])
		}
	}
	return bytes.Equal(got, want)
}

func TestApplyKeepsDamageVisible(t *testing.T) {
	t.Parallel()
	for _, proto := range []uint8{6, 17, 1, 58, 132} {
		spec := packettest.Spec{Src: a4, Dst: b4, Proto: proto, ICMPType: 8, Payload: []byte("payload")}
		if proto == 58 {
			spec.Src, spec.Dst, spec.ICMPType = a6, b6, 128
		}
		buf := spec.Build()
		buf[len(buf)-1] ^= 1
		p := parse(t, buf)
		want := spec
		want.Src = netip.AddrPortFrom(spec.Src.Addr().Next(), 4711)
		p.Apply(rewriteOf(want))
		if packettest.Check(p.Buf) == nil {
			t.Errorf("protocol %d: a damaged packet became valid", proto)
		}
		p.Buf[len(p.Buf)-1] ^= 1
		check(t, p.Buf)
	}
}

func TestApplyKeepsAbsentChecksum(t *testing.T) {
	t.Parallel()
	p := parse(t, packettest.Spec{Src: a4, Dst: b4, NoUDP: true}.Build())
	p.Apply(rewriteOf(packettest.Spec{Src: b4, Dst: a4}))
	if got := p.IP()[26:28]; got[0] != 0 || got[1] != 0 {
		t.Errorf("got checksum %x, want none", got)
	}
	s := packettest.Spec{Src: a4, Dst: b4, Proto: 132}
	p = parse(t, s.Build())
	clear(p.IP()[28:32]) // RFC 9653
	p.Apply(rewriteOf(packettest.Spec{Src: b4, Dst: a4}))
	if got := binary.BigEndian.Uint32(p.IP()[28:]); got != 0 {
		t.Errorf("got SCTP checksum %x, want none", got)
	}
}

// TestApplyFragments rewrites the fragments of a datagram one by one and
// checks the datagram they make.
func TestApplyFragments(t *testing.T) {
	t.Parallel()
	spec := packettest.Spec{Src: a4, Dst: b4, Payload: bytes.Repeat([]byte("0123456789"), 500), ID: 77}
	want := spec
	want.Src, want.Dst = b4, a4
	whole := want.Build()
	data := map[int][]byte{}
	packet.Fragment4(parse(t, spec.Build()), 1000, func(buf []byte) {
		p := parse(t, bytes.Clone(buf))
		p.Apply(rewriteOf(want))
		if p.Tuple.Src != packet.AddrFrom(b4.Addr()) {
			t.Errorf("source is %v", p.Tuple.Src)
		}
		parse(t, p.Buf) // header checksum
		data[p.FragOffset] = p.IP()[20:]
	})
	var got []byte
	for len(data[len(got)]) > 0 {
		got = append(got, data[len(got)]...)
	}
	if !bytes.Equal(got, whole[packet.VNetLen+20:]) {
		t.Errorf("the fragments make another datagram")
	}
}

// TestApplyICMPErrorAgainstRebuild translates errors about random packets and
// compares with the error about the translated packet.
func TestApplyICMPErrorAgainstRebuild(t *testing.T) {
	t.Parallel()
	r := seeded(t)
	dst, dst2 := make([]byte, packet.MaxError), make([]byte, packet.MaxError)
	for range 4000 {
		spec := packettest.Random(r)
		v4 := spec.Src.Addr().Is4()
		want := spec
		want.Src, want.Dst = packettest.RandomAddr(r, v4), packettest.RandomAddr(r, v4)
		router, outer := packettest.RandomAddr(r, v4).Addr(), packettest.RandomAddr(r, v4).Addr()
		e := packet.TooBig(dst, parse(t, spec.Build()), packet.AddrFrom(router), 1300)
		check(t, e)
		p := parse(t, e)
		p.ApplyICMPError(packet.AddrFrom(outer), packet.AddrFrom(want.Src.Addr()), rewriteOf(want))
		check(t, p.Buf)
		if p.Kind != packet.KindICMPError || p.Inner.Src != packet.AddrFrom(want.Src.Addr()) {
			t.Fatalf("got %v %v", p.Kind, p.Inner)
		}
		b := packet.TooBig(dst2, parse(t, want.Build()), packet.AddrFrom(outer), 1300)
		if spec.Proto == 132 || spec.Partial || spec.GSOSize > 0 {
			// Quoted checksums that were never complete, or are a CRC, differ.
			continue
		}
		// Zero has two representations, of which either is right.
		if sum := p.IP()[p.L4+2:]; sum[0] == 0 && sum[1] == 0 {
			sum[0], sum[1] = 0xff, 0xff
		}
		if !bytes.Equal(p.Buf, b) {
			t.Fatalf("spec %+v\n got %x\nwant %x", spec, p.Buf, b)
		}
	}
}

func TestApplyICMPErrorOnOtherKinds(t *testing.T) {
	t.Parallel()
	p := parse(t, packettest.Spec{Src: a4, Dst: b4, Proto: 6}.Build())
	p.ApplyICMPError(packet.AddrFrom(b4.Addr()), packet.AddrFrom(a4.Addr()), &packet.Rewrite{})
	check(t, p.Buf)
	if p.Tuple.SrcPort != 1000 || p.Tuple.Src != packet.AddrFrom(b4.Addr()) {
		t.Errorf("got %v", p.Tuple)
	}
}

func TestDecrementTTL(t *testing.T) {
	t.Parallel()
	for src, dst := range map[netip.AddrPort]netip.AddrPort{a4: b4, a6: b6} {
		for ttl := 1; ttl < 256; ttl++ {
			p := parse(t, packettest.Spec{Src: src, Dst: dst, TTL: uint8(ttl)}.Build())
			before := bytes.Clone(p.Buf)
			ok := p.DecrementTTL()
			check(t, p.Buf)
			want := packettest.Spec{Src: src, Dst: dst, TTL: uint8(ttl - 1)}.Build()
			if ttl == 1 {
				want = before
			}
			if ok != (ttl > 1) || !bytes.Equal(p.Buf, want) {
				t.Fatalf("ttl %d: %v, got %x, want %x", ttl, ok, p.Buf, want)
			}
		}
	}
}

func TestClampMSS(t *testing.T) {
	t.Parallel()
	mss := func(v uint16) []byte { return []byte{2, 4, byte(v >> 8), byte(v)} }
	tests := []struct {
		name    string
		flags   uint8
		options []byte
		want    []byte
	}{
		{"lowered", 0x02, mss(1460), mss(1300)},
		{"lowered on SYN-ACK", 0x12, mss(1460), mss(1300)},
		{"small enough", 0x02, mss(536), mss(536)},
		{"exact", 0x02, mss(1300), mss(1300)},
		{"no SYN", 0x10, mss(1460), mss(1460)},
		{"odd place", 0x02, []byte{1, 2, 4, 0x05, 0xb4, 1, 1, 0}, []byte{1, 2, 4, 0x05, 0x14, 1, 1, 0}},
		{"behind others", 0x02, append([]byte{3, 3, 7, 1}, mss(9000)...), append([]byte{3, 3, 7, 1}, mss(1300)...)},
		{"behind the end", 0x02, append([]byte{0, 0, 0, 0}, mss(9000)...), append([]byte{0, 0, 0, 0}, mss(9000)...)},
		{"option of length 0", 0x02, []byte{9, 0, 2, 4, 9, 9, 9, 9}, []byte{9, 0, 2, 4, 9, 9, 9, 9}},
		{"cut option", 0x02, []byte{1, 1, 1, 2}, []byte{1, 1, 1, 2}},
		{"long option", 0x02, []byte{1, 1, 2, 4}, []byte{1, 1, 2, 4}},
		{"none", 0x02, nil, nil},
	}
	for _, tt := range tests {
		for _, partial := range []bool{false, true} {
			for _, src := range []netip.AddrPort{a4, a6} {
				spec := packettest.Spec{Src: src, Dst: src, Proto: 6, Flags: tt.flags, TCPOptions: tt.options, Partial: partial}
				p := parse(t, spec.Build())
				p.ClampMSS(1300)
				spec.TCPOptions = tt.want
				if want := spec.Build(); !bytes.Equal(p.Buf, want) {
					t.Errorf("%s: got %x, want %x", tt.name, p.Buf, want)
				}
			}
		}
	}
}

// TestUDPChecksumIsNeverZero walks through every sum a datagram can have: the
// one that comes out as 0 must be sent as 0xffff, since 0 says "none".
func TestUDPChecksumIsNeverZero(t *testing.T) {
	t.Parallel()
	dst := make([]byte, 100)
	for port := range 1 << 16 {
		src := netip.AddrPortFrom(a4.Addr(), uint16(port))
		p := parse(t, packet.UDP(dst, src, b4, []byte("x")))
		rw := rewriteOf(packettest.Spec{Src: b4, Dst: src})
		built := [2]byte(p.IP()[26:])
		p.Apply(rw)
		if got := [2]byte(p.IP()[26:]); got == [2]byte{} || built == [2]byte{} {
			t.Fatalf("port %d: built %x, rewritten %x", port, built, got)
		}
		if port%64 == 0 {
			check(t, p.Buf)
		}
	}
}
