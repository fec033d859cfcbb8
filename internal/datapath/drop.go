package datapath

import "errors"

// Drop is why a packet was not forwarded. Every dropped packet is counted under
// exactly one.
type Drop uint8

// The reasons. DropNone is the reason of a packet that went on.
const (
	DropNone           Drop = iota
	DropMalformed           // headers that contradict themselves or the length
	DropSpoofedSource       // the source does not belong to the port it came in by
	DropNoRoute             // nowhere to go
	DropNoClusterRange      // the cluster's pod ranges are not known, so nothing is known to be outside
	DropUnownedAddress      // inside a cluster range, but nobody's
	DropPeerUnready         // the node that owns the address has no WireGuard key yet
	DropTransit             // a peer or socket asked us to carry for a third party
	DropNoEndpoints         // a service without usable endpoints, or not a port of it
	DropServiceLocal        // a Local traffic policy and no local endpoint
	DropUnallocated         // inside a service range, but no Service has it
	DropEgressPolicy        // the sending pod's policy denies it
	DropIngressPolicy       // the receiving pod's policy denies it
	DropNotAnswered         // to a router or service address, which answers no such thing
	DropTunnelPort          // WireGuard's port of a node is not for pods
	DropTTL                 // hop limit reached zero here
	DropTooBig              // larger than the exit's MTU and not to be fragmented
	DropFragment            // a later fragment whose first was not seen, or the exit takes none
	DropICMPUnmatched       // an ICMP error about a packet of no known flow
	DropFlowOwnerFull       // the pod has as many connections as one pod may have
	DropFlowTableFull       // the flow table is full of live connections
	DropSourcePorts         // no source port left towards that backend
	DropUnknownReply        // a socket's packet that belongs to no flow
	DropPortFull            // the exit's queue is full
	DropNoPeer              // the tunnel has no peer for it (any more)
	DropPortRefused         // the exit is well and did not take this packet
	DropPortGone            // the exit failed: its device is gone
	DropPanic               // a bug: the walk panicked on this packet
	DropNotOutside          // neither in the cluster nor outside: an address of the host, or one that nobody may send to
	dropCount
)

// String returns the reason as metrics and traces name it.
func (d Drop) String() string {
	names := [dropCount]string{
		"none", "malformed", "spoofed_source", "no_route", "no_cluster_range", "unowned_address", "peer_unready", "transit",
		"no_endpoints", "service_local", "unallocated", "egress_policy", "ingress_policy", "not_answered",
		"tunnel_port",
		"ttl", "too_big", "fragment", "icmp_unmatched", "flow_owner_full", "flow_table_full", "source_ports",
		"unknown_reply", "port_full", "no_peer", "port_refused", "port_gone", "panic",
		"not_outside",
	}
	if d >= dropCount {
		return "unknown"
	}
	return names[d] //nolint:gosec // the line before has seen to it
}

// answer is what a dropped packet's sender is told.
type answer uint8

const (
	answerNone  answer = iota
	answerHost         // ICMP host / address unreachable
	answerPort         // TCP reset, ICMP port unreachable
	answerAdmin        // ICMP administratively prohibited
)

// answerTo says which answer a reason deserves. What a policy denies is dropped
// in silence, as people expect of a NetworkPolicy.
func answerTo(d Drop) answer {
	switch d {
	case DropNoRoute, DropNoClusterRange, DropUnownedAddress, DropPeerUnready:
		return answerHost
	case DropNoEndpoints, DropNotOutside:
		return answerPort
	case DropSourcePorts, DropFlowOwnerFull:
		return answerAdmin
	default:
		return answerNone
	}
}

// dropOf is the reason for what a Port's Write returned.
func dropOf(err error) Drop {
	switch {
	case errors.Is(err, ErrFull):
		return DropPortFull
	case errors.Is(err, ErrNoPeer):
		return DropNoPeer
	case errors.Is(err, ErrFragment):
		return DropFragment
	case errors.Is(err, ErrRefused):
		return DropPortRefused
	default:
		return DropPortGone
	}
}
