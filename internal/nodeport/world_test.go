package nodeport_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/nodeport"
)

// router is .2 of the node's block in these tests.
var router = netip.MustParseAddr("10.1.1.2")

// world is a server with a fake cluster: what it dials there is a socket on
// loopback with the same port, and the source is written down.
type world struct {
	server *nodeport.Server

	mu       sync.Mutex
	backends []netip.AddrPort // guarded by mu; Pick takes the first
	sources  []netip.AddrPort // guarded by mu; of dials into the cluster
	asked    []netip.AddrPort // guarded by mu; what Pick was asked about
}

// start makes a world; change may adapt the configuration.
func start(t testing.TB, change func(*nodeport.Config)) *world {
	t.Helper()
	w := &world{}
	cfg := nodeport.Config{
		Pick:  w.pick,
		Has:   func(_ netip.AddrPort, _ model.Protocol, b netip.AddrPort) bool { return w.stays(b) },
		Place: place,
		Router: func(is4 bool) netip.Addr {
			if is4 {
				return router
			}
			return netip.MustParseAddr("fd00:1:0:1::2")
		},
		Dial: func(ctx context.Context, src, dst netip.AddrPort) (net.Conn, error) {
			w.note(src)
			var d net.Dialer
			return d.DialContext(ctx, "tcp", loopback(dst).String())
		},
		Datagrams: w.datagrams,
		DialHost: func(ctx context.Context, dst netip.AddrPort) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", loopback(dst).String())
		},
		DialHostUDP: func(_ context.Context, dst netip.AddrPort) (*net.UDPConn, error) {
			return net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(loopback(dst)))
		},
	}
	if change != nil {
		change(&cfg)
	}
	w.server = nodeport.New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan struct{})
	go func() {
		defer close(ran)
		_ = w.server.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-ran:
		case <-time.After(10 * time.Second):
			t.Error("Run did not return")
		}
		if st := w.server.Stats(); st.Conns+st.Flows+st.Listeners != 0 {
			t.Errorf("left: %d connections, %d flows, %d listeners", st.Conns, st.Flows, st.Listeners)
		}
	})
	return w
}

func loopback(a netip.AddrPort) netip.AddrPort {
	if a.Addr().Is4() {
		return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), a.Port())
	}
	return netip.AddrPortFrom(netip.IPv6Loopback(), a.Port())
}

func (w *world) pick(dst netip.AddrPort, _ model.Protocol, _ netip.AddrPort) (netip.AddrPort, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = append(w.asked, dst)
	if len(w.backends) == 0 {
		return netip.AddrPort{}, false
	}
	return w.backends[0], true
}

func (w *world) stays(b netip.AddrPort) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.backends) > 0 && w.backends[0] == b
}

func (w *world) note(src netip.AddrPort) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sources = append(w.sources, src)
}

// serve sets the backends.
func (w *world) serve(backends ...netip.AddrPort) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.backends = backends
}

// lastSource is the source of the last dial into the cluster.
func (w *world) lastSource(t testing.TB) netip.AddrPort {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.sources) == 0 {
		t.Fatal("nothing was dialled in the cluster")
	}
	return w.sources[len(w.sources)-1]
}

// udpFlow is a Flow of the fake cluster.
type udpFlow struct {
	conn   *net.UDPConn
	done   chan struct{}
	failed atomic.Bool
}

func (f *udpFlow) Send(b []byte) error {
	if f.failed.Load() {
		return syscall.ECONNREFUSED
	}
	_, err := f.conn.Write(b)
	return err
}

func (f *udpFlow) LocalAddr() netip.AddrPort { return f.conn.LocalAddr().(*net.UDPAddr).AddrPort() }

func (f *udpFlow) Close() {
	f.conn.Close()
	<-f.done
}

func (w *world) datagrams(src, dst netip.AddrPort, receive func([]byte)) (nodeport.Flow, error) {
	w.note(src)
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(loopback(dst)))
	if err != nil {
		return nil, err
	}
	f := &udpFlow{conn: c, done: make(chan struct{})}
	go func() {
		defer close(f.done)
		buf := make([]byte, 1<<16)
		for {
			n, err := c.Read(buf)
			switch {
			case errors.Is(err, net.ErrClosed):
				return
			case err != nil:
				f.failed.Store(true)
			default:
				receive(buf[:n])
			}
		}
	}()
	return f, nil
}

// tcpBackend runs a TCP server on loopback and returns its port.
func tcpBackend(t testing.TB, serve func(*net.TCPConn)) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
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
				serve(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return port(l.Addr())
}

// udpBackend runs a UDP server on an address of loopback that answers with name
// and the question.
func udpBackend(t testing.TB, name string) (uint16, *net.UDPConn) {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = c.WriteToUDPAddrPort(append([]byte(name), buf[:n]...), from)
			}
		}
	}()
	t.Cleanup(func() {
		c.Close()
		<-done
	})
	return port(c.LocalAddr()), c
}

func port(a net.Addr) uint16 {
	switch a := a.(type) {
	case *net.TCPAddr:
		return a.AddrPort().Port()
	case *net.UDPAddr:
		return a.AddrPort().Port()
	}
	panic("address of no kind")
}

// freePort is a port of loopback that is free for both protocols.
func freePort(t testing.TB) uint16 {
	t.Helper()
	for range 20 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		p := port(l.Addr())
		l.Close()
		u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.IPv4Unspecified(), p)))
		if err == nil {
			u.Close()
			return p
		}
	}
	t.Fatal("no free port")
	return 0
}

// inPod is the address of a pod of the fake cluster.
func inPod(port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr("10.1.1.5"), port)
}

// onHost is the address of a node of the fake cluster.
func onHost(port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr("172.16.0.9"), port)
}

func at(addr string, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(addr), port)
}

// open applies one listener on 127.0.0.1 and returns its address.
func (w *world) open(t testing.TB, proto model.Protocol) netip.AddrPort {
	t.Helper()
	a := at("127.0.0.1", freePort(t))
	if err := w.server.Apply([]nodeport.Listener{{Addr: a, Proto: proto, Owner: "service default/web"}}); err != nil {
		t.Fatal(err)
	}
	return a
}

func dialTCP(t testing.TB, to netip.AddrPort) *net.TCPConn {
	t.Helper()
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// ask sends a line and returns everything that comes back.
func ask(t testing.TB, c *net.TCPConn, question string) string {
	t.Helper()
	_, _ = c.Write([]byte(question))
	_ = c.CloseWrite()
	all, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("answer to %q: %v", question, err)
	}
	return string(all)
}

// greet is a backend that says its name and the question.
func greet(name string) func(*net.TCPConn) {
	return func(c *net.TCPConn) {
		all, _ := io.ReadAll(c)
		_, _ = c.Write(append([]byte(name), all...))
	}
}

// wantReset connects, and must be reset at once: by the time when connect
// returns, or after it.
func wantReset(t testing.TB, to netip.AddrPort) {
	t.Helper()
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(to))
	if err == nil {
		defer c.Close()
		_, err = c.Read(make([]byte, 1))
	}
	if !isReset(err) {
		t.Errorf("%s: %v, want a reset", to, err)
	}
}

func isReset(err error) bool { return errors.Is(err, syscall.ECONNRESET) }

// eventually waits until ok holds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 5 s: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func isRefused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }
