package agent

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/netctl/netctl/internal/datapath"
	"github.com/netctl/netctl/internal/model"
)

// A node that was given other ranges has pods that other nodes do not reach: they
// keep their port here and are named, and nobody is given their addresses.
func TestStrays(t *testing.T) {
	t.Parallel()
	pod := LocalPort{ID: FirstPodPort, Kind: datapath.KindPod, Name: "default/a", Addrs: []netip.Addr{netip.MustParseAddr("10.1.1.5"), netip.MustParseAddr("fd00:1:0:1::5")}}
	host := LocalPort{ID: HostPort, Kind: datapath.KindHost, Name: "netctl0", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}
	for _, c := range []struct {
		name   string
		ranges []netip.Prefix
		want   []string
	}{
		{"as it was", prefixes("10.1.1.0/24", "fd00:1:0:1::/64"), nil},
		{"one more block", prefixes("10.1.1.0/24", "10.1.9.0/24", "fd00:1:0:1::/64"), nil},
		{"other ranges", prefixes("10.1.2.0/24", "fd00:1:0:2::/64"), []string{"10.1.1.5", "fd00:1:0:1::5"}},
		{"another range of one family", prefixes("10.1.2.0/24", "fd00:1:0:1::/64"), []string{"10.1.1.5"}},
		{"none yet", nil, []string{"10.1.1.5", "fd00:1:0:1::5"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got := strays([]LocalPort{host, pod}, c.ranges)
			if len(got) != len(c.want) {
				t.Fatalf("%q, want %q", got, c.want)
			}
			for i, addr := range c.want {
				if !strings.Contains(got[i], addr) || !strings.Contains(got[i], "default/a") {
					t.Errorf("%q does not name %s", got[i], addr)
				}
			}
			state := &model.State{Revision: 1, Nodes: []*model.Node{{Name: "n", Addresses: host.Addrs, PodCIDRs: c.ranges}}}
			out := Compile(Input{State: state, Node: "n", ClusterCIDRs: prefixes("10.1.0.0/16", "fd00:1::/48"), Ports: []LocalPort{host, pod}})
			for _, addr := range pod.Addrs {
				if rt, ok := out.Tables.Routes.Lookup(addr); !ok || rt.Port != pod.ID {
					t.Errorf("%s leads to %+v", addr, rt)
				}
			}
		})
	}
}
