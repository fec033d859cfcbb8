package vnet_test

import (
	"bytes"
	"slices"
	"testing"

	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/internal/vnet"
)

// What listeners of a node have accepted goes on into the cluster: the tests play
// the stack behind them.
func TestInbound(t *testing.T) {
	t.Parallel()
	play(t, []scenario{
		{"client to a pod here", `
			inbound.n1 -> tcp outside:1000 > a:8080 flags=S mss=9000
			a <- tcp outside:1000 > a:8080 flags=S ttl=63 mss=MSS
			a -> tcp a:8080 > outside:1000 flags=SA
			inbound.n1 <- tcp a:8080 > outside:1000 flags=SA ttl=64
			inbound.n1 -> tcp outside:1000 > a:8080 flags=PA data=GET
			a <- tcp outside:1000 > a:8080 flags=PA data=GET`},
		{"client to a pod there, with its address", `
			inbound.n1 -> tcp outside:1000 > b:8080 flags=S seq=1 mss=9000
			b <- tcp outside:1000 > b:8080 flags=S seq=1 ttl=62 mss=WRAPPED
			b -> tcp b:8080 > outside:1000 flags=SA seq=2 mss=9000
			inbound.n1 <- tcp b:8080 > outside:1000 flags=SA seq=2 ttl=63 mss=WRAPPED
			inbound.n1 -> tcp outside:1000 > b:8080 flags=PA data=GET
			b <- tcp outside:1000 > b:8080 flags=PA data=GET
			inbound.n1 -> udp outside:1000 > b:8080 data=question
			b <- udp outside:1000 > b:8080 data=question
			b -> udp b:8080 > outside:1000 data=answer
			inbound.n1 <- udp b:8080 > outside:1000 data=answer`},
		{"the node itself is the client", `
			inbound.n1 -> tcp n1:1000 > a:8080 flags=S
			a <- tcp n1:1000 > a:8080 flags=S
			a -> tcp a:8080 > n1:1000 flags=SA
			inbound.n1 <- tcp a:8080 > n1:1000 flags=SA
			inbound.n1 -> tcp n1:1000 > b:8080 flags=S
			b <- tcp n1:1000 > b:8080 flags=S
			b -> tcp b:8080 > n1:1000 flags=SA
			inbound.n1 <- tcp b:8080 > n1:1000 flags=SA`},
		{"another node is the client of a pod here", `
			inbound.n1 -> tcp n2:1000 > a:8080 flags=S
			a <- tcp n2:1000 > a:8080 flags=S
			a -> tcp a:8080 > n2:1000 flags=SA
			inbound.n1 <- tcp a:8080 > n2:1000 flags=SA
			inbound.n1 -> tcp n2:1000 > b:8080 flags=S
			n1 drops transit`},
		{"another node's own connection is not the listener's", `
			inbound.n1 -> udp n2:1000 > a:8080
			a <- udp n2:1000 > a:8080
			n2 -> udp n2:1000 > a:8080
			a -> udp a:8080 > n2:1000
			inbound.n1 <- udp a:8080 > n2:1000
			n1 drops spoofed_source`},
		{"the router speaks for clients inside the cluster", `
			inbound.n1 -> tcp router.n1:1000 > a:8080 flags=S
			a <- tcp router.n1:1000 > a:8080 flags=S
			a -> tcp a:8080 > router.n1:1000 flags=SA
			inbound.n1 <- tcp a:8080 > router.n1:1000 flags=SA
			inbound.n1 -> udp router.n1:1000 > b:8080
			b <- udp router.n1:1000 > b:8080
			b -> udp b:8080 > router.n1:1000
			inbound.n1 <- udp b:8080 > router.n1:1000`},
		{"listeners speak for nobody else", `
			inbound.n1 -> tcp b:1000 > a:8080 flags=S
			inbound.n1 -> tcp a2:1000 > a:8080 flags=S
			inbound.n1 -> tcp web:1000 > a:8080 flags=S
			inbound.n1 -> tcp router.n2:1000 > a:8080 flags=S
			inbound.n1 -> tcp unowned:1000 > a:8080 flags=S
			n1 drops spoofed_source 5`},
		{"and to pods alone", `
			inbound.n1 -> tcp outside:1000 > n1:8080 flags=S
			inbound.n1 -> tcp outside:1000 > n2:8080 flags=S
			inbound.n1 -> tcp outside:1000 > outside:8080 flags=S
			inbound.n1 -> udp outside:1000 > kube-dns:53
			inbound.n1 -> tcp outside:1000 > kube-dns:53 flags=S
			n1 drops transit 5
			inbound.n1 -> tcp outside:1000 > web:80 flags=S
			n1 drops unallocated
			inbound.n1 -> udp outside:1000 > unowned:80
			inbound.n1 <- unreach-host router.n1 > outside
			n1 drops unowned_address`},
		{"errors of pods here and there", `
			inbound.n1 -> udp outside:1000 > a:8080
			a <- udp outside:1000 > a:8080
			a -> unreach-port a > outside [udp:outside:1000>a:8080]
			inbound.n1 <- unreach-port a > outside [udp:outside:1000>a:8080]
			inbound.n1 -> udp outside:1000 > b:8080
			b <- udp outside:1000 > b:8080
			b -> unreach-port b > outside [udp:outside:1000>b:8080]
			inbound.n1 <- unreach-port b > outside [udp:outside:1000>b:8080]`},
		{"errors of the client", `
			inbound.n1 -> udp outside:1000 > b:8080
			b <- udp outside:1000 > b:8080
			b -> udp b:8080 > outside:1000
			inbound.n1 <- udp b:8080 > outside:1000
			inbound.n1 -> unreach-port outside > b [udp:b:8080>outside:1000]
			b <- unreach-port outside > b [udp:b:8080>outside:1000]`},
		{"errors of the other router come back wrapped", `
			inbound.n1 -> udp outside:1000 > b:8080 ttl=2
			inbound.n1 <- time-exceeded router.n2 > outside [udp:outside:1000>b:8080]
			n2 drops ttl`},
		{"too big counts what is wrapped around", `
			b -> udp b:8080 > outside:1000
			netstack.n2 <- udp b:8080 > outside:1000
			inbound.n1 -> udp outside:2000 > b:8080
			b <- udp outside:2000 > b:8080
			b -> udp b:8080 > outside:2000 len=1400 df
			b <- too-big router.n2 > b mtu=LESS [udp:b:8080>outside:2000]
			n2 drops too_big
			inbound.n1 -> udp outside:2000 > b:8080 len=1400 df
			inbound.n1 <- too-big router.n1 > outside mtu=LESS [udp:outside:2000>b:8080]
			n1 drops too_big`},
		{"a pod's own connection to the outside is not the listener's", `
			a -> udp a:8080 > outside:1000
			netstack.n1 <- udp a:8080 > outside:1000
			inbound.n1 -> udp outside:1000 > a:8080
			inbound.n1 <- unreach-admin router.n1 > outside
			netstack.n1 -> udp outside:1000 > a:8080
			a <- udp outside:1000 > a:8080
			n1 drops source_ports`},
		{"the node's own connection is not the listener's either", `
			inbound.n1 -> udp n1:1000 > a:8080
			a <- udp n1:1000 > a:8080
			n1 -> udp n1:1000 > a:8080
			n1 <- unreach-admin router.n1 > n1
			a -> udp a:8080 > n1:1000
			inbound.n1 <- udp a:8080 > n1:1000
			n1 drops source_ports`},
	})
}

// A bulk stream crosses in super-packets both ways, as it does unwrapped.
func TestInboundSuperPackets(t *testing.T) {
	t.Parallel()
	const size = 30000
	each(t, vnet.Config{}, func(t *testing.T, c *vnet.Cluster, f vnet.Family) {
		c.Play(f, `
			inbound.n1 -> tcp outside:1000 > b:8080 flags=S
			b <- tcp outside:1000 > b:8080 flags=S`)
		for _, way := range []struct{ from, to, packet string }{
			{"inbound.n1", "b", "tcp outside:1000 > b:8080 flags=A seq=1 len=30000 gso=1300 df"},
			{"b", "inbound.n1", "tcp b:8080 > outside:1000 flags=A seq=1 len=30000 gso=1300 df"},
			// Segments that fit the tunnel, but not wrapped, are made smaller.
			{"b", "inbound.n1", "tcp b:8080 > outside:1000 flags=A seq=1 len=30000 gso=1375 df"},
		} {
			c.Port(way.from).Send(c.Build(f, way.packet))
			c.Settle()
			var data []byte
			got := c.Port(way.to).Take()
			for _, p := range got {
				data = append(data, p.Data()...)
			}
			if !bytes.Equal(data, vnet.Pattern(size)) {
				t.Errorf("%s: %d bytes came that are not the %d that were sent; drops: %v", way.packet, len(data), size, c.Drops())
			}
			if len(got) > size/1300/2 {
				t.Errorf("%s: %d packets came: nothing was put together", way.packet, len(got))
			}
		}
		// A loaded machine hands the tunnel's datagrams over in several batches:
		// each is a packet of its own then, but a segment never is.
		sum := c.Node("n1").Router.Counters()
		if segments := uint64(3 * size / 1300); sum.Packets > segments/2 {
			t.Errorf("n1 counts %d packets carried for %d segments: segments are not packets of their own", sum.Packets, segments)
		}
	})
}

func TestInboundFragments(t *testing.T) {
	t.Parallel()
	each(t, vnet.Config{}, func(t *testing.T, c *vnet.Cluster, f vnet.Family) {
		parts := vnet.Split(c.Build(f, "udp outside:1000 > b:53 len=3000"), 1200, 77)
		c.Port("inbound.n1").Send(parts...)
		c.Settle()
		got := c.Port("b").Take()
		if len(got) != len(parts) {
			t.Fatalf("%d fragments came, want %d; drops: %v", len(got), len(parts), c.Drops())
		}
		if err := vnet.CheckJoined(got); err != nil {
			t.Error(err)
		}
	})
	c := vnet.New(t, vnet.Config{})
	cluster(c)
	c.Port("inbound.n1").Send(c.Build(vnet.V4, "udp outside:1000 > b:53 len=3000")) // may be cut
	c.Settle()
	if err := vnet.CheckJoined(c.Port("b").Take()); err != nil {
		t.Error(err, c.Drops())
	}
}

// Two nodes send one client on with one port, to one pod: they are two
// connections, and each has its replies.
func TestInboundByTwoNodes(t *testing.T) {
	t.Parallel()
	each(t, vnet.Config{Nodes: 3}, func(t *testing.T, c *vnet.Cluster, f vnet.Family) {
		for _, kind := range []string{"tcp", "udp"} {
			c.Play(f, `
				inbound.n1 -> `+kind+` outside:1000 > b:8080 data=1
				b <- `+kind+` outside:1000 > b:8080 data=1`)
			c.Port("inbound.n3").Send(c.Build(f, kind+" outside:1000 > b:8080 data=3"))
			c.Settle()
			second := take(t, c, "b").Tuple
			if second.SrcPort == 1000 || second.Src.Netip() != c.Addr(f, "outside") {
				t.Fatalf("the second connection comes from %v, which is the first one's", second)
			}
			c.Port("b").Send(c.BuildTuple(second.Reverse(), "data=3"))
			c.Settle()
			c.Play(f, `
				inbound.n3 <- `+kind+` b:8080 > outside:1000 data=3
				b -> `+kind+` b:8080 > outside:1000 data=1
				inbound.n1 <- `+kind+` b:8080 > outside:1000 data=1
				inbound.n1 -> `+kind+` outside:1000 > b:8080 data=1
				b <- `+kind+` outside:1000 > b:8080 data=1`)
			c.Port("inbound.n3").Send(c.Build(f, kind+" outside:1000 > b:8080 data=3"))
			c.Settle()
			if again := take(t, c, "b").Tuple; again != second {
				t.Errorf("the second connection goes on from %v, was from %v", again, second)
			}
			for from, port := range map[string]uint16{"inbound.n1": 1000, "inbound.n3": second.SrcPort} {
				c.Port(from).Send(c.Build(f, "unreach-port outside > b ["+kind+":b:8080>outside:1000]"))
				c.Settle()
				if got := take(t, c, "b").Inner; got.DstPort != port {
					t.Errorf("an error of %s quotes %v, want port %d", from, got, port)
				}
			}
		}
	})
}

// Tables come and go, and with them the numbers of peers; connections stay.
func TestInboundOutlivesChanges(t *testing.T) {
	t.Parallel()
	each(t, vnet.Config{Nodes: 3}, func(t *testing.T, c *vnet.Cluster, f vnet.Family) {
		c.Play(f, `
			inbound.n3 -> tcp outside:1000 > b:8080 flags=S
			b <- tcp outside:1000 > b:8080 flags=S
			b -> tcp b:8080 > outside:1000 flags=SA
			inbound.n3 <- tcp b:8080 > outside:1000 flags=SA
			inbound.n3 -> udp router.n3:1000 > b:8080
			b <- udp router.n3:1000 > b:8080
			inbound.n1 -> udp n1:1000 > a:8080
			a <- udp n1:1000 > a:8080
			inbound.n1 -> udp outside:1000 > a:8080
			a <- udp outside:1000 > a:8080`)
		before := rejudged(c, "n2")
		c.RemoveNode("n1")
		c.Play(f, `
			b -> tcp b:8080 > outside:1000 flags=A
			inbound.n3 <- tcp b:8080 > outside:1000 flags=A
			inbound.n3 -> tcp outside:1000 > b:8080 flags=A
			b <- tcp outside:1000 > b:8080 flags=A
			b -> udp b:8080 > router.n3:1000
			inbound.n3 <- udp b:8080 > router.n3:1000
			a -> udp a:8080 > n1:1000
			inbound.n1 <- udp a:8080 > n1:1000
			a -> udp a:8080 > outside:1000
			inbound.n1 <- udp a:8080 > outside:1000`)
		if rejudged(c, "n2") == before {
			t.Error("no flow was judged again: the test tests nothing")
		}
		c.ChangeNode("n2", func(n *model.Node) { n.Zone = "z" })
		c.RemoveNode("n3")
		c.Play(f, `
			b -> tcp b:8080 > outside:1000 flags=A
			n2 drops no_peer
			b -> tcp b:8080 > outside:1000 flags=A
			netstack.n2 <- tcp b:8080 > outside:1000 flags=A`)
	})
}

// An address that was outside and is now a node's is a client of this node's pods
// only: the other node must not hear of it from us.
func TestInboundClientBecomesANode(t *testing.T) {
	t.Parallel()
	each(t, vnet.Config{}, func(_ *testing.T, c *vnet.Cluster, f vnet.Family) {
		c.Play(f, `
			inbound.n1 -> udp outside:1000 > a:8080
			a <- udp outside:1000 > a:8080
			inbound.n1 -> udp outside:1000 > b:8080
			b <- udp outside:1000 > b:8080`)
		c.ChangeNode("n2", func(n *model.Node) {
			n.Addresses = append(slices.Clone(n.Addresses), c.Addr(vnet.V4, "outside"), c.Addr(vnet.V6, "outside"))
		})
		c.Play(f, `
			a -> udp a:8080 > outside:1000
			inbound.n1 <- udp a:8080 > outside:1000
			b -> udp b:8080 > outside:1000
			inbound.n1 -> udp outside:1000 > a:8080
			a <- udp outside:1000 > a:8080
			inbound.n1 -> udp outside:1000 > b:8080
			n1 drops transit
			n2 drops spoofed_source`)
	})
}

// A peer can wrap what it likes: it gets no further than clients outside the
// cluster do, and to pods of this node alone.
func TestHostileWrappedPackets(t *testing.T) {
	t.Parallel()
	for _, f := range vnet.Families() {
		t.Run(f.String(), func(t *testing.T) {
			t.Parallel()
			c := hostile(t)
			c.Play(f, `
				# its own pod, this node's pod, another node's, nodes, routers, services, nobody
				overlay.n1 -> wrapped router.n2 > router.n1 [udp:a2:1000>a:53]
				overlay.n1 -> wrapped router.n2 > router.n1 [udp:c:1000>a:53]
				overlay.n1 -> wrapped router.n2 > router.n1 [udp:n1:1000>a:53]
				overlay.n1 -> wrapped router.n2 > router.n1 [udp:n3:1000>a:53]
				overlay.n1 -> wrapped router.n2 > router.n1 [udp:router.n1:1000>a:53]
				overlay.n1 -> wrapped router.n2 > router.n1 [udp:router.n3:1000>a:53]
				overlay.n1 -> wrapped router.n2 > router.n1 [udp:none:1000>a:53]
				overlay.n1 -> wrapped router.n2 > router.n1 [udp:kube-dns:53>a:53]
				overlay.n1 -> wrapped router.n2 > router.n1 [udp:unallocated:1000>a:53]
				overlay.n1 -> wrapped router.n2 > router.n1 [udp:nowhere:1000>a:53]
				n1 drops spoofed_source 10
				# not between routers
				overlay.n1 -> wrapped b > router.n1 [udp:outside:1000>a:53]
				overlay.n1 -> wrapped n2 > router.n1 [udp:outside:1000>a:53]
				overlay.n1 -> wrapped router.n1 > router.n1 [udp:outside:1000>a:53]
				overlay.n1 -> wrapped router.n2 > router.n3 [udp:outside:1000>a:53]
				overlay.n1 -> wrapped router.n2 > a [udp:outside:1000>a:53]
				overlay.n1 -> wrapped router.n2 > n1 [udp:outside:1000>a:53]
				n1 drops spoofed_source 6
				# not to pods of this node
				overlay.n1 -> wrapped router.n2 > router.n1 [udp:outside:1000>n1:53]
				overlay.n1 -> wrapped router.n2 > router.n1 [udp:outside:1000>b:53]
				overlay.n1 -> wrapped router.n2 > router.n1 [udp:outside:1000>c:53]
				overlay.n1 -> wrapped router.n2 > router.n1 [udp:outside:1000>outside:53]
				overlay.n1 -> wrapped router.n2 > router.n1 [udp:outside:1000>kube-dns:53]
				n1 drops transit 5
				overlay.n1 -> wrapped router.n2 > router.n1 [udp:outside:1000>api:80]
				n1 drops unallocated
				overlay.n1 -> wrapped router.n2 > router.n1 [udp:outside:1000>unowned:80]
				overlay.n1 <- wrapped router.n1 > router.n2 [unreach-host:router.n1>outside]
				n1 drops unowned_address
				# its own pods do not need it
				overlay.n1 -> wrapped router.n2 > router.n1 [udp:b:1000>a:53]
				n1 drops unknown_reply
				# twice
				overlay.n1 -> wrapped router.n2 > router.n1 [wrapped:router.n2>router.n1]
				n1 drops unknown_reply
				# the good one, answered to whom it came from
				overlay.n1 -> wrapped router.n2 > router.n1 [udp:outside:1000>a:53]
				a <- udp outside:1000 > a:53
				a -> udp a:53 > outside:1000
				overlay.n1 <- wrapped router.n1 > router.n2 [udp:a:53>outside:1000]`)
		})
	}
}

// What one peer may say in a connection, no other may, wrapped or not.
func TestWrappedFlowsBelongToTheirPeer(t *testing.T) {
	t.Parallel()
	for _, f := range vnet.Families() {
		t.Run(f.String(), func(t *testing.T) {
			t.Parallel()
			c := hostile(t)
			c.Play(f, `
				# a client behind this node, served by a pod of n2
				inbound.n1 -> udp outside:1000 > b:53
				overlay.n1 <- wrapped router.n1 > router.n2 [udp:outside:1000>b:53]
				overlay.n1 -> wrapped router.n3 > router.n1 [udp:b:53>outside:1000]
				overlay.n1 -> udp b:53 > outside:1000
				overlay.n1 -> udp c:53 > outside:1000
				n1 drops spoofed_source 2
				n1 drops transit
				overlay.n1 -> wrapped router.n3 > router.n1 [unreach-port:c>outside]
				n1 drops malformed
				overlay.n1 -> wrapped router.n2 > router.n1 [udp:b:53>outside:1000]
				inbound.n1 <- udp b:53 > outside:1000
				# a flow between pods, which n2 might want to wrap
				a -> udp a:1000 > b:53
				overlay.n1 <- udp a:1000 > b:53
				overlay.n1 -> wrapped router.n2 > router.n1 [udp:b:53>a:1000]
				n1 drops spoofed_source
				overlay.n1 -> udp b:53 > a:1000
				a <- udp b:53 > a:1000`)
			// Errors about a client's connection come from the pod's node alone.
			for from, want := range map[string]int{"router.n2": 1, "router.n3": 0} {
				c.Port("overlay.n1").Send(c.Wrap(f, from, "router.n1", c.Build(f, "too-big "+from+" > outside mtu=1300 [udp:outside:1000>b:53]")))
				if got := len(c.Port("inbound.n1").Take()); got != want {
					t.Errorf("%d errors of %s came, want %d; drops: %v", got, from, want, c.Drops())
				}
			}
			// And those of a client that another node sends on.
			c.Play(f, `
				overlay.n1 -> wrapped router.n2 > router.n1 [udp:outside:2000>a:53]
				a <- udp outside:2000 > a:53`)
			for from, want := range map[string]int{"router.n2": 1, "router.n3": 0} {
				c.Port("overlay.n1").Send(c.Wrap(f, from, "router.n1", c.Build(f, "unreach-port outside > a [udp:a:53>outside:2000]")))
				if got := len(c.Port("a").Take()); got != want {
					t.Errorf("%d errors of the client behind %s came, want %d; drops: %v", got, from, want, c.Drops())
				}
			}
		})
	}
}

// However many clients a peer makes up, there is room for others.
func TestOnePeersClientsDoNotStopOthers(t *testing.T) {
	t.Parallel()
	const bound = 100
	each(t, vnet.Config{Nodes: 3, Bare: true, PerOwner: bound}, func(t *testing.T, c *vnet.Cluster, f vnet.Family) {
		for i := range 20 * bound {
			who := c.Tuple(f, packet.ProtoUDP, "outside", uint16(1000+i), "a", 53)
			who.Src[15] += byte(i % 64)
			c.Port("overlay.n1").Send(c.Wrap(f, "router.n2", "router.n1", c.BuildTuple(who, "")))
			if len(c.Port("a").Take()) > 0 {
				c.Port("a").Send(c.BuildTuple(who.Reverse(), "")) // what is answered is not evicted
			}
		}
		c.Port("overlay.n1").Take()
		if n := c.Node("n1").Flows.Len(); n > 4*bound || n < bound {
			t.Errorf("%d flows of clients that one peer has sent on, want at most four times %d", n, bound)
		}
		c.Port("overlay.n1").Send(c.Wrap(f, "router.n3", "router.n1", c.Build(f, "udp outside:1 > a:53")))
		if got := c.Port("a").Take(); len(got) != 1 {
			t.Errorf("%d packets of another peer's client came, want 1; drops: %v", len(got), c.Drops())
		}
	})
}
