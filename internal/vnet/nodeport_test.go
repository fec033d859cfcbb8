package vnet_test

import (
	"testing"

	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/vnet"
)

// Pods reach node ports of any node by translation on their own node.
func TestNodePortsFromPods(t *testing.T) {
	t.Parallel()
	for _, cfg := range []vnet.Config{{}, {PodsOnly: true}} {
		each(t, cfg, func(_ *testing.T, c *vnet.Cluster, f vnet.Family) {
			c.Batch(func() {
				c.OpenNodePort("web", 30080)
				c.OpenNodePort("self", 30081)
				c.OpenNodePort("api2", 30082)
				c.OpenNodePort("none", 30083)
			})
			c.Play(f, `
				# this node's, another node's, and the backend's own
				a -> tcp a:1000 > n1:30080 flags=S
				b <- tcp a:1000 > b:8080 flags=S
				b -> tcp b:8080 > a:1000 flags=SA
				a <- tcp n1:30080 > a:1000 flags=SA
				a -> udp a:1001 > n2:30080
				b <- udp a:1001 > b:8080
				b -> udp b:8080 > a:1001
				a <- udp n2:30080 > a:1001
				# a pod reaches itself
				a -> udp a:1002 > n2:30081
				a <- udp n2:1002 > a:8080
				a -> udp a:8080 > n2:1002
				a <- udp n2:30081 > a:1002
				# a backend on a node
				a -> udp a:1003 > n1:30082
				n2 <- udp a:1003 > n2:8080
				n2 -> udp n2:8080 > a:1003
				a <- udp n1:30082 > a:1003
				b -> tcp b:1003 > n1:30082 flags=S
				n2 <- tcp b:1003 > n2:8080 flags=S
				n2 -> tcp n2:8080 > b:1003 flags=SA
				b <- tcp n1:30082 > b:1003 flags=SA
				# nobody behind it
				a -> tcp a:1004 > n2:30083 flags=S
				a <- tcp n2:30083 > a:1004 flags=RA
				n1 drops no_endpoints
				# any other port is the node's own
				a -> udp a:1005 > n1:30099
				n1 <- udp a:1005 > n1:30099`)
		})
	}
}

// Somebody else's proxy in the kernel keeps clients' addresses: they may come from
// the host, from outside the cluster to pods of this node and nothing else.
func TestForeignProxy(t *testing.T) {
	t.Parallel()
	each(t, vnet.Config{PodsOnly: true}, func(t *testing.T, c *vnet.Cluster, f vnet.Family) {
		talk := `
			n1 -> tcp outside:1000 > a:8080 flags=S
			a <- tcp outside:1000 > a:8080 flags=S
			a -> tcp a:8080 > outside:1000 flags=SA
			n1 <- tcp a:8080 > outside:1000 flags=SA
			n1 -> tcp host.n1:1000 > b:8080 flags=S
			b <- tcp host.n1:1000 > b:8080 flags=S
			b -> tcp b:8080 > host.n1:1000 flags=SA
			n1 <- tcp b:8080 > host.n1:1000 flags=SA`
		c.Play(f, talk)
		c.Play(f, `
			n1 -> udp a:1000 > a2:53
			n1 -> udp b:1000 > a:53
			n1 -> udp n2:1000 > a:53
			n1 -> udp web:1000 > a:53
			n1 -> udp unowned:1000 > a:53
			n1 -> udp nowhere:1000 > a:53
			n1 -> udp router.n2:1000 > a:53
			n1 drops spoofed_source 7
			n1 -> udp outside:1000 > b:53
			n1 -> udp outside:1000 > n2:53
			n1 -> udp outside:1000 > kube-dns:53
			n1 -> udp outside:1000 > outside:53
			n1 drops transit 4
			n1 -> udp outside:1000 > web:80
			n1 drops unallocated`)
		before := rejudged(c, "n1")
		c.RemoveNode("n2")
		c.Play(f, `
			a -> tcp a:8080 > outside:1000 flags=A
			n1 <- tcp a:8080 > outside:1000 flags=A
			n1 -> tcp outside:1000 > a:8080 flags=A
			a <- tcp outside:1000 > a:8080 flags=A`)
		c.ReplacePod("a", "heir")
		c.Play(f, `
			heir -> tcp heir:8080 > outside:1000 flags=A
			n1 <- tcp heir:8080 > outside:1000 flags=A`)
		if rejudged(c, "n1") == before {
			t.Error("no flow was judged again: the test tests nothing")
		}
	})
}

// A name server that is somebody else's is a service like any other.
func TestForeignNameServer(t *testing.T) {
	t.Parallel()
	each(t, vnet.Config{ForeignDNS: true}, func(_ *testing.T, c *vnet.Cluster, f vnet.Family) {
		c.Change(func(s *model.State) {
			for i, slice := range s.EndpointSlices {
				if slice.Service == "kube-dns" {
					one := *slice
					one.Endpoints = []model.Endpoint{{Address: c.Addr(map[bool]vnet.Family{false: vnet.V4, true: vnet.V6}[one.IPv6], "b"), Ready: true, Serving: true, Node: "n2"}}
					s.EndpointSlices[i] = &one
				}
			}
		})
		c.Publish()
		c.Play(f, `
			a -> udp a:1000 > kube-dns:80 data=question
			b <- udp a:1000 > b:8080 data=question
			b -> udp b:8080 > a:1000 data=answer
			a <- udp kube-dns:80 > a:1000 data=answer
			a -> udp a:1000 > kube-dns:53 data=question
			a <- unreach-port kube-dns > a [udp:a:1000>kube-dns:53]
			n1 drops no_endpoints`)
	})
}
