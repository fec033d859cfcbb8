package netstack

import "sync/atomic"

// Drop is why a packet or a connection ended here. The names are label values
// of metrics.
type Drop uint8

// The reasons.
const (
	DropNone         Drop = iota
	DropMalformed         // the packet cannot be read
	DropChecksum          // transport checksum wrong
	DropProtocol          // neither TCP, UDP nor ICMP echo: no egress for it
	DropICMP              // ICMP other than echo, or an error about nothing we sent
	DropRefused           // the destination may not be reached on behalf of a pod
	DropNoFlow            // TCP segment of no known connection, answered with a reset
	DropDialLimit         // too many connections being opened
	DropConnLimit         // too many open connections
	DropFlowLimit         // too many UDP flows, and none of the pod's own to give up
	DropEchoLimit         // too many pings
	DropPending           // the flow's socket is not open yet and its queue is full
	DropSocket            // the kernel would not take the datagram
	DropNoPing            // the kernel allows neither ping nor raw sockets
	DropFragment          // fragment that fits nothing: overlap, bad length
	DropFragLimit         // too many datagrams being reassembled
	DropFragTimeout       // datagram not complete in time
	DropAnswerFull        // the queue of answers is full
	DropInboundLimit      // too many connections or flows from outside
	DropClosing           // shutting down
	DropElder             // the predecessor, whose connection it is, takes no more just now
	dropEnd
)

// Drops is how many values Drop has.
const Drops = int(dropEnd)

//nolint:gochecknoglobals // a table known at compile time
var dropNames = [Drops]string{
	DropNone:         "none",
	DropMalformed:    "malformed",
	DropChecksum:     "checksum",
	DropProtocol:     "protocol",
	DropICMP:         "icmp",
	DropRefused:      "refused_destination",
	DropNoFlow:       "no_connection",
	DropDialLimit:    "dial_limit",
	DropConnLimit:    "connection_limit",
	DropFlowLimit:    "flow_limit",
	DropEchoLimit:    "echo_limit",
	DropPending:      "pending_full",
	DropSocket:       "socket",
	DropNoPing:       "no_ping_socket",
	DropFragment:     "fragment",
	DropFragLimit:    "fragment_limit",
	DropFragTimeout:  "fragment_timeout",
	DropAnswerFull:   "answer_queue_full",
	DropInboundLimit: "inbound_limit",
	DropClosing:      "closing",
	DropElder:        "predecessor_full",
}

// String names the reason.
func (d Drop) String() string {
	if int(d) < len(dropNames) {
		return dropNames[d]
	}
	return "invalid"
}

// Stats is a copy of the counters and gauges.
type Stats struct {
	Drops [Drops]uint64 // by reason

	Dialled, Opened uint64 // TCP: dials begun, connections that came up
	Refused         uint64 // TCP: dials that the destination refused
	Unreachable     uint64 // TCP: dials without a route or host
	TimedOut        uint64 // TCP: dials without an answer
	Handshakes      uint64 // TCP: dialled, but the pod never completed its handshake
	Served          uint64 // TCP: connections to servers in this process
	BytesUp         uint64 // payload from pods, TCP and datagrams
	BytesDown       uint64 // payload to pods
	FlowsOpened     uint64 // UDP and echo
	FlowsEvicted    uint64 // flows that gave way to a newer one of the same pod
	Reassembled     uint64 // datagrams put together from fragments

	Dials, Conns, Flows, Echoes int // now

	Inbound                    uint64 // TCP: connections that Dial opened
	InboundFailed              uint64 // TCP: connections that Dial could not open
	InboundConns, InboundFlows int    // now

	Inherited int    // connections and flows that still live in a predecessor
	Adopted   uint64 // UDP flows that were taken over from one
}

type counters struct {
	drops                          [Drops]atomic.Uint64
	dialled, opened, refused       atomic.Uint64
	unreachable, timedOut          atomic.Uint64
	handshakes, served             atomic.Uint64
	bytesUp, bytesDown             atomic.Uint64
	flowsOpened, evicted, complete atomic.Uint64
	inbound, inboundFailed         atomic.Uint64
	adopted                        atomic.Uint64
}

func (c *counters) drop(d Drop) { c.drops[d].Add(1) }

// Stats returns the counters as they are now.
func (s *Stack) Stats() Stats {
	c := &s.counters
	out := Stats{
		Dialled: c.dialled.Load(), Opened: c.opened.Load(), Refused: c.refused.Load(),
		Unreachable: c.unreachable.Load(), TimedOut: c.timedOut.Load(),
		Handshakes: c.handshakes.Load(), Served: c.served.Load(),
		BytesUp: c.bytesUp.Load(), BytesDown: c.bytesDown.Load(),
		FlowsOpened: c.flowsOpened.Load(), FlowsEvicted: c.evicted.Load(),
		Reassembled: c.complete.Load(),
		Dials:       s.dials.Size(), Conns: s.conns.Size(),
		Flows: s.datagrams.flowQuota.Size(), Echoes: s.datagrams.echoQuota.Size(),
		Inbound: c.inbound.Load(), InboundFailed: c.inboundFailed.Load(),
		InboundConns: s.inConns.Size(), InboundFlows: s.inFlows.quota.Size(),
		Adopted: c.adopted.Load(),
	}
	if e := s.elder.Load(); e != nil {
		out.Inherited = int(e.size.Load())
	}
	for i := range out.Drops {
		out.Drops[i] = c.drops[i].Load()
	}
	return out
}
