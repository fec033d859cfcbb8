package kernel_test

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/kernel"
)

// wire joins two namespaces: a has 192.0.2.1 and 2001:db8::1, b the .2.
func wire(t *testing.T) (a, b *kernel.Namespace) {
	t.Helper()
	a, b = newNS(t), newNS(t)
	steps := []error{kernel.CreateVeth("eth0", a, "eth0", b)}
	for _, end := range []struct {
		ns   *kernel.Namespace
		host string
	}{{a, "1"}, {b, "2"}} {
		steps = append(steps,
			kernel.AddAddress(end.ns, "eth0", netip.MustParsePrefix("192.0.2."+end.host+"/24")),
			kernel.AddAddress(end.ns, "eth0", netip.MustParsePrefix("2001:db8::"+end.host+"/64")),
			kernel.AddAddress(end.ns, "eth0", netip.MustParsePrefix("2001:db8::"+end.host+"/64")), // again
			kernel.SetUp(end.ns, "eth0"), kernel.SetLoopbackUp(end.ns))
	}
	if err := errors.Join(steps...); err != nil {
		t.Fatal(err)
	}
	return a, b
}

func TestVethCarriesAndCaptureSees(t *testing.T) {
	t.Parallel()
	a, b := wire(t)
	captures := map[string]*kernel.Capture{}
	for name, ns := range map[string]*kernel.Namespace{"sender": a, "receiver": b} {
		c, err := kernel.OpenCapture(ns, "eth0")
		if err != nil {
			t.Skipf("needs packet sockets: %v", err)
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		captures[name] = c
	}
	for _, dst := range []string{"192.0.2.2", "2001:db8::2"} {
		var server, client net.PacketConn
		err := b.Do(func() (err error) {
			server, err = net.ListenPacket("udp", net.JoinHostPort(dst, "4000"))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		err = a.Do(func() (err error) {
			client, err = net.ListenPacket("udp", ":0")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(dst), 4000))
		if _, err := client.WriteTo([]byte("over "+dst), to); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		if err := server.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, _, err := server.ReadFrom(buf)
		if err != nil || string(buf[:n]) != "over "+dst {
			t.Errorf("server got %q, %v", buf[:n], err)
		}
		for side, c := range captures {
			frame := make([]byte, 2000)
			for {
				f, err := c.Read(frame)
				if err != nil {
					t.Fatalf("%s never saw the packet to %s: %v", side, dst, err)
				}
				if !bytes.HasSuffix(f.Data, []byte("over "+dst)) {
					continue // ARP, neighbour discovery
				}
				if f.Outgoing != (side == "sender") || f.Length != len(f.Data) || f.EtherTyp == 0 {
					t.Errorf("%s: %+v", side, f)
				}
				break
			}
		}
	}
}

func TestCaptureEnds(t *testing.T) {
	t.Parallel()
	a, _ := wire(t)
	c, err := kernel.OpenCapture(a, "lo")
	if err != nil {
		t.Skipf("needs packet sockets: %v", err)
	}
	if err := c.SetDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 10)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v, want the deadline", err)
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(20*time.Millisecond, func() { c.Close() })
	if _, err := c.Read(make([]byte, 10)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v, want the end", err)
	}
	if _, err := kernel.OpenCapture(a, "none"); !errors.Is(err, kernel.ErrNotFound) {
		t.Errorf("no interface: %v", err)
	}
}

func TestCaptureOnATUNStartsWithTheIPHeader(t *testing.T) {
	t.Parallel()
	needTUN(t)
	home, pod := newNS(t), newNS(t)
	tun := newTUN(t, home, kernel.TUNConfig{})
	moveIn(t, home, tun, pod, podInterface())
	c, err := kernel.OpenCapture(pod, "eth0")
	if err != nil {
		t.Skipf("needs packet sockets: %v", err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	pkt := udp4(netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("10.7.0.5:9"), "seen")
	if _, err := tun.Write(pkt); err != nil {
		t.Fatal(err)
	}
	short := make([]byte, 20)
	for {
		f, err := c.Read(short)
		if err != nil {
			t.Fatal(err)
		}
		if f.Data[0]>>4 != 4 || f.Outgoing {
			continue // a kernel's own IPv6 packet
		}
		if !bytes.Equal(f.Data, pkt[kernel.VNetLen:][:20]) || f.Length != len(pkt)-kernel.VNetLen {
			t.Errorf("got % x of %d", f.Data, f.Length)
		}
		return
	}
}

func TestBridgeJoinsAndForwards(t *testing.T) {
	t.Parallel()
	middle, x, y := newNS(t), newNS(t), newNS(t)
	err := errors.Join(
		kernel.CreateBridge(middle, "br0"), kernel.SetUp(middle, "br0"),
		kernel.CreateVeth("x", middle, "eth0", x), kernel.CreateVeth("y", middle, "eth0", y),
		kernel.SetMaster(middle, "x", "br0"), kernel.SetMaster(middle, "y", "br0"),
		kernel.SetUp(middle, "x"), kernel.SetUp(middle, "y"),
		kernel.AddAddress(x, "eth0", netip.MustParsePrefix("192.0.2.1/24")), kernel.SetUp(x, "eth0"),
		kernel.AddAddress(y, "eth0", netip.MustParsePrefix("192.0.2.2/24")), kernel.SetUp(y, "eth0"),
		kernel.SetMTU(x, "eth0", 1400), kernel.SetForwarding(middle),
	)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		if v, err := kernel.Sysctl(middle, key); v != "1" || err != nil {
			t.Errorf("%s is %q, %v", key, v, err)
		}
	}
	br, err := kernel.Describe(middle, "br0")
	if err != nil || br.Kind != "bridge" {
		t.Errorf("got %+v, %v", br, err)
	}
	port, err := kernel.Describe(middle, "x")
	if err != nil || port.Master != br.Index || port.Kind != "veth" {
		t.Errorf("got %+v, %v", port, err)
	}
	if end, err := kernel.Describe(x, "eth0"); err != nil || end.MTU != 1400 {
		t.Errorf("got %+v, %v", end, err)
	}
	var server net.PacketConn
	err = y.Do(func() (err error) {
		server, err = net.ListenPacket("udp4", "192.0.2.2:4000")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	err = x.Do(func() error {
		client, err := net.Dial("udp4", "192.0.2.2:4000")
		if err != nil {
			return err
		}
		defer client.Close()
		_, err = client.Write([]byte("over"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := server.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, _, err := server.ReadFrom(make([]byte, 10)); n != 4 || err != nil {
		t.Errorf("through the bridge: %d, %v", n, err)
	}
}

func TestHelpersOnTheAbsentAndTheTaken(t *testing.T) {
	t.Parallel()
	a, b := wire(t)
	p := netip.MustParsePrefix("192.0.2.77/24")
	for name, err := range map[string]error{
		"describe": func() error { _, err := kernel.Describe(a, "none"); return err }(),
		"up":       kernel.SetUp(a, "none"),
		"down":     kernel.SetDown(a, "none"),
		"MTU":      kernel.SetMTU(a, "none", 1400),
		"address":  kernel.AddAddress(a, "none", p),
		"master":   kernel.SetMaster(a, "eth0", "none"),
		"route":    kernel.AddRoute(a, "none", kernel.Route{Dst: p.Masked()}),
	} {
		if !errors.Is(err, kernel.ErrNotFound) {
			t.Errorf("%s: got %v, want ErrNotFound", name, err)
		}
	}
	for name, err := range map[string]error{
		"veth":      kernel.CreateVeth("eth0", a, "other", b),
		"veth peer": kernel.CreateVeth("other", a, "eth0", b),
		"bridge":    kernel.CreateBridge(a, "eth0"),
	} {
		if !errors.Is(err, kernel.ErrExists) {
			t.Errorf("%s: got %v, want ErrExists", name, err)
		}
	}
	if err := errors.Join(kernel.DeleteAddress(a, "eth0", p), kernel.DeleteInterface(a, "none"), kernel.DeleteInterface(a, "eth0"), kernel.DeleteInterface(a, "eth0")); err != nil {
		t.Errorf("deleting the absent: %v", err)
	}
	for name, ns := range map[string]*kernel.Namespace{"a": a, "b": b} {
		if links, err := kernel.Interfaces(ns); err != nil || len(links) != 1 {
			t.Errorf("%s has %+v, %v, want lo alone", name, links, err)
		}
	}
}
