package datapath_test

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/netctl/netctl/internal/datapath"
	"github.com/netctl/netctl/internal/flow"
	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/internal/vnet"
)

// discard makes all ports forget what they get.
func discard(c *vnet.Cluster, names ...string) {
	for _, name := range names {
		c.Port(name).Discard.Store(true)
	}
}

// lane is a packet on its way in, again and again.
type lane struct {
	in        *datapath.Input
	buf, orig []byte
}

func newLane(c *vnet.Cluster, port string, buf []byte) *lane {
	return &lane{
		in:  c.Node("n1").Router.NewInput(c.Port(port).ID),
		buf: make([]byte, len(buf)), orig: buf,
	}
}

// deliver restores the packet, which the walk has changed, and walks it.
func (l *lane) deliver() {
	copy(l.buf, l.orig)
	l.in.Deliver(l.buf)
}

func TestTheWalkDoesNotAllocate(t *testing.T) { //nolint:paralleltest // counts allocations of the process
	c := router(t, vnet.Config{Slots: 1 << 16, PerOwner: 1 << 15})
	discard(c, "a", "a2", "n1", "overlay.n1", "netstack.n1", "inbound.n1")
	for _, f := range vnet.Families() {
		for _, tt := range []struct{ name, port, packet string }{
			{"known flow", "a", "udp a:1000 > a2:53 len=18"},
			{"service", "a", "tcp a:1000 > local:80 flags=A len=18"},
			{"super-packet", "a", "tcp a:1000 > web:80 flags=A len=30000 gso=1360"},
			{"echo", "a", "echo a > b id=7"},
			{"from the host", "n1", "tcp n1:1000 > both:80 flags=A"},
			{"from a peer", "overlay.n1", "tcp b:1000 > a:80 flags=A"},
			{"to the outside", "a", "udp a:1000 > outside:53"},
			{"spoofed", "a", "udp b:1000 > a2:53"},
			{"answered with an error", "a", "udp a:1000 > nowhere:53"},
			{"refused", "a", "tcp a:1000 > none:80 flags=S"},
			{"from a listener", "inbound.n1", "tcp outside:1000 > a:80 flags=A"},
			{"wrapped", "inbound.n1", "tcp outside:1000 > b:80 flags=A"},
			{"wrapped super-packet", "inbound.n1", "tcp outside:1000 > b:80 flags=A len=30000 gso=1340"},
			{"unwrapped", "overlay.n1", "wrapped router.n2 > router.n1 [tcp:outside:1000>a2:80,flags=A]"},
			{"to be wrapped", "a2", "tcp a2:80 > outside:1000 flags=A len=18"},
			{"answered with a wrapped error", "overlay.n1", "wrapped router.n2 > router.n1 [udp:outside:1000>unowned:80]"},
			{"expired", "a", "udp a:1000 > a2:53 ttl=1"},
		} {
			l := newLane(c, tt.port, c.Build(f, tt.packet))
			if n := testing.AllocsPerRun(100, l.deliver); n != 0 {
				t.Errorf("%v: %s: %v allocations a packet", f, tt.name, n)
			}
		}
		newFlows(t, c, f)
		rejudging(t, c, f)
	}
	for reason := range c.Drops()["n1"] {
		switch reason {
		case "spoofed_source", "unowned_address", "no_endpoints", "ttl":
		default:
			t.Errorf("packets were dropped as %s: the test does not measure what it says", reason)
		}
	}
}

func newFlows(t *testing.T, c *vnet.Cluster, f vnet.Family) {
	t.Helper()
	for _, dst := range []struct {
		name string
		port uint16
	}{{"a2", 53}, {"both", vnet.ServicePort}} {
		l := newLane(c, "a", nil)
		var bufs [][]byte
		for port := range uint16(300) {
			bufs = append(bufs, c.BuildTuple(c.Tuple(f, packet.ProtoUDP, "a", 5000+port, dst.name, dst.port), "len=18"))
		}
		before, i := c.Node("n1").Router.Counters(), 0
		n := testing.AllocsPerRun(len(bufs)-1, func() {
			l.in.Deliver(bufs[i])
			i++
		})
		after := c.Node("n1").Router.Counters()
		if n != 0 || after.Judged-before.Judged != uint64(len(bufs)) {
			t.Errorf("%v: %v allocations for each of %d new flows to %s", f, n, after.Judged-before.Judged, dst.name)
		}
	}
}

func rejudging(t *testing.T, c *vnet.Cluster, f vnet.Family) {
	t.Helper()
	l := newLane(c, "a", c.Build(f, "tcp a:1000 > local:80 flags=A len=18"))
	l.deliver()
	r := c.Node("n1").Router
	two := [2]*datapath.Tables{r.Tables(), r.Tables()}
	other := *two[0]
	other.Ports = append([]datapath.PortEntry(nil), other.Ports...)
	other.Ports[c.Port("a").ID].Gen++
	two[1] = &other
	before, i := r.Counters(), 0
	n := testing.AllocsPerRun(100, func() {
		i++
		r.Publish(two[i%2])
		l.deliver()
	})
	after := r.Counters()
	// Publish itself copies the list of inputs.
	if n > 1 || after.Rejudged-before.Rejudged < 100 {
		t.Errorf("%v: %v allocations for each of %d flows that are judged again", f, n, after.Rejudged-before.Rejudged)
	}
	r.Publish(two[0])
}

// figure prints a result as the project's benchmarks do.
func figure(b *testing.B, name string, value float64, unit string) {
	b.Helper()
	fmt.Printf("figure %s %.1f %s\n", name, value, unit) // what a benchmark is for
}

// perPacket runs f b.N times and prints what one run takes, once the benchmark
// has found its length.
func perPacket(b *testing.B, name string, f func()) {
	b.Helper()
	b.ReportAllocs()
	for b.Loop() {
		f()
	}
	figure(b, name, float64(b.Elapsed().Nanoseconds())/float64(b.N), "ns")
}

// BenchmarkWalk walks one small packet. A copy of the packet is part of it: the
// walk changes what it is given.
func BenchmarkWalk(b *testing.B) {
	for _, f := range vnet.Families() {
		suffix := map[vnet.Family]string{vnet.V4: "", vnet.V6: "-ipv6"}[f]
		for _, w := range []struct{ name, port, packet string }{
			{"known-flow", "a", "udp a:1000 > a2:53 len=18"},
			{"known-tcp", "a", "tcp a:1000 > a2:80 flags=A len=18"},
			{"known-service", "a", "udp a:1000 > local:80 len=18"},
			{"known-overlay", "a", "tcp a:1000 > web:80 flags=A len=18"},
			{"from-overlay", "overlay.n1", "tcp b:1000 > a:80 flags=A len=18"},
			{"wrapped", "inbound.n1", "tcp outside:1000 > b:80 flags=A len=18"},
			{"unwrapped", "overlay.n1", "wrapped router.n2 > router.n1 [tcp:outside:1000>a:80,flags=A,len=18]"},
			{"super-packet", "a", "tcp a:1000 > web:80 flags=A len=60000 gso=1360"},
			{"spoofed", "a", "udp b:1000 > a2:53 len=18"},
		} {
			b.Run(w.name+suffix, func(b *testing.B) {
				c := router(b, vnet.Config{})
				discard(c, "a2", "a", "overlay.n1")
				// A conversation: what has been answered is not looked at any more.
				for range 8 {
					newLane(c, "a", c.Build(f, "udp a:1000 > a2:53")).deliver()
					newLane(c, "a2", c.Build(f, "udp a2:53 > a:1000")).deliver()
					newLane(c, "a", c.Build(f, "udp a:1000 > local:80")).deliver()
					newLane(c, "a2", c.Build(f, "udp a2:8080 > a:1000")).deliver()
				}
				l := newLane(c, w.port, c.Build(f, w.packet))
				if w.name == "super-packet" { // the copy would be all that is measured
					perPacket(b, "walk-"+w.name+suffix+"-ns", func() {
						copy(l.buf, l.orig[:100])
						l.in.Deliver(l.buf)
					})
					return
				}
				perPacket(b, "walk-"+w.name+suffix+"-ns", l.deliver)
			})
		}
	}
}

// BenchmarkWalkMillionFlows walks packets of a million open connections in an
// order that no cache knows.
func BenchmarkWalkMillionFlows(b *testing.B) {
	const flows = 1 << 20
	c := router(b, vnet.Config{Slots: 4 * flows, PerOwner: 2 * flows})
	discard(c, "a", "a2")
	there := c.Tuple(vnet.V4, packet.ProtoTCP, "a", 0, "a2", 0)
	syn := newLane(c, "a", c.BuildTuple(there, "flags=S"))
	accept := newLane(c, "a2", c.BuildTuple(there.Reverse(), "flags=SA"))
	data := newLane(c, "a", c.BuildTuple(there, "flags=A len=18"))
	step := func(l *lane, i uint32, src int) {
		// Ports are part of the checksum, which nobody here looks at.
		ports := l.orig[packet.VNetLen+20:]
		binary.BigEndian.PutUint16(ports[src:], uint16(i))
		binary.BigEndian.PutUint16(ports[2-src:], uint16(i>>16))
		l.deliver()
	}
	for i := range uint32(flows) {
		step(syn, i, 0)
		step(accept, i, 2)
		step(data, i, 0)
	}
	if n := c.Node("n1").Flows.Len(); n < flows*99/100 {
		b.Fatalf("only %d flows", n)
	}
	i := uint32(0)
	perPacket(b, "walk-million-flows-ns", func() {
		i += 0x9e3779b1
		step(data, i%flows, 0)
	})
}

// BenchmarkWalkNewFlow walks first packets only.
func BenchmarkWalkNewFlow(b *testing.B) {
	for _, w := range []struct{ name, dst string }{{"new-flow", "a2"}, {"new-service-flow", "both"}} {
		b.Run(w.name, func(b *testing.B) {
			c := router(b, vnet.Config{Slots: 1 << 20, PerOwner: 1 << 20})
			discard(c, "a2", "overlay.n1")
			l := newLane(c, "a", c.BuildTuple(c.Tuple(vnet.V4, packet.ProtoUDP, "a", 0, w.dst, vnet.ServicePort), "len=18"))
			flows, i := c.Node("n1").Flows, uint32(0)
			perPacket(b, "walk-"+w.name+"-ns", func() {
				l.orig[packet.VNetLen+20], l.orig[packet.VNetLen+21] = byte(i>>8), byte(i)
				l.deliver()
				if i++; i%(1<<16) == 0 {
					b.StopTimer()
					flows.RemoveFunc(func(packet.Tuple, flow.Entry) bool { return true })
					b.StartTimer()
				}
			})
		})
	}
}
