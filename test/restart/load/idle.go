package load

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"
)

const (
	// openPatience is how long an idle connection may take to open, before anything
	// has happened.
	openPatience = 30 * time.Second
	// idlePatience is how long the other end of an idle connection has to answer: time
	// for several retransmissions.
	idlePatience = 20 * time.Second
	idleAtOnce   = 20
)

// Idle are connections that nothing is said on, until Settle speaks on each.
type Idle struct {
	ways   []Way
	open   []*conversation // by number; a connection's way is that number's
	counts Counts
}

// OpenIdle opens so many connections, all ways alike, and waits until they are open.
func OpenIdle(ctx context.Context, ways []Way, n int) (*Idle, error) {
	i := &Idle{ways: ways, open: make([]*conversation, n)}
	if err := i.reopen(ctx); err != nil {
		return nil, errors.Join(err, i.Close())
	}
	return i, nil
}

// reopen opens what is not open.
func (i *Idle) reopen(ctx context.Context) error {
	errs := i.each(func(n int) error {
		if i.open[n] != nil || ctx.Err() != nil {
			return ctx.Err()
		}
		w := i.ways[n%len(i.ways)]
		c, err := converse(w.From, netip.AddrPortFrom(w.To, TalkPort), openPatience)
		if err != nil {
			return fmt.Errorf("open idle connection %d, %s: %w", n, w, err)
		}
		i.open[n] = c
		return nil
	})
	return errors.Join(first(errs))
}

// each does something for every number, many at once, and returns the errors.
func (i *Idle) each(do func(n int) error) []error {
	errs := make([]error, len(i.open))
	turns := make(chan struct{}, idleAtOnce)
	var work sync.WaitGroup
	for n := range i.open {
		turns <- struct{}{}
		work.Go(func() {
			errs[n] = do(n)
			<-turns
		})
	}
	work.Wait()
	return errs
}

func first(errs []error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// Name implements Load.
func (i *Idle) Name() string { return "idle" }

// Cut implements Load.
func (i *Idle) Cut() Counts {
	c := i.counts
	i.counts = Counts{}
	return c
}

// Flows implements Load: nothing does.
func (i *Idle) Flows(time.Time) error { return nil }

// Settle speaks on every connection, and opens new ones for those that are lost.
func (i *Idle) Settle(ctx context.Context) {
	errs := i.each(func(n int) error {
		if i.open[n] == nil {
			return nil // could not be opened again after the last time
		}
		err := i.open[n].speak(idlePatience)
		if err != nil {
			_ = i.open[n].close() // it is lost
			i.open[n] = nil
		}
		return err
	})
	for _, err := range errs {
		i.counts.Sent++
		switch {
		case err == nil:
		case errors.Is(err, errWrong):
			i.counts.Wrong++
		default:
			i.counts.Lost++
			i.counts.fail(err)
		}
	}
	if i.reopen(ctx) != nil {
		i.counts.Failed++
	}
}

// Close implements Load.
func (i *Idle) Close() error {
	var errs []error
	for _, c := range i.open {
		if c != nil {
			errs = append(errs, c.close())
		}
	}
	return errors.Join(errs...)
}
