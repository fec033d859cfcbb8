package load

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"
)

const talkInterval = 100 * time.Millisecond

// Line is where talks go on.
type Line struct {
	Name string
	From *Place
	To   netip.AddrPort
}

func (l Line) String() string { return fmt.Sprintf("%s (%s to %s)", l.Name, l.From.Name, l.To) }

// Talk are connections on which something is said and answered ten times a second.
// One that breaks is counted and opened anew.
type Talk struct {
	name  string
	talks []*talk
	work  sync.WaitGroup
	stop  chan struct{}
}

// talk is one connection, and those that followed it.
type talk struct {
	line     Line
	patience time.Duration

	mu     sync.Mutex
	conn   *conversation
	counts Counts
	last   time.Time // of an answer
	spoke  time.Time // when what was answered last had been said
}

// StartTalk begins so many talks on each line. One whose answer takes longer than
// patience is broken.
func StartTalk(name string, lines []Line, each int, patience time.Duration) *Talk {
	t := &Talk{name: name, stop: make(chan struct{})}
	for _, l := range lines {
		for range each {
			one := &talk{line: l, patience: patience, last: time.Now()}
			t.talks = append(t.talks, one)
			t.work.Go(func() { one.run(t.stop) })
		}
	}
	return t
}

func (t *talk) run(stop <-chan struct{}) {
	ticker := time.NewTicker(talkInterval)
	defer ticker.Stop()
	defer t.end()
	for {
		select {
		case <-stop:
			return
		case <-ticker.C:
		}
		begin := time.Now()
		t.note(begin, t.once())
	}
}

// once says something, on a new connection when there is none.
func (t *talk) once() error {
	t.mu.Lock()
	conn := t.conn
	t.mu.Unlock()
	if conn != nil {
		return conn.speak(t.patience)
	}
	conn, err := converse(t.line.From, t.line.To, min(t.patience, openPatience))
	if err != nil {
		return errNotOpen
	}
	t.mu.Lock()
	t.conn = conn
	t.mu.Unlock()
	return nil
}

// errNotOpen is returned when there was nothing that could break.
var errNotOpen = errors.New("cannot be opened")

func (t *talk) note(begin time.Time, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == nil {
		now := time.Now()
		t.counts.Gap, t.last, t.spoke = max(t.counts.Gap, now.Sub(t.last)), now, begin
		return
	}
	if errors.Is(err, errNotOpen) {
		return // the silence tells
	}
	if errors.Is(err, net.ErrClosed) {
		t.conn = nil // by Renew or Close
		return
	}
	if errors.Is(err, errWrong) {
		t.counts.Wrong++
	} else {
		t.counts.fail(err)
	}
	t.counts.Lost++
	_ = t.conn.close() // broken
	t.conn = nil
}

// Name implements Load.
func (t *Talk) Name() string { return t.name }

// Cut implements Load. What breaks counts as Lost, and as how it broke.
func (t *Talk) Cut() Counts {
	var c Counts
	for _, one := range t.talks {
		one.mu.Lock()
		c.Add(one.counts)
		c.Gap = max(c.Gap, time.Since(one.last))
		one.counts = Counts{}
		one.mu.Unlock()
	}
	return c
}

// Flows implements Load.
func (t *Talk) Flows(since time.Time) error {
	for _, one := range t.talks {
		one.mu.Lock()
		spoke := one.spoke
		one.mu.Unlock()
		if !spoke.After(since) {
			return fmt.Errorf("nobody answers: %s", one.line)
		}
	}
	return nil
}

// Settle implements Load: a talk that is broken is known to be.
func (t *Talk) Settle(ctx context.Context) { wait(ctx, time.Second) }

// Renew ends all connections, each of which is followed by a new one.
func (t *Talk) Renew() {
	for _, one := range t.talks {
		one.end()
	}
}

// Close implements Load.
func (t *Talk) Close() error {
	close(t.stop)
	t.Renew()
	t.work.Wait()
	return nil
}

// end ends the connection, if there is one.
func (t *talk) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.conn != nil {
		_ = t.conn.close() // it may have been ended already
	}
}
