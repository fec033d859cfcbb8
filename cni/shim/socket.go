package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/netctl/netctl/cni/wire"
)

// errRestoring reports an agent that is up but not serving yet.
var errRestoring = errors.New("agent is restoring its state")

// socket is a blocking unix stream socket whose every operation ends at one
// deadline. Package net would do, at the price of half the program's size.
type socket struct {
	fd       int
	deadline time.Time
}

func dial(path string, deadline time.Time) (*socket, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open socket: %w", err)
	}
	s := &socket{fd: fd, deadline: deadline}
	err = s.retry(syscall.SO_SNDTIMEO, func() error { // the kernel applies it to connect, too
		return syscall.Connect(fd, &syscall.SockaddrUnix{Name: path})
	})
	if err != nil {
		s.close()
		return nil, fmt.Errorf("connect: %w", err)
	}
	return s, nil
}

// send writes all of b; the file descriptor, unless negative, travels with its
// first byte.
func (s *socket) send(b []byte, fd int) error {
	var rights []byte
	if fd >= 0 {
		rights = syscall.UnixRights(fd)
	}
	for len(b) > 0 {
		var n int
		err := s.retry(syscall.SO_SNDTIMEO, func() (err error) {
			n, err = syscall.SendmsgN(s.fd, b, rights, nil, syscall.MSG_NOSIGNAL)
			return err
		})
		if err != nil {
			return err
		}
		b, rights = b[n:], nil
	}
	return nil
}

// Read implements io.Reader.
func (s *socket) Read(b []byte) (int, error) {
	var n int
	err := s.retry(syscall.SO_RCVTIMEO, func() (err error) {
		n, err = syscall.Read(s.fd, b)
		return err
	})
	if err != nil {
		return 0, err
	}
	if n == 0 && len(b) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

// retry runs op with the time that is left, again when a signal interrupts it.
func (s *socket) retry(timeout int, op func() error) error {
	for {
		left := time.Until(s.deadline)
		if left <= 0 {
			return os.ErrDeadlineExceeded
		}
		tv := syscall.NsecToTimeval(max(left, time.Millisecond).Nanoseconds()) // zero would mean for ever
		if err := syscall.SetsockoptTimeval(s.fd, syscall.SOL_SOCKET, timeout, &tv); err != nil {
			return fmt.Errorf("set timeout: %w", err)
		}
		if err := op(); !errors.Is(err, syscall.EINTR) && !errors.Is(err, syscall.EAGAIN) {
			return err
		}
	}
}

func (s *socket) close() { _ = syscall.Close(s.fd) }

// errorCode returns the code of an error on its way to stdout.
func errorCode(output []byte) wire.Code {
	var e wire.Error
	if json.Unmarshal(output, &e) != nil {
		return 0
	}
	return e.Code
}
