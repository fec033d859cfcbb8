package vnet_test

import (
	"strings"
	"testing"

	"github.com/netctl/netctl/internal/vnet"
)

// scenario is a script that holds for both families, on a cluster of two nodes
// with the pods a and a2 on n1 and b and b2 on n2, and the services web (b),
// local (a2), self (a), both (a2 and b), api (the hosts of n1), api2 (of n2)
// and none.
// MSS in a script is what fits the tunnel's MTU, WRAPPED what does when it is
// wrapped, and LESS the MTU for what is wrapped.
type scenario struct {
	name   string
	script string
}

func cluster(c *vnet.Cluster) {
	c.Batch(func() {
		c.AddPod("a", "n1")
		c.AddPod("a2", "n1")
		c.AddPod("b", "n2")
		c.AddPod("b2", "n2")
		c.AddService("web", "b")
		c.AddService("web2", "b")
		c.AddService("local", "a2")
		c.AddService("self", "a")
		c.AddService("api", "n1")
		c.AddService("api2", "n2")
		c.AddService("none")
	})
}

// play runs each scenario in a cluster of its own, for both families: they
// share nothing but the tunnel.
func play(t *testing.T, scenarios []scenario) {
	t.Helper()
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			c := vnet.New(t, vnet.Config{})
			cluster(c)
			for f, sizes := range map[vnet.Family]*strings.Replacer{
				vnet.V4: strings.NewReplacer("MSS", "1380", "WRAPPED", "1360", "LESS", "1400"),
				vnet.V6: strings.NewReplacer("MSS", "1360", "WRAPPED", "1320", "LESS", "1380"),
			} {
				c.Play(f, sizes.Replace(s.script))
			}
		})
	}
}

func TestPods(t *testing.T) {
	t.Parallel()
	play(t, []scenario{
		{"ping across nodes keeps addresses and counts hops", `
			a -> echo a > b id=7 ttl=64 data=hello
			b <- echo a > b id=7 ttl=62 data=hello
			b -> reply b > a id=7 ttl=64 data=hello
			a <- reply b > a id=7 ttl=62 data=hello`},
		{"ping on one node", `
			a -> echo a > a2 id=7
			a2 <- echo a > a2 id=7 ttl=63
			a2 -> reply a2 > a id=7
			a <- reply a2 > a id=7 ttl=63`},
		{"tcp across nodes", `
			a -> tcp a:1000 > b:80 flags=S seq=1
			b <- tcp a:1000 > b:80 flags=S seq=1 ttl=62
			b -> tcp b:80 > a:1000 flags=SA seq=9
			a <- tcp b:80 > a:1000 flags=SA seq=9 ttl=62
			a -> tcp a:1000 > b:80 flags=A seq=2 data=GET
			b <- tcp a:1000 > b:80 flags=A seq=2 data=GET`},
		{"a connection that was open before is picked up", `
			a -> tcp a:1000 > b:80 flags=PA seq=2 data=GET
			b <- tcp a:1000 > b:80 flags=PA seq=2 data=GET`},
		{"sctp across nodes", `
			a -> sctp a:1000 > b:80 data=init
			b <- sctp a:1000 > b:80 data=init`},
		{"spoofed source", `
			a -> udp a2:1000 > b:53
			a -> udp n1:1000 > b:53
			a -> udp router.n1:1000 > b:53
			a -> udp outside:1000 > b:53
			n1 drops spoofed_source 4`},
		{"the host may not speak as a pod", `
			n1 -> udp a:1000 > b:53
			n1 -> udp outside:1000 > a:53
			n1 drops spoofed_source 2`},
		{"node to local pod", `
			n1 -> tcp n1:1000 > a:80 flags=S
			a <- tcp n1:1000 > a:80 flags=S ttl=63
			a -> tcp a:80 > n1:1000 flags=SA
			n1 <- tcp a:80 > n1:1000 flags=SA ttl=63`},
		{"node to remote pod", `
			n1 -> tcp n1:1000 > b:80 flags=S
			b <- tcp n1:1000 > b:80 flags=S ttl=62
			b -> tcp b:80 > n1:1000 flags=SA
			n1 <- tcp b:80 > n1:1000 flags=SA ttl=62`},
		{"pod to its own and to another node", `
			a -> udp a:1000 > n1:53
			n1 <- udp a:1000 > n1:53
			n1 -> udp n1:53 > a:1000
			a <- udp n1:53 > a:1000
			a -> udp a:1000 > n2:53
			n2 <- udp a:1000 > n2:53
			n2 -> udp n2:53 > a:1000
			a <- udp n2:53 > a:1000`},
		{"pod to the outside and back", `
			a -> udp a:1000 > outside:53
			netstack.n1 <- udp a:1000 > outside:53 ttl=64
			netstack.n1 -> udp outside:53 > a:1000
			a <- udp outside:53 > a:1000 ttl=63`},
		{"sockets only answer", `
			netstack.n1 -> udp outside:53 > a:1000
			n1 drops unknown_reply`},
		{"sockets do not speak for pods", `
			netstack.n1 -> udp b:53 > a:1000
			n1 drops spoofed_source`},
		{"the node's own way out is its kernel", `
			n1 -> udp n1:1000 > outside:53
			n1 drops transit`},
		{"a host packet that would go in circles", `
			n1 -> udp n1:1000 > host.n1:53
			n1 drops not_answered`},
		{"unowned address of this node", `
			a -> udp a:1000 > unowned:53
			a <- unreach-host router.n1 > a [udp:a:1000>unowned:53]
			n1 drops unowned_address`},
		{"unowned address of another node", `
			b -> udp b:1000 > unowned:53
			b <- unreach-host router.n1 > b [udp:b:1000>unowned:53]
			n1 drops unowned_address`},
		{"address of no block", `
			a -> tcp a:1000 > nowhere:53 flags=S
			a <- unreach-host router.n1 > a [tcp:a:1000>nowhere:53]
			n1 drops unowned_address`},
		{"the router's own address answers nothing but that", `
			a -> echo a > router.n1 id=1
			a <- unreach-host router.n1 > a [echo:a>router.n1]
			n1 drops unowned_address`},
		{"hop limit at the first and at the second node", `
			a -> udp a:1000 > b:53 ttl=1
			a <- time-exceeded router.n1 > a [udp:a:1000>b:53]
			a -> udp a:1000 > b:53 ttl=2
			a <- time-exceeded router.n2 > a [udp:a:1000>b:53]
			n1 drops ttl
			n2 drops ttl`},
		{"too big, not to be cut", `
			a -> udp a:1000 > b:53 len=1500 df
			a <- too-big router.n1 > a mtu=1420 [udp:a:1000>b:53]
			n1 drops too_big`},
		{"errors are not answered with errors", `
			a -> unreach-port a > unowned [udp:unowned:1000>a:53]
			a -> unreach-port a > b [udp:b:1000>a:53]
			n1 drops icmp_unmatched 2`},
		{"mss is clamped on both ways", `
			a -> tcp a:1000 > b:80 flags=S mss=9000
			b <- tcp a:1000 > b:80 flags=S mss=MSS
			b -> tcp b:80 > a:1000 flags=SA mss=8000
			a <- tcp b:80 > a:1000 flags=SA mss=MSS
			a -> tcp a:1001 > b:80 flags=S mss=500
			b <- tcp a:1001 > b:80 flags=S mss=500`},
		{"a super-packet of too big segments is cut smaller", `
			a -> tcp a:1000 > a2:80 flags=A seq=1 len=20000 gso=8000 df
			a2 <- tcp a:1000 > a2:80 flags=A seq=1 len=20000 gso=MSS`},
	})
}
