package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
)

// ServeConfig says what the built-in server listens on; an empty list is off.
type ServeConfig struct {
	HTTP, TCP, UDP, DNS []string // listen addresses such as ":80"
	DNSAnswers          map[string][]netip.Addr
	Log                 io.Writer
}

// Reply is how the built-in server introduces itself.
type Reply struct {
	Hostname string `json:"hostname"`
	Node     string `json:"node,omitempty"`
	Client   string `json:"client"` // address and port that the request came from
	Server   string `json:"server"` // address and port that it reached
	Path     string `json:"path,omitempty"`
	Echo     string `json:"echo,omitempty"`
}

// Line returns the reply as one line of text.
func (r Reply) Line() string {
	return fmt.Sprintf("hostname=%s node=%s client=%s server=%s", r.Hostname, r.Node, r.Client, r.Server)
}

const (
	serveTimeout = 30 * time.Second
	maxDatagram  = 65535
)

func introduce(client, server net.Addr) Reply {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return Reply{Hostname: host, Node: os.Getenv("NODE_NAME"), Client: client.String(), Server: server.String()}
}

// Serve runs the built-in server until the context ends.
func Serve(ctx context.Context, cfg ServeConfig) error {
	g, ctx := errgroup.WithContext(ctx)
	var lc net.ListenConfig
	for _, addr := range cfg.HTTP {
		l, err := lc.Listen(ctx, "tcp", addr)
		if err != nil {
			return fmt.Errorf("listen for HTTP: %w", err)
		}
		g.Go(func() error { return serveHTTP(ctx, l) })
		_, _ = fmt.Fprintf(cfg.Log, "http on %s\n", l.Addr())
	}
	for _, addr := range cfg.TCP {
		l, err := lc.Listen(ctx, "tcp", addr)
		if err != nil {
			return fmt.Errorf("listen for TCP: %w", err)
		}
		g.Go(func() error { return serveTCP(ctx, l) })
		_, _ = fmt.Fprintf(cfg.Log, "tcp echo on %s\n", l.Addr())
	}
	for _, addr := range cfg.UDP {
		c, err := lc.ListenPacket(ctx, "udp", addr)
		if err != nil {
			return fmt.Errorf("listen for UDP: %w", err)
		}
		g.Go(func() error { return serveUDP(ctx, c) })
		_, _ = fmt.Fprintf(cfg.Log, "udp echo on %s\n", c.LocalAddr())
	}
	for _, addr := range cfg.DNS {
		s := &dns.Server{Addr: addr, Net: "udp", Handler: zone(cfg.DNSAnswers)}
		g.Go(s.ListenAndServe)
		g.Go(func() error {
			<-ctx.Done()
			return s.ShutdownContext(context.WithoutCancel(ctx))
		})
		_, _ = fmt.Fprintf(cfg.Log, "dns on %s\n", addr)
	}
	if err := g.Wait(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

// replyHandler introduces the server over HTTP.
type replyHandler struct{}

func (replyHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	server, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	client, err := net.ResolveTCPAddr("tcp", r.RemoteAddr)
	if err != nil || server == nil {
		http.Error(w, "no addresses", http.StatusInternalServerError)
		return
	}
	reply := introduce(client, server)
	reply.Path = r.URL.Path
	if r.Header.Get("Accept") == "application/json" {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(reply) // the client may be gone
		return
	}
	_, _ = fmt.Fprintln(w, reply.Line()) //nolint:gosec // as plain text
}

func serveHTTP(ctx context.Context, l net.Listener) error {
	s := &http.Server{Handler: replyHandler{}, ReadHeaderTimeout: serveTimeout}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve HTTP: %w", err)
	}
	return nil
}

// serveTCP introduces itself in one line, then echoes.
func serveTCP(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		go func() {
			defer c.Close()
			w := bufio.NewWriter(c)
			_, _ = fmt.Fprintln(w, introduce(c.RemoteAddr(), c.LocalAddr()).Line())
			if w.Flush() == nil {
				_, _ = io.Copy(c, c) // until the client has had enough
			}
		}()
	}
}

// serveUDP answers each datagram with a line that introduces it and the
// datagram.
func serveUDP(ctx context.Context, c net.PacketConn) error {
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := c.ReadFrom(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			continue // an ICMP error that a former answer drew
		}
		line := introduce(from, c.LocalAddr()).Line() + "\n"
		_, _ = c.WriteTo(append([]byte(line), buf[:n]...), from)
	}
}

// zone answers A and AAAA questions from a fixed list.
type zone map[string][]netip.Addr

func (z zone) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	reply := new(dns.Msg)
	reply.SetReply(q)
	addrs, ok := z[dns.CanonicalName(q.Question[0].Name)]
	if !ok {
		reply.Rcode = dns.RcodeNameError
	}
	for _, a := range addrs {
		head := dns.RR_Header{Name: q.Question[0].Name, Class: dns.ClassINET, Ttl: 30}
		switch {
		case a.Is4() && q.Question[0].Qtype == dns.TypeA:
			head.Rrtype = dns.TypeA
			reply.Answer = append(reply.Answer, &dns.A{Hdr: head, A: a.AsSlice()})
		case a.Is6() && q.Question[0].Qtype == dns.TypeAAAA:
			head.Rrtype = dns.TypeAAAA
			reply.Answer = append(reply.Answer, &dns.AAAA{Hdr: head, AAAA: a.AsSlice()})
		}
	}
	_ = w.WriteMsg(reply) // the client asks again
}
