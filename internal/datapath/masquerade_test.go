package datapath_test

import (
	"net/netip"
	"testing"

	"github.com/gaissmai/bart"

	"github.com/netctl/netctl/internal/datapath"
	"github.com/netctl/netctl/internal/flow"
	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/internal/packet/packettest"
	"github.com/netctl/netctl/internal/policy"
	"github.com/netctl/netctl/proxy"
)

const (
	maskPod = datapath.PortID(iota + 1)
	maskSockets
	maskOutside
)

// maskPort keeps what is written to it. It is a Masquerade of few ports.
type maskPort struct {
	node    packet.Addr
	refused packet.Addr
	ports   []uint16
	got     []packet.Packet
	short   bool
}

func (m *maskPort) Write(buf []byte) error {
	p := packet.Packet{Buf: append([]byte(nil), buf...)}
	packet.Parse(&p)
	m.got = append(m.got, p)
	return nil
}

func (m *maskPort) Source(dst packet.Addr) packet.Addr {
	if dst == m.refused {
		return packet.Addr{}
	}
	return m.node
}

func (m *maskPort) Short() { m.short = true }

func (m *maskPort) SourcePort(_ packet.Addr, n uint32) uint16 { return m.ports[int(n)%len(m.ports)] }

func (m *maskPort) take(t *testing.T) packet.Packet {
	t.Helper()
	if len(m.got) != 1 {
		t.Fatalf("%d packets left, want one", len(m.got))
	}
	p := m.got[0]
	m.got = nil
	if err := packettest.Check(p.Buf); err != nil {
		t.Error(err)
	}
	return p
}

// maskWorld is a router with a pod and a way outside under the node's address.
type maskWorld struct {
	router                *datapath.Router
	pod, sockets, outside *maskPort
	in, back              *datapath.Input
	now                   uint32
	tables                datapath.Tables
}

var (
	maskPodAddr = netip.MustParseAddr("10.9.0.5")
	maskNode    = netip.MustParseAddr("198.51.100.1")
	maskServer  = netip.MustParseAddrPort("203.0.113.7:53")
	maskRefused = netip.MustParseAddrPort("192.0.2.9:53")
)

func newMaskWorld(t *testing.T, ports ...uint16) *maskWorld {
	t.Helper()
	flows, err := flow.Open(flow.Config{Slots: 1 << 10})
	if err != nil {
		t.Fatal(err)
	}
	node := packet.AddrFrom(maskNode)
	w := &maskWorld{
		pod: new(maskPort), sockets: new(maskPort), now: 100,
		outside: &maskPort{node: node, refused: packet.AddrFrom(maskRefused.Addr()), ports: ports},
	}
	w.router = datapath.New(datapath.Config{Flows: flows, Clock: func() uint32 { return w.now }})
	services, _ := proxy.Compile(proxy.Input{})
	policies, _ := policy.Compile(nil)
	w.tables = datapath.Tables{
		Ports: make([]datapath.PortEntry, maskOutside+1), Routes: new(bart.Table[datapath.Route]), Services: services, Policy: policies,
		Netstack: maskSockets, Masquerade: maskOutside,
	}
	w.tables.Ports[maskPod] = datapath.PortEntry{Port: w.pod, Kind: datapath.KindPod, Gen: 1, MTU: 1420, Addrs: []packet.Addr{packet.AddrFrom(maskPodAddr)}}
	w.tables.Ports[maskSockets] = datapath.PortEntry{Port: w.sockets, Kind: datapath.KindNetstack, Gen: 2, MTU: 1420}
	w.tables.Ports[maskOutside] = datapath.PortEntry{Port: w.outside, Kind: datapath.KindOutside, Gen: 3, MTU: 1420, Addrs: []packet.Addr{node}}
	w.tables.Routes.Insert(netip.MustParsePrefix("0.0.0.0/0"), datapath.Route{Port: maskOutside})
	w.tables.Routes.Insert(netip.PrefixFrom(maskPodAddr, 32), datapath.Route{Port: maskPod})
	w.router.Publish(&w.tables)
	w.in, w.back = w.router.NewInput(maskPod), w.router.NewInput(maskOutside)
	return w
}

// udp builds a datagram in a buffer that holds any.
func udp(from, to netip.AddrPort) []byte {
	return packet.UDP(make([]byte, packet.MaxSize), from, to, []byte("x"))
}

func tcp(from, to netip.AddrPort, flags uint8) []byte {
	return packettest.Spec{Src: from, Dst: to, Proto: packet.ProtoTCP, Flags: flags}.Build()
}

func from(port uint16) netip.AddrPort { return netip.AddrPortFrom(maskPodAddr, port) }

func (w *maskWorld) drops(t *testing.T, want datapath.Drop) {
	t.Helper()
	c := w.router.Counters()
	if c.Drops[want] != 1 {
		t.Errorf("want one %s, drops are %v", want, c.ByReason())
	}
}

func TestMasqueradeAndBack(t *testing.T) {
	t.Parallel()
	w := newMaskWorld(t, 61000)
	w.in.Deliver(udp(from(1000), maskServer))
	out := w.outside.take(t)
	if got := netip.AddrPortFrom(out.Tuple.Src.Netip(), out.Tuple.SrcPort); got != netip.AddrPortFrom(maskNode, 61000) {
		t.Errorf("it left from %s", got)
	}
	w.back.Deliver(udp(maskServer, netip.AddrPortFrom(maskNode, 61000)))
	if got := w.pod.take(t).Tuple; got.Dst != packet.AddrFrom(maskPodAddr) || got.DstPort != 1000 || got.Src != packet.AddrFrom(maskServer.Addr()) {
		t.Errorf("the answer came as %s", got)
	}
	// Nobody else can answer, and nobody can begin.
	w.back.Deliver(udp(netip.AddrPortFrom(maskServer.Addr(), 54), netip.AddrPortFrom(maskNode, 61000)))
	w.drops(t, datapath.DropUnknownReply)
	w.back.Deliver(udp(from(1000), netip.AddrPortFrom(maskNode, 61000)))
	w.drops(t, datapath.DropSpoofedSource)
	if len(w.pod.got) != 0 {
		t.Errorf("the pod got %v", w.pod.got)
	}
}

// TestMasqueradeIsKeptWhenJudgedAgain: a policy that has changed is asked about the pod,
// from either side, and the server sees the same client as before.
func TestMasqueradeIsKeptWhenJudgedAgain(t *testing.T) {
	t.Parallel()
	w := newMaskWorld(t, 61000, 61001, 61002, 61003)
	w.in.Deliver(udp(from(1000), maskServer))
	first := w.outside.take(t)
	for gen := uint32(10); gen < 12; gen++ {
		next := w.tables
		next.Ports = append([]datapath.PortEntry(nil), w.tables.Ports...)
		next.Ports[maskPod].Gen = gen
		w.router.Publish(&next)
		reply := udp(maskServer, netip.AddrPortFrom(maskNode, first.Tuple.SrcPort))
		if gen == 10 {
			w.in.Deliver(udp(from(1000), maskServer))
			if got := w.outside.take(t).Tuple; got != first.Tuple {
				t.Errorf("it leaves as %s, was %s", got, first.Tuple)
			}
		}
		w.back.Deliver(reply)
		if got := w.pod.take(t).Tuple; got.DstPort != 1000 || got.Dst != packet.AddrFrom(maskPodAddr) {
			t.Errorf("the answer came as %s", got)
		}
	}
	if c := w.router.Counters(); c.Rejudged != 2 {
		t.Errorf("judged again %d times", c.Rejudged)
	}
}

func TestMasqueradeRefuses(t *testing.T) {
	t.Parallel()
	w := newMaskWorld(t, 61000)
	w.in.Deliver(udp(from(1000), maskRefused))
	w.drops(t, datapath.DropNotOutside)
	w.pod.take(t) // "port unreachable"
	sctp := packettest.Spec{Src: from(1), Dst: maskServer, Proto: packet.ProtoSCTP}.Build()
	w.in.Deliver(sctp)
	w.sockets.take(t)
	if len(w.outside.got) != 0 {
		t.Errorf("%d packets left", len(w.outside.got))
	}
}

// TestPortsComeBack: when the ports towards a server are taken, connections that
// are over give theirs, questions after a while, and conversations never.
func TestPortsComeBack(t *testing.T) {
	t.Parallel()
	w := newMaskWorld(t, 61000)
	web := netip.AddrPortFrom(maskServer.Addr(), 80)
	w.in.Deliver(tcp(from(1000), web, packet.TCPSyn))
	w.outside.take(t)
	w.back.Deliver(tcp(web, netip.AddrPortFrom(maskNode, 61000), packet.TCPSyn|packet.TCPAck))
	w.in.Deliver(tcp(from(1000), web, packet.TCPAck))
	w.outside.got, w.pod.got = nil, nil
	w.now += 3600
	w.in.Deliver(tcp(from(1001), web, packet.TCPSyn))
	w.drops(t, datapath.DropSourcePorts)
	if !w.outside.short {
		t.Error("nobody says that ports are short")
	}
	w.back.Deliver(tcp(web, netip.AddrPortFrom(maskNode, 61000), packet.TCPRst))
	w.pod.got = nil
	w.in.Deliver(tcp(from(1001), web, packet.TCPSyn))
	w.outside.take(t)

	w.in.Deliver(udp(from(1000), maskServer))
	w.outside.take(t)
	w.now++
	w.in.Deliver(udp(from(1001), maskServer))
	if len(w.outside.got) != 0 {
		t.Error("a question of a second ago has lost its port")
	}
	w.now += 5
	w.in.Deliver(udp(from(1001), maskServer))
	w.outside.take(t)
}
