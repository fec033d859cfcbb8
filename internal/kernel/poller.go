package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// Event is one ready descriptor.
type Event struct {
	Token    uint64 // as given to Add
	Readable bool
	Gone     bool // error or hang-up: of a TUN, that the device was deleted
}

// wakeToken marks the eventfd among a Poller's descriptors.
const wakeToken = ^uint64(0)

// pollBatch is how many events one Wait returns at most.
const pollBatch = 256

// Poller waits for descriptors to become readable. It is level-triggered: a
// descriptor that still has packets after a Wait is reported by the next one
// again, so a worker may stop after its batch and be fair to the others.
//
// Wait belongs to one goroutine; the other methods may be called by any. A
// Poller does not own the descriptors.
type Poller struct {
	epoll int
	raw   [pollBatch]unix.EpollEvent // used by Wait only
	count [8]byte                    // used by Wait only
	one   [8]byte                    // the number 1, immutable after NewPoller

	mu     sync.RWMutex
	event  int // guarded by mu against use after Close
	closed bool
}

// NewPoller returns an empty Poller.
func NewPoller() (*Poller, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create epoll: %w", err)
	}
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(epoll)
		return nil, fmt.Errorf("create eventfd: %w", err)
	}
	p := &Poller{epoll: epoll, event: event}
	binary.NativeEndian.PutUint64(p.one[:], 1)
	if err := p.Add(event, wakeToken); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// Add watches fd and reports it with the token, which may be anything but
// ^uint64(0). A descriptor that is readable already is reported by the next
// Wait. The error wraps ErrExists when fd is watched already.
func (p *Poller) Add(fd int, token uint64) error {
	if token == wakeToken && fd != p.event {
		return errors.New("watch descriptor: token is reserved")
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(uint32(token)), Pad: int32(uint32(token >> 32))}
	err := p.control(unix.EPOLL_CTL_ADD, fd, &ev)
	if errors.Is(err, unix.EEXIST) {
		err = ErrExists
	}
	if err != nil {
		return fmt.Errorf("watch descriptor %d: %w", fd, err)
	}
	return nil
}

// Del stops watching fd; it succeeds when fd is not watched. Call it before the
// descriptor is closed: while another process holds a copy, the kernel keeps
// reporting a closed descriptor. An event that Wait has already returned may
// still be in its caller's hands.
func (p *Poller) Del(fd int) error {
	err := p.control(unix.EPOLL_CTL_DEL, fd, nil)
	if err == nil || errors.Is(err, ErrClosed) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EBADF) || errors.Is(err, unix.EPERM) {
		return nil
	}
	return fmt.Errorf("stop watching descriptor %d: %w", fd, err)
}

func (p *Poller) control(op, fd int, ev *unix.EpollEvent) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.closed {
		return ErrClosed
	}
	return unix.EpollCtl(p.epoll, op, fd, ev)
}

// Wait fills events with what is ready, waiting up to timeoutMs milliseconds: 0
// only looks, without giving up the processor, -1 waits for ever. It returns 0
// after the timeout, a Wake or a signal. It does not allocate.
func (p *Poller) Wait(events []Event, timeoutMs int) (int, error) {
	room := p.raw[:min(len(events), pollBatch)]
	n, err := epollWait(p.epoll, room, timeoutMs)
	if err != nil {
		return 0, err
	}
	out := 0
	for i := range room[:n] {
		e := &room[i]
		token := uint64(uint32(e.Fd)) | uint64(uint32(e.Pad))<<32
		if token == wakeToken {
			p.drain()
			continue
		}
		events[out] = Event{
			Token:    token,
			Readable: e.Events&unix.EPOLLIN != 0,
			Gone:     e.Events&(unix.EPOLLERR|unix.EPOLLHUP) != 0,
		}
		out++
	}
	return out, nil
}

// Wake ends a Wait that is in progress, or makes the next one return at once.
// Several Wakes before that count as one.
func (p *Poller) Wake() {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.closed {
		return
	}
	// Full means that a wake is pending, which is all that is wanted.
	_, _ = unix.Write(p.event, p.one[:])
}

// drain takes a pending wake.
func (p *Poller) drain() {
	_, _ = unix.Read(p.event, p.count[:])
}

// Close ends the Poller. No Wait may be in progress.
func (p *Poller) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	return errors.Join(unix.Close(p.epoll), unix.Close(p.event))
}
