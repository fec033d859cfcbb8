package vnet

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/internal/packet/packettest"
)

// icmpKinds are the errors that scripts know, as type and code per family.
var icmpKinds = map[string][2][2]uint8{
	"unreach-port":  {{3, 3}, {1, 4}},
	"unreach-host":  {{3, 1}, {1, 3}},
	"unreach-admin": {{3, 13}, {1, 1}},
	"too-big":       {{3, 4}, {2, 0}},
	"time-exceeded": {{11, 0}, {3, 0}},
}

const tcpFlags = "FSRPAUEC" // from bit 0 up

// Build makes the packet of a line of a script; see Play.
func (c *Cluster) Build(f Family, text string) []byte {
	c.tb.Helper()
	words := strings.Fields(text)
	if len(words) < 4 || words[2] != ">" {
		c.tb.Fatalf("packet %q: want KIND FROM > TO ...", text)
	}
	s := packettest.Spec{Src: c.end(f, words[1]), Dst: c.end(f, words[3]), TTL: 64}
	c.kind(f, &s, words[0])
	for _, w := range words[4:] {
		if strings.HasPrefix(w, "[") {
			q := strings.NewReplacer("[", "", "]", "", ">", " > ", ",", " ").Replace(w)
			q = strings.Replace(q, ":", " ", 1)
			s.Payload = c.Build(f, q)[packet.VNetLen:]
			continue
		}
		key, value, _ := strings.Cut(w, "=")
		if err := set(&s, key, value); err != nil {
			c.tb.Fatalf("packet %q: %v", text, err)
		}
	}
	return s.Build()
}

// BuildTuple is Build for ends that are known as a tuple; what are the words
// that follow the ends.
func (c *Cluster) BuildTuple(t packet.Tuple, what string) []byte {
	c.tb.Helper()
	s := packettest.Spec{
		Src: netip.AddrPortFrom(t.Src.Netip(), t.SrcPort), Dst: netip.AddrPortFrom(t.Dst.Netip(), t.DstPort),
		Proto: t.Proto, TTL: 64,
	}
	for w := range strings.FieldsSeq(what) {
		key, value, _ := strings.Cut(w, "=")
		if err := set(&s, key, value); err != nil {
			c.tb.Fatalf("packet %q: %v", what, err)
		}
	}
	return s.Build()
}

// Wrap makes the wrapped packet that carries another one between two routers.
func (c *Cluster) Wrap(f Family, from, to string, inner []byte) []byte {
	c.tb.Helper()
	return packettest.Spec{
		Src: c.end(f, from), Dst: c.end(f, to), Proto: []uint8{protoIPIP, protoIPv6}[f-1], TTL: wrapTTL, DF: true,
		Payload: inner[packet.VNetLen:],
	}.Build()
}

// Tuple returns the tuple of two names.
//
//nolint:revive // the five parts of a tuple, in its order
func (c *Cluster) Tuple(f Family, proto uint8, src string, srcPort uint16, dst string, dstPort uint16) packet.Tuple {
	c.tb.Helper()
	return packet.Tuple{
		Src: packet.AddrFrom(c.Addr(f, src)), Dst: packet.AddrFrom(c.Addr(f, dst)),
		SrcPort: srcPort, DstPort: dstPort, Proto: proto,
	}
}

// end reads "name" or "name:port".
func (c *Cluster) end(f Family, s string) netip.AddrPort {
	c.tb.Helper()
	name, port, _ := strings.Cut(s, ":")
	n, err := strconv.ParseUint("0"+port, 10, 16)
	if err != nil {
		c.tb.Fatalf("end %q: %v", s, err)
	}
	return netip.AddrPortFrom(c.Addr(f, name), uint16(n))
}

func (c *Cluster) kind(f Family, s *packettest.Spec, kind string) {
	c.tb.Helper()
	icmp := []uint8{packet.ProtoICMP, packet.ProtoICMPv6}[f-1]
	switch kind {
	case "tcp":
		s.Proto = packet.ProtoTCP
	case "udp":
		s.Proto = packet.ProtoUDP
	case "sctp":
		s.Proto = packet.ProtoSCTP
	case "echo":
		s.Proto, s.ICMPType = icmp, []uint8{8, 128}[f-1]
	case "reply":
		s.Proto, s.ICMPType = icmp, []uint8{0, 129}[f-1]
	case "wrapped":
		s.Proto, s.TTL, s.DF = []uint8{protoIPIP, protoIPv6}[f-1], wrapTTL, true
	default:
		tc, ok := icmpKinds[kind]
		if !ok {
			c.tb.Fatalf("no packet is called %q", kind)
		}
		s.Proto, s.ICMPType, s.ICMPCode = icmp, tc[f-1][0], tc[f-1][1]
	}
}

// set gives the packet one of the things that words say.
func set(s *packettest.Spec, key, value string) error {
	switch key {
	case "data":
		s.Payload = []byte(value)
		return nil
	case "df":
		s.DF = true
		return nil
	case "flags":
		for _, r := range value {
			s.Flags |= 1 << strings.IndexRune(tcpFlags, r)
		}
		return nil
	}
	n, err := strconv.Atoi(value)
	if err != nil {
		return fmt.Errorf("%s=%s: %w", key, value, err)
	}
	switch key {
	case "len":
		s.Payload = Pattern(n)
	case "seq":
		s.Seq = uint32(n) // a test's own number, as below
	case "ttl":
		s.TTL = uint8(n)
	case "mss":
		s.TCPOptions = []byte{2, 4, byte(n >> 8), byte(n)}
	case "gso":
		s.GSOSize = n
	case "id":
		s.ID = uint16(n)
		if s.Proto == packet.ProtoICMP || s.Proto == packet.ProtoICMPv6 {
			s.Src = netip.AddrPortFrom(s.Src.Addr(), s.ID)
		}
	case "mtu":
		s.ICMPRest = uint16(n)
	default:
		return fmt.Errorf("no packet has a %q", key)
	}
	return nil
}

// Pattern returns n bytes that tell where they are.
func Pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i) ^ byte(i>>8)*31
	}
	return b
}

// Text writes a packet as scripts do, with all that they can say about it.
func (c *Cluster) Text(p *packet.Packet) string {
	var b strings.Builder
	t := &p.Tuple
	b.WriteString(textKind(p) + " " + c.textTuple(t, " > "))
	ip := p.IP()
	ttl, df := ip[8], ip[6]&0x40 != 0
	if !p.Is4() {
		ttl, df = ip[7], true
	}
	fmt.Fprintf(&b, " ttl=%d", ttl)
	if df {
		b.WriteString(" df")
	}
	switch {
	case p.Kind == packet.KindICMPError:
		fmt.Fprintf(&b, " mtu=%d [%s:%s]", binary.BigEndian.Uint16(ip[p.L4+6:]), protoName(p.Inner.Proto), c.textTuple(&p.Inner, ">"))
	case textKind(p) == "wrapped":
		c.textInner(&b, p)
	case p.IsEcho():
		fmt.Fprintf(&b, " id=%d", t.SrcPort+t.DstPort)
	case p.Kind != packet.KindWhole:
		fmt.Fprintf(&b, " offset=%d more=%t", p.FragOffset, p.MoreFrag)
	case t.Proto == packet.ProtoTCP:
		c.textTCP(&b, p)
	}
	if p.GSOSize > 0 {
		fmt.Fprintf(&b, " gso=%d", p.GSOSize)
	}
	data := p.Data()
	fmt.Fprintf(&b, " len=%d", len(data))
	if len(data) > 0 && len(data) < 40 && p.Kind == packet.KindWhole {
		fmt.Fprintf(&b, " data=%s", data)
	}
	return b.String()
}

func textKind(p *packet.Packet) string {
	if _, _, ok := packet.Wrapped(p.Buf); ok {
		return "wrapped"
	}
	if p.IsEcho() && (p.ICMPType == 0 || p.ICMPType == 129) {
		return "reply"
	}
	if p.Kind == packet.KindICMPError {
		f := V6
		if p.Is4() {
			f = V4
		}
		for name, tc := range icmpKinds {
			if tc[f-1] == [2]uint8{p.ICMPType, p.ICMPCode} {
				return name
			}
		}
	}
	return protoName(p.Tuple.Proto)
}

func protoName(proto uint8) string {
	switch proto {
	case packet.ProtoTCP:
		return "tcp"
	case packet.ProtoUDP:
		return "udp"
	case packet.ProtoSCTP:
		return "sctp"
	case packet.ProtoICMP, packet.ProtoICMPv6:
		return "echo"
	default:
		return "proto-" + strconv.Itoa(int(proto))
	}
}

// What a router wraps for another one, see packet.Wrap.
const (
	protoIPIP = 4
	protoIPv6 = 41
	wrapTTL   = 255
)

// textInner writes what a wrapped packet holds.
func (c *Cluster) textInner(b *strings.Builder, p *packet.Packet) {
	q := &packet.Packet{Buf: packet.Unwrap(slices.Clone(p.Buf))}
	if packet.Parse(q) != packet.FaultNone {
		b.WriteString(" [broken]")
		return
	}
	fmt.Fprintf(b, " [%s:%s]", textKind(q), c.textTuple(&q.Tuple, ">"))
}

// textTuple writes both ends; identifiers of echoes are no ports.
func (c *Cluster) textTuple(t *packet.Tuple, arrow string) string {
	if t.Proto == packet.ProtoICMP || t.Proto == packet.ProtoICMPv6 {
		return c.textEnd(t.Src, 0) + arrow + c.textEnd(t.Dst, 0)
	}
	return c.textEnd(t.Src, t.SrcPort) + arrow + c.textEnd(t.Dst, t.DstPort)
}

func (c *Cluster) textEnd(a packet.Addr, port uint16) string {
	name, ok := c.names[a]
	if !ok {
		name = a.String()
	}
	if port == 0 {
		return name
	}
	return name + ":" + strconv.Itoa(int(port))
}

func (c *Cluster) textTCP(b *strings.Builder, p *packet.Packet) {
	h := p.IP()[p.L4:]
	b.WriteString(" flags=")
	for i := range tcpFlags {
		if p.TCPFlags&(1<<i) != 0 {
			b.WriteByte(tcpFlags[i])
		}
	}
	fmt.Fprintf(b, " seq=%d", binary.BigEndian.Uint32(h[4:]))
	if p.Payload > p.L4+20 && h[20] == 2 {
		fmt.Fprintf(b, " mss=%d", binary.BigEndian.Uint16(h[22:]))
	}
}
