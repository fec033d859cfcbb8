package loop

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// turner is a loop's three functions, which count and fail on demand.
type turner struct {
	took time.Duration // of a turn

	mu       sync.Mutex
	problems []string // guarded by mu, as all below
	failing  error    // of publish
	unable   error    // of apply
	seen     turns
}

// turns counts what the loop called.
type turns struct{ compiled, published, applied int }

func (c *turner) loop(log *slog.Logger) *Loop[[]string] {
	return New(Config[[]string]{
		Compile: func() []string {
			defer time.Sleep(c.took)
			c.mu.Lock()
			defer c.mu.Unlock()
			c.seen.compiled++
			return c.problems
		},
		Problems: func(problems []string) []string { return problems },
		Publish: func([]string) error {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.seen.published++
			return c.failing
		},
		Apply: func([]string) error {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.seen.applied++
			return c.unable
		},
		Log: log,
	})
}

func (c *turner) turns() turns {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen
}

func (c *turner) set(fn func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fn()
}

// run runs the loop in the test's bubble until stop is called.
func run(t *testing.T, l *Loop[[]string]) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestLoopManyKicksShareTurns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := &turner{took: time.Second}
		l := c.loop(quiet())
		defer run(t, l)()
		l.Kick()
		synctest.Wait() // the first turn is under way
		for range 1000 {
			l.Kick()
		}
		time.Sleep(10 * time.Second)
		if got := c.turns(); got != (turns{2, 2, 2}) {
			t.Errorf("%+v, want one turn for the first kick and one for all that came during it", got)
		}
	})
}

// Who asks during a turn may have changed something that the turn did not see:
// it must get the answer of the next one.
func TestLoopPublishWaitsForATurnThatBeganLater(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := &turner{took: time.Second}
		l := c.loop(quiet())
		defer run(t, l)()
		l.Kick()
		time.Sleep(500 * time.Millisecond)
		start := time.Now()
		if err := l.Publish(t.Context()); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took != 1500*time.Millisecond || c.turns().published != 2 {
			t.Errorf("answered after %s and %d publications, want the rest of one turn and a whole one", took, c.turns().published)
		}
	})
}

func TestLoopPublishEnds(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	for _, c := range []struct {
		name string
		want error
		run  func(t *testing.T) error
	}{
		{"with the error of the publication", broken, func(t *testing.T) error {
			l := (&turner{failing: broken}).loop(quiet())
			defer run(t, l)()
			return l.Publish(t.Context())
		}},
		{"although apply fails: the tables are in force", nil, func(t *testing.T) error {
			l := (&turner{unable: broken}).loop(quiet())
			defer run(t, l)()
			return l.Publish(t.Context())
		}},
		{"with its context", context.DeadlineExceeded, func(t *testing.T) error {
			l := (&turner{took: time.Hour}).loop(quiet())
			defer run(t, l)()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			return l.Publish(ctx)
		}},
		{"when the loop has ended", ErrStopped, func(t *testing.T) error {
			l := (&turner{}).loop(quiet())
			run(t, l)()
			return l.Publish(t.Context())
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				if err := c.run(t); !errors.Is(err, c.want) {
					t.Errorf("error %v, want %v", err, c.want)
				}
			})
		})
	}
}

func TestLoopTriesAgainUntilTheNodeMatches(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	for _, c := range []struct {
		name string
		fail func(*turner)
	}{
		{"publish fails", func(c *turner) { c.failing = broken }},
		{"apply fails", func(c *turner) { c.unable = broken }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				turner := &turner{}
				c.fail(turner)
				l := turner.loop(quiet())
				defer run(t, l)()
				l.Kick()
				time.Sleep(3*applyRetry + time.Millisecond)
				if got := turner.turns(); got != (turns{4, 4, 4}) {
					t.Errorf("%+v within three retry intervals, want 4: what fails is compiled anew and tried again, the kernel too", got)
				}
				turner.set(func() { turner.failing, turner.unable = nil, nil })
				time.Sleep(applyRetry)
				before := turner.turns()
				time.Sleep(driftCheck - 2*time.Millisecond)
				if got := turner.turns(); got != before {
					t.Errorf("%+v after %+v although all is well", got, before)
				}
			})
		})
	}
}

// Others change routes and addresses too: without being asked the loop looks.
func TestLoopRepairsDrift(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := &turner{}
		l := c.loop(quiet())
		defer run(t, l)()
		time.Sleep(3*driftCheck + time.Second)
		if got := c.turns(); got.applied != 3 {
			t.Errorf("%+v within three intervals, want 3", got)
		}
	})
}

func TestLoopReportsAProblemOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var text strings.Builder
		c := &turner{problems: []string{"two nodes claim 10.0.0.1"}}
		l := c.loop(slog.New(slog.NewTextHandler(&text, nil)))
		stop := run(t, l)
		turn := func() {
			l.Kick()
			synctest.Wait()
		}
		turn()
		turn()
		c.set(func() { c.problems = append(slices.Clone(c.problems), "node3 has no key") })
		turn()
		c.set(func() { c.problems = nil })
		turn()
		turn()
		stop()
		for _, w := range []struct {
			line  string
			times int
		}{
			{`level=WARN msg="cluster state has a problem" problem="two nodes claim 10.0.0.1"`, 1},
			{`level=WARN msg="cluster state has a problem" problem="node3 has no key"`, 1},
			{`level=INFO msg="problem is gone" problem="two nodes claim 10.0.0.1"`, 1},
			{`level=INFO msg="problem is gone" problem="node3 has no key"`, 1},
		} {
			if n := strings.Count(text.String(), w.line); n != w.times {
				t.Errorf("%d times %s, want %d:\n%s", n, w.line, w.times, text.String())
			}
		}
	})
}
