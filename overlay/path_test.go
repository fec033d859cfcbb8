package overlay_test

import (
	"errors"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/overlay"
	"github.com/netctl/netctl/overlay/handshake"
	"github.com/netctl/netctl/overlay/overlaytest"
	sockets "github.com/netctl/netctl/overlay/udp"
)

// talk sends one small packet a second in both directions.
func talk(t *testing.T, a, b *node, seconds int) {
	t.Helper()
	for range seconds {
		a.send(t, udp(pod4(1), pod4(2), "talk"))
		b.send(t, udp(pod4(2), pod4(1), "talk"))
		time.Sleep(time.Second)
	}
	a.in.take()
	b.in.take()
}

// outer is what a link must carry for a packet of n bytes in a tunnel over IPv4.
func outer(n int) int { return n + 32 + 28 }

func TestPathBecomesNarrowAndWideAgain(t *testing.T) {
	inBubble(t, overlaytest.Config{}, func(t *testing.T, net *overlaytest.Network, _ *traffic, a, b *node) {
		if got := a.PathMTU(pod4(2)); got != testMTU {
			t.Fatalf("the largest packet is %d on a wide path", got)
		}
		const narrow = 1368
		net.SetMTU(outer(narrow))
		talk(t, a, b, 15)
		for _, n := range []*node{a, b} {
			peers, err := n.Peers()
			if err != nil {
				t.Fatal(err)
			}
			if got := peers[0].MTU; got > narrow || got < narrow-8 {
				t.Errorf("the largest packet is %d on a path that carries %d", got, narrow)
			}
		}
		mtu := a.PathMTU(pod4(2))
		if got := a.PathMTU(addr("10.99.0.1")); got != testMTU {
			t.Errorf("the largest packet to nobody is %d", got)
		}
		if err := a.Send(udp(pod4(1), pod4(2), string(make([]byte, mtu-28)))); err != nil {
			t.Errorf("the largest packet: %v", err)
		}
		b.in.waitN(t, "the largest packet", 1)
		if err := a.Send(udp(pod4(1), pod4(2), string(make([]byte, mtu-28+1)))); !errors.Is(err, overlay.ErrTooBig) {
			t.Errorf("a larger packet: %v", err)
		}
		// Connections that were made before go on with smaller segments.
		data := make([]byte, 40000)
		for i := range data {
			data[i] = byte(i / 251)
		}
		a.send(t, tcpSuper(pod4(1), pod4(2), 1, data, 1380))
		var got []byte
		b.in.wait(t, "a super-packet", func(pkts [][]byte) bool {
			got = payloads(t, pkts)
			return len(got) >= len(data)
		})
		if string(got) != string(data) {
			t.Error("something else came")
		}
		net.SetMTU(0)
		talk(t, a, b, 300)
		if got := a.PathMTU(pod4(2)); got != mtu {
			t.Errorf("what was found was given up after five minutes: %d, was %d", got, mtu)
		}
		talk(t, a, b, 600)
		if got := a.PathMTU(pod4(2)); got != testMTU {
			t.Errorf("the largest packet is %d long after the path became wide", got)
		}
	})
}

// A path too narrow even for the floor, and one on which nothing comes back, teach
// nothing.
func TestPathThatCannotBeKnown(t *testing.T) {
	inBubble(t, overlaytest.Config{}, func(t *testing.T, net *overlaytest.Network, c *traffic, a, b *node) {
		net.SetMTU(outer(700))
		talk(t, a, b, 140)
		if got := a.PathMTU(pod4(2)); got != testMTU {
			t.Errorf("the largest packet is %d, though no probe was answered", got)
		}
		net.SetMTU(0)
		time.Sleep(5 * time.Minute) // sessions end
		before := c.all.Load()
		time.Sleep(time.Hour)
		if got := c.all.Load() - before; got != 0 {
			t.Errorf("%d datagrams between nodes that have nothing to say", got)
		}
	})
}

// What the kernel has learnt from ICMP counts, down to the floor and as long as it
// says so.
func TestPathAsTheKernelBelieves(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ datagram, want int }{{1400, 1368}, {600, 1280}, {9000, testMTU}} {
		var wire *overlaytest.Wire
		net := overlaytest.New(overlaytest.Config{})
		a := start(t, net, 1, func(c *overlay.WireGuardConfig) {
			wire = net.Wire(addr("192.0.2.1"))
			wire.Believe(tt.datagram)
			c.Wire = wire
		})
		b := start(t, net, 2, nil)
		mesh(t, a, b)
		a.send(t, udp(pod4(1), pod4(2), "hello"))
		b.in.waitN(t, "packet", 1)
		until(t, "what the kernel believes", func() bool { return a.PathMTU(pod4(2)) == tt.want })
	}
}

// narrowWire says that it had to send in fragments what is longer than a limit.
type narrowWire struct {
	*overlaytest.Wire

	limit atomic.Int64
}

func (w *narrowWire) Send(buf []byte, size int, to netip.AddrPort) error {
	err := w.Wire.Send(buf, size, to)
	if err == nil && w.limit.Load() > 0 && size > int(w.limit.Load()) {
		return sockets.ErrNarrow
	}
	return err
}

func TestFragmentsBeginARound(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		net := overlaytest.New(overlaytest.Config{})
		wire := &narrowWire{Wire: net.Wire(addr("192.0.2.1"))}
		a := start(t, net, 1, func(c *overlay.WireGuardConfig) { c.Wire, c.Logger = wire, nil })
		b := start(t, net, 2, func(c *overlay.WireGuardConfig) { c.Logger = nil })
		mesh(t, a, b)
		a.send(t, udp(pod4(1), pod4(2), "hello"))
		b.in.waitN(t, "packet", 1)
		time.Sleep(20 * time.Second) // the round after the handshake
		wire.Believe(1400)
		wire.limit.Store(1400)
		big := tcpSuper(pod4(1), pod4(2), 1, make([]byte, 10000), 1380)
		a.send(t, big)
		time.Sleep(time.Second)
		if got := a.PathMTU(pod4(2)); got != 1368 {
			t.Errorf("the largest packet is %d after datagrams were cut", got)
		}
		if n := a.Counters().Drops[overlay.DropSend]; n != 0 {
			t.Errorf("%d pieces count as lost, though they went in fragments", n)
		}
		a.Close()
		b.Close()
	})
}

// Another path begins with the largest packet again.
func TestPathOfAnotherEndpoint(t *testing.T) {
	inBubble(t, overlaytest.Config{MTU: outer(1300)}, func(t *testing.T, _ *overlaytest.Network, _ *traffic, a, b *node) {
		if got := a.PathMTU(pod4(2)); got > 1300 || got < 1280 {
			t.Fatalf("the largest packet is %d", got)
		}
		moved := b.peer()
		moved.Endpoint = ports("198.51.100.7:51820")
		if err := a.Apply([]overlay.Peer{moved}); err != nil {
			t.Fatal(err)
		}
		if got := a.PathMTU(pod4(2)); got != testMTU {
			t.Errorf("the largest packet by another path is %d from the beginning", got)
		}
		if err := a.Apply(nil); err != nil {
			t.Fatal(err)
		}
	})
}

// WireGuard elsewhere does not know probes.
func TestPathOfAForeignPeer(t *testing.T) {
	t.Parallel()
	var probes atomic.Int64
	net := overlaytest.New(overlaytest.Config{Tap: func(d overlaytest.Datagram) {
		if d.From.Addr() == addr("192.0.2.1") && len(d.Payload) == testMTU+handshake.Overhead {
			probes.Add(1)
		}
	}})
	n, o := interop(t, net, nil)
	n.meet(t, o)
	exchange(t, n, o, "before")
	until(t, "a probe", func() bool { return probes.Load() > 0 })
	exchange(t, n, o, "after")
	if got := n.PathMTU(pod4(otherNode)); got != testMTU {
		t.Errorf("the largest packet is %d", got)
	}
	for _, p := range o.in.take() {
		t.Errorf("a probe came out: %x", p[packet.VNetLen:])
	}
}
