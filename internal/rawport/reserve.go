package rawport

import (
	"context"
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

// reserve binds what is not adopted, up to n ports from the first on. A port that
// another program has is left out. It returns the sockets that are new.
func (p *Port) reserve(n int) (fds []int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	known := len(p.conflicts)
	for ; p.tried < n && !p.closed && err == nil; p.tried++ {
		port := uint16(int(p.cfg.First) + p.tried)
		r := p.reserved[port]
		if r.whole() {
			continue // adopted
		}
		if r, err = r.complete(port); err == nil {
			p.reserved[port] = r
			fds = append(fds, r.tcp, r.udp)
			continue
		}
		delete(p.reserved, port)
		if errors.Is(err, unix.EADDRINUSE) {
			p.conflicts = append(p.conflicts, port)
			err = nil
		}
	}
	ports := slices.Sorted(maps.Keys(p.reserved))
	p.ports.Store(&ports)
	if others := p.conflicts[known:]; len(others) > 0 {
		p.cfg.Logger.Warn("ports for connections to the outside are in use by other programs", "ports", others)
	}
	return fds, err
}

func (r *reservation) whole() bool { return r != nil && r.tcp >= 0 && r.udp >= 0 }

// complete binds what a reservation lacks, which may be all of it. One that
// cannot be completed is closed.
func (r *reservation) complete(port uint16) (*reservation, error) {
	if r == nil {
		r = &reservation{-1, -1}
	}
	var err error
	if r.tcp < 0 {
		r.tcp, err = bind(unix.SOCK_STREAM, port)
	}
	if err == nil && r.udp < 0 {
		r.udp, err = bind(unix.SOCK_DGRAM, port)
	}
	if err != nil {
		r.close()
		return nil, fmt.Errorf("reserve port %d: %w", port, err)
	}
	return r, nil
}

// grow reserves more ports when they are short, until the context ends.
func (p *Port) grow(ctx context.Context) {
	n := p.cfg.Ports
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.short:
		}
		if n >= p.cfg.Most {
			continue
		}
		n = min(n+growBy, p.cfg.Most)
		fds, err := p.reserve(n)
		if err != nil {
			p.cfg.Logger.Warn("there are no more ports for connections to the outside", "ports", len(p.Ports()), "error", err)
			n = p.cfg.Most
		}
		if p.cfg.Grown != nil && len(fds) > 0 {
			p.cfg.Grown(fds)
		}
	}
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
func (p *Port) adopt(fds []int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, fd := range fds {
		if err := p.adoptOne(fd); err != nil {
			unix.Close(fd)
			p.cfg.Logger.Warn("a socket for packets to the outside was not taken over", "error", err)
		}
	}
}

// adoptOne is called with mu held.
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
	if port < int(p.cfg.First) || port >= int(p.cfg.First)+p.cfg.Most {
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
