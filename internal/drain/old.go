package drain

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/netctl/netctl/internal/netstack"
	"github.com/netctl/netctl/internal/packet"
)

// lookAround is how often a retired process looks whether it may end.
const lookAround = 100 * time.Millisecond

// endPatience is how long the resets of what is left may take.
const endPatience = 5 * time.Second

// Old retires Stack and Sockets to the process at the other end of conn and
// finishes what they have. It returns nil when nothing is left, the context's
// error when that ends before, and says when the successor went away: in these
// cases both are closed, and what was open is reset. ErrNotTaken: nothing
// happened, and both serve again. conn is closed in any case.
func Old(ctx context.Context, conn *net.UnixConn, ends Ends) error {
	ends.setDefaults()
	defer conn.Close()
	w, err := newWire(conn)
	if err != nil {
		return errors.Join(ErrNotTaken, err)
	}
	o := newOld(w, ends)
	takeBack := func() {
		if o.fate.CompareAndSwap(undecided, takenBack) {
			o.breakOff()
		}
	}
	stop := context.AfterFunc(ctx, takeBack)
	if err := o.retire(); err != nil {
		takeBack()
		return errors.Join(ErrNotTaken, err, o.reinstate())
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		o.err = o.listen()
		o.breakOff() // whoever waits for room waits in vain
	}()
	select {
	case <-o.serving:
	case <-read:
	}
	stop()
	takeBack()
	if o.fate.Load() == takenBack {
		<-read
		return errors.Join(ErrNotTaken, ctx.Err(), o.err, o.reinstate())
	}
	err = o.finish(ctx, read)
	o.end()
	<-read
	return err
}

// end closes everything. What is left is reset, as long as there is a successor
// that carries that.
func (o *old) end() {
	defer o.breakOff()
	defer time.AfterFunc(endPatience, o.breakOff).Stop()
	if o.Sockets != nil {
		o.Sockets.Close()
	}
	o.Stack.Close()
	_ = o.wire.send(kindDone, nil, -1) // it may be gone
}

// The fates of the retired side: who serves is decided once.
const (
	undecided int32 = iota
	takenBack
	gone
)

// old is the retired side. To its Stack it is the heir.
type old struct {
	Ends

	wire     *wire
	ready    chan struct{} // closed when the successor has been told of everything
	serving  chan struct{} // closed when it serves
	broken   chan struct{} // closed when there is no successor any more
	breaking sync.Once
	fate     atomic.Int32
	err      error // of the reader, when it has ended

	mu      sync.Mutex
	pending []byte // guarded by mu; tuples that began, before ready
}

var _ netstack.Heir = (*old)(nil)

func newOld(w *wire, ends Ends) *old {
	return &old{Ends: ends, wire: w, ready: make(chan struct{}), broken: make(chan struct{}), serving: make(chan struct{})}
}

// retire tells the successor of everything. Nobody emits meanwhile: Packet waits
// for its end.
func (o *old) retire() error {
	if o.Sockets != nil {
		o.Sockets.StopListening()
	}
	if err := o.wire.send(kindHello, hello(), -1); err != nil {
		return fmt.Errorf("greet the successor: %w", err)
	}
	o.Stack.Retire(o)
	if err := o.sendUDPFlows(); err != nil {
		return fmt.Errorf("tell the successor of UDP flows: %w", err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	err := o.flush()
	if err == nil {
		err = o.wire.send(kindReady, nil, -1)
	}
	if err != nil {
		return fmt.Errorf("tell the successor of connections: %w", err)
	}
	close(o.ready)
	return nil
}

func (o *old) sendUDPFlows() error {
	if o.Sockets == nil {
		return nil
	}
	var err error
	var buf []byte
	for _, f := range o.Sockets.UDPFlows() {
		if err == nil {
			buf = appendUDPFlow(buf[:0], &f)
			err = o.wire.send(kindUDPFlow, buf, f.FD)
		}
		closeFD(f.FD)
	}
	return err
}

// reinstate takes everything back.
func (o *old) reinstate() error {
	o.Stack.Reinstate()
	if o.Sockets == nil {
		return nil
	}
	return o.Sockets.ResumeListening()
}

func (o *old) breakOff() {
	o.breaking.Do(func() {
		close(o.broken)
		o.wire.close()
	})
}

// finish waits until nothing is left.
func (o *old) finish(ctx context.Context, read <-chan struct{}) error {
	tick := time.NewTicker(lookAround)
	defer tick.Stop()
	for {
		o.Stack.GiveFlows()
		if o.Stack.Idle() && (o.Sockets == nil || o.Sockets.Idle()) {
			return nil
		}
		select {
		case <-tick.C:
		case <-read:
			if errors.Is(o.err, io.EOF) {
				return errors.New("the successor has ended")
			}
			return fmt.Errorf("the successor is lost: %w", o.err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// listen takes what the successor says.
func (o *old) listen() error {
	for {
		k, body, fd, err := o.wire.receive()
		if err != nil {
			return err
		}
		closeFD(fd) // it has nothing to give
		if err := o.take(k, body); err != nil {
			return err
		}
	}
}

func (o *old) take(k kind, body []byte) error {
	switch k {
	case kindPacket:
		_ = o.Stack.Write(body) // closed: what is left is being reset
	case kindPacketInbound:
		_ = o.Stack.InboundPort().Write(body)
	case kindServing:
		if o.fate.CompareAndSwap(undecided, gone) {
			close(o.serving)
			return o.wire.send(kindGone, nil, -1)
		}
	case kindAdopted:
		if o.Sockets != nil {
			o.Sockets.Release()
		}
	case kindForget:
		pod, ok := netip.AddrFromSlice(body)
		if !ok {
			return fmt.Errorf("%w: %d bytes are no address", errMessage, len(body))
		}
		o.Stack.Forget(pod.Unmap())
	default: // a later version's
	}
	return nil
}

// Began and the methods below are those of netstack.Heir. An error means that
// the successor is gone, which listen finds out.
func (o *old) Began(t packet.Tuple, inbound bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.pending = appendTuple(o.pending, &t, inbound)
	if o.isReady() || len(o.pending) >= maxTuples*tupleLen {
		_ = o.flush()
	}
}

// Ended tells that a connection is gone.
func (o *old) Ended(t packet.Tuple) {
	o.mu.Lock()
	defer o.mu.Unlock()
	_ = o.flush()
	_ = o.wire.send(kindEnded, appendTuple(nil, &t, false), -1)
}

// flush sends the tuples that wait. Called with mu held.
func (o *old) flush() error {
	if len(o.pending) == 0 {
		return nil
	}
	err := o.wire.send(kindBegan, o.pending, -1)
	o.pending = o.pending[:0]
	return err
}

func (o *old) isReady() bool {
	select {
	case <-o.ready:
		return true
	default:
		return false
	}
}

// Packet sends what the Stack emits, when the successor knows whose it is.
func (o *old) Packet(buf []byte, inbound bool) {
	select {
	case <-o.ready:
	case <-o.broken:
		return
	}
	_ = o.wire.send(kindOf(kindPacket, inbound), buf, -1)
}

// Return gives a packet back.
func (o *old) Return(buf []byte, inbound bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	_ = o.flush()
	_ = o.wire.send(kindOf(kindReturn, inbound), buf, -1)
}

// Flow gives a flow away.
func (o *old) Flow(f netstack.Flow, fd int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	_ = o.flush() // it may be about this one
	_ = o.wire.send(kindFlow, flowRecord(&f), fd)
	closeFD(fd)
}

// kindOf is the kind for either direction of opening.
func kindOf(k kind, inbound bool) kind {
	if inbound {
		return k + 1
	}
	return k
}
