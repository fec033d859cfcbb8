package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/netctl/netctl/dns"
	"github.com/netctl/netctl/internal/cluster"
	"github.com/netctl/netctl/internal/model"
)

var update = flag.Bool("update", false, "write the answers that are given into testdata/answers.txt")

// item is a question of testdata/answers.txt with the answer that is wanted:
//
//	# the rule
//	? NAME TYPE
//	RCODE flags
//	an answer
//	@ a record of the authority section
//	+ a record of the additional section
type item struct {
	rule, name string
	qtype      uint16
	want       string
}

func readItems(t testing.TB) []item {
	t.Helper()
	text, err := os.ReadFile("testdata/answers.txt")
	if err != nil {
		t.Fatal(err)
	}
	var out []item
	for block := range strings.SplitSeq(strings.TrimSpace(string(text)), "\n\n") {
		lines := strings.SplitN(block, "\n", 3)
		f := strings.Fields(lines[1])
		if len(f) != 3 || f[0] != "?" || !strings.HasPrefix(lines[0], "# ") {
			t.Fatalf("want '# rule' and '? NAME TYPE':\n%s", block)
		}
		it := item{rule: lines[0][2:], name: f[1], qtype: mdns.StringToType[f[2]]}
		if len(lines) == 3 {
			it.want = lines[2]
		}
		out = append(out, it)
	}
	return out
}

// answerText writes a message as the file has it.
func answerText(m *mdns.Msg) string {
	head := mdns.RcodeToString[m.Rcode]
	if m.Authoritative {
		head += " aa"
	}
	if m.Truncated {
		head += " tc"
	}
	lines := []string{head}
	section := func(mark string, list []mdns.RR) {
		var out []string
		for _, rr := range list {
			if rr.Header().Rrtype == mdns.TypeOPT {
				continue
			}
			if s, ok := rr.(*mdns.SOA); ok {
				s.Serial = 1 // whenever it is asked
			}
			out = append(out, mark+strings.Join(strings.Fields(rr.String()), " "))
		}
		slices.Sort(out)
		lines = append(lines, out...)
	}
	section("", m.Answer)
	section("@ ", m.Ns)
	section("+ ", m.Extra)
	return strings.Join(lines, "\n")
}

// startNetctl answers for the cluster in testdata on sockets of the loopback address.
func startNetctl(t *testing.T, outside string) netip.AddrPort {
	t.Helper()
	dir, err := cluster.NewDirectory(cluster.DirectoryConfig{Path: "testdata/cluster"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	state := make(chan *model.State, 1)
	go func() {
		_ = dir.Run(ctx, func(s *model.State) { // until it is cancelled
			if s.Synced {
				select {
				case state <- s:
				default:
				}
			}
		})
	}()
	in := dns.InputOf(<-state)
	in.Server, in.Serial = model.Name{Namespace: "kube-system", Name: "kube-dns"}, 1
	in.Ranges = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16"), netip.MustParsePrefix("172.0.0.0/16")}
	s := dns.New(dns.Config{Upstreams: func() []netip.AddrPort { return []netip.AddrPort{netip.MustParseAddrPort(outside)} }})
	s.Publish(dns.Compile(in))
	at, ended := make(chan netip.AddrPort, 1), make(chan error, 2)
	go func() { ended <- s.Run(ctx) }()
	go func() {
		ended <- s.Listen(ctx, []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}, func(list []netip.AddrPort) { at <- list[0] })
	}()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Errorf("name server: %v", err)
			}
		}
	})
	select {
	case a := <-at:
		return a
	case err := <-ended:
		t.Fatal(err)
		return netip.AddrPort{}
	}
}

func startOutside(t *testing.T) string {
	t.Helper()
	outside, stop, err := serveOutside()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return outside
}

// exchange asks a server, over UDP with EDNS as resolvers do, or over TCP.
func exchange(t testing.TB, at netip.AddrPort, network, name string, qtype uint16) *mdns.Msg {
	t.Helper()
	m := new(mdns.Msg)
	m.SetQuestion(name, qtype)
	m.SetEdns0(1232, false)
	c := mdns.Client{Net: network, Timeout: 10 * time.Second, UDPSize: 4096}
	for try := 0; ; try++ {
		r, _, err := c.Exchange(m, at.String())
		if err == nil {
			return r
		}
		var timeout net.Error
		if try == 2 || !errors.As(err, &timeout) {
			t.Fatalf("%s %s: %v", name, mdns.TypeToString[qtype], err)
		}
	}
}

// TestPairsOnOneSocket: of A and AAAA on one socket, hundreds at a time, none is lost.
func TestPairsOnOneSocket(t *testing.T) {
	t.Parallel()
	l, err := newLoad(startNetctl(t, startOutside(t)), func(i int) (string, uint16) {
		return "svc1.testns.svc.cluster.local.", [...]uint16{mdns.TypeA, mdns.TypeAAAA}[i%2]
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	if _, lost, err := l.pairs(5000, 512); err != nil || lost > 0 {
		t.Errorf("%d answers lost, %v", lost, err)
	}
}

// TestAnswers asks every question of the file over UDP and TCP.
func TestAnswers(t *testing.T) {
	t.Parallel()
	at := startNetctl(t, startOutside(t))
	items := readItems(t)
	var b strings.Builder
	for i, it := range items {
		if i > 0 {
			b.WriteString("\n\n")
		}
		for _, network := range []string{"udp", "tcp"} {
			got := answerText(exchange(t, at, network, it.name, it.qtype))
			if network == "udp" {
				fmt.Fprintf(&b, "# %s\n? %s %s\n%s", it.rule, it.name, mdns.TypeToString[it.qtype], got)
			}
			if !*update && got != it.want {
				t.Errorf("%s, %s %s over %s: got\n%s\nwant\n%s", it.rule, it.name, mdns.TypeToString[it.qtype], network, got, it.want)
			}
		}
	}
	if *update {
		if err := os.WriteFile("testdata/answers.txt", []byte(b.String()+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
