package record

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/netctl/netctl/cni"
	"github.com/netctl/netctl/internal/model"
)

func TestListeners(t *testing.T) {
	t.Parallel()
	v4, v6 := netip.MustParseAddr("10.1.1.5"), netip.MustParseAddr("fd00:1::5")
	for _, c := range []struct {
		name  string
		addrs []netip.Addr
		ports []cni.PortMapping
		want  []string
	}{
		{"none", []netip.Addr{v4, v6}, nil, nil},
		{"every address, both families", []netip.Addr{v4, v6}, []cni.PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: model.TCP}}, []string{
			"0.0.0.0:8080/TCP to 10.1.1.5:80", "[::]:8080/TCP to [fd00:1::5]:80",
		}},
		{"every address, one family", []netip.Addr{v4}, []cni.PortMapping{{HostPort: 53, ContainerPort: 5353, Protocol: model.UDP}}, []string{
			"0.0.0.0:53/UDP to 10.1.1.5:5353",
		}},
		{"one address", []netip.Addr{v4, v6}, []cni.PortMapping{{HostIP: netip.MustParseAddr("2001:db8::1"), HostPort: 53, ContainerPort: 53, Protocol: model.TCP}}, []string{
			"[2001:db8::1]:53/TCP to [fd00:1::5]:53",
		}},
		{"one address of a family that the pod has not", []netip.Addr{v4}, []cni.PortMapping{{HostIP: netip.MustParseAddr("2001:db8::1"), HostPort: 53, ContainerPort: 53, Protocol: model.TCP}}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var got []string
			for _, l := range (&Record{Namespace: "default", Pod: "web", Addresses: c.addrs, HostPorts: c.ports}).Listeners() {
				got = append(got, fmt.Sprintf("%s/%s to %s", l.Addr, l.Proto, l.Target))
				if l.Owner != "pod default/web" {
					t.Errorf("owner %q", l.Owner)
				}
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}
