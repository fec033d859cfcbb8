package record

import (
	"net/netip"

	"github.com/netctl/netctl/internal/nodeport"
)

// Listeners returns the sockets of the pod's host ports: one for each family that
// the pod has, unless an address of the host says which.
func (r *Record) Listeners() []nodeport.Listener {
	var out []nodeport.Listener
	for _, m := range r.HostPorts {
		for _, target := range r.Addresses {
			at := m.HostIP
			switch {
			case !at.IsValid() && target.Is4():
				at = netip.IPv4Unspecified()
			case !at.IsValid():
				at = netip.IPv6Unspecified()
			case at.Is4() != target.Is4():
				continue
			}
			out = append(out, nodeport.Listener{
				Addr: netip.AddrPortFrom(at, m.HostPort), Proto: m.Protocol, Owner: "pod " + r.Name(),
				Target: netip.AddrPortFrom(target, m.ContainerPort),
			})
		}
	}
	return out
}
