// Command bench measures netctl on this machine as a user meets it: through the
// real plugin, real agents and real pods, in labs of its own that are gone
// afterwards, and beside each path what it will be compared with. What can be
// measured inside one process is a Go benchmark beside the code; test/bench.sh runs
// both.
//
//	bench [-quick] [-pairs N] [-net] [-run REGEXP] [-netctl bin/netctl] [-against OTHER]
//
// Every result is one line on standard output:
//
//	figure NAME VALUE UNIT [interval=... pairs=...] [mark=... met|missed]
//	ratio NAME VALUE ours=... theirs=... unit=... [interval=... pairs=...] [mark=... met|missed]
//
// A ratio comes from pairs of runs that take turns, ours first, so that a machine
// whose speed drifts does not decide it: it is the median over the pairs with the
// interval in which the median lies, as ours and theirs are medians of their own.
// With -against, theirs is another binary of netctl on the same path.
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
	"strings"
	"syscall"
	"time"

	"github.com/netctl/netctl/test/bench/cost"
	"github.com/netctl/netctl/test/bench/ends"
	"github.com/netctl/netctl/test/bench/results"
	"github.com/netctl/netctl/test/bench/rivals"
	"github.com/netctl/netctl/test/figures"
)

// root is where labs and scratch files of the suite are: in memory, and by a name
// under which the next run finds what a crashed one has left.
const root = "/run/netctl-bench"

// bench is what every benchmark gets.
type bench struct {
	netctl  string // the binary under test
	against string // another one, in place of the rivals; "": none
	quick   bool
	pairs   int
	pin     bool
	chosen  *regexp.Regexp
	dir     string // for labs and scratch files, removed at the end
	repo    string // the source tree
	tools   rivals.Tools
	// loadBefore is the machine's load average at the start.
	loadBefore string
	out        io.Writer
	results    []results.Result
	ends       map[string]*ends.End // by namespace, those that run
}

// group is measurements that share what is built for them.
type group struct {
	net   bool // carries packets; else it is about pods and agents
	names []string
	run   func(*bench, context.Context) error
}

func groups() []group {
	return []group{
		{names: []string{"lab"}, run: (*bench).labUp},
		{names: []string{"cni"}, run: (*bench).cni},
		{net: true, names: sameNodeNames(), run: (*bench).sameNode},
		{net: true, names: tunnelNames(), run: (*bench).tunnel},
		{net: true, names: jumboNames(), run: (*bench).jumboTunnel},
		{net: true, names: serviceNames(), run: (*bench).services},
		{net: true, names: egressNames(), run: (*bench).egress},
		{net: true, names: fairnessNames(), run: (*bench).fairness},
		{net: true, names: growthNames(), run: (*bench).growth},
		{net: true, names: []string{"full-load"}, run: (*bench).fullLoad},
		{net: true, names: []string{"in-process"}, run: (*bench).inProcess},
	}
}

func main() {
	// This program also plays the parts that need a process of their own.
	for name, play := range map[string]func() error{ends.Command: ends.Main, rivals.RelayCommand: rivals.RelayMain} {
		if len(os.Args) == 2 && os.Args[1] == name {
			if err := play(); err != nil {
				fmt.Fprintln(os.Stderr, name+":", err)
				os.Exit(1)
			}
			return
		}
	}
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
	b := &bench{dir: root, out: os.Stdout, ends: map[string]*ends.End{}, loadBefore: firstOf("/proc/loadavg")}
	netctl := flags.String("netctl", "bin/netctl", "the binary to measure")
	against := flags.String("against", "", "another netctl that takes the rivals' turns")
	flags.BoolVar(&b.quick, "quick", false, "few and short runs")
	flags.IntVar(&b.pairs, "pairs", 0, "pairs of runs of each ratio; 0: 20, or 3 with -quick")
	flags.BoolVar(&b.pin, "pin", true, "keep each path's ends on processors of their own, the first and the last")
	onlyNet := flags.Bool("net", false, "only what carries packets")
	pattern := flags.String("run", ".", "measurements to run, by their names")
	flags.StringVar(&b.repo, "repo", ".", "netctl's source tree, for the rivals' programs and the Go benchmarks")
	record := flags.String("o", "dist/bench-net.jsonl", "file for the results, as JSON lines")
	document := flags.String("docs", "", "document for the tables of all results in that file, with a chart beside it; \"\": none")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if b.chosen, err = regexp.Compile(*pattern); err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	if b.pairs == 0 {
		b.pairs = pick(b, 3, 20)
	}
	if os.Getuid() != 0 {
		return errors.New("namespaces of the comparisons need root")
	}
	if b.netctl, err = program(*netctl); err != nil {
		return err
	}
	if *against != "" {
		if b.against, err = program(*against); err != nil {
			return err
		}
	}
	if b.repo, err = filepath.Abs(b.repo); err != nil {
		return err
	}
	b.tools = rivals.Tools{Dir: filepath.Join(b.repo, "test", "bench", "tools"), Out: b.dir}
	var chosen []group
	for _, g := range groups() {
		if (g.net || !*onlyNet) && b.any(g.names...) {
			chosen = append(chosen, g)
		}
	}
	if len(chosen) == 0 { // what there is already
		return b.write(*record, *document)
	}
	return errors.Join(b.runAll(ctx, chosen), b.write(*record, *document))
}

// runAll runs groups on a machine that is ours, and leaves nothing on it.
func (b *bench) runAll(ctx context.Context, chosen []group) (err error) {
	unlock, err := b.claim(ctx)
	if err != nil {
		return err
	}
	light, err := cost.Heavy()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
	defer func() { err = errors.Join(err, b.clean(), light(), unlock()) }()
	var failed []error
	for _, g := range chosen {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := errors.Join(g.run(b, ctx), b.closeEnds("")); err != nil { // the others can go on
			failed = append(failed, fmt.Errorf("%s: %w", g.names[0], err))
		}
	}
	return errors.Join(failed...)
}

// write keeps the results, and puts them and those of earlier runs into a document.
func (b *bench) write(record, document string) error {
	if b.against != "" { // they are about two binaries, and not about netctl
		return nil
	}
	if err := results.Write(record, b.results); err != nil || document == "" {
		return err
	}
	all, err := results.Read(record)
	if err != nil {
		return err
	}
	return errors.Join(results.WriteDocument(document, b.conditions(), all),
		results.WriteChart(strings.TrimSuffix(document, filepath.Ext(document))+".svg", all))
}

// program finds a binary.
func program(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%w: run 'make build' first", err)
	}
	return path, nil
}

// any reports whether one of the names is to be measured.
func (b *bench) any(names ...string) bool {
	return slices.ContainsFunc(names, b.chosen.MatchString)
}

// pick returns the first value for quick runs, else the second.
func pick[T any](b *bench, quick, full T) T {
	if b.quick {
		return quick
	}
	return full
}

// add prints a result and keeps it.
func (b *bench) add(r results.Result) {
	fmt.Fprintln(b.out, r)
	b.results = append(b.results, r)
}

// figure is a result of one value.
func (b *bench) figure(name string, value float64, unit string) {
	b.add(results.Figure(name, unit, []float64{value}))
}

// times prints the median and the 99th percentile of durations, in ms.
func (b *bench) times(name string, all []time.Duration) {
	b.figure(name+"-p50", figures.MS(figures.Quantile(all, 0.50)), "ms")
	b.figure(name+"-p99", figures.MS(figures.Quantile(all, 0.99)), "ms")
}
