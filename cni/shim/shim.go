// Package shim is the CNI plugin program: a thin client of the agent.
//
// A container runtime starts the plugin for every operation on every pod, and
// for STATUS every few seconds, so what counts is a cheap start and an end
// that is certain. Go initialises every linked package before main; this
// package therefore imports a little of the standard library and nothing else
// (a test of cni/plugin holds that). It does no work on the network itself:
//
//	stdin, environment --> Request --> agent's socket, with the netns as a
//	stdout, exit code  <-- Response <-- file descriptor
//
// What it decides alone is what to say when the agent does not answer:
//
//	ADD, CHECK, GC  error 11 (try again) while the agent may be restarting,
//	                ADD error 50 when it has been away for longer
//	DEL             noted on disk (package queue) and answered with success
//	STATUS          healthy for Grace after the last healthy answer, then 50
//	VERSION         always answered here
//
// STATUS is special because runtimes turn a failure into a node that is not
// ready, and pods are evicted from it; an agent that restarts must not cause
// that. Every operation has a hard limit (see limits): a plugin that hangs
// holds locks in the runtime that stop the whole node.
//
// Under the name "loopback" the program is the loopback plugin that some
// runtimes insist on (see loopback.go).
//
// The same code runs inside the main binary when that one is executed as a
// plugin; Invoked tells.
package shim

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/netctl/netctl/cni/wire"
)

// Names under which the program is executed.
const (
	// PluginName is the plugin's type in the network configuration.
	PluginName = "netctl-cni"
	// LoopbackName makes the program the loopback plugin.
	LoopbackName = "loopback"
)

// Process is the surroundings of a plugin run.
type Process struct {
	Name   string // argv[0]; the directory does not matter
	Getenv func(string) string
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
}

// limit is the time that an operation has: total is when the plugin gives its
// own answer at the latest, agent when it stops waiting for the agent's.
type limit struct{ total, agent time.Duration }

// limits per operation. Runtimes wait minutes, holding locks meanwhile; CRI-O
// ends GC after 30 s. DEL keeps two seconds for the queue.
func limits(command string) limit {
	switch command {
	case wire.Add, wire.Check:
		return limit{total: 10 * time.Second, agent: 9500 * time.Millisecond}
	case wire.Del:
		return limit{total: 8 * time.Second, agent: 6 * time.Second}
	case wire.GC:
		return limit{total: 25 * time.Second, agent: 24 * time.Second}
	default: // STATUS, VERSION, and what is refused at once
		return limit{total: time.Second, agent: 700 * time.Millisecond}
	}
}

// outcome is the end of a run. delivered, when set, is called after the output
// has been written.
type outcome struct {
	wire.Response
	delivered func()
}

// Invoked reports whether the process was started as a CNI plugin: by a
// runtime, or under one of the plugin's names.
func Invoked(argv0 string, getenv func(string) string) bool {
	name := filepath.Base(argv0)
	return name == PluginName || name == LoopbackName || getenv("CNI_COMMAND") != ""
}

// Main runs the plugin once and returns the exit code. It returns within the
// operation's limit whatever stdin, the file system or the agent do; work that
// is stuck then ends with the process.
func Main(p Process) int {
	command := p.Getenv("CNI_COMMAND")
	if command == "" {
		_, _ = fmt.Fprintf(p.Stderr, "%s is a CNI plugin, called by a container runtime; specification versions %v\n",
			filepath.Base(p.Name), wire.SpecVersions())
		return 0
	}
	lim := limits(command)
	start := time.Now()
	done := make(chan outcome, 1)
	go func() { done <- run(p, command, start, lim) }()
	timer := time.NewTimer(lim.total)
	defer timer.Stop()
	var out outcome
	select {
	case out = <-done:
	case <-timer.C:
		out = fail(overdue(command, lim.total))
	}
	if len(out.Output) > 0 {
		if _, err := p.Stdout.Write(append(out.Output, '\n')); err != nil {
			_, _ = fmt.Fprintf(p.Stderr, "write result: %v\n", err)
			return 1
		}
	}
	if out.delivered != nil {
		out.delivered()
	}
	return out.Exit
}

func overdue(command string, total time.Duration) *wire.Error {
	code := wire.CodeTryAgain
	if command == wire.Status {
		code = wire.CodeUnavailable
	}
	return wire.Errorf(code, "%s did not end within %v: the node or its agent is overloaded or stuck; see the agent's log", command, total)
}

func fail(err *wire.Error) outcome { return outcome{Response: *err.Response()} }

func run(p Process, command string, start time.Time, lim limit) outcome {
	if command == wire.VersionOfSpec {
		return outcome{Response: wire.Response{Output: versionInfo(p.Stdin)}}
	}
	req := wire.Request{
		Version:     wire.Version,
		Command:     command,
		ContainerID: p.Getenv("CNI_CONTAINERID"),
		Netns:       p.Getenv("CNI_NETNS"),
		IfName:      p.Getenv("CNI_IFNAME"),
		Args:        p.Getenv("CNI_ARGS"),
	}
	if err := req.Validate(); err != nil {
		return fail(err)
	}
	conf, werr := readConfig(p.Stdin)
	if werr != nil {
		return fail(werr)
	}
	if filepath.Base(p.Name) == LoopbackName {
		return loopback(&req, conf)
	}
	req.Config = conf.raw
	c := call{req: req, conf: conf, stderr: p.Stderr, wait: start.Add(lim.agent), end: start.Add(lim.total)}
	out, err := c.do()
	if err == nil {
		return out
	}
	if werr := (*wire.Error)(nil); errors.As(err, &werr) {
		werr.CNIVersion = conf.CNIVersion
		return fail(werr)
	}
	return c.unanswered(err)
}
