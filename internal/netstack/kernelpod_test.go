package netstack_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/drain"
	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/netstack"
	"github.com/netctl/netctl/internal/packet"
)

// linuxPod is a pod in a namespace of its own, whose TUN one stack after the other
// serves: the pod's TCP is Linux', not gVisor's.
type linuxPod struct {
	ns  *kernel.Namespace
	tun *kernel.TUN

	mu    sync.RWMutex // held by whoever reads
	stack *netstack.Stack
}

func startLinuxPod(t testing.TB) *linuxPod {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ns")
	ns, err := kernel.CreateNamespace(path)
	if err != nil {
		t.Skipf("no network namespace of our own: %v", err)
	}
	t.Cleanup(func() {
		ns.Close()
		if err := kernel.DeleteNamespace(path); err != nil {
			t.Error(err)
		}
	})
	addrs := []netip.Prefix{netip.PrefixFrom(pod4, 32)}
	tun, err := kernel.CreateTUNIn(ns, kernel.Interface{
		Name: "eth0", MTU: 1420, TxQueueLen: 1000, Addresses: addrs, Routes: kernel.DefaultRoutes(addrs),
	}, kernel.AllOffloads())
	if err != nil {
		t.Skipf("no TUN: %v", err)
	}
	p := &linuxPod{ns: ns, tun: tun}
	p.stack = p.process(t)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	poller, err := kernel.NewPoller()
	if err != nil {
		t.Fatal(err)
	}
	if err := poller.Add(tun.FD(), 1); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(done)
		p.read(ctx, poller)
	}()
	t.Cleanup(func() {
		stop()
		poller.Wake()
		<-done
		poller.Close()
		tun.Close()
	})
	return p
}

func (p *linuxPod) read(ctx context.Context, poller *kernel.Poller) {
	buf, events := make([]byte, packet.MaxSize), make([]kernel.Event, 1)
	for ctx.Err() == nil {
		if _, err := poller.Wait(events, -1); err != nil {
			return
		}
		for p.readOne(buf) {
		}
	}
}

func (p *linuxPod) readOne(buf []byte) bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	n, err := p.tun.Read(buf)
	if err != nil {
		return false
	}
	_ = p.stack.Write(buf[:n])
	return true
}

// process starts a stack.
func (p *linuxPod) process(t testing.TB) *netstack.Stack {
	t.Helper()
	return startStack(t, nil, func(c *netstack.Config) {
		c.Out = func(buf []byte) { _, _ = p.tun.Write(buf) }
	})
}

// handOver makes another process the one that serves and returns how long nobody
// did.
func (p *linuxPod) handOver(t testing.TB) time.Duration {
	t.Helper()
	ours, fd, err := drain.Pair()
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := drain.Conn(fd)
	if err != nil {
		t.Fatal(err)
	}
	next := p.process(t)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	p.mu.Lock()
	defer p.mu.Unlock()
	began, old := time.Now(), p.stack
	wg.Go(func() { _ = drain.Old(ctx, ours, drain.Ends{Stack: old}) })
	h, err := drain.New(context.Background(), theirs, drain.Ends{Stack: next})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Serve(context.Background()); err != nil {
		t.Fatal(err)
	}
	p.stack = next
	gap := time.Since(began)
	wg.Go(func() { _ = h.Run(context.Background()) })
	t.Cleanup(func() {
		cancel()
		h.Close()
		wg.Wait()
	})
	return gap
}

func (p *linuxPod) dial(t testing.TB, port uint16) *net.TCPConn {
	t.Helper()
	var c *net.TCPConn
	err := p.ns.Do(func() (err error) {
		c, err = net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(netip.AddrPortFrom(out4, port)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestLinuxPodLivesThroughHandovers: a pod's kernel notices nothing of ten
// processes that come after each other in the middle of everything.
func TestLinuxPodLivesThroughHandovers(t *testing.T) {
	t.Parallel()
	const handovers, size = 10, 64 << 20
	f := families(t)[0]
	echo := listen(t, f, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	bulkPort := listen(t, f, func(c *net.TCPConn) {
		_, _ = io.Copy(c, c)
		_ = c.CloseWrite()
	})
	p := startLinuxPod(t)
	idle := make([]*net.TCPConn, 50)
	for i := range idle {
		idle[i] = p.dial(t, echo)
	}
	data := pattern(1 << 20)
	c := p.dial(t, bulkPort)
	want := sha256.New()
	for range size / len(data) {
		want.Write(data)
	}
	go func() {
		for range size / len(data) {
			if _, err := c.Write(data); err != nil {
				t.Error(err)
				return
			}
		}
		_ = c.CloseWrite()
	}()
	got, longest := sha256.New(), time.Duration(0)
	for i := range handovers {
		if _, err := io.CopyN(got, c, size/handovers/2); err != nil {
			t.Fatalf("after %d handovers: %v", i, err)
		}
		longest = max(longest, p.handOver(t))
		speak(t, p.dial(t, echo), "new")
	}
	if n, err := io.Copy(got, c); err != nil || [32]byte(got.Sum(nil)) != [32]byte(want.Sum(nil)) {
		t.Errorf("the last %d bytes: %v, or not those that were sent", n, err)
	}
	for i, c := range idle {
		speak(t, c, fmt.Sprint("idle ", i))
	}
	t.Logf("the longest of %d handovers with %d connections took %s", handovers, len(idle)+1, longest)
}

// TestLinuxPodIsKnocked: a Linux pod that only waits hears of a crash.
func TestLinuxPodIsKnocked(t *testing.T) {
	t.Parallel()
	f := families(t)[0]
	port := listen(t, f, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	p := startLinuxPod(t)
	c := p.dial(t, port)
	speak(t, c, "hello")
	next := p.process(t)
	p.mu.Lock()
	p.stack = next
	p.mu.Unlock()
	from := c.LocalAddr().(*net.TCPAddr).AddrPort()
	next.Knock(packet.Tuple{
		Src: packet.AddrFrom(pod4), SrcPort: from.Port(), Dst: packet.AddrFrom(out4), DstPort: port, Proto: packet.ProtoTCP,
	}, false)
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the waiting pod reads %v, want a reset", err)
	}
}

// BenchmarkDrained is a pod's download through its own process and, after a
// handover, through its predecessor.
func BenchmarkDrained(b *testing.B) {
	const chunk = 1 << 20
	f := families(b)[0]
	data := make([]byte, chunk)
	for _, handovers := range []int{0, 1, 2} {
		b.Run(strconv.Itoa(handovers), func(b *testing.B) {
			p := startLinuxPod(b)
			c := p.dial(b, listen(b, f, func(c *net.TCPConn) {
				for {
					if _, err := c.Write(data); err != nil {
						return
					}
				}
			}))
			for range handovers {
				p.handOver(b)
			}
			buf := make([]byte, chunk)
			b.SetBytes(chunk)
			b.ResetTimer()
			for range b.N {
				if _, err := io.ReadFull(c, buf); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			c.Close()
		})
	}
}
