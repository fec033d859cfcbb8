// Package apiserver carries HTTP requests to the cluster's API server, by its
// real address, and to another API server of the cluster when the first does
// not answer.
//
// It is an http.RoundTripper and knows neither Kubernetes' types nor
// credentials. The first target is the configured URL. The others are learnt
// from the cluster itself (the endpoints of the Service default/kubernetes,
// which the API servers write); the source of the State passes them to Use.
// Their certificates are checked against kubernetes.default.svc, the name that
// every API server's certificate bears and nobody else's: the configured host
// need not be among the names of another server.
//
//	request -> current target -> (no connection) -> next target -> ... -> error
//
// A target that answered is kept for as long as it does; there is no way back
// to the first one but its successors' failure. A request goes to another
// target only if it cannot have been carried out: no connection came about, or
// it only reads.
//
// Tests: against TLS servers on loopback.
package apiserver

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"time"
)

// Times of a connection. An API server that is gone must be noticed soon, also
// when its machine is and nothing refuses the connection.
const (
	dialTimeout      = 4 * time.Second
	handshakeTimeout = 5 * time.Second
	headerTimeout    = 65 * time.Second // the server lets a request wait for a minute at most
	idleTimeout      = 90 * time.Second
	pingAfter        = 15 * time.Second // silence on a connection before it is asked
	pingTimeout      = 10 * time.Second
)

// serviceName is in the certificate of every API server.
const serviceName = "kubernetes.default.svc"

// Config says which API server to reach first.
type Config struct {
	URL        *url.URL // scheme https, with host and port
	ServerName string   // expected in the certificate of the first target; "": the URL's host
	CA         []byte   // PEM certificates that sign those of API servers
	Logger     *slog.Logger
}

// Transport is the way to the API servers. Its methods may be called
// concurrently.
type Transport struct {
	log  *slog.Logger
	pool *x509.CertPool
	pins bool // the URL has a path: other servers do not serve it

	mu      sync.Mutex
	first   *target   // immutable
	others  []*target // in the order that Use gave; guarded by mu
	current *target   // guarded by mu
	silent  bool      // the last request reached nobody; guarded by mu
}

// target is one API server.
type target struct {
	host string // host:port
	http *http.Transport

	mu     sync.Mutex
	remote netip.AddrPort // where the newest connection went; guarded by mu
}

// New returns a Transport; nothing is dialled yet.
func New(cfg Config) (*Transport, error) {
	if cfg.URL == nil || cfg.URL.Scheme != "https" || cfg.URL.Hostname() == "" {
		return nil, fmt.Errorf("API server: %v is not an https URL with a host", cfg.URL)
	}
	t := &Transport{log: cfg.Logger, pool: x509.NewCertPool(), pins: cfg.URL.Path != "" && cfg.URL.Path != "/"}
	if t.log == nil {
		t.log = slog.New(slog.DiscardHandler)
	}
	if !t.pool.AppendCertsFromPEM(cfg.CA) {
		return nil, errors.New("API server: no certificate authority: there is no PEM certificate in what kubelet.conf and the ServiceAccount's ca.crt have")
	}
	host := cfg.URL.Host
	if cfg.URL.Port() == "" {
		host = net.JoinHostPort(cfg.URL.Hostname(), "443")
	}
	t.first = t.target(host, cfg.ServerName)
	t.current = t.first
	return t, nil
}

// target returns a target that is not connected yet. Without a server name the
// host must be in its certificate.
func (t *Transport) target(host, serverName string) *target {
	out := &target{host: host}
	dialer := net.Dialer{Timeout: dialTimeout}
	out.http = &http.Transport{
		TLSClientConfig:       &tls.Config{RootCAs: t.pool, ServerName: serverName, MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2:     true,
		HTTP2:                 &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
		TLSHandshakeTimeout:   handshakeTimeout,
		ResponseHeaderTimeout: headerTimeout,
		IdleConnTimeout:       idleTimeout,
		DisableCompression:    true, // protobuf on a local network; unpacking costs more than it saves
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := dialer.DialContext(ctx, network, addr)
			if err != nil {
				return nil, &unsentError{err}
			}
			if ap, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil {
				out.mu.Lock()
				out.remote = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
				out.mu.Unlock()
			}
			return c, nil
		},
	}
	return out
}

// unsentError marks that no connection came about.
type unsentError struct{ err error }

func (e *unsentError) Error() string { return e.err.Error() }
func (e *unsentError) Unwrap() error { return e.err }

// Use tells where the cluster's API servers are. Targets that are known already
// keep their connections.
func (t *Transport) Use(addrs []netip.AddrPort) {
	if t.pins {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	now := make([]*target, 0, len(addrs))
	for _, a := range addrs {
		host := netip.AddrPortFrom(a.Addr().Unmap(), a.Port()).String()
		same := func(o *target) bool { return o.host == host }
		switch i := slices.IndexFunc(t.others, same); {
		case same(t.first) || slices.ContainsFunc(now, same):
		case i >= 0:
			now = append(now, t.others[i])
		default:
			now = append(now, t.target(host, serviceName))
		}
	}
	for _, o := range t.others {
		if !slices.Contains(now, o) {
			o.http.CloseIdleConnections()
			if t.current == o {
				t.current = t.first
			}
		}
	}
	t.others = now
}

// Addrs returns the addresses of the API servers that are known: the first
// one's, as far as it is an address or was connected to, and the others'.
func (t *Transport) Addrs() []netip.AddrPort {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []netip.AddrPort
	add := func(a netip.AddrPort) {
		if a.IsValid() && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	for _, o := range append([]*target{t.first}, t.others...) {
		if a, err := netip.ParseAddrPort(o.host); err == nil {
			add(netip.AddrPortFrom(a.Addr().Unmap(), a.Port()))
		}
		o.mu.Lock()
		add(o.remote)
		o.mu.Unlock()
	}
	return out
}

// CloseIdleConnections closes the connections that carry no request.
func (t *Transport) CloseIdleConnections() {
	for _, o := range t.order() {
		o.http.CloseIdleConnections()
	}
}

// order returns all targets, the current one first.
func (t *Transport) order() []*target {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := append([]*target{t.first}, t.others...)
	i := max(0, slices.Index(all, t.current))
	return slices.Concat(all[i:], all[:i])
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	var errs []error
	for _, o := range t.order() {
		r, err := toTarget(req, o, len(errs) > 0)
		if err != nil {
			errs = append(errs, err)
			break
		}
		resp, err := o.http.RoundTrip(r)
		if err == nil {
			t.reached(o)
			return resp, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", o.host, err))
		if req.Context().Err() != nil {
			return nil, errors.Join(errs...)
		}
		if !repeatable(req, err) {
			break
		}
	}
	err := errors.Join(errs...)
	t.lost(err)
	return nil, err
}

// toTarget returns the request as it goes to a target. A body is sent anew.
func toTarget(req *http.Request, o *target, again bool) (*http.Request, error) {
	r := req.Clone(req.Context())
	r.URL.Host, r.Host = o.host, ""
	if !again || req.Body == nil || req.Body == http.NoBody {
		return r, nil
	}
	if req.GetBody == nil {
		return nil, errors.New("the request cannot be sent to another API server: its body is a stream")
	}
	body, err := req.GetBody()
	r.Body = body
	return r, err
}

// repeatable reports whether a request that failed may go to another target.
func repeatable(req *http.Request, err error) bool {
	if req.Method == http.MethodGet || req.Method == http.MethodHead {
		return true
	}
	_, unsent := errors.AsType[*unsentError](err)
	_, unproven := errors.AsType[*tls.CertificateVerificationError](err)
	return (unsent || unproven) && !errors.Is(err, io.ErrUnexpectedEOF)
}

// reached notes that a target answered.
func (t *Transport) reached(o *target) {
	t.mu.Lock()
	before, silent := t.current, t.silent
	t.current, t.silent = o, false
	t.mu.Unlock()
	if silent {
		t.log.Info("api server answers again", "server", o.host)
	} else if before != o {
		t.log.Warn("api server does not answer, using another", "server", before.host, "other", o.host)
	}
}

// lost notes that no target answered.
func (t *Transport) lost(err error) {
	t.mu.Lock()
	silent := t.silent
	t.silent = true
	t.mu.Unlock()
	if !silent {
		t.log.Warn("api server does not answer, keeping what is known and trying again", "error", err)
	}
}
