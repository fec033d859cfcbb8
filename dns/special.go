package dns

import (
	"net/netip"
	"strings"

	mdns "github.com/miekg/dns"

	"github.com/netctl/netctl/dns/metrics"
)

// view is what an answer is made of, and for whom.
type view struct {
	rules *outside
	zone  *Zone
	from  netip.Addr
}

// special answers where the options have names of their own, name other names, or
// follow search paths.
//
//	rewritten? ─▶ hosts? ─▶ the cluster's name? ─▶ on a pod's search path? ─▶ outside
func (s *Server) special(v view, q *question, query, out []byte) ([]byte, Status, metrics.Plugin) {
	if to := v.rules.target(&q.name); to != "" {
		var inner question
		asked := renamed(q, query, to)
		if inner.parse(asked, q.udp) != faultNone {
			return q.fail(out, query, rcodeServer), Answered, metrics.None
		}
		reply, st, plugin := s.named(v, &inner, asked, nil)
		if st == Forward {
			if reply = s.forward.cached(&inner, asked, nil, v.rules); reply == nil {
				return nil, Forward, plugin
			}
			plugin = metrics.Cache
		}
		return q.underName(out, query, reply, to), Answered, plugin
	}
	return s.named(v, q, query, out)
}

// named answers for a name that stands for itself.
func (s *Server) named(v view, q *question, query, out []byte) ([]byte, Status, metrics.Plugin) {
	if reply := v.rules.host(v.zone, q, query, out); reply != nil {
		return reply, Answered, metrics.Hosts
	}
	if p := s.searchPath(v.rules, v.zone, v.from, q); p != nil {
		reply, st := p.answer(q, query, out)
		return reply, st, metrics.Kubernetes
	}
	reply, st := v.zone.answer(q, query, out)
	return reply, st, metrics.Kubernetes
}

// host answers for names and addresses of the options; nil for all others.
func (x *outside) host(z *Zone, q *question, query, out []byte) []byte {
	if set, ok := x.hosts[string(q.name.wire[:q.name.len])]; ok {
		f := found{kind: kindHost, set: set}
		if q.qtype == typeA && set.v4 != "" || q.qtype == typeAAAA && set.v6 != "" {
			return z.positive(q, query, out, &f)
		}
		return q.finish(q.start(out, query, flagAA), rcodeSuccess)
	}
	if q.qtype != typePTR || len(x.names) == 0 {
		return nil
	}
	a, ok := parseReverse(&q.name)
	if !ok || len(x.names[a]) == 0 {
		return nil
	}
	owner, _, err := mdns.UnpackDomainName(query, headerLen)
	if err != nil {
		return nil
	}
	msg := new(mdns.Msg)
	msg.Authoritative = true
	for _, n := range x.names[a] {
		h := mdns.RR_Header{Name: owner, Rrtype: typePTR, Class: classIN, Ttl: z.ttl}
		msg.Answer = append(msg.Answer, &mdns.PTR{Hdr: h, Ptr: n})
	}
	return q.pack(out, query, msg)
}

// renamed returns the query with another name in its question.
func renamed(q *question, query []byte, to string) []byte {
	b := append([]byte(nil), query[:headerLen]...)
	b = append(b, to...)
	return append(b, query[headerLen+q.name.len:]...)
}

// underName turns the answer for another name into one for the question's.
func (q *question) underName(out, query, reply []byte, other string) []byte {
	var m mdns.Msg
	owner, _, err := mdns.UnpackDomainName(query, headerLen)
	if err != nil || m.Unpack(reply) != nil {
		return q.fail(out, query, rcodeServer)
	}
	text, _, err := mdns.UnpackDomainName([]byte(other), 0)
	if err != nil {
		return q.fail(out, query, rcodeServer)
	}
	var extra []mdns.RR
	for _, rr := range m.Answer {
		if h := rr.Header(); strings.EqualFold(h.Name, text) {
			h.Name = owner
		}
	}
	for _, rr := range m.Extra {
		if rr.Header().Rrtype != typeOPT {
			extra = append(extra, rr)
		}
	}
	m.Extra = extra
	return q.pack(out, query, &m)
}

// path is where a question came to that was meant for another place of its search
// path.
type path struct {
	z      *Zone
	zone   int      // label at which the zone of the question's name starts
	target string   // the name that exists, with the final dot
	found  found    // what it is
	base   string   // the name without the search domain, on the wire
	denied bool     // what base is decides
	chain  []string // to base
}

// searchPath returns where a pod's search path leads for a name of its own namespace
// that does not exist: to a service that another name of the path means, or outside.
// nil: the name is to be taken as it is.
func (s *Server) searchPath(x *outside, z *Zone, from netip.Addr, q *question) *path {
	if len(x.paths) == 0 || q.qtype != typeA && q.qtype != typeAAAA || !z.synced {
		return nil
	}
	k := q.name.labels - z.labels
	if k < 3 || string(q.name.from(k)) != z.wire || string(q.name.label(k-1)) != "svc" {
		return nil
	}
	namespace := s.inside(from)
	if !x.follows(namespace) || string(q.name.label(k-2)) != namespace || z.find(&q.name).kind != kindNone {
		return nil
	}
	left := string(q.name.wire[:q.name.start(k-2)])
	p := &path{z: z, zone: k}
	for _, suffix := range []string{"\x03svc" + z.wire, z.wire} {
		var n name
		if n.parse([]byte(left+suffix)) == 0 {
			continue
		}
		f := z.find(&n)
		if f.kind == kindNone || f.kind == kindOutside {
			continue
		}
		text, _, err := mdns.UnpackDomainName(n.wire[:n.len], 0)
		if err != nil {
			return nil
		}
		p.target, p.found = text, f
		return p
	}
	p.base = left + "\x00"
	if _, ok := x.hosts[p.base]; ok {
		return nil // the client comes to it at the end of its path
	}
	text, _, err := mdns.UnpackDomainName([]byte(p.base), 0)
	if err != nil {
		return nil
	}
	p.denied, p.chain = true, []string{text}
	return p
}

// answer answers with a CNAME to the name that exists and what it has.
func (p *path) answer(q *question, query, out []byte) ([]byte, Status) {
	if p.denied {
		return out, Forward
	}
	owner, _, err := mdns.UnpackDomainName(query, headerLen)
	if err != nil {
		return q.fail(out, query, rcodeServer), Answered
	}
	f := found{kind: kindNone, zone: p.zone}
	b := &builder{z: p.z, msg: new(mdns.Msg), owner: p.target, zone: p.z.domain + ".", limit: q.limit/16 + 1}
	b.msg.Authoritative = true
	b.at(q.qtype, &p.found)
	if len(b.msg.Answer) == 0 {
		return p.z.negative(q, query, out, &f, rcodeSuccess), Answered
	}
	b.msg.Answer = append(cnames(owner, []string{p.target}, p.z.ttl), b.msg.Answer...)
	return q.pack(out, query, b.msg), Answered
}
