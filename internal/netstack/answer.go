package netstack

import (
	"encoding/binary"
	"net/netip"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/netctl/netctl/internal/packet"
)

// answer is a small packet that Write made and Run sends: Write itself calls
// neither Config.Out nor anything of gVisor that takes a connection's lock.
type answer struct {
	buf    []byte
	on     *link // which it leaves by; nil: that of pods
	inject bool  // an ICMP error for gVisor rather than a packet for the router
}

// enqueue hands over a packet; when the queue is full it is dropped, as ICMP
// errors are rate-limited anywhere.
func (s *Stack) enqueue(a answer) {
	if len(a.buf) == 0 {
		return // no answer may be sent
	}
	select {
	case s.answers <- a:
	default:
		s.counters.drop(DropAnswerFull)
	}
}

// deliver sends one answer; called by Run.
func (s *Stack) deliver(a answer) {
	on := a.on
	if on == nil {
		on = s.link
	}
	if !a.inject {
		on.out(a.buf)
		return
	}
	proto := header.IPv4ProtocolNumber
	ip := a.buf[packet.VNetLen:]
	if ip[0]>>4 == 6 {
		proto = header.IPv6ProtocolNumber
	}
	on.inject(proto, buffer.NewViewWithData(ip))
}

// answerReset answers the TCP segment in orig with a reset.
func (s *Stack) answerReset(orig []byte, on *link) {
	p := packet.Packet{Buf: orig}
	if packet.Parse(&p) == packet.FaultNone {
		s.enqueue(answer{buf: packet.Reset(make([]byte, packet.MaxError), &p), on: on})
	}
}

// refuseReply answers what comes for a connection that we have not opened, or
// no longer have: nobody is there any more.
func (s *Stack) refuseReply(p *packet.Packet) {
	s.counters.drop(DropNoFlow)
	if p.Tuple.Proto == packet.ProtoUDP {
		s.enqueue(answer{buf: packet.Unreachable(make([]byte, packet.MaxError), p, p.Tuple.Dst, packet.UnreachPort), on: s.inLink})
	}
}

// answerUnreachable answers the packet in orig with an ICMP error.
func (s *Stack) answerUnreachable(orig []byte, code packet.Unreach) {
	p := packet.Packet{Buf: orig}
	if packet.Parse(&p) == packet.FaultNone {
		s.enqueue(answer{buf: packet.Unreachable(make([]byte, packet.MaxError), &p, s.router(&p, code), code)})
	}
}

// router is the source of an ICMP error about p: the router's address, except
// that a closed port is the destination's own word.
func (s *Stack) router(p *packet.Packet, code packet.Unreach) packet.Addr {
	from := s.cfg.Router6
	if p.Is4() {
		from = s.cfg.Router4
	}
	if code == packet.UnreachPort || !from.IsValid() {
		return p.Tuple.Dst
	}
	return packet.AddrFrom(from)
}

// answerProtocolUnreachable says that a protocol has no way out: ICMP type 3
// code 2, ICMPv6 parameter problem code 1 (RFC 4443 §3.4).
func (s *Stack) answerProtocolUnreachable(p *packet.Packet) {
	buf := packet.Unreachable(make([]byte, packet.MaxError), p, s.router(p, packet.UnreachAdmin), packet.UnreachAdmin)
	if len(buf) == 0 {
		return
	}
	ip := buf[packet.VNetLen:]
	if p.Is4() {
		icmp := ip[int(ip[0]&0xf)*4:]
		icmp[1] = byte(header.ICMPv4ProtoUnreachable)
		setChecksum(icmp, 0)
	} else {
		icmp := ip[header.IPv6MinimumSize:]
		icmp[0], icmp[1] = byte(header.ICMPv6ParamProblem), byte(header.ICMPv6UnknownHeader)
		binary.BigEndian.PutUint32(icmp[4:], header.IPv6NextHeaderOffset)
		setChecksum(icmp, pseudoSum(ip[8:24], ip[24:40], packet.ProtoICMPv6, len(icmp)))
	}
	s.enqueue(answer{buf: buf})
}

// setChecksum completes an ICMP message; sum is that of the pseudo-header.
func setChecksum(icmp []byte, sum uint16) {
	icmp[2], icmp[3] = 0, 0
	binary.BigEndian.PutUint16(icmp[2:], ^checksum.Checksum(icmp, sum))
}

// receiveError takes an ICMP error that a pod or the router sent about one of
// our packets. TCP uses them (path MTU), and so do the datagrams of flows that
// Datagrams opened; another datagram's sender in the outside cannot be told
// through a socket.
func (s *Stack) receiveError(p *packet.Packet) {
	switch {
	case len(p.Buf) > packet.MaxError || !verified(p):
	case p.Inner.Proto == packet.ProtoUDP && s.inFlows.receiveError(p):
		return
	case p.Inner.Proto == packet.ProtoTCP:
		s.enqueue(answer{buf: append([]byte(nil), p.Buf...), inject: true})
		return
	}
	s.counters.drop(DropICMP)
}

// networkError is what a socket learnt from the network about a packet.
type networkError struct {
	kind networkKind
	code packet.Unreach // of kindUnreachable
	mtu  int            // of kindTooBig
	from netip.Addr     // who said so; invalid: unknown
}

type networkKind uint8

const (
	kindNone networkKind = iota
	kindUnreachable
	kindTooBig
	kindTimeExceeded
)

// answerNetwork passes an error on to the pod, about the packet in orig.
func (s *Stack) answerNetwork(orig []byte, e networkError) {
	p := packet.Packet{Buf: orig}
	if e.kind == kindNone || packet.Parse(&p) != packet.FaultNone {
		return
	}
	from := s.router(&p, e.code) // who said so, if it was not the destination
	if (e.kind != kindUnreachable || e.code != packet.UnreachPort) && e.from.IsValid() && e.from.Is4() == p.Is4() {
		from = packet.AddrFrom(e.from)
	}
	dst := make([]byte, packet.MaxError)
	switch e.kind {
	case kindUnreachable:
		dst = packet.Unreachable(dst, &p, from, e.code)
	case kindTooBig:
		dst = packet.TooBig(dst, &p, from, e.mtu)
	case kindTimeExceeded:
		dst = packet.TimeExceeded(dst, &p, from)
	case kindNone:
		return
	}
	s.enqueue(answer{buf: dst})
}
