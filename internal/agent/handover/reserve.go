package handover

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// Who serves and is told to end need not leave the node to whoever finds its seat
// free: it offers the seat, serves on, and hands over to the first that asks. Those in
// reserve see the offer in the lock's file. That there are any is seen at a lock of
// their own, which all of them share and which ends with them.
const (
	marksOffered = "offered"
	reserveName  = "reserve.lock"
)

// Whoever has handed the seat over less than freshTime ago may only just have heard that
// it was taken: it is waited for, for enterTime, to be seen in reserve.
const (
	freshTime = 10 * time.Second
	enterTime = 2 * time.Second
)

// Reserve is what a retired agent wants: the seat only if it is offered.
const Reserve = "reserve"

// ErrOffered is returned by Retake when whoever has the seat offers it.
var ErrOffered = errors.New("the agent that serves is about to end and offers its seat")

// Offer has the seat handed over to whoever asks first, whether it stands in or is in
// reserve. It reports whether anybody is in reserve.
func (s *Seat) Offer() (reserve bool, err error) {
	s.offered.Store(true)
	if err := s.markServing(); err != nil {
		return false, err
	}
	s.mu.Lock()
	began := s.began
	s.mu.Unlock()
	until := time.Now()
	if s.from != nil && until.Sub(began) < freshTime {
		until = until.Add(enterTime)
	}
	ticker := time.NewTicker(enterTime / 100)
	defer ticker.Stop()
	for {
		reserve, err = reserved(s.dir)
		if reserve || err != nil || !time.Now().Before(until) {
			return reserve, err
		}
		<-ticker.C
	}
}

// reserved reports whether anybody is in reserve.
func reserved(dir string) (bool, error) {
	lock, free, err := lockReserve(dir, syscall.LOCK_EX)
	if free && err == nil {
		err = lock.Close()
	}
	return !free, err
}

// Accept takes a seat that is offered, with all that comes with it. After an error
// there is Retake again.
func (s *Seat) Accept(ctx context.Context, wants ...string) (*Seat, *Legacy, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, leaveTime, ErrStays)
	defer cancel()
	legacy, err := request(ctx, s.dir, append([]string{Reserve}, wants...))
	if err != nil {
		return nil, nil, fmt.Errorf("take the offered seat in %s: %w", s.dir, err)
	}
	next, err := occupy(s.dir, legacy.lock, 0, false, legacy.conn)
	if err != nil {
		legacy.Close()
		return nil, nil, errors.Join(err, legacy.conn.Close())
	}
	return next, legacy, nil
}

// reserve is being seen as one in reserve.
type reserve struct {
	dir  string
	lock *os.File // nil: not yet
}

// enter is tried again and again: who offers a seat may just be looking.
func (r *reserve) enter() error {
	if r.lock != nil {
		return nil
	}
	lock, free, err := lockReserve(r.dir, syscall.LOCK_SH)
	if err == nil && free {
		r.lock = lock
	}
	return err
}

func (r *reserve) leave() {
	if r.lock != nil {
		_ = r.lock.Close()
	}
}

// offers reports whether whoever has the seat in a directory offers it.
func offers(dir string) bool {
	f, err := os.Open(filepath.Join(dir, lockName))
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	what, err := read(f)
	return err == nil && what == marksOffered
}

// lockReserve locks the reserve's file if that is free. Closing it unlocks it.
func lockReserve(dir string, how int) (f *os.File, free bool, err error) {
	f, err = os.OpenFile(filepath.Join(dir, reserveName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, true, fmt.Errorf("look for agents in reserve: %w", err)
	}
	err = syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
	if err == nil {
		return f, true, nil
	}
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, false, f.Close()
	}
	return nil, true, errors.Join(fmt.Errorf("look for agents in reserve: %w", err), f.Close())
}

// Retake returns when the seat, which was left, is ours again because nobody else
// serves; with ErrOffered when it is to be had by Accept; or with an error when the
// context ends.
func (s *Seat) Retake(ctx context.Context) (*Seat, error) {
	ticker := time.NewTicker(pollTime)
	defer ticker.Stop()
	r := reserve{dir: s.dir}
	defer r.leave()
	since := time.Now()
	for {
		if err := r.enter(); err != nil { // such as that the directory is gone, and with it what there was to serve
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case now := <-ticker.C:
			lock, err := tryLock(s.dir)
			if errors.Is(err, errTaken) {
				if since = now; offers(s.dir) {
					return nil, ErrOffered
				}
				continue
			}
			if err != nil {
				return nil, err
			}
			if next, err := s.judge(lock, now.Sub(since)); next != nil || err != nil {
				return next, err
			}
		}
	}
}

// judge takes the seat, which is free for so long and locked for us, or gives it back.
func (s *Seat) judge(lock *os.File, free time.Duration) (*Seat, error) {
	what, err := read(lock)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	switch young := diedYoung(what, time.Now().Add(-free)); {
	case young && free >= Patience:
		return occupy(s.dir, lock, longer(s.stay), false, nil)
	case young: // likely to be started anew
	case what == marksTaken:
		return occupy(s.dir, lock, longer(s.stay), false, nil)
	case what == marksEnded || what == marksOffered || free >= Patience:
		return occupy(s.dir, lock, 0, false, nil)
	}
	return nil, lock.Close() // whoever takes it in this very moment tries again
}
