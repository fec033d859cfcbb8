package metrics_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/netctl/netctl/dns/metrics"
)

func text(t *testing.T, s *metrics.Set, f metrics.Forwarding) string {
	t.Helper()
	var b bytes.Buffer
	if err := s.Write(&b, "v1", f); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestWrite(t *testing.T) {
	t.Parallel()
	var s metrics.Set
	for range 3 {
		s.Request(false, false, 1, false)
	}
	s.Request(true, true, 28, true)
	s.Request(false, false, 9999, false)
	s.Response(false, 0, metrics.Kubernetes)
	s.Response(true, 0, metrics.Kubernetes)
	s.Response(false, 3, metrics.Cache)
	s.Waited(false, 50, 600, 300*time.Microsecond)
	s.Programmed(time.Millisecond)
	got := text(t, &s, metrics.Forwarding{
		Hits: 2, Misses: 3, Entries: 1, Stale: 4, Refused: 5, Upstreams: []metrics.Upstream{{To: "192.0.2.1", Asked: 6, Failed: 7}},
	})
	const labels = `server="dns://:53",zone=".",view=""`
	for _, want := range []string{
		`coredns_build_info{version="netctl v1"} 1`,
		`coredns_dns_requests_total{` + labels + `,proto="udp",family="1",type="A"} 3`,
		`coredns_dns_requests_total{` + labels + `,proto="tcp",family="2",type="AAAA"} 1`,
		`coredns_dns_requests_total{` + labels + `,proto="udp",family="1",type="other"} 1`,
		`coredns_dns_do_requests_total{` + labels + `} 1`,
		`coredns_dns_responses_total{` + labels + `,rcode="NOERROR",plugin="kubernetes"} 2`,
		`coredns_dns_responses_total{` + labels + `,rcode="NXDOMAIN",plugin="cache"} 1`,
		`coredns_dns_request_size_bytes_bucket{` + labels + `,proto="udp",le="100"} 1`,
		`coredns_dns_response_size_bytes_bucket{` + labels + `,proto="udp",le="511"} 0`,
		`coredns_dns_response_size_bytes_bucket{` + labels + `,proto="udp",le="1023"} 1`,
		`coredns_dns_response_size_bytes_sum{` + labels + `,proto="udp"} 600`,
		`coredns_dns_request_duration_seconds_bucket{` + labels + `,le="0.00025"} 0`,
		`coredns_dns_request_duration_seconds_bucket{` + labels + `,le="0.0005"} 1`,
		`coredns_dns_request_duration_seconds_sum{` + labels + `} 0.0003`,
		`coredns_kubernetes_dns_programming_duration_seconds_count{service_kind="all"} 1`,
		`coredns_cache_hits_total{` + labels + `} 2`,
		`coredns_cache_requests_total{` + labels + `} 5`,
		`coredns_cache_served_stale_total{` + labels + `} 4`,
		`coredns_forward_max_concurrent_rejects_total{` + labels + `} 5`,
		`coredns_proxy_requests_total{proxy_name="forward",to="192.0.2.1"} 6`,
		`coredns_proxy_healthcheck_failures_total{proxy_name="forward",to="192.0.2.1"} 7`,
	} {
		if !strings.Contains(got, "\n"+want+"\n") {
			t.Errorf("%s is missing in\n%s", want, got)
		}
	}
	wellFormed(t, got)
}

// wellFormed checks that lines are what the format allows, and that those of one
// metric stand together under its type.
func wellFormed(t *testing.T, text string) {
	t.Helper()
	line := regexp.MustCompile(`^([a-z_]+)(_bucket|_sum|_count)?\{[^{}]*\} [0-9.e+-]+$`)
	current, seen := "", map[string]bool{}
	for l := range strings.Lines(text) {
		l = strings.TrimSuffix(l, "\n")
		if f := strings.Fields(l); f[0] == "#" {
			if f[1] == "TYPE" {
				if seen[f[2]] {
					t.Errorf("%s stands there twice", f[2])
				}
				current, seen[f[2]] = f[2], true
			}
			continue
		}
		if !line.MatchString(l) || !strings.HasPrefix(l, current+"{") && !strings.HasPrefix(l, current+"_") {
			t.Errorf("below %s: %s", current, l)
		}
	}
}

func TestOneInSixteenIsMeasured(t *testing.T) {
	t.Parallel()
	var s metrics.Set
	for range 160 {
		if start := s.Request(false, false, 1, false); !start.IsZero() {
			s.Measure(false, 40, 60, start)
		}
	}
	if got := text(t, &s, metrics.Forwarding{}); !strings.Contains(got, `coredns_dns_request_duration_seconds_count{server="dns://:53",zone=".",view=""} 160`+"\n") {
		t.Errorf("want 160 measured for 160 questions in\n%s", got)
	}
}

func TestCountingDoesNotAllocate(t *testing.T) {
	var s metrics.Set
	if n := testing.AllocsPerRun(100, func() {
		if start := s.Request(false, false, 1, true); !start.IsZero() {
			s.Measure(false, 40, 60, start)
		}
		s.Response(false, 0, metrics.Kubernetes)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestServe(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- metrics.Serve(ctx, addr, func(w io.Writer) error { _, err := io.WriteString(w, "here\n"); return err })
	}()
	for {
		r, err := http.Get("http://" + addr + "/metrics")
		if err != nil {
			select {
			case err := <-done:
				t.Fatal(err)
			default:
				continue // it does not listen yet
			}
		}
		b, err := io.ReadAll(r.Body)
		r.Body.Close()
		if err != nil || string(b) != "here\n" {
			t.Errorf("got %q, %v", b, err)
		}
		break
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
}
