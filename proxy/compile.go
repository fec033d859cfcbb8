package proxy

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/internal/sharemap"
)

// Input is what a Table is made from. Nothing of it is changed.
type Input struct {
	Node, Zone   string // this node and its topology zone
	Services     []*model.Service
	Slices       []*model.EndpointSlice
	ServiceCIDRs []netip.Prefix // addresses in them that no service has are KindUnallocated

	// Nodes are those on whose addresses node ports are translated, this one
	// among them.
	Nodes []*model.Node
	// Local are the addresses of clients on this node, its pods' and its own:
	// with external policy Local they are served from everywhere (POL-4).
	Local []netip.Prefix
	// Exclude are addresses that no Service may take as an external or load
	// balancer address: the nodes', the API server's, the name servers'.
	Exclude []netip.Prefix
	// ExternalIPs serves what Services name as external addresses of their own:
	// whoever may write a Service can take any address with it (CVE-2020-8554).
	ExternalIPs bool

	// Previous may be the Table of the last Compile: what has not changed is
	// shared with it. It does not change the result.
	Previous *Table
}

// Problem is something that a Service asks for and does not get.
type Problem struct {
	Service model.Name
	Reason  string
}

// String says what is wrong with which service.
func (p Problem) String() string { return "service " + p.Service.String() + ": " + p.Reason }

// unit is one service, compiled. It is shared between tables while the service
// and its slices stay the same objects.
type unit struct {
	service    *model.Service
	slices     []*model.EndpointSlice
	node, zone string
	ips        bool // external IPs are served

	internal []*Frontend // cluster IPs
	external []*Frontend // load balancer addresses, then external IPs
	ports    []nodePortUnit
}

type nodePortUnit struct {
	key  frontKey
	port nodePort
}

// Compile makes the Table. Problems are sorted and do not hold back the rest:
// of two services that claim one address the one whose name is first gets it.
func Compile(in Input) (*Table, []Problem) {
	c := compiler{in: in}
	if c.update() {
		return c.table, c.problems
	}
	c.all()
	return c.table, c.problems
}

// all makes the table of all services.
func (c *compiler) all() {
	in := c.in
	c.table = &Table{
		node: in.Node, zone: in.Zone, clusterIPs: make(map[packet.Addr]struct{}, 2*len(in.Services)), nodes: c.nodes(),
		pins: map[uint64]uint32{}, externalIPs: in.ExternalIPs, ranges: slices.Clone(in.ServiceCIDRs), local: slices.Clone(in.Local), exclude: slices.Clone(in.Exclude),
		services: sorted(in.Services, compareServices), slices: sorted(in.Slices, compareSlices),
	}
	c.frontends, c.nodePorts = new(sharemap.Edit[frontKey, *Frontend]), new(sharemap.Edit[frontKey, nodePort])
	units := c.units()
	for _, u := range units {
		c.claimInternal(u)
	}
	for _, u := range units {
		c.claimExternal(u)
	}
	c.table.frontends, c.table.nodePorts = c.frontends.Done(), c.nodePorts.Done()
	c.listen()
	c.outer(units)
	slices.SortStableFunc(c.problems, func(a, b Problem) int {
		return cmp.Or(a.Service.Compare(b.Service), cmp.Compare(a.Reason, b.Reason))
	})
	c.problems = slices.Compact(c.problems) // the two families may have the same one
	c.table.problems = c.problems
}

type compiler struct {
	in       Input
	table    *Table
	problems []Problem

	frontends *sharemap.Edit[frontKey, *Frontend] // of the table, while all is compiled
	nodePorts *sharemap.Edit[frontKey, nodePort]
}

func (c *compiler) problem(s model.Name, reason string) {
	c.problems = append(c.problems, Problem{Service: s, Reason: reason})
}

// units compiles every service that is ours to serve, in the order of names.
func (c *compiler) units() []*unit {
	bySvc := make(map[model.Name][]*model.EndpointSlice, len(c.in.Services))
	for _, s := range c.in.Slices {
		if k, ok := serviceOf(s); ok {
			bySvc[k] = append(bySvc[k], s)
		}
	}
	edit := c.table.units.Edit()
	var out []*unit
	for _, svc := range c.in.Services {
		if !served(svc) {
			continue
		}
		list := bySvc[svc.Name]
		slices.SortFunc(list, compareSlices)
		u := c.unit(svc, list)
		edit.Set(svc.Name, u)
		out = append(out, u)
	}
	c.table.units = edit.Done()
	slices.SortFunc(out, func(a, b *unit) int { return a.service.Name.Compare(b.service.Name) })
	return out
}

// served reports whether a service is ours to serve.
func served(svc *model.Service) bool {
	return !svc.ForeignProxy && !svc.Headless && svc.Type != model.ExternalName && len(svc.ClusterIPs) > 0 // IN-1, IN-3
}

// unit compiles one service, or takes it from the previous table.
func (c *compiler) unit(svc *model.Service, list []*model.EndpointSlice) *unit {
	if p := c.in.Previous; p != nil {
		if u := p.units.Get(svc.Name); u != nil && u.service == svc && u.node == c.in.Node && u.zone == c.in.Zone && u.ips == c.in.ExternalIPs && slices.Equal(u.slices, list) {
			return u
		}
	}
	return c.newUnit(svc, list)
}

// newUnit compiles one service with its slices, sorted.
func (c *compiler) newUnit(svc *model.Service, list []*model.EndpointSlice) *unit {
	u := &unit{service: svc, slices: list, node: c.in.Node, zone: c.in.Zone, ips: c.in.ExternalIPs}
	for _, fam := range []family{ipv4, ipv6} {
		i := slices.IndexFunc(svc.ClusterIPs, func(a netip.Addr) bool { return familyOf(a) == fam })
		if i < 0 {
			continue // DS-2: the service does not exist in this family
		}
		for j := range svc.Ports {
			u.addPort(svc.ClusterIPs[i], &svc.Ports[j], fam)
		}
	}
	return u
}

// addPort compiles one port of the service in one family.
func (u *unit) addPort(clusterIP netip.Addr, p *model.ServicePort, fam family) {
	svc := u.service
	var externalIPs []netip.Addr
	if u.ips {
		externalIPs = ofFamily(svc.ExternalIPs, fam)
	}
	accessible := p.NodePort != 0 || len(ofFamily(svc.LoadBalancerIPs, fam)) > 0 || len(externalIPs) > 0
	externalLocal := svc.ExternalLocal && accessible // POL-2
	eps := collect(u.slices, p, fam)
	chosen := choose(eps, u.node, u.zone, uses{
		cluster: !svc.InternalLocal || accessible,
		local:   svc.InternalLocal || externalLocal,
	})
	tables := maglevTables{on: svc.Maglev}
	base := Frontend{
		Service: svc.Name, Port: p.Name, serving: chosen.serving, maglev: svc.Maglev,
		timeout: seconds(svc.AffinityTimeout), pin: pinOf(svc, p),
	}
	at := func(k frontKey, list []Backend) Frontend {
		f := base
		f.key, f.backends, f.kind = k, list, kindOf(list, chosen.any)
		f.tables[0] = tables.of(list)
		return f
	}
	key := func(a netip.Addr) frontKey {
		return frontKey{addr: packet.AddrFrom(a), port: p.Port, proto: uint8(p.Protocol)}
	}
	internal := at(key(clusterIP), chosen.cluster)
	if svc.InternalLocal {
		internal = at(key(clusterIP), chosen.local) // POL-1
	}
	u.internal = append(u.internal, internal.seal())

	outer := func(k frontKey) Frontend {
		f := at(k, chosen.cluster)
		if externalLocal && chosen.any {
			f.split, f.outside = true, chosen.local // POL-4
			f.tables[1] = tables.of(chosen.local)
		}
		return f
	}
	for _, a := range ofFamily(svc.LoadBalancerIPs, fam) {
		f := outer(key(a))
		f.sources, f.external = sourcesOf(svc, fam), true
		u.external = append(u.external, f.seal())
	}
	for _, a := range externalIPs {
		f := outer(key(a))
		f.external = true
		u.external = append(u.external, f.seal())
	}
	if p.NodePort == 0 {
		return
	}
	k := frontKey{port: p.NodePort, proto: uint8(p.Protocol), family: fam}
	own, other := outer(k), at(k, chosen.cluster)
	np := nodePort{own: own.seal()}
	if externalLocal {
		other = at(k, nil) // a node without endpoints of its own
		np.nodes = byNode(eps, u.node, func(list []Backend) *Frontend { f := at(k, list); return f.seal() })
	}
	np.other = other.seal()
	u.ports = append(u.ports, nodePortUnit{key: k, port: np})
}

// byNode makes a frontend for every other node that has usable endpoints.
func byNode(eps []endpoint, self string, frontend func([]Backend) *Frontend) map[string]*Frontend {
	out := map[string]*Frontend{}
	for i := range eps {
		n := eps[i].Node
		if n == "" || n == self || out[n] != nil {
			continue
		}
		if list := localTo(eps, n, self); len(list) > 0 {
			out[n] = frontend(list)
		}
	}
	return out
}

// kindOf tells reject (no endpoint anywhere) from drop (none for this client).
func kindOf(list []Backend, anywhere bool) Kind {
	switch {
	case len(list) > 0:
		return KindBackends
	case anywhere:
		return KindDrop
	default:
		return KindReject
	}
}

// seconds rounds up, and keeps what validation of the API does not allow sane.
func seconds(d time.Duration) uint32 {
	const most = 86400
	if d <= 0 {
		return 0
	}
	return uint32(min((d+time.Second-1)/time.Second, most))
}

// pinOf is the affinity key of a service port: shared by all its addresses,
// not by the service's other ports, nor by a later service of that name (AFF-1).
func pinOf(svc *model.Service, p *model.ServicePort) uint64 {
	if svc.AffinityTimeout <= 0 {
		return 0
	}
	d := newDigest()
	d.text(svc.UID)
	d.text(svc.Name.Namespace)
	d.text(svc.Name.Name)
	d.text(p.Name)
	d.number(uint64(p.Protocol))
	return d.sum()
}

func ofFamily(list []netip.Addr, fam family) []netip.Addr {
	var out []netip.Addr
	for _, a := range list {
		if familyOf(a) == fam {
			out = append(out, a)
		}
	}
	return out
}

// sourcesOf returns the source ranges of a family; nil lets everybody in, which
// is also what no range of the family and a range of length zero mean (LB-5).
func sourcesOf(svc *model.Service, fam family) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range svc.SourceRanges {
		if familyOf(p.Addr()) != fam {
			continue
		}
		if p.Bits() == 0 {
			return nil
		}
		out = append(out, p)
	}
	return out
}

// nodes are the addresses of nodes.
func (c *compiler) nodes() map[packet.Addr]string {
	out := make(map[packet.Addr]string, len(c.in.Nodes))
	for _, n := range c.in.Nodes {
		for _, a := range n.Addresses {
			k := packet.AddrFrom(a)
			// An address that two nodes claim is this node's own, or the first one's.
			if _, taken := out[k]; !taken || n.Name == c.in.Node {
				out[k] = n.Name
			}
		}
	}
	return out
}

// claimInternal enters the cluster IPs, before any address that users choose.
func (c *compiler) claimInternal(u *unit) {
	for _, f := range u.internal {
		if c.enter(f) {
			c.table.clusterIPs[f.key.addr] = struct{}{}
		}
	}
}

// claimExternal enters the addresses and node ports of users' choice.
func (c *compiler) claimExternal(u *unit) {
	if !u.ips && len(u.service.ExternalIPs) > 0 {
		c.problem(u.service.Name, "spec.externalIPs are not served here: the configuration's allowExternalIPs says so")
	}
	refused := map[packet.Addr]bool{}
	for _, f := range u.external {
		if refused[f.key.addr] {
			continue
		}
		if reason := c.unfit(f.key.addr); reason != "" {
			refused[f.key.addr] = true
			c.problem(f.Service, reason)
			continue
		}
		c.enter(f)
	}
	for i := range u.ports {
		p := &u.ports[i]
		if have, ok := c.nodePorts.Lookup(p.key); ok {
			c.problem(u.service.Name, "node port "+portName(p.key)+" belongs to "+have.own.Service.String())
			continue
		}
		c.nodePorts.Set(p.key, p.port)
		c.table.countPort(&p.port, 1)
		c.pin(p.port.own)
	}
}

// listen lists the node ports, and keeps the previous list if it is the same.
func (c *compiler) listen() {
	t := c.table
	at := make(map[NodePort]int, t.nodePorts.Len()) // without families
	for k, np := range t.nodePorts.All() {
		if np.own.entryKind() == KindReject {
			continue
		}
		n := NodePort{Port: k.port, Protocol: model.Protocol(k.proto), Service: np.own.Service, Name: np.own.Port}
		i, ok := at[n]
		if !ok {
			i = len(t.listen)
			at[n] = i
			t.listen = append(t.listen, n)
		}
		one := &t.listen[i]
		one.IPv4, one.IPv6 = one.IPv4 || k.family == ipv4, one.IPv6 || k.family == ipv6
	}
	slices.SortFunc(t.listen, func(a, b NodePort) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol), a.Service.Compare(b.Service))
	})
	if p := c.in.Previous; p != nil && slices.Equal(p.listen, t.listen) {
		t.listen = p.listen
	}
}

// unfit says why a service may not have an external address, or nothing.
func (c *compiler) unfit(a packet.Addr) string {
	addr := a.Netip()
	_, clusterIP := c.table.clusterIPs[a]
	_, node := c.table.nodes[a]
	switch {
	case clusterIP:
		return "external address " + addr.String() + " is a service's cluster IP"
	case node:
		return "external address " + addr.String() + " is a node's"
	case addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast() || addr.IsLinkLocalUnicast():
		return "external address " + addr.String() + " cannot be a service's"
	case slices.ContainsFunc(c.in.Exclude, func(p netip.Prefix) bool { return p.Contains(addr) }):
		return "external address " + addr.String() + " is one that the node needs"
	default:
		return ""
	}
}

// enter adds a frontend unless its address and port are taken.
func (c *compiler) enter(f *Frontend) bool {
	if have, taken := c.frontends.Lookup(f.key); taken {
		if have.Service != f.Service {
			c.problem(f.Service, f.key.addr.String()+" port "+portName(f.key)+" belongs to "+have.Service.String())
		}
		return false
	}
	c.frontends.Set(f.key, f)
	c.table.count(f, 1)
	c.pin(f)
	return true
}

func (c *compiler) pin(f *Frontend) {
	if f.timeout != 0 {
		c.table.pins[f.pin] = f.timeout
	}
}

// portName writes a port as people do: 80/TCP.
func portName(k frontKey) string {
	return strconv.Itoa(int(k.port)) + "/" + model.Protocol(k.proto).String()
}
