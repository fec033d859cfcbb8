package datapath

import (
	"github.com/netctl/netctl/internal/flow"
	"github.com/netctl/netctl/internal/packet"
)

// Masquerade is what the Port of a KindOutside entry knows besides how to write.
// Its methods are called for the first packet of a connection.
type Masquerade interface {
	// Source returns the node's address that packets to dst leave with, the zero
	// Addr when none may be sent there.
	Source(dst packet.Addr) packet.Addr
	// SourcePort returns one of the ports, or identifiers of pings, that are kept
	// for these packets, of those that the client may have: n is a random number to
	// choose by.
	SourcePort(client packet.Addr, n uint32) uint16
	// Short says that all ports that were tried are taken towards one server: more
	// would be of use.
	Short()
}

// toOutside reports whether what leaves by such a port is outside the cluster.
func (k Kind) toOutside() bool { return k == KindNetstack || k == KindOutside }

// masquerades reports whether a connection has something to tell it by among
// others that leave with the same address.
func masquerades(t *packet.Tuple) bool {
	switch t.Proto {
	case packet.ProtoTCP, packet.ProtoUDP:
		return true
	case packet.ProtoICMP, packet.ProtoICMPv6:
		return t.SrcPort != 0 && t.DstPort == 0 // pings
	default:
		return false
	}
}

// judgeNew is judge for a new connection. One to the outside then gets the node's
// address and a source port that is kept for it: policies speak of the pod.
func (in *Input) judgeNew(c *conn) (PortID, Drop) {
	out, d := in.judge(c)
	if d != DropNone || in.tables.port(out).Kind != KindOutside {
		return out, d
	}
	m, ok := in.tables.port(out).Port.(Masquerade)
	if !ok {
		return out, DropPortRefused
	}
	c.wire.Src, c.wire.SrcPort = m.Source(c.wire.Dst), in.sourcePort(c, out)
	if c.wire.Src == (packet.Addr{}) {
		return out, DropNotOutside
	}
	c.flags |= flow.FlagNAT
	return out, DropNone
}

// sourcePort returns a source port to try towards the exit.
func (in *Input) sourcePort(c *conn, out PortID) uint16 {
	if m, ok := in.tables.port(out).Port.(Masquerade); ok {
		return m.SourcePort(c.orig.Src, in.rng.Uint32())
	}
	return uint16(1024 + in.rng.Uint32N(65536-1024))
}

const (
	// freshTries is how many source ports to the outside are tried before one is
	// taken from a connection that has no more use for it.
	freshTries = 16
	// yieldAge is how many seconds a question and its answer keep their port then.
	yieldAge = 5
)

// nextPort returns another source port towards the exit when the reply's tuple is
// taken. There are few of them for one server outside, so after some tries it is
// the same, with the connection removed that had it, if that can be.
func (in *Input) nextPort(c *conn, reply *packet.Tuple, out PortID, try int) uint16 {
	if m, ok := in.tables.port(out).Port.(Masquerade); ok && try >= freshTries {
		m.Short()
		var e flow.Entry
		if ref, ok := in.router.flows.Lookup(reply, &e); ok && yields(&e, in.now) {
			in.router.flows.Remove(ref)
			return reply.DstPort
		}
	}
	return in.sourcePort(c, out)
}

// yields reports whether a connection may lose its source port to a new one: it
// is over, or was no conversation and has been silent.
func yields(e *flow.Entry, now uint32) bool {
	switch e.State {
	case flow.New, flow.Replied:
		return now-e.LastSeen >= yieldAge
	default:
		return e.State.Over()
	}
}

// mask is what a masqueraded connection's server sees of its client.
type mask struct {
	is   bool
	src  packet.Addr
	port uint16
}

// unmask puts the client's own source in c, by which it is judged; e is the entry
// of the packet in hand. restore undoes it.
func (in *Input) unmask(c *conn, e *flow.Entry, reverse bool) mask {
	out := PortID(e.Out)
	if reverse {
		out = in.id
	}
	if in.tables.port(out).Kind != KindOutside {
		return mask{}
	}
	m := mask{is: true, src: c.wire.Src, port: c.wire.SrcPort}
	c.wire.Src, c.wire.SrcPort = c.orig.Src, c.orig.SrcPort
	return m
}

func (m *mask) restore(c *conn) {
	if m.is {
		c.wire.Src, c.wire.SrcPort = m.src, m.port
	}
}
