package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/netctl/netctl/internal/agent/handover"
	"github.com/netctl/netctl/internal/datapath"
	"github.com/netctl/netctl/internal/kernel"
)

// callsTime bounds the wait for CNI calls under way when another agent takes over.
const callsTime = 3 * time.Second

// serve runs the parts until the context ends or one of them fails. When yield is
// closed they end in order: calls under way are finished, then what steers ends,
// and at last, when nothing else is left to wait for, what carries packets.
func (a *Agent) serve(ctx context.Context, yield <-chan struct{}, seat *handover.Seat) error {
	carrying, stop := context.WithCancel(ctx)
	defer stop()
	if err := a.engine.Start(); err != nil {
		return fmt.Errorf("start the overlay: %w", err)
	}
	workers := make(chan error, 1)
	// Packets first: what follows may take its time.
	go func() { workers <- a.workers.Run(carrying) }()
	wait := a.carryOutside(carrying)
	err := a.steer(carrying, yield, seat, workers)
	stop()
	wait()
	return errors.Join(ignoreDone(ctx, errors.Join(err, <-workers)), a.engine.Stop())
}

// steer runs everything beside the workers.
func (a *Agent) steer(ctx context.Context, yield <-chan struct{}, seat *handover.Seat, workers chan error) error {
	ctx, quit := context.WithCancel(ctx)
	defer quit()
	g, ctx := errgroup.WithContext(ctx)
	changes, err := kernel.WatchAddresses(ctx)
	if err != nil {
		return fmt.Errorf("watch the node's addresses: %w", err)
	}
	run := func(name string, f func(context.Context) error) {
		g.Go(func() error {
			if err := f(ctx); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}
	run("loop", a.loop.Run)
	run("cni", a.cni.Run)
	run("start", a.begin)
	run("status", a.serveStatus)
	run("claims", a.claims.Run)
	run("name server's options", a.followNames)
	run("name server's metrics", a.measureNames)
	run("events", a.notices.Run)
	if a.balancer != nil {
		run("load balancer addresses", a.balancer.Run)
	}
	defer a.health.Close() // the next agent opens the ports
	if a.installer != nil {
		run("installation", func(ctx context.Context) error { return a.installer.Run(ctx, a.cni.Serving()) })
	}
	run("node", func(ctx context.Context) error {
		select {
		case err := <-a.lost:
			return err
		case err := <-workers:
			workers <- err
			if err == nil && ctx.Err() == nil {
				err = errors.New("they have ended")
			}
			return err
		case <-ctx.Done():
			return nil
		}
	})
	run("housekeeping", func(ctx context.Context) error { return a.keepHouse(ctx, changes) })
	run("holder", func(ctx context.Context) error {
		return a.keeper.Keep(ctx, a.borrowed, func() error { return a.alive(time.Now()) })
	})
	run("first copies", func(ctx context.Context) error {
		seat.Guests(ctx, a.exportAll, func(err error) { a.log.Info("an agent to come has no first copy", "error", err) })
		return nil
	})
	run("handover", func(ctx context.Context) error {
		select {
		case <-yield:
		case <-ctx.Done():
			return nil
		}
		calls, cancel := context.WithTimeout(ctx, callsTime)
		defer cancel()
		a.cni.Quiesce(calls)
		a.endings.Close() // of pods that are deleted: their devices must not be handed over
		quit()
		return nil
	})
	return ignoreDone(ctx, g.Wait())
}

// begin serves for the first time.
func (a *Agent) begin(ctx context.Context) error {
	if err := a.loop.Publish(ctx); err != nil {
		return ignoreDone(ctx, fmt.Errorf("publish the first tables: %w", err))
	}
	if _, err := a.applySockets(); err != nil { // conflicts are reported, and tried again
		a.log.Warn("node's ports are not listened to, trying again", "error", err)
	}
	if a.heritage != nil {
		a.heritage.Adopted()
	} else {
		a.knock()
	}
	a.keepAll()
	a.relieve()
	a.log.Info("agent serves", "node", a.cfg.Node, "mtu", a.mtu, "pods", len(a.localPorts())-len(a.fixed))
	a.cni.Restored()
	return nil
}

// ignoreDone turns errors that only say that we were told to end into none.
func ignoreDone(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// keepHouse ages flows, repairs what others changed and collects what is left
// of pods that went without a word.
func (a *Agent) keepHouse(ctx context.Context, changes <-chan struct{}) error {
	second := time.NewTicker(time.Second)
	defer second.Stop()
	gc := time.NewTicker(reconcileInterval)
	defer gc.Stop()
	var bug *datapath.Panic
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-second.C:
			a.turned.Store(now.UnixNano())
			a.flows.Expire(a.router.Now())
			bug = a.reportPanic(bug)
		case _, ok := <-changes:
			if !ok {
				changes = nil
			}
			a.addressesDue.Store(true)
			a.loop.Kick() // routes go when the address they prefer goes
		case <-gc.C:
			if err := a.collect(ctx); err != nil {
				a.log.Warn("left-overs of pods could not be removed, trying again", "error", err)
			}
		}
	}
}

// reportPanic logs the walk's first panic, unless that is the one known already.
func (a *Agent) reportPanic(known *datapath.Panic) *datapath.Panic {
	p := a.router.Panic()
	if p != known {
		a.log.Error("a packet met a bug and was dropped; please report this", "panic", fmt.Sprint(p.Value), "stack", p.Stack)
	}
	return p
}
