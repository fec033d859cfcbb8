package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	mdns "github.com/miekg/dns"
)

// difference is one that is allowed between our answers and CoreDNS'.
type difference struct {
	name, why string
	// same changes what CoreDNS answers into what we answer, if that is this
	// difference.
	same func(q mdns.Question, ours, theirs *mdns.Msg)
}

// differences are all that are allowed. Each must be met by a question, so that the
// list says no more than is so.
var differences = []difference{
	{
		"negative TTL", "a name that is missing may be remembered for 5 seconds, not for the TTL of those that are there: a new service is found soon",
		func(_ mdns.Question, _, theirs *mdns.Msg) {
			for _, rr := range theirs.Ns {
				if soa, ok := rr.(*mdns.SOA); ok && strings.HasPrefix(strings.ToLower(soa.Ns), "ns.dns.") && soa.Minttl == 30 {
					soa.Hdr.Ttl, soa.Minttl = 5, 5
				}
			}
			for _, rr := range theirs.Answer {
				if soa, ok := rr.(*mdns.SOA); ok && soa.Minttl == 30 {
					soa.Hdr.Ttl, soa.Minttl = 5, 5
				}
			}
		},
	},
	{
		"ANY", "ANY has one short answer for every name (RFC 8482 §4.2), be it there or not: nothing to amplify with, nothing to search with",
		func(q mdns.Question, ours, theirs *mdns.Msg) {
			if h, ok := first(ours).(*mdns.HINFO); ok && q.Qtype == mdns.TypeANY && h.Cpu == "RFC8482" {
				*theirs = *ours
			}
		},
	},
	{
		"SOA below the zone", "a name that does not exist is a name error for SOA questions, too; CoreDNS answers those without looking at the name",
		func(q mdns.Question, ours, theirs *mdns.Msg) {
			if q.Qtype == mdns.TypeSOA && ours.Rcode == mdns.RcodeNameError && theirs.Rcode == mdns.RcodeSuccess && len(theirs.Answer) == 0 {
				theirs.Rcode = ours.Rcode
			}
			if q.Qtype == mdns.TypeSOA && strings.HasSuffix(strings.ToLower(q.Name), ".arpa.") && !ours.Authoritative && len(theirs.Answer) == 0 {
				*theirs = *ours // a reverse name outside, which the upstream knows
			}
		},
	},
	{
		"spelling in the cache", "answers have the spelling of their question; CoreDNS' cache, which reverse names pass, has that of who asked first",
		func(_ mdns.Question, ours, theirs *mdns.Msg) {
			for _, b := range theirs.Answer {
				for _, a := range ours.Answer {
					if h := b.Header(); strings.EqualFold(h.Name, a.Header().Name) {
						h.Name = a.Header().Name
					}
				}
			}
		},
	},
	{
		"TTLs of others", "records of other servers have the TTL that those gave them, be they kept for less",
		func(_ mdns.Question, ours, theirs *mdns.Msg) {
			for _, list := range [][2][]mdns.RR{{ours.Answer, theirs.Answer}, {ours.Ns, theirs.Ns}} {
				for _, a := range list[0] {
					for _, b := range list[1] {
						if b.Header().Ttl <= 30 && a.Header().Ttl > b.Header().Ttl && mdns.IsDuplicate(a, b) {
							b.Header().Ttl = a.Header().Ttl
						}
					}
				}
			}
		},
	},
	{
		"TXT of names above services", "the zone and namespaces exist, so they have no TXT record rather than no name",
		becomes(func(q mdns.Question, ours, theirs *mdns.Msg) bool {
			return q.Qtype == mdns.TypeTXT && mdns.CountLabel(q.Name) <= 4 && noData(ours) && theirs.Rcode == mdns.RcodeNameError
		}),
	},
	{
		"NS of the zone", "CoreDNS finds the Service that it stands behind by its own address, which it has in a cluster only",
		becomes(func(q mdns.Question, ours, theirs *mdns.Msg) bool {
			_, ok := first(ours).(*mdns.NS)
			return strings.EqualFold(q.Name, "cluster.local.") && q.Qtype == mdns.TypeNS && ok && noData(theirs)
		}),
	},
	{
		"this name server's address", "for the same reason",
		becomes(func(q mdns.Question, ours, _ *mdns.Msg) bool {
			return strings.EqualFold(q.Name, "ns.dns.cluster.local.") && len(ours.Answer)+len(ours.Ns) == 1
		}),
	},
	{
		"types of dns-version", "the name exists for all types, so it has no data of the others",
		becomes(func(q mdns.Question, ours, theirs *mdns.Msg) bool {
			return strings.EqualFold(q.Name, "dns-version.cluster.local.") && noData(ours) && theirs.Rcode == mdns.RcodeNameError
		}),
	},
	{
		"nameless port", "a label of one underscore names no port; CoreDNS takes it for any",
		becomes(func(q mdns.Question, ours, theirs *mdns.Msg) bool {
			return strings.HasPrefix(q.Name, "_._") && ours.Rcode == mdns.RcodeNameError && theirs.Rcode == mdns.RcodeSuccess
		}),
	},
	{
		"no data at the end of a chain", "the SOA record of who says that the target has none is passed on, so that it can be remembered (RFC 2308 §2.2)",
		func(_ mdns.Question, ours, theirs *mdns.Msg) {
			if _, ok := first(ours).(*mdns.CNAME); ok && len(theirs.Ns) == 0 && len(theirs.Answer) == len(ours.Answer) {
				theirs.Ns = ours.Ns
			}
		},
	},
	{
		"no name at the end of a chain", "the response code is that of the last name of the chain (RFC 6604 §2.1)",
		func(_ mdns.Question, ours, theirs *mdns.Msg) {
			if _, ok := first(ours).(*mdns.CNAME); ok && ours.Rcode == mdns.RcodeNameError && theirs.Rcode == mdns.RcodeSuccess {
				theirs.Rcode = ours.Rcode
			}
		},
	},
	{
		"labels before a reverse name", "a reverse name has four labels, or 32; CoreDNS skips more",
		becomes(func(q mdns.Question, ours, theirs *mdns.Msg) bool {
			_, ok := first(theirs).(*mdns.PTR)
			n := mdns.CountLabel(q.Name)
			return ok && strings.HasSuffix(strings.ToLower(q.Name), ".arpa.") && n != 6 && n != 34 && len(ours.Answer) == 0
		}),
	},
	{
		"SRV of pods", "names of pods' addresses have addresses; CoreDNS adds an SRV record with port 0, which is no service",
		func(q mdns.Question, ours, theirs *mdns.Msg) {
			if srv, ok := first(theirs).(*mdns.SRV); ok && srv.Port == 0 && strings.Contains(strings.ToLower(q.Name), ".pod.") && len(ours.Answer) == 0 {
				*theirs = *ours
			}
		},
	},
	{
		"reverse names of the cluster", "reverse names of the cluster's ranges are answered here, be there a name or not: nobody outside can know them, and nobody outside needs to hear of them",
		func(q mdns.Question, ours, theirs *mdns.Msg) {
			if name := strings.ToLower(q.Name); strings.HasSuffix(name, ".arpa.") && ours.Authoritative && len(ours.Answer) == 0 && len(ours.Ns) == 1 &&
				(!theirs.Authoritative || q.Qtype == mdns.TypeSOA) && len(theirs.Answer) == 0 {
				*theirs = *ours
			}
		},
	},
}

// becomes makes theirs what ours is where when holds.
func becomes(when func(q mdns.Question, ours, theirs *mdns.Msg) bool) func(q mdns.Question, ours, theirs *mdns.Msg) {
	return func(q mdns.Question, ours, theirs *mdns.Msg) {
		if when(q, ours, theirs) {
			*theirs = *ours
		}
	}
}

func noData(m *mdns.Msg) bool { return m.Rcode == mdns.RcodeSuccess && len(m.Answer) == 0 }

func first(m *mdns.Msg) mdns.RR {
	if len(m.Answer) == 0 {
		return nil
	}
	return m.Answer[0]
}

// apply changes theirs by every difference in turn, and returns those that mattered.
func apply(q mdns.Question, ours, theirs *mdns.Msg) (used []string) {
	for _, d := range differences {
		if answerText(ours) == answerText(theirs) {
			break // nothing to excuse
		}
		before := answerText(theirs)
		d.same(q, ours, theirs)
		if answerText(theirs) != before {
			used = append(used, d.name)
		}
	}
	return used
}

// TestAgainstCoreDNS asks both servers thousands of questions: every rule's, every
// name with every type, and names that were changed.
func TestAgainstCoreDNS(t *testing.T) {
	path := os.Getenv(coreDNSVariable)
	if path == "" {
		t.Skip("set " + coreDNSVariable + " to a CoreDNS, or run 'make dns-diff'")
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	objects, err := readObjects("testdata/cluster")
	if err != nil {
		t.Fatal(err)
	}
	apiURL, stop, err := serveAPI(ctx, objects)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	outside := startOutside(t)
	core, err := startCoreDNS(ctx, path, t.TempDir(), apiURL, outside)
	if err != nil {
		t.Fatal(err)
	}
	defer core.end()
	at := startNetctl(t, outside)

	used, kinds := map[string]int{}, map[string]int{}
	failed := 0
	for _, q := range questions(t) {
		for _, network := range []string{"udp", "tcp"} {
			ours, theirs := exchange(t, at, network, q.Name, q.Qtype), exchange(t, core.addr, network, q.Name, q.Qtype)
			raw := answerText(theirs)
			for _, name := range apply(q, ours, theirs) {
				used[name]++
			}
			a, b := answerText(ours), answerText(theirs)
			if ours.Truncated && theirs.Truncated {
				// Each sends a part, and another one each time.
				a, b = strings.SplitN(a, "\n", 2)[0], strings.SplitN(b, "\n", 2)[0]
				if len(ours.Answer) < len(theirs.Answer) {
					t.Errorf("%s: %d records fit, CoreDNS sends %d", q.Name, len(ours.Answer), len(theirs.Answer))
				}
			}
			if a != b {
				kind := fmt.Sprint(mdns.TypeToString[q.Qtype], strings.SplitN(a, "\n", 2)[0], strings.SplitN(b, "\n", 2)[0])
				failed++
				if kinds[kind]++; kinds[kind] <= 1 { // not the same again and again
					t.Errorf("%s %s over %s:\nours:\n%s\nCoreDNS:\n%s", q.Name, mdns.TypeToString[q.Qtype], network, a, raw)
				}
			}
		}
	}
	for _, d := range differences {
		if used[d.name] == 0 {
			t.Errorf("the difference %q is met by no question: take it from the list", d.name)
		}
	}
	t.Logf("differences met: %v; %d answers differ beyond them", used, failed)
}

// questions are what both are asked.
func questions(t *testing.T) []mdns.Question {
	t.Helper()
	types := []uint16{
		mdns.TypeA, mdns.TypeAAAA, mdns.TypeSRV, mdns.TypeTXT, mdns.TypePTR, mdns.TypeNS, mdns.TypeSOA, mdns.TypeCNAME, mdns.TypeMX, mdns.TypeHTTPS, mdns.TypeANY,
	}
	names := map[string]bool{"hdlsbig.testns.svc.cluster.local.": true, "_http._tcp.hdlsbig.testns.svc.cluster.local.": true}
	for _, it := range readItems(t) {
		names[it.name] = true
	}
	rng := rand.New(rand.NewPCG(1, 2)) // the same questions each time
	for _, n := range sorted(names) {
		labels := mdns.SplitDomainName(n)
		if len(labels) < 3 || strings.Contains(n, `\`) {
			continue
		}
		i := rng.IntN(len(labels) - 2)
		names[mdns.Fqdn("extra."+n)] = true
		names[mdns.Fqdn(strings.Join(slices.Delete(slices.Clone(labels), i, i+1), "."))] = true
		names[mdns.Fqdn(strings.Join(slices.Insert(slices.Clone(labels), i, "svc1"), "."))] = true
		other := slices.Clone(labels)
		other[i] = "172-0-0-2"
		names[mdns.Fqdn(strings.Join(other, "."))] = true
		names[swapCase(rng, n)] = true
	}
	for i := range 60 {
		names[fmt.Sprintf("%d.%d.0.172.in-addr.arpa.", i, i%3)] = true
	}
	reverse, err := mdns.ReverseAddr(netip.MustParseAddr("5678:abcd::51").String())
	if err != nil {
		t.Fatal(err)
	}
	names[reverse] = true
	var out []mdns.Question
	for _, n := range sorted(names) {
		for _, qtype := range types {
			out = append(out, mdns.Question{Name: n, Qtype: qtype, Qclass: mdns.ClassINET})
		}
	}
	return out
}

func sorted(set map[string]bool) []string {
	var out []string
	for n := range set {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

func swapCase(rng *rand.Rand, n string) string {
	b := []byte(n)
	for i, c := range b {
		if c|0x20 >= 'a' && c|0x20 <= 'z' && rng.IntN(2) == 0 {
			b[i] = c ^ 0x20
		}
	}
	return string(b)
}
