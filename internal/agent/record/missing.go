package record

import (
	"net/netip"
	"slices"

	"github.com/netctl/netctl/internal/model"
)

// Missing returns the addresses of this node's blocks that pods have although
// they have no port here. Their record is lost (the state directory was emptied
// under them), they were another's under this node's name, or they are about to
// go: until the cluster says that they are gone, nobody else gets their addresses.
func Missing(s *model.State, blocks []netip.Prefix, owners map[string]bool) []netip.Addr {
	var out []netip.Addr
	for _, p := range s.Pods {
		if p.Finished || p.HostNetwork || owners[p.UID] || owners[p.Name.String()] {
			continue
		}
		for _, addr := range p.Addresses {
			if slices.ContainsFunc(blocks, func(b netip.Prefix) bool { return b.Contains(addr) }) {
				out = append(out, addr)
			}
		}
	}
	return out
}
