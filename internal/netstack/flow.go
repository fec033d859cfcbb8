package netstack

import (
	"container/list"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/netctl/netctl/internal/packet"
)

const (
	pendingPackets = 32       // datagrams that wait while the socket is opened
	pendingBytes   = 64 << 10 // of them together
	readBurst      = 32       // datagrams read before the poller is asked again
	quoteBytes     = 64       // of the last datagram, for ICMP errors about it
	dialPatience   = 5 * time.Second
)

// flow is one conversation of datagrams: a connected kernel socket and the
// goroutine that reads it. The socket is opened by that goroutine, not by
// Write; datagrams wait meanwhile.
//
//	opening ──socket──> open ──idle, evicted, closed──> gone
//	   └──refused, no route: ICMP error──────────────────^
type flow struct {
	set     *datagrams
	key     packet.Tuple
	order   *list.List    // guarded by datagrams.mu
	element *list.Element // guarded by datagrams.mu

	used    atomic.Int64 // nanoseconds since start; the last datagram either way
	replied atomic.Bool
	backend atomic.Pointer[netip.AddrPort] // where it really goes; nil: not known yet

	mu      sync.Mutex
	gone    bool     // guarded by mu
	socket  socket   // guarded by mu; zero while opening
	pending [][]byte // guarded by mu
	waiting int      // guarded by mu; bytes in pending
	quote   quote    // guarded by mu; the last datagram
	out     []byte   // guarded by mu; argument of writeOnce
	outErr  error    // guarded by mu; its result

	// Result of readOnce; only the reading goroutine.
	readErr error
}

// socket is a kernel socket in the poller. What it takes and gives is the
// payload of UDP, or an ICMP message.
type socket struct {
	conn interface {
		Close() error
		SetReadDeadline(time.Time) error
	}
	raw  syscall.RawConn
	echo *echoSocket // nil for UDP

	dontFrag bool // IP_MTU_DISCOVER is DO; guarded by flow.mu
}

// quote is the beginning of a datagram.
type quote struct {
	data     [quoteBytes]byte
	n        int
	seq      uint16 // echo
	dontFrag bool   // the pod's router, which we are, may not fragment it
}

func newFlow(set *datagrams, key packet.Tuple) *flow {
	f := &flow{set: set, key: key}
	f.touch()
	return f
}

func (f *flow) touch() { f.used.Store(int64(time.Since(f.set.stack.began))) }

// mark remembers what an ICMP error about the packet must quote. Called with
// mu held, before send.
func (f *flow) mark(p *packet.Packet) {
	f.quote.n = copy(f.quote.data[:], p.Data())
	f.quote.seq = p.EchoSeq()
	if p.Is4() {
		f.quote.dontFrag = p.IP()[6]&0x40 != 0
	} else {
		// No IPv6 router fragments, but what the pod fragmented (it was put
		// together here and is bigger than the MTU) may be cut again.
		f.quote.dontFrag = p.GSOSize > 0 || len(p.IP()) <= f.set.stack.cfg.MTU
	}
}

// send sends one datagram or keeps it until the socket is open. Called with mu
// held.
func (f *flow) send(data []byte) {
	s := f.set.stack
	if f.gone {
		s.counters.drop(DropPending)
		return
	}
	f.touch()
	if f.socket.conn == nil {
		if len(f.pending) >= pendingPackets || f.waiting+len(data) > pendingBytes {
			s.counters.drop(DropPending)
			return
		}
		f.pending = append(f.pending, append([]byte(nil), data...))
		f.waiting += len(data)
		return
	}
	f.write(data)
}

// write gives a datagram to the kernel, without waiting. The kernel reports an
// ICMP error about an earlier datagram instead of sending this one: report it
// to the pod and try once more. Called with mu held.
func (f *flow) write(data []byte) {
	s := f.set.stack
	if f.socket.echo != nil {
		f.socket.echo.prepare(data)
	}
	if f.quote.dontFrag != f.socket.dontFrag {
		f.socket.dontFrag = f.quote.dontFrag
		discoverMTU(f.socket.raw, f.key.Dst.Is4(), f.socket.dontFrag)
	}
	for range 2 {
		f.out = data
		if err := f.socket.raw.Write(f.writeOnce); err != nil {
			break // closed
		}
		if f.outErr == nil {
			s.counters.bytesUp.Add(uint64(len(data)))
			return
		}
		if !f.report(f.outErr) || errors.Is(f.outErr, syscall.EMSGSIZE) {
			break // too big for the path: the pod has been told
		}
	}
	s.counters.drop(DropSocket)
}

// writeOnce runs inside the poller and never asks it to wait.
func (f *flow) writeOnce(fd uintptr) bool {
	_, f.outErr = syscall.Write(int(fd), f.out)
	f.out = nil
	return true
}

// report passes on what the network said about the flow's datagrams; false:
// err is not from the network. Called with mu held.
func (f *flow) report(err error) bool {
	s := f.set.stack
	known := false
	for _, e := range f.socket.errors(&f.key) {
		known = true
		s.answerNetwork(f.original(), e)
	}
	if known {
		return true
	}
	code, ok := unreachable(err)
	if ok {
		s.answerNetwork(f.original(), networkError{kind: kindUnreachable, code: code})
	}
	return ok
}

// original builds the last datagram again, as far as an error has to quote it.
// Called with mu held.
func (f *flow) original() []byte {
	buf := make([]byte, packet.MaxError)
	data := f.quote.data[:f.quote.n]
	src, dst := f.key.Src.Netip(), f.key.Dst.Netip()
	if f.key.Proto == packet.ProtoUDP {
		return packet.UDP(buf, netip.AddrPortFrom(src, f.key.SrcPort), netip.AddrPortFrom(dst, f.key.DstPort), data)
	}
	return packet.Echo(buf, packet.EchoHeader{Src: src, Dst: dst, ID: f.key.SrcPort, Seq: f.quote.seq}, data)
}

// run opens the socket and reads it until the flow is idle or closed.
func (f *flow) run() {
	defer f.set.ended(f)
	defer f.close()
	if !f.opened() {
		if err := f.open(); err != nil {
			f.fail(err)
			return
		}
	}
	for f.wait() {
	}
}

// opened reports whether the flow came with its socket.
func (f *flow) opened() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.socket.conn != nil
}

// open opens the socket and sends what waited for it.
func (f *flow) open() error {
	client, asked := f.ends()
	to, err := f.set.stack.destination(f.key.Proto, client, asked)
	if err != nil {
		return err
	}
	f.backend.Store(&to)
	sock, err := f.dial(to)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gone {
		sock.conn.Close()
		return net.ErrClosed
	}
	f.socket = sock
	for _, data := range f.pending {
		f.write(data)
	}
	f.pending = nil
	return nil
}

// ends returns who sends and what it sends to.
func (f *flow) ends() (client, asked netip.AddrPort) {
	return netip.AddrPortFrom(f.key.Src.Netip(), f.key.SrcPort), netip.AddrPortFrom(f.key.Dst.Netip(), f.key.DstPort)
}

// holds reports whether the flow may stay with its backend.
func (f *flow) holds() bool {
	may, backend := f.set.stack.cfg.Holds, f.backend.Load()
	if may == nil || backend == nil || f.key.Proto != packet.ProtoUDP {
		return true
	}
	_, asked := f.ends()
	return may(asked, *backend)
}

func (f *flow) dial(to netip.AddrPort) (socket, error) {
	if f.key.Proto != packet.ProtoUDP {
		return f.set.dialEcho(&f.key)
	}
	ctx, cancel := context.WithTimeout(context.Background(), dialPatience)
	defer cancel()
	conn, err := f.set.stack.cfg.DialUDP(ctx, to)
	if err != nil {
		return socket{}, err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		conn.Close()
		return socket{}, err
	}
	reportErrors(raw, f.key.Dst.Is4())
	return socket{conn: conn, raw: raw}, nil
}

// fail tells the pod why there is no socket.
func (f *flow) fail(err error) {
	s := f.set.stack
	f.mu.Lock()
	defer f.mu.Unlock()
	var refused *refusedError
	e := networkError{kind: kindUnreachable}
	switch {
	case f.gone, errors.Is(err, net.ErrClosed):
		return
	case errors.As(err, &refused):
		s.counters.drop(DropRefused)
		e.code = packet.UnreachAdmin
	case errors.Is(err, errNoPing):
		s.counters.drop(DropNoPing)
		e.code = packet.UnreachAdmin
	default:
		var ok bool
		if e.code, ok = unreachable(err); !ok {
			s.counters.drop(DropSocket)
			return
		}
	}
	s.answerNetwork(f.original(), e)
}

// wait reads what is there or waits for it; false ends the flow.
func (f *flow) wait() bool {
	idle := time.Since(f.set.stack.began) - time.Duration(f.used.Load())
	left := f.lifetime() - idle
	if left <= 0 {
		return false
	}
	if f.socket.conn.SetReadDeadline(time.Now().Add(left)) != nil {
		return false
	}
	for {
		err := f.socket.raw.Read(f.readOnce)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return true
		case err != nil:
			return false
		case f.readErr == nil:
			continue
		}
		f.mu.Lock()
		ok := f.report(f.readErr)
		f.mu.Unlock()
		if !ok && !errors.Is(f.readErr, syscall.EMSGSIZE) {
			return false
		}
	}
}

// lifetime is how long the flow lives without a datagram.
func (f *flow) lifetime() time.Duration {
	switch {
	case f.key.Proto != packet.ProtoUDP:
		return echoIdle
	case !f.replied.Load():
		return udpUnreplied
	case f.key.DstPort == 53:
		return udpDNS
	}
	return udpReplied
}

// readOnce runs inside the poller: it passes on what the socket has, and asks
// to wait only when that is nothing. A waiting flow holds no buffer.
func (f *flow) readOnce(fd uintptr) bool {
	s := f.set.stack
	buf := s.buffer()
	defer s.buffers.Put(buf)
	for i := range readBurst {
		// The payload is read where it belongs in the packet, behind the room
		// for its headers, and packet.UDP copies it onto itself.
		room := packet.VNetLen + 20 + 8
		if !f.key.Dst.Is4() {
			room += 20
		}
		n, err := syscall.Read(int(fd), buf[room:])
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.EAGAIN):
			f.readErr = nil
			return i > 0
		case err != nil:
			f.readErr = err
			return true
		}
		if room+n > packet.MaxSize {
			s.counters.drop(DropSocket) // more than an IP packet holds
			continue
		}
		f.reply(buf, buf[room:room+n])
	}
	f.readErr = nil
	return true
}

// reply sends what the socket gave to the pod.
func (f *flow) reply(buf *[bufferSize]byte, data []byte) {
	s := f.set.stack
	var out []byte
	if f.socket.echo != nil {
		seq, body, ok := f.socket.echo.parse(data)
		if !ok {
			return
		}
		whole := s.buffer()
		defer s.buffers.Put(whole)
		out = packet.Echo(whole[:packet.MaxSize], packet.EchoHeader{
			Src: f.key.Dst.Netip(), Dst: f.key.Src.Netip(), ID: f.key.SrcPort, Seq: seq, Reply: true,
		}, body)
		data = body
	} else {
		out = packet.UDP(buf[:packet.MaxSize],
			netip.AddrPortFrom(f.key.Dst.Netip(), f.key.DstPort),
			netip.AddrPortFrom(f.key.Src.Netip(), f.key.SrcPort), data)
	}
	f.touch()
	f.replied.Store(true)
	s.counters.bytesDown.Add(uint64(len(data)))
	if len(out) > 0 {
		s.link.emit(out, s.cfg.MTU)
	}
}

// close ends the flow; its goroutine returns soon. Idempotent.
func (f *flow) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gone = true
	f.pending = nil
	if f.socket.conn != nil {
		f.socket.conn.Close()
		if f.socket.echo != nil {
			f.socket.echo.release()
		}
	}
}
