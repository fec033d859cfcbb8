package dns_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/netctl/netctl/dns"
)

// upstream is a small resolver on the loopback address. What it answers is
// what answer returns: messages that are sent one after the other.
type upstream struct {
	addr   netip.AddrPort
	answer func(q *mdns.Msg, network string) [][]byte

	mu    sync.Mutex
	asked []asked
}

type asked struct {
	network string
	id      uint16
	port    uint16
	edns    bool
}

func newUpstream(t *testing.T, answer func(q *mdns.Msg, network string) [][]byte) *upstream {
	t.Helper()
	for range 10 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := netip.MustParseAddrPort(l.Addr().String())
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
		if err != nil {
			l.Close()
			continue // the port is taken for UDP
		}
		u := &upstream{addr: addr, answer: answer}
		var wg sync.WaitGroup
		wg.Go(func() { u.serveUDP(c) })
		wg.Go(func() { u.serveTCP(l) })
		t.Cleanup(func() { c.Close(); l.Close(); wg.Wait() })
		return u
	}
	t.Fatal("no port is free for UDP and TCP")
	return nil
}

func (u *upstream) take(b []byte, network string, port uint16) [][]byte {
	var q mdns.Msg
	if q.Unpack(b) != nil {
		return nil
	}
	u.mu.Lock()
	u.asked = append(u.asked, asked{network, q.Id, port, q.IsEdns0() != nil})
	u.mu.Unlock()
	return u.answer(&q, network)
}

func (u *upstream) log() []asked {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.asked)
}

func (u *upstream) serveUDP(c *net.UDPConn) {
	buf := make([]byte, 4096)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		for _, r := range u.take(buf[:n], "udp", from.Port()) {
			_, _ = c.WriteToUDPAddrPort(r, from)
		}
	}
}

func (u *upstream) serveTCP(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		var n uint16
		if binary.Read(c, binary.BigEndian, &n) == nil {
			b := make([]byte, n)
			if _, err := io.ReadFull(c, b); err == nil {
				for _, r := range u.take(b, "tcp", 0) {
					_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(r))), r...))
				}
			}
		}
		c.Close()
	}
}

// says builds an answer with the records.
func says(q *mdns.Msg, rcode int, list ...string) *mdns.Msg {
	m := new(mdns.Msg)
	m.SetRcode(q, rcode)
	m.RecursionAvailable, m.Compress = true, true
	for _, s := range list {
		rr, err := mdns.NewRR(s)
		if err != nil {
			panic(err)
		}
		if rr.Header().Rrtype == mdns.TypeSOA {
			m.Ns = append(m.Ns, rr)
		} else {
			m.Answer = append(m.Answer, rr)
		}
	}
	if o := q.IsEdns0(); o != nil {
		m.SetEdns0(1232, o.Do())
	}
	return m
}

func packed(m *mdns.Msg) [][]byte {
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return [][]byte{b}
}

// always answers every question with one address.
func always(a string) func(*mdns.Msg, string) [][]byte {
	return func(q *mdns.Msg, _ string) [][]byte {
		return packed(says(q, 0, q.Question[0].Name+" 60 IN A "+a))
	}
}

func rcode(code int) func(*mdns.Msg, string) [][]byte {
	return func(q *mdns.Msg, _ string) [][]byte { return packed(says(q, code)) }
}

func silent(*mdns.Msg, string) [][]byte { return nil }

// run starts a server with the upstreams and short timeouts.
func run(t *testing.T, cfg dns.Config, ups ...*upstream) *dns.Server {
	t.Helper()
	if cfg.Upstreams == nil {
		cfg.Upstreams = func() []netip.AddrPort {
			var out []netip.AddrPort
			for _, u := range ups {
				out = append(out, u.addr)
			}
			return out
		}
	}
	if cfg.AttemptTimeout == 0 {
		cfg.AttemptTimeout, cfg.TotalTimeout = 700*time.Millisecond, 3*time.Second
	}
	if cfg.HedgeAfter == 0 {
		cfg.HedgeAfter = -1
	}
	s := dns.New(cfg)
	s.Publish(dns.Compile(cluster()))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
	return s
}

// aClient is who asks when it does not matter.
var aClient = netip.MustParseAddr("10.0.0.1")

// forward passes a query on and waits for the only reply.
func forward(t testing.TB, s *dns.Server, q []byte, udp bool) []byte {
	t.Helper()
	got := make(chan []byte, 2)
	s.Forward(aClient, q, udp, func(b []byte) { got <- slices.Clone(b) })
	select {
	case b := <-got:
		return b
	case <-time.After(10 * time.Second):
		t.Fatal("no reply")
		return nil
	}
}

// lookup does what the datapath does with a query.
func lookup(t testing.TB, s *dns.Server, q []byte, udp bool) *mdns.Msg {
	t.Helper()
	b, st := s.Answer(netip.Addr{}, q, udp, nil)
	if st == dns.Forward {
		b = forward(t, s, q, udp)
	}
	return checkReply(t, q, b, udp)
}

func answers(m *mdns.Msg) string {
	var out []string
	for _, rr := range m.Answer {
		out = append(out, strings.Join(strings.Fields(rr.String()), " "))
	}
	return fmt.Sprintf("%s %s", mdns.RcodeToString[m.Rcode], strings.Join(out, "; "))
}
