package settings

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/netctl/netctl/internal/model"
)

// WithNode returns the State with a node in it that it may lack; nil is no node.
func WithNode(s *model.State, n *model.Node) *model.State {
	if n == nil || s.Node(n.Name) != nil {
		return s
	}
	out := *s
	i, _ := slices.BinarySearchFunc(s.Nodes, n.Name, func(o *model.Node, name string) int { return strings.Compare(o.Name, name) })
	out.Nodes = slices.Insert(slices.Clone(s.Nodes), i, n)
	return &out
}

// OutsideServers are the addresses of API servers that are no node's own: nobody may
// claim those. One on a node is reached like that node, through the tunnel.
func OutsideServers(servers []netip.AddrPort, s *model.State) []netip.Addr {
	var out []netip.Addr
	for _, server := range servers {
		a := server.Addr().Unmap()
		if !slices.ContainsFunc(s.Nodes, func(n *model.Node) bool { return slices.Contains(n.Addresses, a) }) {
			out = append(out, a)
		}
	}
	return out
}
