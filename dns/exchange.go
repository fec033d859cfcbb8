package dns

import (
	"cmp"
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/netctl/netctl/dns/metrics"
	"github.com/netctl/netctl/dns/options"
)

// ownID marks that call.ids holds an id: 0 is an id, too.
const ownID = 1 << 16

var (
	errWrongAnswer = errors.New("no answer with our id and question")
	errMalformed   = errors.New("answer is malformed")
)

// exchanger sends one question to one upstream after the other until one of
// them gives an answer that can be used. One that takes its time gets company: the
// next upstream is asked as well, and who answers first counts.
type exchanger struct {
	upstreams func() []netip.AddrPort
	dial      func(ctx context.Context, network, address string) (net.Conn, error)
	refuse    func(netip.Addr) error
	attempt   time.Duration
	hedge     time.Duration // 0: as long as the upstream usually takes; below 0: never
	log       *slog.Logger
	failures  atomic.Uint64
	hedged    atomic.Uint64
	streams   pool

	healthMu sync.Mutex
	health   map[options.Upstream]*health // guarded by healthMu
	turn     int                          // of round robin; guarded by healthMu
}

// health is what is remembered of an upstream.
type health struct {
	fails    int           // in a row
	until    time.Time     // asked last until then
	mean     time.Duration // of the time that answers take; 0: not known
	variance time.Duration
	asked    uint64
	failed   uint64
}

func newExchanger(cfg Config) *exchanger {
	e := &exchanger{
		upstreams: cfg.Upstreams, dial: cfg.Dial, attempt: cmp.Or(cfg.AttemptTimeout, attemptTimeout), hedge: cfg.HedgeAfter,
		refuse: cfg.Refuse, log: cfg.Logger, health: map[options.Upstream]*health{},
	}
	if e.dial == nil {
		e.dial = new(net.Dialer).DialContext
	}
	e.streams = pool{dial: e.dial, roots: cfg.RootCAs}
	return e
}

// outcome is what became of a question at one upstream.
type outcome struct {
	reply *reply
	err   error
}

// exchange asks the upstreams in order. nil means that nobody gave an answer
// that can be used. When it returns nobody is asked any more.
func (e *exchanger) exchange(ctx context.Context, c *call, list []options.Upstream) *reply {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	results := make(chan outcome, len(list))
	next, out := 0, 0
	start := func() {
		up := list[next]
		next++
		out++
		wg.Go(func() {
			began, patience := time.Now(), e.patience(up)
			r, err := e.ask(ctx, c, up)
			took := time.Since(began)
			if ctx.Err() == nil || err == nil || e.hedge >= 0 && took > patience {
				e.report(up, took, err) // who was overtaken by another one failed, too
			}
			results <- outcome{r, err}
		})
	}
	var fallback *reply // SERVFAIL, REFUSED or a truncated answer
	for ctx.Err() == nil {
		if out == 0 {
			if next == len(list) {
				break
			}
			start()
		}
		company := make(<-chan time.Time)
		if next < len(list) && out < maxHedged && e.hedge >= 0 {
			company = time.After(e.patience(list[next-1]))
		}
		select {
		case o := <-results:
			out--
			if o.err != nil {
				continue
			}
			if e.usable(o.reply) {
				return o.reply
			}
			fallback = cmp.Or(fallback, o.reply)
		case <-company:
			e.hedged.Add(1)
			start()
		case <-ctx.Done():
		}
	}
	if ctx.Err() == context.Canceled {
		return nil
	}
	return fallback
}

// usable reports whether an answer ends the search for one.
func (e *exchanger) usable(r *reply) bool {
	switch uint16(r.msg[3]) & maskRcode {
	case rcodeServer, rcodeRefused, rcodeNotImp, rcodeFormat:
		e.failures.Add(1)
		return false
	}
	return r.msg[2]&(flagTC>>8) == 0 // else the stream failed: a part is better than nothing
}

// patience is how long an upstream is waited for before the next one is asked, too:
// longer than nearly all of its answers take.
func (e *exchanger) patience(up options.Upstream) time.Duration {
	if e.hedge > 0 {
		return e.hedge
	}
	e.healthMu.Lock()
	defer e.healthMu.Unlock()
	h := e.health[up]
	if h == nil || h.mean == 0 {
		return hedgeUnknown
	}
	return min(max(h.mean+4*h.variance, hedgeLeast), hedgeMost) // as RFC 6298 sets a timer
}

// order returns the upstreams of a route: as its policy says, those last that failed
// just now, and none that is this server.
func (e *exchanger) order(z *Zone, rt *route) []options.Upstream {
	list := rt.upstreams
	if rt.resolvers {
		list = nil
		if e.upstreams != nil {
			for _, a := range e.upstreams() {
				list = append(list, options.Upstream{Addr: a, Transport: options.UDP})
			}
		}
	}
	e.healthMu.Lock()
	defer e.healthMu.Unlock()
	first := 0
	switch {
	case len(list) < 2:
	case rt.policy == options.Random:
		first = rand.IntN(len(list))
	case rt.policy == options.RoundRobin:
		first = e.turn % len(list)
		e.turn++
	}
	var up, down []options.Upstream
	now := time.Now()
	for i := range list {
		u := list[(first+i)%len(list)]
		switch h := e.health[u]; {
		case !u.Addr.IsValid() || slices.Contains(z.addresses, u.Addr.Addr().Unmap()):
		case !rt.resolvers && e.refuse != nil && e.refuse(u.Addr.Addr()) != nil: // it may have become ours since
		case h != nil && now.Before(h.until):
			down = append(down, u)
		default:
			up = append(up, u)
		}
	}
	return append(up, down...)
}

// upstreamCounts returns how often upstreams were asked.
func (e *exchanger) upstreamCounts() []metrics.Upstream {
	e.healthMu.Lock()
	defer e.healthMu.Unlock()
	var out []metrics.Upstream
	for u, h := range e.health {
		out = append(out, metrics.Upstream{To: u.String(), Asked: h.asked, Failed: h.failed})
	}
	slices.SortFunc(out, func(a, b metrics.Upstream) int { return cmp.Compare(a.To, b.To) })
	return out
}

// report remembers how an exchange went and logs a change for the worse once.
func (e *exchanger) report(up options.Upstream, took time.Duration, err error) {
	if err != nil {
		e.failures.Add(1)
	}
	e.healthMu.Lock()
	defer e.healthMu.Unlock()
	h := e.health[up]
	if h == nil {
		if len(e.health) >= maxHealth { // resolvers that come and go
			clear(e.health)
		}
		h = &health{}
		e.health[up] = h
	}
	h.asked++
	if err == nil {
		h.fails, h.until = 0, time.Time{}
		if h.mean == 0 {
			h.mean, h.variance = took, took/2
			return
		}
		h.variance += ((took - h.mean).Abs() - h.variance) / 4
		h.mean += (took - h.mean) / 8
		return
	}
	h.failed++
	if h.fails++; h.fails < 2 {
		return
	}
	h.until = time.Now().Add(downTime)
	if h.fails == 2 {
		e.log.Warn("dns upstream does not answer", "upstream", up, "error", err)
	}
}

// ask asks one upstream: UDP, without EDNS when it does not know that, and a
// stream when the answer is truncated or the upstream has nothing else.
func (e *exchanger) ask(ctx context.Context, c *call, up options.Upstream) (*reply, error) {
	ctx, cancel := context.WithTimeout(ctx, e.attempt)
	defer cancel()
	if up.Transport == options.TCP || up.Transport == options.TLS {
		return e.overStream(ctx, c, up)
	}
	r, err := e.roundTrip(ctx, c, up.Addr, "udp", true)
	if err == nil && uint16(r.msg[3])&maskRcode == rcodeFormat {
		r, err = e.roundTrip(ctx, c, up.Addr, "udp", false)
	}
	if err != nil || r.msg[2]&(flagTC>>8) == 0 {
		return r, err
	}
	whole, err := e.roundTrip(ctx, c, up.Addr, "tcp", true)
	if err != nil {
		return r, nil // the truncated answer is one, and exchange knows it
	}
	return whole, nil
}

// overStream asks over a connection that is kept for the next question. One that
// was kept may have ended meanwhile: then a new one is tried.
func (e *exchanger) overStream(ctx context.Context, c *call, up options.Upstream) (*reply, error) {
	for {
		conn, kept, err := e.streams.get(ctx, up)
		if err != nil {
			return nil, err
		}
		r, err := e.onStream(ctx, c, conn)
		if err == nil && e.streams.put(up, conn) {
			return r, nil
		}
		_ = conn.Close()
		if err == nil || !kept || ctx.Err() != nil {
			return r, err
		}
	}
}

// onStream asks one question over a connection, which stays usable if there is no
// error.
func (e *exchanger) onStream(ctx context.Context, c *call, conn net.Conn) (*reply, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	query, done, err := c.query(true)
	if err != nil {
		stop()
		return nil, err
	}
	defer done()
	msg, err := exchangeStream(conn, query)
	if !stop() && err == nil {
		err = ctx.Err() // its deadline is over
	}
	if err != nil {
		return nil, err
	}
	return accept(msg, query[:headerLen+len(c.ask.wire)+4])
}

// roundTrip sends the question over a connection of its own, with a random id.
func (e *exchanger) roundTrip(ctx context.Context, c *call, up netip.AddrPort, network string, edns bool) (*reply, error) {
	conn, err := e.dial(ctx, network, up.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	query, done, err := c.query(edns)
	if err != nil {
		return nil, err
	}
	defer done()
	end := headerLen + len(c.ask.wire) + 4
	if network == "tcp" {
		msg, err := exchangeStream(conn, query)
		if err != nil {
			return nil, err
		}
		return accept(msg, query[:end])
	}
	if _, err := conn.Write(query); err != nil {
		return nil, err
	}
	buf := make([]byte, 4096)
	for range maxWrong {
		n, err := conn.Read(buf)
		if err != nil {
			return nil, err
		}
		r, err := accept(buf[:n], query[:end])
		if errors.Is(err, errWrongAnswer) {
			continue // somebody guesses: the true answer may still come
		}
		return r, err
	}
	return nil, errWrongAnswer
}

// exchangeStream sends and reads one message with its length in front.
func exchangeStream(conn net.Conn, query []byte) ([]byte, error) {
	b := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(query)), uint16(len(query)))
	if _, err := conn.Write(append(b, query...)); err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(conn, b[:2]); err != nil {
		return nil, err
	}
	msg := make([]byte, binary.BigEndian.Uint16(b[:2]))
	_, err := io.ReadFull(conn, msg)
	return msg, err
}

// query writes the call's question with a random id, by which it is known until
// done.
func (c *call) query(edns bool) (msg []byte, done func(), err error) {
	var random [2]byte
	if _, err := crand.Read(random[:]); err != nil {
		return nil, nil, err
	}
	id := binary.BigEndian.Uint16(random[:])
	for i := range c.ids {
		if c.ids[i].CompareAndSwap(0, uint32(id)|ownID) {
			return c.ask.query(id, edns), func() { c.ids[i].Store(0) }, nil
		}
	}
	return c.ask.query(id, edns), func() {}, nil
}

// query writes the question for upstream.
func (a *ask) query(id uint16, edns bool) []byte {
	flags := uint16(flagAD) // we understand AD (RFC 6840 §5.7)
	if a.flags&keyRD != 0 {
		flags |= flagRD
	}
	if a.flags&keyCD != 0 {
		flags |= flagCD
	}
	b := make([]byte, headerLen, headerLen+len(a.wire)+4+optLen)
	binary.BigEndian.PutUint16(b, id)
	binary.BigEndian.PutUint16(b[2:], flags)
	b[5] = 1
	b = append(b, a.wire...)
	b = append(b, byte(a.qtype>>8), byte(a.qtype), 0, classIN)
	c := client{opt: edns, do: a.flags&keyDO != 0}
	return c.finish(b, rcodeSuccess)
}

// accept checks that msg answers the query, whose header and question it gets.
// The reply shares no memory with msg, bears id 0 and our spelling.
func accept(msg, query []byte) (*reply, error) {
	end := len(query)
	if len(msg) < headerLen || msg[0] != query[0] || msg[1] != query[1] ||
		msg[2]&(flagQR>>8) == 0 || binary.BigEndian.Uint16(msg[2:])&maskOpcode != 0 {
		return nil, errWrongAnswer
	}
	count := binary.BigEndian.Uint16(msg[4:])
	if rcode := uint16(msg[3]) & maskRcode; count == 0 && rcode != rcodeSuccess && rcode != rcodeName {
		// An error may come without the question (RFC 1035 does not say).
		b := append([]byte{0, 0, msg[2], msg[3], 0, 1, 0, 0, 0, 0, 0, 0}, query[headerLen:]...)
		return &reply{msg: b, end: end}, nil
	}
	var n name
	if count != 1 || len(msg) < end || n.parse(msg[headerLen:]) != end-headerLen-4 ||
		string(n.wire[:n.len]) != string(query[headerLen:end-4]) ||
		string(msg[end-4:end]) != string(query[end-4:end]) {
		return nil, errWrongAnswer
	}
	b := append([]byte(nil), msg...)
	b[0], b[1] = 0, 0
	copy(b[headerLen:end], query[headerLen:end])
	r, ok := parseReply(b, end)
	if !ok {
		return nil, errMalformed
	}
	return r, nil
}

// withoutOPT takes an OPT out that is not the last record, which moves what
// follows it: the message is written anew.
func withoutOPT(msg []byte, end int) (*reply, bool) {
	var m mdns.Msg
	if err := m.Unpack(msg); err != nil {
		return nil, false
	}
	m.Extra = slices.DeleteFunc(m.Extra, func(rr mdns.RR) bool { return rr.Header().Rrtype == typeOPT })
	m.Compress = true
	b, err := m.Pack()
	if err != nil || len(b) > maxMessage {
		return nil, false
	}
	return parseReply(b, end)
}
