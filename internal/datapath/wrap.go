package datapath

import (
	"github.com/netctl/netctl/internal/flow"
	"github.com/netctl/netctl/internal/packet"
)

// Connections of clients outside the cluster reach pods of other nodes with the
// client's own address, which no peer may send from. Their packets are wrapped,
// from router address to router address, and their replies go back, wrapped, to
// the node that they came from:
//
//	client C ── node A ══ [A.2 > B.2 | C > pod] ══> node B ── pod
//	client C ── node A <══ [B.2 > A.2 | pod > C] ══ node B ── pod
//
// Node B keys such a flow by its tuple and by node A (packet.Tuple.Zone), and
// remembers A by a number that outlives Tables and restarts (Peer.ID).

// Peer is another node, as wrapped packets name it.
type Peer struct {
	// ID is a hash of the node's name that fits Flow entries, see PeerID. 0: none,
	// because another peer has the same.
	ID uint64
	// Router are its router's addresses, IPv4 and IPv6.
	Router [2]packet.Addr
}

// peerBits is what a flow entry has room for.
const peerBits = 48

// PeerID returns the ID of the node with that name. It is never 0.
func PeerID(node string) uint64 {
	const fnvOffset, fnvPrime = 14695981039346656037, 1099511628211
	h := uint64(fnvOffset)
	for i := range len(node) {
		h = (h ^ uint64(node[i])) * fnvPrime
	}
	return (h>>peerBits^h)&(1<<peerBits-1) | 1<<(peerBits-1)
}

// zone is where the flows of clients that the peer sends on are keyed, never 0.
// Two peers in one zone are rare; the flow's own ID tells them apart, too late to
// let equal tuples of both be.
func (p Peer) zone() uint16 { return uint16(p.ID) | 1 } // its low bits

// setVia remembers in a connection, for which the client's node has chosen the
// backend, which node that is; viaOf reads it from an entry.
func (c *conn) setVia(p Peer) {
	c.flags |= flow.FlagWrapped
	c.frontSlot, c.frontGen = uint16(p.ID>>32), uint32(p.ID) // 48 bits
}

func viaOf(slot uint16, gen uint32) uint64 { return uint64(slot)<<32 | uint64(gen) }

// peer returns the peer of a number, an empty one when there is none.
func (t *Tables) peer(n uint32) Peer {
	if int(n) >= len(t.Peers) {
		return Peer{}
	}
	return t.Peers[n]
}

// Outside reports whether a is outside the cluster, for sure.
func (t *Tables) Outside(a packet.Addr) bool {
	port := t.route(a).Port
	return port != NoPort && (port == t.Netstack || port == t.Masquerade) && !t.isDNS(a)
}

// unwrap takes a wrapped packet out, in place, and notes which peer has sent it.
// Nothing but a router's own packets are Wrapped, see packet.Wrapped, so one that
// is not between a peer's router and ours is nobody's mistake.
func (in *Input) unwrap(buf []byte, src, dst packet.Addr) ([]byte, Drop) {
	from, to := in.tables.route(src), in.tables.route(dst)
	if !from.Router || from.Port != in.id || from.Peer == 0 || !to.Router || to.Peer != 0 {
		return nil, DropSpoofedSource
	}
	if in.tables.peer(from.Peer).ID == 0 {
		return nil, DropNoPeer // nor could we answer it
	}
	if buf = packet.Unwrap(buf); buf == nil {
		return nil, DropMalformed
	}
	in.via = from.Peer
	return buf, DropNone
}

// guardUnwrapped is step 2 for what was in a wrapped packet: either a client from
// the outside speaks to a pod here, or the peer answers one that we sent on. It
// puts the packet into its zone.
func (in *Input) guardUnwrapped() Drop {
	t, p := in.tables, &in.pkt
	if t.route(p.Tuple.Src).Peer == in.via {
		return DropNone // it must belong to a flow: see unjudged
	}
	if !t.Outside(p.Tuple.Src) {
		return DropSpoofedSource
	}
	switch to := t.route(p.Tuple.Dst); {
	case to.Port == NoPort:
		return to.Reason
	case t.port(to.Port).Kind != KindPod:
		return DropTransit
	}
	p.Tuple.Zone = t.peer(in.via).zone()
	return DropNone
}

// belongs reports whether the packet is of the known flow in in.entry, whose
// tuple it has: connections that sockets carry on are told apart from others, and
// what comes by one peer from another's, by the way that they come.
func (in *Input) belongs(from *PortEntry) bool {
	e := &in.entry
	wrapped, reverse := e.Flags&flow.FlagWrapped != 0, e.Flags&flow.FlagReverse != 0
	if (from.Kind == KindInbound) != (e.Flags&flow.FlagInbound != 0 && !reverse) {
		return false
	}
	if from.Kind != KindOverlay {
		return true
	}
	if !wrapped || in.via == 0 || reverse { // of replies guardUnwrapped has seen to it
		return wrapped == (in.via != 0)
	}
	return viaOf(e.FrontSlot, e.FrontGen) == in.tables.peer(in.via).ID
}

// clientPort is the port behind which a known connection's client is now: where
// its address leads, but for clients that no route knows. They stay where they
// are, if they may still: see disowned.
func (in *Input) clientPort(c *conn, e *flow.Entry, reverse bool) PortID {
	t := in.tables
	if c.flags&(flow.FlagInbound|flow.FlagWrapped) == 0 && !t.Outside(c.orig.Src) {
		return t.route(c.orig.Src).Port
	}
	if reverse {
		return PortID(e.Out)
	}
	return in.id
}

// wrapsTo returns the router address of the node that the packet, which leaves
// by the overlay as a part of the wrapped flow in in.entry, is sent to. It is the
// zero Addr when that node is gone or bears no address of the family.
func (in *Input) wrapsTo() packet.Addr {
	t, e := in.tables, &in.entry
	var p Peer
	if e.Flags&flow.FlagReverse != 0 {
		p = t.peer(t.PeerNumbers[viaOf(e.FrontSlot, e.FrontGen)])
	} else {
		p = t.peer(t.route(e.Rewrite.Dst).Peer)
	}
	return ofFamily(p.Router, e.Rewrite.Dst)
}

// through completes an exit to another node: whether it is wrapped, and how much
// the way there carries.
func (in *Input) through(way *exit, wrapped bool) {
	p := &in.pkt
	to := p.Tuple.Dst
	if way.nat {
		to = in.entry.Rewrite.Dst
	}
	if wrapped {
		way.wrapped, way.to = true, in.wrapsTo()
		to = way.to
	}
	if n, ok := way.Port.(Narrower); ok {
		way.mtu = min(way.mtu, n.MTU(to))
	}
	if wrapped {
		way.mtu -= packet.WrapLen(p.Is4())
	}
}

// ofFamily picks the address of a's family.
func ofFamily(pair [2]packet.Addr, a packet.Addr) packet.Addr {
	if a.Is4() {
		return pair[0]
	}
	return pair[1]
}

// emitWrapped is step 9 for packets that leave wrapped. A super-packet is cut
// here: the tunnel would have to do it anyway.
func (in *Input) emitWrapped(out *PortEntry, buf []byte, to packet.Addr) Drop {
	src := in.tables.routerAddr(to)
	if to == (packet.Addr{}) || src == (packet.Addr{}) {
		return DropNoPeer
	}
	s := &in.cut
	if s.Reset(buf, 0) != packet.FaultNone {
		return DropMalformed
	}
	head := packet.VNetLen + packet.WrapLen(to.Is4())
	if need := head + s.Size(); len(in.wrapped) < need {
		in.wrapped = make([]byte, need) // once for a size of packets
	}
	for {
		n, ok := s.Next(in.wrapped[head:])
		if !ok {
			break
		}
		one := in.wrapped[:head+n]
		packet.Wrap(one, &src, &to)
		if err := in.write(out, one); err != nil {
			return dropOf(err)
		}
	}
	return DropNone
}

// emitPlain is step 9 for a port whose device does not do our work.
func (in *Input) emitPlain(out *PortEntry, buf []byte) Drop {
	s := &in.cut
	if s.Reset(buf, 0) != packet.FaultNone {
		return DropMalformed
	}
	if need := packet.VNetLen + s.Size(); len(in.wrapped) < need {
		in.wrapped = make([]byte, need) // once for a size of packets
	}
	for {
		n, ok := s.Next(in.wrapped[packet.VNetLen:])
		if !ok {
			return DropNone
		}
		clear(in.wrapped[:packet.VNetLen]) // an ordinary packet
		if err := out.write(in.wrapped[:packet.VNetLen+n]); err != nil {
			return dropOf(err)
		}
	}
}
