package overlay_test

import (
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/overlay"
	"github.com/netctl/netctl/overlay/overlaytest"
)

// BenchmarkStream sends one TCP stream of super-packets through two engines:
// cut, sealed, sent, received, opened, put together. Both ends are in this
// process, so ns/byte is what two nodes spend together. wireguard-go's device
// does the same on the same packets, for comparison.
func BenchmarkStream(b *testing.B) {
	for _, tt := range []struct {
		name string
		real bool
		gso  overlay.Offload
	}{
		{"memory", false, overlay.OffloadAuto},
		{"udp", true, overlay.OffloadOn},
		{"udp-no-gso", true, overlay.OffloadOff},
	} {
		b.Run(tt.name, func(b *testing.B) { benchStream(b, tt.name, engines(b, tt.real, tt.gso)) })
	}
	b.Run("wireguard-go", func(b *testing.B) { benchStream(b, "wireguard-go", devices(b)) })
}

// ends are the two ends of a stream.
type ends struct {
	send     func(pkt []byte) error
	received *atomic.Int64 // bytes of payload
}

// count is a sink.
func (e *ends) count(pkts [][]byte) {
	for _, p := range pkts {
		e.received.Add(int64(len(p) - packet.VNetLen - 40)) // without headers
	}
}

func engines(b *testing.B, real bool, gso overlay.Offload) *ends {
	e := &ends{received: new(atomic.Int64)}
	net := overlaytest.New(overlaytest.Config{})
	if real {
		net = nil
	}
	nodes := make([]*node, 2)
	for i := range nodes {
		nodes[i] = start(b, net, byte(i+1), func(c *overlay.WireGuardConfig) {
			c.Sink, c.Logger = e.count, nil
			if real {
				c.ListenPort, c.UDP.GSO = 0, gso
			}
		})
		if real {
			port, err := nodes[i].Port()
			if err != nil {
				b.Fatal(err)
			}
			nodes[i].at = netip.AddrPortFrom(addr("127.0.0.1"), port)
		}
	}
	mesh(b, nodes...)
	e.send = nodes[0].Send
	return e
}

func benchStream(b *testing.B, name string, e *ends) {
	const size, window = 43 * 1380, 16 * 43 * 1380
	pkt := tcpSuper(pod4(1), pod4(2), 1, make([]byte, size), 1380)
	for e.received.Load() == 0 { // wait for the session
		_ = e.send(udp(pod4(1), pod4(2), strings.Repeat("x", 100)))
		time.Sleep(time.Millisecond)
	}
	time.Sleep(50 * time.Millisecond)
	e.received.Store(0)
	b.SetBytes(size)
	b.ReportAllocs()
	cpu := cpuTime(b)
	var sent, lost int64
	for b.Loop() {
		// A window, as TCP keeps one; what is lost is given up after a while.
		for waited := time.Now(); sent-lost-e.received.Load() > window; time.Sleep(20 * time.Microsecond) {
			if time.Since(waited) > 200*time.Millisecond {
				lost = sent - e.received.Load()
			}
		}
		if e.send(pkt) == nil {
			sent += size
		}
	}
	for waited := time.Now(); e.received.Load() < sent-lost && time.Since(waited) < time.Second; {
		time.Sleep(time.Millisecond)
	}
	spent := cpuTime(b) - cpu
	if lost > 0 {
		b.Logf("%.2f %% lost", 100*float64(lost)/float64(sent))
	}
	figure("stream_"+name+"_cpu", float64(spent.Nanoseconds())/float64(sent), "ns/byte")
	figure("stream_"+name+"_rate", float64(sent)*8/b.Elapsed().Seconds()/1e9, "Gbit/s")
}

// BenchmarkSend is what the router's worker spends on a packet, but for the
// socket.
func BenchmarkSend(b *testing.B) {
	for _, size := range []int{64, 59340} {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			a, quiet := quietPair(b)
			quiet.Store(true)
			pkt := tcpSuper(pod4(1), pod4(2), 1, make([]byte, size), 1380)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if err := a.Send(pkt); err != nil {
					b.Fatal(err)
				}
			}
			figure(fmt.Sprintf("send_%d", size), float64(b.Elapsed().Nanoseconds())/float64(b.N), "ns")
		})
	}
}

// quietWire is a wire that can be made to send nothing.
type quietWire struct {
	*overlaytest.Wire

	quiet atomic.Bool
}

func (q *quietWire) Send(buf []byte, size int, to netip.AddrPort) error {
	if q.quiet.Load() {
		return nil
	}
	return q.Wire.Send(buf, size, to)
}

// quietPair is an engine with a session, whose sockets can be silenced.
func quietPair(t testing.TB) (*node, *atomic.Bool) {
	t.Helper()
	net := overlaytest.New(overlaytest.Config{})
	wire := &quietWire{Wire: net.Wire(addr("192.0.2.1"))}
	a := start(t, net, 1, func(c *overlay.WireGuardConfig) { c.Wire, c.Logger = wire, nil })
	b := start(t, net, 2, nil)
	mesh(t, a, b)
	a.send(t, udp(pod4(1), pod4(2), "session"))
	b.in.waitN(t, "packet", 1)
	settle(t, a, b)
	return a, &wire.quiet
}

// BenchmarkIdle1000 is the memory of a mesh of 1000 peers.
func BenchmarkIdle1000(b *testing.B) {
	debug.FreeOSMemory()
	alone := rss(b)
	a := start(b, overlaytest.New(overlaytest.Config{}), 1, func(c *overlay.WireGuardConfig) { c.Logger = nil })
	before := rss(b)
	peers := make([]overlay.Peer, 1000)
	for i := range peers {
		peers[i] = overlay.Peer{
			Node: fmt.Sprint("n", i), PublicKey: newKey(b).Public(), Endpoint: netip.AddrPortFrom(addr("192.0.2.9"), uint16(i+1)),
			AllowedIPs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)},
		}
	}
	for b.Loop() {
		if err := a.Apply(nil); err != nil {
			b.Fatal(err)
		}
		if err := a.Apply(peers); err != nil {
			b.Fatal(err)
		}
	}
	figure("idle_rss", float64(before-alone)/(1<<20), "MiB")
	figure("idle_rss_per_peer", float64(rss(b)-before)/(1<<10)/1000, "KiB")
	figure("apply_1000_peers", b.Elapsed().Seconds()*1e3/float64(b.N), "ms")
}

func TestSendDoesNotAllocate(t *testing.T) {
	// Not parallel: it counts allocations.
	a, quiet := quietPair(t)
	quiet.Store(true)
	for name, pkt := range map[string][]byte{
		"a packet for nobody": udp(pod4(1), addr("10.77.0.1"), "x"),
		"a small packet":      udp(pod4(1), pod4(2), "x"),
		"a super-packet":      tcpSuper(pod6(1), pod6(2), 1, make([]byte, 60000), 1300),
	} {
		if got := testing.AllocsPerRun(1000, func() { _ = a.Send(pkt) }); got != 0 {
			t.Errorf("%s: %v allocations", name, got)
		}
	}
}

// TestStreamDoesNotAllocate counts what both ends allocate, sockets included.
func TestStreamDoesNotAllocate(t *testing.T) {
	// Not parallel: it counts allocations.
	var got atomic.Int64
	nodes := make([]*node, 2)
	for i := range nodes {
		nodes[i] = start(t, nil, byte(i+1), func(c *overlay.WireGuardConfig) {
			c.ListenPort, c.Logger = 0, nil
			c.Sink = func(pkts [][]byte) { got.Add(int64(len(pkts))) }
		})
		port, err := nodes[i].Port()
		if err != nil {
			t.Fatal(err)
		}
		nodes[i].at = netip.AddrPortFrom(addr("127.0.0.1"), port)
	}
	mesh(t, nodes...)
	a, b := nodes[0], nodes[1]
	settle(t, a, b)
	pkt := tcpSuper(pod4(1), pod4(2), 1, make([]byte, 50000), 1380)
	send := func(n int) {
		want := b.Counters().RxSegments
		for range n {
			a.send(t, pkt)
			want += 37
			until(t, "packet", func() bool { return b.Counters().RxSegments == want })
		}
	}
	send(20)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	send(200)
	runtime.ReadMemStats(&after)
	if n := after.Mallocs - before.Mallocs; n > 600 { // the waiting allocates, too, and pools under the race detector
		t.Errorf("%d allocations for 200 super-packets of 37 segments", n)
	}
}

// figure prints a result the way all benchmarks of the project do.
func figure(name string, value float64, unit string) {
	fmt.Printf("figure overlay_%s %.4g %s\n", name, value, unit)
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// rss is the process's resident memory in bytes.
func rss(b *testing.B) int {
	b.Helper()
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		b.Skip(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(text))[1])
	if err != nil {
		b.Fatal(err)
	}
	return pages * os.Getpagesize()
}
