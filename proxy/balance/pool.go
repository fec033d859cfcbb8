package balance

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Pools are the addresses that services may get.
type Pools struct{ ranges []addrRange }

// addrRange is from first to last, both included.
type addrRange struct{ first, last netip.Addr }

func (r addrRange) has(a netip.Addr) bool {
	return r.first.Is4() == a.Is4() && r.first.Compare(a) <= 0 && a.Compare(r.last) <= 0
}

// String writes a range as it may be configured.
func (r addrRange) String() string { return r.first.String() + "-" + r.last.String() }

// tried is how many addresses of a range are looked at for a free one: that many
// services have one at most.
const tried = 1 << 16

// ParsePools reads ranges: 203.0.113.0/28, all addresses but an IPv4 network's first
// and last; 203.0.113.16-203.0.113.20; or one address.
func ParsePools(texts []string) (Pools, error) {
	var p Pools
	for _, text := range texts {
		r, err := parseRange(strings.TrimSpace(text))
		if err != nil {
			return Pools{}, err
		}
		for _, other := range p.ranges {
			if other.has(r.first) || r.has(other.first) {
				return Pools{}, fmt.Errorf("load balancer pools %s and %s overlap", other, r)
			}
		}
		p.ranges = append(p.ranges, r)
	}
	slices.SortFunc(p.ranges, func(a, b addrRange) int { return a.first.Compare(b.first) })
	return p, nil
}

func parseRange(text string) (addrRange, error) {
	wrong := func(why string) (addrRange, error) {
		return addrRange{}, fmt.Errorf("load balancer pool %q: %s; use 203.0.113.0/28, 203.0.113.16-203.0.113.20 or one address", text, why)
	}
	var r addrRange
	if first, last, ok := strings.Cut(text, "-"); ok {
		var err error
		if r.first, err = netip.ParseAddr(strings.TrimSpace(first)); err != nil {
			return wrong("no address range")
		}
		if r.last, err = netip.ParseAddr(strings.TrimSpace(last)); err != nil {
			return wrong("no address range")
		}
	} else if a, err := netip.ParseAddr(text); err == nil {
		r = addrRange{a, a}
	} else {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return wrong("no address range")
		}
		if p != p.Masked() {
			return wrong("host bits are set: did you mean " + p.Masked().String() + "?")
		}
		r = addrRange{p.Addr(), lastOf(p)}
		if p.Addr().Is4() && p.Bits() < 31 { // those of the network itself and of all
			r = addrRange{r.first.Next(), r.last.Prev()}
		}
	}
	switch {
	case r.first.Zone() != "" || r.last.Zone() != "" || r.first.Is4In6() || r.last.Is4In6():
		return wrong("addresses have no zones and are not mapped")
	case r.first.Is4() != r.last.Is4() || r.first.Compare(r.last) > 0:
		return wrong("the last address is not after the first")
	case !r.first.IsGlobalUnicast() || !r.last.IsGlobalUnicast():
		return wrong("nobody can be reached there")
	}
	return r, nil
}

// lastOf is the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// Empty reports whether there are none: then no service gets an address from us.
func (p Pools) Empty() bool { return len(p.ranges) == 0 }

// Has reports whether a is in a pool.
func (p Pools) Has(a netip.Addr) bool {
	return slices.ContainsFunc(p.ranges, func(r addrRange) bool { return r.has(a) })
}

// Overlaps returns a pool that holds an address of a range that the cluster uses
// otherwise; "" when none does.
func (p Pools) Overlaps(used netip.Prefix) string {
	for _, r := range p.ranges {
		if r.has(used.Addr()) || used.Contains(r.first) {
			return r.String()
		}
	}
	return ""
}

// free returns the first address of a family that taken does not know.
func (p Pools) free(is4 bool, taken func(netip.Addr) bool) (netip.Addr, bool) {
	for _, r := range p.ranges {
		if r.first.Is4() != is4 {
			continue
		}
		for a, n := r.first, 0; r.has(a) && n < tried; a, n = a.Next(), n+1 {
			if !taken(a) {
				return a, true
			}
		}
	}
	return netip.Addr{}, false
}

// serves reports whether there is a pool of a family.
func (p Pools) serves(is4 bool) bool {
	return slices.ContainsFunc(p.ranges, func(r addrRange) bool { return r.first.Is4() == is4 })
}
