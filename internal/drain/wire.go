package drain

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/netctl/netctl/internal/packet"
)

// maxMessage is a kind and the largest packet, or the longest list.
const maxMessage = 1 + packet.MaxSize + 64

// sendBuffer is what each direction may hold: some hundred super-packets, which
// the kernel's default, good for three, would not let through in bursts. The
// kernel doubles it.
const sendBuffer = 4 << 20

// errFull: the socket takes no more just now.
var errFull = errors.New("drain socket is full")

// Pair returns a socket for the two processes: one end for this one and the
// descriptor of the other one, which the caller owns and gives away (SCM_RIGHTS).
func Pair() (ours *net.UnixConn, theirs int, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, -1, fmt.Errorf("socket for the successor: %w", err)
	}
	if ours, err = Conn(fds[0]); err != nil {
		unix.Close(fds[1])
		return nil, -1, err
	}
	return ours, fds[1], nil
}

// Conn makes a connection of a received descriptor, which it owns in any case.
func Conn(fd int) (*net.UnixConn, error) {
	file := os.NewFile(uintptr(fd), "drain")
	if file == nil {
		return nil, fmt.Errorf("drain socket: %w", os.ErrInvalid)
	}
	defer file.Close()
	c, err := net.FileConn(file) // a duplicate
	if err != nil {
		return nil, fmt.Errorf("drain socket: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("drain socket is of %T, not a unix socket", c)
	}
	return u, nil
}

// wire sends and receives messages: one byte that says of which kind, and what
// follows from that. Sending is for any goroutine, receiving for one.
type wire struct {
	conn *net.UnixConn
	raw  syscall.RawConn
	outs sync.Pool // *outgoing

	in incoming
}

// outgoing is a message on its way into the socket.
type outgoing struct {
	kind  [1]byte
	parts [2][]byte
	oob   []byte
	wait  bool
	err   error
	send  func(fd uintptr) bool // sendOnce, bound once
	try   func(fd uintptr)
}

// incoming is the last message that was received.
type incoming struct {
	buf   [maxMessage]byte
	oob   [256]byte
	n     int
	oobn  int
	flags int
	err   error
	read  func(fd uintptr) bool // readOnce, bound once
}

func newWire(conn *net.UnixConn) (*wire, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("drain socket: %w", err)
	}
	w := &wire{conn: conn, raw: raw}
	w.in.read = w.in.readOnce
	w.outs.New = func() any {
		o := new(outgoing)
		o.send, o.try = o.sendOnce, func(fd uintptr) { o.sendOnce(fd) }
		return o
	}
	err = raw.Control(func(fd uintptr) {
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBuffer) != nil {
			// Without CAP_NET_ADMIN as much as net.core.wmem_max allows.
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, sendBuffer)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("drain socket: %w", err)
	}
	return w, nil
}

// send sends a message and waits for room. fd, if it is not negative, goes along;
// it stays the caller's.
func (w *wire) send(k kind, body []byte, fd int) error {
	o := w.outs.Get().(*outgoing)
	defer w.outs.Put(o)
	o.set(k, body, true)
	if fd >= 0 {
		o.oob = unix.UnixRights(fd)
	}
	if err := w.raw.Write(o.send); err != nil {
		o.parts[1] = nil
		return err
	}
	return o.err
}

// try sends a message or fails at once with errFull. It takes no lock that a
// waiting send may hold.
func (w *wire) try(k kind, body []byte) error {
	o := w.outs.Get().(*outgoing)
	defer w.outs.Put(o)
	o.set(k, body, false)
	if err := w.raw.Control(o.try); err != nil {
		o.parts[1] = nil
		return err
	}
	return o.err
}

func (o *outgoing) set(k kind, body []byte, wait bool) {
	o.kind[0] = byte(k)
	o.parts = [2][]byte{o.kind[:], body}
	o.wait, o.oob, o.err = wait, nil, nil
}

// sendOnce runs inside the poller: false waits for room.
func (o *outgoing) sendOnce(fd uintptr) bool {
	for {
		_, err := unix.SendmsgBuffers(int(fd), o.parts[:], o.oob, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN) && o.wait:
			return false
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOBUFS):
			err = errFull
		}
		o.parts[1], o.err = nil, err
		return true
	}
}

// receive waits for a message. The body is valid until the next call; fd is -1
// or the caller's. io.EOF: the other end is closed.
func (w *wire) receive() (k kind, body []byte, fd int, err error) {
	in := &w.in
	if err := w.raw.Read(in.read); err != nil {
		return 0, nil, -1, err
	}
	if in.err != nil {
		return 0, nil, -1, in.err
	}
	fds := rights(in.oob[:in.oobn])
	fd = -1
	if len(fds) == 1 {
		fd, fds = fds[0], nil
	}
	for _, one := range fds {
		unix.Close(one) // no message has two
	}
	switch {
	case in.n == 0:
		err = io.EOF
	case in.flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		err = fmt.Errorf("%w: it is longer than %d bytes", errMessage, maxMessage)
	}
	if err != nil {
		closeFD(fd)
		return 0, nil, -1, err
	}
	return kind(in.buf[0]), in.buf[1:in.n], fd, nil
}

// readOnce runs inside the poller: false waits for a message.
func (in *incoming) readOnce(fd uintptr) bool {
	for {
		in.n, in.oobn, in.flags, _, in.err = unix.Recvmsg(int(fd), in.buf[:], in.oob[:], unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
		switch {
		case errors.Is(in.err, unix.EINTR), errors.Is(in.err, unix.ECONNRESET):
			continue // reset: closed without having read all of ours; what it said before is still here
		case errors.Is(in.err, unix.EAGAIN):
			return false
		}
		return true
	}
}

// rights returns the descriptors of a control message.
func rights(oob []byte) []int {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var out []int
	for i := range msgs {
		if fds, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			out = append(out, fds...)
		}
	}
	return out
}

func closeFD(fd int) {
	if fd >= 0 {
		unix.Close(fd)
	}
}

func (w *wire) close() { w.conn.Close() }
