package netstack_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"

	"github.com/netctl/netctl/internal/drain"
	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/netstack"
	"github.com/netctl/netctl/internal/nodeport"
)

// nodeSockets makes a server whose backends are reached through a stack.
func nodeSockets(t testing.TB, f family, s *netstack.Stack) *nodeport.Server {
	t.Helper()
	datagrams := func(open func(src, dst netip.AddrPort, receive func([]byte)) (*netstack.InFlow, error)) func(netip.AddrPort, netip.AddrPort, func([]byte)) (nodeport.Flow, error) {
		return func(src, dst netip.AddrPort, receive func([]byte)) (nodeport.Flow, error) {
			flow, err := open(src, dst, receive)
			if err != nil {
				return nil, err // not a typed nil
			}
			return flow, nil
		}
	}
	server := nodeport.New(nodeport.Config{
		Place: func(a netip.Addr) nodeport.Place {
			if a == f.pod {
				return nodeport.PlacePod
			}
			return nodeport.PlaceOutside
		},
		Router: func(bool) netip.Addr { return f.out },
		Dial:   s.Dial, Datagrams: datagrams(s.Datagrams), Resume: datagrams(s.Resume),
	})
	t.Cleanup(func() { server.Close() })
	return server
}

// listeners are one of each protocol on a port that both have free.
func listeners(t testing.TB, f family, s *nodeport.Server) []nodeport.Listener {
	t.Helper()
	for range 20 {
		at := netip.AddrPortFrom(f.loopback, freePort(t, f))
		want := []nodeport.Listener{
			{Addr: at, Proto: model.TCP, Owner: "test", Target: netip.AddrPortFrom(f.pod, 80)},
			{Addr: at, Proto: model.UDP, Owner: "test", Target: netip.AddrPortFrom(f.pod, 53)},
		}
		err := s.Apply(want)
		if err == nil {
			return want
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			t.Fatal(err)
		}
	}
	t.Fatal("no free port")
	return nil
}

// seenBy runs a UDP server in the pod that says who asks.
func (n *network) seenBy(t testing.TB, f family, port uint16) {
	t.Helper()
	conn, err := gonet.DialUDP(n.pod.stack, new(full(netip.AddrPortFrom(f.pod, port))), nil, f.proto)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 2048)
		for {
			m, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo(fmt.Appendf(nil, "%s %s", buf[:m], from), from)
		}
	})
	t.Cleanup(func() {
		conn.Close()
		wg.Wait()
	})
}

func askUDP(t testing.TB, c *net.UDPConn, text string) string {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(patience))
	_, _ = c.Write([]byte(text))
	buf := make([]byte, 2048)
	m, err := c.Read(buf)
	said, from, _ := strings.Cut(string(buf[:m]), " ")
	if err != nil || said != text {
		t.Errorf("said %q, heard %q, %v", text, buf[:m], err)
	}
	return from
}

func TestDrainKeepsNodeSockets(t *testing.T) {
	t.Parallel()
	for _, f := range families(t) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			s := succeed(t, true, nil)
			s.serveTCP(t, f, 80, func(c *gonet.TCPConn) { _, _ = io.Copy(c, c) })
			s.seenBy(t, f, 53)
			old := nodeSockets(t, f, s.stack)
			want := listeners(t, f, old)
			at := want[0].Addr
			connect := func() *net.TCPConn {
				c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(at))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close() })
				return c
			}
			tcp := connect()
			speak(t, tcp, "before")
			udp, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
			if err != nil {
				t.Fatal(err)
			}
			defer udp.Close()
			source := askUDP(t, udp, "before")

			second := startStack(t, s.pod, s.change)
			next := nodeSockets(t, f, second)
			var waiting *net.TCPConn
			r := s.hand(second, sockets{old, next}, func(*drain.Heritage) {
				list, err := old.Listeners()
				if err != nil {
					t.Error(err)
				}
				next.Adopt(list)
				waiting = connect() // waits in the queue
				_, _ = waiting.Write([]byte("waited"))
			})
			_, _ = udp.Write([]byte("waits"))
			speak(t, tcp, "between")
			if err := next.Apply(want); err != nil {
				t.Fatal(err)
			}
			r.heritage.Adopted()
			buf := make([]byte, 64)
			if n, err := io.ReadFull(waiting, buf[:6]); err != nil || string(buf[:n]) != "waited" {
				t.Errorf("who waited for a process reads %q, %v", buf[:n], err)
			}
			_ = udp.SetDeadline(time.Now().Add(patience))
			if n, err := udp.Read(buf); err != nil || string(buf[:n]) != "waits "+source {
				t.Errorf("the datagram that waited is answered with %q, %v", buf[:n], err)
			}
			if got := askUDP(t, udp, "after"); got != source {
				t.Errorf("the pod sees %s, %s before", got, source)
			}
			speak(t, tcp, "after")
			speak(t, connect(), "new")
			if st := next.Stats(); st.Conns != 2 || st.Flows != 1 || st.Accepted != 2 {
				t.Errorf("the new process: %+v", st)
			}
			tcp.Close()
			r.ends(t)
		})
	}
}

// TestDrainNodePortBulk: what a session carries is whole.
func TestDrainNodePortBulk(t *testing.T) {
	t.Parallel()
	f := families(t)[0]
	s := succeed(t, true, nil)
	data := pattern(4 * bulk)
	s.serveTCP(t, f, 80, func(c *gonet.TCPConn) {
		_, _ = io.Copy(c, c)
		_ = c.CloseWrite()
	})
	old := nodeSockets(t, f, s.stack)
	want := listeners(t, f, old)
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(want[0].Addr))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go func() {
		_, _ = c.Write(data)
		_ = c.CloseWrite()
	}()
	sum := sha256.New()
	if _, err := io.CopyN(sum, c, bulk); err != nil {
		t.Fatal(err)
	}
	second := startStack(t, s.pod, s.change)
	next := nodeSockets(t, f, second)
	r := s.hand(second, sockets{old, next}, nil)
	if _, err := io.Copy(sum, c); err != nil {
		t.Fatal(err)
	}
	if [32]byte(sum.Sum(nil)) != sha256.Sum256(data) {
		t.Error("what came back is not what was sent")
	}
	c.Close()
	r.ends(t)
}

// TestDrainOfAnOpeningSession: the old process has accepted a client and reaches
// the pod only when it has a successor.
func TestDrainOfAnOpeningSession(t *testing.T) {
	t.Parallel()
	f := families(t)[0]
	s := succeed(t, true, nil)
	s.serveTCP(t, f, 80, func(c *gonet.TCPConn) { _, _ = io.Copy(c, c) })
	first := s.stack
	dialling, release := make(chan struct{}), make(chan struct{})
	old := nodeport.New(nodeport.Config{
		Place:  func(netip.Addr) nodeport.Place { return nodeport.PlacePod },
		Router: func(bool) netip.Addr { return f.out },
		Dial: func(ctx context.Context, src, dst netip.AddrPort) (net.Conn, error) {
			close(dialling)
			<-release
			return first.Dial(ctx, src, dst)
		},
	})
	t.Cleanup(func() { old.Close() })
	at := netip.AddrPortFrom(f.loopback, freePort(t, f))
	if err := old.Apply([]nodeport.Listener{{Addr: at, Proto: model.TCP, Owner: "test", Target: netip.AddrPortFrom(f.pod, 80)}}); err != nil {
		t.Fatal(err)
	}
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	<-dialling
	second := startStack(t, s.pod, s.change)
	r := s.hand(second, sockets{old, nodeSockets(t, f, second)}, nil)
	close(release)
	speak(t, c, "opened by two")
	if st := first.Stats(); st.Inbound != 1 || second.Stats().Inbound != 0 {
		t.Errorf("the old process opened %d connections, want 1", st.Inbound)
	}
	c.Close()
	r.ends(t)
}

// TestDrainLosesNodeSockets: the old process is killed with a session. Both ends
// hear of it, though both only wait.
func TestDrainLosesNodeSockets(t *testing.T) {
	t.Parallel()
	for _, f := range families(t) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			s := succeed(t, true, nil)
			served := make(chan error, 1)
			s.serveTCP(t, f, 80, func(c *gonet.TCPConn) {
				_, err := io.Copy(c, c)
				served <- err
			})
			old := nodeSockets(t, f, s.stack)
			c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(listeners(t, f, old)[0].Addr))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			second := startStack(t, s.pod, s.change)
			r := s.hand(second, sockets{old, nodeSockets(t, f, second)}, nil)
			speak(t, c, "hello")
			r.conn.Close()
			_ = c.SetDeadline(time.Now().Add(patience))
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the client reads %v, want a reset", err)
			}
			select {
			case err := <-served:
				if err == nil || !strings.Contains(err.Error(), "reset") {
					t.Errorf("the pod reads %v, want a reset", err)
				}
			case <-time.After(patience):
				t.Error("the pod waits for ever")
			}
		})
	}
}

// TestDrainOfNodeSocketsTakenBack: the successor fails with the sockets in hand.
func TestDrainOfNodeSocketsTakenBack(t *testing.T) {
	t.Parallel()
	f := families(t)[0]
	s := succeed(t, true, nil)
	s.serveTCP(t, f, 80, func(c *gonet.TCPConn) { _, _ = io.Copy(c, c) })
	s.seenBy(t, f, 53)
	old := nodeSockets(t, f, s.stack)
	want := listeners(t, f, old)
	udp, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(want[1].Addr))
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	source := askUDP(t, udp, "before")
	ours, fd, err := drain.Pair()
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := drain.Conn(fd)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- drain.Old(context.Background(), ours, drain.Ends{Stack: s.stack, Sockets: old})
	}()
	second := startStack(t, s.pod, s.change)
	next := nodeSockets(t, f, second)
	h, err := drain.New(context.Background(), theirs, drain.Ends{Stack: second, Sockets: next})
	if err != nil {
		t.Fatal(err)
	}
	if err := old.Apply(nil); !errors.Is(err, nodeport.ErrStopped) {
		t.Errorf("a server that is succeeded applies with %v", err)
	}
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(want[0].Addr))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	h.Close()
	next.Close()
	if err := <-ended; !errors.Is(err, drain.ErrNotTaken) {
		t.Fatalf("the old process says %v", err)
	}
	speak(t, c, "who waited")
	if got := askUDP(t, udp, "after"); got != source {
		t.Errorf("the pod sees %s, %s before", got, source)
	}
	if err := old.Apply(want); err != nil {
		t.Error(err)
	}
}

// crashEnv makes the test binary a process with a node socket that gets killed.
const crashEnv = "NETCTL_TEST_CRASH"

// TestCrashResetsClients: the kernel tells clients of a killed process that the
// connection is broken, not that everything has been said.
func TestCrashResetsClients(t *testing.T) {
	t.Parallel()
	f := families(t)[0]
	if os.Getenv(crashEnv) != "" {
		crashing(t, f)
		return
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run=^TestCrashResetsClients$")
	cmd.Env = append(os.Environ(), crashEnv+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	var at string
	if _, err := fmt.Fscanln(out, &at); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	speak(t, c, "hello")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client reads %v, want a reset", err)
	}
}

func crashing(t *testing.T, f family) {
	s := succeed(t, true, nil)
	s.serveTCP(t, f, 80, func(c *gonet.TCPConn) { _, _ = io.Copy(c, c) })
	want := listeners(t, f, nodeSockets(t, f, s.stack))
	fmt.Println(want[0].Addr)
	time.Sleep(time.Minute)
}

// TestEgressCloseIsOrderly: what is written last still arrives, though a crash
// would reset.
func TestEgressCloseIsOrderly(t *testing.T) {
	t.Parallel()
	f := families(t)[0]
	data := pattern(bulk)
	got := make(chan error, 1)
	var n atomic.Int64
	port := listen(t, f, func(c *net.TCPConn) {
		_ = c.CloseWrite()
		time.Sleep(50 * time.Millisecond) // the pod's side is done by then
		m, err := io.Copy(io.Discard, c)
		n.Store(m)
		got <- err
	})
	s := succeed(t, false, nil)
	c := s.mustDial(t, f, port)
	_, _ = c.Write(data)
	c.Close()
	if err := <-got; err != nil || n.Load() != int64(len(data)) {
		t.Errorf("%d of %d bytes arrived, %v", n.Load(), len(data), err)
	}
}
