package netstack_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"

	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/netstack"
	"github.com/netctl/netctl/internal/nodeport"
	"github.com/netctl/netctl/internal/packet"
)

// behind is a node socket on loopback whose backend is the pod, so that a real
// client, both packages and a pod's stack are in one line. The client comes from
// loopback, so the pod sees the router's address: out.
func behind(t testing.TB, n *network, f family, proto model.Protocol, port uint16) netip.AddrPort {
	t.Helper()
	s := nodeport.New(nodeport.Config{
		Place: func(a netip.Addr) nodeport.Place {
			if a == f.pod {
				return nodeport.PlacePod
			}
			return nodeport.PlaceOutside
		},
		Router: func(bool) netip.Addr { return f.out },
		Dial:   n.stack.Dial,
		Datagrams: func(src, dst netip.AddrPort, receive func([]byte)) (nodeport.Flow, error) {
			flow, err := n.stack.Datagrams(src, dst, receive)
			if err != nil {
				return nil, err // not a typed nil
			}
			return flow, nil
		},
	})
	t.Cleanup(func() { s.Close() })
	for range 20 {
		at := netip.AddrPortFrom(f.loopback, freePort(t, f))
		err := s.Apply([]nodeport.Listener{{Addr: at, Proto: proto, Owner: "test", Target: netip.AddrPortFrom(f.pod, port)}})
		if err == nil {
			return at
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			t.Fatal(err)
		}
	}
	t.Fatal("no free port")
	return netip.AddrPort{}
}

func freePort(t testing.TB, f family) uint16 {
	t.Helper()
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(f.loopback, 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

func TestNodeSocketLeadsToThePod(t *testing.T) {
	t.Parallel()
	for _, f := range families(t) {
		t.Run(f.name+"/tcp", func(t *testing.T) {
			t.Parallel()
			n := inbound(t, nil)
			seen := make(chan string, 1)
			n.serveTCP(t, f, 80, func(c *gonet.TCPConn) {
				seen <- c.RemoteAddr().(*net.TCPAddr).IP.String()
				all, _ := io.ReadAll(c)
				_, _ = c.Write(all)
			})
			c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(behind(t, n, f, model.TCP, 80)))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			data := pattern(1 << 20)
			go func() {
				_, _ = c.Write(data)
				_ = c.CloseWrite()
			}()
			if got, err := io.ReadAll(c); err != nil || string(got) != string(data) {
				t.Errorf("%d of %d bytes came back, %v", len(got), len(data), err)
			}
			if got := <-seen; got != f.out.String() {
				t.Errorf("the pod sees %s, want the router", got)
			}
		})
		t.Run(f.name+"/pod resets", func(t *testing.T) {
			t.Parallel()
			n := inbound(t, nil)
			n.serveTCP(t, f, 80, func(c *gonet.TCPConn) {
				_, _ = io.ReadFull(c, make([]byte, 1))
				abortAll(n)
			})
			c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(behind(t, n, f, model.TCP, 80)))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_, _ = c.Write([]byte("x"))
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("client reads %v, want a reset", err)
			}
		})
		t.Run(f.name+"/udp", func(t *testing.T) {
			t.Parallel()
			n := inbound(t, nil)
			n.echoUDP(t, f, 53)
			c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(behind(t, n, f, model.UDP, 53)))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			buf := make([]byte, packet.MaxSize)
			for _, size := range []int{1, 2000} { // the second in fragments both ways
				_, _ = c.Write(pattern(size))
				_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
				if m, err := c.Read(buf); err != nil || m != size {
					t.Errorf("%d bytes: %d came back, %v", size, m, err)
				}
			}
		})
	}
}

// echoUDP runs a UDP echo server in the pod.
func (n *network) echoUDP(t testing.TB, f family, port uint16) {
	t.Helper()
	conn, err := gonet.DialUDP(n.pod.stack, new(full(netip.AddrPortFrom(f.pod, port))), nil, f.proto)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, packet.MaxSize)
		for {
			m, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo(buf[:m], from)
		}
	})
	t.Cleanup(func() {
		conn.Close()
		wg.Wait()
	})
}

// BenchmarkNodePort measures a real client on loopback through a node socket to
// a pod. The client, the pod's own stack and the server are part of the cost.
func BenchmarkNodePort(b *testing.B) {
	const chunk = 1 << 20
	f := families(b)[0]
	data := make([]byte, chunk)
	dial := func(b *testing.B, to netip.AddrPort) *net.TCPConn {
		c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(to))
		if err != nil {
			b.Fatal(err)
		}
		return c
	}
	b.Run("in", func(b *testing.B) {
		n := inbound(b, nil)
		done := make(chan struct{})
		n.serveTCP(b, f, 80, func(c *gonet.TCPConn) {
			defer close(done)
			_, _ = io.Copy(io.Discard, c)
		})
		c := dial(b, behind(b, n, f, model.TCP, 80))
		defer c.Close()
		b.SetBytes(chunk)
		b.ResetTimer()
		for range b.N {
			if _, err := c.Write(data); err != nil {
				b.Fatal(err)
			}
		}
		_ = c.CloseWrite()
		<-done
		report(b, "nodeport_in", chunk)
	})
	b.Run("out", func(b *testing.B) {
		n := inbound(b, nil)
		n.serveTCP(b, f, 80, func(c *gonet.TCPConn) {
			for range b.N {
				if _, err := c.Write(data); err != nil {
					return
				}
			}
		})
		c := dial(b, behind(b, n, f, model.TCP, 80))
		defer c.Close()
		b.SetBytes(chunk)
		b.ResetTimer()
		if m, err := io.Copy(io.Discard, struct{ io.Reader }{c}); err != nil || m != int64(b.N)*chunk {
			b.Fatalf("got %d bytes, %v", m, err)
		}
		report(b, "nodeport_out", chunk)
	})
	b.Run("connections", func(b *testing.B) {
		n := inbound(b, nil)
		n.serveTCP(b, f, 80, func(c *gonet.TCPConn) { _, _ = io.Copy(c, c) })
		to := behind(b, n, f, model.TCP, 80)
		before := processorTime(b)
		b.ResetTimer()
		b.RunParallel(func(pb *testing.PB) {
			one := make([]byte, 1)
			for pb.Next() {
				c := dial(b, to)
				_, _ = c.Write(one)
				if _, err := io.ReadFull(c, one); err != nil {
					b.Error(err)
				}
				_ = c.SetLinger(0) // no TIME-WAIT: ports would run out
				c.Close()
			}
		})
		figureOf(b, "nodeport_connection", processorTime(b)-before)
	})
	b.Run("udp", func(b *testing.B) {
		n := inbound(b, nil)
		n.echoUDP(b, f, 53)
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(behind(b, n, f, model.UDP, 53)))
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		one := make([]byte, 64)
		before := processorTime(b)
		b.ResetTimer()
		for range b.N {
			_, _ = c.Write(one)
			_ = c.SetReadDeadline(time.Now().Add(time.Second))
			if _, err := c.Read(one); err != nil {
				b.Fatal(err)
			}
		}
		figureOf(b, "nodeport_udp_round_trip", processorTime(b)-before)
	})
}

// figureOf prints the time of one operation as every benchmark of the project
// does, and the processor's share of it, which a busy machine does not change.
func figureOf(b *testing.B, name string, cpu time.Duration) {
	b.StopTimer()
	each := func(d time.Duration) float64 { return float64(d.Microseconds()) / float64(b.N) }
	b.ReportMetric(each(cpu), "cpu-µs/op")
	if b.N > 100 {
		fmt.Printf("figure netstack_%s %.1f µs\n", name, each(b.Elapsed()))
		fmt.Printf("figure netstack_%s_cpu %.1f µs\n", name, each(cpu))
	}
}

// processorTime is what this process has used so far.
func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkDial is the part of a connection that is ours: from the SYN towards
// the pod to the end of its handshake, and its end.
func BenchmarkDial(b *testing.B) {
	f := families(b)[0]
	n := inbound(b, func(c *netstack.Config) { c.Limits = netstack.Limits{Inbound: 1 << 20, InboundPerClient: 1 << 20} })
	n.serveTCP(b, f, 80, func(*gonet.TCPConn) {})
	dst := netip.AddrPortFrom(f.pod, 80)
	for i := 0; b.Loop(); i++ {
		c, err := n.stack.Dial(context.Background(), f.client(uint16(1024+i%60000)), dst)
		if err != nil {
			b.Fatal(err)
		}
		_ = c.(closer).SetLinger(0)
		c.Close()
	}
}
