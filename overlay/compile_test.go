package overlay_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/overlay"
)

// keyOf is a key that is recognised in a table.
func keyOf(c byte) overlay.Key { return overlay.Key{c} }

// n makes a node: its number is its key, its addresses and its endpoint.
func n(i byte, cidrs ...string) *model.Node {
	a4, a6 := netip.AddrFrom4([4]byte{192, 0, 2, i}), netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: i})
	m := &model.Node{
		Name: fmt.Sprint("n", i), Addresses: []netip.Addr{a4, a6}, PublicKey: keyOf(i).String(),
		Endpoints: []netip.AddrPort{netip.AddrPortFrom(a4, 51820), netip.AddrPortFrom(a6, 51820)},
	}
	for _, c := range cidrs {
		m.PodCIDRs = append(m.PodCIDRs, prefix(c))
	}
	return m
}

func with(m *model.Node, change func(*model.Node)) *model.Node {
	change(m)
	return m
}

// show writes peers and problems as lines.
func show(m overlay.Mesh) string {
	var b strings.Builder
	for _, p := range m.Peers {
		fmt.Fprintf(&b, "%s %d %s", p.Node, p.PublicKey[0], p.Endpoint)
		for _, a := range p.AllowedIPs {
			fmt.Fprintf(&b, " %s", a)
		}
		b.WriteByte('\n')
	}
	for _, p := range m.Problems {
		fmt.Fprintln(&b, p)
	}
	for _, p := range m.Contested {
		fmt.Fprintln(&b, "contested", p)
	}
	return b.String()
}

func TestCompile(t *testing.T) {
	t.Parallel()
	const (
		n2 = "n2 2 192.0.2.2:51820 10.0.2.0/24 192.0.2.2/32 2001:db8::2/128\n"
		n3 = "n3 3 192.0.2.3:51820 10.0.3.0/24 192.0.2.3/32 2001:db8::3/128\n"
	)
	self := func() *model.Node { return n(1, "10.0.1.0/24") }
	for _, tt := range []struct {
		name string
		in   overlay.Input
		want string
	}{
		{"nobody", overlay.Input{}, ""},
		{"alone", overlay.Input{Nodes: []*model.Node{self()}}, ""},
		{"mesh", overlay.Input{Nodes: []*model.Node{n(3, "10.0.3.0/24"), self(), n(2, "10.0.2.0/24")}}, n2 + n3},
		{
			"blocks",
			overlay.Input{
				Nodes:  []*model.Node{self(), n(2)},
				Blocks: []model.Block{{CIDR: prefix("10.9.0.0/26"), Node: "n2"}, {CIDR: prefix("fd00:2::/64"), Node: "n2"}, {CIDR: prefix("10.9.1.0/26"), Node: "n1"}},
			},
			"n2 2 192.0.2.2:51820 10.9.0.0/26 192.0.2.2/32 2001:db8::2/128 fd00:2::/64\n",
		},
		{
			"no key yet",
			overlay.Input{Nodes: []*model.Node{self(), with(n(2), func(m *model.Node) { m.PublicKey = "" }), n(3, "10.0.3.0/24")}},
			n3 + "node n2: no public key\n",
		},
		{
			"bad key",
			overlay.Input{Nodes: []*model.Node{self(), with(n(2), func(m *model.Node) { m.PublicKey = "x" })}},
			"node n2: invalid public key: key has 1 characters, want 44 of base64\n",
		},
		{
			"one key twice",
			overlay.Input{Nodes: []*model.Node{self(), n(2), with(n(3), func(m *model.Node) { m.PublicKey = keyOf(2).String() })}},
			"node n2: public key claimed twice: also by node n3\nnode n3: public key claimed twice: also by node n2\n",
		},
		{
			"this node's key",
			overlay.Input{Nodes: []*model.Node{self(), with(n(2), func(m *model.Node) { m.PublicKey = keyOf(1).String() })}},
			"node n2: public key claimed twice: also by node n1\n",
		},
		{
			"no endpoint",
			overlay.Input{Nodes: []*model.Node{self(), with(n(2), func(m *model.Node) { m.Endpoints = nil })}},
			"node n2: no endpoint\n",
		},
		{
			"useless endpoints",
			overlay.Input{Nodes: []*model.Node{self(), with(n(2), func(m *model.Node) {
				m.Endpoints = []netip.AddrPort{ports("127.0.0.1:51820"), ports("192.0.2.2:0")}
			})}},
			"node n2: no endpoint: 192.0.2.2:0\n",
		},
		{
			"endpoint among the pods",
			overlay.Input{Nodes: []*model.Node{self(), with(n(2, "10.0.2.0/24"), func(m *model.Node) {
				m.Endpoints = []netip.AddrPort{ports("10.0.1.7:51820"), ports("192.0.2.2:51820")}
			})}},
			n2 + "node n2: endpoint inside cluster ranges: 10.0.1.7:51820\n",
		},
		{
			"endpoint of a family that this node has",
			overlay.Input{Nodes: []*model.Node{
				with(n(1), func(m *model.Node) { m.Addresses = m.Addresses[1:] }), n(2, "10.0.2.0/24"),
			}},
			"n2 2 [2001:db8::2]:51820 10.0.2.0/24 192.0.2.2/32 2001:db8::2/128\n",
		},
		{
			"podCIDR assigned twice",
			overlay.Input{Nodes: []*model.Node{self(), n(2, "10.0.2.0/24", "10.0.8.0/24"), n(3, "10.0.2.128/25", "10.0.3.0/24")}},
			"n2 2 192.0.2.2:51820 10.0.8.0/24 192.0.2.2/32 2001:db8::2/128\n" + n3 +
				"node n2: claimed twice: 10.0.2.0/24, also by n3\nnode n3: claimed twice: 10.0.2.128/25, also by n2\n",
		},
		{
			"this node's podCIDR",
			overlay.Input{Nodes: []*model.Node{self(), n(2, "10.0.0.0/16", "10.1.0.0/16")}},
			"n2 2 192.0.2.2:51820 10.1.0.0/16 192.0.2.2/32 2001:db8::2/128\n" +
				"node n1: also claimed by another node; no pod gets an address of it: 10.0.1.0/24, by node n2 as 10.0.0.0/16\n" +
				"node n2: overlaps another's: 10.0.0.0/16, which is in conflict with 10.0.1.0/24 of node n1\ncontested 10.0.1.0/24\n",
		},
		{
			"service range",
			overlay.Input{Reserved: []netip.Prefix{prefix("10.96.0.0/12")}, Nodes: []*model.Node{self(), n(2, "10.97.0.0/24", "10.0.2.0/24")}},
			n2 + "node n2: overlaps another's: 10.97.0.0/24, which is in conflict with 10.96.0.0/12 of the cluster\n",
		},
		{
			"everything",
			overlay.Input{Nodes: []*model.Node{self(), n(2, "0.0.0.0/0", "10.0.2.0/24"), n(3, "::/0", "10.0.3.0/24")}},
			n2 + n3 + "node n2: invalid address: 0.0.0.0/0\nnode n3: invalid address: ::/0\n",
		},
		{
			"a block around all others costs nobody else",
			overlay.Input{
				Nodes:  []*model.Node{self(), n(2, "10.0.2.0/24"), n(3, "10.0.3.0/24")},
				Blocks: []model.Block{{CIDR: prefix("10.0.0.0/8"), Node: "n3"}, {CIDR: prefix("192.0.0.0/16"), Node: "n3"}},
			},
			n2 + n3 + "node n3: overlaps another's: 10.0.0.0/8, which is in conflict with 10.0.1.0/24 of node n1\n" +
				"node n3: overlaps another's: 192.0.0.0/16, which is in conflict with 192.0.2.1/32 of node n1\n",
		},
		{
			"address claimed twice",
			overlay.Input{Nodes: []*model.Node{self(), n(2, "10.0.2.0/24"), with(n(3, "10.0.3.0/24"), func(m *model.Node) {
				m.Addresses = append(m.Addresses, addr("192.0.2.2"), addr("192.0.2.1"), addr("10.0.2.9"), addr("10.0.3.9"))
			})}},
			"n2 2 192.0.2.2:51820 10.0.2.0/24 2001:db8::2/128\n" + n3 +
				"node n2: claimed twice: 192.0.2.2/32, also by n3\n" +
				"node n3: overlaps another's: 10.0.2.9/32, which is in conflict with 10.0.2.0/24 of node n2\n" +
				"node n3: overlaps another's: 10.0.3.9/32, which is in conflict with 10.0.3.0/24 of node n3\n" +
				"node n3: overlaps another's: 192.0.2.1/32, which is in conflict with 192.0.2.1/32 of node n1\n" +
				"node n3: claimed twice: 192.0.2.2/32, also by n2\n",
		},
		{
			"addresses that are nobody's",
			overlay.Input{Nodes: []*model.Node{self(), with(n(2, "10.0.2.0/24"), func(m *model.Node) {
				m.Addresses = append(m.Addresses, addr("127.0.0.1"), addr("fe80::1"), addr("::"), addr("224.0.0.1"), addr("::ffff:192.0.2.22"))
			})}},
			"n2 2 192.0.2.2:51820 10.0.2.0/24 192.0.2.2/32 192.0.2.22/32 2001:db8::2/128\n" +
				"node n2: invalid address: 127.0.0.1\nnode n2: invalid address: 224.0.0.1\nnode n2: invalid address: ::\nnode n2: invalid address: fe80::1\n",
		},
		{
			"blocks outside the pools, or around what the node depends on",
			overlay.Input{
				Nodes: []*model.Node{self(), n(2, "10.0.2.0/24"), with(n(3, "10.0.3.0/24"), func(m *model.Node) {
					m.Addresses = append(m.Addresses, addr("203.0.113.53"))
				})},
				Blocks: []model.Block{
					{CIDR: prefix("203.0.113.9/32"), Node: "n3"}, {CIDR: prefix("128.0.0.0/1"), Node: "n3"}, {CIDR: prefix("10.0.9.0/25"), Node: "n2"},
				},
				Pools: []netip.Prefix{prefix("10.0.0.0/16")}, Protected: []netip.Addr{addr("203.0.113.53")},
			},
			"n2 2 192.0.2.2:51820 10.0.2.0/24 10.0.9.0/25 192.0.2.2/32 2001:db8::2/128\n" + n3 +
				"node n3: outside the cluster's pod ranges: 203.0.113.9/32\n" +
				"node n3: holds an address that belongs to no node: 128.0.0.0/1\n" +
				"node n3: holds an address that belongs to no node: 203.0.113.53/32\n",
		},
		{
			"blocks of their pool's size go before wider and narrower ones",
			overlay.Input{
				Nodes: []*model.Node{self(), n(2), n(3), n(4)},
				Blocks: []model.Block{
					{CIDR: prefix("10.244.0.0/25"), Node: "n1"},
					{CIDR: prefix("10.244.1.0/25"), Node: "n2"},
					{CIDR: prefix("fd00:10:244::80/121"), Node: "n2"},
					{CIDR: prefix("10.9.2.0/24"), Node: "n2"},
					{CIDR: prefix("10.244.1.128/25"), Node: "n3"},
					{CIDR: prefix("10.244.0.0/16"), Node: "n4"},
					{CIDR: prefix("10.244.1.130/32"), Node: "n4"},
					{CIDR: prefix("fd00:10:244::/64"), Node: "n4"},
					{CIDR: prefix("10.9.2.0/25"), Node: "n4"},
					{CIDR: prefix("10.9.0.0/16"), Node: "n4"},
				},
				BlockPools: []model.BlockPool{
					{CIDR: prefix("10.9.0.0/16"), Bits: 24}, {CIDR: prefix("10.9.0.0/16"), Bits: 25}, // a pool of its own size before the usual one
					{CIDR: prefix("10.244.0.0/16"), Bits: 25}, {CIDR: prefix("fd00:10:244::/56"), Bits: 121},
				},
			},
			"n2 2 192.0.2.2:51820 10.9.2.0/24 10.244.1.0/25 192.0.2.2/32 2001:db8::2/128 fd00:10:244::80/121\n" +
				"n3 3 192.0.2.3:51820 10.244.1.128/25 192.0.2.3/32 2001:db8::3/128\n" +
				"n4 4 192.0.2.4:51820 192.0.2.4/32 2001:db8::4/128\n" +
				"node n4: overlaps another's: 10.244.0.0/16, which is in conflict with 10.244.0.0/25 of node n1\n" +
				"node n4: overlaps another's: 10.244.1.130/32, which is in conflict with 10.244.1.128/25 of node n3\n" +
				"node n4: overlaps another's: 10.9.0.0/16, which is in conflict with 10.9.2.0/24 of node n2\n" +
				"node n4: overlaps another's: 10.9.2.0/25, which is in conflict with 10.9.2.0/24 of node n2\n" +
				"node n4: overlaps another's: fd00:10:244::/64, which is in conflict with fd00:10:244::80/121 of node n2\n",
		},
		{
			"blocks of a size that the pool had before",
			overlay.Input{
				Nodes: []*model.Node{self(), n(2), n(3)},
				Blocks: []model.Block{
					{CIDR: prefix("10.9.2.0/24"), Node: "n2"}, {CIDR: prefix("10.9.3.0/26"), Node: "n2"}, {CIDR: prefix("10.9.4.0/25"), Node: "n3"},
				},
				BlockPools: []model.BlockPool{{CIDR: prefix("10.9.0.0/16"), Bits: 25}},
			},
			"n2 2 192.0.2.2:51820 10.9.2.0/24 10.9.3.0/26 192.0.2.2/32 2001:db8::2/128\nn3 3 192.0.2.3:51820 10.9.4.0/25 192.0.2.3/32 2001:db8::3/128\n",
		},
		{
			"block of a node that is gone",
			overlay.Input{
				Nodes: []*model.Node{self(), n(2, "10.0.2.0/24")}, Blocks: []model.Block{{CIDR: prefix("10.9.0.0/26"), Node: "gone"}},
			},
			n2,
		},
	} {
		tt.in.Self = "n1"
		if d := cmp.Diff(strings.Split(tt.want, "\n"), strings.Split(show(overlay.Compile(tt.in)), "\n")); d != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, d)
		}
	}
}

// TestCompileRandom holds random claims against what must be true of every
// result, and shuffled input against the same result.
func TestCompileRandom(t *testing.T) {
	t.Parallel()
	for range 300 {
		seed := rand.Uint64()
		rng := rand.New(rand.NewPCG(seed, 2))
		in := randomInput(rng)
		mesh := overlay.Compile(in)
		peers := mesh.Peers
		for i, p := range peers {
			for _, a := range p.AllowedIPs {
				for _, r := range in.Reserved {
					if a.Overlaps(r) {
						t.Fatalf("seed %d: %s has reserved %s", seed, p.Node, a)
					}
				}
				for _, o := range peers[i+1:] {
					for _, b := range o.AllowedIPs {
						if a.Overlaps(b) {
							t.Fatalf("seed %d: %s %s overlaps %s %s", seed, p.Node, a, o.Node, b)
						}
					}
				}
				for _, m := range in.Nodes {
					for _, own := range m.PodCIDRs {
						if m.Name == in.Self && a.Overlaps(own) {
							t.Fatalf("seed %d: %s has this node's %s", seed, p.Node, a)
						}
					}
				}
			}
			if p.Node == in.Self {
				t.Fatalf("seed %d: a peer of itself", seed)
			}
		}
		rng.Shuffle(len(in.Nodes), func(i, j int) { in.Nodes[i], in.Nodes[j] = in.Nodes[j], in.Nodes[i] })
		rng.Shuffle(len(in.Blocks), func(i, j int) { in.Blocks[i], in.Blocks[j] = in.Blocks[j], in.Blocks[i] })
		if d := cmp.Diff(mesh, overlay.Compile(in), cmpopts.EquateComparable(overlay.Key{}, netip.AddrPort{}, netip.Prefix{})); d != "" {
			t.Fatalf("seed %d: shuffled input gives another mesh:\n%s", seed, d)
		}
	}
}

func randomInput(rng *rand.Rand) overlay.Input {
	random := func() netip.Prefix {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(rng.IntN(8)), byte(rng.IntN(4) << 6)}), 20+rng.IntN(13))
		if rng.IntN(3) == 0 {
			p = netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 7: byte(rng.IntN(8))}), 58+rng.IntN(8))
		}
		return p
	}
	in := overlay.Input{Self: "n1"}
	for i := range byte(6) {
		m := n(i + 1)
		for range rng.IntN(3) {
			m.PodCIDRs = append(m.PodCIDRs, random())
		}
		if rng.IntN(3) == 0 {
			m.Addresses = append(m.Addresses, random().Addr())
		}
		in.Nodes = append(in.Nodes, m)
		for range rng.IntN(2) {
			in.Blocks = append(in.Blocks, model.Block{CIDR: random(), Node: m.Name})
		}
	}
	if rng.IntN(2) == 0 {
		in.BlockPools = []model.BlockPool{{CIDR: prefix("10.0.0.0/16"), Bits: 26}, {CIDR: prefix("fd00::/32"), Bits: 64}}
	}
	if rng.IntN(2) == 0 {
		in.Reserved = append(in.Reserved, random())
	}
	return in
}

func BenchmarkCompile1000(b *testing.B) {
	in := overlay.Input{Self: "n0"}
	for i := range 1000 {
		a := netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)})
		in.Nodes = append(in.Nodes, &model.Node{
			Name: fmt.Sprint("n", i), Addresses: []netip.Addr{a}, PublicKey: overlay.Key{1, byte(i), byte(i >> 8)}.String(),
			Endpoints: []netip.AddrPort{netip.AddrPortFrom(a, 51820)},
			PodCIDRs:  []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)},
		})
	}
	for b.Loop() {
		if m := overlay.Compile(in); len(m.Peers) != 999 || len(m.Problems) != 0 {
			b.Fatal(len(m.Peers), m.Problems)
		}
	}
}
