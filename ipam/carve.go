package ipam

import (
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
)

// Limits of Kubernetes that a plan has to keep.
const (
	// maxServiceBits: a service range has at most 20 host bits (kube-apiserver).
	maxServiceBits = 20
	// maxNodeBits: the controller manager cuts a pod range into at most 2^16.
	maxNodeBits = 16
	// staticServices is the band at the beginning of a service range that dynamic
	// allocation avoids (KEP-3070), at most.
	staticServices = 256
	// dnsOffset: cluster DNS is the tenth address of the service range (kubeadm).
	dnsOffset = 10
	// ipv6BlockBits is the size of an IPv6 block where there is room: addresses
	// cost nothing there, so a node never needs a second block.
	ipv6BlockBits = 16
)

// Plan is what a cluster is to hold.
type Plan struct {
	Supernets   []netip.Prefix // one range, or one of each family
	Nodes       int
	PodsPerNode int
	Services    int
	// Pods and ServiceRanges fix a range instead of having it chosen; at most one
	// of each family, within a supernet.
	Pods          []netip.Prefix
	ServiceRanges []netip.Prefix
	// Avoid is ranges that the cluster must not touch: node addresses, the
	// underlay, name servers.
	Avoid []Taken
}

// Taken is a range that somebody has already, and who.
type Taken struct {
	Name  string // "node a"
	Range netip.Prefix
}

// Layout is a carved cluster.
type Layout struct {
	Nodes       int
	PodsPerNode int
	Services    int
	Families    []FamilyLayout // in the order of the plan's supernets
}

// FamilyLayout is the carving of one supernet:
//
//	|services|     free     |   pods   |     free     |
//	0                      1/2
//
// Pods begin in the middle, so that both ranges can grow in place. A pod range
// of half the supernet fills the upper half.
type FamilyLayout struct {
	Supernet netip.Prefix
	Services netip.Prefix
	Pods     netip.Prefix
	Block    int    // prefix length of a node's block
	Blocks   uint64 // how many there are
	PerBlock uint64 // addresses for pods in each
	DNS      netip.Addr
	Free     []netip.Prefix // the growth holes, in order
}

// BlockPool is a range that nodes claim blocks from.
type BlockPool struct {
	CIDR  netip.Prefix
	Block int // prefix length of a block
}

// Pools returns the ranges that a Claimer takes blocks from.
func (l Layout) Pools() []BlockPool {
	out := make([]BlockPool, 0, len(l.Families))
	for _, f := range l.Families {
		out = append(out, BlockPool{CIDR: f.Pods, Block: f.Block})
	}
	return out
}

// ServiceCIDRs returns the service ranges.
func (l Layout) ServiceCIDRs() []netip.Prefix {
	out := make([]netip.Prefix, 0, len(l.Families))
	for _, f := range l.Families {
		out = append(out, f.Services)
	}
	return out
}

// Carve divides the supernets of a plan. It is pure. The error joins everything
// that is wrong, and every overlap or shortage names both ranges.
//
// A block holds the pods of a node and the four reserved addresses, rounded up
// to a power of two; the pod range has room for one and a half blocks per node,
// because a node with much coming and going claims a second one; each is
// rounded up, too.
func Carve(p Plan) (Layout, error) {
	if err := p.check(); err != nil {
		return Layout{}, err
	}
	l := Layout{Nodes: p.Nodes, PodsPerNode: p.PodsPerNode, Services: p.Services}
	var errs []error
	for _, s := range p.Supernets {
		f, err := p.carve(s)
		errs = append(errs, err)
		l.Families = append(l.Families, f)
	}
	if err := errors.Join(errs...); err != nil {
		return Layout{}, err
	}
	return l, nil
}

// check reports what is wrong with a plan before any carving.
func (p Plan) check() error { //nolint:gocognit // a flat list of checks
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, n := range []struct {
		name string
		n    int
		most int
	}{{"nodes", p.Nodes, 1 << 20}, {"pods per node", p.PodsPerNode, 1 << 16}, {"services", p.Services, 1<<maxServiceBits - staticServices}} {
		if n.n < 1 || n.n > n.most {
			fail("%s: %d is not within 1 and %d", n.name, n.n, n.most)
		}
	}
	if len(p.Supernets) == 0 {
		fail("no cluster range")
	}
	for i, s := range p.Supernets {
		if err := checkRange("cluster range", s); err != nil {
			errs = append(errs, err)
			continue
		}
		for _, o := range p.Supernets[:i] {
			if o.Addr().Is4() == s.Addr().Is4() {
				fail("cluster ranges %s and %s are of one family", o, s)
			}
		}
		for _, sp := range special {
			if sp.Range.Overlaps(s) {
				fail("cluster range %s overlaps %s, which is %s", s, sp.Range, sp.Name)
			}
		}
		for _, t := range p.Avoid {
			if t.Range.Overlaps(s) {
				fail("cluster range %s overlaps %s of %s", s, t.Range, t.Name)
			}
		}
	}
	errs = append(errs, p.checkFixed("pod range", p.Pods), p.checkFixed("service range", p.ServiceRanges))
	for _, a := range p.Pods {
		for _, b := range p.ServiceRanges {
			if a.Overlaps(b) {
				fail("pod range %s overlaps service range %s", a, b)
			}
		}
	}
	return errors.Join(errs...)
}

// special is the ranges that no cluster can have.
//
//nolint:gochecknoglobals // a table known at compile time
var special = []Taken{
	{"this host", netip.MustParsePrefix("0.0.0.0/8")},
	{"loopback", netip.MustParsePrefix("127.0.0.0/8")},
	{"link-local", netip.MustParsePrefix("169.254.0.0/16")},
	{"multicast", netip.MustParsePrefix("224.0.0.0/4")},
	{"reserved", netip.MustParsePrefix("240.0.0.0/4")},
	{"unspecified, loopback and IPv4-mapped", netip.MustParsePrefix("::/64")},
	{"link-local", netip.MustParsePrefix("fe80::/10")},
	{"multicast", netip.MustParsePrefix("ff00::/8")},
}

// checkFixed reports what is wrong with ranges that the plan fixes.
func (p Plan) checkFixed(what string, list []netip.Prefix) error {
	var errs []error
	for i, r := range list {
		if err := checkRange(what, r); err != nil {
			errs = append(errs, err)
			continue
		}
		for _, o := range list[:i] {
			if o.Addr().Is4() == r.Addr().Is4() {
				errs = append(errs, fmt.Errorf("%ss %s and %s are of one family", what, o, r))
			}
		}
		if !slices.ContainsFunc(p.Supernets, func(s netip.Prefix) bool { return within(s, r) }) {
			errs = append(errs, fmt.Errorf("%s %s is not within the cluster range %v", what, r, p.Supernets))
		}
	}
	return errors.Join(errs...)
}

// checkRange reports what is wrong with one range.
func checkRange(what string, r netip.Prefix) error {
	switch {
	case !r.IsValid():
		return fmt.Errorf("%s is not an address range", what)
	case r.Addr().Is4In6():
		return fmt.Errorf("%s %s is IPv4 written as IPv6", what, r)
	case r != r.Masked():
		return fmt.Errorf("%s %s has bits beyond its mask; did you mean %s?", what, r, r.Masked())
	}
	return nil
}

// within reports whether inner lies in outer.
func within(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

// carve divides one supernet.
func (p Plan) carve(s netip.Prefix) (FamilyLayout, error) {
	f := FamilyLayout{Supernet: s}
	var err error
	if f.Pods, f.Block, err = p.podRange(s); err != nil {
		return f, err
	}
	if f.Services, err = p.serviceRange(s, f.Pods); err != nil {
		return f, err
	}
	f.Blocks = uint64(1) << min(f.Block-f.Pods.Bits(), 62)
	f.PerBlock = uint64(1)<<min(s.Addr().BitLen()-f.Block, 62) - reservedPerBlock
	f.DNS = addrAt(f.Services, dnsOffset)
	f.Free = subtract(s, f.Pods, f.Services)
	return f, nil
}

// podRange chooses or checks the pod range, and the size of its blocks.
func (p Plan) podRange(s netip.Prefix) (netip.Prefix, int, error) {
	blockBits := max(bitsFor(p.PodsPerNode+reservedPerBlock), minHostBits)
	nodeBits := bitsFor(p.Nodes)
	poolBits := min(bitsFor(p.Nodes+(p.Nodes+1)/2), max(maxNodeBits, nodeBits))
	if fixed, ok := ofFamily(p.Pods, s); ok {
		spare := hostBits(fixed) - blockBits
		if spare < nodeBits {
			return s, 0, p.podShortage(fixed, nodeBits+blockBits, blockBits)
		}
		grow := 0
		if !s.Addr().Is4() {
			grow = max(0, min(ipv6BlockBits-blockBits, spare-poolBits))
		}
		// The controller manager cannot cut a range into more than 2^16 blocks.
		blockBits = max(blockBits+grow, hostBits(fixed)-max(maxNodeBits, nodeBits))
		return fixed, s.Addr().BitLen() - blockBits, nil
	}
	room := hostBits(s) - 1 // half the supernet
	if !s.Addr().Is4() {
		blockBits = max(blockBits, min(ipv6BlockBits, room-poolBits))
	}
	if room < poolBits+blockBits {
		poolBits = nodeBits // no room for second blocks: one each will do
	}
	if room < 0 {
		return s, 0, p.podShortage(s, poolBits+blockBits, blockBits)
	}
	upper := nth(s, s.Bits()+1, 1)
	if room < poolBits+blockBits {
		return s, 0, p.podShortage(upper, poolBits+blockBits, blockBits)
	}
	length := s.Addr().BitLen() - poolBits - blockBits
	return netip.PrefixFrom(upper.Addr(), length), s.Addr().BitLen() - blockBits, nil
}

// podShortage is the error for too little room for pods.
func (p Plan) podShortage(room netip.Prefix, need, blockBits int) error {
	n := room.Addr().BitLen()
	return fmt.Errorf("no room for pods: %d nodes with %d pods each need a /%d (%s addresses, a /%d for each node), there is %s (%s)",
		p.Nodes, p.PodsPerNode, max(n-need, 0), count(need), n-blockBits, room, count(hostBits(room)))
}

// serviceRange chooses or checks the service range.
func (p Plan) serviceRange(s, pods netip.Prefix) (netip.Prefix, error) {
	// The first and last address and the static band are not for everyone.
	need := bitsFor(p.Services + 2)
	if p.Services > staticServices {
		need = bitsFor(p.Services + 2 + min(staticServices, max(16, p.Services/16)))
	}
	need = max(need, 5) // the tenth address is cluster DNS
	n := s.Addr().BitLen()
	if fixed, ok := ofFamily(p.ServiceRanges, s); ok {
		switch {
		case hostBits(fixed) > maxServiceBits:
			return s, fmt.Errorf("service range %s is larger than a /%d, the most that the API server takes", fixed, n-maxServiceBits)
		case hostBits(fixed) < need:
			return s, fmt.Errorf("service range %s is too small: %d services need a /%d (%s addresses), there is a /%d (%s)",
				fixed, p.Services, n-need, count(need), fixed.Bits(), count(hostBits(fixed)))
		case fixed.Overlaps(pods):
			return s, fmt.Errorf("service range %s overlaps pod range %s", fixed, pods)
		}
		return fixed, nil
	}
	for _, free := range subtract(s, pods) {
		if hostBits(free) >= need {
			return netip.PrefixFrom(free.Addr(), n-need), nil
		}
	}
	return s, fmt.Errorf("cluster range %s is too small: beside pod range %s there is no /%d (%s addresses) for %d services",
		s, pods, n-need, count(need), p.Services)
}

// ofFamily returns the range of the list that is of s's family.
func ofFamily(list []netip.Prefix, s netip.Prefix) (netip.Prefix, bool) {
	for _, r := range list {
		if r.Addr().Is4() == s.Addr().Is4() {
			return r, true
		}
	}
	return netip.Prefix{}, false
}

// bitsFor returns how many bits count n things.
func bitsFor(n int) int {
	if n <= 1 {
		return 0
	}
	return bits.Len(uint(n - 1))
}

// subtract returns what is left of s without the given ranges, as the fewest
// ranges, in order.
func subtract(s netip.Prefix, used ...netip.Prefix) []netip.Prefix {
	for _, u := range used {
		switch {
		case within(u, s):
			return nil
		case u.Overlaps(s):
			lower, upper := nth(s, s.Bits()+1, 0), nth(s, s.Bits()+1, 1)
			return append(subtract(lower, used...), subtract(upper, used...)...)
		}
	}
	return []netip.Prefix{s}
}
