package kernel

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Read reads one packet with its virtio-net header into b, which should have
// room for 65535+VNetLen bytes, as the rest of a larger packet is lost. It
// never blocks, allocates or gives up the processor: the error is ErrAgain when
// there is no packet, ErrGone when the device was deleted.
func (t *TUN) Read(b []byte) (int, error) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(t.fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	runtime.KeepAlive(t)
	if errno != 0 {
		return 0, ioErr(errno)
	}
	return int(n), nil
}

// Write writes one packet with its virtio-net header. The kernel's receive path
// runs inside the call, up to the reading socket. It never blocks or allocates:
// the error is ErrInvalid when the kernel refuses this packet, ErrDown when the
// device is down, ErrGone when it was deleted.
func (t *TUN) Write(b []byte) (int, error) {
	n, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(t.fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	runtime.KeepAlive(t)
	if errno != 0 {
		return 0, ioErr(errno)
	}
	return int(n), nil
}

// ioErr turns the errors of read and write on a TUN into sentinels, without
// allocating: errno values below 256 fit into an interface for free.
func ioErr(errno unix.Errno) error {
	switch errno {
	case unix.EAGAIN:
		return ErrAgain
	case unix.EBADFD:
		return ErrGone
	case unix.EIO:
		return ErrDown
	case unix.EINVAL:
		return ErrInvalid
	case unix.ENOMEM, unix.ENOBUFS:
		return ErrNoMemory
	case unix.EBADF:
		return ErrClosed
	default:
		return errno
	}
}

// tunErr turns the errors of ioctls on a TUN into sentinels.
func tunErr(err error) error {
	switch {
	case errors.Is(err, unix.EBADFD):
		return ErrGone
	case errors.Is(err, unix.EBUSY):
		return ErrBusy
	case errors.Is(err, unix.EEXIST):
		return ErrExists
	default:
		return err
	}
}

// Close lets go of the device at once: a persistent one stays without carrier,
// others vanish. Remove the TUN from its Poller first. Reads and writes that
// come later get ErrClosed; they can never hit a file that took the number,
// because the number stays reserved until the TUN is garbage. That is cheaper
// than counting every read and write.
func (t *TUN) Close() error {
	if t.closed {
		return nil
	}
	hole, err := unix.Open("/", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("close TUN %q: %w", t.name, err)
	}
	defer unix.Close(hole)
	if err := unix.Dup3(hole, t.fd, unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("close TUN %q: %w", t.name, err)
	}
	t.closed = true
	return nil
}
