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

// quota bounds how many things exist in total and for each owner. One owner
// gets at most perOwner and at most half of what is free (dynamic threshold,
// Choudhury and Hahne 1998): n greedy owners together leave about 2/(n+2) of
// the whole free, so that nobody is starved by others.
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
	bound := min(q.perOwner, (q.max-q.total+1)/2)
	if n >= bound {
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
