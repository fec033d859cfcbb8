package vnet_test

import (
	"testing"

	"github.com/netctl/netctl/internal/vnet"
)

// hostile is n1 of three nodes, with the tunnel as a port: whoever owns a peer
// can send what no router of ours would.
func hostile(t *testing.T) *vnet.Cluster {
	t.Helper()
	c := vnet.New(t, vnet.Config{Nodes: 3, Bare: true})
	c.Batch(func() {
		c.AddPod("a", "n1")
		c.AddPod("a2", "n1")
		c.AddPod("b", "n2")
		c.AddPod("b2", "n2")
		c.AddPod("c", "n3")
		c.AddService("none")
		c.AddService("api", "n1")
	})
	return c
}

func TestPeersSpeakOnlyOfTheirOwn(t *testing.T) {
	t.Parallel()
	for _, f := range vnet.Families() {
		t.Run(f.String(), func(t *testing.T) {
			t.Parallel()
			hostile(t).Play(f, `
				a -> udp a:1000 > c:53
				overlay.n1 <- udp a:1000 > c:53
				overlay.n1 -> unreach-port b > a [udp:a:1000>c:53]
				overlay.n1 -> too-big n2 > a mtu=1280 [udp:a:1000>c:53]
				overlay.n1 -> unreach-host router.n2 > a [udp:a:1000>c:53]
				n1 drops icmp_unmatched 3
				overlay.n1 -> unreach-port c > a [udp:a:1000>c:53]
				a <- unreach-port c > a [udp:a:1000>c:53]
				overlay.n1 -> too-big n3 > a mtu=1280 [udp:a:1000>c:53]
				a <- too-big n3 > a mtu=1280 [udp:a:1000>c:53]
				overlay.n1 -> unreach-host router.n3 > a [udp:a:1000>c:53]
				a <- unreach-host router.n3 > a [udp:a:1000>c:53]`)
		})
	}
}

func TestTunnelPortIsForNodes(t *testing.T) {
	t.Parallel()
	for _, f := range vnet.Families() {
		t.Run(f.String(), func(t *testing.T) {
			t.Parallel()
			c := hostile(t)
			c.Play(f, `
				a -> udp a:1000 > n1:51820
				a -> udp a:1000 > n2:51820
				a -> udp a:1000 > host.n1:51820
				overlay.n1 -> udp b:1000 > n1:51820
				overlay.n1 -> udp n2:1000 > n1:51820
				n1 drops tunnel_port 5
				a -> udp a:1000 > n1:51821
				n1 <- udp a:1000 > n1:51821
				a -> tcp a:1000 > n1:51820 flags=S
				n1 <- tcp a:1000 > n1:51820 flags=S
				a -> udp a:1000 > a2:51820
				a2 <- udp a:1000 > a2:51820
				n1 -> udp n1:1000 > n2:51820
				overlay.n1 <- udp n1:1000 > n2:51820`)
		})
	}
}

// However many datagrams one sender has in pieces, the others' arrive.
func TestFragmentsOfOneSenderPushOutNobodyElses(t *testing.T) {
	t.Parallel()
	for _, f := range vnet.Families() {
		t.Run(f.String(), func(t *testing.T) {
			t.Parallel()
			c := hostile(t)
			for _, tt := range []struct{ port, flood, victim, to string }{
				{"", "a", "a2", "overlay.n1"},
				{"overlay.n1", "b", "b2", "a"}, // of one peer
				{"overlay.n1", "b", "c", "a"},  // of two
			} {
				from := func(name string) *vnet.Port {
					if tt.port != "" {
						return c.Port(tt.port)
					}
					return c.Port(name)
				}
				dst := tt.to
				if dst == "overlay.n1" {
					dst = "b"
				}
				parts := vnet.Split(c.Build(f, "udp "+tt.victim+":1000 > "+dst+":53 len=2000"), 1200, 7)
				from(tt.victim).Send(parts[0])
				flood := c.Build(f, "udp "+tt.flood+":1000 > "+dst+":53 len=1400")
				for id := range uint16(20000) {
					from(tt.flood).Send(vnet.Split(flood, 1200, id)[0])
				}
				c.Port(tt.to).Take()
				from(tt.victim).Send(parts[1])
				if got := c.Port(tt.to).Take(); len(got) != 1 {
					t.Errorf("%s after the flood of %s: %d later fragments arrived, want 1; drops: %v", tt.victim, tt.flood, len(got), c.Drops())
				}
			}
		})
	}
}

// A first fragment that was refused opens the way for no other.
func TestRefusedFragmentsAreNotRemembered(t *testing.T) {
	t.Parallel()
	for _, f := range vnet.Families() {
		c := hostile(t)
		c.Port("a").Send(vnet.Split(c.Build(f, "udp a:1000 > unowned:53 len=3000"), 1200, 7)...)
		if d := c.Drops()["n1"]; d["unowned_address"] != 1 || d["fragment"] != 2 {
			t.Errorf("%v: drops %v, want one for the address and two fragments without a first", f, d)
		}
	}
}
