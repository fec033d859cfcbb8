package datapath

import (
	"slices"

	"github.com/netctl/netctl/internal/flow"
	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/internal/policy"
	"github.com/netctl/netctl/proxy"
)

// The walk. The functions below stand in the order in which a packet meets
// them:
//
//	1 parse     headers only; lengths are never trusted
//	2 guard     may this port send from this source?
//	3 flow      known, and judged under what still holds? -> 8
//	4 service   virtual address -> backend, once per flow
//	5 egress    policy of the sending pod, on the translated tuple
//	6 route     destination -> port
//	7 ingress   policy of the receiving pod; insert both directions at once
//	8 rewrite   hop limit, size, NAT with incremental checksums
//	9 emit      write to the exit
//
// Steps 5 to 7 are judge: they are taken again, with the backend kept, when a
// flow's generations have moved.
const (
	dnsPort = 53
	// sourcePortTries bounds the search for a free source port when two flows of
	// one client meet at one backend tuple (§4 of docs/packet-walk.md).
	sourcePortTries = 64
	ipv4TCPHeaders  = 40
	ipv6TCPHeaders  = 60
)

// walk takes one packet from its input to its exit. It returns why the packet
// was dropped, DropNone if it went on.
func (in *Input) walk(buf []byte) Drop {
	// 1 parse
	p, from := &in.pkt, in.tables.port(in.id)
	in.via = 0
	if from.Kind == KindOverlay {
		if src, dst, ok := packet.Wrapped(buf); ok {
			var d Drop
			if buf, d = in.unwrap(buf, src, dst); d != DropNone {
				p.Kind = packet.KindNone // not to be answered
				return d
			}
		}
	}
	p.Buf = buf
	if packet.Parse(p) != packet.FaultNone {
		p.Buf = nil
		return DropMalformed
	}

	// 2 guard
	if !from.admits(p.Tuple.Src) {
		return DropSpoofedSource
	}
	if in.via != 0 {
		if d := in.guardUnwrapped(); d != DropNone {
			return d
		}
	}
	switch p.Kind {
	case packet.KindWhole:
		return in.follow(from)
	case packet.KindICMPError:
		return in.icmpError(from)
	default:
		return in.fragment(from)
	}
}

// follow is step 3: what is known and holds needs no other judgement.
func (in *Input) follow(from *PortEntry) Drop {
	p := &in.pkt
	e := &in.entry
	ref, known := in.router.flows.Lookup(&p.Tuple, e)
	if known && e.Reopens(p.TCPFlags) {
		in.router.flows.Remove(ref)
		known = false
	}
	if known && !in.belongs(from) {
		if from.Kind == KindOverlay || !in.guarded(from, p.Tuple.Src) {
			return DropSpoofedSource
		}
		return DropSourcePorts // the tuple is another connection's
	}
	if known && in.fresh(from, e) {
		in.router.flows.Seen(ref, len(p.Buf), p.TCPFlags, in.now)
		return in.forward(PortID(e.Out), e.Flags)
	}
	return in.unjudged(from, ref, known)
}

// admits is the cheap half of the guard: pods and the host may send from their
// own addresses only. For the other kinds the route to the source decides, which
// a known flow has passed before (its InGen says so); see guarded.
func (e *PortEntry) admits(src packet.Addr) bool {
	switch e.Kind {
	case KindPod, KindHost:
		return e.Foreign || e.Gateway || slices.Contains(e.Addrs, src)
	case KindOverlay, KindNetstack, KindDNS, KindInbound, KindOutside:
		return true
	default:
		return false
	}
}

// guarded is the full guard, for packets of flows that are not known: what comes
// from peers must come from where peers' packets go, or have passed
// guardUnwrapped; what comes from sockets from the outside; what listeners of this
// node carry on also from nodes, this one or others, and its router.
func (in *Input) guarded(from *PortEntry, src packet.Addr) bool {
	t := in.tables
	switch from.Kind {
	case KindOverlay:
		return in.via != 0 || t.route(src).Port == in.id
	case KindNetstack:
		return t.route(src).Port == in.id || t.Outside(src)
	case KindOutside:
		// The node's kernel may have an error to report of a packet on its way.
		return t.Outside(src) || in.pkt.Kind == packet.KindICMPError && slices.Contains(from.Addrs, src)
	case KindInbound:
		return t.Outside(src) || src == t.routerAddr(src) || t.route(src).HostAddress
	case KindDNS:
		return t.isDNS(src)
	case KindHost:
		return slices.Contains(from.Addrs, src) || t.Outside(src)
	default:
		return true
	}
}

// fragment walks a piece of a datagram. A first one that went on is remembered;
// the later ones, which carry no ports, are given its.
func (in *Input) fragment(from *PortEntry) Drop {
	p, frags := &in.pkt, in.router.frags
	sender, k := in.sender(), p.Fragment()
	if p.Kind == packet.KindLaterFragment {
		var ok bool
		if p.Tuple.SrcPort, p.Tuple.DstPort, ok = frags.ports(sender, k, in.now); !ok {
			return DropFragment
		}
		return in.follow(from)
	}
	srcPort, dstPort := p.Tuple.SrcPort, p.Tuple.DstPort
	d := in.follow(from)
	if d == DropNone {
		frags.learn(sender, k, srcPort, dstPort, in.now)
	}
	return d
}

// fresh reports whether everything that the flow was judged by still holds.
func (in *Input) fresh(from *PortEntry, e *flow.Entry) bool {
	return e.InGen == from.Gen &&
		e.OutGen == in.tables.port(PortID(e.Out)).Gen &&
		(e.Flags&flow.FlagService == 0 || e.FrontGen == in.tables.Services.Generation(e.FrontSlot))
}

// unjudged decides on a packet whose flow is unknown or was judged by what no
// longer holds.
func (in *Input) unjudged(from *PortEntry, ref flow.Ref, known bool) Drop {
	p := &in.pkt
	if !in.guarded(from, p.Tuple.Src) {
		return DropSpoofedSource
	}
	if from.Kind == KindDNS {
		return in.forward(in.tables.route(p.Tuple.Dst).Port, 0)
	}
	if in.gateway(from) && !in.toExternal(known) {
		return DropSpoofedSource
	}
	if known {
		if d, settled := in.rejudge(ref); settled {
			return d
		}
	}
	if from.Kind == KindNetstack || from.Kind == KindOutside || in.via != 0 && p.Tuple.Zone == 0 {
		return DropUnknownReply // sockets only ever answer, and so do peers to clients behind us
	}
	if in.tables.isDNS(p.Tuple.Dst) && p.Tuple.DstPort == dnsPort && p.Tuple.Proto == packet.ProtoUDP {
		return in.question(from)
	}
	return in.open(from)
}

// question hands a DNS question to the node's own name server. It needs no
// flow: the answer finds its way by its destination.
func (in *Input) question(from *PortEntry) Drop {
	if from.Kind == KindOverlay || from.Kind == KindInbound || from.Foreign && in.tables.Outside(in.pkt.Tuple.Src) {
		return DropTransit // every node answers its own, and nobody outside
	}
	if from.Kind == KindPod && in.tables.Policy.Egress(&in.pkt.Tuple) != policy.Allow {
		return DropEgressPolicy
	}
	return in.forward(in.tables.DNSPort, 0)
}

// open makes a flow of the first packet of a connection.
func (in *Input) open(from *PortEntry) Drop {
	p := &in.pkt
	in.judged.Add(1)
	c := conn{orig: p.Tuple, wire: p.Tuple, client: in.id}
	c.wire.Zone = 0
	switch {
	case in.via != 0:
		c.setVia(in.tables.peer(in.via))
	case from.Kind == KindInbound:
		c.flags |= flow.FlagInbound
	}
	if d := in.service(from, &c); d != DropNone { // 4
		return d
	}
	out, d := in.judgeNew(&c) // 5 6 7
	if d != DropNone {
		return d
	}
	if d := in.insert(&c, out); d != DropNone {
		return d
	}
	return in.forward(PortID(in.entry.Out), in.entry.Flags) // 8 9
}

// service is step 4: it replaces a virtual address by a backend.
func (in *Input) service(from *PortEntry, c *conn) Drop {
	if from.Kind == KindOverlay || from.Kind == KindInbound || from.Foreign && in.tables.Outside(c.orig.Src) {
		return DropNone // translated on the node that it came from, by the listener or by the kernel
	}
	t := in.tables
	if t.isDNS(c.orig.Dst) {
		if c.orig.DstPort == dnsPort && c.orig.Proto == packet.ProtoTCP {
			return DropNone // a route leads it to netstack
		}
		return DropNoEndpoints
	}
	f, kind := t.Services.Frontend(c.orig.Dst, c.orig.DstPort, c.orig.Proto)
	var b proxy.Backend
	if kind == proxy.KindBackends {
		n := in.rng.Uint32()
		if f.Hashed() {
			n = proxy.Hash(c.orig.Proto, c.orig.Src, c.orig.SrcPort, c.orig.Dst, c.orig.DstPort)
		}
		b, kind = t.Services.Pick(f, c.orig.Src, n, in.router.affinity, in.now)
	}
	switch kind {
	case proxy.KindNone:
		return DropNone
	case proxy.KindBackends:
	case proxy.KindDrop:
		return DropServiceLocal
	case proxy.KindUnallocated:
		return DropUnallocated
	default:
		return DropNoEndpoints
	}
	c.wire.Dst, c.wire.DstPort = b.Addr, b.Port
	c.flags |= flow.FlagNAT | flow.FlagService
	c.frontSlot = f.Slot()
	c.frontGen = t.Services.Generation(c.frontSlot)
	switch {
	case from.Kind == KindHost && t.route(b.Addr).HostAddress:
		// The kernel would short-circuit or refuse the reply of a host address to
		// the node's own address: it answers the router instead.
		c.wire.Src = t.routerAddr(b.Addr)
		if c.wire.Src == (packet.Addr{}) {
			return DropNoRoute
		}
	case b.Addr == c.orig.Src:
		// Hairpin: with its own address as the source the pod would answer itself,
		// untranslated. It sees the virtual address instead.
		c.wire.Src = c.orig.Dst
	}
	return DropNone
}

// judge is steps 5 to 7: may the connection be, and by which port does it leave?
func (in *Input) judge(c *conn) (PortID, Drop) {
	t := in.tables
	client := t.port(c.client)
	if client.Kind == KindPod && t.Policy.Egress(&c.wire) != policy.Allow { // 5
		return NoPort, DropEgressPolicy
	}
	rt := t.route(c.wire.Dst) // 6
	if rt.Port == NoPort {
		return NoPort, rt.Reason
	}
	if rt.Port == t.Masquerade && !masquerades(&c.wire) {
		rt.Port = t.Netstack // which knows what to say to protocols that it does not carry
	}
	out := t.port(rt.Port)
	switch {
	case client.Kind == KindOverlay && (out.Kind == KindOverlay || out.Kind.toOutside()):
		return NoPort, DropTransit
	case !t.carries(c, &rt):
		return NoPort, DropTransit
	case client.Kind == KindHost && out.Kind.toOutside() && !t.isDNS(c.wire.Dst):
		return NoPort, DropTransit // the node's own way out is its kernel
	case out.Kind == KindDNS:
		return NoPort, DropNotAnswered
	case rt.HostAddress && c.wire.Proto == packet.ProtoUDP && c.wire.DstPort == t.TunnelPort &&
		t.TunnelPort != 0 && client.Kind != KindHost:
		return NoPort, DropTunnelPort
	}
	if out.Kind == KindPod && t.Policy.Ingress(&c.wire) != policy.Allow { // 7
		return NoPort, DropIngressPolicy
	}
	if (client.Kind == KindInbound || client.Kind == KindHost) && out.Kind == KindOverlay && t.Outside(c.wire.Src) {
		c.flags |= flow.FlagWrapped // no peer may send from that address
	}
	return rt.Port, DropNone
}

// carries reports whether a connection whose client is not in the cluster, or
// that a listener carries on, may go there: to pods, and when it comes from
// another node or the kernel, to pods of this node.
func (t *Tables) carries(c *conn, rt *Route) bool {
	out := t.port(rt.Port).Kind
	switch t.port(c.client).Kind {
	case KindInbound:
		// Another node's address does not leave this node: peers speak for themselves.
		return out == KindPod || out == KindOverlay && !rt.HostAddress && t.route(c.wire.Src).Peer == 0
	case KindOverlay:
		return c.flags&flow.FlagWrapped == 0 || out == KindPod
	case KindHost:
		return out == KindPod || !t.Outside(c.orig.Src) || c.flags&flow.FlagService != 0
	default:
		return true
	}
}

// insert is the end of step 7: it remembers both directions and leaves the
// packet's own in in.entry. When the reply's tuple is taken, because two virtual
// addresses led one client port to one backend, the source port towards the
// backend gives way.
func (in *Input) insert(c *conn, out PortID) Drop {
	t := in.tables
	if t.port(c.client).Kind == KindHost && out == c.client && c.flags&flow.FlagNAT == 0 {
		return DropNotAnswered // a host packet that would go round in circles
	}
	for try := range sourcePortTries {
		fwd, rev := in.entries(c, out)
		reply := c.wire.Reverse()
		switch ref, result := in.router.flows.Insert(&c.orig, &reply, &fwd, &rev, in.now); result {
		case flow.Inserted:
			in.entry = fwd
			in.router.flows.Seen(ref, len(in.pkt.Buf), in.pkt.TCPFlags, in.now)
			return DropNone
		case flow.Exists:
			// Another worker opened it meanwhile, perhaps with another backend.
			if ref, ok := in.router.flows.Lookup(&c.orig, &in.entry); ok {
				in.router.flows.Seen(ref, len(in.pkt.Buf), in.pkt.TCPFlags, in.now)
				return DropNone
			}
		case flow.OwnerFull:
			return DropFlowOwnerFull
		case flow.TableFull:
			return DropFlowTableFull
		case flow.Clash:
			if !in.hasSourcePort() {
				return DropSourcePorts
			}
			c.flags |= flow.FlagNAT
			c.wire.SrcPort = in.nextPort(c, &reply, out, try)
		}
	}
	return DropSourcePorts
}

// hasSourcePort reports whether the packet has a source port, or an identifier
// in its place, that Apply can change.
func (in *Input) hasSourcePort() bool {
	p := &in.pkt
	switch p.Tuple.Proto {
	case packet.ProtoTCP, packet.ProtoUDP, packet.ProtoSCTP:
		return true
	default:
		return p.IsEcho() && p.Tuple.DstPort == 0 // a request
	}
}

// rejudge takes steps 5 to 7 again for the known flow in in.entry, with its
// backend kept. It is not settled when the flow must be opened anew: the packet
// then continues as the first of a connection.
func (in *Input) rejudge(ref flow.Ref) (d Drop, settled bool) {
	p, e, t := &in.pkt, in.entry, in.tables
	in.rejudged.Add(1)
	sent := packet.Tuple{Src: e.Rewrite.Src, Dst: e.Rewrite.Dst, SrcPort: e.Rewrite.SrcPort, DstPort: e.Rewrite.DstPort, Proto: p.Tuple.Proto}
	c := conn{orig: p.Tuple, wire: sent, flags: e.Flags &^ flow.FlagReverse, frontSlot: e.FrontSlot, frontGen: e.FrontGen}
	reverse := e.Flags&flow.FlagReverse != 0
	if reverse {
		c.orig, c.wire = sent.Reverse(), p.Tuple.Reverse()
	}
	masked := in.unmask(&c, &e, reverse)
	c.client = in.clientPort(&c, &e, reverse)
	if t.port(c.client).Kind != KindOverlay {
		c.flags &^= flow.FlagWrapped // judge says it again
	}
	if c.flags&flow.FlagService != 0 {
		c.frontGen = t.Services.Generation(c.frontSlot)
		if !in.keeps(&c) {
			in.router.flows.Remove(ref)
			return DropNoEndpoints, reverse
		}
	}
	out, d := in.judge(&c)
	if d == DropNone && reverse {
		d = in.disowned(&c)
	}
	if d == DropNone && masked.is != (t.port(out).Kind == KindOutside) {
		in.router.flows.Remove(ref) // it takes another way now, on which it is another connection
		return DropUnknownReply, reverse
	}
	masked.restore(&c)
	switch {
	case d != DropNone:
	case c.client == NoPort:
		d = t.route(c.orig.Src).Reason // the client is gone
	case reverse && out != in.id, !reverse && c.client != in.id:
		d = DropSpoofedSource // the ends moved: this is not their flow any more
	}
	if d != DropNone {
		in.router.flows.Remove(ref)
		return d, true
	}
	this, other := in.entries(&c, out)
	if reverse {
		this, other = other, this
	}
	var pairKey packet.Tuple
	if pair, ok := in.router.flows.Pair(ref, &pairKey, &e); ok {
		in.router.flows.Update(pair, &other)
	}
	if newer, ok := in.router.flows.Update(ref, &this); ok {
		in.router.flows.Seen(newer, len(p.Buf), p.TCPFlags, in.now)
	}
	in.entry = this
	return in.forward(PortID(in.entry.Out), in.entry.Flags), true
}

// disowned is the guard of a known connection's client, for when it is a reply
// that has the connection judged again: it says why the client could not open it
// today.
func (in *Input) disowned(c *conn) Drop {
	t := in.tables
	client, ok := t.port(c.client), true
	switch {
	case client.Kind == KindInbound, client.Kind == KindHost:
		ok = client.admits(c.orig.Src) && in.guarded(client, c.orig.Src)
	case client.Kind == KindOverlay && c.flags&flow.FlagWrapped != 0:
		if ok = t.Outside(c.orig.Src); ok && t.PeerNumbers[viaOf(c.frontSlot, c.frontGen)] == 0 {
			return DropNoPeer
		}
	}
	if !ok {
		return DropSpoofedSource
	}
	return DropNone
}

// keeps reports whether a connection through a frontend that has changed stays
// with its backend. TCP connections end when they end; a datagram flow has no
// end, so it moves on when its backend or frontend is gone (proxy.md §1.13).
func (in *Input) keeps(c *conn) bool {
	if c.orig.Proto == packet.ProtoTCP {
		return true
	}
	f, kind := in.tables.Services.Frontend(c.orig.Dst, c.orig.DstPort, c.orig.Proto)
	return kind == proxy.KindBackends && f.Has(c.wire.Dst, c.wire.DstPort)
}

// icmpError carries an ICMP error to the sender of the packet that it quotes,
// translated as that packet's replies are (RFC 5508 §4.2).
func (in *Input) icmpError(from *PortEntry) Drop {
	p, t := &in.pkt, in.tables
	if !in.guarded(from, p.Tuple.Src) {
		return DropSpoofedSource
	}
	reply := p.Inner.Reverse()
	reply.Zone = p.Tuple.Zone
	e := &in.entry
	if _, ok := in.router.flows.Lookup(&reply, e); !ok || !in.belongs(from) {
		return DropICMPUnmatched
	}
	if in.gateway(from) && !in.toExternal(true) {
		return DropICMPUnmatched
	}
	if e.InGen != from.Gen || e.OutGen != t.port(PortID(e.Out)).Gen {
		// Only who was sent the packet, or stands on its way, can speak of it: pods
		// must not end or slow down each other's connections.
		return DropICMPUnmatched
	}
	if from.Kind == KindOverlay && t.route(p.Tuple.Src).Peer != t.route(p.Inner.Dst).Peer {
		return DropICMPUnmatched // nor must nodes those of other nodes
	}
	inner := packet.Rewrite{Src: e.Rewrite.Dst, Dst: e.Rewrite.Src, SrcPort: e.Rewrite.DstPort, DstPort: e.Rewrite.SrcPort}
	src := p.Tuple.Src
	if src == p.Inner.Dst {
		src = inner.Dst // the backend itself speaks: as the address the client knows
	}
	p.ApplyICMPError(src, inner.Src, &inner)
	return in.forward(PortID(e.Out), e.Flags&^flow.FlagNAT)
}

// forward is step 8 and 9: it makes the packet fit for its exit and writes it.
// flags are those of the flow in in.entry that apply, 0 without a flow.
func (in *Input) forward(id PortID, flags flow.Flags) Drop {
	p := &in.pkt
	out := in.tables.port(id)
	if out.Port == nil {
		return DropNoRoute
	}
	way := exit{PortEntry: out, mtu: out.MTU, nat: flags&flow.FlagNAT != 0}
	if flags&flow.FlagWrapped != 0 && out.Kind == KindOverlay {
		way.wrapped, way.to = true, in.wrapsTo()
		way.mtu -= packet.WrapLen(p.Is4())
	}
	if out.Kind != KindDNS && out.Kind != KindNetstack && out.Kind != KindInbound && in.tables.port(in.id).Kind != KindDNS {
		if !p.DecrementTTL() {
			if in.mayAnswer(answerError) {
				in.reply(packet.TimeExceeded(in.scratch, p, in.errorSource(p)))
			}
			return DropTTL
		}
	}
	if p.TCPFlags&packet.TCPSyn != 0 {
		p.ClampMSS(segmentLimit(&p.Tuple, way.mtu))
	}
	if fit := p.LimitSegment(way.mtu); fit != packet.FitOK {
		return in.tooBig(&way, fit)
	}
	if way.nat {
		p.Apply(&in.entry.Rewrite)
	}
	return in.emit(&way, p.Buf)
}

// exit is how a packet leaves.
type exit struct {
	*PortEntry

	mtu     int // of the packet, without what it is wrapped in
	nat     bool
	wrapped bool
	to      packet.Addr // the other router's, if wrapped
}

// segmentLimit is the largest TCP segment that fits an MTU without options.
func segmentLimit(t *packet.Tuple, mtu int) uint16 {
	headers := ipv6TCPHeaders
	if t.Src.Is4() {
		headers = ipv4TCPHeaders
	}
	return uint16(min(max(mtu-headers, 0), 65535))
}

// tooBig deals with a packet that its exit cannot carry whole: cut where IPv4
// allows it, refused with the MTU otherwise (RFC 1191, RFC 8201).
func (in *Input) tooBig(way *exit, fit packet.Fit) Drop {
	p := &in.pkt
	if fit == packet.FitFragment {
		if way.nat {
			p.Apply(&in.entry.Rewrite)
		}
		d := DropNone
		packet.Fragment4(p, way.mtu, func(buf []byte) {
			if one := in.emit(way, buf); one != DropNone {
				d = one
			}
		})
		return d
	}
	if in.mayAnswer(answerSize) {
		in.reply(packet.TooBig(in.scratch, p, in.errorSource(p), way.mtu))
	}
	return DropTooBig
}

// emit is step 9.
func (in *Input) emit(way *exit, buf []byte) Drop {
	d := DropNone
	if way.wrapped {
		d = in.emitWrapped(way.PortEntry, buf, way.to)
	} else if err := way.Port.Write(buf); err != nil {
		d = dropOf(err)
	}
	if d != DropNone {
		return d
	}
	in.packets.Add(1)
	in.bytes.Add(uint64(len(buf) - packet.VNetLen))
	return DropNone
}
