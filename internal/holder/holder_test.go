package holder

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/kernel"
)

// asClient makes the test binary a client that puts what it has open and waits to
// be killed; asWorker one that ends as it is told.
const (
	asClient = "HOLDER_TEST_CLIENT"
	asWorker = "HOLDER_TEST_WORKER"
	asOwner  = "HOLDER_TEST_OWNER" // which says so in a file, and then nothing, or goes on
	goesOn   = "HOLDER_TEST_GOES_ON"
	asPoor   = "HOLDER_TEST_POOR" // that cannot open as many files as are held
)

func TestMain(m *testing.M) {
	if path := os.Getenv(asClient); path != "" {
		c, err := Dial(context.Background(), path)
		if err == nil {
			err = errors.Join(c.Own(), c.Put("pipe", 3))
		}
		if err == nil && os.Getenv(goesOn) != "" {
			err = c.Beat() // who has not beaten yet need not
		}
		fmt.Println("put", err)
		for os.Getenv(goesOn) != "" {
			if err := c.Beat(); err != nil {
				panic(err)
			}
			time.Sleep(10 * time.Millisecond)
		}
		select {}
	}
	if do := os.Getenv(asWorker); do != "" {
		work(do)
	}
	if path := os.Getenv(asPoor); path != "" {
		fmt.Print(poor(path))
		os.Exit(0)
	}
	if do := os.Getenv(asOwner); do != "" {
		own(do)
	}
	os.Exit(m.Run())
}

// poor gets what it can, and then all.
func poor(path string) error {
	c, err := Dial(context.Background(), path)
	if err != nil {
		return err
	}
	var limit syscall.Rlimit
	fd, err := syscall.Dup(0) // the next number
	if err == nil {
		err = errors.Join(syscall.Close(fd), syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit))
	}
	if err != nil {
		return err
	}
	less := syscall.Rlimit{Cur: uint64(fd) + 3, Max: limit.Max}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &less); err != nil {
		return err
	}
	got, err := c.All()
	if !errors.Is(err, ErrIncomplete) || len(got) != 1 || len(got["few"]) != 1 {
		return fmt.Errorf("with few files: %v, %w", got, err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	if got, err = c.All(); err != nil || len(got) != 2 || len(got["many"]) != 8 {
		return fmt.Errorf("with enough: %v, %w", got, err)
	}
	return nil
}

// own is the life of an owner that somebody must kill.
func own(do string) {
	c, err := Inherited()
	if err != nil || c == nil || c.Own() != nil {
		os.Exit(3)
	}
	say := func() error { return c.Drop("nothing") }
	if os.Getenv(goesOn) == "beats" {
		say = c.Beat
	}
	if err := say(); err != nil { // who has not beaten yet need not
		panic(err)
	}
	f, err := os.OpenFile(do, os.O_APPEND|os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		panic(err)
	}
	fmt.Fprintln(f, os.Getpid())
	for os.Getenv(goesOn) != "" {
		if err := say(); err != nil {
			os.Exit(4)
		}
		time.Sleep(10 * time.Millisecond)
	}
	select {}
}

// work is the life of a worker, which says what it got and then ends.
func work(do string) {
	c, err := Inherited()
	if err != nil || c == nil {
		fmt.Println("no holder", err)
		os.Exit(3)
	}
	f, err := os.OpenFile(do, os.O_APPEND|os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		panic(err)
	}
	got, err := c.All()
	before, _ := io.ReadAll(f)
	fmt.Fprintf(f, "%d held %v\n", len(slices.Collect(maps.Keys(got))), err)
	switch strings.Count(string(before), "\n") {
	case 0:
		_, w, err := os.Pipe()
		fmt.Fprintln(os.Stderr, err, c.Own(), c.Put("kept", int(w.Fd())))
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	case 1: // fails before it is an owner
		os.Exit(7)
	default:
		_ = c.Own()
		_ = c.Goodbye()
		os.Exit(0)
	}
}

type world struct {
	*Holder
	path string
	lost chan struct{}
}

func start(t *testing.T) *world {
	t.Helper()
	w := &world{path: filepath.Join(t.TempDir(), "h", "hold.sock"), lost: make(chan struct{}, 8)}
	w.Holder = New(Config{Lost: func(time.Duration) { w.lost <- struct{}{} }})
	l, err := Listen(w.path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { done <- w.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		w.Close()
		if names, fds := w.Held(); names+fds > 0 {
			t.Errorf("%d names and %d descriptors are left", names, fds)
		}
	})
	return w
}

func (w *world) client(t *testing.T) *Client {
	t.Helper()
	c, err := Dial(t.Context(), w.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
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

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fdOf returns a descriptor that the holder may be given.
func fdOf(t *testing.T, f *os.File) int {
	t.Helper()
	fd, err := kernel.DupOf(f)
	must(t, err)
	t.Cleanup(func() { kernel.CloseFDs([]int{fd}) })
	return fd
}

// What a client put outlives it, whatever kills it, and is then another one's.
func TestHeldOverAKill(t *testing.T) {
	t.Parallel()
	w := start(t)
	r, end := pipe(t)
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env, cmd.ExtraFiles = append(os.Environ(), asClient+"="+w.path), []*os.File{end}
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	said := make([]byte, len("put <nil>"))
	if _, err := io.ReadFull(out, said); err != nil || string(said) != "put <nil>" {
		t.Fatalf("%q, %v", said, err)
	}
	must(t, end.Close())
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	select {
	case <-w.lost:
	case <-time.After(10 * time.Second):
		t.Fatal("nobody noticed")
	}
	c := w.client(t)
	got, err := c.All()
	must(t, err)
	if len(got) != 1 || len(got["pipe"]) != 1 {
		t.Fatalf("held: %v", got)
	}
	if _, err := syscall.Write(got["pipe"][0], []byte("alive")); err != nil {
		t.Fatal(err)
	}
	kernel.CloseFDs(got["pipe"])
	buf := make([]byte, 5)
	if _, err := io.ReadFull(r, buf); err != nil || string(buf) != "alive" {
		t.Errorf("%q, %v", buf, err)
	}
	must(t, errors.Join(c.Own(), c.Settled())) // nobody put it again
	if _, err := r.Read(buf); !errors.Is(err, io.EOF) {
		t.Errorf("the pipe is still held: %v", err)
	}
}

func TestOwnersAndTheirEnds(t *testing.T) {
	t.Parallel()
	w := start(t)
	_, end := pipe(t)
	fd := fdOf(t, end)
	first, second := w.client(t), w.client(t)
	if err := first.Put("a", fd); err == nil {
		t.Error("put by nobody")
	}
	must(t, errors.Join(first.Own(), first.Put("a", fd), first.Put("b", fd, fd), first.Put("a", fd), first.Drop("none")))
	if names, fds := w.Held(); names != 2 || fds != 3 {
		t.Errorf("%d names, %d descriptors", names, fds)
	}
	must(t, errors.Join(second.Own(), second.Put("b", fd)))
	var refused *RefusedError
	if err := first.Put("c", fd); !errors.As(err, &refused) {
		t.Errorf("the former owner puts: %v", err)
	}
	must(t, first.Goodbye()) // which is not the owner's
	if names, _ := w.Held(); names != 2 {
		t.Errorf("%d names before the new owner has settled", names)
	}
	must(t, second.Settled())
	if names, fds := w.Held(); names != 1 || fds != 1 {
		t.Errorf("settled: %d names, %d descriptors", names, fds)
	}
	must(t, first.Close())
	must(t, second.Goodbye())
	must(t, second.Close())
	w.Close()
	select {
	case <-w.lost:
		t.Error("an end in order is taken for a death")
	default:
	}
}

func TestBounds(t *testing.T) {
	t.Parallel()
	w := start(t)
	_, end := pipe(t)
	fd := fdOf(t, end)
	c := w.client(t)
	must(t, c.Own())
	for _, name := range []string{"", strings.Repeat("x", MaxName+1), "with space", "new\nline", "ü"} {
		if err := c.Put(name, fd); err == nil {
			t.Errorf("%q was put", name)
			continue
		}
		if len(name) > MaxName { // more than a message holds: the connection is gone
			c = w.client(t)
			must(t, c.Own())
		}
	}
	if err := c.Put("nothing"); err == nil {
		t.Error("put without a descriptor")
	}
	many := make([]int, kernel.MaxFDs)
	for i := range many {
		many[i] = fd
	}
	must(t, c.Put("many", many...))
	w.mu.Lock()
	w.fds += maxFDs - 2*kernel.MaxFDs
	w.mu.Unlock()
	must(t, c.Put("more", many...))
	must(t, c.Put("more", many...)) // in its own place
	if err := c.Put("most", fd); err == nil {
		t.Error("more than the most")
	}
	w.mu.Lock()
	w.fds -= maxFDs - 2*kernel.MaxFDs
	w.mu.Unlock()
}

// Noise on the socket harms nobody else.
func TestGarbage(t *testing.T) {
	t.Parallel()
	w := start(t)
	_, end := pipe(t)
	fd := fdOf(t, end)
	good := w.client(t)
	must(t, errors.Join(good.Own(), good.Put("kept", fd)))
	for _, text := range []string{"P", "Pkept", "Q", "\x00", "O extra", "S", "Dkept", "B", strings.Repeat("P", 4096)} {
		conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: w.path, Net: "unixpacket"})
		must(t, err)
		if strings.HasPrefix(text, "O") {
			continue
		}
		_ = kernel.SendFDs(conn, []byte(text), fd)
		_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		_, _ = conn.Read(make([]byte, 100))
		_ = conn.Close()
	}
	got, err := good.All()
	if err != nil || len(got["kept"]) != 1 {
		t.Errorf("%v, %v", got, err)
	}
	kernel.CloseFDs(got["kept"])
	must(t, good.Put("kept", fd))
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte("Pname"), uint8(1))
	f.Add([]byte("O"), uint8(0))
	f.Add([]byte("Dname"), uint8(3))
	f.Fuzz(func(t *testing.T, data []byte, fds uint8) {
		if len(data) == 0 || data[0] == opGet {
			return
		}
		h := New(Config{})
		conn := new(net.UnixConn)
		h.own(conn)
		for range 2 {
			given := make([]int, fds%8)
			for i := range given {
				fd, err := syscall.Open("/dev/null", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
				if err != nil {
					t.Skip(err)
				}
				given[i] = fd
			}
			_ = h.answer(conn, data[0], string(data[1:]), given)
		}
		total := 0
		for name, e := range h.held {
			if !validName(name) || len(e.fds) == 0 {
				t.Errorf("held: %q with %d", name, len(e.fds))
			}
			total += len(e.fds)
		}
		if total != h.fds {
			t.Errorf("counted %d, held %d", h.fds, total)
		}
		h.clear()
	})
}

// A worker that dies is replaced, and finds what the one before had put; one that
// ends in order is not.
func TestWorkers(t *testing.T) {
	t.Parallel()
	log := filepath.Join(t.TempDir(), "log")
	s := NewSupervisor([]string{"/usr/bin/env", asWorker + "=" + log, os.Args[0]}, true, slog.New(slog.NewTextHandler(t.Output(), nil)))
	must(t, s.Run(t.Context()))
	s.Holder.Close()
	text, err := os.ReadFile(log)
	must(t, err)
	if want := "0 held <nil>\n1 held <nil>\n1 held <nil>\n"; string(text) != want {
		t.Errorf("got %q, want %q", text, want)
	}
}

// In a container of its own the holder waits for the agent of the other one, and
// stands in when that dies.
func TestStandIn(t *testing.T) {
	t.Parallel()
	log := filepath.Join(t.TempDir(), "log")
	s := NewSupervisor([]string{"/usr/bin/env", asWorker + "=" + log, os.Args[0]}, false, slog.New(slog.NewTextHandler(t.Output(), nil)))
	path := filepath.Join(t.TempDir(), "hold.sock")
	l, err := Listen(path)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	go func() { done <- s.Holder.Serve(ctx, l) }()
	go func() { done <- s.Run(ctx) }()
	c, err := Dial(t.Context(), path)
	must(t, err)
	must(t, c.Own())
	if _, err := os.Stat(log); err == nil {
		t.Error("a worker was started beside an agent")
	}
	must(t, c.Close())
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		text, _ := os.ReadFile(log)
		if strings.Count(string(text), "\n") == 3 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("workers: %q", text)
		}
	}
	cancel()
	for range 2 {
		must(t, <-done)
	}
	s.Holder.Close()
}

// While a worker waits for its turn, the agent that it would stand in for comes back.
func TestNoStandInBesideAnAgent(t *testing.T) {
	t.Parallel()
	log := filepath.Join(t.TempDir(), "log")
	s := NewSupervisor([]string{"/bin/sh", "-c", "echo started >>" + log + "; exit 1"}, false, slog.New(slog.DiscardHandler))
	path := filepath.Join(t.TempDir(), "hold.sock")
	l, err := Listen(path)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	go func() { done <- s.Holder.Serve(ctx, l) }()
	go func() { done <- s.Run(ctx) }()
	first, err := Dial(t.Context(), path)
	must(t, errors.Join(err, first.Own(), first.Close()))
	started := func() int {
		text, _ := os.ReadFile(log)
		return strings.Count(string(text), "\n")
	}
	for deadline := time.Now().Add(20 * time.Second); started() < 3; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d workers", started())
		}
	}
	back, err := Dial(t.Context(), path)
	must(t, errors.Join(err, back.Own()))
	n := started()
	time.Sleep(4 * firstPause) // the next one would have been started by now
	if now := started(); now != n {
		t.Errorf("%d workers were started beside an agent", now-n)
	}
	cancel()
	for range 2 {
		must(t, <-done)
	}
	must(t, back.Close())
	s.Holder.Close()
}

// An agent that is about to end has another one started beside it, once. Only the owner
// may, and only where agents are not started by the holder alone.
func TestReplacedOnRequest(t *testing.T) {
	t.Parallel()
	log := filepath.Join(t.TempDir(), "log")
	command := []string{"/bin/sh", "-c", "echo started >>" + log}
	s := NewSupervisor(command, false, slog.New(slog.DiscardHandler))
	path := filepath.Join(t.TempDir(), "hold.sock")
	l, err := Listen(path)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	go func() { done <- s.Holder.Serve(ctx, l) }()
	go func() { done <- s.Run(ctx) }()
	c, err := Dial(t.Context(), path)
	must(t, err)
	if err := c.Replace(); err == nil {
		t.Error("one that is not the owner is replaced")
	}
	must(t, errors.Join(c.Own(), c.Replace()))
	started := func() int {
		text, _ := os.ReadFile(log)
		return strings.Count(string(text), "\n")
	}
	for deadline := time.Now().Add(20 * time.Second); started() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no worker was started")
		}
	}
	must(t, errors.Join(c.Goodbye(), c.Close())) // it was handed over to
	time.Sleep(4 * firstPause)                   // another one would have been started by now
	if n := started(); n != 1 {
		t.Errorf("%d workers were started", n)
	}
	cancel()
	for range 2 {
		must(t, <-done)
	}
	s.Holder.Close()

	alone := NewSupervisor(command, true, slog.New(slog.DiscardHandler)).Holder
	alone.mu.Lock()
	conn := &net.UnixConn{}
	alone.owner = conn
	alone.mu.Unlock()
	if err := alone.answer(conn, opReplace, "", nil); err == nil {
		t.Error("a holder that ends with its agent starts another one")
	}
}

// A worker that is the owner and says nothing is replaced; one that speaks is not.
func TestSilentWorkerIsKilled(t *testing.T) {
	t.Parallel()
	for _, goes := range []string{"", "on"} {
		log := filepath.Join(t.TempDir(), "log")
		s := NewSupervisor([]string{"/usr/bin/env", asOwner + "=" + log, goesOn + "=" + goes, os.Args[0]}, true, slog.New(slog.NewTextHandler(t.Output(), nil)))
		s.silence = 600 * time.Millisecond
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		started := func() int {
			text, _ := os.ReadFile(log)
			return strings.Count(string(text), "\n")
		}
		want := 2
		if goes != "" {
			want = 1
		}
		for deadline := time.Now().Add(20 * time.Second); started() < want; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d workers", started())
			}
		}
		if goes != "" {
			time.Sleep(3 * s.silence)
			if n := started(); n != want {
				t.Errorf("%d workers", n)
			}
		}
		cancel()
		must(t, <-done)
		s.Holder.Close()
	}
}

// An agent that beats and is stopped is killed and replaced, whoever has started it:
// the holder, or somebody else.
func TestStoppedAgentIsReplaced(t *testing.T) {
	t.Parallel()
	log := filepath.Join(t.TempDir(), "log")
	command := []string{"/usr/bin/env", asOwner + "=" + log, goesOn + "=beats", asClient + "=", os.Args[0]}
	s := NewSupervisor(command, false, slog.New(slog.NewTextHandler(t.Output(), nil)))
	path := filepath.Join(t.TempDir(), "hold.sock")
	l, err := Listen(path)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	go func() { done <- s.Holder.Serve(ctx, l) }()
	go func() { done <- s.Run(ctx) }()
	_, end := pipe(t)
	first := exec.CommandContext(t.Context(), os.Args[0])
	first.Env, first.ExtraFiles = append(os.Environ(), asClient+"="+path, goesOn+"=beats"), []*os.File{end}
	out, err := first.StdoutPipe()
	must(t, errors.Join(err, first.Start()))
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "put <nil>\n" {
		t.Fatalf("%q, %v", line, err)
	}
	workers := func(n int) []string {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
			text, _ := os.ReadFile(log)
			if all := strings.Fields(string(text)); len(all) >= n {
				return all
			}
			if time.Now().After(deadline) {
				t.Fatalf("workers %q, want %d", text, n)
			}
		}
	}
	must(t, first.Process.Signal(syscall.SIGSTOP))
	second, err := strconv.Atoi(workers(1)[0])
	must(t, err)
	if err := first.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("the stopped one: %v", err)
	}
	must(t, syscall.Kill(second, syscall.SIGSTOP))
	workers(2)
	cancel()
	for range 2 {
		must(t, <-done)
	}
	s.Holder.Close()
}

// What runs is busy, what waits is not, and what is stopped is neither.
func TestCondition(t *testing.T) {
	t.Parallel()
	is := func(pid int, want condition) {
		t.Helper()
		var got condition
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			var err error
			if got, err = conditionOf(pid); err != nil {
				t.Fatal(err)
			}
			if got.stopped == want.stopped && got.busy == want.busy {
				return
			}
		}
		t.Errorf("process %d is %+v, want %+v", pid, got, want)
	}
	is(os.Getpid(), condition{busy: true}) // who looks runs
	cmd := exec.CommandContext(t.Context(), "sleep", "600")
	must(t, cmd.Start())
	is(cmd.Process.Pid, condition{})
	must(t, cmd.Process.Signal(syscall.SIGSTOP))
	is(cmd.Process.Pid, condition{stopped: true})
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	if c, err := conditionOf(cmd.Process.Pid); err == nil {
		t.Errorf("one that has ended is %+v", c)
	}
}

// A client with too many open files gets what it can have, hears that it is not all,
// and can ask again.
func TestTooManyOpenFiles(t *testing.T) {
	t.Parallel()
	w := start(t)
	_, end := pipe(t)
	fd := fdOf(t, end)
	c := w.client(t)
	must(t, errors.Join(c.Own(), c.Put("many", fd, fd, fd, fd, fd, fd, fd, fd), c.Put("few", fd)))
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env, cmd.Stderr = append(os.Environ(), asPoor+"="+w.path), t.Output()
	if out, err := cmd.Output(); err != nil || string(out) != "<nil>" {
		t.Errorf("%s, %v", out, err)
	}
}

func TestBackoff(t *testing.T) {
	t.Parallel()
	var b backoff
	now := time.Now()
	for i, want := range []time.Duration{0, 0, firstPause, 2 * firstPause, 4 * firstPause} {
		if got := b.next(now); got != want {
			t.Errorf("start %d waits %s, want %s", i, got, want)
		}
		now = now.Add(time.Second)
	}
	for range 100 {
		if got := b.next(now); got > lastPause {
			t.Fatalf("waits %s", got)
		}
	}
	if got := b.next(now.Add(healthy + lastPause)); got != 0 {
		t.Errorf("after a healthy one it waits %s", got)
	}
}
