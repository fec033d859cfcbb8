package overlay_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/overlay"
	"github.com/netctl/netctl/overlay/overlaytest"
	sockets "github.com/netctl/netctl/overlay/udp"
)

// meetingWire lets nobody send before so many send at once.
type meetingWire struct {
	*overlaytest.Wire

	want    atomic.Int32
	arrived atomic.Int32
	met     chan struct{}
}

func (w *meetingWire) Send(buf []byte, size int, to netip.AddrPort) error {
	if want := w.want.Load(); want > 0 {
		if w.arrived.Add(1) == want {
			close(w.met)
		}
		select {
		case <-w.met:
		case <-time.After(40 * time.Second):
			return errors.New("nobody else came")
		}
	}
	return w.Wire.Send(buf, size, to)
}

// Workers of several pods seal and send for one peer at the same time: none waits
// for another one.
func TestSendersOfOnePeerDoNotWait(t *testing.T) {
	t.Parallel()
	const senders = 4
	net := overlaytest.New(overlaytest.Config{})
	wire := &meetingWire{Wire: net.Wire(addr("192.0.2.1")), met: make(chan struct{})}
	a := start(t, net, 1, func(c *overlay.WireGuardConfig) { c.Wire = wire })
	b := start(t, net, 2, nil)
	mesh(t, a, b)
	a.send(t, udp(pod4(1), pod4(2), "session"))
	b.in.waitN(t, "packet", 1)
	settle(t, a, b)
	before := b.Counters().RxSegments
	wire.want.Store(senders)
	var wg sync.WaitGroup
	for i := range senders {
		wg.Go(func() { a.send(t, udp(pod4(1), pod4(2), fmt.Sprint("from ", i))) })
	}
	wg.Wait()
	wire.want.Store(0)
	until(t, "packets", func() bool { return b.Counters().RxSegments-before == senders })
	if n := a.Counters().Drops[overlay.DropSend]; n != 0 {
		t.Errorf("%d packets were not sent: somebody waited", n)
	}
}

// One peer's messages are opened by several goroutines, and come out in the order
// in which they were sent.
func TestOpenersKeepOrder(t *testing.T) {
	t.Parallel()
	const packets, size = 60, 36 * 1380
	stop, more := make(chan struct{}), make(chan []byte, packets*40)
	nodes := make([]*node, 2)
	for i := range nodes {
		nodes[i] = start(t, nil, byte(i+1), func(c *overlay.WireGuardConfig) {
			c.ListenPort, c.Openers = 0, 2
			if i == 1 {
				c.Sink = func(pkts [][]byte) {
					<-stop // so that several pieces wait in the socket
					for _, p := range pkts {
						more <- append([]byte(nil), parsed(t, p).Data()...)
					}
				}
			}
		})
		port, err := nodes[i].Port()
		if err != nil {
			t.Fatal(err)
		}
		nodes[i].at = netip.AddrPortFrom(addr("127.0.0.1"), port)
	}
	mesh(t, nodes...)
	a, b := nodes[0], nodes[1]
	settle(t, a, b)
	data := make([]byte, size)
	for i := range packets {
		for at := 0; at < size; at += 4 {
			binary.BigEndian.PutUint32(data[at:], uint32(i*size+at))
		}
		a.send(t, tcpSuper(pod4(1), pod4(2), uint32(i*size), data, 1380))
	}
	close(stop)
	for next := uint32(0); next < packets*size; {
		select {
		case got := <-more:
			for at := 0; at+4 <= len(got); at += 4 {
				if n := binary.BigEndian.Uint32(got[at:]); n != next {
					t.Fatalf("byte %d comes where %d should", n, next)
				}
				next += 4
			}
		case <-time.After(40 * time.Second):
			t.Fatalf("nothing after byte %d", next)
		}
	}
	if b.Counters().RxShared == 0 {
		t.Error("nobody helped the reader")
	}
}

// What a Batch is given leaves in as few pieces as possible, in order, and with
// Flush at the latest.
func TestBatchSharesPieces(t *testing.T) {
	t.Parallel()
	synctest.Test(t, batchSharesPieces)
}

func batchSharesPieces(t *testing.T) {
	net := overlaytest.New(overlaytest.Config{})
	silent := func(c *overlay.WireGuardConfig) { c.Logger = nil }
	a, b, c := start(t, net, 1, silent), start(t, net, 2, silent), start(t, net, 3, silent)
	mesh(t, a, b, c)
	for _, to := range []*node{b, c} {
		a.send(t, udp(pod4(1), pod4(to.cidr[0].Addr().As4()[2]), "session"))
		to.in.waitN(t, "packet", 1)
	}
	time.Sleep(20 * time.Second) // handshakes and what follows them
	for _, to := range []*node{b, c} {
		a.send(t, udp(pod4(1), pod4(to.cidr[0].Addr().As4()[2]), "hello"))
		to.in.waitN(t, "packet", 1)
	}
	time.Sleep(time.Second) // the probes that this begins; the next are seconds away
	text := func(i int) string { return fmt.Sprintf("packet %03d", i) }
	for _, tt := range []struct {
		name   string
		send   func(s overlay.Batch) error
		pieces uint64
		all    int // of b
	}{
		{"one", func(s overlay.Batch) error { return s.Send(udp(pod4(1), pod4(2), text(0))) }, 1, 1},
		{"equal ones", func(s overlay.Batch) (err error) {
			for i := range 10 {
				err = errors.Join(err, s.Send(udp(pod4(1), pod4(2), text(i))))
			}
			return err
		}, 1, 10},
		{"more than the kernel cuts", func(s overlay.Batch) (err error) {
			for i := range sockets.MaxSegments + 1 {
				err = errors.Join(err, s.Send(udp(pod4(1), pod4(2), text(i))))
			}
			return err
		}, 2, sockets.MaxSegments + 1},
		{"a shorter one ends a piece", func(s overlay.Batch) (err error) {
			for i, size := range []int{500, 500, 100, 500} {
				err = errors.Join(err, s.Send(udp(pod4(1), pod4(2), text(i)+string(make([]byte, size)))))
			}
			return err
		}, 2, 4},
		{"a longer one begins one", func(s overlay.Batch) (err error) {
			for i, size := range []int{100, 500} {
				err = errors.Join(err, s.Send(udp(pod4(1), pod4(2), text(i)+string(make([]byte, size)))))
			}
			return err
		}, 2, 2},
		{"another peer's", func(s overlay.Batch) error {
			return errors.Join(s.Send(udp(pod4(1), pod4(2), text(0))), s.Send(udp(pod4(1), pod4(3), text(0))), s.Send(udp(pod4(1), pod4(2), text(1))))
		}, 3, 2},
	} {
		before := a.Counters()
		s := a.NewBatch()
		if err := tt.send(s); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		s.Flush()
		s.Flush() // nothing is left
		after := a.Counters()
		if n := after.TxBatches - before.TxBatches; n != tt.pieces {
			t.Errorf("%s: %d pieces, want %d", tt.name, n, tt.pieces)
		}
		seen := 0
		b.in.wait(t, tt.name, func(pkts [][]byte) bool {
			seen = 0
			for _, p := range pkts {
				var cut packet.Segmenter
				cut.Reset(p, 0)
				for one := make([]byte, 2000); ; seen++ {
					n, ok := cut.Next(one)
					if !ok {
						break
					}
					if got := string(one[28 : 28+len(text(0))]); n > 28 && got != text(seen) {
						t.Errorf("%s: %q comes where %q should", tt.name, got, text(seen))
					}
				}
			}
			return seen >= tt.all
		})
	}
	// What was not flushed when the engine ended is counted.
	s := a.NewBatch()
	if err := s.Send(udp(pod4(1), pod4(2), "late")); err != nil {
		t.Fatal(err)
	}
	if err := a.Stop(); err != nil {
		t.Fatal(err)
	}
	s.Flush()
	if n := a.Counters().Drops[overlay.DropSend]; n != 1 {
		t.Errorf("%d packets count as lost, want 1", n)
	}
	if err := s.Send(udp(pod4(1), pod4(2), "later")); !errors.Is(err, overlay.ErrClosed) {
		t.Errorf("send after the end: %v", err)
	}
	s.Flush()
	for _, n := range []*node{a, b, c} {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}
}
