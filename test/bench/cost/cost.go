// Package cost measures what a path costs this machine: processor time of the
// processes that have to do with it, and their memory.
package cost

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Processes are what a path's traffic costs processor time in, besides its ends.
type Processes []int

// Clock is the processor time that threads have taken, in nanoseconds by thread.
// Work that the kernel does for packets while a thread runs is in its time, as on
// every kernel without CONFIG_IRQ_TIME_ACCOUNTING; what it leaves to its own threads
// is in theirs.
type Clock map[string]float64

// Read reads the clocks of all threads of the processes. A process that is gone has
// taken nothing more.
func (p Processes) Read() (Clock, error) {
	out := Clock{}
	for _, pid := range p {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		if err != nil {
			return nil, err
		}
		for _, path := range tasks {
			data, err := os.ReadFile(path)
			if err != nil {
				continue // it has ended
			}
			text, _, _ := strings.Cut(string(data), " ")
			ns, err := strconv.ParseFloat(text, 64)
			if err != nil {
				return nil, fmt.Errorf("read %s: %w", path, err)
			}
			out[path] = ns
		}
	}
	return out, nil
}

// Since returns the seconds between two readings.
func (c Clock) Since(before Clock) float64 {
	sum := 0.0
	for path, ns := range c {
		sum += ns - before[path]
	}
	return sum / 1e9
}

// SoftirqThreads are the kernel's threads for packets that nobody's thread was there
// for.
func SoftirqThreads() (Processes, error) {
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return nil, err
	}
	var out Processes
	for _, path := range names {
		data, err := os.ReadFile(path)
		if err != nil || !strings.HasPrefix(string(data), "ksoftirqd/") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			return nil, err
		}
		out = append(out, pid)
	}
	return out, nil
}
