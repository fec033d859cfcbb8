// Package udp is the two UDP sockets of a node's tunnels, IPv4 and IPv6, moved
// in batches: the kernel cuts what is sent (UDP_SEGMENT) and joins what came in
// (UDP_GRO), and one system call takes several of those joined pieces.
//
// Invariants:
//   - Sending never waits: a socket without room is [ErrBusy], and the datagrams
//     that did not go are lost, as on a wire.
//   - No allocation per call, in either direction.
//   - A descriptor can be given to another process at any time. Two processes
//     may send through one socket; who calls Receive takes.
//
// One goroutine per queue receives; sending is for everybody. Test on loopback,
// no root needed.
package udp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// MaxSegments is what the kernel cuts one piece into at most, before 6.9.
	MaxSegments = 64
	// MaxPiece is the longest piece: what one IPv4 datagram can carry.
	MaxPiece = 65507
	// bufferSize is what a socket may hold, in either direction, as wireguard-go
	// has it: some milliseconds at 10 Gbit/s.
	bufferSize = 7 << 20
)

// ErrBusy says that the socket has no room now; the rest of what was sent is lost.
var ErrBusy = errors.New("udp socket has no room")

// ErrNarrow says that datagrams went, but in fragments: the kernel believes the way
// to be too narrow for them.
var ErrNarrow = errors.New("datagrams were sent in fragments")

// Sockets are a node's sockets. Queue 0 is IPv4 and queue 1 IPv6, or only one
// is there when the kernel knows only one.
type Sockets struct {
	queues  []*queue
	v4, v6  *queue // of queues, nil: not there
	port    uint16
	gso     atomic.Bool
	gro     bool          // immutable
	refused atomic.Uint64 // how often the kernel would not cut any more
	senders sync.Pool     // of *sender
	mmsg    sendmmsg      // immutable
}

// Options are what the kernel is asked to do.
type Options struct {
	GSO bool // cut what is sent
	GRO bool // join what came in
}

// queue is one socket.
type queue struct {
	conn *net.UDPConn
	raw  syscall.RawConn
	fd   int // of conn, for who asks
	rx   receiver
}

// Listen opens the sockets on a port, or on a free one when it is 0.
func Listen(port uint16, o Options) (*Sockets, error) {
	const tries = 16 // a port that is free in one family may be taken in the other
	var err error
	for range tries {
		var s *Sockets
		if s, err = listen(port, o); err == nil {
			return s, nil
		}
		if port != 0 || !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
	}
	return nil, err
}

func listen(port uint16, o Options) (*Sockets, error) {
	var conns []*net.UDPConn
	for _, network := range []string{"udp4", "udp6"} {
		c, err := net.ListenUDP(network, &net.UDPAddr{Port: int(port)})
		if err != nil && errors.Is(err, syscall.EAFNOSUPPORT) {
			continue
		}
		if err != nil {
			return nil, errors.Join(err, closeAll(conns))
		}
		conns = append(conns, c)
		if a, ok := c.LocalAddr().(*net.UDPAddr); ok {
			port = uint16(a.Port) // 0 to 65535
		}
	}
	return build(conns, o, sendmmsgRaw)
}

// Adopt takes over sockets that another process has opened. The descriptors are
// its own from then on, also when it fails.
func Adopt(fds []int, o Options) (*Sockets, error) {
	var conns []*net.UDPConn
	var errs []error
	for _, fd := range fds {
		f := os.NewFile(uintptr(fd), "wireguard socket")
		if f == nil {
			errs = append(errs, fmt.Errorf("descriptor %d is none", fd))
			continue
		}
		c, err := net.FilePacketConn(f)
		if err = errors.Join(err, f.Close()); err != nil {
			errs = append(errs, fmt.Errorf("descriptor %d: %w", fd, err))
			continue
		}
		u, ok := c.(*net.UDPConn)
		if !ok {
			errs = append(errs, fmt.Errorf("descriptor %d is no UDP socket", fd), c.Close())
			continue
		}
		conns = append(conns, u)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, errors.Join(fmt.Errorf("adopt sockets: %w", err), closeAll(conns))
	}
	return build(conns, o, sendmmsgRaw)
}

func closeAll(conns []*net.UDPConn) error {
	var errs []error
	for _, c := range conns {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// build sets the sockets' options.
func build(conns []*net.UDPConn, o Options, mmsg sendmmsg) (*Sockets, error) {
	s := &Sockets{gro: o.GRO, mmsg: mmsg}
	s.gso.Store(o.GSO)
	s.senders.New = func() any { return newSender(mmsg) }
	for _, c := range conns {
		if err := s.add(c); err != nil {
			return nil, errors.Join(err, closeAll(conns))
		}
	}
	if len(s.queues) == 0 {
		return nil, errors.New("no UDP socket: this kernel has neither IPv4 nor IPv6")
	}
	return s, nil
}

func (s *Sockets) add(c *net.UDPConn) error {
	local, ok := c.LocalAddr().(*net.UDPAddr)
	if !ok || local.Port == 0 {
		return fmt.Errorf("socket on %v is not bound to a port", c.LocalAddr())
	}
	port := uint16(local.Port) // not 0, at most 65535
	if s.port != 0 && s.port != port {
		return fmt.Errorf("sockets on two ports, %d and %d", s.port, port)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	q := &queue{conn: c, raw: raw}
	q.rx.init()
	domain, family := 0, error(nil)
	err = raw.Control(func(fd uintptr) {
		q.fd = int(fd)
		domain, family = unix.GetsockoptInt(q.fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
		setOptions(q.fd, s.gro)
	})
	if err = errors.Join(err, family); err != nil {
		return err
	}
	switch {
	case domain == unix.AF_INET && s.v4 == nil:
		s.v4 = q
	case domain == unix.AF_INET6 && s.v6 == nil:
		s.v6 = q
	default:
		return fmt.Errorf("two sockets of one family, or of none we know (%d)", domain)
	}
	s.port = port
	s.queues = append(s.queues, q)
	return nil
}

// setOptions asks for large buffers and joined datagrams. A kernel that gives
// neither is slower, not wrong.
func setOptions(fd int, gro bool) {
	for _, o := range []int{unix.SO_RCVBUF, unix.SO_SNDBUF, unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, o, bufferSize)
	}
	on := 0 // one that was taken over may have had it
	if gro {
		on = 1
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, on)
}

// Port returns the port of all sockets.
func (s *Sockets) Port() uint16 { return s.port }

// Queues returns how many sockets there are.
func (s *Sockets) Queues() int { return len(s.queues) }

// FDs returns the sockets' descriptors, borrowed: valid until Close.
func (s *Sockets) FDs() []int {
	var out []int
	for _, q := range s.queues {
		out = append(out, q.fd)
	}
	return out
}

// GSO reports whether the kernel is asked to cut.
func (s *Sockets) GSO() bool { return s.gso.Load() }

// Refused returns how often the kernel refused to cut pieces, which ended that.
func (s *Sockets) Refused() uint64 { return s.refused.Load() }

// Interrupt ends Receive for good: it returns net.ErrClosed.
func (s *Sockets) Interrupt() {
	for _, q := range s.queues {
		_ = q.conn.SetReadDeadline(time.Unix(1, 0)) // fails only when it is closed
	}
}

// Close closes the sockets.
func (s *Sockets) Close() error {
	var errs []error
	for _, q := range s.queues {
		errs = append(errs, q.conn.Close())
	}
	return errors.Join(errs...)
}

// to returns the socket for an address.
func (s *Sockets) to(a netip.Addr) *queue {
	if a.Is4() {
		return s.v4
	}
	return s.v6
}
