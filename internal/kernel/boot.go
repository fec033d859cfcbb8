package kernel

import (
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// BootID names this run of the kernel: it changes with every boot. What
// outlives a process but not a boot is marked with it.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot ID: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// BootClock returns the seconds since boot, time spent suspended aside. All
// processes agree on it, and setting the time does not move it. It is one
// system call without allocation: call it once per batch, not per packet.
func BootClock() uint32 {
	var ts unix.Timespec
	_, _, errno := unix.RawSyscall(unix.SYS_CLOCK_GETTIME, unix.CLOCK_MONOTONIC, uintptr(unsafe.Pointer(&ts)), 0)
	if errno != 0 {
		// Only a bad clock number or address can fail (clock_gettime(2)).
		panic("kernel: no monotonic clock: " + errno.Error())
	}
	return uint32(ts.Sec)
}
