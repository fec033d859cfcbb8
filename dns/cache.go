package dns

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"
)

// cache keeps replies for names outside the cluster, bounded in number and
// bytes. Entries are immutable; the zero value with limits set is empty.
type cache struct {
	mu      sync.Mutex
	entries map[string]*reply // guarded by mu
	bytes   int               // guarded by mu
	hits    uint64            // guarded by mu
	misses  uint64            // guarded by mu
	evicted uint64            // guarded by mu
}

// reply is a message from upstream, checked and without OPT: the question is
// its first record and in lower case, id 0.
type reply struct {
	msg     []byte
	ttls    []uint16 // offsets of the TTL fields
	owners  []uint16 // offsets of the question's name where it is written out
	stored  time.Time
	expires time.Time
	old     time.Time // when it is too old even for who has nothing better
	stale   bool      // its time is over, and it is used because nobody has another
	end     int       // of the question section

	hits      atomic.Uint32
	refreshed atomic.Bool // somebody asks for it again
}

func (r *reply) cost() int { return len(r.msg) + 2*len(r.ttls) + 2*len(r.owners) + 256 }

// get returns the living entry of a key and does not allocate.
func (c *cache) get(key []byte, now time.Time) *reply {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[string(key)]
	if e == nil || !now.Before(e.expires) {
		c.misses++
		return nil
	}
	c.hits++
	return e
}

// stale returns the entry of a key whose time is over, but not by too much.
func (c *cache) stale(key string, now time.Time) *reply {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[key]
	if e == nil || !now.Before(e.old) {
		return nil
	}
	return e
}

// clear forgets everything.
func (c *cache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.entries)
	c.bytes = 0
}

// again returns a copy of an entry whose time is over, to be used for a while.
func (r *reply) again(now time.Time) *reply {
	return &reply{msg: r.msg, ttls: r.ttls, owners: r.owners, stored: r.stored, expires: now.Add(recheck), old: r.old, stale: true, end: r.end}
}

// due reports, to one caller, that an entry that is asked often should be asked for
// again before its time is over.
func (r *reply) due(now time.Time) bool {
	if r.stale || r.hits.Add(1) < prefetchHits {
		return false
	}
	life := r.expires.Sub(r.stored)
	return r.expires.Sub(now) <= life/prefetchPart && r.refreshed.CompareAndSwap(false, true)
}

// put stores an entry, and makes room for it when the cache is full: of a few
// entries in no order (a map is walked from a random place) those go whose
// time is over, else the one that would go first.
func (c *cache) put(key string, e *reply, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries == nil {
		c.entries = map[string]*reply{}
	}
	if old := c.entries[key]; old != nil {
		c.drop(key, old)
	}
	const sample = 16
	for len(c.entries) >= cacheEntries || len(c.entries) > 0 && c.bytes+e.cost() > cacheMaxBytes {
		victim, seen := "", 0
		for k, v := range c.entries {
			if victim == "" || v.expires.Before(c.entries[victim].expires) {
				victim = k
			}
			if seen++; seen == sample || v.expires.Before(now) {
				break
			}
		}
		c.drop(victim, c.entries[victim])
		c.evicted++
	}
	c.entries[key] = e
	c.bytes += e.cost() + len(key)
}

// drop removes an entry; mu is held.
func (c *cache) drop(key string, e *reply) {
	delete(c.entries, key)
	c.bytes -= e.cost() + len(key)
}

// parseReply checks a message from upstream and takes its OPT away. ok is
// false when it is malformed or uses an extended response code.
func parseReply(msg []byte, end int) (r *reply, ok bool) {
	opt := -1
	r = &reply{end: end}
	last := end
	var rec record
	for it := recordsOf(msg, end); it.left(); last = rec.end {
		if !it.next(&rec) {
			return nil, false
		}
		if rec.rtype != typeOPT {
			r.ttls = append(r.ttls, uint16(rec.fixed+4))
			if rec.section == 0 && sameName(msg[rec.start:rec.fixed], msg[headerLen:max(headerLen, end-4)]) {
				r.owners = append(r.owners, uint16(rec.start))
			}
			continue
		}
		if opt >= 0 || rec.section != 2 || msg[rec.fixed+4] != 0 {
			return nil, false
		}
		opt = rec.start
		if rec.end != len(msg) {
			return withoutOPT(msg, end)
		}
	}
	if opt >= 0 {
		binary.BigEndian.PutUint16(msg[10:], binary.BigEndian.Uint16(msg[10:])-1)
		last = opt
	}
	r.msg = msg[:last]
	return r, true
}

// sameName compares two names without pointers, whatever their spelling. A length is
// below 64, and so no letter.
func sameName(a, b []byte) bool {
	if len(a) != len(b) || len(a) == 0 || a[0] != b[0] {
		return false
	}
	for i := range a {
		x, y := a[i], b[i]
		if x != y && (x|0x20 != y|0x20 || x|0x20-'a' >= 26) {
			return false
		}
	}
	return true
}

// lifetime returns for how many seconds a reply may be used, 0 when it must
// not be stored: the least TTL of its records, and for an answer without a
// record of the type the SOA minimum (RFC 2308 §5).
func (r *reply) lifetime(qtype uint16, maxPositive, maxNegative uint32) uint32 {
	if r.msg[2]&(flagTC>>8) != 0 {
		return 0
	}
	rcode := uint16(r.msg[3]) & maskRcode
	if rcode != rcodeSuccess && rcode != rcodeName {
		return failureTTL
	}
	ttl, negative, positive := maxPositive, uint32(0), false
	var rec record
	for it := recordsOf(r.msg, r.end); it.left() && it.next(&rec); {
		t := binary.BigEndian.Uint32(r.msg[rec.fixed+4:])
		if t>>31 != 0 { // RFC 2181 §8
			t = 0
		}
		ttl = min(ttl, t)
		switch {
		case rec.section == 0 && rec.rtype == qtype && rcode == rcodeSuccess:
			positive = true
		case rec.section == 1 && rec.rtype == typeSOA && rec.end-rec.data >= 22:
			negative = min(binary.BigEndian.Uint32(r.msg[rec.end-4:]), maxNegative)
		}
	}
	if positive {
		return ttl
	}
	return min(ttl, negative)
}

// relay writes the reply for a client: its id, flags and spelling of the
// question, TTLs less the age, cut to what it takes.
func (r *reply) relay(c *client, out, query []byte, now time.Time) []byte {
	out = append(out[:0], r.msg...)
	copy(out, query[:2])
	copy(out[headerLen:r.end], query[headerLen:c.end])
	for _, at := range r.owners {
		copy(out[at:], query[headerLen:c.end-4])
	}
	flags := binary.BigEndian.Uint16(out[2:])
	flags = flags&^(maskOpcode|flagRD|flagCD|0x0040) | c.flags&(flagRD|flagCD)
	if !c.do && c.flags&flagAD == 0 { // RFC 6840 §5.8
		flags &^= flagAD
	}
	binary.BigEndian.PutUint16(out[2:], flags)
	age := uint32(max(now.Sub(r.stored)/time.Second, 0))
	for _, at := range r.ttls {
		t := binary.BigEndian.Uint32(out[at:])
		t -= min(t, age)
		if r.stale {
			t = staleTTL
		}
		binary.BigEndian.PutUint32(out[at:], t)
	}
	return c.finish(truncate(out, c.end, c.room()), rcodeSuccess)
}
