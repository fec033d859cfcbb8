package netstack

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// spliced is an open connection: a pod's end in gVisor and a host socket.
//
//	pod ──FIN──> up   ends, CloseWrite on the host socket, down goes on
//	pod <──FIN── down ends, Shutdown towards the pod, up goes on
//	RST on either side, or an error: abort, a reset on both
//
// Nothing is queued between the two: a slow reader on one side stops the
// reading on the other, whose window closes. A connection on which nothing
// moves holds no buffer.
type spliced struct {
	stack  *Stack
	key    connKey
	host   net.Conn // nil for a server in this process
	pod    tcpip.Endpoint
	events waiter.Queue

	moved      atomic.Uint64 // bytes, both ways
	halfClosed atomic.Bool

	seen uint64 // moved at the last sweep; sweeper only
	idle int    // sweeps since it changed; sweeper only
}

// errReset: the pod's side of the connection is gone.
var errReset = errors.New("connection reset by pod")

// run copies both ways until both sides have closed or one has failed.
func (c *spliced) run() {
	down := make(chan struct{})
	go func() {
		defer close(down)
		c.end(c.copyDown())
	}()
	c.end(c.copyUp())
	<-down
}

// end is called when a direction is over: nil means an orderly close, which
// has been passed on.
func (c *spliced) end(err error) {
	if err != nil {
		c.abort()
		return
	}
	c.halfClosed.Store(true)
}

// abort resets both sides; everything that waits on the connection returns.
// Not to be called with Stack.mu held: it sends a packet.
func (c *spliced) abort() {
	c.pod.Abort()
	if c.host != nil {
		resetOnClose(c.host)
		c.host.Close()
	}
}

// finish closes the pod's side and waits until it is really gone, so that a
// pod that does not acknowledge the rest still counts against its bound.
func (c *spliced) finish() {
	gone, notify := waiter.NewChannelEntry(waiter.EventHUp)
	c.events.EventRegister(&gone)
	defer c.events.EventUnregister(&gone)
	c.pod.Close()
	if ended(c.pod) {
		return
	}
	patience := time.NewTimer(lingerTimeout)
	defer patience.Stop()
	select {
	case <-notify:
	case <-patience.C:
		c.pod.Abort()
	case <-c.stack.done:
		c.pod.Abort()
	}
}

// ended reports whether gVisor is done with the endpoint.
func ended(ep tcpip.Endpoint) bool {
	state := tcp.EndpointState(ep.State())
	return state == tcp.StateClose || state == tcp.StateError
}

// copyUp moves what the pod sends to the host socket.
func (c *spliced) copyUp() error {
	if _, err := c.fromPod(c.host); err != nil {
		return err
	}
	return closeWrite(c.host)
}

// fromPod writes to w what the pod sends until the pod closes its direction.
func (c *spliced) fromPod(w io.Writer) (n int64, err error) {
	entry, readable := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr)
	c.events.EventRegister(&entry)
	defer c.events.EventUnregister(&entry)
	for {
		buf := c.stack.buffer()
		into := tcpip.SliceWriter(buf[:spliceBuffer])
		res, terr := c.pod.Read(&into, tcpip.ReadOptions{})
		if terr == nil && res.Count > 0 {
			_, err = w.Write(buf[:res.Count])
			n += int64(res.Count)
			c.moved.Add(uint64(res.Count))
			c.stack.counters.bytesUp.Add(uint64(res.Count))
		}
		c.stack.buffers.Put(buf)
		switch terr.(type) {
		case nil:
			if err != nil {
				return n, err
			}
		case *tcpip.ErrWouldBlock:
			<-readable
		case *tcpip.ErrClosedForReceive:
			return n, nil
		default:
			return n, errReset
		}
	}
}

// copyDown moves what the host socket receives to the pod.
func (c *spliced) copyDown() error {
	if _, err := c.toPod(c.host); err != nil {
		return err
	}
	if terr := c.pod.Shutdown(tcpip.ShutdownWrite); terr != nil {
		return errReset
	}
	return nil
}

// toPod gives the pod what r has until its end.
func (c *spliced) toPod(r io.Reader) (n int64, err error) {
	entry, writable := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	c.events.EventRegister(&entry)
	defer c.events.EventUnregister(&entry)
	source := newSource(c.stack, r)
	use := func(data []byte) error {
		n += int64(len(data))
		return c.writePod(data, writable)
	}
	for {
		switch err := source.read(use); {
		case errors.Is(err, io.EOF):
			return n, nil
		case err != nil:
			return n, err
		}
	}
}

// writePod writes all of data, waiting while the pod's window is closed.
func (c *spliced) writePod(data []byte, writable <-chan struct{}) error {
	var r bytes.Reader
	for len(data) > 0 {
		r.Reset(data)
		n, terr := c.pod.Write(&r, tcpip.WriteOptions{})
		data = data[n:]
		c.moved.Add(uint64(n))
		c.stack.counters.bytesDown.Add(uint64(n))
		switch terr.(type) {
		case nil:
		case *tcpip.ErrWouldBlock:
			<-writable
		default:
			return errReset
		}
	}
	return nil
}

// expired is called once in every sweep.
func (c *spliced) expired() bool {
	if now := c.moved.Load(); now != c.seen {
		c.seen, c.idle = now, 0
		return false
	}
	c.idle++
	if c.halfClosed.Load() {
		return c.idle > halfClosedSweeps
	}
	return c.idle > idleSweeps
}

// source reads a host socket and takes a buffer only when data is there, so
// that ten thousand idle connections do not hold ten thousand buffers.
type source struct {
	stack *Stack
	conn  io.Reader
	raw   syscall.RawConn // nil: not a kernel socket

	buf  *[bufferSize]byte // filled by poll
	n    int
	err  error
	poll func(fd uintptr) bool // readOnce, bound once
}

func newSource(s *Stack, conn io.Reader) *source {
	r := &source{stack: s, conn: conn}
	if sc, ok := conn.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			r.raw = raw
		}
	}
	r.poll = r.readOnce
	return r
}

// read waits for data and calls use with it; io.EOF at the end.
func (r *source) read(use func([]byte) error) error {
	if r.raw == nil {
		buf := r.stack.buffer()
		defer r.stack.buffers.Put(buf)
		n, err := r.conn.Read(buf[:spliceBuffer])
		if n > 0 {
			if uerr := use(buf[:n]); uerr != nil {
				return uerr
			}
		}
		return err
	}
	if err := r.raw.Read(r.poll); err != nil {
		return err
	}
	defer r.stack.buffers.Put(r.buf)
	if r.err != nil {
		return r.err
	}
	if r.n == 0 {
		return io.EOF
	}
	return use(r.buf[:r.n])
}

// readOnce runs inside the poller: false waits for data, without a buffer.
func (r *source) readOnce(fd uintptr) bool {
	r.buf = r.stack.buffer()
	for {
		r.n, r.err = syscall.Read(int(fd), r.buf[:spliceBuffer])
		if !errors.Is(r.err, syscall.EINTR) {
			break
		}
	}
	if errors.Is(r.err, syscall.EAGAIN) {
		r.stack.buffers.Put(r.buf)
		r.buf = nil
		return false
	}
	return true
}

// closeWrite passes an orderly close on; a connection that cannot half-close
// is closed.
func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return c.Close()
}

// resetOnClose makes the next Close send a reset, where the connection can.
func resetOnClose(c net.Conn) {
	if l, ok := c.(interface{ SetLinger(sec int) error }); ok {
		_ = l.SetLinger(0) // fails only on a closed socket
	}
}
