package kernel_test

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/kernel"
)

// routeLab is a node with an underlay interface and a netctl0.
type routeLab struct {
	ns    *kernel.Namespace
	under int
	tun   int
}

func newRouteLab(t *testing.T) routeLab {
	t.Helper()
	needTUN(t)
	ns := newNS(t)
	for _, err := range []error{
		kernel.SetLoopbackUp(ns),
		kernel.CreateBridge(ns, "eth0"),
		kernel.AddAddress(ns, "eth0", netip.MustParsePrefix("192.0.2.10/24")),
		kernel.AddAddress(ns, "eth0", netip.MustParsePrefix("2001:db8::10/64")),
		kernel.SetUp(ns, "eth0"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	tun := newTUN(t, ns, kernel.TUNConfig{Name: "netctl0"})
	err := ns.Do(func() error {
		return tun.Configure(kernel.Interface{Name: "netctl0", Addresses: prefixes("10.7.0.1/32", "fd00:7::1/128")})
	})
	if err != nil {
		t.Fatal(err)
	}
	eth0, err := kernel.Describe(ns, "eth0")
	if err != nil {
		t.Fatal(err)
	}
	return routeLab{ns, eth0.Index, tun.Index()}
}

func (l routeLab) apply(want ...kernel.Route) error {
	return l.ns.Do(func() error { return kernel.ApplyRoutes(l.tun, want) })
}

// own returns netctl's routes on netctl0, sorted.
func (l routeLab) own(t *testing.T) []kernel.Route {
	t.Helper()
	link, err := kernel.Describe(l.ns, "netctl0")
	if err != nil {
		t.Fatal(err)
	}
	var out []kernel.Route
	for _, r := range link.Routes {
		if r.Own {
			out = append(out, r)
		}
	}
	return sortRoutes(out)
}

func sortRoutes(routes []kernel.Route) []kernel.Route {
	slices.SortFunc(routes, func(a, b kernel.Route) int {
		return cmp.Or(a.Dst.Addr().Compare(b.Dst.Addr()), cmp.Compare(a.Dst.Bits(), b.Dst.Bits()))
	})
	return routes
}

// host is a route as the agent makes it for pods and services.
func host(dst, src string, mtu int) kernel.Route {
	r := kernel.Route{Dst: netip.MustParsePrefix(dst), MTU: mtu, Scope: kernel.ScopeLink}
	if src != "" {
		r.Src = netip.MustParseAddr(src)
	}
	return r
}

// found is what the kernel shows of a wanted route.
func (l routeLab) found(want []kernel.Route) []kernel.Route {
	out := slices.Clone(want)
	for i := range out {
		out[i].Link, out[i].Own = l.tun, true
		if out[i].Dst.Addr().Is6() {
			out[i].Scope = 0
		}
	}
	return sortRoutes(out)
}

func TestApplyRoutesConverges(t *testing.T) {
	t.Parallel()
	l := newRouteLab(t)
	steps := []struct {
		name string
		want []kernel.Route
	}{
		{"both families with source", []kernel.Route{host("10.7.0.0/16", "192.0.2.10", 0), host("fd00:7::/48", "2001:db8::10", 0), host("10.96.0.0/12", "192.0.2.10", 0)}},
		{"the same", []kernel.Route{host("10.7.0.0/16", "192.0.2.10", 0), host("fd00:7::/48", "2001:db8::10", 0), host("10.96.0.0/12", "192.0.2.10", 0)}},
		{"other source, an MTU", []kernel.Route{host("10.7.0.0/16", "10.7.0.1", 1380), host("fd00:7::/48", "fd00:7::1", 1380)}},
		{"global scope, default routes", []kernel.Route{{Dst: netip.MustParsePrefix("0.0.0.0/0")}, {Dst: netip.MustParsePrefix("::/0")}}},
		{"none", nil},
	}
	for _, s := range steps {
		if err := l.apply(s.want...); err != nil {
			t.Errorf("%s: %v", s.name, err)
		}
		if got := l.own(t); !slices.Equal(got, l.found(s.want)) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", s.name, got, l.found(s.want))
		}
	}
}

// The slow twin of convergence is the set of wanted routes itself.
func TestApplyRoutesRandomHistories(t *testing.T) {
	t.Parallel()
	l := newRouteLab(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for step := range 60 {
		var want []kernel.Route
		for i := range 8 {
			if rng.IntN(2) == 0 {
				src := []string{"", "192.0.2.10", "10.7.0.1"}[rng.IntN(3)]
				want = append(want, host(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(20 + i)}), 16).String(), src, 1300*rng.IntN(2)))
			}
			if rng.IntN(2) == 0 {
				src := []string{"", "2001:db8::10", "fd00:7::1"}[rng.IntN(3)]
				want = append(want, host(netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, byte(20 + i)}), 32).String(), src, 1300*rng.IntN(2)))
			}
		}
		rng.Shuffle(len(want), func(i, j int) { want[i], want[j] = want[j], want[i] })
		if err := l.apply(want...); err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
		if got := l.own(t); !slices.Equal(got, l.found(want)) {
			t.Fatalf("step %d:\ngot  %+v\nwant %+v", step, got, l.found(want))
		}
	}
}

func TestApplyRoutesLeavesOthersAlone(t *testing.T) {
	t.Parallel()
	l := newRouteLab(t)
	foreign4, foreign6 := netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("fd00:96::/64")
	for _, r := range []kernel.Route{
		{Dst: foreign4, Gateway: netip.MustParseAddr("192.0.2.1")},
		{Dst: foreign6, Gateway: netip.MustParseAddr("2001:db8::1")},
		{Dst: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("192.0.2.1")},
	} {
		if err := kernel.AddRoute(l.ns, "eth0", r); err != nil {
			t.Fatal(err)
		}
	}
	if err := kernel.AddRoute(l.ns, "netctl0", kernel.Route{Dst: netip.MustParsePrefix("203.0.113.0/24"), Scope: kernel.ScopeLink}); err != nil {
		t.Fatal(err)
	}
	want := []kernel.Route{host("10.7.0.0/16", "192.0.2.10", 0), host("10.96.0.0/12", "", 0), host("fd00:96::/64", "", 0)}
	if err := l.apply(want...); !errors.Is(err, kernel.ErrForeignRoute) {
		t.Errorf("got %v, want ErrForeignRoute", err)
	}
	if got := l.own(t); !slices.Equal(got, l.found(want[:1])) {
		t.Errorf("the others were not applied: %+v", got)
	}
	if err := l.apply(); err != nil {
		t.Error(err)
	}
	for dst, link := range map[string]int{"10.96.0.1": l.under, "fd00:96::1": l.under, "198.51.100.1": l.under, "203.0.113.5": l.tun} {
		err := l.ns.Do(func() error {
			r, err := kernel.RouteGet(netip.MustParseAddr(dst))
			if err == nil && r.Link != link {
				t.Errorf("%s goes to %d, want %d", dst, r.Link, link)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}

func TestApplyRoutesTakesOverFromAStaleInterface(t *testing.T) {
	t.Parallel()
	l := newRouteLab(t)
	want := []kernel.Route{host("10.7.0.0/16", "", 0), host("fd00:7::/48", "", 0)}
	err := l.ns.Do(func() error { return kernel.ApplyRoutes(l.under, want) })
	if err != nil {
		t.Fatal(err)
	}
	if err := l.apply(want...); err != nil {
		t.Error(err)
	}
	if got := l.own(t); !slices.Equal(got, l.found(want)) {
		t.Errorf("got %+v", got)
	}
}

func TestApplyRoutesReportsEachBadOne(t *testing.T) {
	t.Parallel()
	l := newRouteLab(t)
	good := host("10.7.0.0/16", "", 0)
	tests := []struct {
		name string
		bad  kernel.Route
	}{
		{"source that is not here", host("10.8.0.0/16", "203.0.113.7", 0)},
		{"source of another family", host("10.8.0.0/16", "fd00:7::1", 0)},
		{"not a network", kernel.Route{Dst: netip.MustParsePrefix("10.8.0.1/16")}},
		{"zero", kernel.Route{}},
		{"twice", good},
	}
	for _, tt := range tests {
		if err := l.apply(tt.bad, good); err == nil {
			t.Errorf("%s: no error", tt.name)
		}
		if got := l.own(t); !slices.Equal(got, l.found([]kernel.Route{good})) {
			t.Errorf("%s: got %+v", tt.name, got)
		}
	}
}

// Routes go with their source address; WatchAddresses tells, and another
// ApplyRoutes puts them back.
func TestRoutesComeBackWithTheAddress(t *testing.T) {
	t.Parallel()
	l := newRouteLab(t)
	want := []kernel.Route{host("10.7.0.0/16", "192.0.2.10", 0), host("fd00:7::/48", "2001:db8::10", 0)}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var changes <-chan struct{}
	err := l.ns.Do(func() (err error) {
		changes, err = kernel.WatchAddresses(ctx)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	waitChange := func() {
		t.Helper()
		select {
		case _, ok := <-changes:
			if !ok {
				t.Fatal("watch ended")
			}
		case <-time.After(5 * time.Second):
			t.Fatal("no report of a change")
		}
	}
	waitChange() // the one at the start
	if err := l.apply(want...); err != nil {
		t.Fatal(err)
	}
	for _, p := range prefixes("192.0.2.10/24", "2001:db8::10/64") {
		if err := kernel.DeleteAddress(l.ns, "eth0", p); err != nil {
			t.Fatal(err)
		}
		waitChange()
	}
	if got := l.own(t); len(got) != 1 || got[0].Dst != want[1].Dst || got[0].Src.IsValid() {
		t.Errorf("without the addresses there is %+v, want the IPv6 route without source", got)
	}
	if err := l.apply(want...); err == nil {
		t.Error("applied without the source address")
	}
	for _, p := range prefixes("192.0.2.10/24", "2001:db8::10/64") {
		if err := kernel.AddAddress(l.ns, "eth0", p); err != nil {
			t.Fatal(err)
		}
		waitChange()
	}
	if err := l.apply(want...); err != nil {
		t.Error(err)
	}
	if got := l.own(t); !slices.Equal(got, l.found(want)) {
		t.Errorf("got %+v", got)
	}
	cancel()
	for range 3 { // a report may be waiting, then the end
		select {
		case _, ok := <-changes:
			if !ok {
				return
			}
		case <-time.After(5 * time.Second):
			t.Fatal("the watch did not end with its context")
		}
	}
	t.Error("the watch goes on")
}

func TestRouteGet(t *testing.T) {
	t.Parallel()
	l := newRouteLab(t)
	if err := l.apply(host("10.7.0.0/16", "192.0.2.10", 0), host("fd00:7::/48", "2001:db8::10", 0)); err != nil {
		t.Fatal(err)
	}
	for dst, src := range map[string]string{"10.7.3.4": "192.0.2.10", "fd00:7::99": "2001:db8::10"} {
		var got kernel.Route
		err := l.ns.Do(func() (err error) {
			got, err = kernel.RouteGet(netip.MustParseAddr(dst))
			return err
		})
		if err != nil || got.Link != l.tun || got.Src.String() != src {
			t.Errorf("%s: got %+v, %v, want source %s", dst, got, err, src)
		}
	}
	for _, dst := range []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:1::1")} {
		err := l.ns.Do(func() error {
			_, err := kernel.RouteGet(dst)
			return err
		})
		if !errors.Is(err, kernel.ErrNoRoute) {
			t.Errorf("%s: got %v, want ErrNoRoute", dst, err)
		}
	}
	if _, err := kernel.RouteGet(netip.Addr{}); err == nil {
		t.Error("a route to nowhere")
	}
}

func TestRoutesAsIproute2ShowsThem(t *testing.T) {
	t.Parallel()
	l := newRouteLab(t)
	ip, err := exec.LookPath("ip")
	if err != nil {
		t.Skip("needs iproute2")
	}
	if err := l.apply(host("10.7.0.0/16", "192.0.2.10", 0)); err != nil {
		t.Fatal(err)
	}
	var out []byte
	err = l.ns.Do(func() (err error) {
		out, err = exec.Command(ip, "route", "show", "dev", "netctl0").CombinedOutput()
		return err
	})
	if want := "10.7.0.0/16 proto 157 scope link src 192.0.2.10"; err != nil || !slices.Contains(lines(out), want) {
		t.Errorf("got %q, %v, want a line %q", out, err, want)
	}
}
