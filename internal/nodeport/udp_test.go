package nodeport_test

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/nodeport"
)

// dialUDP opens a connected socket, from an address if there is one.
func dialUDP(t testing.TB, from string, to netip.AddrPort) *net.UDPConn {
	t.Helper()
	var src *net.UDPAddr
	if from != "" {
		src = net.UDPAddrFromAddrPort(at(from, 0))
	}
	c, err := net.DialUDP("udp", src, net.UDPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// askUDP sends a question until an answer comes, which loopback may lose only
// while a backend is being changed.
func askUDP(t testing.TB, c *net.UDPConn, question string) string {
	t.Helper()
	buf := make([]byte, 1<<16)
	for range 25 {
		if _, err := c.Write([]byte(question)); err != nil {
			continue
		}
		_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		if n, err := c.Read(buf); err == nil {
			return string(buf[:n])
		}
	}
	return "no answer"
}

func TestUDP(t *testing.T) {
	t.Parallel()
	for name, backend := range map[string]func(uint16) netip.AddrPort{"pod": inPod, "host": onHost} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := start(t, nil)
			p, _ := udpBackend(t, "a:")
			w.serve(backend(p))
			a := w.open(t, model.UDP)
			c := dialUDP(t, "", a)
			for _, size := range []int{1, 1400, 9000, 0} {
				q := string(make([]byte, size))
				if got := askUDP(t, c, q); got != "a:"+q {
					t.Errorf("%d bytes: %d came back", size, len(got))
				}
			}
			if st := w.server.Stats(); st.Flows != 1 || st.Accepted != 1 {
				t.Errorf("%d flows of %d that began, want one", st.Flows, st.Accepted)
			}
			if name == "pod" && w.lastSource(t).Addr() != router {
				t.Errorf("a loopback client came as %v", w.lastSource(t))
			}
		})
	}
}

func TestUDPFlowsMove(t *testing.T) {
	t.Parallel()
	first, conn := udpBackend(t, "1:")
	second, _ := udpBackend(t, "2:")
	for name, backend := range map[string]func(uint16) netip.AddrPort{"pod": inPod, "host": onHost} {
		t.Run("backend is removed, "+name, func(t *testing.T) {
			t.Parallel()
			w := start(t, nil)
			w.serve(backend(first))
			c := dialUDP(t, "", w.open(t, model.UDP))
			if got := askUDP(t, c, "?"); got != "1:?" {
				t.Fatalf("got %q", got)
			}
			w.serve(backend(second))
			if got := askUDP(t, c, "?"); got != "2:?" {
				t.Errorf("after the change: %q", got)
			}
			w.serve()
			_, _ = c.Write([]byte("?"))
			eventually(t, "nobody serves it", func() bool { return w.server.Stats().NoBackend == 1 })
			if st := w.server.Stats(); st.Flows != 0 || st.Moved != 2 {
				t.Errorf("%d flows, %d moved", st.Flows, st.Moved)
			}
		})
		t.Run("another pod takes the host port, "+name, func(t *testing.T) {
			t.Parallel()
			w := start(t, nil)
			l := nodeport.Listener{Addr: at("127.0.0.1", freePort(t)), Proto: model.UDP, Owner: "pod a", Target: backend(first)}
			c := dialUDP(t, "", l.Addr)
			for i, target := range []uint16{first, second} {
				l.Target = backend(target)
				if err := w.server.Apply([]nodeport.Listener{l}); err != nil {
					t.Fatal(err)
				}
				if got, want := askUDP(t, c, "?"), fmt.Sprintf("%d:?", i+1); got != want {
					t.Errorf("got %q, want %q", got, want)
				}
			}
		})
	}
	t.Cleanup(func() { conn.Close() })
}

// A backend whose port is closed says so, and the next datagram asks anew.
func TestUDPBackendRefuses(t *testing.T) {
	t.Parallel()
	for name, backend := range map[string]func(uint16) netip.AddrPort{"pod": inPod, "host": onHost} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dead := freePort(t)
			w := start(t, func(c *nodeport.Config) { c.Has = nil })
			w.serve(backend(dead))
			c := dialUDP(t, "", w.open(t, model.UDP))
			_, _ = c.Write([]byte("?"))
			eventually(t, "a flow", func() bool { return w.server.Stats().Flows == 1 })
			alive, _ := udpBackend(t, "a:")
			w.serve(backend(alive))
			if got := askUDP(t, c, "?"); got != "a:?" {
				t.Errorf("got %q", got)
			}
		})
	}
}

func TestUDPFlowsGiveWay(t *testing.T) {
	t.Parallel()
	w := start(t, func(c *nodeport.Config) { c.Limits = nodeport.Limits{Flows: 32, FlowsPerClient: 8} })
	p, _ := udpBackend(t, "a:")
	w.serve(inPod(p))
	a := w.open(t, model.UDP)
	for client := range 10 { // more than the whole in the end
		for range 12 {
			c := dialUDP(t, fmt.Sprintf("127.0.1.%d", client+1), a)
			if got := askUDP(t, c, "?"); got != "a:?" {
				t.Fatalf("client %d: %q", client, got)
			}
		}
	}
	st := w.server.Stats()
	if st.Flows > 32 || st.Limited != 0 || st.Evicted < 120-32 {
		t.Errorf("%d flows, %d refused, %d evicted", st.Flows, st.Limited, st.Evicted)
	}
}

func TestUDPRemovedListener(t *testing.T) {
	t.Parallel()
	w := start(t, nil)
	p, _ := udpBackend(t, "a:")
	w.serve(inPod(p))
	a := w.open(t, model.UDP)
	c := dialUDP(t, "", a)
	if got := askUDP(t, c, "?"); got != "a:?" {
		t.Fatalf("got %q", got)
	}
	if err := w.server.Apply(nil); err != nil {
		t.Fatal(err)
	}
	if st := w.server.Stats(); st.Flows != 0 {
		t.Errorf("%d flows of a removed listener", st.Flows)
	}
	_, _ = c.Write([]byte("?"))
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Read(make([]byte, 1)); !isRefused(err) {
		t.Errorf("read: %v, want refused: the port is closed", err)
	}
}
