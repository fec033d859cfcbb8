package balancer

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/proxy/balance"
)

const (
	statusTimeout = 10 * time.Second
	// firstPause is how long a Service's status is left alone after it was written, and
	// lastPause the most that this becomes when the same has to be written again and
	// again: it fails, or somebody undoes it, such as an agent with other pools.
	firstPause = time.Second
	lastPause  = 5 * time.Minute
)

// writer writes statuses beside the failover, which must not wait for an API server.
type writer struct {
	status Status
	failed func() // a write is to be asked for again
	log    *slog.Logger
	wake   chan struct{}

	mu   sync.Mutex
	want []balance.Assignment   // guarded by mu: what is to be written
	past map[model.Name]writing // guarded by mu: what was, lately
}

// writing is the last one of a Service.
type writing struct {
	what  balance.Assignment
	at    time.Time
	pause time.Duration // until the next one
}

func newWriter(status Status, failed func(), log *slog.Logger) *writer {
	return &writer{status: status, failed: failed, log: log, wake: make(chan struct{}, 1), past: make(map[model.Name]writing)}
}

// ask sets what is to be written, instead of what was asked for before.
func (w *writer) ask(list []balance.Assignment) {
	w.mu.Lock()
	w.want = slices.Clone(list)
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// run writes until the context ends.
func (w *writer) run(ctx context.Context) {
	for ctx.Err() == nil {
		a, wait := w.next(time.Now())
		if wait > 0 {
			select {
			case <-ctx.Done():
			case <-w.wake:
			case <-time.After(wait):
			}
			continue
		}
		one, cancel := context.WithTimeout(ctx, statusTimeout)
		err := w.status.PublishBalancer(one, a.Service.Name, a.Service.UID, a.Addrs)
		cancel()
		if err != nil && ctx.Err() == nil {
			w.log.Warn("load balancer addresses not written, trying again", "error", err)
			w.failed()
		}
	}
}

// next takes the write that is due first, or says how long there is none.
func (w *writer) next(now time.Time) (a balance.Assignment, wait time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, p := range w.past {
		if now.Sub(p.at) > 2*lastPause { // it has lasted
			delete(w.past, name)
		}
	}
	best, wait := -1, lastPause
	for i, one := range w.want {
		p, written := w.past[one.Service.Name]
		left := time.Duration(0)
		if written {
			left = max(0, p.pause-now.Sub(p.at))
		}
		if best < 0 || left < wait {
			best, wait = i, left
		}
	}
	if best < 0 || wait > 0 {
		return a, wait
	}
	a = w.want[best]
	w.want = slices.Delete(w.want, best, best+1)
	pause := firstPause
	if p, written := w.past[a.Service.Name]; written && p.what.Service.UID == a.Service.UID && slices.Equal(p.what.Addrs, a.Addrs) {
		pause = min(2*p.pause, lastPause)
	}
	w.past[a.Service.Name] = writing{what: a, at: now, pause: pause}
	return a, 0
}
