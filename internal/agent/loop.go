package agent

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
)

const (
	// applyRetry is how long the loop waits before it tries again to make the
	// kernel or the engine match what is published.
	applyRetry = time.Second
	// driftCheck is how often it does so unasked: others change routes, too.
	driftCheck = 30 * time.Second
)

// loop keeps what the node does equal to what was asked for last. It is level-
// triggered: every turn compiles the newest State from scratch, so a turn that
// fails loses nothing, and any number of requests share one turn.
type loop struct {
	compile func() Output
	publish func(Output) error
	apply   func(Output) error
	log     *slog.Logger

	kick chan struct{}
	done chan struct{} // closed when Run has ended

	mu       sync.Mutex
	waiting  []chan error // guarded by mu
	problems []string     // guarded by mu: of the last turn
	turned   time.Time    // guarded by mu: when the last turn ended, or the first began
}

func newLoop(log *slog.Logger) *loop {
	return &loop{log: log, kick: make(chan struct{}, 1), done: make(chan struct{})}
}

// Kick asks for a turn soon.
func (l *loop) Kick() {
	select {
	case l.kick <- struct{}{}:
	default: // a turn is due already and will see what we saw
	}
}

// errStopped is what requests get that come too late.
var errStopped = errors.New("the agent is stopping")

// Publish asks for a turn and returns when what is true now is in force.
func (l *loop) Publish(ctx context.Context) error {
	done := make(chan error, 1)
	l.mu.Lock()
	l.waiting = append(l.waiting, done)
	l.mu.Unlock()
	l.Kick()
	select {
	case err := <-done:
		return err
	case <-l.done:
		return errStopped
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Problems returns what the last turn could not do as the cluster asks.
func (l *loop) Problems() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.problems
}

// Turned returns when the last turn ended; zero before the loop runs.
func (l *loop) Turned() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.turned
}

func (l *loop) turn() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.turned = time.Now()
}

// Run turns until the context ends.
func (l *loop) Run(ctx context.Context) error {
	defer close(l.done)
	l.turn()
	var reported map[string]bool
	retry := time.NewTimer(driftCheck)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.kick:
		case <-retry.C:
		}
		l.mu.Lock()
		waiting := l.waiting
		l.waiting = nil
		l.mu.Unlock()

		out := l.compile()
		reported = l.report(out.Problems, reported)
		l.mu.Lock()
		l.problems = out.Problems
		l.mu.Unlock()
		err := l.publish(out)
		for _, w := range waiting {
			w <- err
		}
		next := driftCheck
		if err != nil {
			l.log.Warn("tables not published, trying again", "error", err)
			next = applyRetry
		}
		if err := l.apply(out); err != nil {
			l.log.Warn("node does not match the tables yet, trying again", "error", err)
			next = applyRetry
		}
		l.turn()
		retry.Reset(next)
	}
}

// report logs problems when they appear and when they are gone, not every turn.
func (l *loop) report(problems []string, before map[string]bool) map[string]bool {
	now := make(map[string]bool, len(problems))
	for _, p := range problems {
		now[p] = true
		if !before[p] {
			l.log.Warn("cluster state has a problem", "problem", p)
		}
	}
	for p := range before {
		if !now[p] {
			l.log.Info("problem is gone", "problem", p)
		}
	}
	return now
}
