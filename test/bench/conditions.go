package main

import (
	"fmt"
	"os"
	goruntime "runtime"
	"strings"
)

// conditions says where the results are from.
func (b *bench) conditions() string {
	cpu := "an unknown processor"
	if data, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(data)) {
			if key, value, _ := strings.Cut(line, ":"); strings.TrimSpace(key) == "model name" {
				cpu = strings.TrimSpace(value)
				break
			}
		}
	}
	return fmt.Sprintf("%d processors (%s), Linux %s, %s; the newest run of each line, in which the load average went from %s to %s.",
		goruntime.NumCPU(), cpu, version(firstOf("/proc/sys/kernel/osrelease")), goruntime.Version(), b.loadBefore, firstOf("/proc/loadavg"))
}

// version is a kernel's, without what its builder calls it.
func version(release string) string {
	parts := strings.SplitN(release, ".", 3)
	return strings.Join(parts[:min(2, len(parts))], ".")
}

// firstOf is the first word of a file.
func firstOf(path string) string {
	data, err := os.ReadFile(path)
	if f := strings.Fields(string(data)); err == nil && len(f) > 0 {
		return f[0]
	}
	return "unknown"
}
