package dnsnode_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/dnsnode"
	"github.com/netctl/netctl/internal/model"
)

const patience = 30 * time.Second

// source publishes one State.
type source struct{ state *model.State }

func (s source) Run(ctx context.Context, publish func(*model.State)) error {
	publish(s.state)
	<-ctx.Done()
	return nil
}

// said receives what is logged.
type said chan string

func (s said) Write(b []byte) (int, error) {
	select {
	case s <- string(b):
	default:
	}
	return len(b), nil
}

// metrics asks for the metrics until they are there and say something.
func metrics(t *testing.T, at, want string) {
	t.Helper()
	var text []byte
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		r, err := http.Get("http://" + at + "/metrics")
		if err != nil {
			continue
		}
		text, err = io.ReadAll(r.Body)
		_ = r.Body.Close()
		if err == nil && strings.Contains(string(text), want) {
			return
		}
	}
	t.Errorf("no %s in the metrics:\n%s", want, text)
}

// A port of the metrics that somebody else has does not end the name server; when it
// is free, they are served.
func TestMetricsPortTaken(t *testing.T) {
	t.Parallel()
	var lc net.ListenConfig
	taken, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	at := taken.Addr().String()
	ctx, cancel := context.WithCancel(t.Context())
	log, ended := make(said, 100), make(chan error, 1)
	go func() {
		ended <- dnsnode.Run(ctx, dnsnode.Config{
			Source:  source{&model.State{Revision: 1, Synced: true, Heard: time.Now().Add(-time.Hour)}},
			Domain:  func(context.Context) (string, error) { return "cluster.local", nil },
			Listen:  []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")},
			Metrics: at, Log: slog.New(slog.NewTextHandler(log, nil)),
		})
	}()
	deadline := time.After(patience)
	for warned := false; !warned; {
		select {
		case line := <-log:
			warned = strings.Contains(line, "level=WARN") && strings.Contains(line, at)
		case err := <-ended:
			t.Fatal("the name server has ended: ", err)
		case <-deadline:
			t.Fatal("it is not said that the port is taken")
		}
	}
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	metrics(t, at, "coredns_kubernetes_dns_programming_duration_seconds_sum{service_kind=\"all\"} 36")
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
