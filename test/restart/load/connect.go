package load

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"
)

const (
	connectPatience = 15 * time.Second
	slow            = time.Second
)

// Connect opens new connections at a steady rate, all ways alike, hears who
// answers and closes them.
type Connect struct {
	name   string
	ways   []Way
	loyal  bool // it is to be the same each time
	every  time.Duration
	stop   chan struct{}
	ticker sync.WaitGroup
	open   sync.WaitGroup

	mu      sync.Mutex
	counts  Counts
	pending map[int]time.Time // since when those are being opened that are
	with    map[string]string // by way: who has answered first
}

// StartConnect begins to open so many connections a second. loyal: each way is to lead
// to the same server every time.
func StartConnect(name string, ways []Way, rate int, loyal bool) *Connect {
	c := &Connect{name: name, loyal: loyal, with: map[string]string{}, ways: ways, every: time.Second / time.Duration(rate), stop: make(chan struct{}), pending: map[int]time.Time{}}
	c.ticker.Go(c.run)
	return c
}

func (c *Connect) run() {
	ticker := time.NewTicker(c.every)
	defer ticker.Stop()
	for n := 0; ; n++ {
		select {
		case <-c.stop:
			return
		case <-ticker.C:
			w := c.ways[n%len(c.ways)]
			c.open.Go(func() { c.once(n, w) })
		}
	}
}

func (c *Connect) once(n int, w Way) {
	begin := time.Now()
	c.mu.Lock()
	c.pending[n] = begin
	c.mu.Unlock()
	talk, err := converse(w.From, netip.AddrPortFrom(w.To, TalkPort), connectPatience)
	took := time.Since(begin)
	if err == nil {
		_ = talk.close() // all was heard
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, n)
	c.counts.Sent++
	if err != nil {
		c.counts.fail(fmt.Errorf("%s: %w", w, err))
		return
	}
	if took > slow {
		c.counts.Slow++
	}
	first := cmp.Or(c.with[w.Name], talk.with)
	if c.with[w.Name] = first; c.loyal && talk.with != first {
		c.counts.Wrong++
	}
}

// Name implements Load.
func (c *Connect) Name() string { return c.name }

// Cut implements Load.
func (c *Connect) Cut() Counts {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.counts
	c.counts = Counts{}
	return out
}

// Flows implements Load. Which way was answered is not looked at: that is what the
// other loads are there for.
func (c *Connect) Flows(time.Time) error { return nil }

// Settle waits for the connections that are being opened. New ones go on.
func (c *Connect) Settle(ctx context.Context) {
	for now := time.Now(); c.older(now) && ctx.Err() == nil; wait(ctx, 10*time.Millisecond) {
	}
}

// older reports whether a connection is still being opened since before a time.
func (c *Connect) older(than time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, begin := range c.pending {
		if begin.Before(than) {
			return true
		}
	}
	return false
}

// Close implements Load.
func (c *Connect) Close() error {
	close(c.stop)
	c.ticker.Wait()
	c.open.Wait()
	return nil
}
