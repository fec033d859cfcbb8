package cni

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// keyLock is a mutex per key that exists only while somebody wants it. The
// zero value is ready.
type keyLock struct {
	mu   sync.Mutex
	held map[string]*keyHolder // guarded by mu
}

type keyHolder struct {
	turn chan struct{} // holds one token while locked
	want int           // holder and waiters; guarded by keyLock.mu
}

// lock waits for its turn or for the end of the context. Waiters are served in
// no particular order.
func (k *keyLock) lock(ctx context.Context, key string) (unlock func(), err error) {
	k.mu.Lock()
	h := k.held[key]
	if h == nil {
		if k.held == nil {
			k.held = make(map[string]*keyHolder)
		}
		h = &keyHolder{turn: make(chan struct{}, 1)}
		k.held[key] = h
	}
	h.want++
	k.mu.Unlock()
	leave := func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if h.want--; h.want == 0 {
			delete(k.held, key)
		}
	}
	select {
	case h.turn <- struct{}{}:
		return func() { <-h.turn; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, fmt.Errorf("wait for the container's other operation: %w", ctx.Err())
	}
}

// recent remembers the attachments that were added lately or are being added,
// so that GC, whose list of valid ones was made a little earlier, spares them.
// The zero value is ready.
type recent struct {
	mu    sync.Mutex
	since map[ID]time.Time // guarded by mu
}

func (r *recent) add(id ID, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.since == nil {
		r.since = make(map[ID]time.Time)
	}
	r.prune(now)
	r.since[id] = now
}

func (r *recent) remove(id ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.since, id)
}

// list returns those that are younger than gcGrace.
func (r *recent) list(now time.Time) []ID {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.prune(now)
	return slices.Collect(maps.Keys(r.since))
}

// prune forgets the old ones; the map holds a minute's additions at most.
func (r *recent) prune(now time.Time) {
	maps.DeleteFunc(r.since, func(_ ID, t time.Time) bool { return now.Sub(t) > gcGrace })
}
