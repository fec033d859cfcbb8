package alive

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"
)

const patience = 30 * time.Second

// start runs a Watcher on a port of the loopback network; all of them are told apart
// by their addresses.
func start(t *testing.T, bind, ask uint16) (*Watcher, chan struct{}, func()) {
	t.Helper()
	changed := make(chan struct{}, 100)
	w := New(Config{Logger: slog.New(slog.DiscardHandler), Bind: bind, Ask: ask, Changed: func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	stopped := false
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return w, changed, stop
}

// freePort is one that nobody else has, most likely.
func freePort(t *testing.T) uint16 {
	t.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
}

func until(t *testing.T, changed <-chan struct{}, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(patience)
	for !ok() {
		select {
		case <-changed:
		case <-deadline:
			t.Fatal("not within patience: ", what)
		}
	}
}

// A node that stops answering dies, one that answers again lives; nobody waits for
// more than a change.
func TestLifeAndDeath(t *testing.T) {
	t.Parallel()
	local := netip.MustParseAddr("127.0.0.1")
	one, two := freePort(t), freePort(t)
	w, changed, _ := start(t, one, two)
	peers := []Peer{{"b", local}}
	w.Watch(local, peers, map[string]bool{"b": true})
	if !w.Lives("b") {
		t.Error("a node is dead before it could answer")
	}
	until(t, changed, "nobody is there", func() bool { return !w.Lives("b") })
	other, _, stop := start(t, two, one)
	other.Watch(local, []Peer{{"a", local}}, nil)
	until(t, changed, "b lives", func() bool { return w.Lives("b") })
	stop()
	until(t, changed, "b is dead", func() bool { return !w.Lives("b") })
	w.Watch(local, peers, nil)
	if w.Lives("b") {
		t.Error("a node that is not watched lives")
	}
}

// While somebody else has the port, nobody is declared dead, and it is said why; from
// then on, others have all the time to answer.
func TestPortTaken(t *testing.T) {
	t.Parallel()
	taken, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	local, port := netip.MustParseAddr("127.0.0.1"), taken.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	w, changed, _ := start(t, port, freePort(t))
	w.Watch(local, []Peer{{"b", local}}, map[string]bool{"b": true})
	until(t, changed, "it is said that the port is taken", func() bool {
		asking, err := w.Asking()
		return !asking && err != nil
	})
	w.mu.Lock()
	w.peers["b"].heard = time.Now().Add(-time.Hour) // as if the port had been taken for long
	w.mu.Unlock()
	for range 3 {
		if !w.Lives("b") {
			t.Fatal("a node that could not be asked is dead")
		}
		select {
		case <-changed:
		case <-time.After(2 * interval): // time to judge
		}
	}
	before := time.Now()
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	until(t, changed, "the port is ours", func() bool { asking, err := w.Asking(); return asking && err == nil })
	w.mu.Lock()
	heard := w.peers["b"].heard
	w.mu.Unlock()
	if heard.Before(before) {
		t.Error("silence counts from before anybody could be asked")
	}
	until(t, changed, "nobody is there", func() bool { return !w.Lives("b") })
}

// Strangers are neither answered nor believed.
func TestStrangers(t *testing.T) {
	t.Parallel()
	w := New(Config{Logger: slog.New(slog.DiscardHandler)})
	at := netip.MustParseAddr("10.1.2.1")
	w.Watch(netip.Addr{}, []Peer{{"b", at}}, map[string]bool{"b": true})
	if _, ok := w.node(netip.MustParseAddr("10.1.2.7")); ok {
		t.Error("a pod is a node")
	}
	if n, ok := w.node(at); !ok || n != "b" {
		t.Error("a node is not known")
	}
	now := time.Now()
	if w.judge(now.Add(silence / 2)) {
		t.Error("died too soon")
	}
	if !w.judge(now.Add(2 * silence)) {
		t.Error("does not die")
	}
	if w.heard("b", w.peers["b"].number+1) || w.Lives("b") {
		t.Error("an answer to no question counts")
	}
	if !w.heard("b", w.peers["b"].number) || !w.Lives("b") {
		t.Error("an answer does not count")
	}
}
