package agent

import (
	"encoding/binary"
	"hash/fnv"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"

	"github.com/netctl/netctl/dns"
	"github.com/netctl/netctl/dns/options"
	"github.com/netctl/netctl/internal/agent/claim"
	"github.com/netctl/netctl/internal/agent/limits"
	"github.com/netctl/netctl/internal/datapath"
	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/nodeport"
	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/internal/policy"
	"github.com/netctl/netctl/internal/shape"
	"github.com/netctl/netctl/ipam"
	"github.com/netctl/netctl/overlay"
	"github.com/netctl/netctl/proxy"
	"github.com/netctl/netctl/proxy/health"
)

// The ports that every node has. Pods' ports follow from FirstPodPort on.
const (
	HostPort datapath.PortID = 1 + iota
	OverlayPort
	NetstackPort
	DNSPort
	// InboundPort carries what this node's own listeners (node ports, host ports)
	// have accepted on to pods; behind it is the same stack as behind NetstackPort.
	InboundPort
	// OutsidePort carries pods' packets to the outside, where packets do that and not
	// the sockets behind NetstackPort.
	OutsidePort
	FirstPodPort
)

// dnsService is the Service whose virtual addresses the node's own name server
// answers on: kubelets are told the address that it bears.
//
//nolint:gochecknoglobals // a name known at compile time
var dnsService = model.Name{Namespace: "kube-system", Name: "kube-dns"}

// LocalPort is a port that exists on this node.
type LocalPort struct {
	ID    datapath.PortID
	Kind  datapath.Kind
	Port  datapath.Port
	Name  string
	MTU   int
	Addrs []netip.Addr // a pod's own
	// Incarnation tells two owners of one ID or address apart: the container ID.
	Incarnation string
	// Pod is who is behind a pod's port, Asked what the runtime wanted for it, Shaper
	// what holds it to its limits.
	Pod    model.Name
	Asked  limits.Asked
	Shaper *shape.Shaper
	// Plain is what the port's device is not given whole.
	Plain datapath.Plain
}

// Input is everything that Compile looks at.
type Input struct {
	State  *model.State
	Node   string
	Domain string // the cluster's DNS domain, "cluster.local"
	Ports  []LocalPort
	// ClusterCIDRs are ranges whose addresses are never "outside", besides what
	// the State says of nodes and services.
	ClusterCIDRs []netip.Prefix
	// Protected are addresses that this node depends on: no node can claim them
	// and no range that holds them is routed to netctl0.
	Protected []netip.Addr
	// TunnelPort is the UDP port that WireGuard listens on.
	TunnelPort uint16
	// PodsOnly leaves node processes and node ports to somebody else's proxy in the
	// kernel: only pods reach virtual addresses and node ports through us. What
	// that proxy sends to pods of this node may have clients outside as its source.
	PodsOnly bool
	// NodePorts are the addresses of nodes that have node ports, ExternalIPs serves
	// what Services name as such.
	NodePorts   proxy.NodePortAddresses
	ExternalIPs bool
	// Host are this node's addresses, as its kernel has them: where a load balancer's
	// address is one of them, the node listens on it instead of leading it to netctl0.
	Host []netip.Addr
	// ForeignDNS leaves the name server's virtual address to whoever stands
	// behind its Service: it is a service like any other.
	ForeignDNS bool
	// Names are the name server's options; nil: none.
	Names *options.Options
	// Previous may be what was compiled before: what has not changed is shared
	// with it. It does not change the result.
	Previous *Output
}

// Output is what the node should be, as values.
type Output struct {
	Tables     *datapath.Tables
	Peers      []overlay.Peer
	Zone       *dns.Zone
	HostRoutes []kernel.Route      // towards netctl0
	HostAddrs  []netip.Prefix      // on netctl0
	Listeners  []nodeport.Listener // of node ports, on this node's addresses
	Checks     []health.Check      // healthCheckNodePorts, likewise
	Blocks     []netip.Prefix      // that this node's pods get addresses from
	Limits     map[datapath.PortID]shape.Limits
	Problems   []string
	Notices    []model.Notice // those of the problems that are Services'
}

// noticeOf is what is to be told about a Service.
func noticeOf(s *model.State, name model.Name, reason, text string) model.Notice {
	n := model.Notice{Kind: "Service", Name: name, Reason: reason, Text: text, Warning: true}
	if svc := s.Service(name); svc != nil {
		n.UID = svc.UID
	}
	return n
}

// Compile turns what the cluster says into what this node does. It is pure: an
// equal Input gives a deep-equal Output, whatever was compiled before.
func Compile(in Input) Output {
	c := compiler{in: in, shaped: make(map[datapath.PortID]shape.Limits), tables: &datapath.Tables{Revision: in.State.Revision, TunnelPort: in.TunnelPort, Routes: new(bart.Table[datapath.Route])}}
	c.features()
	c.routes()
	c.ports()
	c.host()
	c.listeners()
	return Output{
		Tables: c.tables, Peers: c.mesh.Peers, Zone: c.zone, Blocks: c.blocks,
		HostRoutes: c.hostRoutes, HostAddrs: c.hostAddrs, Listeners: c.listens, Checks: c.checks, Limits: c.shaped, Problems: c.problems, Notices: c.notices,
	}
}

type compiler struct {
	in         Input
	tables     *datapath.Tables
	mesh       overlay.Mesh
	blocks     []netip.Prefix
	zone       *dns.Zone
	hostRoutes []kernel.Route
	hostAddrs  []netip.Prefix
	listens    []nodeport.Listener
	shaped     map[datapath.PortID]shape.Limits
	checks     []health.Check
	problems   []string
	notices    []model.Notice
}

func (c *compiler) problem(text string) { c.problems = append(c.problems, text) }

func (c *compiler) previous() *Output {
	if c.in.Previous == nil {
		return &Output{}
	}
	return c.in.Previous
}

// podRanges are the ranges that hold all pods, as far as they are known.
func (c *compiler) podRanges() []netip.Prefix {
	out := slices.Clone(c.in.ClusterCIDRs)
	for _, p := range c.in.State.BlockPools {
		if !slices.Contains(out, p.CIDR) {
			out = append(out, p.CIDR)
		}
	}
	return out
}

// self returns this node's object, or an empty one while it is unknown.
func (c *compiler) self() *model.Node {
	if n := c.in.State.Node(c.in.Node); n != nil {
		return n
	}
	return &model.Node{Name: c.in.Node}
}

// features compiles what the parts make of the State.
func (c *compiler) features() {
	s := c.in.State
	zone := c.compileNames()
	c.mesh = overlay.Compile(overlay.Input{
		Self: c.in.Node, Nodes: s.Nodes, Blocks: s.Blocks, Reserved: s.ServiceCIDRs, Pools: c.podRanges(), Protected: c.in.Protected,
		BlockPools: slices.Concat(s.BlockPools, claim.Pools(&model.State{}, c.in.ClusterCIDRs)),
	})
	for _, p := range c.mesh.Problems {
		c.problem(p.String())
	}
	in := proxy.Input{
		Node: c.in.Node, Zone: c.self().Zone, Services: s.Services, Slices: s.EndpointSlices, ServiceCIDRs: s.ServiceCIDRs,
		Exclude: slices.Concat(c.podRanges(), s.ServiceCIDRs), ExternalIPs: c.in.ExternalIPs,
	}
	in.Nodes = c.nodes()
	for _, claim := range c.mesh.Claims {
		in.Exclude = append(in.Exclude, claim.Prefix)
		if claim.Node == c.in.Node {
			in.Local = append(in.Local, claim.Prefix)
		}
	}
	for _, a := range c.in.Protected {
		in.Exclude = append(in.Exclude, host(a))
	}
	if t := c.previous().Tables; t != nil {
		in.Previous = t.Services
	}
	services, serviceProblems := proxy.Compile(in)
	for _, p := range serviceProblems {
		c.problem(p.String())
		c.notices = append(c.notices, noticeOf(s, p.Service, "NotServed", p.Reason))
	}
	c.tables.Services = services
	policies, policyProblems := policy.Compile(s.NetworkPolicies)
	for _, p := range policyProblems {
		c.problem("network policy " + p.Policy.String() + ": " + p.Reason)
	}
	c.tables.Policy = policies
	c.names(zone)
	if svc := s.Service(dnsService); svc != nil && !c.in.ForeignDNS {
		c.tables.DNSPort = DNSPort
		for _, a := range svc.ClusterIPs {
			c.tables.DNS[family(a)] = packet.AddrFrom(a)
		}
	}
}

// nodes are the nodes with the addresses that are surely theirs and have node
// ports: pods reach those there, wherever somebody else serves the node's own
// processes.
func (c *compiler) nodes() []*model.Node {
	byName := map[string]*model.Node{}
	var out []*model.Node
	for _, claim := range c.mesh.Claims {
		if !claim.Address || !c.in.NodePorts.Serves(claim.Prefix.Addr()) {
			continue
		}
		n := byName[claim.Node]
		if n == nil {
			n = &model.Node{Name: claim.Node}
			byName[claim.Node] = n
			out = append(out, n)
		}
		n.Addresses = append(n.Addresses, claim.Prefix.Addr())
	}
	return out
}

// names compiles the zone of the cluster's names.
func (c *compiler) names(zone <-chan *dns.Zone) {
	c.zone = <-zone
	for _, p := range c.zone.Problems() {
		c.problem("name " + p.String())
	}
}

// compileNames compiles the names beside everything else: of a large cluster's first
// State they are half of the work, and a node without an agent waits for it.
func (c *compiler) compileNames() <-chan *dns.Zone {
	in := dns.InputOf(c.in.State)
	in.Domain, in.Server, in.Previous = c.in.Domain, dnsService, c.previous().Zone
	if c.in.Names != nil {
		in.Configure(c.in.Names)
	}
	in.Ranges = slices.Concat(c.podRanges(), c.in.State.ServiceCIDRs)
	if svc := c.in.State.Service(dnsService); svc != nil {
		in.Addresses = svc.ClusterIPs
	}
	zone := make(chan *dns.Zone, 1)
	go func() { zone <- dns.Compile(in) }()
	return zone
}

// routes fills the routing table from the widest range to the single address,
// later entries standing above earlier ones of the same prefix. Only claims
// that the overlay accepted count: what a node says of itself is not a fact.
func (c *compiler) routes() {
	outside := datapath.Route{Port: c.wayOut()}
	if len(c.podRanges()) == 0 {
		// Without them a pod of a node that is not known yet would be "outside", and
		// what is sent to it would leave in plaintext.
		outside = datapath.Route{Reason: datapath.DropNoClusterRange}
		c.problem("the cluster's pod ranges are not known, so nothing is known to be outside: set clusterCIDRs or apply a BlockPool")
	}
	c.route(netip.MustParsePrefix("0.0.0.0/0"), outside)
	c.route(netip.MustParsePrefix("::/0"), outside)
	for _, p := range c.podRanges() {
		c.route(p, datapath.Route{Reason: datapath.DropUnownedAddress})
	}
	for _, p := range c.in.State.ServiceCIDRs {
		c.route(p, datapath.Route{Reason: datapath.DropUnallocated})
	}
	peers := c.peers()
	for _, claim := range c.mesh.Claims {
		switch {
		case claim.Node == c.in.Node:
			c.own(claim)
		case peers[claim.Node] != 0:
			c.route(claim.Prefix, datapath.Route{Port: OverlayPort, HostAddress: claim.Address, Peer: peers[claim.Node]})
		default:
			c.route(claim.Prefix, datapath.Route{Reason: datapath.DropPeerUnready})
		}
	}
	for _, claim := range c.mesh.Claims {
		c.router(claim, peers[claim.Node])
	}
	for _, a := range c.hostAddrs {
		c.route(a, datapath.Route{Port: HostPort, HostAddress: true})
	}
	for _, a := range c.tables.DNS {
		if a != (packet.Addr{}) {
			c.route(host(a.Netip()), datapath.Route{Port: NetstackPort})
		}
	}
	for _, p := range c.in.Ports {
		for _, a := range p.Addrs {
			c.route(host(a), datapath.Route{Port: p.ID})
		}
	}
}

// wayOut is the port behind which everything is that the cluster does not know.
func (c *compiler) wayOut() datapath.PortID {
	for _, p := range c.in.Ports {
		if p.Kind == datapath.KindOutside {
			return p.ID
		}
	}
	return NetstackPort
}

// leadsOutside reports whether what is behind a port is outside the cluster.
func leadsOutside(id datapath.PortID) bool { return id == NetstackPort || id == OutsidePort }

// peers numbers the nodes behind the overlay, from 1 on.
func (c *compiler) peers() map[string]uint32 {
	peers := make(map[string]uint32, len(c.mesh.Peers))
	c.tables.Peers = make([]datapath.Peer, len(c.mesh.Peers)+1)
	c.tables.PeerNumbers = make(map[uint64]uint32, len(c.mesh.Peers))
	for i, p := range c.mesh.Peers {
		n, id := uint32(i)+1, datapath.PeerID(p.Node)
		peers[p.Node] = n
		if twin, taken := c.tables.PeerNumbers[id]; taken {
			// One chance in a hundred trillion, unless somebody has searched for it.
			c.problem("node " + p.Node + " cannot be told from node " + c.mesh.Peers[max(twin, 1)-1].Node + " by the hash of its name: no clients from outside reach pods through either")
			c.tables.Peers[twin].ID, c.tables.PeerNumbers[id] = 0, 0
			continue
		}
		c.tables.Peers[n].ID, c.tables.PeerNumbers[id] = id, n
	}
	return peers
}

// router routes to the router's own address in a block: nobody answers there, but
// wrapped packets come from and go to it.
func (c *compiler) router(claim overlay.Claim, peer uint32) {
	if claim.Address {
		return
	}
	a := ipam.RouterAddr(claim.Prefix)
	if !claim.Prefix.Contains(a) {
		return // too small for one: ours are not
	}
	switch {
	case claim.Node == c.in.Node:
		c.route(host(a), datapath.Route{Reason: datapath.DropUnownedAddress, Router: true})
	case peer != 0:
		c.route(host(a), datapath.Route{Port: OverlayPort, Peer: peer, Router: true})
		if r := &c.tables.Peers[peer].Router[family(a)]; *r == (packet.Addr{}) {
			*r = packet.AddrFrom(a)
		}
	}
}

// own routes a range or address of this node.
func (c *compiler) own(claim overlay.Claim) {
	p := claim.Prefix
	if claim.Address {
		c.route(p, datapath.Route{Port: HostPort, HostAddress: true})
		return
	}
	c.route(p, datapath.Route{Reason: datapath.DropUnownedAddress})
	if own := &c.tables.RouterAddrs[family(p.Addr())]; *own == (packet.Addr{}) {
		*own = packet.AddrFrom(ipam.RouterAddr(p))
	}
	c.hostAddrs = append(c.hostAddrs, host(ipam.HostAddr(p)))
	if !slices.Contains(c.mesh.Contested, p) {
		c.blocks = append(c.blocks, p)
	}
}

func (c *compiler) route(p netip.Prefix, r datapath.Route) { c.tables.Routes.Insert(p.Masked(), r) }

// ports fills the table of ports with the generations of what stands behind
// them.
func (c *compiler) ports() {
	size := FirstPodPort
	for _, p := range c.in.Ports {
		size = max(size, p.ID+1)
	}
	c.tables.Ports = make([]datapath.PortEntry, size)
	c.tables.Netstack = NetstackPort
	// Without the port, connections are left that it had: of this kind they are known
	// to have the node's address, and end.
	c.tables.Ports[OutsidePort] = datapath.PortEntry{Kind: datapath.KindOutside, Gen: 1}
	for _, p := range c.in.Ports {
		e := datapath.PortEntry{
			Port: p.Port, Kind: p.Kind, MTU: p.MTU, Name: p.Name, Plain: p.Plain,
			Foreign: p.Kind == datapath.KindHost && c.in.PodsOnly,
			Gateway: p.Kind == datapath.KindHost && c.gateway(),
		}
		gen := fnv.New32a()
		write := func(parts ...[]byte) {
			for _, b := range parts {
				_, _ = gen.Write(binary.BigEndian.AppendUint32(nil, uint32(len(b)))) // a Hash never fails
				_, _ = gen.Write(b)
			}
		}
		write([]byte(p.Name), []byte(p.Incarnation), []byte{byte(p.Kind)})
		switch p.Kind {
		case datapath.KindPod:
			for _, a := range p.Addrs {
				addr := packet.AddrFrom(a)
				e.Addrs = append(e.Addrs, addr)
				write(addr[:], binary.BigEndian.AppendUint32(nil, c.tables.Policy.Generation(addr)))
			}
		case datapath.KindHost:
			for _, a := range c.hostSources() {
				addr := packet.AddrFrom(a)
				e.Addrs = append(e.Addrs, addr)
				write(addr[:])
			}
			c.writeGateway(write)
		case datapath.KindOverlay:
			// Flows of peers depend on who owns which range: a node that comes or goes
			// has them judged again.
			for _, p := range c.mesh.Peers {
				for _, a := range p.AllowedIPs {
					write([]byte(p.Node), []byte(a.String()))
				}
			}
			c.writeRanges(write)
		case datapath.KindNetstack, datapath.KindInbound:
			c.writeRanges(write)
		case datapath.KindOutside:
			for _, a := range c.self().Addresses { // the kernel's own errors come from there
				addr := packet.AddrFrom(a)
				e.Addrs = append(e.Addrs, addr)
				write(addr[:])
			}
			c.tables.Masquerade = p.ID
			c.writeRanges(write)
		case datapath.KindDNS: // nothing that is sent by it was judged
		}
		e.Gen = gen.Sum32()
		c.tables.Ports[p.ID] = e
		c.limits(&p)
	}
}

// writeGateway is writeRanges for the host port, where it matters only then.
func (c *compiler) writeGateway(write func(...[]byte)) {
	if c.gateway() {
		c.writeRanges(write)
	}
}

// gateway reports whether clients outside reach services by addresses that the
// node's kernel is told to lead to us.
func (c *compiler) gateway() bool { return !c.in.PodsOnly && len(c.tables.Services.Externals()) > 0 }

// writeRanges writes what decides which addresses are outside.
func (c *compiler) writeRanges(write func(...[]byte)) {
	for _, claim := range c.mesh.Claims {
		write([]byte(claim.Prefix.String()))
	}
	for _, p := range slices.Concat(c.podRanges(), c.in.State.ServiceCIDRs) {
		write([]byte(p.String()))
	}
}

// hostSources are the addresses that the node's own processes may speak from
// through netctl0.
func (c *compiler) hostSources() []netip.Addr {
	out := slices.Clone(c.self().Addresses)
	for _, p := range c.hostAddrs {
		out = append(out, p.Addr())
	}
	return out
}

// host says what the node's kernel is told: pods and services lie behind
// netctl0, and the node speaks to them with its own address (any other source
// would have UDP servers answer from the wrong one).
func (c *compiler) host() {
	ranges := c.podRanges()
	if !c.in.PodsOnly {
		ranges = append(ranges, c.in.State.ServiceCIDRs...)
		for _, a := range c.tables.Services.Externals() {
			if !slices.Contains(c.in.Host, a) {
				ranges = append(ranges, host(a))
			}
		}
	}
	keep := slices.Concat(c.self().Addresses, c.in.Protected)
	for _, claim := range c.mesh.Claims {
		if claim.Address {
			keep = append(keep, claim.Prefix.Addr())
		} else {
			ranges = append(ranges, claim.Prefix)
		}
	}
	source := map[int]netip.Addr{}
	for _, a := range slices.Backward(c.self().Addresses) {
		source[family(a)] = a
	}
	seen := map[netip.Prefix]bool{}
	for _, p := range ranges {
		src, ok := source[family(p.Addr())]
		i := slices.IndexFunc(keep, p.Contains)
		switch {
		case seen[p]:
		case !ok:
			c.problem("no route to " + p.String() + " for the node's processes: node " + c.in.Node + " has no address of that family")
		case i >= 0:
			c.problem("no route to " + p.String() + " for the node's processes: it holds " + keep[i].String() + ", which lies outside the cluster; choose another range")
		default:
			c.hostRoutes = append(c.hostRoutes, kernel.Route{Dst: p, Src: src})
		}
		seen[p] = true
	}
	slices.SortFunc(c.hostRoutes, func(a, b kernel.Route) int { return a.Dst.Compare(b.Dst) })
}

// family is 0 for IPv4, 1 for IPv6: the index of two-family arrays.
func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// host returns the prefix that holds a alone.
func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
