// Package handover has the agents of one node follow each other: during an
// upgrade the new one starts while the old one serves, and of the two exactly
// one has the seat.
//
//	new                                     old
//	 | is prepared                           | serves
//	 |── switch.sock: "hand over" ──────────▶| ends calls under way, stops reading
//	 |◀──────────── names, descriptors ... ──|
//	 |◀──────────── the seat, as a lock's ───| listens to nobody
//	 | has made all its own                  |
//	 |── "serving" ─────────────────────────▶| lets go, drains
//	 | reads                                 |
//
// Until "serving" the old one has all that it had; when the new one dies or fails
// before, it goes on. Packets wait in the devices' queues meanwhile.
//
// An agent of an earlier version knows another way, which is kept for upgrades from
// it and for rollbacks to it: "give way" on handover.sock, and "left" when all is
// let go of, so that everything must be opened anew.
//
// The seat is a file lock, so it is free the moment that its last holder dies,
// whatever it was doing; handed over, it is never free in between. A retired agent
// watches it, and serves again at once when
// its successor failed before it served, or ended in order without being asked;
// when it just went, after Patience, for it is likely to be started anew. One that is
// told to end while it serves offers the seat, and whoever is retired takes it in the
// same way as a successor does. An agent
// whose successor failed gives way to no other for a while, so that one that can
// never start does not take the node's network down with every attempt. What the
// holder has come to is written in the lock's file. What lies on disk and in the
// kernel (persistent TUNs, records, the flow table) is not this package's affair.
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
	"slices"
	"strconv"
	"strings"
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
	// firstPoll is how soon it is looked at again; each further wait is longer, up to
	// pollTime: what a dead process held is free a moment later.
	firstPoll = time.Millisecond
	// youngTime is how long a successor must have served for its death to be of no
	// concern to who was there before.
	youngTime = 30 * time.Second
	// An agent whose successor failed stays for firstStay; each further failure in
	// a row doubles that, up to lastStay.
	firstStay = time.Minute
	lastStay  = 10 * time.Minute

	lockName   = "agent.lock"
	socketName = "handover.sock"
	switchName = "switch.sock"
	giveWay    = "give way\n"
	answer     = "left\n"
)

// What the holder of the seat has come to, as the lock's file has it.
const (
	maxMark = 64 // bytes

	marksTaken   = "taken"    // it starts; once the seat is free, it has failed
	marksServing = "serving"  // and since when; once the seat is free, it has died
	marksEnded   = "ended"    // it left, and nobody had asked
	marksGaveWay = "gave way" // it left for a successor
)

// ErrStays is returned when the holder of the seat was asked and does not leave.
var ErrStays = errors.New("the agent that runs on this node does not give way")

// StandIn is what a stand-in wants: to serve only while nobody else does.
const StandIn = "stand-in"

// ErrNotNeeded is returned to a stand-in when an agent serves, and to one in reserve
// when that does not offer its seat (any more).
var ErrNotNeeded = errors.New("an agent serves that does not stand in for another one")

// Seat is the right to be the node's agent. It is given back by Leave, handed over
// by Heir.Leave, or lost with the process.
type Seat struct {
	dir    string
	asked  chan struct{} // closed at the first request to give way
	heirs  chan *Heir
	guests chan *Heir
	left   chan struct{} // closed by Leave, and when it was handed over
	// standIn: whoever has it only stands in for another one.
	standIn bool
	once    sync.Once
	work    sync.WaitGroup
	from    *net.UnixConn // whoever handed the seat over and waits, nil: nobody did

	serving atomic.Bool
	failed  atomic.Bool
	offered atomic.Bool

	mu        sync.Mutex
	stay      time.Duration   // since began, nobody is listened to; guarded by mu
	began     time.Time       // guarded by mu
	lock      *os.File        // immutable
	listeners [2]net.Listener // guarded by mu: to give way, to hand over
}

// Take returns when the seat in dir is ours, after asking who has it to hand it
// over; what came with it is then a Legacy, and nil when there was nobody to ask or
// one of an earlier version. wants are words that Heir.Wants is asked for. It fails
// with ErrStays when that one does not.
//
// Who wants StandIn is not to take the seat from an agent that serves, other than from
// one that stands in as well: it fails with ErrNotNeeded.
func Take(ctx context.Context, dir string, wants ...string) (*Seat, *Legacy, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("take the agent's seat: %w", err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, leaveTime, ErrStays)
	defer cancel()
	standIn := slices.Contains(wants, StandIn)
	for wait := firstPoll; ; wait = min(2*wait, pollTime) {
		lock, err := tryLock(dir)
		if err == nil {
			s, err := occupy(dir, lock, 0, standIn, nil)
			return s, nil, err
		}
		if !errors.Is(err, errTaken) {
			return nil, nil, err
		}
		legacy, err := request(ctx, dir, wants)
		if err == nil {
			s, err := occupy(dir, legacy.lock, 0, standIn, legacy.conn)
			if err != nil {
				legacy.Close()
				return nil, nil, errors.Join(err, legacy.conn.Close())
			}
			return s, legacy, nil
		}
		switch {
		case errors.Is(err, ErrNotNeeded):
			return nil, nil, err
		case errors.Is(err, errNobody) && !standIn && ask(ctx, dir) == nil:
			continue // it is free now, unless a third one was faster
		}
		select {
		case <-ctx.Done():
			if standIn && errors.Is(context.Cause(ctx), ErrStays) {
				return nil, nil, errors.Join(ErrNotNeeded, err)
			}
			return nil, nil, fmt.Errorf("take the agent's seat in %s: %w", dir, errors.Join(context.Cause(ctx), err))
		case <-time.After(wait): // it may be on its way in or out, or be looked at
		}
	}
}

// occupy listens for successors. It owns the lock.
func occupy(dir string, lock *os.File, stay time.Duration, standIn bool, from *net.UnixConn) (*Seat, error) {
	s := &Seat{
		dir: dir, stay: stay, began: time.Now(), lock: lock, standIn: standIn, from: from,
		asked: make(chan struct{}), heirs: make(chan *Heir), guests: make(chan *Heir), left: make(chan struct{}),
	}
	if err := errors.Join(mark(lock, marksTaken), s.open()); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return s, nil
}

// open makes the sockets that successors ask at.
func (s *Seat) open() error {
	serve := [2]func(net.Listener){s.listen, s.listenHeirs}
	for i, at := range [2]net.UnixAddr{{Name: socketName, Net: "unix"}, {Name: switchName, Net: "unixpacket"}} {
		at.Name = filepath.Join(s.dir, at.Name)
		err := os.Remove(at.Name)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			s.listeners[i], err = listenAt(&at) // the agent's directory is its own
		}
		if err != nil {
			return errors.Join(fmt.Errorf("take the agent's seat: %w", err), s.deafen())
		}
	}
	for i, l := range s.listeners {
		s.work.Go(func() { serve[i](l) })
	}
	return nil
}

func listenAt(at *net.UnixAddr) (net.Listener, error) {
	l, err := net.ListenUnix(at.Net, at)
	if err != nil {
		return nil, err // not a typed nil
	}
	return l, nil
}

// deafen closes the sockets that successors ask at.
func (s *Seat) deafen() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for i, l := range s.listeners {
		if l != nil {
			if u, ok := l.(*net.UnixListener); ok && s.from != nil && !s.serving.Load() {
				u.SetUnlinkOnClose(false) // whoever handed over may have its own there again
			}
			errs = append(errs, l.Close())
		}
		s.listeners[i] = nil
	}
	return errors.Join(errs...)
}

// Served reports whether an agent in dir listens to successors.
func Served(dir string) bool {
	conn, err := net.Dial("unix", filepath.Join(dir, socketName)) //nolint:noctx // it is there or not
	if err != nil {
		return false
	}
	_ = conn.Close() // says nothing, so it asks for nothing
	return true
}

// Asked is closed when a successor of an earlier version wants the seat.
func (s *Seat) Asked() <-chan struct{} { return s.asked }

// Heirs gives successors, one at a time, that want the seat handed over. Whoever
// receives one owes it Leave and Await, or Refuse.
func (s *Seat) Heirs() <-chan *Heir { return s.heirs }

// Serving is to be called once nothing is left that could keep the holder from
// serving. Whoever handed the seat over is told, and it is an error when that one
// does not hear it: it serves on.
func (s *Seat) Serving() error {
	if s.from != nil {
		if err := announce(s.from); err != nil {
			return err
		}
	}
	s.serving.Store(true)
	return s.markServing()
}

// Failed has a following Leave say that whoever has the seat left because it cannot
// serve, so that an agent that was there before stays longer.
func (s *Seat) Failed() { s.failed.Store(true) }

// Due is until when the seat's new holder can be sure that whoever handed it over
// waits, zero when there is no such one. After that it must not go on.
func (s *Seat) Due() time.Time {
	if s.from == nil {
		return time.Time{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.began.Add(servingTime - servingMargin)
}

// Leave gives the seat back, and then tells those who asked for it. Everything
// that only one agent may hold must be let go of before. It returns when nothing
// of the Seat is left; leaving again is fine, and so is leaving one that was handed
// over.
func (s *Seat) Leave() error {
	var err error
	s.once.Do(func() {
		// The sockets' files go first: once the seat is free the next holder's
		// sockets may have those names.
		err = errors.Join(s.deafen(), s.markEnd(), s.lock.Close())
		if s.from != nil && !s.serving.Load() {
			err = errors.Join(err, s.from.Close()) // it serves on
		}
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
	switch {
	case !s.serving.Load():
		return nil // as it is: failed
	case s.failed.Load():
		return mark(s.lock, marksTaken)
	default:
		return mark(s.lock, marksEnded)
	}
}

// accept calls f with whoever connects, until the listener is closed.
func (s *Seat) accept(l net.Listener, f func(*net.UnixConn)) {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			<-time.After(pollTime) // too many open files
			continue
		}
		if u, ok := conn.(*net.UnixConn); ok {
			f(u)
		}
	}
}

// stays returns how long nobody is listened to.
func (s *Seat) stays() time.Duration {
	if s.offered.Load() {
		return 0 // anybody is better than nobody
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stay - time.Since(s.began)
}

// listen answers those who ask the seat's holder to give way, until Leave.
func (s *Seat) listen(l net.Listener) {
	var once sync.Once
	s.accept(l, func(conn *net.UnixConn) {
		if s.stays() > 0 {
			_ = conn.Close() // it will ask again
			return
		}
		s.work.Go(func() {
			defer func() { _ = conn.Close() }()
			_ = conn.SetDeadline(time.Now().Add(leaveTime))
			heard := s.hurry(conn)
			line, err := bufio.NewReaderSize(conn, len(giveWay)).ReadString('\n')
			heard()
			if err != nil || line != giveWay {
				return // gone, or not one of us
			}
			once.Do(func() { close(s.asked) })
			<-s.left
			_, _ = conn.Write([]byte(answer)) // it sees the free seat, too
		})
	})
}

// hurry ends the wait for a silent client's request when the seat is left, until
// heard.
func (s *Seat) hurry(conn *net.UnixConn) (heard func()) {
	said := make(chan struct{})
	s.work.Go(func() {
		select {
		case <-said:
		case <-s.left:
			_ = conn.SetReadDeadline(time.Unix(1, 0))
		}
	})
	return func() { close(said) }
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
	if _, err := conn.Write([]byte(giveWay)); err != nil {
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

// markServing writes that the seat's holder serves, and since when, or that it is
// about to end.
func (s *Seat) markServing() error {
	if s.offered.Load() {
		return mark(s.lock, marksOffered)
	}
	return mark(s.lock, marksServing+" "+strconv.FormatInt(time.Now().UnixMilli(), 10))
}

// diedYoung reports whether the last holder of the seat served, and died soon after it
// had begun to: a version that does so again and again should not have the node.
func diedYoung(what string, died time.Time) bool {
	text, ok := strings.CutPrefix(what, marksServing+" ")
	began, err := strconv.ParseInt(text, 10, 64)
	return ok && err == nil && died.Sub(time.UnixMilli(began)) < youngTime
}

// longer is how long an agent stays after another successor failed.
func longer(stay time.Duration) time.Duration { return min(max(2*stay, firstStay), lastStay) }

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
	buf := make([]byte, maxMark)
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
