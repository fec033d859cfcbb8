package lab

import (
	"cmp"
	"fmt"
	"net/netip"

	"github.com/netctl/netctl/ipam"
)

// What the lab's cluster is planned for. The supernets are private ranges that
// live in the lab's own namespaces only.
const (
	supernet4   = "10.128.0.0/14"
	supernet6   = "fd00:10:128::/48"
	podsPerNode = 110
	services    = 1000
)

// newPlan carves the lab's addresses, as `netctl ipam plan` does for a cluster.
func newPlan(cfg Config) (plan, error) {
	want := ipam.Plan{Nodes: cfg.Nodes, PodsPerNode: cmp.Or(cfg.PodsPerNode, podsPerNode), Services: services}
	for _, s := range []string{supernet4, supernet6} {
		if p := netip.MustParsePrefix(s); cfg.Families.has(p.Addr()) {
			want.Supernets = append(want.Supernets, p)
		}
	}
	p := plan{nodeBlocks: make([][]netip.Prefix, cfg.Nodes)}
	p.underlay, p.outsideWire, p.outside = underlayPlan()
	for _, u := range append(p.underlay, p.outsideWire...) {
		want.Avoid = append(want.Avoid, ipam.Taken{Name: "the lab's underlay", Range: u.Masked()})
	}
	layout, err := ipam.Carve(want)
	if err != nil {
		return plan{}, fmt.Errorf("carve the lab's addresses: %w", err)
	}
	p.serviceCIDRs = layout.ServiceCIDRs()
	for _, f := range layout.Families {
		p.podCIDRs = append(p.podCIDRs, f.Pods)
		for i := range cfg.Nodes {
			p.nodeBlocks[i] = append(p.nodeBlocks[i], f.NodeBlock(uint64(i))) // not negative
		}
	}
	return p, nil
}
