package dns

import (
	"cmp"
	"context"
	"encoding/binary"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/netctl/netctl/dns/metrics"
	"github.com/netctl/netctl/internal/quota"
)

// forwarder asks upstream what is not a name of the cluster. Identical
// questions that are on their way at the same time are one question with
// several askers; a query of ours that some upstream sends back to us joins
// the very question that made it, so a loop ends there by construction.
type forwarder struct {
	*exchanger
	cache       cache
	now         func() time.Time
	maxInFlight int
	total       time.Duration
	staleWait   time.Duration
	// queue hands calls to Run. It never blocks: it holds as many as calls.
	queue chan *call

	inFlight *quota.Quota // calls, of who began them
	waiting  *quota.Quota // askers

	mu      sync.Mutex
	calls   map[string]*call // guarded by mu
	stopped bool             // guarded by mu

	forwarded, collapsed, refused, loops, stales, prefetched atomic.Uint64
}

// call is one question on its way.
type call struct {
	key    string
	ask    ask
	owner  netip.Addr // who began it
	rules  *outside
	ids    [maxHedged]atomic.Uint32 // of the queries that are out, 0 where there is none
	askers []asker                  // guarded by forwarder.mu
	known  bool                     // the answer is there; guarded by forwarder.mu
}

// ask is what upstream is asked.
type ask struct {
	wire  string // name, lower-cased
	qtype uint16
	flags keyFlags
}

// asker is a client that waits.
type asker struct {
	client
	from  netip.Addr
	head  []byte // header and question of the query, a copy
	qtype uint16
	chain []string // CNAMEs before the name that is asked
	ttl   uint32   // of the chain
	// denied answers in place of a name error at the end of the chain: a name that
	// was found on a search path must not be told to be missing.
	denied []byte
	reply  func([]byte)
}

func newForwarder(cfg Config) *forwarder {
	f := &forwarder{
		exchanger: newExchanger(cfg), now: cfg.Now, maxInFlight: cfg.MaxInFlight, total: cfg.TotalTimeout,
		calls: map[string]*call{},
	}
	if f.now == nil {
		f.now = time.Now
	}
	if f.maxInFlight <= 0 {
		f.maxInFlight = maxInFlight
	}
	if f.total <= 0 {
		f.total = totalTimeout
	}
	f.staleWait = cmp.Or(cfg.StaleWait, staleWait)
	f.queue = make(chan *call, f.maxInFlight)
	f.inFlight = quota.New(f.maxInFlight, max(f.maxInFlight/4, fairInFlight), fairInFlight)
	f.waiting = quota.New(maxAskers, askersPerClient, fairAskers)
	return f
}

// Run sends questions upstream until ctx ends, and returns when all of them
// are done. Clients that still wait then get SERVFAIL. One Run at a time.
func (s *Server) Run(ctx context.Context) error {
	f := s.forward
	defer f.streams.close()
	f.setStopped(false)
	var wg sync.WaitGroup
	for {
		select {
		case c := <-f.queue:
			// One goroutine per question that is out, maxInFlight at most: each
			// owns a socket of its own, because its port must be fresh.
			wg.Go(func() { f.serve(ctx, c, s.zone.Load()) })
			continue
		case <-ctx.Done():
		}
		f.setStopped(true)
		wg.Wait()
		for {
			select {
			case c := <-f.queue:
				f.done(c, nil)
				continue
			default:
			}
			return ctx.Err()
		}
	}
}

func (f *forwarder) setStopped(stopped bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stopped = stopped
}

// Forward asks upstream for a query that Answer did not answer. It copies what
// it needs of query and does not block. reply is called exactly once, from a
// goroutine of Run or, when the answer is known (cache, refusal), before
// Forward returns; the bytes are borrowed until reply returns, and reply must
// not block. What one client may have on its way is bounded: beyond that it is
// told REFUSED.
func (s *Server) Forward(from netip.Addr, query []byte, udp bool, reply func(msg []byte)) {
	var q question
	if fault := q.parse(query, udp); fault != faultNone {
		if fault != faultDrop {
			reply(s.count(&q, from, q.fail(nil, query, fault.rcode()), metrics.None))
			return
		}
		reply(nil)
		return
	}
	began, size := time.Now(), len(query)
	send := func(msg []byte) {
		s.metrics.Waited(!udp, size, len(msg), time.Since(began))
		reply(s.count(&q, from, msg, metrics.Forwarder))
	}
	x := s.rules.Load()
	to := x.target(&q.name)
	if to == "" {
		s.ask(x, from, &q, query, send)
		return
	}
	var inner question
	asked, original := renamed(&q, query, to), append([]byte(nil), query...)
	if inner.parse(asked, udp) != faultNone {
		send(q.fail(nil, query, rcodeServer))
		return
	}
	s.ask(x, from, &inner, asked, func(msg []byte) { send(q.underName(nil, original, msg, to)) })
}

// ask asks upstream for a name that stands for itself.
func (s *Server) ask(x *outside, from netip.Addr, q *question, query []byte, reply func(msg []byte)) {
	a := asker{client: q.client, from: from.Unmap(), head: append([]byte(nil), query[:q.end]...), qtype: q.qtype, reply: reply}
	target := ask{wire: string(q.name.wire[:q.name.len]), qtype: q.qtype}
	z := s.zone.Load()
	f := z.find(&q.name)
	if p := s.searchPath(x, z, from, q); p != nil && p.denied {
		none := found{kind: kindNone, zone: p.zone}
		a.chain, a.ttl, target.wire = p.chain, z.ttl, p.base
		a.denied = z.negative(q, query, nil, &none, rcodeName)
	} else if f.kind == kindExternal {
		chain, last := z.chase(f.svc)
		if last != nil && last.kind == kindOutside {
			a.chain, a.ttl = chain, z.ttl
			if t, ok := parseTarget(chain[len(chain)-1]); ok {
				target.wire = t.wire
			}
		}
	}
	if f.kind != kindOutside && len(a.chain) == 0 {
		// The zone changed since Answer looked: it answers now.
		if msg, st := z.answer(q, query, nil); st == Answered {
			reply(msg)
			return
		}
	}
	s.forward.submit(a, target, x)
}

// keyOf appends the identity of a question: name, type and the flags that make
// the answer another one.
func keyOf[T string | []byte](buf []byte, wire T, qtype uint16, k keyFlags) []byte {
	return append(append(buf, wire...), byte(qtype>>8), byte(qtype), byte(k))
}

// keyFlags are the flags of a query that upstream must see.
type keyFlags uint8

const (
	keyRD keyFlags = 1 << iota
	keyCD
	keyDO
)

func (c *client) keyFlags() keyFlags {
	var k keyFlags
	if c.flags&flagRD != 0 {
		k |= keyRD
	}
	if c.flags&flagCD != 0 {
		k |= keyCD
	}
	if c.do {
		k |= keyDO
	}
	return k
}

// cached answers from the cache; nil when it cannot. It does not allocate when
// out is long enough.
func (f *forwarder) cached(q *question, query, out []byte, rules *outside) []byte {
	var buf [maxName + 3]byte
	key := keyOf(buf[:0], q.name.wire[:q.name.len], q.qtype, q.keyFlags())
	now := f.now()
	e := f.cache.get(key, now)
	if e == nil {
		return nil
	}
	if !rules.options.Cache.NoPrefetch && e.due(now) {
		f.refresh(string(key), ask{wire: string(q.name.wire[:q.name.len]), qtype: q.qtype, flags: q.keyFlags()}, rules)
	}
	if e.stale {
		f.stales.Add(1)
	}
	return e.relay(&q.client, out, query, now)
}

// refresh asks for a name for which nobody waits yet. What is not asked because too
// much is on its way is asked by who misses it.
func (f *forwarder) refresh(key string, target ask, rules *outside) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped || f.calls[key] != nil || f.inFlight.Take(netip.Addr{}) == quota.None {
		return
	}
	f.prefetched.Add(1)
	c := &call{key: key, ask: target, rules: rules}
	f.calls[key] = c
	f.queue <- c // has room for every call there may be
}

// submit answers an asker from the cache, lets it join a question that is on
// its way, or starts one.
func (f *forwarder) submit(a asker, target ask, rules *outside) {
	target.flags = a.keyFlags()
	key := string(keyOf(nil, target.wire, target.qtype, target.flags))
	if e := f.cache.get([]byte(key), f.now()); e != nil {
		a.deliver(e, f.now())
		return
	}
	if rcode := f.enqueue(key, a, target, rules); rcode != rcodeSuccess {
		a.reply(a.fail(nil, a.head, rcode))
	}
}

// enqueue returns the code to refuse the asker with, or success.
func (f *forwarder) enqueue(key string, a asker, target ask, rules *outside) uint16 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped {
		return rcodeServer
	}
	if f.waiting.Take(a.from) == quota.None {
		f.refused.Add(1)
		return rcodeRefused
	}
	c := f.calls[key]
	switch {
	case c != nil:
		f.collapsed.Add(1)
		if f.isOwn(c, &a) {
			f.loops.Add(1)
		}
	case f.inFlight.Take(a.from) == quota.None:
		f.waiting.Give(a.from)
		f.refused.Add(1)
		return rcodeRefused
	default:
		c = &call{key: key, ask: target, owner: a.from, rules: rules}
		f.calls[key] = c
		f.queue <- c // has room for every call there may be
	}
	c.askers = append(c.askers, a)
	return rcodeSuccess
}

// isOwn reports whether an asker's query is the one that is out for the call:
// the same id and the flags that only our queries have together. By accident
// that happens once in 65536 times, and then it counts wrong and no more.
func (f *forwarder) isOwn(c *call, a *asker) bool {
	id := uint32(binary.BigEndian.Uint16(a.head)) | ownID
	for i := range c.ids {
		if c.ids[i].Load() == id {
			return a.opt && a.flags&flagAD != 0
		}
	}
	return false
}

// serve asks upstream and answers everybody who waits.
func (f *forwarder) serve(ctx context.Context, c *call, z *Zone) {
	f.forwarded.Add(1)
	ctx, cancel := context.WithTimeout(ctx, f.total)
	defer cancel()
	stale := f.cache.stale(c.key, f.now())
	if stale != nil {
		// Who has waited long enough gets what there was; the call goes on.
		timer := time.AfterFunc(f.staleWait, func() { f.serveStale(c, stale) })
		defer timer.Stop()
	}
	var r *reply
	rt := c.rules.route(c.ask.wire)
	if len(rt.upstreams) == 0 && !rt.resolvers {
		r = failure(&c.ask, rcodeRefused)
	} else if r = f.exchange(ctx, c, f.order(z, rt)); r == nil {
		r = failure(&c.ask, rcodeServer)
	}
	if rcode := uint16(r.msg[3]) & maskRcode; stale != nil && rcode != rcodeSuccess && rcode != rcodeName {
		f.serveStale(c, stale)
		f.done(c, nil)
		return
	}
	f.mu.Lock()
	c.known = true
	f.mu.Unlock()
	now := f.now()
	r.stored = now
	limits := &c.rules.options.Cache
	ttl := r.lifetime(c.ask.qtype, cmp.Or(limits.MaxTTL, maxPositiveTTL), cmp.Or(limits.MaxNegativeTTL, maxNegativeTTL))
	if ttl > 0 && ctx.Err() != context.Canceled {
		r.expires = now.Add(time.Duration(ttl) * time.Second)
		if rcode := uint16(r.msg[3]) & maskRcode; rcode == rcodeSuccess || rcode == rcodeName {
			r.old = r.expires.Add(c.rules.stale)
		}
		f.cache.put(c.key, r, now)
	}
	f.done(c, r)
}

// serveStale answers everybody who waits with what there was before, and whoever
// asks in the next few seconds.
func (f *forwarder) serveStale(c *call, stale *reply) {
	now := f.now()
	r := stale.again(now)
	f.mu.Lock()
	if c.known {
		f.mu.Unlock()
		return
	}
	f.cache.put(c.key, r, now)
	askers := f.takeAskers(c)
	f.mu.Unlock()
	f.stales.Add(uint64(len(askers)))
	for i := range askers {
		askers[i].deliver(r, now)
	}
}

// takeAskers returns who waits for a call, and they wait no more; mu is held.
func (f *forwarder) takeAskers(c *call) []asker {
	askers := c.askers
	c.askers = nil
	for i := range askers {
		f.waiting.Give(askers[i].from)
	}
	return askers
}

// failure is what stands for no usable answer; it is remembered for a second, so
// that a dead upstream is not asked by every client.
func failure(a *ask, rcode byte) *reply {
	msg := make([]byte, headerLen, headerLen+len(a.wire)+4)
	msg[2], msg[3], msg[5] = flagQR>>8, 0x80|rcode, 1
	msg = append(msg, a.wire...)
	msg = append(msg, byte(a.qtype>>8), byte(a.qtype), 0, classIN)
	return &reply{msg: msg, end: len(msg)}
}

// done ends a call: r is what came, nil for SERVFAIL.
func (f *forwarder) done(c *call, r *reply) {
	f.mu.Lock()
	delete(f.calls, c.key)
	c.known = true
	askers := f.takeAskers(c)
	f.inFlight.Give(c.owner)
	f.mu.Unlock()
	now := f.now()
	for i := range askers {
		if r == nil {
			askers[i].reply(askers[i].fail(nil, askers[i].head, rcodeServer))
			continue
		}
		askers[i].deliver(r, now)
	}
}

// deliver gives an asker its answer.
func (a *asker) deliver(r *reply, now time.Time) {
	if a.denied != nil && uint16(r.msg[3])&maskRcode == rcodeName {
		a.reply(a.denied)
		return
	}
	if len(a.chain) == 0 {
		a.reply(r.relay(&a.client, nil, a.head, now))
		return
	}
	a.reply(a.compose(r, now))
}

// compose puts the CNAMEs of ExternalName services before what upstream says
// of the last target. Its response code is kept (RFC 6604 §2.1).
func (a *asker) compose(r *reply, now time.Time) []byte {
	inner := client{end: r.end, limit: maxMessage, flags: flagRD}
	var m mdns.Msg
	if err := m.Unpack(r.relay(&inner, nil, r.msg, now)); err != nil {
		return a.fail(nil, a.head, rcodeServer)
	}
	owner, _, err := mdns.UnpackDomainName(a.head, headerLen)
	if err != nil {
		return a.fail(nil, a.head, rcodeServer)
	}
	out := &mdns.Msg{Answer: append(cnames(owner, a.chain, a.ttl), m.Answer...), Ns: m.Ns}
	out.Authoritative, out.Truncated, out.Rcode = true, m.Truncated, m.Rcode
	return a.pack(nil, a.head, out)
}

// statistics returns the forwarder's part of Stats.
func (f *forwarder) statistics() Stats {
	st := Stats{
		Forwarded: f.forwarded.Load(), Collapsed: f.collapsed.Load(), Refused: f.refused.Load(),
		Loops: f.loops.Load(), UpstreamFailures: f.failures.Load(),
		Hedged: f.hedged.Load(), Stale: f.stales.Load(), Prefetched: f.prefetched.Load(),
	}
	st.InFlight, st.Waiting = f.inFlight.Size(), f.waiting.Size()
	f.cache.mu.Lock()
	defer f.cache.mu.Unlock()
	st.CacheHits, st.CacheMisses, st.CacheEntries = f.cache.hits, f.cache.misses, len(f.cache.entries)
	st.Evicted = f.cache.evicted
	return st
}
