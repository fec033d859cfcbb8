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

	"golang.org/x/sys/unix"
)

// udpListener is a UDP socket that clients speak to. Its goroutine reads; the
// answers are written by whoever has them.
type udpListener struct {
	server   *Server
	want     atomic.Pointer[Listener]
	wildcard bool
	conn     *net.UDPConn
	raw      syscall.RawConn
	pause    gate

	in incoming // reading goroutine only
}

// incoming is a datagram and who sent it to which of our addresses.
type incoming struct {
	buf         *[maxDatagram]byte
	n           int
	client      netip.AddrPort
	asked       netip.Addr
	err         error
	control     [controlSize]byte
	readOnceFun func(fd uintptr) bool // readOnce, bound once
}

// listenUDP opens the socket. One for every address is told, with each datagram,
// which of them was asked, so that the answer leaves from that one.
func (s *Server) listenUDP(want Listener) (socket, error) {
	addr := want.Addr.Addr().Unmap()
	conn := s.adoptUDP(want)
	if conn == nil {
		var err error
		if conn, err = openUDP(want); err != nil {
			return nil, err
		}
	}
	wildcard := addr.IsUnspecified()
	raw, err := conn.SyscallConn()
	if err != nil {
		conn.Close()
		return nil, err
	}
	if wildcard {
		if err := receiveDestination(raw, addr.Is4()); err != nil {
			conn.Close()
			return nil, err
		}
	}
	l := &udpListener{server: s, wildcard: wildcard, conn: conn, raw: raw}
	l.want.Store(&want)
	l.in.readOnceFun = l.readOnce
	s.restoreFlows(l)
	if err := l.resume(); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func openUDP(want Listener) (*net.UDPConn, error) {
	var lc net.ListenConfig
	pc, err := lc.ListenPacket(context.Background(), "udp"+familyOf(want.Addr.Addr()), want.Addr.String())
	if err != nil {
		return nil, err
	}
	conn, ok := pc.(*net.UDPConn)
	if !ok {
		pc.Close()
		return nil, errors.ErrUnsupported
	}
	return conn, nil
}

func (l *udpListener) update(want Listener) { l.want.Store(&want) }

// close ends the flows too: their answers would have no socket to leave by.
func (l *udpListener) close() {
	l.conn.Close()
	l.pause.wait()
	l.server.flows.endIf(func(f *flow) bool { return f.key.listener == l })
}

// stop leaves what waits in the socket to whoever has it too. The flows stay, and
// their answers still go out.
func (l *udpListener) stop() {
	l.pause.set(true)
	_ = l.conn.SetReadDeadline(time.Unix(1, 0)) // fails only on a closed socket
	l.pause.wait()
}

func (l *udpListener) resume() error {
	if err := l.conn.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	if !l.pause.open(l.server, l.read) {
		return ErrClosed
	}
	return nil
}

func (l *udpListener) duplicate() (int, error) { return duplicate(l.conn) }

// read passes on datagrams until the socket is closed, or reading stopped.
func (l *udpListener) read() {
	s := l.server
	for {
		if l.pause.isSet() || l.raw.Read(l.in.readOnceFun) != nil {
			return // stopped or closed
		}
		if l.in.err == nil {
			s.flows.receive(l, &l.in)
		}
		s.flows.buffers.Put(l.in.buf)
	}
}

// readOnce runs inside the poller: false waits for a datagram, without a buffer.
func (l *udpListener) readOnce(fd uintptr) bool {
	in := &l.in
	in.buf = l.server.flows.buffer()
	for {
		n, cn, _, from, err := unix.Recvmsg(int(fd), in.buf[:], in.control[:], 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			l.server.flows.buffers.Put(in.buf)
			in.buf = nil
			return false
		case err != nil: // an ICMP error about an answer
			in.err = err
			return true
		}
		in.n, in.client, in.err = n, addrPortOf(from), nil
		in.asked = l.want.Load().Addr.Addr().Unmap()
		if l.wildcard {
			in.asked = destination(in.control[:cn])
		}
		if !in.client.IsValid() || in.client.Port() == 0 || !in.asked.IsValid() {
			in.err = unix.EINVAL
		}
		return true
	}
}

// answerer writes answers to one client, from the address that it asked.
type answerer struct {
	listener *udpListener

	mu       sync.Mutex
	to       unix.Sockaddr         // guarded by mu: marshalled in place
	control  []byte                // who answers; nil: the socket's own address
	data     []byte                // guarded by mu; argument of writeOnce
	err      error                 // guarded by mu; its result
	writeFun func(fd uintptr) bool // writeOnce, bound once
}

func newAnswerer(l *udpListener, client netip.AddrPort, asked netip.Addr) *answerer {
	a := &answerer{listener: l, to: sockaddrOf(client)}
	if l.wildcard {
		a.control = sourceControl(asked)
	}
	a.writeFun = a.writeOnce
	return a
}

// send writes one datagram without waiting: it may be called by a worker of the
// router, whose other packets cannot wait for a full socket.
func (a *answerer) send(data []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.data = data
	if err := a.listener.raw.Write(a.writeFun); err != nil || a.err != nil {
		a.listener.server.counts.dropped.Add(1)
	}
	a.data = nil
}

// writeOnce runs inside the poller and never asks it to wait. An error may be
// that of an earlier answer, so it tries once more.
func (a *answerer) writeOnce(fd uintptr) bool {
	for range 2 {
		if _, a.err = unix.SendmsgN(int(fd), a.data, a.control, a.to, unix.MSG_DONTWAIT); a.err == nil || errors.Is(a.err, unix.EAGAIN) {
			break
		}
	}
	return true
}

// hostFlow is a Flow to a backend that is a host's address: a connected socket
// and the goroutine that reads it.
type hostFlow struct {
	conn   *net.UDPConn
	raw    syscall.RawConn
	failed atomic.Uint32 // errno that a read found; 0: none

	mu       sync.Mutex
	data     []byte                // guarded by mu; argument of writeOnce
	err      error                 // guarded by mu; its result
	writeFun func(fd uintptr) bool // writeOnce, bound once
}

// openHostFlow opens it; what the backend says goes to receive.
func (s *Server) openHostFlow(dst netip.AddrPort, receive func([]byte)) (Flow, error) {
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	conn, err := s.cfg.DialHostUDP(ctx, dst)
	if err != nil {
		return nil, err
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

func newHostFlow(conn *net.UDPConn, raw syscall.RawConn) *hostFlow {
	h := &hostFlow{conn: conn, raw: raw}
	h.writeFun = h.writeOnce
	return h
}

// LocalAddr is the node's own address, as its kernel chose.
func (h *hostFlow) LocalAddr() netip.AddrPort {
	if a, ok := h.conn.LocalAddr().(*net.UDPAddr); ok {
		return a.AddrPort()
	}
	return netip.AddrPort{}
}

// read passes on what the backend says until the socket is closed.
func (h *hostFlow) read(t *flows, receive func([]byte)) {
	var buf *[maxDatagram]byte
	var n int
	var rerr error
	once := func(fd uintptr) bool {
		buf = t.buffer()
		for {
			n, rerr = unix.Read(int(fd), buf[:])
			if !errors.Is(rerr, unix.EINTR) {
				break
			}
		}
		if errors.Is(rerr, unix.EAGAIN) {
			t.buffers.Put(buf)
			return false
		}
		return true
	}
	for h.raw.Read(once) == nil {
		var errno unix.Errno
		switch {
		case rerr == nil:
			receive(buf[:n])
		case errors.As(rerr, &errno):
			h.failed.Store(uint32(errno))
		}
		t.buffers.Put(buf)
	}
}

// Send writes one datagram without waiting. The error of a closed port was that
// of an earlier datagram.
func (h *hostFlow) Send(data []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if errno := h.failed.Load(); errno != 0 {
		return unix.Errno(errno)
	}
	h.data = data
	err := h.raw.Write(h.writeFun)
	h.data = nil
	if err != nil {
		return err
	}
	if errors.Is(h.err, unix.EAGAIN) {
		return nil // a full socket loses a datagram, as a full queue anywhere
	}
	return h.err
}

func (h *hostFlow) writeOnce(fd uintptr) bool {
	_, h.err = unix.SendmsgN(int(fd), h.data, nil, nil, unix.MSG_DONTWAIT)
	return true
}

// Close closes the socket; its goroutine returns.
func (h *hostFlow) Close() { h.conn.Close() }
