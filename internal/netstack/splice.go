package netstack

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/netctl/netctl/internal/splice"
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
	host   net.Conn    // nil for a server in this process
	served *servedConn // the other way round
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
		splice.ResetOnClose(c.host)
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
	return splice.CloseWrite(c.host)
}

// fromPod writes to w what the pod sends until the pod closes its direction.
func (c *spliced) fromPod(w io.Writer) (n int64, err error) {
	entry, readable := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr)
	c.events.EventRegister(&entry)
	defer c.events.EventUnregister(&entry)
	for {
		buf := c.stack.buffer()
		into := tcpip.SliceWriter(buf[:])
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
	entry, writable := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	c.events.EventRegister(&entry)
	defer c.events.EventUnregister(&entry)
	if _, err := c.stack.copier.Copy(podWriter{c, writable}, c.host); err != nil {
		return err
	}
	if terr := c.pod.Shutdown(tcpip.ShutdownWrite); terr != nil {
		return errReset
	}
	return nil
}

// podWriter writes to the pod.
type podWriter struct {
	*spliced
	writable <-chan struct{}
}

// Write writes all of data, waiting while the pod's window is closed.
func (w podWriter) Write(data []byte) (int, error) {
	var r bytes.Reader
	left := data
	for len(left) > 0 {
		r.Reset(left)
		n, terr := w.pod.Write(&r, tcpip.WriteOptions{})
		left = left[n:]
		w.moved.Add(uint64(n))
		w.stack.counters.bytesDown.Add(uint64(n))
		switch terr.(type) {
		case nil:
		case *tcpip.ErrWouldBlock:
			<-w.writable
		default:
			return len(data) - len(left), errReset
		}
	}
	return len(data), nil
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
