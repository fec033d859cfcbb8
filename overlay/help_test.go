package overlay_test

import (
	"bytes"
	"encoding/binary"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/overlay"
	"github.com/netctl/netctl/overlay/overlaytest"
)

const testMTU = 1420

func addr(s string) netip.Addr      { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix  { return netip.MustParsePrefix(s) }
func ports(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
func newKey(t testing.TB) overlay.PrivateKey {
	t.Helper()
	k, err := overlay.NewPrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// inbox is a sink that keeps what it was given.
type inbox struct {
	mu   sync.Mutex
	pkts [][]byte // guarded by mu
	more chan struct{}
}

func newInbox() *inbox { return &inbox{more: make(chan struct{}, 1)} }

func (b *inbox) sink(pkts [][]byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range pkts {
		b.pkts = append(b.pkts, slices.Clone(p))
	}
	select {
	case b.more <- struct{}{}:
	default:
	}
}

func (b *inbox) take() [][]byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := b.pkts
	b.pkts = nil
	return out
}

// wait collects packets until enough says so, and fails after a while.
func (b *inbox) wait(t testing.TB, what string, enough func([][]byte) bool) [][]byte {
	t.Helper()
	var got [][]byte
	deadline := time.After(40 * time.Second)
	for {
		got = append(got, b.take()...)
		if enough(got) {
			return got
		}
		select {
		case <-b.more:
		case <-deadline:
			t.Fatalf("%s: not seen, got %d packets", what, len(got))
		}
	}
}

func (b *inbox) waitN(t testing.TB, what string, n int) [][]byte {
	t.Helper()
	return b.wait(t, what, func(got [][]byte) bool { return len(got) >= n })
}

// node is an engine with what belongs to it.
type node struct {
	*overlay.WireGuard
	name string
	key  overlay.PrivateKey
	in   *inbox
	at   netip.AddrPort // its endpoint
	cidr []netip.Prefix
}

func (n *node) peer() overlay.Peer {
	return overlay.Peer{Node: n.name, PublicKey: n.key.Public(), Endpoint: n.at, AllowedIPs: n.cidr}
}

// start makes a node on the network; change may alter its configuration.
func start(t testing.TB, net *overlaytest.Network, i byte, change func(*overlay.WireGuardConfig)) *node {
	t.Helper()
	a := netip.AddrFrom4([4]byte{192, 0, 2, i})
	n := &node{
		name: "n" + string('0'+i), key: newKey(t), in: newInbox(), at: netip.AddrPortFrom(a, overlay.DefaultPort),
		cidr: []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, i, 0}), 24),
			netip.PrefixFrom(a, 32),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0, 7: i}), 64),
		},
	}
	cfg := overlay.WireGuardConfig{
		Key: n.key, ListenPort: overlay.DefaultPort, MTU: testMTU, Sink: n.in.sink,
		Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if net != nil {
		cfg.Wire = net.Wire(a)
	}
	if change != nil {
		change(&cfg)
	}
	n.key = cfg.Key
	var err error
	if n.WireGuard, err = overlay.NewWireGuard(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	return n
}

// mesh makes every node the peer of every other.
func mesh(t testing.TB, nodes ...*node) {
	t.Helper()
	for _, n := range nodes {
		var peers []overlay.Peer
		for _, o := range nodes {
			if o != n {
				peers = append(peers, o.peer())
			}
		}
		if err := n.Apply(peers); err != nil {
			t.Fatal(err)
		}
	}
}

// pair is two nodes that know each other.
func pair(t testing.TB, net *overlaytest.Network) (a, b *node) {
	t.Helper()
	a, b = start(t, net, 1, nil), start(t, net, 2, nil)
	mesh(t, a, b)
	return a, b
}

func (n *node) send(t testing.TB, buf []byte) {
	t.Helper()
	if err := n.Send(buf); err != nil {
		t.Fatalf("send: %v", err)
	}
}

// pod4 and pod6 are addresses of node i.
func pod4(i byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, i, 5}) }
func pod6(i byte) netip.Addr { return netip.AddrFrom16([16]byte{0xfd, 0, 7: i, 15: 5}) }

// udp is an ordinary packet.
func udp(from, to netip.Addr, payload string) []byte {
	buf := make([]byte, packet.VNetLen+48+len(payload))
	return packet.UDP(buf, netip.AddrPortFrom(from, 1000), netip.AddrPortFrom(to, 2000), []byte(payload))
}

// tcpSuper is a TCP super-packet as a kernel makes it: checksum partial.
func tcpSuper(from, to netip.Addr, seq uint32, payload []byte, mss uint16) []byte {
	hl, v := 20, packet.VNet{Flags: packet.VNetNeedsCsum, GSOType: packet.GSOTCPv4, GSOSize: mss}
	if from.Is6() {
		hl, v.GSOType = 40, packet.GSOTCPv6
	}
	if len(payload) <= int(mss) {
		v.GSOType, v.GSOSize = packet.GSONone, 0
	}
	v.HdrLen, v.ChecksumStart, v.ChecksumField = uint16(hl+20), uint16(hl), 16
	buf := make([]byte, packet.VNetLen+hl+20+len(payload))
	v.Put(buf)
	ip := buf[packet.VNetLen:]
	l4 := ip[hl:]
	n := len(l4)
	if from.Is4() {
		ip[0], ip[8], ip[9] = 0x45, 64, 6
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
		ip[6] = 0x40 // DF
		copy(ip[12:], from.AsSlice())
		copy(ip[16:], to.AsSlice())
		binary.BigEndian.PutUint16(ip[10:], ^sum(0, ip[:20]))
	} else {
		ip[0], ip[6], ip[7] = 0x60, 6, 64
		binary.BigEndian.PutUint16(ip[4:], uint16(n))
		copy(ip[8:], from.AsSlice())
		copy(ip[24:], to.AsSlice())
	}
	binary.BigEndian.PutUint16(l4, 1000)
	binary.BigEndian.PutUint16(l4[2:], 2000)
	binary.BigEndian.PutUint32(l4[4:], seq)
	binary.BigEndian.PutUint32(l4[8:], 1)
	l4[12], l4[13] = 5<<4, packet.TCPAck|packet.TCPPsh
	binary.BigEndian.PutUint16(l4[14:], 512)
	copy(l4[20:], payload)
	pseudo := sum(uint32(n)+6, append(from.AsSlice(), to.AsSlice()...))
	binary.BigEndian.PutUint16(l4[16:], pseudo)
	return buf
}

func sum(start uint32, b []byte) uint16 {
	s := start
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

// parsed reads a packet that came out.
func parsed(t testing.TB, buf []byte) *packet.Packet {
	t.Helper()
	p := &packet.Packet{Buf: buf}
	if f := packet.Parse(p); f != packet.FaultNone {
		t.Fatalf("packet does not parse: %v", f)
	}
	return p
}

// payloads joins what the packets carry, in order.
func payloads(t testing.TB, pkts [][]byte) []byte {
	t.Helper()
	var out bytes.Buffer
	for _, b := range pkts {
		out.Write(parsed(t, b).Data())
	}
	return out.Bytes()
}
