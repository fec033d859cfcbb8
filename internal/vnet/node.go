package vnet

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"sync/atomic"

	"github.com/netctl/netctl/dns"
	"github.com/netctl/netctl/internal/agent"
	"github.com/netctl/netctl/internal/agent/port"
	"github.com/netctl/netctl/internal/datapath"
	"github.com/netctl/netctl/internal/flow"
	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/ipam"
	"github.com/netctl/netctl/overlay"
	"github.com/netctl/netctl/proxy"
)

// Node is one node: everything that an agent makes but the kernel's part.
type Node struct {
	Name     string
	Router   *datapath.Router
	Flows    *flow.Table
	Engine   *overlay.WireGuard // nil when the cluster is bare
	Host     *Port              // the node's own processes
	Netstack *Port              // the way outside; a test plays the sockets
	Inbound  *Port              // what listeners carry on; a test plays them, too
	Overlay  *Port              // nil unless the cluster is bare
	Resolver *dns.Server
	// Problems are what the last Compile had to say.
	Problems []string

	fixed []agent.LocalPort
	pods  map[datapath.PortID]*Pod
}

// Pod is a pod and its port.
type Pod struct {
	*Port
	Node *Node

	addrs       pair
	incarnation string
}

// addNode makes node i and its object.
func (c *Cluster) addNode(i int) {
	name := "n" + strconv.Itoa(i)
	key, err := overlay.NewPrivateKey()
	if err != nil {
		c.tb.Fatal(err)
	}
	self := addrs(fmt.Sprintf("192.0.2.%d", i), fmt.Sprintf("2001:db8::%d", i))
	obj := &model.Node{
		Name: name, Addresses: self[:], PublicKey: key.Public().String(),
		PodCIDRs: []netip.Prefix{
			netip.MustParsePrefix(fmt.Sprintf("10.1.%d.0/24", i)), netip.MustParsePrefix(fmt.Sprintf("fd00:1:0:%d::/64", i)),
		},
		Endpoints: []netip.AddrPort{netip.AddrPortFrom(self[0], tunnelPort), netip.AddrPortFrom(self[1], tunnelPort)},
	}
	c.state.Nodes = append(c.state.Nodes, obj)
	c.name(name, self)
	c.name("router."+name, pair{ipam.RouterAddr(obj.PodCIDRs[0]), ipam.RouterAddr(obj.PodCIDRs[1])})
	c.name("host."+name, pair{ipam.HostAddr(obj.PodCIDRs[0]), ipam.HostAddr(obj.PodCIDRs[1])})

	n := &Node{Name: name, pods: map[datapath.PortID]*Pod{}}
	if n.Flows, err = flow.Open(flow.Config{Slots: c.cfg.Slots, PerOwner: c.cfg.PerOwner}); err != nil {
		c.tb.Fatal(err)
	}
	n.Router = datapath.New(datapath.Config{Flows: n.Flows, Affinity: proxy.NewAffinity(proxy.AffinityConfig{Entries: 512}), Clock: c.now.Load})
	n.Resolver = dns.New(dns.Config{Upstreams: func() []netip.AddrPort { return nil }, Logger: c.log})
	c.nodes[name], c.order = n, append(c.order, n)
	n.Host = c.port(n, agent.HostPort, name)
	n.Netstack = c.port(n, agent.NetstackPort, "netstack."+name)
	n.Inbound = c.port(n, agent.InboundPort, "inbound."+name)
	c.addOverlay(n, key, self[:])
	n.fixed = append(n.fixed,
		agent.LocalPort{ID: agent.HostPort, Kind: datapath.KindHost, Port: n.Host, Name: "netctl0", MTU: c.cfg.MTU},
		agent.LocalPort{ID: agent.NetstackPort, Kind: datapath.KindNetstack, Port: n.Netstack, Name: "netstack", MTU: 65535},
		agent.LocalPort{ID: agent.InboundPort, Kind: datapath.KindInbound, Port: n.Inbound, Name: "inbound", MTU: 65535},
		agent.LocalPort{
			ID: agent.DNSPort, Kind: datapath.KindDNS, Name: "dns", MTU: 65535,
			Port: port.NewResolver(n.Resolver, n.Router.NewInputs(agent.DNSPort)),
		},
	)
}

// addOverlay gives the node its tunnel, or a port in its place.
func (c *Cluster) addOverlay(n *Node, key overlay.PrivateKey, self []netip.Addr) {
	lp := agent.LocalPort{ID: agent.OverlayPort, Kind: datapath.KindOverlay, Name: "overlay", MTU: c.cfg.MTU}
	if c.cfg.Bare {
		n.Overlay = c.port(n, agent.OverlayPort, "overlay."+n.Name)
		lp.Port = n.Overlay
		n.fixed = append(n.fixed, lp)
		return
	}
	inputs := n.Router.NewInputs(agent.OverlayPort)
	var err error
	n.Engine, err = overlay.NewWireGuard(overlay.WireGuardConfig{
		Key: key, ListenPort: tunnelPort, MTU: c.cfg.MTU, Wire: c.Network.Wire(self...), Logger: c.log,
		Sink: func(packets [][]byte) {
			packets = slices.DeleteFunc(packets, func(buf []byte) bool { return c.isProbe(n.Name, buf) })
			count := 0
			for _, buf := range packets {
				count += segments(buf, 0)
			}
			inputs.Deliver(packets...)
			c.left.Add(int64(count))
		},
	})
	if err != nil {
		c.tb.Fatal(err)
	}
	c.tb.Cleanup(func() {
		if err := n.Engine.Close(); err != nil {
			c.tb.Error(err)
		}
	})
	if err := n.Engine.Start(); err != nil {
		c.tb.Fatal(err)
	}
	lp.Port = &tunnel{Engine: port.Engine{Engine: n.Engine}, count: count{mtu: c.cfg.MTU, entered: &c.entered}}
	n.fixed = append(n.fixed, lp)
}

// tunnel counts what goes into an engine.
type tunnel struct {
	port.Engine

	count count
}

type count struct {
	mtu     int
	entered *atomic.Int64
}

// Write implements datapath.Port.
func (t *tunnel) Write(buf []byte) error { return t.count.write(buf, t.Engine.Write) }

// NewBatch implements datapath.Batcher.
func (t *tunnel) NewBatch() datapath.Batch { return &countedBatch{t.Engine.NewBatch(), t.count} }

type countedBatch struct {
	datapath.Batch

	count count
}

// Write implements datapath.Batch.
func (b *countedBatch) Write(buf []byte) error { return b.count.write(buf, b.Batch.Write) }

func (c *count) write(buf []byte, write func([]byte) error) error {
	n := int64(segments(buf, c.mtu))
	c.entered.Add(n)
	err := write(buf)
	if err != nil {
		c.entered.Add(-n)
	}
	return err
}

func segments(buf []byte, mtu int) int { return packet.Segments(slices.Clone(buf), mtu) }

// Input returns what Compile is given for the node: a copy to play with.
func (c *Cluster) Input(n *Node) agent.Input {
	ports := slices.Clone(n.fixed)
	for id, p := range n.pods {
		ports = append(ports, agent.LocalPort{
			ID: id, Kind: datapath.KindPod, Port: p.Port, Name: "default/" + p.Name, MTU: c.cfg.MTU,
			Addrs: p.addrs[:], Incarnation: p.incarnation,
		})
	}
	slices.SortFunc(ports, func(a, b agent.LocalPort) int { return int(a.ID) - int(b.ID) })
	return agent.Input{
		PodsOnly: c.cfg.PodsOnly, ForeignDNS: c.cfg.ForeignDNS,
		State: c.state, Node: n.Name, Domain: "cluster.local", Ports: ports, TunnelPort: tunnelPort,
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00:1::/48")},
	}
}

// Publish compiles the State for every node, publishes the tables and applies
// the peers, as an agent does.
func (c *Cluster) Publish() {
	c.tb.Helper()
	if c.hold {
		return
	}
	next := *c.state
	next.Revision++
	c.state = &next
	for _, n := range c.order {
		out := agent.Compile(c.Input(n))
		n.Problems = out.Problems
		n.Resolver.Publish(out.Zone)
		n.Router.Publish(out.Tables)
		if n.Engine == nil {
			continue
		}
		if err := n.Engine.Apply(out.Peers); err != nil {
			c.tb.Fatal(err)
		}
	}
	c.Settle()
	c.wait("no session between nodes", c.shaken)
	c.prove()
}

// shaken reports whether all nodes that are each other's peers have a session.
func (c *Cluster) shaken() bool {
	for _, ok := range c.mutual() {
		if !ok {
			return false
		}
	}
	return true
}

// mutual returns for every pair of nodes that are each other's peers, both ways
// round, whether the first has a session with the second.
func (c *Cluster) mutual() map[[2]string]bool {
	met := map[[2]string]bool{}
	for _, n := range c.order {
		if n.Engine == nil {
			continue
		}
		peers, err := n.Engine.Peers()
		if err != nil {
			c.tb.Fatal(err)
		}
		for i := range peers {
			met[[2]string{n.Name, peers[i].Node}] = !peers[i].LastHandshake.IsZero()
		}
	}
	maps.DeleteFunc(met, func(ends [2]string, _ bool) bool {
		_, ok := met[[2]string{ends[1], ends[0]}]
		return !ok
	})
	return met
}
