package agent

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/agent/settings"
	"github.com/netctl/netctl/internal/cluster"
	"github.com/netctl/netctl/internal/model"
)

// apiFake is a cluster that answers what the test says.
type apiFake struct {
	Cluster
	mu          sync.Mutex
	unconfirmed error            // guarded by mu
	cached, now settings.Cluster // immutable
	asked       int              // for facts of now; guarded by mu
	keeps       bool             // guarded by mu
}

func (f *apiFake) Unconfirmed() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.unconfirmed
}

func (f *apiFake) say(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.unconfirmed = err
}

func (f *apiFake) Facts(context.Context) (settings.Cluster, error) { return f.cached, nil }

func (f *apiFake) LiveFacts(context.Context) (settings.Cluster, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	return f.now, nil
}

func (f *apiFake) Keep(keep bool) { f.keeps = keep }

// waiting returns a process of a cluster, and has another agent serve if told so.
func waiting(t *testing.T, f *apiFake, served bool) *process {
	t.Helper()
	dir := t.TempDir()
	if served {
		l, err := net.Listen("unix", filepath.Join(dir, "handover.sock"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
	}
	p := newProcess(Config{Node: "n", StateDir: dir, Cluster: f, Log: slog.New(slog.DiscardHandler)})
	p.learn(&model.State{Synced: true, Revision: 1})
	return p
}

// What the last process knew is good enough to begin with where nobody serves, and
// is compared with what is true once that is known.
func TestConfirm(t *testing.T) {
	t.Parallel()
	old := settings.Cluster{PodSubnets: []netip.Prefix{netip.MustParsePrefix("198.18.0.0/24")}, Domain: "old.example"}
	other := settings.Cluster{PodSubnets: []netip.Prefix{netip.MustParsePrefix("198.18.1.0/24")}, Domain: "old.example"}
	for _, c := range []struct {
		name        string
		served      bool
		unconfirmed error
		now         settings.Cluster
		begins      settings.Cluster
		want        error
	}{
		{"after a crash, the same", false, cluster.ErrNoAnswer, old, old, nil},
		{"after a crash, others", false, cluster.ErrNoAnswer, other, old, errChanged},
		{"in a handover", true, nil, other, other, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := &apiFake{unconfirmed: c.unconfirmed, cached: old, now: c.now}
			p := waiting(t, f, c.served)
			if err := p.settle(t.Context()); err != nil {
				t.Fatal(err)
			}
			if !p.facts.Equal(c.begins) || len(p.ranges) != 1 || p.ranges[0] != c.begins.PodSubnets[0] {
				t.Errorf("it begins with %v and %v", p.facts, p.ranges)
			}
			f.say(nil)
			if err := p.confirm(t.Context()); !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}
		})
	}
}

// Ranges that cannot be had of what the last process knew are waited for, and end
// the process only when they cannot be had of what is true.
func TestSettleWaits(t *testing.T) {
	t.Parallel()
	f := &apiFake{unconfirmed: cluster.ErrNoAnswer, now: settings.Cluster{PodSubnets: []netip.Prefix{netip.MustParsePrefix("198.18.0.0/24")}}}
	p := waiting(t, f, false)
	conflict := &model.State{Synced: true, Revision: 2, ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}}
	p.learn(conflict)
	done := make(chan error, 1)
	go func() { done <- p.settle(t.Context()) }()
	select {
	case err := <-done:
		t.Fatalf("settled with %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	f.say(nil)
	p.learn(conflict)
	if err := <-done; err != nil || len(p.ranges) != 1 {
		t.Errorf("%v, ranges %v", err, p.ranges)
	}
	f = &apiFake{}
	p = waiting(t, f, false)
	p.learn(conflict)
	if err := p.settle(t.Context()); err == nil {
		t.Error("ranges that cannot be had are settled")
	}
}

// An agent that serves is ready once it knows what the cluster says; one whose place
// another has taken keeps nothing for the next.
func TestReadyAndRetired(t *testing.T) {
	t.Parallel()
	f := &apiFake{unconfirmed: errors.New("pods cannot be read"), keeps: true}
	p := waiting(t, f, false)
	p.retire(true)
	if err := p.ready(); err != nil || f.keeps {
		t.Errorf("retired: %v, keeps %v", err, f.keeps)
	}
	p.retire(false)
	if err := p.ready(); err == nil || !f.keeps {
		t.Errorf("before it serves: %v, keeps %v", err, f.keeps)
	}
}
