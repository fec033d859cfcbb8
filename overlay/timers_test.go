package overlay_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/netctl/netctl/overlay"
	"github.com/netctl/netctl/overlay/handshake"
	"github.com/netctl/netctl/overlay/overlaytest"
	sockets "github.com/netctl/netctl/overlay/udp"
)

// Timers run on the bubble's clock here: hours pass in milliseconds.

// traffic counts what two nodes say to each other.
type traffic struct {
	initiations, responses, keepalives, all atomic.Int64
	recorded                                sync.Map // the last handshake message by receiver and kind
}

type record struct {
	to   netip.AddrPort
	kind handshake.Kind
}

func (c *traffic) tap(d overlaytest.Datagram) {
	c.all.Add(1)
	switch k := handshake.KindOf(d.Payload); {
	case k == handshake.KindInitiation:
		c.initiations.Add(1)
	case k == handshake.KindResponse:
		c.responses.Add(1)
	case len(d.Payload) == handshake.KeepaliveSize:
		c.keepalives.Add(1)
	}
	if k := handshake.KindOf(d.Payload); k != handshake.KindTransport {
		d.Payload = append([]byte(nil), d.Payload...)
		c.recorded.Store(record{d.To, k}, d)
	}
}

// inBubble runs a test with two nodes that have a session.
func inBubble(t *testing.T, cfg overlaytest.Config, test func(t *testing.T, net *overlaytest.Network, c *traffic, a, b *node)) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := new(traffic)
		cfg.Tap = c.tap
		net := overlaytest.New(cfg)
		quiet := func(c *overlay.WireGuardConfig) { c.Logger = nil }
		a, b := start(t, net, 1, quiet), start(t, net, 2, quiet)
		mesh(t, a, b)
		a.send(t, udp(pod4(1), pod4(2), "first"))
		b.in.waitN(t, "first packet", 1)
		time.Sleep(20 * time.Second) // what follows a handshake
		test(t, net, c, a, b)
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestPassiveKeepalive(t *testing.T) {
	inBubble(t, overlaytest.Config{}, func(t *testing.T, _ *overlaytest.Network, c *traffic, a, b *node) {
		before, began := c.keepalives.Load(), c.initiations.Load()
		a.send(t, udp(pod4(1), pod4(2), "no answer"))
		time.Sleep(9 * time.Second)
		if n := c.keepalives.Load() - before; n != 0 {
			t.Errorf("%d keepalives before their time", n)
		}
		time.Sleep(21 * time.Second)
		if n := c.keepalives.Load() - before; n != 1 {
			t.Errorf("%d keepalives, want 1: keepalives are not answered", n)
		}
		if n := c.initiations.Load() - began; n != 0 {
			t.Errorf("%d handshakes with a peer that is there", n)
		}
		// An answer makes the keepalive unnecessary.
		a.send(t, udp(pod4(1), pod4(2), "question"))
		time.Sleep(time.Second)
		b.send(t, udp(pod4(2), pod4(1), "answer"))
		time.Sleep(30 * time.Second)
		if n := c.keepalives.Load() - before; n != 2 { // a's, for the answer
			t.Errorf("%d keepalives, want 2", n)
		}
	})
}

func TestSilentPeerIsAskedForAHandshake(t *testing.T) {
	inBubble(t, overlaytest.Config{}, func(t *testing.T, net *overlaytest.Network, c *traffic, a, b *node) {
		net.SetCut(b.at.Addr(), a.at.Addr(), true)
		began := c.initiations.Load()
		a.send(t, udp(pod4(1), pod4(2), "heard, but the answer is lost"))
		time.Sleep(14 * time.Second)
		if n := c.initiations.Load() - began; n != 0 {
			t.Errorf("%d handshakes before the peer counts as silent", n)
		}
		time.Sleep(2 * time.Second)
		if n := c.initiations.Load() - began; n != 1 {
			t.Errorf("%d handshakes, want 1", n)
		}
		net.SetCut(b.at.Addr(), a.at.Addr(), false)
		time.Sleep(6 * time.Second)
		a.send(t, udp(pod4(1), pod4(2), "well again"))
		b.in.wait(t, "packet", func(got [][]byte) bool { return strings.Contains(string(payloads(t, got)), "well again") })
	})
}

// TestHourOfTraffic: sessions are renewed while packets flow; none is lost, and
// there is one handshake per renewal and not one from each end.
func TestHourOfTraffic(t *testing.T) {
	inBubble(t, overlaytest.Config{Delay: 5 * time.Millisecond}, func(t *testing.T, _ *overlaytest.Network, c *traffic, a, b *node) {
		began := c.initiations.Load()
		atA, atB := a.Counters().RxSegments, b.Counters().RxSegments
		const seconds = 3600
		for i := range seconds {
			a.send(t, udp(pod4(1), pod4(2), strconv.Itoa(i)))
			b.send(t, udp(pod4(2), pod4(1), strconv.Itoa(i)))
			time.Sleep(time.Second)
			a.in.take()
			b.in.take()
		}
		time.Sleep(time.Second)
		if gotA, gotB := a.Counters().RxSegments-atA, b.Counters().RxSegments-atB; gotA != seconds || gotB != seconds {
			t.Errorf("%d and %d packets came, want %d each", gotA, gotB, seconds)
		}
		if n := c.initiations.Load() - began; n < seconds/130 || n > seconds/120+1 {
			t.Errorf("%d handshakes in an hour, want one per 120 to 130 s", n)
		}
		for _, n := range []*node{a, b} {
			if slots, found, flying := n.SlotsInUse(); slots > 3 || found != slots || flying != 0 {
				t.Errorf("%s: %d slots in use, %d sessions, %d handshakes under way", n.name, slots, found, flying)
			}
		}
	})
}

func TestIdleSessionsAreWiped(t *testing.T) {
	inBubble(t, overlaytest.Config{}, func(t *testing.T, _ *overlaytest.Network, c *traffic, a, b *node) {
		time.Sleep(200 * time.Second)
		before := c.all.Load()
		for _, n := range []*node{a, b} {
			if slots, found, flying := n.SlotsInUse(); slots+found+flying != 0 {
				t.Errorf("%s: %d slots in use, %d sessions, %d handshakes under way after the session's end", n.name, slots, found, flying)
			}
		}
		time.Sleep(time.Hour)
		if n := c.all.Load() - before; n != 0 {
			t.Errorf("%d datagrams while nobody had anything to say", n)
		}
		a.send(t, udp(pod4(1), pod4(2), "good morning"))
		b.send(t, udp(pod4(2), pod4(1), "good morning"))
		a.in.waitN(t, "packet", 1)
		b.in.waitN(t, "packet", 1)
	})
}

func TestAttemptsEnd(t *testing.T) {
	inBubble(t, overlaytest.Config{}, func(t *testing.T, net *overlaytest.Network, c *traffic, a, b *node) {
		time.Sleep(200 * time.Second) // the session is over
		net.SetCut(a.at.Addr(), b.at.Addr(), true)
		began := c.initiations.Load()
		for range 3 {
			a.send(t, udp(pod4(1), pod4(2), "nobody there"))
		}
		time.Sleep(89 * time.Second)
		if n := c.initiations.Load() - began; n < 15 || n > 18 {
			t.Errorf("%d attempts in 89 s, want one per 5 to 5.3 s", n)
		}
		if a.Held() == 0 {
			t.Error("nothing waits any more")
		}
		time.Sleep(10 * time.Second)
		if held, drops := a.Held(), a.Counters().Drops[overlay.DropNoSession]; held != 0 || drops != 3 {
			t.Errorf("%d bytes wait, %d dropped, want 0 and 3", held, drops)
		}
		n := c.initiations.Load()
		time.Sleep(time.Hour)
		if again := c.initiations.Load() - n; again != 0 {
			t.Errorf("%d attempts after the end", again)
		}
		if slots, _, flying := a.SlotsInUse(); slots+flying != 0 {
			t.Errorf("%d slots in use, %d handshakes under way", slots, flying)
		}
		net.SetCut(a.at.Addr(), b.at.Addr(), false)
		a.send(t, udp(pod4(1), pod4(2), "there again"))
		b.in.waitN(t, "packet", 1)
	})
}

// TestBothBeginAtOnce: two nodes that learn of each other at the same moment
// have a session after one round trip, and lose nothing.
func TestBothBeginAtOnce(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			const delay = 20 * time.Millisecond
			net := overlaytest.New(overlaytest.Config{Seed: seed, Delay: delay, Reorder: 0.2})
			quiet := func(c *overlay.WireGuardConfig) { c.Logger = nil }
			a, b := start(t, net, 1, quiet), start(t, net, 2, quiet)

			mesh(t, a, b)
			began := time.Now()
			for i := range 20 {
				a.send(t, udp(pod4(1), pod4(2), fmt.Sprintf("%02d", i)))
				b.send(t, udp(pod4(2), pod4(1), fmt.Sprintf("%02d", i)))
				time.Sleep(delay / 5)
			}
			for _, n := range []*node{a, b} {
				until(t, "all packets", func() bool { return n.Counters().RxSegments == 20 })
			}
			if took := time.Since(began); took > 8*delay {
				t.Errorf("all packets came after %v", took)
			}
			for _, n := range []*node{a, b} {
				if err := n.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestFirstPeerIsLate: one end greets before the other knows it.
func TestFirstPeerIsLate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := new(traffic)
		net := overlaytest.New(overlaytest.Config{Tap: c.tap})
		quiet := func(c *overlay.WireGuardConfig) { c.Logger = nil }
		a, b := start(t, net, 1, quiet), start(t, net, 2, quiet)
		if err := a.Apply([]overlay.Peer{b.peer()}); err != nil {
			t.Fatal(err)
		}
		a.send(t, udp(pod4(1), pod4(2), "early"))
		time.Sleep(500 * time.Millisecond)
		if err := b.Apply([]overlay.Peer{a.peer()}); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		b.in.waitN(t, "packet that waited", 1)
		if took := time.Since(began); took > time.Second {
			t.Errorf("it came after %v", took)
		}
		for _, n := range []*node{a, b} {
			if err := n.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestOrderAcrossTheWait: what one caller sends leaves in order, also
// across the wait for a handshake.
func TestOrderAcrossTheWait(t *testing.T) {
	inBubble(t, overlaytest.Config{Delay: time.Millisecond}, func(t *testing.T, _ *overlaytest.Network, _ *traffic, a, b *node) {
		for range 5 {
			time.Sleep(200 * time.Second)
			b.in.take()
			for i := range 50 {
				a.send(t, udp(pod4(1), pod4(2), fmt.Sprintf("%03d", i)))
				time.Sleep(100 * time.Microsecond)
			}
			time.Sleep(time.Second)
			var want strings.Builder
			for i := range 50 {
				fmt.Fprintf(&want, "%03d", i)
			}
			if got := string(payloads(t, b.in.take())); got != want.String() {
				t.Errorf("got %q", got)
			}
		}
	})
}

// TestSilentPeerAndFullSocket: a packet that the socket had no room for counts
// as sent, or a peer that is dead would never be asked for a handshake.
func TestSilentPeerAndFullSocket(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := new(traffic)
		net := overlaytest.New(overlaytest.Config{Tap: c.tap})
		wire := net.Wire(addr("192.0.2.1"))
		a := start(t, net, 1, func(c *overlay.WireGuardConfig) { c.Wire, c.Logger = wire, nil })
		b := start(t, net, 2, func(c *overlay.WireGuardConfig) { c.Logger = nil })
		mesh(t, a, b)
		a.send(t, udp(pod4(1), pod4(2), "first"))
		b.in.waitN(t, "first packet", 1)
		time.Sleep(20 * time.Second)
		began := c.initiations.Load()
		net.SetCut(addr("192.0.2.2"), addr("192.0.2.1"), true) // or it would answer probes
		wire.Fail(sockets.ErrBusy)
		if err := a.Send(udp(pod4(1), pod4(2), "no room")); !errors.Is(err, overlay.ErrFull) {
			t.Errorf("got %v, want ErrFull", err)
		}
		wire.Fail(nil)
		time.Sleep(16 * time.Second)
		if n := c.initiations.Load() - began; n != 1 {
			t.Errorf("%d handshakes, want 1", n)
		}
		for _, n := range []*node{a, b} {
			if err := n.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestRecordedInitiation: one that was heard before the peer was removed is not
// answered after it came back.
func TestRecordedInitiation(t *testing.T) {
	inBubble(t, overlaytest.Config{}, func(t *testing.T, net *overlaytest.Network, c *traffic, a, b *node) {
		c.recorded.Clear()
		time.Sleep(200 * time.Second) // the session is over
		b.send(t, udp(pod4(2), pod4(1), "record me"))
		a.in.waitN(t, "packet", 1)
		time.Sleep(20 * time.Second)
		v, _ := c.recorded.Load(record{a.at, handshake.KindInitiation})
		d, ok := v.(overlaytest.Datagram)
		if !ok {
			t.Fatal("no initiation")
		}
		for _, peers := range [][]overlay.Peer{nil, {b.peer()}} {
			if err := a.Apply(peers); err != nil {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Second)
		}
		before := c.responses.Load()
		net.Inject(d)
		time.Sleep(time.Second)
		if n := c.responses.Load() - before; n != 0 {
			t.Errorf("%d answers", n)
		}
	})
}

// TestNoSlots: without room for sessions there is an attempt per second, not per
// packet; with room there is a session again.
func TestNoSlots(t *testing.T) {
	inBubble(t, overlaytest.Config{}, func(t *testing.T, _ *overlaytest.Network, c *traffic, a, b *node) {
		time.Sleep(200 * time.Second) // the session is over
		began := c.initiations.Load()
		release := a.Fill()
		refused := 0
		for range 100 {
			if a.Send(udp(pod4(1), pod4(2), "no room")) != nil {
				refused++
			}
			time.Sleep(time.Millisecond)
		}
		if refused < 90 || a.Held() != 0 || c.initiations.Load() != began {
			t.Errorf("%d of 100 refused, %d bytes wait", refused, a.Held())
		}
		release()
		time.Sleep(2 * time.Second)
		a.send(t, udp(pod4(1), pod4(2), "room"))
		b.in.waitN(t, "packet", 1)
	})
}
