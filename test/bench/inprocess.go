package main

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"

	"github.com/netctl/netctl/test/bench/results"
)

// inProcess runs the Go benchmarks whose figures have marks: the walk of a packet,
// with one flow and with a million. Each prints lines of its own; the last of a name
// is that of the longest run.
func (b *bench) inProcess(ctx context.Context) error {
	values := map[string][]float64{}
	var order []string
	for range pick(b, 1, 5) {
		cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-cpu", "1", "-benchtime", pick(b, "100ms", "500ms"),
			"-bench", "^BenchmarkWalk$/^(known-flow|known-service|known-overlay)|^BenchmarkWalkMillionFlows$|^BenchmarkWalkNewFlow$", "./internal/datapath")
		cmd.Dir = b.repo
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("benchmarks of internal/datapath: %w: %s", err, out)
		}
		last := map[string]float64{}
		for line := range bytes.Lines(out) {
			_, rest, ok := strings.Cut(string(line), "figure ")
			fields := strings.Fields(rest)
			if !ok || len(fields) < 3 || fields[2] != "ns" {
				continue
			}
			v, err := strconv.ParseFloat(fields[1], 64)
			if err != nil {
				return fmt.Errorf("benchmarks of internal/datapath: %q: %w", line, err)
			}
			last[fields[0]] = v
			if values[fields[0]] == nil {
				values[fields[0]], order = []float64{}, append(order, fields[0])
			}
		}
		for name, v := range last {
			values[name] = append(values[name], v)
		}
	}
	for _, name := range order {
		b.add(results.Figure(name, "ns", values[name]))
	}
	return nil
}
