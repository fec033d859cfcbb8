package overlay_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/overlay"
	"github.com/netctl/netctl/overlay/overlaytest"
)

func TestPacketsCross(t *testing.T) {
	t.Parallel()
	a, b := pair(t, overlaytest.New(overlaytest.Config{}))
	tests := []struct {
		name     string
		from, to *node
		pkt      []byte
	}{
		{"v4 there", a, b, udp(pod4(1), pod4(2), "ping")},
		{"v4 back", b, a, udp(pod4(2), pod4(1), "pong")},
		{"v6 there", a, b, udp(pod6(1), pod6(2), "ping")},
		{"v6 back", b, a, udp(pod6(2), pod6(1), "pong")},
		{"largest", a, b, udp(pod4(1), pod4(2), strings.Repeat("x", testMTU-28))},
		{"smallest", a, b, udp(pod6(1), pod6(2), "")},
	}
	for _, tt := range tests {
		tt.from.send(t, tt.pkt)
		got := tt.to.in.waitN(t, tt.name, 1)
		if len(got) != 1 || !bytes.Equal(got[0], tt.pkt) {
			t.Errorf("%s: got %x, want %x", tt.name, got, tt.pkt)
		}
	}
}

func TestPacketsCrossUDP(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, loopback string
		udp            overlay.UDPConfig
	}{
		{"v4", "127.0.0.1", overlay.UDPConfig{}},
		{"v6", "::1", overlay.UDPConfig{}},
		{"v4 without GSO", "127.0.0.1", overlay.UDPConfig{GSO: overlay.OffloadOff}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			real := func(c *overlay.WireGuardConfig) { c.ListenPort, c.UDP = 0, tt.udp }
			a, b := start(t, nil, 1, real), start(t, nil, 2, real)
			for _, n := range []*node{a, b} {
				port, err := n.Port()
				if err != nil {
					t.Fatal(err)
				}
				n.at = netip.AddrPortFrom(addr(tt.loopback), port)
			}
			mesh(t, a, b)
			payload := randomBytes(40000)
			a.send(t, tcpSuper(pod4(1), pod4(2), 7, payload, 1380))
			got := b.in.wait(t, "super-packet", func(got [][]byte) bool { return len(payloads(t, got)) >= len(payload) })
			if !bytes.Equal(payloads(t, got), payload) {
				t.Error("payload differs")
			}
			b.send(t, udp(pod6(2), pod6(1), "back"))
			if got := a.in.waitN(t, "answer", 1); string(payloads(t, got)) != "back" {
				t.Errorf("got %q, want back", payloads(t, got))
			}
		})
	}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(b)
	return b
}

func TestSuperPacketStaysWhole(t *testing.T) {
	t.Parallel()
	a, b := pair(t, overlaytest.New(overlaytest.Config{}))
	for _, tt := range []struct {
		name     string
		from, to netip.Addr
		size     int
		mss      uint16
	}{
		{"v4", pod4(1), pod4(2), 60000, testMTU - 40},
		{"v6", pod6(1), pod6(2), 60000, testMTU - 60},
		{"segments larger than the tunnel", pod4(1), pod4(2), 60000, 8000},
		{"one segment and a byte", pod4(1), pod4(2), testMTU - 39, testMTU - 40},
		{"more segments than a batch", pod4(1), pod4(2), 60000, 100},
	} {
		payload := randomBytes(tt.size)
		before := b.Counters()
		a.send(t, tcpSuper(tt.from, tt.to, 99, payload, tt.mss))
		got := b.in.wait(t, tt.name, func(got [][]byte) bool { return len(payloads(t, got)) >= len(payload) })
		if !bytes.Equal(payloads(t, got), payload) {
			t.Errorf("%s: payload differs", tt.name)
		}
		first := parsed(t, got[0])
		if first.Tuple.Src.Netip() != tt.from || first.Tuple.Dst.Netip() != tt.to {
			t.Errorf("%s: got tuple %v", tt.name, first.Tuple)
		}
		after := b.Counters()
		segments := int(after.RxSegments - before.RxSegments)
		if segments < tt.size/testMTU {
			t.Errorf("%s: crossed in %d segments, larger than the tunnel's MTU allows", tt.name, segments)
		}
		if len(got) > max(2, segments/2) { // the wire delivers in batches, but in what batches is its own matter
			t.Errorf("%s: %d segments came out in %d packets", tt.name, segments, len(got))
		}
	}
}

func TestNothingLeavesInPlaintext(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	seen := make(map[byte]int)
	var bad []string
	secret := "this must not be readable on the wire"
	net := overlaytest.New(overlaytest.Config{Tap: func(d overlaytest.Datagram) {
		mu.Lock()
		defer mu.Unlock()
		p := d.Payload
		if len(p) < 32 || p[0] < 1 || p[0] > 4 || p[1] != 0 || p[2] != 0 || p[3] != 0 {
			bad = append(bad, hex.EncodeToString(p))
		} else {
			seen[p[0]]++
		}
		if bytes.Contains(p, []byte(secret)) {
			bad = append(bad, "plaintext")
		}
	}})
	a, b := pair(t, net)
	for _, pkt := range [][]byte{
		udp(pod4(1), addr("10.0.3.1"), secret), udp(pod4(1), addr("8.8.8.8"), secret),
		udp(pod6(1), addr("2001:db8::1"), secret), udp(pod4(1), addr("192.0.2.99"), secret),
	} {
		if err := a.Send(pkt); !errors.Is(err, overlay.ErrNoPeer) {
			t.Errorf("send to stranger: got %v, want ErrNoPeer", err)
		}
	}
	a.send(t, udp(pod4(1), pod4(2), secret))
	b.in.waitN(t, "packet", 1)
	mu.Lock()
	defer mu.Unlock()
	if len(bad) > 0 || seen[1] == 0 || seen[2] == 0 || seen[4] == 0 {
		t.Errorf("types on the wire %v, foreign %q", seen, bad)
	}
	if got := a.Counters().Drops[overlay.DropNoPeer]; got != 4 {
		t.Errorf("got %d drops without peer, want 4", got)
	}
}

func TestApplyIsIdempotentAndKeepsSessions(t *testing.T) {
	t.Parallel()
	net := overlaytest.New(overlaytest.Config{})
	a, b, c := start(t, net, 1, nil), start(t, net, 2, nil), start(t, net, 3, nil)
	mesh(t, a, b, c)
	a.send(t, udp(pod4(1), pod4(2), "one"))
	b.in.waitN(t, "first packet", 1)
	settle(t, a, b, c)
	before := shakenAt(t, a, "n2")
	for range 3 {
		if err := a.Apply([]overlay.Peer{c.peer(), b.peer()}); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Apply([]overlay.Peer{b.peer()}); err != nil { // c goes
		t.Fatal(err)
	}
	if err := a.Send(udp(pod4(1), pod4(3), "x")); !errors.Is(err, overlay.ErrNoPeer) {
		t.Errorf("send to removed peer: got %v, want ErrNoPeer", err)
	}
	grown := b.peer()
	grown.AllowedIPs = append(grown.AllowedIPs, prefix("10.0.9.0/24"))
	if err := a.Apply([]overlay.Peer{grown, c.peer()}); err != nil {
		t.Fatal(err)
	}
	a.send(t, udp(pod4(1), addr("10.0.9.1"), "two"))
	b.in.waitN(t, "packet to new range", 1)
	if after := shakenAt(t, a, "n2"); !after.Equal(before) {
		t.Errorf("the session was renewed: handshake at %v, then %v", before, after)
	}
	want := []overlay.PeerStatus{{Peer: grown}, {Peer: c.peer()}}
	got, err := a.Peers()
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, cmpopts.EquateComparable(overlay.Key{}, netip.AddrPort{}, netip.Prefix{}),
		cmpopts.IgnoreFields(overlay.PeerStatus{}, "MTU", "LastHandshake", "RxBytes", "TxBytes"),
		cmpopts.SortSlices(func(a, b netip.Prefix) bool { return a.String() < b.String() })); d != "" {
		t.Errorf("peers (-want +got):\n%s", d)
	}
}

func shakenAt(t testing.TB, n *node, peer string) time.Time {
	t.Helper()
	peers, err := n.Peers()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range peers {
		if p.Node == peer {
			return p.LastHandshake
		}
	}
	t.Fatalf("%s has no peer %s", n.name, peer)
	return time.Time{}
}

func TestAllowedIPMoves(t *testing.T) {
	t.Parallel()
	net := overlaytest.New(overlaytest.Config{})
	a, b, c := start(t, net, 1, nil), start(t, net, 2, nil), start(t, net, 3, nil)
	mesh(t, a, b, c)
	swapped := []overlay.Peer{b.peer(), c.peer()}
	swapped[0].AllowedIPs, swapped[1].AllowedIPs = c.cidr, b.cidr
	if err := a.Apply(swapped); err != nil {
		t.Fatal(err)
	}
	a.send(t, udp(pod4(1), pod4(3), "to b now"))
	if got := b.in.waitN(t, "b's new range", 1); string(payloads(t, got)) != "to b now" {
		t.Errorf("got %q", payloads(t, got))
	}
	// All to c at once, and b has nothing left.
	all := c.peer()
	all.AllowedIPs = append(all.AllowedIPs, b.cidr...)
	bare := b.peer()
	bare.AllowedIPs = nil
	if err := a.Apply([]overlay.Peer{bare, all}); err != nil {
		t.Fatal(err)
	}
	a.send(t, udp(pod6(1), pod6(2), "to c"))
	if got := c.in.waitN(t, "c's new range", 1); string(payloads(t, got)) != "to c" {
		t.Errorf("got %q", payloads(t, got))
	}
}

// TestApplyReachesAnyState applies random sets of peers, one after the other,
// and looks each time at what the device really has.
func TestApplyReachesAnyState(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 1))
	a := start(t, overlaytest.New(overlaytest.Config{}), 1, nil)
	keys := make([]overlay.Key, 6)
	for i := range keys {
		keys[i] = newKey(t).Public()
	}
	for round := range 60 {
		var want []overlay.Peer
		for i, key := range keys {
			if rng.IntN(4) > 0 {
				want = append(want, overlay.Peer{
					Node: fmt.Sprint("n", i), PublicKey: key,
					Endpoint: netip.AddrPortFrom(addr("192.0.2.9"), uint16(1+rng.IntN(3))),
				})
			}
		}
		for i := range 12 {
			if o := rng.IntN(len(keys) + 2); o < len(want) {
				p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i / 4), byte(i % 4), 0}), 22+i%4)
				if i > 8 {
					p = netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, byte(i)}), 64)
				}
				if p = p.Masked(); !slicesHave(want, p) {
					want[o].AllowedIPs = append(want[o].AllowedIPs, p)
				}
			}
		}
		if err := a.Apply(want); err != nil {
			t.Fatalf("seed %d round %d: %v", seed, round, err)
		}
		got, err := a.Peers()
		if err != nil {
			t.Fatal(err)
		}
		wanted := make([]overlay.PeerStatus, len(want))
		for i, p := range want {
			wanted[i].Peer = p
		}
		if d := cmp.Diff(wanted, got, cmpopts.EquateComparable(overlay.Key{}, netip.AddrPort{}, netip.Prefix{}),
			cmpopts.IgnoreFields(overlay.PeerStatus{}, "MTU", "LastHandshake", "RxBytes", "TxBytes"), cmpopts.EquateEmpty(),
			cmpopts.SortSlices(func(a, b netip.Prefix) bool { return a.String() < b.String() })); d != "" {
			t.Fatalf("seed %d round %d (-want +got):\n%s", seed, round, d)
		}
	}
}

func slicesHave(peers []overlay.Peer, p netip.Prefix) bool {
	for _, q := range peers {
		if slices.Contains(q.AllowedIPs, p) {
			return true
		}
	}
	return false
}

func TestApplyRefusesNonsense(t *testing.T) {
	t.Parallel()
	a, b := pair(t, overlaytest.New(overlaytest.Config{}))
	twice, bare, self := b.peer(), b.peer(), a.peer()
	twice.Node = "n9"
	bare.Endpoint = netip.AddrPort{}
	link, zone := b.peer(), b.peer()
	link.Endpoint, zone.Endpoint = ports("[fe80::1]:51820"), ports("[2001:db8::1%eth0]:51820")
	for name, peers := range map[string][]overlay.Peer{
		"one key twice":      {b.peer(), twice},
		"no endpoint":        {bare},
		"link-local":         {link},
		"zone":               {zone},
		"itself":             {self},
		"invalid allowed IP": {{Node: "x", PublicKey: newKey(t).Public(), Endpoint: b.at, AllowedIPs: []netip.Prefix{{}}}},
		"range given twice":  {b.peer(), {Node: "x", PublicKey: newKey(t).Public(), Endpoint: b.at, AllowedIPs: b.cidr}},
	} {
		if err := a.Apply(peers); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	a.send(t, udp(pod4(1), pod4(2), "still there"))
	b.in.waitN(t, "packet after refused sets", 1)
}

func TestPeerReplaced(t *testing.T) {
	t.Parallel()
	net := overlaytest.New(overlaytest.Config{})
	a, b := pair(t, net)
	a.send(t, udp(pod4(1), pod4(2), "old"))
	b.in.waitN(t, "packet to the old", 1)
	// The node comes back with a new key at the same address.
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	reborn := start(t, net, 2, nil)
	mesh(t, a, reborn)
	a.send(t, udp(pod4(1), pod4(2), "new"))
	if got := reborn.in.waitN(t, "packet to the new", 1); string(payloads(t, got)) != "new" {
		t.Errorf("got %q", payloads(t, got))
	}
}

func TestRestartWithSameKey(t *testing.T) {
	t.Parallel()
	net := overlaytest.New(overlaytest.Config{})
	a, b := pair(t, net)
	a.send(t, udp(pod4(1), pod4(2), "before"))
	b.in.waitN(t, "packet before", 1)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	again := start(t, net, 2, func(c *overlay.WireGuardConfig) { c.Key = b.key })
	if err := again.Apply([]overlay.Peer{a.peer()}); err != nil {
		t.Fatal(err)
	}
	// Apply shook hands, so that a drops the session that b has lost: well
	// before the 15 s after which WireGuard notices by itself.
	got := eventually(t, "packet after", again.in, func() { a.send(t, udp(pod4(1), pod4(2), "after")) })
	if p := payloads(t, got[:1]); !strings.HasPrefix(string(p), "after") {
		t.Errorf("got %q", p)
	}
}

// eventually repeats try until something arrives.
func eventually(t testing.TB, what string, in *inbox, try func()) [][]byte {
	t.Helper()
	deadline := time.Now().Add(40 * time.Second)
	for time.Now().Before(deadline) {
		try()
		time.Sleep(2 * time.Millisecond)
		if got := in.take(); len(got) > 0 {
			return got
		}
	}
	t.Fatalf("%s: nothing arrived", what)
	return nil
}

func TestWrongKeyGetsNothing(t *testing.T) {
	t.Parallel()
	net := overlaytest.New(overlaytest.Config{})
	a, b := start(t, net, 1, nil), start(t, net, 2, nil)
	wrong := b.peer()
	wrong.PublicKey = newKey(t).Public() // not b's
	if err := a.Apply([]overlay.Peer{wrong}); err != nil {
		t.Fatal(err)
	}
	if err := b.Apply([]overlay.Peer{a.peer()}); err != nil {
		t.Fatal(err)
	}
	a.send(t, udp(pod4(1), pod4(2), "for somebody else"))
	if err := b.Send(udp(pod4(2), pod4(1), "to one who does not know me")); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond)
	if got := append(a.in.take(), b.in.take()...); len(got) > 0 {
		t.Errorf("got %d packets", len(got))
	}
}

func TestForeignSourceIsRefused(t *testing.T) {
	t.Parallel()
	a, b := pair(t, overlaytest.New(overlaytest.Config{}))
	a.send(t, udp(addr("10.0.7.7"), pod4(2), "not a's address"))
	a.send(t, udp(pod4(1), pod4(2), "a's address"))
	got := b.in.waitN(t, "honest packet", 1)
	if p := payloads(t, got); string(p) != "a's address" {
		t.Errorf("got %q", p)
	}
}

func TestEndpointFollowsStateOnly(t *testing.T) {
	t.Parallel()
	net := overlaytest.New(overlaytest.Config{})
	a := start(t, net, 1, nil)
	// b sends from 192.0.2.2, and is published under another of its addresses.
	b := start(t, net, 2, func(c *overlay.WireGuardConfig) { c.Wire = net.Wire(addr("192.0.2.2"), addr("192.0.2.22")) })
	b.at = ports("192.0.2.22:51820")
	mesh(t, a, b)
	b.send(t, udp(pod4(2), pod4(1), "hello"))
	a.in.waitN(t, "packet from another address", 1)
	endpoint := func() netip.AddrPort {
		peers, err := a.Peers()
		if err != nil {
			t.Fatal(err)
		}
		return peers[0].Endpoint
	}
	if got := endpoint(); got != b.at {
		t.Errorf("endpoint roamed to %s, want %s", got, b.at)
	}
	b.at = ports("192.0.2.2:51820")
	mesh(t, a, b)
	if got := endpoint(); got != b.at {
		t.Errorf("endpoint is %s, want %s", got, b.at)
	}
	a.send(t, udp(pod4(1), pod4(2), "moved"))
	b.in.waitN(t, "packet to the new endpoint", 1)
}

func TestQueueFull(t *testing.T) {
	t.Parallel()
	net := overlaytest.New(overlaytest.Config{})
	b := start(t, net, 2, nil)
	a := start(t, net, 1, func(c *overlay.WireGuardConfig) { c.QueueBytes = 4 * packet.MaxSize })
	// b does not know a yet, and does not answer.
	if err := a.Apply([]overlay.Peer{b.peer()}); err != nil {
		t.Fatal(err)
	}
	for range 200 {
		a.send(t, tcpSuper(pod4(1), pod4(2), 1, make([]byte, 30000), 1380))
	}
	c := a.Counters()
	full := int(c.Drops[overlay.DropNoSession]) // small: the older ones made room
	if full < 190 || full == 200 || c.TxPackets != 200 || c.TxSegments != 0 {
		t.Errorf("%d of 200 made room, counters %+v", full, c)
	}
	// What has waited comes, and first.
	mesh(t, b, a)
	a.send(t, udp(pod4(1), pod4(2), "after"))
	got := b.in.wait(t, "packet after the jam", func(got [][]byte) bool {
		return len(got) > 0 && parsed(t, got[len(got)-1]).Tuple.Proto == packet.ProtoUDP
	})
	if n := len(payloads(t, got)); n != (200-full)*30000+len("after") {
		t.Errorf("%d bytes came, want all that waited", n)
	}
}

// TestDeadPeersLeaveRoom: what waits for peers that are dead keeps nobody else
// from a first packet.
func TestDeadPeersLeaveRoom(t *testing.T) {
	t.Parallel()
	net := overlaytest.New(overlaytest.Config{})
	b := start(t, net, 9, nil)
	a := start(t, net, 1, func(c *overlay.WireGuardConfig) { c.QueueBytes = 4 * packet.MaxSize })
	peers := []overlay.Peer{b.peer()}
	for i := byte(2); i < 8; i++ {
		at := netip.AddrFrom4([4]byte{192, 0, 2, i})
		peers = append(peers, overlay.Peer{
			Node: "dead" + strconv.Itoa(int(i)), PublicKey: newKey(t).Public(), Endpoint: netip.AddrPortFrom(at, 1),
			AllowedIPs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, i, 0}), 24)},
		})
	}
	if err := a.Apply(peers); err != nil {
		t.Fatal(err)
	}
	for i := byte(2); i < 8; i++ {
		for range 500 {
			_ = a.Send(udp(pod4(1), pod4(i), strings.Repeat("x", 1000)))
		}
	}
	a.send(t, udp(pod4(1), pod4(9), "alive"))
	mesh(t, b, a)
	b.in.waitN(t, "packet for the one that lives", 1)
}

func TestMalformed(t *testing.T) {
	t.Parallel()
	a, b := pair(t, overlaytest.New(overlaytest.Config{}))
	a.send(t, udp(pod4(1), pod4(2), "session"))
	b.in.waitN(t, "session", 1)
	good := udp(pod4(1), pod4(2), "x")
	for name, buf := range map[string][]byte{
		"empty": nil, "header alone": good[:packet.VNetLen], "half an address": good[:packet.VNetLen+18],
		"version 0": make([]byte, 100), "too long": make([]byte, packet.MaxSize+1),
		"v6 cut": udp(pod6(1), pod6(2), "x")[:packet.VNetLen+30],
	} {
		if err := a.Send(buf); !errors.Is(err, overlay.ErrMalformed) {
			t.Errorf("%s: got %v, want ErrMalformed", name, err)
		}
	}
	if err := a.Send(good[:len(good)-1]); !errors.Is(err, overlay.ErrMalformed) {
		t.Errorf("the length lies: got %v, want ErrMalformed", err)
	}
	if err := a.Send(udp(pod4(1), pod4(2), strings.Repeat("x", testMTU))); !errors.Is(err, overlay.ErrTooBig) {
		t.Errorf("does not fit: got %v, want ErrTooBig", err)
	}
	a.send(t, good)
	if got := b.in.waitN(t, "good packet", 1); len(got) != 1 || !bytes.Equal(got[0], good) {
		t.Errorf("got %x", got)
	}
	c := a.Counters()
	if c.Drops[overlay.DropMalformed] != 7 || c.Drops[overlay.DropTooBig] != 1 {
		t.Errorf("drops %v", c.Drops)
	}
}

func TestLossyReorderingNetwork(t *testing.T) {
	t.Parallel()
	net := overlaytest.New(overlaytest.Config{Seed: 5, Reorder: 0.2})
	a, b := pair(t, net)
	a.send(t, udp(pod4(1), pod4(2), "first"))
	b.in.waitN(t, "first packet", 1)
	net.SetLoss(0.2)
	const n = 500
	for i := range n {
		a.send(t, udp(pod4(1), pod4(2), fmt.Sprintf("%04d", i)))
	}
	for sent := a.Counters(); sent.TxSegments < n+1; sent = a.Counters() {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(50 * time.Millisecond)
	net.SetLoss(0)
	seen := make(map[string]int)
	count := func(pkts [][]byte) {
		for _, pkt := range pkts {
			var s packet.Segmenter
			if f := s.Reset(pkt, 0); f != packet.FaultNone {
				t.Fatal(f)
			}
			buf := make([]byte, 2000)
			for range s.Count() {
				k, _ := s.Next(buf)
				seen[string(buf[28:k])]++
			}
		}
	}
	count(eventually(t, "anything", b.in, func() {}))
	for i := 0; seen["last"+strconv.Itoa(i)] == 0; {
		i++
		last := udp(pod4(1), pod4(2), "last"+strconv.Itoa(i))
		count(eventually(t, "last packet", b.in, func() { a.send(t, last) }))
	}
	if got := len(seen); got < n/2 || got > n*95/100 {
		t.Errorf("%d of %d arrived at 20 %% loss", got, n)
	}
	for s, times := range seen {
		if times > 1 && len(s) == len("0000") {
			t.Errorf("%q arrived %d times", s, times)
		}
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	// Not parallel: it counts goroutines.
	before := runtime.NumGoroutine()
	for _, net := range []*overlaytest.Network{overlaytest.New(overlaytest.Config{}), nil} {
		nodes := make([]*node, 2)
		for i := range nodes {
			nodes[i] = start(t, net, byte(i+1), func(c *overlay.WireGuardConfig) {
				if net == nil {
					c.ListenPort = 0
				}
			})
			if net == nil {
				port, err := nodes[i].Port()
				if err != nil {
					t.Fatal(err)
				}
				nodes[i].at = netip.AddrPortFrom(addr("127.0.0.1"), port)
			}
		}
		mesh(t, nodes...)
		nodes[0].send(t, udp(pod4(1), pod4(2), "x"))
		nodes[1].in.waitN(t, "packet", 1)
		for _, n := range nodes {
			if err := errors.Join(n.Close(), n.Close()); err != nil {
				t.Error(err)
			}
			if err := n.Send(udp(pod4(1), pod4(2), "x")); err == nil {
				t.Error("send after close: no error")
			}
			if err := n.Apply(nil); !errors.Is(err, overlay.ErrClosed) {
				t.Errorf("apply after close: %v", err)
			}
		}
	}
	deadline := time.Now().Add(5 * time.Second)
	for runtime.NumGoroutine() > before {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<16)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
		time.Sleep(time.Millisecond)
	}
}

func TestPortInUse(t *testing.T) {
	t.Parallel()
	net := overlaytest.New(overlaytest.Config{})
	start(t, net, 1, nil)
	before := runtime.NumGoroutine()
	_, err := overlay.NewWireGuard(overlay.WireGuardConfig{
		Key: newKey(t), ListenPort: overlay.DefaultPort, MTU: testMTU, Sink: func([][]byte) {}, Wire: net.Wire(addr("192.0.2.1")),
	})
	if err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("got %v, want an error that says in use (%d goroutines before)", err, before)
	}
}

func TestConfigValidate(t *testing.T) {
	t.Parallel()
	good := overlay.WireGuardConfig{Key: newKey(t), MTU: 1420, Sink: func([][]byte) {}}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*overlay.WireGuardConfig){
		"private key":  func(c *overlay.WireGuardConfig) { c.Key = overlay.PrivateKey{} },
		"mtu 100":      func(c *overlay.WireGuardConfig) { c.MTU = 100 },
		"mtu 70000":    func(c *overlay.WireGuardConfig) { c.MTU = 70000 },
		"sink":         func(c *overlay.WireGuardConfig) { c.Sink = nil },
		"queue of 10 ": func(c *overlay.WireGuardConfig) { c.QueueBytes = 10 },
	} {
		cfg := good
		change(&cfg)
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error about %q", err, want)
		}
	}
}
