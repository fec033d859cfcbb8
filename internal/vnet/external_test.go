package vnet_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/vnet"
)

// balance gives a service the addresses that scripts know as "lb".
func balance(c *vnet.Cluster, name string, edit ...func(*model.Service)) {
	c.Name("lb", "203.0.113.1", "2001:db8:aaaa::1")
	c.Change(func(s *model.State) {
		for i, svc := range s.Services {
			if svc.Name.Name == name {
				one := *svc
				one.Type = model.LoadBalancer
				one.LoadBalancerIPs = []netip.Addr{c.Addr(vnet.V4, "lb"), c.Addr(vnet.V6, "lb")}
				for _, f := range edit {
					f(&one)
				}
				s.Services = slices.Clone(s.Services)
				s.Services[i] = &one
			}
		}
	})
	c.Publish()
}

// Clients outside reach a load balancer's address by the node's kernel, and pods see
// their own addresses, here and there (proxy.md §1.6).
func TestLoadBalancerAddresses(t *testing.T) {
	t.Parallel()
	each(t, vnet.Config{}, func(_ *testing.T, c *vnet.Cluster, f vnet.Family) {
		c.AddService("here", "a")
		balance(c, "here")
		c.Play(f, `
			n1 -> tcp outside:1000 > lb:80 flags=S
			a <- tcp outside:1000 > a:8080 flags=S
			a -> tcp a:8080 > outside:1000 flags=SA
			n1 <- tcp lb:80 > outside:1000 flags=SA
			n1 -> udp outside:1001 > lb:80
			a <- udp outside:1001 > a:8080
			a -> unreach-port a > outside [udp:outside:1001>a:8080]
			n1 <- unreach-port lb > outside [udp:outside:1001>lb:80]
			# from the other node
			n2 -> tcp outside:1002 > lb:80 flags=S
			a <- tcp outside:1002 > a:8080 flags=S
			a -> tcp a:8080 > outside:1002 flags=SA
			n2 <- tcp lb:80 > outside:1002 flags=SA
			# pods and nodes, too
			b -> tcp b:1003 > lb:80 flags=S
			a <- tcp b:1003 > a:8080 flags=S
			a -> tcp a:8080 > b:1003 flags=SA
			b <- tcp lb:80 > b:1003 flags=SA
			n2 -> tcp n2:1004 > lb:80 flags=S
			a <- tcp n2:1004 > a:8080 flags=S
			a -> tcp a:8080 > n2:1004 flags=SA
			n2 <- tcp lb:80 > n2:1004 flags=SA`)
		// A backend on the host answers the router, as it does to node processes.
		c.AddService("host", "n1")
		balance(c, "host")
		balance(c, "here", func(s *model.Service) { s.LoadBalancerIPs = nil })
		c.Play(f, `
			n1 -> udp outside:1005 > lb:80
			n1 <- udp router.n1:1005 > n1:8080
			n1 -> udp n1:8080 > router.n1:1005
			n1 <- udp lb:80 > outside:1005`)
	})
}

// The kernel's side is no door to anything but these addresses.
func TestClientsOutsideReachNothingElse(t *testing.T) {
	t.Parallel()
	each(t, vnet.Config{}, func(_ *testing.T, c *vnet.Cluster, f vnet.Family) {
		c.AddService("here", "a")
		c.Play(f, `
			n1 -> udp outside:1000 > here:80
			n1 drops spoofed_source`)
		balance(c, "here")
		c.OpenNodePort("here", 30080)
		c.Play(f, `
			a -> tcp a:8080 > outside:1000 flags=S
			netstack.n1 <- tcp a:8080 > outside:1000 flags=S
			n1 -> tcp n1:1000 > a:8080 flags=S
			a <- tcp n1:1000 > a:8080 flags=S
			# cluster IPs, pods, nodes, the name server, other ports of the address
			n1 -> udp outside:1000 > here:80
			n1 -> udp outside:1000 > a:8080
			n1 -> udp outside:1000 > b:8080
			n1 -> udp outside:1000 > n1:30080
			n1 -> udp outside:1000 > n2:30080
			n1 -> udp outside:1000 > kube-dns:53
			n1 -> udp outside:1000 > lb:81
			n1 -> udp outside:1000 > outside:81
			# not even answers to what a pod has asked, which go on unharmed
			n1 -> tcp outside:1000 > a:8080 flags=RA
			n1 drops spoofed_source 9
			netstack.n1 -> tcp outside:1000 > a:8080 flags=SA
			a <- tcp outside:1000 > a:8080 flags=SA
			# nor errors about what others speak
			n1 -> unreach-port outside > a [tcp:a:8080>n1:1000]
			n1 drops icmp_unmatched
			# nor foreign names
			n1 -> udp b:1000 > lb:80
			n1 -> udp n2:1000 > lb:80
			n1 -> udp a:1000 > lb:80
			n1 -> udp unowned:1000 > lb:80
			n1 -> udp here:1000 > lb:80
			n1 drops spoofed_source 5`)
	})
}

// Policies of services count for clients outside: Local keeps to this node's
// endpoints and source ranges to whom they name.
func TestLoadBalancerPolicies(t *testing.T) {
	t.Parallel()
	each(t, vnet.Config{}, func(_ *testing.T, c *vnet.Cluster, f vnet.Family) {
		c.AddService("there", "b")
		balance(c, "there", func(s *model.Service) { s.ExternalLocal = true })
		c.Play(f, `
			n1 -> tcp outside:1000 > lb:80 flags=S
			n1 drops service_local
			n2 -> tcp outside:1000 > lb:80 flags=S
			b <- tcp outside:1000 > b:8080 flags=S
			a -> tcp a:1000 > lb:80 flags=S
			b <- tcp a:1000 > b:8080 flags=S`)
		balance(c, "there", func(s *model.Service) {
			s.ExternalLocal = false
			s.SourceRanges = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/64")}
		})
		c.Play(f, `
			n1 -> tcp outside:1001 > lb:80 flags=S
			n1 drops service_local
			n1 -> tcp n1:1001 > lb:80 flags=S
			b <- tcp n1:1001 > b:8080 flags=S`)
	})
}

// A datagram flow does not stay with what is gone: not when its Service is deleted,
// not when its port is, not when its target port changes (UDP-1 to UDP-5).
func TestDatagramFlowsFollowTheirService(t *testing.T) {
	t.Parallel()
	each(t, vnet.Config{}, func(_ *testing.T, c *vnet.Cluster, f vnet.Family) {
		c.AddService("one", "b")
		balance(c, "one")
		open := `
			a -> udp a:1000 > one:80
			b <- udp a:1000 > b:8080
			n1 -> udp outside:1000 > lb:80
			b <- udp outside:1000 > b:8080`
		c.Play(f, open)
		remove := func() {
			c.Change(func(s *model.State) {
				s.Services = slices.DeleteFunc(slices.Clone(s.Services), func(o *model.Service) bool { return o.Name.Name == "one" })
			})
			c.Publish()
		}
		remove()
		c.Play(f, `
			a -> udp a:1000 > one:80
			n1 drops unallocated
			n1 -> udp outside:1000 > lb:80
			n1 drops spoofed_source`)
		c.AddService("one", "a2")
		balance(c, "one")
		c.Play(f, `
			a -> udp a:1000 > one:80
			a2 <- udp a:1000 > a2:8080
			n1 -> udp outside:1000 > lb:80
			a2 <- udp outside:1000 > a2:8080`)
		c.Change(func(s *model.State) {
			for i, slice := range s.EndpointSlices {
				if slice.Service == "one" {
					one := *slice
					one.Ports = slices.Clone(one.Ports)
					for j := range one.Ports {
						one.Ports[j].Port = 9090
					}
					s.EndpointSlices[i] = &one
				}
			}
		})
		c.Publish()
		c.Play(f, `
			a -> udp a:1000 > one:80
			a2 <- udp a:1000 > a2:9090
			n1 -> udp outside:1000 > lb:80
			a2 <- udp outside:1000 > a2:9090`)
	})
}

// SCTP is translated as the others are, without any socket, and its flows follow
// endpoints; what is no port of a service is refused, pings too (DST-1).
func TestSCTPServices(t *testing.T) {
	t.Parallel()
	each(t, vnet.Config{}, func(_ *testing.T, c *vnet.Cluster, f vnet.Family) {
		c.AddService("assoc", "b")
		withSCTP := func() {
			c.Change(func(s *model.State) {
				for i, svc := range s.Services {
					if svc.Name.Name == "assoc" {
						one := *svc
						one.Ports = append(slices.Clone(one.Ports), model.ServicePort{Name: "SCTP", Protocol: model.SCTP, Port: vnet.ServicePort})
						s.Services[i] = &one
					}
				}
				for i, slice := range s.EndpointSlices {
					if slice.Service == "assoc" {
						one := *slice
						one.Ports = append(slices.Clone(one.Ports), model.EndpointPort{Name: "SCTP", Protocol: model.SCTP, Port: vnet.TargetPort})
						s.EndpointSlices[i] = &one
					}
				}
			})
			c.Publish()
		}
		withSCTP()
		c.Play(f, `
			a -> sctp a:1000 > assoc:80 data=init
			b <- sctp a:1000 > b:8080 data=init
			b -> sctp b:8080 > a:1000 data=ack
			a <- sctp assoc:80 > a:1000 data=ack
			a -> echo a > assoc id=7
			a <- unreach-port assoc > a [echo:a>assoc]
			n1 drops no_endpoints`)
		c.AddService("assoc", "a2")
		withSCTP()
		c.Play(f, `
			a -> sctp a:1000 > assoc:80 data=more
			a2 <- sctp a:1000 > a2:8080 data=more`)
	})
}
