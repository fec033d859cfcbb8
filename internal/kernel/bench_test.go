package kernel_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/kernel"
)

// figure prints the median of the samples in the form that the project's
// benchmarks share, on a line of its own.
func figure(b *testing.B, name string, samples []time.Duration) {
	b.Helper()
	if len(samples) == 0 {
		return
	}
	slices.Sort(samples)
	median := samples[len(samples)/2]
	fmt.Printf("\nfigure kernel_%s %.1f us\n", name, float64(median.Nanoseconds())/1e3)
	b.ReportMetric(float64(median.Nanoseconds()), "median-ns/op")
}

// BenchmarkCreateAndMove is the kernel's part of a CNI ADD: a TUN made, moved,
// renamed, addressed, routed and made persistent. Removal is not timed.
func BenchmarkCreateAndMove(b *testing.B) {
	needTUN(b)
	home, pod := newNS(b), newNS(b)
	cfg := podInterface()
	cfg.Persist = true
	var samples []time.Duration
	for b.Loop() {
		start := time.Now()
		var tun *kernel.TUN
		err := home.Do(func() (err error) {
			if tun, err = kernel.CreateTUN(kernel.TUNConfig{Name: "nctl%d", TxQueueLen: 1000, Offloads: kernel.AllOffloads()}); err != nil {
				return err
			}
			return tun.MoveInto(pod, cfg)
		})
		samples = append(samples, time.Since(start))
		b.StopTimer()
		if err != nil {
			b.Fatal(err)
		}
		if err := tun.Destroy(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	figure(b, "tun_create_move", samples)
}

// BenchmarkCreateIn is the same with the TUN made where it is used.
func BenchmarkCreateIn(b *testing.B) {
	needTUN(b)
	pod := newNS(b)
	cfg := podInterface()
	cfg.Persist, cfg.TxQueueLen = true, 1000
	var samples []time.Duration
	for b.Loop() {
		start := time.Now()
		tun, err := kernel.CreateTUNIn(pod, cfg, kernel.AllOffloads())
		samples = append(samples, time.Since(start))
		b.StopTimer()
		if err != nil {
			b.Fatal(err)
		}
		if err := tun.Destroy(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	figure(b, "tun_create_in", samples)
}

// BenchmarkReattach is what a restarted agent does per pod.
func BenchmarkReattach(b *testing.B) {
	needTUN(b)
	home, pod := newNS(b), newNS(b)
	cfg := podInterface()
	cfg.Persist = true
	tun := newTUN(b, home, kernel.TUNConfig{Name: "nctl%d", Offloads: kernel.AllOffloads()})
	moveIn(b, home, tun, pod, cfg)
	index := tun.Index()
	if err := tun.Close(); err != nil {
		b.Fatal(err)
	}
	var samples []time.Duration
	for b.Loop() {
		start := time.Now()
		again, err := kernel.AttachTUN(pod, "eth0", index)
		samples = append(samples, time.Since(start))
		b.StopTimer()
		if err != nil {
			b.Fatal(err)
		}
		if err := again.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	figure(b, "tun_reattach", samples)
	if err := kernel.DeleteInterface(pod, "eth0"); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkWrite is one small packet into a namespace that drops it.
func BenchmarkWrite(b *testing.B) {
	needTUN(b)
	home, pod := newNS(b), newNS(b)
	tun := newTUN(b, home, kernel.TUNConfig{Name: "nctl%d"})
	moveIn(b, home, tun, pod, podInterface())
	pkt := udp4(netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.2:9"), "payload")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := tun.Write(pkt); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkEmptyRead is a look at a TUN that has nothing.
func BenchmarkEmptyRead(b *testing.B) {
	needTUN(b)
	home := newNS(b)
	tun := newTUN(b, home, kernel.TUNConfig{})
	buf := make([]byte, kernel.VNetLen+65535)
	b.ReportAllocs()
	for b.Loop() {
		_, _ = tun.Read(buf)
	}
}

// BenchmarkPollerSpin is a look at 100 descriptors of which none is ready.
func BenchmarkPollerSpin(b *testing.B) {
	p := newPoller(b)
	for i := range 100 {
		r, _ := pipe(b)
		if err := p.Add(r, uint64(i)); err != nil {
			b.Fatal(err)
		}
	}
	events := make([]kernel.Event, 64)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.Wait(events, 0); err != nil {
			b.Fatal(err)
		}
	}
}
