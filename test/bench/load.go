package main

import (
	"context"
	"errors"
	"time"

	"github.com/netctl/netctl/test/bench/ends"
)

// load is what goes on while something else is measured.
type load struct {
	w       *way
	request ends.Request // For is how long it goes on before, and after
}

// loadLead is how long a load runs before it is measured what it does to others.
const loadLead = 200 * time.Millisecond

// start starts a load that lasts as long as a measurement, and returns what waits for
// its end.
func (l *load) start(ctx context.Context, during time.Duration) (finish func() error) {
	done := make(chan error, 1)
	go func() {
		r := l.request
		r.For = during + 2*loadLead
		_, err := l.w.from.Send(ctx, r)
		done <- err
	}()
	wait(ctx, loadLead)
	return func() error { return <-done }
}

// underLoad measures requests while a stream takes all that it gets of the same way.
func underLoad(ctx context.Context, w *way) ([]value, error) {
	loaded := *w
	loaded.load = &load{w, ends.Request{Kind: ends.Stream, To: w.at(ends.SinkPort)}}
	return beside(ctx, &loaded)
}

// beside measures a request every millisecond while a way's load goes on, if it has
// one.
func beside(ctx context.Context, w *way) ([]value, error) {
	finish := func() error { return nil }
	if w.load != nil {
		finish = w.load.start(ctx, bulkFor)
	}
	res, err := w.from.Send(ctx, ends.Request{Kind: ends.Ask, To: w.at(ends.EchoPort), For: bulkFor, Pace: time.Millisecond})
	if err = errors.Join(err, finish()); err != nil {
		return nil, err
	}
	return []value{
		{"-p50", "ms", float64(res.P50) / 1e6},
		{"-p99", "ms", float64(res.P99) / 1e6},
	}, nil
}
