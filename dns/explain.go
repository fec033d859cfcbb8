package dns

import (
	"fmt"
	"net/netip"
	"strings"

	mdns "github.com/miekg/dns"

	"github.com/netctl/netctl/internal/model"
)

// Explain says why a client is told of a name what it is told, a step a line.
func (s *Server) Explain(from netip.Addr, text string, qtype uint16) []string {
	var q question
	if !readName(&q.name, mdns.Fqdn(text)) {
		return []string{text + " is no domain name"}
	}
	q.qtype = qtype
	x, z := s.rules.Load(), s.zone.Load()
	var out []string
	if to := x.target(&q.name); to != "" {
		q.name.parse([]byte(to))
		out = append(out, "a rewrite of the options has it answered as "+textOf([]byte(to)))
	}
	if set, ok := x.hosts[string(q.name.wire[:q.name.len])]; ok {
		return append(out, fmt.Sprintf("it is a host of the options, with %d IPv4 and %d IPv6 addresses", len(set.v4)/4, len(set.v6)/16))
	}
	if p := s.searchPath(x, z, from, &q); p != nil {
		namespace := s.inside(from)
		if p.denied {
			out = append(out, "the search path of namespace "+namespace+" is followed here (autopath), and the cluster has none of its names")
			q.name.parse([]byte(p.base))
			return append(out, x.explainOutside(&q.name))
		}
		out = append(out, "the search path of namespace "+namespace+" is followed here (autopath), to "+p.target)
		return append(out, z.explain(&p.found, nil)...)
	}
	f := z.find(&q.name)
	if f.kind == kindOutside {
		return append(out, x.explainOutside(&q.name))
	}
	return append(out, z.explain(&f, &q.name)...)
}

func textOf(wire []byte) string {
	s, _, err := mdns.UnpackDomainName(wire, 0)
	if err != nil {
		return "?"
	}
	return s
}

// explainOutside says where a name outside the cluster is asked.
func (x *outside) explainOutside(n *name) string {
	rt := x.route(string(n.wire[:n.len]))
	var list []string
	for _, u := range rt.upstreams {
		list = append(list, u.String())
	}
	which := "it is no name of the cluster and is asked outside, at "
	if rt != &x.root {
		which = "a zone of the options has it asked at "
	}
	switch {
	case rt.resolvers:
		return which + "the resolvers of resolv.conf"
	case len(list) == 0:
		return "a zone of the options has no upstreams: its names are refused"
	}
	return which + strings.Join(list, ", ")
}

// explain says what a name of the cluster is; n is the name where it may be missing.
func (z *Zone) explain(f *found, n *name) []string {
	ready := func(s *service) int {
		count := 0
		for range s.ready() {
			count++
		}
		return count
	}
	one := func(format string, args ...any) []string { return []string{fmt.Sprintf(format, args...)} }
	switch f.kind {
	case kindNone:
		if !z.synced {
			return one("the cluster's objects have not all been read yet, so a missing name is a failure")
		}
		return one("%s", z.explainMissing(n))
	case kindEmpty:
		return one("it has names below it and no records of its own")
	case kindApex:
		return one("it is the cluster's domain itself")
	case kindVersion:
		return one("it is the version of the specification that is followed")
	case kindServer:
		return one("it is this name server")
	case kindService, kindPort:
		if f.svc.object.Headless {
			return one("service %s is headless: the addresses of its %d ready endpoints", f.svc.name, ready(f.svc))
		}
		return one("service %s: its virtual addresses, be its endpoints ready (%d are) or not", f.svc.name, ready(f.svc))
	case kindHost:
		return one("it is a ready endpoint of service %s", f.svc.name)
	case kindPod:
		if z.podMode == PodsVerified {
			return one("a living pod of the namespace has the address")
		}
		return one("the address in the name is echoed, be there a pod or not (pods: insecure)")
	case kindExternal:
		chain, last := z.chase(f.svc)
		if last == nil {
			return one("service %s is an ExternalName whose targets go in a circle: no records", f.svc.name)
		}
		out := one("service %s is an ExternalName: %s", f.svc.name, strings.Join(chain, " -> "))
		if last.kind == kindOutside {
			return append(out, "its target is asked outside")
		}
		var end name
		if readName(&end, chain[len(chain)-1]) {
			out = append(out, z.explain(last, &end)...)
		}
		return out
	case kindReverse:
		if s := z.vips.Get(f.one); s != nil {
			return one("%s is a virtual address of service %s", f.one, s.name)
		}
		return one("%s is the address of a ready endpoint", f.one)
	default:
		return one("it is no name of the cluster")
	}
}

// explainMissing says which part of a name is not there.
func (z *Zone) explainMissing(n *name) string {
	k := n.labels - z.labels
	if k < 0 || string(n.from(k)) != z.wire {
		return "the address lies in the cluster's ranges and has no name"
	}
	if k < 2 {
		return "the cluster's domain has svc and pod below it, and nothing of that name"
	}
	kind, ns := string(n.label(k-1)), string(n.label(k-2))
	if kind != "svc" && kind != "pod" {
		return "the cluster's domain has svc and pod below it, not " + kind
	}
	space := z.namespaces[ns]
	switch {
	case space == nil:
		return "there is no namespace " + ns
	case kind == "pod" && z.podMode == PodsDisabled:
		return "names of pods' addresses are not served (pods: disabled)"
	case kind == "pod" && z.podMode == PodsVerified:
		return "no living pod of namespace " + ns + " has that address"
	case kind == "pod":
		return "that is no address"
	}
	label := string(n.label(k - 3))
	s := space.services[label]
	switch {
	case s == nil:
		return fmt.Sprintf("there is no service %s in namespace %s", label, ns)
	case s.object.Type == model.ExternalName && s.target == nil:
		return fmt.Sprintf("the externalName %q of service %s is no domain name", s.object.ExternalName, s.name)
	case s.object.Headless && s.all.empty():
		return fmt.Sprintf("service %s is headless and has no ready endpoint", s.name)
	case k-3 == 1:
		return fmt.Sprintf("service %s has no ready endpoint %s", s.name, n.label(0))
	case k-3 == 2:
		return fmt.Sprintf("service %s has no port %s/%s", s.name, trimUnderscore(n.label(0)), trimUnderscore(n.label(1)))
	}
	return fmt.Sprintf("service %s has no names that deep", s.name)
}
