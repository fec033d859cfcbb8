package dns_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/netctl/netctl/dns"
	"github.com/netctl/netctl/internal/model"
)

// change replaces one object of the input, as a source does.
func change(rng *rand.Rand, in *dns.Input) {
	n := rng.IntN(8)
	name := model.Name{Namespace: fmt.Sprintf("ns%d", n%2), Name: fmt.Sprintf("s%d", n)}
	if rng.IntN(8) == 0 {
		in.Services = slices.DeleteFunc(slices.Clone(in.Services), func(o *model.Service) bool { return o.Name == name })
		if rng.IntN(3) > 0 {
			o := &model.Service{Name: name, Type: model.ClusterIP, ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 0, byte(n / 2)})}}
			if rng.IntN(2) == 0 {
				o.ClusterIPs, o.Headless = nil, true
			}
			in.Services = append(in.Services, o)
		}
	}
	at := model.Name{Namespace: name.Namespace, Name: fmt.Sprintf("s%d-%d", n, rng.IntN(2))}
	in.Slices = slices.DeleteFunc(slices.Clone(in.Slices), func(o *model.EndpointSlice) bool { return o.Name == at })
	if rng.IntN(4) > 0 {
		sl := &model.EndpointSlice{Name: at, Service: name.Name}
		for range rng.IntN(4) {
			e := model.Endpoint{Address: netip.AddrFrom4([4]byte{10, 1, 0, byte(rng.IntN(12))}), Ready: rng.IntN(4) > 0}
			if rng.IntN(4) == 0 {
				e.Hostname = []string{"h0", "h1", "H1", "not.a.label"}[rng.IntN(4)]
			}
			sl.Endpoints = append(sl.Endpoints, e)
		}
		in.Slices = append(in.Slices, sl)
	}
	slices.SortFunc(in.Services, func(a, b *model.Service) int { return a.Name.Compare(b.Name) })
	slices.SortFunc(in.Slices, func(a, b *model.EndpointSlice) int { return a.Name.Compare(b.Name) })
}

// A zone that was made from the one before equals one from scratch, over random
// histories.
func TestUpdatedZones(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 2))
	in := dns.Input{Synced: true, Namespaces: []*model.Namespace{{Name: "ns0"}, {Name: "ns1"}}, Server: model.Name{Namespace: "ns0", Name: "s0"}}
	updates := 0
	for i := range 1500 {
		in.Serial++
		change(rng, &in)
		fresh := in
		fresh.Previous = nil
		if dns.Updates(in) {
			updates++
		}
		z := dns.Compile(in)
		if !reflect.DeepEqual(z, dns.Compile(fresh)) {
			t.Fatalf("step %d: the zone differs from one from scratch", i)
		}
		in.Previous = z
	}
	if updates < 100 {
		t.Errorf("%d of 1500 zones were made from the one before: too few to say anything", updates)
	}
}
