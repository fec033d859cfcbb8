package dns

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"sync"
	"time"

	"github.com/netctl/netctl/dns/options"
)

// pool keeps connections to upstreams that are asked over streams: a TLS handshake
// for each question would cost more than the question.
type pool struct {
	dial  func(ctx context.Context, network, address string) (net.Conn, error)
	roots *x509.CertPool

	mu   sync.Mutex
	idle map[options.Upstream][]idleConn // guarded by mu
}

// idleConn is a connection that nobody uses.
type idleConn struct {
	net.Conn
	since time.Time
}

const (
	// keepStream is shorter than servers keep idle connections (RFC 7766 §6.2.3).
	keepStream = 8 * time.Second
	// maxIdle is how many are kept for an upstream.
	maxIdle = 8
)

// get returns a connection, which was kept or is new.
func (p *pool) get(ctx context.Context, up options.Upstream) (conn net.Conn, kept bool, err error) {
	if c := p.take(up); c != nil {
		return c, true, nil
	}
	conn, err = p.dial(ctx, "tcp", up.Addr.String())
	if err != nil || up.Transport != options.TLS {
		return conn, false, err
	}
	name := up.ServerName
	if name == "" {
		name = up.Addr.Addr().String()
	}
	secure := tls.Client(conn, &tls.Config{ServerName: name, RootCAs: p.roots, MinVersion: tls.VersionTLS12})
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, false, err
	}
	return secure, false, nil
}

// take returns the connection that was used last, and closes those that nobody
// used for long.
func (p *pool) take(up options.Upstream) net.Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := p.idle[up]
	for len(list) > 0 && time.Since(list[0].since) > keepStream {
		_ = list[0].Close()
		list = list[1:]
	}
	if len(list) == 0 {
		delete(p.idle, up)
		return nil
	}
	c := list[len(list)-1].Conn
	p.idle[up] = list[:len(list)-1]
	return c
}

// put keeps a connection; false when there is no room for it.
func (p *pool) put(up options.Upstream, c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.idle[up]) >= maxIdle {
		return false
	}
	if p.idle == nil {
		p.idle = map[options.Upstream][]idleConn{}
	}
	p.idle[up] = append(p.idle[up], idleConn{c, time.Now()})
	return true
}

// close closes all that are idle.
func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for up, list := range p.idle {
		for _, c := range list {
			_ = c.Close()
		}
		delete(p.idle, up)
	}
}
