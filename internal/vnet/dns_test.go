package vnet_test

import (
	"net/netip"
	"testing"

	mdns "github.com/miekg/dns"

	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/internal/vnet"
)

// question is a packet that asks for a name; the service's port is DNS's own.
func question(t *testing.T, c *vnet.Cluster, f vnet.Family, from, name string) []byte {
	t.Helper()
	m := new(mdns.Msg)
	m.SetQuestion(name, map[vnet.Family]uint16{vnet.V4: mdns.TypeA, vnet.V6: mdns.TypeAAAA}[f])
	wire, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, packet.VNetLen+48+len(wire))
	return packet.UDP(buf, c.AddrPort(f, from, 1000), c.AddrPort(f, "kube-dns", 53), wire)
}

func TestNames(t *testing.T) {
	t.Parallel()
	each(t, vnet.Config{}, func(t *testing.T, c *vnet.Cluster, f vnet.Family) {
		for _, who := range []string{"a", "n1"} {
			c.Port(who).Send(question(t, c, f, who, "web.default.svc.cluster.local."))
			c.Settle()
			p := take(t, c, who)
			if p.Tuple.Src.Netip() != c.Addr(f, "kube-dns") || p.Tuple.SrcPort != 53 || p.Tuple.DstPort != 1000 {
				t.Errorf("%s was answered by %s", who, c.Text(p))
			}
			var m mdns.Msg
			if err := m.Unpack(p.Data()); err != nil {
				t.Fatal(err)
			}
			if len(m.Answer) != 1 {
				t.Fatalf("%s: %d answers: %v", who, len(m.Answer), &m)
			}
			if got := addressOf(m.Answer[0]); got != c.Addr(f, "web") {
				t.Errorf("%s: web is %v, want %v", who, got, c.Addr(f, "web"))
			}
		}
		if n := c.Node("n1").Flows.Len(); n != 0 {
			t.Errorf("%d flows for questions, want none", n)
		}
	})
}

func addressOf(rr mdns.RR) netip.Addr {
	switch rr := rr.(type) {
	case *mdns.A:
		a, _ := netip.AddrFromSlice(rr.A)
		return a.Unmap()
	case *mdns.AAAA:
		a, _ := netip.AddrFromSlice(rr.AAAA)
		return a
	default:
		return netip.Addr{}
	}
}

// Questions over TCP end in a socket: netstack carries them to the name server.
func TestNamesOverTCP(t *testing.T) {
	t.Parallel()
	play(t, []scenario{{"tcp", `
		a -> tcp a:1000 > kube-dns:53 flags=S
		netstack.n1 <- tcp a:1000 > kube-dns:53 flags=S
		netstack.n1 -> tcp kube-dns:53 > a:1000 flags=SA
		a <- tcp kube-dns:53 > a:1000 flags=SA
		n1 -> tcp n1:1000 > kube-dns:53 flags=S
		netstack.n1 <- tcp n1:1000 > kube-dns:53 flags=S
		netstack.n1 -> tcp kube-dns:53 > n1:1000 flags=SA
		n1 <- tcp kube-dns:53 > n1:1000 flags=SA`}})
}
