package nodeport_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/nodeport"
)

// inNamespace runs f on a thread in a new network namespace whose loopback
// interface bears the addresses. Sockets that f opens stay there. The thread is
// thrown away.
func inNamespace(t *testing.T, addrs []string, f func()) {
	t.Helper()
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			err = loopbackWith(addrs)
		}
		if err == nil {
			f()
		}
	}()
	<-done
	if err != nil {
		t.Skipf("no network namespace of our own: %v", err)
	}
}

func loopbackWith(addrs []string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	up, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	up.SetUint16(unix.IFF_UP)
	errs := []error{unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, up)}
	for i, a := range addrs {
		alias, err := unix.NewIfreq("lo:" + string(rune('a'+i)))
		if err != nil {
			return err
		}
		ip := netip.MustParseAddr(a).As4()
		errs = append(errs, alias.SetInet4Addr(ip[:]), unix.IoctlIfreq(fd, unix.SIOCSIFADDR, alias))
	}
	return errors.Join(errs...)
}

// A client from outside comes to the pod as itself; one of the node as the
// router. The node's addresses are on loopback here, its pods in another
// namespace.
func TestClientAddressIsKept(t *testing.T) {
	t.Parallel()
	const node, outside = "172.16.0.1", "198.51.100.7"
	w := start(t, nil)
	tcp := inPod(tcpBackend(t, greet("a:")))
	udpPort, _ := udpBackend(t, "u:")
	p := freePort(t)
	ask := func(c net.Conn) string {
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = c.Write([]byte("?"))
		if h, ok := c.(*net.TCPConn); ok {
			_ = h.CloseWrite()
			all, _ := io.ReadAll(c)
			return string(all)
		}
		buf := make([]byte, 100)
		n, _ := c.Read(buf)
		return string(buf[:n])
	}
	inNamespace(t, []string{node, "172.16.0.2", outside}, func() {
		err := w.server.Apply([]nodeport.Listener{
			{Addr: at("0.0.0.0", p), Proto: model.TCP, Owner: "pod a", Target: tcp},
			{Addr: at("0.0.0.0", p), Proto: model.UDP, Owner: "pod a", Target: inPod(udpPort)},
		})
		if err != nil {
			t.Error(err)
			return
		}
		for _, tt := range []struct{ from, to, source string }{
			{outside, node, outside},
			{outside, "172.16.0.2", outside},
			{node, node, node},
			{node, "127.0.0.1", node}, // curl --interface NODE 127.0.0.1
			{"127.0.0.1", "127.0.0.1", router.String()},
		} {
			c, err := net.DialTCP("tcp", net.TCPAddrFromAddrPort(at(tt.from, 0)), net.TCPAddrFromAddrPort(at(tt.to, p)))
			if err != nil {
				t.Errorf("%s to %s: %v", tt.from, tt.to, err)
				continue
			}
			port := port(c.LocalAddr())
			if got := ask(c); got != "a:?" {
				t.Errorf("%s to %s over TCP: %q", tt.from, tt.to, got)
			}
			if src := w.lastSource(t); src.Addr().String() != tt.source || tt.source == outside && src.Port() != port {
				t.Errorf("%s port %d to %s comes as %s, want %s", tt.from, port, tt.to, src, tt.source)
			}
			u, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(at(tt.from, 0)), net.UDPAddrFromAddrPort(at(tt.to, p)))
			if err != nil {
				t.Errorf("%s to %s: %v", tt.from, tt.to, err)
				continue
			}
			if got := ask(u); got != "u:?" { // from the address that was asked, or the socket would not take it
				t.Errorf("%s to %s over UDP: %q", tt.from, tt.to, got)
			}
			if src := w.lastSource(t); src.Addr().String() != tt.source {
				t.Errorf("%s to %s over UDP comes as %s, want %s", tt.from, tt.to, src, tt.source)
			}
		}
	})
}
