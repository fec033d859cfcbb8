package settings_test

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/netctl/netctl/internal/agent/settings"
	"github.com/netctl/netctl/internal/model"
)

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func TestDecode(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, text string
		want       func(*settings.Settings)
		says       string
	}{
		{"empty", "", func(*settings.Settings) {}, ""},
		{"comments alone", "# nothing\n", func(*settings.Settings) {}, ""},
		{"some", "mtu: 1400\nproxy: pods\nclusterCIDRs: [10.1.0.0/16, 'fd00:1::/48']\n", func(s *settings.Settings) {
			s.MTU, s.Proxy, s.ClusterCIDRs = 1400, settings.ProxyPods, []string{"10.1.0.0/16", "fd00:1::/48"}
		}, ""},
		{"on as YAML has it", "dns: on\n", func(s *settings.Settings) { s.DNS = settings.DNSOn }, ""},
		{"off as YAML has it", "dns: off\n", func(s *settings.Settings) { s.DNS = settings.DNSOff }, ""},
		{"an offload off", "udpGSO: off\nudpGRO: on\n", func(s *settings.Settings) { s.UDPGSO, s.UDPGRO = settings.OffloadOff, settings.OffloadOn }, ""},
		{"offload off", "tunOffload: off\n", func(s *settings.Settings) { s.TUNOffload = settings.OffloadOff }, ""},
		{"on in quotes", "dns: 'on'\n", func(s *settings.Settings) { s.DNS = settings.DNSOn }, ""},
		{"unknown key", "mtu: 1400\nmutt: 3\n", nil, "mutt"},
		{"key twice", "mtu: 1400\nmtu: 1500\n", nil, "mtu"},
		{"wrong type", "mtu: high\n", nil, "mtu"},
		{"port out of range", "wireguardPort: 70000\n", nil, "wireguardPort"},
		{"no map", "- mtu\n", nil, "array"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got, want := settings.Default(), settings.Default()
			err := got.Decode([]byte(c.text))
			if c.says != "" {
				if err == nil || !strings.Contains(err.Error(), c.says) {
					t.Errorf("error %v, want one that names %q", err, c.says)
				}
			} else if err != nil {
				t.Fatal(err)
			}
			if c.want != nil {
				c.want(&want)
			}
			if !slices.Equal(got.ClusterCIDRs, want.ClusterCIDRs) {
				t.Errorf("ranges %v, want %v", got.ClusterCIDRs, want.ClusterCIDRs)
			}
			got.ClusterCIDRs, want.ClusterCIDRs = nil, nil
			if got.MTU != want.MTU || got.Proxy != want.Proxy || got.DNS != want.DNS || got.StateDir != want.StateDir || got.WireguardPort != want.WireguardPort {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}

func TestReadFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "config.yaml")
	s := settings.Default()
	if err := s.ReadFile(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("no file: %v", err)
	}
	if err := os.WriteFile(path, []byte("dnss: on\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.ReadFile(path); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "dnss") {
		t.Errorf("unknown key: %v", err)
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	d := settings.Default()
	if err := d.Validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	for _, c := range []struct {
		edit func(*settings.Settings)
		says string
	}{
		{func(s *settings.Settings) { s.ClusterCIDRs = []string{"10.0.0.7/8"} }, "did you mean 10.0.0.0/8?"},
		{func(s *settings.Settings) { s.ClusterCIDRs = []string{"ten"} }, `"ten"`},
		{func(s *settings.Settings) { s.ClusterCIDRs = []string{"10.0.0.0/8", "10.1.0.0/16"} }, "10.0.0.0/8 and 10.1.0.0/16 overlap"},
		{func(s *settings.Settings) { s.WireguardPort = 0 }, "wireguardPort 0"},
		{func(s *settings.Settings) { s.WireguardPort = 51821 }, "wireguardPort 51821: agents ask each other there"},
		{func(s *settings.Settings) { s.MTU = 576 }, "mtu 576"},
		{func(s *settings.Settings) { s.Workers = -1 }, "workers -1"},
		{func(s *settings.Settings) { s.Proxy = "half" }, `proxy "half"`},
		{func(s *settings.Settings) { s.DNS = "maybe" }, `dns "maybe"`},
		{func(s *settings.Settings) { s.UDPGSO = "maybe" }, `udpGSO "maybe"`},
		{func(s *settings.Settings) { s.TUNOffload = "maybe" }, `tunOffload "maybe"`},
		{func(s *settings.Settings) { s.HealthzBindAddress = ":10256" }, `healthzBindAddress ":10256"`},
		{func(s *settings.Settings) { s.MetricsBindAddress = "127.0.0.1" }, `metricsBindAddress "127.0.0.1"`},
		{func(s *settings.Settings) { s.StateDir = "run" }, `stateDir "run"`},
		{func(s *settings.Settings) { s.DataDir = "/" }, `dataDir "/"`},
		{func(s *settings.Settings) { s.LogLevel = "loud" }, `logLevel "loud"`},
	} {
		s := settings.Default()
		c.edit(&s)
		if err := s.Validate(); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("error %v, want %q", err, c.says)
		}
	}
	s := settings.Default()
	s.MTU, s.Workers = 1, 1000
	if err := s.Validate(); err == nil || !strings.Contains(err.Error(), "mtu") || !strings.Contains(err.Error(), "workers") {
		t.Errorf("two faults: %v", err)
	}
}

func TestPodRanges(t *testing.T) {
	t.Parallel()
	node := func(name string, edit func(*model.Node)) *model.Node {
		n := &model.Node{Name: name, Addresses: addrs("192.0.2.1", "2001:db8::1")}
		if edit != nil {
			edit(n)
		}
		return n
	}
	v4, v6 := prefixes("10.96.0.0/12"), prefixes("fd00:10:96::/112")
	both := slices.Concat(v4, v6)
	for _, c := range []struct {
		name       string
		configured []netip.Prefix
		subnets    []netip.Prefix
		state      model.State
		host       []settings.HostRange
		want       []netip.Prefix
		says       []string // the error
	}{
		{name: "defaults of one family", state: model.State{ServiceCIDRs: v4}, want: prefixes("10.244.0.0/16")},
		{name: "defaults of IPv6 alone", state: model.State{ServiceCIDRs: v6}, want: prefixes("fd00:10:244::/56")},
		{name: "defaults of both", state: model.State{ServiceCIDRs: both}, want: prefixes("10.244.0.0/16", "fd00:10:244::/56")},
		{name: "services not known yet"},
		{name: "the cluster's", subnets: prefixes("10.10.0.0/16"), state: model.State{ServiceCIDRs: v4}, want: prefixes("10.10.0.0/16")},
		{name: "the configured", configured: prefixes("10.20.0.0/16"), subnets: prefixes("10.10.0.0/16"), state: model.State{ServiceCIDRs: v4}, want: prefixes("10.20.0.0/16")},
		{
			name: "pools say it all", state: model.State{ServiceCIDRs: v4, BlockPools: []model.BlockPool{{CIDR: netip.MustParsePrefix("10.9.0.0/16"), Bits: 24}}},
		},
		{
			name: "default in the services' range", state: model.State{ServiceCIDRs: prefixes("10.240.0.0/12")},
			says: []string{"10.244.0.0/16", "10.240.0.0/12", "services", "clusterCIDRs"},
		},
		{
			name: "default around a node", state: model.State{ServiceCIDRs: v4, Nodes: []*model.Node{
				node("here", nil), node("there", func(n *model.Node) { n.Addresses = addrs("10.244.7.7") }),
			}},
			says: []string{"10.244.0.0/16", "10.244.7.7/32", "node there"},
		},
		{
			name: "default on a bridge of the host", state: model.State{ServiceCIDRs: v4},
			host: []settings.HostRange{{Prefix: netip.MustParsePrefix("10.244.3.0/24"), What: "route of this node to docker0"}},
			says: []string{"10.244.0.0/16", "10.244.3.0/24", "docker0"},
		},
		{
			name: "a default route is in nobody's way", state: model.State{ServiceCIDRs: v4},
			host: []settings.HostRange{{Prefix: netip.MustParsePrefix("0.0.0.0/0"), What: "route of this node to eth0"}},
			want: prefixes("10.244.0.0/16"),
		},
		{
			name: "routes of a former network in a chosen range", subnets: prefixes("10.244.0.0/16"), state: model.State{ServiceCIDRs: v4},
			host: []settings.HostRange{{Prefix: netip.MustParsePrefix("10.244.3.0/24"), What: "route of this node to cni0"}},
			want: prefixes("10.244.0.0/16"),
		},
		{
			name: "a new bridge on a node with pods", state: model.State{ServiceCIDRs: v4, Blocks: []model.Block{{CIDR: netip.MustParsePrefix("10.244.0.0/25"), Node: "here"}}},
			host: []settings.HostRange{{Prefix: netip.MustParsePrefix("10.244.3.0/24"), What: "route of this node to docker0"}},
			want: prefixes("10.244.0.0/16"),
		},
		{
			name: "controllers assign from elsewhere", state: model.State{ServiceCIDRs: v4, Nodes: []*model.Node{
				node("there", func(n *model.Node) { n.PodCIDRs = prefixes("10.42.0.0/24") }),
			}},
			says: []string{"there", "10.42.0.0/24", "10.244.0.0/16", "clusterCIDRs"},
		},
		{
			name: "another node's range is elsewhere, but this one has pods",
			state: model.State{ServiceCIDRs: v4, Nodes: []*model.Node{
				node("here", func(n *model.Node) { n.PodCIDRs = prefixes("10.244.1.0/24") }),
				node("there", func(n *model.Node) { n.PodCIDRs = prefixes("10.42.0.0/24") }),
			}},
			want: prefixes("10.244.0.0/16"),
		},
		{
			name:  "this node's own range is elsewhere",
			state: model.State{ServiceCIDRs: v4, Nodes: []*model.Node{node("here", func(n *model.Node) { n.PodCIDRs = prefixes("10.42.0.0/24") })}},
			says:  []string{"here", "10.42.0.0/24", "10.244.0.0/16", "clusterCIDRs"},
		},
		{
			name: "controllers assign from the default", state: model.State{ServiceCIDRs: v4, Nodes: []*model.Node{
				node("there", func(n *model.Node) { n.PodCIDRs = prefixes("10.244.7.0/24") }),
			}},
			want: prefixes("10.244.0.0/16"),
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got, err := settings.PodRanges(c.configured, settings.Surroundings{Node: "here", State: &c.state, PodSubnets: c.subnets, Host: c.host})
			if !slices.Equal(got, c.want) {
				t.Errorf("ranges %v, want %v", got, c.want)
			}
			if (err != nil) != (len(c.says) > 0) {
				t.Fatalf("error %v", err)
			}
			for _, word := range c.says {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%q is not in: %v", word, err)
				}
			}
		})
	}
	_, err := settings.PodRanges(nil, settings.Surroundings{State: &model.State{ServiceCIDRs: prefixes("10.240.0.0/12")}})
	if conflict, ok := errors.AsType[*settings.ConflictError](err); !ok || conflict.Other != netip.MustParsePrefix("10.240.0.0/12") {
		t.Errorf("a conflict is %#v", err)
	}
}

func TestDomain(t *testing.T) {
	t.Parallel()
	for _, c := range [][3]string{
		{"", "", "cluster.local"},
		{"", "k8s.example", "k8s.example"},
		{"mine.example.", "k8s.example", "mine.example"},
	} {
		if got := settings.Domain(c[0], c[1]); got != c[2] {
			t.Errorf("%q, %q: %q, want %q", c[0], c[1], got, c[2])
		}
	}
}

func TestPodsOnly(t *testing.T) {
	t.Parallel()
	kubeProxy := func(edit func(*model.Pod)) *model.State {
		p := &model.Pod{Name: model.Name{Namespace: "kube-system", Name: "kube-proxy-x"}, Node: "n", Labels: map[string]string{"k8s-app": "kube-proxy"}}
		if edit != nil {
			edit(p)
		}
		return &model.State{Pods: []*model.Pod{{Name: model.Name{Namespace: "default", Name: "a"}, Node: "n"}, p}}
	}
	for _, c := range []struct {
		name  string
		mode  settings.Proxy
		state *model.State
		want  bool
	}{
		{"auto, none", settings.ProxyAuto, &model.State{}, false},
		{"auto, here", settings.ProxyAuto, kubeProxy(nil), true},
		{"auto, being replaced", settings.ProxyAuto, kubeProxy(func(p *model.Pod) { p.Terminating = true }), true},
		{"auto, on another node", settings.ProxyAuto, kubeProxy(func(p *model.Pod) { p.Node = "m" }), false},
		{"auto, of another namespace", settings.ProxyAuto, kubeProxy(func(p *model.Pod) { p.Name.Namespace = "default" }), false},
		{"auto, without the label", settings.ProxyAuto, kubeProxy(func(p *model.Pod) { p.Labels = nil }), false},
		{"auto, evicted", settings.ProxyAuto, kubeProxy(func(p *model.Pod) { p.Finished = true }), false},
		{"full, here", settings.ProxyFull, kubeProxy(nil), false},
		{"pods, none", settings.ProxyPods, &model.State{}, true},
	} {
		if got := settings.PodsOnly(c.mode, c.state, "n"); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestForeignDNS(t *testing.T) {
	t.Parallel()
	service := []*model.Service{{Name: model.Name{Namespace: "kube-system", Name: "kube-dns"}, ClusterIPs: addrs("10.96.0.10")}}
	slice := func(namespace string, e model.Endpoint) []*model.EndpointSlice {
		return []*model.EndpointSlice{{Name: model.Name{Namespace: namespace, Name: "kube-dns-x"}, Service: "kube-dns", Endpoints: []model.Endpoint{e}}}
	}
	for _, c := range []struct {
		name  string
		mode  settings.DNS
		state model.State
		want  bool
	}{
		{"auto, nothing", settings.DNSAuto, model.State{}, false},
		{"auto, a Service alone, as ours is", settings.DNSAuto, model.State{Services: service}, false},
		{"auto, CoreDNS", settings.DNSAuto, model.State{Services: service, EndpointSlices: slice("kube-system", model.Endpoint{Ready: true, Serving: true})}, true},
		{"auto, CoreDNS that ends", settings.DNSAuto, model.State{Services: service, EndpointSlices: slice("kube-system", model.Endpoint{Serving: true, Terminating: true})}, true},
		{"auto, CoreDNS that is not ready", settings.DNSAuto, model.State{Services: service, EndpointSlices: slice("kube-system", model.Endpoint{})}, false},
		{"auto, somebody else's", settings.DNSAuto, model.State{Services: service, EndpointSlices: slice("default", model.Endpoint{Ready: true})}, false},
		{"auto, endpoints of a Service that is gone", settings.DNSAuto, model.State{EndpointSlices: slice("kube-system", model.Endpoint{Ready: true})}, false},
		{"on, CoreDNS", settings.DNSOn, model.State{Services: service, EndpointSlices: slice("kube-system", model.Endpoint{Ready: true})}, false},
		{"off, nothing", settings.DNSOff, model.State{}, true},
	} {
		if got := settings.ForeignDNS(c.mode, &c.state); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestNameServers(t *testing.T) {
	t.Parallel()
	api := func(ip string) []*model.Service {
		return []*model.Service{{Name: model.Name{Namespace: "default", Name: "kubernetes"}, ClusterIPs: addrs(ip)}}
	}
	for _, c := range []struct {
		name    string
		kubelet []netip.Addr
		state   model.State
		want    []netip.Addr
	}{
		{"kubelets were told", addrs("10.96.0.53"), model.State{ServiceCIDRs: prefixes("10.96.0.0/12"), Services: api("10.96.0.1")}, addrs("10.96.0.53")},
		{"kubelets ask a cache on the node", addrs("169.254.20.10"), model.State{ServiceCIDRs: prefixes("10.96.0.0/12"), Services: api("10.96.0.1")}, nil},
		{"the tenth", nil, model.State{ServiceCIDRs: prefixes("10.96.0.0/12"), Services: api("10.96.0.1")}, addrs("10.96.0.10")},
		{"the tenth of IPv6", nil, model.State{ServiceCIDRs: prefixes("fd00:10:96::/112"), Services: api("fd00:10:96::1")}, addrs("fd00:10:96::a")},
		{"the tenth of the API server's range, not of another", nil, model.State{ServiceCIDRs: prefixes("10.7.0.0/24", "10.96.0.0/12"), Services: api("10.96.0.1")}, addrs("10.96.0.10")},
		{"a range without a tenth", nil, model.State{ServiceCIDRs: prefixes("10.96.0.0/29"), Services: api("10.96.0.1")}, nil},
		{"not known yet", nil, model.State{ServiceCIDRs: prefixes("10.96.0.0/12")}, nil},
	} {
		if got := settings.NameServers(c.kubelet, &c.state); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("mtu: 1400\nclusterCIDRs: [10.1.0.0/16]\n"))
	f.Add([]byte("proxy: [pods]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s := settings.Default()
		if err := s.Decode(data); err != nil {
			if d := settings.Default(); s.MTU != d.MTU || s.StateDir != d.StateDir || len(s.ClusterCIDRs) != 0 {
				t.Errorf("an error (%v) changed the settings: %+v", err, s)
			}
			return
		}
		if s.Validate() != nil {
			return
		}
		ranges, err := s.Ranges()
		if err != nil || len(ranges) != len(s.ClusterCIDRs) {
			t.Errorf("valid, but %v, %v", ranges, err)
		}
	})
}
