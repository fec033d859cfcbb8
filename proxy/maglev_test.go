package proxy_test

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/proxy"
)

func maglev(s *model.Service) { s.Maglev = true }

// hundred are a hundred endpoints, the first ones on this node.
func hundred() []model.Endpoint {
	var out []model.Endpoint
	for i := range 100 {
		node := "n2"
		if i < 3 {
			node = "n1"
		}
		out = append(out, ep(fmt.Sprintf("10.1.3.%d @%s", i+1, node)))
	}
	return out
}

// choices are the backends of many connections of a client.
func choices(t *testing.T, tab *proxy.Table, to, client string) []proxy.Backend {
	t.Helper()
	dst, src := netip.MustParseAddrPort(to), packet.AddrFrom(netip.MustParseAddr(client))
	f, kind := tab.Frontend(packet.AddrFrom(dst.Addr()), dst.Port(), uint8(model.TCP))
	if kind != proxy.KindBackends || !f.Hashed() {
		t.Fatalf("%s is %v, hashed: %v", to, kind, f.Hashed())
	}
	var out []proxy.Backend
	for port := range uint16(10000) {
		n := proxy.Hash(uint8(model.TCP), src, port, packet.AddrFrom(dst.Addr()), dst.Port())
		b, kind := tab.Pick(f, src, n, nil, 1)
		if kind != proxy.KindBackends {
			t.Fatal(kind)
		}
		b.Local = false // is another on another node
		out = append(out, b)
	}
	return out
}

// Two nodes choose the same for the same connection, and one backend of a hundred that
// goes moves at most 2% of the others' connections.
func TestMaglev(t *testing.T) {
	t.Parallel()
	const front = vip4 + ":80"
	eps := hundred()
	w := newWorld(service(maglev), slice("s1", eps...))
	here, _ := proxy.Compile(w.in)
	w.in.Node = "n2"
	there, _ := proxy.Compile(w.in)
	before := choices(t, here, front, podHere)
	if !reflect.DeepEqual(before, choices(t, there, front, podHere)) {
		t.Error("two nodes choose differently")
	}
	count := map[proxy.Backend]int{}
	for _, b := range before {
		count[b]++
	}
	for b, n := range count {
		if n < 50 || n > 160 { // 100 and five times the deviation of a random spread
			t.Errorf("%v has %d of 10000 connections", b.Addr, n)
		}
	}
	if len(count) != 100 {
		t.Errorf("%d of 100 backends are used", len(count))
	}
	gone := packet.AddrFrom(eps[50].Address)
	after, _ := proxy.Compile(newWorld(service(maglev), slice("s1", slices.Delete(slices.Clone(eps), 50, 51)...)).in)
	moved, others := 0, 0
	for i, b := range choices(t, after, front, podHere) {
		if before[i].Addr == gone {
			continue
		}
		others++
		if b != before[i] {
			moved++
		}
	}
	t.Logf("%d of %d connections of others moved", moved, others)
	if moved*50 > others {
		t.Errorf("%d of %d connections of others moved, more than 2%%", moved, others)
	}
}

// The table of clients outside, who have this node's endpoints alone, is another.
func TestMaglevPolicies(t *testing.T) {
	t.Parallel()
	tab, _ := proxy.Compile(newWorld(service(maglev), service(loadBalancer), service(externalLocal), slice("s1", hundred()...)).in)
	for client, want := range map[string]int{outside: 3, podHere: 100} {
		seen := map[proxy.Backend]bool{}
		for _, b := range choices(t, tab, lb4+":80", client) {
			seen[b] = true
		}
		if len(seen) != want {
			t.Errorf("%s reaches %d backends, want %d", client, len(seen), want)
		}
	}
	one, _ := proxy.Compile(newWorld(service(maglev), slice("s1", ep("10.1.1.2"))).in)
	if got := choices(t, one, vip4+":80", podHere); got[0] != got[9999] {
		t.Error("one backend is two")
	}
}

// What is compiled step by step is what is compiled at once.
func TestMaglevIsPure(t *testing.T) {
	t.Parallel()
	w := newWorld(service(maglev), service(nodePorts), service(externalLocal), slice("s1", hundred()...))
	in := w.in
	in.Previous, _ = proxy.Compile(in)
	s := *in.Slices[0]
	s.Endpoints = s.Endpoints[:90]
	in.Slices = []*model.EndpointSlice{&s}
	got, _ := proxy.Compile(in)
	in.Previous = nil
	if want, _ := proxy.Compile(in); !reflect.DeepEqual(got, want) {
		t.Error("the step differs from the whole")
	}
}
