package proxy_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/proxy"
)

// The cluster of the tests: this node is n1 in zone za.
const (
	vip4, vip6   = "10.96.0.10", "fd00:96::a"
	ext4, lb4    = "192.0.2.10", "192.0.2.20"
	node1, node2 = "172.16.0.1", "172.16.0.2"
	node16       = "fd00:2::1"
	podHere      = "10.1.1.9" // a client on this node
	podAway      = "10.1.2.9"
	outside      = "198.51.100.7"
)

// opt changes the service, slices and input of a test.
type opt func(*world)

type world struct {
	in  proxy.Input
	svc *model.Service
}

// newWorld has one ClusterIP service default/web, port 80/TCP named "http",
// without endpoints.
func newWorld(opts ...opt) *world {
	svc := &model.Service{
		Name: model.Name{Namespace: "default", Name: "web"}, UID: "u1", Type: model.ClusterIP,
		ClusterIPs: addrs(vip4, vip6), Ports: []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80}},
	}
	w := &world{svc: svc, in: proxy.Input{
		Node: "n1", Zone: "za", Services: []*model.Service{svc}, ExternalIPs: true,
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112")},
		Nodes: []*model.Node{
			{Name: "n1", Addresses: addrs(node1)},
			{Name: "n2", Addresses: addrs(node2)},
		},
		Local: []netip.Prefix{netip.MustParsePrefix("10.1.1.0/24"), netip.MustParsePrefix(node1 + "/32")},
	}}
	for _, o := range opts {
		o(w)
	}
	return w
}

func addrs(list ...string) []netip.Addr {
	out := make([]netip.Addr, len(list))
	for i, s := range list {
		out[i] = netip.MustParseAddr(s)
	}
	return out
}

// service changes the service.
func service(f func(*model.Service)) opt { return func(w *world) { f(w.svc) } }

// slice adds a slice of web with port http:8080 and these endpoints.
func slice(name string, eps ...model.Endpoint) opt {
	return sliceWith(name, []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 8080}}, eps...)
}

func sliceWith(name string, ports []model.EndpointPort, eps ...model.Endpoint) opt {
	return func(w *world) {
		w.in.Slices = append(w.in.Slices, &model.EndpointSlice{
			Name: model.Name{Namespace: "default", Name: name}, Service: "web", Ports: ports, Endpoints: eps,
			IPv6: len(eps) > 0 && eps[0].Address.Is6(),
		})
	}
}

// ep is an endpoint: an address, then "@node", "notready", "serving" (not ready
// but serving), "terminating", "zone=x" and "node=x" hints.
func ep(s string) model.Endpoint {
	words := strings.Fields(s)
	e := model.Endpoint{Address: netip.MustParseAddr(words[0]), Ready: true, Serving: true}
	for _, w := range words[1:] {
		switch {
		case strings.HasPrefix(w, "@"):
			e.Node = w[1:]
		case w == "notready":
			e.Ready, e.Serving = false, false
		case w == "serving":
			e.Ready = false
		case w == "terminating":
			e.Ready, e.Terminating = false, true
		case strings.HasPrefix(w, "zone="):
			e.HintZones = append(e.HintZones, w[5:])
		case strings.HasPrefix(w, "node="):
			e.HintNodes = append(e.HintNodes, w[5:])
		default:
			panic("endpoint word " + w)
		}
	}
	return e
}

func internalLocal(s *model.Service) { s.InternalLocal = true }
func externalLocal(s *model.Service) { s.ExternalLocal = true }
func external(s *model.Service)      { s.ExternalIPs = addrs(ext4) }
func loadBalancer(s *model.Service) {
	s.Type, s.LoadBalancerIPs = model.LoadBalancer, addrs(lb4)
}

func nodePorts(s *model.Service) {
	s.Type, s.Ports[0].NodePort = model.NodePort, 30080
}

// udpToo adds the same port over UDP, with an endpoint of its own.
func udpToo(w *world) {
	w.svc.Ports = append(w.svc.Ports, model.ServicePort{Name: "udp", Protocol: model.UDP, Port: 80, NodePort: 30080})
	sliceWith("udp", []model.EndpointPort{{Name: "udp", Protocol: model.UDP, Port: 5353}}, ep("10.1.3.3"))(w)
}

// node1Has6 gives this node an IPv6 address.
func node1Has6(w *world) { w.in.Nodes[0].Addresses = append(w.in.Nodes[0].Addresses, addrs(node16)...) }

func sources(list ...string) opt {
	return service(func(s *model.Service) {
		for _, p := range list {
			s.SourceRanges = append(s.SourceRanges, netip.MustParsePrefix(p))
		}
	})
}

// ask asks the table about a destination "addr:port" (TCP, or with "/udp") for
// a client and returns what new connections get: the sorted backends, or the
// name of the kind.
func ask(t *testing.T, tab *proxy.Table, to, client string) []string {
	t.Helper()
	proto := model.TCP
	if s, ok := strings.CutSuffix(to, "/udp"); ok {
		to, proto = s, model.UDP
	}
	dst := netip.MustParseAddrPort(to)
	f, kind := tab.Frontend(packet.AddrFrom(dst.Addr()), dst.Port(), uint8(proto))
	if kind != proxy.KindBackends {
		return []string{kind.String()}
	}
	var out []string
	for i := range 64 {
		b, kind := tab.Pick(f, packet.AddrFrom(netip.MustParseAddr(client)), uint32(i)<<26, nil, 1)
		s := netip.AddrPortFrom(b.Addr.Netip(), b.Port).String()
		if kind != proxy.KindBackends {
			s = kind.String()
		}
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	slices.Sort(out)
	return out
}

// TestRules has at least a row for every rule of kube-proxy that is ours.
func TestRules(t *testing.T) {
	t.Parallel()
	const (
		front  = vip4 + ":80"
		front6 = "[" + vip6 + "]:80"
	)
	two := slice("s1", ep("10.1.1.2 @n1"), ep("10.1.2.2 @n2"))
	both := []string{"10.1.1.2:8080", "10.1.2.2:8080"}
	here, away := []string{"10.1.1.2:8080"}, []string{"10.1.2.2:8080"}
	http := []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 8080}}
	tests := []struct {
		name   string
		opts   []opt
		to     string
		client string // podHere when empty
		want   []string
	}{
		{"IN-1 another proxy's service", []opt{two, service(func(s *model.Service) { s.ForeignProxy = true })}, front, "", []string{"unallocated"}},
		{"IN-2 headless slice", []opt{two, func(w *world) { w.in.Slices[0].Headless = true }}, front, "", []string{"reject"}},
		{"IN-3 headless service", []opt{two, service(func(s *model.Service) { s.Headless, s.ClusterIPs = true, nil })}, front, "", []string{"unallocated"}},
		{"IN-3 no address yet", []opt{two, service(func(s *model.Service) { s.ClusterIPs = nil })}, front, "", []string{"unallocated"}},
		{"IN-3 external name", []opt{two, service(func(s *model.Service) { s.Type = model.ExternalName })}, front, "", []string{"unallocated"}},
		{"IN-4 slice of no service", []opt{two, func(w *world) { w.in.Slices[0].Service = "" }}, front, "", []string{"reject"}},
		{"IN-4 slice of another namespace", []opt{two, func(w *world) { w.in.Slices[0].Name.Namespace = "x" }}, front, "", []string{"reject"}},
		{"IN-4 family of the slice", []opt{two}, front6, "", []string{"reject"}},
		{"IN-4 IPv6", []opt{two, slice("s2", ep("fd00:1::2 @n1"))}, front6, "", []string{"[fd00:1::2]:8080"}},
		{"IN-4 address of the other family in a slice", []opt{slice("s1", ep("10.1.1.2"), ep("fd00:1::2"))}, front, "", here},
		{"IN-5 port name", []opt{sliceWith("s1", []model.EndpointPort{{Name: "web", Protocol: model.TCP, Port: 8080}}, ep("10.1.1.2"))}, front, "", []string{"reject"}},
		{"IN-5 protocol", []opt{sliceWith("s1", []model.EndpointPort{{Name: "http", Protocol: model.UDP, Port: 8080}}, ep("10.1.1.2"))}, front, "", []string{"reject"}},
		{"IN-5 port zero", []opt{sliceWith("s1", []model.EndpointPort{{Name: "http", Protocol: model.TCP}}, ep("10.1.1.2"))}, front, "", []string{"reject"}},
		{"IN-5 empty names match", []opt{service(func(s *model.Service) { s.Ports[0].Name = "" }), sliceWith("s1", []model.EndpointPort{{Protocol: model.TCP, Port: 8080}}, ep("10.1.1.2"))}, front, "", here},
		{"IN-5 the right one of several ports", []opt{sliceWith("s1", []model.EndpointPort{{Name: "x", Protocol: model.TCP, Port: 1}, http[0]}, ep("10.1.1.2"))}, front, "", here},
		{"IN-6 several slices, doubles once", []opt{two, slice("s2", ep("10.1.1.2 @n1"), ep("10.1.3.2"))}, front, "", []string{"10.1.1.2:8080", "10.1.2.2:8080", "10.1.3.2:8080"}},
		{"IN-6 reused address, ready first", []opt{slice("s1", ep("10.1.1.2")), slice("s2", ep("10.1.1.2 terminating"))}, front, "", here},
		{"IN-6 reused address, ready last", []opt{slice("s1", ep("10.1.1.2 terminating")), slice("s2", ep("10.1.1.2"))}, front, "", here},
		{"IN-7 ready only", []opt{slice("s1", ep("10.1.1.2"), ep("10.1.2.2 notready"))}, front, "", here},
		{"IN-8 local by node name, not address", []opt{service(internalLocal), slice("s1", ep("10.1.1.2 @n2"), ep("10.1.2.2 @n1"))}, front, "", away},
		{"IN-8 no node name is never local", []opt{service(internalLocal), slice("s1", ep("10.1.1.2"))}, front, "", []string{"drop"}},
		{"IN-8 nor on a node without a name", []opt{service(internalLocal), slice("s1", ep("10.1.1.2")), func(w *world) { w.in.Node = "" }}, front, "", []string{"drop"}},
		{"IN-11 a port per endpoint", []opt{two, sliceWith("s2", []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 9090}}, ep("10.1.1.3"), ep("10.1.1.2"))}, front, "", []string{"10.1.1.2:8080", "10.1.1.2:9090", "10.1.1.3:9090", "10.1.2.2:8080"}},
		{"IN-12 only ready counts", []opt{slice("s1", model.Endpoint{Address: netip.MustParseAddr("10.1.1.2"), Ready: true})}, front, "", here},

		{"EP-1 all of them", []opt{two}, front, "", both},
		{"EP-3 terminating when nothing is ready", []opt{slice("s1", ep("10.1.1.2 terminating"), ep("10.1.2.2 notready"))}, front, "", here},
		{"EP-3 not while something is ready", []opt{slice("s1", ep("10.1.1.2 terminating"), ep("10.1.2.2"))}, front, "", away},
		{"EP-3 local falls back by itself", []opt{service(internalLocal), slice("s1", ep("10.1.1.2 @n1 terminating"), ep("10.1.2.2 @n2"))}, front, "", here},
		{"EP-3 cluster does not, though local does", []opt{service(internalLocal), service(external), slice("s1", ep("10.1.1.2 @n1 terminating"), ep("10.1.2.2 @n2"))}, ext4 + ":80", "", away},
		{"EP-4 serving but neither ready nor terminating", []opt{slice("s1", ep("10.1.1.2 serving"))}, front, "", []string{"reject"}},
		{"EP-4 terminating and not serving", []opt{slice("s1", ep("10.1.1.2 notready terminating"), ep("10.1.2.2 terminating notready"))}, front, "", []string{"reject"}},

		{"DST other port", []opt{two}, vip4 + ":81", "", []string{"other-port"}},
		{"DST other protocol", []opt{two}, front + "/udp", "", []string{"other-port"}},
		{"DST unallocated", []opt{two}, "10.96.0.11:80", "", []string{"unallocated"}},
		{"DST unallocated IPv6", []opt{two}, "[fd00:96::b]:80", "", []string{"unallocated"}},
		{"DST elsewhere", []opt{two}, "10.1.2.2:80", "", []string{"none"}},
		{"DST external address, other port", []opt{two, service(external)}, ext4 + ":81", "", []string{"none"}},
		{"DST outside of every range but a cluster IP", []opt{two, func(w *world) { w.in.ServiceCIDRs = nil }}, front, "", both},

		{"POL-1 internal local", []opt{two, service(internalLocal)}, front, "", here},
		{"POL-1 none here", []opt{service(internalLocal), slice("s1", ep("10.1.2.2 @n2"))}, front, "", []string{"drop"}},
		{"POL-1 does not touch external addresses", []opt{two, service(internalLocal), service(external)}, ext4 + ":80", "", both},
		{"POL-2 external local without external addresses", []opt{two, service(externalLocal)}, front, "", both},
		{"POL-3 external cluster", []opt{two, service(external)}, ext4 + ":80", outside, both},
		{"POL-4 external local, outside client", []opt{two, service(external), service(externalLocal)}, ext4 + ":80", outside, here},
		{"POL-4.1 external local, pod on this node", []opt{two, service(external), service(externalLocal)}, ext4 + ":80", podHere, both},
		{"POL-4.2 external local, this node", []opt{two, service(external), service(externalLocal)}, ext4 + ":80", node1, both},
		{"POL-4.3 nothing local for outside clients", []opt{service(external), service(externalLocal), slice("s1", ep("10.1.2.2 @n2"))}, ext4 + ":80", outside, []string{"drop"}},
		{"POL-5 the same for a client here", []opt{service(external), service(externalLocal), slice("s1", ep("10.1.2.2 @n2"))}, ext4 + ":80", podHere, away},
		{"POL-5 cluster IP stays cluster-wide", []opt{two, service(external), service(externalLocal)}, front, outside, both},

		{"REJ nothing at all", nil, front, "", []string{"reject"}},
		{"REJ IPv6", nil, front6, "", []string{"reject"}},
		{"REJ not ready", []opt{slice("s1", ep("10.1.1.2 notready"))}, front, "", []string{"reject"}},
		{"REJ internal local, nothing anywhere", []opt{service(internalLocal)}, front, "", []string{"reject"}},
		{"REJ external address", []opt{service(external)}, ext4 + ":80", outside, []string{"reject"}},
		{"REJ external local, nothing anywhere", []opt{service(external), service(externalLocal)}, ext4 + ":80", outside, []string{"reject"}},
		{"REJ node port", []opt{service(nodePorts)}, node1 + ":30080", outside, []string{"reject"}},

		{"TOP-2 same zone", []opt{slice("s1", ep("10.1.1.2 zone=za"), ep("10.1.2.2 zone=zb"))}, front, "", here},
		{"TOP-2 same node before zone", []opt{slice("s1", ep("10.1.1.2 zone=za node=n1"), ep("10.1.2.2 zone=za node=n2"))}, front, "", here},
		{"TOP-2 one without a hint", []opt{slice("s1", ep("10.1.1.2 zone=za"), ep("10.1.2.2"))}, front, "", both},
		{"TOP-2 unready ones do not count", []opt{slice("s1", ep("10.1.1.2 zone=za"), ep("10.1.2.2 zone=zb"), ep("10.1.3.2 notready"))}, front, "", here},
		{"TOP-2 no hint names us", []opt{slice("s1", ep("10.1.1.2 zone=zb"), ep("10.1.2.2 zone=zc"))}, front, "", both},
		{"TOP-3 not for the fallback", []opt{slice("s1", ep("10.1.1.2 zone=za terminating"), ep("10.1.2.2 zone=zb terminating"))}, front, "", both},
		{"TOP-3 not for local", []opt{service(internalLocal), slice("s1", ep("10.1.1.2 @n1 zone=zb"), ep("10.1.1.3 @n2 zone=za"))}, front, "", here},
		{"TOP-4 node hints of others, zone of ours", []opt{slice("s1", ep("10.1.1.2 zone=za node=n3"), ep("10.1.2.2 zone=zb node=n2"))}, front, "", here},

		{"NP own address", []opt{two, service(nodePorts)}, node1 + ":30080", podHere, both},
		{"NP another node's address", []opt{two, service(nodePorts)}, node2 + ":30080", podHere, both},
		{"NP no such port", []opt{two, service(nodePorts)}, node1 + ":30081", podHere, []string{"none"}},
		{"NP other protocol", []opt{two, service(nodePorts)}, node1 + ":30080/udp", podHere, []string{"none"}},
		{"NP local, from a pod here to own node", []opt{two, service(nodePorts), service(externalLocal)}, node1 + ":30080", podHere, both},
		{"NP local, from a pod here to another node", []opt{two, service(nodePorts), service(externalLocal)}, node2 + ":30080", podHere, away},
		{"POL-6 local, that node has none", []opt{service(nodePorts), service(externalLocal), slice("s1", ep("10.1.1.2 @n1"))}, node2 + ":30080", podHere, []string{"drop"}},
		{"NP from outside", []opt{two, service(nodePorts)}, node1 + ":30080", outside, both},
		{"NP from the node itself", []opt{two, service(nodePorts)}, node1 + ":30080", node1, both},
		{"NP from a loopback address, by a socket", []opt{two, service(nodePorts)}, node1 + ":30080", "127.0.0.1", both},
		{"NP local, from outside", []opt{two, service(nodePorts), service(externalLocal)}, node1 + ":30080", outside, here},
		{"NP local, from another node", []opt{two, service(nodePorts), service(externalLocal)}, node1 + ":30080", node2, here},
		{"NP local, from a pod of another node", []opt{two, service(nodePorts), service(externalLocal)}, node1 + ":30080", podAway, here},
		{"POL-4.2 NP local, from the node itself", []opt{two, service(nodePorts), service(externalLocal)}, node1 + ":30080", node1, both},
		{"POL-4.2 NP local, from a loopback address", []opt{two, service(nodePorts), service(externalLocal)}, node1 + ":30080", "127.0.0.1", both},
		{"POL-5 NP local, none here, from outside", []opt{service(nodePorts), service(externalLocal), slice("s1", ep("10.1.2.2 @n2"))}, node1 + ":30080", outside, []string{"drop"}},
		{"POL-5 NP local, none here, from a loopback address", []opt{service(nodePorts), service(externalLocal), slice("s1", ep("10.1.2.2 @n2"))}, node1 + ":30080", "127.0.0.1", away},
		{"NP local, only terminating here", []opt{service(nodePorts), service(externalLocal), slice("s1", ep("10.1.1.2 @n1 terminating"), ep("10.1.2.2 @n2"))}, node1 + ":30080", outside, here},
		{"NP internal local does not count", []opt{two, service(nodePorts), service(internalLocal)}, node1 + ":30080", outside, both},
		{"NP-5 one number, TCP", []opt{two, udpToo, service(nodePorts)}, node1 + ":30080", outside, both},
		{"NP-5 one number, UDP", []opt{two, udpToo, service(nodePorts)}, node1 + ":30080/udp", outside, []string{"10.1.3.3:5353"}},
		{"NP IPv6", []opt{two, service(nodePorts), slice("s2", ep("fd00:1::2 @n1")), node1Has6}, "[" + node16 + "]:30080", "2001:db8::7", []string{"[fd00:1::2]:8080"}},
		{"NP IPv6 from a loopback address", []opt{service(nodePorts), service(externalLocal), slice("s2", ep("fd00:1::2 @n2")), node1Has6}, "[" + node16 + "]:30080", "::1", []string{"[fd00:1::2]:8080"}},
		{"NP-4 source ranges do not apply", []opt{two, service(nodePorts), service(loadBalancer), sources("203.0.113.0/24")}, node1 + ":30080", outside, both},

		{"LB address", []opt{two, service(loadBalancer)}, lb4 + ":80", outside, both},
		{"LB-5 allowed source", []opt{two, service(loadBalancer), sources("198.51.100.0/24")}, lb4 + ":80", outside, both},
		{"LB-5 other source", []opt{two, service(loadBalancer), sources("203.0.113.0/24")}, lb4 + ":80", outside, []string{"drop"}},
		{"LB-5 pods too", []opt{two, service(loadBalancer), sources("203.0.113.0/24")}, lb4 + ":80", podHere, []string{"drop"}},
		{"LB-5 range of length zero", []opt{two, service(loadBalancer), sources("203.0.113.0/24", "0.0.0.0/0")}, lb4 + ":80", outside, both},
		{"LB-5 ranges of the other family", []opt{two, service(loadBalancer), sources("2001:db8::/32")}, lb4 + ":80", outside, both},
		{"LB-6 filtered before rejected", []opt{service(loadBalancer), sources("203.0.113.0/24")}, lb4 + ":80", outside, []string{"drop"}},
		{"LB-6 rejected when allowed", []opt{service(loadBalancer), sources("198.51.100.0/24")}, lb4 + ":80", outside, []string{"reject"}},
		{"LB-3 without node ports", []opt{two, service(loadBalancer), service(externalLocal)}, lb4 + ":80", outside, here},
		{"LB-7 external IP ignores ranges", []opt{two, service(external), sources("203.0.113.0/24")}, ext4 + ":80", outside, both},

		{"CIDR-1 another service range", []opt{two, func(w *world) {
			w.in.ServiceCIDRs = append(w.in.ServiceCIDRs, netip.MustParsePrefix("203.0.113.0/24"))
		}}, "203.0.113.9:80", "", []string{"unallocated"}},
		{"CIDR-2 a cluster IP of another service range", []opt{two, func(w *world) {
			w.in.ServiceCIDRs = append(w.in.ServiceCIDRs, netip.MustParsePrefix("203.0.113.0/24"))
			w.svc.ClusterIPs = addrs("203.0.113.9")
		}}, "203.0.113.9:80", "", both},
		{"DS-2 one family only", []opt{two, service(func(s *model.Service) { s.ClusterIPs = addrs(vip4) })}, front6, "", []string{"unallocated"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tab, problems := proxy.Compile(newWorld(tt.opts...).in)
			if len(problems) > 0 {
				t.Errorf("problems: %v", problems)
			}
			client := tt.client
			if client == "" {
				client = podHere
			}
			if got := ask(t, tab, tt.to, client); !slices.Equal(got, tt.want) {
				t.Errorf("%s from %s gets %v, want %v", tt.to, client, got, tt.want)
			}
		})
	}
}

// The ports that need sockets are those behind which somebody stands, and their
// list is shared while nothing changes.
func TestNodePorts(t *testing.T) {
	t.Parallel()
	const http, udp = "30080/TCP default/web http", "30080/UDP default/web udp"
	two := slice("s1", ep("10.1.1.2 @n1"), ep("10.1.2.2 @n2"))
	six := slice("s6", ep("fd00:1::2 @n1"))
	for _, tt := range []struct {
		name string
		opts []opt
		want []string
	}{
		{"no node port", []opt{two}, nil},
		{"one family has endpoints", []opt{two, service(nodePorts)}, []string{http + " 4"}},
		{"both have", []opt{two, six, service(nodePorts)}, []string{http + " 4 6"}},
		{"the service has one family", []opt{two, six, service(nodePorts), service(func(s *model.Service) { s.ClusterIPs = addrs(vip6) })}, []string{http + " 6"}},
		{"REJ nobody stands behind it", []opt{service(nodePorts), slice("s1", ep("10.1.1.2 notready"))}, nil},
		{"EP-3 the last one terminates", []opt{service(nodePorts), slice("s1", ep("10.1.1.2 terminating"))}, []string{http + " 4"}},
		{"POL-5 local, and none here", []opt{service(nodePorts), service(externalLocal), slice("s1", ep("10.1.2.2 @n2"))}, []string{http + " 4"}},
		{"NP-5 two protocols", []opt{two, udpToo, service(nodePorts)}, []string{http + " 4", udp + " 4"}},
		{"load balancer", []opt{two, service(nodePorts), service(loadBalancer)}, []string{http + " 4"}},
		{"LB-3 load balancer without node ports", []opt{two, service(loadBalancer)}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(tt.opts...)
			tab, _ := proxy.Compile(w.in)
			var got []string
			for _, p := range tab.NodePorts() {
				s := fmt.Sprintf("%d/%s %s %s", p.Port, p.Protocol, p.Service, p.Name)
				if p.IPv4 {
					s += " 4"
				}
				if p.IPv6 {
					s += " 6"
				}
				got = append(got, s)
			}
			if diff := cmp.Diff(got, tt.want); diff != "" {
				t.Errorf("node ports (-got +want):\n%s", diff)
			}
			w.in.Previous = tab
			w.in.Services, w.in.Slices = slices.Clone(w.in.Services), slices.Clone(w.in.Slices)
			other := *w.svc
			other.Name.Name, other.ClusterIPs, other.Ports = "aweb", addrs("10.96.0.99"), []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80}}
			other.LoadBalancerIPs, other.ExternalIPs, other.Type = nil, nil, model.ClusterIP
			w.in.Services = append([]*model.Service{&other}, w.in.Services...)
			next, _ := proxy.Compile(w.in)
			if a, b := tab.NodePorts(), next.NodePorts(); len(a) != len(b) || len(a) > 0 && &a[0] != &b[0] {
				t.Error("the list is made anew though nothing in it has changed")
			}
		})
	}
}

// AFF-1, AFF-3: a client that comes to a node port by a socket stays where it
// went by the cluster IP, and with policy Local only if that is here.
func TestNodePortAffinity(t *testing.T) {
	t.Parallel()
	sticky := service(func(s *model.Service) { s.AffinityTimeout = time.Hour })
	two := slice("s1", ep("10.1.1.2 @n1"), ep("10.1.2.2 @n2"))
	tab, _ := proxy.Compile(newWorld(two, sticky, service(nodePorts)).in)
	local, _ := proxy.Compile(newWorld(two, sticky, service(nodePorts), service(externalLocal)).in)
	aff := proxy.NewAffinity(proxy.AffinityConfig{})
	from := func(tab *proxy.Table, to string, random uint32) string {
		dst := netip.MustParseAddrPort(to)
		f, _ := tab.Frontend(packet.AddrFrom(dst.Addr()), dst.Port(), uint8(model.TCP))
		b, kind := tab.Pick(f, packet.AddrFrom(netip.MustParseAddr(outside)), random, aff, 1)
		if kind != proxy.KindBackends {
			t.Fatalf("%s gets %s", to, kind)
		}
		return b.Addr.String()
	}
	const last = 1<<32 - 1 // the random number that chooses the last backend
	if got := from(tab, vip4+":80", last); got != "10.1.2.2" {
		t.Fatalf("the first connection went to %s", got)
	}
	for range 3 {
		if got := from(tab, node1+":30080", 0); got != "10.1.2.2" {
			t.Errorf("by the node port to %s, want where the cluster IP led", got)
		}
	}
	if got := from(local, node1+":30080", last); got != "10.1.1.2" {
		t.Errorf("policy Local led away, to %s", got)
	}
}

// IN-1: a service that gains the label of another proxy goes, and comes back.
func TestForeignProxyComesAndGoes(t *testing.T) {
	t.Parallel()
	w := newWorld(slice("s1", ep("10.1.1.2")))
	prev, _ := proxy.Compile(w.in)
	want := ask(t, prev, vip4+":80", podHere)
	foreign := *w.svc
	foreign.ForeignProxy = true
	for _, step := range []struct {
		svc  *model.Service
		want []string
	}{{&foreign, []string{"unallocated"}}, {w.svc, want}} {
		w.in.Services, w.in.Previous = []*model.Service{step.svc}, prev
		prev, _ = proxy.Compile(w.in)
		if got := ask(t, prev, vip4+":80", podHere); !slices.Equal(got, step.want) {
			t.Errorf("got %v, want %v", got, step.want)
		}
	}
}

func TestProblems(t *testing.T) {
	t.Parallel()
	second := func(f func(*model.Service)) opt {
		return func(w *world) {
			s := *w.svc
			s.Name.Name, s.UID, s.ClusterIPs = "zweb", "u2", addrs("10.96.0.77", "fd00:96::77")
			s.Ports = slices.Clone(s.Ports)
			f(&s)
			w.in.Services = append(w.in.Services, &s)
		}
	}
	tests := []struct {
		name string
		opts []opt
		want []string
	}{
		{"nothing", []opt{service(external), service(loadBalancer), service(nodePorts)}, nil},
		{"one external address, two services", []opt{service(external), second(func(*model.Service) {})}, []string{"service default/zweb: 192.0.2.10 port 80/TCP belongs to default/web"}},
		{"one external address, two ports", []opt{service(external), second(func(s *model.Service) { s.Ports[0].Port = 81 })}, nil},
		{"one node port", []opt{service(nodePorts), second(func(*model.Service) {})}, []string{"service default/zweb: node port 30080/TCP belongs to default/web"}},
		{"NP-5 one number, two protocols", []opt{service(nodePorts), second(func(s *model.Service) { s.Ports[0].Protocol = model.UDP })}, nil},
		{"external address is a cluster IP", []opt{second(func(s *model.Service) { s.ExternalIPs = addrs(vip4) })}, []string{"service default/zweb: external address 10.96.0.10 is a service's cluster IP"}},
		{"external address is a node's", []opt{service(func(s *model.Service) { s.ExternalIPs = addrs(node2) })}, []string{"service default/web: external address 172.16.0.2 is a node's"}},
		{"external address is needed", []opt{service(external), func(w *world) { w.in.Exclude = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/28")} }}, []string{"service default/web: external address 192.0.2.10 is one that the node needs"}},
		{"external IPs are not allowed", []opt{service(external), func(w *world) { w.in.ExternalIPs = false }}, []string{"service default/web: spec.externalIPs are not served here: the configuration's allowExternalIPs says so"}},
		{"external address is loopback", []opt{service(func(s *model.Service) { s.ExternalIPs = addrs("127.0.0.1") })}, []string{"service default/web: external address 127.0.0.1 cannot be a service's"}},
		{"the same as load balancer and external address", []opt{service(loadBalancer), service(func(s *model.Service) { s.ExternalIPs = addrs(lb4) })}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			opts := append([]opt{slice("s1", ep("10.1.1.2 @n1"))}, tt.opts...)
			tab, problems := proxy.Compile(newWorld(opts...).in)
			var got []string
			for _, p := range problems {
				got = append(got, p.String())
			}
			if diff := cmp.Diff(got, tt.want); diff != "" {
				t.Errorf("problems (-got +want):\n%s", diff)
			}
			if got := ask(t, tab, vip4+":80", podHere); !slices.Equal(got, []string{"10.1.1.2:8080"}) {
				t.Errorf("the cluster IP gets %v: a problem elsewhere disturbed it", got)
			}
		})
	}
}

// EP-1: every backend is chosen about as often as every other.
func TestPickIsUniform(t *testing.T) {
	t.Parallel()
	eps := make([]model.Endpoint, 0, 7)
	for i := range 7 {
		e := ep("10.1.1.1")
		e.Address = netip.AddrFrom4([4]byte{10, 1, 1, byte(i + 1)})
		eps = append(eps, e)
	}
	tab, _ := proxy.Compile(newWorld(slice("s1", eps...)).in)
	f, _ := tab.Frontend(packet.AddrFrom(netip.MustParseAddr(vip4)), 80, 6)
	count := map[packet.Addr]int{}
	const n = 70_000
	for i := range uint32(n) {
		b, _ := tab.Pick(f, packet.Addr{}, i*(1<<32/n), nil, 0)
		count[b.Addr]++
	}
	for a, c := range count {
		if c < n/7-n/100 || c > n/7+n/100 {
			t.Errorf("%v chosen %d times of %d", a, c, n)
		}
	}
	if len(count) != 7 {
		t.Errorf("%d backends chosen, want 7", len(count))
	}
}

// UDP-1, UDP-4: a datagram flow stays with endpoints that serve, also when new
// connections would not go there.
func TestHas(t *testing.T) {
	t.Parallel()
	tab, _ := proxy.Compile(newWorld(service(internalLocal), slice("s1",
		ep("10.1.1.2 @n1"), ep("10.1.2.2 @n2"), ep("10.1.1.3 terminating"), ep("10.1.1.4 serving"), ep("10.1.1.5 notready"))).in)
	f, _ := tab.Frontend(packet.AddrFrom(netip.MustParseAddr(vip4)), 80, 6)
	for _, tt := range []struct {
		addr string
		port uint16
		want bool
	}{
		{"10.1.1.2", 8080, true},
		{"10.1.2.2", 8080, true},
		{"10.1.1.3", 8080, true},
		{"10.1.1.4", 8080, true},
		{"10.1.1.5", 8080, false},
		{"10.1.1.2", 8081, false},
		{"10.1.9.9", 8080, false},
	} {
		if got := f.Has(packet.AddrFrom(netip.MustParseAddr(tt.addr)), tt.port); got != tt.want {
			t.Errorf("Has(%s:%d) = %v, want %v", tt.addr, tt.port, got, tt.want)
		}
	}
}

// A backend that leads back to a service, or into a host, is never dialled.
func TestDialable(t *testing.T) {
	t.Parallel()
	tab, _ := proxy.Compile(newWorld(slice("s1", ep("10.1.1.2 @n1")), service(nodePorts)).in)
	for _, c := range []struct {
		backend string
		want    error
	}{
		{"10.1.1.1:8080", nil},
		{node1 + ":8080", nil},
		{node1 + ":30080", proxy.ErrCircle},
		{vip4 + ":80", proxy.ErrCircle},
		{"127.0.0.1:80", proxy.ErrHidden},
		{"169.254.169.254:80", proxy.ErrHidden},
		{"[::ffff:10.1.1.1]:80", proxy.ErrHidden},
		{"[fe80::1%eth0]:80", proxy.ErrHidden},
	} {
		if got := tab.Dialable(netip.MustParseAddrPort(c.backend), 6); !errors.Is(got, c.want) {
			t.Errorf("Dialable(%s) = %v, want %v", c.backend, got, c.want)
		}
	}
}
