// Package quota shares what is scarce on a node among the pods that ask for it:
// sockets, connections, questions to upstream.
//
// Why here. The network stack and the name server are features that do not know
// each other, and a greedy pod must not take either away from the rest.
//
// Invariants. Never more than the whole is held, and never more than the bound
// of an owner by one owner. A quarter of the whole is kept for those who have
// little: once the rest is taken, an owner that has its fair share gets no more.
// So a quarter of the whole divided by the fair share is how many owners always
// get something, whatever the others do.
//
// How to test. Owners that take until they are refused, and then one more.
package quota

import (
	"net/netip"
	"sync"
)

// Grant is what Take answers.
type Grant uint8

// The answers of Take.
const (
	None  Grant = iota // a bound is reached
	OK                 // taken
	Tight              // taken, but the bound is near: give something up
)

// Quota bounds how many things exist in total and for each owner. Its methods
// may be called from any goroutine.
type Quota struct {
	whole, perOwner, fair int // immutable

	mu    sync.Mutex
	total int                // guarded by mu
	held  map[netip.Addr]int // guarded by mu; no zero entries
}

// New returns a Quota of whole things, perOwner of them at most for one owner,
// who may have fair of them (at least one) even when most are taken.
func New(whole, perOwner, fair int) *Quota {
	return &Quota{whole: whole, perOwner: perOwner, fair: max(1, fair), held: make(map[netip.Addr]int)}
}

// Client is the owner that stands for an address outside, where hosts choose
// their own: itself for IPv4, its network of 64 bits for IPv6.
func Client(a netip.Addr) netip.Addr {
	if a.Is4() {
		return a
	}
	p, err := a.WithZone("").Prefix(64)
	if err != nil {
		return a // no address at all
	}
	return p.Addr()
}

// Take reserves one for the owner.
func (q *Quota) Take(owner netip.Addr) Grant {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := q.held[owner]
	bound := q.perOwner
	if q.total >= q.whole-q.whole/4 {
		bound = min(bound, q.fair)
	}
	if n >= bound || q.total >= q.whole {
		return None
	}
	q.held[owner] = n + 1
	q.total++
	if n+1 > bound-bound/8 {
		return Tight
	}
	return OK
}

// Give returns one that Take reserved.
func (q *Quota) Give(owner netip.Addr) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.total--
	if n := q.held[owner]; n > 1 {
		q.held[owner] = n - 1
	} else {
		delete(q.held, owner)
	}
}

// Held returns how many the owner holds.
func (q *Quota) Held(owner netip.Addr) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.held[owner]
}

// Size returns how many are held in total.
func (q *Quota) Size() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.total
}

// Owners returns how many owners hold something.
func (q *Quota) Owners() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.held)
}
