package kernel

import (
	"bytes"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Crowd tells how many threads of the whole machine want a processor right now.
// It belongs to one goroutine.
type Crowd struct {
	file *os.File
	fd   int
	buf  [64]byte
}

// OpenCrowd opens what the kernel says of it.
func OpenCrowd() (*Crowd, error) {
	f, err := os.Open("/proc/loadavg")
	if err != nil {
		return nil, fmt.Errorf("count runnable threads: %w", err)
	}
	return &Crowd{file: f, fd: int(f.Fd())}, nil
}

// Runnable counts them, the caller's included. It costs a system call of 1.5 µs,
// and does not allocate.
func (c *Crowd) Runnable() (int, error) {
	n, err := unix.Pread(c.fd, c.buf[:], 0)
	if err != nil {
		return 0, fmt.Errorf("count runnable threads: %w", err)
	}
	return parseRunnable(c.buf[:n])
}

// parseRunnable takes the count out of "0.20 0.18 0.12 3/80 11206".
func parseRunnable(line []byte) (int, error) {
	rest := line
	for range 3 {
		_, rest, _ = bytes.Cut(rest, []byte(" "))
	}
	count, _, _ := bytes.Cut(rest, []byte("/"))
	n, err := strconv.Atoi(string(count)) // a short string on the stack
	if err != nil {
		return 0, fmt.Errorf("count runnable threads in %q: %w", line, err)
	}
	return n, nil
}

// Close ends it.
func (c *Crowd) Close() error { return c.file.Close() }
