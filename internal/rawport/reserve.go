package rawport

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"
)

// reservation are the sockets that bind a port on every address of the host, of
// both families where there are two, and pass nothing on: the kernel takes what
// comes to the port for delivered and says nothing to its sender. -1: none.
type reservation struct{ tcp, udp int }

func (r *reservation) close() { closeAll([]int{r.tcp, r.udp}) }

func closeAll(fds []int) {
	for _, fd := range fds {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// reserve binds what is not adopted. A port that another program has is left out.
func (p *Port) reserve() error {
	for i := range p.cfg.Ports {
		port := uint16(int(p.cfg.First) + i) //nolint:gosec // Validate has seen to it
		r := p.reserved[port]
		if r == nil {
			r = &reservation{-1, -1}
			p.reserved[port] = r
		}
		var err error
		if r.tcp < 0 {
			r.tcp, err = bind(unix.SOCK_STREAM, port)
		}
		if err == nil && r.udp < 0 {
			r.udp, err = bind(unix.SOCK_DGRAM, port)
		}
		if err == nil {
			continue
		}
		r.close()
		delete(p.reserved, port)
		if !errors.Is(err, unix.EADDRINUSE) {
			return fmt.Errorf("reserve port %d: %w", port, err)
		}
		p.conflicts = append(p.conflicts, port)
	}
	p.ports = slices.Sorted(maps.Keys(p.reserved))
	if len(p.ports) == 0 {
		return fmt.Errorf("all ports from %d to %d are in use by other programs", p.cfg.First, int(p.cfg.First)+p.cfg.Ports-1)
	}
	return nil
}

// bind reserves a port for TCP or UDP. The filter is there before the address, so
// that nothing is ever answered.
func bind(kind int, port uint16) (int, error) {
	fd, err := bindFamily(unix.AF_INET6, kind, &unix.SockaddrInet6{Port: int(port)})
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL) {
		return bindFamily(unix.AF_INET, kind, &unix.SockaddrInet4{Port: int(port)})
	}
	return fd, err
}

func bindFamily(family, kind int, addr unix.Sockaddr) (int, error) {
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("open a socket: %w", err)
	}
	if family == unix.AF_INET6 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0)
	}
	if err == nil {
		err = attach(fd, passNothing())
	}
	if err == nil {
		err = unix.Bind(fd, addr)
	}
	if err == nil && kind == unix.SOCK_STREAM {
		err = unix.Listen(fd, 0)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// adopt sorts a predecessor's sockets by what the kernel says that they are. What
// is of no use is closed.
func (p *Port) adopt(fds []int) error {
	for _, fd := range fds {
		if err := p.adoptOne(fd); err != nil {
			unix.Close(fd)
			p.cfg.Logger.Warn("a socket for packets to the outside was not taken over", "error", err)
		}
	}
	return nil
}

func (p *Port) adoptOne(fd int) error {
	unix.CloseOnExec(fd)
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return fmt.Errorf("ask for the socket's type: %w", err)
	}
	if kind == unix.SOCK_RAW {
		return p.adoptRaw(fd)
	}
	addr, err := unix.Getsockname(fd)
	if err != nil {
		return fmt.Errorf("ask for the socket's address: %w", err)
	}
	var port int
	switch a := addr.(type) {
	case *unix.SockaddrInet4:
		port = a.Port
	case *unix.SockaddrInet6:
		port = a.Port
	default:
		return fmt.Errorf("address %T", addr)
	}
	if port < int(p.cfg.First) || port >= int(p.cfg.First)+p.cfg.Ports {
		return fmt.Errorf("port %d is not ours any more", port)
	}
	if err := attach(fd, passNothing()); err != nil {
		return err
	}
	r := p.reserved[uint16(port)]
	if r == nil {
		r = &reservation{-1, -1}
		p.reserved[uint16(port)] = r
	}
	switch {
	case kind == unix.SOCK_STREAM && r.tcp < 0:
		r.tcp = fd
	case kind == unix.SOCK_DGRAM && r.udp < 0:
		r.udp = fd
	default:
		return fmt.Errorf("a second socket of type %d for port %d", kind, port)
	}
	return nil
}
