package nodeport

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/quota"
	"github.com/netctl/netctl/internal/splice"
)

// Timeouts. Idle UDP flows end as those of Linux connection tracking do; the
// others are those of package netstack.
const (
	dialTimeout       = 30 * time.Second
	keepaliveIdle     = 2 * time.Minute
	keepaliveInterval = 30 * time.Second
	keepaliveCount    = 5
	udpUnreplied      = 30 * time.Second
	udpReplied        = 180 * time.Second
	sweepInterval     = 10 * time.Second
)

// Limits bounds what may exist at once, in total and per client: an address, of
// IPv6 a network of 64 bits. A zero field means its default. The last quarter of
// each total is kept for clients that have little.
type Limits struct {
	Conns, ConnsPerClient int // TCP connections; default 16384, 12288 (a client may be a load balancer)
	Flows, FlowsPerClient int // UDP flows; default 16384, 4096
}

// LimitsFor returns limits for a process that may have so many files open: the
// defaults, or less, so that clients cannot take more than half of them. Every
// connection and every flow may have two.
func LimitsFor(files int) Limits {
	l := Limits{}.withDefaults()
	whole := max(1, files/8)
	if whole < l.Conns {
		l.Conns, l.ConnsPerClient = whole, max(1, whole*3/4)
	}
	if whole < l.Flows {
		l.Flows, l.FlowsPerClient = whole, max(1, whole/4)
	}
	return l
}

// Files is how many descriptors the limits allow clients to take.
func (l Limits) Files() int { return 2 * (l.Conns + l.Flows) }

func (l Limits) withDefaults() Limits {
	l.Conns = cmp.Or(l.Conns, 16384)
	l.ConnsPerClient = cmp.Or(l.ConnsPerClient, 12288)
	l.Flows = cmp.Or(l.Flows, 16384)
	l.FlowsPerClient = cmp.Or(l.FlowsPerClient, 4096)
	return l
}

// Stats is a copy of the counters and gauges.
type Stats struct {
	Accepted  uint64 // TCP connections, and UDP flows that began
	NoBackend uint64 // of them, those for which there was none
	Failed    uint64 // those whose backend could not be reached
	Limited   uint64 // those that a bound refused
	Evicted   uint64 // UDP flows that gave way to a newer one
	Moved     uint64 // UDP flows whose backend was gone
	Dropped   uint64 // datagrams that no socket would take

	Listeners, Conns, Flows int // now
}

type counters struct {
	accepted, noBackend, failed, limited, evicted, moved, dropped atomic.Uint64
}

// Server holds the sockets. Its methods may be called from any goroutine.
type Server struct {
	cfg    Config // immutable after New
	log    *slog.Logger
	copier *splice.Copier
	conns  *quota.Quota
	flows  *flows
	counts counters

	closeOnce sync.Once
	done      chan struct{} // closed when closing begins
	work      sync.WaitGroup

	apply sync.Mutex // one Apply at a time

	mu        sync.Mutex
	closed    bool                  // guarded by mu; no new work
	stopped   bool                  // guarded by mu; written only with apply held too
	adopted   adoption              // guarded by mu; until the first Apply
	listeners map[listenKey]socket  // guarded by mu; written only with apply held too
	sessions  map[*session]struct{} // guarded by mu
}

// listenKey is what makes a listener another one.
type listenKey struct {
	addr  netip.AddrPort
	proto model.Protocol
}

func keyOf(l Listener) listenKey {
	return listenKey{netip.AddrPortFrom(l.Addr.Addr().Unmap(), l.Addr.Port()), l.Proto}
}

// socket is a listening socket at work.
type socket interface {
	update(want Listener) // the same address and protocol
	stop()                // takes nothing in any more; idempotent
	resume() error        // takes stop back
	duplicate() (int, error)
	close()
}

// New makes a Server without listeners. The caller owes it Run or Close.
func New(cfg Config) *Server {
	cfg.Limits = cfg.Limits.withDefaults()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Resume == nil {
		cfg.Resume = cfg.Datagrams
	}
	if cfg.DialHost == nil {
		cfg.DialHost = dialHost
	}
	if cfg.DialHostUDP == nil {
		cfg.DialHostUDP = dialHostUDP
	}
	s := &Server{
		cfg: cfg, log: cfg.Logger, copier: splice.New(), done: make(chan struct{}),
		conns:     share(cfg.Limits.Conns, cfg.Limits.ConnsPerClient),
		listeners: make(map[listenKey]socket), sessions: make(map[*session]struct{}),
	}
	s.flows = newFlows(s)
	return s
}

// share keeps enough for 256 clients of whatever size the whole is.
func share(whole, perClient int) *quota.Quota { return quota.New(whole, perClient, whole/1024) }

// Apply makes the sockets those that are wanted: others are closed, missing ones
// opened, and what is there stays as it is. What could not be opened is named in
// the error (Conflicts takes it apart); the rest works. Call it again
// later for those.
func (s *Server) Apply(want []Listener) error {
	s.apply.Lock()
	defer s.apply.Unlock()
	if s.isStopped() {
		return ErrStopped
	}
	defer s.dropAdopted()
	wanted := make(map[listenKey]Listener, len(want))
	var errs []error
	for _, l := range want {
		k := keyOf(l)
		if other, ok := wanted[k]; ok {
			if other != l {
				errs = append(errs, &ConflictError{l, fmt.Errorf("%w by %s", errTaken, other.Owner)})
			}
			continue
		}
		wanted[k] = l
	}
	for k, have := range s.current() {
		if _, ok := wanted[k]; !ok {
			s.forget(k)
			have.close() // before others are opened, which may need the port
		}
	}
	have := s.current()
	for _, l := range want {
		k := keyOf(l)
		if wanted[k] != l {
			continue
		}
		if there := have[k]; there != nil {
			there.update(l)
			continue
		}
		sock, err := s.open(l)
		if err == nil {
			err = s.remember(k, sock)
		}
		if errors.Is(err, ErrClosed) {
			return err
		}
		if err != nil {
			errs = append(errs, &ConflictError{l, err})
			continue
		}
		have[k] = sock
	}
	return errors.Join(errs...)
}

var (
	errTaken    = errors.New("the same port is wanted")
	errProtocol = errors.New("only TCP and UDP have sockets here")
)

// advice is what to do about a conflict.
func advice(e *ConflictError) string {
	port := e.Listener.Addr.Port()
	switch {
	case errors.Is(e.Err, errTaken):
		return e.Err.Error() + "; give one of them another port"
	case errors.Is(e.Err, errProtocol):
		return e.Err.Error() + "; pods reach such a node port, others do not"
	case errors.Is(e.Err, syscall.EADDRINUSE):
		return fmt.Sprintf("another program on this node uses the port; stop it (ss -lnp 'sport = :%d' shows it) or choose another port", port)
	case errors.Is(e.Err, syscall.EADDRNOTAVAIL):
		return fmt.Sprintf("%s is no address of this node; add it to an interface or remove it from the Node object", e.Listener.Addr.Addr())
	case errors.Is(e.Err, syscall.EACCES):
		return fmt.Sprintf("ports below 1024 need CAP_NET_BIND_SERVICE or net.ipv4.ip_unprivileged_port_start <= %d", port)
	case errors.Is(e.Err, syscall.EAFNOSUPPORT):
		return "this node's kernel has no such address family"
	}
	if e.Err == nil {
		return "no reason is known"
	}
	return e.Err.Error()
}

// Conflicts returns the conflicts that the error of Apply names.
func Conflicts(err error) []*ConflictError {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return nil
	}
	var out []*ConflictError
	for _, one := range joined.Unwrap() {
		if c, ok := errors.AsType[*ConflictError](one); ok {
			out = append(out, c)
		}
	}
	return out
}

// open opens the socket of a listener.
func (s *Server) open(l Listener) (socket, error) {
	switch l.Proto {
	case model.TCP:
		return s.listenTCP(l)
	case model.UDP:
		return s.listenUDP(l)
	default:
		return nil, errProtocol
	}
}

func (s *Server) current() map[listenKey]socket {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.listeners)
}

func (s *Server) forget(k listenKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.listeners, k)
}

func (s *Server) remember(k listenKey, sock socket) error {
	s.mu.Lock()
	closed := s.closed
	if !closed {
		s.listeners[k] = sock
	}
	s.mu.Unlock()
	if closed {
		sock.close()
		return ErrClosed
	}
	return nil
}

// isOurs reports whether an address and port is one of the listeners': such a
// backend would lead back here.
func (s *Server) isOurs(a netip.AddrPort, proto model.Protocol) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.listeners[listenKey{a, proto}] != nil
}

// Run ends idle UDP flows until the context ends. Then everything is closed as
// by Close.
func (s *Server) Run(ctx context.Context) error {
	defer s.Close()
	sweep := time.NewTicker(sweepInterval)
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.done:
			return ErrClosed
		case now := <-sweep.C:
			s.flows.expire(now)
		}
	}
}

// Close closes every socket, resets every connection and waits until nothing is
// left. It may be called more than once and together with Run.
func (s *Server) Close() error {
	s.closeOnce.Do(func() {
		s.mu.Lock()
		s.closed = true
		s.mu.Unlock()
		close(s.done)
		for k, l := range s.current() {
			s.forget(k)
			l.close()
		}
		s.mu.Lock()
		open := make([]*session, 0, len(s.sessions))
		for x := range s.sessions {
			open = append(open, x)
		}
		s.mu.Unlock()
		for _, x := range open {
			x.abort()
		}
		s.flows.endIf(func(*flow) bool { return true })
		s.dropAdopted()
		s.work.Wait()
	})
	return nil
}

// start runs f in a goroutine that Close waits for; false: closing, f does not
// run.
func (s *Server) start(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.work.Go(f)
	return true
}

// Stats returns the counters as they are now.
func (s *Server) Stats() Stats {
	c := &s.counts
	s.mu.Lock()
	listeners := len(s.listeners)
	s.mu.Unlock()
	return Stats{
		Accepted: c.accepted.Load(), NoBackend: c.noBackend.Load(), Failed: c.failed.Load(), Limited: c.limited.Load(),
		Evicted: c.evicted.Load(), Moved: c.moved.Load(), Dropped: c.dropped.Load(),
		Listeners: listeners, Conns: s.conns.Size(), Flows: s.flows.quota.Size(),
	}
}

// route is where a new connection goes.
type route struct {
	backend netip.AddrPort
	source  netip.AddrPort // of PathCluster
	path    Path
}

// errNoBackend: nobody serves this client.
var errNoBackend = errors.New("no backend")

// route finds the backend for a client that asked an address of l.
func (s *Server) route(l *Listener, asked, client netip.AddrPort) (route, error) {
	to := l.Target
	if !to.IsValid() {
		var ok bool
		if to, ok = s.cfg.Pick(asked, l.Proto, netip.AddrPortFrom(client.Addr().WithZone(""), client.Port())); !ok {
			s.counts.noBackend.Add(1)
			return route{}, errNoBackend
		}
	}
	var router netip.Addr
	if s.cfg.Router != nil {
		router = s.cfg.Router(to.Addr().Is4())
	}
	src, path, err := Source(client, s.cfg.Place, to, router)
	if err == nil && path == PathHost && s.isOurs(to, l.Proto) {
		err = fmt.Errorf("backend %s is a node socket itself", to)
	}
	if err != nil {
		s.counts.failed.Add(1)
		s.log.Debug("node socket has no way to a backend", "owner", l.Owner, "client", client, "backend", to, "error", err)
		return route{}, err
	}
	return route{backend: to, source: src, path: path}, nil
}

// keepAlive finds a dead end on either side.
func keepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: keepaliveIdle, Interval: keepaliveInterval, Count: keepaliveCount}
}

func dialHost(ctx context.Context, dst netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: keepAlive()}
	d.SetMultipathTCP(false)
	c, err := d.DialTCP(ctx, "tcp", netip.AddrPort{}, dst)
	if err != nil {
		return nil, err // not a typed nil
	}
	return c, nil
}

func dialHostUDP(ctx context.Context, dst netip.AddrPort) (*net.UDPConn, error) {
	var d net.Dialer
	return d.DialUDP(ctx, "udp", netip.AddrPort{}, dst)
}
