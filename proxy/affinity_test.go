package proxy_test

import (
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/proxy"
)

// clients opens connections and says which backend each one got.
type clients struct {
	t   *testing.T
	tab *proxy.Table
	aff *proxy.Affinity
	n   uint32
}

// open connects client to "addr:port" at second now, with a random number that
// no two connections share.
func (c *clients) open(to, client string, now uint32) netip.AddrPort {
	c.t.Helper()
	dst := netip.MustParseAddrPort(to)
	f, kind := c.tab.Frontend(packet.AddrFrom(dst.Addr()), dst.Port(), 6)
	if kind != proxy.KindBackends {
		c.t.Fatalf("%s is %v", to, kind)
	}
	c.n++
	b, kind := c.tab.Pick(f, packet.AddrFrom(netip.MustParseAddr(client)), c.n*0x9e3779b9, c.aff, now)
	if kind != proxy.KindBackends {
		c.t.Fatalf("%s from %s: %v", to, client, kind)
	}
	return netip.AddrPortFrom(b.Addr.Netip(), b.Port)
}

// spread counts the backends that ten connections get.
func (c *clients) spread(to, client string, now uint32) int {
	c.t.Helper()
	got := map[netip.AddrPort]bool{}
	for range 10 {
		got[c.open(to, client, now)] = true
	}
	return len(got)
}

func sticky(timeout time.Duration) opt {
	return service(func(s *model.Service) { s.AffinityTimeout = timeout })
}

const front = vip4 + ":80"

func fiveEndpoints() opt {
	return slice("s1", ep("10.1.1.1 @n1"), ep("10.1.1.2 @n1"), ep("10.1.1.3 @n1"), ep("10.1.2.4 @n2"), ep("10.1.2.5 @n2"))
}

func newClients(t *testing.T, opts ...opt) *clients {
	t.Helper()
	tab, problems := proxy.Compile(newWorld(opts...).in)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	return &clients{t: t, tab: tab, aff: proxy.NewAffinity(proxy.AffinityConfig{Entries: 4096})}
}

func TestNoAffinity(t *testing.T) {
	t.Parallel()
	c := newClients(t, fiveEndpoints())
	if n := c.spread(front, podHere, 1); n < 3 {
		t.Errorf("ten connections reached %d backends of 5", n)
	}
	if c.aff.Len() != 0 {
		t.Error("something is remembered without being asked for")
	}
}

// AFF-1: shared between the addresses of a service port, not between its ports,
// nor between clients.
func TestAffinityKey(t *testing.T) {
	t.Parallel()
	ports := []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 8080}, {Name: "admin", Protocol: model.TCP, Port: 8081}}
	eps := make([]model.Endpoint, 0, 200)
	for i := range 200 {
		e := ep("10.1.1.1 @n1")
		e.Address = netip.AddrFrom4([4]byte{10, 1, 1, byte(i)})
		eps = append(eps, e)
	}
	c := newClients(t, sticky(time.Hour), service(external), service(loadBalancer), service(nodePorts), sliceWith("s1", ports, eps...),
		service(func(s *model.Service) {
			s.Ports = append(s.Ports, model.ServicePort{Name: "admin", Protocol: model.TCP, Port: 81})
		}))
	want := c.open(front, podHere, 1)
	for _, to := range []string{front, ext4 + ":80", lb4 + ":80", node1 + ":30080", node2 + ":30080"} {
		if got := c.open(to, podHere, 2); got != want {
			t.Errorf("%s went to %v, want %v as before", to, got, want)
		}
	}
	if got := c.open(vip4+":81", podHere, 2); got.Addr() == want.Addr() {
		t.Errorf("the other port went to %v too: one chance in 200", got)
	}
	if got := c.open(front, podAway, 2); got == want {
		t.Errorf("another client went to %v too: one chance in 200", got)
	}
}

// AFF-2: the time starts anew with every connection.
func TestAffinityTimeoutSlides(t *testing.T) {
	t.Parallel()
	c := newClients(t, fiveEndpoints(), sticky(125*time.Second))
	want := c.open(front, podHere, 1000)
	now := uint32(1000)
	for range 50 {
		now += 124
		if got := c.open(front, podHere, now); got != want {
			t.Fatalf("at %d: %v, want %v", now, got, want)
		}
	}
}

// AFF-6: 130 seconds without a connection end an affinity of 125.
func TestAffinityExpires(t *testing.T) {
	t.Parallel()
	c := newClients(t, fiveEndpoints(), sticky(125*time.Second))
	got := map[netip.AddrPort]bool{}
	for i := range uint32(20) {
		got[c.open(front, podHere, 1000+130*i)] = true
	}
	if len(got) < 2 {
		t.Error("never another backend")
	}
	if n := c.spread(front, podHere, 10_000); n != 1 {
		t.Errorf("%d backends within the timeout, want 1", n)
	}
}

// AFF-3: an endpoint that may not be chosen any more ends the affinity at once;
// with local policy only local ones may be chosen.
func TestAffinityFollowsEndpoints(t *testing.T) {
	t.Parallel()
	c := newClients(t, fiveEndpoints(), sticky(time.Hour))
	was := c.open(front, podHere, 1)
	var rest []model.Endpoint
	for _, e := range newWorld(fiveEndpoints()).in.Slices[0].Endpoints {
		if e.Address != was.Addr() {
			rest = append(rest, e)
		}
	}
	c.tab, _ = proxy.Compile(newWorld(slice("s1", rest...), sticky(time.Hour)).in)
	next := c.open(front, podHere, 2)
	if next == was {
		t.Errorf("still %v, which is gone", was)
	}
	c.tab, _ = proxy.Compile(newWorld(fiveEndpoints(), sticky(time.Hour)).in)
	if got := c.open(front, podHere, 3); got != next {
		t.Errorf("%v, want to stay with %v when the old one is back", got, next)
	}
	c.tab, _ = proxy.Compile(newWorld(slice("s1", ep("10.1.1.9 @n1"), ep(next.Addr().String()+" @n2")), service(internalLocal), sticky(time.Hour)).in)
	if got := c.open(front, podHere, 4); got.Addr().String() != "10.1.1.9" {
		t.Errorf("%v, want the local endpoint", got)
	}
}

// AFF-5: None to ClientIP to None live; turning it off forgets.
func TestAffinitySwitch(t *testing.T) {
	t.Parallel()
	c := newClients(t, fiveEndpoints())
	if c.spread(front, podHere, 1) == 1 {
		t.Fatal("sticky without affinity")
	}
	on, _ := proxy.Compile(newWorld(fiveEndpoints(), sticky(time.Hour)).in)
	off := c.tab
	c.tab = on
	if n := c.spread(front, podHere, 2); n != 1 {
		t.Fatalf("%d backends with affinity", n)
	}
	c.aff.Sweep(on, 3)
	if c.aff.Len() != 1 {
		t.Errorf("%d clients remembered, want 1", c.aff.Len())
	}
	c.tab = off
	c.aff.Sweep(off, 4)
	if c.aff.Len() != 0 {
		t.Errorf("%d clients remembered after affinity is off", c.aff.Len())
	}
	if c.spread(front, podHere, 5) == 1 {
		t.Error("still sticky")
	}
}

// TestSweepsWhenItMatters: tables are published far more often than the service
// ports with affinity change, and a sweep is in the way of packets.
func TestSweepsWhenItMatters(t *testing.T) {
	t.Parallel()
	c := newClients(t, fiveEndpoints(), sticky(10*time.Second))
	same, _ := proxy.Compile(newWorld(sticky(10 * time.Second)).in)
	shorter, _ := proxy.Compile(newWorld(fiveEndpoints(), sticky(5*time.Second)).in)
	c.aff.Sweep(c.tab, 100)
	c.spread(front, podHere, 101)
	for _, step := range []struct {
		tab  *proxy.Table
		now  uint32
		want int
		why  string
	}{
		{c.tab, 130, 1, "the same table again"},
		{same, 131, 1, "a table with other endpoints and the same affinities"},
		{shorter, 132, 0, "another timeout"},
	} {
		c.aff.Sweep(step.tab, step.now)
		if n := c.aff.Len(); n != step.want {
			t.Errorf("%s: %d clients remembered, want %d", step.why, n, step.want)
		}
	}
	c.tab = shorter
	c.spread(front, podHere, 133)
	c.aff.Sweep(shorter, 132+60)
	if n := c.aff.Len(); n != 0 {
		t.Errorf("a minute later: %d clients remembered", n)
	}
}

// A service that is deleted and made again starts anew.
func TestAffinityOfAnotherServiceOfThatName(t *testing.T) {
	t.Parallel()
	c := newClients(t, fiveEndpoints(), sticky(time.Hour))
	got := map[netip.AddrPort]bool{}
	for i := range 20 {
		c.tab, _ = proxy.Compile(newWorld(fiveEndpoints(), sticky(time.Hour), service(func(s *model.Service) { s.UID = string(rune('a' + i)) })).in)
		got[c.open(front, podHere, 1)] = true
	}
	if len(got) < 2 {
		t.Error("twenty services of one name shared a pin")
	}
}

func TestAffinityIsBounded(t *testing.T) {
	t.Parallel()
	c := newClients(t, fiveEndpoints(), sticky(time.Hour))
	c.aff = proxy.NewAffinity(proxy.AffinityConfig{Entries: 512})
	for i := range 5000 {
		client := netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}).String()
		c.open(front, client, uint32(i))
	}
	if n := c.aff.Len(); n > 512 || n < 400 {
		t.Errorf("%d clients remembered, want nearly all of 512", n)
	}
	last := netip.AddrFrom4([4]byte{10, 9, 4999 >> 8, 4999 & 255}).String()
	if n := c.spread(front, last, 5000); n != 1 {
		t.Error("the newest client is not remembered")
	}
	c.aff.Sweep(c.tab, 5000+3600)
	if n := c.aff.Len(); n != 0 {
		t.Errorf("%d remembered after their time, want none", n)
	}
}

func TestAffinityConcurrent(t *testing.T) {
	t.Parallel()
	c := newClients(t, fiveEndpoints(), sticky(time.Hour))
	f, _ := c.tab.Frontend(packet.AddrFrom(netip.MustParseAddr(vip4)), 80, 6)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			var pins [64]proxy.Backend
			for i := range 5000 {
				client := packet.AddrFrom(netip.AddrFrom4([4]byte{10, 9, byte(g), byte(i % 64)}))
				b, kind := c.tab.Pick(f, client, uint32(i)*0x9e3779b9, c.aff, 1)
				if pin := &pins[i%64]; kind != proxy.KindBackends || i >= 64 && *pin != b {
					t.Errorf("client %v got %v (%v), was %v", client, b, kind, *pin)
				} else {
					*pin = b
				}
				if i%1000 == 0 {
					c.aff.Sweep(c.tab, 1)
				}
			}
		})
	}
	wg.Wait()
}
