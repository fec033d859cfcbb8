package overlay_test

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/overlay"
	"github.com/netctl/netctl/overlay/handshake"
	"github.com/netctl/netctl/overlay/overlaytest"
)

// other is a wireguard-go device: what our engine must get along with. It is node
// 9, and speaks with node 1.
type other struct {
	dev *device.Device
	tun *tuntest.ChannelTUN
	key overlay.PrivateKey
	in  *inbox
}

const (
	otherNode = 9
	otherPort = 40009
)

func secretHex(t testing.TB, k overlay.PrivateKey) string {
	t.Helper()
	b := k.Secret()
	return hex.EncodeToString(b[:])
}

// startOther makes a device; extra are lines of the peer's configuration.
func startOther(t testing.TB, bind conn.Bind, peer overlay.Peer, extra ...string) *other {
	t.Helper()
	o := &other{tun: tuntest.NewChannelTUN(), key: newKey(t), in: newInbox()}
	o.dev = device.NewDevice(o.tun.TUN(), bind, device.NewLogger(device.LogLevelSilent, ""))
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case pkt := <-o.tun.Inbound:
				o.in.sink([][]byte{append(make([]byte, packet.VNetLen), pkt...)})
			case <-done:
				return
			}
		}
	}()
	t.Cleanup(func() {
		o.dev.Close()
		close(done)
		<-ended
	})
	lines := []string{
		"private_key=" + secretHex(t, o.key), fmt.Sprint("listen_port=", otherPort),
		"public_key=" + hex.EncodeToString(peer.PublicKey[:]), "endpoint=" + peer.Endpoint.String(),
	}
	for _, p := range peer.AllowedIPs {
		lines = append(lines, "allowed_ip="+p.String())
	}
	if err := o.dev.IpcSet(strings.Join(append(lines, extra...), "\n") + "\n"); err != nil {
		t.Fatal(err)
	}
	if err := o.dev.Up(); err != nil {
		t.Fatal(err)
	}
	return o
}

// peer is what our engine is told of it.
func (o *other) peer() overlay.Peer {
	return overlay.Peer{
		Node: "other", PublicKey: o.key.Public(), Endpoint: netip.AddrPortFrom(addr("192.0.2.9"), otherPort),
		AllowedIPs: []netip.Prefix{prefix("10.0.9.0/24")},
	}
}

// send gives it a packet without virtio-net header.
func (o *other) send(buf []byte) { o.tun.Outbound <- buf[packet.VNetLen:] }

// status reads a value of its one peer.
func (o *other) status(t testing.TB, key string) string {
	t.Helper()
	text, err := o.dev.IpcGet()
	if err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		if k, v, _ := strings.Cut(lines.Text(), "="); k == key {
			return v
		}
	}
	return ""
}

// interop is our engine, the other, and the wire between.
func interop(t testing.TB, net *overlaytest.Network, change func(*overlay.WireGuardConfig), extra ...string) (*node, *other) {
	t.Helper()
	n := start(t, net, 1, change)
	o := startOther(t, net.Bind(addr("192.0.2.9")), n.peer(), extra...)
	return n, o
}

// meet makes the other a peer of ours.
func (n *node) meet(t testing.TB, o *other) {
	t.Helper()
	if err := n.Apply([]overlay.Peer{o.peer()}); err != nil {
		t.Fatal(err)
	}
}

// exchange sends one packet in each direction, and waits for them.
func exchange(t testing.TB, n *node, o *other, what string) {
	t.Helper()
	// The other may lose what comes while two handshakes cross, as any network may:
	// it is said again, as a host would.
	stop := make(chan struct{})
	var again sync.WaitGroup
	again.Go(func() {
		for {
			_ = n.Send(udp(pod4(1), pod4(otherNode), what)) // not hearing it is the error
			select {
			case <-time.After(10 * time.Second): // rather than twice on a slow machine
			case <-stop:
				return
			}
		}
	})
	o.in.wait(t, what+": packet to the other", func(got [][]byte) bool { return strings.Contains(string(payloads(t, got)), what) })
	close(stop)
	again.Wait()
	o.send(udp(pod4(otherNode), pod4(1), what))
	n.in.wait(t, what+": packet from the other", func(got [][]byte) bool { return strings.Contains(string(payloads(t, got)), what) })
}

func TestInteropWeInitiate(t *testing.T) {
	t.Parallel()
	n, o := interop(t, overlaytest.New(overlaytest.Config{}), nil)
	n.meet(t, o)
	exchange(t, n, o, "hello")
	payload := randomBytes(60000)
	n.send(t, tcpSuper(pod4(1), pod4(otherNode), 1, payload, testMTU-40))
	got := o.in.wait(t, "super-packet", func(got [][]byte) bool { return len(payloads(t, got)) >= len(payload) })
	if !slices.Equal(payloads(t, got), payload) {
		t.Error("the other got another payload")
	}
	for i := 0; i < len(payload); i += testMTU - 40 {
		seg := payload[i:min(i+testMTU-40, len(payload))]
		o.send(tcpSuper(pod4(otherNode), pod4(1), uint32(i), seg, 60000))
	}
	// A checksum that says "partial" is wrong in an ordinary packet: nothing is merged, all passes.
	back := n.in.wait(t, "segments", func(got [][]byte) bool { return len(payloads(t, got)) >= len(payload) })
	if !slices.Equal(payloads(t, back), payload) {
		t.Error("we got another payload")
	}
}

func TestInteropTheOtherInitiates(t *testing.T) {
	t.Parallel()
	var began atomic.Bool
	net := overlaytest.New(overlaytest.Config{Tap: func(d overlaytest.Datagram) {
		if handshake.KindOf(d.Payload) == handshake.KindInitiation && d.From.Addr() == addr("192.0.2.1") {
			began.Store(true)
		}
	}})
	n, o := interop(t, net, nil)
	net.SetCut(addr("192.0.2.1"), addr("192.0.2.9"), true) // our greeting is lost
	n.meet(t, o)
	until(t, "our greeting", began.Load)
	net.SetCut(addr("192.0.2.1"), addr("192.0.2.9"), false)
	o.send(udp(pod4(otherNode), pod4(1), "first"))
	n.in.waitN(t, "packet", 1)
	exchange(t, n, o, "hello")
}

func TestInteropPSK(t *testing.T) {
	t.Parallel()
	psk := [32]byte(randomBytes(32))
	with := func(c *overlay.WireGuardConfig) { c.PSK = &psk }
	n, o := interop(t, overlaytest.New(overlaytest.Config{}), with, "preshared_key="+hex.EncodeToString(psk[:]))
	n.meet(t, o)
	exchange(t, n, o, "secret")

	n, o = interop(t, overlaytest.New(overlaytest.Config{}), with) // the other has none
	n.meet(t, o)
	n.send(t, udp(pod4(1), pod4(otherNode), "x"))
	o.send(udp(pod4(otherNode), pod4(1), "x"))
	time.Sleep(300 * time.Millisecond)
	if got := append(n.in.take(), o.in.take()...); len(got) > 0 {
		t.Errorf("%d packets crossed without the other knowing the key", len(got))
	}
}

// TestInteropRekey renews the session from both ends while packets flow.
func TestInteropRekey(t *testing.T) {
	t.Parallel()
	var count [5]atomic.Int64
	net := overlaytest.New(overlaytest.Config{Tap: func(d overlaytest.Datagram) {
		if k := handshake.KindOf(d.Payload); d.From.Addr() == addr("192.0.2.1") {
			count[k].Add(1)
		}
	}})
	n, o := interop(t, net, nil)
	n.meet(t, o)
	exchange(t, n, o, "before")
	before := count[handshake.KindInitiation].Load()
	n.Age(130 * time.Second) // past REKEY_AFTER_TIME, not past REJECT_AFTER_TIME
	exchange(t, n, o, "renewed by us")
	until(t, "we begin a handshake", func() bool { return count[handshake.KindInitiation].Load() == before+1 })
	exchange(t, n, o, "after it")

	answers := count[handshake.KindResponse].Load()
	p := o.dev.LookupPeer(device.NoisePublicKey(n.key.Public()))
	p.ExpireCurrentKeypairs()
	exchange2 := "renewed by the other"
	o.send(udp(pod4(otherNode), pod4(1), exchange2))
	n.in.waitN(t, exchange2, 1)
	until(t, "we answer", func() bool { return count[handshake.KindResponse].Load() > answers })
	exchange(t, n, o, "after that")

	n.Age(200 * time.Second) // everything is over
	exchange(t, n, o, "from nothing")
	if slots, found, flying := n.SlotsInUse(); slots > 3 || found > 3 || flying > 0 {
		t.Errorf("%d slots in use, %d sessions, %d handshakes under way", slots, found, flying)
	}
}

func until(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(40 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: it did not come about", what)
		}
	}
}

func TestInteropRoaming(t *testing.T) {
	t.Parallel()
	net := overlaytest.New(overlaytest.Config{})
	n, o := interop(t, net, func(c *overlay.WireGuardConfig) {
		c.Roaming = true
		c.Wire = net.Wire(addr("192.0.2.1"))
	})
	wrong := o.peer()
	wrong.Endpoint = ports("192.0.2.77:1")
	if err := n.Apply([]overlay.Peer{wrong}); err != nil {
		t.Fatal(err)
	}
	o.send(udp(pod4(otherNode), pod4(1), "here I am")) // we learn from it where it is
	n.in.waitN(t, "packet", 1)
	exchange(t, n, o, "roamed")
	peers, err := n.Peers()
	if err != nil || peers[0].Endpoint != o.peer().Endpoint {
		t.Errorf("endpoint %v, %v, want %v", peers, err, o.peer().Endpoint)
	}
	// And the other follows us, as it does.
	if got := o.status(t, "endpoint"); got != n.at.String() {
		t.Errorf("the other believes us at %s, want %s", got, n.at)
	}
}

func TestInteropCookieFromUs(t *testing.T) {
	t.Parallel()
	var cookies, initiations atomic.Int64
	net := overlaytest.New(overlaytest.Config{Tap: func(d overlaytest.Datagram) {
		k := handshake.KindOf(d.Payload)
		if k == handshake.KindCookie {
			cookies.Add(1)
		}
		if k == handshake.KindInitiation {
			initiations.Add(1)
		}
	}})
	n, o := interop(t, net, nil)
	n.Load(time.Hour)
	o.send(udp(pod4(otherNode), pod4(1), "under load"))
	until(t, "a cookie", func() bool { return cookies.Load() == 1 })
	if peers, err := n.Peers(); err != nil || len(peers) != 0 {
		t.Fatal(peers, err)
	}
	before := initiations.Load()
	n.meet(t, o)
	p := o.dev.LookupPeer(device.NoisePublicKey(n.key.Public()))
	time.Sleep(50 * time.Millisecond) // it takes the cookie
	p.ExpireCurrentKeypairs()         // and tries again at once
	if err := p.SendHandshakeInitiation(false); err != nil {
		t.Fatal(err)
	}
	n.in.waitN(t, "packet", 1)
	if initiations.Load() == before {
		t.Error("no second initiation")
	}
}

func TestInteropCookieFromTheOther(t *testing.T) {
	t.Parallel()
	var cookies, loaded, proven atomic.Int64
	net := overlaytest.New(overlaytest.Config{Tap: func(d overlaytest.Datagram) {
		switch k := handshake.KindOf(d.Payload); {
		case k == handshake.KindCookie && d.To.Addr() == addr("192.0.2.1"):
			cookies.Add(1)
		case k == handshake.KindCookie:
			loaded.Add(1)
		case k == handshake.KindInitiation && d.From.Addr() == addr("192.0.2.1") && [16]byte(d.Payload[132:]) != [16]byte{}:
			proven.Add(1)
		}
	}})
	n, o := interop(t, net, nil)
	// A flood from elsewhere that knows the other's public key.
	stop := make(chan struct{})
	var flood sync.WaitGroup
	flood.Go(func() {
		signer := handshake.NewSigner(o.key.Public())
		msg := make([]byte, handshake.InitiationSize)
		msg[0] = byte(handshake.KindInitiation)
		copy(msg[8:], randomBytes(108))
		signer.Sign(msg, time.Now())
		for {
			for range 400 { // the device is under load with 128 waiting, and for a second after
				net.Inject(overlaytest.Datagram{From: ports("198.51.100.1:1"), To: o.peer().Endpoint, Payload: msg})
			}
			select {
			case <-stop:
				return
			case <-time.After(300 * time.Millisecond):
			}
		}
	})
	until(t, "load", func() bool { return loaded.Load() > 0 })
	n.meet(t, o)
	n.send(t, udp(pod4(1), pod4(otherNode), "through the flood"))
	until(t, "a cookie for us", func() bool { return cookies.Load() > 0 })
	until(t, "an initiation that proves our address", func() bool { return proven.Load() > 0 })
	close(stop)
	flood.Wait()
	o.in.waitN(t, "packet", 1)
}

// TestInteropKeepalive: who receives and has nothing to say sends an empty
// packet, so that the sender knows it is heard.
func TestInteropKeepalive(t *testing.T) {
	t.Parallel()
	var empty atomic.Int64
	net := overlaytest.New(overlaytest.Config{Tap: func(d overlaytest.Datagram) {
		if len(d.Payload) == handshake.KeepaliveSize && d.From.Addr() == addr("192.0.2.1") {
			empty.Add(1)
		}
	}})
	n, o := interop(t, net, nil, "persistent_keepalive_interval=1")
	n.meet(t, o)
	exchange(t, n, o, "hello")
	rx := o.status(t, "tx_bytes")
	until(t, "the other's keepalives", func() bool { return o.status(t, "tx_bytes") != rx })
	before := empty.Load()
	if testing.Short() {
		t.Skip("takes 10 s")
	}
	until(t, "our keepalive", func() bool { return empty.Load() > before })
	if got := n.in.take(); len(got) > 0 {
		t.Errorf("keepalives came out as %d packets", len(got))
	}
}

func TestInteropLossAndReordering(t *testing.T) {
	t.Parallel()
	net := overlaytest.New(overlaytest.Config{Seed: 7, Reorder: 0.3})
	n, o := interop(t, net, nil)
	n.meet(t, o)
	exchange(t, n, o, "hello")
	net.SetLoss(0.1)
	const count = 400
	for i := range count {
		n.send(t, udp(pod4(1), pod4(otherNode), fmt.Sprintf("%04d", i)))
		o.send(udp(pod4(otherNode), pod4(1), fmt.Sprintf("%04d", i)))
	}
	net.SetLoss(0)
	time.Sleep(50 * time.Millisecond)
	for name, in := range map[string]*inbox{"the other": o.in, "we": n.in} {
		seen := map[string]int{}
		for _, pkt := range in.take() {
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
		if len(seen) < count*3/4 || len(seen) > count {
			t.Errorf("%s got %d of %d", name, len(seen), count)
		}
		for what, times := range seen {
			if times > 1 {
				t.Errorf("%s got %q %d times", name, what, times)
			}
		}
	}
}

// TestInteropReplay repeats every datagram of a conversation: nothing comes out
// twice, and no handshake is answered twice.
func TestInteropReplay(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var seen []overlaytest.Datagram
	net := overlaytest.New(overlaytest.Config{Tap: func(d overlaytest.Datagram) {
		mu.Lock()
		defer mu.Unlock()
		d.Payload = slices.Clone(d.Payload)
		seen = append(seen, d)
	}})
	n, o := interop(t, net, nil)
	o.send(udp(pod4(otherNode), pod4(1), "nobody listens yet"))
	n.meet(t, o)
	exchange(t, n, o, "once")
	mu.Lock()
	again := slices.Clone(seen)
	mu.Unlock()
	before := n.Counters()
	for _, d := range again {
		if d.To == n.at {
			net.Inject(d)
		}
	}
	o.send(udp(pod4(otherNode), pod4(1), "last"))
	n.in.wait(t, "last packet", func(got [][]byte) bool { return string(payloads(t, got)) == "last" })
	after := n.Counters()
	if after.Drops[overlay.DropForeign] == before.Drops[overlay.DropForeign] {
		t.Error("no replay was counted")
	}
	if got := after.RxSegments - before.RxSegments; got != 1 {
		t.Errorf("%d packets came out, want 1", got)
	}
}
