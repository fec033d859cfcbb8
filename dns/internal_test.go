package dns

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
)

func addDashed(f *testing.F) {
	for _, s := range []string{
		"1-2-3-4", "01-2-3-4", "256-1-1-1", "1-2-3", "1-2-3-4-5", "--", "--1", "1--", "1--2--3", "1-2-3-4-5-6-7-8", "1-2-3-4-5-6-7--",
		"1-2-3-4-5-6-7-8--", "-1--2", "1--2-", "12345--", "fd00--1", "--ffff-102-304", "a---b", "", "-", "g--", "1-2--3", "1-2-3-",
	} {
		f.Add(s)
	}
}

// FuzzDashed compares the parser with netip on the text that it stands for.
func FuzzDashed(f *testing.F) {
	addDashed(f)
	f.Fuzz(func(t *testing.T, s string) {
		if strings.ContainsAny(s, ".:%") {
			return
		}
		text := strings.ReplaceAll(s, "-", ":")
		if strings.Count(s, "-") == 3 && !strings.Contains(s, "--") {
			text = strings.ReplaceAll(s, "-", ".")
		}
		want, err := netip.ParseAddr(text)
		got, ok := parseDashed([]byte(s))
		if ok != (err == nil) || ok && got != want.Unmap() {
			t.Fatalf("%q: got %v %v, netip says %v %v", s, got, ok, want, err)
		}
		if ok && dashedName(got) == s && !isDashed([]byte(s), got) {
			t.Fatalf("%q is the name of %v", s, got)
		}
	})
}

func TestDashedNamesReadBack(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	for range 5000 {
		var b [16]byte
		for i := range b {
			if r.IntN(2) == 0 {
				b[i] = byte(r.IntN(256))
			}
		}
		a := netip.AddrFrom16(b).Unmap()
		if r.IntN(2) == 0 {
			a = netip.AddrFrom4([4]byte(b[:4]))
		}
		n := dashedName(a)
		if got, ok := parseDashed([]byte(n)); !ok || got != a || !isDashed([]byte(n), a) {
			t.Fatalf("seed %d: %v is named %q, which reads as %v", seed, a, n, got)
		}
	}
}

// FuzzName compares the name parser with miekg/dns.
func FuzzName(f *testing.F) {
	f.Add([]byte("\x03WwW\x07example\x03org\x00"))
	f.Add([]byte("\x01.\x00"))
	f.Add([]byte("\x00"))
	f.Add(append(bytes.Repeat([]byte("\x01a"), 127), 0))
	f.Add(append(bytes.Repeat([]byte("\x01a"), 128), 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		var n name
		used := n.parse(b)
		text, off, err := mdns.UnpackDomainName(b, 0)
		if used == 0 {
			if err == nil && !bytes.ContainsFunc(b[:off], func(r rune) bool { return r >= 0xc0 }) && off <= maxName && plainLabels(b) {
				t.Fatalf("%x is the name %s", b, text)
			}
			return
		}
		if err != nil || off != used {
			t.Fatalf("%x: %d bytes, miekg says %d %v", b, used, off, err)
		}
		if got := mdns.CountLabel(text); got != n.labels {
			t.Fatalf("%x: %d labels, miekg says %d", b, n.labels, got)
		}
		if !bytes.EqualFold(n.wire[:n.len], b[:used]) && !strings.EqualFold(string(n.wire[:n.len]), string(b[:used])) {
			t.Fatalf("%x became %x", b[:used], n.wire[:n.len])
		}
	})
}

// plainLabels reports whether b starts with labels that are not compressed.
func plainLabels(b []byte) bool {
	for i := 0; i < len(b); i += 1 + int(b[i]) {
		if b[i] == 0 {
			return true
		}
		if b[i] > maxLabel {
			return false
		}
	}
	return false
}

// FuzzReply feeds an upstream's bytes: what is accepted can be given to every
// client, cut, aged and with a chain of CNAMEs, and stays within its limit.
func FuzzReply(f *testing.F) {
	a := ask{wire: "\x03www\x07example\x03org\x00", qtype: typeA, flags: keyRD}
	q := a.query(0, true)
	end := len(q) - optLen
	for _, rr := range [][]string{
		{"www.example.org. 60 IN A 192.0.2.1"},
		{"www.example.org. 60 IN CNAME a.example.org.", "a.example.org. 5 IN TXT \"x\""},
		{"www.example.org. 60 IN SRV 1 2 3 a.example.org.", "www.example.org. 60 IN HTTPS 1 . alpn=h2"},
	} {
		var m mdns.Msg
		m.SetQuestion("www.example.org.", mdns.TypeA)
		m.Id, m.Response, m.Compress = 0, true, true
		for _, s := range rr {
			r, err := mdns.NewRR(s)
			if err != nil {
				f.Fatal(err)
			}
			m.Answer = append(m.Answer, r)
		}
		m.SetEdns0(1232, true)
		m.Extra = append(m.Extra, m.Answer[0]) // OPT is not the last
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[end:], uint8(1), uint16(600))
	}
	f.Fuzz(func(t *testing.T, rest []byte, counts uint8, limit uint16) {
		msg := append(append([]byte(nil), q[:end]...), rest...)
		msg[2] |= flagQR >> 8
		msg[7], msg[9], msg[11] = counts&3, counts>>2&3, counts>>4
		r, err := accept(msg, q[:end])
		if err != nil {
			return
		}
		now := time.Unix(1000, 0)
		r.stored = now.Add(-time.Second)
		_ = r.lifetime(typeA, maxPositiveTTL, maxNegativeTTL)
		c := client{end: end, opt: counts&1 == 0, udp: true, limit: max(int(limit), end+optLen), flags: flagRD}
		out := r.relay(&c, nil, q[:end], now)
		if len(out) > c.limit || !bytes.Equal(out[:2], q[:2]) {
			t.Fatalf("%d bytes for a limit of %d", len(out), c.limit)
		}
		var rec record
		at := end
		for it := recordsOf(out, end); it.left(); at = rec.end {
			if !it.next(&rec) {
				t.Fatalf("the relayed reply is malformed: %x", out)
			}
		}
		if at != len(out) {
			t.Fatalf("%d bytes behind the last record", len(out)-at)
		}
		as := asker{client: c, head: q[:end], chain: []string{"b.example.org."}}
		if out := as.compose(r, now); len(out) > c.limit {
			t.Fatalf("%d bytes for a limit of %d", len(out), c.limit)
		}
	})
}

func TestSkipName(t *testing.T) {
	t.Parallel()
	head := make([]byte, headerLen)
	long := bytes.Repeat([]byte("\x01a"), 127)
	tests := []struct {
		name string
		at   int // where the name starts, from the header
		b    []byte
		want int // bytes, 0 malformed
	}{
		{"root", 0, []byte{0}, 1},
		{"labels", 0, []byte("\x01a\x02bc\x00"), 6},
		{"pointer back", 3, []byte("\x01a\x00\xc0\x0c"), 2},
		{"label and pointer back", 3, []byte("\x01a\x00\x01b\xc0\x0c"), 4},
		{"pointer to itself", 0, []byte("\xc0\x0c"), 0},
		{"pointer to its own label", 0, []byte("\x01a\xc0\x0c"), 0},
		{"pointer ahead", 0, []byte("\xc0\x0e\x00"), 0},
		{"pointer into the header", 3, []byte("\x01a\x00\xc0\x02"), 0},
		{"half a pointer", 3, []byte("\x01a\x00\xc0"), 0},
		{"label type 10", 0, []byte("\x80a\x00"), 0},
		{"cut", 0, []byte("\x02a"), 0},
		{"no end", 0, []byte("\x01a"), 0},
		{"255 bytes", 0, append(slices.Clip(long), 0), 255},
		{"257 bytes", 0, append(slices.Clip(long), 1, 'a', 0), 0},
	}
	for _, tt := range tests {
		got := skipName(append(head[:headerLen:headerLen], tt.b...), headerLen+tt.at)
		if got != 0 {
			got -= headerLen + tt.at
		}
		if got != tt.want {
			t.Errorf("%s: %d bytes, want %d", tt.name, got, tt.want)
		}
	}
}

func TestLifetime(t *testing.T) {
	t.Parallel()
	const soa = "example.org. 100 IN SOA a. b. 1 2 3 4 20"
	tests := []struct {
		name   string
		rcode  int
		answer []string
		ns     []string
		extra  []string
		want   uint32
	}{
		{"positive: the least TTL", 0, []string{"www.example.org. 60 IN A 192.0.2.1", "www.example.org. 50 IN A 192.0.2.2"}, nil, nil, 50},
		{"positive: additional counts", 0, []string{"www.example.org. 60 IN A 192.0.2.1"}, nil, []string{"x. 7 IN A 192.0.2.1"}, 7},
		{"positive: capped", 0, []string{"www.example.org. 99999 IN A 192.0.2.1"}, nil, nil, 3600},
		{"positive: zero", 0, []string{"www.example.org. 0 IN A 192.0.2.1"}, nil, nil, 0},
		{"positive: negative number", 0, []string{"www.example.org. 3000000000 IN A 192.0.2.1"}, nil, nil, 0},
		{"name error: SOA minimum", 3, nil, []string{soa}, nil, 20},
		{"name error: SOA TTL", 3, nil, []string{"example.org. 10 IN SOA a. b. 1 2 3 4 20"}, nil, 10},
		{"name error: capped", 3, nil, []string{"example.org. 900 IN SOA a. b. 1 2 3 4 900"}, nil, 30},
		{"name error without SOA", 3, nil, nil, nil, 0},
		{"no data", 0, nil, []string{soa}, nil, 20},
		{"no data behind CNAME", 0, []string{"www.example.org. 5 IN CNAME x."}, []string{soa}, nil, 5},
		{"CNAME alone", 0, []string{"www.example.org. 5 IN CNAME x."}, nil, nil, 0},
		{"failure", 2, nil, nil, nil, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var m mdns.Msg
			m.SetQuestion("www.example.org.", mdns.TypeA)
			m.Response, m.Rcode = true, tt.rcode
			for i, list := range [][]string{tt.answer, tt.ns, tt.extra} {
				for _, s := range list {
					rr, err := mdns.NewRR(s)
					if err != nil {
						t.Fatal(err)
					}
					to := []*[]mdns.RR{&m.Answer, &m.Ns, &m.Extra}[i]
					*to = append(*to, rr)
				}
			}
			b, err := m.Pack()
			if err != nil {
				t.Fatal(err)
			}
			r, ok := parseReply(b, headerLen+17+4)
			if !ok {
				t.Fatal("malformed")
			}
			if got := r.lifetime(typeA, maxPositiveTTL, maxNegativeTTL); got != tt.want {
				t.Errorf("%d s, want %d", got, tt.want)
			}
		})
	}
}

func TestCacheIsBounded(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	var c cache
	long := now.Add(time.Hour)
	c.put("first to go", &reply{msg: make([]byte, 10), expires: now.Add(-1)}, now)
	for i := range cacheEntries + 500 {
		c.put(strconv.Itoa(i), &reply{msg: make([]byte, 10), expires: long}, now)
	}
	if len(c.entries) != cacheEntries {
		t.Errorf("%d entries", len(c.entries))
	}
	for i := range 500 {
		c.put(fmt.Sprint("large", i), &reply{msg: make([]byte, 60000), expires: long}, now)
	}
	sum := 0
	for k, e := range c.entries {
		sum += e.cost() + len(k)
	}
	if c.bytes > cacheMaxBytes || c.bytes != sum {
		t.Errorf("%d bytes counted, %d there, limit %d", c.bytes, sum, cacheMaxBytes)
	}
	if c.get([]byte("first to go"), now) != nil {
		t.Error("an expired entry was given out")
	}
	if c.get([]byte("large499"), now) == nil || c.get([]byte("large499"), long) != nil {
		t.Error("an entry lives until it expires")
	}
}

func TestRanges(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	addr := func() netip.Addr {
		if r.IntN(2) == 0 {
			return netip.AddrFrom4([4]byte{10, 0, byte(r.IntN(4)), byte(r.IntN(256))})
		}
		return netip.AddrFrom16([16]byte{0: 0xfd, 14: byte(r.IntN(4)), 15: byte(r.IntN(256))})
	}
	for range 300 {
		var list []netip.Prefix
		for range r.IntN(12) {
			a := addr()
			list = append(list, netip.PrefixFrom(a, a.BitLen()-r.IntN(12)))
		}
		z := Compile(Input{Ranges: list})
		for range 50 {
			a, want := addr(), false
			for _, p := range list {
				want = want || p.Contains(a)
			}
			if got := z.within(a); got != want {
				t.Fatalf("seed %d: %v in %v: %v, want %v", seed, a, list, got, want)
			}
		}
	}
}

func TestParseServers(t *testing.T) {
	t.Parallel()
	in := "# nameserver 9.9.9.9\nnameserver 192.0.2.1 # first\n\tnameserver\t2001:db8::1\nnameserver\nnameserver not-an-address\n" +
		"search a b\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver ::ffff:192.0.2.7\nnameserverx 1.1.1.1\n"
	if got, want := fmt.Sprint(parseServers([]byte(in))), "[192.0.2.1 2001:db8::1 fe80::1%eth0 192.0.2.7]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func FuzzParseServers(f *testing.F) {
	f.Add([]byte("nameserver 1.2.3.4\nnameserver fe80::1%eth0\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		list := parseServers(b)
		if len(list) > maxServers {
			t.Fatalf("%d servers", len(list))
		}
		for _, a := range list {
			if !a.IsValid() || a.Is4In6() {
				t.Fatalf("%v", a)
			}
		}
	})
}
