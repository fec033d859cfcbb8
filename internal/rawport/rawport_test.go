package rawport_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/kernel"
)

// echo answers every connection with what it sends.
func echo(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c)
		}()
	}
}

func TestTCPGoesThroughUnderTheNodesAddress(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "raw")
	for _, f := range families() {
		l := w.listen(f)
		seen := make(chan net.Addr, 1)
		go func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			seen <- c.RemoteAddr()
			_, _ = io.Copy(c, c)
		}()
		c := w.dial("tcp", l.Addr())
		sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // 4 MiB: super-packets both ways
		go func() {
			_, _ = c.Write(sent)
			_ = c.(*net.TCPConn).CloseWrite()
		}()
		got, err := io.ReadAll(c)
		if err != nil || sha256.Sum256(got) != sha256.Sum256(sent) {
			t.Fatalf("%s: got %d bytes of %d back, %v", f.name, len(got), len(sent), err)
		}
		from := (<-seen).(*net.TCPAddr).AddrPort()
		if from.Addr() != f.node || from.Port() < firstPort || from.Port() >= firstPort+ports {
			t.Errorf("%s: the server sees %s", f.name, from)
		}
	}
}

// TestNarrowLink: the node's kernel tells the node's address that a packet is too
// big, and the pod learns it. The server, which offers larger segments, only takes.
func TestNarrowLink(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "raw")
	w.must(setMTU(w.node, 1300))
	for _, f := range families() {
		l := w.listen(f)
		const size = 1 << 18
		go func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			if _, err := io.CopyN(io.Discard, c, size); err == nil {
				_, _ = c.Write([]byte("thanks"))
			}
		}()
		c := w.dial("tcp", l.Addr())
		if got := w.segment(c); got <= 1300-20 {
			t.Fatalf("%s: segments of %d bytes need no error", f.name, got)
		}
		if _, err := c.Write(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(c)
		if err != nil || string(got) != "thanks" {
			t.Errorf("%s: the server says %q, %v", f.name, got, err)
		}
	}
}

func TestRefusedIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "raw")
	for _, f := range families() {
		for _, host := range []netip.Addr{f.outside, f.node} {
			to := netip.AddrPortFrom(host, 9).String()
			err := w.pod.Do(func() error {
				d := net.Dialer{Timeout: waitLong}
				c, err := d.Dial("tcp", to)
				if err == nil {
					c.Close()
				}
				return err
			})
			if !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s: connect to %s: %v", f.name, to, err)
			}
		}
	}
}

// TestDatagrams has answers of one packet, of several fragments, and one that
// nobody gives: the ICMP error comes to the pod's socket.
func TestDatagrams(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "raw")
	for _, f := range families() {
		var server net.PacketConn
		w.must(w.outside.Do(func() (err error) {
			server, err = net.ListenPacket("udp", netip.AddrPortFrom(f.outside, 0).String())
			return err
		}))
		t.Cleanup(func() { server.Close() })
		go func() {
			buf := make([]byte, 1<<16)
			for {
				n, from, err := server.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = server.WriteTo(buf[:n], from)
			}
		}()
		c := w.dial("udp", server.LocalAddr())
		for _, size := range []int{1, 1000, 1390, 4000, 30000} {
			sent := bytes.Repeat([]byte{byte(size)}, size)
			if _, err := c.Write(sent); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 1<<16)
			n, err := c.Read(got)
			if err != nil || !bytes.Equal(got[:n], sent) {
				t.Errorf("%s: %d bytes: got %d back, %v", f.name, size, n, err)
			}
		}
		// Not the server's own port: a program that is being started may have a copy of
		// a socket that was closed.
		c = w.dial("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(f.outside, 9)))
		if _, err := c.Write([]byte("anybody?")); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: nobody listens: %v", f.name, err)
		}
	}
}

// TestKill ends the agent in the middle of a transfer, again and again; the next
// one goes on with the flow table and the sockets that the test has kept.
func TestKill(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "raw")
	const kills, block = 5, 1 << 20
	for _, f := range families() {
		l := w.listen(f)
		go echo(l)
		c := w.dial("tcp", l.Addr())
		idle := w.dial("tcp", l.Addr())
		w.must(c.SetDeadline(time.Now().Add(4 * waitLong)))
		w.must(idle.SetDeadline(time.Now().Add(5 * waitLong)))
		want, got := sha256.New(), sha256.New()
		stop, sent := make(chan struct{}), make(chan int64, 1)
		go func() {
			var n int64
			data := make([]byte, block)
			for i := byte(0); ; i++ {
				select {
				case <-stop:
					_ = c.(*net.TCPConn).CloseWrite()
					sent <- n
					return
				default:
				}
				data[0] = i
				k, err := c.Write(data)
				n += int64(k)
				want.Write(data[:k])
				if err != nil {
					sent <- n
					return
				}
			}
		}()
		var total int64
		read := func(n int64) {
			k, err := io.CopyN(got, c, n)
			if total += k; err != nil {
				t.Fatalf("%s: after %d bytes: %v", f.name, total, err)
			}
		}
		for range kills {
			read(2 * block)
			w.kill()
			w.start()
			read(2 * block)
		}
		close(stop)
		k, err := io.Copy(got, c)
		total += k
		if n := <-sent; err != nil || n != total || !bytes.Equal(want.Sum(nil), got.Sum(nil)) {
			t.Errorf("%s: %d bytes of %d came back, %v", f.name, total, n, err)
		}
		if _, err := idle.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(idle, make([]byte, 1)); err != nil {
			t.Errorf("%s: a connection that was idle: %v", f.name, err)
		}
	}
}

// TestPing has pings of the pod answered, and told apart by their identifiers.
func TestPing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "raw")
	for _, f := range families() {
		for id := uint16(1); id <= 3; id++ {
			if err := w.ping(f, id); err != nil {
				t.Errorf("%s: ping %d: %v", f.name, id, err)
			}
		}
	}
}

// TestPortsOfOthers: a port that another program has is not used, and said.
func TestPortsOfOthers(t *testing.T) {
	t.Parallel()
	ns := newNS(t)
	err := ns.Do(func() error {
		if err := kernel.SetLoopbackUp(nil); err != nil {
			return err
		}
		l, err := net.Listen("tcp4", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), firstPort+1).String())
		if err != nil {
			return err
		}
		defer l.Close()
		p, err := open(ports)
		if err != nil {
			return err
		}
		defer p.Close()
		if got := p.Conflicts(); !slices.Equal(got, []uint16{firstPort + 1}) || slices.Contains(p.Ports(), firstPort+1) || len(p.Ports()) != ports-1 {
			t.Errorf("in use by others: %d, by us: %d", got, p.Ports())
		}
		if l, err := net.Listen("tcp4", netip.AddrPortFrom(netip.IPv4Unspecified(), firstPort).String()); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("another program has our port %d: %v, %v", firstPort, l, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestKernelSaysNothing: what comes to a port that is only kept is neither
// refused nor answered, whether an agent runs or not.
func TestKernelSaysNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "raw")
	for _, running := range []bool{true, false} {
		if !running {
			w.kill()
		}
		for _, f := range families() {
			for _, network := range []string{"tcp", "udp"} {
				for port, refused := range map[uint16]bool{firstPort: false, firstPort + ports: true} {
					if got := w.refuses(network, netip.AddrPortFrom(f.node, port)); got != refused {
						t.Errorf("%s: agent runs: %v: %s port %d refuses: %v", f.name, running, network, port, got)
					}
				}
			}
		}
	}
}

// TestHostFirewall: rules of the host for what comes in hold for replies, and
// those that let connections through that the host knows let ours through.
func TestHostFirewall(t *testing.T) {
	t.Parallel()
	if out, err := exec.Command("nft", "list", "ruleset").CombinedOutput(); err != nil {
		t.Skipf("nft: %v: %s", err, out)
	}
	const known = "ct state established,related accept; meta l4proto ipv6-icmp accept;"
	for _, c := range []struct {
		name, chain string
		passes      bool
	}{
		{"only known connections come in", "type filter hook input priority 0; policy drop; " + known, true},
		{"what is not known is rejected", "type filter hook input priority 0; " + known + " reject with icmpx admin-prohibited;", true},
		{"nothing comes in", "type filter hook input priority 0; policy drop; meta l4proto ipv6-icmp accept;", false},
		{"nothing is forwarded", "type filter hook forward priority 0; policy drop;", false},
		{"nothing goes out of the host itself", "type filter hook output priority 0; policy drop; meta l4proto ipv6-icmp accept;", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "raw")
			cmd := exec.Command("nft", "-f", "-")
			cmd.Stdin = strings.NewReader("table inet t {\nchain c {\n" + strings.ReplaceAll(c.chain, "; ", ";\n") + "\n}\n}\n")
			var out bytes.Buffer
			cmd.Stderr = &out
			w.must(kernel.StartIn(w.node, cmd))
			if err := cmd.Wait(); err != nil {
				t.Fatalf("nft: %v: %s", err, out.String())
			}
			for _, f := range families() {
				l := w.listen(f)
				go echo(l)
				if got := w.reaches("tcp", l.Addr().String(), c.passes); got != c.passes {
					t.Errorf("%s: reaches the outside: %v", f.name, got)
				}
			}
		})
	}
}

// TestPortsGrow: more connections to one server than there were ports at first.
// One that comes while there is none is refused, and may be tried again.
func TestPortsGrow(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "raw")
	for _, f := range families() {
		l := w.listen(f)
		go echo(l)
		for range 2 * ports {
			until := time.Now().Add(waitLong)
			for {
				var c net.Conn
				err := w.pod.Do(func() (err error) {
					c, err = net.DialTimeout("tcp", l.Addr().String(), waitLong)
					return err
				})
				if err == nil {
					t.Cleanup(func() { c.Close() })
					break
				}
				if time.Now().After(until) {
					t.Fatalf("%s: %v", f.name, err)
				}
			}
		}
	}
}

// TestWhatForwardingNeeds: each setting of the host without which the kernel does
// not forward what has its own address as the source, and what ForwardOwn says.
func TestWhatForwardingNeeds(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		key, value string
		reaches    [2]bool // IPv4, IPv6
		said       bool
	}{
		{"ipv4/ip_forward", "1", [2]bool{true, true}, false},
		{"ipv4/ip_forward", "0", [2]bool{false, true}, true},
		{"ipv4/conf/netctl0/accept_local", "0", [2]bool{false, true}, false}, // ForwardOwn sets it
		{"ipv4/conf/all/rp_filter", "1", [2]bool{false, true}, true},
		{"ipv4/conf/all/rp_filter", "2", [2]bool{true, true}, false},
		{"ipv6/conf/all/forwarding", "0", [2]bool{true, false}, true},
	} {
		t.Run(c.key+"="+c.value, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "raw")
			w.must(w.node.Do(func() error {
				return os.WriteFile("/proc/sys/net/"+c.key, []byte(c.value), 0)
			}))
			for i, f := range families() {
				l := w.listen(f)
				go echo(l)
				if got := w.reaches("tcp", l.Addr().String(), c.reaches[i]); got != c.reaches[i] {
					t.Errorf("%s: reaches the outside: %v", f.name, got)
				}
			}
			if err := kernel.ForwardOwn(w.node, hostTUN); (err != nil) != c.said {
				t.Errorf("ForwardOwn says %v", err)
			}
			for i, pods := range []string{"10.9.0.0/16", "fd00:9::/48"} {
				if err := kernel.ForwardOwn(w.node, hostTUN, netip.MustParsePrefix(pods)); (err != nil) != (c.said && !c.reaches[i]) {
					t.Errorf("ForwardOwn says of %s: %v", pods, err)
				}
			}
		})
	}
}
