package netstack_test

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/netctl/netctl/internal/netstack"
	"github.com/netctl/netctl/internal/packet"
)

// packets collects what arrives at the pod, copied.
type packets chan []byte

// capture starts collecting.
func (n *network) capture() packets {
	c := make(packets, 4096)
	n.pod.watch(func(buf []byte) {
		select {
		case c <- bytes.Clone(buf):
		default:
		}
	})
	return c
}

// next returns the next packet that match accepts, parsed.
func (c packets) next(t testing.TB, what string, match func(*packet.Packet) bool) *packet.Packet {
	t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case buf := <-c:
			p := &packet.Packet{Buf: buf}
			if f := packet.Parse(p); f != packet.FaultNone {
				t.Fatalf("the stack sent a packet that does not parse: %s: %x", f, buf)
			}
			if match(p) {
				return p
			}
		case <-timeout:
			t.Fatalf("no %s within 5 s", what)
		}
	}
}

// none fails if a packet arrives within a short time.
func (c packets) none(t testing.TB) {
	t.Helper()
	select {
	case buf := <-c:
		t.Errorf("unexpected packet %x", buf)
	case <-time.After(50 * time.Millisecond):
	}
}

func unreachable(code packet.Unreach) func(*packet.Packet) bool {
	codes := map[packet.Unreach][2]uint8{
		packet.UnreachPort: {3, 4}, packet.UnreachHost: {1, 3},
		packet.UnreachNet: {0, 0}, packet.UnreachAdmin: {13, 1},
	}[code]
	return func(p *packet.Packet) bool {
		if p.Kind != packet.KindICMPError {
			return false
		}
		if p.Is4() {
			return p.ICMPType == 3 && p.ICMPCode == codes[0]
		}
		return p.ICMPType == 1 && p.ICMPCode == codes[1]
	}
}

func isUDP(p *packet.Packet) bool {
	return p.Kind == packet.KindWhole && p.Tuple.Proto == packet.ProtoUDP
}

func (f family) udp(port uint16, payload []byte) []byte {
	return packet.UDP(make([]byte, packet.MaxSize), netip.AddrPortFrom(f.pod, 4000), netip.AddrPortFrom(f.out, port), payload)
}

// udpEcho runs a UDP echo server on loopback.
func udpEcho(t testing.TB, f family) uint16 {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(f.loopback, 0)))
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadBuffer(1 << 20)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 65536)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
	t.Cleanup(func() {
		c.Close()
		<-done
	})
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
}

func TestUDPEcho(t *testing.T) {
	t.Parallel()
	for _, f := range families(t) {
		for _, size := range []int{0, 1, 512, 1372} {
			t.Run(f.name, func(t *testing.T) {
				t.Parallel()
				port := udpEcho(t, f)
				n := start(t, nil)
				got := n.capture()
				payload := pattern(size)
				want := packet.Tuple{
					Src: packet.AddrFrom(f.out), Dst: packet.AddrFrom(f.pod),
					SrcPort: port, DstPort: 4000, Proto: packet.ProtoUDP,
				}
				for range 3 { // the first opens the socket
					buf := f.udp(port, payload)
					if err := n.stack.Write(buf); err != nil {
						t.Fatal(err)
					}
					clear(buf)
					p := got.next(t, "echo", isUDP)
					if p.Tuple != want {
						t.Fatalf("reply %s, want %s", p.Tuple, want)
					}
					if !bytes.Equal(p.Data(), payload) {
						t.Fatalf("reply has %d other bytes than sent", len(p.Data()))
					}
				}
				if st := n.stack.Stats(); st.Flows != 1 || st.FlowsOpened != 1 {
					t.Errorf("%d flows, %d opened, want 1", st.Flows, st.FlowsOpened)
				}
			})
		}
	}
}

func TestUDPSuperPacketIsSplit(t *testing.T) {
	t.Parallel()
	for _, f := range families(t) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			port := udpEcho(t, f)
			n := start(t, nil)
			got := n.capture()
			payload := pattern(10*1000 + 7)
			buf := f.udp(port, payload)
			l3 := len(buf) - packet.VNetLen - 8 - len(payload)
			packet.VNet{
				Flags: packet.VNetNeedsCsum, GSOType: packet.GSOUDPL4, GSOSize: 1000,
				HdrLen: uint16(l3 + 8), ChecksumStart: uint16(l3), ChecksumField: 6,
			}.Put(buf)
			_ = n.stack.Write(buf)
			var all []byte
			for i := range 11 {
				d := got.next(t, "segment", isUDP).Data()
				if want := min(1000, len(payload)-1000*i); len(d) != want {
					t.Fatalf("datagram %d has %d bytes, want %d", i, len(d), want)
				}
				all = append(all, d...)
			}
			if !bytes.Equal(all, payload) {
				t.Error("the datagrams are not what was sent")
			}
		})
	}
}

func TestUDPBigIsFragmentedBothWays(t *testing.T) {
	t.Parallel()
	for _, f := range families(t) {
		for _, size := range []int{1500, 9000, 60000} {
			t.Run(f.name, func(t *testing.T) {
				t.Parallel()
				port := udpEcho(t, f)
				n := start(t, nil)
				got := n.capture()
				whole := f.udp(port, pattern(size))
				for _, frag := range fragment(whole, 1400) {
					_ = n.stack.Write(frag)
				}
				var back []byte
				for len(back) < size+8 {
					p := got.next(t, "fragment", func(p *packet.Packet) bool {
						return p.Kind == packet.KindFirstFragment || p.Kind == packet.KindLaterFragment
					})
					if len(p.IP()) > 1420 {
						t.Fatalf("fragment of %d bytes is bigger than the MTU", len(p.IP()))
					}
					if p.FragOffset != len(back) {
						t.Fatalf("fragment at %d, want %d", p.FragOffset, len(back))
					}
					back = append(back, fragmentBody(p)...)
				}
				if !bytes.Equal(back[8:], pattern(size)) {
					t.Error("the reply is not what was sent")
				}
				if st := n.stack.Stats(); st.Reassembled != 1 {
					t.Errorf("reassembled %d, want 1", st.Reassembled)
				}
			})
		}
	}
}

// fragment cuts a packet as a host does; the slow twin of Stack.cut.
func fragment(buf []byte, mtu int) [][]byte {
	ip := buf[packet.VNetLen:]
	var out [][]byte
	if ip[0]>>4 == 4 {
		for off := 20; off < len(ip); off += mtu &^ 7 {
			end := min(off+mtu&^7, len(ip))
			h := header.IPv4(append(bytes.Clone(ip[:20]), ip[off:end]...))
			flags := uint8(0)
			if end < len(ip) {
				flags = header.IPv4FlagMoreFragments
			}
			h.SetID(77)
			h.SetTotalLength(uint16(len(h)))
			h.SetFlagsFragmentOffset(flags, uint16(off-20))
			h.SetChecksum(0)
			h.SetChecksum(^h.CalculateChecksum())
			out = append(out, append(make([]byte, packet.VNetLen), h...))
		}
		return out
	}
	for off := 40; off < len(ip); off += mtu &^ 7 {
		end := min(off+mtu&^7, len(ip))
		h := append(bytes.Clone(ip[:40]), ip[6], 0, 0, 0, 0, 0, 0, 77)
		h[6] = 44
		field := uint16(off - 40)
		if end < len(ip) {
			field |= 1
		}
		binary.BigEndian.PutUint16(h[42:], field)
		h = append(h, ip[off:end]...)
		binary.BigEndian.PutUint16(h[4:], uint16(len(h)-40))
		out = append(out, append(make([]byte, packet.VNetLen), h...))
	}
	return out
}

func fragmentBody(p *packet.Packet) []byte {
	if p.Is4() {
		return p.IP()[20:]
	}
	return p.IP()[48:]
}

func TestFragmentBounds(t *testing.T) {
	t.Parallel()
	f := families(t)[0]
	n := start(t, nil)
	frags := fragment(f.udp(9, pattern(3000)), 1400)
	for id := range 9 {
		h := header.IPv4(frags[0][packet.VNetLen:])
		h.SetID(uint16(id))
		h.SetChecksum(0)
		h.SetChecksum(^h.CalculateChecksum())
		_ = n.stack.Write(bytes.Clone(frags[0]))
	}
	if got := n.stack.Stats().Drops[netstack.DropFragLimit]; got != 1 {
		t.Errorf("ninth unfinished datagram of a pod: %d dropped, want 1", got)
	}
	eventually(t, "unfinished datagrams expire", func() bool {
		return n.stack.Stats().Drops[netstack.DropFragTimeout] == 8
	})
}

func TestUDPRefused(t *testing.T) {
	t.Parallel()
	for _, f := range families(t) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(f.loopback, 0)))
			if err != nil {
				t.Fatal(err)
			}
			port := c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
			c.Close()
			n := start(t, nil)
			got := n.capture()
			_ = n.stack.Write(f.udp(port, []byte("anybody?")))
			p := got.next(t, "port unreachable", unreachable(packet.UnreachPort))
			if p.Inner.SrcPort != 4000 || p.Inner.DstPort != port || p.Inner.Dst != packet.AddrFrom(f.out) {
				t.Errorf("quotes %s", p.Inner)
			}
			if p.Tuple.Src != packet.AddrFrom(f.out) || p.Tuple.Dst != packet.AddrFrom(f.pod) {
				t.Errorf("error is %s", p.Tuple)
			}
		})
	}
}

func TestEcho(t *testing.T) {
	t.Parallel()
	for _, f := range families(t) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			n := start(t, nil)
			got := n.capture()
			// No dialer stands between: the pod pings loopback itself.
			for seq := range uint16(3) {
				for _, id := range []uint16{7, 8} {
					payload := append([]byte{byte(id)}, pattern(55)...)
					buf := packet.Echo(make([]byte, packet.MaxSize), packet.EchoHeader{Src: f.pod, Dst: f.loopback, ID: id, Seq: seq}, payload)
					_ = n.stack.Write(buf)
					if st := n.stack.Stats(); st.Drops[netstack.DropNoPing] > 0 {
						t.Skip("neither ping nor raw sockets are allowed here")
					}
					p := got.next(t, "echo reply", func(p *packet.Packet) bool { return p.Kind == packet.KindWhole })
					want := packet.Tuple{Src: packet.AddrFrom(f.loopback), Dst: packet.AddrFrom(f.pod), DstPort: id, Proto: f.icmpProto}
					if p.Tuple != want || p.EchoSeq() != seq || !bytes.Equal(p.Data(), payload) {
						t.Fatalf("reply %s seq %d, want %s seq %d", p.Tuple, p.EchoSeq(), want, seq)
					}
				}
			}
			if st := n.stack.Stats(); st.Echoes != 2 {
				t.Errorf("%d echo flows, want 2", st.Echoes)
			}
			got.none(t)
		})
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	for _, f := range families(t) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			n := start(t, func(c *netstack.Config) {
				c.Refuse = refuseAll
				c.Router4, c.Router6 = netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("fd00:1::2")
			})
			got := n.capture()
			router := map[bool]netip.Addr{true: netip.MustParseAddr("10.1.0.2"), false: netip.MustParseAddr("fd00:1::2")}[f.pod.Is4()]
			_ = n.stack.Write(f.udp(9, []byte("x")))
			if p := got.next(t, "udp refusal", unreachable(packet.UnreachAdmin)); p.Tuple.Src != packet.AddrFrom(router) {
				t.Errorf("error is from %s, want the router", p.Tuple.Src)
			}
			_ = n.stack.Write(packet.Echo(make([]byte, packet.MaxSize), packet.EchoHeader{Src: f.pod, Dst: f.out, ID: 1}, nil))
			got.next(t, "echo refusal", unreachable(packet.UnreachAdmin))
			_ = n.stack.Write(f.syn(4001, 80))
			got.next(t, "reset", func(p *packet.Packet) bool { return p.TCPFlags&packet.TCPRst != 0 })
			if st := n.stack.Stats(); st.Drops[netstack.DropRefused] != 3 || st.Dialled != 0 {
				t.Errorf("refused %d, dialled %d", st.Drops[netstack.DropRefused], st.Dialled)
			}
		})
	}
}

// syn builds a TCP SYN from the pod.
func (f family) syn(from, to uint16) []byte { return f.segment(from, to, packet.TCPSyn) }

func (f family) segment(from, to uint16, flags uint8) []byte {
	// A datagram with 12 bytes of payload has the length of a TCP header.
	buf := packet.UDP(make([]byte, 128), netip.AddrPortFrom(f.pod, from), netip.AddrPortFrom(f.out, to), make([]byte, 12))
	ip := buf[packet.VNetLen:]
	l4 := ip[len(ip)-20:]
	header.TCP(l4).Encode(&header.TCPFields{SrcPort: from, DstPort: to, SeqNum: 1000, DataOffset: 20, Flags: header.TCPFlags(flags), WindowSize: 65535})
	f.protocol(ip, packet.ProtoTCP)
	src, dst := header.IPv4(ip).SourceAddressSlice(), header.IPv4(ip).DestinationAddressSlice()
	if !f.pod.Is4() {
		src, dst = ip[8:24], ip[24:40]
	}
	sum := header.PseudoHeaderChecksum(packet.ProtoTCP, addr(src), addr(dst), 20)
	header.TCP(l4).SetChecksum(^header.TCP(l4).CalculateChecksum(sum))
	return buf
}

// protocol overwrites the transport protocol of a packet.
func (f family) protocol(ip []byte, proto uint8) {
	if !f.pod.Is4() {
		ip[6] = proto
		return
	}
	h := header.IPv4(ip)
	ip[9] = proto
	h.SetChecksum(0)
	h.SetChecksum(^h.CalculateChecksum())
}

func TestSegmentOfNoConnectionIsReset(t *testing.T) {
	t.Parallel()
	for _, f := range families(t) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			n := start(t, nil)
			got := n.capture()
			_ = n.stack.Write(f.segment(4001, 80, packet.TCPAck))
			p := got.next(t, "reset", func(p *packet.Packet) bool { return p.TCPFlags&packet.TCPRst != 0 })
			if p.Tuple.SrcPort != 80 || p.Tuple.DstPort != 4001 {
				t.Errorf("reset is %s", p.Tuple)
			}
			_ = n.stack.Write(f.segment(4001, 80, packet.TCPRst))
			got.none(t)
			if d := n.stack.Stats().Drops[netstack.DropNoFlow]; d != 2 {
				t.Errorf("counted %d, want 2", d)
			}
		})
	}
}

func TestOtherProtocolIsUnreachable(t *testing.T) {
	t.Parallel()
	for _, f := range families(t) {
		for name, proto := range map[string]uint8{"sctp": 132, "gre": 47, "esp": 50} {
			t.Run(f.name+"/"+name, func(t *testing.T) {
				t.Parallel()
				n := start(t, nil)
				got := n.capture()
				buf := f.udp(9, pattern(64))
				f.protocol(buf[packet.VNetLen:], proto)
				_ = n.stack.Write(buf)
				p := got.next(t, "protocol unreachable", func(p *packet.Packet) bool { return p.Kind == packet.KindICMPError })
				if want := map[bool][2]uint8{true: {3, 2}, false: {4, 1}}[f.pod.Is4()]; [2]uint8{p.ICMPType, p.ICMPCode} != want {
					t.Errorf("type %d code %d, want %v", p.ICMPType, p.ICMPCode, want)
				}
				if !sound(p) {
					t.Error("checksum of the error is wrong")
				}
				if d := n.stack.Stats().Drops[netstack.DropProtocol]; d != 1 {
					t.Errorf("counted %d, want 1", d)
				}
			})
		}
	}
}

func TestBadChecksumIsDropped(t *testing.T) {
	t.Parallel()
	for _, f := range families(t) {
		n := start(t, nil)
		for _, buf := range [][]byte{f.udp(9, []byte("payload")), f.syn(1, 2)} {
			buf[len(buf)-1] ^= 1
			_ = n.stack.Write(buf)
		}
		if st := n.stack.Stats(); st.Drops[netstack.DropChecksum] != 2 || st.FlowsOpened != 0 || st.Dials != 0 {
			t.Errorf("%s: dropped %d, flows %d, dials %d", f.name, st.Drops[netstack.DropChecksum], st.FlowsOpened, st.Dials)
		}
	}
}
