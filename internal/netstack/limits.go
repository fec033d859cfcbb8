package netstack

import (
	"net/netip"
	"sync"
)

// grant is what quota.take answers.
type grant uint8

const (
	grantNone  grant = iota // a bound is reached
	grantOK                 // taken
	grantTight              // taken, but the bound is near: give something up
)

// quota bounds how many things exist in total and for each owner. A quarter of
// the whole is kept for those who have little: once the rest is taken, an owner
// that has its fair share of 1/1024 (at least one) gets no more. So at least 256
// owners always get something, whatever the others do.
type quota struct {
	max, perOwner int // immutable

	mu    sync.Mutex
	total int                // guarded by mu
	held  map[netip.Addr]int // guarded by mu; no zero entries
}

func newQuota(limit, perOwner int) *quota {
	return &quota{max: limit, perOwner: perOwner, held: make(map[netip.Addr]int)}
}

// take reserves one for the owner.
func (q *quota) take(owner netip.Addr) grant {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := q.held[owner]
	bound := q.perOwner
	if q.total >= q.max-q.max/4 {
		bound = min(bound, max(1, q.max/1024))
	}
	if n >= bound || q.total >= q.max {
		return grantNone
	}
	q.held[owner] = n + 1
	q.total++
	if n+1 > bound-bound/8 {
		return grantTight
	}
	return grantOK
}

// give returns one that take reserved.
func (q *quota) give(owner netip.Addr) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.total--
	if n := q.held[owner]; n > 1 {
		q.held[owner] = n - 1
	} else {
		delete(q.held, owner)
	}
}

// count returns how many the owner holds.
func (q *quota) count(owner netip.Addr) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.held[owner]
}

// size returns how many are held in total.
func (q *quota) size() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.total
}
