package nodeport

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// controlSize holds the control message of either family.
const controlSize = unix.SizeofCmsghdr + 24

// receiveDestination makes the kernel say, with each datagram, which address it
// was sent to (ip(7) IP_PKTINFO, RFC 3542 §6).
func receiveDestination(c syscall.RawConn, is4 bool) error {
	var serr error
	err := c.Control(func(fd uintptr) {
		if is4 {
			serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		} else {
			serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		}
	})
	if err != nil {
		return err
	}
	return serr
}

// destination reads what receiveDestination asked for:
//
//	in_pktinfo   | ifindex 4 | local address 4 | destination 4 |
//	in6_pktinfo  | destination 16 | ifindex 4 |
//
// It is the zero Addr for a broadcast or multicast, which no address of ours
// was asked by.
func destination(control []byte) netip.Addr {
	for len(control) >= unix.SizeofCmsghdr {
		h, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			return netip.Addr{}
		}
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= 12:
			a, local := netip.AddrFrom4([4]byte(data[8:12])), netip.AddrFrom4([4]byte(data[4:8]))
			if a == local && !a.IsMulticast() {
				return a
			}
			return netip.Addr{}
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= 20:
			a := netip.AddrFrom16([16]byte(data[:16]))
			switch {
			case a.IsMulticast():
				return netip.Addr{}
			case a.IsLinkLocalUnicast():
				return a.WithZone(strconv.Itoa(int(binary.NativeEndian.Uint32(data[16:]))))
			}
			return a
		}
		control = rest
	}
	return netip.Addr{}
}

// sourceControl makes a datagram leave from an address.
func sourceControl(from netip.Addr) []byte {
	if from.Is4() {
		return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: from.As4()})
	}
	return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: from.As16(), Ifindex: zoneOf(from)})
}

// zoneOf is the index of the interface that a link-local address is on, else 0.
func zoneOf(a netip.Addr) uint32 {
	if a.Zone() == "" {
		return 0
	}
	if n, err := strconv.ParseUint(a.Zone(), 10, 31); err == nil {
		return uint32(n)
	}
	if i, err := net.InterfaceByName(a.Zone()); err == nil {
		return uint32(i.Index)
	}
	return 0
}

// addrPortOf reads a socket address of the system; a zone is its number.
func addrPortOf(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		a := netip.AddrFrom16(sa.Addr).Unmap()
		if sa.ZoneId != 0 {
			a = a.WithZone(strconv.Itoa(int(sa.ZoneId)))
		}
		return netip.AddrPortFrom(a, uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// sockaddrOf is the reverse of addrPortOf.
func sockaddrOf(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port()), ZoneId: zoneOf(a.Addr())}
}
