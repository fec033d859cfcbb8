package datapath

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/flow"
	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/shape"
	"github.com/netctl/netctl/proxy"
)

// tun is a TUN as a Reader that counts how often it is read.
type tun struct {
	*kernel.TUN

	reads atomic.Int64
}

func (p *tun) Write(buf []byte) error {
	_, err := p.TUN.Write(buf)
	return err
}

func (p *tun) Read(buf []byte) (int, error) {
	p.reads.Add(1)
	return p.TUN.Read(buf)
}

// broken is a Reader that no poller takes.
type broken struct{}

func (broken) Write([]byte) error       { return nil }
func (broken) Read([]byte) (int, error) { return 0, kernel.ErrAgain }
func (broken) FD() int                  { return -1 }

func newWorkers(t *testing.T, n int) *Workers {
	t.Helper()
	flows, err := flow.Open(flow.Config{Slots: 64})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := flows.Close(); err != nil {
			t.Error(err)
		}
	})
	ws, err := NewWorkers(New(Config{Flows: flows, Affinity: proxy.NewAffinity(proxy.AffinityConfig{Entries: 512})}), n)
	if err != nil {
		t.Fatal(err)
	}
	return ws
}

// start runs the workers until the test ends.
func start(t *testing.T, ws *Workers) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- ws.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// tablesOf are Tables that know nothing but ports.
func tablesOf(r *Router, ports ...Port) *Tables {
	t := *r.Tables()
	t.Ports = make([]PortEntry, 1, len(ports)+1)
	for _, p := range ports {
		t.Ports = append(t.Ports, PortEntry{Port: p, Kind: KindPod, Name: "pod"})
	}
	return &t
}

// newTUN makes a TUN in a namespace of its own, named there as pods' are.
func newTUN(t *testing.T) (*tun, *kernel.Namespace) {
	t.Helper()
	if err := errors.Join(kernel.HaveTUN(), kernel.HaveNamespaces()); err != nil {
		t.Skipf("needs TUNs in network namespaces: %v", err)
	}
	path := filepath.Join(t.TempDir(), "ns")
	ns, err := kernel.CreateNamespace(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(ns.Close(), kernel.DeleteNamespace(path)); err != nil {
			t.Error(err)
		}
	})
	addrs := []netip.Prefix{netip.MustParsePrefix("10.9.0.1/32")}
	dev, err := kernel.CreateTUNIn(ns, kernel.Interface{
		Name: "eth0", MTU: 1420, Addresses: addrs, Routes: kernel.DefaultRoutes(addrs),
	}, kernel.AllOffloads())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dev.Close() })
	return &tun{TUN: dev}, ns
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for begin := time.Now(); !done(); time.Sleep(time.Millisecond) {
		if time.Since(begin) > 10*time.Second {
			t.Fatal(what)
		}
	}
}

// A pod with enough rights can delete its own device, and epoll reports that
// for ever: the worker must lose interest, not its processor.
func TestWorkerLetsGoOfADeletedDevice(t *testing.T) {
	t.Parallel()
	ws := newWorkers(t, 1)
	gone, ns := newTUN(t)
	stays, other := newTUN(t)
	start(t, ws)
	tables := tablesOf(ws.router, gone, stays)
	if errs := ws.Publish(tables); errs != nil {
		t.Fatal(errs)
	}
	if err := kernel.DeleteInterface(ns, "eth0"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the worker never looked at the deleted device", func() bool { return gone.reads.Load() > 0 })
	time.Sleep(50 * time.Millisecond)
	again := *tables // what publishes it again must not start it again
	if errs := ws.Publish(&again); errs != nil {
		t.Error(errs)
	}
	before := gone.reads.Load()
	time.Sleep(200 * time.Millisecond)
	if n := gone.reads.Load() - before; n > 0 {
		t.Errorf("the deleted device was read %d times in 200 ms", n)
	}
	sum := ws.router.Counters()
	if sum.PortsGone != 1 {
		t.Errorf("%d ports counted as gone, want 1", sum.PortsGone)
	}
	before = stays.reads.Load()
	if err := other.Do(func() error {
		c, err := net.Dial("udp", "10.9.9.9:9")
		if err != nil {
			return err
		}
		_, err = c.Write([]byte("hello"))
		return errors.Join(err, c.Close())
	}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the other port is not read any more", func() bool { return stays.reads.Load() > before })
}

// One port that cannot be read is its own trouble.
func TestPublishReportsErrorsByPort(t *testing.T) {
	t.Parallel()
	ws := newWorkers(t, 2)
	good, _ := newTUN(t)
	start(t, ws)
	tables := tablesOf(ws.router, broken{}, good, broken{})
	errs := ws.Publish(tables)
	if len(errs) != 2 || errs[1] == nil || errs[3] == nil {
		t.Errorf("errors %v, want those of the ports 1 and 3", errs)
	}
	if ws.router.Tables() != tables {
		t.Error("the tables are not in force")
	}
	if errs := ws.Publish(tablesOf(ws.router, good)); errs != nil {
		t.Errorf("without them: %v", errs)
	}
}

func TestRunReturnsAWorkersError(t *testing.T) {
	t.Parallel()
	ws := newWorkers(t, 3)
	ws.workers[1].events = nil // the kernel refuses to fill that
	done := make(chan error, 1)
	go func() { done <- ws.Run(t.Context()) }()
	select {
	case err := <-done:
		if err == nil {
			t.Error("a worker ended and nobody was told")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("one worker has ended, the others go on")
	}
}

// ready is a Reader in memory whose descriptor is readable as long as its owner
// wants: a pipe's end.
type ready struct {
	out, in *os.File
	read    func(buf []byte) (int, error)
}

func newReady(t *testing.T, read func([]byte) (int, error)) *ready {
	t.Helper()
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(out.Close(), in.Close()) })
	return &ready{out: out, in: in, read: read}
}

func (p *ready) Write([]byte) error           { return nil }
func (p *ready) Read(buf []byte) (int, error) { return p.read(buf) }
func (p *ready) FD() int                      { return int(p.out.Fd()) }

// raise makes the descriptor readable, lower takes one such word back.
func (p *ready) raise() { _, _ = p.in.Write([]byte{1}) }
func (p *ready) lower() { _, _ = p.out.Read(make([]byte, 1)) }

// A port that is never empty keeps another one waiting for a turn and no longer,
// whatever it sends. It is counted, not timed: from the moment in which a packet of
// the quiet port is there, how much of the others is carried before it?
func TestNoPortKeepsAWorker(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		size   int
		floods int
		most   int // packets of all of them
	}{
		{"small packets", 74, 1, 16},
		{"ordinary packets", 1430, 1, 14},
		{"super-packets", 65545, 1, 2},
		{"three floods", 74, 3, 48},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ws := newWorkers(t, 1)
			const rounds = 50
			var carried, since, worst, quietRead atomic.Int64
			waiting, done := false, make(chan struct{}) // of the worker
			var quiet *ready
			quiet = newReady(t, func([]byte) (int, error) {
				if !waiting {
					return 0, kernel.ErrAgain
				}
				waiting = false
				quiet.lower()
				worst.Store(max(worst.Load(), carried.Load()-since.Load()))
				if quietRead.Add(1) == rounds {
					close(done)
				}
				return 20, nil
			})
			ports := []Port{quiet}
			for range c.floods {
				f := newReady(t, func([]byte) (int, error) {
					// Some of them come just when the turn has begun.
					if n := carried.Add(1); !waiting && n%37 == 0 {
						waiting = true
						since.Store(n)
						quiet.raise()
					}
					return c.size, nil
				})
				f.raise() // for ever
				ports = append(ports, f)
			}
			start(t, ws)
			if errs := ws.Publish(tablesOf(ws.router, ports...)); errs != nil {
				t.Fatal(errs)
			}
			select {
			case <-done:
			case <-time.After(20 * time.Second):
				t.Fatalf("the quiet port was read %d times in all", quietRead.Load())
			}
			// The rest of the turn in which it came, and a turn of each.
			if got := worst.Load(); got > int64(2*c.most) {
				t.Errorf("%d packets were carried before the quiet port's, want at most %d", got, 2*c.most)
			}
		})
	}
}

// A port at its limit is left unread until its time comes, without a worker that
// spins for it, and is read on when the limit goes.
func TestLimitedPortIsLeftUnread(t *testing.T) {
	t.Parallel()
	ws := newWorkers(t, 1)
	var reads, others atomic.Int64
	limited := newReady(t, func([]byte) (int, error) { reads.Add(1); return 1010, nil })
	limited.raise()
	other := newReady(t, func([]byte) (int, error) { others.Add(1); return 0, kernel.ErrAgain })
	shaper := shape.New(limited.Write)
	shaper.Set(shape.Limits{Out: shape.Rate{Bits: 1000}}) // a packet in eight seconds
	start(t, ws)
	tables := tablesOf(ws.router, limited, other)
	tables.Ports[1].Shaper = shaper
	if errs := ws.Publish(tables); errs != nil {
		t.Fatal(errs)
	}
	eventually(t, "the port was never read", func() bool { return reads.Load() > 0 })
	other.raise()
	eventually(t, "the other port is not read", func() bool { return others.Load() > 100 })
	if n := reads.Load(); n > 2 {
		t.Errorf("%d packets were read at once", n)
	}
	again := *tables // the ports stay, and so does the pause
	if errs := ws.Publish(&again); errs != nil {
		t.Error(errs)
	}
	if n := reads.Load(); n > 2 {
		t.Errorf("%d packets were read at once", n)
	}
	shaper.Set(shape.Limits{})
	eventually(t, "the port is not read without a limit", func() bool { return reads.Load() > 1000 })
	if st := shaper.Stats(); st.Pauses == 0 || st.Paused <= 0 {
		t.Errorf("pauses: %+v", st)
	}
	shaper.Set(shape.Limits{Out: shape.Rate{Bits: 1000}})
	before := int64(-1)
	eventually(t, "the limit does not hold again", func() bool {
		same := before == reads.Load()
		before = reads.Load()
		return same
	})
	if errs := ws.Publish(tablesOf(ws.router, other)); errs != nil { // gone while it is paused
		t.Error(errs)
	}
}
