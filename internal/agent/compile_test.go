package agent_test

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/netctl/netctl/internal/agent"
	"github.com/netctl/netctl/internal/datapath"
	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/overlay"
	"github.com/netctl/netctl/proxy"
)

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func key(t *testing.T) string {
	t.Helper()
	k, err := overlay.NewPrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k.Public().String()
}

// node makes node "nI" with everything that an agent publishes.
func node(t *testing.T, i string) *model.Node {
	t.Helper()
	return &model.Node{
		Name: "n" + i, PublicKey: key(t),
		Addresses: []netip.Addr{addr("192.0.2." + i), addr("2001:db8::" + i)},
		PodCIDRs:  []netip.Prefix{prefix("10.1." + i + ".0/24"), prefix("fd00:1:0:" + i + "::/64")},
		Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2." + i + ":51820")},
	}
}

// input is the view of n1 on a cluster of three nodes, with one pod.
func input(t *testing.T) agent.Input {
	t.Helper()
	return agent.Input{
		Node: "n1", Domain: "cluster.local",
		ClusterCIDRs: []netip.Prefix{prefix("10.1.0.0/16"), prefix("fd00:1::/48")},
		State: &model.State{
			Revision: 7, Synced: true,
			Nodes:        []*model.Node{node(t, "1"), node(t, "2"), node(t, "3")},
			ServiceCIDRs: []netip.Prefix{prefix("10.96.0.0/16"), prefix("fd00:96::/112")},
			Services: []*model.Service{{
				Name: model.Name{Namespace: "kube-system", Name: "kube-dns"}, Type: model.ClusterIP,
				ClusterIPs: []netip.Addr{addr("10.96.0.10"), addr("fd00:96::a")},
				Ports:      []model.ServicePort{{Name: "dns", Protocol: model.UDP, Port: 53}},
			}},
		},
		Ports: []agent.LocalPort{
			{ID: agent.HostPort, Kind: datapath.KindHost, Name: "netctl0", MTU: 1420},
			{ID: agent.OverlayPort, Kind: datapath.KindOverlay, Name: "overlay", MTU: 1420},
			{ID: agent.NetstackPort, Kind: datapath.KindNetstack, Name: "netstack", MTU: 65535},
			{ID: agent.DNSPort, Kind: datapath.KindDNS, Name: "dns", MTU: 65535},
			pod(agent.FirstPodPort, "default/a", "10.1.1.5", "fd00:1:0:1::5"),
		},
	}
}

func pod(id datapath.PortID, name, v4, v6 string) agent.LocalPort {
	return agent.LocalPort{
		ID: id, Kind: datapath.KindPod, Name: name, MTU: 1420, Incarnation: name + "-1",
		Addrs: []netip.Addr{addr(v4), addr(v6)},
	}
}

// change edits a copy of a node's object.
func change(in *agent.Input, i int, edit func(*model.Node)) {
	s := *in.State
	s.Nodes = slices.Clone(s.Nodes)
	n := *s.Nodes[i]
	edit(&n)
	s.Nodes[i] = &n
	in.State = &s
}

func TestRoutes(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		edit func(*agent.Input)
		dst  string
		want datapath.Route
	}{
		{"outside", nil, "198.51.100.1", datapath.Route{Port: agent.NetstackPort}},
		{"outside v6", nil, "2001:db8:ffff::1", datapath.Route{Port: agent.NetstackPort}},
		{"own pod", nil, "10.1.1.5", datapath.Route{Port: agent.FirstPodPort}},
		{"own pod v6", nil, "fd00:1:0:1::5", datapath.Route{Port: agent.FirstPodPort}},
		{"unowned here", nil, "10.1.1.6", datapath.Route{Reason: datapath.DropUnownedAddress}},
		{"the router", nil, "10.1.1.2", datapath.Route{Reason: datapath.DropUnownedAddress, Router: true}},
		{"another node's router", nil, "fd00:1:0:3::2", datapath.Route{Port: agent.OverlayPort, Peer: 2, Router: true}},
		{"netctl0", nil, "10.1.1.1", datapath.Route{Port: agent.HostPort, HostAddress: true}},
		{"this node", nil, "192.0.2.1", datapath.Route{Port: agent.HostPort, HostAddress: true}},
		{"this node v6", nil, "2001:db8::1", datapath.Route{Port: agent.HostPort, HostAddress: true}},
		{"pod of another node", nil, "10.1.2.9", datapath.Route{Port: agent.OverlayPort, Peer: 1}},
		{"pod of another node v6", nil, "fd00:1:0:2::9", datapath.Route{Port: agent.OverlayPort, Peer: 1}},
		{"another node", nil, "192.0.2.2", datapath.Route{Port: agent.OverlayPort, HostAddress: true, Peer: 1}},
		{"range of nobody", nil, "10.1.77.7", datapath.Route{Reason: datapath.DropUnownedAddress}},
		{"service of nobody", nil, "10.96.7.7", datapath.Route{Reason: datapath.DropUnallocated}},
		{"name server over TCP", nil, "10.96.0.10", datapath.Route{Port: agent.NetstackPort}},
		{
			"node without a key", func(in *agent.Input) { change(in, 1, func(n *model.Node) { n.PublicKey = "" }) },
			"10.1.2.9",
			datapath.Route{Reason: datapath.DropPeerUnready},
		},
		{
			"address of a node without a key", func(in *agent.Input) { change(in, 1, func(n *model.Node) { n.PublicKey = "" }) },
			"192.0.2.2",
			datapath.Route{Reason: datapath.DropPeerUnready},
		},
		{
			"range that two nodes claim", func(in *agent.Input) { change(in, 1, func(n *model.Node) { n.PodCIDRs = in.State.Nodes[2].PodCIDRs }) },
			"10.1.3.9",
			datapath.Route{Reason: datapath.DropUnownedAddress},
		},
		{
			"block", func(in *agent.Input) {
				s := *in.State
				s.Blocks = []model.Block{{CIDR: prefix("10.1.50.0/25"), Node: "n3"}}
				in.State = &s
			}, "10.1.50.9", datapath.Route{Port: agent.OverlayPort, Peer: 2},
		},
		{
			"a node's claim on another node's pod", func(in *agent.Input) {
				change(in, 2, func(n *model.Node) { n.Addresses = append(slices.Clone(n.Addresses), addr("10.1.2.9")) })
			}, "10.1.2.9", datapath.Route{Port: agent.OverlayPort, Peer: 1},
		},
		{
			"a node's block inside another node's range", func(in *agent.Input) {
				s := *in.State
				s.Blocks = []model.Block{{CIDR: prefix("10.1.2.8/29"), Node: "n3"}}
				in.State = &s
			}, "10.1.2.9", datapath.Route{Port: agent.OverlayPort, Peer: 1},
		},
		{
			"a node's claim on a pod of ours", func(in *agent.Input) {
				change(in, 2, func(n *model.Node) { n.Addresses = append(slices.Clone(n.Addresses), addr("10.1.1.5")) })
			}, "10.1.1.5", datapath.Route{Port: agent.FirstPodPort},
		},
		{
			"a node's claim on this node", func(in *agent.Input) {
				change(in, 2, func(n *model.Node) { n.Addresses = append(slices.Clone(n.Addresses), addr("192.0.2.1")) })
			}, "192.0.2.1", datapath.Route{Port: agent.HostPort, HostAddress: true},
		},
		{
			"a node's claim on a service", func(in *agent.Input) {
				change(in, 2, func(n *model.Node) { n.Addresses = append(slices.Clone(n.Addresses), addr("10.96.7.7")) })
			}, "10.96.7.7", datapath.Route{Reason: datapath.DropUnallocated},
		},
		{
			"outside, while the pod ranges are not known", func(in *agent.Input) { in.ClusterCIDRs = nil },
			"198.51.100.10",
			datapath.Route{Reason: datapath.DropNoClusterRange},
		},
		{
			"outside, with a block pool alone", func(in *agent.Input) {
				s := *in.State
				s.BlockPools = []model.BlockPool{{CIDR: in.ClusterCIDRs[0], Bits: 25}}
				in.State, in.ClusterCIDRs = &s, nil
			}, "198.51.100.10", datapath.Route{Port: agent.NetstackPort},
		},
		{
			"a node that is gone", func(in *agent.Input) {
				s := *in.State
				s.Nodes = s.Nodes[:1]
				in.State = &s
			}, "10.1.2.9", datapath.Route{Reason: datapath.DropUnownedAddress},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			in := input(t)
			if tt.edit != nil {
				tt.edit(&in)
			}
			got, _ := agent.Compile(in).Tables.Routes.Lookup(addr(tt.dst))
			if got != tt.want {
				t.Errorf("route to %s is %+v, want %+v", tt.dst, got, tt.want)
			}
		})
	}
}

// TestPacketsToTheOutside: with the port for them, everything outside is behind it,
// and what ends in sockets on the node stays there.
func TestPacketsToTheOutside(t *testing.T) {
	t.Parallel()
	in := input(t)
	sockets := agent.Compile(in).Tables
	if e := sockets.Ports[agent.OutsidePort]; sockets.Masquerade != datapath.NoPort || e.Kind != datapath.KindOutside || e.Port != nil {
		t.Errorf("without it: masquerade %d, entry %+v", sockets.Masquerade, e)
	}
	in.Ports = append(in.Ports, agent.LocalPort{ID: agent.OutsidePort, Kind: datapath.KindOutside, Name: "outside", MTU: 1420})
	tb := agent.Compile(in).Tables
	if tb.Masquerade != agent.OutsidePort || tb.Netstack != agent.NetstackPort {
		t.Errorf("masquerade %d, netstack %d", tb.Masquerade, tb.Netstack)
	}
	for dst, want := range map[string]datapath.PortID{
		"198.51.100.1": agent.OutsidePort, "2001:db8:ffff::1": agent.OutsidePort,
		"10.96.0.10": agent.NetstackPort, "fd00:96::a": agent.NetstackPort,
		"10.1.1.5": agent.FirstPodPort, "192.0.2.1": agent.HostPort, "10.1.2.9": agent.OverlayPort, "10.1.77.7": datapath.NoPort,
	} {
		if rt, _ := tb.Routes.Lookup(addr(dst)); rt.Port != want {
			t.Errorf("%s is behind port %d, want %d", dst, rt.Port, want)
		}
		if got := tb.Outside(packet.AddrFrom(addr(dst))); got != (want == agent.OutsidePort) {
			t.Errorf("%s is outside: %t", dst, got)
		}
	}
	e := tb.Ports[agent.OutsidePort]
	if want := []packet.Addr{packet.AddrFrom(addr("192.0.2.1")), packet.AddrFrom(addr("2001:db8::1"))}; !slices.Equal(e.Addrs, want) {
		t.Errorf("its errors come from %v, want %v", e.Addrs, want)
	}
	if e.Gen == sockets.Ports[agent.OutsidePort].Gen {
		t.Error("its connections are not judged again when it is gone")
	}
	in.ClusterCIDRs = nil
	if rt, _ := agent.Compile(in).Tables.Routes.Lookup(addr("198.51.100.1")); rt.Reason != datapath.DropNoClusterRange {
		t.Errorf("without pod ranges: %+v", rt)
	}
}

func TestTables(t *testing.T) {
	t.Parallel()
	in := input(t)
	tb := agent.Compile(in).Tables
	if tb.Revision != 7 || tb.Netstack != agent.NetstackPort || tb.DNSPort != agent.DNSPort {
		t.Errorf("revision %d, netstack %d, dns %d", tb.Revision, tb.Netstack, tb.DNSPort)
	}
	if want := [2]packet.Addr{packet.AddrFrom(addr("10.1.1.2")), packet.AddrFrom(addr("fd00:1:0:1::2"))}; tb.RouterAddrs != want {
		t.Errorf("router has %v, want %v", tb.RouterAddrs, want)
	}
	if want := [2]packet.Addr{packet.AddrFrom(addr("10.96.0.10")), packet.AddrFrom(addr("fd00:96::a"))}; tb.DNS != want {
		t.Errorf("name server has %v, want %v", tb.DNS, want)
	}
	var host []string
	for _, a := range tb.Ports[agent.HostPort].Addrs {
		host = append(host, a.String())
	}
	if want := []string{"192.0.2.1", "2001:db8::1", "10.1.1.1", "fd00:1:0:1::1"}; !slices.Equal(host, want) {
		t.Errorf("the host may send from %v, want %v", host, want)
	}
	if e := tb.Ports[agent.FirstPodPort]; e.Kind != datapath.KindPod || e.Name != "default/a" || len(e.Addrs) != 2 || e.MTU != 1420 {
		t.Errorf("pod's entry is %+v", e)
	}
	if e := tb.Ports[datapath.NoPort]; e.Kind != 0 || e.Port != nil {
		t.Errorf("port 0 is taken: %+v", e)
	}
	in.State = &model.State{Synced: true}
	if tb := agent.Compile(in).Tables; tb.DNSPort != datapath.NoPort {
		t.Error("there is a name server without its Service")
	}
}

func TestHost(t *testing.T) {
	t.Parallel()
	in := input(t)
	out := agent.Compile(in)
	if want := []netip.Prefix{prefix("10.1.1.1/32"), prefix("fd00:1:0:1::1/128")}; !slices.Equal(out.HostAddrs, want) {
		t.Errorf("netctl0 has %v, want %v", out.HostAddrs, want)
	}
	got := map[string]string{}
	for _, r := range out.HostRoutes {
		got[r.Dst.String()] = r.Src.String()
	}
	for dst, src := range map[string]string{
		"10.1.0.0/16": "192.0.2.1", "10.96.0.0/16": "192.0.2.1", "10.1.2.0/24": "192.0.2.1",
		"fd00:1::/48": "2001:db8::1", "fd00:96::/112": "2001:db8::1",
	} {
		if got[dst] != src {
			t.Errorf("route to %s has source %q, want %s", dst, got[dst], src)
		}
	}
	change(&in, 2, func(n *model.Node) { n.PodCIDRs = []netip.Prefix{prefix("192.0.2.0/26"), prefix("0.0.0.0/0")} })
	out = agent.Compile(in)
	for _, r := range out.HostRoutes {
		if r.Dst.Contains(addr("192.0.2.2")) {
			t.Errorf("the node's way to another node is routed away: %v", r.Dst)
		}
	}
	change(&in, 0, func(n *model.Node) { n.Addresses = n.Addresses[:1] })
	out = agent.Compile(in)
	for _, r := range out.HostRoutes {
		if r.Dst.Addr().Is6() {
			t.Errorf("route %v without a source of its family", r.Dst)
		}
	}
	if !slices.ContainsFunc(out.Problems, func(p string) bool { return strings.Contains(p, "no address of that family") }) {
		t.Errorf("nobody is told of missing routes: %v", out.Problems)
	}
}

// A port's generation moves with what its flows depend on, and with nothing else.
func TestGenerations(t *testing.T) {
	t.Parallel()
	podOf := func(in *agent.Input, edit func(*agent.LocalPort)) {
		in.Ports = slices.Clone(in.Ports)
		edit(&in.Ports[len(in.Ports)-1])
	}
	tests := []struct {
		name  string
		edit  func(*agent.Input)
		moved []datapath.PortID
	}{
		{"nothing", func(*agent.Input) {}, nil},
		{"revision", func(in *agent.Input) {
			s := *in.State
			s.Revision++
			in.State = &s
		}, nil},
		{"a service", func(in *agent.Input) {
			s := *in.State
			s.Services = append(slices.Clone(s.Services), &model.Service{
				Name: model.Name{Namespace: "z", Name: "z"}, ClusterIPs: []netip.Addr{addr("10.96.0.99")},
				Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80}},
			})
			in.State = &s
		}, nil},
		{"another pod", func(in *agent.Input) {
			in.Ports = append(slices.Clone(in.Ports), pod(agent.FirstPodPort+1, "default/b", "10.1.1.9", "fd00:1:0:1::9"))
		}, nil},
		{"the pod was replaced", func(in *agent.Input) {
			podOf(in, func(p *agent.LocalPort) { p.Incarnation = "another" })
		}, []datapath.PortID{agent.FirstPodPort}},
		{"the pod's address", func(in *agent.Input) {
			podOf(in, func(p *agent.LocalPort) { p.Addrs = []netip.Addr{addr("10.1.1.77")} })
		}, []datapath.PortID{agent.FirstPodPort}},
		{"a peer's key", func(in *agent.Input) {
			change(in, 1, func(n *model.Node) { n.PublicKey = "" })
		}, []datapath.PortID{agent.OverlayPort}},
		{"a node is gone", func(in *agent.Input) {
			s := *in.State
			s.Nodes = s.Nodes[:2]
			in.State = &s
		}, []datapath.PortID{agent.OverlayPort, agent.NetstackPort}},
		{"this node's address", func(in *agent.Input) {
			change(in, 0, func(n *model.Node) { n.Addresses = []netip.Addr{addr("192.0.2.111")} })
		}, []datapath.PortID{agent.HostPort, agent.OverlayPort, agent.NetstackPort}},
	}
	base := input(t)
	before := agent.Compile(base).Tables.Ports
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			in := base
			tt.edit(&in)
			after := agent.Compile(in).Tables.Ports
			var moved []datapath.PortID
			for id := range before {
				if before[id].Gen != after[id].Gen {
					moved = append(moved, datapath.PortID(id)) // an index
				}
			}
			if !slices.Equal(moved, tt.moved) {
				t.Errorf("generations of ports %v moved, want %v", moved, tt.moved)
			}
		})
	}
}

// Two ports never have one generation: a flow would not notice that it goes
// somewhere else.
func TestGenerationsAreApart(t *testing.T) {
	t.Parallel()
	in := input(t)
	in.Ports = append(in.Ports, pod(agent.FirstPodPort+1, "default/b", "10.1.1.9", "fd00:1:0:1::9"))
	seen := map[uint32]string{}
	for _, e := range agent.Compile(in).Tables.Ports[1:] {
		if other, ok := seen[e.Gen]; ok {
			t.Errorf("%s and %s have one generation", e.Name, other)
		}
		seen[e.Gen] = e.Name
	}
}

func TestCompileIsPure(t *testing.T) {
	t.Parallel()
	in := input(t)
	first, second := agent.Compile(in), agent.Compile(in)
	if !reflect.DeepEqual(first, second) {
		t.Error("two compiles of one input differ")
	}
	with := in
	with.Previous = &first
	if third := agent.Compile(with); !reflect.DeepEqual(first, third) {
		t.Error("what was compiled before changes the result")
	}
	old := input(t)
	old.State.Services = nil
	before := agent.Compile(old)
	with.Previous = &before
	if fourth := agent.Compile(with); !reflect.DeepEqual(first, fourth) {
		t.Error("another State that was compiled before changes the result")
	}
}

func TestEmptyStateDropsWhatItShould(t *testing.T) {
	t.Parallel()
	out := agent.Compile(agent.Input{State: &model.State{}, Node: "n1"})
	if len(out.Peers) != 0 || len(out.HostRoutes) != 0 || out.Tables == nil || out.Zone == nil {
		t.Errorf("of nothing came %+v", out)
	}
}

// nodePorts gives the input a service of pods at a node port, in the families of
// its endpoints.
func nodePorts(in *agent.Input, endpoints ...string) {
	s := *in.State
	name := model.Name{Namespace: "default", Name: "web"}
	s.Services = append(slices.Clone(s.Services), &model.Service{
		Name: name, Type: model.NodePort, ClusterIPs: []netip.Addr{addr("10.96.0.77"), addr("fd00:96::77")},
		Ports: []model.ServicePort{
			{Name: "http", Protocol: model.TCP, Port: 80, NodePort: 30080},
			{Name: "quic", Protocol: model.UDP, Port: 80, NodePort: 30080},
			{Name: "sctp", Protocol: model.SCTP, Port: 80, NodePort: 30081},
		},
	})
	for _, e := range endpoints {
		slice := &model.EndpointSlice{
			Name: model.Name{Namespace: "default", Name: e}, Service: "web", IPv6: addr(e).Is6(),
			Endpoints: []model.Endpoint{{Address: addr(e), Ready: true, Serving: true}},
		}
		for _, p := range s.Services[len(s.Services)-1].Ports {
			slice.Ports = append(slice.Ports, model.EndpointPort{Name: p.Name, Protocol: p.Protocol, Port: 8080})
		}
		s.EndpointSlices = append(s.EndpointSlices, slice)
	}
	in.State = &s
}

func TestListeners(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		edit func(*agent.Input)
		want []string
	}{
		{"both families", func(in *agent.Input) { nodePorts(in, "10.1.1.5", "fd00:1:0:1::5") }, []string{
			"192.0.2.1:30080 TCP service default/web port http", "[2001:db8::1]:30080 TCP service default/web port http",
			"192.0.2.1:30080 UDP service default/web port quic", "[2001:db8::1]:30080 UDP service default/web port quic",
		}},
		{"endpoints of one", func(in *agent.Input) { nodePorts(in, "fd00:1:0:1::5") }, []string{
			"[2001:db8::1]:30080 TCP service default/web port http", "[2001:db8::1]:30080 UDP service default/web port quic",
		}},
		{"no endpoint", func(in *agent.Input) { nodePorts(in) }, nil},
		{"NP-2 every address of the host, and loopback", func(in *agent.Input) {
			nodePorts(in, "10.1.1.5")
			in.NodePorts, _ = proxy.ParseNodePortAddresses([]string{"all", "localhost"})
			in.Host = []netip.Addr{addr("192.0.2.1"), addr("192.168.7.1")}
		}, []string{
			"127.0.0.1:30080 TCP service default/web port http", "192.0.2.1:30080 TCP service default/web port http", "192.168.7.1:30080 TCP service default/web port http",
			"127.0.0.1:30080 UDP service default/web port quic", "192.0.2.1:30080 UDP service default/web port quic", "192.168.7.1:30080 UDP service default/web port quic",
		}},
		{"LB-1 an address that is on an interface of the host", func(in *agent.Input) {
			nodePorts(in, "10.1.1.5")
			svc := *in.State.Services[len(in.State.Services)-1]
			svc.Type, svc.LoadBalancerIPs = model.LoadBalancer, []netip.Addr{addr("203.0.113.1"), addr("203.0.113.2")}
			for i := range svc.Ports {
				svc.Ports[i].NodePort = 0
			}
			in.State.Services[len(in.State.Services)-1] = &svc
			in.Host = []netip.Addr{addr("203.0.113.1")}
		}, []string{"203.0.113.1:80 TCP service default/web port http", "203.0.113.1:80 UDP service default/web port quic"}},
		{"somebody else's proxy", func(in *agent.Input) { nodePorts(in, "10.1.1.5"); in.PodsOnly = true }, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			in := input(t)
			tt.edit(&in)
			var got []string
			for _, l := range agent.Compile(in).Listeners {
				got = append(got, l.Addr.String()+" "+l.Proto.String()+" "+l.Owner)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("listens on %q, want %q", got, tt.want)
			}
		})
	}
}

// Beside somebody else's proxy the node's processes reach pods through netctl0,
// services not, and the clients that it lets keep their address are let in.
func TestPodsOnly(t *testing.T) {
	t.Parallel()
	in := input(t)
	if agent.Compile(in).Tables.Ports[agent.HostPort].Foreign {
		t.Error("foreign sources may come from netctl0")
	}
	in.PodsOnly = true
	out := agent.Compile(in)
	for _, r := range out.HostRoutes {
		if slices.ContainsFunc(in.State.ServiceCIDRs, r.Dst.Overlaps) {
			t.Errorf("a service range is routed to netctl0: %v", r)
		}
	}
	if len(out.HostRoutes) == 0 || !out.Tables.Ports[agent.HostPort].Foreign {
		t.Errorf("routes %v; foreign sources let in: %v", out.HostRoutes, out.Tables.Ports[agent.HostPort].Foreign)
	}
}

// Every peer can be told by its number and by its ID, and has its router's
// addresses.
func TestPeersOfWrappedPackets(t *testing.T) {
	t.Parallel()
	in := input(t)
	tb := agent.Compile(in).Tables
	if len(tb.Peers) != 3 || tb.Peers[0] != (datapath.Peer{}) {
		t.Fatalf("peers are %+v", tb.Peers)
	}
	for n, name := range map[uint32]string{1: "n2", 2: "n3"} {
		i := name[1:]
		want := datapath.Peer{ID: datapath.PeerID(name), Router: [2]packet.Addr{
			packet.AddrFrom(addr("10.1." + i + ".2")), packet.AddrFrom(addr("fd00:1:0:" + i + "::2")),
		}}
		if tb.Peers[n] != want || tb.PeerNumbers[want.ID] != n {
			t.Errorf("peer %d is %+v with number %d, want %+v", n, tb.Peers[n], tb.PeerNumbers[want.ID], want)
		}
	}
}

// The way to load balancers' addresses leads here, but for those that are on the
// host's own interfaces, and for what kube-proxy serves.
func TestGateway(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		edit    func(*agent.Input)
		routes  []string
		gateway bool
	}{
		{"none", func(*agent.Input) {}, nil, false},
		{"both families", func(in *agent.Input) {
			nodePorts(in)
			in.State.Services[len(in.State.Services)-1].LoadBalancerIPs = []netip.Addr{addr("203.0.113.1"), addr("2001:db8:ff::1")}
		}, []string{"203.0.113.1/32", "2001:db8:ff::1/128"}, true},
		{"on the host", func(in *agent.Input) {
			nodePorts(in)
			in.State.Services[len(in.State.Services)-1].LoadBalancerIPs = []netip.Addr{addr("203.0.113.1")}
			in.Host = []netip.Addr{addr("203.0.113.1")}
		}, nil, true},
		{"kube-proxy's", func(in *agent.Input) {
			nodePorts(in)
			in.State.Services[len(in.State.Services)-1].LoadBalancerIPs = []netip.Addr{addr("203.0.113.1")}
			in.PodsOnly = true
		}, nil, false},
		{"external IPs without permission", func(in *agent.Input) {
			nodePorts(in)
			in.State.Services[len(in.State.Services)-1].ExternalIPs = []netip.Addr{addr("203.0.113.1")}
		}, nil, false},
		{"external IPs", func(in *agent.Input) {
			nodePorts(in)
			in.State.Services[len(in.State.Services)-1].ExternalIPs = []netip.Addr{addr("203.0.113.1")}
			in.ExternalIPs = true
		}, []string{"203.0.113.1/32"}, true},
		{"what the node needs", func(in *agent.Input) {
			nodePorts(in)
			in.State.Services[len(in.State.Services)-1].LoadBalancerIPs = []netip.Addr{addr("203.0.113.1")}
			in.Protected = []netip.Addr{addr("203.0.113.1")}
		}, nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			in := input(t)
			tt.edit(&in)
			out := agent.Compile(in)
			var got []string
			for _, r := range out.HostRoutes {
				if r.Dst.IsSingleIP() {
					got = append(got, r.Dst.String())
				}
			}
			if !slices.Equal(got, tt.routes) || out.Tables.Ports[agent.HostPort].Gateway != tt.gateway {
				t.Errorf("routes %v, want %v; a gateway: %v", got, tt.routes, out.Tables.Ports[agent.HostPort].Gateway)
			}
		})
	}
}

// Health checks are where node ports are; an owner is told of what is not served.
func TestChecksAndNotices(t *testing.T) {
	t.Parallel()
	in := input(t)
	nodePorts(&in)
	svc := in.State.Services[len(in.State.Services)-1]
	svc.UID, svc.Type, svc.ExternalLocal, svc.HealthCheckNodePort = "u", model.LoadBalancer, true, 32000
	svc.ExternalIPs = []netip.Addr{addr("203.0.113.1")}
	slices.SortFunc(in.State.Services, func(a, b *model.Service) int { return a.Name.Compare(b.Name) })
	out := agent.Compile(in)
	want := "[{default/web 192.0.2.1:32000 0} {default/web [2001:db8::1]:32000 0}]"
	if got := fmt.Sprint(out.Checks); got != want {
		t.Errorf("checks %s, want %s", got, want)
	}
	if len(out.Notices) != 1 || out.Notices[0].UID != "u" || out.Notices[0].Reason != "NotServed" || !out.Notices[0].Warning {
		t.Errorf("notices %+v", out.Notices)
	}
}
