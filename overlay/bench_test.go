package overlay_test

import (
	"fmt"
	"net/netip"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/netctl/netctl/overlay"
	"github.com/netctl/netctl/overlay/overlaytest"
)

// BenchmarkStream sends one TCP stream of super-packets through two engines:
// cut, sealed, sent, received, opened, put together. Both ends are in this
// process, so ns/byte is what two nodes spend together.
func BenchmarkStream(b *testing.B) {
	for _, tt := range []struct {
		name string
		udp  bool
		gso  overlay.Offload
	}{
		{"memory", false, overlay.OffloadAuto},
		{"udp", true, overlay.OffloadOn},
		{"udp-no-gso", true, overlay.OffloadOff},
	} {
		b.Run(tt.name, func(b *testing.B) { benchStream(b, tt.name, tt.udp, tt.gso) })
	}
}

func benchStream(b *testing.B, name string, real bool, gso overlay.Offload) {
	debug.FreeOSMemory()
	alone := rss(b)
	var got atomic.Int64
	sink := func(pkts [][]byte) {
		for _, p := range pkts {
			got.Add(int64(len(p) - 50)) // without headers
		}
	}
	net := overlaytest.New(overlaytest.Config{})
	if real {
		net = nil
	}
	nodes := make([]*node, 2)
	for i := range nodes {
		nodes[i] = start(b, net, byte(i+1), func(c *overlay.WireGuardConfig) {
			c.Sink, c.Logger = sink, nil
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
	a, z := nodes[0], nodes[1]
	const size, window = 43 * 1380, 16 * 43 * 1380
	pkt := tcpSuper(pod4(1), pod4(2), 1, make([]byte, size), 1380)
	for got.Load() == 0 { // wait for the session
		a.send(b, udp(pod4(1), pod4(2), strings.Repeat("x", 100)))
		time.Sleep(time.Millisecond)
	}
	time.Sleep(20 * time.Millisecond)
	got.Store(0)
	b.SetBytes(size)
	b.ReportAllocs()
	rx, tx, cpu := z.Counters(), a.Counters(), cpuTime(b)
	var sent, lost int64
	for b.Loop() {
		// A window, as TCP keeps one; what is lost is given up after a while.
		for waited := time.Now(); sent-lost-got.Load() > window; time.Sleep(20 * time.Microsecond) {
			if time.Since(waited) > 200*time.Millisecond {
				lost = sent - got.Load()
			}
		}
		if a.Send(pkt) == nil {
			sent += size
		}
	}
	for waited := time.Now(); got.Load() < sent-lost && time.Since(waited) < time.Second; {
		time.Sleep(time.Millisecond)
	}
	spent := cpuTime(b) - cpu
	rx2, tx2 := z.Counters(), a.Counters()
	if lost > 0 {
		b.Logf("%.2f %% lost", 100*float64(lost)/float64(sent))
	}
	segments := float64(rx2.RxSegments-rx.RxSegments) / float64(rx2.RxPackets-rx.RxPackets)
	figure("stream_"+name+"_cpu", float64(spent.Nanoseconds())/float64(sent), "ns/byte")
	figure("stream_"+name+"_segments", segments, "per-super-packet")
	figure("stream_"+name+"_datagrams", float64(tx2.TxDatagrams-tx.TxDatagrams)/float64(tx2.TxBatches-tx.TxBatches), "per-send")
	figure("stream_"+name+"_rss", float64(rss(b)-alone)/(1<<20), "MiB") // of both engines
}

// BenchmarkSend is what the router's worker spends on a packet.
func BenchmarkSend(b *testing.B) {
	for _, size := range []int{64, 59340} {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			a := start(b, overlaytest.New(overlaytest.Config{}), 1, func(c *overlay.WireGuardConfig) { c.Logger = nil })
			peer := overlay.Peer{Node: "x", PublicKey: newKey(b).Public(), Endpoint: ports("192.0.2.9:1"), AllowedIPs: []netip.Prefix{prefix("10.0.2.0/24")}}
			if err := a.Apply([]overlay.Peer{peer}); err != nil {
				b.Fatal(err)
			}
			pkt := tcpSuper(pod4(1), pod4(2), 1, make([]byte, size), 1380)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				_ = a.Send(pkt) // dropped behind the ring: the peer does not answer
			}
			figure(fmt.Sprintf("send_%d", size), float64(b.Elapsed().Nanoseconds())/float64(b.N), "ns")
		})
	}
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
	a, b := pair(t, overlaytest.New(overlaytest.Config{}))
	a.send(t, udp(pod4(1), pod4(2), "session"))
	b.in.waitN(t, "packet", 1)
	stranger := udp(pod4(1), addr("10.77.0.1"), "x")
	if got := testing.AllocsPerRun(1000, func() { _ = a.Send(stranger) }); got != 0 {
		t.Errorf("a packet for nobody: %v allocations", got)
	}
	// The engine's own goroutines allocate elsewhere: fill the ring of an engine
	// whose peer does not answer, so that they are idle.
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	pkt := tcpSuper(pod6(1), pod6(2), 1, make([]byte, 60000), 1300)
	for range 100 {
		_ = a.Send(pkt)
	}
	if got := testing.AllocsPerRun(1000, func() { _ = a.Send(pkt) }); got >= 1 {
		t.Errorf("a super-packet: %v allocations", got)
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
