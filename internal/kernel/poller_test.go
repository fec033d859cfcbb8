package kernel_test

import (
	"errors"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netctl/netctl/internal/kernel"
)

func newPoller(tb testing.TB) *kernel.Poller {
	tb.Helper()
	p, err := kernel.NewPoller()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := p.Close(); err != nil {
			tb.Error(err)
		}
	})
	return p
}

// pipe returns a non-blocking pipe.
func pipe(tb testing.TB) (r, w int) {
	tb.Helper()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { kernel.CloseFDs(fds[:]) })
	return fds[0], fds[1]
}

func TestPollerIsLevelTriggered(t *testing.T) {
	t.Parallel()
	p := newPoller(t)
	r, w := pipe(t)
	const token = uint64(0xdeadbeef_00c0ffee)
	if _, err := unix.Write(w, []byte("xy")); err != nil {
		t.Fatal(err)
	}
	if err := p.Add(r, token); err != nil { // what waits already is reported
		t.Fatal(err)
	}
	if err := p.Add(r, token); !errors.Is(err, kernel.ErrExists) {
		t.Errorf("added twice: %v", err)
	}
	events := make([]kernel.Event, 8)
	for i := range 2 {
		n, err := p.Wait(events, 1000)
		if n != 1 || err != nil || events[0] != (kernel.Event{Token: token, Readable: true}) {
			t.Errorf("byte %d: got %d %+v, %v", i, n, events[0], err)
		}
		if _, err := unix.Read(r, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := p.Wait(events, 0); n != 0 || err != nil {
		t.Errorf("empty: %d, %v", n, err)
	}
	if _, err := unix.Write(w, []byte("z")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := p.Del(r); err != nil {
			t.Error(err)
		}
	}
	if n, err := p.Wait(events, 20); n != 0 || err != nil {
		t.Errorf("after Del: %d %+v, %v", n, events[0], err)
	}
	if err := p.Add(r, ^uint64(0)); err == nil {
		t.Error("the reserved token was taken")
	}
}

func TestWakeEndsAWait(t *testing.T) {
	t.Parallel()
	p := newPoller(t)
	events := make([]kernel.Event, 1)
	for range 100 { // kept until the next Wait, and merged
		p.Wake()
	}
	start := time.Now()
	if n, err := p.Wait(events, 10_000); n != 0 || err != nil || time.Since(start) > 5*time.Second {
		t.Errorf("pending wake: %d, %v after %v", n, err, time.Since(start))
	}
	if n, err := p.Wait(events, 0); n != 0 || err != nil {
		t.Errorf("second wait: %d, %v", n, err)
	}
	start = time.Now()
	if _, err := p.Wait(events, 50); err != nil || time.Since(start) < 45*time.Millisecond {
		t.Errorf("wakes were not merged: %v after %v", err, time.Since(start))
	}
	done := make(chan error, 1)
	go func() {
		_, err := p.Wait(events, -1)
		done <- err
	}()
	time.Sleep(20 * time.Millisecond)
	p.Wake()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("wake did not end the wait")
	}
}

func TestPollerFairnessBeyondOneBatch(t *testing.T) {
	t.Parallel()
	p := newPoller(t)
	const pipes = 40
	for i := range pipes {
		r, w := pipe(t)
		if _, err := unix.Write(w, []byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := p.Add(r, uint64(i)); err != nil {
			t.Fatal(err)
		}
	}
	seen := make(map[uint64]bool)
	events := make([]kernel.Event, 7) // the kernel goes round-robin
	for range 20 {
		n, err := p.Wait(events, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events[:n] {
			seen[e.Token] = true
		}
	}
	if len(seen) != pipes {
		t.Errorf("saw %d of %d", len(seen), pipes)
	}
	if n, err := p.Wait(nil, 0); n != 0 || err == nil {
		t.Errorf("no room: got %d, %v, want an error", n, err)
	}
}

func TestPollerFromManyGoroutines(t *testing.T) {
	t.Parallel()
	p := newPoller(t)
	var wg sync.WaitGroup
	for i := range 8 {
		r, w := pipe(t)
		wg.Go(func() {
			for range 200 {
				if err := p.Add(r, uint64(i)); err != nil {
					t.Error(err)
				}
				_, _ = unix.Write(w, []byte("x"))
				p.Wake()
				if err := p.Del(r); err != nil {
					t.Error(err)
				}
			}
		})
	}
	stop := make(chan struct{})
	go func() { wg.Wait(); close(stop); p.Wake() }()
	events := make([]kernel.Event, 16)
	for {
		if _, err := p.Wait(events, 100); err != nil {
			t.Fatal(err)
		}
		select {
		case <-stop:
			return
		default:
		}
	}
}

func TestClosedPoller(t *testing.T) {
	t.Parallel()
	p := newPoller(t)
	r, _ := pipe(t)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	p.Wake()
	if err := p.Add(r, 1); !errors.Is(err, kernel.ErrClosed) {
		t.Errorf("add: %v", err)
	}
	if err := errors.Join(p.Del(r), p.Close()); err != nil {
		t.Error(err)
	}
}

func TestWaitDoesNotAllocate(t *testing.T) {
	p := newPoller(t) // not parallel: AllocsPerRun counts everybody's
	r, w := pipe(t)
	if err := p.Add(r, 3); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(w, []byte("x")); err != nil {
		t.Fatal(err)
	}
	events := make([]kernel.Event, 8)
	for _, timeout := range []int{0, 1} {
		if n := testing.AllocsPerRun(200, func() { _, _ = p.Wait(events, timeout) }); n != 0 {
			t.Errorf("timeout %d allocates %v times", timeout, n)
		}
	}
	if n := testing.AllocsPerRun(200, p.Wake); n != 0 {
		t.Errorf("wake allocates %v times", n)
	}
}
