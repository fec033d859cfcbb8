package dns_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	mdns "github.com/miekg/dns"

	"github.com/netctl/netctl/dns"
	"github.com/netctl/netctl/internal/model"
)

func addrList(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func named(ns, n string) model.Name { return model.Name{Namespace: ns, Name: n} }

func clusterIP(n string, ips []string, ports ...model.ServicePort) *model.Service {
	return &model.Service{Name: named("testns", n), Type: model.ClusterIP, ClusterIPs: addrList(ips...), Ports: ports}
}

func headless(n string) *model.Service {
	return &model.Service{Name: named("testns", n), Type: model.ClusterIP, Headless: true}
}

func external(n, target string) *model.Service {
	return &model.Service{Name: named("testns", n), Type: model.ExternalName, ExternalName: target}
}

func slice(svc string, ports []model.EndpointPort, eps ...model.Endpoint) *model.EndpointSlice {
	return &model.EndpointSlice{Name: named("testns", svc+"-1"), Service: svc, Ports: ports, Endpoints: eps}
}

func ready(addr, host string) model.Endpoint {
	return model.Endpoint{Address: netip.MustParseAddr(addr), Ready: true, Serving: true, Hostname: host}
}

var (
	http    = model.ServicePort{Name: "http", Protocol: model.TCP, Port: 80}
	epHTTP  = []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 80}}
	testSOA = "cluster.local. 5 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 7 7200 1800 86400 5"
)

// cluster is the set of objects that the kubernetes plugin of CoreDNS is
// tested with, and those that the rules below need besides.
func cluster() dns.Input {
	notReady := ready("172.0.0.99", "late")
	notReady.Ready = false
	return dns.Input{
		Serial: 7, Synced: true,
		Namespaces: []*model.Namespace{{Name: "testns"}, {Name: "kube-system"}, {Name: "empty"}},
		Services: []*model.Service{
			clusterIP("svc1", []string{"10.0.0.1"}, http),
			clusterIP("svcempty", []string{"10.0.0.2"}, http),
			clusterIP("svc6", []string{"1234:abcd::1"}, http),
			clusterIP("dual", []string{"10.0.0.3", "10::3"}, http),
			clusterIP("ports", []string{"10.0.0.4"}, http,
				model.ServicePort{Protocol: model.UDP, Port: 99}, model.ServicePort{Name: "Sip", Protocol: model.UDP, Port: 5060}),
			headless("hdls1"), headless("hdls4"), headless("hdlsprtls"), headless("hdlsempty"),
			external("external", "ext.interwebs.test"), external("to-service", "svc1.testns.svc.cluster.local."),
			external("to-headless", "hdls4.testns.svc.CLUSTER.local"), external("to-chain", "to-service.testns.svc.cluster.local"),
			external("loop", "loop.testns.svc.cluster.local"), external("loop-a", "loop-b.testns.svc.cluster.local"),
			external("loop-b", "loop-a.testns.svc.cluster.local"), external("to-nothing", "gone.testns.svc.cluster.local"),
			external("address", "10.9.9.9"), external("to-pod", "10-1-1-1.testns.pod.cluster.local"),
			external("to-host", "web-0.hdls4.testns.svc.cluster.local"),
			{Name: named("kube-system", "kube-dns"), Type: model.ClusterIP, ClusterIPs: addrList("10.0.0.10", "10::a")},
		},
		Slices: []*model.EndpointSlice{
			slice("svc1", epHTTP, ready("172.0.0.1", "ep1a"), ready("172.0.0.41", "")),
			slice("hdls1", epHTTP, ready("172.0.0.2", ""), ready("172.0.0.3", ""), ready("172.0.0.4", "dup-name"),
				ready("172.0.0.5", "dup-name"), ready("5678:abcd::1", ""), ready("5678:abcd::2", ""), notReady),
			slice("hdls4", epHTTP, ready("172.0.0.41", "web-0"), ready("172.0.0.42", "web-1")),
			slice("hdlsprtls", nil, ready("172.0.0.20", ""), ready("5678:abcd::", "")),
			slice("hdlsempty", epHTTP, notReady),
			slice("gone", epHTTP, ready("172.0.0.77", "")),
		},
		Server: named("kube-system", "kube-dns"),
		Ranges: []netip.Prefix{netip.MustParsePrefix("172.0.0.0/16"), netip.MustParsePrefix("10.0.0.0/16")},
	}
}

func serverOf(in dns.Input) *dns.Server {
	s := dns.New(dns.Config{})
	s.Publish(dns.Compile(in))
	return s
}

// query writes a question; edns is the client's size, 0 without EDNS.
func query(t testing.TB, name string, qtype, edns uint16) []byte {
	t.Helper()
	m := new(mdns.Msg)
	m.SetQuestion(mdns.Fqdn(name), qtype)
	m.Id = 0x1234
	if edns != 0 {
		m.SetEdns0(edns, false)
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// ask asks and checks what holds for every reply.
func ask(t testing.TB, s *dns.Server, q []byte, udp bool) *mdns.Msg {
	t.Helper()
	b, st := s.Answer(netip.Addr{}, q, udp, nil)
	if st != dns.Answered {
		t.Fatalf("status %v, want %v", st, dns.Answered)
	}
	return checkReply(t, q, b, udp)
}

func checkReply(t testing.TB, q, b []byte, udp bool) *mdns.Msg {
	t.Helper()
	var in, out mdns.Msg
	if err := out.Unpack(b); err != nil {
		t.Fatalf("reply does not parse: %v\n%x", err, b)
	}
	if err := in.Unpack(q); err != nil {
		t.Fatalf("query does not parse: %v", err)
	}
	limit := 65535
	if udp {
		limit = 512
		if o := in.IsEdns0(); o != nil {
			limit = min(max(int(o.UDPSize()), 512), dns.MaxUDP)
		}
	}
	if len(b) > limit {
		t.Errorf("reply of %d bytes, the client takes %d", len(b), limit)
	}
	if out.Id != in.Id || !out.Response || out.RecursionDesired != in.RecursionDesired || !slices.Equal(out.Question, in.Question) {
		t.Errorf("reply %v does not answer %v", out.Question, in.Question)
	}
	if (in.IsEdns0() != nil) != (out.IsEdns0() != nil) {
		t.Errorf("EDNS in query %v, in reply %v", in.IsEdns0() != nil, out.IsEdns0() != nil)
	}
	return &out
}

// text writes records in one spelling and order, without OPT.
func text(t testing.TB, list []mdns.RR) []string {
	t.Helper()
	var out []string
	for _, rr := range list {
		if rr.Header().Rrtype != mdns.TypeOPT {
			out = append(out, strings.Join(strings.Fields(rr.String()), " "))
		}
	}
	slices.Sort(out)
	return out
}

func rrs(t testing.TB, list []string) []string {
	t.Helper()
	var out []mdns.RR
	for _, s := range list {
		rr, err := mdns.NewRR(s)
		if err != nil {
			t.Fatalf("%s: %v", s, err)
		}
		out = append(out, rr)
	}
	return text(t, out)
}

type row struct {
	rule  string
	name  string
	qtype uint16
	rcode int
	// want are the answers; without any the SOA is wanted in the authority.
	want  []string
	extra []string
}

var rows = []row{
	{"SPEC-01 case", "SVC1.TestNS.svc.Cluster.LOCAL", mdns.TypeA, 0, []string{"SVC1.TestNS.svc.Cluster.LOCAL. 30 IN A 10.0.0.1"}, nil},
	{"SPEC-02 version", "dns-version.cluster.local", mdns.TypeTXT, 0, []string{`dns-version.cluster.local. 28800 IN TXT "1.1.0"`}, nil},
	{"SPEC-02 version has no address", "dns-version.cluster.local", mdns.TypeA, 0, nil, nil},
	{"SPEC-03 ClusterIP", "svc1.testns.svc.cluster.local", mdns.TypeA, 0, []string{"svc1.testns.svc.cluster.local. 30 IN A 10.0.0.1"}, nil},
	{"SPEC-04 ClusterIP v6", "svc6.testns.svc.cluster.local", mdns.TypeAAAA, 0, []string{"svc6.testns.svc.cluster.local. 30 IN AAAA 1234:abcd::1"}, nil},
	{
		"SPEC-05 SRV", "_http._tcp.svc1.testns.svc.cluster.local", mdns.TypeSRV, 0,
		[]string{"_http._tcp.svc1.testns.svc.cluster.local. 30 IN SRV 0 100 80 svc1.testns.svc.cluster.local."},
		[]string{"svc1.testns.svc.cluster.local. 30 IN A 10.0.0.1"},
	},
	{
		"SPEC-05 SRV UDP, port name in another case", "_sip._udp.ports.testns.svc.cluster.local", mdns.TypeSRV, 0,
		[]string{"_sip._udp.ports.testns.svc.cluster.local. 30 IN SRV 0 100 5060 ports.testns.svc.cluster.local."},
		[]string{"ports.testns.svc.cluster.local. 30 IN A 10.0.0.4"},
	},
	{"SPEC-05 SRV wrong protocol", "_http._udp.svc1.testns.svc.cluster.local", mdns.TypeSRV, 3, nil, nil},
	{"SPEC-05 SRV wrong port", "_https._tcp.svc1.testns.svc.cluster.local", mdns.TypeSRV, 3, nil, nil},
	{"SPEC-06 no SRV for the unnamed port", "_._udp.ports.testns.svc.cluster.local", mdns.TypeSRV, 3, nil, nil},
	{"SPEC-07 PTR v4", "1.0.0.10.in-addr.arpa", mdns.TypePTR, 0, []string{"1.0.0.10.in-addr.arpa. 30 IN PTR svc1.testns.svc.cluster.local."}, nil},
	{
		"SPEC-08 PTR v6", "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.c.b.a.4.3.2.1.ip6.arpa", mdns.TypePTR, 0,
		[]string{"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.c.b.a.4.3.2.1.ip6.arpa. 30 IN PTR svc6.testns.svc.cluster.local."},
		nil,
	},
	{"SPEC-09 headless, ready endpoints only", "hdls1.testns.svc.cluster.local", mdns.TypeA, 0, []string{
		"hdls1.testns.svc.cluster.local. 30 IN A 172.0.0.2", "hdls1.testns.svc.cluster.local. 30 IN A 172.0.0.3",
		"hdls1.testns.svc.cluster.local. 30 IN A 172.0.0.4", "hdls1.testns.svc.cluster.local. 30 IN A 172.0.0.5",
	}, nil},
	{"SPEC-09 headless without ports", "hdlsprtls.testns.svc.cluster.local", mdns.TypeA, 0, []string{"hdlsprtls.testns.svc.cluster.local. 30 IN A 172.0.0.20"}, nil},
	{"SPEC-10 headless v6", "hdls1.testns.svc.cluster.local", mdns.TypeAAAA, 0, []string{
		"hdls1.testns.svc.cluster.local. 30 IN AAAA 5678:abcd::1", "hdls1.testns.svc.cluster.local. 30 IN AAAA 5678:abcd::2",
	}, nil},
	{"SPEC-11 hostname", "ep1a.svc1.testns.svc.cluster.local", mdns.TypeA, 0, []string{"ep1a.svc1.testns.svc.cluster.local. 30 IN A 172.0.0.1"}, nil},
	{"SPEC-11 hostname twice", "dup-name.hdls1.testns.svc.cluster.local", mdns.TypeA, 0, []string{
		"dup-name.hdls1.testns.svc.cluster.local. 30 IN A 172.0.0.4", "dup-name.hdls1.testns.svc.cluster.local. 30 IN A 172.0.0.5",
	}, nil},
	{"SPEC-12 hostname comes before the address", "172-0-0-1.svc1.testns.svc.cluster.local", mdns.TypeA, 3, nil, nil},
	{
		"SPEC-13 headless SRV", "_http._tcp.hdls1.testns.svc.cluster.local", mdns.TypeSRV, 0,
		[]string{
			"_http._tcp.hdls1.testns.svc.cluster.local. 30 IN SRV 0 16 80 172-0-0-2.hdls1.testns.svc.cluster.local.",
			"_http._tcp.hdls1.testns.svc.cluster.local. 30 IN SRV 0 16 80 172-0-0-3.hdls1.testns.svc.cluster.local.",
			"_http._tcp.hdls1.testns.svc.cluster.local. 30 IN SRV 0 16 80 5678-abcd--1.hdls1.testns.svc.cluster.local.",
			"_http._tcp.hdls1.testns.svc.cluster.local. 30 IN SRV 0 16 80 5678-abcd--2.hdls1.testns.svc.cluster.local.",
			"_http._tcp.hdls1.testns.svc.cluster.local. 30 IN SRV 0 16 80 dup-name.hdls1.testns.svc.cluster.local.",
		},
		[]string{
			"172-0-0-2.hdls1.testns.svc.cluster.local. 30 IN A 172.0.0.2", "172-0-0-3.hdls1.testns.svc.cluster.local. 30 IN A 172.0.0.3",
			"5678-abcd--1.hdls1.testns.svc.cluster.local. 30 IN AAAA 5678:abcd::1", "5678-abcd--2.hdls1.testns.svc.cluster.local. 30 IN AAAA 5678:abcd::2",
			"dup-name.hdls1.testns.svc.cluster.local. 30 IN A 172.0.0.4", "dup-name.hdls1.testns.svc.cluster.local. 30 IN A 172.0.0.5",
		},
	},
	{"SPEC-13 headless port with A", "_http._tcp.hdls4.testns.svc.cluster.local", mdns.TypeA, 0, []string{
		"_http._tcp.hdls4.testns.svc.cluster.local. 30 IN A 172.0.0.41", "_http._tcp.hdls4.testns.svc.cluster.local. 30 IN A 172.0.0.42",
	}, nil},
	{"SPEC-14 PTR of an endpoint", "4.0.0.172.in-addr.arpa", mdns.TypePTR, 0, []string{"4.0.0.172.in-addr.arpa. 30 IN PTR dup-name.hdls1.testns.svc.cluster.local."}, nil},
	{
		"SPEC-14 PTR of an endpoint v6", "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.D.C.B.A.8.7.6.5.ip6.arpa", mdns.TypePTR, 0,
		[]string{"2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.D.C.B.A.8.7.6.5.ip6.arpa. 30 IN PTR 5678-abcd--2.hdls1.testns.svc.cluster.local."},
		nil,
	},
	{"SPEC-15 ExternalName", "external.testns.svc.cluster.local", mdns.TypeCNAME, 0, []string{"external.testns.svc.cluster.local. 30 IN CNAME ext.interwebs.test."}, nil},

	{"RC-01 apex", "cluster.local", mdns.TypeA, 0, nil, nil},
	{"RC-01 svc", "svc.cluster.local", mdns.TypeA, 0, nil, nil},
	{"RC-01 pod", "pod.cluster.local", mdns.TypeAAAA, 0, nil, nil},
	{"RC-01 namespace", "testns.svc.cluster.local", mdns.TypeA, 0, nil, nil},
	{"RC-01 empty namespace", "empty.svc.cluster.local", mdns.TypeNS, 0, nil, nil},
	{"RC-01 namespace of pods", "testns.pod.cluster.local", mdns.TypeA, 0, nil, nil},
	{"RC-02 no namespace", "svc1.nons.svc.cluster.local", mdns.TypeA, 3, nil, nil},
	{"RC-02 no namespace itself", "nons.svc.cluster.local", mdns.TypeNS, 3, nil, nil},
	{"RC-02 neither svc nor pod", "foo.cluster.local", mdns.TypeNS, 3, nil, nil},
	{"RC-02 neither svc nor pod, deeper", "svc1.testns.foo.cluster.local", mdns.TypeA, 3, nil, nil},
	{"RC-03 AAAA of v4", "svc1.testns.svc.cluster.local", mdns.TypeAAAA, 0, nil, nil},
	{"RC-03 TXT", "svc1.testns.svc.cluster.local", mdns.TypeTXT, 0, nil, nil},
	{"RC-03 SOA", "svc1.testns.svc.cluster.local", mdns.TypeSOA, 0, nil, nil},
	{"RC-03 HTTPS", "svc1.testns.svc.cluster.local", mdns.TypeHTTPS, 0, nil, nil},
	{"RC-03 CNAME", "svc1.testns.svc.cluster.local", mdns.TypeCNAME, 0, nil, nil},
	{"RC-03 SRV at an ExternalName", "external.testns.svc.cluster.local", mdns.TypeSRV, 0, nil, nil},
	{"RC-04 no service", "svc0.testns.svc.cluster.local", mdns.TypeA, 3, nil, nil},
	{"RC-04 no service, TXT", "svc0.testns.svc.cluster.local", mdns.TypeTXT, 3, nil, nil},
	{"RC-04 no endpoint", "bogus.hdls1.testns.svc.cluster.local", mdns.TypeA, 3, nil, nil},
	{"RC-04 endpoint of no service", "bogus.svc0.testns.svc.cluster.local", mdns.TypeA, 3, nil, nil},
	{"RC-04 not ready by address", "172-0-0-99.hdls1.testns.svc.cluster.local", mdns.TypeA, 3, nil, nil},
	{"RC-04 not ready by name", "late.hdls1.testns.svc.cluster.local", mdns.TypeA, 3, nil, nil},
	{"RC-05 below ExternalName", "endpoint.external.testns.svc.cluster.local", mdns.TypeCNAME, 3, nil, nil},
	{"RC-05 port of ExternalName", "_http._tcp.external.testns.svc.cluster.local", mdns.TypeA, 3, nil, nil},
	{"RC-06 too many labels", "a._http._tcp.svc1.testns.svc.cluster.local", mdns.TypeA, 3, nil, nil},
	{"RC-07 headless v4 only", "hdls4.testns.svc.cluster.local", mdns.TypeAAAA, 0, nil, nil},
	{"RC-08 headless without ready endpoint", "hdlsempty.testns.svc.cluster.local", mdns.TypeA, 3, nil, nil},
	{"RC-08 headless without ready endpoint, SRV", "_http._tcp.hdlsempty.testns.svc.cluster.local", mdns.TypeSRV, 3, nil, nil},
	{"RC-08 ClusterIP without endpoints", "svcempty.testns.svc.cluster.local", mdns.TypeA, 0, []string{"svcempty.testns.svc.cluster.local. 30 IN A 10.0.0.2"}, nil},
	{
		"RC-12 spelling", "_HtTp._TcP.sVc1.TeStNs.SvC.cLuStEr.LoCaL", mdns.TypeSRV, 0,
		[]string{"_HtTp._TcP.sVc1.TeStNs.SvC.cLuStEr.LoCaL. 30 IN SRV 0 100 80 svc1.testns.svc.cLuStEr.LoCaL."},
		[]string{"svc1.testns.svc.cLuStEr.LoCaL. 30 IN A 10.0.0.1"},
	},
	{
		"RC-13 SRV without port", "ports.testns.svc.cluster.local", mdns.TypeSRV, 0,
		[]string{
			"ports.testns.svc.cluster.local. 30 IN SRV 0 33 80 ports.testns.svc.cluster.local.",
			"ports.testns.svc.cluster.local. 30 IN SRV 0 33 99 ports.testns.svc.cluster.local.",
			"ports.testns.svc.cluster.local. 30 IN SRV 0 33 5060 ports.testns.svc.cluster.local.",
		},
		[]string{"ports.testns.svc.cluster.local. 30 IN A 10.0.0.4"},
	},
	{
		"RC-13 SRV of an endpoint", "web-1.hdls4.testns.svc.cluster.local", mdns.TypeSRV, 0,
		[]string{"web-1.hdls4.testns.svc.cluster.local. 30 IN SRV 0 100 80 web-1.hdls4.testns.svc.cluster.local."},
		[]string{"web-1.hdls4.testns.svc.cluster.local. 30 IN A 172.0.0.42"},
	},
	{"RC-13 SRV of what has no ports", "hdlsprtls.testns.svc.cluster.local", mdns.TypeSRV, 0, nil, nil},
	{"RC-14 port with A", "_http._tcp.svc1.testns.svc.cluster.local", mdns.TypeA, 0, []string{"_http._tcp.svc1.testns.svc.cluster.local. 30 IN A 10.0.0.1"}, nil},
	{"RC-15 dual A", "dual.testns.svc.cluster.local", mdns.TypeA, 0, []string{"dual.testns.svc.cluster.local. 30 IN A 10.0.0.3"}, nil},
	{"RC-15 dual AAAA", "dual.testns.svc.cluster.local", mdns.TypeAAAA, 0, []string{"dual.testns.svc.cluster.local. 30 IN AAAA 10::3"}, nil},
	{
		"RC-15 dual SRV", "dual.testns.svc.cluster.local", mdns.TypeSRV, 0,
		[]string{"dual.testns.svc.cluster.local. 30 IN SRV 0 50 80 dual.testns.svc.cluster.local."},
		[]string{"dual.testns.svc.cluster.local. 30 IN A 10.0.0.3", "dual.testns.svc.cluster.local. 30 IN AAAA 10::3"},
	},
	{"RC-16 dashed", "172-0-0-2.hdls1.testns.svc.cluster.local", mdns.TypeA, 0, []string{"172-0-0-2.hdls1.testns.svc.cluster.local. 30 IN A 172.0.0.2"}, nil},
	{"RC-16 dashed v6", "5678-ABCD--2.hdls1.testns.svc.cluster.local", mdns.TypeAAAA, 0, []string{"5678-ABCD--2.hdls1.testns.svc.cluster.local. 30 IN AAAA 5678:abcd::2"}, nil},
	{"RC-16 dashed v6 at the end", "5678-abcd--0.hdlsprtls.testns.svc.cluster.local", mdns.TypeAAAA, 0, []string{"5678-abcd--0.hdlsprtls.testns.svc.cluster.local. 30 IN AAAA 5678:abcd::"}, nil},
	{"RC-16 another spelling of the address", "5678-abcd-0--2.hdls1.testns.svc.cluster.local", mdns.TypeAAAA, 3, nil, nil},
	{"RC-16 dashed, other family", "172-0-0-2.hdls1.testns.svc.cluster.local", mdns.TypeAAAA, 0, nil, nil},
	{"RC-17 PTR of two services", "41.0.0.172.in-addr.arpa", mdns.TypePTR, 0, []string{
		"41.0.0.172.in-addr.arpa. 30 IN PTR 172-0-0-41.svc1.testns.svc.cluster.local.",
		"41.0.0.172.in-addr.arpa. 30 IN PTR web-0.hdls4.testns.svc.cluster.local.",
	}, nil},
	{"RC-17 PTR of a slice without its service", "77.0.0.172.in-addr.arpa", mdns.TypePTR, 0, []string{"77.0.0.172.in-addr.arpa. 30 IN PTR 172-0-0-77.gone.testns.svc.cluster.local."}, nil},
	{"RC-19 to a service", "to-service.testns.svc.cluster.local", mdns.TypeA, 0, []string{
		"to-service.testns.svc.cluster.local. 30 IN CNAME svc1.testns.svc.cluster.local.", "svc1.testns.svc.cluster.local. 30 IN A 10.0.0.1",
	}, nil},
	{"RC-19 to a headless service", "to-headless.testns.svc.cluster.local", mdns.TypeA, 0, []string{
		"to-headless.testns.svc.cluster.local. 30 IN CNAME hdls4.testns.svc.CLUSTER.local.",
		"hdls4.testns.svc.CLUSTER.local. 30 IN A 172.0.0.41", "hdls4.testns.svc.CLUSTER.local. 30 IN A 172.0.0.42",
	}, nil},
	{"RC-19 to a pod", "to-pod.testns.svc.cluster.local", mdns.TypeA, 0, []string{
		"to-pod.testns.svc.cluster.local. 30 IN CNAME 10-1-1-1.testns.pod.cluster.local.", "10-1-1-1.testns.pod.cluster.local. 30 IN A 10.1.1.1",
	}, nil},
	{"RC-19 to an endpoint", "to-host.testns.svc.cluster.local", mdns.TypeA, 0, []string{
		"to-host.testns.svc.cluster.local. 30 IN CNAME web-0.hdls4.testns.svc.cluster.local.", "web-0.hdls4.testns.svc.cluster.local. 30 IN A 172.0.0.41",
	}, nil},
	{"RC-19 chain", "to-chain.testns.svc.cluster.local", mdns.TypeA, 0, []string{
		"to-chain.testns.svc.cluster.local. 30 IN CNAME to-service.testns.svc.cluster.local.",
		"to-service.testns.svc.cluster.local. 30 IN CNAME svc1.testns.svc.cluster.local.", "svc1.testns.svc.cluster.local. 30 IN A 10.0.0.1",
	}, nil},
	{"RC-19 target without the type", "to-service.testns.svc.cluster.local", mdns.TypeAAAA, 0, nil, nil},
	{"RC-19 loop to itself", "loop.testns.svc.cluster.local", mdns.TypeA, 0, nil, nil},
	{"RC-19 loop of two", "loop-a.testns.svc.cluster.local", mdns.TypeAAAA, 0, nil, nil},
	{"RC-19 to nothing", "to-nothing.testns.svc.cluster.local", mdns.TypeA, 0, nil, nil},
	{"RC-19 an address is no name", "address.testns.svc.cluster.local", mdns.TypeA, 3, nil, nil},
	{
		"RC-20 NS", "cluster.local", mdns.TypeNS, 0,
		[]string{"cluster.local. 30 IN NS kube-dns.kube-system.svc.cluster.local."},
		[]string{"kube-dns.kube-system.svc.cluster.local. 30 IN A 10.0.0.10", "kube-dns.kube-system.svc.cluster.local. 30 IN AAAA 10::a"},
	},
	{"RC-20 SOA", "Cluster.local", mdns.TypeSOA, 0, []string{"Cluster.local. 5 IN SOA ns.dns.Cluster.local. hostmaster.Cluster.local. 7 7200 1800 86400 5"}, nil},
	{"RC-20 ns.dns", "ns.dns.cluster.local", mdns.TypeA, 0, []string{"ns.dns.cluster.local. 30 IN A 10.0.0.10"}, nil},
	{"RC-20 ns.dns v6", "ns.dns.cluster.local", mdns.TypeAAAA, 0, []string{"ns.dns.cluster.local. 30 IN AAAA 10::a"}, nil},
	{"RC-21 no wildcards", "*.testns.svc.cluster.local", mdns.TypeA, 3, nil, nil},
	{"RC-21 no wildcard namespace", "svc1.*.svc.cluster.local", mdns.TypeA, 3, nil, nil},
	{"a dot inside a label is no boundary", `svc1\.testns.svc.cluster.local`, mdns.TypeA, 3, nil, nil},
	{"a zero byte inside a label", `svc1\000.testns.svc.cluster.local`, mdns.TypeA, 3, nil, nil},
	{"pods insecure", "10-240-0-1.testns.pod.cluster.local", mdns.TypeA, 0, []string{"10-240-0-1.testns.pod.cluster.local. 30 IN A 10.240.0.1"}, nil},
	{"pods insecure v6", "fd00--1.testns.pod.cluster.local", mdns.TypeAAAA, 0, []string{"fd00--1.testns.pod.cluster.local. 30 IN AAAA fd00::1"}, nil},
	{"pods insecure, other family", "10-240-0-1.testns.pod.cluster.local", mdns.TypeAAAA, 0, nil, nil},
	{"pods insecure, no namespace", "10-240-0-1.nons.pod.cluster.local", mdns.TypeA, 3, nil, nil},
	{"pods insecure, no address", "nginx.testns.pod.cluster.local", mdns.TypeA, 3, nil, nil},
	{"pods insecure, too large", "10-240-0-256.testns.pod.cluster.local", mdns.TypeA, 3, nil, nil},
}

func TestRules(t *testing.T) {
	t.Parallel()
	s := serverOf(cluster())
	for _, r := range rows {
		for _, udp := range []bool{true, false} {
			transport := map[bool]string{true: "udp", false: "tcp"}[udp]
			t.Run(r.rule+" "+transport, func(t *testing.T) {
				t.Parallel()
				m := ask(t, s, query(t, r.name, r.qtype, 1232), udp)
				if m.Rcode != r.rcode || !m.Authoritative || m.Truncated || m.RecursionAvailable {
					t.Errorf("header %+v, want rcode %d", m.MsgHdr, r.rcode)
				}
				if d := cmp.Diff(rrs(t, r.want), text(t, m.Answer)); d != "" {
					t.Errorf("answer (-want +got):\n%s", d)
				}
				if d := cmp.Diff(rrs(t, r.extra), text(t, m.Extra)); d != "" {
					t.Errorf("additional (-want +got):\n%s", d)
				}
				var soa []string
				if r.want == nil {
					soa = []string{testSOA}
				}
				if d := cmp.Diff(rrs(t, soa), text(t, m.Ns)); d != "" {
					t.Errorf("authority (-want +got):\n%s", d)
				}
				for i, rr := range m.Answer { // CNAME before what it leads to
					if rr.Header().Rrtype == mdns.TypeCNAME && i > 0 && m.Answer[i-1].Header().Rrtype != mdns.TypeCNAME {
						t.Errorf("CNAME at %d follows an address", i)
					}
				}
			})
		}
	}
}
