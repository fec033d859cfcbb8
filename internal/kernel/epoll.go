package kernel

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// epollWait is epoll_wait that keeps the processor when it does not wait: a raw
// call is a third cheaper, and a spinning worker makes many of them.
func epollWait(epoll int, events []unix.EpollEvent, timeoutMs int) (int, error) {
	if timeoutMs != 0 {
		n, err := unix.EpollWait(epoll, events, timeoutMs)
		if err == unix.EINTR {
			return 0, nil
		}
		if err != nil {
			return 0, fmt.Errorf("wait for descriptors: %w", err)
		}
		return n, nil
	}
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epoll),
		uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), 0, 0, 0)
	if errno == unix.EINTR {
		return 0, nil
	}
	if errno != 0 {
		return 0, fmt.Errorf("look at descriptors: %w", errno)
	}
	return int(n), nil
}
