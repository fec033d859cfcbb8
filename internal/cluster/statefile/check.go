package statefile

import (
	"fmt"
	"net/netip"

	"github.com/netctl/netctl/internal/model"
)

// check reports what no source puts into a State: what reads it may rely on the
// order of names and on addresses being some. A file whose checksum is right and
// that has such things was made by somebody else, or by a netctl with a bug that
// must not meet itself at every start.
func check(s *model.State) error {
	var c checker
	sorted(&c, "nodes", s.Nodes, func(n *model.Node) model.Name { return model.Name{Name: n.Name} })
	sorted(&c, "namespaces", s.Namespaces, func(n *model.Namespace) model.Name { return model.Name{Name: n.Name} })
	sorted(&c, "pods", s.Pods, func(p *model.Pod) model.Name { return p.Name })
	sorted(&c, "services", s.Services, func(o *model.Service) model.Name { return o.Name })
	sorted(&c, "endpoint slices", s.EndpointSlices, func(o *model.EndpointSlice) model.Name { return o.Name })
	sorted(&c, "network policies", s.NetworkPolicies, func(o *model.NetworkPolicy) model.Name { return o.Name })
	for _, n := range s.Nodes {
		c.addrs(n.Addresses)
		c.prefixes(n.PodCIDRs)
		for _, e := range n.Endpoints {
			c.addr(e.Addr())
		}
	}
	for _, p := range s.Pods {
		c.addrs(p.Addresses)
		for _, port := range p.Ports {
			c.optional(port.HostIP)
		}
	}
	for _, o := range s.Services {
		c.addrs(o.ClusterIPs)
		c.addrs(o.ExternalIPs)
		c.addrs(o.LoadBalancerIPs)
		c.addrs(o.WantedIPs)
		c.prefixes(o.SourceRanges)
		if o.AffinityTimeout < 0 {
			c.fail("service %s keeps clients for %v", o.Name, o.AffinityTimeout)
		}
	}
	for _, o := range s.EndpointSlices {
		for i := range o.Endpoints {
			c.addr(o.Endpoints[i].Address)
		}
	}
	for _, o := range s.NetworkPolicies {
		c.rules(o.Ingress)
		c.rules(o.Egress)
	}
	c.prefixes(s.ServiceCIDRs)
	for _, b := range s.Blocks {
		c.prefix(b.CIDR)
	}
	for _, b := range s.BlockPools {
		c.prefix(b.CIDR)
	}
	return c.err
}

// checker keeps the first thing that is wrong.
type checker struct{ err error }

func (c *checker) fail(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf(format, args...)
	}
}

func (c *checker) addr(a netip.Addr) {
	if !a.IsValid() || a.Zone() != "" || a.Is4In6() {
		c.fail("address %q", a)
	}
}

func (c *checker) optional(a netip.Addr) {
	if a != (netip.Addr{}) {
		c.addr(a)
	}
}

func (c *checker) addrs(list []netip.Addr) {
	for _, a := range list {
		c.addr(a)
	}
}

func (c *checker) prefix(p netip.Prefix) {
	if !p.IsValid() || p.Addr().Is4In6() {
		c.fail("range %q", p)
	}
}

func (c *checker) prefixes(list []netip.Prefix) {
	for _, p := range list {
		c.prefix(p)
	}
}

func (c *checker) rules(rules []model.PolicyRule) {
	for _, r := range rules {
		for i := range r.Peers {
			if p := &r.Peers[i]; p.CIDR != (netip.Prefix{}) {
				c.prefix(p.CIDR)
				c.prefixes(p.Except)
			}
		}
	}
}

// sorted checks that objects are there and in the order of their names, no name
// twice.
func sorted[T any](c *checker, what string, list []*T, name func(*T) model.Name) {
	for i, o := range list {
		if o == nil {
			c.fail("%s: number %d is missing", what, i)
			return
		}
		if i > 0 && name(list[i-1]).Compare(name(o)) >= 0 {
			c.fail("%s: %s comes after %s", what, name(o), name(list[i-1]))
		}
	}
}
