package netstack_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"net/netip"
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
	var n *network
	n = start(t, func(c *netstack.Config) {
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
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := n.stack.Dial(ctx, src, dst)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestDialKeepsTheClient(t *testing.T) {
	t.Parallel()
	for _, f := range families(t) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			n := inbound(t, nil)
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
			conn, err := gonet.DialUDP(n.pod.stack, ptr(full(netip.AddrPortFrom(f.pod, 53))), nil, f.proto)
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

func ptr[T any](v T) *T { return &v }
