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
// whatever it was doing. A retired agent watches it: when nobody has had it for
// Patience, its successor is not coming back by itself, and the retired one
// serves again. What the agents hand on lies on disk and in the kernel
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
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
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

	lockName   = "agent.lock"
	socketName = "handover.sock"
	request    = "give way\n"
	answer     = "left\n"
)

// ErrStays is returned when the holder of the seat was asked and does not leave.
var ErrStays = errors.New("the agent that runs on this node does not give way")

// Seat is the right to be the node's agent. It is given back by Leave, or by the
// end of the process.
type Seat struct {
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
			return occupy(dir, lock)
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
func occupy(dir string, lock *os.File) (*Seat, error) {
	path := filepath.Join(dir, socketName)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(fmt.Errorf("take the agent's seat: %w", err), lock.Close())
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"}) // the directory keeps others out
	if err != nil {
		return nil, errors.Join(fmt.Errorf("take the agent's seat: %w", err), lock.Close())
	}
	s := &Seat{lock: lock, listener: l, asked: make(chan struct{}), left: make(chan struct{})}
	s.work.Go(s.listen)
	return s, nil
}

// Asked is closed when a successor wants the seat.
func (s *Seat) Asked() <-chan struct{} { return s.asked }

// Leave gives the seat back, and then tells those who asked for it. Everything
// that only one agent may hold must be let go of before. It returns when nothing
// of the Seat is left; leaving again is fine.
func (s *Seat) Leave() error {
	var err error
	s.once.Do(func() {
		// The socket's file goes first: once the seat is free the next holder's
		// socket may have that name.
		err = errors.Join(s.listener.Close(), s.lock.Close())
		close(s.left)
	})
	s.work.Wait()
	return err
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

// AwaitVacancy returns when nobody has had the seat in dir for Patience, or with
// an error when the context ends.
func AwaitVacancy(ctx context.Context, dir string) error {
	const every = time.Second
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	since := time.Now()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case now := <-ticker.C:
			lock, err := tryLock(dir)
			switch {
			case errors.Is(err, errTaken):
				since = now
			case err != nil: // the directory may be gone: then so is the seat
				return err
			default:
				// Whoever takes the seat in this very moment tries again.
				if err := lock.Close(); err != nil {
					return err
				}
				if now.Sub(since) >= Patience {
					return nil
				}
			}
		}
	}
}

// Taken reports whether an agent has the seat in dir.
func Taken(dir string) (bool, error) {
	if _, err := os.Stat(filepath.Join(dir, lockName)); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	lock, err := tryLock(dir)
	if errors.Is(err, errTaken) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	return false, lock.Close()
}

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
