package dns_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	mdns "github.com/miekg/dns"

	"github.com/netctl/netctl/dns"
	"github.com/netctl/netctl/internal/model"
)

// twin answers slowly: text, loops over all objects, miekg/dns, no tables. It
// knows nothing of wires, truncation or order.
type twin struct {
	in dns.Input
}

const forwarded = -1

type twinAnswer struct {
	rcode  int // or forwarded
	answer []string
	extra  []string
	soa    bool
}

const twinZone = "cluster.local."

func (w *twin) ask(qname string, qtype uint16) twinAnswer {
	name := strings.ToLower(qname)
	if qtype == mdns.TypeANY {
		return twinAnswer{answer: []string{qname + ` 8482 IN HINFO "RFC8482" ""`}}
	}
	if !mdns.IsSubDomain(twinZone, name) {
		return w.reverse(qname, name, qtype)
	}
	exists, recs, extra := w.records(qname, mdns.SplitDomainName(strings.TrimSuffix(name, twinZone)), qtype, 0)
	switch {
	case exists == "outside":
		return twinAnswer{rcode: forwarded}
	case exists == "" && !w.in.Synced:
		return twinAnswer{rcode: mdns.RcodeServerFailure}
	case exists == "":
		return twinAnswer{rcode: mdns.RcodeNameError, soa: true}
	}
	return twinAnswer{answer: dedup(recs), extra: dedup(extra), soa: len(recs) == 0}
}

func dedup(list []string) []string {
	slices.Sort(list)
	return slices.Compact(list)
}

// spelled returns the zone as the question spells it.
func spelled(qname string) string { return qname[len(qname)-len(twinZone):] }

// records returns "" for a name that does not exist.
func (w *twin) records(qname string, l []string, qtype uint16, depth int) (exists string, recs, extra []string) {
	n := len(l)
	last := func(i int) string { return l[n-i] }
	switch {
	case n == 0:
		if qtype == mdns.TypeSOA {
			z := spelled(qname)
			return "yes", []string{fmt.Sprintf("%s 5 IN SOA ns.dns.%s hostmaster.%s 7 7200 1800 86400 5", qname, z, z)}, nil
		}
		if qtype == mdns.TypeNS && len(w.in.Addresses) > 0 {
			return "yes", []string{qname + " 30 IN NS ns.dns." + spelled(qname)}, rrOf("ns.dns."+spelled(qname), w.in.Addresses)
		}
		return "yes", nil, nil
	case n == 1 && l[0] == "dns-version":
		if qtype == mdns.TypeTXT {
			recs = []string{qname + ` 28800 IN TXT "1.1.0"`}
		}
		return "yes", recs, nil
	case n == 2 && l[0] == "ns" && l[1] == "dns":
		return "yes", ofType(rrOf(qname, w.in.Addresses), qtype), nil
	case last(1) != "svc" && last(1) != "pod":
		return "", nil, nil
	case n == 1:
		return "yes", nil, nil
	case !w.namespace(last(2)) || last(1) == "pod" && w.in.PodMode == dns.PodsDisabled:
		return "", nil, nil
	case n == 2:
		return "yes", nil, nil
	case n > 5:
		return "", nil, nil
	case last(1) == "pod":
		return w.pod(qname, last(2), last(3), qtype)
	}
	for _, s := range w.in.Services {
		if s.Name == named(last(2), last(3)) {
			return w.service(qname, s, l[:n-3], qtype, depth)
		}
	}
	return "", nil, nil
}

func (w *twin) namespace(name string) bool {
	for _, n := range w.in.Namespaces {
		if n.Name == name {
			return true
		}
	}
	return false
}

func (w *twin) pod(qname, ns, label string, qtype uint16) (string, []string, []string) {
	text := strings.ReplaceAll(label, "-", ":")
	if strings.Count(label, "-") == 3 && !strings.Contains(label, "--") {
		text = strings.ReplaceAll(label, "-", ".")
	}
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		return "", nil, nil
	}
	a = a.Unmap()
	found := w.in.PodMode == dns.PodsInsecure
	for _, p := range w.in.Pods {
		found = found || p.Name.Namespace == ns && !p.Terminating && !p.Finished && slices.Contains(p.Addresses, a)
	}
	if !found {
		return "", nil, nil
	}
	return "yes", ofType(rrOf(qname, []netip.Addr{a}), qtype), nil
}

func (w *twin) service(qname string, s *model.Service, left []string, qtype uint16, depth int) (string, []string, []string) {
	if s.Type == model.ExternalName {
		return w.external(qname, s, left, qtype, depth)
	}
	target := s.Name.Name + "." + s.Name.Namespace + ".svc." + spelled(qname)
	type one struct {
		owner string
		addr  netip.Addr
		port  uint16
	}
	var list []one
	port := func(name string, p model.Protocol) bool {
		return len(left) != 2 || strings.EqualFold("_"+name, left[0]) && strings.EqualFold("_"+p.String(), left[1])
	}
	if !s.Headless && len(left) == 0 && qtype != mdns.TypeSRV {
		return "yes", ofType(rrOf(qname, s.ClusterIPs), qtype), nil
	}
	if !s.Headless && len(left) != 1 {
		matched := false
		for _, p := range s.Ports {
			if port(p.Name, p.Protocol) {
				matched = true
				for _, a := range s.ClusterIPs {
					list = append(list, one{target, a, p.Port})
				}
			}
		}
		if len(left) == 2 && !matched {
			return "", nil, nil
		}
	} else {
		for _, sl := range w.in.Slices {
			if sl.Service != s.Name.Name || sl.Name.Namespace != s.Name.Namespace {
				continue
			}
			for _, e := range sl.Endpoints {
				if !e.Ready || len(left) == 1 && endpointLabel(e) != left[0] {
					continue
				}
				ports := sl.Ports
				if len(ports) == 0 {
					ports = []model.EndpointPort{{}}
				}
				for _, p := range ports {
					if port(p.Name, p.Protocol) {
						list = append(list, one{endpointLabel(e) + "." + target, e.Address, p.Port})
					}
				}
			}
		}
		if len(list) == 0 {
			return "", nil, nil
		}
	}
	var recs, extra []string
	for _, o := range list {
		if qtype != mdns.TypeSRV {
			recs = append(recs, ofType(rrOf(qname, []netip.Addr{o.addr}), qtype)...)
		} else if o.port != 0 {
			recs = append(recs, fmt.Sprintf("%s 30 IN SRV 0 %d %d %s", qname, max(100/len(list), 1), o.port, o.owner))
			extra = append(extra, rrOf(o.owner, []netip.Addr{o.addr})...)
		}
	}
	return "yes", recs, extra
}

func (w *twin) external(qname string, s *model.Service, left []string, qtype uint16, depth int) (string, []string, []string) {
	if _, err := netip.ParseAddr(s.ExternalName); err == nil || len(left) > 0 {
		return "", nil, nil
	}
	t := mdns.Fqdn(s.ExternalName)
	cname := qname + " 30 IN CNAME " + t
	switch {
	case qtype == mdns.TypeCNAME:
		return "yes", []string{cname}, nil
	case qtype != mdns.TypeA && qtype != mdns.TypeAAAA || depth > 7:
		return "yes", nil, nil
	case !mdns.IsSubDomain(twinZone, t):
		return "outside", nil, nil
	}
	exists, recs, _ := w.records(t, mdns.SplitDomainName(strings.TrimSuffix(strings.ToLower(t), twinZone)), qtype, depth+1)
	if exists == "outside" {
		return exists, nil, nil
	}
	if len(recs) == 0 {
		return "yes", nil, nil
	}
	return "yes", append(recs, cname), nil
}

func (w *twin) reverse(qname, name string, qtype uint16) twinAnswer {
	known := map[string][]string{}
	add := func(a netip.Addr, target string) {
		if r, err := mdns.ReverseAddr(a.String()); err == nil {
			known[r] = append(known[r], qname+" 30 IN PTR "+target+".svc.cluster.local.")
		}
	}
	for _, sl := range w.in.Slices {
		for _, e := range sl.Endpoints {
			if e.Ready {
				add(e.Address, endpointLabel(e)+"."+sl.Service+"."+sl.Name.Namespace)
			}
		}
	}
	for _, s := range w.in.Services {
		for _, a := range s.ClusterIPs {
			if r, err := mdns.ReverseAddr(a.String()); err == nil {
				delete(known, r)
			}
			add(a, s.Name.Name+"."+s.Name.Namespace)
		}
	}
	list, ok := known[name]
	switch {
	case !ok:
		return twinAnswer{rcode: forwarded}
	case qtype != mdns.TypePTR:
		return twinAnswer{soa: true}
	}
	return twinAnswer{answer: dedup(list)}
}

func endpointLabel(e model.Endpoint) string {
	if e.Hostname != "" {
		return e.Hostname
	}
	s := strings.NewReplacer(".", "-", ":", "-").Replace(e.Address.String())
	if strings.HasSuffix(s, "-") {
		s += "0"
	}
	return s
}

func rrOf(owner string, list []netip.Addr) []string {
	var out []string
	for _, a := range list {
		t := "AAAA"
		if a.Is4() {
			t = "A"
		}
		out = append(out, owner+" 30 IN "+t+" "+a.String())
	}
	return out
}

func ofType(list []string, qtype uint16) []string {
	return slices.DeleteFunc(list, func(s string) bool {
		return !strings.Contains(s, " IN "+mdns.TypeToString[qtype]+" ")
	})
}

// randomCluster has few names, so that questions hit them.
func randomCluster(r *rand.Rand) dns.Input {
	in := dns.Input{Serial: 7, Synced: r.IntN(8) > 0, PodMode: dns.PodMode(r.IntN(3))}
	if r.IntN(2) == 0 {
		in.Addresses = addrList("10.96.0.10", "fd00:96::a")
	}
	addr := func() netip.Addr {
		if r.IntN(2) == 0 {
			return netip.AddrFrom4([4]byte{10, 0, byte(r.IntN(2)), byte(r.IntN(6))})
		}
		return netip.AddrFrom16([16]byte{0: 0xfd, 7: byte(r.IntN(3)), 15: byte(r.IntN(3))})
	}
	for _, ns := range []string{"ns-a", "ns-b"} {
		in.Namespaces = append(in.Namespaces, &model.Namespace{Name: ns})
		for _, n := range []string{"web", "db", "x", "y", "z"} {
			s := &model.Service{Name: named(ns, n), Type: model.ClusterIP}
			switch r.IntN(4) {
			case 0:
				continue
			case 1:
				s.Headless = true
			case 2:
				for i := range 1 + r.IntN(2) {
					ip := netip.AddrFrom4([4]byte{10, 96, byte(len(in.Services)), 1})
					if i == 1 {
						ip = netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x96, 15: byte(len(in.Services))})
					}
					s.ClusterIPs = append(s.ClusterIPs, ip)
				}
			case 3:
				s.Type = model.ExternalName
				s.ExternalName = pick(r, "example.org", "10.1.2.3", "web.ns-a.svc.cluster.local", "x.ns-b.svc.Cluster.local.", "y.ns-a.svc.cluster.local",
					"host-1.db.ns-a.svc.cluster.local", "_http._tcp.web.ns-b.svc.cluster.local", "1-2-3-4.ns-a.pod.cluster.local", "gone.ns-a.svc.cluster.local")
			}
			for _, p := range []model.ServicePort{http, {Name: "dns", Protocol: model.UDP, Port: 53}, {Protocol: model.SCTP, Port: 9}} {
				if r.IntN(3) > 0 {
					s.Ports = append(s.Ports, p)
				}
			}
			in.Services = append(in.Services, s)
			for i := range r.IntN(3) {
				in.Slices = append(in.Slices, randomSlice(r, s.Name, i, addr))
			}
		}
		for i := range r.IntN(4) {
			in.Pods = append(in.Pods, &model.Pod{
				Name: named(ns, strconv.Itoa(i)), Addresses: []netip.Addr{addr(), addr()}, Terminating: r.IntN(4) == 0, Finished: r.IntN(4) == 0,
			})
		}
	}
	return in
}

func randomSlice(r *rand.Rand, svc model.Name, i int, addr func() netip.Addr) *model.EndpointSlice {
	sl := &model.EndpointSlice{Name: named(svc.Namespace, fmt.Sprintf("%s-%d", svc.Name, i)), Service: svc.Name}
	for _, p := range []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 8080}, {Name: "dns", Protocol: model.UDP, Port: 5353}} {
		if r.IntN(3) > 0 {
			sl.Ports = append(sl.Ports, p)
		}
	}
	for range r.IntN(4) {
		sl.Endpoints = append(sl.Endpoints, model.Endpoint{
			Address: addr(), Ready: r.IntN(4) > 0, Hostname: pick(r, "", "", "host-1", "host-2"),
		})
	}
	return sl
}

func pick[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }

func randomQuestion(r *rand.Rand) (string, uint16) {
	var l []string
	if r.IntN(5) == 0 {
		l = append(l, "_"+pick(r, "http", "dns", "gone"), "_"+pick(r, "tcp", "udp", "sctp"))
	} else if r.IntN(3) == 0 {
		l = append(l, pick(r, "host-1", "host-2", "10-0-0-1", "10-0-1-2", "fd00--1", "fd00--0", "fd00-0-0-1--2", "fd00-0-0-1--0", "10-0-0-01"))
	}
	l = append(l, pick(r, "web", "db", "x", "y", "z", "gone", "1-2-3-4", "10-0-0-3", "fd00--1", "--1", "10-0-0-999"), pick(r, "ns-a", "ns-a", "ns-b", "ns-c"),
		pick(r, "svc", "svc", "svc", "pod", "foo"), "cluster", "local", "")
	name := strings.Join(l[min(r.IntN(20), len(l)-3)/2:], ".")
	switch r.IntN(12) {
	case 0:
		a := pick(r, fmt.Sprintf("10.96.%d.1", r.IntN(8)), fmt.Sprintf("10.0.0.%d", r.IntN(6)), "fd96::2", "fd00::1", "8.8.8.8")
		name, _ = mdns.ReverseAddr(a)
	case 1:
		name = pick(r, "cluster.local.", "svc.cluster.local.", "pod.cluster.local.", "dns-version.cluster.local.", "ns.dns.cluster.local.", "example.org.", "local.", ".")
	}
	b := []byte(name)
	for i, c := range b {
		if c|0x20 >= 'a' && c|0x20 <= 'z' && r.IntN(4) == 0 {
			b[i] ^= 0x20
		}
	}
	return string(b), pick(r, mdns.TypeA, mdns.TypeA, mdns.TypeAAAA, mdns.TypeAAAA, mdns.TypeSRV, mdns.TypePTR, mdns.TypeTXT, mdns.TypeCNAME,
		mdns.TypeSOA, mdns.TypeNS, mdns.TypeMX, mdns.TypeHTTPS, mdns.TypeANY)
}

func TestAgainstTwin(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	kinds := map[string]int{}
	for range 150 {
		in := randomCluster(r)
		w, s := &twin{in: in}, serverOf(in)
		for range 200 {
			name, qtype := randomQuestion(r)
			q := query(t, name, qtype, 1232)
			want := w.ask(name, qtype)
			reply, st := s.Answer(netip.Addr{}, q, false, nil)
			if (st == dns.Forward) != (want.rcode == forwarded) {
				t.Fatalf("seed %d: %s %s: %v, the twin says %d", seed, name, mdns.TypeToString[qtype], st, want.rcode)
			}
			kinds[fmt.Sprint(want.rcode, len(want.answer) > 0, qtype)]++
			if st == dns.Forward {
				continue
			}
			m := checkReply(t, q, reply, false)
			got := twinAnswer{rcode: m.Rcode, answer: text(t, m.Answer), extra: text(t, m.Extra), soa: len(m.Ns) > 0}
			want.answer, want.extra = rrs(t, want.answer), rrs(t, want.extra)
			if d := cmp.Diff(want, got, cmp.AllowUnexported(twinAnswer{})); d != "" {
				t.Fatalf("seed %d: %s %s (-twin +server):\n%s", seed, name, mdns.TypeToString[qtype], d)
			}
		}
	}
	if len(kinds) < 25 {
		t.Errorf("only %d kinds of answers were compared: %v", len(kinds), kinds)
	}
}
