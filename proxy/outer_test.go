package proxy_test

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/proxy"
)

// healthChecked is a load balancer with external policy Local.
func healthChecked(s *model.Service) {
	loadBalancer(s)
	s.ExternalLocal, s.HealthCheckNodePort = true, 32000
}

func TestHealthChecks(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		opts []opt
		want string
	}{
		{"HC-1 local policy of a load balancer", []opt{service(healthChecked), slice("s1", ep("10.1.1.2 @n1"), ep("10.1.2.2 @n2"))}, "[{default/web 32000 [1 0]}]"},
		{"HC-1 not of a node port", []opt{service(healthChecked), service(nodePorts)}, "[]"},
		{"HC-1 not with policy Cluster", []opt{service(healthChecked), service(func(s *model.Service) { s.ExternalLocal = false })}, "[]"},
		{"HC-1 not without a port", []opt{service(healthChecked), service(func(s *model.Service) { s.HealthCheckNodePort = 0 })}, "[]"},
		{"IN-1 nor of another proxy's service", []opt{service(healthChecked), service(func(s *model.Service) { s.ForeignProxy = true })}, "[]"},
		{"DS-2 a service of one family", []opt{service(healthChecked), service(func(s *model.Service) { s.ClusterIPs = addrs(vip4) })}, "[{default/web 32000 [0 -1]}]"},
		{"HC-2 terminating ones do not count", []opt{service(healthChecked), slice("s1", ep("10.1.1.2 @n1 terminating"), ep("10.1.1.3 @n1 notready"))}, "[{default/web 32000 [0 0]}]"},
		{"HC-2 addresses, not ports", []opt{
			service(healthChecked), slice("s1", ep("10.1.1.2 @n1"), ep("10.1.1.3 @n1")),
			sliceWith("s2", []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 9090}}, ep("10.1.1.2 @n1")),
		}, "[{default/web 32000 [2 0]}]"},
		{"HC-2 families apart", []opt{service(healthChecked), slice("s1", ep("10.1.1.2 @n1")), slice("s6", ep("fd00:1::2 @n1"), ep("fd00:1::3 @n1"))}, "[{default/web 32000 [1 2]}]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tab, _ := proxy.Compile(newWorld(tt.opts...).in)
			if got := fmt.Sprint(tab.HealthChecks()); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// A change that is compiled by itself gives the checks of a whole compilation.
func TestHealthChecksFollow(t *testing.T) {
	t.Parallel()
	w := newWorld(service(healthChecked), slice("s1", ep("10.1.1.2 @n1")))
	in := w.in
	steps := []func(){
		func() {
			s := *in.Slices[0]
			s.Endpoints = append(slices.Clone(s.Endpoints), ep("10.1.1.3 @n1"))
			in.Slices = []*model.EndpointSlice{&s}
		},
		func() {
			s := *in.Services[0]
			s.HealthCheckNodePort = 32001
			in.Services = []*model.Service{&s}
		},
		func() {
			s := *in.Services[0]
			s.ExternalLocal = false
			in.Services = []*model.Service{&s}
		},
		func() {
			s := *in.Services[0]
			s.ExternalLocal = true
			in.Services = []*model.Service{&s}
		},
	}
	for i, step := range steps {
		in.Previous, _ = proxy.Compile(in)
		step()
		got, _ := proxy.Compile(in)
		in.Previous = nil
		whole, _ := proxy.Compile(in)
		if !reflect.DeepEqual(got, whole) {
			t.Errorf("step %d: %v, want %v", i, got.HealthChecks(), whole.HealthChecks())
		}
	}
}

// Externals are the addresses that the node must be a way to, and those alone that
// a service really has.
func TestExternals(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		opts []opt
		want []netip.Addr
	}{
		{"none", nil, nil},
		{"LB-1 and LB-7", []opt{service(loadBalancer), service(external)}, addrs(ext4, lb4)},
		{"external IPs by permission", []opt{service(loadBalancer), service(external), func(w *world) { w.in.ExternalIPs = false }}, addrs(lb4)},
		{"one that the node needs", []opt{service(loadBalancer), func(w *world) { w.in.Exclude = []netip.Prefix{netip.MustParsePrefix(lb4 + "/32")} }}, nil},
		{"of both families", []opt{service(func(s *model.Service) { s.LoadBalancerIPs = addrs(lb4, "2001:db8::20") })}, addrs(lb4, "2001:db8::20")},
		{"of a family that the service has not", []opt{service(func(s *model.Service) {
			s.LoadBalancerIPs, s.ClusterIPs = addrs(lb4, "2001:db8::20"), addrs(vip4)
		})}, addrs(lb4)},
	} {
		tab, _ := proxy.Compile(newWorld(tt.opts...).in)
		if got := tab.Externals(); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

// What clients outside may reach through the node is told from what is the
// cluster's own.
func TestExternalFrontends(t *testing.T) {
	t.Parallel()
	tab, _ := proxy.Compile(newWorld(service(loadBalancer), service(external), service(func(s *model.Service) { s.Ports[0].NodePort = 30080 })).in)
	for dst, want := range map[string]bool{vip4 + ":80": false, ext4 + ":80": true, lb4 + ":80": true, node1 + ":30080": false} {
		at := netip.MustParseAddrPort(dst)
		f, _ := tab.Frontend(packet.AddrFrom(at.Addr()), at.Port(), uint8(model.TCP))
		if f == nil || f.External() != want {
			t.Errorf("%s: %v, want external %v", dst, f, want)
		}
	}
}

func TestNodePortAddresses(t *testing.T) {
	t.Parallel()
	primary := addrs(node1, node16)
	host := addrs(node1, "192.168.5.1", "fd00:5::1", "fe80::1", "127.0.0.1")
	for _, tt := range []struct {
		words, want string
	}{
		{"", "172.16.0.1 fd00:2::1"},
		{"primary", "172.16.0.1 fd00:2::1"},
		{"primary localhost", "127.0.0.1 172.16.0.1 ::1 fd00:2::1"},
		{"localhost", "127.0.0.1 ::1"},
		{"all", "172.16.0.1 192.168.5.1 fd00:2::1 fd00:5::1"},
		{"all localhost", "127.0.0.1 172.16.0.1 192.168.5.1 ::1 fd00:2::1 fd00:5::1"},
		{"192.168.0.0/16 fd00:5::/64", "192.168.5.1 fd00:5::1"},
		{"192.168.0.0/16", "192.168.5.1 fd00:2::1 fd00:5::1"}, // NP-2: the other family as it is
		{"0.0.0.0/0 ::/0", "172.16.0.1 192.168.5.1 fd00:2::1 fd00:5::1"},
		{"10.0.0.0/8 ::/128", ""},
		{"primary all", "error"},
		{"primary 10.0.0.0/8", "error"},
		{"all 10.0.0.0/8", "error"},
		{"10.0.0.1/8", "error"},
		{"everywhere", "error"},
	} {
		n, err := proxy.ParseNodePortAddresses(strings.Fields(tt.words))
		got := "error"
		if err == nil {
			got = strings.Trim(fmt.Sprint(n.On(primary, host)), "[]")
		}
		if got != tt.want {
			t.Errorf("%q: %s (%v), want %s", tt.words, got, err, tt.want)
		}
	}
}
