package rawport

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netctl/netctl/internal/packet"
)

const (
	receiveBuffer = 8 << 20 // what waits while no process reads
	controlLen    = 128
)

// rawSocket receives one protocol of one family.
type rawSocket struct {
	fd    int
	file  *os.File // owns fd
	conn  syscall.RawConn
	proto int
	is4   bool
}

// protocols are the raw sockets that there are.
func protocols() []rawSocket {
	return []rawSocket{
		{proto: unix.IPPROTO_TCP, is4: true},
		{proto: unix.IPPROTO_UDP, is4: true},
		{proto: unix.IPPROTO_ICMP, is4: true},
		{proto: unix.IPPROTO_TCP},
		{proto: unix.IPPROTO_UDP},
		{proto: unix.IPPROTO_ICMPV6},
	}
}

// openRaws opens the raw sockets that were not adopted. A host without IPv6 has
// none of that.
func (p *Port) openRaws() error {
	for _, want := range protocols() {
		if p.has(&want) {
			continue
		}
		family := unix.AF_INET6
		if want.is4 {
			family = unix.AF_INET
		}
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, want.proto)
		switch {
		case errors.Is(err, unix.EAFNOSUPPORT) && !want.is4:
			continue
		case errors.Is(err, unix.EPERM):
			return fmt.Errorf("open a raw socket: CAP_NET_RAW is needed: %w", err)
		case err != nil:
			return fmt.Errorf("open a raw socket: %w", err)
		}
		if err := p.addRaw(fd, want); err != nil {
			unix.Close(fd)
			return err
		}
	}
	return nil
}

func (p *Port) has(want *rawSocket) bool {
	for _, s := range p.raws {
		if s.proto == want.proto && s.is4 == want.is4 {
			return true
		}
	}
	return false
}

// adoptRaw takes over a raw socket with all that waits in it.
func (p *Port) adoptRaw(fd int) error {
	family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return fmt.Errorf("ask for the socket's family: %w", err)
	}
	proto, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		return fmt.Errorf("ask for the socket's protocol: %w", err)
	}
	for _, want := range protocols() {
		if want.proto == proto && want.is4 == (family == unix.AF_INET) && !p.has(&want) {
			return p.addRaw(fd, want)
		}
	}
	return fmt.Errorf("raw socket of family %d and protocol %d is of no use", family, proto)
}

// addRaw prepares a socket; it owns fd when there is no error.
func (p *Port) addRaw(fd int, s rawSocket) error {
	if err := attach(fd, passOurs(s.proto, s.is4, p.cfg.First, p.cfg.Most)); err != nil {
		return err
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer) // as much as one may have
	}
	if !s.is4 {
		for _, option := range []int{unix.IPV6_RECVPKTINFO, unix.IPV6_RECVHOPLIMIT, unix.IPV6_RECVTCLASS} {
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, option, 1); err != nil {
				return fmt.Errorf("set option %d of a raw socket: %w", option, err)
			}
		}
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return fmt.Errorf("prepare a raw socket: %w", err)
	}
	s.fd, s.file = fd, os.NewFile(uintptr(fd), "raw socket")
	var err error
	if s.conn, err = s.file.SyscallConn(); err != nil {
		return fmt.Errorf("prepare a raw socket: %w", err)
	}
	p.raws = append(p.raws, &s)
	return nil
}

func (s *rawSocket) wake()  { _ = s.file.SetReadDeadline(time.Unix(1, 0)) }
func (s *rawSocket) close() { s.file.Close() }

// run carries what arrives to the router until the context ends.
func (s *rawSocket) run(ctx context.Context, p *Port) error {
	r := reader{socket: s, mtu: p.cfg.MTU, buf: make([]byte, packet.MaxSize+1), control: make([]byte, controlLen), fragments: rand.Uint32()}
	for ctx.Err() == nil {
		n, err := r.read()
		switch {
		case err == nil && n > packet.MaxSize:
			p.truncated.Add(1)
		case err == nil:
			p.guard(func() { r.deliver(n, p.cfg.Out) })
		case !passing(err) && ctx.Err() == nil:
			return fmt.Errorf("read a raw socket: %w", err)
		}
	}
	return nil
}

// guard keeps a bug that one packet meets from ending the process.
func (p *Port) guard(f func()) {
	defer func() {
		if v := recover(); v != nil && p.panics.Add(1) == 1 {
			p.cfg.Logger.Error("a packet from the outside met a bug and was dropped; please report this", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
		}
	}()
	f()
}

// passing reports whether reading goes on after the error.
func passing(err error) bool {
	for _, e := range []error{unix.EINTR, unix.ENOMEM, unix.ENOBUFS, unix.ENETDOWN, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.ECONNREFUSED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// reader is the state of one socket's reading.
type reader struct {
	socket  *rawSocket
	mtu     int
	buf     []byte
	control []byte
	// fragments counts datagrams that are cut, from a random number on: it tells
	// the pieces of one from those of another.
	fragments uint32
}

// read waits for a packet and puts it behind the room for the virtio-net header.
func (r *reader) read() (n int, err error) {
	var readErr error
	err = r.socket.conn.Read(func(fd uintptr) bool {
		if r.socket.is4 {
			n, readErr = unix.Read(int(fd), r.buf[packet.VNetLen:])
			n += packet.VNetLen
		} else {
			n, readErr = r.read6(int(fd))
		}
		return !errors.Is(readErr, unix.EAGAIN)
	})
	if err == nil {
		err = readErr
	}
	return n, err
}

// read6 makes the header anew that a raw IPv6 socket does not show.
func (r *reader) read6(fd int) (int, error) {
	const room = packet.VNetLen + header6
	n, oobn, flags, from, err := unix.Recvmsg(fd, r.buf[room:], r.control, 0)
	if err != nil {
		return 0, err
	}
	src, ok := from.(*unix.SockaddrInet6)
	if !ok || flags&unix.MSG_TRUNC != 0 {
		return len(r.buf), nil
	}
	h := header{src: src.Addr, proto: uint8(r.socket.proto), hops: 64}
	messages, err := unix.ParseSocketControlMessage(r.control[:oobn])
	if err != nil {
		return 0, err
	}
	for _, m := range messages {
		if m.Header.Level == unix.IPPROTO_IPV6 {
			h.note(int(m.Header.Type), m.Data)
		}
	}
	h.put(r.buf[packet.VNetLen:room], n)
	return room + n, nil
}

// deliver gives a packet of n bytes to the router.
func (r *reader) deliver(n int, out func([]byte)) {
	buf := r.buf[:n]
	if !describe(buf, r.mtu) {
		return
	}
	if len(buf)-packet.VNetLen > r.mtu && r.socket.proto == unix.IPPROTO_UDP {
		r.fragments++
		refragment(buf, r.mtu, r.fragments, out)
		return
	}
	out(buf)
}
