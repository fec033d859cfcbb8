package main

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
)

// weight is what the processes of all agents hold.
type weight struct {
	processes, files, goroutines, flows int
	rss                                 int64 // bytes
}

// part is one of its numbers, with how much more it may be than before.
type part struct {
	name  string
	value float64
	more  func(before float64) float64
}

func (w *weight) parts() []part {
	plus := func(n float64) func(float64) float64 { return func(float64) float64 { return n } }
	return []part{
		{"processes", float64(w.processes), plus(0)},
		{"files", float64(w.files), plus(100)},
		{"goroutines", float64(w.goroutines), plus(100)},
		{"rss-mb", float64(w.rss) / 1e6, func(b float64) float64 { return 2*b + 100 }},
		{"flows", float64(w.flows), func(b float64) float64 { return b/2 + 50000 }},
	}
}

// growth says what has grown more than it may. What flows there are changes with the
// load by itself, and a process that has just begun has given less memory back to
// the kernel than one that has been there for a while. What a hundred restarts
// leave behind, processes first of all, is more than that.
func (w *weight) growth(after *weight) []string {
	var out []string
	now := after.parts()
	for i, b := range w.parts() {
		if now[i].value > b.value+b.more(b.value) {
			out = append(out, fmt.Sprintf("%s of the agents were %s and are %s", b.name, number(b.value), number(now[i].value)))
		}
	}
	return out
}

// add adds an agent and its holder, which are the processes pids, of a state
// directory.
func (w *weight) add(ctx context.Context, pids []int, stateDir string) error {
	s, err := status.Read(ctx, stateDir)
	if err != nil {
		return err
	}
	w.goroutines += s.Process.Goroutines
	w.flows += s.Flows
	for _, pid := range pids {
		files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			continue // it has just ended
		}
		w.processes++
		w.files += len(files)
		w.rss += rss(pid)
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

// command returns a process's arguments, none when it is gone.
func command(pid int) []string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || len(text) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")
}

// runs reports whether a process is `netctl WORD`.
func runs(pid int, word string) bool {
	args := command(pid)
	return len(args) > 1 && filepath.Base(args[0]) == "netctl" && args[1] == word
}

// worker returns the process that serves a state directory, by the numbers of this
// machine: the one that listens on its status socket, and answers.
func worker(ctx context.Context, stateDir string) (int, error) {
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
