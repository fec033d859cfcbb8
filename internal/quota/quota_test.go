package quota_test

import (
	"net/netip"
	"testing"

	"github.com/netctl/netctl/internal/quota"
)

func TestQuotaLeavesRoom(t *testing.T) {
	t.Parallel()
	const whole, fair = 4096, 4
	for _, greedy := range []int{1, 3, 30, 255} {
		q := quota.New(whole, whole, fair)
		for i := range greedy {
			owner := netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
			for q.Take(owner) != quota.None {
			}
			if q.Held(owner) < fair {
				t.Errorf("owner %d of %d got %d, want at least %d", i, greedy, q.Held(owner), fair)
			}
		}
		next := netip.MustParseAddr("fd00::1")
		for i := range fair {
			if q.Take(next) == quota.None {
				t.Errorf("%d greedy owners leave %d for the next, want %d", greedy, i, fair)
			}
		}
		if q.Take(next) != quota.None || q.Size() > whole {
			t.Errorf("%d greedy owners: the next got more than its share", greedy)
		}
	}
}

func TestQuotaIsExact(t *testing.T) {
	t.Parallel()
	q := quota.New(100, 3, 0)
	a := netip.MustParseAddr("10.0.0.1")
	for i, want := range []quota.Grant{quota.OK, quota.OK, quota.OK, quota.None} {
		if got := q.Take(a); got != want {
			t.Errorf("take %d: %d, want %d", i, got, want)
		}
	}
	q.Give(a)
	if q.Take(a) != quota.OK {
		t.Error("given back, but not to be had")
	}
	for range 3 {
		q.Give(a)
	}
	if q.Size() != 0 || q.Owners() != 0 {
		t.Errorf("%d held, %d owners", q.Size(), q.Owners())
	}
}

// TestNeverMoreThanTheWhole: small wholes have no quarter to keep.
func TestNeverMoreThanTheWhole(t *testing.T) {
	t.Parallel()
	q := quota.New(3, 3, 8)
	for i := range 10 {
		q.Take(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
	}
	if q.Size() != 3 || q.Owners() != 3 {
		t.Errorf("%d held by %d, want 3 by 3", q.Size(), q.Owners())
	}
}

// Whoever has one address of an IPv6 network has them all.
func TestClient(t *testing.T) {
	t.Parallel()
	for a, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "2001:db8::1:2": "2001:db8::", "2001:db8:0:1::2": "2001:db8:0:1::", "fe80::7%eth0": "fe80::",
	} {
		if got := quota.Client(netip.MustParseAddr(a)); got.String() != want {
			t.Errorf("%s counts for %s, want %s", a, got, want)
		}
	}
	if quota.Client(netip.Addr{}).IsValid() {
		t.Error("no address counts for one")
	}
}
