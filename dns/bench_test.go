package dns_test

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	mdns "github.com/miekg/dns"

	"github.com/netctl/netctl/dns"
	"github.com/netctl/netctl/internal/model"
)

// many is a cluster of n services in namespaces of 100.
func many(n int) dns.Input {
	in := dns.Input{Synced: true}
	for i := range n {
		ns := fmt.Sprintf("ns-%d", i/100)
		if i%100 == 0 {
			in.Namespaces = append(in.Namespaces, &model.Namespace{Name: ns})
		}
		a := netip.AddrFrom4([4]byte{10, 96 + byte(i>>16), byte(i >> 8), byte(i)})
		in.Services = append(in.Services, &model.Service{
			Name: named(ns, fmt.Sprintf("svc-%d", i)), Type: model.ClusterIP, ClusterIPs: []netip.Addr{a}, Ports: []model.ServicePort{http},
		})
	}
	return in
}

var hotQuestions = []struct {
	name  string
	qname string
	qtype uint16
}{
	{"hit", "svc-4242.ns-42.svc.cluster.local", mdns.TypeA},
	{"nodata", "svc-4242.ns-42.svc.cluster.local", mdns.TypeAAAA},
	{"nxdomain", "www.example.org.ns-42.svc.cluster.local", mdns.TypeA},
	{"headless", "big.testns.svc.cluster.local", mdns.TypeA},
	{"endpoint", "10-0-3-1.big.testns.svc.cluster.local", mdns.TypeA},
	{"endpoint6", "fd00--3-1.big.testns.svc.cluster.local", mdns.TypeAAAA},
	{"pod", "10-1-2-3.ns-42.pod.cluster.local", mdns.TypeA},
	{"any", "svc-4242.ns-42.svc.cluster.local", mdns.TypeANY},
}

func hotServer() *dns.Server {
	in, big := many(10000), large(5)
	in.Namespaces = append(in.Namespaces, big.Namespaces...)
	in.Services = append(in.Services, big.Services...)
	in.Slices = big.Slices
	return serverOf(in)
}

func TestHotPathDoesNotAllocate(t *testing.T) {
	s := hotServer()
	out := make([]byte, 0, dns.MaxUDP)
	for _, q := range hotQuestions {
		b := query(t, q.qname, q.qtype, 1232)
		if n := testing.AllocsPerRun(100, func() {
			if _, st := s.Answer(netip.Addr{}, b, true, out); st != dns.Answered {
				t.Fatal(st)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", q.name, n)
		}
	}
	outside := query(t, "www.example.org", mdns.TypeA, 1232)
	if n := testing.AllocsPerRun(100, func() { s.Answer(netip.Addr{}, outside, true, out) }); n != 0 {
		t.Errorf("outside: %v allocations", n)
	}
}

func BenchmarkAnswer(b *testing.B) {
	s := hotServer()
	for _, q := range hotQuestions {
		b.Run(q.name, func(b *testing.B) {
			m, out := query(b, q.qname, q.qtype, 1232), make([]byte, 0, dns.MaxUDP)
			b.ReportAllocs()
			for b.Loop() {
				s.Answer(netip.Addr{}, m, true, out)
			}
			fmt.Printf("figure dns_answer_%s %.1f ns\n", q.name, float64(b.Elapsed().Nanoseconds())/float64(b.N))
		})
	}
}

func BenchmarkSRV(b *testing.B) {
	s := hotServer()
	m, out := query(b, "_http._tcp.svc-4242.ns-42.svc.cluster.local", mdns.TypeSRV, 1232), make([]byte, 0, dns.MaxUDP)
	b.ReportAllocs()
	for b.Loop() {
		s.Answer(netip.Addr{}, m, true, out)
	}
}

// BenchmarkCompile compiles 10 000 services, afresh and after one changed.
func BenchmarkCompile(b *testing.B) {
	in := many(10000)
	b.Run("fresh", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			dns.Compile(in)
		}
	})
	b.Run("changed", func(b *testing.B) {
		in.Previous = dns.Compile(in)
		b.ReportAllocs()
		for b.Loop() {
			dns.Compile(in)
		}
	})
}

// BenchmarkMemory reports the bytes that a zone holds per name.
func BenchmarkMemory(b *testing.B) {
	const n = 50000
	in := many(n)
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		z := dns.Compile(in)
		runtime.GC()
		runtime.ReadMemStats(&after)
		per := float64(after.HeapAlloc-before.HeapAlloc) / n
		b.ReportMetric(per, "B/name")
		fmt.Printf("figure dns_zone_memory_per_name %.0f B\n", per)
		runtime.KeepAlive(z)
	}
	runtime.KeepAlive(in)
}
