package overlay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// The message types of WireGuard: a little-endian 32-bit number at the start
// of each datagram. The values 1 to 4 are all there are.
const (
	messageInitiation  = 1
	messageResponse    = 2
	messageTransport   = 4
	keepaliveSize      = 32 // a transport message without content
	endpointSeparator  = "|"
	messageTypeAndZero = 4 // length of the type field
)

// bind wraps the bind that moves the datagrams. It tells the windows what has
// left and what came in, counts, and is the last door: whatever is not a
// WireGuard message does not pass it, whoever sent it.
type bind struct {
	inner   conn.Bind
	windows *windows
	opening *opening
	ties    *ties
	count   *counters

	mu     sync.Mutex
	peers  map[string]*window // by the key's hex; guarded by mu
	closed chan struct{}      // of the current Open; guarded by mu
}

// endpoint is a configured endpoint, which knows its peer. Endpoints of
// received datagrams are the inner bind's own.
type endpoint struct {
	conn.Endpoint
	to *window
}

var _ conn.Bind = (*bind)(nil)

// Open opens the inner bind.
func (b *bind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	fns, port, err := b.inner.Open(port)
	if err != nil {
		return nil, 0, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = make(chan struct{})
	out := make([]conn.ReceiveFunc, len(fns))
	for i, fn := range fns {
		out[i] = b.receive(fn, b.closed)
	}
	return out, port, nil
}

// receive returns fn, held back while too many datagrams are being decrypted.
func (b *bind) receive(fn conn.ReceiveFunc, closed <-chan struct{}) conn.ReceiveFunc {
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	return func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		if !b.opening.wait(timer, closed) {
			return 0, net.ErrClosed
		}
		n, err := fn(bufs, sizes, eps)
		data := 0
		for i := range n {
			switch kind, _ := messageType(bufs[i][:sizes[i]]); kind {
			case messageTransport:
				if sizes[i] > keepaliveSize {
					data++
				}
			case messageInitiation:
				if b.settleTie(eps[i]) {
					sizes[i] = 0 // ignored
				}
				eps[i] = asker{Endpoint: eps[i], ties: b.ties}
			case messageResponse:
				b.ties.answered(eps[i])
			}
		}
		b.opening.count.Add(int64(data))
		b.count.rxDatagrams.Add(uint64(max(n, 0)))
		b.count.rxBatches.Add(1)
		return n, err
	}
}

// settleTie reports whether an initiation from there must be ignored, and
// repeats ours instead.
func (b *bind) settleTie(from conn.Endpoint) bool {
	again, to, refuse := b.ties.refuse(from, time.Now())
	if refuse {
		b.repeat(again, to)
	}
	return refuse
}

// repeat sends a message that WireGuard has sent, or believes it has. If that
// fails, WireGuard's own repetition follows.
func (b *bind) repeat(message []byte, to conn.Endpoint) {
	_ = b.transmit([][]byte{message}, to)
}

// Send passes WireGuard messages to ep and refuses a batch that holds
// anything else.
func (b *bind) Send(bufs [][]byte, ep conn.Endpoint) error {
	data, keepalives := 0, 0
	for _, buf := range bufs {
		kind, ok := messageType(buf)
		if !ok {
			b.count.drop(DropForeign)
			return errors.New("not a WireGuard message")
		}
		switch {
		case kind != messageTransport:
		case len(buf) > keepaliveSize:
			data++
		default:
			keepalives++
		}
	}
	var to *window // nil: an answer to somebody unknown
	switch e := ep.(type) {
	case *endpoint:
		ep, to = e.Endpoint, e.to
	case asker:
		ep = e.Endpoint
	}
	if len(bufs) == 1 { // handshake messages travel alone
		switch bufs[0][0] {
		case messageInitiation:
			if !b.ties.begin(bufs[0], ep, time.Now()) {
				return nil
			}
		case messageResponse:
			b.ties.respond(ep)
		}
	}
	err := b.transmit(bufs, ep)
	if to != nil && keepalives > 0 {
		b.windows.settled(to, time.Now())
	} else if to != nil && data > 0 {
		b.windows.sent(to, data, time.Now())
	}
	return err
}

func (b *bind) transmit(bufs [][]byte, to conn.Endpoint) error {
	err := b.inner.Send(bufs, to)
	if gso, ok := errors.AsType[conn.ErrUDPGSODisabled](err); ok {
		b.count.gsoDisabled.Add(1)
		err = gso.RetryErr
	}
	if err != nil {
		b.count.drop(DropSend)
		return err
	}
	b.count.txDatagrams.Add(uint64(len(bufs)))
	b.count.txBatches.Add(1)
	return nil
}

// messageType returns the type of a WireGuard message.
func messageType(b []byte) (kind uint32, ok bool) {
	if len(b) < messageTypeAndZero {
		return 0, false
	}
	kind = binary.LittleEndian.Uint32(b)
	return kind, kind >= messageInitiation && kind <= messageTransport
}

// endpointText is how a peer's endpoint is written for ParseEndpoint: with
// the key of the peer it belongs to.
func endpointText(p Peer) string {
	return p.Endpoint.String() + endpointSeparator + p.PublicKey.hex()
}

// ParseEndpoint reads what endpointText wrote.
func (b *bind) ParseEndpoint(s string) (conn.Endpoint, error) {
	addr, key, _ := strings.Cut(s, endpointSeparator)
	inner, err := b.inner.ParseEndpoint(addr)
	if err != nil {
		return nil, err
	}
	w := b.window(key)
	if w == nil {
		return nil, fmt.Errorf("endpoint %s of an unknown peer", addr)
	}
	return &endpoint{Endpoint: inner, to: w}, nil
}

func (b *bind) window(key string) *window {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.peers[key]
}

// setPeers says which windows ParseEndpoint finds.
func (b *bind) setPeers(peers map[string]*window) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.peers = peers
}

// Close ends the receive functions.
func (b *bind) Close() error {
	b.mu.Lock()
	if b.closed != nil {
		close(b.closed)
		b.closed = nil
	}
	b.mu.Unlock()
	return b.inner.Close()
}

// SetMark marks the inner bind's datagrams.
func (b *bind) SetMark(mark uint32) error { return b.inner.SetMark(mark) }

// BatchSize returns the inner bind's.
func (b *bind) BatchSize() int { return b.inner.BatchSize() }
