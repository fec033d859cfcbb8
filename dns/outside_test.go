package dns_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/netctl/netctl/dns"
	"github.com/netctl/netctl/dns/options"
)

func plainUpstreams(list ...*upstream) []options.Upstream {
	out := []options.Upstream{}
	for _, u := range list {
		out = append(out, options.Upstream{Addr: u.addr, Transport: options.UDP})
	}
	return out
}

func configure(t *testing.T, s *dns.Server, o options.Options) {
	t.Helper()
	if err := s.Configure(&o); err != nil {
		t.Fatal(err)
	}
}

func wantAnswer(t *testing.T, s *dns.Server, name string, qtype uint16, want string) {
	t.Helper()
	for _, udp := range []bool{true, false} {
		if got := answers(lookup(t, s, query(t, name, qtype, 1232), udp)); got != want {
			t.Errorf("%s %s: got %q, want %q", name, mdns.TypeToString[qtype], got, want)
		}
	}
}

func TestZonesAreAskedElsewhere(t *testing.T) {
	t.Parallel()
	others, corp, deep := newUpstream(t, always("192.0.2.1")), newUpstream(t, always("192.0.2.2")), newUpstream(t, always("192.0.2.3"))
	s := run(t, dns.Config{})
	configure(t, s, options.Options{
		Upstreams: plainUpstreams(others),
		Zones: []options.Zone{
			{Name: "corp.example", Upstreams: plainUpstreams(corp)},
			{Name: "Deep.Corp.example.", Upstreams: plainUpstreams(deep)},
			{Name: "lost.example", Upstreams: plainUpstreams()},
		},
	})
	for name, want := range map[string]string{
		"www.example":             "192.0.2.1",
		"corp.example":            "192.0.2.2",
		"www.Corp.example":        "192.0.2.2",
		"xcorp.example":           "192.0.2.1",
		"www.deep.corp.example":   "192.0.2.3",
		"a.b.c.deep.corp.example": "192.0.2.3",
	} {
		wantAnswer(t, s, name, mdns.TypeA, "NOERROR "+name+". 60 IN A "+want)
	}
	wantAnswer(t, s, "www.lost.example", mdns.TypeA, "REFUSED ")
	wantAnswer(t, s, "svc1.testns.svc.cluster.local", mdns.TypeA, "NOERROR svc1.testns.svc.cluster.local. 30 IN A 10.0.0.1")
}

func TestOptionsAreRefused(t *testing.T) {
	t.Parallel()
	s := run(t, dns.Config{Refuse: func(a netip.Addr) error {
		if a == netip.MustParseAddr("192.0.2.1") {
			return io.ErrUnexpectedEOF
		}
		return nil
	}})
	for _, o := range []options.Options{
		{TTL: 100_000},
		{Upstreams: []options.Upstream{{Addr: netip.MustParseAddrPort("192.0.2.1:53")}}},
		{Zones: []options.Zone{{Name: "a.example", Upstreams: []options.Upstream{{Addr: netip.MustParseAddrPort("192.0.2.1:53")}}}}},
	} {
		if err := s.Configure(&o); err == nil {
			t.Errorf("%+v was accepted", o)
		}
	}
}

func TestUpstreamThatBecomesOurs(t *testing.T) {
	t.Parallel()
	var ours atomic.Bool
	s := run(t, dns.Config{Refuse: func(netip.Addr) error {
		if ours.Load() {
			return io.ErrUnexpectedEOF
		}
		return nil
	}})
	u := newUpstream(t, always("192.0.2.1"))
	configure(t, s, options.Options{Upstreams: plainUpstreams(u)})
	wantAnswer(t, s, "a.example", mdns.TypeA, "NOERROR a.example. 60 IN A 192.0.2.1")
	ours.Store(true)
	wantAnswer(t, s, "b.example", mdns.TypeA, "SERVFAIL ")
	if n := len(u.log()); n != 1 {
		t.Errorf("asked %d times", n)
	}
}

func TestHosts(t *testing.T) {
	t.Parallel()
	s := run(t, dns.Config{}, newUpstream(t, always("192.0.2.99")))
	configure(t, s, options.Options{Hosts: []options.Host{
		{Address: netip.MustParseAddr("192.0.2.1"), Names: []string{"a.example", "B.example."}},
		{Address: netip.MustParseAddr("2001:db8::1"), Names: []string{"a.example"}},
		{Address: netip.MustParseAddr("192.0.2.2"), Names: []string{"svc1.testns.svc.cluster.local"}},
	}})
	wantAnswer(t, s, "A.example", mdns.TypeA, "NOERROR A.example. 30 IN A 192.0.2.1")
	wantAnswer(t, s, "a.example", mdns.TypeAAAA, "NOERROR a.example. 30 IN AAAA 2001:db8::1")
	wantAnswer(t, s, "b.example", mdns.TypeAAAA, "NOERROR ")
	wantAnswer(t, s, "b.example", mdns.TypeMX, "NOERROR ")
	wantAnswer(t, s, "1.2.0.192.in-addr.arpa", mdns.TypePTR, "NOERROR 1.2.0.192.in-addr.arpa. 30 IN PTR a.example.; 1.2.0.192.in-addr.arpa. 30 IN PTR B.example.")
	wantAnswer(t, s, "svc1.testns.svc.cluster.local", mdns.TypeA, "NOERROR svc1.testns.svc.cluster.local. 30 IN A 192.0.2.2")
	wantAnswer(t, s, "c.example", mdns.TypeA, "NOERROR c.example. 60 IN A 192.0.2.99")
	configure(t, s, options.Options{})
	wantAnswer(t, s, "a.example", mdns.TypeA, "NOERROR a.example. 60 IN A 192.0.2.99")
}

func TestRewrites(t *testing.T) {
	t.Parallel()
	s := run(t, dns.Config{}, newUpstream(t, func(q *mdns.Msg, _ string) [][]byte {
		return packed(says(q, 0, q.Question[0].Name+" 60 IN CNAME x.example.", "x.example. 60 IN A 192.0.2.1"))
	}))
	configure(t, s, options.Options{Rewrites: []options.Rewrite{
		{Name: "web.example", To: "svc1.testns.svc.cluster.local"},
		{Name: "apps.example", To: "svc.cluster.local", Suffix: true},
		{Name: "old.example", To: "new.example"},
	}})
	wantAnswer(t, s, "Web.example", mdns.TypeA, "NOERROR Web.example. 30 IN A 10.0.0.1")
	wantAnswer(t, s, "web.example", mdns.TypeAAAA, "NOERROR ")
	wantAnswer(t, s, "hdls4.testns.apps.example", mdns.TypeAAAA, "NOERROR ")
	wantAnswer(t, s, "svc1.testns.Apps.example", mdns.TypeA, "NOERROR svc1.testns.Apps.example. 30 IN A 10.0.0.1")
	wantAnswer(t, s, "none.testns.apps.example", mdns.TypeA, "NXDOMAIN ")
	for range 2 { // from upstream, and from the cache
		wantAnswer(t, s, "OLD.example", mdns.TypeA, "NOERROR OLD.example. 60 IN CNAME x.example.; x.example. 60 IN A 192.0.2.1")
	}
}

func TestSearchPathIsFollowed(t *testing.T) {
	t.Parallel()
	u := newUpstream(t, func(q *mdns.Msg, _ string) [][]byte {
		if strings.HasPrefix(q.Question[0].Name, "gone.") {
			return packed(says(q, 3, "example. 60 IN SOA a. b. 1 2 3 4 20"))
		}
		return packed(says(q, 0, q.Question[0].Name+" 60 IN A 192.0.2.1"))
	})
	inside := netip.MustParseAddr("10.1.0.1")
	s := run(t, dns.Config{Namespace: func(a netip.Addr) string {
		return map[netip.Addr]string{inside: "testns", netip.MustParseAddr("10.1.0.2"): "empty"}[a]
	}}, u)
	configure(t, s, options.Options{Autopath: []string{"testns"}})
	ask := func(from netip.Addr, name string, qtype uint16) string {
		t.Helper()
		q := query(t, name, qtype, 1232)
		b, st := s.Answer(from, q, true, nil)
		if st == dns.Forward {
			got := make(chan []byte, 1)
			s.Forward(from, q, true, func(b []byte) { got <- slices.Clone(b) })
			b = <-got
		}
		return answers(checkReply(t, q, b, true))
	}
	const path = ".testns.svc.cluster.local"
	for _, c := range []struct {
		from netip.Addr
		name string
		want string
	}{
		{inside, "svc1" + path, "NOERROR svc1" + path + ". 30 IN A 10.0.0.1"},
		{inside, "kube-dns.kube-system" + path, "NOERROR kube-dns.kube-system" + path + ". 30 IN CNAME kube-dns.kube-system.svc.cluster.local.; kube-dns.kube-system.svc.cluster.local. 30 IN A 10.0.0.10"},
		{inside, "kube-dns.kube-system.svc" + path, "NOERROR kube-dns.kube-system.svc" + path + ". 30 IN CNAME kube-dns.kube-system.svc.cluster.local.; kube-dns.kube-system.svc.cluster.local. 30 IN A 10.0.0.10"},
		{inside, "www.example" + path, "NOERROR www.example" + path + ". 30 IN CNAME www.example.; www.example. 60 IN A 192.0.2.1"},
		{inside, "WWW.example" + path, "NOERROR WWW.example" + path + ". 30 IN CNAME www.example.; www.example. 60 IN A 192.0.2.1"},
		{inside, "gone.example" + path, "NXDOMAIN "},
		{inside, "www.example.empty.svc.cluster.local", "NXDOMAIN "}, // not its own namespace
		{netip.MustParseAddr("10.1.0.2"), "www.example.empty.svc.cluster.local", "NXDOMAIN "},
		{netip.MustParseAddr("10.1.0.9"), "www.example" + path, "NXDOMAIN "}, // nobody's address
	} {
		if got := ask(c.from, c.name, mdns.TypeA); got != c.want {
			t.Errorf("%s asks for %s: got %q, want %q", c.from, c.name, got, c.want)
		}
	}
	if got := ask(inside, "kube-dns.kube-system"+path, mdns.TypeTXT); got != "NXDOMAIN " {
		t.Errorf("TXT: got %q, want no path to be followed", got)
	}
}

// secure starts an upstream that speaks DNS over TLS on connections that stay open.
func secure(t *testing.T, name string) (up options.Upstream, roots *x509.CertPool, connections *atomic.Int32) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots = x509.NewCertPool()
	roots.AddCert(cert)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	if err != nil {
		t.Fatal(err)
	}
	connections = new(atomic.Int32)
	serveStreams(t, l, connections, always("192.0.2.53"))
	return options.Upstream{Addr: netip.MustParseAddrPort(l.Addr().String()), Transport: options.TLS, ServerName: name}, roots, connections
}

// serveStreams answers every question of every connection until the test ends.
func serveStreams(t *testing.T, l net.Listener, connections *atomic.Int32, answer func(*mdns.Msg, string) [][]byte) {
	t.Helper()
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				stop := context.AfterFunc(ctx, func() { c.Close() })
				defer stop()
				defer c.Close()
				first := true
				for {
					var n uint16
					if binary.Read(c, binary.BigEndian, &n) != nil {
						return
					}
					if first { // connections that nobody asks on are nobody's
						connections.Add(1)
						first = false
					}
					b := make([]byte, n)
					var q mdns.Msg
					if _, err := io.ReadFull(c, b); err != nil || q.Unpack(b) != nil {
						return
					}
					for _, r := range answer(&q, "tcp") {
						_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(r))), r...))
					}
				}
			})
		}
	})
	t.Cleanup(func() { l.Close(); cancel(); wg.Wait() })
}

func TestOverTLS(t *testing.T) {
	t.Parallel()
	up, roots, connections := secure(t, "dns.example")
	s := run(t, dns.Config{RootCAs: roots, AttemptTimeout: 5 * time.Second, TotalTimeout: 10 * time.Second})
	configure(t, s, options.Options{Upstreams: []options.Upstream{up}})
	for _, name := range []string{"a.example", "b.example", "c.example"} {
		wantAnswer(t, s, name, mdns.TypeA, "NOERROR "+name+". 60 IN A 192.0.2.53")
	}
	if n := connections.Load(); n != 1 {
		t.Errorf("%d connections for three questions in a row, want one", n)
	}
	up.ServerName = "other.example"
	configure(t, s, options.Options{Upstreams: []options.Upstream{up}})
	wantAnswer(t, s, "d.example", mdns.TypeA, "SERVFAIL ")
}

func TestOverTLSByAnUnknownAuthority(t *testing.T) {
	t.Parallel()
	up, _, connections := secure(t, "dns.example")
	s := run(t, dns.Config{RootCAs: x509.NewCertPool(), AttemptTimeout: 5 * time.Second, TotalTimeout: 10 * time.Second})
	configure(t, s, options.Options{Upstreams: []options.Upstream{up}})
	wantAnswer(t, s, "a.example", mdns.TypeA, "SERVFAIL ")
	if n := connections.Load(); n != 0 {
		t.Errorf("%d questions were sent to somebody else", n)
	}
}

func TestKeptConnectionThatEnded(t *testing.T) {
	t.Parallel()
	u := newUpstream(t, always("192.0.2.1")) // closes after each answer
	s := run(t, dns.Config{AttemptTimeout: 5 * time.Second, TotalTimeout: 10 * time.Second})
	configure(t, s, options.Options{Upstreams: []options.Upstream{{Addr: u.addr, Transport: options.TCP}}})
	for _, name := range []string{"a.example", "b.example", "c.example"} {
		wantAnswer(t, s, name, mdns.TypeA, "NOERROR "+name+". 60 IN A 192.0.2.1")
	}
	for _, a := range u.log() {
		if a.network != "tcp" {
			t.Errorf("asked over %s", a.network)
		}
	}
}

func TestSlowUpstreamGetsCompany(t *testing.T) {
	t.Parallel()
	slow, quick := newUpstream(t, silent), newUpstream(t, always("192.0.2.2"))
	s := run(t, dns.Config{HedgeAfter: time.Millisecond, AttemptTimeout: time.Minute, TotalTimeout: time.Minute}, slow, quick)
	wantAnswer(t, s, "a.example", mdns.TypeA, "NOERROR a.example. 60 IN A 192.0.2.2")
	if n := s.Stats().Hedged; n != 1 {
		t.Errorf("hedged %d times, want once", n)
	}
	// Overtaken twice, it is asked last.
	wantAnswer(t, s, "b.example", mdns.TypeA, "NOERROR b.example. 60 IN A 192.0.2.2")
	before := len(slow.log())
	wantAnswer(t, s, "c.example", mdns.TypeA, "NOERROR c.example. 60 IN A 192.0.2.2")
	if n := len(slow.log()); n > before && s.Stats().Hedged < 3 {
		t.Errorf("the slow upstream was asked first again")
	}
}

func TestPolicies(t *testing.T) {
	t.Parallel()
	a, b := newUpstream(t, always("192.0.2.1")), newUpstream(t, always("192.0.2.2"))
	s := run(t, dns.Config{})
	name := func(i int) []byte { return query(t, "w"+strings.Repeat("x", i)+".example", mdns.TypeA, 0) }
	configure(t, s, options.Options{Upstreams: plainUpstreams(a, b), Policy: options.RoundRobin})
	for i := range 10 {
		lookup(t, s, name(i), true)
	}
	if x, y := len(a.log()), len(b.log()); x != 5 || y != 5 {
		t.Errorf("round robin asked %d and %d times", x, y)
	}
	configure(t, s, options.Options{Upstreams: plainUpstreams(a, b), Policy: options.Random})
	for i := range 50 {
		lookup(t, s, name(i), true)
	}
	if x, y := len(a.log()), len(b.log()); x == 5 || y == 5 { // by chance: once in 2^49
		t.Errorf("random asked %d and %d times", x-5, y-5)
	}
}

func TestStaleAnswers(t *testing.T) {
	t.Parallel()
	var dead atomic.Bool
	var c clock
	u := newUpstream(t, func(q *mdns.Msg, _ string) [][]byte {
		if dead.Load() {
			return packed(says(q, 2))
		}
		return packed(says(q, 0, q.Question[0].Name+" 60 IN A 192.0.2.1"))
	})
	s := run(t, dns.Config{Now: c.Now}, u)
	const fresh, stale = "NOERROR a.example. 60 IN A 192.0.2.1", "NOERROR a.example. 30 IN A 192.0.2.1"
	wantAnswer(t, s, "a.example", mdns.TypeA, fresh)
	dead.Store(true)
	c.advance(2 * time.Minute)
	wantAnswer(t, s, "a.example", mdns.TypeA, stale)
	wantAnswer(t, s, "b.example", mdns.TypeA, "SERVFAIL ")
	asked := len(u.log())
	wantAnswer(t, s, "a.example", mdns.TypeA, stale)
	if n := len(u.log()); n != asked {
		t.Error("a dead upstream is asked by everybody")
	}
	dead.Store(false)
	c.advance(6 * time.Second)
	wantAnswer(t, s, "a.example", mdns.TypeA, fresh)
	dead.Store(true)
	c.advance(2 * time.Hour)
	wantAnswer(t, s, "a.example", mdns.TypeA, "SERVFAIL ")
	if s.Stats().Stale == 0 {
		t.Error("not counted")
	}
}

func TestStaleAnswersWhileNobodySpeaks(t *testing.T) {
	t.Parallel()
	var dead atomic.Bool
	var c clock
	u := newUpstream(t, func(q *mdns.Msg, _ string) [][]byte {
		if dead.Load() {
			return nil
		}
		return packed(says(q, 0, q.Question[0].Name+" 60 IN A 192.0.2.1"))
	})
	s := run(t, dns.Config{Now: c.Now, StaleWait: time.Millisecond, AttemptTimeout: time.Minute, TotalTimeout: time.Minute}, u)
	wantAnswer(t, s, "a.example", mdns.TypeA, "NOERROR a.example. 60 IN A 192.0.2.1")
	dead.Store(true)
	c.advance(2 * time.Minute)
	wantAnswer(t, s, "a.example", mdns.TypeA, "NOERROR a.example. 30 IN A 192.0.2.1") // long before the minute is over
}

func TestNoStaleAnswers(t *testing.T) {
	t.Parallel()
	var dead atomic.Bool
	var c clock
	u := newUpstream(t, func(q *mdns.Msg, _ string) [][]byte {
		if dead.Load() {
			return packed(says(q, 2))
		}
		return packed(says(q, 0, q.Question[0].Name+" 60 IN A 192.0.2.1"))
	})
	s := run(t, dns.Config{Now: c.Now}, u)
	configure(t, s, options.Options{Cache: options.Cache{ServeStale: options.Duration(-time.Second)}})
	wantAnswer(t, s, "a.example", mdns.TypeA, "NOERROR a.example. 60 IN A 192.0.2.1")
	dead.Store(true)
	c.advance(2 * time.Minute)
	wantAnswer(t, s, "a.example", mdns.TypeA, "SERVFAIL ")
}

func TestPrefetch(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{}, 10)
	var c clock
	u := newUpstream(t, func(q *mdns.Msg, _ string) [][]byte {
		asked <- struct{}{}
		return packed(says(q, 0, q.Question[0].Name+" 60 IN A 192.0.2.1"))
	})
	s := run(t, dns.Config{Now: c.Now}, u)
	q := query(t, "a.example", mdns.TypeA, 0)
	for range 5 {
		lookup(t, s, q, true)
	}
	<-asked
	if s.Stats().Prefetched != 0 {
		t.Error("asked again at once")
	}
	c.advance(55 * time.Second)
	for range 3 {
		lookup(t, s, q, true)
	}
	<-asked // nobody missed it
	if n := s.Stats().Prefetched; n != 1 {
		t.Errorf("prefetched %d times", n)
	}
}

func TestCacheLimits(t *testing.T) {
	t.Parallel()
	var c clock
	u := newUpstream(t, always("192.0.2.1"))
	s := run(t, dns.Config{Now: c.Now}, u)
	configure(t, s, options.Options{Cache: options.Cache{MaxTTL: 10}})
	lookup(t, s, query(t, "a.example", mdns.TypeA, 0), true)
	c.advance(11 * time.Second)
	lookup(t, s, query(t, "a.example", mdns.TypeA, 0), true)
	if n := len(u.log()); n != 2 {
		t.Errorf("asked %d times, want the second time, too", n)
	}
}

func TestSpellingOfOutsideNames(t *testing.T) {
	t.Parallel()
	s := run(t, dns.Config{}, newUpstream(t, func(q *mdns.Msg, _ string) [][]byte {
		m := says(q, 0, q.Question[0].Name+" 60 IN A 192.0.2.1")
		m.Compress = false // the name is written out again
		return packed(m)
	}))
	for _, name := range []string{"wWw.ExAmPlE", "www.example", "WWW.EXAMPLE"} {
		wantAnswer(t, s, name, mdns.TypeA, "NOERROR "+name+". 60 IN A 192.0.2.1")
	}
}

func TestQueryLog(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	s := dns.New(dns.Config{Logger: slog.New(slog.NewTextHandler(&b, nil)), Namespace: func(netip.Addr) string { return "testns" }})
	s.Publish(dns.Compile(cluster()))
	said := func(level options.Log, only []string, name string) bool {
		t.Helper()
		configure(t, s, options.Options{Log: level, LogNamespaces: only})
		b.Reset()
		ask(t, s, query(t, name, mdns.TypeA, 0), true)
		return strings.Contains(b.String(), "name="+name+". type=A proto=udp rcode=")
	}
	const there, missing = "svc1.testns.svc.cluster.local", "none.testns.svc.cluster.local"
	for _, c := range []struct {
		level options.Log
		only  []string
		name  string
		want  bool
	}{
		{"", nil, there, false},
		{options.LogErrors, nil, missing, false},
		{options.LogDenial, nil, missing, true},
		{options.LogDenial, nil, there, false},
		{options.LogAll, nil, there, true},
		{options.LogAll, []string{"other"}, there, false},
		{options.LogAll, []string{"testns"}, there, true},
	} {
		if got := said(c.level, c.only, c.name); got != c.want {
			t.Errorf("log %q of %v, %s: logged %v, want %v", c.level, c.only, c.name, got, c.want)
		}
	}
}
