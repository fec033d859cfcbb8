package netstack_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/netstack"
	"github.com/netctl/netctl/internal/packet"
)

func TestManyConnections(t *testing.T) {
	t.Parallel()
	for _, f := range families(t) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			port := listen(t, f, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
			n := start(t, nil)
			data := pattern(32 << 10)
			var wg sync.WaitGroup
			for range 200 {
				wg.Go(func() {
					ctx, cancel := context.WithTimeout(context.Background(), patience)
					defer cancel()
					c, err := n.dial(ctx, f, port)
					if err != nil {
						t.Errorf("dial: %v", err)
						return
					}
					defer c.Close()
					go func() {
						_, _ = c.Write(data)
						_ = c.CloseWrite()
					}()
					if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, data) {
						t.Errorf("echo of %d bytes gave %d, %v", len(data), len(got), err)
					}
				})
			}
			wg.Wait()
			if st := n.stack.Stats(); st.Opened != 200 {
				t.Errorf("opened %d, want 200", st.Opened)
			}
			eventually(t, "connections are given back", func() bool {
				st := n.stack.Stats()
				return st.Conns == 0 && st.Dials == 0
			})
		})
	}
}

// stalled waits until a counter stands still and returns it.
func stalled(t testing.TB, count func() uint64) uint64 {
	t.Helper()
	last, same := count(), 0
	eventually(t, "the sender is stopped", func() bool {
		now := count()
		if now != last || now == 0 {
			last, same = now, 0
		} else {
			same++
		}
		return same > 75
	})
	return last
}

// What the kernel buffers on loopback (tcp_wmem + tcp_rmem, about 10 MiB at
// their default maxima) is not ours; without backpressure all of it would pass.
const (
	flood   = 32 << 20
	inhaled = 24 << 20
)

func TestSlowServerStopsThePod(t *testing.T) {
	t.Parallel()
	f := families(t)[0]
	resume, got := make(chan struct{}), make(chan [32]byte, 1)
	port := listen(t, f, func(c *net.TCPConn) {
		<-resume
		h := sha256.New()
		_, _ = io.Copy(h, c)
		got <- [32]byte(h.Sum(nil))
	})
	n := start(t, nil)
	c := n.mustDial(t, f, port)
	data := pattern(flood)
	go func() {
		_, _ = c.Write(data)
		_ = c.CloseWrite()
	}()
	if moved := stalled(t, func() uint64 { return n.stack.Stats().BytesUp }); moved > inhaled {
		t.Errorf("took %d bytes that nobody reads", moved)
	}
	close(resume)
	if <-got != sha256.Sum256(data) {
		t.Error("what arrived after the pause is not what was sent")
	}
}

func TestSlowPodStopsTheServer(t *testing.T) {
	t.Parallel()
	f := families(t)[0]
	data := pattern(flood)
	port := listen(t, f, func(c *net.TCPConn) { _, _ = c.Write(data) })
	n := start(t, nil)
	c := n.mustDial(t, f, port)
	if moved := stalled(t, func() uint64 { return n.stack.Stats().BytesDown }); moved > inhaled {
		t.Errorf("took %d bytes that nobody reads", moved)
	}
	h := sha256.New()
	if _, err := io.Copy(h, c); err != nil {
		t.Fatal(err)
	}
	if [32]byte(h.Sum(nil)) != sha256.Sum256(data) {
		t.Error("what arrived after the pause is not what was sent")
	}
}

func TestDialErrorsReachThePod(t *testing.T) {
	t.Parallel()
	reset := func(p *packet.Packet) bool { return p.TCPFlags&packet.TCPRst != 0 }
	for _, f := range families(t) {
		for name, c := range map[string]struct {
			err  error
			want func(*packet.Packet) bool // nil: no answer
		}{
			"refused":          {syscall.ECONNREFUSED, reset},
			"host unreachable": {syscall.EHOSTUNREACH, unreachable(packet.UnreachHost)},
			"no route":         {syscall.ENETUNREACH, unreachable(packet.UnreachNet)},
			"prohibited":       {syscall.EACCES, unreachable(packet.UnreachAdmin)},
			"timeout":          {syscall.ETIMEDOUT, nil},
			"deadline":         {context.DeadlineExceeded, nil},
			"no descriptors":   {syscall.EMFILE, nil},
		} {
			t.Run(f.name+"/"+name, func(t *testing.T) {
				t.Parallel()
				n := start(t, func(cfg *netstack.Config) {
					cfg.DialTCP = func(context.Context, netip.AddrPort) (net.Conn, error) {
						return nil, &net.OpError{Op: "dial", Err: c.err}
					}
				})
				got := n.capture()
				_ = n.stack.Write(f.syn(4001, 80))
				if c.want == nil {
					eventually(t, "attempt ends", func() bool { st := n.stack.Stats(); return st.Dialled == 1 && st.Dials == 0 })
					got.none(t)
					return
				}
				p := got.next(t, name, c.want)
				if p.Kind == packet.KindICMPError && (p.Inner.SrcPort != 4001 || p.Inner.DstPort != 80) {
					t.Errorf("error quotes %s", p.Inner)
				}
			})
		}
	}
}

// never dials until the context ends.
func never(ctx context.Context, _ netip.AddrPort) (net.Conn, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestFloodOfSYNsLeavesRoomForOthers(t *testing.T) {
	t.Parallel()
	f := families(t)[0]
	var other atomic.Int64
	good := netip.MustParseAddr("198.51.100.7")
	n := start(t, func(c *netstack.Config) {
		c.Limits = netstack.Limits{Dials: 64, DialsPerPod: 48}
		c.DialTCP = func(ctx context.Context, dst netip.AddrPort) (net.Conn, error) {
			if dst.Addr() == good {
				other.Add(1)
			}
			return never(ctx, dst)
		}
	})
	for _, attacker := range []string{"10.1.0.66", "10.1.0.67", "10.1.0.68"} {
		f.pod = netip.MustParseAddr(attacker)
		for port := range uint16(2000) {
			_ = n.stack.Write(f.syn(1024+port, 80))
		}
	}
	st := n.stack.Stats()
	if st.Dials > 60 {
		t.Errorf("three attackers hold %d of 64 dials", st.Dials)
	}
	if st.Drops[netstack.DropDialLimit] < 5900 {
		t.Errorf("dropped only %d", st.Drops[netstack.DropDialLimit])
	}
	f.pod, f.out = netip.MustParseAddr("10.1.0.5"), good
	_ = n.stack.Write(f.syn(4000, 443))
	_ = n.stack.Write(f.syn(4000, 443)) // repeated: still one attempt
	eventually(t, "another pod is dialled", func() bool { return other.Load() == 1 })
	for _, attacker := range []string{"10.1.0.66", "10.1.0.67", "10.1.0.68"} {
		n.stack.Forget(netip.MustParseAddr(attacker))
	}
	eventually(t, "forgotten pods give their dials back", func() bool { return n.stack.Stats().Dials == 1 })
}

func TestConnectionLimit(t *testing.T) {
	t.Parallel()
	f := families(t)[0]
	port := listen(t, f, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	n := start(t, func(c *netstack.Config) { c.Limits = netstack.Limits{Conns: 100, ConnsPerPod: 2} })
	first := n.mustDial(t, f, port)
	n.mustDial(t, f, port)
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if c, err := n.dial(ctx, f, port); err == nil {
		c.Close()
		t.Error("third connection of a pod with two came up")
	}
	if n.stack.Stats().Drops[netstack.DropConnLimit] == 0 {
		t.Error("not counted")
	}
	first.Close()
	n.mustDial(t, f, port)
}

func TestUDPFlowsGiveWay(t *testing.T) {
	t.Parallel()
	f := families(t)[0]
	port := udpEcho(t, f)
	n := start(t, func(c *netstack.Config) { c.Limits = netstack.Limits{Flows: 1000, FlowsPerPod: 16} })
	got := n.capture()
	for i := range 100 {
		buf := packet.UDP(make([]byte, packet.MaxSize), netip.AddrPortFrom(f.pod, 4000+uint16(i)), netip.AddrPortFrom(f.out, port), []byte{byte(i)})
		_ = n.stack.Write(buf)
		got.next(t, "echo", isUDP)
	}
	st := n.stack.Stats()
	if st.Flows > 16 || st.FlowsEvicted < 84 {
		t.Errorf("%d flows, %d evicted", st.Flows, st.FlowsEvicted)
	}
	n.stack.Forget(f.pod)
	eventually(t, "forgotten pod has no flow", func() bool { return n.stack.Stats().Flows == 0 })
}

func TestForgetResetsConnections(t *testing.T) {
	t.Parallel()
	f := families(t)[0]
	gone := make(chan error, 1)
	port := listen(t, f, func(c *net.TCPConn) {
		_, err := c.Read(make([]byte, 1))
		gone <- err
	})
	n := start(t, nil)
	c := n.mustDial(t, f, port)
	eventually(t, "connection is open", func() bool { return n.stack.Stats().Opened == 1 })
	n.stack.Forget(f.pod)
	if err := <-gone; err == nil || !strings.Contains(err.Error(), "reset") {
		t.Errorf("server read %v, want a reset", err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("pod's connection lives on")
	}
}

// Not parallel: it counts the goroutines of the process.
func TestCloseLeavesNothing(t *testing.T) {
	f := families(t)[0]
	before := runtime.NumGoroutine()
	t.Run("busy", func(t *testing.T) {
		port := listen(t, f, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
		echo := udpEcho(t, f)
		n := start(t, func(c *netstack.Config) {
			dial := c.DialTCP
			c.DialTCP = func(ctx context.Context, dst netip.AddrPort) (net.Conn, error) {
				if dst.Port() == 81 {
					return never(ctx, dst)
				}
				return dial(ctx, dst)
			}
		})
		got := n.capture()
		for range 20 {
			c := n.mustDial(t, f, port)
			go func() { _, _ = io.Copy(c, neverEnding{}) }()
		}
		for i := range uint16(20) {
			_ = n.stack.Write(f.syn(5000+i, 81))   // being dialled
			_ = n.stack.Write(f.syn(6000+i, port)) // handshake never completed
			_ = n.stack.Write(packet.UDP(make([]byte, packet.MaxSize), netip.AddrPortFrom(f.pod, i+1), netip.AddrPortFrom(f.out, echo), []byte("x")))
			_ = n.stack.Write(packet.Echo(make([]byte, packet.MaxSize), packet.EchoHeader{Src: f.pod, Dst: f.loopback, ID: i}, nil))
		}
		got.next(t, "echo", isUDP)
		stop := make(chan struct{})
		var writers sync.WaitGroup
		writers.Go(func() { // Close may come in the middle of a Write
			for i := uint16(0); ; i++ {
				select {
				case <-stop:
					return
				default:
					_ = n.stack.Write(f.syn(7000+i%1000, port))
					_ = n.stack.Write(f.udp(echo, nil))
				}
			}
		})
		defer writers.Wait()
		defer close(stop)
		begin := time.Now()
		if err := n.stack.Close(); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(begin); d > 3*time.Second {
			t.Errorf("Close took %s", d)
		}
		if err := n.stack.Write(f.syn(1, 2)); !errors.Is(err, netstack.ErrClosed) {
			t.Errorf("Write after Close: %v", err)
		}
		if st := n.stack.Stats(); st.Dials+st.Conns+st.Flows+st.Echoes != 0 {
			t.Errorf("left: %d dials, %d connections, %d flows, %d pings", st.Dials, st.Conns, st.Flows, st.Echoes)
		}
	})
	for deadline := time.Now().Add(patience); runtime.NumGoroutine() > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
	}
}

// neverEnding is a source of zeros.
type neverEnding struct{}

func (neverEnding) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func TestHostGuard(t *testing.T) {
	t.Parallel()
	var g netstack.HostGuard
	for _, a := range []string{
		"0.0.0.0", "0.1.2.3", "127.0.0.1", "127.8.9.1", "169.254.169.254", "224.0.0.1", "239.1.1.1", "255.255.255.255",
		"::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:192.0.2.1", "fe80::1", "ff02::1", "2002:7f00:1::1",
	} {
		if g.Refuse(netip.MustParseAddr(a)) == nil {
			t.Errorf("%s is allowed", a)
		}
	}
	if g.Refuse(netip.Addr{}) == nil {
		t.Error("no address is allowed")
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range own {
		addr, _ := netip.AddrFromSlice(a.(*net.IPNet).IP)
		if g.Refuse(addr.Unmap()) == nil {
			t.Errorf("%s of this host is allowed", addr)
		}
	}
	for _, a := range []string{"192.0.2.1", "2001:db8::1"} {
		if err := g.Refuse(netip.MustParseAddr(a)); err != nil {
			t.Errorf("%s is refused: %v", a, err)
		}
	}
}

func TestDefaultGuardIsOn(t *testing.T) {
	t.Parallel()
	for _, f := range families(t) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			n := start(t, func(c *netstack.Config) { c.Refuse, c.DialTCP, c.DialUDP = nil, nil, nil })
			got := n.capture()
			f.out = f.loopback
			_ = n.stack.Write(f.syn(1, 22))
			got.next(t, "reset", func(p *packet.Packet) bool { return p.TCPFlags&packet.TCPRst != 0 })
			_ = n.stack.Write(f.udp(22, nil))
			got.next(t, "refusal", unreachable(packet.UnreachAdmin))
		})
	}
}

func TestConfigValidate(t *testing.T) {
	t.Parallel()
	c := netstack.Config{MTU: 500, Router4: netip.IPv6Loopback(), Router6: netip.MustParseAddr("10.0.0.1")}
	if _, err := netstack.New(c); err == nil || strings.Count(err.Error(), "\n") != 3 {
		t.Errorf("got %v, want four errors", err)
	}
}

func FuzzWrite(f *testing.F) {
	fam := families(f)
	for _, x := range fam {
		f.Add(x.syn(1, 80))
		f.Add(x.segment(1, 80, packet.TCPAck|packet.TCPFin))
		f.Add(x.udp(53, []byte("query")))
		f.Add(packet.Echo(make([]byte, 200), packet.EchoHeader{Src: x.pod, Dst: x.out, ID: 1, Seq: 2}, []byte("ping")))
		for _, frag := range fragment(x.udp(9, pattern(2000)), 1400) {
			f.Add(frag)
		}
	}
	n := start(f, func(c *netstack.Config) {
		c.Refuse = refuseAll
		c.Serve = echoOn(80)
	})
	f.Fuzz(func(t *testing.T, b []byte) {
		own := bytes.Clone(b)
		if err := n.stack.Write(own); err != nil {
			t.Fatal(err)
		}
		// The same behind a sound header, so that more than Parse is reached.
		for _, x := range fam {
			buf := x.udp(80, b[:min(len(b), 1200)])
			if len(b) > 0 {
				x.protocol(buf[packet.VNetLen:], b[0])
			}
			_ = n.stack.Write(buf)
		}
	})
}

// TestForgetDuringTheHandshake: the pod is deleted when its connection is dialled
// but not yet open.
func TestForgetDuringTheHandshake(t *testing.T) {
	t.Parallel()
	f := families(t)[0]
	port := listen(t, f, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	n := start(t, nil)
	n.pod.watch(func(buf []byte) {
		p := packet.Packet{Buf: buf}
		if packet.Parse(&p) == packet.FaultNone && p.TCPFlags&packet.TCPSyn != 0 {
			n.stack.Forget(f.pod)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if c, err := n.dial(ctx, f, port); err == nil {
		defer c.Close()
	}
	eventually(t, "the connection is gone", func() bool { return n.stack.Stats().Conns == 0 && n.stack.Stats().Dials == 0 })
}
