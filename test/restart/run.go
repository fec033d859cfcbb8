package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/netctl/netctl/test/restart/agents"
	"github.com/netctl/netctl/test/restart/load"
)

// driver makes a cluster, and what can happen to it.
type driver interface {
	scene() *scene
	kinds() []kind
	// loads are its own, beside those of the scene.
	loads() []load.Load
	weigh(ctx context.Context) (agents.Weight, error)
	close() error
}

// kind is one kind of disturbance.
type kind struct {
	name        string
	full, quick int // how often it is tried
	// do returns when an agent serves again. It is called with 0, 1, 2, ….
	do func(ctx context.Context, i int) error
	// long: without traffic for longer than the patience of a strict probe.
	long bool
}

// The times of a run.
const (
	// comeBack is how long traffic may take to be seen again before nobody waits for
	// it any more.
	comeBack = 2 * time.Minute
	// lull is how long everything flows before the next disturbance.
	lull = 500 * time.Millisecond
	// warmUp is how long the load runs before anything counts.
	warmUp = 5 * time.Second
	// lookAgain is how often it is looked whether it does.
	lookAgain = 5 * time.Millisecond
)

// run runs the loads and disturbs them.
func run(ctx context.Context, o options, d driver) (r *report, err error) {
	intro, err := load.Introduce(append(d.scene().servers, d.scene().outside))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, intro.Close()) }()
	fmt.Fprintln(o.log, "restart: the load begins")
	loads, err := d.scene().start(ctx, o)
	defer func() { // also those that were started before one failed
		for _, l := range loads {
			err = errors.Join(err, l.Close())
		}
	}()
	if err != nil {
		return nil, err
	}
	loads = append(loads, d.loads()...)
	r = &report{options: o}
	err = r.disturb(ctx, d, loads)
	r.print(o.out)
	r.examples(o.log)
	return r, err
}

// disturb tries every kind that is chosen.
func (r *report) disturb(ctx context.Context, d driver, loads []load.Load) (err error) {
	if err := flows(ctx, loads, time.Now()); err != nil {
		return fmt.Errorf("before anything has happened: %w", err)
	}
	wait(ctx, warmUp)
	if r.before, err = d.weigh(ctx); err != nil {
		return err
	}
	for _, k := range d.kinds() {
		if !r.options.kinds.MatchString(k.name) {
			continue
		}
		times := k.full
		switch {
		case r.options.times > 0:
			times = r.options.times
		case r.options.quick:
			times = k.quick
		}
		fmt.Fprintf(r.options.log, "restart: %s, %d times\n", k.name, times)
		res := &result{kind: k.name, long: k.long, loads: map[string]*seen{}}
		r.results = append(r.results, res)
		if err := res.try(ctx, k, times, loads, r.options.every); err != nil {
			return fmt.Errorf("%s: %w", k.name, err)
		}
	}
	// Agents that gave way stay for the connections that end in them.
	for _, l := range loads {
		if t, ok := l.(*load.Talk); ok {
			t.Renew()
		}
	}
	if err := flows(ctx, loads, time.Now()); err != nil {
		return fmt.Errorf("after all: %w", err)
	}
	var last error
	for end := time.Now().Add(leaveWait); ; wait(ctx, time.Second) {
		r.after, last = d.weigh(ctx)
		if last == nil && len(r.before.Growth(&r.after)) == 0 || time.Now().After(end) || ctx.Err() != nil {
			return last
		}
	}
}

// leaveWait is how long an agent may take to give back what a restart left.
const leaveWait = 90 * time.Second

// try does a thing so many times and notes what each load has seen.
func (res *result) try(ctx context.Context, k kind, times int, loads []load.Load, every time.Duration) error {
	// To speak on all idle connections is a load of its own, which is not to be seen
	// in what the others count.
	var idle, busy []load.Load
	for _, l := range loads {
		l.Cut() // of before
		if _, ok := l.(*load.Idle); ok {
			idle = append(idle, l)
		} else {
			busy = append(busy, l)
		}
	}
	for i := range times {
		begin := time.Now()
		if err := k.do(ctx, i); err != nil {
			return fmt.Errorf("the %d. time: %w", i+1, err)
		}
		if err := flows(ctx, loads, time.Now()); err != nil {
			return fmt.Errorf("after the %d. time: %w", i+1, err)
		}
		wait(ctx, max(lull, every-time.Since(begin)))
		if i == times-1 {
			settle(ctx, busy)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		res.times++
		for _, l := range busy {
			res.add(l.Name(), l.Cut())
		}
	}
	settle(ctx, idle)
	for _, l := range idle {
		res.add(l.Name(), l.Cut())
	}
	return nil
}

// flows waits until every load has something come through that was sent after a
// time.
func flows(ctx context.Context, loads []load.Load, since time.Time) error {
	end := time.Now().Add(comeBack)
	for _, l := range loads {
		for err := l.Flows(since); err != nil; err = l.Flows(since) {
			if time.Now().After(end) {
				return fmt.Errorf("not within %s: %s: %w", comeBack, l.Name(), err)
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			wait(ctx, lookAgain)
		}
	}
	return nil
}

func settle(ctx context.Context, loads []load.Load) {
	var work sync.WaitGroup
	for _, l := range loads {
		work.Go(func() { l.Settle(ctx) })
	}
	work.Wait()
}

// wait sleeps, unless the context ends first.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// await tries until it works.
func await(ctx context.Context, limit time.Duration, try func() error) error {
	end := time.Now().Add(limit)
	for {
		err := try()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return errors.Join(context.Cause(ctx), err)
		}
		if time.Now().After(end) {
			return fmt.Errorf("not within %s: %w", limit, err)
		}
		wait(ctx, lookAgain)
	}
}
