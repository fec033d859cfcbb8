package handover

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/netctl/netctl/internal/kernel"
)

// killHeir makes the test binary a successor that dies at that step.
const killHeir = "HANDOVER_TEST_HEIR"

// heir is the life of such a successor.
func heir(step string) {
	die := func(at string) {
		if step == at {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: switchName, Net: "unixpacket"})
	if err != nil {
		panic(err)
	}
	die("connected")
	if err := send(conn, opHandOver, protocol); err != nil {
		panic(err)
	}
	die("asked")
	l := &Legacy{Items: map[string][]int{}, conn: conn}
	if step == "receiving" {
		_, _, _, _ = receive(conn)
	}
	die("receiving")
	if err := l.receive(); err != nil {
		panic(err)
	}
	die("received")
	s, err := occupy(".", l.lock, 0, false, conn)
	if err != nil {
		panic(err)
	}
	die("seated")
	if step == "fails" {
		_ = s.Leave()
		os.Exit(0)
	}
	if err := s.Serving(); err != nil {
		panic(err)
	}
	die("serving")
	select {}
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close(); _ = w.Close() })
	return r, w
}

func fdOf(t *testing.T, f *os.File) int {
	t.Helper()
	fd, err := kernel.DupOf(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kernel.CloseFDs([]int{fd}) })
	return fd
}

func check(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// The seat and what goes with it pass from one to the next, and the seat is never
// free.
func TestHandOver(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r, w := pipe(t)
	fd := fdOf(t, w)
	old := take(t, dir)
	check(t, old.Serving())
	for range 10 {
		type result struct {
			seat   *Seat
			legacy *Legacy
		}
		next := make(chan result)
		go func() {
			s, l, err := Take(t.Context(), dir)
			if err != nil {
				t.Error(err)
			}
			next <- result{s, l}
		}()
		h := <-old.Heirs()
		check(t, h.Give("a", fd), h.Give("many", fd, fd, fd), h.Leave())
		got := <-next
		if got.legacy == nil || len(got.legacy.Items["a"]) != 1 || len(got.legacy.Items["many"]) != 3 {
			t.Fatalf("legacy: %+v", got.legacy)
		}
		if !taken(t, dir) {
			t.Error("the seat is free in between")
		}
		if _, err := syscall.Write(got.legacy.Items["many"][2], []byte("x")); err != nil {
			t.Error(err)
		}
		if n, err := r.Read(make([]byte, 9)); n != 1 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		got.legacy.Close()
		heard := make(chan error)
		go func() { heard <- h.Await(t.Context()) }()
		check(t, got.seat.Serving(), <-heard)
		leave(t, old) // is nothing any more
		if !taken(t, dir) {
			t.Error("the seat is free although it was handed over")
		}
		// Now the connection is theirs.
		if _, err := h.Conn().Write([]byte("hello")); err != nil {
			t.Error(err)
		}
		buf := make([]byte, 9)
		if n, err := got.legacy.Conn().Read(buf); string(buf[:n]) != "hello" || err != nil {
			t.Errorf("%q, %v", buf[:n], err)
		}
		check(t, h.Conn().Close(), got.legacy.Conn().Close())
		old = got.seat
		t.Cleanup(func() { leave(t, got.seat) })
	}
	leave(t, old)
	if taken(t, dir) {
		t.Error("the seat is taken after everybody has left")
	}
}

// A successor that dies or fails at any step before it serves costs the old one
// nothing; one that dies after that leaves a free seat.
func TestHeirDies(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"connected", "asked", "receiving", "received", "seated", "fails", "serving"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			_, w := pipe(t)
			old := take(t, dir)
			check(t, old.Serving())
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Dir, cmd.Env, cmd.Stderr = dir, append(os.Environ(), killHeir+"="+step), t.Output()
			check(t, cmd.Start())
			if step == "connected" {
				_ = cmd.Wait()
				select {
				case <-old.Heirs():
					t.Error("an heir that never asked")
				case <-time.After(pollTime):
				}
				return
			}
			h := <-old.Heirs()
			if step == "asked" {
				_ = cmd.Wait()
			}
			gave := errors.Join(h.Give("a", fdOf(t, w)), h.Leave()) // may fail: it may be dead
			err := h.Await(t.Context())
			_ = cmd.Wait()
			if step == "serving" {
				if err != nil || gave != nil {
					t.Errorf("%v, %v", gave, err)
				}
				if taken(t, dir) {
					t.Error("a dead agent has the seat")
				}
				check(t, h.Conn().Close())
				return
			}
			if err == nil {
				t.Fatal("awaited")
			}
			t.Log(errors.Join(gave, err))
			check(t, old.Resume())
			if !taken(t, dir) {
				t.Error("the seat is free although its holder goes on")
			}
			if _, err := request(t.Context(), dir, nil); err == nil || !strings.Contains(err.Error(), "its last successor failed") {
				t.Errorf("another one, at once: %v", err)
			}
			old.mu.Lock()
			old.stay = 0
			old.mu.Unlock()
			done := make(chan struct{})
			defer func() { <-done }()
			go func() {
				defer close(done)
				for h := range old.Heirs() {
					if h.Leave() != nil { // the one that has given up
						_ = h.conn.Close()
						_ = old.open()
						continue
					}
					if err := errors.Join(h.Await(context.Background()), h.Conn().Close()); err != nil {
						t.Error(err)
					}
					return
				}
			}()
			s, l, err := Take(t.Context(), dir)
			check(t, err, s.Serving(), s.Leave(), l.Conn().Close())
		})
	}
}

// The holder dies in the middle: its successor has the seat whatever it got.
func TestHolderDiesWhileItHandsOver(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	old := take(t, dir)
	next := make(chan *Seat)
	go func() {
		s, l, err := Take(t.Context(), dir)
		if err != nil || l != nil {
			t.Errorf("%v, %+v", err, l)
		}
		next <- s
	}()
	h := <-old.Heirs()
	// As the kernel does, in no certain order.
	check(t, h.conn.Close(), old.deafen(), old.lock.Close())
	old.once.Do(func() { close(old.left) })
	s := <-next
	if s == nil || !taken(t, dir) {
		t.Fatal("nobody has the seat")
	}
	leave(t, s)
}

// One whose predecessor is dead serves; one whose predecessor went on does not.
func TestServingIsHeard(t *testing.T) {
	t.Parallel()
	for _, dies := range []bool{true, false} {
		dir := t.TempDir()
		old := take(t, dir)
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			h := <-old.Heirs()
			if err := h.Leave(); err != nil {
				t.Error(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if dies {
				_ = h.conn.Close()
			} else if err := h.Await(ctx); err == nil {
				t.Error("awaited")
			}
		}()
		s, l, err := Take(t.Context(), dir)
		check(t, err)
		l.Close()
		<-gone
		if err := s.Serving(); dies != (err == nil) {
			t.Errorf("the old one is dead: %t; %v", dies, err)
		}
		leave(t, s)
		check(t, old.Resume())
	}
}

// A holder that is asked in a protocol to come says so.
func TestAnotherProtocol(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	take(t, dir)
	for _, text := range []string{"H2", "H", "X1", "", "S", strings.Repeat("H", 2*maxMessage)} {
		conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: filepath.Join(dir, switchName), Net: "unixpacket"})
		check(t, err)
		if text != "" {
			_, err = conn.Write([]byte(text))
			check(t, err)
		}
		check(t, conn.CloseWrite(), conn.SetDeadline(time.Now().Add(5*time.Second)))
		got, err := io.ReadAll(conn)
		if len(got) > 0 && got[0] != opRefused {
			t.Errorf("%q was answered with %q, %v", text, got, err)
		}
		check(t, conn.Close())
	}
}

func TestHeirWaitsNoLongerThanItsTurn(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	old := take(t, dir)
	ctx, cancel := context.WithTimeout(t.Context(), 2*pollTime)
	defer cancel()
	if _, _, err := Take(ctx, dir); err == nil { // nobody attends to it
		t.Error("taken")
	}
	var wg sync.WaitGroup
	defer wg.Wait() // before the seat is left
	wg.Go(func() {
		h := <-old.Heirs() // the one that has given up
		_ = errors.Join(h.Give("a"), h.Leave())
		if err := h.Await(t.Context()); err == nil {
			t.Error("one that gave up serves")
		}
		if err := old.Resume(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel = context.WithTimeout(t.Context(), 5*pollTime)
	defer cancel()
	if _, _, err := Take(ctx, dir); err == nil {
		t.Error("taken")
	}
}

// However late one announces that it serves, the two agree on who does.
func TestTheTwoAgree(t *testing.T) {
	t.Parallel()
	for i := range 40 {
		dir := t.TempDir()
		old := take(t, dir)
		awaited := make(chan error)
		begin := make(chan struct{})
		go func() {
			h := <-old.Heirs()
			if err := h.Leave(); err != nil {
				t.Error(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			<-begin
			time.AfterFunc(time.Duration(i)*5*time.Microsecond, cancel)
			err := h.Await(ctx)
			_ = h.Conn().Close()
			awaited <- err
		}()
		s, l, err := Take(t.Context(), dir)
		check(t, err)
		close(begin)
		serving := s.Serving()
		if gone := <-awaited; (serving == nil) != (gone == nil) {
			t.Errorf("the new one: %v; the old one: %v", serving, gone)
		}
		leave(t, s)
		if serving == nil {
			check(t, l.Conn().Close())
		} else {
			check(t, old.Resume())
			leave(t, old)
		}
	}
}

// Who was stopped until its time was over reads what was said meanwhile.
func TestLateButSaid(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	old := take(t, dir)
	said := make(chan error)
	go func() {
		s, l, err := Take(t.Context(), dir)
		if err == nil {
			go func() { said <- errors.Join(s.Serving(), s.Leave(), l.Conn().Close()) }()
			return
		}
		said <- err
	}()
	h := <-old.Heirs()
	check(t, h.Leave())
	time.Sleep(50 * time.Millisecond)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_ = h.conn.SetDeadline(time.Unix(1, 0))
	check(t, h.Await(ctx), <-said, h.Conn().Close())
}

// Who leaves does not wait for those that are connected and say nothing.
func TestSilentClientsDelayNobody(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := take(t, dir)
	for name, network := range map[string]string{socketName: "unix", switchName: "unixpacket"} {
		conn, err := net.DialUnix(network, nil, &net.UnixAddr{Name: filepath.Join(dir, name), Net: network})
		check(t, err)
		defer func() { _ = conn.Close() }()
	}
	time.Sleep(50 * time.Millisecond) // accepted, probably
	began := time.Now()
	leave(t, s)
	if took := time.Since(began); took > leaveTime/2 {
		t.Errorf("leaving took %s", took)
	}
}

func TestLongerStays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &Seat{stay: longer(longer(0)), began: time.Now()}
		if s.stays() != 2*firstStay || longer(lastStay) != lastStay {
			t.Errorf("stays %s", s.stays())
		}
	})
}

// A stand-in takes the seat from nobody but another stand-in.
func TestStandInIsNotNeeded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := take(t, dir)
	ctx, cancel := context.WithTimeout(t.Context(), 3*pollTime)
	defer cancel()
	if _, _, err := Take(ctx, dir, StandIn); err == nil || errors.Is(err, ErrNotNeeded) {
		t.Errorf("beside one that may still fail: %v", err)
	}
	check(t, s.Serving())
	if _, _, err := Take(t.Context(), dir, StandIn); !errors.Is(err, ErrNotNeeded) {
		t.Errorf("beside one that serves: %v", err)
	}
	leave(t, s)
	s, _, err := Take(t.Context(), dir, StandIn)
	check(t, err, s.Serving())
	for _, wants := range [][]string{{StandIn}, nil} {
		go func() {
			h := <-s.Heirs()
			if err := errors.Join(h.Leave(), h.Await(t.Context()), h.Conn().Close()); err != nil {
				t.Error(err)
			}
		}()
		next, l, err := Take(t.Context(), dir, wants...)
		check(t, err)
		check(t, next.Serving(), l.Conn().Close())
		s = next
	}
	leave(t, s)
}
