// Package loop keeps what a node does equal to what was asked for last: compile,
// publish, apply, and again. It knows nothing of what is compiled.
//
// Tests turn it in a synctest bubble, with functions that count and fail.
package loop

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

// Config is what a turn consists of. All but the Logger is called by Run alone.
type Config[T any] struct {
	Compile  func() T         // what is true now, as a value
	Problems func(T) []string // what of it cannot be done as it is asked
	Publish  func(T) error    // puts it in force
	Apply    func(T) error    // makes the world match
	Log      *slog.Logger
}

// Loop is level-triggered: every turn compiles what is newest from scratch, so a
// turn that fails loses nothing, and any number of requests share one turn.
type Loop[T any] struct {
	cfg Config[T]

	kick chan struct{}
	done chan struct{} // closed when Run has ended

	mu       sync.Mutex
	waiting  []chan error // guarded by mu
	problems []string     // guarded by mu: of the last turn
	turned   time.Time    // guarded by mu: when the last turn ended, or the first began
}

// New returns a Loop that does nothing before Run.
func New[T any](cfg Config[T]) *Loop[T] {
	return &Loop[T]{cfg: cfg, kick: make(chan struct{}, 1), done: make(chan struct{})}
}

// Kick asks for a turn soon.
func (l *Loop[T]) Kick() {
	select {
	case l.kick <- struct{}{}:
	default: // a turn is due already and will see what we saw
	}
}

// ErrStopped is what requests get that come after the end of Run.
var ErrStopped = errors.New("the agent is stopping")

// Publish asks for a turn and returns when what is true now is in force.
func (l *Loop[T]) Publish(ctx context.Context) error {
	done := make(chan error, 1)
	l.mu.Lock()
	l.waiting = append(l.waiting, done)
	l.mu.Unlock()
	l.Kick()
	select {
	case err := <-done:
		return err
	case <-l.done:
		return ErrStopped
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Problems returns what the last turn could not do as the cluster asks.
func (l *Loop[T]) Problems() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.problems
}

// Turned returns when the last turn ended; zero before the loop runs.
func (l *Loop[T]) Turned() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.turned
}

func (l *Loop[T]) turn() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.turned = time.Now()
}

// Run turns until the context ends.
func (l *Loop[T]) Run(ctx context.Context) error {
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

		out := l.cfg.Compile()
		problems := l.cfg.Problems(out)
		reported = l.report(problems, reported)
		l.mu.Lock()
		l.problems = problems
		l.mu.Unlock()
		err := l.cfg.Publish(out)
		for _, w := range waiting {
			w <- err
		}
		next := driftCheck
		if err != nil {
			l.cfg.Log.Warn("tables not published, trying again", "error", err)
			next = applyRetry
		}
		if err := l.cfg.Apply(out); err != nil {
			l.cfg.Log.Warn("node does not match the tables yet, trying again", "error", err)
			next = applyRetry
		}
		l.turn()
		retry.Reset(next)
	}
}

// report logs problems when they appear and when they are gone, not every turn.
func (l *Loop[T]) report(problems []string, before map[string]bool) map[string]bool {
	now := make(map[string]bool, len(problems))
	for _, p := range problems {
		now[p] = true
		if !before[p] {
			l.cfg.Log.Warn("cluster state has a problem", "problem", p)
		}
	}
	for p := range before {
		if !now[p] {
			l.cfg.Log.Info("problem is gone", "problem", p)
		}
	}
	return now
}
