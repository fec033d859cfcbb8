package load

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	bulkTick     = 10 * time.Millisecond
	patternSize  = 64 << 10
	bulkPatience = 15 * time.Second
)

// Bulk are streams of bytes, one on each way, whose receivers know what has to come.
// They are paced, so that what else goes on is measured and not the processor's
// speed.
type Bulk struct {
	ways      []Way
	perTick   int
	pattern   []byte // sent again and again
	listeners []net.Listener
	stop      chan struct{}
	work      sync.WaitGroup

	mu      sync.Mutex
	streams []bulkStream // by way
	open    map[net.Conn]bool
}

// bulkStream is what one way's receiver has seen.
type bulkStream struct {
	counts Counts
	last   time.Time
}

// StartBulk begins a stream of so many megabits a second on every way, to servers
// that it starts at places.
func StartBulk(ctx context.Context, ways []Way, places []*Place, mbits int) (*Bulk, error) {
	b := &Bulk{
		ways: ways, perTick: mbits * 1e6 / 8 * int(bulkTick) / int(time.Second), pattern: make([]byte, patternSize),
		stop: make(chan struct{}), streams: make([]bulkStream, len(ways)), open: map[net.Conn]bool{},
	}
	for i := range b.pattern {
		b.pattern[i] = byte(rand.Uint32())
	}
	for _, p := range places {
		l, err := p.listen(ctx, BulkPort)
		if err != nil {
			return nil, errors.Join(err, b.Close())
		}
		b.listeners = append(b.listeners, l)
		b.work.Go(func() { accept(ctx, l, b.receive) })
	}
	for i := range ways {
		b.work.Go(func() { b.run(i) })
	}
	return b, nil
}

// run sends on one way until the end, on a new connection when one breaks.
func (b *Bulk) run(i int) {
	for {
		err := b.once(i)
		select {
		case <-b.stop:
			return
		default:
		}
		if !errors.Is(err, errNotOpen) { // then there is nothing that breaks, and the silence tells
			b.count(i, func(s *bulkStream) { s.counts.Lost++; s.counts.fail(err) })
		}
	}
}

// once sends on one connection.
func (b *Bulk) once(i int) error {
	w := b.ways[i]
	conn, err := w.From.dial(netip.AddrPortFrom(w.To, BulkPort), bulkPatience)
	if err != nil {
		select { // and so it is tried again at once, but not at every moment
		case <-b.stop:
		case <-time.After(talkInterval):
		}
		return fmt.Errorf("%w: %w", errNotOpen, err)
	}
	defer conn.Close()
	if !b.track(conn, true) {
		return nil
	}
	defer b.track(conn, false)
	var head [4]byte
	binary.BigEndian.PutUint32(head[:], uint32(i))
	if _, err := conn.Write(head[:]); err != nil {
		return err
	}
	ticker := time.NewTicker(bulkTick)
	defer ticker.Stop()
	for at := 0; ; {
		select {
		case <-b.stop:
			return nil
		case <-ticker.C:
		}
		for left := b.perTick; left > 0; {
			n, err := conn.Write(b.pattern[at:min(at+left, patternSize)])
			if err != nil {
				return err
			}
			left -= n
			at = (at + n) % patternSize
		}
	}
}

// track remembers a connection, so that the end can end it. False: it is the end.
func (b *Bulk) track(c net.Conn, is bool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !is {
		delete(b.open, c)
		return true
	}
	select {
	case <-b.stop:
		return false
	default:
		b.open[c] = true
		return true
	}
}

// receive takes a stream and compares it with what it has to be.
func (b *Bulk) receive(c net.Conn) {
	if !b.track(c, true) {
		return
	}
	defer b.track(c, false)
	var head [4]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return
	}
	i := int(binary.BigEndian.Uint32(head[:]))
	if i >= len(b.ways) {
		return
	}
	buf := make([]byte, patternSize)
	for at := 0; ; {
		n, err := c.Read(buf[:patternSize-at])
		right := bytes.Equal(buf[:n], b.pattern[at:at+n])
		b.count(i, func(s *bulkStream) {
			now := time.Now()
			if !s.last.IsZero() && n > 0 {
				s.counts.Gap = max(s.counts.Gap, now.Sub(s.last))
			}
			if n > 0 {
				s.last = now
			}
			s.counts.Sent += n
			if !right {
				s.counts.Wrong++
			}
		})
		if err != nil || !right {
			return // its sender counts what breaks
		}
		at = (at + n) % patternSize
	}
}

func (b *Bulk) count(i int, do func(*bulkStream)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	do(&b.streams[i])
}

// Name implements Load.
func (b *Bulk) Name() string { return "bulk" }

// Cut implements Load.
func (b *Bulk) Cut() Counts {
	b.mu.Lock()
	defer b.mu.Unlock()
	var c Counts
	for i := range b.streams {
		s := &b.streams[i]
		if !s.last.IsZero() {
			s.counts.Gap = max(s.counts.Gap, time.Since(s.last))
		}
		c.Add(s.counts)
		s.counts = Counts{}
	}
	return c
}

// Flows implements Load.
func (b *Bulk) Flows(since time.Time) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.streams {
		if !b.streams[i].last.After(since) {
			return fmt.Errorf("no bytes come through: %s", b.ways[i])
		}
	}
	return nil
}

// Settle implements Load.
func (b *Bulk) Settle(ctx context.Context) { wait(ctx, time.Second) }

// Close implements Load.
func (b *Bulk) Close() error {
	close(b.stop)
	var errs []error
	for _, l := range b.listeners {
		errs = append(errs, l.Close())
	}
	b.mu.Lock()
	for c := range b.open {
		_ = c.SetDeadline(time.Now()) // whoever has it closes it
	}
	b.mu.Unlock()
	b.work.Wait()
	return errors.Join(errs...)
}
