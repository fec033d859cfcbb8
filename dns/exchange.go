package dns

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	mdns "github.com/miekg/dns"
)

// ownID marks that call.id holds an id: 0 is an id, too.
const ownID = 1 << 16

var (
	errWrongAnswer = errors.New("no answer with our id and question")
	errMalformed   = errors.New("answer is malformed")
)

// exchanger sends one question to one upstream after the other until one of
// them gives an answer that can be used.
type exchanger struct {
	upstreams func() []netip.AddrPort
	dial      func(ctx context.Context, network, address string) (net.Conn, error)
	attempt   time.Duration
	log       *slog.Logger
	failures  atomic.Uint64

	healthMu sync.Mutex
	health   map[netip.AddrPort]*health // guarded by healthMu
}

// health is what is remembered of an upstream.
type health struct {
	fails int       // in a row
	until time.Time // asked last until then
}

func newExchanger(cfg Config) *exchanger {
	e := &exchanger{
		upstreams: cfg.Upstreams, dial: cfg.Dial, attempt: cmp.Or(cfg.AttemptTimeout, attemptTimeout),
		log: cfg.Logger, health: map[netip.AddrPort]*health{},
	}
	if e.dial == nil {
		e.dial = new(net.Dialer).DialContext
	}
	return e
}

// exchange asks the upstreams in order. nil means that nobody gave an answer
// that can be used.
func (e *exchanger) exchange(ctx context.Context, c *call, z *Zone) *reply {
	var fallback *reply // SERVFAIL, REFUSED or a truncated answer
	for _, up := range e.order(z) {
		if ctx.Err() != nil {
			break
		}
		r, err := e.ask(ctx, c, up)
		if ctx.Err() == context.Canceled {
			return nil
		}
		e.report(up, err)
		if err != nil {
			continue
		}
		switch uint16(r.msg[3]) & maskRcode {
		case rcodeServer, rcodeRefused, rcodeNotImp, rcodeFormat:
			e.failures.Add(1)
			fallback = cmp.Or(fallback, r)
			continue
		}
		if r.msg[2]&(flagTC>>8) != 0 {
			fallback = r // the stream failed: a part is better than nothing
			continue
		}
		return r
	}
	return fallback
}

// order returns the upstreams: in the configured order, those last that failed
// just now, and none that is this server.
func (e *exchanger) order(z *Zone) []netip.AddrPort {
	if e.upstreams == nil {
		return nil
	}
	var up, down []netip.AddrPort
	e.healthMu.Lock()
	defer e.healthMu.Unlock()
	list := e.upstreams()
	now := time.Now()
	for _, a := range list {
		switch h := e.health[a]; {
		case !a.IsValid() || slices.Contains(z.addresses, a.Addr().Unmap()):
		case h != nil && now.Before(h.until):
			down = append(down, a)
		default:
			up = append(up, a)
		}
	}
	for a := range e.health { // forget what is configured no more
		if !slices.Contains(list, a) {
			delete(e.health, a)
		}
	}
	return append(up, down...)
}

// report remembers how an exchange went and logs a change for the worse once.
func (e *exchanger) report(up netip.AddrPort, err error) {
	if err != nil {
		e.failures.Add(1)
	}
	e.healthMu.Lock()
	defer e.healthMu.Unlock()
	h := e.health[up]
	switch {
	case err == nil:
		delete(e.health, up)
		return
	case h == nil:
		h = &health{}
		e.health[up] = h
	}
	if h.fails++; h.fails < 2 {
		return
	}
	h.until = time.Now().Add(downTime)
	if h.fails == 2 {
		e.log.Warn("dns upstream does not answer", "upstream", up, "error", err)
	}
}

// ask asks one upstream: UDP, without EDNS when it does not know that, and a
// stream when the answer is truncated.
func (e *exchanger) ask(ctx context.Context, c *call, up netip.AddrPort) (*reply, error) {
	ctx, cancel := context.WithTimeout(ctx, e.attempt)
	defer cancel()
	r, err := e.roundTrip(ctx, c, up, "udp", true)
	if err == nil && uint16(r.msg[3])&maskRcode == rcodeFormat {
		r, err = e.roundTrip(ctx, c, up, "udp", false)
	}
	if err != nil || r.msg[2]&(flagTC>>8) == 0 {
		return r, err
	}
	whole, err := e.roundTrip(ctx, c, up, "tcp", true)
	if err != nil {
		return r, nil // the truncated answer is one, and exchange knows it
	}
	return whole, nil
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
	var random [2]byte
	if _, err := rand.Read(random[:]); err != nil {
		return nil, err
	}
	id := binary.BigEndian.Uint16(random[:])
	c.id.Store(uint32(id) | ownID)
	defer c.id.Store(0)

	query := c.ask.query(id, edns)
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
