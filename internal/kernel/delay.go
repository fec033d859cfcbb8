package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Delay tells how long threads have waited for a processor although they could
// run: what others took from them. It belongs to one goroutine, which may move from
// thread to thread.
type Delay struct {
	fd     int // of thread's statistics, -1: none yet
	thread int
	buf    [64]byte
}

// NewDelay returns a Delay.
func NewDelay() *Delay { return &Delay{fd: -1} }

// Waited returns the calling thread and how long it has waited since it began. It
// costs two system calls on the same thread as before, and does not allocate then.
func (d *Delay) Waited() (thread int, waited time.Duration, err error) {
	id, _, _ := unix.RawSyscall(unix.SYS_GETTID, 0, 0, 0) // cannot fail
	if thread = int(id); d.fd < 0 || thread != d.thread {
		if err := d.follow(thread); err != nil {
			return thread, 0, err
		}
	}
	n, _, errno := unix.RawSyscall6(unix.SYS_PREAD64, uintptr(d.fd), uintptr(unsafe.Pointer(&d.buf)), uintptr(len(d.buf)), 0, 0, 0)
	if errno != 0 {
		return thread, 0, fmt.Errorf("read how long thread %d waited: %w", thread, errno)
	}
	waited, err = parseWaited(d.buf[:n])
	return thread, waited, err
}

func (d *Delay) follow(thread int) error {
	if err := d.Close(); err != nil {
		return err
	}
	fd, err := unix.Open("/proc/thread-self/schedstat", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the statistics of thread %d: %w", thread, err)
	}
	d.fd, d.thread = fd, thread
	return nil
}

// parseWaited takes the second of three numbers: the time that a thread ran, that it
// waited, both in nanoseconds, and how often it ran.
func parseWaited(line []byte) (time.Duration, error) {
	_, rest, _ := bytes.Cut(line, []byte(" "))
	field, _, ok := bytes.Cut(rest, []byte(" "))
	n, err := strconv.ParseInt(string(field), 10, 64) // a short string on the stack
	if !ok && err == nil {
		err = errors.New("it ends there")
	}
	if err != nil {
		return 0, fmt.Errorf("find a thread's waiting time in %q: %w", line, err)
	}
	return time.Duration(n), nil
}

// Close lets go of the statistics; Waited opens them again.
func (d *Delay) Close() error {
	if d.fd < 0 {
		return nil
	}
	fd := d.fd
	d.fd = -1
	if err := unix.Close(fd); err != nil {
		return fmt.Errorf("close the statistics of thread %d: %w", d.thread, err)
	}
	return nil
}
