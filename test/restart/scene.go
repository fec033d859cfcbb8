package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/netctl/netctl/internal/agent/settings"
	"github.com/netctl/netctl/test/restart/load"
)

// scene is where the load runs, however its cluster was made:
//
//	node1: client, idler, near-a, near-b Services: near, far; NodePort of far
//	node2: far-a, far-b                  outside: a host beyond the nodes
//
// The client speaks with the near pods on its own node and with the far ones through
// the tunnel. Behind each Service are two pods, so that there is a wrong one. The
// idle connections are another pod's, since a pod may have so many and no more.
type scene struct {
	client, idler  *load.Place
	outside        *load.Place
	nodes, servers []*load.Place // servers by name: near-a, near-b, far-a, far-b
	near, far      netip.Addr    // the Services'
	loyal          [2]netip.Addr // those of the near and the far pods, with affinity
	dns            netip.AddrPort
}

// The pods' names.
const (
	clientPod = "client"
	idlerPod  = "idler"
	nearA     = "near-a"
	nearB     = "near-b"
	farA      = "far-a"
	farB      = "far-b"
)

// podPlace is where a pod runs, and the Service that it is behind.
type podPlace struct{ name, node, service string }

func podPlaces(node1, node2 string) []podPlace {
	return []podPlace{
		{clientPod, node1, ""}, {idlerPod, node1, ""}, {nearA, node1, "near"}, {nearB, node1, "near"}, {farA, node2, "far"}, {farB, node2, "far"},
	}
}

// nodePort is that of the far pods' introducers.
const nodePort = 30900

// serviceManifests are the scene's Services.
func serviceManifests() string {
	ports := fmt.Sprintf("[{name: talk, port: %d}, {name: bulk, port: %d}, {name: count, port: %d, protocol: UDP}]",
		load.TalkPort, load.BulkPort, load.CountPort)
	var b strings.Builder
	for _, name := range []string{"near", "far"} {
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Service\nmetadata: {name: %s}\nspec:\n  selector: {service: %s}\n  ports: %s\n", name, name, ports)
	}
	for _, name := range []string{"near", "far"} {
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Service\nmetadata: {name: loyal-%s}\nspec:\n  selector: {service: %s}\n  sessionAffinity: ClientIP\n"+
			"  ports: [{name: talk, port: %d}, {name: iperf3, port: %d}]\n", name, name, load.TalkPort, load.IperfServicePort)
	}
	fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Service\nmetadata: {name: far-node}\nspec:\n  type: NodePort\n  selector: {service: far}\n"+
		"  ports: [{port: %d, nodePort: %d}]\n", load.TalkPort, nodePort)
	return b.String()
}

// cast gives the pods their parts.
func (s *scene) cast(pods map[string]*load.Place) {
	s.client, s.idler = pods[clientPod], pods[idlerPod]
	s.servers = []*load.Place{pods[nearA], pods[nearB], pods[farA], pods[farB]}
}

// service takes the address of a Service, by namespace/name.
func (s *scene) service(name string, addr netip.Addr) {
	switch path.Base(name) {
	case "near":
		s.near = addr
	case "far":
		s.far = addr
	case "loyal-near":
		s.loyal[0] = addr
	case "loyal-far":
		s.loyal[1] = addr
	case "kube-dns":
		s.dns = netip.AddrPortFrom(addr, 53)
	}
}

// question is what the name server is asked for.
const question = "far.default.svc.cluster.local"

func (s *scene) close() error {
	var errs []error
	for _, p := range append(append([]*load.Place{s.client, s.idler, s.outside}, s.nodes...), s.servers...) {
		if p != nil {
			errs = append(errs, p.Close())
		}
	}
	return errors.Join(errs...)
}

// ways are those of a pod on node1 that are forwarded packet by packet.
func (s *scene) ways(from *load.Place) []load.Way {
	return []load.Way{
		{Name: "on one node", From: from, To: s.servers[0].Addr},
		{Name: "on one node, by Service", From: from, To: s.near},
		{Name: "through the tunnel", From: from, To: s.servers[2].Addr},
		{Name: "through the tunnel, by Service", From: from, To: s.far},
	}
}

// byAffinity are ways to Services that send a client to the same pod each time.
func (s *scene) byAffinity(from *load.Place) []load.Way {
	return []load.Way{
		{Name: "on one node, by Service with affinity", From: from, To: s.loyal[0]},
		{Name: "through the tunnel, by Service with affinity", From: from, To: s.loyal[1]},
	}
}

// iperf are the ways of iperf3.
func (s *scene) iperf() []load.IperfWay {
	all := s.ways(s.client)
	loyal := s.byAffinity(s.client)
	return []load.IperfWay{
		{Way: all[0], Port: load.IperfPort},
		{Way: loyal[0], Port: load.IperfServicePort},
		{Way: all[2], Port: load.IperfPort},
		{Way: loyal[1], Port: load.IperfServicePort},
	}
}

// hosts are processes of nodes that speak with pods.
func (s *scene) hosts() []load.Line {
	var out []load.Line
	for _, n := range s.nodes {
		out = append(out,
			load.Line{Name: "node to pod", From: n, To: netip.AddrPortFrom(s.servers[0].Addr, load.TalkPort)},
			load.Line{Name: "node to Service", From: n, To: netip.AddrPortFrom(s.far, load.TalkPort)})
	}
	return out
}

// loads are the names of all loads, as -loads takes them.
const loadNames = "udp, bulk, iperf3, idle, new, loyal, dns, host, egress, nodeport"

// talks is how many connections of a kind end in the sockets of each agent. Nobody
// says so when such a socket is gone with its process, and so they do not wait as
// long for an answer as connections that TCP has to bring through.
const (
	talks          = 10
	socketPatience = 20 * time.Second
)

// loyals is how many connections a second go to Services with affinity.
const loyals = 20

// egress are connections of pods, one on each node, with the host outside.
func (s *scene) egress() []load.Line {
	to := netip.AddrPortFrom(s.outside.Addr, load.TalkPort)
	return []load.Line{{Name: "pod to outside", From: s.client, To: to}, {Name: "pod to outside", From: s.servers[2], To: to}}
}

// inward are connections of the host outside with the NodePort of each node.
func (s *scene) inward() []load.Line {
	var out []load.Line
	for _, n := range s.nodes {
		out = append(out, load.Line{Name: "outside to NodePort", From: s.outside, To: netip.AddrPortFrom(n.Addr, nodePort)})
	}
	return out
}

// reachWait is how long a new Service may take to be known.
const reachWait = 30 * time.Second

// start starts the loads that are chosen. Those that it could start are returned
// with an error, too.
func (s *scene) start(ctx context.Context, o options) (loads []load.Load, err error) {
	for _, w := range slices.Concat(s.ways(s.client), s.ways(s.idler), s.byAffinity(s.client)) { // what the agents are told takes its time
		if err := await(ctx, reachWait, func() error { return load.Reach(w) }); err != nil {
			return nil, err
		}
	}
	add := func(l load.Load, e error) {
		if err = e; err == nil {
			loads = append(loads, l)
		}
	}
	outward := socketPatience
	if o.egress == settings.EgressPackets {
		outward = comeBack // nothing of these is in an agent's socket
	}
	for _, each := range []struct {
		name  string
		start func()
	}{
		{"idle", func() { add(load.OpenIdle(ctx, s.ways(s.idler), o.idle)) }},
		{"udp", func() { add(load.StartDatagrams(s.ways(s.client), s.servers, o.packets)) }},
		{"bulk", func() { add(load.StartBulk(ctx, s.ways(s.client), s.servers, o.mbits)) }},
		{"iperf3", func() { add(load.StartIperf(ctx, s.iperf(), s.servers, o.mbits)) }},
		{"new", func() { add(load.StartConnect("new", s.ways(s.client), o.connects, false), nil) }},
		{"loyal", func() { add(load.StartConnect("loyal", s.byAffinity(s.client), loyals, true), nil) }},
		{"dns", func() { add(load.StartNames(s.client, s.dns, question, o.packets)) }},
		{"host", func() { add(load.StartTalk("host", s.hosts(), 1, comeBack), nil) }},
		{"egress", func() { add(load.StartTalk("egress", s.egress(), talks, outward), nil) }},
		{"nodeport", func() { add(load.StartTalk("nodeport", s.inward(), talks, socketPatience), nil) }},
	} {
		if err == nil && o.loads.MatchString(each.name) {
			each.start()
		}
	}
	return loads, err
}
