package netstack_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"

	"github.com/netctl/netctl/internal/netstack"
	"github.com/netctl/netctl/internal/packet"
)

// client is an address outside with a port.
func (f family) client(port uint16) netip.AddrPort { return netip.AddrPortFrom(f.out, port) }

// inbound is a network whose stack opens connections to the pod; the pod's
// answers come by the port for them.
func inbound(t testing.TB, change func(*netstack.Config)) *network {
	t.Helper()
	n := start(t, func(c *netstack.Config) {
		out := c.Out
		c.Inbound = func(buf []byte) { out(buf) }
		c.Out = func(buf []byte) { t.Errorf("%d bytes leave where pods' connections do", len(buf)) }
		if change != nil {
			change(c)
		}
	})
	n.pod.send = n.stack.InboundPort().Write
	return n
}

// serveTCP runs a TCP server in the pod until the end of the test.
func (n *network) serveTCP(t testing.TB, f family, port uint16, serve func(*gonet.TCPConn)) {
	t.Helper()
	l, err := gonet.ListenTCP(n.pod.stack, full(netip.AddrPortFrom(f.pod, port)), f.proto)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				serve(c.(*gonet.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
}

func (n *network) mustDialInto(t testing.TB, src, dst netip.AddrPort) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := n.stack.Dial(ctx, src, dst)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// sizes remembers the largest of the packets that it is shown, from any goroutine.
type sizes struct {
	mu      sync.Mutex
	largest int // guarded by mu
}

func (s *sizes) see(buf []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.largest = max(s.largest, len(buf))
}

func (s *sizes) max() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.largest
}

func TestDialKeepsTheClient(t *testing.T) {
	t.Parallel()
	for _, f := range families(t) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			n := inbound(t, nil)
			var largest sizes
			n.pod.watch(largest.see)
			up, down := pattern(bulk), pattern(bulk + 1)[1:]
			seen, got := make(chan string, 1), make(chan [32]byte, 1)
			n.serveTCP(t, f, 80, func(c *gonet.TCPConn) {
				seen <- c.RemoteAddr().String()
				sent := make(chan struct{})
				go func() {
					defer close(sent)
					_, _ = c.Write(down)
					_ = c.CloseWrite()
				}()
				h := sha256.New()
				_, _ = io.Copy(h, c)
				got <- [32]byte(h.Sum(nil))
				<-sent
			})
			c := n.mustDialInto(t, f.client(5555), netip.AddrPortFrom(f.pod, 80))
			if from := <-seen; from != f.client(5555).String() {
				t.Errorf("the pod sees %s, want %s", from, f.client(5555))
			}
			go func() {
				_, _ = c.Write(up)
				_ = c.(interface{ CloseWrite() error }).CloseWrite()
			}()
			h := sha256.New()
			if _, err := io.Copy(h, c); err != nil {
				t.Fatal(err)
			}
			if [32]byte(h.Sum(nil)) != sha256.Sum256(down) {
				t.Error("what the pod sent is not what came")
			}
			if <-got != sha256.Sum256(up) {
				t.Error("what was sent is not what the pod got")
			}
			n.pod.watch(nil)
			if got := largest.max(); got < 32<<10 || got > packet.MaxSize {
				t.Errorf("largest packet towards the pod has %d bytes, want a super-packet", got)
			}
			c.Close()
			eventually(t, "connection is given back", func() bool { return n.stack.Stats().InboundConns == 0 })
		})
	}
}

func TestDialRefused(t *testing.T) {
	t.Parallel()
	for _, f := range families(t) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			n := inbound(t, nil)
			_, err := n.stack.Dial(context.Background(), f.client(5555), netip.AddrPortFrom(f.pod, 81))
			if !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("dial of a closed port: %v, want refused", err)
			}
			if st := n.stack.Stats(); st.InboundConns != 0 || st.InboundFailed != 1 {
				t.Errorf("%d connections left, %d failed", st.InboundConns, st.InboundFailed)
			}
		})
	}
}

func TestDatagramsKeepTheClient(t *testing.T) {
	t.Parallel()
	for _, f := range families(t) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			n := inbound(t, nil)
			conn, err := gonet.DialUDP(n.pod.stack, new(full(netip.AddrPortFrom(f.pod, 53))), nil, f.proto)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
			got := make(chan string, 4)
			flow, err := n.stack.Datagrams(f.client(5555), netip.AddrPortFrom(f.pod, 53), func(b []byte) { got <- string(b) })
			if err != nil {
				t.Fatal(err)
			}
			for _, size := range []int{1, 0, 1300, 2000, 9000} { // the last two in fragments
				want := pattern(size)
				if err := flow.Send(want); err != nil {
					t.Fatal(err)
				}
				buf := make([]byte, packet.MaxSize)
				m, from, err := conn.ReadFrom(buf)
				if err != nil || string(buf[:m]) != string(want) {
					t.Fatalf("%d bytes: pod got %d, %v", size, m, err)
				}
				if from.String() != f.client(5555).String() {
					t.Errorf("the pod sees %s, want %s", from, f.client(5555))
				}
				if _, err := conn.WriteTo(buf[:m], from); err != nil {
					t.Fatal(err)
				}
				if s := <-got; s != string(want) {
					t.Errorf("%d bytes: %d came back", size, len(s))
				}
			}
			flow.Close()
			flow.Close()
			if err := flow.Send([]byte("x")); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Send after Close: %v", err)
			}
			if st := n.stack.Stats(); st.InboundFlows != 0 {
				t.Errorf("%d flows left", st.InboundFlows)
			}
		})
	}
}

// closer is what a connection into the cluster can do beyond net.Conn.
type closer interface {
	CloseWrite() error
	SetLinger(sec int) error
}

func TestDialHalfClose(t *testing.T) {
	t.Parallel()
	for _, f := range families(t) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			n := inbound(t, nil)
			got := make(chan string, 1)
			n.serveTCP(t, f, 80, func(c *gonet.TCPConn) {
				all, _ := io.ReadAll(c) // returns only when the client's FIN is here
				_, _ = c.Write(append([]byte("re: "), all...))
			})
			n.serveTCP(t, f, 81, func(c *gonet.TCPConn) {
				_, _ = c.Write([]byte("hello"))
				_ = c.CloseWrite()
				all, _ := io.ReadAll(c)
				got <- string(all)
			})
			c := n.mustDialInto(t, f.client(5555), netip.AddrPortFrom(f.pod, 80))
			_, _ = c.Write([]byte("question"))
			if err := c.(closer).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if all, err := io.ReadAll(c); err != nil || string(all) != "re: question" {
				t.Errorf("answer %q, %v", all, err)
			}
			c = n.mustDialInto(t, f.client(5555), netip.AddrPortFrom(f.pod, 81)) // the same port, another backend
			if c.LocalAddr().String() != f.client(5555).String() {
				t.Errorf("comes from %s, want %s", c.LocalAddr(), f.client(5555))
			}
			if all, err := io.ReadAll(c); err != nil || string(all) != "hello" {
				t.Errorf("greeting %q, %v", all, err)
			}
			_, _ = c.Write([]byte("still here"))
			_ = c.(closer).CloseWrite()
			if s := <-got; s != "still here" {
				t.Errorf("pod got %q", s)
			}
		})
	}
}

func TestDialResets(t *testing.T) {
	t.Parallel()
	f := families(t)[0]
	t.Run("by the client", func(t *testing.T) {
		t.Parallel()
		n := inbound(t, nil)
		got := make(chan error, 1)
		n.serveTCP(t, f, 80, func(c *gonet.TCPConn) {
			_, err := c.Read(make([]byte, 1))
			got <- err
		})
		c := n.mustDialInto(t, f.client(5555), netip.AddrPortFrom(f.pod, 80))
		_ = c.(closer).SetLinger(0)
		c.Close()
		if err := <-got; err == nil || errors.Is(err, io.EOF) {
			t.Errorf("pod read %v, want a reset", err)
		}
		eventually(t, "connection is given back", func() bool { return n.stack.Stats().InboundConns == 0 })
	})
	for name, end := range map[string]func(n *network){
		"by the pod":    func(n *network) { abortAll(n) },
		"by forgetting": func(n *network) { n.stack.Forget(f.pod) },
		"by closing":    func(n *network) { _ = n.stack.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := inbound(t, nil)
			ready := make(chan struct{})
			n.serveTCP(t, f, 80, func(c *gonet.TCPConn) {
				close(ready)
				_, _ = c.Read(make([]byte, 1))
			})
			c := n.mustDialInto(t, f.client(5555), netip.AddrPortFrom(f.pod, 80))
			<-ready
			copied := make(chan error, 1)
			go func() {
				_, err := c.(io.WriterTo).WriteTo(io.Discard)
				copied <- err
			}()
			end(n)
			if err := <-copied; err == nil {
				t.Error("the copy ends in good order")
			}
			if _, err := c.Write([]byte("x")); err == nil {
				t.Error("a connection that was reset takes data")
			}
			c.Close()
			if st := n.stack.Stats(); st.InboundConns != 0 {
				eventually(t, "connection is given back", func() bool { return n.stack.Stats().InboundConns == 0 })
			}
		})
	}
}

func abortAll(n *network) {
	for _, e := range n.pod.stack.RegisteredEndpoints() {
		e.Abort()
	}
}

// One client port may come to two of the node's addresses that lead to one pod.
func TestSourcePortInUse(t *testing.T) {
	t.Parallel()
	for _, f := range families(t) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			n := inbound(t, nil)
			n.serveTCP(t, f, 80, func(c *gonet.TCPConn) { _, _ = io.Copy(c, c) })
			seen := map[string]bool{}
			for range 20 {
				c := n.mustDialInto(t, f.client(5555), netip.AddrPortFrom(f.pod, 80))
				_, _ = c.Write([]byte("x"))
				if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
				if addr := c.LocalAddr().(*net.TCPAddr); !addr.IP.Equal(f.out.AsSlice()) || seen[addr.String()] {
					t.Errorf("comes from %s, again or from elsewhere", addr)
				}
				seen[c.LocalAddr().String()] = true
			}
			ports := map[netip.AddrPort]bool{}
			for range 20 {
				flow, err := n.stack.Datagrams(f.client(5555), netip.AddrPortFrom(f.pod, 53), func([]byte) {})
				if err != nil {
					t.Fatal(err)
				}
				if a := flow.LocalAddr(); a.Addr() != f.out || ports[a] {
					t.Errorf("flow comes from %s, again or from elsewhere", a)
				}
				ports[flow.LocalAddr()] = true
			}
			if !seen[f.client(5555).String()] || !ports[f.client(5555)] {
				t.Error("the client's own port was never used")
			}
		})
	}
}

// A pod's own conversation with that client and port is not taken over.
func TestDatagramsAvoidThePodsFlows(t *testing.T) {
	t.Parallel()
	f := families(t)[0]
	n := start(t, func(c *netstack.Config) { c.Inbound = func([]byte) {} })
	got := n.capture()
	port := udpEcho(t, f)
	_ = n.stack.Write(f.udp(port, []byte("mine"))) // from the pod's port 4000
	got.next(t, "echo", isUDP)
	flow, err := n.stack.Datagrams(f.client(port), netip.AddrPortFrom(f.pod, 4000), func([]byte) { t.Error("got the pod's own") })
	if err != nil {
		t.Fatal(err)
	}
	if flow.LocalAddr() == f.client(port) {
		t.Error("two conversations with one tuple")
	}
	_ = n.stack.Write(f.udp(port, []byte("mine too")))
	got.next(t, "echo", isUDP)
}

func TestInboundBounds(t *testing.T) {
	t.Parallel()
	for _, f := range families(t) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			n := inbound(t, func(c *netstack.Config) {
				c.Limits = netstack.Limits{Inbound: 64, InboundPerClient: 2, InboundFlows: 64, InboundFlowsPerClient: 2}
			})
			n.serveTCP(t, f, 80, func(c *gonet.TCPConn) { _, _ = io.Copy(c, c) })
			dst := netip.AddrPortFrom(f.pod, 80)
			first := n.mustDialInto(t, f.client(1), dst)
			// A host may choose any address of its IPv6 network.
			near, far := f.out, netip.MustParseAddr("198.51.100.9")
			if f.out.Is6() {
				near, far = f.out.Next(), netip.MustParseAddr("2001:db8:9::1")
			}
			n.mustDialInto(t, netip.AddrPortFrom(near, 2), dst)
			if _, err := n.stack.Dial(context.Background(), f.client(3), dst); !errors.Is(err, netstack.ErrLimit) {
				t.Errorf("third connection of a client with two: %v", err)
			}
			n.mustDialInto(t, netip.AddrPortFrom(far, 3), dst)
			first.Close()
			eventually(t, "a place", func() bool {
				c, err := n.stack.Dial(context.Background(), f.client(3), dst)
				if err == nil {
					c.Close()
				}
				return err == nil
			})
			for i, want := range []error{nil, nil, netstack.ErrLimit} {
				if _, err := n.stack.Datagrams(f.client(uint16(i+1)), dst, func([]byte) {}); !errors.Is(err, want) {
					t.Errorf("flow %d: %v, want %v", i, err, want)
				}
			}
			if _, err := n.stack.Datagrams(netip.AddrPortFrom(far, 1), dst, func([]byte) {}); err != nil {
				t.Errorf("another client's flow: %v", err)
			}
			st := n.stack.Stats()
			if st.Conns+st.Flows != 0 {
				t.Errorf("clients outside hold %d connections and %d flows of pods'", st.Conns, st.Flows)
			}
			if st.Drops[netstack.DropInboundLimit] < 2 {
				t.Errorf("counted %d", st.Drops[netstack.DropInboundLimit])
			}
		})
	}
}

func TestDialEndsWithItsContext(t *testing.T) {
	t.Parallel()
	f := families(t)[0]
	dst := netip.AddrPortFrom(f.pod, 80)
	silent := func(c *netstack.Config) { c.Inbound = func([]byte) {} }
	t.Run("cancelled", func(t *testing.T) {
		t.Parallel()
		n := inbound(t, silent)
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		defer cancel()
		if _, err := n.stack.Dial(ctx, f.client(1), dst); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dial of a silent pod: %v", err)
		}
		if _, err := n.stack.Dial(ctx, f.client(1), dst); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dial after the deadline: %v", err)
		}
		if st := n.stack.Stats(); st.InboundConns != 0 {
			t.Errorf("%d connections left", st.InboundConns)
		}
	})
	t.Run("closed", func(t *testing.T) {
		t.Parallel()
		sent := make(chan struct{}, 16)
		n := inbound(t, func(c *netstack.Config) { c.Inbound = func([]byte) { sent <- struct{}{} } })
		got := make(chan error, 1)
		go func() {
			_, err := n.stack.Dial(context.Background(), f.client(1), dst)
			got <- err
		}()
		<-sent
		_ = n.stack.Close()
		if err := <-got; err == nil {
			t.Error("a dial outlives the stack")
		}
		if _, err := n.stack.Dial(context.Background(), f.client(1), dst); !errors.Is(err, netstack.ErrClosed) {
			t.Errorf("dial after Close: %v", err)
		}
		if _, err := n.stack.Datagrams(f.client(1), dst, func([]byte) {}); !errors.Is(err, netstack.ErrClosed) {
			t.Errorf("flow after Close: %v", err)
		}
	})
	t.Run("nonsense", func(t *testing.T) {
		t.Parallel()
		n := inbound(t, nil)
		for _, ends := range [][2]string{
			{"127.0.0.1:1", "10.1.0.5:80"},
			{"192.0.2.1:1", "127.0.0.1:80"},
			{"192.0.2.1:1", "[fd00:1::5]:80"},
			{"192.0.2.1:1", "10.1.0.5:0"},
			{"224.0.0.1:1", "10.1.0.5:80"},
			{"[fe80::1%1]:1", "[fd00:1::5]:80"},
		} {
			src, dst := netip.MustParseAddrPort(ends[0]), netip.MustParseAddrPort(ends[1])
			if _, err := n.stack.Dial(context.Background(), src, dst); err == nil {
				t.Errorf("a connection from %s to %s", src, dst)
			}
			if _, err := n.stack.Datagrams(src, dst, func([]byte) {}); err == nil {
				t.Errorf("a flow from %s to %s", src, dst)
			}
		}
	})
	t.Run("not configured", func(t *testing.T) {
		t.Parallel()
		n := start(t, nil)
		if _, err := n.stack.Dial(context.Background(), f.client(1), dst); err == nil {
			t.Error("a connection into nowhere")
		}
	})
}

// What comes for a connection that is gone, after a restart, is refused by the
// way on which its flow is known.
func TestRepliesToNothingAreRefused(t *testing.T) {
	t.Parallel()
	for _, f := range families(t) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			n := inbound(t, nil)
			got := n.capture()
			in := n.stack.InboundPort()
			_ = in.Write(f.segment(80, 5555, packet.TCPAck))
			got.next(t, "reset", func(p *packet.Packet) bool { return p.TCPFlags&packet.TCPRst != 0 })
			_ = in.Write(f.syn(80, 5555)) // no way to the outside
			got.next(t, "reset", func(p *packet.Packet) bool { return p.TCPFlags&packet.TCPRst != 0 })
			_ = in.Write(f.udp(5555, []byte("x")))
			got.next(t, "refusal", unreachable(packet.UnreachPort))
			_ = in.Write(packet.Echo(make([]byte, packet.MaxSize), packet.EchoHeader{Src: f.pod, Dst: f.out, ID: 1}, nil))
			if st := n.stack.Stats(); st.Dialled != 0 || st.FlowsOpened != 0 || st.Drops[netstack.DropNoFlow] != 4 {
				t.Errorf("dialled %d, opened %d flows, dropped %d", st.Dialled, st.FlowsOpened, st.Drops[netstack.DropNoFlow])
			}
		})
	}
}

func TestDatagramsRefused(t *testing.T) {
	t.Parallel()
	for _, f := range families(t) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			n := inbound(t, nil)
			dst := netip.AddrPortFrom(f.pod, 53) // nobody listens: the pod's stack says so
			flow, err := n.stack.Datagrams(f.client(5555), dst, func([]byte) { t.Error("an answer") })
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, "the refusal", func() bool { return errors.Is(flow.Send([]byte("x")), syscall.ECONNREFUSED) })
			if st := n.stack.Stats(); st.InboundFlows != 0 {
				t.Errorf("%d flows left", st.InboundFlows)
			}
			flow.Close() // still owed, and harmless
			again, err := n.stack.Datagrams(f.client(5555), dst, func([]byte) {})
			if err != nil || again.LocalAddr() != f.client(5555) {
				t.Errorf("the tuple is not free again: %v", err)
			}
			n.stack.Forget(f.pod)
			if err := again.Send(nil); !errors.Is(err, syscall.EHOSTUNREACH) {
				t.Errorf("send to a pod that is gone: %v", err)
			}
		})
	}
}

// A router on the way, or the tunnel's wrapping, is narrower than the pod's MTU.
func TestInboundPathMTU(t *testing.T) {
	t.Parallel()
	const narrow = 1300
	for _, f := range families(t) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			var n *network
			n = inbound(t, func(c *netstack.Config) {
				out := c.Inbound
				c.Inbound = func(buf []byte) {
					p := &packet.Packet{Buf: buf}
					if packet.Parse(p) != packet.FaultNone {
						t.Errorf("bad packet %x", buf)
						return
					}
					size := len(p.IP())
					if p.GSOSize > 0 {
						size = p.Payload + p.GSOSize
					}
					mayCut := p.Is4() && p.IP()[6]&0x40 == 0
					if size > narrow && !mayCut {
						answer := packet.TooBig(make([]byte, packet.MaxError), p, p.Tuple.Dst, narrow)
						_ = n.stack.InboundPort().Write(answer)
						return
					}
					out(buf)
				}
			})
			got := make(chan [32]byte, 1)
			n.serveTCP(t, f, 80, func(c *gonet.TCPConn) {
				h := sha256.New()
				_, _ = io.Copy(h, c)
				got <- [32]byte(h.Sum(nil))
			})
			data := pattern(1 << 20)
			c := n.mustDialInto(t, f.client(5555), netip.AddrPortFrom(f.pod, 80))
			_, _ = c.Write(data)
			_ = c.(closer).CloseWrite()
			if <-got != sha256.Sum256(data) {
				t.Error("what was sent is not what the pod got")
			}

			conn, err := gonet.DialUDP(n.pod.stack, new(full(netip.AddrPortFrom(f.pod, 53))), nil, f.proto)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
			flow, err := n.stack.Datagrams(f.client(5555), netip.AddrPortFrom(f.pod, 53), func([]byte) {})
			if err != nil {
				t.Fatal(err)
			}
			_ = flow.Send(data[:1350]) // IPv6: lost, and the size is learnt
			if f.pod.Is6() {
				_ = flow.Send(data[:1350])
			}
			buf := make([]byte, packet.MaxSize)
			_ = conn.SetReadDeadline(time.Now().Add(patience))
			if m, _, err := conn.ReadFrom(buf); err != nil || m != 1350 {
				t.Errorf("pod got %d bytes, %v", m, err)
			}
		})
	}
}

// Not parallel: it counts the goroutines of the process.
func TestCloseLeavesNothingInbound(t *testing.T) {
	f := families(t)[0]
	before := runtime.NumGoroutine()
	t.Run("busy", func(t *testing.T) {
		n := inbound(t, func(c *netstack.Config) {
			out := c.Inbound
			c.Inbound = func(buf []byte) {
				p := &packet.Packet{Buf: buf}
				if packet.Parse(p) == packet.FaultNone && p.Tuple.DstPort != 81 {
					out(buf) // 81 is silent
				}
			}
		})
		n.serveTCP(t, f, 80, func(c *gonet.TCPConn) { _, _ = io.Copy(c, c) })
		n.echoUDP(t, f, 53)
		dst := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(f.pod, port) }
		answers := make(chan struct{}, 64)
		var owners sync.WaitGroup
		for i := range uint16(10) {
			c := n.mustDialInto(t, f.client(1000+i), dst(80))
			owners.Go(func() { _, _ = io.Copy(c, neverEnding{}) })
			owners.Go(func() { _, _ = c.(io.WriterTo).WriteTo(io.Discard) })
			owners.Go(func() {
				if c, err := n.stack.Dial(context.Background(), f.client(2000+i), dst(81)); err == nil {
					c.Close()
					t.Error("a silent pod answered")
				}
			})
			flow, err := n.stack.Datagrams(f.client(3000+i), dst(53), func([]byte) { answers <- struct{}{} })
			if err != nil {
				t.Fatal(err)
			}
			_ = flow.Send([]byte("x"))
			<-answers
			n.mustDialInto(t, f.client(4000+i), dst(80)).Close() // in the middle of its end
		}
		eventually(t, "all are dialling", func() bool { return n.stack.Stats().InboundConns >= 20 })
		begin := time.Now()
		_ = n.stack.Close()
		if d := time.Since(begin); d > 3*time.Second {
			t.Errorf("Close took %s", d)
		}
		owners.Wait() // everybody was told
		if st := n.stack.Stats(); st.InboundFlows != 0 {
			t.Errorf("%d flows left", st.InboundFlows)
		}
	})
	for deadline := time.Now().Add(patience); runtime.NumGoroutine() > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
	}
}
