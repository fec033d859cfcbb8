package proxy_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/proxy"
)

// manyServices is a cluster of n dual-stack services with four endpoints each.
func manyServices(n int) proxy.Input {
	in := proxy.Input{Node: "n1", ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("fd00:96::/108")}}
	for i := range n {
		name := model.Name{Namespace: "default", Name: fmt.Sprintf("svc-%05d", i)}
		v4 := netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})
		v6 := netip.AddrFrom16([16]byte{0xfd, 0, 0, 0x96, 13: 1, 14: byte(i >> 8), 15: byte(i)})
		s := &model.Service{
			Name: name, UID: name.Name, Type: model.ClusterIP, ClusterIPs: []netip.Addr{v4, v6},
			Ports: []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80}},
		}
		if i%2 == 1 {
			s.AffinityTimeout = time.Hour
		}
		in.Services = append(in.Services, s)
		for _, v6 := range []bool{false, true} {
			sl := &model.EndpointSlice{
				Name: model.Name{Namespace: "default", Name: fmt.Sprintf("svc-%05d-%v", i, v6)}, Service: name.Name, IPv6: v6,
				Ports: []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 8080}},
			}
			for j := range 4 {
				a := netip.AddrFrom4([4]byte{10, byte(128 + j), byte(i >> 8), byte(i)})
				if v6 {
					a = netip.AddrFrom16([16]byte{0xfd, 1, 13: byte(j), 14: byte(i >> 8), 15: byte(i)})
				}
				sl.Endpoints = append(sl.Endpoints, model.Endpoint{Address: a, Ready: true, Serving: true, Node: fmt.Sprintf("n%d", j)})
			}
			in.Slices = append(in.Slices, sl)
		}
	}
	return in
}

const benchServices = 10_000

type query struct {
	vip    packet.Addr
	client packet.Addr
}

func queries(in proxy.Input) []query {
	out := make([]query, 0, 4096)
	for i := range 4096 {
		s := in.Services[i*2_654_435_761%len(in.Services)]
		out = append(out, query{packet.AddrFrom(s.ClusterIPs[i%2]), packet.AddrFrom(netip.AddrFrom4([4]byte{10, 9, 0, byte(i)}))})
	}
	return out
}

func BenchmarkFrontend(b *testing.B) {
	in := manyServices(benchServices)
	tab, _ := proxy.Compile(in)
	qs := queries(in)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if _, kind := tab.Frontend(qs[i&4095].vip, 80, 6); kind != proxy.KindBackends {
			b.Fatal(kind)
		}
		i++
	}
}

func BenchmarkFrontendNone(b *testing.B) {
	tab, _ := proxy.Compile(manyServices(benchServices))
	a := packet.AddrFrom(netip.MustParseAddr("10.128.0.1"))
	b.ReportAllocs()
	for b.Loop() {
		if _, kind := tab.Frontend(a, 80, 6); kind != proxy.KindNone {
			b.Fatal(kind)
		}
	}
}

func BenchmarkPick(b *testing.B) {
	in := manyServices(benchServices)
	tab, _ := proxy.Compile(in)
	aff := proxy.NewAffinity(proxy.AffinityConfig{})
	for name, odd := range map[string]int{"random": 0, "affinity": 1} {
		f, _ := tab.Frontend(packet.AddrFrom(in.Services[odd].ClusterIPs[0]), 80, 6)
		qs := queries(in)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			i := uint32(0)
			for b.Loop() {
				if _, kind := tab.Pick(f, qs[i&4095].client, i*0x9e3779b9, aff, 1); kind != proxy.KindBackends {
					b.Fatal(kind)
				}
				i++
			}
		})
	}
}

func BenchmarkCompile(b *testing.B) {
	in := manyServices(benchServices)
	b.Run("scratch", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			proxy.Compile(in)
		}
	})
	b.Run("one-changed", func(b *testing.B) {
		b.ReportAllocs()
		prev, _ := proxy.Compile(in)
		for b.Loop() {
			next := in
			next.Slices = slices.Clone(in.Slices)
			changed := *next.Slices[0]
			next.Slices[0], next.Previous = &changed, prev
			prev, _ = proxy.Compile(next)
		}
	})
}

func TestNoAllocations(t *testing.T) {
	in := manyServices(1000)
	tab, _ := proxy.Compile(in)
	w := newWorld(service(loadBalancer), service(externalLocal), sources("198.51.100.0/24"), fiveEndpoints())
	policy, _ := proxy.Compile(w.in)
	aff := proxy.NewAffinity(proxy.AffinityConfig{Entries: 512})
	qs := queries(in)
	client := packet.AddrFrom(netip.MustParseAddr(outside))
	lb := packet.AddrFrom(netip.MustParseAddr(lb4))
	i := uint32(0)
	if got := testing.AllocsPerRun(2000, func() {
		q := &qs[i&4095]
		f, _ := tab.Frontend(q.vip, 80, 6)
		tab.Pick(f, q.client, i, aff, i)
		tab.Generation(f.Slot())
		f.Has(q.client, 80)
		tab.Frontend(q.client, 80, 6)
		tab.Frontend(q.vip, 81, 6)
		f, _ = policy.Frontend(lb, 80, 6)
		policy.Pick(f, client, i, aff, i)
		i++
	}); got != 0 {
		t.Errorf("%v allocations", got)
	}
}
