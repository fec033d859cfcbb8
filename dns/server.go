package dns

import (
	"context"
	"crypto/x509"
	"encoding/binary"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/netctl/netctl/dns/metrics"
	"github.com/netctl/netctl/dns/options"
	"github.com/netctl/netctl/internal/quota"
)

// Config is what a Server needs. The zero value answers the default domain
// with SERVFAIL until a Zone is published and has no upstream.
type Config struct {
	// Upstreams returns where names outside the cluster are asked, the first
	// one first. It is called for each question that goes out and must be
	// cheap; see ResolvConf. nil means none.
	Upstreams func() []netip.AddrPort
	// Refuse returns why an address of the options cannot be an upstream, such as
	// one that is routed to us; nil refuses none.
	Refuse func(netip.Addr) error
	// Namespace returns the namespace of the pod that has an address, "" if none
	// has. It is called for questions only where the options need it; nil knows none.
	Namespace func(netip.Addr) string
	// Dial opens a connection to an upstream; nil is a net.Dialer. A UDP
	// connection must be new, so that its source port is fresh, and connected,
	// so that only the upstream's packets arrive.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Logger is told of upstreams that fail; nil discards.
	Logger *slog.Logger
	// Now is the clock of the cache; nil is time.Now.
	Now func() time.Time
	// MaxInFlight bounds the questions that wait for upstream; 0 is 1000. One
	// client gets a quarter of them at most.
	MaxInFlight int
	// AttemptTimeout and TotalTimeout bound one upstream and one question;
	// 0 is 1.5 s and 4.5 s.
	AttemptTimeout, TotalTimeout time.Duration
	// HedgeAfter is how long an upstream is waited for before the next one is asked
	// beside it; 0 is as long as it usually takes, below 0 is for ever.
	HedgeAfter time.Duration
	// StaleWait is how long a client waits before it gets an answer whose time is
	// over, if there is one; 0 is 1.8 s.
	StaleWait time.Duration
	// RootCAs sign upstreams' certificates; nil is the host's.
	RootCAs *x509.CertPool
	// IdleTimeout bounds the wait for the next question of a stream; 0 is 10 s.
	IdleTimeout time.Duration
}

// Server answers queries from the Zone that was published last. Its methods
// may be called from any goroutine.
type Server struct {
	zone    atomic.Pointer[Zone]
	rules   atomic.Pointer[outside]
	forward *forwarder
	refuse  func(netip.Addr) error
	inside  func(netip.Addr) string // the namespace of a pod
	metrics metrics.Set
	log     *slog.Logger
	idle    time.Duration
	streams *quota.Quota
	dropped atomic.Uint64
}

// Stats are counts since the start, save the gauges InFlight, Waiting,
// Streams and CacheEntries.
type Stats struct {
	Dropped          uint64     // no query at all
	Replies          [16]uint64 // of Answer, by response code
	Forwarded        uint64     // questions sent upstream
	Collapsed        uint64     // clients that shared somebody's question
	Refused          uint64     // beyond a bound, of all or of the client
	UpstreamFailures uint64     // exchanges without a usable answer
	Loops            uint64     // our own queries that came back
	Hedged           uint64     // questions that went to a second upstream, because the first took long
	Stale            uint64     // answers whose time was over, for want of newer ones
	Prefetched       uint64     // questions sent before anybody missed the answer
	Evicted          uint64     // cache entries that made room
	CacheHits        uint64
	CacheMisses      uint64
	CacheEntries     int
	InFlight         int // questions that wait for upstream
	Waiting          int // clients that wait for them
	Streams          int // being served
}

// New returns a Server that knows no name yet. Run must run for Forward to
// reach an upstream.
func New(cfg Config) *Server {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		log: cfg.Logger, idle: cfg.IdleTimeout, forward: newForwarder(cfg),
		streams: quota.New(maxStreams, streamsPerClient, fairStreams),
		refuse:  cfg.Refuse, inside: cfg.Namespace,
	}
	if s.inside == nil {
		s.inside = func(netip.Addr) string { return "" }
	}
	s.rules.Store(newOutside(new(options.Options)))
	if s.idle == 0 {
		s.idle = idleTimeout
	}
	s.zone.Store(Compile(Input{}))
	return s
}

// Publish makes the server answer from z from now on.
func (s *Server) Publish(z *Zone) { s.zone.Store(z) }

// Zone returns the Zone that was published last.
func (s *Server) Zone() *Zone { return s.zone.Load() }

// Stats returns the counters.
func (s *Server) Stats() Stats {
	st := s.forward.statistics()
	st.Dropped = s.dropped.Load()
	st.Streams = s.streams.Size()
	for i := range st.Replies {
		st.Replies[i] = s.metrics.Answers(i)
	}
	return st
}

// Programmed counts that a change of the cluster took that long to be answered with.
func (s *Server) Programmed(d time.Duration) { s.metrics.Programmed(d) }

// WriteMetrics writes what was counted in Prometheus' text format.
func (s *Server) WriteMetrics(w io.Writer, version string) error {
	st := s.Stats()
	return s.metrics.Write(w, version, metrics.Forwarding{
		Hits: st.CacheHits, Misses: st.CacheMisses, Entries: uint64(st.CacheEntries), Evicted: st.Evicted, Stale: st.Stale,
		Prefetched: st.Prefetched, Refused: st.Refused, Upstreams: s.forward.upstreamCounts(),
	})
}

// Answer answers query, which came over UDP or a stream. The reply is written
// into out from its start and is valid as long as the caller keeps out; it
// does not overlap query. With Status Forward the caller passes the query to
// Forward. Answers to A and AAAA questions for names of the cluster, name
// errors, empty answers and answers from the cache allocate nothing when out
// has a capacity of MaxUDP. from is who asks; the zero Addr is nobody we know.
func (s *Server) Answer(from netip.Addr, query []byte, udp bool, out []byte) (reply []byte, st Status) {
	var q question
	fault := q.parse(query, udp)
	if fault == faultDrop {
		s.dropped.Add(1)
		return nil, Drop
	}
	start := s.metrics.Request(!udp, from.Is6(), q.qtype, q.do)
	if fault != faultNone {
		out = q.fail(out, query, fault.rcode())
		return s.count(&q, from, out, metrics.None), Answered
	}
	rules, z := s.rules.Load(), s.zone.Load()
	plugin := metrics.Kubernetes
	if rules.plain {
		out, st = z.answer(&q, query, out)
	} else {
		out, st, plugin = s.special(view{rules, z, from}, &q, query, out)
	}
	if st == Forward {
		if out = s.forward.cached(&q, query, out, rules); out == nil {
			return nil, Forward
		}
		plugin = metrics.Cache
	}
	if !start.IsZero() {
		s.metrics.Measure(!udp, len(query), len(out), start)
	}
	return s.count(&q, from, out, plugin), Answered
}

// count counts a reply by its response code, and writes it to the log if it shall
// be there.
func (s *Server) count(q *question, from netip.Addr, reply []byte, plugin metrics.Plugin) []byte {
	rcode := uint16(reply[3]) & maskRcode
	s.metrics.Response(!q.udp, rcode, plugin)
	if rules := s.rules.Load(); rules.logs != logNone {
		s.logQuery(rules, q, from, reply)
	}
	return reply
}

func (f fault) rcode() uint16 {
	switch f {
	case faultOpcode, faultType:
		return rcodeNotImp
	case faultRefused:
		return rcodeRefused
	case faultVersion:
		return rcodeVersion
	default:
		return rcodeFormat
	}
}

// answer answers from the zone, or says that the name (or the end of its
// chain of CNAMEs) is outside.
func (z *Zone) answer(q *question, query, out []byte) ([]byte, Status) {
	f := z.find(&q.name)
	if q.qtype == typeANY {
		return q.hinfo(out, query), Answered
	}
	address := q.qtype == typeA || q.qtype == typeAAAA
	switch f.kind {
	case kindOutside:
		return out, Forward
	case kindNone:
		if !z.synced {
			return q.fail(out, query, rcodeServer), Answered
		}
		return z.negative(q, query, out, &f, rcodeName), Answered
	case kindService, kindHost, kindPod:
		if address {
			return z.positive(q, query, out, &f), Answered
		}
	case kindExternal:
		if address && z.leavesZone(f.svc) {
			return out, Forward
		}
	default:
	}
	if z.hasRecords(q.qtype, f.kind) {
		if msg := z.build(q, query, &f); msg != nil {
			return q.pack(out, query, msg), Answered
		}
	}
	return z.negative(q, query, out, &f, rcodeSuccess), Answered
}

// hasRecords reports whether a kind of name can have records of the type, so
// that the answer is worth building.
func (z *Zone) hasRecords(qtype uint16, k kind) bool {
	switch qtype {
	case typeA, typeAAAA:
		return k == kindServer || k == kindPort || k == kindExternal
	case typeSRV:
		return k == kindService || k == kindPort || k == kindHost
	case typeCNAME:
		return k == kindExternal
	case typePTR:
		return k == kindReverse
	case typeTXT:
		return k == kindVersion
	case typeNS, typeSOA:
		return k == kindApex
	default:
		return false
	}
}

// positive writes the A or AAAA records of a name. The list starts at a random
// record, so that clients that take the first spread over all.
func (z *Zone) positive(q *question, query, out []byte, f *found) []byte {
	data, size := f.set.v4, 4
	if q.qtype == typeAAAA {
		data, size = f.set.v6, 16
	}
	var buf [16]byte
	if f.one.IsValid() && f.one.Is4() == (q.qtype == typeA) {
		out = q.start(out, query, flagAA)
		binary.BigEndian.PutUint16(out[6:], 1)
		if size == 4 {
			b := f.one.As4()
			copy(buf[:], b[:])
		} else {
			buf = f.one.As16()
		}
		out = z.address(out, q.qtype, size)
		return q.finish(append(out, buf[:size]...), rcodeSuccess)
	}
	n := len(data) / size
	if n == 0 {
		return z.negative(q, query, out, f, rcodeSuccess)
	}
	fit := min(n, (q.room()-q.end)/(12+size))
	flags := uint16(flagAA)
	if fit < n {
		flags |= flagTC
	}
	out = q.start(out, query, flags)
	binary.BigEndian.PutUint16(out[6:], uint16(fit))
	at := 0
	if n > 1 {
		at = int(rand.Uint32N(uint32(n)))
	}
	for range fit {
		out = z.address(out, q.qtype, size)
		out = append(out, data[at*size:at*size+size]...)
		if at++; at == n {
			at = 0
		}
	}
	return q.finish(out, rcodeSuccess)
}

// address writes the fixed part of an address record of the question's name.
func (z *Zone) address(out []byte, qtype uint16, size int) []byte {
	t := z.ttl
	return append(out, pointerToName>>8, pointerToName&0xff, 0, byte(qtype), 0, classIN,
		byte(t>>24), byte(t>>16), byte(t>>8), byte(t), 0, byte(size))
}

// negative writes an answer without records and with the SOA of the zone,
// whose names end in the question's spelling of the zone.
func (z *Zone) negative(q *question, query, out []byte, f *found, rcode uint16) []byte {
	out = q.start(out, query, flagAA|rcode)
	out[9] = 1 // NSCOUNT
	at := len(out)
	out = append(out, z.soa[:]...)
	pointer := uint16(0xc000 | headerLen + q.name.start(f.zone))
	binary.BigEndian.PutUint16(out[at:], pointer)
	binary.BigEndian.PutUint16(out[at+soaServer:], pointer)
	binary.BigEndian.PutUint16(out[at+soaMailbox:], pointer)
	return q.finish(out, rcode)
}

// hinfo answers ANY with as little as RFC 8482 §4.2 allows.
func (q *question) hinfo(out, query []byte) []byte {
	out = q.start(out, query, 0)
	out[7] = 1 // ANCOUNT
	out = append(out, pointerToName>>8, pointerToName&0xff, 0, typeHINFO, 0, classIN,
		0, 0, anyTTL>>8, anyTTL&0xff, 0, 9)
	out = append(out, "\x07RFC8482\x00"...)
	return q.finish(out, rcodeSuccess)
}
