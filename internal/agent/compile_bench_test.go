package agent_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/netctl/netctl/internal/agent"
	"github.com/netctl/netctl/internal/datapath"
	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/overlay"
)

const (
	benchNodes     = 100
	benchServices  = 5000
	benchEndpoints = 10 // of each service
)

// large is the view of n1 on a cluster of 5 000 Services with 50 000 endpoints,
// which are pods on 100 nodes.
func large(tb testing.TB) agent.Input {
	tb.Helper()
	s := &model.State{
		Revision: 1, Synced: true,
		Namespaces:   []*model.Namespace{{Name: "default"}, {Name: "kube-system"}},
		ServiceCIDRs: []netip.Prefix{prefix("10.96.0.0/12")},
	}
	for i := range benchNodes {
		k, err := overlay.NewPrivateKey()
		if err != nil {
			tb.Fatal(err)
		}
		a := netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})
		s.Nodes = append(s.Nodes, &model.Node{
			Name: fmt.Sprintf("n%03d", i), PublicKey: k.Public().String(), Addresses: []netip.Addr{a},
			PodCIDRs:  []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 32, byte(i * 4), 0}), 22)},
			Endpoints: []netip.AddrPort{netip.AddrPortFrom(a, 51820)},
		})
		if i >= 64 {
			s.Nodes[i].PodCIDRs[0] = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 33, byte((i - 64) * 4), 0}), 22)
		}
	}
	dns := model.Name{Namespace: "kube-system", Name: "kube-dns"}
	for i := range benchServices {
		name := model.Name{Namespace: "default", Name: fmt.Sprintf("svc-%05d", i)}
		svc := &model.Service{
			Name: name, UID: name.Name, Type: model.ClusterIP,
			ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 97, byte(i >> 8), byte(i)})},
			Ports:      []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80}},
		}
		if i%100 == 0 {
			svc.Type, svc.Ports[0].NodePort = model.NodePort, uint16(30000+i/100)
		}
		s.Services = append(s.Services, svc)
		slice := &model.EndpointSlice{
			Name: model.Name{Namespace: "default", Name: name.Name + "-abcde"}, Service: name.Name,
			Ports: []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 8080}},
		}
		for j := range benchEndpoints {
			n := (i*benchEndpoints + j) % benchNodes
			host := (i*benchEndpoints+j)/benchNodes + 10
			base := s.Nodes[n].PodCIDRs[0].Addr().As4()
			a := netip.AddrFrom4([4]byte{base[0], base[1], base[2] + byte(host>>8), byte(host)})
			pod := &model.Pod{
				Name: model.Name{Namespace: "default", Name: fmt.Sprintf("pod-%05d-%d", i, j)}, UID: fmt.Sprintf("%05d-%d", i, j),
				Node: s.Nodes[n].Name, Addresses: []netip.Addr{a},
			}
			s.Pods = append(s.Pods, pod)
			slice.Endpoints = append(slice.Endpoints, model.Endpoint{Address: a, Ready: true, Serving: true, Node: pod.Node})
		}
		s.EndpointSlices = append(s.EndpointSlices, slice)
	}
	s.Services = append(s.Services, &model.Service{
		Name: dns, Type: model.ClusterIP, ClusterIPs: []netip.Addr{addr("10.96.0.10")},
		Ports: []model.ServicePort{{Name: "dns", Protocol: model.UDP, Port: 53}},
	})
	in := agent.Input{
		Node: "n000", Domain: "cluster.local", State: s, ClusterCIDRs: []netip.Prefix{prefix("10.32.0.0/15")},
		Ports: []agent.LocalPort{
			{ID: agent.HostPort, Kind: datapath.KindHost, Name: "netctl0", MTU: 1420},
			{ID: agent.OverlayPort, Kind: datapath.KindOverlay, Name: "overlay", MTU: 1420},
			{ID: agent.NetstackPort, Kind: datapath.KindNetstack, Name: "netstack", MTU: 65535},
			{ID: agent.DNSPort, Kind: datapath.KindDNS, Name: "dns", MTU: 65535},
			{ID: agent.InboundPort, Kind: datapath.KindInbound, Name: "inbound", MTU: 65535},
		},
	}
	for i := range 100 {
		in.Ports = append(in.Ports, agent.LocalPort{
			ID: agent.FirstPodPort + datapath.PortID(i), Kind: datapath.KindPod, Name: fmt.Sprintf("default/pod-%d", i), MTU: 1420,
			Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 32, 0, byte(10 + i)})}, Incarnation: "c",
		})
	}
	return in
}

// oneEndpoint returns a State in which one endpoint of a service is ready or not.
func oneEndpoint(s *model.State, service int, ready bool) *model.State {
	next := *s
	next.Revision++
	next.EndpointSlices = slices.Clone(s.EndpointSlices)
	slice := *s.EndpointSlices[service]
	slice.Endpoints = slices.Clone(slice.Endpoints)
	slice.Endpoints[0].Ready = ready
	next.EndpointSlices[service] = &slice
	return &next
}

// BenchmarkCompileOneEndpoint is what one changed endpoint costs, from the State
// to the Tables.
func BenchmarkCompileOneEndpoint(b *testing.B) {
	in := large(b)
	out := agent.Compile(in)
	if len(out.Problems) > 0 {
		b.Fatal(out.Problems)
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		in.State, in.Previous = oneEndpoint(in.State, i%benchServices, i/benchServices%2 == 1), &out
		next := agent.Compile(in)
		out = next
	}
}

// BenchmarkCompileAll is what the first State costs.
func BenchmarkCompileAll(b *testing.B) {
	in := large(b)
	b.ReportAllocs()
	for b.Loop() {
		agent.Compile(in)
	}
}
