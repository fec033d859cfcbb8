package kernel

import "errors"

var (
	// ErrAgain means that a non-blocking call has nothing to do now: no
	// packet to read, no room to write.
	ErrAgain = errors.New("try again")
	// ErrGone means that the TUN device behind a descriptor was deleted,
	// usually with its namespace. It never comes back: close the TUN.
	ErrGone = errors.New("device is gone")
	// ErrDown means that the TUN device exists and is administratively down.
	ErrDown = errors.New("device is down")
	// ErrInvalid means that the kernel refused one packet, usually for its
	// virtio-net header. The TUN is fine.
	ErrInvalid = errors.New("kernel refused the packet")
	// ErrNoMemory means that the kernel had no memory for one packet.
	ErrNoMemory = errors.New("kernel has no memory for the packet")
	// ErrClosed means that this value was closed by its owner.
	ErrClosed = errors.New("closed")
	// ErrExists means that something of that name is there already.
	ErrExists = errors.New("already exists")
	// ErrNotFound means that there is no interface of that name or index.
	ErrNotFound = errors.New("no such interface")
	// ErrBusy means that another process holds the device's descriptor.
	ErrBusy = errors.New("held by another process")
	// ErrChanged means that an interface is not the one that was recorded:
	// same name, other index, or not a TUN.
	ErrChanged = errors.New("not the recorded interface")
	// ErrNotNamespace means that a path or descriptor is no network
	// namespace.
	ErrNotNamespace = errors.New("not a network namespace")
	// ErrReadOnly means that a sysctl cannot be written here because
	// /proc/sys is mounted read-only.
	ErrReadOnly = errors.New("/proc/sys is read-only")
	// ErrNoSysctl means that this kernel has no such sysctl, as when IPv6 is
	// switched off at boot.
	ErrNoSysctl = errors.New("no such sysctl")
	// ErrForeignRoute means that somebody else's route to the same prefix is
	// in place; it is left alone.
	ErrForeignRoute = errors.New("another program's route is in the way")
	// ErrNoRoute means that the kernel has no route to an address.
	ErrNoRoute = errors.New("no route")
	// ErrTruncated means that a message was larger than the room for it.
	ErrTruncated = errors.New("message truncated")
)
