// Package machine makes hosts out of namespaces: each has its own network,
// mounts, processes, name and disk, and shares the kernel, /dev and the cgroup
// hierarchy with the machine that it is on.
//
// A machine's disk is a directory that outlives it, so a machine that is killed
// and booted again is a machine that was rebooted. Process 1 is the handle of
// all the rest: when it is killed the kernel kills every process of the machine,
// and its mounts vanish with them. What a machine needs from outside is named in
// its Config; nothing is remembered elsewhere, so a machine that a crashed
// program left behind is found again by its name.
//
// It needs root, and the programs ip, nsenter and mount.
package machine

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

//go:embed boot.sh
var bootScript string

const (
	bootWait = 20 * time.Second
	killWait = 20 * time.Second
	poll     = 20 * time.Millisecond
)

// Config says what a machine is made of.
type Config struct {
	Name     string // its host name
	Netns    string // its network namespace, by the name that ip(8) knows
	Root     string // its disk: everything but /usr
	Usr      string // what it sees as /usr, read-only
	Binaries string // what it sees as /usr/local/bin, read-only
	Share    string // what it sees as /mnt
	Cgroup   string // where its processes are in every cgroup hierarchy, such as "/kube/node1"
}

// Machine is one host. It may be down.
type Machine struct{ Config }

// New returns the machine of a configuration, which may run already.
func New(c Config) *Machine { return &Machine{c} }

// Boot starts process 1, unless it runs. The network namespace must be there.
func (m *Machine) Boot(ctx context.Context) error {
	if _, ok := m.PID(); ok {
		return nil
	}
	hierarchies, err := m.createCgroups()
	if err != nil {
		return err
	}
	//nolint:noctx // process 1 outlives this program
	cmd := exec.Command("nsenter", "--net="+netnsPath(m.Netns), "sh", "-c", bootScript, "boot")
	cmd.Env = append(os.Environ(),
		"name="+m.Name, "root="+m.Root, "usr="+m.Usr, "binaries="+m.Binaries, "share="+m.Share,
		"cgroup="+m.Cgroup, "hierarchies="+strings.Join(hierarchies, " "))
	out, err := os.Create(filepath.Join(filepath.Dir(m.Root), "boot.log"))
	if err != nil {
		return fmt.Errorf("boot %s: %w", m.Name, err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("boot %s: %w", m.Name, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // reaps it while we are here; later init does
	booted := fmt.Sprintf("/proc/%d/root/run/booted", cmd.Process.Pid)
	deadline := time.After(bootWait)
	for {
		if _, err := os.Stat(booted); err == nil {
			return nil
		}
		select {
		case err := <-ended:
			text, _ := os.ReadFile(out.Name()) // best effort: for the message
			return fmt.Errorf("boot %s: %w: %s", m.Name, err, bytes.TrimSpace(text))
		case <-deadline:
			return fmt.Errorf("boot %s: not up after %s", m.Name, bootWait)
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(poll):
		}
	}
}

func netnsPath(name string) string { return filepath.Join("/run/netns", name) }

// PID returns process 1 as this machine sees it: the one process in the network
// namespace that is the first of a process namespace right below ours.
func (m *Machine) PID() (int, bool) {
	for _, pid := range ProcessesIn(m.Netns) {
		if first(pid) {
			return pid, true
		}
	}
	return 0, false
}

// first reports whether a process is number 1 in a namespace below this one.
func first(pid int) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "NSpid:"); ok {
			ids := strings.Fields(rest)
			return len(ids) == 2 && ids[1] == "1"
		}
	}
	return false
}

// ProcessesIn returns the processes in a named network namespace; none when it
// does not exist.
func ProcessesIn(netns string) []int {
	want, err := os.Stat(netnsPath(netns))
	if err != nil {
		return nil
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var out []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if have, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", pid)); err == nil && os.SameFile(want, have) {
			out = append(out, pid)
		}
	}
	return out
}

// Kill ends the machine as if its power failed: every process, with SIGKILL. A
// machine that is down is killed.
func (m *Machine) Kill() error {
	deadline := time.Now().Add(killWait)
	for {
		// Process 1 takes the others with it; whoever entered the network from
		// outside is killed by itself.
		pids := ProcessesIn(m.Netns)
		if pid, ok := m.PID(); ok {
			pids = []int{pid}
		}
		if len(pids) == 0 {
			return RemoveCgroups(m.Cgroup)
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended meanwhile
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("kill %s: processes %v do not end", m.Name, pids)
		}
		<-time.After(poll)
	}
}

// Command returns a command that runs inside the machine.
func (m *Machine) Command(ctx context.Context, args ...string) (*exec.Cmd, error) {
	pid, ok := m.PID()
	if !ok {
		return nil, fmt.Errorf("%s is down", m.Name)
	}
	enter := []string{"-t", strconv.Itoa(pid), "-m", "-u", "-i", "-n", "-p", "-C", "--"}
	cmd := exec.CommandContext(ctx, "nsenter", append(enter, args...)...)
	cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "TERM=" + os.Getenv("TERM"), "LANG=C.UTF-8",
	}
	return cmd, nil
}

// Path returns where a file of the machine's disk is on this machine.
func (m *Machine) Path(file string) string { return filepath.Join(m.Root, file) }

// Write puts a file on the machine's disk, with its directories.
func (m *Machine) Write(file, text string, mode fs.FileMode) error {
	path := m.Path(file)
	err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), mode))
	if err != nil {
		return fmt.Errorf("write %s of %s: %w", file, m.Name, err)
	}
	return nil
}
