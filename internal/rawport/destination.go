package rawport

import (
	"hash/maphash"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netctl/netctl/internal/packet"
)

const (
	// destinations is how many are remembered, each in one place that its keyed hash
	// names: a pod that scans costs others a question now and then.
	destinations = 4096
	// destinationAge is how old the kernel's word on a destination may be: addresses
	// come to the host and go, and routes move.
	destinationAge = 2 * time.Second
)

// destination is what is known of an address. It is immutable.
type destination struct {
	addr  packet.Addr
	src   packet.Addr // the node's, zero: nothing may be sent there
	until time.Duration
}

// Source returns the node's address that packets to dst leave with, the zero Addr
// when none may be sent there.
func (p *Port) Source(dst packet.Addr) packet.Addr {
	place := &p.dests[maphash.Comparable(p.seed, dst)%destinations]
	now := time.Since(p.began)
	if d := place.Load(); d != nil && d.addr == dst && now < d.until {
		return d.src
	}
	d := &destination{addr: dst, until: now + destinationAge}
	if a := dst.Netip(); p.cfg.Refuse == nil || p.cfg.Refuse(a) == nil {
		d.src = routeSource(a)
	}
	place.Store(d)
	return d.src
}

// routeSource asks the kernel by connecting a datagram socket, which sends
// nothing. For an address of the host the answer is that address itself, and
// broadcasts are not connected to: both give the zero Addr, as no route does.
func routeSource(dst netip.Addr) packet.Addr {
	family := unix.AF_INET6
	var to unix.Sockaddr = &unix.SockaddrInet6{Port: 9, Addr: dst.As16()}
	if dst.Is4() {
		family, to = unix.AF_INET, &unix.SockaddrInet4{Port: 9, Addr: dst.As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return packet.Addr{}
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, to); err != nil {
		return packet.Addr{}
	}
	local, err := unix.Getsockname(fd)
	if err != nil {
		return packet.Addr{}
	}
	var src netip.Addr
	switch a := local.(type) {
	case *unix.SockaddrInet4:
		src = netip.AddrFrom4(a.Addr)
	case *unix.SockaddrInet6:
		src = netip.AddrFrom16(a.Addr)
	}
	if src == dst || src.IsLoopback() || src.IsUnspecified() || src.IsLinkLocalUnicast() {
		return packet.Addr{}
	}
	return packet.AddrFrom(src)
}

// destinationOf reads where a packet goes.
func destinationOf(buf []byte) (packet.Addr, bool) {
	const end4, end6 = 20, 40
	if len(buf) < packet.VNetLen+end4 {
		return packet.Addr{}, false
	}
	ip := buf[packet.VNetLen:]
	if ip[0]>>4 == 4 {
		return packet.AddrFrom(netip.AddrFrom4([4]byte(ip[16:end4]))), true
	}
	if len(ip) < end6 {
		return packet.Addr{}, false
	}
	return packet.Addr(ip[24:end6]), true
}
