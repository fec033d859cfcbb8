// Command bench measures netctl on this machine as a user meets it: through the
// real plugin, real agents and real pods, in labs of its own that are gone
// afterwards. What can be measured inside one process is a Go benchmark beside
// the code; test/bench.sh runs both.
//
//	bench [-quick] [-run REGEXP] [-netctl bin/netctl]
//
// Every result is one line on standard output:
//
//	figure NAME VALUE UNIT
//	ratio NAME VALUE ours=... theirs=... unit=...
//
// A ratio comes from pairs of runs that take turns, ours first, so that a
// machine whose speed drifts does not decide it: it is the median over the
// pairs, as ours and theirs are medians of their own.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"
	"time"
)

// bench is what every benchmark gets.
type bench struct {
	netctl string // the binary under test
	quick  bool
	dir    string // for labs and scratch files, removed at the end
	out    io.Writer
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) (err error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	netctl := flags.String("netctl", "bin/netctl", "the binary to measure")
	quick := flags.Bool("quick", false, "few and short runs")
	pattern := flags.String("run", ".", "benchmarks to run: lab, cni, same-node, cross-node")
	if err := flags.Parse(args); err != nil {
		return err
	}
	chosen, err := regexp.Compile(*pattern)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	if os.Getuid() != 0 {
		return errors.New("namespaces of the comparisons need root")
	}
	b := &bench{quick: *quick, out: os.Stdout}
	if b.netctl, err = filepath.Abs(*netctl); err != nil {
		return err
	}
	if _, err := os.Stat(b.netctl); err != nil {
		return fmt.Errorf("%w: run 'make build' first", err)
	}
	if b.dir, err = os.MkdirTemp("/run", "netctl-bench"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	for _, part := range []struct {
		name string
		run  func(*bench, context.Context) error
	}{
		{"lab", (*bench).labUp},
		{"cni", (*bench).cni},
		{"same-node", (*bench).sameNode},
		{"cross-node", (*bench).crossNode},
	} {
		if !chosen.MatchString(part.name) {
			continue
		}
		if err := part.run(b, ctx); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	return nil
}

// pick returns the first value for quick runs, else the second.
func pick[T any](b *bench, quick, full T) T {
	if b.quick {
		return quick
	}
	return full
}

// figure prints a result.
func (b *bench) figure(name string, value float64, unit string) {
	fmt.Fprintf(b.out, "figure %s %.4g %s\n", name, value, unit)
}

// times prints the median and the 99th percentile of durations, in ms.
func (b *bench) times(name string, all []time.Duration) {
	b.figure(name+"-p50", ms(quantile(all, 0.50)), "ms")
	b.figure(name+"-p99", ms(quantile(all, 0.99)), "ms")
}

func ms(d time.Duration) float64 { return d.Seconds() * 1e3 }

// quantile returns the smallest value that at least the share q of all values
// does not exceed; 0 when there are none.
func quantile[T float64 | time.Duration](all []T, q float64) T {
	if len(all) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(all))
	i := int(q*float64(len(sorted)) + 0.999999)
	return sorted[min(max(i, 1), len(sorted))-1]
}

// pairs runs ours and theirs in turns and prints the ratio.
func (b *bench) pairs(ctx context.Context, name, unit string, ours, theirs func() (float64, error)) error {
	n := pick(b, 3, 7)
	var a, t, ratios []float64
	for range n {
		if err := ctx.Err(); err != nil {
			return err
		}
		x, err := ours()
		if err != nil {
			return fmt.Errorf("%s, ours: %w", name, err)
		}
		y, err := theirs()
		if err != nil {
			return fmt.Errorf("%s, theirs: %w", name, err)
		}
		a, t, ratios = append(a, x), append(t, y), append(ratios, x/y)
	}
	fmt.Fprintf(b.out, "ratio %s %.3f ours=%.4g theirs=%.4g unit=%s\n",
		name, quantile(ratios, 0.5), quantile(a, 0.5), quantile(t, 0.5), unit)
	return nil
}
