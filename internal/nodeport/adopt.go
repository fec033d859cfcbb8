package nodeport

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/quota"
)

// Socket is a listening socket on its way from one process to another.
type Socket struct {
	Addr  netip.AddrPort
	Proto model.Protocol
	FD    int
}

// UDPFlow is a conversation of a UDP client on its way to another process.
type UDPFlow struct {
	Listener        netip.AddrPort
	Client          netip.AddrPort
	Asked           netip.Addr // which of our addresses
	Backend, Source netip.AddrPort
	Replied         bool
	Idle            time.Duration
	FD              int // the socket that is connected to a host's backend; -1: the backend is a pod
}

// adoption is what was received and waits for the Apply that wants it.
type adoption struct {
	sockets map[listenKey]int
	flows   map[netip.AddrPort][]UDPFlow // by their listener
}

// Listeners returns duplicates of the listening sockets, which the caller owns:
// for a successor, or for somebody who keeps them in case this process dies.
// Both processes' descriptors lead to one queue.
func (s *Server) Listeners() ([]Socket, error) {
	var out []Socket
	for k, l := range s.current() {
		fd, err := l.duplicate()
		if errors.Is(err, net.ErrClosed) {
			continue // by an Apply that runs
		}
		if err != nil {
			for _, one := range out {
				unix.Close(one.FD)
			}
			return nil, fmt.Errorf("duplicate the socket of %s/%s: %w", k.addr, k.proto, err)
		}
		out = append(out, Socket{Addr: k.addr, Proto: k.proto, FD: fd})
	}
	return out, nil
}

// Adopt gives the first Apply sockets to use for listeners of the same address
// and protocol. What that does not want is closed. The descriptors are the
// Server's from now on.
func (s *Server) Adopt(sockets []Socket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.adopted.sockets == nil {
		s.adopted.sockets = make(map[listenKey]int)
	}
	for _, one := range sockets {
		k := listenKey{one.Addr, one.Proto}
		if _, twice := s.adopted.sockets[k]; twice || s.closed {
			unix.Close(one.FD)
			continue
		}
		s.adopted.sockets[k] = one.FD
	}
}

// AdoptFlows gives the first Apply the UDP flows of the sockets that it adopts.
// Their descriptors are the Server's from now on.
func (s *Server) AdoptFlows(flows []UDPFlow) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.adopted.flows == nil {
		s.adopted.flows = make(map[netip.AddrPort][]UDPFlow)
	}
	for _, one := range flows {
		if s.closed {
			one.close()
			continue
		}
		s.adopted.flows[one.Listener] = append(s.adopted.flows[one.Listener], one)
	}
}

func (f *UDPFlow) close() {
	if f.FD >= 0 {
		unix.Close(f.FD)
	}
}

// dropAdopted closes what nobody wanted.
func (s *Server) dropAdopted() {
	s.mu.Lock()
	left := s.adopted
	s.adopted = adoption{}
	s.mu.Unlock()
	for k, fd := range left.sockets {
		s.log.Info("a listening socket of the predecessor is not wanted any more", "port", k.addr, "protocol", k.proto)
		unix.Close(fd)
	}
	for _, flows := range left.flows {
		for i := range flows {
			flows[i].close()
		}
	}
}

// takeAdopted returns the adopted socket of a listener; false: there is none.
func (s *Server) takeAdopted(want Listener) (*os.File, bool) {
	s.mu.Lock()
	k := keyOf(want)
	fd, ok := s.adopted.sockets[k]
	delete(s.adopted.sockets, k)
	s.mu.Unlock()
	if !ok {
		return nil, false
	}
	if err := checkAdopted(k, fd); err != nil {
		s.log.Warn("a socket of the predecessor is not used", "port", k.addr, "protocol", k.proto, "error", err)
		unix.Close(fd)
		return nil, false
	}
	return os.NewFile(uintptr(fd), "listener"), true
}

// checkAdopted reports whether a descriptor is what it was said to be.
func checkAdopted(k listenKey, fd int) error {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return err
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return err
	}
	at := addrPortOf(sa)
	at = netip.AddrPortFrom(at.Addr().WithZone(""), at.Port())
	want, listens := unix.SOCK_DGRAM, 1
	if k.proto == model.TCP {
		want = unix.SOCK_STREAM
		if listens, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil {
			return err
		}
	}
	if kind != want || listens == 0 || at != netip.AddrPortFrom(k.addr.Addr().WithZone(""), k.addr.Port()) {
		return fmt.Errorf("it is bound to %s (type %d, listening: %t)", at, kind, listens != 0)
	}
	return nil
}

// adoptTCP returns the adopted socket, nil when there is none that is fit.
func (s *Server) adoptTCP(want Listener) *net.TCPListener {
	file, ok := s.takeAdopted(want)
	if !ok {
		return nil
	}
	defer file.Close()
	l, err := net.FileListener(file) // a duplicate
	if err != nil {
		return nil
	}
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		l.Close()
		return nil
	}
	return tcp
}

// adoptUDP is adoptTCP for UDP.
func (s *Server) adoptUDP(want Listener) *net.UDPConn {
	file, ok := s.takeAdopted(want)
	if !ok {
		return nil
	}
	defer file.Close()
	c, err := net.FilePacketConn(file) // a duplicate
	if err != nil {
		return nil
	}
	udp, ok := c.(*net.UDPConn)
	if !ok {
		c.Close()
		return nil
	}
	return udp
}

// duplicate returns a socket's descriptor once more. Not File, which would make
// the shared description block.
func duplicate(c syscall.Conn) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd, derr := -1, error(nil)
	if err := raw.Control(func(s uintptr) { fd, derr = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return -1, err
	}
	return fd, derr
}

// StopListening makes every socket stop taking anything in, and waits until
// nobody does any more. Nothing is closed: what waits in the sockets is for
// whoever has their duplicates. TCP connections and UDP flows that are here go
// on, UDP flows with answers only. Apply answers ErrStopped from now on.
func (s *Server) StopListening() {
	s.apply.Lock()
	defer s.apply.Unlock()
	s.setStopped(true)
	for _, l := range s.current() {
		l.stop()
	}
}

// ResumeListening takes StopListening back: there is no successor.
func (s *Server) ResumeListening() error {
	s.apply.Lock()
	defer s.apply.Unlock()
	for _, l := range s.current() {
		if err := l.resume(); err != nil {
			return fmt.Errorf("listen again: %w", err)
		}
	}
	s.setStopped(false)
	return nil
}

// Release closes the sockets after StopListening, and ends the UDP flows: a
// successor has both. TCP connections go on.
func (s *Server) Release() {
	s.apply.Lock()
	defer s.apply.Unlock()
	for k, l := range s.current() {
		s.forget(k)
		l.close()
	}
}

// Idle reports whether no connection and no flow is left.
func (s *Server) Idle() bool { return s.conns.Size() == 0 && s.flows.quota.Size() == 0 }

func (s *Server) setStopped(yes bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = yes
}

func (s *Server) isStopped() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopped
}

// UDPFlows describes the UDP flows for a successor. The descriptors are
// duplicates, which the caller owns. The flows themselves stay until Release.
func (s *Server) UDPFlows() []UDPFlow {
	t := s.flows
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Since(t.began)
	out := make([]UDPFlow, 0, len(t.byKey))
	for e := t.all.Back(); e != nil; e = e.Prev() { // as they were heard last
		f := e.Value.(*flow)
		key := f.key
		one := UDPFlow{
			Listener: keyOf(*key.listener.want.Load()).addr, Client: key.client, Asked: key.asked,
			Backend: f.backend, Source: f.path.LocalAddr(), Replied: f.replied.Load(),
			Idle: max(0, now-time.Duration(f.heard.Load())), FD: -1,
		}
		if h, ok := f.path.(*hostFlow); ok {
			fd, err := duplicate(h.conn)
			if err != nil {
				continue // it begins anew, with the client's next datagram
			}
			one.FD = fd
		}
		out = append(out, one)
	}
	return out
}

// restoreFlows enters the adopted flows of a listener before it reads.
func (s *Server) restoreFlows(l *udpListener) {
	s.mu.Lock()
	k := keyOf(*l.want.Load()).addr
	list := s.adopted.flows[k]
	delete(s.adopted.flows, k)
	s.mu.Unlock()
	for i := range list {
		if err := s.flows.restore(l, &list[i]); err != nil {
			s.log.Debug("a UDP flow of the predecessor was not taken over", "client", list[i].Client, "error", err)
		}
	}
}

// restore makes a flow of what a predecessor said of it. It owns the descriptor
// in any case.
func (t *flows) restore(l *udpListener, r *UDPFlow) error {
	s := t.server
	key := flowKey{l, r.Client, r.Asked}
	f := &flow{key: key, owner: quota.Client(r.Client.Addr()), backend: r.Backend}
	if t.find(key) != nil || !r.Client.IsValid() || !r.Asked.IsValid() || !r.Backend.IsValid() || !t.holds(f) {
		r.close()
		return fmt.Errorf("flow to %s may not go on", r.Backend)
	}
	if t.quota.Take(f.owner) == quota.None {
		r.close()
		return fmt.Errorf("no room for the flow to %s", r.Backend)
	}
	f.answers = newAnswerer(l, r.Client, r.Asked)
	receive := t.receiver(f)
	var err error
	if r.FD >= 0 {
		f.path, err = s.adoptHostFlow(r.FD, receive)
	} else {
		f.path, err = s.cfg.Resume(r.Source, r.Backend, receive)
	}
	if err != nil {
		t.quota.Give(f.owner)
		return err
	}
	f.replied.Store(r.Replied)
	t.enter(f)
	f.heard.Store(int64(time.Since(t.began) - r.Idle))
	return nil
}

// adoptHostFlow is openHostFlow with a socket that is there. It owns fd.
func (s *Server) adoptHostFlow(fd int, receive func([]byte)) (Flow, error) {
	file := os.NewFile(uintptr(fd), "flow")
	defer file.Close()
	c, err := net.FileConn(file) // a duplicate
	if err != nil {
		return nil, fmt.Errorf("adopted socket: %w", err)
	}
	conn, ok := c.(*net.UDPConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("adopted socket is no UDP socket but of %T", c)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		conn.Close()
		return nil, err
	}
	h := newHostFlow(conn, raw)
	if !s.start(func() { h.read(s.flows, receive) }) {
		conn.Close()
		return nil, ErrClosed
	}
	return h, nil
}

// gate lets a listener's goroutine be stopped and started again.
type gate struct {
	mu   sync.Mutex
	shut bool          // guarded by mu
	done chan struct{} // guarded by mu; closed when the goroutine has ended; nil: none ever ran
}

func (g *gate) set(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = shut
}

func (g *gate) isSet() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.shut
}

// open runs the goroutine unless it runs; false: the server is closing.
func (g *gate) open(s *Server, run func()) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.done != nil && !g.shut {
		return true
	}
	done := make(chan struct{})
	g.shut = false
	if !s.start(func() {
		defer close(done)
		run()
	}) {
		return false
	}
	g.done = done
	return true
}

// wait returns when the goroutine has ended.
func (g *gate) wait() {
	g.mu.Lock()
	done := g.done
	g.mu.Unlock()
	if done != nil {
		<-done
	}
}
