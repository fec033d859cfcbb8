// Package splice moves bytes between two connections that become one: a socket
// of the node and a connection of a pod, whoever opened it.
//
// Why here. The network stack and the node's sockets are features that do not
// know each other, and both must not pay for silence: ten thousand connections
// on which nothing moves hold no buffer at all.
//
// Invariants. A buffer is taken when data is there and given back before the
// next wait. Nothing is queued: who does not read is not read for.
//
// How to test. Pairs of sockets on loopback.
package splice

import (
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
)

// bufferSize is as much as a super-packet carries.
const bufferSize = 64 << 10

// Copier lends the buffers. Its methods may be called from any goroutine.
type Copier struct {
	buffers sync.Pool // *[bufferSize]byte
}

// New returns a Copier.
func New() *Copier {
	c := new(Copier)
	c.buffers.New = func() any { return new([bufferSize]byte) }
	return c
}

// Copy writes to dst what src has until its end, which is no error. A kernel
// socket is asked whether it has something before a buffer is taken; any other
// source that can is left to copy itself.
func (c *Copier) Copy(dst io.Writer, src io.Reader) (int64, error) {
	s := source{copier: c, conn: src}
	if sc, ok := src.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			s.raw, s.poll = raw, s.readOnce
		}
	}
	if s.raw == nil {
		if w, ok := src.(io.WriterTo); ok {
			return w.WriteTo(dst)
		}
	}
	var total int64
	for {
		n, err := s.pass(dst)
		total += int64(n)
		switch {
		case errors.Is(err, io.EOF):
			return total, nil
		case err != nil:
			return total, err
		}
	}
}

// source is what Copy reads.
type source struct {
	copier *Copier
	conn   io.Reader
	raw    syscall.RawConn // nil: not a kernel socket

	buf  *[bufferSize]byte // filled by poll
	n    int
	err  error
	poll func(fd uintptr) bool // readOnce, bound once
}

// pass waits for data and writes it; io.EOF at the end.
func (s *source) pass(dst io.Writer) (int, error) {
	if s.raw == nil {
		s.buf = s.copier.buffers.Get().(*[bufferSize]byte)
		s.n, s.err = s.conn.Read(s.buf[:])
	} else if err := s.raw.Read(s.poll); err != nil {
		return 0, err
	}
	defer s.copier.buffers.Put(s.buf)
	if s.n > 0 {
		if n, err := dst.Write(s.buf[:s.n]); err != nil {
			return n, err
		}
		return s.n, s.err
	}
	if s.err == nil && s.raw != nil {
		return 0, io.EOF
	}
	return 0, s.err
}

// readOnce runs inside the poller: false waits for data, without a buffer.
func (s *source) readOnce(fd uintptr) bool {
	s.buf = s.copier.buffers.Get().(*[bufferSize]byte)
	for {
		s.n, s.err = syscall.Read(int(fd), s.buf[:])
		if !errors.Is(s.err, syscall.EINTR) {
			break
		}
	}
	if errors.Is(s.err, syscall.EAGAIN) {
		s.copier.buffers.Put(s.buf)
		s.buf = nil
		return false
	}
	return true
}

// CloseWrite passes an orderly close on; a connection that cannot half-close
// is closed.
func CloseWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return c.Close()
}

// ResetOnClose makes the next Close send a reset, where the connection can.
func ResetOnClose(c net.Conn) {
	if l, ok := c.(interface{ SetLinger(sec int) error }); ok {
		_ = l.SetLinger(0) // fails only on a closed socket
	}
}

// FlushOnClose takes ResetOnClose back: what was written still goes.
func FlushOnClose(c net.Conn) {
	if l, ok := c.(interface{ SetLinger(sec int) error }); ok {
		_ = l.SetLinger(-1) // fails only on a closed socket
	}
}
