package netstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/netctl/netctl/internal/quota"
)

// sourcePorts is how many source ports are tried when the client's own is in
// use towards one backend.
const sourcePorts = 16

// freePort returns a source port to try. What is carried on under the node's own
// address must not meet the connections of its processes, which Linux gives ports from
// 32768 on.
func freePort() uint16 {
	const first, last = 10000, 32767
	return uint16(first + rand.Uint32N(last-first+1))
}

var (
	// ErrLimit is what Dial and Datagrams answer when a bound is reached.
	ErrLimit = errors.New("too many connections")
	// errNoInbound: there is no Config.Inbound.
	errNoInbound = errors.New("netstack opens no connections into the cluster")
)

// InboundPort is the port for packets that answer what Dial and Datagrams have
// opened. Stack.Write takes them too; here, what belongs to no connection any
// more is refused instead of being taken for a pod's way to the outside.
type InboundPort struct{ stack *Stack }

// InboundPort returns the port of connections into the cluster.
func (s *Stack) InboundPort() *InboundPort { return &InboundPort{s} }

// Write takes one packet from the router, as Stack.Write does.
func (p *InboundPort) Write(buf []byte) error { return p.stack.write(buf, p.stack.inLink) }

// Dial opens a TCP connection into the cluster that comes from src: what a
// socket of the node accepted goes on as the client's own. When the port of src
// is in use towards dst, another takes its place (LocalAddr tells).
//
// The connection has CloseWrite and SetLinger (0: Close resets), and as an
// io.WriterTo it copies without holding a buffer and without regard to
// deadlines. The caller owes it Close. What the network said of the dial is a
// syscall.Errno.
func (s *Stack) Dial(ctx context.Context, src, dst netip.AddrPort) (net.Conn, error) {
	c, err := s.dialInto(ctx, src, dst)
	if err != nil {
		s.counters.inboundFailed.Add(1)
		return nil, &net.OpError{Op: "dial", Net: "tcp", Source: net.TCPAddrFromAddrPort(src), Addr: net.TCPAddrFromAddrPort(dst), Err: err}
	}
	s.counters.inbound.Add(1)
	return c, nil
}

func (s *Stack) dialInto(ctx context.Context, src, dst netip.AddrPort) (*inboundConn, error) {
	if err := s.checkEnds(src, dst); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if s.inConns.Take(quota.Client(src.Addr())) == quota.None {
		s.counters.drop(DropInboundLimit)
		return nil, ErrLimit
	}
	c := &inboundConn{spliced: spliced{stack: s, key: connKey{src: dst, dst: src}}}
	if err := c.open(src); err != nil {
		s.inConns.Give(quota.Client(src.Addr()))
		return nil, err
	}
	if !s.register(&c.spliced) {
		c.pod.Abort()
		c.give()
		return nil, ErrClosed
	}
	if err := c.establish(ctx); err != nil {
		c.pod.Abort()
		s.unregister(&c.spliced)
		c.give()
		return nil, err
	}
	return c, nil
}

// checkEnds says why there can be no packet from src to dst.
func (s *Stack) checkEnds(src, dst netip.AddrPort) error {
	switch {
	case s.cfg.Inbound == nil:
		return errNoInbound
	case s.closing.Load():
		return ErrClosed
	case !src.IsValid() || !dst.IsValid() || src.Addr().Is4() != dst.Addr().Is4() || dst.Port() == 0,
		src.Addr().Zone() != "" || dst.Addr().Zone() != "":
		return fmt.Errorf("no connection from %s to %s: not two addresses of one family", src, dst)
	case !src.Addr().IsGlobalUnicast() || !dst.Addr().IsGlobalUnicast():
		return fmt.Errorf("no connection from %s to %s: not unicast addresses", src, dst)
	}
	return nil
}

// inboundConn is a connection that Dial opened.
type inboundConn struct {
	*gonet.TCPConn // what is not below: deadlines and addresses
	spliced
	reset atomic.Bool // by Close
	once  sync.Once   // Close
}

var (
	_ net.Conn    = (*inboundConn)(nil)
	_ io.WriterTo = (*inboundConn)(nil)
)

// open sends the SYN.
func (c *inboundConn) open(src netip.AddrPort) error {
	port := src.Port()
	for range sourcePorts {
		if port != 0 {
			err := c.connect(netip.AddrPortFrom(src.Addr(), port))
			if !errors.Is(err, syscall.EADDRINUSE) {
				return err
			}
		}
		port = freePort()
	}
	return syscall.EADDRINUSE
}

func (c *inboundConn) connect(src netip.AddrPort) error {
	s := c.stack
	proto := header.IPv6ProtocolNumber
	if src.Addr().Is4() {
		proto = header.IPv4ProtocolNumber
	}
	ep, terr := s.stack.NewEndpoint(tcp.ProtocolNumber, proto, &c.events)
	if terr != nil {
		return errnoOf(terr)
	}
	c.key.dst = src
	if s.isElders(c.key.tuple()) {
		ep.Close()
		return syscall.EADDRINUSE
	}
	s.live.begin(c.key.tuple())
	ep.SocketOptions().SetReuseAddress(true) // one client port may lead to several backends
	s.tune(ep, nil, s.inConns.Held(quota.Client(src.Addr())) > crowd)
	if terr = ep.Bind(full(src)); terr == nil {
		terr = ep.Connect(full(c.key.src))
	}
	if _, ok := terr.(*tcpip.ErrConnectStarted); !ok {
		ep.Close()
		s.live.end(c.key.tuple())
		if _, ok := terr.(*tcpip.ErrBadLocalAddress); ok {
			return syscall.EADDRINUSE // gVisor's word for a tuple that is taken
		}
		return errnoOf(terr)
	}
	c.pod = ep
	c.TCPConn = gonet.NewTCPConn(&c.events, ep)
	return nil
}

func full(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nicInbound, Addr: tcpip.AddrFromSlice(a.Addr().AsSlice()), Port: a.Port()}
}

// establish waits until the handshake is done.
func (c *inboundConn) establish(ctx context.Context) error {
	entry, notify := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	c.events.EventRegister(&entry)
	defer c.events.EventUnregister(&entry)
	for {
		switch state := tcp.EndpointState(c.pod.State()); state {
		case tcp.StateConnecting, tcp.StateSynSent, tcp.StateSynRecv:
		case tcp.StateClose, tcp.StateError:
			if terr := c.pod.LastError(); terr != nil {
				return errnoOf(terr)
			}
			return syscall.ECONNABORTED
		default:
			return nil
		}
		select {
		case <-notify:
		case <-ctx.Done():
			return ctx.Err()
		case <-c.stack.done:
			return ErrClosed
		}
	}
}

// WriteTo copies what the pod sends until it closes its direction.
func (c *inboundConn) WriteTo(w io.Writer) (int64, error) {
	n, err := c.fromPod(w)
	if err == nil {
		c.halfClosed.Store(true)
	}
	return n, err
}

// Read and Write are the plain ways, with deadlines.
func (c *inboundConn) Read(b []byte) (int, error) {
	n, err := c.TCPConn.Read(b)
	c.moved.Add(uint64(n))
	c.stack.counters.bytesUp.Add(uint64(n))
	return n, err
}

// Write is the counterpart of Read.
func (c *inboundConn) Write(b []byte) (int, error) {
	n, err := c.TCPConn.Write(b)
	c.moved.Add(uint64(n))
	c.stack.counters.bytesDown.Add(uint64(n))
	return n, err
}

// CloseWrite passes on that the client sends no more.
func (c *inboundConn) CloseWrite() error {
	c.halfClosed.Store(true)
	if terr := c.pod.Shutdown(tcpip.ShutdownWrite); terr != nil {
		return errnoOf(terr)
	}
	return nil
}

// SetLinger makes Close reset the connection when sec is 0.
func (c *inboundConn) SetLinger(sec int) error {
	c.reset.Store(sec == 0)
	return nil
}

// Close ends the connection; what was written still goes. It does not wait, but
// the connection counts until the pod has acknowledged the end.
func (c *inboundConn) Close() error {
	c.once.Do(func() {
		if c.reset.Load() {
			c.pod.Abort()
		}
		if !c.stack.start(c.release) {
			c.pod.Abort()
			c.release()
		}
	})
	return nil
}

func (c *inboundConn) release() {
	c.finish()
	c.stack.unregister(&c.spliced)
	c.give()
}

func (c *inboundConn) give() {
	c.stack.live.end(c.key.tuple())
	c.stack.inConns.Give(quota.Client(c.key.dst.Addr()))
}

// errnoOf is what a kernel would have said.
func errnoOf(err tcpip.Error) error {
	switch err.(type) {
	case *tcpip.ErrConnectionRefused:
		return syscall.ECONNREFUSED
	case *tcpip.ErrConnectionReset, *tcpip.ErrAborted:
		return syscall.ECONNRESET
	case *tcpip.ErrConnectionAborted:
		return syscall.ECONNABORTED
	case *tcpip.ErrTimeout:
		return os.NewSyscallError("connect", syscall.ETIMEDOUT)
	case *tcpip.ErrHostUnreachable, *tcpip.ErrHostDown:
		return syscall.EHOSTUNREACH
	case *tcpip.ErrNetworkUnreachable, *tcpip.ErrNoNet:
		return syscall.ENETUNREACH
	case *tcpip.ErrPortInUse:
		return syscall.EADDRINUSE
	}
	return errors.New(err.String())
}
