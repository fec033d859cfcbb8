package handshake

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

const (
	limitBuckets = 4096
	limitRate    = 20 // handshakes per second
	limitBurst   = 5
	limitCost    = time.Second / limitRate
	limit6Bits   = 64 // an IPv6 sender is its network: it may use all addresses in it
)

// Limiter bounds how often an address may ask for a handshake while there are
// too many: 20 per second and 5 at once, as WireGuard does. Its memory is fixed:
// addresses share 4096 buckets by a keyed hash. It is safe for concurrent use.
type Limiter struct {
	seed maphash.Seed

	mu   sync.Mutex
	full [limitBuckets]time.Time // when a bucket has all its tokens again; guarded by mu
}

// NewLimiter returns a limiter that allows everybody.
func NewLimiter() *Limiter { return &Limiter{seed: maphash.MakeSeed()} }

// Allow takes a token of the address.
func (l *Limiter) Allow(a netip.Addr, now time.Time) bool {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		a = netip.PrefixFrom(a, limit6Bits).Masked().Addr()
	}
	b := maphash.Comparable(l.seed, a) % limitBuckets
	l.mu.Lock()
	defer l.mu.Unlock()
	full := l.full[b]
	if full.Before(now) {
		full = now
	}
	if full = full.Add(limitCost); full.Sub(now) > limitBurst*limitCost {
		return false
	}
	l.full[b] = full
	return true
}

// Bucket bounds how often something is done, for whomever. It is safe for
// concurrent use.
type Bucket struct {
	cost time.Duration // of one token
	room time.Duration // of all tokens

	mu   sync.Mutex
	full time.Time // when it has all its tokens again; guarded by mu
}

// NewBucket returns a bucket of so many tokens, which come back at a rate per
// second.
func NewBucket(rate, burst int) *Bucket {
	cost := time.Second / time.Duration(rate)
	return &Bucket{cost: cost, room: cost * time.Duration(burst)}
}

// Take takes a token; false: there is none.
func (b *Bucket) Take(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	full := b.full
	if full.Before(now) {
		full = now
	}
	if full = full.Add(b.cost); full.Sub(now) > b.room {
		return false
	}
	b.full = full
	return true
}
