package handover

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

// holdSeat makes the test binary an agent that takes the seat in its working
// directory and never gives way.
const holdSeat = "HANDOVER_TEST_HOLD"

func TestMain(m *testing.M) {
	if os.Getenv(holdSeat) != "" {
		if _, _, err := Take(context.Background(), "."); err != nil {
			panic(err)
		}
		_, _ = os.Stdout.WriteString("seated\n")
		select {} // until it is killed
	}
	if step := os.Getenv(killHeir); step != "" {
		heir(step)
	}
	os.Exit(m.Run())
}

// takeAsBefore is Take of the version that knew no handing over.
func takeAsBefore(ctx context.Context, dir string) (*Seat, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, leaveTime, ErrStays)
	defer cancel()
	for {
		lock, err := tryLock(dir)
		if err == nil {
			return occupy(dir, lock, 0, false, nil)
		}
		if !errors.Is(err, errTaken) {
			return nil, err
		}
		if ask(ctx, dir) == nil {
			continue
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(pollTime):
		}
	}
}

func take(t *testing.T, dir string) *Seat {
	t.Helper()
	s, _, err := Take(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { leave(t, s) })
	return s
}

func leave(t *testing.T, s *Seat) {
	t.Helper()
	if err := s.Leave(); err != nil {
		t.Error(err)
	}
}

// taken reports whether somebody has the seat.
func taken(t *testing.T, dir string) bool {
	t.Helper()
	lock, err := tryLock(dir)
	if err == nil {
		err = lock.Close()
		if err != nil {
			t.Error(err)
		}
		return false
	}
	if !errors.Is(err, errTaken) {
		t.Error(err)
	}
	return true
}

// One follows the other, many times, and nobody sits beside somebody else.
func TestOneAfterTheOther(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	old := take(t, dir)
	for range 20 {
		next := make(chan *Seat)
		go func() {
			s, err := takeAsBefore(t.Context(), dir)
			if err != nil {
				t.Error(err)
			}
			next <- s
		}()
		<-old.Asked()
		select {
		case <-next:
			t.Fatal("the successor did not wait until the holder had left")
		default:
		}
		if !taken(t, dir) {
			t.Fatal("the seat is free while its holder cleans up")
		}
		leave(t, old)
		if old = <-next; old == nil {
			return
		}
		select {
		case <-old.Asked():
			t.Fatal("asked without a successor")
		default:
		}
	}
	leave(t, old)
	leave(t, old) // again is fine
	if taken(t, dir) {
		t.Error("the seat is taken after everybody has left")
	}
}

// Of several successors each has its turn.
func TestManySuccessors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const many = 5
	done := make(chan struct{}, many)
	for range many {
		go func() {
			defer func() { done <- struct{}{} }()
			s, err := takeAsBefore(t.Context(), dir)
			if err != nil {
				t.Error(err)
				return
			}
			if !taken(t, dir) {
				t.Error("seated without the lock")
			}
			select {
			case <-s.Asked():
			case <-time.After(200 * time.Millisecond): // the last one
			}
			leave(t, s)
		}()
	}
	for range many {
		<-done
	}
}

// The seat is free the moment that its holder dies, whatever it was about to do.
func TestHolderIsKilled(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Dir, cmd.Env = dir, append(os.Environ(), holdSeat+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("seated\n"))); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, _, err := Take(ctx, dir); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a holder that does not give way: %v", err)
	}
	next := make(chan error)
	go func() {
		s, err := takeAsBefore(t.Context(), dir)
		if err == nil {
			err = s.Leave()
		}
		next <- err
	}()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-next; err != nil {
		t.Error(err)
	}
	_ = cmd.Wait() // it was killed
}

func TestHolderThatStays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		lock, err := tryLock(dir) // without a socket
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = lock.Close() }()
		if _, _, err := Take(t.Context(), dir); !errors.Is(err, ErrStays) {
			t.Errorf("got %v, want ErrStays", err)
		}
	})
}

// What is not a successor does not make anybody leave.
func TestStrangersAreIgnored(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := take(t, dir)
	for _, text := range []string{"", "\n", "give", "GET / HTTP/1.1\r\n\r\n", "give way please\n"} {
		conn, err := net.Dial("unix", filepath.Join(dir, socketName))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, text); err != nil {
			t.Fatal(err)
		}
		if err := conn.(*net.UnixConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(conn); len(got) > 0 || err != nil && !errors.Is(err, io.EOF) {
			t.Logf("%q was answered with %q, %v", text, got, err)
		}
		_ = conn.Close()
	}
	select {
	case <-s.Asked():
		t.Error("gave way to a stranger")
	default:
	}
}

// A retired agent serves again when nobody has for Patience, not when there was
// only a moment between two that were killed.
func TestRetakeAfterDeaths(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		began := time.Now()
		holder := func() *os.File {
			lock, err := tryLock(dir)
			if err != nil {
				t.Fatal(err)
			}
			if err := mark(lock, marksServing); err != nil {
				t.Fatal(err)
			}
			return lock
		}
		lock := holder()
		go func() {
			time.Sleep(30*time.Second + time.Millisecond)
			_ = lock.Close()
			time.Sleep(Patience / 2) // its container is started anew
			lock := holder()
			time.Sleep(time.Minute)
			_ = lock.Close()
		}()
		s, err := (&Seat{dir: dir}).Retake(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		leave(t, s)
		free := began.Add(30*time.Second + Patience/2 + time.Minute)
		if waited := time.Since(free); waited < Patience-2*time.Second || waited > Patience+2*time.Second {
			t.Errorf("waited %v for a seat that was free, want %v", waited, Patience)
		}
	})
}

// Whose successor fails before it serves has the seat back at once, and keeps it
// for a time that grows until one succeeds.
func TestRetakeAfterFailures(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := take(t, dir)
	succeed := func() *Seat {
		next := make(chan *Seat)
		go func() {
			n, err := takeAsBefore(t.Context(), dir)
			if err != nil {
				t.Error(err)
			}
			next <- n
		}()
		<-s.Asked()
		leave(t, s)
		return <-next
	}
	retake := func(stay time.Duration) {
		t.Helper()
		began := time.Now()
		again, err := s.Retake(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { leave(t, again) })
		if again.stay != stay {
			t.Errorf("stays for %v, want %v", again.stay, stay)
		}
		if waited := time.Since(began); waited >= Patience {
			t.Errorf("waited %v", waited)
		}
		s = again
	}
	n := succeed()
	if n == nil {
		return
	}
	leave(t, n) // without Serving
	s.stay = 4 * time.Minute
	retake(8 * time.Minute)

	ctx, cancel := context.WithTimeout(t.Context(), 3*pollTime)
	defer cancel()
	if _, _, err := Take(ctx, dir); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("gave way during its stay: %v", err)
	}
	select {
	case <-s.Asked():
		t.Error("heard a successor during its stay")
	default:
	}
	leave(t, s) // ends while nobody has asked, and has not served: failed
	retake(lastStay)
	if err := s.Serving(); err != nil {
		t.Fatal(err)
	}
	s.Failed()
	leave(t, s) // because it could not serve on
	retake(lastStay)
	if err := s.Serving(); err != nil {
		t.Fatal(err)
	}
	leave(t, s) // in order
	retake(0)
}

// Whose successor dies soon after it has begun to serve stays longer, too; what the
// clock says is the nodes' own.
func TestRetakeAfterAYoungDeath(t *testing.T) {
	t.Parallel()
	for lived, stay := range map[time.Duration]time.Duration{youngTime / 2: firstStay, 2 * youngTime: 0} {
		synctest.Test(t, func(t *testing.T) {
			dir := t.TempDir()
			lock, err := tryLock(dir)
			if err != nil {
				t.Fatal(err)
			}
			if err := (&Seat{lock: lock}).markServing(); err != nil {
				t.Fatal(err)
			}
			go func() {
				time.Sleep(lived)
				_ = lock.Close()
			}()
			began := time.Now()
			s, err := (&Seat{dir: dir}).Retake(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if waited := time.Since(began) - lived; s.stay != stay || waited < Patience-time.Second {
				t.Errorf("after %s: waited %s, stays for %s, want %s", lived, waited, s.stay, stay)
			}
			leave(t, s)
		})
	}
}

func TestRetakeEnds(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (&Seat{dir: t.TempDir()}).Retake(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// While the seat is held nobody serves; a seat that is served is not held.
func TestHold(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if Served(dir) {
		t.Error("nobody serves")
	}
	s := take(t, dir)
	if !Served(dir) {
		t.Error("somebody serves")
	}
	select {
	case <-s.Asked():
		t.Error("a look is a question")
	case <-time.After(pollTime / 10):
	}
	if _, err := Hold(dir); !errors.Is(err, ErrTaken) {
		t.Errorf("held beside an agent: %v", err)
	}
	leave(t, s)
	release, err := Hold(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*pollTime)
	defer cancel()
	if _, _, err := Take(ctx, dir); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("taken while it is held: %v", err)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	take(t, dir)
	if _, err := Hold(filepath.Join(dir, "none")); err != nil {
		t.Errorf("of no directory: %v", err)
	}
}
