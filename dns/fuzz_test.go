package dns_test

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"
	"testing"

	mdns "github.com/miekg/dns"

	"github.com/netctl/netctl/dns"
	"github.com/netctl/netctl/dns/options"
)

// fuzzSeeds are whole queries: those of resolvers in the field (glibc asks
// without EDNS, dig with a cookie) and broken ones.
func fuzzSeeds(f *testing.F) {
	for _, r := range rows {
		f.Add(query(f, r.name, r.qtype, 0), true)
		f.Add(query(f, r.name, r.qtype, 4096), false)
	}
	dig := query(f, "hdls1.testns.svc.cluster.local", mdns.TypeANY, 1232)
	f.Add(append(dig[:len(dig)-1], 12, 0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8), true)
	f.Add([]byte{0, 1, 0x81, 0, 0, 1}, true)
	f.Add(append(make([]byte, 12), 0xc0, 12, 0, 1, 0, 1), true)
}

// FuzzAnswer: whatever comes in, nothing panics, and what goes out is a reply
// to it that another parser reads and that fits.
func FuzzAnswer(f *testing.F) {
	fuzzSeeds(f)
	in := cluster()
	big := large(200)
	in.Services = append(in.Services, big.Services...)
	in.Slices = append(in.Slices, big.Slices...)
	fuzzAnswers(f, serverOf(in))
}

// FuzzSpecial: the same with names that are rewritten, hosts, and a search path that
// is followed.
func FuzzSpecial(f *testing.F) {
	fuzzSeeds(f)
	for _, n := range []string{"a.example", "x.apps.example", "apps.example", "old.example", "kube-dns.kube-system.testns.svc.cluster.local", "www.example.testns.svc.cluster.local"} {
		f.Add(query(f, n, mdns.TypeA, 1232), true)
		f.Add(query(f, n, mdns.TypeSRV, 0), false)
	}
	f.Add(query(f, "1.2.0.192.in-addr.arpa", mdns.TypePTR, 0), true)
	s := dns.New(dns.Config{Namespace: func(netip.Addr) string { return "testns" }})
	s.Publish(dns.Compile(cluster()))
	if err := s.Configure(&options.Options{
		Hosts: []options.Host{{Address: netip.MustParseAddr("192.0.2.1"), Names: []string{"a.example", "b.example"}}},
		Rewrites: []options.Rewrite{
			{Name: "apps.example", To: strings.Repeat("very-long-label-to-make-names-too-long.", 5) + "example", Suffix: true},
			{Name: "testns.example", To: "testns.svc.cluster.local", Suffix: true},
			{Name: "old.example", To: "svc1.testns.svc.cluster.local"},
		},
		Autopath: []string{"testns"}, Log: options.LogAll,
	}); err != nil {
		f.Fatal(err)
	}
	fuzzAnswers(f, s)
}

func fuzzAnswers(f *testing.F, s *dns.Server) {
	f.Fuzz(func(t *testing.T, q []byte, udp bool) {
		before := slices.Clone(q)
		b, st := s.Answer(aClient, q, udp, make([]byte, 0, 64))
		if !bytes.Equal(before, q) {
			t.Fatal("the query was written to")
		}
		if len(q) < 12 || q[2]&0x80 != 0 {
			if st != dns.Drop || b != nil {
				t.Fatalf("%v for what is no query", st)
			}
			return
		}
		if st == dns.Forward {
			return
		}
		var m mdns.Msg
		if err := m.Unpack(b); err != nil || st != dns.Answered {
			t.Fatalf("%v: %v\n%x", st, err, b)
		}
		if !m.Response || !bytes.Equal(b[:2], q[:2]) || m.RecursionDesired != (q[2]&1 != 0) {
			t.Fatalf("%x does not answer %x", b, q)
		}
		if udp && len(b) > dns.MaxUDP || udp && m.IsEdns0() == nil && len(b) > 512 {
			t.Fatalf("%d bytes over UDP", len(b))
		}
		if m.Rcode != mdns.RcodeSuccess && m.Rcode != mdns.RcodeNameError && len(b) > len(q) {
			t.Fatalf("error of %d bytes to a query of %d", len(b), len(q))
		}
		if n := nameLen(q[12:]) + 4; len(m.Question) > 0 && !bytes.HasPrefix(b[12:], q[12:12+n]) {
			t.Fatalf("question %v is not the client's", m.Question)
		}
	})
}

// nameLen is the length of an uncompressed name.
func nameLen(b []byte) int {
	n := 0
	for n < len(b) && b[n] != 0 {
		n += 1 + int(b[n])
	}
	return n + 1
}
