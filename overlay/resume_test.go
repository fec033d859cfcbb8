package overlay_test

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netctl/netctl/overlay"
	"github.com/netctl/netctl/overlay/handshake"
	"github.com/netctl/netctl/overlay/overlaytest"
)

// memoryDir is a directory for session files.
func memoryDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "netctl-overlay-") //nolint:usetesting // must be on tmpfs
	if err != nil {
		t.Skipf("no tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// watch counts the handshake messages on a network, and sees to it that no
// nonce is used twice.
type watch struct {
	began atomic.Int64
	twice atomic.Int64

	mu   sync.Mutex
	seen map[[12]byte]bool // index and counter
}

func (w *watch) tap(d overlaytest.Datagram) {
	k := handshake.KindOf(d.Payload)
	if k == handshake.KindInitiation {
		w.began.Add(1)
	}
	if k == handshake.KindTransport {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.seen == nil {
			w.seen = make(map[[12]byte]bool)
		}
		if id := [12]byte(d.Payload[4:]); w.seen[id] {
			w.twice.Add(1)
		} else {
			w.seen[id] = true
		}
	}
}

// successor makes an engine in the place of n, on a wire that it shares; it is
// not started.
func successor(t testing.TB, n *node, wire overlay.Wire, change func(*overlay.WireGuardConfig)) *node {
	t.Helper()
	out := &node{name: n.name, key: n.key, in: newInbox(), at: n.at, cidr: n.cidr}
	cfg := overlay.WireGuardConfig{Key: n.key, ListenPort: overlay.DefaultPort, MTU: testMTU, Sink: out.in.sink, Wire: wire}
	change(&cfg)
	var err error
	if out.WireGuard, err = overlay.NewWireGuard(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := out.Close(); err != nil {
			t.Error(err)
		}
	})
	return out
}

// TestSessionsOutliveTheProcess hands a node over while its peer goes on: first
// to one process after the other in an orderly way, then as after a SIGKILL.
func TestSessionsOutliveTheProcess(t *testing.T) {
	t.Parallel()
	file := filepath.Join(memoryDir(t), "sessions")
	with := func(c *overlay.WireGuardConfig) { c.SessionFile, c.Epoch = file, "boot" }
	var w watch
	net := overlaytest.New(overlaytest.Config{Tap: w.tap})
	wire := net.Wire(addr("192.0.2.1"))
	a := start(t, net, 1, func(c *overlay.WireGuardConfig) { with(c); c.Wire = wire })
	b := start(t, net, 2, nil)
	mesh(t, a, b)
	a.send(t, udp(pod4(1), pod4(2), "before"))
	b.in.waitN(t, "packet before", 1)
	b.send(t, udp(pod4(2), pod4(1), "before"))
	a.in.waitN(t, "answer before", 1)
	settle(t, a, b)
	shaken, began := shakenAt(t, a, "n2"), w.began.Load()

	for round := range 4 {
		crash := round%2 == 1
		wire = wire.Share()
		next := successor(t, a, wire, with)
		if report := next.Report(); report != "" {
			t.Fatalf("session file refused: %s", report)
		}
		if round != 1 { // peers may also come later, if nothing is on its way
			mesh(t, next, b)
		}
		b.send(t, udp(pod4(2), pod4(1), "meanwhile")) // the old one serves
		a.in.waitN(t, "packet for the old one", 1)
		if !crash {
			if err := a.Stop(); err != nil {
				t.Fatal(err)
			}
			if err := a.Send(udp(pod4(1), pod4(2), "x")); !errors.Is(err, overlay.ErrClosed) {
				t.Errorf("send after stop: %v", err)
			}
			b.send(t, udp(pod4(2), pod4(1), "in the gap"))
		} else {
			a.Kill()
		}
		if err := next.Start(); err != nil {
			t.Fatal(err)
		}
		mesh(t, next, b)
		if !crash {
			next.in.waitN(t, "packet of the gap", 1)
		}
		for i := range 10 {
			next.send(t, udp(pod4(1), pod4(2), fmt.Sprint("after", i)))
		}
		b.in.wait(t, "packets after", func(got [][]byte) bool { return strings.Contains(string(payloads(t, got)), "after9") })
		b.send(t, udp(pod4(2), pod4(1), "back"))
		next.in.waitN(t, "answer after", 1)
		if got := shakenAt(t, next, "n2"); !got.Equal(shaken) {
			t.Errorf("round %d: handshake at %v, was at %v", round, got, shaken)
		}
		a = next
	}
	if n := w.began.Load() - began; n != 0 {
		t.Errorf("%d handshakes were begun", n)
	}
	if n := w.twice.Load(); n != 0 {
		t.Errorf("%d nonces were used twice", n)
	}
}

// settle waits until no handshake is under way: both ends may have begun one,
// and the last message of one may still be on its way.
func settle(t testing.TB, nodes ...*node) {
	t.Helper()
	var last string
	until(t, "the end of handshakes", func() bool {
		var times []string
		flying := 0
		for _, n := range nodes {
			peers, err := n.Peers()
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range peers {
				times = append(times, p.LastHandshake.String())
			}
			_, _, k := n.SlotsInUse()
			flying += k
		}
		now := strings.Join(times, " ")
		same := now == last && flying == 0
		last = now
		if !same {
			time.Sleep(100 * time.Millisecond)
		}
		return same
	})
}

// TestBothProcessesSend lets the old process go on sending: a nonce is not used
// twice even then.
func TestBothProcessesSend(t *testing.T) {
	t.Parallel()
	file := filepath.Join(memoryDir(t), "sessions")
	with := func(c *overlay.WireGuardConfig) { c.SessionFile = file }
	var w watch
	net := overlaytest.New(overlaytest.Config{Tap: w.tap})
	wire := net.Wire(addr("192.0.2.1"))
	a := start(t, net, 1, func(c *overlay.WireGuardConfig) { with(c); c.Wire = wire })
	b := start(t, net, 2, nil)
	mesh(t, a, b)
	a.send(t, udp(pod4(1), pod4(2), "session"))
	b.in.waitN(t, "session", 1)
	next := successor(t, a, wire.Share(), with)
	if err := next.Apply([]overlay.Peer{b.peer()}); err != nil {
		t.Fatal(err)
	}
	var senders sync.WaitGroup
	begin := make(chan struct{})
	for _, n := range []*node{a, next} {
		senders.Go(func() {
			<-begin
			for range 500 {
				_ = n.Send(udp(pod4(1), pod4(2), "x"))
			}
		})
	}
	a.Interrupt()
	if err := next.Start(); err != nil {
		t.Fatal(err)
	}
	close(begin)
	senders.Wait()
	// Sessions that replace each other in one slot do not meet either.
	for range 3 {
		time.Sleep(50 * time.Millisecond) // timestamps have steps of 16 ms
		next.Age(200 * time.Second)
		next.send(t, udp(pod4(1), pod4(2), "new session"))
		b.in.wait(t, "new session", func(got [][]byte) bool { return strings.Contains(string(payloads(t, got)), "new session") })
		for range 100 {
			_ = a.Send(udp(pod4(1), pod4(2), "old session, old process"))
		}
	}
	if n := w.twice.Load(); n != 0 {
		t.Errorf("%d nonces were used twice", n)
	}
}

// TestRestartWithoutSessions: the successor knows none, and shakes hands with
// every peer at once; what is sent meanwhile waits.
func TestRestartWithoutSessions(t *testing.T) {
	t.Parallel()
	dir := memoryDir(t)
	for name, spoil := range map[string]func(t *testing.T, file string, c *overlay.WireGuardConfig){
		"no file":      func(_ *testing.T, _ string, c *overlay.WireGuardConfig) { c.SessionFile = "" },
		"another boot": func(_ *testing.T, _ string, c *overlay.WireGuardConfig) { c.Epoch = "other" },
		"not a session file": func(t *testing.T, file string, _ *overlay.WireGuardConfig) {
			write(t, file, []byte(strings.Repeat("x", 100000)))
		},
		"empty": func(t *testing.T, file string, _ *overlay.WireGuardConfig) { write(t, file, nil) },
		"no directory": func(_ *testing.T, _ string, c *overlay.WireGuardConfig) {
			c.SessionFile = filepath.Join(filepath.Dir(c.SessionFile), "none", "sessions")
		},
		"a directory": func(t *testing.T, file string, _ *overlay.WireGuardConfig) {
			if err := errors.Join(os.Remove(file), os.Mkdir(file, 0o700)); err != nil {
				t.Fatal(err)
			}
		},
		"readable by all": func(t *testing.T, file string, _ *overlay.WireGuardConfig) {
			if err := os.Chmod(file, 0o644); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
			with := func(c *overlay.WireGuardConfig) { c.SessionFile, c.Epoch = file, "boot" }
			net := overlaytest.New(overlaytest.Config{})
			wire := net.Wire(addr("192.0.2.1"))
			a := start(t, net, 1, func(c *overlay.WireGuardConfig) { with(c); c.Wire = wire })
			b, c := start(t, net, 2, nil), start(t, net, 3, nil)
			mesh(t, a, b, c)
			for _, n := range []*node{b, c} {
				a.send(t, udp(pod4(1), n.cidr[0].Addr().Next(), "before"))
				n.in.waitN(t, "packet before", 1)
			}
			if err := a.Close(); err != nil {
				t.Fatal(err)
			}
			again := successor(t, a, net.Wire(addr("192.0.2.1")), func(cfg *overlay.WireGuardConfig) {
				with(cfg)
				spoil(t, file, cfg)
			})
			if refused := again.Report(); (refused == "") != (name == "no file") {
				t.Errorf("report %q", refused)
			}
			mesh(t, again, b, c)
			again.send(t, udp(pod4(1), pod4(2), "early")) // before Start: it waits, too
			if err := again.Start(); err != nil {
				t.Fatal(err)
			}
			again.send(t, udp(pod4(1), pod4(3), "early"))
			for _, n := range []*node{b, c} {
				if got := n.in.waitN(t, "what waited", 1); string(payloads(t, got)) != "early" {
					t.Errorf("%s got %q", n.name, payloads(t, got))
				}
				n.send(t, udp(n.cidr[0].Addr().Next(), pod4(1), "back"))
				again.in.waitN(t, "answer", 1)
			}
		})
	}
}

func write(t testing.TB, file string, b []byte) {
	t.Helper()
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestReplayAfterTakeOver: what the process before us has received is refused.
func TestReplayAfterTakeOver(t *testing.T) {
	t.Parallel()
	file := filepath.Join(memoryDir(t), "sessions")
	with := func(c *overlay.WireGuardConfig) { c.SessionFile = file }
	var mu sync.Mutex
	var seen []overlaytest.Datagram
	net := overlaytest.New(overlaytest.Config{Tap: func(d overlaytest.Datagram) {
		mu.Lock()
		defer mu.Unlock()
		d.Payload = append([]byte(nil), d.Payload...)
		seen = append(seen, d)
	}})
	wire := net.Wire(addr("192.0.2.1"))
	a := start(t, net, 1, func(c *overlay.WireGuardConfig) { with(c); c.Wire = wire })
	b := start(t, net, 2, nil)
	if err := a.Apply([]overlay.Peer{b.peer()}); err != nil {
		t.Fatal(err)
	}
	net.SetCut(a.at.Addr(), b.at.Addr(), true) // so that b begins
	if err := b.Apply([]overlay.Peer{a.peer()}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	net.SetCut(a.at.Addr(), b.at.Addr(), false)
	for range 20 {
		b.send(t, udp(pod4(2), pod4(1), "once"))
	}
	a.in.waitN(t, "packets", 1)
	until(t, "all packets", func() bool { return a.Counters().RxSegments == 20 })
	next := successor(t, a, wire.Share(), with)
	a.Kill()
	if err := next.Start(); err != nil {
		t.Fatal(err)
	}
	if err := next.Apply([]overlay.Peer{b.peer()}); err != nil {
		t.Fatal(err)
	}
	answers := func() (n int) {
		mu.Lock()
		defer mu.Unlock()
		for _, d := range seen {
			if d.From == a.at && handshake.KindOf(d.Payload) == handshake.KindResponse {
				n++
			}
		}
		return n
	}
	before := answers()
	mu.Lock()
	again := append([]overlaytest.Datagram(nil), seen...)
	mu.Unlock()
	recorded := map[handshake.Kind]uint64{}
	for _, d := range again {
		if d.To == a.at {
			recorded[handshake.KindOf(d.Payload)]++
			net.Inject(d)
		}
	}
	if recorded[handshake.KindInitiation] == 0 {
		t.Error("no handshake was recorded")
	}
	until(t, "all handshakes refused", func() bool {
		return next.Counters().Drops[overlay.DropHandshake] == recorded[handshake.KindInitiation]+recorded[handshake.KindResponse]
	})
	b.send(t, udp(pod4(2), pod4(1), "new"))
	if got := next.in.waitN(t, "new packet", 1); string(payloads(t, got)) != "new" {
		t.Errorf("got %q", payloads(t, got))
	}
	if n := answers() - before; n != 0 {
		t.Errorf("%d recorded handshakes were answered", n)
	}
}

func TestExportAndImport(t *testing.T) {
	t.Parallel()
	var w watch
	net := overlaytest.New(overlaytest.Config{Tap: w.tap})
	wire := net.Wire(addr("192.0.2.1"))
	with := func(c *overlay.WireGuardConfig) { c.Epoch = "boot" }
	a := start(t, net, 1, func(c *overlay.WireGuardConfig) { with(c); c.Wire = wire })
	b := start(t, net, 2, nil)
	mesh(t, a, b)
	a.send(t, udp(pod4(1), pod4(2), "before"))
	b.in.waitN(t, "packet before", 1)
	if got := a.ExportSessions(); got != nil {
		t.Error("exported while it runs")
	}
	if err := a.Stop(); err != nil {
		t.Fatal(err)
	}
	data := a.ExportSessions()
	if again := a.ExportSessions(); len(data) == 0 || again != nil {
		t.Errorf("exported %d bytes, and %d again", len(data), len(again))
	}
	began := w.began.Load()
	next := successor(t, a, wire.Share(), with)
	for name, bad := range map[string]string{
		"not JSON":    "x",
		"version":     strings.Replace(string(data), `"version":1`, `"version":7`, 1),
		"epoch":       strings.Replace(string(data), `"epoch":"boot"`, `"epoch":"x"`, 1),
		"owner":       strings.Replace(string(data), a.key.Public().String(), b.key.Public().String(), 1),
		"before boot": strings.Replace(string(data), `"created":`, `"created":-`, 1),
		"endless":     strings.Replace(string(data), `"sent":`, `"sent":9999999999999999999,"x":`, 1),
		"short keys":  strings.Replace(string(data), `"send":"`, `"send":"AA==","x":"`, 1),
	} {
		if err := next.ImportSessions([]byte(bad)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	newer := strings.Replace(string(data), `"version":1`, `"version":1,"colour":"blue"`, 1) // a field that we do not know
	if err := next.ImportSessions([]byte(newer)); err != nil {
		t.Fatal(err)
	}
	if err := next.Apply([]overlay.Peer{b.peer()}); err != nil {
		t.Fatal(err)
	}
	if err := next.Start(); err != nil {
		t.Fatal(err)
	}
	next.send(t, udp(pod4(1), pod4(2), "after"))
	b.in.waitN(t, "packet after", 1)
	b.send(t, udp(pod4(2), pod4(1), "back"))
	next.in.waitN(t, "answer after", 1)
	if n := w.began.Load() - began; n != 0 || w.twice.Load() != 0 {
		t.Errorf("%d handshakes begun, %d nonces used twice", n, w.twice.Load())
	}
	if err := next.ImportSessions(data); err == nil {
		t.Error("imported after start")
	}
}

// TestSocketsAreHandedOver moves real sockets and sessions from one engine to
// the next, while the peer sends without a pause.
func TestSocketsAreHandedOver(t *testing.T) {
	t.Parallel()
	file := filepath.Join(memoryDir(t), "sessions")
	with := func(c *overlay.WireGuardConfig) { c.SessionFile, c.ListenPort = file, 0 }
	a, b := start(t, nil, 1, with), start(t, nil, 2, func(c *overlay.WireGuardConfig) { c.ListenPort = 0 })
	for _, n := range []*node{a, b} {
		port, err := n.Port()
		if err != nil {
			t.Fatal(err)
		}
		n.at = netip.AddrPortFrom(addr("127.0.0.1"), port)
	}
	mesh(t, a, b)
	b.send(t, udp(pod4(2), pod4(1), "session"))
	a.in.waitN(t, "session", 1)
	var fds []int
	for _, fd := range a.Sockets() {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, dup)
	}
	next := successor(t, a, nil, func(c *overlay.WireGuardConfig) {
		with(c)
		c.Sockets = &overlay.Sockets{FDs: fds}
	})
	if err := next.Apply([]overlay.Peer{b.peer()}); err != nil {
		t.Fatal(err)
	}
	const count = 2000
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for i := range count {
			_ = b.Send(udp(pod4(2), pod4(1), fmt.Sprintf("%05d", i)))
			if i%50 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
	}()
	time.Sleep(10 * time.Millisecond)
	if err := errors.Join(a.Stop(), next.Start()); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	<-sent
	until(t, "every packet at one or the other", func() bool { return a.Counters().RxSegments-1+next.Counters().RxSegments == count })
	if port, err := next.Port(); err != nil || port != a.at.Port() {
		t.Errorf("port %d, %v, want %d", port, err, a.at.Port())
	}
	if next.Counters().RxSegments == 0 {
		t.Error("the successor got nothing")
	}
}

// TestPortHasChanged: sockets that were taken over are used on the wanted port
// only.
func TestPortHasChanged(t *testing.T) {
	t.Parallel()
	a := start(t, nil, 1, func(c *overlay.WireGuardConfig) { c.ListenPort = 0 })
	free := start(t, nil, 2, func(c *overlay.WireGuardConfig) { c.ListenPort = 0 })
	want, err := free.Port()
	if err = errors.Join(err, free.Close()); err != nil {
		t.Fatal(err)
	}
	var fds []int
	for _, fd := range a.Sockets() {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, dup)
	}
	next := successor(t, a, nil, func(c *overlay.WireGuardConfig) {
		c.ListenPort = want
		c.Sockets = &overlay.Sockets{FDs: fds}
	})
	if port, err := next.Port(); err != nil || port != want {
		t.Errorf("port %d, %v, want %d", port, err, want)
	}
}

// TestDescriptorsAreOurs: they are closed also when there will be no engine.
func TestDescriptorsAreOurs(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	dup, err := unix.FcntlInt(w.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := overlay.NewWireGuard(overlay.WireGuardConfig{Sockets: &overlay.Sockets{FDs: []int{dup}}}); err == nil {
		t.Fatal("no error without a key")
	}
	if n, err := r.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("read %d, %v, want the pipe's end", n, err)
	}
}

// TestSessionsOfNobodyEnd: without any Apply, too.
func TestSessionsOfNobodyEnd(t *testing.T) {
	t.Parallel()
	file := filepath.Join(memoryDir(t), "sessions")
	synctest.Test(t, func(t *testing.T) {
		net := overlaytest.New(overlaytest.Config{})
		wire := net.Wire(addr("192.0.2.1"))
		with := func(c *overlay.WireGuardConfig) { c.SessionFile, c.Logger = file, nil }
		a := start(t, net, 1, func(c *overlay.WireGuardConfig) { with(c); c.Wire = wire })
		b := start(t, net, 2, func(c *overlay.WireGuardConfig) { c.Logger = nil })
		mesh(t, a, b)
		a.send(t, udp(pod4(1), pod4(2), "session"))
		b.in.waitN(t, "session", 1)
		next := successor(t, a, wire.Share(), with)
		if err := errors.Join(a.Stop(), next.Start()); err != nil {
			t.Fatal(err)
		}
		if slots, _, _ := next.SlotsInUse(); slots == 0 {
			t.Error("no session was taken over")
		}
		time.Sleep(200 * time.Second)
		if slots, _, _ := next.SlotsInUse(); slots != 0 {
			t.Errorf("%d sessions are still there after their end", slots)
		}
		if err := errors.Join(a.Close(), b.Close(), next.Close()); err != nil {
			t.Error(err)
		}
	})
}

// TestOneServes: a second process does not begin beside one that serves.
func TestOneServes(t *testing.T) {
	t.Parallel()
	file := filepath.Join(memoryDir(t), "sessions")
	with := func(c *overlay.WireGuardConfig) { c.SessionFile = file }
	net := overlaytest.New(overlaytest.Config{})
	wire := net.Wire(addr("192.0.2.1"))
	a := start(t, net, 1, func(c *overlay.WireGuardConfig) { with(c); c.Wire = wire })
	next := successor(t, a, wire.Share(), with)
	if err := next.Start(); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("got %v, want an error about the other process", err)
	}
	if err := errors.Join(a.Stop(), next.Start()); err != nil {
		t.Error(err)
	}
}

// TestSendWhileStarting: there is no moment between waiting and sending.
func TestSendWhileStarting(t *testing.T) {
	t.Parallel()
	for range 20 {
		net := overlaytest.New(overlaytest.Config{})
		b := successor(t, &node{name: "n2", key: newKey(t)}, net.Wire(addr("192.0.2.2")), func(*overlay.WireGuardConfig) {})
		if err := b.Apply([]overlay.Peer{{Node: "n1", PublicKey: newKey(t).Public(), Endpoint: ports("192.0.2.1:1"), AllowedIPs: []netip.Prefix{prefix("10.0.1.0/24")}}}); err != nil {
			t.Fatal(err)
		}
		var started atomic.Bool
		var senders sync.WaitGroup
		for range 4 {
			senders.Go(func() {
				for last := false; !last; {
					last = started.Load()
					if err := b.Send(udp(pod4(2), pod4(1), "x")); err != nil {
						t.Errorf("send: %v", err)
					}
				}
			})
		}
		if err := b.Start(); err != nil {
			t.Error(err)
		}
		started.Store(true)
		senders.Wait()
	}
}

func TestAdoptRefusesOtherDescriptors(t *testing.T) {
	t.Parallel()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dup, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fds := range [][]int{{dup}, {-1}, {}} {
		_, err := overlay.NewWireGuard(overlay.WireGuardConfig{
			Key: newKey(t), MTU: testMTU, Sink: func([][]byte) {}, Sockets: &overlay.Sockets{FDs: fds},
		})
		if err == nil {
			t.Errorf("descriptors %v were adopted", fds)
		}
	}
}

func TestNothingBeforeStart(t *testing.T) {
	t.Parallel()
	var sent atomic.Int64
	net := overlaytest.New(overlaytest.Config{Tap: func(overlaytest.Datagram) { sent.Add(1) }})
	a := start(t, net, 1, nil)
	b := successor(t, &node{name: "n2", key: newKey(t), at: ports("192.0.2.2:51820"), cidr: []netip.Prefix{prefix("10.0.2.0/24")}},
		net.Wire(addr("192.0.2.2")), func(*overlay.WireGuardConfig) {})
	if err := b.Apply([]overlay.Peer{a.peer()}); err != nil {
		t.Fatal(err)
	}
	b.send(t, udp(pod4(2), pod4(1), "x"))
	time.Sleep(50 * time.Millisecond)
	if n := sent.Load(); n != 0 {
		t.Errorf("%d datagrams before Start", n)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.Start(); err == nil {
		t.Error("started after Close")
	}
}
