package announce

import (
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// openSocketFor opens a socket that hears all of IPv6, answers too.
func openSocketFor(l Link) (*socket, error) {
	const proto = protoIPv6
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto<<8&0xff00 | proto>>8, Ifindex: l.Index}); err != nil {
		return nil, err
	}
	return &socket{file: os.NewFile(uintptr(fd), "ear"), index: l.Index, groups: -1}, nil
}

// sendTo has the kernel look for an address.
func sendTo(to netip.AddrPort) error {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte("x"))
	return err
}

// setUp sets an interface of the current namespace up or down.
func setUp(name string, up bool) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req); err != nil {
		return err
	}
	flags := req.Uint16() &^ unix.IFF_UP
	if up {
		flags |= unix.IFF_UP
	}
	req.SetUint16(flags)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}
