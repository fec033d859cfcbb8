package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/quota"
)

// Where kube-proxy answers by default, and so do we.
const (
	DefaultHealthzAddress = "0.0.0.0:10256"
	DefaultMetricsAddress = "127.0.0.1:10249"
)

// The bounds of what clients can have: health checks are one short request on a
// connection of its own.
const (
	headerTime = 2 * time.Second
	answerTime = 10 * time.Second
	maxHeader  = 8 << 10
	maxConns   = 128 // of one listener
	perClient  = 16  // of them for one client, and
	fairShare  = 4   // while most are taken
)

// Config is what New needs.
type Config struct {
	// HealthzAddress and MetricsAddress are where the proxy's own health and its
	// counters are served; "" for nowhere. Of an address without a host, 0.0.0.0 or
	// ::, both families are.
	HealthzAddress, MetricsAddress string
	Mode                           string // what /proxyMode says
	// NoLocal counts service ports of policy Local, internal and external, whose
	// endpoints are all elsewhere; nil: 0.
	NoLocal func() (internal, external int)
	More    func(io.Writer) // writes further metrics; may be nil
	Logger  *slog.Logger
}

// Check is a service's healthCheckNodePort on one address of the node.
type Check struct {
	Service model.Name
	At      netip.AddrPort
	Local   int // addresses of ready endpoints on this node
}

// PortError says that a port cannot be had.
type PortError struct {
	Service model.Name // the zero Name: the proxy's own
	At      string
	Err     error
}

// Error names the port and whose it is.
func (e *PortError) Error() string {
	whose := "the proxy's own health"
	if e.Service != (model.Name{}) {
		whose = "the health check of service " + e.Service.String()
	}
	return fmt.Sprintf("cannot listen on %s for %s: %v", e.At, whose, e.Err)
}

// Unwrap returns the kernel's word.
func (e *PortError) Unwrap() error { return e.Err }

// Server has the sockets. Its methods may be called from any goroutine.
type Server struct {
	cfg    Config
	state  state
	counts *metrics

	mu   sync.Mutex
	open map[string]*endpoint // guarded by mu, by address

	turn turn // the loop's own
}

// endpoint is one listening socket with its HTTP server.
type endpoint struct {
	http  *http.Server
	svc   model.Name
	local atomic.Int64
}

// New returns a Server that listens nowhere yet.
func New(cfg Config) *Server {
	return &Server{
		cfg: cfg, counts: newMetrics(), open: make(map[string]*endpoint),
		state: state{now: time.Now, eligible: true},
	}
}

// SetEligible says whether the node is to stay: load balancers leave one that is
// not (HC-6).
func (s *Server) SetEligible(yes bool) { s.state.setEligible(yes) }

// Apply opens and closes sockets, so that there are those of the checks and the
// Config's own. What cannot be had is returned; Apply may be called again.
func (s *Server) Apply(checks []Check) []*PortError {
	s.mu.Lock()
	defer s.mu.Unlock()
	want := map[string]bool{}
	var errs []*PortError
	for addr, handler := range map[string]func() http.Handler{s.cfg.HealthzAddress: s.healthz, s.cfg.MetricsAddress: s.metrics} {
		if addr == "" {
			continue
		}
		want[addr] = true
		if s.open[addr] == nil {
			if err := s.listen(addr, &endpoint{}, handler()); err != nil {
				errs = append(errs, &PortError{At: addr, Err: err})
			}
		}
	}
	for _, c := range checks {
		addr := c.At.String()
		want[addr] = true
		e := s.open[addr]
		if e != nil && e.svc != c.Service { // the port has gone from one service to another
			s.shut(addr)
			e = nil
		}
		if e != nil {
			e.local.Store(int64(c.Local))
			continue
		}
		e = &endpoint{svc: c.Service}
		e.local.Store(int64(c.Local))
		handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { s.serveService(w, e.svc, int(e.local.Load())) })
		if err := s.listen(addr, e, handler); err != nil {
			errs = append(errs, &PortError{Service: c.Service, At: addr, Err: err})
		}
	}
	for addr := range s.open {
		if !want[addr] {
			s.shut(addr)
		}
	}
	slices.SortFunc(errs, func(a, b *PortError) int { return a.Service.Compare(b.Service) })
	return errs
}

// listen opens a socket and serves on it; mu is held.
func (s *Server) listen(addr string, e *endpoint, handler http.Handler) error {
	var lc net.ListenConfig
	l, err := lc.Listen(context.Background(), "tcp", everywhere(addr))
	if err != nil {
		return err
	}
	e.http = &http.Server{
		Handler: handler, ReadHeaderTimeout: headerTime, ReadTimeout: headerTime, WriteTimeout: answerTime, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelDebug),
	}
	e.http.SetKeepAlivesEnabled(false)
	s.open[addr] = e
	go func() {
		if err := e.http.Serve(&bounded{Listener: l, quota: quota.New(maxConns, perClient, fairShare)}); !errors.Is(err, http.ErrServerClosed) {
			s.cfg.Logger.Warn("health server ended", "address", addr, "error", err)
		}
	}()
	return nil
}

// everywhere makes the unspecified addresses those of both families, as kube-proxy
// does on hosts of both.
func everywhere(addr string) string {
	at, err := netip.ParseAddrPort(addr)
	if err != nil || !at.Addr().IsUnspecified() || at.Port() == 0 {
		return addr
	}
	return fmt.Sprintf(":%d", at.Port())
}

// shut closes a socket and what came by it; mu is held.
func (s *Server) shut(addr string) {
	_ = s.open[addr].http.Close() // there is nothing to be done about a failure
	delete(s.open, addr)
}

// Close closes all sockets, until Apply opens them again.
func (s *Server) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for addr := range s.open {
		s.shut(addr)
	}
}

// bounded is a listener that has so many connections at once at most, and few of one
// client: the others are closed, which a client notices at once.
type bounded struct {
	net.Listener

	quota *quota.Quota
}

// Accept waits for a connection that there is a place for.
func (b *bounded) Accept() (net.Conn, error) {
	for {
		conn, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		var client netip.Addr
		if at, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
			client = quota.Client(at.AddrPort().Addr().Unmap())
		}
		if b.quota.Take(client) == quota.None {
			_ = conn.Close()
			continue
		}
		return &boundedConn{Conn: conn, release: sync.OnceFunc(func() { b.quota.Give(client) })}, nil
	}
}

type boundedConn struct {
	net.Conn

	release func()
}

// Close gives the place back.
func (c *boundedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}
