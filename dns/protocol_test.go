package dns_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	mdns "github.com/miekg/dns"

	"github.com/netctl/netctl/dns"
	"github.com/netctl/netctl/internal/model"
)

// edit changes a message that query wrote.
type edit func(m *mdns.Msg, b []byte) []byte

func TestMalformed(t *testing.T) {
	t.Parallel()
	s := serverOf(cluster())
	const svc = "svc1.testns.svc.cluster.local"
	raw := func(f func(b []byte) []byte) edit { return func(_ *mdns.Msg, b []byte) []byte { return f(b) } }
	msg := func(f func(m *mdns.Msg)) edit {
		return func(m *mdns.Msg, _ []byte) []byte {
			f(m)
			b, err := m.Pack()
			if err != nil {
				panic(err)
			}
			return b
		}
	}
	const silence = -1
	tests := []struct {
		name  string
		edit  edit
		rcode int
	}{
		{"empty", raw(func([]byte) []byte { return nil }), silence},
		{"half a header", raw(func(b []byte) []byte { return b[:11] }), silence},
		{"a response", raw(func(b []byte) []byte { b[2] |= 0x80; return b }), silence},
		{"a response with errors", raw(func(b []byte) []byte { b[2] |= 0xf8; return b[:13] }), silence},
		{"header alone", raw(func(b []byte) []byte { return b[:12] }), mdns.RcodeFormatError},
		{"no question", msg(func(m *mdns.Msg) { m.Question = nil }), mdns.RcodeFormatError},
		{"two questions", msg(func(m *mdns.Msg) { m.Question = append(m.Question, m.Question[0]) }), mdns.RcodeFormatError},
		{"question cut", raw(func(b []byte) []byte { return b[:len(b)-1] }), mdns.RcodeFormatError},
		{"name cut", raw(func(b []byte) []byte { return b[:20] }), mdns.RcodeFormatError},
		{"bytes behind", raw(func(b []byte) []byte { return append(b, 0) }), mdns.RcodeFormatError},
		{"pointer to itself", raw(func(b []byte) []byte { return append(b[:12], 0xc0, 12, 0, 1, 0, 1) }), mdns.RcodeFormatError},
		{"pointer into the header", raw(func(b []byte) []byte { return append(b[:12], 0xc0, 0, 0, 1, 0, 1) }), mdns.RcodeFormatError},
		{"label type 01", raw(func(b []byte) []byte { b[12] |= 0x40; return b }), mdns.RcodeFormatError},
		{"name of 256 bytes", raw(func(b []byte) []byte {
			b = b[:12]
			for range 4 {
				b = append(append(b, 63), make([]byte, 63)...)
			}
			return append(b, 0, 0, 1, 0, 1)
		}), mdns.RcodeFormatError},
		{"an answer in the question", msg(func(m *mdns.Msg) {
			rr, _ := mdns.NewRR("a. 1 IN A 1.2.3.4")
			m.Answer = []mdns.RR{rr}
		}), mdns.RcodeFormatError},
		{"an answer that is not there", raw(func(b []byte) []byte { b[7] = 1; return b }), mdns.RcodeFormatError},
		{"additional that is not there", raw(func(b []byte) []byte { b[11] = 1; return b }), mdns.RcodeFormatError},
		{"two OPT", msg(func(m *mdns.Msg) {
			m.SetEdns0(4096, false)
			m.Extra = append(m.Extra, m.Extra[0])
		}), mdns.RcodeFormatError},
		{"OPT with a name", msg(func(m *mdns.Msg) {
			m.SetEdns0(4096, false)
			m.Extra[0].Header().Name = "a."
		}), mdns.RcodeFormatError},
		{"EDNS version 1", msg(func(m *mdns.Msg) {
			m.SetEdns0(4096, true)
			m.IsEdns0().SetVersion(1)
		}), mdns.RcodeBadVers},
		{"class CH", msg(func(m *mdns.Msg) { m.Question[0].Qclass = mdns.ClassCHAOS }), mdns.RcodeRefused},
		{"class ANY", msg(func(m *mdns.Msg) { m.Question[0].Qclass = mdns.ClassANY }), mdns.RcodeRefused},
		{"AXFR", msg(func(m *mdns.Msg) { m.Question[0].Qtype = mdns.TypeAXFR }), mdns.RcodeRefused},
		{"IXFR", msg(func(m *mdns.Msg) {
			m.SetIxfr("cluster.local.", 1, "a.", "b.")
		}), mdns.RcodeRefused},
		{"TKEY", msg(func(m *mdns.Msg) { m.Question[0].Qtype = mdns.TypeTKEY }), mdns.RcodeNotImplemented},
		{"OPT as type", msg(func(m *mdns.Msg) { m.Question[0].Qtype = mdns.TypeOPT }), mdns.RcodeFormatError},
		{"notify", msg(func(m *mdns.Msg) { m.Opcode = mdns.OpcodeNotify }), mdns.RcodeNotImplemented},
		{"update", msg(func(m *mdns.Msg) { m.Opcode = mdns.OpcodeUpdate }), mdns.RcodeNotImplemented},
		{"opcode 15", raw(func(b []byte) []byte { b[2] = 0x78; return b }), mdns.RcodeNotImplemented},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := new(mdns.Msg)
			m.SetQuestion(svc+".", mdns.TypeA)
			b := tt.edit(m, query(t, svc, mdns.TypeA, 0))
			for _, udp := range []bool{true, false} {
				reply, st := s.Answer(netip.Addr{}, b, udp, nil)
				if tt.rcode == silence {
					if st != dns.Drop || reply != nil {
						t.Fatalf("%v with %d bytes, want silence", st, len(reply))
					}
					continue
				}
				var r mdns.Msg
				if err := r.Unpack(reply); err != nil || st != dns.Answered {
					t.Fatalf("%v, %v", st, err)
				}
				if r.Rcode != tt.rcode || !r.Response || r.Id != binary.BigEndian.Uint16(b) || len(r.Answer) != 0 {
					t.Errorf("got %v, want %s", r.MsgHdr, mdns.RcodeToString[tt.rcode])
				}
				if len(reply) > len(b) {
					t.Errorf("%d bytes answered with %d: an amplifier", len(b), len(reply))
				}
			}
		})
	}
}

func TestEDNS(t *testing.T) {
	t.Parallel()
	s := serverOf(cluster())
	m := new(mdns.Msg)
	m.SetQuestion("svc1.testns.svc.cluster.local.", mdns.TypeA)
	m.CheckingDisabled = true
	m.SetEdns0(4096, true)
	m.IsEdns0().Option = append(m.IsEdns0().Option, &mdns.EDNS0_COOKIE{Code: mdns.EDNS0COOKIE, Cookie: "0123456789abcdef"})
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	r := ask(t, s, b, true)
	o := r.IsEdns0()
	if o == nil || o.UDPSize() != dns.MaxUDP || !o.Do() || o.Version() != 0 || len(o.Option) != 0 {
		t.Errorf("OPT %v, want size %d with DO", o, dns.MaxUDP)
	}
	if !r.CheckingDisabled || r.AuthenticatedData || len(r.Answer) != 1 {
		t.Errorf("header %+v", r.MsgHdr)
	}
	if r = ask(t, s, query(t, "svc1.testns.svc.cluster.local", mdns.TypeA, 0), true); r.IsEdns0() != nil {
		t.Error("OPT in the reply to a client without EDNS")
	}
}

func TestAnyIsMinimal(t *testing.T) { // RFC 8482
	t.Parallel()
	s := serverOf(cluster())
	for _, n := range []string{"hdls1.testns.svc.cluster.local", "example.org", "cluster.local"} {
		r := ask(t, s, query(t, n, mdns.TypeANY, 0), true)
		if len(r.Answer) != 1 || r.Answer[0].Header().Rrtype != mdns.TypeHINFO || r.Rcode != 0 {
			t.Errorf("%s: %v", n, r)
		}
	}
}

// TestNotSynced is RC-09: what is known is answered, what is missing is not
// denied.
func TestNotSynced(t *testing.T) {
	t.Parallel()
	in := cluster()
	in.Synced = false
	s := serverOf(in)
	tests := []struct {
		name  string
		qtype uint16
		rcode int
	}{
		{"svc1.testns.svc.cluster.local", mdns.TypeA, mdns.RcodeSuccess},
		{"svc0.testns.svc.cluster.local", mdns.TypeA, mdns.RcodeServerFailure},
		{"svc1.other.svc.cluster.local", mdns.TypeA, mdns.RcodeServerFailure},
		{"svc0.testns.svc.cluster.local", mdns.TypeTXT, mdns.RcodeServerFailure},
		{"_x._tcp.svc1.testns.svc.cluster.local", mdns.TypeSRV, mdns.RcodeServerFailure},
		{"99.9.0.172.in-addr.arpa", mdns.TypePTR, mdns.RcodeServerFailure},
		{"svc1.testns.svc.cluster.local", mdns.TypeTXT, mdns.RcodeSuccess},
	}
	for _, tt := range tests {
		if r := ask(t, s, query(t, tt.name, tt.qtype, 0), true); r.Rcode != tt.rcode {
			t.Errorf("%s %d: rcode %d, want %d", tt.name, tt.qtype, r.Rcode, tt.rcode)
		}
	}
	if r := ask(t, dns.New(dns.Config{}), query(t, "a.b.svc.cluster.local", mdns.TypeA, 0), true); r.Rcode != mdns.RcodeServerFailure {
		t.Errorf("before the first zone: rcode %d", r.Rcode)
	}
}

func TestReverseOutside(t *testing.T) { // RC-18
	t.Parallel()
	s := serverOf(cluster())
	tests := []struct {
		name   string
		qtype  uint16
		status dns.Status
		rcode  int
	}{
		{"9.9.9.9.in-addr.arpa", mdns.TypePTR, dns.Forward, 0},
		{"99.9.0.172.in-addr.arpa", mdns.TypePTR, dns.Answered, mdns.RcodeNameError}, // inside our ranges
		{"1.0.0.10.in-addr.arpa", mdns.TypeA, dns.Answered, mdns.RcodeSuccess},       // no data
		{"01.0.0.10.in-addr.arpa", mdns.TypePTR, dns.Forward, 0},                     // not an address
		{"0.0.10.in-addr.arpa", mdns.TypePTR, dns.Forward, 0},
		{"256.0.0.10.in-addr.arpa", mdns.TypePTR, dns.Forward, 0},
		{"1.0.0.0.ip6.arpa", mdns.TypePTR, dns.Forward, 0},
		{"in-addr.arpa", mdns.TypeSOA, dns.Forward, 0},
		{"xcluster.local", mdns.TypeA, dns.Forward, 0},
		{"local", mdns.TypeA, dns.Forward, 0},
		{".", mdns.TypeNS, dns.Forward, 0},
		{`x.svc\.cluster.local`, mdns.TypeA, dns.Forward, 0},
	}
	for _, tt := range tests {
		b, st := s.Answer(netip.Addr{}, query(t, tt.name, tt.qtype, 0), true, nil)
		if st != tt.status {
			t.Errorf("%s: %v, want %v", tt.name, st, tt.status)
		} else if st == dns.Answered && int(b[3]&15) != tt.rcode {
			t.Errorf("%s: rcode %d, want %d", tt.name, b[3]&15, tt.rcode)
		}
	}
}

func TestNameServerFallback(t *testing.T) { // RC-20
	t.Parallel()
	in := cluster()
	in.Server, in.Addresses = model.Name{}, addrList("10.0.0.53", "10::53")
	s := serverOf(in)
	r := ask(t, s, query(t, "cluster.local", mdns.TypeNS, 0), true)
	want := rrs(t, []string{"cluster.local. 30 IN NS ns.dns.cluster.local."})
	if !slices.Equal(text(t, r.Answer), want) || len(r.Extra) != 2 {
		t.Errorf("got %v", r)
	}
	if r = ask(t, s, query(t, "ns.dns.cluster.local", mdns.TypeAAAA, 0), true); len(r.Answer) != 1 {
		t.Errorf("got %v", r)
	}
	in.Addresses = nil
	if r = ask(t, serverOf(in), query(t, "cluster.local", mdns.TypeNS, 0), true); len(r.Answer) != 0 || len(r.Ns) != 1 {
		t.Errorf("without any address: %v", r)
	}
}

func TestPodModes(t *testing.T) {
	t.Parallel()
	pods := []*model.Pod{
		{Name: named("testns", "a"), Addresses: addrList("10.1.0.1", "fd00::1")},
		{Name: named("testns", "b"), Addresses: addrList("10.1.0.2"), Terminating: true},
		{Name: named("testns", "c"), Addresses: addrList("10.1.0.3"), Finished: true},
	}
	tests := []struct {
		name  string
		mode  dns.PodMode
		query string
		qtype uint16
		rcode int
		n     int
	}{
		{"verified", dns.PodsVerified, "10-1-0-1.testns", mdns.TypeA, 0, 1},
		{"verified, second family", dns.PodsVerified, "fd00--1.testns", mdns.TypeAAAA, 0, 1},
		{"verified, no such pod", dns.PodsVerified, "10-1-0-9.testns", mdns.TypeA, 3, 0},
		{"verified, other namespace", dns.PodsVerified, "10-1-0-1.empty", mdns.TypeA, 3, 0},
		{"verified, terminating", dns.PodsVerified, "10-1-0-2.testns", mdns.TypeA, 3, 0},
		{"verified, finished", dns.PodsVerified, "10-1-0-3.testns", mdns.TypeA, 3, 0},
		{"verified, namespace", dns.PodsVerified, "testns", mdns.TypeA, 0, 0},
		{"disabled", dns.PodsDisabled, "10-1-0-1.testns", mdns.TypeA, 3, 0},
		{"disabled, namespace", dns.PodsDisabled, "testns", mdns.TypeA, 3, 0},
		{"insecure needs no pod", dns.PodsInsecure, "10-1-0-9.testns", mdns.TypeA, 0, 1},
		{"insecure, two labels below", dns.PodsInsecure, "a.b.10-1-0-9.testns", mdns.TypeA, 0, 1},
		{"insecure, three labels below", dns.PodsInsecure, "a.b.c.10-1-0-9.testns", mdns.TypeA, 3, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			in := cluster()
			in.PodMode, in.Pods = tt.mode, pods
			r := ask(t, serverOf(in), query(t, tt.query+".pod.cluster.local", tt.qtype, 0), true)
			if r.Rcode != tt.rcode || len(r.Answer) != tt.n {
				t.Errorf("got %v, want rcode %d and %d records", r, tt.rcode, tt.n)
			}
		})
	}
}

// large is a headless service with n endpoints of each family.
func large(n int) dns.Input {
	var eps []model.Endpoint
	for i := range n {
		eps = append(eps, ready(fmt.Sprintf("10.%d.%d.1", i>>8, i&255), ""), ready(fmt.Sprintf("fd00::%x:1", i), ""))
	}
	return dns.Input{
		Synced: true, Namespaces: []*model.Namespace{{Name: "testns"}}, Services: []*model.Service{headless("big")},
		Slices: []*model.EndpointSlice{slice("big", epHTTP, eps...)},
	}
}

func TestTruncation(t *testing.T) {
	t.Parallel()
	s := serverOf(large(1000))
	const big = "big.testns.svc.cluster.local"
	tests := []struct {
		name  string
		qname string
		qtype uint16
		edns  uint16
		udp   bool
		want  int // records at least
		tc    bool
	}{
		{"A without EDNS", big, mdns.TypeA, 0, true, 29, true},
		{"A with a small size", big, mdns.TypeA, 100, true, 28, true},
		{"A with 1232", big, mdns.TypeA, 1232, true, 73, true},
		{"A with more than we send", big, mdns.TypeA, 65535, true, 73, true},
		{"AAAA", big, mdns.TypeAAAA, 1232, true, 41, true},
		{"A on a stream", big, mdns.TypeA, 1232, false, 1000, false},
		{"AAAA on a stream", big, mdns.TypeAAAA, 0, false, 1000, false},
		{"A of a port", "_http._tcp." + big, mdns.TypeA, 0, true, 25, true},
		{"SRV", "_http._tcp." + big, mdns.TypeSRV, 1232, true, 15, true},
		{"SRV on a stream", "_http._tcp." + big, mdns.TypeSRV, 0, false, 1000, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := ask(t, s, query(t, tt.qname, tt.qtype, tt.edns), tt.udp)
			if len(r.Answer) < tt.want || r.Truncated != tt.tc {
				t.Errorf("%d records, TC %v; want %d, %v", len(r.Answer), r.Truncated, tt.want, tt.tc)
			}
			seen := map[string]bool{}
			for _, a := range text(t, r.Answer) {
				if seen[a] {
					t.Errorf("%s is there twice", a)
				}
				seen[a] = true
			}
		})
	}
}

func TestRotation(t *testing.T) {
	t.Parallel()
	s := serverOf(large(20))
	for _, q := range []struct {
		name  string
		qtype uint16
	}{{"big", mdns.TypeA}, {"big", mdns.TypeAAAA}, {"_http._tcp.big", mdns.TypeSRV}} {
		first := map[string]int{}
		for range 400 {
			r := ask(t, s, query(t, q.name+".testns.svc.cluster.local", q.qtype, 1232), true)
			first[r.Answer[0].String()]++
		}
		if len(first) < 15 {
			t.Errorf("%s %d: only %d records ever came first", q.name, q.qtype, len(first))
		}
	}
}

func TestProblems(t *testing.T) {
	t.Parallel()
	in := dns.Input{
		Domain: "bad..domain", Synced: true,
		Services: []*model.Service{
			clusterIP("dotted.name", []string{"10.0.0.1"}), clusterIP(strings.Repeat("x", 64), []string{"10.0.0.2"}),
			external("spaces", "a..b"), clusterIP("good", []string{"10.0.0.3"}), clusterIP("nothing", nil),
		},
		Slices: []*model.EndpointSlice{
			slice("good", epHTTP, ready("10.1.0.1", "bad.host"), model.Endpoint{Ready: true}),
			slice("bad.orphan", epHTTP, ready("10.1.0.2", "")),
		},
	}
	z := dns.Compile(in)
	if n := len(z.Problems()); n != 6 {
		t.Errorf("%d problems: %v", n, z.Problems())
	}
	s := dns.New(dns.Config{})
	s.Publish(z)
	for name, want := range map[string]int{
		"good.testns.svc": 1, "10-1-0-1.good.testns.svc": 1, "nothing.testns.svc": 0, `dotted\.name.testns.svc`: 0,
	} {
		if r := ask(t, s, query(t, name+".cluster.local", mdns.TypeA, 0), true); len(r.Answer) != want {
			t.Errorf("%s: %v", name, r)
		}
	}
}

func TestOtherDomain(t *testing.T) {
	t.Parallel()
	in := cluster()
	in.Domain, in.TTL, in.NegativeTTL = "K8s.Example.COM.", 60, 500
	s := serverOf(in)
	r := ask(t, s, query(t, "svc1.testns.svc.k8s.example.com", mdns.TypeA, 0), true)
	if len(r.Answer) != 1 || r.Answer[0].Header().Ttl != 60 {
		t.Errorf("got %v", r)
	}
	r = ask(t, s, query(t, "x.testns.svc.k8s.example.com", mdns.TypeA, 0), true)
	soa, ok := r.Ns[0].(*mdns.SOA)
	if !ok || soa.Minttl != 500 || soa.Hdr.Ttl != 300 || soa.Mbox != "hostmaster.k8s.example.com." {
		t.Errorf("got %v", r.Ns)
	}
	r = ask(t, s, query(t, "1.0.0.10.in-addr.arpa", mdns.TypePTR, 0), true)
	if want := rrs(t, []string{"1.0.0.10.in-addr.arpa. 60 IN PTR svc1.testns.svc.K8s.Example.COM."}); !slices.Equal(text(t, r.Answer), want) {
		t.Errorf("got %v", r.Answer)
	}
	if _, st := s.Answer(netip.Addr{}, query(t, "svc1.testns.svc.cluster.local", mdns.TypeA, 0), true, nil); st != dns.Forward {
		t.Errorf("the default domain is %v", st)
	}
}

// TestCompileIsPure compiles twice, and again from a zone with other objects.
func TestCompileIsPure(t *testing.T) {
	t.Parallel()
	in := cluster()
	a, b := dns.Compile(in), dns.Compile(in)
	if !reflect.DeepEqual(a, b) {
		t.Error("equal input made two zones")
	}
	changed := cluster()
	changed.Services = slices.Clone(in.Services)
	changed.Services[0] = clusterIP("svc1", []string{"10.0.0.77"}, http)
	changed.Slices = slices.Delete(slices.Clone(in.Slices), 1, 2)
	fresh := dns.Compile(changed)
	changed.Previous = a
	if !reflect.DeepEqual(fresh, dns.Compile(changed)) {
		t.Error("the zone depends on the previous one")
	}
	if reflect.DeepEqual(fresh, a) {
		t.Error("the change made no difference")
	}
}

func TestAnswerKeepsHandsOff(t *testing.T) {
	t.Parallel()
	s := serverOf(cluster())
	q := query(t, "hdls1.testns.svc.cluster.local", mdns.TypeA, 1232)
	before := slices.Clone(q)
	out := make([]byte, 7, 1500)
	reply, _ := s.Answer(netip.Addr{}, q, true, out)
	if !slices.Equal(q, before) {
		t.Error("the query was written to")
	}
	if &reply[0] != &out[0] {
		t.Error("the reply is not in out")
	}
}

func TestUnmappedAddresses(t *testing.T) {
	t.Parallel()
	in := cluster()
	in.Services = append(in.Services, &model.Service{
		Name: named("testns", "mapped"), Type: model.ClusterIP, ClusterIPs: []netip.Addr{netip.MustParseAddr("::ffff:10.0.9.9")},
	})
	if r := ask(t, serverOf(in), query(t, "mapped.testns.svc.cluster.local", mdns.TypeA, 0), true); len(r.Answer) != 1 {
		t.Errorf("got %v", r)
	}
}
