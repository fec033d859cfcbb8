package nodeport_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/nodeport"
)

func TestTCP(t *testing.T) {
	t.Parallel()
	for name, backend := range map[string]func(uint16) netip.AddrPort{"pod": inPod, "host": onHost} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := start(t, nil)
			w.serve(backend(tcpBackend(t, greet("a:"))))
			a := w.open(t, model.TCP)
			if got := ask(t, dialTCP(t, a), "hello"); got != "a:hello" { // the server answers after our FIN
				t.Errorf("got %q", got)
			}
			w.mu.Lock()
			asked, sources := w.asked, w.sources
			w.mu.Unlock()
			if len(asked) != 1 || asked[0] != a {
				t.Errorf("Pick was asked about %v, want %v", asked, a)
			}
			if name == "host" && len(sources) != 0 {
				t.Errorf("a host's address was dialled in the cluster from %v", sources)
			}
			if name == "pod" && w.lastSource(t).Addr() != router {
				t.Errorf("a loopback client came as %v, want the router", sources)
			}
			eventually(t, "the connection is given back", func() bool { return w.server.Stats().Conns == 0 })
		})
	}
}

func TestTCPServerSpeaksFirst(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	got := make(chan string, 1)
	w.serve(inPod(tcpBackend(t, func(c *net.TCPConn) {
		_, _ = c.Write([]byte("welcome"))
		_ = c.CloseWrite()
		all, _ := io.ReadAll(c)
		got <- string(all)
	})))
	c := dialTCP(t, w.open(t, model.TCP))
	if all, err := io.ReadAll(c); err != nil || string(all) != "welcome" {
		t.Fatalf("greeting %q, %v", all, err)
	}
	_, _ = c.Write([]byte("still here"))
	_ = c.CloseWrite()
	if s := <-got; s != "still here" {
		t.Errorf("server got %q", s)
	}
}

func TestTCPResets(t *testing.T) {
	t.Parallel()
	closed := freePort(t)
	for name, backend := range map[string]func(w *world){
		"no backend":                 func(*world) {},
		"pod refuses":                func(w *world) { w.serve(inPod(closed)) },
		"host refuses":               func(w *world) { w.serve(onHost(closed)) },
		"backend is loopback":        func(w *world) { w.serve(at("127.0.0.1", 22)) },
		"backend aborts":             func(w *world) { w.serve(inPod(tcpBackend(t, func(c *net.TCPConn) { _ = c.SetLinger(0) }))) },
		"backend on the host aborts": func(w *world) { w.serve(onHost(tcpBackend(t, func(c *net.TCPConn) { _ = c.SetLinger(0) }))) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := start(t, nil)
			backend(w)
			wantReset(t, w.open(t, model.TCP))
		})
	}
	t.Run("client aborts", func(t *testing.T) {
		t.Parallel()
		w := start(t, nil)
		got := make(chan error, 1)
		w.serve(inPod(tcpBackend(t, func(c *net.TCPConn) {
			_, _ = c.Write([]byte("x"))
			_, err := c.Read(make([]byte, 1))
			got <- err
		})))
		c := dialTCP(t, w.open(t, model.TCP))
		_, _ = io.ReadFull(c, make([]byte, 1))
		_ = c.SetLinger(0)
		c.Close()
		if err := <-got; !isReset(err) {
			t.Errorf("backend read %v, want a reset", err)
		}
	})
}

// A node port whose backend is that very socket would dial itself for ever.
func TestNoLoop(t *testing.T) {
	t.Parallel()
	w := start(t, func(c *nodeport.Config) {
		c.Place = func(netip.Addr) nodeport.Place { return nodeport.PlaceNode }
	})
	own := at(ownAddress(t), freePort(t))
	w.serve(own)
	if err := w.server.Apply([]nodeport.Listener{{Addr: own, Proto: model.TCP, Owner: "service default/loop"}}); err != nil {
		t.Fatal(err)
	}
	wantReset(t, own)
	if st := w.server.Stats(); st.Accepted != 1 {
		t.Errorf("accepted %d connections, want one", st.Accepted)
	}
}

// ownAddress is an address of this machine that is not loopback.
func ownAddress(t *testing.T) string {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			return n.IP.String()
		}
	}
	t.Skip("this machine has loopback addresses only")
	return ""
}

// The HostPort test of Kubernetes: one port, two addresses, two protocols, three
// pods; and a client that comes to loopback from the node's own address.
func TestOnePortManyOwners(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	udp, _ := udpBackend(t, "c:")
	p := freePort(t)
	want := []nodeport.Listener{
		{Addr: at("127.0.0.1", p), Proto: model.TCP, Owner: "pod a", Target: inPod(tcpBackend(t, greet("a:")))},
		{Addr: at("127.0.0.2", p), Proto: model.TCP, Owner: "pod b", Target: inPod(tcpBackend(t, greet("b:")))},
		{Addr: at("127.0.0.2", p), Proto: model.UDP, Owner: "pod c", Target: inPod(udp)},
	}
	if err := w.server.Apply(want); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, dialTCP(t, want[0].Addr), "?"); got != "a:?" {
		t.Errorf("127.0.0.1 over TCP: %q", got)
	}
	if got := ask(t, dialTCP(t, want[1].Addr), "?"); got != "b:?" {
		t.Errorf("127.0.0.2 over TCP: %q", got)
	}
	if got := askUDP(t, dialUDP(t, "", want[2].Addr), "?"); got != "c:?" {
		t.Errorf("127.0.0.2 over UDP: %q", got)
	}
	from := net.TCPAddrFromAddrPort(at("127.0.0.2", 0))
	c, err := net.DialTCP("tcp", from, net.TCPAddrFromAddrPort(want[0].Addr))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := ask(t, c, "?"); got != "a:?" {
		t.Errorf("127.0.0.1 over TCP from the other address: %q", got)
	}
}

func TestWildcards(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	p := freePort(t)
	target := inPod(tcpBackend(t, greet("a:")))
	udp, _ := udpBackend(t, "u:")
	// Both families at once: the IPv6 one must not take IPv4's port.
	err := w.server.Apply([]nodeport.Listener{
		{Addr: at("0.0.0.0", p), Proto: model.TCP, Owner: "pod a", Target: target},
		{Addr: at("::", p), Proto: model.TCP, Owner: "pod a", Target: target},
		{Addr: at("0.0.0.0", p), Proto: model.UDP, Owner: "pod a", Target: inPod(udp)},
		{Addr: at("::", p), Proto: model.UDP, Owner: "pod a", Target: inPod(udp)},
	})
	if err != nil && strings.Contains(err.Error(), "family") {
		t.Skip("no IPv6 here")
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"127.0.0.1", "127.0.0.2", "::1"} {
		if got := ask(t, dialTCP(t, at(to, p)), "?"); got != "a:?" {
			t.Errorf("%s over TCP: %q", to, got)
		}
		// A connected socket takes answers from the address that it asked only.
		if got := askUDP(t, dialUDP(t, "", at(to, p)), "?"); got != "u:?" {
			t.Errorf("%s over UDP: %q", to, got)
		}
	}
}

func TestApplyIsIdempotent(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	w.serve(inPod(tcpBackend(t, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })))
	a, b := at("127.0.0.1", freePort(t)), at("127.0.0.1", freePort(t))
	both := []nodeport.Listener{{Addr: a, Proto: model.TCP, Owner: "x"}, {Addr: b, Proto: model.TCP, Owner: "y"}}
	apply := func(want []nodeport.Listener) {
		t.Helper()
		if err := w.server.Apply(want); err != nil {
			t.Fatal(err)
		}
	}
	echo := func(c *net.TCPConn) {
		t.Helper()
		_, _ = c.Write([]byte("x"))
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	apply(both)
	old := dialTCP(t, a)
	echo(old)
	for range 3 {
		apply(both)
	}
	if n := w.server.Stats().Listeners; n != 2 {
		t.Errorf("%d listeners, want 2", n)
	}
	apply(both[1:])
	if c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(a)); !errors.Is(err, syscall.ECONNREFUSED) {
		if err == nil {
			c.Close()
		}
		t.Errorf("dial of a removed listener: %v, want refused", err)
	}
	echo(old) // goes on
	apply(both)
	echo(dialTCP(t, a)) // with the old connection still on the port
	echo(old)
	apply(nil)
	if n := w.server.Stats().Listeners; n != 0 {
		t.Errorf("%d listeners, want none", n)
	}
}

func TestConflicts(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	taken, free := at("127.0.0.1", port(other.Addr())), at("127.0.0.1", freePort(t))
	w.serve(inPod(tcpBackend(t, greet("a:"))))
	want := []nodeport.Listener{
		{Addr: taken, Proto: model.TCP, Owner: "service default/web port http"},
		{Addr: free, Proto: model.TCP, Owner: "service default/good"},
		{Addr: free, Proto: model.TCP, Owner: "pod default/greedy"},
		{Addr: at("192.0.2.1", 30000), Proto: model.TCP, Owner: "service default/away"},
		{Addr: at("127.0.0.1", 30001), Proto: model.SCTP, Owner: "service default/sctp"},
	}
	for range 2 { // again, it says the same
		err = w.server.Apply(want)
		list := nodeport.Conflicts(err)
		if len(list) != 4 {
			t.Fatalf("%d conflicts, want 4: %v", len(list), err)
		}
		for i, c := range []struct {
			owner string
			errno error
			words []string
		}{
			{"pod default/greedy", nil, []string{free.String() + "/TCP", "service default/good", "another port"}},
			{"service default/web port http", syscall.EADDRINUSE, []string{taken.String() + "/TCP", "ss -lnp"}},
			{"service default/away", syscall.EADDRNOTAVAIL, []string{"192.0.2.1", "no address of this node"}},
			{"service default/sctp", nil, []string{"SCTP"}},
		} {
			text := list[i].Error()
			if list[i].Listener.Owner != c.owner || c.errno != nil && !errors.Is(err, c.errno) {
				t.Errorf("conflict %d is %q", i, text)
			}
			for _, word := range append(c.words, c.owner) {
				if !strings.Contains(text, word) {
					t.Errorf("%q does not say %q", text, word)
				}
			}
		}
	}
	if got := ask(t, dialTCP(t, free), "?"); got != "a:?" {
		t.Errorf("the port beside the conflicts: %q", got)
	}
	other.Close()
	if err := w.server.Apply(want[:2]); err != nil {
		t.Errorf("the port is free again: %v", err)
	}
	if nodeport.Conflicts(nil) != nil || nodeport.Conflicts(nodeport.ErrClosed) != nil {
		t.Error("conflicts out of nothing")
	}
}

func TestClientsAreBounded(t *testing.T) {
	t.Parallel()
	w := start(t, func(c *nodeport.Config) { c.Limits = nodeport.Limits{Conns: 64, ConnsPerClient: 3} })
	w.serve(inPod(tcpBackend(t, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })))
	a := w.open(t, model.TCP)
	echo := func(from string) error {
		c, err := net.DialTCP("tcp", net.TCPAddrFromAddrPort(at(from, 0)), net.TCPAddrFromAddrPort(a))
		if err != nil {
			return err
		}
		t.Cleanup(func() { c.Close() })
		_, _ = c.Write([]byte("x"))
		_, err = io.ReadFull(c, make([]byte, 1))
		return err
	}
	for range 3 {
		if err := echo("127.0.0.7"); err != nil {
			t.Fatal(err)
		}
	}
	if err := echo("127.0.0.7"); !isReset(err) {
		t.Errorf("fourth connection of a client with three: %v, want a reset", err)
	}
	if err := echo("127.0.0.8"); err != nil {
		t.Errorf("another client: %v", err)
	}
	if st := w.server.Stats(); st.Limited != 1 || st.Accepted != 5 {
		t.Errorf("limited %d of %d, want 1 of 5", st.Limited, st.Accepted)
	}
}

// Not parallel: it counts the goroutines of the process.
func TestCloseLeavesNothing(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("busy", func(t *testing.T) {
		dialling := make(chan struct{}, 16)
		w := start(t, func(c *nodeport.Config) {
			dial := c.Dial
			c.Dial = func(ctx context.Context, src, dst netip.AddrPort) (net.Conn, error) {
				if dst.Port() != 81 {
					return dial(ctx, src, dst)
				}
				dialling <- struct{}{}
				<-ctx.Done()
				return nil, ctx.Err()
			}
		})
		echo := tcpBackend(t, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
		udp, _ := udpBackend(t, "u:")
		p := freePort(t)
		err := w.server.Apply([]nodeport.Listener{
			{Addr: at("127.0.0.1", p), Proto: model.TCP, Owner: "a", Target: inPod(echo)},
			{Addr: at("127.0.0.2", p), Proto: model.TCP, Owner: "b", Target: onHost(echo)},
			{Addr: at("127.0.0.3", p), Proto: model.TCP, Owner: "c", Target: inPod(81)},
			{Addr: at("127.0.0.1", p), Proto: model.UDP, Owner: "d", Target: inPod(udp)},
			{Addr: at("127.0.0.2", p), Proto: model.UDP, Owner: "e", Target: onHost(udp)},
		})
		if err != nil {
			t.Fatal(err)
		}
		var open []*net.TCPConn
		for range 5 {
			for _, to := range []string{"127.0.0.1", "127.0.0.2"} {
				c := dialTCP(t, at(to, p))
				_, _ = c.Write([]byte("x"))
				_, _ = io.ReadFull(c, make([]byte, 1))
				open = append(open, c)
				if got := askUDP(t, dialUDP(t, "", at(to, p)), "x"); got != "u:x" {
					t.Errorf("%s over UDP: %q", to, got)
				}
			}
			open = append(open, dialTCP(t, at("127.0.0.3", p)))
			<-dialling
		}
		begin := time.Now()
		if err := w.server.Close(); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(begin); d > 5*time.Second {
			t.Errorf("Close took %s: it waited for a dial", d)
		}
		for _, c := range open {
			if _, err := c.Read(make([]byte, 1)); !isReset(err) {
				t.Errorf("a client reads %v, want a reset", err)
			}
		}
		if err := w.server.Apply([]nodeport.Listener{{Addr: at("127.0.0.1", p), Proto: model.TCP}}); !errors.Is(err, nodeport.ErrClosed) {
			t.Errorf("Apply after Close: %v", err)
		}
	})
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
	}
}
