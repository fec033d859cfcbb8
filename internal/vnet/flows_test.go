package vnet_test

import (
	"testing"

	"github.com/netctl/netctl/internal/flow"
	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/internal/vnet"
)

// each runs f in a cluster of its own for both families.
func each(t *testing.T, cfg vnet.Config, f func(*testing.T, *vnet.Cluster, vnet.Family)) {
	t.Helper()
	for _, fam := range vnet.Families() {
		t.Run(fam.String(), func(t *testing.T) {
			t.Parallel()
			c := vnet.New(t, cfg)
			cluster(c)
			f(t, c, fam)
		})
	}
}

// take returns the one packet that the port got.
func take(t *testing.T, c *vnet.Cluster, name string) *packet.Packet {
	t.Helper()
	got := c.Port(name).Take()
	if len(got) != 1 {
		t.Fatalf("%s got %d packets, want one; drops: %v", name, len(got), c.Drops())
	}
	return got[0]
}

// rejudged returns how often a node judged flows again.
func rejudged(c *vnet.Cluster, node string) uint64 {
	sum := c.Node(node).Router.Counters()
	return sum.Rejudged
}

func TestTwoServicesOneBackendOneClientPort(t *testing.T) {
	t.Parallel()
	each(t, vnet.Config{}, func(t *testing.T, c *vnet.Cluster, f vnet.Family) {
		c.Play(f, `
			a -> tcp a:1000 > web:80 flags=S
			b <- tcp a:1000 > b:8080 flags=S`)
		used := map[uint16]bool{1000: true}
		for _, dst := range []string{"web2:80", "b:8080"} {
			a, b := c.Port("a"), c.Port("b")
			a.Send(c.Build(f, "tcp a:1000 > "+dst+" flags=S"))
			c.Settle()
			syn := take(t, c, "b")
			if used[syn.Tuple.SrcPort] {
				t.Fatalf("%s: source port %d is another connection's", dst, syn.Tuple.SrcPort)
			}
			used[syn.Tuple.SrcPort] = true
			reply := syn.Tuple.Reverse()
			b.Send(c.BuildTuple(reply, "flags=SA"))
			c.Settle()
			if got, want := c.Text(take(t, c, "a")), "tcp "+dst+" > a:1000"; got[:len(want)] != want {
				t.Errorf("reply of %s came as %q", dst, got)
			}
		}
		c.Play(f, `
			b -> tcp b:8080 > a:1000 flags=SA
			a <- tcp web:80 > a:1000 flags=SA`)
	})
}

func TestEchoesOfOneIdentifierAreOneFlow(t *testing.T) {
	t.Parallel()
	each(t, vnet.Config{}, func(t *testing.T, c *vnet.Cluster, f vnet.Family) {
		c.Play(f, `
			a -> echo a > b id=5
			b <- echo a > b id=5
			a -> echo a > b id=5
			b <- echo a > b id=5
			b -> reply b > a id=5
			a <- reply b > a id=5
			b -> echo b > a id=5
			a <- echo b > a id=5`)
		if n := c.Node("n1").Flows.Len(); n != 2 {
			t.Errorf("%d flows, want one for each side's echoes", n)
		}
	})
}

func TestFragmentsFollowTheFirst(t *testing.T) {
	t.Parallel()
	each(t, vnet.Config{}, func(t *testing.T, c *vnet.Cluster, f vnet.Family) {
		for _, dst := range []string{"b:53", "web:80"} {
			whole := c.Build(f, "udp a:1000 > "+dst+" len=3000")
			parts := vnet.Split(whole, 1200, 77)
			a := c.Port("a")
			a.Send(parts[2])
			a.Send(vnet.Split(whole, 1200, 78)[1:]...)
			c.Settle()
			if got := c.Port("b").Take(); len(got) != 0 {
				t.Fatalf("%s: orphans went on: %s", dst, c.Text(got[0]))
			}
			a.Send(parts...)
			c.Settle()
			got := c.Port("b").Take()
			if len(got) != len(parts) {
				t.Fatalf("%s: %d fragments came, want %d", dst, len(got), len(parts))
			}
			for i, p := range got {
				if p.Tuple.Src.Netip() != c.Addr(f, "a") || p.Tuple.Dst.Netip() != c.Addr(f, "b") || p.FragOffset != i*1200 {
					t.Errorf("%s: fragment %d is %s", dst, i, c.Text(p))
				}
			}
			if err := vnet.CheckJoined(got); err != nil {
				t.Errorf("%s: put together: %v", dst, err)
			}
		}
		c.Advance(60)
		c.Port("a").Send(vnet.Split(c.Build(f, "udp a:1000 > b:53 len=3000"), 1200, 77)[1])
		c.Settle()
		if got := c.Port("b").Take(); len(got) != 0 {
			t.Error("a fragment followed a first one of a minute ago")
		}
		if n := c.Drops()["n1"]["fragment"]; n != 7 {
			t.Errorf("%d fragments dropped, want 7", n)
		}
	})
}

func TestTooBigIsCutWhereThatIsAllowed(t *testing.T) {
	t.Parallel()
	c := vnet.New(t, vnet.Config{})
	cluster(c)
	c.Port("a").Send(c.Build(vnet.V4, "udp a:1000 > web:80 len=3000"))
	c.Settle()
	got := c.Port("b").Take()
	if len(got) != 3 {
		t.Fatalf("%d fragments, want 3; drops: %v", len(got), c.Drops())
	}
	if err := vnet.CheckJoined(got); err != nil {
		t.Error(err)
	}
	c.Play(vnet.V6, `
		a -> udp a:1000 > web:80 len=3000
		a <- too-big router.n1 > a mtu=1420
		n1 drops too_big`)
}

func TestPeerWithoutKeyFailsClosed(t *testing.T) {
	t.Parallel()
	each(t, vnet.Config{}, func(t *testing.T, c *vnet.Cluster, f vnet.Family) {
		c.Play(f, `
			a -> tcp a:1000 > b:80 flags=S
			b <- tcp a:1000 > b:80 flags=S`)
		c.ChangeNode("n2", func(n *model.Node) { n.PublicKey = "" })
		c.Sent("n1")
		c.Play(f, `
			a -> tcp a:1000 > b:80 flags=A data=secret
			a <- unreach-host router.n1 > a
			a -> udp a:1000 > b:53 data=secret
			a <- unreach-host router.n1 > a
			a -> udp a:1000 > web:80 data=secret
			a <- unreach-host router.n1 > a
			a -> udp a:1000 > n2:53 data=secret
			a <- unreach-host router.n1 > a
			n1 -> udp n1:1000 > b:53 data=secret
			n1 <- unreach-host router.n1 > n1
			n1 drops peer_unready 5`)
		if sent := c.Sent("n1"); len(sent) != 0 {
			t.Errorf("%d datagrams left for a node without a key", len(sent))
		}
	})
}

func TestUnderlayShowsNothingButWireGuard(t *testing.T) {
	t.Parallel()
	each(t, vnet.Config{}, func(t *testing.T, c *vnet.Cluster, f vnet.Family) {
		c.Play(f, `
			a -> udp a:1000 > b:53 data=secretsecretsecret
			b <- udp a:1000 > b:53 data=secretsecretsecret
			n1 -> udp n1:1000 > web:80 data=secretsecretsecret
			b <- udp n1:1000 > b:8080 data=secretsecretsecret`)
		sent := c.Sent("n1")
		if len(sent) < 2 {
			t.Errorf("%d datagrams on the underlay, want at least two", len(sent))
		}
		for _, d := range sent {
			// The four messages of WireGuard, each with three zero bytes.
			if len(d) < 4 || d[0] < 1 || d[0] > 4 || d[1] != 0 || d[2] != 0 || d[3] != 0 {
				t.Errorf("a datagram that is no WireGuard message: %x", d)
			}
			if contains(d, "secret") {
				t.Errorf("plaintext on the underlay: %x", d)
			}
		}
	})
}

func contains(b []byte, s string) bool {
	for i := 0; i+len(s) <= len(b); i++ {
		if string(b[i:i+len(s)]) == s {
			return true
		}
	}
	return false
}

func TestRemovedNodeFailsClosed(t *testing.T) {
	t.Parallel()
	each(t, vnet.Config{}, func(t *testing.T, c *vnet.Cluster, f vnet.Family) {
		c.Play(f, `
			a -> tcp a:1000 > b:80 flags=S
			b <- tcp a:1000 > b:80 flags=S
			a -> udp a:1000 > web:80
			b <- udp a:1000 > b:8080`)
		c.RemoveNode("n2")
		c.Sent("n1")
		c.Play(f, `
			a -> tcp a:1000 > b:80 flags=A
			a <- unreach-host router.n1 > a [tcp:a:1000>b:80]
			a -> udp a:1000 > web:80
			a <- unreach-host router.n1 > a [udp:a:1000>web:80]
			n1 drops unowned_address 2`)
		if n := len(c.Sent("n1")); n != 0 {
			t.Errorf("%d datagrams left for a node that is gone", n)
		}
		if n := c.Node("n1").Flows.Len(); n != 0 {
			t.Errorf("%d flows are left", n)
		}
	})
}

func TestUnrelatedChangesCostFlowsNothing(t *testing.T) {
	t.Parallel()
	each(t, vnet.Config{}, func(t *testing.T, c *vnet.Cluster, f vnet.Family) {
		talk := `
			a -> udp a:1000 > web:80
			b <- udp a:1000 > b:8080
			b -> udp b:8080 > a:1000
			a <- udp web:80 > a:1000`
		c.Play(f, talk)
		c.Batch(func() {
			c.AddService("other", "a2")
			c.AddService("local", "a")
			c.AddPod("new", "n1")
			c.AddPod("new2", "n2")
		})
		c.RemovePod("a2")
		c.Play(f, talk)
		if n := rejudged(c, "n1") + rejudged(c, "n2"); n != 0 {
			t.Errorf("unrelated changes had %d flows judged again", n)
		}
		c.AddService("web", "b", "b2")
		c.Play(f, talk)
		c.Play(f, talk)
		// One of the two directions notices; it renews both.
		if n := rejudged(c, "n1"); n != 1 {
			t.Errorf("a change of its frontend had the flow judged again %d times, want once", n)
		}
		if n := rejudged(c, "n2"); n != 0 {
			t.Errorf("the backend's node judged %d flows again, want none", n)
		}
	})
}

func TestFrontendChange(t *testing.T) {
	t.Parallel()
	each(t, vnet.Config{}, func(_ *testing.T, c *vnet.Cluster, f vnet.Family) {
		c.Play(f, `
			a -> tcp a:1000 > web:80 flags=S
			b <- tcp a:1000 > b:8080 flags=S
			b -> tcp b:8080 > a:1000 flags=SA
			a <- tcp web:80 > a:1000 flags=SA
			a -> udp a:1000 > web:80
			b <- udp a:1000 > b:8080`)
		c.AddService("web", "b2")
		c.Play(f, `
			# a connection stays with its backend
			a -> tcp a:1000 > web:80 flags=A
			b <- tcp a:1000 > b:8080 flags=A
			b -> tcp b:8080 > a:1000 flags=A
			a <- tcp web:80 > a:1000 flags=A
			# a new one goes to the new backend
			a -> tcp a:1001 > web:80 flags=S
			b2 <- tcp a:1001 > b2:8080 flags=S
			# datagrams move on
			a -> udp a:1000 > web:80
			b2 <- udp a:1000 > b2:8080
			b2 -> udp b2:8080 > a:1000
			a <- udp web:80 > a:1000`)
		c.AddService("web")
		c.Play(f, `
			a -> tcp a:1000 > web:80 flags=A
			b <- tcp a:1000 > b:8080 flags=A
			a -> udp a:1000 > web:80
			a <- unreach-port web > a
			n1 drops no_endpoints`)
	})
}

func TestReplacedPodDoesNotInheritFlows(t *testing.T) {
	t.Parallel()
	each(t, vnet.Config{}, func(t *testing.T, c *vnet.Cluster, f vnet.Family) {
		c.Play(f, `
			a -> tcp a:1000 > local:80 flags=S
			a2 <- tcp a:1000 > a2:8080 flags=S
			a -> udp a:1000 > local:80
			a2 <- udp a:1000 > a2:8080
			b -> udp b:1000 > a2:53
			a2 <- udp b:1000 > a2:53`)
		c.RemovePod("a2")
		if n := c.Node("n1").Flows.Len(); n != 0 {
			t.Fatalf("%d flows outlive their pod", n)
		}
		c.AddService("local")
		c.ReplacePod("a2", "heir")
		c.Play(f, `
			# what it sends from the old address and port is its own, untranslated
			heir -> udp heir:8080 > a:1000
			a <- udp heir:8080 > a:1000
			# and the old connection is nobody's
			a -> tcp a:1000 > local:80 flags=A
			a <- tcp local:80 > a:1000 flags=R
			n1 drops no_endpoints`)
	})
}

func TestPodReplacedAtOnceIsJudgedAgain(t *testing.T) {
	t.Parallel()
	each(t, vnet.Config{}, func(t *testing.T, c *vnet.Cluster, f vnet.Family) {
		c.Play(f, `
			a -> udp a:1000 > a2:53
			a2 <- udp a:1000 > a2:53`)
		c.ReplacePod("a2", "heir")
		c.Play(f, `
			a -> udp a:1000 > heir:53
			heir <- udp a:1000 > heir:53`)
		if n := rejudged(c, "n1"); n != 1 {
			t.Errorf("the flow was judged again %d times, want once", n)
		}
	})
}

func TestOneFloodDoesNotStopOthers(t *testing.T) {
	t.Parallel()
	const bound = 100
	each(t, vnet.Config{PerOwner: bound}, func(t *testing.T, c *vnet.Cluster, f vnet.Family) {
		// Answered flows are not evicted for their owner's sake, unanswered ones are.
		a, a2 := c.Port("a"), c.Port("a2")
		for i := range 3 * bound {
			a.Send(c.BuildTuple(c.Tuple(f, packet.ProtoTCP, "a", uint16(1000+i), "a2", 80), "flags=S"))
			if i < bound {
				a2.Send(c.BuildTuple(c.Tuple(f, packet.ProtoTCP, "a2", 80, "a", uint16(1000+i)), "flags=SA"))
				a.Send(c.BuildTuple(c.Tuple(f, packet.ProtoTCP, "a", uint16(1000+i), "a2", 80), "flags=A"))
			}
		}
		c.Settle()
		a.Take()
		a2.Take()
		n1 := c.Node("n1")
		if n := n1.Flows.Len(); n > bound {
			t.Errorf("a pod has %d connections, its bound is %d", n, bound)
		}
		if n := c.Drops()["n1"]["flow_owner_full"]; n == 0 {
			t.Error("nothing was dropped for the bound")
		}
		c.Play(f, `
			a2 -> tcp a2:5000 > b:80 flags=S
			b <- tcp a2:5000 > b:80 flags=S
			b -> tcp b:5000 > a:80 flags=S
			a <- tcp b:5000 > a:80 flags=S
			n1 -> tcp n1:5000 > a:80 flags=S
			a <- tcp n1:5000 > a:80 flags=S`)
	})
}

func TestOneRemoteFloodDoesNotStopOthers(t *testing.T) {
	t.Parallel()
	const bound = 100
	each(t, vnet.Config{PerOwner: bound}, func(t *testing.T, c *vnet.Cluster, f vnet.Family) {
		// The sender's node bounds it too: here its flows end, and those on n2 stay.
		a, b := c.Port("a"), c.Port("b")
		for i := range 3 * bound {
			b.Send(c.BuildTuple(c.Tuple(f, packet.ProtoTCP, "a", uint16(1000+i), "b", 80).Reverse(), "flags=S"))
			if i%20 == 0 { // the tunnel holds only so many before its session is confirmed
				c.Settle()
				c.Node("n2").Flows.RemoveFunc(func(packet.Tuple, flow.Entry) bool { return true })
			}
		}
		c.Settle()
		a.Take()
		b.Take()
		if n := c.Node("n1").Flows.Len(); n > bound {
			t.Errorf("a pod of another node has %d connections here, its bound is %d", n, bound)
		}
		c.Play(f, `
			b2 -> tcp b2:5000 > a:80 flags=S
			a <- tcp b2:5000 > a:80 flags=S`)
	})
}
