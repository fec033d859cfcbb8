package settings_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/netctl/netctl/internal/agent/settings"
	"github.com/netctl/netctl/internal/model"
)

// While the Node object of a node is missing, the node is still the same machine.
func TestWithNode(t *testing.T) {
	t.Parallel()
	names := func(s *model.State) (out []string) {
		for _, n := range s.Nodes {
			out = append(out, n.Name)
		}
		return out
	}
	last := &model.Node{Name: "b", PublicKey: "last"}
	for _, c := range []struct {
		name  string
		nodes []*model.Node
		last  *model.Node
		want  []string
		key   string
	}{
		{"is there", []*model.Node{{Name: "a"}, {Name: "b", PublicKey: "now"}}, last, []string{"a", "b"}, "now"},
		{"is missing", []*model.Node{{Name: "a"}, {Name: "c"}}, last, []string{"a", "b", "c"}, "last"},
		{"is the only one, and missing", nil, last, []string{"b"}, "last"},
		{"was never seen", []*model.Node{{Name: "a"}}, nil, []string{"a"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := &model.State{Revision: 3, Nodes: c.nodes}
			before := names(s)
			got := settings.WithNode(s, c.last)
			if !slices.Equal(names(got), c.want) || got.Revision != 3 {
				t.Errorf("nodes %v at revision %d, want %v", names(got), got.Revision, c.want)
			}
			if n := got.Node("b"); c.key != "" && (n == nil || n.PublicKey != c.key) {
				t.Errorf("node %+v, want key %s", n, c.key)
			}
			if !slices.Equal(names(s), before) {
				t.Error("the published State was changed")
			}
		})
	}
}

// An API server on a node is reached as that node is; any other address of one is
// nobody's to claim.
func TestOutsideServers(t *testing.T) {
	t.Parallel()
	s := &model.State{Nodes: []*model.Node{{Name: "a", Addresses: addrs("192.0.2.11", "2001:db8::11")}}}
	var servers []netip.AddrPort
	for _, text := range []string{"192.0.2.11:6443", "192.0.2.100:6443", "[2001:db8::11]:6443", "[::ffff:192.0.2.11]:6443"} {
		servers = append(servers, netip.MustParseAddrPort(text))
	}
	if got := settings.OutsideServers(servers, s); !slices.Equal(got, addrs("192.0.2.100")) {
		t.Errorf("protected: %v", got)
	}
}
