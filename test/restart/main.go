// Command restart shows what a restart of the agent does to traffic: it runs load
// through two nodes, has the agents crash, follow each other and be deleted, and
// says what the load has seen.
//
//	restart [-quick] [-kube] [-markdown] [-loads REGEXP] [-kinds REGEXP]
//
// The load is UDP with numbers, TCP streams, idle TCP connections, new ones, DNS and
// connections that end in sockets of the agent (package load). It runs in a lab,
// which works anywhere and is the default, or on a real cluster of test/kube.
//
// Every result is one line on standard output, and all of them a table after that:
//
//	figure restart-KIND-LOAD-MEASURE VALUE UNIT
//
// Times are published; they depend on the machine. What must not happen is
// asserted: a connection through the cluster that is reset or lost, a packet that
// reaches another backend than before, an agent that grows. Then the exit code is 1.
// docs/reliability.md says what the names mean and what was measured.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"syscall"
	"time"

	"github.com/netctl/netctl/internal/agent/settings"
	"github.com/netctl/netctl/test/restart/load"
)

// options say what is run.
type options struct {
	netctl         string // the binary under test
	other          string // one with other layouts of its files; "": it is built
	kube, quick    bool
	name           string // of the lab or cluster
	keep, markdown bool
	egress         settings.Egress // in a lab; "": as the agent does by itself
	loads, kinds   *regexp.Regexp
	idle, mbits    int
	packets        int           // a second: datagrams on each way and back, questions
	connects       int           // a second
	times          int           // 0: as often as a kind says
	every          time.Duration // at the least, between two disturbances
	podStart       time.Duration // in a lab, between a pod's end and its agent's start
	out, log       io.Writer
	plugin         func() (io.ReadCloser, error) // the CNI plugin; nil: the one that is built in
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := start(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "restart:", err)
		os.Exit(1)
	}
}

func start(ctx context.Context, args []string) error {
	if os.Getenv(load.ServeVariable) != "" {
		return load.Child(context.WithoutCancel(ctx), args, os.Stdin, os.Stdout)
	}
	o, err := parse(args)
	if err != nil {
		return err
	}
	if os.Getuid() != 0 {
		return errors.New("network namespaces need root")
	}
	if err := load.Room(o.idle); err != nil {
		return fmt.Errorf("-idle: %w", err)
	}
	var d driver
	if o.kube {
		d, err = newKubeDriver(ctx, o)
	} else {
		d, err = newLabDriver(ctx, o)
	}
	if err != nil {
		return err
	}
	r, err := run(ctx, o, d)
	if err := errors.Join(err, d.close()); err != nil {
		return err
	}
	return r.verdict()
}

func parse(args []string) (options, error) {
	o := options{out: os.Stdout, log: os.Stderr}
	flags := flag.NewFlagSet("restart", flag.ContinueOnError)
	flags.StringVar(&o.netctl, "netctl", "bin/netctl", "the binary to test, in a lab")
	flags.StringVar(&o.other, "other", "", "a binary with other layouts of its files, in a lab (default: it is built)")
	flags.BoolVar(&o.kube, "kube", false, "on a real cluster of test/kube instead of a lab")
	flags.BoolVar(&o.quick, "quick", false, "few disturbances and 1000 idle connections")
	flags.StringVar(&o.name, "name", "restart", "the name of the lab or cluster")
	flags.BoolVar(&o.keep, "keep", false, "leave the real cluster up, and use one that is")
	flags.BoolVar(&o.markdown, "markdown", false, "print the table as Markdown")
	flags.StringVar((*string)(&o.egress), "egress", "", "how the lab's pods reach the outside: sockets or packets, as the agent's flag")
	loads := flags.String("loads", ".", "loads to run: "+loadNames)
	kinds := flags.String("kinds", ".", "disturbances to try; in a lab: nothing, crash, handover, handed-back, upgrade, pod-deleted, hang")
	flags.IntVar(&o.idle, "idle", 10000, "idle connections")
	flags.IntVar(&o.times, "times", 0, "how often each disturbance is tried (default: as that kind says)")
	flags.IntVar(&o.packets, "packets", 1000, "datagrams a second each way and back, and questions to the name server")
	flags.IntVar(&o.connects, "connects", 200, "new connections a second")
	flags.IntVar(&o.mbits, "mbits", 10, "rate of each TCP stream in Mbit/s, iperf3's and others'")
	flags.DurationVar(&o.every, "every", 2*time.Second, "the least time between two disturbances")
	flags.DurationVar(&o.podStart, "pod-start", 1500*time.Millisecond, "what a pod takes to come back, in a lab")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	idle := false
	flags.Visit(func(f *flag.Flag) { idle = idle || f.Name == "idle" })
	if o.idle < 1 || o.packets < 1 || o.connects < 1 || o.mbits < 1 {
		return o, errors.New("-idle, -packets, -connects and -mbits: 1 or more; -loads leaves loads out")
	}
	if o.quick && !idle {
		o.idle = 1000
	}
	var err error
	if o.loads, err = regexp.Compile("^(" + *loads + ")"); err != nil {
		return o, fmt.Errorf("-loads: %w", err)
	}
	if o.kinds, err = regexp.Compile("^(" + *kinds + ")"); err != nil {
		return o, fmt.Errorf("-kinds: %w", err)
	}
	return o, nil
}
