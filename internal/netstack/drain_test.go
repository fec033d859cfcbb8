package netstack_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"

	"github.com/netctl/netctl/internal/drain"
	"github.com/netctl/netctl/internal/netstack"
	"github.com/netctl/netctl/internal/nodeport"
	"github.com/netctl/netctl/internal/packet"
)

// succession is a pod whose packets go to one stack after the other, as the
// router of the process that serves would send them.
type succession struct {
	*network // of the process that serves

	t      testing.TB
	change func(*netstack.Config)
	write  func(s *netstack.Stack) func([]byte) error

	mu sync.RWMutex // held by whoever reads the pod's TUN
	to func([]byte) error
}

// reign is the end of a process' service.
type reign struct {
	stack    *netstack.Stack
	old      chan error // what drain.Old returned
	lost     chan error // what Heritage.Run returned
	end      context.CancelFunc
	conn     *net.UnixConn // closed: the process is gone
	heritage *drain.Heritage
}

// succeed starts the first process. inbound: the pod's packets are those of
// connections that the stack opened.
func succeed(t testing.TB, inbound bool, change func(*netstack.Config)) *succession {
	t.Helper()
	p := newPod(t)
	t.Cleanup(p.stack.Destroy)
	s := &succession{t: t, change: func(c *netstack.Config) {
		c.Inbound = c.Out
		if change != nil {
			change(c)
		}
	}}
	s.write = func(s *netstack.Stack) func([]byte) error { return s.Write }
	if inbound {
		s.write = func(s *netstack.Stack) func([]byte) error { return s.InboundPort().Write }
	}
	p.send = func(buf []byte) error {
		s.mu.RLock()
		defer s.mu.RUnlock()
		return s.to(buf)
	}
	s.network = &network{stack: startStack(t, p, s.change), pod: p}
	s.to = s.write(s.stack)
	return s
}

// sockets are those of the two processes at a switch; zero: none.
type sockets struct{ old, next *nodeport.Server }

// hand makes another stack the one that serves. meanwhile runs when the old one
// takes in nothing any more and the new one nothing yet.
func (s *succession) hand(next *netstack.Stack, socks sockets, meanwhile func(h *drain.Heritage)) *reign {
	s.t.Helper()
	ours, fd, err := drain.Pair()
	if err != nil {
		s.t.Fatal(err)
	}
	theirs, err := drain.Conn(fd)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &reign{stack: s.stack, old: make(chan error, 1), lost: make(chan error, 1), end: cancel, conn: ours}
	s.mu.Lock() // nobody reads
	defer s.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() { r.old <- drain.Old(ctx, ours, drain.Ends{Stack: r.stack, Sockets: socks.old}) })
	if r.heritage, err = drain.New(context.Background(), theirs, drain.Ends{Stack: next, Sockets: socks.next}); err != nil {
		s.t.Fatal(err)
	}
	if meanwhile != nil {
		meanwhile(r.heritage)
	}
	if err := r.heritage.Serve(context.Background()); err != nil {
		s.t.Fatal(err)
	}
	s.to, s.stack = s.write(next), next
	wg.Go(func() { r.lost <- r.heritage.Run(context.Background()) })
	s.t.Cleanup(func() { // before the pod goes
		cancel()
		r.heritage.Close()
		wg.Wait()
	})
	return r
}

// succeedBy is hand to a stack of the same kind.
func (s *succession) succeedBy() *reign {
	s.t.Helper()
	return s.hand(startStack(s.t, s.pod, s.change), sockets{}, nil)
}

// ends waits until the old process has nothing left.
func (r *reign) ends(t testing.TB) {
	t.Helper()
	for _, c := range []chan error{r.old, r.lost} {
		select {
		case err := <-c:
			if err != nil {
				t.Errorf("the old process ends with: %v", err)
			}
		case <-time.After(patience):
			t.Fatalf("the old process does not end: %+v", r.stack.Stats())
		}
	}
}

func TestDrainCarriesBulk(t *testing.T) {
	t.Parallel()
	for _, f := range families(t) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			const size = 4 * bulk
			var got atomic.Int64
			port := listen(t, f, func(c *net.TCPConn) {
				_, _ = io.Copy(c, io.TeeReader(c, counter{&got}))
				_ = c.CloseWrite()
			})
			s := succeed(t, false, nil)
			first := s.stack
			c := s.mustDial(t, f, port)
			data := pattern(size)
			go func() {
				_, _ = c.Write(data)
				_ = c.CloseWrite()
			}()
			sum, n := sha256.New(), int64(0)
			var r *reign
			for buf := make([]byte, 64<<10); ; {
				m, err := c.Read(buf)
				sum.Write(buf[:m])
				if n += int64(m); n > size/4 && r == nil {
					r = s.succeedBy()
				}
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatalf("after %d bytes: %v", n, err)
				}
			}
			if [32]byte(sum.Sum(nil)) != sha256.Sum256(data) || got.Load() != size {
				t.Errorf("%d bytes went, %d came back, not those that were sent", got.Load(), n)
			}
			c.Close()
			r.ends(t)
			if st := first.Stats(); st.BytesUp != size || s.stack.Stats().Opened != 0 {
				t.Errorf("the old stack carried %d bytes, the new one opened %d connections", st.BytesUp, s.stack.Stats().Opened)
			}
		})
	}
}

type counter struct{ n *atomic.Int64 }

func (c counter) Write(b []byte) (int, error) {
	c.n.Add(int64(len(b)))
	return len(b), nil
}

// speak expects a connection to give back what is said.
func speak(t testing.TB, c net.Conn, text string) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(patience))
	buf := make([]byte, len(text))
	if _, err := c.Write([]byte(text)); err != nil {
		t.Errorf("write: %v", err)
	} else if _, err := io.ReadFull(c, buf); err != nil || string(buf) != text {
		t.Errorf("said %q, heard %q, %v", text, buf, err)
	}
	_ = c.SetDeadline(time.Time{})
}

func TestDrainManyIdle(t *testing.T) {
	t.Parallel()
	const many = 1000
	f := families(t)[0]
	port := listen(t, f, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	s := succeed(t, false, nil)
	conns := make([]*gonet.TCPConn, many)
	for i := range conns {
		conns[i] = s.mustDial(t, f, port)
	}
	var reigns []*reign
	for round := range 2 { // the second through a chain of processes
		reigns = append(reigns, s.succeedBy())
		if st := s.stack.Stats(); st.Inherited != many+round {
			t.Errorf("round %d: %d connections inherited", round, st.Inherited)
		}
		for i, c := range conns {
			speak(t, c, fmt.Sprintf("round %d connection %d", round, i))
		}
		conns = append(conns, s.mustDial(t, f, port)) // of this process
		eventually(t, "a new connection is the new process'", func() bool { return s.stack.Stats().Opened == 1 })
	}
	for _, c := range conns {
		c.Close()
	}
	for _, r := range reigns {
		r.ends(t)
	}
	eventually(t, "nothing is inherited any more", func() bool { return s.stack.Stats().Inherited == 0 })
}

// echoPort is a UDP server outside that answers with the client's address.
func echoPort(t testing.TB, f family) uint16 {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(f.loopback, 0)))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, packet.MaxSize)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort(fmt.Appendf(nil, "%s %s", buf[:n], from), from)
		}
	}()
	t.Cleanup(func() {
		c.Close()
		<-done
	})
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
}

func TestDrainMovesDatagrams(t *testing.T) {
	t.Parallel()
	for _, f := range families(t) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			s := succeed(t, false, nil)
			c, err := gonet.DialUDP(s.pod.stack, nil, new(full(netip.AddrPortFrom(f.out, echoPort(t, f)))), f.proto)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			ask := func(i int) (port string) {
				_ = c.SetDeadline(time.Now().Add(patience))
				buf := make([]byte, 200)
				_, _ = fmt.Fprintf(c, "%d", i)
				n, err := c.Read(buf)
				number, port, _ := strings.Cut(string(buf[:n]), " ")
				if err != nil || number != strconv.Itoa(i) {
					t.Fatalf("asked %d, heard %q, %v", i, buf[:n], err)
				}
				return port
			}
			before := ask(0)
			r := s.succeedBy()
			for i := 1; i < 50; i++ { // the first while the socket is still on its way
				if after := ask(i); after != before {
					t.Fatalf("datagram %d comes from %s, %s before", i, after, before)
				}
			}
			r.ends(t)
			if st := s.stack.Stats(); st.Adopted != 1 || st.Flows != 1 || st.FlowsOpened != 0 || ask(99) != before {
				t.Errorf("the new process has %d flows, of them %d adopted", st.Flows, st.Adopted)
			}
		})
	}
}

// TestDrainMovesDatagramsOn: a process retires before it has everything of its
// predecessor's.
func TestDrainMovesDatagramsOn(t *testing.T) {
	t.Parallel()
	const many = 100
	f := families(t)[0]
	s := succeed(t, false, nil)
	port := echoPort(t, f)
	conns, ports := make([]*gonet.UDPConn, many), make([]string, many)
	ask := func(i int) string {
		_ = conns[i].SetDeadline(time.Now().Add(patience))
		buf := make([]byte, 200)
		_, _ = conns[i].Write([]byte("x"))
		n, err := conns[i].Read(buf)
		if err != nil {
			t.Fatalf("flow %d: %v", i, err)
		}
		return string(buf[:n])
	}
	for i := range conns {
		c, err := gonet.DialUDP(s.pod.stack, nil, new(full(netip.AddrPortFrom(f.out, port))), f.proto)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns[i] = c
		ports[i] = ask(i)
	}
	reigns := []*reign{s.succeedBy(), s.succeedBy(), s.succeedBy()}
	for i := range conns {
		if got := ask(i); got != ports[i] {
			t.Errorf("flow %d: %s, %s before", i, got, ports[i])
		}
	}
	for _, r := range reigns {
		r.ends(t)
	}
	for i := range conns {
		if got := ask(i); got != ports[i] {
			t.Errorf("flow %d: %s, %s before", i, got, ports[i])
		}
	}
	if st := s.stack.Stats(); st.Flows != many || st.FlowsOpened != 0 {
		t.Errorf("%d flows, %d opened here, want %d and none", st.Flows, st.FlowsOpened, many)
	}
}

func TestDrainOfAnOpeningConnection(t *testing.T) {
	t.Parallel()
	f := families(t)[0]
	port := listen(t, f, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	dialled, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	s := succeed(t, false, func(c *netstack.Config) {
		dial := c.DialTCP
		c.DialTCP = func(ctx context.Context, dst netip.AddrPort) (net.Conn, error) {
			once.Do(func() { close(dialled) })
			<-release
			return dial(ctx, dst)
		}
	})
	first := s.stack
	opened := make(chan *gonet.TCPConn, 1)
	go func() {
		c, err := s.dial(context.Background(), f, port)
		if err != nil {
			t.Error(err)
		}
		opened <- c
	}()
	<-dialled
	r := s.succeedBy()
	close(release)
	c := <-opened
	if c == nil {
		return
	}
	speak(t, c, "opened by two")
	if n := first.Stats().Opened; n != 1 {
		t.Errorf("the old process opened %d connections, want 1", n)
	}
	c.Close()
	r.ends(t)
}

func TestDrainOfAPortUsedAgain(t *testing.T) {
	t.Parallel()
	f := families(t)[0]
	port := listen(t, f, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	s := succeed(t, false, nil)
	first := s.stack
	c := s.mustDial(t, f, port)
	syn := f.syn(c.LocalAddr().(*net.TCPAddr).AddrPort().Port(), port)
	r := s.succeedBy()
	// As long as the old connection lives, the SYN meets it there: no other one is
	// dialled, and what is there is not harmed.
	_ = s.pod.send(syn)
	speak(t, c, "still here")
	if n := s.stack.Stats().Dialled + first.Stats().Dialled; n != 1 {
		t.Errorf("%d connections were dialled, want 1", n)
	}
	c.Close()
	r.ends(t)
	_ = s.pod.send(syn)
	eventually(t, "the SYN begins a connection in the new process", func() bool { return s.stack.Stats().Dialled == 1 })
}

// TestDrainOfAStuckConnection: a pod is gone from a connection that the old process
// still holds, because the outside does not read. The pod's next one from that
// port is not sent to and fro.
func TestDrainOfAStuckConnection(t *testing.T) {
	t.Parallel()
	f := families(t)[0]
	release := make(chan struct{})
	port := listen(t, f, func(*net.TCPConn) { <-release })
	t.Cleanup(func() { close(release) }) // before listen's own
	s := succeed(t, false, nil)
	first := s.stack
	c := s.mustDial(t, f, port)
	syn := f.syn(c.LocalAddr().(*net.TCPAddr).AddrPort().Port(), port)
	go func() { _, _ = c.Write(pattern(32 << 20)) }()
	stalled(t, func() uint64 { return first.Stats().BytesUp })
	abortAll(s.network)
	r := s.succeedBy()
	if n := s.stack.Stats().Inherited; n != 1 {
		t.Errorf("%d connections inherited, want 1", n)
	}
	eventually(t, "the pod's SYN is dialled by the new process", func() bool {
		_ = s.pod.send(syn)
		return s.stack.Stats().Dialled == 1
	})
	r.end()
	<-r.old
}

// TestDrainOfAServer: what ends in a server of the old process goes on for a
// moment, and ends in order.
func TestDrainOfAServer(t *testing.T) {
	t.Parallel()
	f := families(t)[0]
	s := succeed(t, false, func(c *netstack.Config) { c.Serve = echoOn(53) })
	c := s.mustDial(t, f, 53)
	speak(t, c, "before")
	r := s.succeedBy()
	speak(t, c, "after")
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the pod reads %v, want an end", err)
	}
	c.Close()
	r.ends(t)
	speak(t, s.mustDial(t, f, 53), "the new one's")
}

// TestDrainLosesThePredecessor: the old process is killed. A pod that only waits
// hears of it, not only one that speaks.
func TestDrainLosesThePredecessor(t *testing.T) {
	t.Parallel()
	for _, f := range families(t) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			port := listen(t, f, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
			s := succeed(t, false, nil)
			c := s.mustDial(t, f, port)
			r := s.succeedBy()
			speak(t, c, "hello")
			r.conn.Close()
			_ = c.SetDeadline(time.Now().Add(patience))
			if _, err := c.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "reset") {
				t.Errorf("the waiting pod reads %v, want a reset", err)
			}
			if err := <-r.lost; err == nil || !strings.Contains(err.Error(), "1 connections") {
				t.Errorf("the new process says %v", err)
			}
			if err := <-r.old; err == nil {
				t.Error("the old process says nothing of its successor's end")
			}
			speak(t, s.mustDial(t, f, port), "a new one")
		})
	}
}

func TestDrainEndsAtItsLimit(t *testing.T) {
	t.Parallel()
	f := families(t)[0]
	port := listen(t, f, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	s := succeed(t, false, nil)
	c := s.mustDial(t, f, port)
	r := s.succeedBy()
	speak(t, c, "hello")
	r.end()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "reset") {
		t.Errorf("the pod reads %v, want a reset", err)
	}
	if err := <-r.old; !errors.Is(err, context.Canceled) {
		t.Errorf("the old process ends with %v", err)
	}
	if err := <-r.lost; err != nil {
		t.Errorf("the new process has lost something: %v", err)
	}
}

// TestDrainTakenBack: the successor fails before it serves.
func TestDrainTakenBack(t *testing.T) {
	t.Parallel()
	f := families(t)[0]
	port := listen(t, f, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	s := succeed(t, false, nil)
	c := s.mustDial(t, f, port)
	ours, fd, err := drain.Pair()
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := drain.Conn(fd)
	if err != nil {
		t.Fatal(err)
	}
	old := make(chan error, 1)
	go func() { old <- drain.Old(context.Background(), ours, drain.Ends{Stack: s.stack}) }()
	h, err := drain.New(context.Background(), theirs, drain.Ends{Stack: startStack(t, s.pod, s.change)})
	if err != nil {
		t.Fatal(err)
	}
	h.Close()
	if err := <-old; !errors.Is(err, drain.ErrNotTaken) {
		t.Fatalf("the old process says %v", err)
	}
	speak(t, c, "as before")
	speak(t, s.mustDial(t, f, port), "and new ones")
	r := s.succeedBy()
	speak(t, c, "and it can be succeeded after all")
	c.Close()
	r.end()
}

// TestDrainForgetsPods: a pod is deleted when its connections are the old
// process' affair.
func TestDrainForgetsPods(t *testing.T) {
	t.Parallel()
	f := families(t)[0]
	port := listen(t, f, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	s := succeed(t, false, nil)
	s.mustDial(t, f, port)
	r := s.succeedBy()
	s.stack.Forget(f.pod)
	r.ends(t)
}

// TestKnock: after a crash nobody knows of the connection but the router.
func TestKnock(t *testing.T) {
	t.Parallel()
	for _, f := range families(t) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			port := listen(t, f, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
			s := succeed(t, false, nil)
			c := s.mustDial(t, f, port)
			speak(t, c, "hello")
			s.mu.Lock()
			s.stack = startStack(t, s.pod, s.change)
			s.to = s.stack.Write
			s.mu.Unlock()
			from := c.LocalAddr().(*net.TCPAddr).AddrPort()
			s.stack.Knock(packet.Tuple{
				Src: packet.AddrFrom(f.pod), SrcPort: from.Port(), Dst: packet.AddrFrom(f.out), DstPort: port, Proto: packet.ProtoTCP,
			}, false)
			_ = c.SetDeadline(time.Now().Add(patience))
			if _, err := c.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "reset") {
				t.Errorf("the waiting pod reads %v, want a reset", err)
			}
			// A connection that is alive is left alone.
			c = s.mustDial(t, f, port)
			from = c.LocalAddr().(*net.TCPAddr).AddrPort()
			s.stack.Knock(packet.Tuple{
				Src: packet.AddrFrom(f.pod), SrcPort: from.Port(), Dst: packet.AddrFrom(f.out), DstPort: port, Proto: packet.ProtoTCP,
			}, false)
			speak(t, c, "alive")
		})
	}
}
