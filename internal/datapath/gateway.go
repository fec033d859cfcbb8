package datapath

import (
	"slices"

	"github.com/netctl/netctl/internal/flow"
)

// Clients outside of the cluster reach load balancers' addresses and external IPs by
// the node's kernel, which has a route for each of them to the host port. That is
// the one thing for which the host port may bear a foreign source:
//
//	client C ── eth0 ── kernel ── netctl0 ══ router ── pod
//
// What a policy of the service leaves open for them is the service's affair.

// gateway reports whether a client outside of the cluster sends by the node's
// kernel, which forwards what is for a load balancer's address.
func (in *Input) gateway(from *PortEntry) bool {
	return from.Kind == KindHost && !from.Foreign && !slices.Contains(from.Addrs, in.pkt.Tuple.Src)
}

// toExternal reports whether the packet is for the address of a load balancer or
// an external IP. Of known flows it must be one to such an address too: the others'
// tuples are not for somebody outside to speak of.
func (in *Input) toExternal(known bool) bool {
	p := &in.pkt
	if known {
		return in.entry.Flags&(flow.FlagService|flow.FlagReverse) == flow.FlagService
	}
	f, _ := in.tables.Services.Frontend(p.Tuple.Dst, p.Tuple.DstPort, p.Tuple.Proto)
	return f != nil && f.External()
}
