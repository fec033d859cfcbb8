package proxy

import (
	"fmt"
	"net/netip"
	"slices"
)

// NodePortAddresses says on which of a node's addresses node ports are served
// (NP-2). The zero value is that of kube-proxy in nftables mode: primary.
type NodePortAddresses struct {
	all, local bool
	ranges     []netip.Prefix
}

// ParseNodePortAddresses reads the words primary (the addresses of the Node
// object), all (every address of the node but loopback and link-local ones) and
// localhost (127.0.0.1 and ::1), each alone but for localhost, or ranges of
// addresses. Nothing means primary.
func ParseNodePortAddresses(words []string) (NodePortAddresses, error) {
	var n NodePortAddresses
	primary := false
	for _, w := range words {
		switch w {
		case "primary":
			primary = true
		case "all":
			n.all = true
		case "localhost":
			n.local = true
		default:
			p, err := netip.ParsePrefix(w)
			if err != nil {
				return n, fmt.Errorf("nodePortAddresses %q: use primary, all, localhost or a range such as 192.0.2.0/24", w)
			}
			if p != p.Masked() {
				return n, fmt.Errorf("nodePortAddresses %s has host bits set: did you mean %s?", p, p.Masked())
			}
			n.ranges = append(n.ranges, p)
		}
	}
	if primary && n.all || len(n.ranges) > 0 && (primary || n.all) {
		return n, fmt.Errorf("nodePortAddresses %q: primary, all and ranges exclude each other", words)
	}
	if !primary && !n.all && n.local && len(n.ranges) == 0 {
		n.ranges = []netip.Prefix{netip.PrefixFrom(loopback4, 32), netip.PrefixFrom(netip.IPv6Loopback(), 128)}
	}
	return n, nil
}

var loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1}) //nolint:gochecknoglobals // a constant

// EveryHost reports whether addresses count that no Node object names.
func (n NodePortAddresses) EveryHost() bool { return n.all || len(n.ranges) > 0 }

// On returns the addresses of a node that node ports are served on: primary are
// those of its Node object, host all that it has. Sorted.
func (n NodePortAddresses) On(primary, host []netip.Addr) []netip.Addr {
	var out []netip.Addr
	switch {
	case n.all:
		out = slices.Concat(primary, host)
	case len(n.ranges) > 0:
		for _, a := range slices.Concat(primary, host) {
			if n.Serves(a) {
				out = append(out, a)
			}
		}
	default:
		out = slices.Clone(primary)
	}
	out = slices.DeleteFunc(out, func(a netip.Addr) bool { return !a.IsGlobalUnicast() })
	if n.local {
		out = append(out, loopback4, netip.IPv6Loopback())
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// Serves reports whether node ports are served on a node's own address. Ranges of
// one family alone leave the other as it is.
func (n NodePortAddresses) Serves(a netip.Addr) bool {
	none := true
	for _, p := range n.ranges {
		if p.Contains(a) {
			return true
		}
		none = none && p.Addr().Is4() != a.Is4()
	}
	return none
}
