package agent

import (
	"net/netip"
	"testing"

	"github.com/netctl/netctl/dns"
	"github.com/netctl/netctl/internal/agent/port"
	"github.com/netctl/netctl/internal/datapath"
	"github.com/netctl/netctl/internal/flow"
	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/packet"
)

// askedPort returns the name server's port with a packet that asks it for a name of the
// cluster. The answers go nowhere: there are no routes.
func askedPort(tb testing.TB) (*port.Resolver, []byte) {
	tb.Helper()
	flows, err := flow.Open(flow.Config{Slots: 64})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { flows.Close() })
	s := dns.New(dns.Config{})
	s.Publish(dns.Compile(dns.Input{
		Synced: true, Namespaces: []*model.Namespace{{Name: "default"}},
		Services: []*model.Service{{
			Name: model.Name{Namespace: "default", Name: "web"}, Type: model.ClusterIP, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.5")},
		}},
	}))
	question := append([]byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}, "\x03web\x07default\x03svc\x07cluster\x05local\x00\x00\x01\x00\x01"...)
	client, server := netip.MustParseAddrPort("10.244.0.5:5000"), netip.MustParseAddrPort("10.96.0.10:53")
	buf := packet.UDP(make([]byte, 512), client, server, question)
	return port.NewResolver(s, datapath.New(datapath.Config{Flows: flows}).NewInputs(DNSPort)), buf
}

// A question for a name of the cluster is answered without garbage, packet in to packet
// out.
func TestAnswersDoNotAllocate(t *testing.T) {
	port, buf := askedPort(t)
	if n := testing.AllocsPerRun(1000, func() {
		if err := port.Write(buf); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkResolverPort is a question packet in, an answer packet out, and its walk to
// where no route leads.
func BenchmarkResolverPort(b *testing.B) {
	port, buf := askedPort(b)
	b.ReportAllocs()
	for b.Loop() {
		if err := port.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
}
