package ipam_test

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/netctl/netctl/ipam"
)

// clock is a time that stands still until it is moved.
type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func id(n int) ipam.ID { return ipam.ID{ContainerID: fmt.Sprintf("c%d", n), IfName: "eth0"} }

// open opens a pool in dir with the given blocks.
func open(t testing.TB, dir string, c *clock, blocks ...string) *ipam.Pool {
	t.Helper()
	cfg := ipam.Config{Dir: dir}
	if c != nil {
		cfg.Now = c.Now
	}
	p, err := ipam.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	if err := p.SetBlocks(prefixes(blocks...)); err != nil {
		t.Fatal(err)
	}
	return p
}

// allocate allocates, and fails the test when it cannot.
func allocate(t testing.TB, p *ipam.Pool, n int, want ipam.Families) []netip.Addr {
	t.Helper()
	l, err := p.Allocate(id(n), fmt.Sprintf("uid%d", n), want)
	if err != nil {
		t.Fatal(err)
	}
	return l.Addresses
}

func release(t testing.TB, p *ipam.Pool, n int) {
	t.Helper()
	if _, err := p.Release(id(n)); err != nil {
		t.Fatal(err)
	}
}

func same(t *testing.T, what string, got, want any) {
	t.Helper()
	diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }))
	if diff != "" {
		t.Fatalf("%s (-want +got):\n%s", what, diff)
	}
}

func TestPoolReservesTheRolesOfABlock(t *testing.T) {
	t.Parallel()
	p := open(t, t.TempDir(), nil, "10.0.0.0/29", "fd00::/125")
	var got []netip.Addr
	for n := range 4 {
		got = append(got, allocate(t, p, n, ipam.IPv4|ipam.IPv6)...)
	}
	same(t, "addresses", got, addrs("10.0.0.3", "fd00::3", "10.0.0.4", "fd00::4", "10.0.0.5", "fd00::5", "10.0.0.6", "fd00::6"))
	block := netip.MustParsePrefix("10.0.0.0/29")
	same(t, "host and router", []netip.Addr{ipam.HostAddr(block), ipam.RouterAddr(block)}, addrs("10.0.0.1", "10.0.0.2"))
}

func TestPoolReportsExhaustionWithNumbers(t *testing.T) {
	t.Parallel()
	c := &clock{now: time.Unix(1000, 0)}
	p := open(t, t.TempDir(), c, "10.0.0.0/29")
	for n := range 4 {
		allocate(t, p, n, ipam.IPv4)
	}
	release(t, p, 2)
	_, err := p.Allocate(id(9), "u", ipam.IPv4)
	full, ok := errors.AsType[*ipam.ExhaustedError](err)
	if !ok {
		t.Fatalf("got %v, want an ExhaustedError", err)
	}
	same(t, "usage", full.Usage, ipam.Usage{Family: "IPv4", Blocks: 1, Total: 8, Used: 3, Cooling: 1, Reserved: 4})
	want := "allocate for c9/eth0: no free IPv4 address: 1 blocks with 8 addresses, 3 used, 1 cooling down, 4 reserved"
	if err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
	_, err = p.Allocate(id(9), "u", ipam.IPv6)
	if full, ok := errors.AsType[*ipam.ExhaustedError](err); !ok || full.Family != "IPv6" || full.Blocks != 0 {
		t.Errorf("without an IPv6 block: %v", err)
	}
}

func TestPoolGivesBothFamiliesOrNone(t *testing.T) {
	t.Parallel()
	p := open(t, t.TempDir(), nil, "10.0.0.0/29", "fd00::/125", "fd00::100/120")
	for n := range 4 {
		allocate(t, p, n, ipam.IPv4)
	}
	before := p.Usage(ipam.IPv6)
	if _, err := p.Allocate(id(9), "u", ipam.IPv4|ipam.IPv6); err == nil {
		t.Fatal("allocated without a free IPv4 address")
	}
	same(t, "IPv6 usage after the failure", p.Usage(ipam.IPv6), before)
	if _, ok := p.Lookup(id(9)); ok {
		t.Error("a failed allocation left a lease")
	}
	same(t, "next IPv6", allocate(t, p, 10, ipam.IPv6), addrs("fd00::3"))
}

func TestPoolReusesTheLongestReleasedLast(t *testing.T) {
	t.Parallel()
	c := &clock{now: time.Unix(1000, 0)}
	dir := t.TempDir()
	p := open(t, dir, c, "10.0.0.0/29")
	for n := range 3 {
		allocate(t, p, n, ipam.IPv4) // .3 .4 .5
	}
	release(t, p, 1)
	c.now = c.now.Add(time.Second)
	release(t, p, 0)
	same(t, "fresh before released", allocate(t, p, 3, ipam.IPv4), addrs("10.0.0.6"))
	p.Close()
	p = open(t, dir, c, "10.0.0.0/29") // the cool-down survives
	if _, err := p.Allocate(id(4), "uid4", ipam.IPv4); err == nil {
		t.Fatal("reused within the floor")
	}
	c.now = c.now.Add(ipam.DefaultFloor)
	same(t, "the oldest, early", allocate(t, p, 4, ipam.IPv4), addrs("10.0.0.4"))
	same(t, "bypassed", p.Usage(ipam.IPv4).Bypassed, uint64(1))
	c.now = c.now.Add(ipam.DefaultCooldown)
	same(t, "the next, rested", allocate(t, p, 5, ipam.IPv4), addrs("10.0.0.3"))
	same(t, "bypassed", p.Usage(ipam.IPv4).Bypassed, uint64(1))
}

func TestPoolCoolsDownWhenTheClockIsSetBack(t *testing.T) {
	t.Parallel()
	c := &clock{now: time.Unix(1_000_000, 0)}
	p := open(t, t.TempDir(), c, "10.0.0.0/29")
	for n := range 4 {
		allocate(t, p, n, ipam.IPv4)
	}
	release(t, p, 0)
	c.now = time.Unix(1000, 0)
	if _, err := p.Allocate(id(8), "uid8", ipam.IPv4); err == nil {
		t.Fatal("reused at once")
	}
	c.now = c.now.Add(ipam.DefaultCooldown)
	same(t, "after a whole cool-down by the new clock", allocate(t, p, 8, ipam.IPv4), addrs("10.0.0.3"))
}

func TestPoolIdentity(t *testing.T) {
	t.Parallel()
	p := open(t, t.TempDir(), nil, "10.0.0.0/24", "fd00::/120")
	first := allocate(t, p, 1, ipam.IPv4)
	same(t, "the same request again", allocate(t, p, 1, ipam.IPv4), first)
	other, err := p.Allocate(ipam.ID{ContainerID: "c1", IfName: "net1"}, "uid1", ipam.IPv4)
	if err != nil || other.Addresses[0] == first[0] {
		t.Errorf("another interface: %v, %v", other, err)
	}
	if _, err := p.Allocate(id(1), "another", ipam.IPv4); !errors.Is(err, ipam.ErrConflict) {
		t.Errorf("the container with another pod: %v", err)
	}
	if _, err := p.Allocate(id(1), "uid1", ipam.IPv4|ipam.IPv6); !errors.Is(err, ipam.ErrConflict) {
		t.Errorf("the container with other families: %v", err)
	}
	for _, bad := range []ipam.ID{{}, {ContainerID: "a b", IfName: "eth0"}, {ContainerID: "a\n", IfName: "eth0"}, {ContainerID: strings.Repeat("x", 300), IfName: "eth0"}, {ContainerID: "a"}} {
		if _, err := p.Allocate(bad, "u", ipam.IPv4); err == nil {
			t.Errorf("identity %q was accepted", bad)
		}
	}
	if l, err := p.Release(id(77)); err != nil || len(l.Addresses) != 0 {
		t.Errorf("release of the absent: %v, %v", l, err)
	}
}

func TestPoolRefusesBadBlocks(t *testing.T) {
	t.Parallel()
	p := open(t, t.TempDir(), nil)
	for _, tc := range []struct {
		blocks []netip.Prefix
		want   string
	}{
		{prefixes("10.0.0.0/30"), "block 10.0.0.0/30 is too small: it needs 8 addresses"},
		{prefixes("10.0.0.9/24"), "block 10.0.0.9/24 has bits beyond its mask"},
		{prefixes("10.0.0.0/24", "10.0.0.128/25"), "blocks 10.0.0.0/24 and 10.0.0.128/25 overlap"},
		{[]netip.Prefix{{}}, "block is not a range"},
	} {
		if err := p.SetBlocks(tc.blocks); err == nil || err.Error() != tc.want {
			t.Errorf("%v: got %v, want %s", tc.blocks, err, tc.want)
		}
	}
}

func TestPoolKeepsLeasesOfABlockThatWentAway(t *testing.T) {
	t.Parallel()
	p := open(t, t.TempDir(), nil, "10.0.0.0/29", "10.0.1.0/29")
	for n := range 4 {
		allocate(t, p, n, ipam.IPv4)
	}
	if err := p.SetBlocks(prefixes("10.0.1.0/29")); err != nil {
		t.Fatal(err)
	}
	same(t, "next", allocate(t, p, 5, ipam.IPv4), addrs("10.0.1.3"))
	same(t, "usage", p.Usage(ipam.IPv4), ipam.Usage{Family: "IPv4", Blocks: 1, Total: 8, Used: 1, Reserved: 4, Free: 3, Outside: 4})
	release(t, p, 0)
	if err := p.SetBlocks(prefixes("10.0.0.0/29", "10.0.1.0/29")); err != nil {
		t.Fatal(err)
	}
	for n := 6; n < 9; n++ {
		allocate(t, p, n, ipam.IPv4)
	}
	if a, err := p.Allocate(id(9), "u", ipam.IPv4); err == nil {
		t.Errorf("%v was handed out without a cool-down", a.Addresses)
	}
}

func TestPoolAdopts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := open(t, dir, nil, "10.0.0.0/29")
	if err := p.Adopt(id(1), "uid1", addrs("10.0.0.4")); err != nil {
		t.Fatal(err)
	}
	if err := p.Adopt(id(1), "uid1", addrs("10.0.0.4")); err != nil {
		t.Errorf("again: %v", err)
	}
	for _, tc := range []struct {
		name string
		err  error
	}{
		{"another address", p.Adopt(id(1), "uid1", addrs("10.0.0.5"))},
		{"another container", p.Adopt(id(2), "uid2", addrs("10.0.0.4"))},
	} {
		if !errors.Is(tc.err, ipam.ErrConflict) {
			t.Errorf("%s: %v", tc.name, tc.err)
		}
	}
	if err := p.Adopt(id(3), "uid3", addrs("10.0.0.5", "10.0.0.6")); err == nil {
		t.Error("two addresses of one family were adopted")
	}
	same(t, "first", allocate(t, p, 5, ipam.IPv4), addrs("10.0.0.3"))
	same(t, "second", allocate(t, p, 6, ipam.IPv4), addrs("10.0.0.5"))
	p.Close()
	p = open(t, dir, nil, "10.0.0.0/29")
	if l, ok := p.Lookup(id(1)); !ok || l.Addresses[0] != netip.MustParseAddr("10.0.0.4") {
		t.Errorf("after a restart: %v %t", l, ok)
	}
}

func TestPoolCollectsLeaks(t *testing.T) {
	t.Parallel()
	c := &clock{now: time.Unix(1000, 0)}
	p := open(t, t.TempDir(), c, "10.0.0.0/24")
	for n := range 3 {
		allocate(t, p, n, ipam.IPv4)
	}
	collect := func(m ipam.Mark, live ...ipam.ID) []string {
		t.Helper()
		freed, err := p.Collect(m, live)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, l := range freed {
			out = append(out, l.ContainerID)
		}
		return out
	}
	same(t, "young", collect(p.Mark(), id(0)), []string(nil))
	same(t, "young, second pass", collect(p.Mark(), id(0)), []string(nil))
	c.now = c.now.Add(2 * ipam.DefaultLeakGrace)
	m := p.Mark()
	allocate(t, p, 7, ipam.IPv4) // after the mark: in no list, and no leak
	same(t, "old, first pass", collect(m, id(0)), []string(nil))
	same(t, "the same mark again is no second pass", collect(m, id(0)), []string(nil))
	same(t, "one came back, one did not", collect(p.Mark(), id(0), id(2)), []string{"c1"})
	same(t, "first pass again for the one that came back", collect(p.Mark(), id(0), id(7)), []string(nil))
	same(t, "second pass", collect(p.Mark(), id(0), id(7)), []string{"c2"})
	same(t, "left", len(p.Leases()), 2)
}

func TestPoolIsLocked(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := open(t, dir, nil)
	if _, err := ipam.Open(ipam.Config{Dir: dir}); !errors.Is(err, ipam.ErrLocked) {
		t.Fatalf("second Open: %v", err)
	}
	p.Close()
	open(t, dir, nil)
}

func TestPoolRefusesANewerRecord(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	// The CRC-32C of the object, by another implementation.
	text := "ec7fda7d " + `{"op":"snapshot","seq":1,"version":2}` + "\n"
	if err := os.WriteFile(filepath.Join(dir, "snapshot"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := ipam.Open(ipam.Config{Dir: dir})
	if err == nil || !strings.Contains(err.Error(), "newer netctl") {
		t.Fatalf("got %v", err)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "snapshot")); string(b) != text {
		t.Error("the newer record was changed")
	}
}

func TestPoolFromManyGoroutines(t *testing.T) {
	t.Parallel()
	p := open(t, t.TempDir(), nil, "10.0.0.0/22", "fd00::/112")
	var mu sync.Mutex
	seen := map[netip.Addr]bool{}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 100 {
				n := g*1000 + i
				l, err := p.Allocate(id(n), "u", ipam.IPv4|ipam.IPv6)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				for _, a := range l.Addresses {
					if seen[a] {
						t.Errorf("%s was handed out twice", a)
					}
					seen[a] = true
				}
				mu.Unlock()
				if i%3 == 0 {
					if _, err := p.Release(id(n)); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
}

// TestPoolSurvivesSIGKILL runs this test program as a child that allocates and
// releases as fast as it can and says so, and kills it at some moment.
func TestPoolSurvivesSIGKILL(t *testing.T) {
	if dir := os.Getenv("IPAM_TEST_CHILD"); dir != "" {
		churn(t, dir)
	}
	t.Parallel()
	dir := t.TempDir()
	live := map[string]string{} // container -> address, as the child said
	for round := range 8 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestPoolSurvivesSIGKILL$")
		cmd.Env = append(os.Environ(), "IPAM_TEST_CHILD="+dir, fmt.Sprintf("IPAM_TEST_ROUND=%d", round))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := 0
		for s := bufio.NewScanner(out); s.Scan(); lines++ {
			f := strings.Fields(s.Text())
			switch {
			case len(f) == 3 && f[0] == "+":
				live[f[1]] = f[2]
			case len(f) == 2 && f[0] == "-":
				delete(live, f[1])
			}
			if lines == 20+round*40 {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); err == nil || lines < 20 {
			t.Fatalf("the child ended by itself after %d lines: %v", lines, err)
		}
		p := open(t, dir, nil, "10.0.0.0/20")
		if p.Report().Broken() {
			t.Fatalf("report: %+v", p.Report())
		}
		got := map[string]string{}
		for _, l := range p.Leases() {
			got[l.ContainerID] = l.Addresses[0].String()
		}
		p.Close()
		missing, extra := 0, 0
		for c, a := range live {
			if got[c] != a {
				missing++
			}
		}
		for c := range got {
			if live[c] == "" {
				extra++
			}
		}
		// The one operation between writing and saying so may be either.
		if missing+extra > 1 {
			t.Fatalf("round %d: %d leases lost, %d unknown", round, missing, extra)
		}
		live = got
	}
}

// churn is the child: it never returns.
func churn(t *testing.T, dir string) {
	p, err := ipam.Open(ipam.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.SetBlocks(prefixes("10.0.0.0/20")); err != nil {
		t.Fatal(err)
	}
	round := os.Getenv("IPAM_TEST_ROUND")
	var have []ipam.ID
	for n := range 100_000 {
		i := ipam.ID{ContainerID: "r" + round + "-" + strconv.Itoa(n), IfName: "eth0"}
		l, err := p.Allocate(i, "u", ipam.IPv4)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("+", i.ContainerID, l.Addresses[0])
		if have = append(have, i); len(have) > 10 {
			if _, err := p.Release(have[0]); err != nil {
				t.Fatal(err)
			}
			fmt.Println("-", have[0].ContainerID)
			have = slices.Delete(have, 0, 1)
		}
	}
	os.Exit(0)
}

// BenchmarkPoolAllocate fills a quarter of a million addresses, each recorded
// on disk, and looks at the last thousand by themselves: the cost of one must
// not grow with their number.
func BenchmarkPoolAllocate(b *testing.B) {
	const n = 250_000
	ids := make([]ipam.ID, n)
	for i := range ids {
		ids[i] = id(i)
	}
	for b.Loop() {
		p := open(b, b.TempDir(), nil, "10.0.0.0/14")
		start := time.Now()
		var tail time.Time
		for i := range ids {
			if i == n-1000 {
				tail = time.Now()
			}
			if _, err := p.Allocate(ids[i], "uid", ipam.IPv4); err != nil {
				b.Fatal(err)
			}
		}
		end := time.Now()
		b.ReportMetric(float64(end.Sub(start).Nanoseconds())/n, "ns/allocation")
		fmt.Printf("figure ipam_allocate_250k %.0f ns\n", float64(end.Sub(start).Nanoseconds())/n)
		fmt.Printf("figure ipam_allocate_last_1000 %.0f ns\n", float64(end.Sub(tail).Nanoseconds())/1000)
		p.Close()
	}
}

// What somebody has without a lease is handed out to nobody, wherever in the
// block it is, and rests when it is let go of.
func TestPoolHolds(t *testing.T) {
	t.Parallel()
	c := &clock{now: time.Unix(1000, 0)}
	p := open(t, t.TempDir(), c, "10.0.0.0/29") // .3 to .6 are for pods
	allocate(t, p, 1, ipam.IPv4)
	release(t, p, 1) // .3 cools down
	p.Hold(addrs("10.0.0.3", "10.0.0.4", "10.9.9.9"))
	got := slices.Concat(allocate(t, p, 2, ipam.IPv4), allocate(t, p, 3, ipam.IPv4))
	if !slices.Equal(got, addrs("10.0.0.5", "10.0.0.6")) {
		t.Errorf("handed out %v", got)
	}
	c.now = c.now.Add(time.Hour)
	if l, err := p.Allocate(id(4), "", ipam.IPv4); err == nil {
		t.Errorf("handed out %v, which is held", l.Addresses)
	}
	if err := p.Adopt(id(5), "", addrs("10.0.0.4")); err != nil { // its owner is found
		t.Error(err)
	}
	p.Hold(nil)
	if l, err := p.Allocate(id(4), "", ipam.IPv4); err == nil {
		t.Errorf("handed out %v without a rest", l.Addresses)
	}
	c.now = c.now.Add(ipam.DefaultCooldown)
	if got := allocate(t, p, 4, ipam.IPv4); !slices.Equal(got, addrs("10.0.0.3")) {
		t.Errorf("handed out %v", got)
	}
	if u := p.Usage(ipam.IPv4); u.Used != 4 || u.Free != 0 || u.Cooling != 0 {
		t.Errorf("usage %+v", u)
	}
}
