package proxynode_test

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/proxynode"
)

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// small is a cluster of both families with a service on a node port.
func small() *model.State {
	web := model.Name{Namespace: "default", Name: "web"}
	return &model.State{
		Synced: true, ServiceCIDRs: prefixes("10.96.0.0/16", "fd00:10:96::/112"),
		Nodes: []*model.Node{
			{Name: "here", Addresses: addrs("192.0.2.11", "2001:db8::11"), PodCIDRs: prefixes("10.244.1.0/24")},
			{Name: "there", Addresses: addrs("192.0.2.12"), PodCIDRs: prefixes("10.244.2.0/24")},
		},
		Pods: []*model.Pod{
			{Name: model.Name{Namespace: "a", Name: "host"}, Node: "here", HostNetwork: true, Addresses: addrs("192.0.2.77")},
			{Name: model.Name{Namespace: "a", Name: "odd"}, Node: "here", Addresses: addrs("172.20.0.5")},
			{Name: model.Name{Namespace: "a", Name: "old"}, Node: "here", Finished: true, Addresses: addrs("172.20.0.6")},
			{Name: model.Name{Namespace: "a", Name: "other"}, Node: "there", Addresses: addrs("172.20.0.7")},
		},
		Services: []*model.Service{{
			Name: web, Type: model.NodePort, ClusterIPs: addrs("10.96.0.10"),
			Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80, NodePort: 30080}, {Name: "s", Protocol: model.SCTP, Port: 81, NodePort: 30081}},
		}},
		EndpointSlices: []*model.EndpointSlice{{
			Name: model.Name{Namespace: "default", Name: "web-1"}, Service: "web",
			Ports:     []model.EndpointPort{{Protocol: model.TCP, Port: 8080}, {Name: "s", Protocol: model.SCTP, Port: 81}},
			Endpoints: []model.Endpoint{{Address: netip.MustParseAddr("10.244.2.5"), Ready: true, Serving: true, Node: "there"}},
		}},
	}
}

func input() proxynode.Input {
	return proxynode.Input{State: small(), Node: "here", Host: addrs("192.0.2.11", "2001:db8::11", "10.244.1.1")}
}

// Only who is of this node may use it as the way to virtual addresses.
func TestSources(t *testing.T) {
	t.Parallel()
	in := input()
	in.PodCIDRs = prefixes("10.77.0.0/24")
	out := proxynode.Compile(in)
	for a, want := range map[string]bool{
		"192.0.2.11": true, "2001:db8::11": true, "10.244.1.1": true, // the host's
		"10.244.1.200": true, "10.77.0.9": true, // in ranges of its pods
		"172.20.0.5": true,                       // a pod by its own address
		"172.20.0.6": false, "172.20.0.7": false, // a pod that was, and another node's
		"192.0.2.77": false,                      // what a pod in the host's network says is no address of this host
		"192.0.2.12": false, "10.244.2.5": false, // another node and its pod
		"198.51.100.1": false, "10.96.0.10": false, // anybody
		"127.0.0.1": false, "fe80::1": false, "::1": false,
	} {
		if got := out.Sources.Has(netip.MustParseAddr(a)); got != want {
			t.Errorf("%s: %v, want %v", a, got, want)
		}
	}
}

func TestRoutesAndListeners(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name           string
		edit           func(*proxynode.Input)
		routes, listen []string
		problems       []string
	}{
		{
			"both families", func(*proxynode.Input) {},
			[]string{"10.96.0.0/16 src 192.0.2.11", "fd00:10:96::/112 src 2001:db8::11"},
			[]string{"192.0.2.11:30080/TCP"},
			[]string{"SCTP"},
		},
		{
			"a range that a flag adds, once", func(in *proxynode.Input) { in.ServiceCIDRs = prefixes("10.96.0.0/16", "10.97.0.0/24") },
			[]string{"10.96.0.0/16 src 192.0.2.11", "10.97.0.0/24 src 192.0.2.11", "fd00:10:96::/112 src 2001:db8::11"},
			[]string{"192.0.2.11:30080/TCP"},
			[]string{"SCTP"},
		},
		{
			"a range with the gateway in it", func(in *proxynode.Input) { in.Protected = addrs("10.96.3.1") },
			[]string{"fd00:10:96::/112 src 2001:db8::11"},
			[]string{"192.0.2.11:30080/TCP"},
			[]string{"SCTP", "10.96.0.0/16: it holds 10.96.3.1"},
		},
		{
			"a range with an address of the host in it", func(in *proxynode.Input) { in.Host = append(in.Host, addrs("fd00:10:96::7")...) },
			[]string{"10.96.0.0/16 src 192.0.2.11"},
			[]string{"192.0.2.11:30080/TCP"},
			[]string{"SCTP", "fd00:10:96::/112: it holds fd00:10:96::7"},
		},
		{
			"no ranges", func(in *proxynode.Input) { in.State.ServiceCIDRs = nil },
			nil,
			[]string{"192.0.2.11:30080/TCP"},
			[]string{"SCTP", "--service-cidrs"},
		},
		{
			"a node that nobody knows", func(in *proxynode.Input) { in.Node = "nowhere" },
			nil, nil,
			[]string{"SCTP", `node "nowhere"`, "10.96.0.0/16: node nowhere has no address", "fd00:10:96::/112: node nowhere has no address"},
		},
		{
			"nobody behind the node port", func(in *proxynode.Input) { in.State.EndpointSlices = nil },
			[]string{"10.96.0.0/16 src 192.0.2.11", "fd00:10:96::/112 src 2001:db8::11"},
			nil,
			[]string{"SCTP"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			in := input()
			c.edit(&in)
			out := proxynode.Compile(in)
			var routes, listen []string
			for _, r := range out.Routes {
				routes = append(routes, r.Dst.String()+" src "+r.Src.String())
			}
			for _, l := range out.Listeners {
				listen = append(listen, l.Addr.String()+"/"+l.Proto.String())
			}
			if !slices.Equal(routes, c.routes) || !slices.Equal(listen, c.listen) {
				t.Errorf("routes %v, want %v; listeners %v, want %v", routes, c.routes, listen, c.listen)
			}
			if len(out.Problems) != len(c.problems) {
				t.Errorf("problems %q, want %d", out.Problems, len(c.problems))
			}
			for _, want := range c.problems {
				if !slices.ContainsFunc(out.Problems, func(p string) bool { return strings.Contains(p, want) }) {
					t.Errorf("problems %q do not speak of %s", out.Problems, want)
				}
			}
		})
	}
}

// What was compiled before does not change the result.
func TestCompileIsPure(t *testing.T) {
	t.Parallel()
	first, again := proxynode.Compile(input()), proxynode.Compile(input())
	if !reflect.DeepEqual(first, again) {
		t.Error("equal input, other output")
	}
	in := input()
	in.State.Services = in.State.Services[:0]
	was := proxynode.Compile(in)
	in = input()
	in.Previous = &was
	if got := proxynode.Compile(in); !reflect.DeepEqual(got, first) {
		t.Error("the previous output shows in the next")
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		cfg  proxynode.Config
		says string
	}{
		{proxynode.Config{Node: "n"}, ""},
		{proxynode.Config{Node: "n", MTU: 65535}, ""},
		{proxynode.Config{}, "--node"},
		{proxynode.Config{Node: "n", MTU: 1000}, "MTU 1000"},
	} {
		err := c.cfg.Validate()
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v, want %q", err, c.says)
		}
	}
}
