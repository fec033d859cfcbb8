package balance

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/netctl/netctl/internal/model"
)

func pools(t *testing.T, texts ...string) Pools {
	t.Helper()
	p, err := ParsePools(texts)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestParsePools(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ in, want string }{
		{"", ""},
		{"203.0.113.0/28", "203.0.113.1-203.0.113.14"},
		{"203.0.113.4/31", "203.0.113.4-203.0.113.5"},
		{"203.0.113.9", "203.0.113.9-203.0.113.9"},
		{"203.0.113.9 - 203.0.113.11", "203.0.113.9-203.0.113.11"},
		{"2001:db8::/126", "2001:db8::-2001:db8::3"},
		{"203.0.113.20,2001:db8::7,203.0.113.1", "203.0.113.1-203.0.113.1 203.0.113.20-203.0.113.20 2001:db8::7-2001:db8::7"},
		{"203.0.113.1/28", "error: did you mean 203.0.113.0/28"},
		{"203.0.113.9-203.0.113.8", "error: not after"},
		{"203.0.113.9-2001:db8::1", "error: not after"},
		{"::ffff:203.0.113.9", "error: mapped"},
		{"fe80::1", "error: nobody"},
		{"127.0.0.1", "error: nobody"},
		{"many", "error: \"many\""},
		{"203.0.113.0/28,203.0.113.7", "error: overlap"},
	} {
		var texts []string
		if tt.in != "" {
			texts = strings.Split(tt.in, ",")
		}
		p, err := ParsePools(texts)
		if says, ok := strings.CutPrefix(tt.want, "error: "); ok {
			if err == nil || !strings.Contains(err.Error(), says) {
				t.Errorf("%q: %v, want %q", tt.in, err, says)
			}
			continue
		}
		if got := strings.Trim(fmt.Sprint(p.ranges), "[]"); got != tt.want || err != nil {
			t.Errorf("%q: %s, %v, want %s", tt.in, got, err, tt.want)
		}
	}
	if p := pools(t, "203.0.113.0/28"); p.Overlaps(netip.MustParsePrefix("203.0.113.0/24")) == "" || p.Overlaps(netip.MustParsePrefix("203.0.113.8/30")) == "" || p.Overlaps(netip.MustParsePrefix("10.0.0.0/8")) != "" {
		t.Error("overlaps with what the cluster uses are not seen")
	}
}

// svc is a service: a name, then "has=ADDR", "wants=ADDR", "key=K", "port=N", "local",
// "v4", "v6", "class=C", "type=T".
func svc(text string) *model.Service {
	words := strings.Fields(text)
	s := &model.Service{
		Name: model.Name{Namespace: "a", Name: words[0]}, Type: model.LoadBalancer,
		ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd00::1")},
		Ports:      []model.ServicePort{{Protocol: model.TCP, Port: 80}},
	}
	for _, w := range words[1:] {
		key, value, _ := strings.Cut(w, "=")
		switch key {
		case "has":
			s.LoadBalancerIPs = append(s.LoadBalancerIPs, netip.MustParseAddr(value))
		case "wants":
			s.WantedIPs = append(s.WantedIPs, netip.MustParseAddr(value))
		case "key":
			s.ShareKey = value
		case "class":
			s.LoadBalancerClass = value
		case "type":
			s.Type = model.ServiceType(value)
		case "ns":
			s.Name.Namespace = value
		case "local":
			s.ExternalLocal = true
		case "port":
			_, _ = fmt.Sscan(value, &s.Ports[0].Port)
		case "v4":
			s.ClusterIPs = s.ClusterIPs[:1]
		case "v6":
			s.ClusterIPs = s.ClusterIPs[1:]
		default:
			panic(w)
		}
	}
	return s
}

func TestAssign(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		services []string
		want     string
		problems string
	}{
		{"nothing", nil, "", ""},
		{"both families, by name", []string{"y", "x"}, "x=203.0.113.1,2001:db8::1 y=203.0.113.2,2001:db8::2", ""},
		{"families of the service", []string{"x v6", "y v4"}, "x=2001:db8::1 y=203.0.113.1", ""},
		{"what one has stays", []string{"x", "y has=203.0.113.1"}, "x=203.0.113.2,2001:db8::1 y=203.0.113.1,2001:db8::2", ""},
		{"but not from elsewhere", []string{"x v4 has=198.51.100.1"}, "x=203.0.113.1", ""},
		{"of two that have it, the first", []string{"y v4 has=203.0.113.2", "x v4 has=203.0.113.2"}, "x=203.0.113.2 y=203.0.113.1", ""},
		{"who asks comes before others", []string{"x v4", "y v4 wants=203.0.113.1"}, "x=203.0.113.2 y=203.0.113.1", ""},
		{"but not before who has", []string{"x v4 has=203.0.113.1", "y v4 wants=203.0.113.1"}, "x=203.0.113.1 y=", "a/y: 203.0.113.1 belongs to a/x, and they have no sharing key in common"},
		{"who asks for another gives up what it has", []string{"x v4 has=203.0.113.1 wants=203.0.113.3"}, "x=203.0.113.3", ""},
		{"out of the pools", []string{"x v4 wants=198.51.100.1"}, "x=", "a/x: 198.51.100.1 is in no pool of load balancer addresses"},
		{"all taken", []string{"w v4", "x v4", "y v4", "z v4"}, "w=203.0.113.1 x=203.0.113.2 y=203.0.113.3 z=", "a/z: no pool of load balancer addresses has a free IPv4 address"},
		{"sharing", []string{"x v4 key=k", "y v4 key=k port=81"}, "x=203.0.113.1 y=203.0.113.1", ""},
		{"sharing what is asked for", []string{"x v4 key=k", "y v4 key=k port=81 wants=203.0.113.2"}, "x=203.0.113.2 y=203.0.113.2", ""},
		{"not the same port", []string{"x v4 key=k", "y v4 key=k"}, "x=203.0.113.1 y=203.0.113.2", ""},
		{"not the same port, though asked", []string{"x v4 key=k has=203.0.113.1", "y v4 key=k wants=203.0.113.1"}, "x=203.0.113.1 y=", "a/y: 203.0.113.1 belongs to a/x, and both have port 80/TCP"},
		{"not with policy Local", []string{"x v4 key=k", "y v4 key=k port=81 local"}, "x=203.0.113.1 y=203.0.113.2", ""},
		{"not other namespaces'", []string{"x v4 key=k", "y v4 key=k port=81 ns=b"}, "x=203.0.113.1 y=203.0.113.2", ""},
		{"not without a key", []string{"x v4", "y v4 port=81"}, "x=203.0.113.1 y=203.0.113.2", ""},
		{"by class", []string{"x v4 class=" + Class, "y v4 class=cloud.example/lb", "z v4 type=NodePort"}, "x=203.0.113.1", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := pools(t, "203.0.113.1-203.0.113.3", "2001:db8::1-2001:db8::ff")
			var services []*model.Service
			for _, s := range tt.services {
				services = append(services, svc(s))
			}
			got, problems := assigned(p, services)
			if got != tt.want || problems != tt.problems {
				t.Errorf("%q with problems %q, want %q with %q", got, problems, tt.want, tt.problems)
			}
			rand.Shuffle(len(services), func(i, j int) { services[i], services[j] = services[j], services[i] })
			if again, _ := assigned(p, services); again != got {
				t.Errorf("in another order: %q, not %q", again, got)
			}
			// What is written down is what is chosen again.
			for _, a := range mustAssign(p, services) {
				a.Service.LoadBalancerIPs = a.Addrs
			}
			if again, _ := assigned(p, services); again != got {
				t.Errorf("the second time: %q, not %q", again, got)
			}
		})
	}
	if list, _ := Assign(Pools{}, []*model.Service{svc("x")}); list != nil {
		t.Error("without pools there is an address")
	}
	one := pools(t, "203.0.113.1")
	if got, problems := assigned(one, []*model.Service{svc("x")}); got != "x=203.0.113.1" || problems != "" {
		t.Errorf("a family without pools: %q %q", got, problems)
	}
}

func mustAssign(p Pools, services []*model.Service) []Assignment {
	list, _ := Assign(p, services)
	return list
}

func assigned(p Pools, services []*model.Service) (got, problems string) {
	list, bad := Assign(p, services)
	var words, why []string
	for _, a := range list {
		var addrs []string
		for _, addr := range a.Addrs {
			addrs = append(addrs, addr.String())
		}
		words = append(words, a.Service.Name.Name+"="+strings.Join(addrs, ","))
	}
	for _, b := range bad {
		why = append(why, b.Service.String()+": "+b.Reason)
	}
	return strings.Join(words, " "), strings.Join(why, "; ")
}

func nodeNames(n int) []string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf("node-%d", i))
	}
	return out
}

// Addresses are spread, and a node that goes takes its own with it and no other's.
func TestRank(t *testing.T) {
	t.Parallel()
	nodes := nodeNames(10)
	count := map[string]int{}
	for i := range 1000 {
		a := netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)})
		r := Rank(a, nodes)
		if len(r) != Standbys {
			t.Fatalf("%d standbys", len(r))
		}
		count[r[0]]++
		shuffled := slices.Clone(nodes)
		slices.Reverse(shuffled)
		if !slices.Equal(Rank(a, shuffled), r) {
			t.Fatal("the order counts")
		}
		rest := slices.DeleteFunc(slices.Clone(nodes), func(n string) bool { return n == r[0] })
		if got := Rank(a, rest); got[0] != r[1] || got[1] != r[2] {
			t.Errorf("%v without its first is %v", r, got)
		}
		other := slices.DeleteFunc(slices.Clone(nodes), func(n string) bool { return slices.Contains(r, n) })[0]
		if got := Rank(a, slices.DeleteFunc(slices.Clone(nodes), func(n string) bool { return n == other })); !slices.Equal(got, r) {
			t.Errorf("%v without %s is %v", r, other, got)
		}
	}
	for n, c := range count {
		if c < 60 || c > 150 {
			t.Errorf("%s has %d of 1000 addresses", n, c)
		}
	}
}

// Whoever lives, exactly one of the watching nodes answers, if they agree on who does.
func TestDuty(t *testing.T) {
	t.Parallel()
	nodes := nodeNames(5)
	a := netip.MustParseAddr("203.0.113.1")
	rank := Rank(a, nodes)
	for dead := range 1 << Standbys {
		lives := func(n string) bool { i := slices.Index(rank, n); return i < 0 || dead>>i&1 == 0 }
		var answer []string
		for _, n := range nodes {
			d := Duty(n, a, nodes, lives)
			if i := slices.Index(rank, n); len(d.Watch) != max(i, 0) {
				t.Errorf("%s watches %v", n, d.Watch)
			}
			if lives(n) && d.Answer {
				answer = append(answer, n)
			}
		}
		if want := min(1, Standbys-popcount(dead)); len(answer) != want {
			t.Errorf("dead %b: %v answer", dead, answer)
		}
	}
	if d := Duty("elsewhere", a, nodes, func(string) bool { return false }); d.Answer || d.Watch != nil {
		t.Error("a node that may not answer has duties")
	}
}

func popcount(n int) (c int) {
	for ; n > 0; n &= n - 1 {
		c++
	}
	return c
}
