package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
)

// Listen answers on UDP and TCP sockets of the host until ctx ends or a socket
// fails; it is the front of a DNS server that runs without a datapath. A port
// of 0 picks a free one, the same for UDP and TCP. ready, when it is not nil,
// is called with the addresses before the first question is read. Where an
// address is unspecified, replies leave from the address that the host's
// routes choose. Run must run beside it.
func (s *Server) Listen(ctx context.Context, addrs []netip.AddrPort, ready func([]netip.AddrPort)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var socks sockets
	defer socks.close()
	var bound []netip.AddrPort
	for _, a := range addrs {
		at, err := socks.open(ctx, a)
		if err != nil {
			return fmt.Errorf("listen for dns on %s: %w", a, err)
		}
		bound = append(bound, at)
	}
	if ready != nil {
		ready(bound)
	}
	var wg sync.WaitGroup
	for _, c := range socks.udp {
		wg.Go(func() { cancel(s.serveUDP(c)) })
	}
	for _, l := range socks.tcp {
		wg.Go(func() { cancel(s.acceptTCP(ctx, l)) })
	}
	<-ctx.Done()
	socks.close()
	wg.Wait()
	if err := context.Cause(ctx); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return ctx.Err()
}

// socketBuffer holds the questions that come while we are not running. The system's
// own default holds some 250, and a resolver waits 5 seconds for one that is lost.
const socketBuffer = 4 << 20

// sockets are the listening sockets of Listen.
type sockets struct {
	udp []*net.UDPConn
	tcp []net.Listener
}

// open binds both protocols to one port.
func (k *sockets) open(ctx context.Context, a netip.AddrPort) (netip.AddrPort, error) {
	const tries = 8 // of a port that is free for UDP and taken for TCP
	var lc net.ListenConfig
	for i := 0; ; i++ {
		u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(a))
		if err != nil {
			return a, err
		}
		at := netip.AddrPortFrom(a.Addr(), uint16(u.LocalAddr().(*net.UDPAddr).Port))
		l, err := lc.Listen(ctx, "tcp", at.String())
		if err != nil {
			_ = u.Close()
			if a.Port() == 0 && i < tries {
				continue
			}
			return a, err
		}
		_ = u.SetReadBuffer(socketBuffer) // as much as the system gives
		_ = u.SetWriteBuffer(socketBuffer)
		k.udp, k.tcp = append(k.udp, u), append(k.tcp, l)
		return at, nil
	}
}

func (k *sockets) close() {
	for _, c := range k.udp {
		_ = c.Close()
	}
	for _, l := range k.tcp {
		_ = l.Close()
	}
}

// serveUDP answers the queries of one socket until it is closed.
func (s *Server) serveUDP(c *net.UDPConn) error {
	buf, out := make([]byte, maxMessage), make([]byte, 0, MaxUDP)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil {
			continue // an ICMP error of an earlier reply
		}
		reply, st := s.Answer(from.Addr().Unmap(), buf[:n], true, out)
		switch st {
		case Answered:
			_, _ = c.WriteToUDPAddrPort(reply, from) // the client asks again
		case Forward:
			s.Forward(from.Addr(), buf[:n], true, func(msg []byte) {
				if len(msg) > 0 {
					_, _ = c.WriteToUDPAddrPort(msg, from)
				}
			})
		case Drop:
		}
	}
}

// acceptTCP serves streams until the listener is closed, then ends them.
func (s *Server) acceptTCP(ctx context.Context, l net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		wg.Go(func() {
			stop := context.AfterFunc(ctx, func() { _ = c.Close() })
			defer stop()
			s.ServeTCP(c)
		})
	}
}
