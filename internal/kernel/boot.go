package kernel

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// BootClock returns the seconds since the machine was started, suspended time
// included. All processes agree on it, so it may age what outlives one.
func BootClock() uint32 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0 // no Linux since 2.6.39 is without it
	}
	return uint32(ts.Sec) //nolint:gosec // 136 years
}

// BootID names this boot of the machine: what is remembered under another one
// is about a machine that is gone.
func BootID() (string, error) {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the boot id: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}
