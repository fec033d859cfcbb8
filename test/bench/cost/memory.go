package cost

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Memory returns what a process has, in MB by the names of /proc/PID/status.
func Memory(pid int) (map[string]float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil, err
	}
	out := map[string]float64{}
	for line := range strings.Lines(string(data)) {
		key, rest, _ := strings.Cut(line, ":")
		if kb, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64); err == nil {
			out[key] = kb * 1024 / 1e6
		}
	}
	return out, nil
}
