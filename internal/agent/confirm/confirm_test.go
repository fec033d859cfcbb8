package confirm_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/netctl/netctl/internal/agent/confirm"
	"github.com/netctl/netctl/internal/agent/settings"
	"github.com/netctl/netctl/internal/cluster"
)

// api is a cluster that answers what the test says.
type api struct {
	mu          sync.Mutex
	unconfirmed error // guarded by mu
	refuse      int   // how often facts of now are not known; guarded by mu
}

func (f *api) Unconfirmed() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.unconfirmed
}

func (f *api) say(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.unconfirmed = err
}

func (f *api) Facts(context.Context) (settings.Cluster, error) {
	return settings.Cluster{Domain: "old"}, nil
}

func (f *api) LiveFacts(context.Context) (settings.Cluster, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refuse--; f.refuse >= 0 {
		return settings.Cluster{}, errors.New("not yet")
	}
	return settings.Cluster{Domain: "new"}, nil
}

// confirmer asks a cluster beside another agent that serves, if it does.
func confirmer(t *testing.T, f *api, served bool) *confirm.Confirmer {
	t.Helper()
	dir := t.TempDir()
	if served {
		l, err := net.Listen("unix", filepath.Join(dir, "handover.sock"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
	}
	return &confirm.Confirmer{Cluster: f, Dir: dir, Log: slog.New(slog.DiscardHandler)}
}

// Who follows an agent that serves waits for what the cluster says, unless nobody
// answers; who follows nobody does not wait.
func TestAwait(t *testing.T) {
	t.Parallel()
	forbidden := errors.New("pods cannot be read")
	for _, c := range []struct {
		name   string
		served bool
		says   []error // minute by minute
		want   time.Duration
		facts  string
	}{
		{"nobody serves", false, []error{forbidden}, 0, "old"},
		{"known", true, []error{nil}, 0, "new"},
		{"refused for long", true, []error{forbidden, forbidden, forbidden, nil}, 3 * time.Minute, "new"},
		{"nobody answers", true, []error{cluster.ErrNoAnswer, cluster.ErrNoAnswer}, 30 * time.Second, "old"},
		{"nobody answers any more", true, []error{forbidden, cluster.ErrNoAnswer}, 90 * time.Second, "old"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := &api{unconfirmed: c.says[0]}
			p := confirmer(t, f, c.served)
			synctest.Test(t, func(t *testing.T) {
				for i, err := range c.says {
					timer := time.AfterFunc(time.Duration(i)*time.Minute, func() { f.say(err) })
					defer timer.Stop()
				}
				const slack = time.Second // of the polls
				began := time.Now()
				if err := p.Await(t.Context()); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(began); took < c.want-slack || took > c.want+slack {
					t.Errorf("it took %v, want %v", took, c.want)
				}
				if facts, err := p.Facts(t.Context()); err != nil || facts.Domain != c.facts {
					t.Errorf("facts %v, %v, want the %s ones", facts, err, c.facts)
				}
			})
		})
	}
}

func TestAwaitEnds(t *testing.T) {
	t.Parallel()
	p := confirmer(t, &api{unconfirmed: cluster.ErrNoAnswer}, true)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Await(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// What was begun with is compared when all of it can be.
func TestConfirmed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &api{unconfirmed: cluster.ErrNoAnswer, refuse: 3}
		p := &confirm.Confirmer{Cluster: f, Log: slog.New(slog.DiscardHandler)}
		time.AfterFunc(time.Hour, func() { f.say(nil) })
		began := time.Now()
		facts, err := p.Confirmed(t.Context())
		if took := time.Since(began); err != nil || facts.Domain != "new" || took < time.Hour || took > time.Hour+time.Minute {
			t.Errorf("%v, %v after %v", facts, err, took)
		}
		f.say(cluster.ErrNoAnswer)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := p.Confirmed(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
	})
}
