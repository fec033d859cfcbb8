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

func TestErrors(t *testing.T) {
	t.Parallel()
	from4, from6 := packet.AddrFrom(netip.MustParseAddr("10.0.0.254")), packet.AddrFrom(netip.MustParseAddr("fd00::fe"))
	unreach := func(code packet.Unreach) func([]byte, *packet.Packet, packet.Addr) []byte {
		return func(dst []byte, p *packet.Packet, from packet.Addr) []byte {
			return packet.Unreachable(dst, p, from, code)
		}
	}
	tests := []struct {
		name   string
		build  func(dst []byte, p *packet.Packet, from packet.Addr) []byte
		v4, v6 [2]uint8 // type, code
		r4, r6 uint32
	}{
		{"too big", func(dst []byte, p *packet.Packet, from packet.Addr) []byte {
			return packet.TooBig(dst, p, from, 1420)
		}, [2]uint8{3, 4}, [2]uint8{2, 0}, 1420, 1420},
		{"huge mtu", func(dst []byte, p *packet.Packet, from packet.Addr) []byte {
			return packet.TooBig(dst, p, from, 70000)
		}, [2]uint8{3, 4}, [2]uint8{2, 0}, 65535, 70000},
		{"time exceeded", packet.TimeExceeded, [2]uint8{11, 0}, [2]uint8{3, 0}, 0, 0},
		{"port", unreach(packet.UnreachPort), [2]uint8{3, 3}, [2]uint8{1, 4}, 0, 0},
		{"host", unreach(packet.UnreachHost), [2]uint8{3, 1}, [2]uint8{1, 3}, 0, 0},
		{"net", unreach(packet.UnreachNet), [2]uint8{3, 0}, [2]uint8{1, 0}, 0, 0},
		{"admin", unreach(packet.UnreachAdmin), [2]uint8{3, 13}, [2]uint8{1, 1}, 0, 0},
	}
	dst := make([]byte, packet.MaxError)
	for _, tt := range tests {
		for _, size := range []int{0, 100, 3000} {
			for _, v6 := range []bool{false, true} {
				spec, from, want, rest, limit := packettest.Spec{Src: a4, Dst: b4}, from4, tt.v4, tt.r4, 576
				if v6 {
					spec, from, want, rest, limit = packettest.Spec{Src: a6, Dst: b6}, from6, tt.v6, tt.r6, 1280
				}
				spec.Payload = make([]byte, size)
				orig := parse(t, spec.Build())
				got := tt.build(dst[:0], orig, from) // the capacity counts
				check(t, got)
				p := parse(t, got)
				if p.Kind != packet.KindICMPError || p.Inner != orig.Tuple || p.Tuple.Dst != orig.Tuple.Src || p.Tuple.Src != from {
					t.Errorf("%s: got %v %v about %v", tt.name, p.Kind, p.Tuple, p.Inner)
				}
				h := p.IP()[p.L4:]
				if [2]uint8(h) != want || binary.BigEndian.Uint32(h[4:]) != rest {
					t.Errorf("%s: got type, code %v rest %d, want %v %d", tt.name, h[:2], binary.BigEndian.Uint32(h[4:]), want, rest)
				}
				n := min(len(orig.IP()), limit-(p.L4+8))
				if !bytes.Equal(h[8:], orig.IP()[:n]) || len(p.IP()) > limit {
					t.Errorf("%s: quotes %d bytes, want %d", tt.name, len(h)-8, n)
				}
			}
		}
	}
}

func TestErrorsNotSent(t *testing.T) {
	t.Parallel()
	from := packet.AddrFrom(netip.MustParseAddr("10.0.0.254"))
	port := func(s string) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(s), 9) }
	icmp := func(v6 bool, typ uint8) packettest.Spec {
		s := packettest.Spec{Src: a4, Dst: b4, Proto: 1, ICMPType: typ, Payload: packettest.Spec{Src: b4, Dst: a4}.Build()[packet.VNetLen:]}
		if v6 {
			s.Src, s.Dst, s.Proto = a6, b6, 58
			s.Payload = packettest.Spec{Src: b6, Dst: a6}.Build()[packet.VNetLen:]
		}
		return s
	}
	tests := []struct {
		name string
		spec packettest.Spec
		want bool
	}{
		{"udp", packettest.Spec{Src: a4, Dst: b4}, true},
		{"echo request", icmp(false, 8), true},
		{"echo request 6", icmp(true, 128), true},
		{"unreachable", icmp(false, 3), false},
		{"time exceeded", icmp(false, 11), false},
		{"redirect", icmp(false, 5), false},
		{"too big 6", icmp(true, 2), false},
		{"unknown error 6", icmp(true, 100), false},
		{"redirect 6", icmp(true, 137), false},
		{"unspecified source", packettest.Spec{Src: port("0.0.0.0"), Dst: b4}, false},
		{"unspecified source 6", packettest.Spec{Src: port("::"), Dst: b6}, false},
		{"loopback source", packettest.Spec{Src: port("127.0.0.1"), Dst: b4}, false},
		{"loopback source 6", packettest.Spec{Src: port("::1"), Dst: b6}, false},
		{"multicast source", packettest.Spec{Src: port("224.0.0.1"), Dst: b4}, false},
		{"multicast destination", packettest.Spec{Src: a4, Dst: port("239.1.1.1")}, false},
		{"multicast destination 6", packettest.Spec{Src: a6, Dst: port("ff02::1")}, false},
		{"broadcast destination", packettest.Spec{Src: a4, Dst: port("255.255.255.255")}, false},
		{"class E source", packettest.Spec{Src: port("240.0.0.1"), Dst: b4}, false},
	}
	dst := make([]byte, packet.MaxError)
	for _, tt := range tests {
		p := parse(t, tt.spec.Build())
		from := from
		if !p.Is4() {
			from = packet.AddrFrom(b6.Addr())
		}
		if got := packet.AnswersError(p); got != tt.want {
			t.Errorf("%s: AnswersError %v, want %v", tt.name, got, tt.want)
		}
		if got := packet.TooBig(dst, p, from, 1300); len(got) > 0 != tt.want {
			t.Errorf("%s: TooBig built %d bytes", tt.name, len(got))
		}
	}
	later := packettest.Spec{Src: a4, Dst: b4, Payload: make([]byte, 16)}.Build()
	later[packet.VNetLen+7] = 1
	reseal(later)
	if packet.AnswersError(parse(t, later)) {
		t.Error("a later fragment is answered")
	}
	ok := parse(t, packettest.Spec{Src: a4, Dst: b4}.Build())
	if got := packet.TimeExceeded(dst[:5:5], ok, from); len(got) != 0 {
		t.Errorf("built %d bytes into five", len(got))
	}
	if got := packet.TimeExceeded(dst, ok, packet.AddrFrom(a6.Addr())); len(got) != 0 {
		t.Error("an IPv6 router answers an IPv4 packet")
	}
	if got := packet.Unreachable(dst, ok, from, 200); len(got) != 0 {
		t.Error("an unknown reason is sent")
	}
}

func TestReset(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name     string
		flags    uint8
		n, gso   int
		seq, ack uint32
		want     uint8 // flags; 0: no answer
	}{
		{"syn", packet.TCPSyn, 0, 0, 0, 1001, packet.TCPRst | packet.TCPAck},
		{"syn with data", packet.TCPSyn, 10, 0, 0, 1011, packet.TCPRst | packet.TCPAck},
		{"fin without ack", packet.TCPFin, 5, 0, 0, 1006, packet.TCPRst | packet.TCPAck},
		{"ack", packet.TCPAck, 100, 0, 2000, 0, packet.TCPRst},
		{"syn-ack", packet.TCPSyn | packet.TCPAck, 0, 0, 2000, 0, packet.TCPRst},
		{"super-packet", packet.TCPPsh, 5000, 1000, 0, 6000, packet.TCPRst | packet.TCPAck},
		{"reset", packet.TCPRst, 0, 0, 0, 0, 0},
		{"reset with ack", packet.TCPRst | packet.TCPAck, 0, 0, 0, 0, 0},
	}
	dst := make([]byte, packet.MaxError)
	for _, tt := range tests {
		for src, to := range map[netip.AddrPort]netip.AddrPort{a4: b4, a6: b6} {
			spec := packettest.Spec{
				Src: src, Dst: to, Proto: 6, Flags: tt.flags, Seq: 1000, Ack: 2000,
				Payload: make([]byte, tt.n), GSOSize: tt.gso,
			}
			orig := parse(t, spec.Build())
			for i := orig.Payload; i < len(orig.IP()); i++ {
				orig.IP()[i] = 0xee // the payload must not matter
			}
			got := packet.Reset(dst, orig)
			if tt.want == 0 {
				if len(got) != 0 {
					t.Errorf("%s: answered", tt.name)
				}
				continue
			}
			check(t, got)
			p := parse(t, got)
			h := p.IP()[p.L4:]
			if p.Tuple != orig.Tuple.Reverse() || p.TCPFlags != tt.want ||
				binary.BigEndian.Uint32(h[4:]) != tt.seq || binary.BigEndian.Uint32(h[8:]) != tt.ack {
				t.Errorf("%s: got %v flags %x seq %d ack %d", tt.name, p.Tuple, p.TCPFlags, binary.BigEndian.Uint32(h[4:]), binary.BigEndian.Uint32(h[8:]))
			}
		}
	}
	for _, s := range []packettest.Spec{{Src: a4, Dst: b4}, {Src: a4, Dst: netip.MustParseAddrPort("224.0.0.1:1"), Proto: 6}} {
		if got := packet.Reset(dst, parse(t, s.Build())); len(got) != 0 {
			t.Errorf("%+v is answered", s)
		}
	}
}

func TestBuilders(t *testing.T) {
	t.Parallel()
	r := seeded(t)
	dst := make([]byte, packet.MaxSize)
	for range 2000 {
		v4 := r.IntN(2) == 0
		src, to := packettest.RandomAddr(r, v4), packettest.RandomAddr(r, v4)
		data := packettest.Bytes(r, r.IntN(3000))
		want := packettest.Spec{Src: src, Dst: to, Payload: data, DF: true}.Build()
		if v6 := !v4; v6 {
			want[packet.VNetLen+2], want[packet.VNetLen+3] = 0, 0 // no flow label
		}
		if got := packet.UDP(dst, src, to, data); !bytes.Equal(got, want) {
			t.Fatalf("udp %v > %v: got %x, want %x", src, to, got, want)
		}
		echo := packettest.Spec{Src: src, Dst: to, Proto: 1, ICMPType: 8, ICMPRest: uint16(r.Uint32()), Payload: data}
		if !v4 {
			echo.Proto, echo.ICMPType = 58, 128
		}
		testEcho(t, dst, echo, r)
	}
}

func testEcho(t *testing.T, dst []byte, echo packettest.Spec, r *rand.Rand) {
	t.Helper()
	req := parse(t, echo.Build())
	e := packet.EchoHeader{Src: echo.Dst.Addr(), Dst: echo.Src.Addr(), ID: echo.Src.Port(), Seq: echo.ICMPRest, Reply: true}
	got := parse(t, packet.Echo(dst, e, echo.Payload))
	check(t, got.Buf)
	if got.Tuple != req.Tuple.Reverse() || got.EchoSeq() != echo.ICMPRest || !bytes.Equal(got.Data(), echo.Payload) {
		t.Fatalf("got %v seq %d", got.Tuple, got.EchoSeq())
	}
	e = packet.EchoHeader{Src: echo.Src.Addr(), Dst: echo.Dst.Addr(), ID: echo.Src.Port(), Seq: echo.ICMPRest}
	made := parse(t, packet.Echo(dst, e, echo.Payload))
	check(t, made.Buf)
	if made.Tuple != req.Tuple || made.EchoSeq() != e.Seq || !made.IsEcho() {
		t.Fatalf("got %v, want %v", made.Tuple, req.Tuple)
	}
	if n := r.IntN(8); len(packet.Echo(dst[:0:n], e, nil)) != 0 {
		t.Fatal("built into a buffer that is too small")
	}
}

func TestBuildersRefuse(t *testing.T) {
	t.Parallel()
	dst := make([]byte, packet.MaxSize+1000)
	if got := packet.UDP(dst, a4, b6, nil); len(got) != 0 {
		t.Error("a datagram between the families")
	}
	if got := packet.UDP(dst, a4, b4, make([]byte, 65536-28)); len(got) != 0 {
		t.Error("a datagram that is too long")
	}
	if got := packet.UDP(dst, a4, b4, make([]byte, 65535-28)); len(got) != packet.MaxSize {
		t.Errorf("the longest datagram has %d bytes", len(got))
	}
	if got := packet.UDP(dst[:0:37], a4, b4, nil); len(got) != 0 {
		t.Error("built into a buffer that is too small")
	}
}

func TestComplete(t *testing.T) {
	t.Parallel()
	for src, dst := range map[netip.AddrPort]netip.AddrPort{a4: b4, a6: b6} {
		for _, proto := range []uint8{6, 17} {
			s := packettest.Spec{Src: src, Dst: dst, Proto: proto, Payload: []byte("odd"), Partial: true}
			p := parse(t, s.Build())
			p.Complete()
			s.Partial = false
			if want := s.Build(); !bytes.Equal(p.Buf, want) || p.Partial {
				t.Errorf("got %x, want %x", p.Buf, want)
			}
		}
	}
}
