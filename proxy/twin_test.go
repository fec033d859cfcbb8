package proxy_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/proxy"
)

// naive retells kube-proxy's choice (pkg/proxy/topology.go) for one IPv4
// service port and a client: the set of endpoints, or nil and why.
func naive(in proxy.Input, svc *model.Service, ext, clientHere bool) (map[string]bool, proxy.Kind) {
	type cand struct {
		model.Endpoint
		port uint16
	}
	all := map[string]cand{}
	list := slices.Clone(in.Slices)
	slices.SortFunc(list, func(a, b *model.EndpointSlice) int { return a.Name.Compare(b.Name) })
	for _, s := range list {
		if s.IPv6 || s.Headless || s.Service != svc.Name.Name || s.Name.Namespace != svc.Name.Namespace {
			continue
		}
		for _, p := range s.Ports {
			for _, e := range s.Endpoints {
				k := fmt.Sprint(e.Address, p.Port)
				if p.Name != "http" || p.Protocol != model.TCP {
					continue
				}
				if was, ok := all[k]; !ok || was.Terminating && !e.Terminating {
					all[k] = cand{e, p.Port}
				}
			}
		}
	}
	where := func(f func(cand) bool) map[string]bool {
		out := map[string]bool{}
		for _, c := range all {
			if f(c) {
				out[netip.AddrPortFrom(c.Address, c.port).String()] = true
			}
		}
		return out
	}
	ready := where(func(c cand) bool { return c.Ready })
	hinted := func(f func(cand) bool) bool { // every ready one has it
		return len(where(func(c cand) bool { return c.Ready && f(c) })) == len(ready)
	}
	nodeHere := where(func(c cand) bool { return c.Ready && slices.Contains(c.HintNodes, in.Node) })
	zoneHere := where(func(c cand) bool { return c.Ready && slices.Contains(c.HintZones, in.Zone) })
	cluster := ready
	if hinted(func(c cand) bool { return len(c.HintNodes) > 0 }) && len(nodeHere) > 0 {
		cluster = nodeHere
	} else if hinted(func(c cand) bool { return len(c.HintZones) > 0 }) && len(zoneHere) > 0 {
		cluster = zoneHere
	}
	if len(cluster) == 0 {
		cluster = where(func(c cand) bool { return c.Serving && c.Terminating })
	}
	local := where(func(c cand) bool { return c.Node == in.Node && c.Ready })
	if len(local) == 0 {
		local = where(func(c cand) bool { return c.Node == in.Node && c.Serving && c.Terminating })
	}
	anywhere := where(func(c cand) bool { return c.Ready || c.Serving && c.Terminating })
	chosen := cluster
	if !ext && svc.InternalLocal || ext && svc.ExternalLocal && !clientHere {
		chosen = local
	}
	switch {
	case len(chosen) > 0:
		return chosen, proxy.KindBackends
	case len(anywhere) > 0:
		return nil, proxy.KindDrop
	default:
		return nil, proxy.KindReject
	}
}

func randomEndpoint(rng *rand.Rand) model.Endpoint {
	e := model.Endpoint{
		Address: netip.AddrFrom4([4]byte{10, 1, 1, byte(rng.IntN(6))}),
		Ready:   rng.IntN(3) > 0, Serving: rng.IntN(3) > 0, Terminating: rng.IntN(3) == 0,
		Node: []string{"n1", "n2", "n3", ""}[rng.IntN(4)],
	}
	if e.Terminating {
		e.Ready = false // as the controller does
	}
	if rng.IntN(3) > 0 {
		e.HintZones = []string{[]string{"za", "zb"}[rng.IntN(2)]}
	}
	if rng.IntN(2) == 0 {
		e.HintNodes = []string{[]string{"n1", "n2"}[rng.IntN(2)]}
	}
	return e
}

func randomSlice(rng *rand.Rand, name string) opt {
	ports := []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: uint16(8080 + rng.IntN(2))}}
	eps := make([]model.Endpoint, rng.IntN(4))
	for i := range eps {
		eps[i] = randomEndpoint(rng)
	}
	return sliceWith(name, ports, eps...)
}

func TestChoiceTwin(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for i := range 3000 {
		w := newWorld(service(external), randomSlice(rng, "a"), randomSlice(rng, "b"))
		w.svc.InternalLocal, w.svc.ExternalLocal = rng.IntN(2) == 0, rng.IntN(2) == 0
		tab, _ := proxy.Compile(w.in)
		for _, to := range []string{vip4, ext4} {
			for _, client := range []string{podHere, outside} {
				want, kind := naive(w.in, w.svc, to == ext4, client == podHere)
				wantList := slices.Sorted(maps.Keys(want))
				if kind != proxy.KindBackends {
					wantList = []string{kind.String()}
				}
				if got := ask(t, tab, to+":80", client); !slices.Equal(got, wantList) {
					t.Fatalf("world %d: %s from %s gets %v, want %v\n%+v", i, to, client, got, wantList, w.svc)
				}
			}
		}
	}
}

// history is a cluster that changes by one object at a time, as a source of
// State changes it: what has not changed stays the same pointer.
type history struct {
	rng *rand.Rand
	in  proxy.Input
}

func (h *history) step() {
	h.change()
	if h.rng.IntN(4) == 0 {
		h.change()
	}
	if h.rng.IntN(10) == 0 {
		return // a source that does not sort
	}
	slices.SortFunc(h.in.Services, func(a, b *model.Service) int { return a.Name.Compare(b.Name) })
	slices.SortFunc(h.in.Slices, func(a, b *model.EndpointSlice) int { return a.Name.Compare(b.Name) })
}

func (h *history) change() {
	n := h.rng.IntN(12)
	name := model.Name{Namespace: "default", Name: fmt.Sprintf("s%d", n)}
	switch h.rng.IntN(4) {
	case 0:
		h.in.Services = slices.DeleteFunc(slices.Clone(h.in.Services), func(s *model.Service) bool { return s.Name == name })
	case 1:
		h.in.Services = slices.DeleteFunc(slices.Clone(h.in.Services), func(s *model.Service) bool { return s.Name == name })
		h.in.Services = append(h.in.Services, h.service(name, n))
	default:
		at := model.Name{Namespace: "default", Name: fmt.Sprintf("s%d-%d", n, h.rng.IntN(2))}
		h.in.Slices = slices.DeleteFunc(slices.Clone(h.in.Slices), func(s *model.EndpointSlice) bool { return s.Name == at })
		if h.rng.IntN(3) > 0 {
			w := newWorld(randomSlice(h.rng, at.Name))
			w.in.Slices[0].Service = name.Name
			h.in.Slices = append(h.in.Slices, w.in.Slices[0])
		}
	}
}

func (h *history) service(name model.Name, n int) *model.Service {
	s := &model.Service{
		Name: name, UID: strconv.Itoa(h.rng.IntN(3)), Type: model.NodePort,
		ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 1, byte(n)}), netip.MustParseAddr(fmt.Sprintf("fd00:96::1:%x", n))},
		Ports:      []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80, NodePort: uint16(30000 + n/2)}},
	}
	if h.rng.IntN(2) == 0 {
		s.ExternalIPs = addrs(fmt.Sprintf("192.0.2.%d", h.rng.IntN(4)))
	}
	if h.rng.IntN(2) == 0 {
		s.AffinityTimeout = time.Hour
	}
	s.ExternalLocal, s.InternalLocal = h.rng.IntN(2) == 0, h.rng.IntN(3) == 0
	return s
}

// An incremental table equals one from scratch, and so does one from shuffled
// input, over random histories.
func TestCompileIsPure(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	h := &history{rng: rand.New(rand.NewPCG(seed, 1)), in: newWorld().in}
	h.in.Services = nil
	var prev *proxy.Table
	updates := 0
	for i := range 600 {
		h.step()
		h.in.Node, h.in.Zone = "n"+strconv.Itoa(1+(i+10)/50%2), "z"+string(rune('a'+i/25%2)) // TOP-5: the label changes
		scratch, problems := proxy.Compile(h.in)
		in := h.in
		in.Previous = prev
		if proxy.Updates(in) {
			updates++
		}
		step, stepProblems := proxy.Compile(in)
		if !reflect.DeepEqual(step, scratch) || !reflect.DeepEqual(stepProblems, problems) {
			t.Fatalf("step %d: incremental and full table differ", i)
		}
		in.Previous, in.Services, in.Slices = nil, slices.Clone(in.Services), slices.Clone(in.Slices)
		h.rng.Shuffle(len(in.Services), func(i, j int) { in.Services[i], in.Services[j] = in.Services[j], in.Services[i] })
		h.rng.Shuffle(len(in.Slices), func(i, j int) { in.Slices[i], in.Slices[j] = in.Slices[j], in.Slices[i] })
		shuffled, shuffledProblems := proxy.Compile(in)
		if !reflect.DeepEqual(shuffled, scratch) || !reflect.DeepEqual(shuffledProblems, problems) {
			t.Fatalf("step %d: shuffled input makes another table", i)
		}
		prev = step
	}
	if updates < 100 {
		t.Errorf("%d of 600 tables were made from the one before: too few to say anything", updates)
	}
}

// A generation moves when, and nearly only when, its frontend's content does.
func TestGeneration(t *testing.T) {
	t.Parallel()
	gen := func(opts ...opt) uint32 {
		tab, _ := proxy.Compile(newWorld(opts...).in)
		f, _ := tab.Frontend(packet.AddrFrom(netip.MustParseAddr(vip4)), 80, 6)
		return tab.Generation(f.Slot())
	}
	base := slice("s1", ep("10.1.1.2 @n1"), ep("10.1.2.2 @n2"))
	want := gen(base)
	same := map[string][]opt{
		"again":                     {base},
		"another order":             {slice("s1", ep("10.1.2.2 @n2"), ep("10.1.1.2 @n1"))},
		"two slices":                {slice("s1", ep("10.1.2.2 @n2")), slice("s2", ep("10.1.1.2 @n1"))},
		"an endpoint that is unfit": {base, slice("s2", ep("10.1.3.2 notready"))},
		"a name for a pod":          {base, func(w *world) { w.in.Slices[0].Endpoints[0].Pod = "x" }},
	}
	for name, opts := range same {
		if got := gen(opts...); got != want {
			t.Errorf("%s: generation moved", name)
		}
	}
	other := map[string][]opt{
		"one more endpoint": {base, slice("s2", ep("10.1.3.2"))},
		"one less":          {slice("s1", ep("10.1.1.2 @n1"))},
		"another port":      {sliceWith("s1", []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 81}}, ep("10.1.1.2 @n1"), ep("10.1.2.2 @n2"))},
		"terminating":       {slice("s1", ep("10.1.1.2 @n1"), ep("10.1.2.2 @n2 terminating"))},
		"policy":            {base, service(internalLocal)},
		"affinity":          {base, sticky(time.Hour)},
		"another service":   {base, service(func(s *model.Service) { s.Name.Name = "w" }), func(w *world) { w.in.Slices[0].Service = "w" }},
	}
	for name, opts := range other {
		if got := gen(opts...); got == want {
			t.Errorf("%s: generation stayed", name)
		}
	}
	tab, _ := proxy.Compile(newWorld(base).in)
	f, _ := tab.Frontend(packet.AddrFrom(netip.MustParseAddr(vip4)), 80, 6)
	empty, _ := proxy.Compile(proxy.Input{})
	if g := empty.Generation(f.Slot()); g != 0 {
		t.Errorf("generation without the service = %d, want 0", g)
	}
	if g := tab.Generation(65535); g != 0 {
		t.Errorf("generation of no slot = %d, want 0", g)
	}
}

// Frontends spread over the slots, or a change would bother many others.
func TestSlotsSpread(t *testing.T) {
	t.Parallel()
	in := manyServices(4096)
	tab, _ := proxy.Compile(in)
	count := map[uint16]int{}
	for _, s := range in.Services {
		f, _ := tab.Frontend(packet.AddrFrom(s.ClusterIPs[0]), 80, 6)
		count[f.Slot()]++
	}
	// 4096 into 4096 at random fill 63 % of the slots.
	if len(count) < 2400 || slices.Max(slices.Collect(maps.Values(count))) > 12 {
		t.Errorf("%d slots in use, want about 2590", len(count))
	}
}
