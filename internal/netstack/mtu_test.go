package netstack_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netctl/netctl/internal/netstack"
	"github.com/netctl/netctl/internal/packet"
)

// inNamespace runs f on a thread in a new network namespace whose loopback has
// a small MTU. Sockets that f opens stay there. The thread is thrown away.
func inNamespace(t *testing.T, mtu uint32, f func()) {
	t.Helper()
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			err = loopbackUp(mtu)
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

func loopbackUp(mtu uint32) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	size, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	size.SetUint32(mtu)
	up, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	up.SetUint16(unix.IFF_UP)
	return errors.Join(unix.IoctlIfreq(fd, unix.SIOCSIFMTU, size), unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, up))
}

func TestUDPTooBigForThePath(t *testing.T) {
	t.Parallel()
	const mtu = 1300
	for _, f := range families(t) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			var conn *net.UDPConn
			var port uint16
			inNamespace(t, mtu, func() {
				port = udpEcho(t, f)
				var err error
				conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(f.loopback, port)))
				if err != nil {
					t.Error(err)
				}
			})
			n := start(t, func(c *netstack.Config) {
				c.DialUDP = func(context.Context, netip.AddrPort) (*net.UDPConn, error) { return conn, nil }
			})
			got := n.capture()
			_ = n.stack.Write(f.udp(port, pattern(1350)))
			p := got.next(t, "too big", func(p *packet.Packet) bool {
				return p.Kind == packet.KindICMPError && (p.ICMPType == 3 && p.ICMPCode == 4 || p.ICMPType == 2)
			})
			if got := int(p.IP()[p.L4+6])<<8 | int(p.IP()[p.L4+7]); got != mtu {
				t.Errorf("error says MTU %d, want %d", got, mtu)
			}
			// What the pod may have fragmented is fragmented.
			for _, frag := range fragment(f.udp(port, pattern(2000)), 1200) {
				_ = n.stack.Write(frag)
			}
			got.next(t, "echo of the big one", func(p *packet.Packet) bool { return p.Kind == packet.KindFirstFragment })
		})
	}
}
