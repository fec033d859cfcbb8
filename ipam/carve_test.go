package ipam_test

import (
	"encoding/json"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/netctl/netctl/ipam"
)

func TestCarve(t *testing.T) {
	t.Parallel()
	plan := func(nodes, pods, services int, supernets ...string) ipam.Plan {
		return ipam.Plan{Supernets: prefixes(supernets...), Nodes: nodes, PodsPerNode: pods, Services: services}
	}
	fixed := plan(10, 100, 200, "10.0.0.0/8")
	fixed.Pods, fixed.ServiceRanges = prefixes("10.244.0.0/16"), prefixes("10.96.0.0/12")
	for _, tc := range []struct {
		name     string
		plan     ipam.Plan
		pods     string
		services string
		block    int
		blocks   uint64
		perBlock uint64
		dns      string
	}{
		{"the example", plan(500, 110, 20000, "10.128.0.0/9"), "10.192.0.0/15", "10.128.0.0/17", 25, 1024, 124, "10.128.0.10"},
		{"no room for second blocks", plan(500, 110, 20000, "10.0.0.0/15"), "10.1.0.0/16", "10.0.0.0/17", 25, 512, 124, "10.0.0.10"},
		{"one of each", plan(1, 1, 1, "10.0.0.0/24"), "10.0.0.128/28", "10.0.0.0/27", 29, 2, 4, "10.0.0.10"},
		{"a quarter million pods", plan(5000, 50, 10000, "10.64.0.0/10"), "10.96.0.0/13", "10.64.0.0/18", 26, 8192, 60, "10.64.0.10"},
		{"IPv6", plan(3, 110, 100, "fd00:10::/48"), "fd00:10:0:8000::/109", "fd00:10::/121", 112, 8, 65532, "fd00:10::a"},
		{"a small IPv6 range", plan(3, 110, 100, "fd00:10::/112"), "fd00:10::8000/113", "fd00:10::/121", 116, 8, 4092, "fd00:10::a"},
		{"ranges that are given", fixed, "10.244.0.0/16", "10.96.0.0/12", 25, 512, 124, "10.96.0.10"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			l, err := ipam.Carve(tc.plan)
			if err != nil {
				t.Fatal(err)
			}
			f := l.Families[0]
			same(t, "pods", f.Pods, netip.MustParsePrefix(tc.pods))
			same(t, "services", f.Services, netip.MustParsePrefix(tc.services))
			same(t, "block, blocks, pods in each", []uint64{uint64(f.Block), f.Blocks, f.PerBlock}, []uint64{uint64(tc.block), tc.blocks, tc.perBlock})
			same(t, "dns", f.DNS, netip.MustParseAddr(tc.dns))
		})
	}
}

func TestCarveRefuses(t *testing.T) {
	t.Parallel()
	good := func(change func(*ipam.Plan)) ipam.Plan {
		p := ipam.Plan{Supernets: prefixes("10.0.0.0/8"), Nodes: 10, PodsPerNode: 110, Services: 1000}
		change(&p)
		return p
	}
	for _, tc := range []struct {
		name string
		plan ipam.Plan
		want []string
	}{
		{"no range", good(func(p *ipam.Plan) { p.Supernets = nil }), []string{"no cluster range"}},
		{"no numbers", good(func(p *ipam.Plan) { p.Nodes, p.PodsPerNode, p.Services = 0, -1, 1<<20 }), []string{
			"nodes: 0 is not within 1 and 1048576", "pods per node: -1 is not", "services: 1048576 is not",
		}},
		{"host bits", good(func(p *ipam.Plan) { p.Supernets = prefixes("10.0.0.1/8") }), []string{"10.0.0.1/8 has bits beyond its mask; did you mean 10.0.0.0/8?"}},
		{"mapped", good(func(p *ipam.Plan) { p.Supernets = prefixes("::ffff:10.0.0.0/104") }), []string{"IPv4 written as IPv6"}},
		{"one family twice", good(func(p *ipam.Plan) { p.Supernets = prefixes("10.0.0.0/8", "172.16.0.0/12") }), []string{"cluster ranges 10.0.0.0/8 and 172.16.0.0/12 are of one family"}},
		{"a node's address", good(func(p *ipam.Plan) {
			p.Avoid = []ipam.Taken{{Name: "node a", Range: netip.MustParsePrefix("10.1.2.3/32")}, {Name: "the underlay", Range: netip.MustParsePrefix("10.0.0.0/7")}}
		}), []string{"cluster range 10.0.0.0/8 overlaps 10.1.2.3/32 of node a", "cluster range 10.0.0.0/8 overlaps 10.0.0.0/7 of the underlay"}},
		{"loopback", good(func(p *ipam.Plan) { p.Supernets = prefixes("127.0.0.0/9") }), []string{"127.0.0.0/9 overlaps 127.0.0.0/8, which is loopback"}},
		{"multicast", good(func(p *ipam.Plan) { p.Supernets = prefixes("ff02::/48") }), []string{"ff02::/48 overlaps ff00::/8, which is multicast"}},
		{"pods", good(func(p *ipam.Plan) { p.Supernets = prefixes("10.0.0.0/21") }), []string{
			"10 nodes with 110 pods each need a /21 (2048 addresses, a /25 for each node), there is 10.0.4.0/22 (1024)",
		}},
		{"services", good(func(p *ipam.Plan) { p.Supernets, p.Services = prefixes("10.0.0.0/19"), 10000 }), []string{
			"cluster range 10.0.0.0/19 is too small: beside pod range 10.0.16.0/21 there is no /18 (16384 addresses) for 10000 services",
		}},
		{"pods within services", good(func(p *ipam.Plan) {
			p.Pods, p.ServiceRanges = prefixes("10.96.0.0/16"), prefixes("10.96.0.0/12")
		}), []string{"pod range 10.96.0.0/16 overlaps service range 10.96.0.0/12"}},
		{"services on chosen pods", good(func(p *ipam.Plan) { p.ServiceRanges = prefixes("10.128.0.0/16") }), []string{"service range 10.128.0.0/16 overlaps pod range 10.128.0.0/21"}},
		{"services too large", good(func(p *ipam.Plan) { p.ServiceRanges = prefixes("10.0.0.0/11") }), []string{"service range 10.0.0.0/11 is larger than a /12"}},
		{"services too small", good(func(p *ipam.Plan) { p.ServiceRanges = prefixes("10.0.0.0/24") }), []string{"service range 10.0.0.0/24 is too small: 1000 services need a /21"}},
		{"pods too small", good(func(p *ipam.Plan) { p.Pods = prefixes("10.200.0.0/22") }), []string{"there is 10.200.0.0/22 (1024)"}},
		{"elsewhere", good(func(p *ipam.Plan) { p.Pods = prefixes("172.16.0.0/12") }), []string{"pod range 172.16.0.0/12 is not within the cluster range [10.0.0.0/8]"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			_, err := ipam.Carve(tc.plan)
			if err == nil {
				t.Fatal("was accepted")
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %q, want %q in it", err, want)
				}
			}
		})
	}
}

// TestCarveRandomPlans checks what every layout promises.
func TestCarveRandomPlans(t *testing.T) {
	t.Parallel()
	const seed = 7
	rng := rand.New(rand.NewPCG(seed, 0))
	carved := 0
	for range 5000 {
		p := ipam.Plan{Nodes: 1 + rng.IntN(1<<rng.IntN(14)), PodsPerNode: 1 + rng.IntN(300), Services: 1 + rng.IntN(1<<rng.IntN(16))}
		p.Supernets = []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr("10.0.0.0"), 8+rng.IntN(18)), netip.PrefixFrom(netip.MustParseAddr("fd00::"), 8+rng.IntN(110))}
		if rng.IntN(4) == 0 {
			p.Supernets[0] = netip.MustParsePrefix("10.0.0.0/8")
			p.Pods = []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr("10.128.0.0"), 9+rng.IntN(16))}
		}
		l, err := ipam.Carve(p)
		if err != nil {
			continue
		}
		carved++
		for i, f := range l.Families {
			if f.Pods.Overlaps(f.Services) || !p.Supernets[i].Overlaps(f.Pods) || !p.Supernets[i].Overlaps(f.Services) {
				t.Fatalf("seed %d, %+v: %+v", seed, p, f)
			}
			if f.Blocks < uint64(p.Nodes) || f.PerBlock < uint64(p.PodsPerNode) {
				t.Fatalf("seed %d, %+v: %d blocks of %d", seed, p, f.Blocks, f.PerBlock)
			}
			bits := f.Services.Addr().BitLen() - f.Services.Bits()
			if bits > 20 || 1<<bits < p.Services+2 {
				t.Fatalf("seed %d, %+v: services %s", seed, p, f.Services)
			}
			if f.Block-f.Pods.Bits() > 16 {
				t.Fatalf("seed %d, %+v: /%d from %s is more than the controller manager cuts", seed, p, f.Block, f.Pods)
			}
			// All parts together are the supernet, once.
			sum := share(f.Pods) + share(f.Services)
			for _, r := range f.Free {
				sum += share(r)
				if r.Overlaps(f.Pods) || r.Overlaps(f.Services) {
					t.Fatalf("seed %d, %+v: free %s is not", seed, p, r)
				}
			}
			if f.Supernet.Addr().Is4() && sum != share(f.Supernet) {
				t.Fatalf("seed %d, %+v: the parts of %s are %v of %v", seed, p, f.Supernet, sum, share(f.Supernet))
			}
		}
	}
	if carved < 1000 {
		t.Fatalf("only %d plans could be carved", carved)
	}
}

// share is which part of all addresses a range is; exact for IPv4.
func share(p netip.Prefix) float64 {
	v := 1.0
	for range p.Bits() {
		v /= 2
	}
	return v
}

func TestFamilyLayoutNodeBlock(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		pods  string
		block int
		i     uint64
		want  string
	}{
		{"10.192.0.0/15", 25, 0, "10.192.0.0/25"},
		{"10.192.0.0/15", 25, 3, "10.192.1.128/25"},
		{"10.192.0.0/15", 25, 1023, "10.193.255.128/25"},
		{"fd00::/48", 64, 65535, "fd00:0:0:ffff::/64"},
		{"fd00::/56", 72, 0x1ff, "fd00:0:0:1:ff00::/72"},
		{"fd00::/102", 112, 1023, "fd00::3ff:0/112"},
	} {
		f := ipam.FamilyLayout{Pods: netip.MustParsePrefix(tc.pods), Block: tc.block}
		same(t, "block", f.NodeBlock(tc.i), netip.MustParsePrefix(tc.want))
	}
}

func TestLayoutOutput(t *testing.T) {
	t.Parallel()
	l, err := ipam.Carve(ipam.Plan{Supernets: prefixes("10.128.0.0/9", "fd00:10::/48"), Nodes: 500, PodsPerNode: 110, Services: 20000})
	if err != nil {
		t.Fatal(err)
	}
	one, err := ipam.Carve(ipam.Plan{Supernets: prefixes("10.128.0.0/9"), Nodes: 500, PodsPerNode: 110, Services: 20000})
	if err != nil {
		t.Fatal(err)
	}
	js, err := one.JSON()
	if err != nil {
		t.Fatal(err)
	}
	var parsed map[string]any
	if err := json.Unmarshal(js, &parsed); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, got, want string }{
		{"table", l.Table(), `500 nodes, 110 pods per node, 20000 services

IPV4        RANGE                         ADDRESSES  HOLDS
cluster     10.128.0.0/9                  8388608
services    10.128.0.0/17                 32768      cluster DNS at 10.128.0.10
pods        10.192.0.0/15                 131072     1024 blocks of /25
node block  /25                           128        124 pods
free        10.128.128.0 - 10.191.255.255
free        10.194.0.0 - 10.255.255.255

IPV6        RANGE                                             ADDRESSES                  HOLDS
cluster     fd00:10::/48                                      1208925819614629174706176
services    fd00:10::/113                                     32768                      cluster DNS at fd00:10::a
pods        fd00:10:0:8000::/102                              67108864                   1024 blocks of /112
node block  /112                                              65536                      65532 pods
free        fd00:10::8000 - fd00:10:0:7fff:ffff:ffff:ffff:ffff
free        fd00:10:0:8000::400:0 - fd00:10:0:ffff:ffff:ffff:ffff:ffff
`},
		{"kubeadm, dual stack", l.Kubeadm(), `apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
networking:
  serviceSubnet: 10.128.0.0/17,fd00:10::/113
  # Without podSubnet and the arguments below, netctl claims blocks by itself,
  # and a node may have more than one.
  podSubnet: 10.192.0.0/15,fd00:10:0:8000::/102
controllerManager:
  extraArgs:
  - name: node-cidr-mask-size-ipv4
    value: "25"
  - name: node-cidr-mask-size-ipv6
    value: "112"
`},
		{"kubeadm", one.Kubeadm(), `apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
networking:
  serviceSubnet: 10.128.0.0/17
  # Without podSubnet and the arguments below, netctl claims blocks by itself,
  # and a node may have more than one.
  podSubnet: 10.192.0.0/15
controllerManager:
  extraArgs:
  - name: node-cidr-mask-size
    value: "25"
`},
		{"manifests", l.Manifests(), `apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata:
  name: netctl
spec:
  cidrs:
  - "10.128.0.0/17"
  - "fd00:10::/113"
---
apiVersion: netctl.io/v1alpha1
kind: BlockPool
metadata:
  name: default
spec:
  ranges:
  - cidr: "10.192.0.0/15"
    blockSize: 25
  - cidr: "fd00:10:0:8000::/102"
    blockSize: 112
`},
	} {
		if strings.Join(strings.Fields(tc.got), " ") != strings.Join(strings.Fields(tc.want), " ") || (tc.name != "table" && tc.got != tc.want) {
			t.Errorf("%s is\n%s\nwant\n%s", tc.name, tc.got, tc.want)
		}
	}
}
