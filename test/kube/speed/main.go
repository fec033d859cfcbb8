// Command speed measures netctl on real clusters of test/kube, against the
// reference plugins (ptp and host-local) where there is something to compare.
//
//	speed [-quick] [-run REGEXP] [-keep]
//
// It brings up clusters of its own, one for each part, and takes them down again.
// Every result is one line on standard output:
//
//	figure NAME VALUE UNIT
//	ratio NAME VALUE ours=... theirs=... unit=...
//
// All times are taken by this process, from events that it watches and packets
// that it sends, with the monotonic clock: what the API keeps has whole seconds.
// docs/performance.md says what the names mean.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/netctl/netctl/test/figures"
)

// speed is a run of the program.
type speed struct {
	quick, keep bool
	kube        string // the program of test/kube
	dir         string // for that and for sockets, removed at the end
	out, log    io.Writer
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "speed:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) (err error) {
	flags := flag.NewFlagSet("speed", flag.ContinueOnError)
	s := &speed{out: os.Stdout, log: os.Stderr}
	flags.BoolVar(&s.quick, "quick", false, "few pods, services and changes")
	flags.BoolVar(&s.keep, "keep", false, "leave the clusters up, and use those that are")
	pattern := flags.String("run", ".", "what to measure: pods, scale")
	if err := flags.Parse(args); err != nil {
		return err
	}
	chosen, err := regexp.Compile(*pattern)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	if s.dir, err = os.MkdirTemp("/run", "netctl-speed"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(s.dir)) }()
	s.kube = filepath.Join(s.dir, "kube")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", s.kube, "./test/kube").CombinedOutput(); err != nil {
		return fmt.Errorf("build test/kube: %w: %s", err, out)
	}
	for _, part := range []struct {
		name string
		run  func(*speed, context.Context) error
	}{
		{"pods", (*speed).pods},
		{"scale", (*speed).scale},
	} {
		if !chosen.MatchString(part.name) {
			continue
		}
		s.load()
		if err := part.run(s, ctx); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
		s.load()
	}
	return nil
}

// pick returns the first value for quick runs, else the second.
func pick[T any](s *speed, quick, full T) T {
	if s.quick {
		return quick
	}
	return full
}

// load prints how busy the machine is: figures of a busy one say little.
func (s *speed) load() {
	data, err := os.ReadFile("/proc/loadavg")
	if f := strings.Fields(string(data)); err == nil && len(f) > 0 {
		fmt.Fprintf(s.out, "figure load-average %s tasks\n", f[0])
	}
}

func (s *speed) figure(name string, value float64, unit string) {
	fmt.Fprintf(s.out, "figure %s %.4g %s\n", name, value, unit)
}

// times prints the median, the 99th percentile and the largest of durations.
func (s *speed) times(name string, all []time.Duration) {
	s.figure(name+"-p50", figures.MS(figures.Quantile(all, 0.50)), "ms")
	s.figure(name+"-p99", figures.MS(figures.Quantile(all, 0.99)), "ms")
	s.figure(name+"-max", figures.MS(figures.Quantile(all, 1)), "ms")
}

// ratio prints ours against theirs, which took turns: the median over the pairs,
// so that a machine whose speed drifts does not decide it.
func (s *speed) ratio(name string, ours, theirs []time.Duration) {
	ratios := make([]float64, 0, len(ours))
	for i := range min(len(ours), len(theirs)) {
		ratios = append(ratios, ours[i].Seconds()/theirs[i].Seconds())
	}
	fmt.Fprintf(s.out, "ratio %s %.3f ours=%.4g theirs=%.4g unit=ms\n",
		name, figures.Quantile(ratios, 0.5), figures.MS(figures.Quantile(ours, 0.5)), figures.MS(figures.Quantile(theirs, 0.5)))
}
