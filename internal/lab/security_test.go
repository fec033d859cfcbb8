package lab

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/model"
)

// wire captures what passes a wire of the fabric until stop.
func (l *Lab) wire(t *testing.T, link string) (stop func() wireTally) {
	t.Helper()
	fabric, err := l.namespace(fabricNS)
	if err != nil {
		t.Fatal(err)
	}
	defer fabric.Close()
	capture, err := kernel.OpenCapture(fabric, link)
	if err != nil {
		t.Fatal(err)
	}
	tally := make(chan wireTally, 1)
	go func() {
		var w wireTally
		buf := make([]byte, maxDatagram+etherHeader)
		for {
			f, err := capture.Read(buf)
			if err != nil {
				tally <- w
				return
			}
			w.count(f.Data)
		}
	}()
	return func() wireTally {
		time.Sleep(captureTail)
		if err := capture.SetDeadline(time.Now()); err != nil {
			t.Error(err)
		}
		w := <-tally
		_ = capture.Close()
		return w
	}
}

const secretPath = "/a-secret-that-nobody-on-the-wire-may-read"

func TestWireCarriesWireGuardOnly(t *testing.T) {
	t.Parallel()
	l := up(t, Config{Families: DualStack}, podYAML("client", "node1", "sleep", "600"), podYAML("web", "node2"))
	stop := l.wire(t, "n1")
	for _, a := range l.podNow(t, "web").Addresses {
		for _, from := range []string{"client", "node1"} {
			if _, err := l.withOutput(from, "netctl", "lab", "fetch", "http://"+hostPort(a, "80")+secretPath); err != nil {
				t.Error(err)
			}
			if _, err := l.withOutput(from, "netctl", "lab", "ping", a.String()); err != nil {
				t.Error(err)
			}
		}
	}
	// Node addresses, too: what a pod says to another node is nobody's business.
	for _, a := range l.hostIPs("node2") {
		if _, err := l.withOutput("client", "netctl", "lab", "ping", a); err != nil {
			t.Error(err)
		}
	}
	w := stop()
	if _, err := w.verdict(); err != nil {
		t.Error(err)
	}
}

// The node's routes to pods stand through every change: in a moment without them
// its packets to pods would leave by its default route, in plain text.
func TestRoutesStandThroughChanges(t *testing.T) {
	t.Parallel()
	l := up(t, Config{}, podYAML("first", "node1"))
	var seen string
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		seen, _ = l.withOutput("node1", "timeout", "4", "ip", "monitor", "route") // it is ended by force
	}()
	time.Sleep(captureTail)
	for _, name := range []string{"second", "third"} {
		apply(t, l, podYAML(name, "node1"), podYAML(name+"-far", "node2"))
	}
	<-watched
	if strings.Contains(seen, "Deleted") {
		t.Errorf("pods came, and routes went meanwhile:\n%s", seen)
	}
}

// A node without a key gets nothing, not even in plain text, and who speaks to
// it is not left to time out in silence.
func TestPeerWithoutKeyFailsClosed(t *testing.T) {
	t.Parallel()
	l := up(t, Config{}, podYAML("client", "node1", "sleep", "600"), podYAML("web", "node2"))
	url := "http://" + hostPort(l.podNow(t, "web").Addresses[0], "80") + secretPath
	if _, err := l.withOutput("client", "netctl", "lab", "fetch", url); err != nil {
		t.Fatal(err)
	}
	if err := l.KillAgent("node2"); err != nil { // it would publish its key again
		t.Fatal(err)
	}
	if err := os.Remove(l.path("cluster", "node-node2.patch.yaml")); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, func() error {
		if log := l.agentLogs("node1"); !strings.Contains(log, "node2") || !strings.Contains(log, "key") {
			return errors.New("node1 does not say that node2 has no key")
		}
		return nil
	})
	stop := l.wire(t, "n1")
	for _, from := range []string{"client", "node1"} {
		if out, err := l.withOutput(from, "netctl", "lab", "fetch", url); err == nil {
			t.Errorf("%s was answered: %s", from, out)
		}
	}
	w := stop()
	if w.secret || len(w.others) > 0 || w.wireGuard > 0 {
		t.Errorf("the wire carried %+v", w)
	}
}

// A pod that gives itself another's address speaks to nobody with it.
func TestForeignSourceIsDropped(t *testing.T) {
	t.Parallel()
	l := up(t, Config{Families: DualStack}, podYAML("client", "node1", "sleep", "600"), echoYAML("near", "node1"), echoYAML("far", "node2"))
	victim := l.podNow(t, "near").Addresses
	for i, own := range l.podNow(t, "client").Addresses {
		for _, foreign := range []netip.Addr{victim[i], own.Next().Next(), l.plan.outside[i]} {
			for _, target := range []string{"near", "far"} {
				to := l.podNow(t, target).Addresses[i]
				if to == foreign {
					continue
				}
				if err := l.sendFrom(t, "client", own, to); err != nil {
					t.Errorf("with its own address to %s: %v", target, err)
				}
				if err := l.sendFrom(t, "client", foreign, to); err == nil {
					t.Errorf("%s was heard with source %s", target, foreign)
				}
			}
		}
	}
}

// sendFrom has a pod speak UDP to an echo server from an address that it gives
// itself where it has not got it.
func (l *Lab) sendFrom(t *testing.T, pod string, src, dst netip.Addr) error {
	t.Helper()
	own := l.podNow(t, pod).Addresses
	if src != own[0] && src != own[len(own)-1] {
		args := []string{"ip", "addr", "replace", netip.PrefixFrom(src, src.BitLen()).String(), "dev", "eth0"}
		if src.Is6() {
			args = append(args, "nodad")
		}
		if _, err := l.withOutput(pod, args...); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if _, err := l.withOutput(pod, "ip", "addr", "del", netip.PrefixFrom(src, src.BitLen()).String(), "dev", "eth0"); err != nil {
				t.Error(err)
			}
		}()
	}
	ns, err := l.namespace(podPart(model.Name{Namespace: "default", Name: pod}))
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	return ns.Do(func() error { return echoUDP(src, dst) })
}

// The sockets of a node are not behind the egress of its pods: a pod that sends
// to loopback or to link-local addresses by way of its eth0 reaches nothing.
func TestEgressDoesNotReachTheNode(t *testing.T) {
	t.Parallel()
	l := up(t, Config{Nodes: 1, Families: DualStack}, podYAML("client", "node1", "sleep", "600"))
	// A secret on the node's loopback, and on an address that only the node has.
	for _, a := range []string{"127.0.0.1:8099", "[::1]:8099", "169.254.77.1:8099", "127.0.0.53:8099"} {
		host := strings.Trim(a[:strings.LastIndexByte(a, ':')], "[]")
		if strings.HasPrefix(host, "169") {
			if _, err := l.withOutput("node1", "ip", "addr", "add", host+"/32", "dev", "lo"); err != nil {
				t.Fatal(err)
			}
		}
		l.serveOn(t, "node1", a)
	}
	// The pod has no loopback of its own, and a route for everything to us.
	for _, args := range [][]string{
		{"ip", "addr", "flush", "dev", "lo"},
		{"ip", "link", "set", "lo", "down"},
		{"ip", "route", "replace", "127.0.0.0/8", "dev", "eth0"},
		{"ip", "-6", "route", "replace", "::1/128", "dev", "eth0"},
		{"sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet"},
	} {
		if out, err := l.withOutput("client", args...); err != nil {
			t.Logf("%v: %v %s", args, err, out)
		}
	}
	var wg sync.WaitGroup
	for _, to := range []string{"127.0.0.1", "127.0.0.53", "0.0.0.0", "169.254.77.1", "::1", "::ffff:127.0.0.1"} {
		wg.Go(func() { // each may take a while to give up
			addr := netip.AddrPortFrom(netip.MustParseAddr(to), 8099)
			if out, err := l.withOutput("client", "netctl", "lab", "fetch", "http://"+addr.String()); err == nil {
				t.Errorf("%s answered: %s", to, out)
			}
		})
	}
	wg.Wait()
	// Node addresses are the node's: a process that listens there is reached, and
	// sees the pod's own address, no proxy of it.
	for i, a := range l.hostIPs("node1") {
		l.serveOn(t, "node1", hostPort(netip.MustParseAddr(a), "8098"))
		out, err := l.withOutput("client", "netctl", "lab", "fetch", "http://"+hostPort(netip.MustParseAddr(a), "8098"))
		if want := "client=" + l.podNow(t, "client").Addresses[i].String(); err != nil || !strings.Contains(strings.NewReplacer("[", "", "]", "").Replace(out), want) {
			t.Errorf("node at %s: %v %s, want %s", a, err, out, want)
		}
	}
}

var errNoAnswer = errors.New("no answer")

// echoUDP sends a datagram from src to the echo server of dst, in the calling
// thread's namespace.
func echoUDP(src, dst netip.Addr) error {
	d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(src, 0)), Timeout: time.Second}
	c, err := d.Dial("udp", netip.AddrPortFrom(dst, 7).String())
	if err != nil {
		return err
	}
	defer c.Close()
	buf := make([]byte, 1500)
	for range 3 {
		if _, err := c.Write([]byte("hello")); err != nil {
			return err
		}
		if err := c.SetReadDeadline(time.Now().Add(150 * time.Millisecond)); err != nil {
			return err
		}
		if _, err = c.Read(buf); err == nil {
			return nil
		}
	}
	return errNoAnswer
}

// serveOn runs the built-in web server on a node at an address, until
// the test ends.
func (l *Lab) serveOn(t *testing.T, node, addr string) {
	t.Helper()
	cmd, err := l.Exec(node, "", []string{"netctl", "lab", "serve", "--http=" + addr}, func(*exec.Cmd) {})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-done })
	eventually(t, 5*time.Second, func() error {
		_, err := l.withOutput(node, "netctl", "lab", "fetch", "http://"+addr)
		return err
	})
}
