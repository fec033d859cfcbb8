package packet_test

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/internal/packet/packettest"
)

var (
	a4 = netip.MustParseAddrPort("10.0.0.1:1000")
	b4 = netip.MustParseAddrPort("10.96.0.10:53")
	a6 = netip.MustParseAddrPort("[fd00::1]:1000")
	b6 = netip.MustParseAddrPort("[fd00:96::10]:53")
)

func parse(t *testing.T, buf []byte) *packet.Packet {
	t.Helper()
	p := &packet.Packet{Buf: buf}
	if f := packet.Parse(p); f != packet.FaultNone {
		t.Fatalf("Parse: %v", f)
	}
	return p
}

func check(t *testing.T, buf []byte) {
	t.Helper()
	if err := packettest.Check(buf); err != nil {
		t.Fatalf("packet is wrong: %v\n%x", err, buf[:min(len(buf), 120)])
	}
}

func tuple(src, dst netip.AddrPort, proto uint8) packet.Tuple {
	return packet.Tuple{
		Src: packet.AddrFrom(src.Addr()), Dst: packet.AddrFrom(dst.Addr()),
		SrcPort: src.Port(), DstPort: dst.Port(), Proto: proto,
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	echo := func(typ uint8) packettest.Spec {
		return packettest.Spec{Src: a4, Dst: b4, Proto: 1, ICMPType: typ, ICMPRest: 7, Payload: []byte("ping")}
	}
	tests := []struct {
		name        string
		spec        packettest.Spec
		want        packet.Tuple
		l4, payload int
	}{
		{"tcp4", packettest.Spec{Src: a4, Dst: b4, Proto: 6, Payload: []byte("x")}, tuple(a4, b4, 6), 20, 40},
		{"tcp6", packettest.Spec{Src: a6, Dst: b6, Proto: 6, TCPOptions: make([]byte, 8)}, tuple(a6, b6, 6), 40, 68},
		{"udp4 with options", packettest.Spec{Src: a4, Dst: b4, IPOptions: []byte{1, 1, 1, 0}}, tuple(a4, b4, 17), 24, 32},
		{"udp6", packettest.Spec{Src: a6, Dst: b6}, tuple(a6, b6, 17), 40, 48},
		{"udp6 behind hop-by-hop", packettest.Spec{Src: a6, Dst: b6, ExtFirst: 0, Ext: make([]byte, 8)}, tuple(a6, b6, 17), 48, 56},
		{"udp6 atomic fragment", packettest.Spec{Src: a6, Dst: b6, ExtFirst: 44, Ext: make([]byte, 8)}, tuple(a6, b6, 17), 48, 56},
		{"udp6 spent routing header", packettest.Spec{Src: a6, Dst: b6, ExtFirst: 43, Ext: make([]byte, 8)}, tuple(a6, b6, 17), 48, 56},
		{"sctp", packettest.Spec{Src: a4, Dst: b4, Proto: 132}, tuple(a4, b4, 132), 20, 32},
		{
			"echo request", echo(8),
			packet.Tuple{Src: packet.AddrFrom(a4.Addr()), Dst: packet.AddrFrom(b4.Addr()), SrcPort: 1000, Proto: 1},
			20, 28,
		},
		{
			"echo reply", echo(0),
			packet.Tuple{Src: packet.AddrFrom(a4.Addr()), Dst: packet.AddrFrom(b4.Addr()), DstPort: 1000, Proto: 1},
			20, 28,
		},
		{
			"echo6 request",
			packettest.Spec{Src: a6, Dst: b6, Proto: 58, ICMPType: 128},
			packet.Tuple{Src: packet.AddrFrom(a6.Addr()), Dst: packet.AddrFrom(b6.Addr()), SrcPort: 1000, Proto: 58},
			40, 48,
		},
		{
			"gre",
			packettest.Spec{Src: a4, Dst: b4, Proto: 47, Payload: make([]byte, 8)},
			packet.Tuple{Src: packet.AddrFrom(a4.Addr()), Dst: packet.AddrFrom(b4.Addr()), Proto: 47},
			20, 20,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			buf := tt.spec.Build()
			check(t, buf)
			p := parse(t, append(buf, 0, 0, 0)) // bytes behind the end do not count
			if p.Kind != packet.KindWhole || p.Tuple != tt.want || p.L4 != tt.l4 || p.Payload != tt.payload {
				t.Errorf("got %v %v L4 %d payload %d, want %v L4 %d payload %d",
					p.Kind, p.Tuple, p.L4, p.Payload, tt.want, tt.l4, tt.payload)
			}
			if len(p.Buf) != len(buf) {
				t.Errorf("got %d bytes, want %d", len(p.Buf), len(buf))
			}
			if p.FragID != 0 || p.GSOSize != 0 || p.Partial {
				t.Errorf("an ordinary packet has FragID %d GSOSize %d Partial %v", p.FragID, p.GSOSize, p.Partial)
			}
		})
	}
}

// reseal makes the IPv4 header checksum right again after a change.
func reseal(b []byte) {
	h := b[packet.VNetLen:][:int(b[packet.VNetLen]&15)*4]
	h[10], h[11] = 0, 0
	binary.BigEndian.PutUint16(h[10:], ^packettest.Sum(h, 0))
}

// faultTest is a packet, a change that breaks it, and what Parse says then.
type faultTest struct {
	name   string
	spec   packettest.Spec
	change func([]byte) []byte
	want   packet.Fault
}

func runFaults(t *testing.T, tests []faultTest) {
	t.Helper()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			buf := tt.spec.Build()
			if tt.change != nil {
				buf = tt.change(buf)
			}
			if f := packet.Parse(&packet.Packet{Buf: buf}); f != tt.want {
				t.Errorf("got %v, want %v", f, tt.want)
			}
		})
	}
}

// ip overwrites bytes of the IP packet and makes the header checksum right.
func ip(off int, v ...byte) func([]byte) []byte {
	return func(b []byte) []byte {
		copy(b[packet.VNetLen+off:], v)
		if b[packet.VNetLen]>>4 == 4 && b[packet.VNetLen]&15 >= 5 {
			reseal(b)
		}
		return b
	}
}

// vnet overwrites bytes of the virtio-net header and what follows it.
func vnet(off int, v ...byte) func([]byte) []byte {
	return func(b []byte) []byte { copy(b[off:], v); return b }
}

func cut(n int) func([]byte) []byte { return func(b []byte) []byte { return b[:n] } }

func TestParseFaults(t *testing.T) {
	t.Parallel()
	tcp := packettest.Spec{Src: a4, Dst: b4, Proto: 6, Payload: make([]byte, 3000), Flags: 0x10}
	tcp6, udp := tcp, tcp
	tcp6.Src, tcp6.Dst = a6, b6
	udp.Proto = 17
	ext := func(first uint8, ext ...byte) packettest.Spec {
		return packettest.Spec{Src: a6, Dst: b6, ExtFirst: first, Ext: ext}
	}
	opt := func(o ...byte) packettest.Spec { s := tcp; s.IPOptions = o; return s }
	unreach := func(quote []byte) packettest.Spec {
		return packettest.Spec{Src: a4, Dst: b4, Proto: 1, ICMPType: 3, Payload: quote}
	}
	runFaults(t, []faultTest{
		{"nothing", tcp, cut(0), packet.FaultShort},
		{"only a virtio header", tcp, cut(10), packet.FaultShort},
		{"half an IPv4 header", tcp, cut(29), packet.FaultShort},
		{"half an IPv6 header", tcp6, cut(49), packet.FaultShort},
		{"version 5", tcp, ip(0, 0x55), packet.FaultVersion},
		{"header of 16 bytes", tcp, ip(0, 0x44), packet.FaultLength},
		{"total length below header", tcp, ip(2, 0, 19), packet.FaultLength},
		{"total length behind the end", tcp, ip(2, 0xff, 0xff), packet.FaultLength},
		{"IPv6 length behind the end", tcp6, ip(4, 0xff, 0xff), packet.FaultLength},
		{"header checksum", tcp, vnet(packet.VNetLen+8, 1), packet.FaultChecksum},
		{"v4-mapped source", tcp6, ip(8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff), packet.FaultAddress},
		{"v4-mapped destination", tcp6, ip(24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff), packet.FaultAddress},
		{"loose source route", opt(1, 131, 3, 4), nil, packet.FaultRouting},
		{"strict source route", opt(137, 3, 4, 0), nil, packet.FaultRouting},
		{"option of length 1", opt(7, 1, 0, 0), nil, packet.FaultOptions},
		{"option too long", opt(7, 5, 0, 0), nil, packet.FaultOptions},
		{"option without length", opt(1, 1, 1, 7), nil, packet.FaultOptions},
		{"routing header in use", ext(43, 0, 0, 0, 1, 0, 0, 0, 0), nil, packet.FaultRouting},
		{"hop-by-hop not first", ext(60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), nil, packet.FaultExtension},
		{"two fragment headers", ext(44, 44, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), nil, packet.FaultExtension},
		{"extension behind the end", ext(60, 0, 0, 0, 0, 0, 0, 0, 0), ip(41, 200), packet.FaultExtension},
		{"extension chain too long", ext(60, chainOf(60, 8)...), nil, packet.FaultExtension},
		{"IPv6 first fragment without transport", ext(44, 0, 0, 0, 1, 0, 0, 0, 9), ip(40, 60), packet.FaultExtension},
		{"TCP header cut", tcp, ip(2, 0, 39), packet.FaultTransport},
		{"TCP data offset below 5", tcp, ip(32, 0x40), packet.FaultTransport},
		{"TCP options behind the end", packettest.Spec{Src: a4, Dst: b4, Proto: 6}, ip(32, 0xf0), packet.FaultTransport},
		{"UDP length below header", udp, ip(24, 0, 7), packet.FaultTransport},
		{"UDP length behind the end", udp, ip(24, 0xff, 0), packet.FaultTransport},
		{"ICMP header cut", packettest.Spec{Src: a4, Dst: b4, Proto: 1, ICMPType: 8}, ip(2, 0, 27), packet.FaultTransport},
		{"SCTP header cut", packettest.Spec{Src: a4, Dst: b4, Proto: 132}, ip(2, 0, 31), packet.FaultTransport},
		{"quote too short", unreach(make([]byte, 19)), nil, packet.FaultQuote},
		{"quote of the other family", unreach(tcp6.Build()[10:80]), nil, packet.FaultQuote},
		{"quote of seven bytes", unreach(tcp.Build()[10:37]), nil, packet.FaultQuote},
		{"fragment not of eights", tcp, ip(6, 0x20, 0), packet.FaultFragment}, // 3020 bytes
		{"fragment over the TCP header", tcp, ip(6, 0, 1), packet.FaultFragment},
		{"ping of death", udp, ip(6, 0x1f, 0xff), packet.FaultFragment},
		{"empty fragment", packettest.Spec{Src: a4, Dst: b4, Proto: 47}, ip(6, 0x20, 0), packet.FaultFragment},
	})
}

func TestParseVNetFaults(t *testing.T) {
	t.Parallel()
	tcp := packettest.Spec{Src: a4, Dst: b4, Proto: 6, Payload: make([]byte, 3000), Flags: 0x10}
	gso := tcp
	gso.GSOSize = 1000
	runFaults(t, []faultTest{
		{"unknown vnet flag", tcp, vnet(0, 4), packet.FaultVNet},
		{"unknown vnet type", tcp, vnet(1, 3), packet.FaultVNet},
		{"ECN flag alone", tcp, vnet(1, 0x80), packet.FaultVNet},
		{"ECN flag on UDP", gso, vnet(1, 0x85), packet.FaultVNet},
		{"hdr_len behind the end", gso, vnet(2, 0xff, 0xff), packet.FaultVNet},
		{"gso_size zero", gso, vnet(4, 0, 0), packet.FaultGSO},
		{"too many segments", gso, vnet(4, 2, 0), packet.FaultGSO},
		{"IPv6 type on IPv4", gso, vnet(1, 4), packet.FaultGSO},
		{"UDP type on TCP", gso, vnet(1, 5), packet.FaultGSO},
		{"segmented SYN", gso, ip(33, 0x02), packet.FaultGSO},
		{"segmented fragment", gso, ip(6, 0x20, 0, 64, 6, 0, 0), packet.FaultFragment},
		{"segmentation without partial checksum", gso, vnet(0, 0), packet.FaultOffload},
		{"csum_start not TCP's", gso, vnet(6, 24), packet.FaultOffload},
		{"csum_start before the transport", tcp, vnet(0, 1, 0, 0, 0, 0, 0, 12, 0, 16, 0), packet.FaultOffload},
		{"csum_start behind the end", tcp, vnet(0, 1, 0, 0, 0, 0, 0, 0xff, 0xff, 16, 0), packet.FaultOffload},
		{"checksum over the ports", tcp, vnet(0, 1, 0, 0, 0, 0, 0, 20, 0, 2, 0), packet.FaultOffload},
		{"checksum behind the end", tcp, vnet(0, 1, 0, 0, 0, 0, 0, 20, 0, 0xff, 0xff), packet.FaultOffload},
	})
}

func chainOf(proto byte, n int) []byte {
	b := make([]byte, 8*n)
	for i := range n {
		b[8*i] = proto
	}
	return b
}

func TestFaultNamesAreComplete(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for f := range packet.Faults {
		name := packet.Fault(f).String()
		if name == "" || name == "invalid" || seen[name] {
			t.Errorf("fault %d is called %q", f, name)
		}
		seen[name] = true
	}
}

func TestParseFragments(t *testing.T) {
	t.Parallel()
	frag6 := func(offset uint16) packettest.Spec {
		ext := []byte{0, 0, 0, 0, 0, 0, 0, 9}
		binary.BigEndian.PutUint16(ext[2:], offset|1)
		return packettest.Spec{Src: a6, Dst: b6, ExtFirst: 44, Ext: ext, Payload: make([]byte, 1000)}
	}
	frag4 := func(offset uint16) []byte {
		b := packettest.Spec{Src: a4, Dst: b4, ID: 9, Payload: make([]byte, 1000)}.Build()
		binary.BigEndian.PutUint16(b[packet.VNetLen+6:], 0x2000|offset/8)
		reseal(b)
		return b
	}
	tests := []struct {
		name   string
		buf    []byte
		kind   packet.Kind
		offset int
		port   uint16
		proto  uint8
	}{
		{"first 4", frag4(0), packet.KindFirstFragment, 0, 53, 17},
		{"later 4", frag4(1008), packet.KindLaterFragment, 1008, 0, 17},
		{"first 6", frag6(0).Build(), packet.KindFirstFragment, 0, 53, 0},
		{"later 6", frag6(1008).Build(), packet.KindLaterFragment, 1008, 0, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := parse(t, tt.buf)
			if p.Kind != tt.kind || p.FragID != 9 || p.FragOffset != tt.offset || !p.MoreFrag || p.Tuple.DstPort != tt.port {
				t.Errorf("got %v id %d offset %d more %v port %d", p.Kind, p.FragID, p.FragOffset, p.MoreFrag, p.Tuple.DstPort)
			}
			want := packet.FragKey{Src: p.Tuple.Src, Dst: p.Tuple.Dst, ID: 9, Proto: tt.proto}
			if got := p.Fragment(); got != want {
				t.Errorf("got key %v, want %v", got, want)
			}
			if tt.kind == packet.KindLaterFragment && p.L4 != 0 {
				t.Errorf("a later fragment has a transport header at %d", p.L4)
			}
		})
	}
}

func TestParseTidiesVNetHeader(t *testing.T) {
	t.Parallel()
	super := packettest.Spec{Src: a4, Dst: b4, Proto: 6, Payload: make([]byte, 3000), GSOSize: 1000, Flags: 0x10}
	t.Run("hdr_len becomes exact", func(t *testing.T) {
		t.Parallel()
		for _, n := range []uint16{0, 33, 3040} {
			buf := super.Build()
			binary.LittleEndian.PutUint16(buf[2:], n)
			p := parse(t, buf)
			if got := packet.VNetFrom(p.Buf).HdrLen; got != 40 || p.GSOSize != 1000 || !p.Partial {
				t.Errorf("hdr_len %d became %d, gso %d, partial %v", n, got, p.GSOSize, p.Partial)
			}
		}
	})
	t.Run("one segment is no super-packet", func(t *testing.T) {
		t.Parallel()
		s := super
		s.Payload = make([]byte, 1000)
		p := parse(t, s.Build())
		v := packet.VNetFrom(p.Buf)
		if p.GSOSize != 0 || v.GSOType != packet.GSONone || v.GSOSize != 0 || !p.Partial || v.Flags != 1 {
			t.Errorf("got %+v, GSOSize %d", v, p.GSOSize)
		}
		check(t, p.Buf)
	})
	t.Run("foreign checksum is completed", func(t *testing.T) {
		t.Parallel()
		// A UDP tunnel: the inner checksum is left to hardware.
		inner := packettest.Spec{Src: a4, Dst: b4, Proto: 6, Partial: true, Payload: []byte("inner")}.Build()[packet.VNetLen:]
		buf := packettest.Spec{Src: a4, Dst: b4, NoUDP: true, Payload: inner}.Build()
		packet.VNet{Flags: 1, ChecksumStart: 28 + 20, ChecksumField: 16}.Put(buf)
		p := parse(t, buf)
		if p.Partial || p.Buf[0] != 0 {
			t.Errorf("still partial")
		}
		check(t, append(make([]byte, packet.VNetLen), p.Data()...))
	})
	t.Run("no garbage without flags", func(t *testing.T) {
		t.Parallel()
		buf := packettest.Spec{Src: a4, Dst: b4}.Build()
		packet.VNet{Flags: 2, HdrLen: 9, GSOSize: 8, ChecksumStart: 7, ChecksumField: 6}.Put(buf)
		if got := packet.VNetFrom(parse(t, buf).Buf); got != (packet.VNet{Flags: 2}) {
			t.Errorf("got %+v", got)
		}
	})
}

func TestParseQuote(t *testing.T) {
	t.Parallel()
	quoted := func(s packettest.Spec, n int) []byte { return s.Build()[packet.VNetLen:][:n] }
	later := quoted(packettest.Spec{Src: a4, Dst: b4, Payload: make([]byte, 20)}, 40)
	later[7] = 9
	echo := tuple(b6, a6, 58)
	echo.SrcPort, echo.DstPort = 53, 0
	none := tuple(b4, a4, 17)
	none.Src, none.Dst, none.SrcPort, none.DstPort = none.Dst, none.Src, 0, 0
	tests := []struct {
		name  string
		v6    bool
		typ   uint8
		quote []byte
		want  packet.Tuple
		l4    int
	}{
		{"tcp, eight bytes", false, 3, quoted(packettest.Spec{Src: b4, Dst: a4, Proto: 6}, 28), tuple(b4, a4, 6), 48},
		{"udp whole", false, 11, quoted(packettest.Spec{Src: b4, Dst: a4}, 28), tuple(b4, a4, 17), 48},
		{"udp behind options", false, 12, quoted(packettest.Spec{Src: b4, Dst: a4, IPOptions: make([]byte, 8)}, 36), tuple(b4, a4, 17), 56},
		{"later fragment", false, 3, later, none, 0},
		{"udp6 too big", true, 2, quoted(packettest.Spec{Src: b6, Dst: a6}, 48), tuple(b6, a6, 17), 88},
		{"echo6", true, 1, quoted(packettest.Spec{Src: b6, Dst: a6, Proto: 58, ICMPType: 128}, 48), echo, 88},
		{"udp6 behind extension", true, 3, quoted(packettest.Spec{Src: b6, Dst: a6, ExtFirst: 60, Ext: make([]byte, 8)}, 56), tuple(b6, a6, 17), 96},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := packettest.Spec{Src: a4, Dst: b4, Proto: 1, ICMPType: tt.typ, Payload: tt.quote}
			if tt.v6 {
				s.Src, s.Dst, s.Proto = a6, b6, 58
			}
			p := parse(t, s.Build())
			if p.Kind != packet.KindICMPError || p.Inner != tt.want || p.InnerL4 != tt.l4 {
				t.Errorf("got %v %v L4 %d, want %v L4 %d", p.Kind, p.Inner, p.InnerL4, tt.want, tt.l4)
			}
		})
	}
}

func TestHotFunctionsDoNotAllocate(t *testing.T) {
	specs := map[string]packettest.Spec{
		"tcp4":   {Src: a4, Dst: b4, Proto: 6, Partial: true, Payload: make([]byte, 100)},
		"tcp6":   {Src: a6, Dst: b6, Proto: 6, Payload: make([]byte, 100)},
		"udp6":   {Src: a6, Dst: b6, ExtFirst: 0, Ext: make([]byte, 8)},
		"super4": {Src: a4, Dst: b4, Proto: 6, GSOSize: 1000, Payload: make([]byte, 60000)},
		"sctp":   {Src: a4, Dst: b4, Proto: 132, Payload: make([]byte, 100)},
		"echo":   {Src: a4, Dst: b4, Proto: 1, ICMPType: 8},
		"error":  {Src: a4, Dst: b4, Proto: 1, ICMPType: 3, Payload: packettest.Spec{Src: b4, Dst: a4}.Build()[packet.VNetLen:]},
	}
	for name, s := range specs {
		t.Run(name, func(t *testing.T) {
			p := &packet.Packet{Buf: s.Build()}
			rw := packet.Rewrite{SrcPort: 1, DstPort: 2}
			dst := make([]byte, packet.MaxError)
			got := testing.AllocsPerRun(100, func() {
				if packet.Parse(p) != packet.FaultNone {
					t.Fatal("fault")
				}
				rw.Src, rw.Dst = p.Tuple.Dst, p.Tuple.Src
				p.DecrementTTL()
				p.ClampMSS(1000)
				p.LimitSegment(1400)
				p.Apply(&rw)
				p.ApplyICMPError(rw.Dst, rw.Src, &rw)
				packet.Unreachable(dst, p, rw.Dst, packet.UnreachAdmin)
				packet.Reset(dst, p)
				p.IP()[8] = 64
				reseal4(p.IP())
			})
			if got != 0 {
				t.Errorf("got %v allocations", got)
			}
		})
	}
}

func reseal4(ip []byte) {
	if ip[0]>>4 == 4 {
		ip[10], ip[11] = 0, 0
		binary.BigEndian.PutUint16(ip[10:], ^packettest.Sum(ip[:20], 0))
	}
}
