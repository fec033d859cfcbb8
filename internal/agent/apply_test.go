package agent

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/netctl/netctl/internal/datapath"
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
			got := withNode(s, c.last)
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

// Addresses of pods that the State knows and the records do not are nobody
// else's.
func TestUnrecorded(t *testing.T) {
	t.Parallel()
	blocks := prefixes("10.0.0.0/25", "fd00::/121")
	pod := func(name, uid string, edit func(*model.Pod), addrs ...string) *model.Pod {
		p := &model.Pod{Name: model.Name{Namespace: "default", Name: name}, UID: uid, Node: "n"}
		for _, a := range addrs {
			p.Addresses = append(p.Addresses, netip.MustParseAddr(a))
		}
		if edit != nil {
			edit(p)
		}
		return p
	}
	for _, c := range []struct {
		name string
		pod  *model.Pod
		want bool
	}{
		{"unknown", pod("x", "1", nil, "10.0.0.7", "fd00::7"), true},
		{"recorded by UID", pod("x", "known", nil, "10.0.0.7"), false},
		{"recorded by name, as static pods are", pod("known", "1", nil, "10.0.0.7"), false},
		{"of another node, in our block", pod("x", "1", func(p *model.Pod) { p.Node = "former" }, "10.0.0.7"), true},
		{"terminating", pod("x", "1", func(p *model.Pod) { p.Terminating = true }, "10.0.0.7"), true},
		{"finished", pod("x", "1", func(p *model.Pod) { p.Finished = true }, "10.0.0.7"), false},
		{"elsewhere", pod("x", "1", nil, "10.0.1.7"), false},
		{"on the node's network", pod("x", "1", func(p *model.Pod) { p.HostNetwork = true }, "10.0.0.7"), false},
		{"without an address", pod("x", "1", nil), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got := unrecorded(&model.State{Pods: []*model.Pod{c.pod}}, blocks, map[string]bool{"known": true, "default/known": true})
			want := c.pod.Addresses
			if !c.want {
				want = nil
			}
			if !slices.Equal(got, want) {
				t.Errorf("held: %v, want %v", got, want)
			}
		})
	}
}

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
