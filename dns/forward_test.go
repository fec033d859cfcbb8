package dns_test

import (
	"context"
	"encoding/binary"
	"fmt"
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
)

func TestForward(t *testing.T) {
	t.Parallel()
	lies := func(q *mdns.Msg, _ string) [][]byte {
		evil := func(f func(m *mdns.Msg)) []byte {
			m := says(q, 0, q.Question[0].Name+" 60 IN A 6.6.6.6")
			f(m)
			return packed(m)[0]
		}
		return [][]byte{
			{},
			{1},
			evil(func(m *mdns.Msg) { m.Id++ }),
			evil(func(m *mdns.Msg) { m.Question[0].Name = "other.example.org." }),
			evil(func(m *mdns.Msg) { m.Question[0].Name = "eee.example.org." }), // of the same length
			evil(func(m *mdns.Msg) { m.Question[0].Qtype = mdns.TypeMX }),
			evil(func(m *mdns.Msg) { m.Question = nil }),
			evil(func(m *mdns.Msg) { m.Response = false }),
		}
	}
	broken := func(q *mdns.Msg, _ string) [][]byte {
		b := packed(says(q, 0, q.Question[0].Name+" 60 IN A 6.6.6.6"))[0]
		return [][]byte{b[:len(b)-14]}
	}
	truncating := func(q *mdns.Msg, network string) [][]byte {
		m := says(q, 0, q.Question[0].Name+" 60 IN A 192.0.2.1")
		m.Truncated = network == "udp"
		if m.Truncated {
			m.Answer = nil
		}
		return packed(m)
	}
	onlyUDP := func(q *mdns.Msg, network string) [][]byte {
		if network == "tcp" {
			return nil
		}
		m := says(q, 0, q.Question[0].Name+" 60 IN A 192.0.2.9")
		m.Truncated = true
		return packed(m)
	}
	noEDNS := func(q *mdns.Msg, _ string) [][]byte {
		if q.IsEdns0() != nil {
			return [][]byte{append([]byte{byte(q.Id >> 8), byte(q.Id), 0x80, 1}, make([]byte, 8)...)}
		}
		return packed(says(q, 0, q.Question[0].Name+" 60 IN A 192.0.2.1"))
	}
	optFirst := func(q *mdns.Msg, _ string) [][]byte {
		m := says(q, 0, q.Question[0].Name+" 60 IN A 192.0.2.1")
		m.Extra = append(m.Extra, says(q, 0, "x.example.org. 60 IN A 192.0.2.3").Answer...)
		return packed(m)
	}
	extended := func(q *mdns.Msg, _ string) [][]byte {
		m := says(q, 0, q.Question[0].Name+" 60 IN A 6.6.6.6")
		m.Rcode = mdns.RcodeBadCookie // its upper bits are in OPT
		return packed(m)
	}
	twoOPT := func(q *mdns.Msg, _ string) [][]byte {
		m := says(q, 0, q.Question[0].Name+" 60 IN A 6.6.6.6")
		m.Answer = append(m.Answer, m.Extra[0])
		return packed(m)
	}
	type answer = func(*mdns.Msg, string) [][]byte
	tests := []struct {
		name string
		ups  []answer
		want string
		tc   bool
	}{
		{"first answers", []answer{always("192.0.2.1"), always("192.0.2.2")}, "NOERROR wWw.example.org. 60 IN A 192.0.2.1", false},
		{"SERVFAIL: next", []answer{rcode(2), always("192.0.2.2")}, "NOERROR wWw.example.org. 60 IN A 192.0.2.2", false},
		{"REFUSED: next", []answer{rcode(5), always("192.0.2.2")}, "NOERROR wWw.example.org. 60 IN A 192.0.2.2", false},
		{"silent: next", []answer{silent, always("192.0.2.2")}, "NOERROR wWw.example.org. 60 IN A 192.0.2.2", false},
		{"broken: next", []answer{broken, always("192.0.2.2")}, "NOERROR wWw.example.org. 60 IN A 192.0.2.2", false},
		{"lies only: next", []answer{lies, always("192.0.2.2")}, "NOERROR wWw.example.org. 60 IN A 192.0.2.2", false},
		{"name error is an answer", []answer{rcode(3), always("192.0.2.2")}, "NXDOMAIN ", false},
		{"all SERVFAIL", []answer{rcode(2), rcode(2)}, "SERVFAIL ", false},
		{"all REFUSED", []answer{rcode(5), silent}, "REFUSED ", false},
		{"all silent", []answer{silent, silent}, "SERVFAIL ", false},
		{"nobody", nil, "SERVFAIL ", false},
		{"truncated: stream", []answer{truncating}, "NOERROR wWw.example.org. 60 IN A 192.0.2.1", false},
		{"truncated, stream fails: a part", []answer{onlyUDP}, "NOERROR wWw.example.org. 60 IN A 192.0.2.9", true},
		{"truncated, stream fails: next", []answer{onlyUDP, always("192.0.2.2")}, "NOERROR wWw.example.org. 60 IN A 192.0.2.2", false},
		{"OPT before another record", []answer{optFirst}, "NOERROR wWw.example.org. 60 IN A 192.0.2.1", false},
		{"an extended code: next", []answer{extended, always("192.0.2.2")}, "NOERROR wWw.example.org. 60 IN A 192.0.2.2", false},
		{"two OPT: next", []answer{twoOPT, always("192.0.2.2")}, "NOERROR wWw.example.org. 60 IN A 192.0.2.2", false},
		{"no EDNS", []answer{noEDNS}, "NOERROR wWw.example.org. 60 IN A 192.0.2.1", false},
		{"a lie, then the truth", []answer{func(q *mdns.Msg, n string) [][]byte {
			return append(lies(q, n), always("192.0.2.1")(q, n)...)
		}}, "NOERROR wWw.example.org. 60 IN A 192.0.2.1", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var ups []*upstream
			for _, a := range tt.ups {
				ups = append(ups, newUpstream(t, a))
			}
			s := run(t, dns.Config{}, ups...)
			for _, edns := range []uint16{0, 1232} {
				m := lookup(t, s, query(t, "wWw.example.org", mdns.TypeA, edns), true)
				if got := answers(m); got != tt.want || m.Truncated != tt.tc {
					t.Errorf("got %q TC %v, want %q %v", got, m.Truncated, tt.want, tt.tc)
				}
			}
		})
	}
}

// TestAuthenticatedData: who does not ask for AD does not get it (RFC 6840 §5.8).
func TestAuthenticatedData(t *testing.T) {
	t.Parallel()
	s := run(t, dns.Config{}, newUpstream(t, func(q *mdns.Msg, _ string) [][]byte {
		m := says(q, 0, q.Question[0].Name+" 60 IN A 192.0.2.1")
		m.AuthenticatedData = q.AuthenticatedData
		return packed(m)
	}))
	for range 2 { // from upstream and from the cache
		for _, ad := range []bool{false, true} {
			m := new(mdns.Msg)
			m.SetQuestion("www.example.org.", mdns.TypeA)
			m.AuthenticatedData = ad
			b, err := m.Pack()
			if err != nil {
				t.Fatal(err)
			}
			if r := lookup(t, s, b, true); r.AuthenticatedData != ad {
				t.Errorf("asked with AD %v, answered with %v", ad, r.AuthenticatedData)
			}
		}
	}
}

func TestForwardDeadPort(t *testing.T) {
	t.Parallel()
	dead := newUpstream(t, silent)
	l, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	dead.addr = netip.MustParseAddrPort(l.LocalAddr().String())
	l.Close()
	live := newUpstream(t, always("192.0.2.2"))
	s := run(t, dns.Config{AttemptTimeout: 5 * time.Second, TotalTimeout: 9 * time.Second}, dead, live)
	start := time.Now()
	for i := range 4 {
		m := lookup(t, s, query(t, fmt.Sprintf("w%d.example.org", i), mdns.TypeA, 0), true)
		if len(m.Answer) != 1 {
			t.Errorf("got %v", m)
		}
	}
	if d := time.Since(start); d > 4*time.Second {
		t.Errorf("a closed port took %v", d)
	}
	if f := s.Stats().UpstreamFailures; f == 0 {
		t.Error("no failure counted")
	}
}

func TestDeadUpstreamIsAskedLast(t *testing.T) {
	t.Parallel()
	dead, live := newUpstream(t, silent), newUpstream(t, always("192.0.2.2"))
	s := run(t, dns.Config{AttemptTimeout: 50 * time.Millisecond, TotalTimeout: 5 * time.Second}, dead, live)
	for i := range 20 {
		lookup(t, s, query(t, fmt.Sprintf("w%d.example.org", i), mdns.TypeA, 0), true)
	}
	if n := len(dead.log()); n < 1 || n > 6 {
		t.Errorf("the dead upstream was asked %d times", n)
	}
}

func TestFreshPortsAndIDs(t *testing.T) {
	t.Parallel()
	u := newUpstream(t, always("192.0.2.1"))
	s := run(t, dns.Config{}, u)
	ids, ports := map[uint16]bool{}, map[uint16]bool{}
	for i := range 64 {
		lookup(t, s, query(t, fmt.Sprintf("w%d.example.org", i), mdns.TypeA, 0), true)
	}
	for _, a := range u.log() {
		ids[a.id], ports[a.port] = true, true
		if !a.edns {
			t.Error("asked without EDNS")
		}
	}
	if len(ids) < 60 || len(ports) < 40 {
		t.Errorf("%d ids and %d ports in 64 questions", len(ids), len(ports))
	}
}

func TestCollapse(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	u := newUpstream(t, func(q *mdns.Msg, n string) [][]byte {
		<-release
		return always("192.0.2.1")(q, n)
	})
	s := run(t, dns.Config{AttemptTimeout: 8 * time.Second, TotalTimeout: 8 * time.Second}, u)
	var wg sync.WaitGroup
	for i := range 50 {
		spelling := []byte("collapsed.example.org")
		spelling[i%9] ^= 0x20
		q := query(t, string(spelling), mdns.TypeA, uint16(i%2)*1232)
		binary.BigEndian.PutUint16(q, uint16(i))
		got := make(chan []byte, 1)
		s.Forward(aClient, q, true, func(b []byte) { got <- slices.Clone(b) })
		clear(q[12:]) // the query is not Forward's
		wg.Go(func() {
			var m mdns.Msg
			if err := m.Unpack(<-got); err != nil || m.Id != uint16(i) || len(m.Answer) != 1 || m.Answer[0].Header().Name != string(spelling)+"." {
				t.Errorf("%d: %v %v", i, err, m)
			}
		})
	}
	if st := s.Stats(); st.Waiting != 50 || st.InFlight != 1 {
		t.Errorf("stats while they wait %+v", st)
	}
	close(release)
	wg.Wait()
	if n := len(u.log()); n != 1 {
		t.Errorf("upstream was asked %d times", n)
	}
	if st := s.Stats(); st.Collapsed != 49 || st.Forwarded != 1 || st.InFlight != 0 || st.Waiting != 0 {
		t.Errorf("stats %+v", st)
	}
}

func TestBoundedInFlight(t *testing.T) {
	t.Parallel()
	s := run(t, dns.Config{MaxInFlight: 5, AttemptTimeout: 200 * time.Millisecond, TotalTimeout: 200 * time.Millisecond}, newUpstream(t, silent))
	var refused, failed atomic.Int32
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Add(1)
		s.Forward(pod(i), query(t, fmt.Sprintf("w%d.example.org", i), mdns.TypeA, 0), true, func(b []byte) {
			defer wg.Done()
			switch b[3] & 15 {
			case mdns.RcodeRefused:
				refused.Add(1)
			case mdns.RcodeServerFailure:
				failed.Add(1)
			}
		})
	}
	wg.Wait()
	if refused.Load() != 15 || failed.Load() != 5 || s.Stats().Refused != 15 {
		t.Errorf("%d refused, %d failed", refused.Load(), failed.Load())
	}
}

// clock is a clock that stands still unless it is told.
type clock struct{ now atomic.Int64 }

func (c *clock) Now() time.Time          { return time.Unix(1_000_000, c.now.Load()) }
func (c *clock) advance(d time.Duration) { c.now.Add(int64(d)) }

func TestCache(t *testing.T) {
	t.Parallel()
	const soa = "example.org. 600 IN SOA a. b. 1 2 3 4 20"
	u := newUpstream(t, func(q *mdns.Msg, _ string) [][]byte {
		n := q.Question[0].Name
		switch {
		case strings.HasPrefix(n, "gone."):
			return packed(says(q, 3, soa))
		case strings.HasPrefix(n, "nodata."):
			return packed(says(q, 0, soa))
		case strings.HasPrefix(n, "fails."):
			return packed(says(q, 2))
		}
		return packed(says(q, 0, n+" 60 IN CNAME x.example.org.", "x.example.org. 100 IN A 192.0.2.1"))
	})
	var c clock
	s := run(t, dns.Config{Now: c.Now}, u)
	step := func(name string, edns uint16, wait time.Duration, wantAsked int, want string) {
		t.Helper()
		c.advance(wait)
		m := lookup(t, s, query(t, name, mdns.TypeA, edns), true)
		if got := answers(m); got != want {
			t.Errorf("%s after %v: got %q, want %q", name, wait, got, want)
		}
		if n := len(u.log()); n != wantAsked {
			t.Errorf("%s after %v: upstream was asked %d times, want %d", name, wait, n, wantAsked)
		}
	}
	step("a.example.org", 0, 0, 1, "NOERROR a.example.org. 60 IN CNAME x.example.org.; x.example.org. 100 IN A 192.0.2.1")
	step("A.example.org", 1232, 10*time.Second, 1, "NOERROR A.example.org. 50 IN CNAME x.example.org.; x.example.org. 90 IN A 192.0.2.1")
	step("a.example.org", 0, 49*time.Second, 1, "NOERROR a.example.org. 1 IN CNAME x.example.org.; x.example.org. 41 IN A 192.0.2.1")
	step("a.example.org", 0, time.Second, 2, "NOERROR a.example.org. 60 IN CNAME x.example.org.; x.example.org. 100 IN A 192.0.2.1")
	step("gone.example.org", 0, 0, 3, "NXDOMAIN ")
	step("gone.example.org", 0, 19*time.Second, 3, "NXDOMAIN ")
	step("gone.example.org", 0, time.Second, 4, "NXDOMAIN ")
	step("nodata.example.org", 0, 0, 5, "NOERROR ")
	step("nodata.example.org", 0, 19*time.Second, 5, "NOERROR ")
	step("fails.example.org", 0, 0, 6, "SERVFAIL ")
	step("fails.example.org", 0, 0, 6, "SERVFAIL ")
	step("fails.example.org", 0, time.Second, 7, "SERVFAIL ")

	do := new(mdns.Msg)
	do.SetQuestion("a.example.org.", mdns.TypeA)
	do.SetEdns0(1232, true)
	b, err := do.Pack()
	if err != nil {
		t.Fatal(err)
	}
	if lookup(t, s, b, true); len(u.log()) != 8 {
		t.Error("an answer without DNSSEC was given to a client that wants it")
	}
}

func TestCacheHitDoesNotAllocate(t *testing.T) {
	s := run(t, dns.Config{}, newUpstream(t, always("192.0.2.1")))
	q, out := query(t, "www.example.org", mdns.TypeA, 1232), make([]byte, 0, dns.MaxUDP)
	lookup(t, s, q, true)
	if n := testing.AllocsPerRun(100, func() {
		if _, st := s.Answer(netip.Addr{}, q, true, out); st != dns.Answered {
			t.Fatal(st)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestForwardLargeAnswers(t *testing.T) {
	t.Parallel()
	u := newUpstream(t, func(q *mdns.Msg, network string) [][]byte {
		m := says(q, 0)
		for i := range 200 {
			m.Answer = append(m.Answer, says(q, 0, fmt.Sprintf("%s 60 IN A 192.0.2.%d", q.Question[0].Name, i)).Answer...)
		}
		if network == "udp" {
			m.Truncate(1232)
		}
		return packed(m)
	})
	s := run(t, dns.Config{}, u)
	for _, tt := range []struct {
		edns uint16
		udp  bool
		min  int
		tc   bool
	}{{0, true, 28, true}, {1232, true, 70, true}, {4096, true, 70, true}, {0, false, 200, false}} {
		m := lookup(t, s, query(t, "big.example.org", mdns.TypeA, tt.edns), tt.udp)
		if len(m.Answer) < tt.min || m.Truncated != tt.tc {
			t.Errorf("EDNS %d, UDP %v: %d records, TC %v", tt.edns, tt.udp, len(m.Answer), m.Truncated)
		}
	}
}

// TestExternalNameOutside is SPEC-15 and the second half of RC-19.
func TestExternalNameOutside(t *testing.T) {
	t.Parallel()
	in := cluster()
	in.Services = append(in.Services, external("twice", "external.testns.svc.cluster.local"))
	tests := []struct {
		name   string
		answer func(*mdns.Msg, string) [][]byte
		want   string
	}{
		{"external", always("192.0.2.1"), "NOERROR external.testns.svc.cluster.local. 30 IN CNAME ext.interwebs.test.; ext.interwebs.test. 60 IN A 192.0.2.1"},
		{"twice", always("192.0.2.1"), "NOERROR twice.testns.svc.cluster.local. 30 IN CNAME external.testns.svc.cluster.local.; " +
			"external.testns.svc.cluster.local. 30 IN CNAME ext.interwebs.test.; ext.interwebs.test. 60 IN A 192.0.2.1"},
		{"external", rcode(3), "NXDOMAIN external.testns.svc.cluster.local. 30 IN CNAME ext.interwebs.test."},
		{"external", silent, "SERVFAIL external.testns.svc.cluster.local. 30 IN CNAME ext.interwebs.test."},
	}
	for i, tt := range tests {
		t.Run(fmt.Sprint(i, tt.name), func(t *testing.T) {
			t.Parallel()
			s := run(t, dns.Config{}, newUpstream(t, tt.answer))
			s.Publish(dns.Compile(in))
			for _, edns := range []uint16{1232, 0} {
				m := lookup(t, s, query(t, tt.name+".testns.svc.cluster.local", mdns.TypeA, edns), true)
				if got := answers(m); got != tt.want || !m.Authoritative {
					t.Errorf("got %q, want %q", got, tt.want)
				}
			}
		})
	}
}

// TestExternalNameOutsideTruncated: RC-19, the flag of the target's answer is
// the flag of ours.
func TestExternalNameOutsideTruncated(t *testing.T) {
	t.Parallel()
	s := run(t, dns.Config{}, newUpstream(t, func(q *mdns.Msg, network string) [][]byte {
		if network == "tcp" {
			return nil
		}
		m := says(q, 0, "ext.interwebs.test. 60 IN A 192.0.2.1")
		m.Truncated = true
		return packed(m)
	}))
	m := lookup(t, s, query(t, "external.testns.svc.cluster.local", mdns.TypeA, 0), true)
	if !m.Truncated || len(m.Answer) != 2 {
		t.Errorf("got %v", m)
	}
}

func TestOwnAddressIsNoUpstream(t *testing.T) {
	t.Parallel()
	u := newUpstream(t, always("192.0.2.1"))
	s := run(t, dns.Config{}, u)
	in := cluster()
	in.Addresses = []netip.Addr{u.addr.Addr()}
	s.Publish(dns.Compile(in))
	if m := lookup(t, s, query(t, "www.example.org", mdns.TypeA, 0), true); m.Rcode != mdns.RcodeServerFailure || len(u.log()) != 0 {
		t.Errorf("we asked ourselves: %v", m)
	}
}

// TestLoop lets the server be its own upstream: the question comes back, joins
// itself and ends with SERVFAIL; nothing multiplies.
func TestLoop(t *testing.T) {
	t.Parallel()
	var self atomic.Pointer[netip.AddrPort]
	s := run(t, dns.Config{
		Upstreams:      func() []netip.AddrPort { return []netip.AddrPort{*self.Load()} },
		AttemptTimeout: 200 * time.Millisecond, TotalTimeout: 500 * time.Millisecond,
	})
	addr := listen(t, s)
	self.Store(&addr)
	if m := lookup(t, s, query(t, "www.example.org", mdns.TypeA, 0), true); m.Rcode != mdns.RcodeServerFailure {
		t.Errorf("got %v", m)
	}
	if st := s.Stats(); st.Loops != 1 || st.Forwarded != 1 {
		t.Errorf("stats %+v", st)
	}
}

func TestForwardAfterRun(t *testing.T) {
	t.Parallel()
	u := newUpstream(t, silent)
	s := dns.New(dns.Config{Upstreams: func() []netip.AddrPort { return []netip.AddrPort{u.addr} }})
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan byte, 100)
	reply := func(b []byte) { got <- b[3] & 15 }
	for i := range 10 {
		s.Forward(aClient, query(t, fmt.Sprintf("w%d.example.org", i), mdns.TypeA, 0), true, reply)
	}
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	for len(u.log()) < 5 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	<-done
	s.Forward(aClient, query(t, "late.example.org", mdns.TypeA, 0), true, reply)
	for range 11 {
		if r := <-got; r != mdns.RcodeServerFailure {
			t.Errorf("rcode %d", r)
		}
	}
	select {
	case <-got:
		t.Error("a query was answered twice")
	default:
	}
}

func TestForwardOfWhatIsNotOutside(t *testing.T) {
	t.Parallel()
	s := run(t, dns.Config{}, newUpstream(t, always("192.0.2.1")))
	if b := forward(t, s, []byte{1, 2, 3}, true); b != nil {
		t.Errorf("answered %x", b)
	}
	q := query(t, "www.example.org", mdns.TypeAXFR, 0)
	if m := checkReply(t, q, forward(t, s, q, true), true); m.Rcode != mdns.RcodeRefused {
		t.Errorf("got %v", m)
	}
	// The target came into the zone between Answer and Forward.
	q = query(t, "to-service.testns.svc.cluster.local", mdns.TypeA, 0)
	if m := checkReply(t, q, forward(t, s, q, true), true); len(m.Answer) != 2 {
		t.Errorf("got %v", m)
	}
}

// pod returns the address of one of many clients.
func pod(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}) }

// TestGreedyClientsLeaveRoom: whatever some clients ask, the next one gets two
// questions out, which is what a resolver asks at once (A and AAAA).
func TestGreedyClientsLeaveRoom(t *testing.T) {
	t.Parallel()
	const inFlight = 80
	for _, greedy := range []int{1, 4, 12} {
		t.Run(fmt.Sprintf("%d greedy", greedy), func(t *testing.T) {
			t.Parallel()
			s := run(t, dns.Config{MaxInFlight: inFlight, AttemptTimeout: time.Second, TotalTimeout: time.Second}, newUpstream(t, silent))
			ask := func(client netip.Addr, name string) bool {
				var refused atomic.Bool // before Forward returns, or never
				s.Forward(client, query(t, name, mdns.TypeA, 0), true, func(b []byte) {
					refused.Store(b[3]&15 == mdns.RcodeRefused)
				})
				return refused.Load()
			}
			for i := range greedy {
				got := 0
				for j := range 2 * inFlight {
					if !ask(pod(i), fmt.Sprintf("g%d-%d.example.org", i, j)) {
						got++
					}
				}
				if got < 2 || got > inFlight/4 {
					t.Errorf("greedy client %d has %d questions out, want 2 to %d", i, got, inFlight/4)
				}
			}
			for _, name := range []string{"a.example.org", "b.example.org"} {
				if ask(pod(1000), name) {
					t.Errorf("the modest client's question for %s is refused", name)
				}
			}
		})
	}
}

// TestOneClientMayNotWaitForAll: questions that join others are bounded, too.
func TestOneClientMayNotWaitForAll(t *testing.T) {
	t.Parallel()
	s := run(t, dns.Config{AttemptTimeout: time.Second, TotalTimeout: time.Second}, newUpstream(t, silent))
	q := query(t, "www.example.org", mdns.TypeA, 0)
	for range 10_000 {
		s.Forward(aClient, q, true, func([]byte) {})
	}
	if st := s.Stats(); st.Waiting > 1024 || st.Waiting < 64 {
		t.Errorf("%d answers wait for one client", st.Waiting)
	}
}
