package options_test

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/netctl/netctl/dns/options"
)

func TestDecode(t *testing.T) {
	t.Parallel()
	const text = `
ttl: 10
pods: verified
policy: random
upstreams: [192.0.2.1, "tls://[2001:db8::1]#dns.example", "tcp://192.0.2.2:5353"]
zones:
- {name: corp.example, upstreams: [192.0.2.3]}
- {name: lost.example, upstreams: []}
hosts:
- {address: 192.0.2.9, names: [a.example, b.example]}
rewrites:
- {name: old.example, to: new.example, suffix: true}
cache: {maxTTL: 60, serveStale: 2h}
log: denial
autopath: ["*"]
`
	got, err := options.Decode([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort
	want := &options.Options{
		TTL: 10, Pods: options.PodsVerified, Policy: options.Random,
		Upstreams: []options.Upstream{
			{Addr: addr("192.0.2.1:53"), Transport: options.UDP},
			{Addr: addr("[2001:db8::1]:853"), Transport: options.TLS, ServerName: "dns.example"},
			{Addr: addr("192.0.2.2:5353"), Transport: options.TCP},
		},
		Zones: []options.Zone{
			{Name: "corp.example", Upstreams: []options.Upstream{{Addr: addr("192.0.2.3:53"), Transport: options.UDP}}},
			{Name: "lost.example", Upstreams: []options.Upstream{}},
		},
		Hosts:    []options.Host{{Address: netip.MustParseAddr("192.0.2.9"), Names: []string{"a.example", "b.example"}}},
		Rewrites: []options.Rewrite{{Name: "old.example", To: "new.example", Suffix: true}},
		Cache:    options.Cache{MaxTTL: 60, ServeStale: options.Duration(2 * time.Hour)},
		Log:      options.LogDenial, Autopath: []string{"*"},
	}
	opts := cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })
	addrs := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	if d := cmp.Diff(want, got, opts, addrs); d != "" {
		t.Errorf("options (-want +got):\n%s", d)
	}
	b, err := got.Encode()
	if err != nil {
		t.Fatal(err)
	}
	again, err := options.Decode(b)
	if err != nil {
		t.Fatalf("%v in\n%s", err, b)
	}
	if d := cmp.Diff(got, again, opts, addrs); d != "" {
		t.Errorf("written and read again (-before +after):\n%s", d)
	}
}

func TestWrong(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"tll: 3":                             `"tll"`,
		"ttl: 3601":                          "3600",
		"pods: maybe":                        `"maybe"`,
		"log: loud":                          `"loud"`,
		"policy: any":                        `"any"`,
		"upstreams: [dns.example]":           `"dns.example"`,
		"upstreams: [127.0.0.1]":             "loopback",
		"upstreams: [0.0.0.0]":               "0.0.0.0",
		"upstreams: [https://192.0.2.1]":     "https",
		"maxConcurrent: -1":                  "-1",
		"zones: [{name: '', upstreams: []}]": "zone",
		"zones: [{name: a, upstreams: []}, {name: A., upstreams: []}]": "twice",
		"hosts: [{address: 192.0.2.1, names: []}]":                     "no names",
		"hosts: [{names: [a]}]":                                        "IP address",
		"hosts: [{address: 192.0.2.1, names: ['a b']}]":                `"a b"`,
		"rewrites: [{name: a}]":                                        "two domain names",
		"cache: {serveStale: 3}":                                       "quotes",
	} {
		_, err := options.Decode([]byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want it to name %s", text, err, want)
		}
	}
}

func TestUpstreamText(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"192.0.2.1":                     "192.0.2.1",
		"192.0.2.1:53":                  "192.0.2.1",
		"udp://192.0.2.1:54":            "192.0.2.1:54",
		"::ffff:192.0.2.1":              "192.0.2.1",
		"2001:db8::1":                   "2001:db8::1",
		"[2001:db8::1]:54":              "[2001:db8::1]:54",
		"tls://192.0.2.1":               "tls://192.0.2.1",
		"tls://192.0.2.1:853#a.example": "tls://192.0.2.1#a.example",
		"tls://[2001:db8::1]:54#a":      "tls://[2001:db8::1]:54#a",
		"127.0.0.1:5300":                "127.0.0.1:5300",
	} {
		u, err := options.ParseUpstream(text)
		if err != nil || u.String() != want {
			t.Errorf("%s: %s, %v; want %s", text, u, err, want)
		}
	}
}

func TestFileIsReadAgain(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "dns.yaml")
	write := func(text string, at int64) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, time.Unix(at, 0), time.Unix(at, 0)); err != nil {
			t.Fatal(err)
		}
	}
	write("ttl: 7", 1)
	f, err := options.Open(path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	later := options.SetClock(f)
	first := f.Options()
	later()
	if first.TTL != 7 || f.Options() != first {
		t.Fatalf("ttl %d, and the same file makes other options: %v", first.TTL, f.Options() != first)
	}
	write("ttl: 8", 2)
	later()
	if got := f.Options().TTL; got != 8 {
		t.Errorf("ttl %d after a change, want 8", got)
	}
	write("ttl: eight", 3)
	later()
	if got := f.Options().TTL; got != 8 {
		t.Errorf("ttl %d after a mistake, want the former 8", got)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	later()
	if got := f.Options().TTL; got != 8 {
		t.Errorf("ttl %d without a file, want the former 8", got)
	}
	if _, err := options.Open(path, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a file that is not there at the start is no error")
	}
}
