package ends

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"time"
)

// chunk is what a stream reads and writes at once.
const chunk = 128 << 10

// socket makes a socket that gives up after patience.
func socket(kind int) (int, error) {
	fd, err := syscall.Socket(syscall.AF_INET, kind|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("make a socket: %w", err)
	}
	if err := limit(fd, patience); err != nil {
		return -1, errors.Join(err, syscall.Close(fd))
	}
	if kind == syscall.SOCK_STREAM {
		err = syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1)
	}
	return fd, err
}

// limit bounds how long calls on a socket wait.
func limit(fd int, d time.Duration) error {
	tv := syscall.NsecToTimeval(int64(d))
	if err := errors.Join(
		syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &tv),
		syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_SNDTIMEO, &tv)); err != nil {
		return fmt.Errorf("bound a socket's waiting: %w", err)
	}
	return nil
}

func sockaddr(a netip.AddrPort) *syscall.SockaddrInet4 {
	return &syscall.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
}

// dial opens a TCP connection.
func dial(to netip.AddrPort) (int, error) {
	fd, err := socket(syscall.SOCK_STREAM)
	if err != nil {
		return -1, err
	}
	if err := again(func() error { return syscall.Connect(fd, sockaddr(to)) }); err != nil && !errors.Is(err, syscall.EISCONN) {
		return -1, errors.Join(fmt.Errorf("connect with %s: %w", to, err), syscall.Close(fd))
	}
	return fd, nil
}

func listen(port int) (int, error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err == nil {
		err = errors.Join(
			syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1),
			syscall.Bind(fd, &syscall.SockaddrInet4{Port: port}), syscall.Listen(fd, 4096))
	}
	if err != nil {
		return -1, fmt.Errorf("listen on TCP port %d: %w", port, err)
	}
	return fd, nil
}

// accept serves connections, each with a thread and a buffer; a client that goes
// away early ends only its own.
func accept(l int, f func(fd int) error) {
	for {
		fd, _, err := syscall.Accept(l)
		if errors.Is(err, syscall.EINTR) || errors.Is(err, syscall.ECONNABORTED) {
			continue
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "end: accept:", err)
			return
		}
		go func() {
			_ = syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1)
			_ = f(fd) // the client tells
			_ = syscall.Close(fd)
		}()
	}
}

// sink counts the bytes that it takes, on all connections.
type sink struct{ taken atomic.Uint64 }

// serve takes what comes.
func (s *sink) serve(fd int) error {
	buf := make([]byte, chunk)
	for {
		n, err := read(fd, buf)
		if err != nil {
			return err
		}
		s.taken.Add(uint64(n))
	}
}

// echo sends back what comes.
func echo(fd int) error {
	buf := make([]byte, chunk)
	for {
		n, err := read(fd, buf)
		if err != nil {
			return err
		}
		if err := writeAll(fd, buf[:n]); err != nil {
			return err
		}
	}
}

// greet says one byte.
func greet(fd int) error { return writeAll(fd, []byte{'!'}) }

// again repeats a call that a signal has interrupted.
func again(call func() error) error {
	for {
		if err := call(); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// read reads something.
func read(fd int, buf []byte) (int, error) {
	for {
		n, err := syscall.Read(fd, buf)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 0, fmt.Errorf("read: %w", err)
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

// readAll fills a buffer.
func readAll(fd int, buf []byte) error {
	for len(buf) > 0 {
		n, err := read(fd, buf)
		if err != nil {
			return err
		}
		buf = buf[n:]
	}
	return nil
}

// writeAll writes a whole buffer.
func writeAll(fd int, buf []byte) error {
	for len(buf) > 0 {
		n, err := syscall.Write(fd, buf)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return fmt.Errorf("write: %w", err)
		default:
			buf = buf[n:]
		}
	}
	return nil
}
