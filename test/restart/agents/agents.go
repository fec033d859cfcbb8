// Package agents looks at the processes of a node's agents from outside: which one
// serves, and what all of them hold.
package agents

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/netctl/netctl/internal/agent/status"
	"github.com/netctl/netctl/test/figures"
)

// Weight is what the processes of all agents hold.
type Weight struct {
	Processes, Files, Goroutines, Flows int
	RSS                                 int64 // bytes
}

// Part is one of its numbers, with how much more it may be than before.
type Part struct {
	Name  string
	Value float64
	more  func(before float64) float64
}

// Parts returns its numbers.
func (w *Weight) Parts() []Part {
	plus := func(n float64) func(float64) float64 { return func(float64) float64 { return n } }
	return []Part{
		{"processes", float64(w.Processes), plus(0)},
		{"files", float64(w.Files), plus(100)},
		{"goroutines", float64(w.Goroutines), plus(100)},
		{"rss-mb", float64(w.RSS) / 1e6, func(b float64) float64 { return 2*b + 100 }},
		{"flows", float64(w.Flows), func(b float64) float64 { return b/2 + 50000 }},
	}
}

// Growth says what has grown more than it may. What flows there are changes with the
// load by itself, and a process that has just begun has given less memory back to
// the kernel than one that has been there for a while. What a hundred restarts
// leave behind, processes first of all, is more than that.
func (w *Weight) Growth(after *Weight) []string {
	var out []string
	now := after.Parts()
	for i, b := range w.Parts() {
		if now[i].Value > b.Value+b.more(b.Value) {
			out = append(out, fmt.Sprintf("%s of the agents were %s and are %s", b.Name, figures.Number(b.Value), figures.Number(now[i].Value)))
		}
	}
	return out
}

// Add adds an agent and its holder, which are the processes pids, of a state
// directory.
func (w *Weight) Add(ctx context.Context, pids []int, stateDir string) error {
	s, err := status.Read(ctx, stateDir)
	if err != nil {
		return err
	}
	w.Goroutines += s.Process.Goroutines
	w.Flows += s.Flows
	for _, pid := range pids {
		files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			continue // it has just ended
		}
		w.Processes++
		w.Files += len(files)
		w.RSS += rss(pid)
	}
	return nil
}

func rss(pid int) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	pages, err := strconv.ParseInt(strings.Fields(string(text))[1], 10, 64)
	if err != nil {
		return 0
	}
	return pages * int64(os.Getpagesize())
}

// Command returns a process's arguments, none when it is gone.
func Command(pid int) []string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || len(text) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")
}

// Runs reports whether a process is `netctl WORD`.
func Runs(pid int, word string) bool {
	args := Command(pid)
	return len(args) > 1 && filepath.Base(args[0]) == "netctl" && args[1] == word
}

// Serving returns the process that serves a state directory, by the numbers of this
// machine: the one that listens on its status socket, and answers.
func Serving(ctx context.Context, stateDir string) (int, error) {
	if _, err := status.Read(ctx, stateDir); err != nil {
		return 0, err
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Join(stateDir, "status.sock"), Net: "unix"})
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var peer *syscall.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) {
		peer, failed = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err := errors.Join(err, failed); err != nil {
		return 0, fmt.Errorf("ask who listens at %s: %w", conn.RemoteAddr(), err)
	}
	return int(peer.Pid), nil
}
