// Package netstack ends in sockets what has to end in one: the traffic of pods
// to the outside of the cluster, where no kernel NAT exists, TCP to servers that
// live in this process (DNS), and what came in by a socket of the node and goes
// on to a pod, from the client's own address. To the router it is two ports.
//
//	                    Write                                host sockets
//	router ──────────────────┬─ TCP ──> gVisor stack ──splice──> dialled first
//	   ^                     ├─ UDP ──> flow ─────────────────> connected socket
//	   │                     ├─ echo ─> flow ─────────────────> ping or raw socket
//	   │                     └─ else ─> ICMP unreachable
//	   └── Config.Out <── segments, datagrams, ICMP errors
//
//	             InboundPort.Write
//	router ──────────────────┬─ TCP ──> gVisor stack ──> net.Conn of Dial
//	   ^                     └─ UDP ──> receive of Datagrams
//	   └── Config.Inbound <── SYNs, segments, datagrams of both
//
// It is the door to gVisor's stack: no type of it appears in the exported API.
// Only TCP uses it. A datagram needs no stack, only a kernel socket for each
// (client, destination) and a header built for the answer.
//
// Invariants:
//   - Write never blocks, never keeps its buffer and never calls Config.Out:
//     the router may therefore call Write from inside Out. Answers that are
//     made in Write are queued for Run, and gVisor is only given packets that
//     it cannot answer inline (options and extension headers are taken off,
//     fragments are reassembled here, unknown segments are answered here).
//   - The destination is dialled before the pod's SYN is answered, so that a
//     pod sees what a host would: refused stays refused, unreachable stays
//     unreachable, silence stays silence.
//   - A destination that Config.Refuse refuses gets no packet at all.
//   - Everything is bounded in total and per source address (package quota),
//     and greedy pods cannot take the last quarter. Connections from the outside
//     have bounds of their own: neither side can take from the other.
//   - After Run or Close returns no goroutine and no socket of it is left.
//
// Tests need no root: a second gVisor stack plays the pod, wired to ours, and
// servers on the loopback addresses play the outside.
package netstack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/internal/quota"
	"github.com/netctl/netctl/internal/splice"
)

// Timeouts and sizes. RFC 5382 asks a NAT to keep an established connection
// for 2 h 4 min, RFC 4787 a UDP mapping for 2 minutes; Linux connection
// tracking keeps unanswered UDP for 30 s and a stream for 120 s.
const (
	defaultMTU = 1420

	dialTimeout       = 60 * time.Second // pods retry a SYN after 1, 3, 7, 15, 31, 63 s: the last finds a fresh dial
	handshakeRetries  = 4                // SYN-ACKs towards a pod, 1+2+4+8+16 s
	timeWait          = time.Second      // the path to a pod cannot reorder: no need for 2 MSL
	lingerTimeout     = 30 * time.Second // FIN_WAIT_2 after both sides are done
	keepaliveIdle     = 2 * time.Minute
	keepaliveInterval = 30 * time.Second
	keepaliveCount    = 5
	sweepInterval     = 30 * time.Second
	idleSweeps        = 24 * 60 * 2 // of sweepInterval: 24 h without a byte either way
	halfClosedSweeps  = 20          // 10 min without a byte when one side has closed (RFC 5382: at least 4 min)

	udpUnreplied = 30 * time.Second
	udpReplied   = 180 * time.Second
	udpDNS       = 10 * time.Second // port 53 after an answer (RFC 4787 REQ-5 a: well-known ports may be shorter)
	echoIdle     = 30 * time.Second

	fragmentTimeout = 2 * time.Second
	fragmentsPerPod = 8
	fragmentsTotal  = 128
	answerQueue     = 512                 // packets that Write made and Run sends
	bufferSize      = packet.MaxSize + 64 // an IPv6 datagram may be longer than a packet: see it, do not cut it
	abortInterval   = 20 * time.Millisecond
)

// Config is what New needs. Only Out is required.
type Config struct {
	// Out takes a packet towards the router: virtio-net header and IP packet,
	// maybe a super-packet. The buffer is borrowed until Out returns and Out
	// may change it. It is called from several goroutines at once, but never
	// from inside Write, and sometimes with the lock of a connection held:
	// it must not wait for another packet.
	Out func(buf []byte)

	// Inbound is like Out for the packets of connections that Dial and
	// Datagrams open; nil: they open none.
	Inbound func(buf []byte)

	// DialTCP opens a connection on behalf of a pod; nil means a net.Dialer.
	// Its error decides what the pod sees: connection refused becomes a
	// reset, host or network unreachable the ICMP error, a timeout nothing.
	DialTCP func(ctx context.Context, dst netip.AddrPort) (net.Conn, error)
	// DialUDP opens a connected datagram socket; nil means a net.Dialer.
	DialUDP func(ctx context.Context, dst netip.AddrPort) (*net.UDPConn, error)

	// Translate returns where a TCP connection or a flow of datagrams to dst really
	// goes: a virtual address has a backend of its own family. It is asked once for
	// each, before anything is dialled, and its error counts as DialTCP's would. Of
	// pings, which have no ports, only the error counts. nil: to dst itself.
	Translate func(proto uint8, src, dst netip.AddrPort) (netip.AddrPort, error)
	// Holds reports whether a flow of datagrams to dst may go on with the backend
	// that Translate chose. It is asked for every datagram; when it may not,
	// Translate is asked again. nil: it always may.
	Holds func(dst, backend netip.AddrPort) bool

	// Serve returns the in-process TCP server of a destination, nil when
	// there is none. Its handshake completes at once. The server owns the
	// connection until it returns.
	Serve func(dst netip.AddrPort) func(net.Conn)

	// Refuse says why nothing may be sent to an address (after Translate) on
	// behalf of a pod; nil means HostGuard. It replaces the default, so call that
	// too.
	Refuse func(dst netip.Addr) error

	// Router4 and Router6 are the sources of ICMP errors made here. Unset,
	// the error comes from the destination itself.
	Router4, Router6 netip.Addr

	MTU    int // of the pods; default 1420
	Limits Limits
	// Files is how many descriptors the process may have open: every
	// connection, flow and ping is one. The totals of Limits become smaller
	// where they would not fit, with room for everything else. 0: they fit.
	Files  int
	Logger *slog.Logger // nil: silent
}

// Validate reports everything that is wrong with the configuration.
func (c *Config) Validate() error {
	var errs []error
	if c.Out == nil {
		errs = append(errs, errors.New("no output"))
	}
	if c.MTU != 0 && (c.MTU < 1280 || c.MTU > 65535) {
		errs = append(errs, fmt.Errorf("mtu %d is not within 1280 and 65535", c.MTU))
	}
	if c.Files < 0 {
		errs = append(errs, fmt.Errorf("%d files", c.Files))
	}
	if c.Router4.IsValid() && !c.Router4.Is4() {
		errs = append(errs, fmt.Errorf("router address %s is not IPv4", c.Router4))
	}
	if c.Router6.IsValid() && !c.Router6.Is6() {
		errs = append(errs, fmt.Errorf("router address %s is not IPv6", c.Router6))
	}
	return errors.Join(errs...)
}

// ErrClosed is what Write answers after Close, or after Run has returned.
var ErrClosed = errors.New("netstack is closed")

// Stack is the port. Its methods may be called from any goroutine.
type Stack struct {
	cfg Config // immutable after New
	log *slog.Logger

	stack     *stack.Stack
	link      *link // segments of connections that pods open
	inLink    *link // and of those that Dial opens
	forwarder *tcp.Forwarder

	dials, conns *quota.Quota // of pods
	inConns      *quota.Quota // of clients outside
	datagrams    *datagrams
	inFlows      *inFlows
	fragments    *fragments
	answers      chan answer
	counters     counters
	buffers      sync.Pool // *[bufferSize]byte
	copier       *splice.Copier
	fragmentID   atomic.Uint32
	began        time.Time // immutable; what flow times count from
	live         live
	heir         atomic.Pointer[heirRef]     // nil: this stack serves
	elder        atomic.Pointer[Inheritance] // nil: nothing is left of a predecessor

	closing   atomic.Bool
	closeOnce sync.Once
	done      chan struct{} // closed when closing begins
	work      sync.WaitGroup

	mu       sync.Mutex
	stopped  bool                  // guarded by mu; no new work
	attempts map[connKey]*attempt  // guarded by mu; SYNs being dialled
	open     map[*spliced]struct{} // guarded by mu; established connections
}

// New makes the port. It starts gVisor's own workers, so the caller owes it
// Run or Close.
func New(cfg Config) (*Stack, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("netstack: %w", err)
	}
	cfg.Limits.setDefaults()
	if cfg.MTU == 0 {
		cfg.MTU = defaultMTU
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Files > 0 && cfg.Limits.fit(cfg.Files) {
		cfg.Logger.Warn("the limit of open files bounds connections to the outside: raise it",
			"files", cfg.Files, "connections", cfg.Limits.Conns, "flows", cfg.Limits.Flows)
	}
	if cfg.DialTCP == nil {
		cfg.DialTCP = dialTCP
	}
	if cfg.DialUDP == nil {
		cfg.DialUDP = dialUDP
	}
	if cfg.Refuse == nil {
		cfg.Refuse = new(HostGuard).Refuse
	}
	s := &Stack{
		cfg:      cfg,
		log:      cfg.Logger,
		dials:    share(cfg.Limits.Dials, cfg.Limits.DialsPerPod),
		conns:    share(cfg.Limits.Conns, cfg.Limits.ConnsPerPod),
		inConns:  share(cfg.Limits.Inbound, cfg.Limits.InboundPerClient),
		answers:  make(chan answer, answerQueue),
		done:     make(chan struct{}),
		began:    time.Now(),
		copier:   splice.New(),
		attempts: make(map[connKey]*attempt),
		open:     make(map[*spliced]struct{}),
		live:     live{tuples: make(map[packet.Tuple]count)},
	}
	s.buffers.New = func() any { return new([bufferSize]byte) }
	s.fragments = newFragments(&s.counters)
	s.datagrams = newDatagrams(s)
	s.inFlows = newInFlows(s)
	if err := s.startTCP(); err != nil {
		return nil, fmt.Errorf("netstack: %w", err)
	}
	return s, nil
}

// Write takes one packet from the router: the datapath's port. The buffer is
// not kept. A packet that cannot be used is counted, and answered with an ICMP
// error or a reset where the protocols ask for one; the error is ErrClosed or
// nil.
func (s *Stack) Write(buf []byte) error { return s.write(buf, s.link) }

// write takes one packet that came for one of the two links.
func (s *Stack) write(buf []byte, on *link) error {
	if s.closing.Load() {
		return ErrClosed
	}
	if p, ok := s.parse(buf); ok {
		s.receive(&p, on)
	}
	return nil
}

func (s *Stack) parse(buf []byte) (packet.Packet, bool) {
	p := packet.Packet{Buf: buf}
	if len(buf) < packet.VNetLen || packet.Parse(&p) != packet.FaultNone {
		s.counters.drop(DropMalformed)
		return p, false
	}
	return p, true
}

// receive takes a parsed packet; reassembled ones come here again. What belongs to
// a connection of the predecessor goes there.
func (s *Stack) receive(p *packet.Packet, on *link) {
	switch p.Kind {
	case packet.KindFirstFragment, packet.KindLaterFragment:
		s.reassemble(p, on)
		return
	case packet.KindICMPError, packet.KindNone, packet.KindWhole:
	}
	if e := s.elder.Load(); e != nil && e.take(p, on) {
		return
	}
	s.dispatch(p, on)
}

// dispatch takes what is this stack's own, which is no fragment.
func (s *Stack) dispatch(p *packet.Packet, on *link) {
	if p.Kind == packet.KindICMPError {
		s.receiveError(p)
		return
	}
	switch {
	case p.Tuple.Proto == packet.ProtoTCP:
		s.injectTCP(p, on)
	case p.Tuple.Proto == packet.ProtoUDP && s.inFlows.receive(p):
	case on == s.inLink:
		s.refuseReply(p)
	case p.Tuple.Proto == packet.ProtoUDP:
		s.datagrams.receiveUDP(p)
	case p.Tuple.Proto == packet.ProtoICMP, p.Tuple.Proto == packet.ProtoICMPv6:
		s.datagrams.receiveEcho(p)
	default:
		s.counters.drop(DropProtocol)
		s.answerProtocolUnreachable(p)
	}
}

// Run sends the answers that Write makes and ends idle connections, until the
// context ends. Then everything is closed as by Close.
func (s *Stack) Run(ctx context.Context) error {
	defer s.Close()
	sweep := time.NewTicker(sweepInterval)
	defer sweep.Stop()
	expire := time.NewTicker(fragmentTimeout / 2)
	defer expire.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.done:
			return ErrClosed
		case a := <-s.answers:
			s.deliver(a)
		case <-sweep.C:
			s.sweep()
		case now := <-expire.C:
			s.fragments.expire(now)
		}
	}
}

// Close resets every connection, closes every socket and waits until nothing
// is left. It may be called more than once and together with Run.
func (s *Stack) Close() error {
	s.closeOnce.Do(s.shutdown)
	return nil
}

func (s *Stack) shutdown() {
	s.closing.Store(true)
	s.mu.Lock()
	s.stopped = true
	for _, a := range s.attempts {
		a.stop()
	}
	s.mu.Unlock()
	close(s.done)
	s.datagrams.close()
	s.inFlows.close()
	for _, c := range s.connections(func(*spliced) bool { return true }) {
		c.abort()
	}
	s.awaitWork()
	s.stack.Close()
	s.stack.Wait()
}

// awaitWork waits for the goroutines. An attempt whose dial was just done may
// still begin a handshake, which only an abort ends early: so again and again.
func (s *Stack) awaitWork() {
	idle := make(chan struct{})
	go func() {
		defer close(idle)
		s.work.Wait()
	}()
	again := time.NewTicker(abortInterval)
	defer again.Stop()
	for {
		for _, e := range s.stack.RegisteredEndpoints() {
			e.Abort()
		}
		select {
		case <-idle:
			return
		case <-again.C:
		}
	}
}

// Forget ends everything that an address has here: resets its connections and
// closes its flows. Call it when the pod is gone, before its address is given
// to another one.
func (s *Stack) Forget(pod netip.Addr) {
	s.mu.Lock()
	for key, a := range s.attempts {
		if key.src.Addr() == pod {
			a.stop()
		}
	}
	s.mu.Unlock()
	for _, c := range s.connections(func(c *spliced) bool { return c.key.src.Addr() == pod }) {
		c.abort()
	}
	s.datagrams.forget(pod)
	s.inFlows.forget(pod)
	if e := s.elder.Load(); e != nil {
		e.from.Forget(pod)
	}
}

// start runs f in a goroutine that shutdown waits for; false: closing, f does
// not run.
func (s *Stack) start(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return false
	}
	s.work.Go(func() {
		f()
	})
	return true
}

// buffer lends a buffer that holds any packet; give it back with s.buffers.Put.
func (s *Stack) buffer() *[bufferSize]byte {
	return s.buffers.Get().(*[bufferSize]byte)
}
