package dns

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	mdns "github.com/miekg/dns"

	"github.com/netctl/netctl/internal/model"
)

// builder makes the answers that are not hot, with miekg/dns. What it returns
// may be longer than the client takes: pack cuts it.
type builder struct {
	z     *Zone
	msg   *mdns.Msg
	owner string // the question's name as it was spelled
	zone  string // the zone's part of it
	limit int    // records that are worth building: more cannot fit
}

// build answers a question for which hasRecords is true; nil means that there
// are no records after all.
func (z *Zone) build(q *question, query []byte, f *found) *mdns.Msg {
	owner, _, err := mdns.UnpackDomainName(query, headerLen)
	if err != nil {
		return nil
	}
	zone, _, err := mdns.UnpackDomainName(query, headerLen+q.name.start(f.zone))
	if err != nil {
		return nil
	}
	const shortest = 16 // an A record with a pointer as its owner
	b := &builder{z: z, msg: new(mdns.Msg), owner: owner, zone: zone, limit: q.limit/shortest + 1}
	b.msg.Authoritative = true
	b.records(q.qtype, f)
	if len(b.msg.Answer) == 0 {
		return nil
	}
	return b.msg
}

func (b *builder) records(qtype uint16, f *found) {
	switch f.kind {
	case kindVersion:
		b.answer(&mdns.TXT{Hdr: b.header(b.owner, typeTXT, versionTTL), Txt: []string{"1.1.0"}})
	case kindReverse:
		b.pointers(f.one)
	case kindApex:
		b.apex(qtype)
	case kindServer:
		_, list := b.z.nameServer()
		b.addresses(qtype, b.owner, list)
	case kindService:
		b.services(f.svc.entries(nil, nil), b.targetOf(f.svc))
	case kindHost:
		var n name
		if readName(&n, b.owner) {
			b.services(f.svc.entries(n.label(0), nil), b.targetOf(f.svc))
		}
	case kindPort:
		b.port(qtype, f)
	case kindExternal:
		b.external(qtype, f)
	default: // no records of their own, or answered without a builder
	}
}

// port answers for _port._protocol.service, whose labels start the owner.
func (b *builder) port(qtype uint16, f *found) {
	var n name
	if !readName(&n, b.owner) {
		return
	}
	p, _ := portOf(n.label(0), n.label(1))
	if qtype == typeSRV {
		b.services(f.svc.entries(nil, &p), b.targetOf(f.svc))
		return
	}
	var g gather
	for _, e := range f.svc.entries(nil, &p) {
		g.add(e.addr)
	}
	set := g.addrs()
	b.addresses(qtype, b.owner, append(unpacked(set.v4, 4), unpacked(set.v6, 16)...))
}

// external answers for an ExternalName service: the CNAME and, for A and AAAA,
// what its target has inside the zone. A chain that ends in nothing is dropped
// whole, as CoreDNS does.
func (b *builder) external(qtype uint16, f *found) {
	if qtype == typeCNAME {
		b.answer(&mdns.CNAME{Hdr: b.header(b.owner, typeCNAME, b.z.ttl), Target: f.svc.target.text})
		return
	}
	chain, last := b.z.chase(f.svc)
	if last == nil {
		return
	}
	b.msg.Answer = cnames(b.owner, chain, b.z.ttl)
	before := len(b.msg.Answer)
	inner := &builder{z: b.z, msg: new(mdns.Msg), owner: chain[len(chain)-1], zone: b.zone, limit: b.limit}
	inner.at(qtype, last)
	b.msg.Answer = append(b.msg.Answer, inner.msg.Answer...)
	if len(b.msg.Answer) == before {
		b.msg.Answer = nil
	}
}

// at writes what the end of a chain has.
func (b *builder) at(qtype uint16, last *found) {
	switch {
	case last.kind == kindHost && last.one.IsValid(), last.kind == kindPod:
		b.addresses(qtype, b.owner, []netip.Addr{last.one})
	case last.kind == kindService, last.kind == kindHost:
		b.addresses(qtype, b.owner, append(unpacked(last.set.v4, 4), unpacked(last.set.v6, 16)...))
	case b.z.hasRecords(qtype, last.kind):
		b.records(qtype, last)
	}
}

// cnames writes a chain that starts at owner.
func cnames(owner string, chain []string, ttl uint32) []mdns.RR {
	var out []mdns.RR
	for _, t := range chain {
		h := mdns.RR_Header{Name: owner, Rrtype: typeCNAME, Class: classIN, Ttl: ttl}
		out = append(out, &mdns.CNAME{Hdr: h, Target: t})
		owner = t
	}
	return out
}

// leavesZone reports whether the chain that starts at an ExternalName service
// ends outside the zone.
func (z *Zone) leavesZone(s *service) bool {
	_, last := z.chase(s)
	return last != nil && last.kind == kindOutside
}

// chase follows ExternalName services. It returns the targets in order and
// what the last one is; nil when the chain loops or is too long.
func (z *Zone) chase(s *service) (chain []string, last *found) {
	var n name
	seen := []*service{s}
	for range maxChain {
		chain = append(chain, s.target.text)
		n.parse([]byte(s.target.wire))
		f := z.find(&n)
		if f.kind != kindExternal {
			return chain, &f
		}
		if slices.Contains(seen, f.svc) {
			return nil, nil
		}
		s = f.svc
		seen = append(seen, s)
	}
	return nil, nil
}

// pointers answers a PTR question: the service whose ClusterIP it is, else
// every name that the address has as an endpoint.
func (b *builder) pointers(a netip.Addr) {
	home := "svc." + b.z.domain + "."
	if s := b.z.vips.Get(a); s != nil {
		b.pointer(s.name.Name + "." + s.name.Namespace + "." + home)
		return
	}
	first := b.z.endpoints.Get(a)
	if first == nil {
		return
	}
	seen := map[string]bool{}
	for _, s := range append([]*service{first}, b.z.more.Get(a)...) {
		for _, sl := range s.slices {
			for i := range sl.Endpoints {
				e := &sl.Endpoints[i]
				if !e.Ready || e.Address.Unmap() != a {
					continue
				}
				t := hostOf(e) + "." + s.name.Name + "." + s.name.Namespace + "." + home
				if !seen[t] {
					seen[t] = true
					b.pointer(t)
				}
			}
		}
	}
}

func (b *builder) pointer(to string) {
	b.answer(&mdns.PTR{Hdr: b.header(b.owner, typePTR, b.z.ttl), Ptr: to})
}

// apex answers SOA and NS of the zone.
func (b *builder) apex(qtype uint16) {
	if qtype == typeSOA {
		rr, _, err := mdns.UnpackRR(b.z.plainSOA(), 0)
		if soa, ok := rr.(*mdns.SOA); err == nil && ok {
			soa.Hdr.Name, soa.Ns, soa.Mbox = b.owner, "ns.dns."+b.owner, "hostmaster."+b.owner
			b.answer(soa)
		}
		return
	}
	host, list := b.z.nameServer()
	if len(list) == 0 {
		return
	}
	host += "." + b.zone
	b.answer(&mdns.NS{Hdr: b.header(b.owner, typeNS, b.z.ttl), Ns: host})
	for _, a := range list {
		b.extra(host, a)
	}
}

// plainSOA returns the SOA record with root names in place of the pointers.
func (z *Zone) plainSOA() []byte {
	out := []byte{0, 0, typeSOA, 0, classIN}
	out = append(out, z.soa[6:10]...)
	out = append(out, 0, 22, 0, 0) // two root names and five numbers
	return append(out, z.soa[soaNumbers:]...)
}

// nameServer returns the name of this server without the zone and its
// addresses: the Service that stands for it, else ns.dns.
func (z *Zone) nameServer() (string, []netip.Addr) {
	if s := z.server; s != nil && !s.all.empty() {
		list := append(unpacked(s.all.v4, 4), unpacked(s.all.v6, 16)...)
		return s.name.Name + "." + s.name.Namespace + ".svc", list
	}
	return "ns.dns", z.addresses
}

// entry is one target of SRV records.
type entry struct {
	host string // label of an endpoint, "" for the service itself
	addr netip.Addr
	port uint16 // 0: the slice declares none
}

// entries returns what an SRV question for the name counts, in the order of
// the objects: every address with every port. host, a label in lower case,
// limits it to the endpoints of that name, and p to one port.
func (s *service) entries(host []byte, p *portName) []entry { //nolint:gocognit // two nests of the objects' own shape
	var out []entry
	if !s.object.Headless && host == nil {
		list := append(unpacked(s.all.v4, 4), unpacked(s.all.v6, 16)...)
		for _, o := range s.object.Ports {
			if p != nil && !p.matches(o.Name, o.Protocol) {
				continue
			}
			for _, a := range list {
				out = append(out, entry{addr: a, port: o.Port})
			}
		}
		return out
	}
	for _, sl := range s.slices {
		for i := range sl.Endpoints {
			e := &sl.Endpoints[i]
			a := e.Address.Unmap()
			if !e.Ready || !a.IsValid() {
				continue
			}
			label := hostOf(e)
			if host != nil && strings.ToLower(label) != string(host) {
				continue
			}
			if len(sl.Ports) == 0 && p == nil {
				out = append(out, entry{host: label, addr: a})
			}
			for _, o := range sl.Ports {
				if p == nil || p.matches(o.Name, o.Protocol) {
					out = append(out, entry{host: label, addr: a, port: o.Port})
				}
			}
		}
	}
	return out
}

// hostOf returns the label of an endpoint.
func hostOf(e *model.Endpoint) string {
	if validLabel(e.Hostname) {
		return e.Hostname
	}
	return dashedName(e.Address.Unmap())
}

func (b *builder) targetOf(s *service) string {
	return s.name.Name + "." + s.name.Namespace + ".svc." + b.zone
}

// services writes SRV records and the addresses of their targets. The weight
// of 100 is shared by all entries, those included that are the same record.
func (b *builder) services(list []entry, target string) {
	if len(list) == 0 {
		return
	}
	type key struct {
		host string
		addr netip.Addr
		port uint16
	}
	weight := uint16(max(100/len(list), 1))
	seen := make(map[key]bool)
	start := rand.IntN(len(list))
	for i := range list {
		e := list[(start+i)%len(list)]
		if e.port == 0 {
			continue
		}
		t := target
		if e.host != "" {
			t = e.host + "." + target
		}
		if k := (key{host: e.host, port: e.port}); !seen[k] {
			seen[k] = true
			b.answer(&mdns.SRV{Hdr: b.header(b.owner, typeSRV, b.z.ttl), Weight: weight, Port: e.port, Target: t})
		}
		if k := (key{host: e.host, addr: e.addr}); !seen[k] {
			seen[k] = true
			b.extra(t, e.addr)
		}
		if len(b.msg.Answer) > b.limit {
			return
		}
	}
}

// addresses answers A or AAAA with those addresses that have the family,
// starting anywhere.
func (b *builder) addresses(qtype uint16, owner string, list []netip.Addr) {
	if len(list) == 0 {
		return
	}
	start := rand.IntN(len(list))
	for i := range list {
		if a := list[(start+i)%len(list)]; a.Is4() == (qtype == typeA) && len(b.msg.Answer) <= b.limit {
			b.answer(b.address(owner, a))
		}
	}
}

func (b *builder) address(owner string, a netip.Addr) mdns.RR {
	if a.Is4() {
		return &mdns.A{Hdr: b.header(owner, typeA, b.z.ttl), A: a.AsSlice()}
	}
	return &mdns.AAAA{Hdr: b.header(owner, typeAAAA, b.z.ttl), AAAA: a.AsSlice()}
}

func (b *builder) answer(rr mdns.RR) { b.msg.Answer = append(b.msg.Answer, rr) }

func (b *builder) extra(owner string, a netip.Addr) {
	b.msg.Extra = append(b.msg.Extra, b.address(owner, a))
}

func (b *builder) header(owner string, rtype uint16, ttl uint32) mdns.RR_Header {
	return mdns.RR_Header{Name: owner, Rrtype: rtype, Class: classIN, Ttl: ttl}
}

// readName parses a name from text.
func readName(n *name, text string) bool {
	var buf [maxName + 1]byte
	end, err := mdns.PackDomainName(text, buf[:], 0, nil, false)
	return err == nil && n.parse(buf[:end]) == end
}

// pack writes msg as the reply to the query: the client's flags and question,
// compressed, cut to what the client takes. A message that cannot be written
// is SERVFAIL.
func (c *client) pack(out, query []byte, msg *mdns.Msg) []byte {
	var question mdns.Msg
	if err := question.Unpack(plainQuery(query[:c.end])); err != nil {
		return c.fail(out, query, rcodeServer)
	}
	msg.Question = question.Question
	msg.Compress = true
	msg.Id = question.Id
	msg.Response = true
	msg.RecursionDesired, msg.CheckingDisabled = c.flags&flagRD != 0, c.flags&flagCD != 0
	rcode := uint16(msg.Rcode)
	b, err := msg.Pack()
	if err != nil {
		return c.fail(out, query, rcodeServer)
	}
	return c.finish(append(out[:0], truncate(b, c.end, c.room())...), rcode)
}

// plainQuery returns header and question with the other counts cleared.
func plainQuery(head []byte) []byte {
	b := append([]byte(nil), head...)
	clear(b[6:headerLen])
	return b
}
