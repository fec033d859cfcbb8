package splice

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
)

// pair returns the two ends of a TCP connection.
func pair(t *testing.T) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	d, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		d.Close()
	})
	return c.(*net.TCPConn), d.(*net.TCPConn)
}

func TestCopyUntilTheEnd(t *testing.T) {
	t.Parallel()
	data := bytes.Repeat([]byte("0123456789"), 100_000)
	for name, source := range map[string]func(t *testing.T) io.Reader{
		"kernel socket": func(t *testing.T) io.Reader {
			a, b := pair(t)
			go func() {
				_, _ = a.Write(data)
				_ = a.CloseWrite()
			}()
			return b
		},
		"copies itself": func(*testing.T) io.Reader { return bytes.NewReader(data) },
		"plain":         func(*testing.T) io.Reader { return struct{ io.Reader }{bytes.NewReader(data)} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got bytes.Buffer
			n, err := New().Copy(struct{ io.Writer }{&got}, source(t))
			if err != nil || n != int64(len(data)) || !bytes.Equal(got.Bytes(), data) {
				t.Errorf("%d of %d bytes, %v", n, len(data), err)
			}
		})
	}
}

// broken takes a few bytes and no more.
type broken struct{}

var errBroken = errors.New("broken")

func (broken) Write([]byte) (int, error) { return 3, errBroken }

func TestCopyStopsAtAnError(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	_, _ = a.Write([]byte("hello"))
	if n, err := New().Copy(broken{}, b); n != 3 || !errors.Is(err, errBroken) {
		t.Errorf("writer failed after 3 bytes: %d, %v", n, err)
	}
	a, b = pair(t)
	ResetOnClose(a)
	a.Close()
	if _, err := New().Copy(io.Discard, b); err == nil {
		t.Error("a reset looks like an orderly end")
	}
}

// Ten connections that wait hold no buffer: what was lent once serves them all.
func TestIdleHoldsNoBuffer(t *testing.T) {
	t.Parallel()
	c := New()
	s := source{copier: c}
	for range 10 {
		a, b := pair(t)
		raw, err := b.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		ready := false
		// What the poller calls: nothing is there, so it must wait empty-handed.
		if err := raw.Control(func(fd uintptr) { ready = s.readOnce(fd) }); err != nil || ready || s.buf != nil {
			t.Fatalf("nothing to read: ready %t, buffer held %t, %v", ready, s.buf != nil, err)
		}
		_, _ = a.Write([]byte("x"))
		s.raw, s.poll = raw, s.readOnce
		if n, err := s.pass(io.Discard); n != 1 || err != nil {
			t.Fatalf("one byte: %d, %v", n, err)
		}
	}
}

func TestCloseWriteWithoutHalves(t *testing.T) {
	t.Parallel()
	a, b := net.Pipe() // has no halves
	if err := CloseWrite(a); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("other end reads %v, want the end", err)
	}
}
