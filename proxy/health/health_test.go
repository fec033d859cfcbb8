package health

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/quota"
)

var web = model.Name{Namespace: "ns", Name: "svc"}

func newServer(t *testing.T, cfg Config) *Server {
	t.Helper()
	cfg.Logger = slog.New(slog.DiscardHandler)
	s := New(cfg)
	t.Cleanup(s.Close)
	return s
}

// get asks until there is an answer: the server may be a moment from accepting.
func get(t *testing.T, url string) (int, http.Header, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, res.Header, string(body)
}

// freePort is an address of the loopback network that this test has to itself.
func freePort(t *testing.T, addr string) netip.AddrPort {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", addr+":0")
	if err != nil {
		t.Skip("no such address here:", err)
	}
	defer l.Close()
	return netip.MustParseAddrPort(l.Addr().String())
}

// HC-3: the body and the headers are kube-proxy's to the byte.
func TestServiceAnswer(t *testing.T) {
	t.Parallel()
	s := newServer(t, Config{})
	w := httptest.NewRecorder()
	s.serveService(w, web, 1)
	const want = `{
	"service": {
		"namespace": "ns",
		"name": "svc"
	},
	"localEndpoints": 1,
	"serviceProxyHealthy": true
}
`
	if w.Code != http.StatusOK || w.Body.String() != want {
		t.Errorf("%d %s, want 200 %s", w.Code, w.Body.String(), want)
	}
	for k, v := range map[string]string{"Content-Type": "application/json", "X-Content-Type-Options": "nosniff", "X-Load-Balancing-Endpoint-Weight": "1"} {
		if got := w.Header().Get(k); got != v {
			t.Errorf("%s: %q, want %q", k, got, v)
		}
	}
}

// HC-2, HC-5, HC-6: who is told what, when.
func TestVerdicts(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name                    string
		waits                   time.Duration // of a change; 0: there is none
		gone                    bool          // the node is to go
		service, healthz, livez int
	}{
		{"idle", 0, false, 200, 200, 200},
		{"a change waits", Overdue - time.Second, false, 200, 200, 200},
		{"for too long", Overdue, false, 503, 503, 503},
		{"the node is to go", 0, true, 200, 503, 200},
		{"both", Overdue, true, 503, 503, 503},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, Config{})
			now := time.Unix(1000, 0)
			s.state.now = func() time.Time { return now }
			s.SetEligible(!tt.gone)
			if tt.waits > 0 {
				s.Heard(1)
				s.Heard(2) // the second one waits with the first
				now = now.Add(tt.waits)
			}
			w := httptest.NewRecorder()
			s.serveService(w, web, 2)
			if w.Code != tt.service {
				t.Errorf("service: %d, want %d", w.Code, tt.service)
			}
			for path, want := range map[string]int{"/healthz": tt.healthz, "/livez": tt.livez} {
				w := httptest.NewRecorder()
				s.healthz().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, http.NoBody))
				var v map[string]any
				if err := json.Unmarshal(w.Body.Bytes(), &v); err != nil || w.Code != want {
					t.Errorf("%s: %d (%v), want %d", path, w.Code, err, want)
				}
				_, node := v["nodeEligible"]
				if node != (path == "/healthz") || v["lastUpdated"] == nil || v["currentTime"] == nil || v["status"] == nil {
					t.Errorf("%s says %s", path, w.Body)
				}
			}
			s.Begin(nil, nil)
			s.End(2)
			w = httptest.NewRecorder()
			if s.serveService(w, web, 2); w.Code != http.StatusOK {
				t.Errorf("in force again: %d", w.Code)
			}
			w = httptest.NewRecorder()
			if s.serveService(w, web, 0); w.Code != http.StatusServiceUnavailable {
				t.Errorf("without endpoints: %d", w.Code)
			}
		})
	}
}

// HC-1: sockets open and close with the services, in both families.
func TestApply(t *testing.T) {
	t.Parallel()
	s := newServer(t, Config{})
	for _, addr := range []string{"127.0.0.1", "[::1]"} {
		at := freePort(t, addr)
		url := "http://" + at.String() + "/anything"
		if errs := s.Apply([]Check{{web, at, 1}}); len(errs) > 0 {
			t.Fatal(errs)
		}
		if code, _, _ := get(t, url); code != http.StatusOK {
			t.Errorf("%s: %d", url, code)
		}
		s.Apply([]Check{{web, at, 0}})
		if code, _, _ := get(t, url); code != http.StatusServiceUnavailable {
			t.Errorf("%s without endpoints: %d", url, code)
		}
		other := model.Name{Namespace: "ns", Name: "other"}
		s.Apply([]Check{{other, at, 3}})
		if _, _, body := get(t, url); !strings.Contains(body, `"other"`) {
			t.Errorf("the port's new service is not named: %s", body)
		}
		s.Apply(nil)
		var d net.Dialer
		if conn, err := d.DialContext(t.Context(), "tcp", at.String()); err == nil {
			conn.Close()
			t.Errorf("%s is open without a service", at)
		}
	}
}

// A port that somebody has is an error with names, and is had once it is free.
func TestConflict(t *testing.T) {
	t.Parallel()
	at := freePort(t, "127.0.0.1")
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", at.String())
	if err != nil {
		t.Skip(err)
	}
	s := newServer(t, Config{})
	checks := []Check{{web, at, 1}}
	errs := s.Apply(checks)
	if len(errs) != 1 || errs[0].Service != web || !errors.Is(errs[0], syscall.EADDRINUSE) || !strings.Contains(errs[0].Error(), at.String()) {
		t.Fatalf("%v", errs)
	}
	l.Close()
	if errs := s.Apply(checks); len(errs) > 0 {
		t.Error(errs)
	}
}

func TestOwnAddresses(t *testing.T) {
	t.Parallel()
	health, metrics := freePort(t, "127.0.0.1"), freePort(t, "127.0.0.1")
	s := newServer(t, Config{
		HealthzAddress: health.String(), MetricsAddress: metrics.String(), Mode: "netctl", NoLocal: func() (int, int) { return 5, 6 },
		More: func(w io.Writer) {
			WriteCounters(w, "netctl_dropped_packets_total", "Packets", "reason", map[string]uint64{`a "b"`: 7})
		},
	})
	if errs := s.Apply(nil); len(errs) > 0 {
		t.Fatal(errs)
	}
	s.Heard(1)
	now := time.Now()
	s.state.now = func() time.Time { return now }
	slices := []*model.EndpointSlice{{Triggered: now.Add(-time.Hour)}, {}, {Triggered: now}} // the first was not this process'
	s.Begin([]*model.Service{{}, {}}, slices)
	now = now.Add(3 * time.Millisecond)
	s.End(1)
	s.Heard(2)
	s.Begin([]*model.Service{{}, {}}, slices[:1])
	s.End(2)
	for url, want := range map[string]string{
		"http://" + health.String() + "/healthz":    `"lastUpdated"`,
		"http://" + health.String() + "/livez":      `"lastUpdated"`,
		"http://" + metrics.String() + "/healthz":   "ok",
		"http://" + metrics.String() + "/proxyMode": "netctl",
	} {
		if code, _, body := get(t, url); code != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s", url, code, body)
		}
	}
	_, _, body := get(t, "http://"+metrics.String()+"/metrics")
	for _, want := range []string{
		`kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family="IPv4",le="0.002"} 1`,
		`kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family="IPv6",le="0.004"} 2`,
		`kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family="IPv4"} 2`,
		`kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv4",le="0.25"} 1`,
		`kubeproxy_network_programming_duration_seconds_count{ip_family="IPv4"} 1`,
		`kubeproxy_sync_proxy_rules_service_changes_total 4`,
		`kubeproxy_sync_proxy_rules_endpoint_changes_total 3`,
		`kubeproxy_sync_proxy_rules_endpoint_changes_pending 0`,
		`kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="internal"} 5`,
		`kubeproxy_proxy_healthz_total{code="200"} 1`,
		`kubeproxy_proxy_livez_total{code="503"} 0`,
		`netctl_dropped_packets_total{reason="a \"b\""} 7`,
	} {
		if !strings.Contains(body, want+"\n") {
			t.Errorf("metrics lack %s", want)
		}
	}
	if t.Failed() {
		t.Log(body)
	}
}

// A client that holds connections open has few of them, and others are answered
// meanwhile; a connection that was answered is closed.
func TestConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &bounded{Listener: l, quota: quota.New(8, 2, 1)}
	defer b.Close()
	dial := func(from string) net.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		conn, err := d.DialContext(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	accept := func(want net.Conn) net.Conn {
		t.Helper()
		got, err := b.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if got.RemoteAddr().String() != want.LocalAddr().String() {
			t.Fatalf("accepted %s, want %s", got.RemoteAddr(), want.LocalAddr())
		}
		return got
	}
	first := accept(dial("127.0.0.1"))
	second := accept(dial("127.0.0.1"))
	defer second.Close()
	third, other := dial("127.0.0.1"), dial("127.0.0.2")
	defer accept(other).Close()
	if _, err := third.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a third connection of one client: %v, want that it is closed", err)
	}
	first.Close()
	first.Close() // twice is once
	accept(dial("127.0.0.1")).Close()
	if n := b.quota.Size(); n != 2 {
		t.Errorf("%d places taken, want 2", n)
	}
}

// Whoever asks to keep a connection does not, so that nobody holds one idle.
func TestNoKeepAlive(t *testing.T) {
	t.Parallel()
	s := newServer(t, Config{})
	at := freePort(t, "127.0.0.1")
	if errs := s.Apply([]Check{{web, at, 1}}); len(errs) > 0 {
		t.Fatal(errs)
	}
	var d net.Dialer
	conn, err := d.DialContext(t.Context(), "tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn) // until the server closes it
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 200 ") || !strings.Contains(string(answer), "Connection: close") {
		t.Errorf("%v: %s", err, answer)
	}
}
