package nodeport_test

import (
	"net/netip"
	"testing"

	"github.com/netctl/netctl/internal/nodeport"
)

// place knows a cluster with pods in 10.1.0.0/16 and fd00:1::/48, of this node in
// 10.1.1.0/24 and fd00:1:0:1::/64, and nodes in 172.16.0.0/24 and fd00:2::/64, of
// which this one is the first.
func place(a netip.Addr) nodeport.Place {
	for _, known := range []struct {
		prefix string
		at     nodeport.Place
	}{
		{"10.1.1.0/24", nodeport.PlaceOwnPod},
		{"fd00:1:0:1::/64", nodeport.PlaceOwnPod},
		{"10.1.0.0/16", nodeport.PlacePod},
		{"fd00:1::/48", nodeport.PlacePod},
		{"172.16.0.1/32", nodeport.PlaceNode},
		{"fd00:2::1/128", nodeport.PlaceNode},
		{"172.16.0.0/24", nodeport.PlacePeer},
		{"fd00:2::/64", nodeport.PlacePeer},
	} {
		if netip.MustParsePrefix(known.prefix).Contains(a) {
			return known.at
		}
	}
	return nodeport.PlaceOutside
}

func TestSource(t *testing.T) {
	t.Parallel()
	const router4, router6 = "10.1.1.2", "fd00:1:0:1::2"
	for _, tt := range []struct {
		name, client, backend, router string
		source                        string // empty: the kernel's choice
		path                          nodeport.Path
		fails                         bool
	}{
		{"outside to a pod", "198.51.100.7:4000", "10.1.1.5:80", router4, "198.51.100.7:4000", nodeport.PathCluster, false},
		{"outside to a pod of another node", "198.51.100.7:4000", "10.1.9.5:80", router4, "198.51.100.7:4000", nodeport.PathCluster, false},
		{"outside, IPv6", "[2001:db8::7]:4000", "[fd00:1:0:1::5]:80", router6, "[2001:db8::7]:4000", nodeport.PathCluster, false},
		{"outside needs no router", "198.51.100.7:4000", "10.1.1.5:80", "", "198.51.100.7:4000", nodeport.PathCluster, false},
		{"loopback", "127.0.0.1:4000", "10.1.1.5:80", router4, "10.1.1.2:0", nodeport.PathCluster, false},
		{"loopback, another", "127.9.9.9:4000", "10.1.1.5:80", router4, "10.1.1.2:0", nodeport.PathCluster, false},
		{"loopback, IPv6", "[::1]:4000", "[fd00:1:0:1::5]:80", router6, "[fd00:1:0:1::2]:0", nodeport.PathCluster, false},
		{"this node's own address", "172.16.0.1:4000", "10.1.1.5:80", router4, "172.16.0.1:0", nodeport.PathCluster, false},
		{"another node to a pod here", "172.16.0.2:4000", "10.1.1.5:80", router4, "172.16.0.2:4000", nodeport.PathCluster, false},
		{"another node to a pod here, IPv6", "[fd00:2::2]:4000", "[fd00:1:0:1::5]:80", router6, "[fd00:2::2]:4000", nodeport.PathCluster, false},
		{"another node to a pod elsewhere", "172.16.0.2:4000", "10.1.9.5:80", router4, "10.1.1.2:0", nodeport.PathCluster, false},
		{"this node's own address to a pod elsewhere", "172.16.0.1:4000", "10.1.9.5:80", router4, "172.16.0.1:0", nodeport.PathCluster, false},
		{"a pod", "10.1.1.6:4000", "10.1.1.5:80", router4, "10.1.1.2:0", nodeport.PathCluster, false},
		{"a pod that asks itself", "10.1.1.5:4000", "10.1.1.5:80", router4, "10.1.1.2:0", nodeport.PathCluster, false},
		{"link-local", "[fe80::7%2]:4000", "[fd00:1:0:1::5]:80", router6, "[fd00:1:0:1::2]:0", nodeport.PathCluster, false},
		{"mapped address", "[::ffff:198.51.100.7]:4000", "10.1.1.5:80", router4, "10.1.1.2:0", nodeport.PathCluster, false},
		{"the families differ", "198.51.100.7:4000", "[fd00:1:0:1::5]:80", router6, "[fd00:1:0:1::2]:0", nodeport.PathCluster, false},
		{"loopback, no block yet", "127.0.0.1:4000", "10.1.1.5:80", "", "", nodeport.PathNone, true},

		{"outside to a host", "198.51.100.7:4000", "172.16.0.1:80", router4, "", nodeport.PathHost, false},
		{"loopback to a host", "127.0.0.1:4000", "172.16.0.2:80", "", "", nodeport.PathHost, false},
		{"outside to outside", "198.51.100.7:4000", "203.0.113.9:80", router4, "", nodeport.PathHost, false},
		{"to a host, IPv6", "[2001:db8::7]:4000", "[fd00:2::1]:80", router6, "", nodeport.PathHost, false},

		{"to loopback", "198.51.100.7:4000", "127.0.0.1:22", router4, "", nodeport.PathNone, true},
		{"to loopback, mapped", "198.51.100.7:4000", "[::ffff:127.0.0.1]:22", router4, "", nodeport.PathNone, true},
		{"to the metadata address", "198.51.100.7:4000", "169.254.169.254:80", router4, "", nodeport.PathNone, true},
		{"to everybody", "198.51.100.7:4000", "224.0.0.1:80", router4, "", nodeport.PathNone, true},
		{"to nobody", "198.51.100.7:4000", "0.0.0.0:80", router4, "", nodeport.PathNone, true},
		{"no backend", "198.51.100.7:4000", "", router4, "", nodeport.PathNone, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var backend, want netip.AddrPort
			var router netip.Addr
			if tt.backend != "" {
				backend = netip.MustParseAddrPort(tt.backend)
			}
			if tt.source != "" {
				want = netip.MustParseAddrPort(tt.source)
			}
			if tt.router != "" {
				router = netip.MustParseAddr(tt.router)
			}
			src, path, err := nodeport.Source(netip.MustParseAddrPort(tt.client), place, backend, router)
			if src != want || path != tt.path || (err != nil) != tt.fails {
				t.Errorf("from %v by %d, %v; want %v by %d, an error: %t", src, path, err, want, tt.path, tt.fails)
			}
		})
	}
}
