package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// processes are what a path's traffic costs processor time in, besides its ends.
type processes []int

// clock is the processor time that threads have taken, in nanoseconds by thread.
// Work that the kernel does for packets while a thread runs is in its time, as on
// every kernel without CONFIG_IRQ_TIME_ACCOUNTING; what it leaves to its own threads
// is in theirs.
type clock map[string]float64

// read reads the clocks of all threads of the processes. A process that is gone has
// taken nothing more.
func (p processes) read() (clock, error) {
	out := clock{}
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

// since returns the seconds between two readings.
func (c clock) since(before clock) float64 {
	sum := 0.0
	for path, ns := range c {
		sum += ns - before[path]
	}
	return sum / 1e9
}

// softirqThreads are the kernel's threads for packets that nobody's thread was there
// for.
func softirqThreads() (processes, error) {
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return nil, err
	}
	var out processes
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
