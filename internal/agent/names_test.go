package agent

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/netctl/netctl/cni"
	"github.com/netctl/netctl/dns"
	"github.com/netctl/netctl/dns/options"
	"github.com/netctl/netctl/internal/agent/port"
	"github.com/netctl/netctl/internal/agent/record"
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

// The agent's name server works by its options, and knows the pods of its node by the
// addresses that they were given.
func TestNamesByOptions(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "dns.yaml")
	if err := os.WriteFile(path, []byte("ttl: 9\nhosts: [{address: 192.0.2.1, names: [h.example]}]\nautopath: [default]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	file, err := options.Open(path, log)
	if err != nil {
		t.Fatal(err)
	}
	flows, err := flow.Open(flow.Config{Slots: 64})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { flows.Close() })
	inside := netip.MustParseAddr("10.244.0.5")
	a := &Agent{
		cfg: Config{DNSOptions: file}, log: log, router: datapath.New(datapath.Config{Flows: flows}),
		upstreams: dns.NewResolvConf(dns.ResolvConfConfig{Paths: []string{path}}),
		pods: map[cni.ID]*pod{{ContainerID: "c"}: {
			rec: &record.Record{Namespace: "default", Addresses: []netip.Addr{inside}}, port: LocalPort{Kind: datapath.KindPod},
		}},
	}
	a.openNames()
	a.knowPods()
	out := Compile(Input{
		State: &model.State{
			Synced: true, Namespaces: []*model.Namespace{{Name: "default"}, {Name: "other"}},
			Services: []*model.Service{{
				Name: model.Name{Namespace: "other", Name: "web"}, Type: model.ClusterIP, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.5")},
			}},
		},
		Domain: "cluster.local", Names: file.Options(),
	})
	a.resolver.Publish(out.Zone)
	for _, c := range []struct {
		from netip.Addr
		name string
		want string
	}{
		{inside, "\x01h\x07example\x00", "NOERROR 192.0.2.1 9"},
		{inside, "\x03web\x05other\x07default\x03svc\x07cluster\x05local\x00", "NOERROR 10.96.0.5 9"},
		{netip.MustParseAddr("10.244.0.6"), "\x03web\x05other\x07default\x03svc\x07cluster\x05local\x00", "NXDOMAIN"},
	} {
		question := append([]byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}, c.name+"\x00\x01\x00\x01"...)
		reply, st := a.resolver.Answer(c.from, question, true, nil)
		got := st.String()
		if st == dns.Answered {
			got = "NXDOMAIN"
			if reply[3]&0xf == 0 {
				end := len(reply) // an address is the last record: TTL, length, address
				got = fmt.Sprintf("NOERROR %v %d", netip.AddrFrom4([4]byte(reply[end-4:])), binary.BigEndian.Uint32(reply[end-10:]))
			}
		}
		if got != c.want {
			t.Errorf("%s asks for %q: got %s, want %s", c.from, c.name, got, c.want)
		}
	}
	if err := a.refuseSelf(inside); err != nil {
		t.Errorf("a server inside the cluster is refused: %v", err)
	}
}

// TestChangesAreMeasured: how long each change took is in the name server's metrics,
// once.
func TestChangesAreMeasured(t *testing.T) {
	t.Parallel()
	a := &Agent{resolver: dns.New(dns.Config{})}
	for i := range 2 {
		a.delays.Heard(uint64(i+1), time.Now().Add(-time.Minute))
	}
	for _, revision := range []uint64{2, 2, 1} {
		a.measureChanges(revision)
	}
	var b strings.Builder
	if err := a.writeNameMetrics(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`_count{service_kind="all"} 2`, `_sum{service_kind="all"} 12`} {
		if !strings.Contains(b.String(), "coredns_kubernetes_dns_programming_duration_seconds"+want) {
			t.Errorf("the metrics lack %s:\n%s", want, b.String())
		}
	}
}
