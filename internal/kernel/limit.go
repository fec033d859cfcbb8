package kernel

import (
	"fmt"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// FileLimit returns how many descriptors this process may have open. The
// runtime has raised the soft limit to the hard one before main (package
// syscall, for every Go program since 1.19), and gives children the old one
// back, which raising it here would prevent. So what is read is what there is.
func FileLimit() (int, error) {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return 0, fmt.Errorf("read the limit of open files: %w", err)
	}
	return int(min(lim.Cur, math.MaxInt32)), nil
}

// OpenFiles returns how many descriptors this process has open, without the one
// that it takes to count them.
func OpenFiles() (int, error) {
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0, fmt.Errorf("count open files: %w", err)
	}
	return len(open) - 1, nil
}
