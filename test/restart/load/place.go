package load

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/netctl/netctl/internal/kernel"
)

// Place is a network namespace, with a thread in it that makes sockets. What is
// made there stays there, whoever uses it.
type Place struct {
	Name string
	Addr netip.Addr // that others reach it at
	Path string     // of the namespace

	work chan func()
	done chan error
}

// Enter returns the place at a namespace's path.
func Enter(name, path string, addr netip.Addr) (*Place, error) {
	ns, err := kernel.OpenNamespace(path)
	if err != nil {
		return nil, fmt.Errorf("enter %s: %w", name, err)
	}
	p := &Place{Name: name, Addr: addr, Path: path, work: make(chan func()), done: make(chan error, 1)}
	go func() {
		err := ns.Do(func() error {
			for f := range p.work {
				f()
			}
			return nil
		})
		for f := range p.work { // the namespace could not be entered
			f()
		}
		p.done <- errors.Join(err, ns.Close())
	}()
	return p, nil
}

// Close ends the thread; sockets that it made live on.
func (p *Place) Close() error {
	close(p.work)
	return <-p.done
}

// do runs f on the place's thread. It must not block.
func (p *Place) do(f func() error) error {
	done := make(chan error, 1)
	p.work <- func() { done <- f() }
	return <-done
}

// listen listens for TCP. Keepalives are off: an idle connection is to be idle.
func (p *Place) listen(ctx context.Context, port uint16) (l net.Listener, err error) {
	err = p.do(func() error {
		lc := net.ListenConfig{KeepAlive: -1}
		l, err = lc.Listen(ctx, "tcp4", fmt.Sprintf(":%d", port))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen in %s: %w", p.Name, err)
	}
	return l, nil
}

// packets binds a UDP socket.
func (p *Place) packets(port uint16) (c *net.UDPConn, err error) {
	err = p.do(func() error {
		c, err = net.ListenUDP("udp4", &net.UDPAddr{Port: int(port)})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("bind in %s: %w", p.Name, err)
	}
	return c, roomy(c)
}

// dialUDP connects a UDP socket.
func (p *Place) dialUDP(to netip.AddrPort) (c *net.UDPConn, err error) {
	err = p.do(func() error {
		c, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(to))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("connect %s with %s: %w", p.Name, to, err)
	}
	return c, roomy(c)
}

// roomy gives a socket room for what comes at once after a silence, so that what
// is lost is lost in the network.
func roomy(c *net.UDPConn) error {
	const rcvbufforce, size = 33, 8 << 20 // SO_RCVBUFFORCE (socket(7)), which syscall lacks
	raw, err := c.SyscallConn()
	if err != nil {
		return errors.Join(err, c.Close())
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, rcvbufforce, size)
	})
	if err = errors.Join(err, failed); err != nil {
		return errors.Join(fmt.Errorf("make room in a socket: %w", err), c.Close())
	}
	return nil
}

// dial opens a TCP connection. It waits outside the place's thread, which others
// need meanwhile.
func (p *Place) dial(to netip.AddrPort, patience time.Duration) (*net.TCPConn, error) {
	var file *os.File
	err := p.do(func() error {
		fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		err = syscall.Connect(fd, &syscall.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
		if err != nil && !errors.Is(err, syscall.EINPROGRESS) {
			return errors.Join(err, syscall.Close(fd))
		}
		file = os.NewFile(uintptr(fd), "socket")
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("connect %s with %s: %w", p.Name, to, err)
	}
	defer file.Close()
	c, err := net.FileConn(file)
	if err != nil {
		return nil, fmt.Errorf("connect %s with %s: %w", p.Name, to, err)
	}
	conn, ok := c.(*net.TCPConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("connect %s with %s: a socket of kind %T", p.Name, to, c), c.Close())
	}
	if err := errors.Join(conn.SetKeepAlive(false), connected(conn, patience)); err != nil {
		return nil, errors.Join(fmt.Errorf("connect %s with %s: %w", p.Name, to, err), conn.Close())
	}
	return conn, nil
}

// connected waits until a socket is connected.
func connected(c *net.TCPConn, patience time.Duration) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	if err := c.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	var failed error
	err = raw.Write(func(fd uintptr) bool {
		code, err := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_ERROR)
		if err == nil && code != 0 {
			err = syscall.Errno(code)
		}
		if failed = err; failed != nil {
			return true
		}
		_, err = syscall.Getpeername(int(fd))
		return err == nil
	})
	return errors.Join(err, failed, c.SetWriteDeadline(time.Time{}))
}
