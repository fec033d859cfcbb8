package proxynode

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/nodeport"
	"github.com/netctl/netctl/proxy"
	"github.com/netctl/netctl/proxy/health"
)

// Input is everything that Compile looks at.
type Input struct {
	State        *model.State
	Node         string
	PodCIDRs     []netip.Prefix // see Config
	ServiceCIDRs []netip.Prefix // see Config
	NodePorts    proxy.NodePortAddresses
	ExternalIPs  bool
	Host         []netip.Addr // the host's own addresses, but for loopback and link-local ones
	// Protected are addresses that the node depends on: no range that holds one is
	// routed to netctl0, and no Service may have one.
	Protected []netip.Addr
	Previous  *Output // may be the last result; it does not change this one
}

// Output is what the node should be, as values.
type Output struct {
	Services  *proxy.Table
	Sources   Sources
	Routes    []kernel.Route // towards netctl0
	Listeners []nodeport.Listener
	Checks    []health.Check
	Problems  []string
	Notices   []model.Notice // those of the problems that are Services'
}

// noticeOf is what is to be told about a Service.
func noticeOf(s *model.State, name model.Name, reason, text string) model.Notice {
	n := model.Notice{Kind: "Service", Name: name, Reason: reason, Text: text, Warning: true}
	if svc := s.Service(name); svc != nil {
		n.UID = svc.UID
	}
	return n
}

// Sources are the addresses that may speak to virtual addresses through netctl0.
type Sources struct {
	Host, Pods map[netip.Addr]struct{}
	Ranges     []netip.Prefix // of pods
}

// Has reports whether a is one of them.
func (s *Sources) Has(a netip.Addr) bool {
	if _, ok := s.Host[a]; ok {
		return true
	}
	if _, ok := s.Pods[a]; ok {
		return true
	}
	return slices.ContainsFunc(s.Ranges, func(p netip.Prefix) bool { return p.Contains(a) })
}

func emptyTable() *proxy.Table {
	t, _ := proxy.Compile(proxy.Input{})
	return t
}

// Compile turns what the cluster says into what this node does. It is pure.
func Compile(in Input) Output {
	c := compiler{in: in, self: in.State.Node(in.Node)}
	if c.self == nil {
		c.self = &model.Node{Name: in.Node}
		c.problem("node %q is not in the cluster's state: is --node right, and is the kubelet registered?", in.Node)
	}
	c.sources()
	c.services()
	c.routes()
	c.listeners()
	return c.out
}

type compiler struct {
	in   Input
	self *model.Node
	out  Output
}

func (c *compiler) problem(format string, args ...any) {
	c.out.Problems = append(c.out.Problems, fmt.Sprintf(format, args...))
}

// sources finds who may come. Pods are known by the range of their node and, for
// networks that do not use it, one by one.
func (c *compiler) sources() {
	s := Sources{Host: make(map[netip.Addr]struct{}), Pods: make(map[netip.Addr]struct{})}
	for _, a := range c.in.Host {
		s.Host[a] = struct{}{}
	}
	s.Ranges = slices.Concat(c.self.PodCIDRs, c.in.PodCIDRs)
	for _, p := range c.in.State.Pods {
		if p.Node != c.in.Node || p.HostNetwork || p.Finished {
			continue
		}
		for _, a := range p.Addresses {
			if _, host := s.Host[a]; !host {
				s.Pods[a] = struct{}{}
			}
		}
	}
	c.out.Sources = s
}

// services compiles the table of services.
func (c *compiler) services() {
	in := proxy.Input{
		Node: c.in.Node, Zone: c.self.Zone, Services: c.in.State.Services, Slices: c.in.State.EndpointSlices,
		Nodes: c.nodes(), ExternalIPs: c.in.ExternalIPs, ServiceCIDRs: c.ranges(), Exclude: slices.Concat(c.ranges(), c.out.Sources.Ranges),
	}
	in.Local = slices.Clone(c.out.Sources.Ranges)
	for _, set := range []map[netip.Addr]struct{}{c.out.Sources.Host, c.out.Sources.Pods} {
		for a := range set {
			in.Local = append(in.Local, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	slices.SortFunc(in.Local, netip.Prefix.Compare)
	for _, a := range c.in.Protected {
		in.Exclude = append(in.Exclude, netip.PrefixFrom(a, a.BitLen()))
	}
	if c.in.Previous != nil {
		in.Previous = c.in.Previous.Services
	}
	table, problems := proxy.Compile(in)
	c.out.Services = table
	for _, p := range problems {
		c.problem("%s", p)
		c.out.Notices = append(c.out.Notices, noticeOf(c.in.State, p.Service, "NotServed", p.Reason))
	}
	for _, svc := range c.in.State.Services {
		if !svc.ForeignProxy && slices.ContainsFunc(svc.Ports, func(p model.ServicePort) bool { return p.Protocol == model.SCTP }) {
			c.problem("service %s: its SCTP ports are not served: connections end in sockets here, of TCP and UDP alone", svc.Name)
		}
	}
}

// nodes are the nodes with those of their addresses that have node ports.
func (c *compiler) nodes() []*model.Node {
	var out []*model.Node
	for _, n := range c.in.State.Nodes {
		one := &model.Node{Name: n.Name}
		for _, a := range n.Addresses {
			if c.in.NodePorts.Serves(a) {
				one.Addresses = append(one.Addresses, a)
			}
		}
		out = append(out, one)
	}
	return out
}

// ranges are the ranges of virtual addresses.
func (c *compiler) ranges() []netip.Prefix {
	out := slices.Concat(c.in.State.ServiceCIDRs, c.in.ServiceCIDRs)
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// routes leads the ranges of virtual addresses to netctl0. The node speaks to them
// with its own address; with any other source, replies of UDP servers of the host
// would come from the wrong one.
func (c *compiler) routes() {
	ranges := c.ranges()
	if len(ranges) == 0 {
		c.problem("the services' ranges are not known: the cluster has no ServiceCIDR objects; set --service-cidrs")
	}
	source := [2]netip.Addr{}
	for _, a := range slices.Backward(c.self.Addresses) {
		source[family(a)] = a
	}
	keep := slices.Concat(c.self.Addresses, c.in.Host, c.in.Protected)
	for _, p := range ranges {
		src := source[family(p.Addr())]
		i := slices.IndexFunc(keep, p.Contains)
		switch {
		case !src.IsValid():
			c.problem("no route to %s: node %s has no address of that family", p, c.in.Node)
		case i >= 0:
			c.problem("no route to %s: it holds %s, which lies outside of it; the cluster needs another range", p, keep[i])
		default:
			c.out.Routes = append(c.out.Routes, kernel.Route{Dst: p, Src: src})
		}
	}
	for _, a := range c.out.Services.Externals() {
		if src := source[family(a)]; src.IsValid() && !slices.Contains(c.in.Host, a) {
			c.out.Routes = append(c.out.Routes, kernel.Route{Dst: netip.PrefixFrom(a, a.BitLen()), Src: src})
		}
	}
}

// family is 0 for IPv4, 1 for IPv6: the index of two-family arrays.
func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}
