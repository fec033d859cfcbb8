package datapath

import (
	"github.com/netctl/netctl/internal/flow"
	"github.com/netctl/netctl/internal/packet"
)

// conn is a connection as judge and open see it: the tuple that the client
// sends, the one that the backend gets, and what chose the difference.
type conn struct {
	orig, wire packet.Tuple
	client     PortID
	flags      flow.Flags
	frontSlot  uint16
	frontGen   uint32
}

// entries makes the two directions' flow entries of a connection.
func (in *Input) entries(c *conn, out PortID) (fwd, rev flow.Entry) {
	t := in.tables
	clientGen, outGen, owner := t.port(c.client).Gen, t.port(out).Gen, t.owner(c)
	back := c.orig.Reverse()
	fwd = flow.Entry{
		Rewrite: rewriteTo(&c.wire), Out: uint32(out), InGen: clientGen, OutGen: outGen,
		FrontGen: c.frontGen, FrontSlot: c.frontSlot, Flags: c.flags, Owner: owner,
	}
	rev = flow.Entry{
		Rewrite: rewriteTo(&back), Out: uint32(c.client), InGen: outGen, OutGen: clientGen,
		FrontGen: c.frontGen, FrontSlot: c.frontSlot, Flags: c.flags | flow.FlagReverse, Owner: owner,
	}
	return fwd, rev
}

func rewriteTo(t *packet.Tuple) packet.Rewrite {
	return packet.Rewrite{Src: t.Src, Dst: t.Dst, SrcPort: t.SrcPort, DstPort: t.DstPort}
}

// remoteOwners is the first owner number that is no local pod's port, and how
// many there are for clients on other nodes: half of what the flow table counts.
const remoteOwners = 1 << 13

// peerClients is how many of them the clients have together that one peer sends
// on, since a hostile one can name any number of clients.
const peerClients = 4

// gatewayClients is how many the clients outside are that the kernel forwards to
// load balancers' addresses: who floods one with many addresses has so many bounds.
const gatewayClients = 64

// owner says whose bound a connection counts against: the pod that opened it,
// also one of another node, so that no pod anywhere can take the table. The
// node's own processes and listeners are trusted and unbounded: ingress proxies
// are among them.
func (t *Tables) owner(c *conn) uint32 {
	switch t.port(c.client).Kind {
	case KindPod:
		return uint32(c.client)
	case KindOverlay:
		h := addrHash(&c.orig.Src)
		if c.flags&flow.FlagWrapped != 0 {
			h = c.frontGen*peerClients + h%peerClients
		}
		return remoteOwners + h%remoteOwners
	case KindHost:
		if t.Outside(c.orig.Src) {
			return remoteOwners + addrHash(&c.orig.Src)%gatewayClients
		}
		return 0
	default:
		return 0
	}
}
