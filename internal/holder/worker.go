package holder

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// The times of starts.
const (
	// A worker that dies is replaced at once; each further death in a row waits
	// twice as long as the one before, up to lastPause.
	firstPause = 250 * time.Millisecond
	lastPause  = 8 * time.Second
	// healthy is how long a worker must have run for its death to be a first one, and
	// served how long it must have been the owner: as long as that, starting it again
	// and again serves the node better than waiting.
	healthy = time.Minute
	served  = time.Second
	// endTime is what a worker has to end in order before it is killed: it may have
	// connections to finish.
	endTime = 6 * time.Minute
	// silence is how long a worker that is the owner may say nothing. An agent speaks
	// every two seconds, while it goes on.
	silence = time.Minute
)

// A worker finds its connection to the holder under this number when this is set, to
// the path of the holder's socket.
const (
	inheritedEnv = "NETCTL_HOLDER"
	noSocket     = "-"
	inheritedFD  = 3 // the first after the standard streams
)

// Supervisor starts the holder's workers. One serves; earlier ones may still be at
// the connections that they could not hand on.
type Supervisor struct {
	Command []string // a program and its arguments
	Socket  string   // where others find the Holder; "": nowhere
	Holder  *Holder
	// Always starts a worker without being asked, and ends when it ends in order.
	// Without it one is started whenever an owner dies.
	Always bool
	Log    *slog.Logger

	silence time.Duration
	lost    chan time.Duration
	wanted  chan struct{}
	exits   chan exit
}

// exit is the end of a worker.
type exit struct {
	pid   int
	err   error // nil: in order
	owner bool  // it was the owner, and Lost was called for that
}

// NewSupervisor returns a Supervisor with a Holder, whose losses are its own.
func NewSupervisor(command []string, always bool, log *slog.Logger) *Supervisor {
	s := &Supervisor{Command: command, Always: always, Log: log, silence: silence, lost: make(chan time.Duration, 1), wanted: make(chan struct{}, 1), exits: make(chan exit)}
	cfg := Config{Lost: s.notice, Log: log}
	if !always { // else it ends because we do
		cfg.Wanted = s.want
	}
	s.Holder = New(cfg)
	return s
}

// want is called when the owner wants to be replaced.
func (s *Supervisor) want() {
	select {
	case s.wanted <- struct{}{}:
	default:
	}
}

// notice is called when the owner is lost.
func (s *Supervisor) notice(owned time.Duration) {
	select {
	case s.lost <- owned:
	default:
	}
}

// Run starts workers as they are needed, until the context ends; then those that
// run are told to end, and killed when they do not.
func (s *Supervisor) Run(ctx context.Context) error {
	var b backoff
	running, needed, asked := 0, s.Always, false
	defer func() {
		for ; running > 0; running-- {
			<-s.exits
		}
	}()
	var due <-chan time.Time
	for {
		if needed && due == nil {
			wait := b.next(time.Now())
			if wait > 0 {
				s.Log.Warn("workers die one after the other, so the next one waits", "for", wait)
			}
			due = time.After(wait)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-due:
			due = nil
			n, again := s.replace(ctx, asked)
			running, needed, asked = running+n, again, asked && again
		case <-s.wanted:
			s.Log.Info("the agent is about to end: another one is started to take over")
			needed, asked, due = true, true, nil
		case owned := <-s.lost:
			s.Log.Warn("the agent has died without a word: another one is started", "served", owned.Round(time.Millisecond))
			if needed = true; owned >= served {
				b.deaths, due = min(b.deaths, 1), nil
			}
		case e := <-s.exits:
			running--
			switch {
			case e.err != nil:
				s.Log.Error("worker has died", "pid", e.pid, "how", e.err)
				needed = needed || !e.owner && !s.Holder.Owned() // of an owner's death we hear in another way
			case s.Always && running == 0:
				return nil
			default:
				s.Log.Info("worker has ended in order", "pid", e.pid)
			}
		}
	}
}

// replace starts a worker if one is still needed, or the owner has asked for it. It
// returns how many it has started, and whether it is to be tried again.
func (s *Supervisor) replace(ctx context.Context, asked bool) (started int, again bool) {
	if !s.Always && !asked && s.Holder.Owned() {
		s.Log.Info("no worker is needed: the agent is back")
		return 0, false
	}
	if err := s.start(ctx); err != nil {
		s.Log.Error("no worker started, trying again", "error", err)
		return 0, true
	}
	return 1, false
}

// start starts a worker, which ends with the context.
func (s *Supervisor) start(ctx context.Context) error {
	ours, theirs, err := pair()
	if err != nil {
		return err
	}
	cmd := exec.Command(s.Command[0], s.Command[1:]...) //nolint:noctx // the command is the administrator's; it is ended in order
	cmd.Env = append(os.Environ(), inheritedEnv+"="+cmp.Or(s.Socket, noSocket))
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = os.Stdout, os.Stderr, []*os.File{theirs}
	err = cmd.Start()
	_ = theirs.Close()
	if err != nil {
		return errors.Join(fmt.Errorf("start a worker: %w", err), ours.Close())
	}
	pid := cmd.Process.Pid
	s.Log.Info("worker started", "pid", pid)
	left := s.Holder.Attend(ours)
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(endTime):
			_ = cmd.Process.Kill()
		}
	})
	go s.Holder.watch(cmd.Process, ours, ended, s.silence)
	go func() {
		err := cmd.Wait()
		stop()
		close(ended)
		if err != nil {
			err = how(cmd.ProcessState, err)
		}
		s.exits <- exit{pid: pid, err: err, owner: <-left}
	}()
	return nil
}

// how says how a process ended.
func how(p *os.ProcessState, err error) error {
	st, ok := p.Sys().(syscall.WaitStatus)
	switch {
	case !ok:
		return err
	case st.Signaled() && st.Signal() == syscall.SIGKILL:
		return errors.New("killed (SIGKILL): by the kernel for want of memory, or by somebody; the kernel's log tells")
	case st.Signaled():
		return fmt.Errorf("ended by signal %d (%s)", st.Signal(), st.Signal())
	default:
		return fmt.Errorf("exit status %d", st.ExitStatus())
	}
}

// pair returns the two ends of a connection: ours, and the one that a worker gets.
func pair() (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("connect a worker: %w", err)
	}
	own := os.NewFile(uintptr(fds[0]), "worker")
	defer func() { _ = own.Close() }()
	theirs = os.NewFile(uintptr(fds[1]), "holder")
	conn, err := net.FileConn(own)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("connect a worker: %w", err), theirs.Close())
	}
	return conn.(*net.UnixConn), theirs, nil //nolint:forcetypeassert // made so
}

// backoff says how long the next start waits. The zero value is ready for use.
type backoff struct {
	began  time.Time // of the last start
	deaths int       // in a row
}

// next is called before each start.
func (b *backoff) next(now time.Time) time.Duration {
	if now.Sub(b.began) >= healthy {
		b.deaths = 0
	}
	var wait time.Duration
	if b.deaths > 1 { // the first start, and the first that replaces a dead one, do not wait
		wait = min(firstPause<<min(b.deaths-2, 16), lastPause)
	}
	b.deaths++
	b.began = now.Add(wait)
	return wait
}
