package drain

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/netctl/netctl/internal/netstack"
	"github.com/netctl/netctl/internal/nodeport"
	"github.com/netctl/netctl/internal/packet"
)

const (
	controlQueue = 1024    // deleted pods that the predecessor has not been told of yet
	maxUDPFlows  = 1 << 17 // that a predecessor may have
)

// Heritage is what a successor has of its predecessor.
type Heritage struct {
	Ends

	wire    *wire
	heirs   *netstack.Inheritance
	flows   []nodeport.UDPFlow
	control chan message
	serves  atomic.Bool // Serve is done
	ended   bool        // the predecessor said so; receiving goroutine only
}

// message is one that waits for the sender.
type message struct {
	kind kind
	body []byte
}

// New learns from the process at the other end of conn what it goes on with. When
// New returns, that process takes nothing in any more: no connection, no
// datagram. Without Serve, Close gives everything back. On an error conn is
// closed.
func New(ctx context.Context, conn *net.UnixConn, ends Ends) (*Heritage, error) {
	ends.setDefaults()
	w, err := newWire(conn)
	if err != nil {
		conn.Close()
		return nil, err
	}
	h := &Heritage{Ends: ends, wire: w, control: make(chan message, controlQueue)}
	h.heirs = ends.Stack.Inherit(predecessor{h})
	if err = h.within(ctx, h.learn); err != nil {
		h.closeFlows()
		h.Close()
		return nil, fmt.Errorf("learn from the predecessor: %w", err)
	}
	if ends.Sockets != nil {
		ends.Sockets.AdoptFlows(h.flows)
		h.flows = nil
	}
	h.closeFlows() // nobody wants them
	return h, nil
}

func (h *Heritage) closeFlows() {
	for i := range h.flows {
		closeFD(h.flows[i].FD)
	}
	h.flows = nil
}

// within runs f, which receives, until the context ends.
func (h *Heritage) within(ctx context.Context, f func() error) error {
	stop := context.AfterFunc(ctx, func() { _ = h.wire.conn.SetReadDeadline(time.Unix(1, 0)) })
	err := f()
	if !stop() && err == nil {
		err = ctx.Err() // the deadline is set, or about to be
	}
	return err
}

// learn takes messages until the predecessor has said everything.
func (h *Heritage) learn() error {
	k, body, fd, err := h.wire.receive()
	closeFD(fd)
	if err == nil && k != kindHello {
		err = errMessage
	}
	if err == nil {
		err = checkHello(body)
	}
	if err != nil {
		return err
	}
	return h.takeUntil(kindReady)
}

// takeUntil takes messages until one of a kind has come.
func (h *Heritage) takeUntil(last kind) error {
	for {
		k, body, fd, err := h.wire.receive()
		if err == nil {
			err = h.take(k, body, fd)
		}
		if err != nil || k == last {
			return err
		}
	}
}

// Close ends the inheritance. What the predecessor still has is lost after Serve,
// and its own again without.
func (h *Heritage) Close() {
	h.wire.close()
	if h.serves.Load() {
		h.heirs.Lost()
	} else {
		h.heirs.Close()
	}
}

// Serve makes sure that the predecessor leaves the field for good; the router's
// tables are published, and what it has to say is already passed on. On an error
// it may be in service again: this process must not be.
func (h *Heritage) Serve(ctx context.Context) error {
	err := h.wire.send(kindServing, nil, -1)
	if err == nil {
		err = h.within(ctx, func() error { return h.takeUntil(kindGone) })
	}
	if err != nil {
		h.Close()
		return fmt.Errorf("take over from the predecessor: %w", err)
	}
	h.serves.Store(true)
	return nil
}

// Run carries packets between the predecessor and the router, after Serve, until
// that has ended or the context has. The error says how many connections were
// lost.
func (h *Heritage) Run(ctx context.Context) error {
	defer h.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, h.wire.close)()
	go h.sendControl(ctx)
	var err error
	for err == nil && !h.ended {
		var k kind
		var body []byte
		var fd int
		if k, body, fd, err = h.wire.receive(); err == nil {
			err = h.take(k, body, fd)
		}
	}
	if n := h.Stack.Stats().Inherited; n > 0 && !h.ended {
		if errors.Is(err, io.EOF) {
			err = errors.New("it has ended")
		}
		return fmt.Errorf("predecessor with %d connections: %w", n, err)
	}
	return nil
}

// Adopted tells the predecessor that its listening sockets and UDP flows are in
// use here: after the first Apply of Sockets.
func (h *Heritage) Adopted() { h.tell(kindAdopted, nil) }

// tell queues a message. A predecessor that takes none for so long hangs: then
// its connections are lost.
func (h *Heritage) tell(k kind, body []byte) {
	select {
	case h.control <- message{k, body}:
	default:
		h.wire.close()
	}
}

func (h *Heritage) sendControl(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case m := <-h.control:
			_ = h.wire.send(m.kind, m.body, -1) // a broken wire is noticed by the reader
		}
	}
}

// predecessor is what Stack sees of it.
type predecessor struct{ h *Heritage }

// Packet passes a packet on. It is called by workers of the router.
func (p predecessor) Packet(buf []byte, inbound bool) bool {
	return p.h.wire.try(kindOf(kindPacket, inbound), buf) == nil
}

// Forget tells of a pod that is gone.
func (p predecessor) Forget(pod netip.Addr) { p.h.tell(kindForget, pod.AsSlice()) }

// take takes one message of the predecessor's. It owns fd.
func (h *Heritage) take(k kind, body []byte, fd int) error {
	if k != kindFlow && k != kindUDPFlow {
		closeFD(fd)
	}
	switch k {
	case kindBegan:
		return parseTuples(body, h.heirs.Began)
	case kindEnded:
		return parseTuples(body, func(t packet.Tuple, _ bool) { h.heirs.Ended(t) })
	case kindPacket, kindPacketInbound:
		if len(body) > packet.VNetLen && len(body) <= packet.MaxSize {
			h.heirs.Packet(body, k == kindPacketInbound)
		}
	case kindReturn, kindReturnInbound:
		h.heirs.Return(body, k == kindReturnInbound)
	case kindFlow:
		f, err := parseFlow(body)
		if err == nil && fd < 0 {
			err = fmt.Errorf("%w: a flow has no socket", errMessage)
		}
		if err != nil {
			closeFD(fd)
			return err
		}
		h.heirs.Flow(f, fd)
	case kindUDPFlow:
		f, err := parseUDPFlow(body)
		if err == nil && len(h.flows) >= maxUDPFlows {
			err = fmt.Errorf("%w: more than %d UDP flows", errMessage, maxUDPFlows)
		}
		if err != nil {
			closeFD(fd)
			return err
		}
		f.FD = fd
		h.flows = append(h.flows, f)
	case kindDone:
		h.ended = true
	case kindReady, kindGone:
	default: // a later version's
	}
	return nil
}
