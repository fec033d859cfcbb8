package nodeport

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/netctl/netctl/internal/quota"
	"github.com/netctl/netctl/internal/splice"
)

// acceptPause is how long accepting rests when the process has no descriptors
// left.
const acceptPause = 100 * time.Millisecond

// tcpListener is a listening TCP socket.
type tcpListener struct {
	server *Server
	want   atomic.Pointer[Listener]
	socket *net.TCPListener
	pause  gate
}

// listenTCP opens the socket. SO_REUSEADDR, which Go sets, lets it take a port
// on which connections of an earlier listener are still open.
func (s *Server) listenTCP(want Listener) (socket, error) {
	tcp := s.adoptTCP(want)
	if tcp == nil {
		var err error
		if tcp, err = openTCP(want); err != nil {
			return nil, err
		}
	}
	l := &tcpListener{server: s, socket: tcp}
	l.want.Store(&want)
	if err := l.resume(); err != nil {
		tcp.Close()
		return nil, err
	}
	return l, nil
}

func openTCP(want Listener) (*net.TCPListener, error) {
	lc := net.ListenConfig{KeepAlive: -1} // admit sets it
	lc.SetMultipathTCP(false)
	sock, err := lc.Listen(context.Background(), "tcp"+familyOf(want.Addr.Addr()), want.Addr.String())
	if err != nil {
		return nil, err
	}
	tcp, ok := sock.(*net.TCPListener)
	if !ok {
		sock.Close()
		return nil, errors.ErrUnsupported
	}
	return tcp, nil
}

// familyOf is the end of Go's name for a network of one family; an IPv6 socket
// of it takes no IPv4.
func familyOf(a netip.Addr) string {
	if a.Unmap().Is4() {
		return "4"
	}
	return "6"
}

func (l *tcpListener) update(want Listener) { l.want.Store(&want) }

// close ends accepting; connections go on.
func (l *tcpListener) close() {
	l.socket.Close()
	l.pause.wait()
}

// stop leaves what waits in the queue to whoever has the socket too.
func (l *tcpListener) stop() {
	l.pause.set(true)
	_ = l.socket.SetDeadline(time.Unix(1, 0)) // fails only on a closed socket
	l.pause.wait()
}

func (l *tcpListener) resume() error {
	if err := l.socket.SetDeadline(time.Time{}); err != nil {
		return err
	}
	if !l.pause.open(l.server, l.accept) {
		return ErrClosed
	}
	return nil
}

func (l *tcpListener) duplicate() (int, error) { return duplicate(l.socket) }

func (l *tcpListener) accept() {
	s := l.server
	for {
		c, err := l.socket.AcceptTCP()
		switch {
		case err == nil:
			s.admit(l, c)
		case errors.Is(err, net.ErrClosed), l.pause.isSet():
			return
		case errors.Is(err, syscall.ECONNABORTED):
		default: // no descriptors, no memory: the client waits in the queue
			s.log.Warn("cannot accept a connection", "port", l.socket.Addr(), "owner", l.want.Load().Owner, "error", err)
			pause := time.NewTimer(acceptPause)
			select {
			case <-pause.C:
			case <-s.done:
				pause.Stop()
				return
			}
		}
	}
}

// session is one accepted connection.
type session struct {
	server *Server
	client *net.TCPConn

	mu      sync.Mutex
	ended   bool               // guarded by mu
	backend net.Conn           // guarded by mu; nil while it is dialled
	cancel  context.CancelFunc // guarded by mu; of the dial
}

// admit begins a session unless the client has its share.
func (s *Server) admit(l *tcpListener, c *net.TCPConn) {
	s.counts.accepted.Add(1)
	_ = c.SetKeepAliveConfig(keepAlive()) // fails only on a closed socket, as the next does
	splice.ResetOnClose(c)                // by the kernel, should this process die
	client := addrPort(c.RemoteAddr())
	owner := quota.Client(client.Addr())
	if s.conns.Take(owner) == quota.None {
		s.counts.limited.Add(1)
		reset(c)
		return
	}
	x := &session{server: s, client: c}
	run := func() {
		defer s.conns.Give(owner)
		defer s.drop(x)
		x.run(l.want.Load(), client)
	}
	if !s.begin(x, run) {
		s.conns.Give(owner)
		reset(c)
	}
}

// begin enters a session and runs it; false: closing.
func (s *Server) begin(x *session, run func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.sessions[x] = struct{}{}
	s.work.Go(run)
	return true
}

func (s *Server) drop(x *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, x)
}

// run dials the backend and becomes one connection with it.
func (x *session) run(l *Listener, client netip.AddrPort) {
	s := x.server
	to, err := s.route(l, addrPort(x.client.LocalAddr()), client)
	if err == nil {
		err = x.dial(to)
		if err != nil {
			s.counts.failed.Add(1)
			s.log.Debug("backend of a node socket does not answer", "owner", l.Owner, "client", client, "backend", to.backend, "error", err)
		}
	}
	if err != nil {
		reset(x.client)
		return
	}
	defer x.client.Close()
	defer x.backend.Close()
	up := make(chan struct{})
	go func() {
		defer close(up)
		x.carry(x.backend, x.client)
	}()
	x.carry(x.client, x.backend)
	<-up
	splice.FlushOnClose(x.client) // if it failed, both are closed already
	splice.FlushOnClose(x.backend)
}

// dial opens the connection to the backend, unless the session is ended.
func (x *session) dial(to route) error {
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	x.mu.Lock()
	x.cancel = cancel
	ended := x.ended
	x.mu.Unlock()
	if ended {
		return ErrClosed
	}
	var c net.Conn
	var err error
	if to.path == PathHost {
		c, err = x.server.cfg.DialHost(ctx, to.backend)
	} else {
		c, err = x.server.cfg.Dial(ctx, to.source, to.backend)
	}
	if err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.backend = c
	splice.ResetOnClose(c)
	if x.ended {
		reset(c)
		return ErrClosed
	}
	return nil
}

// carry copies one direction and passes its end on: an orderly one as such,
// anything else as a reset of both sides.
func (x *session) carry(dst, src net.Conn) {
	_, err := x.server.copier.Copy(dst, src)
	if err == nil {
		err = splice.CloseWrite(dst)
	}
	if err != nil {
		x.abort()
	}
}

// abort resets both sides; whoever waits on them returns.
func (x *session) abort() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.ended = true
	if x.cancel != nil {
		x.cancel()
	}
	reset(x.client)
	if x.backend != nil {
		reset(x.backend)
	}
}

// reset closes a connection without the courtesies.
func reset(c net.Conn) {
	splice.ResetOnClose(c)
	c.Close()
}

// addrPort is the address of a socket's end, of one family.
func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}
