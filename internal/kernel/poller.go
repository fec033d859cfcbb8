package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

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
//
// It waits where the Go runtime waits for all its descriptors, one epoll inside
// another: a goroutine that blocks in epoll_wait itself holds its processor
// until sysmon takes it away, and a router that often waits for microseconds
// keeps sysmon busy. This way costs a tenth less per byte of TCP, and a quarter
// less time per round trip through the tunnel.
type Poller struct {
	epoll int
	file  *os.File        // epoll's owner, known to the runtime's poller
	conn  syscall.RawConn // of file
	look  func(fd uintptr) bool

	found int   // by look; used by Wait only
	room  int   // events that look may find; used by Wait only
	fault error // of look; used by Wait only

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
	if err := unix.SetNonblock(epoll, true); err != nil { // else the runtime would not wait for it
		unix.Close(epoll)
		return nil, fmt.Errorf("create epoll: %w", err)
	}
	p := &Poller{epoll: epoll, file: os.NewFile(uintptr(epoll), "epoll")}
	p.look = p.lookAgain
	p.conn, err = p.file.SyscallConn()
	if err == nil {
		err = p.file.SetReadDeadline(time.Time{}) // fails where the runtime cannot wait for it
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create epoll: %w", err), p.file.Close())
	}
	p.event, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create eventfd: %w", err), p.file.Close())
	}
	binary.NativeEndian.PutUint64(p.one[:], 1)
	if err := p.Add(p.event, wakeToken); err != nil {
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
// after the timeout or a Wake. It does not allocate.
func (p *Poller) Wait(events []Event, timeoutMs int) (int, error) {
	p.room = min(len(events), pollBatch)
	p.lookAgain(0)
	if timeoutMs != 0 && p.found == 0 && p.fault == nil {
		p.wait(timeoutMs)
	}
	if p.fault != nil {
		return 0, p.fault
	}
	out := 0
	for i := range p.raw[:p.found] {
		e := &p.raw[i]
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

// lookAgain sees what is ready, and whether there is anything to say.
func (p *Poller) lookAgain(uintptr) bool {
	p.found, p.fault = epollLook(p.epoll, p.raw[:p.room])
	return p.found > 0 || p.fault != nil
}

// wait parks the goroutine until something is ready or the time is over.
func (p *Poller) wait(timeoutMs int) {
	if timeoutMs > 0 {
		if p.fault = p.file.SetReadDeadline(time.Now().Add(time.Duration(timeoutMs) * time.Millisecond)); p.fault != nil {
			return
		}
		defer func() { p.fault = errors.Join(p.fault, p.file.SetReadDeadline(time.Time{})) }()
	}
	if err := p.conn.Read(p.look); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		p.found, p.fault = 0, fmt.Errorf("wait for descriptors: %w", err)
	}
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
	return errors.Join(p.file.Close(), unix.Close(p.event))
}
