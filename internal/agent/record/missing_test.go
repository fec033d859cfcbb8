package record

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/netctl/netctl/internal/model"
)

// Addresses of pods that the State knows and the records do not are nobody
// else's.
func TestMissing(t *testing.T) {
	t.Parallel()
	blocks := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/25"), netip.MustParsePrefix("fd00::/121")}
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
			got := Missing(&model.State{Pods: []*model.Pod{c.pod}}, blocks, map[string]bool{"known": true, "default/known": true})
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
