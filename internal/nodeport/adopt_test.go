package nodeport_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/nodeport"
)

// handOver gives everything of one server to another, as two processes would.
func handOver(t testing.TB, from, to *world) {
	t.Helper()
	from.server.StopListening()
	list, err := from.server.Listeners()
	if err != nil {
		t.Fatal(err)
	}
	to.server.Adopt(list)
	to.server.AdoptFlows(from.server.UDPFlows())
}

// both wants one port for both protocols.
func both(a netip.AddrPort) []nodeport.Listener {
	return []nodeport.Listener{
		{Addr: a, Proto: model.TCP, Owner: "service default/web"}, {Addr: a, Proto: model.UDP, Owner: "service default/web"},
	}
}

func say(t testing.TB, c *net.UDPConn, text string) string {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Write([]byte(text)); err != nil {
		t.Error(err)
	}
	buf := make([]byte, 100)
	n, err := c.Read(buf)
	if err != nil {
		t.Errorf("no answer to %q: %v", text, err)
	}
	return string(buf[:n])
}

func TestSuccessorTakesSocketsOver(t *testing.T) {
	t.Parallel()
	from, to := start(t, nil), start(t, nil)
	a := at("127.0.0.1", freePort(t))
	backend := tcpBackend(t, greet("web "))
	from.serve(inPod(backend))
	to.serve(inPod(backend))
	if err := from.server.Apply(both(a)); err != nil {
		t.Fatal(err)
	}
	open := dialTCP(t, a)
	_, _ = open.Write([]byte("x"))
	eventually(t, "the connection is accepted", func() bool { return from.server.Stats().Conns == 1 })
	handOver(t, from, to)
	waiting := dialTCP(t, a) // nobody accepts, yet it is there
	if err := to.server.Apply(both(a)); err != nil {
		t.Fatal(err)
	}
	from.server.Release()
	if got := ask(t, waiting, "1"); got != "web 1" {
		t.Errorf("who waited hears %q", got)
	}
	if got := ask(t, dialTCP(t, a), "2"); got != "web 2" {
		t.Errorf("a new client hears %q", got)
	}
	if got := ask(t, open, "y"); got != "web xy" {
		t.Errorf("who was there before hears %q", got)
	}
	if st := from.server.Stats(); st.Accepted != 1 || st.Listeners != 0 {
		t.Errorf("the old server accepted %d, want 1; has %d sockets, want none", st.Accepted, st.Listeners)
	}
	eventually(t, "the old server has nothing left", from.server.Idle)
	if err := to.server.Apply(nil); err != nil {
		t.Fatal(err)
	}
	if _, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(a)); !isRefused(err) {
		t.Errorf("a port that nobody wants any more: %v", err)
	}
}

// TestSuccessorKeepsDatagramFlows: client, backend and the port that the backend
// sees are the same after; on the way into the cluster and to a host.
func TestSuccessorKeepsDatagramFlows(t *testing.T) {
	t.Parallel()
	for name, addr := range map[string]func(uint16) netip.AddrPort{"pod": inPod, "host": onHost} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			from := start(t, nil)
			var resumed []netip.AddrPort
			to := start(t, func(c *nodeport.Config) {
				datagrams := c.Datagrams
				c.Resume = func(src, dst netip.AddrPort, receive func([]byte)) (nodeport.Flow, error) {
					resumed = append(resumed, src)
					return datagrams(src, dst, receive)
				}
			})
			first, _ := udpBackend(t, "first ")
			second, _ := udpBackend(t, "second ")
			from.serve(addr(first))
			to.serve(addr(first), addr(second))
			a := at("0.0.0.0", freePort(t))
			if err := from.server.Apply(both(a)); err != nil {
				t.Fatal(err)
			}
			c := dialUDP(t, "", at("127.0.0.7", a.Port()))
			if got := say(t, c, "1"); got != "first 1" {
				t.Fatalf("heard %q", got)
			}
			flows := from.server.UDPFlows()
			if len(flows) != 1 || !flows[0].Replied || flows[0].Backend != addr(first) || flows[0].Asked.String() != "127.0.0.7" || (flows[0].FD >= 0) != (name == "host") {
				t.Fatalf("flows %+v", flows)
			}
			if flows[0].FD >= 0 {
				syscall.Close(flows[0].FD)
			}
			handOver(t, from, to)
			if err := to.server.Apply(both(a)); err != nil {
				t.Fatal(err)
			}
			from.server.Release()
			if got := say(t, c, "2"); got != "first 2" {
				t.Errorf("heard %q", got)
			}
			to.mu.Lock()
			asked := len(to.asked)
			to.mu.Unlock()
			if asked != 0 || to.server.Stats().Flows != 1 || from.server.Stats().Flows != 0 {
				t.Errorf("the new server chose %d backends", asked)
			}
			if name == "pod" && (len(resumed) != 1 || resumed[0] != flows[0].Source) {
				t.Errorf("resumed from %v, want %s", resumed, flows[0].Source)
			}
		})
	}
}

func TestStoppedServerListensAgain(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	a := w.open(t, model.TCP)
	w.serve(inPod(tcpBackend(t, greet("web "))))
	w.server.StopListening()
	if err := w.server.Apply(nil); !errors.Is(err, nodeport.ErrStopped) {
		t.Errorf("applied while stopped: %v", err)
	}
	c := dialTCP(t, a)
	if n := w.server.Stats().Accepted; n != 0 {
		t.Errorf("%d connections accepted while stopped", n)
	}
	if err := w.server.ResumeListening(); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, c, "1"); got != "web 1" {
		t.Errorf("heard %q", got)
	}
}

// TestAdoptChecks: what is not the socket that it was said to be is not used, and
// nothing stays open.
func TestAdoptChecks(t *testing.T) {
	t.Parallel()
	a, other := at("127.0.0.1", freePort(t)), at("127.0.0.1", freePort(t))
	elsewhere, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(other))
	if err != nil {
		t.Fatal(err)
	}
	file, err := elsewhere.File()
	if err != nil {
		t.Fatal(err)
	}
	elsewhere.Close()
	dup := func(f *os.File) int {
		fd, err := syscall.Dup(int(f.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	w := start(t, nil)
	w.serve(inPod(tcpBackend(t, greet("web "))))
	w.server.Adopt([]nodeport.Socket{
		{Addr: a, Proto: model.TCP, FD: dup(file)}, // bound elsewhere
		{Addr: a, Proto: model.TCP, FD: dup(file)}, // twice
		{Addr: a, Proto: model.UDP, FD: dup(file)}, // of another kind
		{Addr: other, Proto: model.TCP, FD: dup(file)},
	})
	file.Close()
	if err := w.server.Apply(both(a)); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, dialTCP(t, a), "1"); got != "web 1" {
		t.Errorf("heard %q", got)
	}
	if _, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(other)); !isRefused(err) {
		t.Errorf("a socket that nobody wants: %v", err)
	}
}

// TestKeptSocketsOutliveTheirServer: somebody keeps duplicates, and the process
// dies; its successor gets who came meanwhile.
func TestKeptSocketsOutliveTheirServer(t *testing.T) {
	t.Parallel()
	dead := nodeport.New(nodeport.Config{})
	a := at("127.0.0.1", freePort(t))
	if err := dead.Apply([]nodeport.Listener{{Addr: a, Proto: model.TCP, Owner: "a"}}); err != nil {
		t.Fatal(err)
	}
	kept, err := dead.Listeners()
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	c := dialTCP(t, a)
	w := start(t, nil)
	w.serve(inPod(tcpBackend(t, greet("web "))))
	w.server.Adopt(kept)
	if err := w.server.Apply([]nodeport.Listener{{Addr: a, Proto: model.TCP, Owner: "a"}}); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, c, "1"); got != "web 1" {
		t.Errorf("heard %q", got)
	}
}
