package overlay

import (
	"os"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/netctl/netctl/internal/packet"
)

// fullBatch is how many segments are collected before a batch goes: as many as
// the kernel takes in one send, so that a super-packet of 60 KiB is not cut in
// two by the end of such a send, and comes out whole at the other end.
const fullBatch = 64

// port is the TUN device that WireGuard believes it has: Read gives it the
// router's packets, cut to tunnel size, and Write takes what it decrypted.
// Functions are in the order in which packets meet them.
type port struct {
	mtu     int
	ring    *ring
	windows *windows
	opening *opening
	count   *counters
	sink    Sink
	probe   func(*window) // asks the peer for a handshake; must not block
	events  chan tun.Event
	closed  chan struct{}

	coalescers sync.Pool // of *packet.Coalescer

	// The packet that is being cut: the head of the ring. Owned by Read.
	cut     packet.Segmenter
	cutting bool
	to      *window
	left    int         // segments of it not yet made
	timer   *time.Timer // of Read's waits
}

var _ tun.Device = (*port)(nil)

// Read fills bufs with the next segments; WireGuard's one reader calls it. A
// super-packet stays in one batch when it fits into one at all, because a
// batch is what WireGuard seals and sends in one go.
func (p *port) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for {
		n, wait := p.fill(bufs, sizes, offset)
		if n > 0 {
			return n, nil
		}
		if wait {
			if !p.waitWindow() {
				return 0, os.ErrClosed
			}
			continue
		}
		if !p.ring.wait() {
			return 0, os.ErrClosed
		}
	}
}

// fill makes as many segments as there are and fit. wait: there are packets,
// but they must wait until others have left.
func (p *port) fill(bufs [][]byte, sizes []int, offset int) (n int, wait bool) {
	bytes := 0
	for n < len(bufs) {
		if !p.cutting {
			step := p.next(min(len(bufs), fullBatch)-n, n == 0)
			if step == stepSkip {
				continue
			}
			if step != stepCut {
				wait = step == stepWait
				break
			}
		}
		size, ok := p.cut.Next(bufs[n][offset:])
		if !ok {
			p.finish()
			continue
		}
		p.left--
		sizes[n] = size
		bytes += size
		n++
	}
	if p.cutting && p.left == 0 {
		p.finish()
	}
	p.count.txSegments.Add(uint64(n))
	p.count.txBytes.Add(uint64(bytes))
	return n, wait
}

type step uint8

const (
	stepCut   step = iota + 1 // p.cut is ready
	stepSkip                  // one packet was dropped, look again
	stepWait                  // packets are there, but must wait
	stepEmpty                 // none, or the next needs a batch of its own
)

// next starts on the oldest packet of the ring, if it may go and fits into
// room, or first says that the batch is empty.
func (p *port) next(room int, first bool) step {
	buf, to := p.ring.peek()
	if buf == nil {
		return stepEmpty
	}
	if fault := p.cut.Reset(buf, p.mtu); fault != packet.FaultNone {
		return p.skip(DropMalformed)
	}
	if p.cut.Size() > p.mtu {
		return p.skip(DropTooBig)
	}
	segments := p.cut.Count()
	if !first && segments > room {
		return stepEmpty
	}
	switch p.windows.admit(to, segments, time.Now()) {
	case admitNow:
		p.cutting, p.to, p.left = true, to, segments
		return stepCut
	case admitWait:
		return stepWait
	case admitProbe:
		p.probe(to)
	case admitDrop:
	}
	return p.skip(DropNoSession)
}

func (p *port) skip(why Drop) step {
	p.count.drop(why)
	p.ring.pop()
	return stepSkip
}

// finish ends the packet that was being cut.
func (p *port) finish() {
	if p.left > 0 { // promised by Count, not given by Next
		p.windows.cancel(p.to, p.left)
	}
	p.cutting, p.to, p.left = false, nil, 0
	p.ring.pop()
}

// waitWindow waits until packets have left WireGuard; false: closed.
func (p *port) waitWindow() bool {
	p.timer.Reset(stuckAfter)
	select {
	case <-p.windows.wake:
	case <-p.timer.C:
	case <-p.closed:
		return false
	}
	return true
}

// Write takes decrypted packets of one peer, merges what belongs together and
// gives all to the sink. It is called from one goroutine per peer.
func (p *port) Write(bufs [][]byte, offset int) (int, error) {
	p.opening.done(len(bufs))
	c, ok := p.coalescers.Get().(*packet.Coalescer)
	if !ok {
		c = new(packet.Coalescer)
	}
	defer p.coalescers.Put(c)
	bytes := 0
	for _, buf := range bufs {
		ip := buf[offset:]
		bytes += len(ip)
		c.Add(ip)
	}
	out := c.Flush()
	p.count.rxSegments.Add(uint64(len(bufs)))
	p.count.rxBytes.Add(uint64(bytes))
	p.count.rxPackets.Add(uint64(len(out)))
	if len(out) > 0 {
		p.sink(out)
	}
	return len(bufs), nil
}

// Close ends Read. WireGuard calls it once.
func (p *port) Close() error {
	close(p.closed)
	close(p.events)
	p.ring.close()
	return nil
}

// File returns nil: there is no device.
func (*port) File() *os.File { return nil }

// MTU returns the tunnel's MTU.
func (p *port) MTU() (int, error) { return p.mtu, nil }

// Name returns a name for messages.
func (*port) Name() (string, error) { return "overlay", nil }

// Events returns a channel that carries nothing and is closed by Close.
func (p *port) Events() <-chan tun.Event { return p.events }

// BatchSize returns how many packets WireGuard moves at once: enough for the
// 47 segments of a whole super-packet, and what its standard bind wants.
func (*port) BatchSize() int { return conn.IdealBatchSize }
