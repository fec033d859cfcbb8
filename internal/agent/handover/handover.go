// Package handover has the agents of one node follow each other: during an
// upgrade the new one starts while the old one serves, and of the two exactly
// one has the seat.
//
//	new                                     old
//	 | state of the cluster is known         | serves
//	 |── handover.sock: "give way" ─────────▶| stops, lets go of everything
//	 |                                       | unlocks the seat
//	 |◀─────────────────────────── "left" ───| stays, retired, until it is ended
//	 | locks the seat, serves                |
//
// The seat is a file lock, so it is free the moment that its holder dies,
// whatever it was doing. A retired agent watches it, and serves again at once when
// its successor failed before it served, or ended in order without being asked;
// when it just went, after Patience, for it is likely to be started anew. An agent
// whose successor failed gives way to no other for a while, so that one that can
// never start does not take the node's network down with every attempt. What the
// holder has come to is written in the lock's file. What the agents hand on lies on disk and in the kernel
// (persistent TUNs, records, the flow table); this package only says whose turn
// it is.
//
// Tests hold both ends, and kill the ones in between.
package handover

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Times and names.
const (
	// Patience is how long the seat must be free before a retired agent takes it
	// again: longer than a container takes to be started anew.
	Patience = 10 * time.Second
	// leaveTime bounds the wait for a holder that was asked to leave.
	leaveTime = 30 * time.Second
	// pollTime is how often a seat is looked at that nobody answers for.
	pollTime = 100 * time.Millisecond
	// An agent whose successor failed stays for firstStay; each further failure in
	// a row doubles that, up to lastStay.
	firstStay = time.Minute
	lastStay  = 10 * time.Minute

	lockName   = "agent.lock"
	socketName = "handover.sock"
	request    = "give way\n"
	answer     = "left\n"
)

// What the holder of the seat has come to, as the lock's file has it.
const (
	marksTaken   = "taken"    // it starts; once the seat is free, it has failed
	marksServing = "serving"  // once the seat is free, it has died
	marksEnded   = "ended"    // it left, and nobody had asked
	marksGaveWay = "gave way" // it left for a successor
)

// ErrStays is returned when the holder of the seat was asked and does not leave.
var ErrStays = errors.New("the agent that runs on this node does not give way")

// Seat is the right to be the node's agent. It is given back by Leave, or by the
// end of the process.
type Seat struct {
	dir      string
	stay     time.Duration // since began, nobody is listened to
	began    time.Time
	serving  atomic.Bool
	lock     *os.File
	listener *net.UnixListener
	asked    chan struct{} // closed at the first request
	left     chan struct{} // closed by Leave
	once     sync.Once
	work     sync.WaitGroup
}

// Take returns when the seat in dir is ours, after asking who has it to give way.
// It fails with ErrStays when that one does not.
func Take(ctx context.Context, dir string) (*Seat, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("take the agent's seat: %w", err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, leaveTime, ErrStays)
	defer cancel()
	for {
		lock, err := tryLock(dir)
		if err == nil {
			return occupy(dir, lock, 0)
		}
		if !errors.Is(err, errTaken) {
			return nil, err
		}
		if ask(ctx, dir) == nil {
			continue // it is free now, unless a third one was faster
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("take the agent's seat in %s: %w", dir, context.Cause(ctx))
		case <-time.After(pollTime): // it may be on its way in or out, or be looked at
		}
	}
}

// occupy listens for successors. It owns the lock.
func occupy(dir string, lock *os.File, stay time.Duration) (*Seat, error) {
	if err := mark(lock, marksTaken); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	path := filepath.Join(dir, socketName)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(fmt.Errorf("take the agent's seat: %w", err), lock.Close())
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"}) // the agent's directory is its own
	if err != nil {
		return nil, errors.Join(fmt.Errorf("take the agent's seat: %w", err), lock.Close())
	}
	s := &Seat{dir: dir, stay: stay, began: time.Now(), lock: lock, listener: l, asked: make(chan struct{}), left: make(chan struct{})}
	s.work.Go(s.listen)
	return s, nil
}

// Asked is closed when a successor wants the seat.
func (s *Seat) Asked() <-chan struct{} { return s.asked }

// Serving is to be called once nothing is left that could keep the holder from
// serving.
func (s *Seat) Serving() error {
	s.serving.Store(true)
	return mark(s.lock, marksServing)
}

// Leave gives the seat back, and then tells those who asked for it. Everything
// that only one agent may hold must be let go of before. It returns when nothing
// of the Seat is left; leaving again is fine.
func (s *Seat) Leave() error {
	var err error
	s.once.Do(func() {
		// The socket's file goes first: once the seat is free the next holder's
		// socket may have that name.
		err = errors.Join(s.listener.Close(), s.markEnd(), s.lock.Close())
		close(s.left)
	})
	s.work.Wait()
	return err
}

// markEnd writes why the seat becomes free.
func (s *Seat) markEnd() error {
	select {
	case <-s.asked:
		return mark(s.lock, marksGaveWay)
	default:
	}
	if !s.serving.Load() {
		return nil // as it is: failed
	}
	return mark(s.lock, marksEnded)
}

// listen answers those who ask, until Leave.
func (s *Seat) listen() {
	var once sync.Once
	for {
		conn, err := s.listener.AcceptUnix()
		if err != nil {
			select {
			case <-s.left:
				return
			case <-time.After(pollTime): // too many open files, or Leave is about to say so
			}
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue
		}
		if time.Since(s.began) < s.stay {
			_ = conn.Close() // it will ask again
			continue
		}
		s.work.Go(func() {
			defer func() { _ = conn.Close() }()
			_ = conn.SetDeadline(time.Now().Add(leaveTime))
			line, err := bufio.NewReaderSize(conn, len(request)).ReadString('\n')
			if err != nil || line != request {
				return // gone, or not one of us
			}
			once.Do(func() { close(s.asked) })
			<-s.left
			_, _ = conn.Write([]byte(answer)) // it sees the free seat, too
		})
	}
}

// ask asks the holder to give way and returns nil when it has left.
func ask(ctx context.Context, dir string) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", filepath.Join(dir, socketName))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if _, err := conn.Write([]byte(request)); err != nil {
		return err
	}
	line, err := bufio.NewReaderSize(conn, len(answer)).ReadString('\n')
	if err != nil {
		return err
	}
	if line != answer {
		return fmt.Errorf("unexpected answer %q", line)
	}
	return nil
}

// Retake returns when the seat, which was left, is ours again because nobody else
// serves, or with an error when the context ends.
func (s *Seat) Retake(ctx context.Context) (*Seat, error) {
	ticker := time.NewTicker(pollTime)
	defer ticker.Stop()
	since := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case now := <-ticker.C:
			lock, err := tryLock(s.dir)
			if errors.Is(err, errTaken) {
				since = now
				continue
			}
			if err != nil { // such as that the directory is gone, and with it what there was to serve
				return nil, err
			}
			what, err := read(lock)
			if err != nil {
				return nil, errors.Join(err, lock.Close())
			}
			switch {
			case what == marksTaken:
				return occupy(s.dir, lock, min(max(2*s.stay, firstStay), lastStay))
			case what == marksEnded || now.Sub(since) >= Patience:
				return occupy(s.dir, lock, 0)
			}
			// Whoever takes the seat in this very moment tries again.
			if err := lock.Close(); err != nil {
				return nil, err
			}
		}
	}
}

// mark writes what the holder of the lock has come to.
func mark(lock *os.File, what string) error {
	err := lock.Truncate(0)
	if err == nil {
		_, err = lock.WriteAt([]byte(what), 0)
	}
	if err != nil {
		return fmt.Errorf("write the state of the agent's seat: %w", err)
	}
	return nil
}

// read returns what the last holder of the lock has come to.
func read(lock *os.File) (string, error) {
	buf := make([]byte, len(marksGaveWay)+1)
	n, err := lock.ReadAt(buf, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read the state of the agent's seat: %w", err)
	}
	return string(buf[:n]), nil
}

// ErrTaken is returned when an agent has the seat.
var ErrTaken = errors.New("an agent has the seat")

// Hold keeps the seat in dir from agents without being one, until release, which
// leaves the lock's file behind, empty. It fails with ErrTaken when an agent has it.
// Where there is no directory there is nothing to hold.
func Hold(dir string) (release func() error, err error) {
	lock, err := tryLock(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return func() error { return nil }, nil
	case errors.Is(err, errTaken):
		return nil, ErrTaken
	case err != nil:
		return nil, err
	}
	if err := mark(lock, ""); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock.Close, nil
}

// IsLock reports whether a file of the directory is the lock that Hold has.
func IsLock(name string) bool { return name == lockName }

// errTaken: somebody has the seat.
var errTaken = errors.New("taken")

// tryLock locks the seat. Closing the file unlocks it.
func tryLock(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the agent's seat: %w", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	switch {
	case err == nil:
		return f, nil
	case errors.Is(err, syscall.EWOULDBLOCK):
		err = errTaken
	default:
		err = fmt.Errorf("lock the agent's seat: %w", err)
	}
	return nil, errors.Join(err, f.Close())
}
