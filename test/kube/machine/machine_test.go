package machine_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/netctl/netctl/test/kube/machine"
)

// newMachine returns a machine that has this machine's /usr, with a network
// namespace of its own.
func newMachine(t *testing.T) *machine.Machine {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("namespaces and mounts need root")
	}
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	for _, d := range []string{"usr", "proc", "sys", "dev", "run", "mnt", "tmp", "etc", "var/log"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, link := range []string{"bin", "sbin", "lib", "lib64"} {
		if target, err := os.Readlink("/" + link); err == nil {
			if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
				t.Fatal(err)
			}
		}
	}
	share, binaries := filepath.Join(dir, "share"), filepath.Join(dir, "bin")
	if err := errors.Join(os.Mkdir(share, 0o755), os.Mkdir(binaries, 0o755)); err != nil {
		t.Fatal(err)
	}
	// The nodes' Debian has tini; here a shell that waits does.
	tini := "#!/bin/sh\nshift 2\n\"$@\" &\nwait\n"
	if err := os.WriteFile(filepath.Join(binaries, "tini"), []byte(tini), 0o755); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("kube-test-%d", os.Getpid())
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		t.Skipf("no network namespaces here: %s", out)
	}
	m := machine.New(machine.Config{
		Name: "testhost", Netns: name, Root: root, Usr: "/usr", Binaries: binaries, Share: share, Cgroup: "/" + name,
	})
	t.Cleanup(func() {
		if err := m.Kill(); err != nil {
			t.Error(err)
		}
		if out, err := exec.Command("ip", "netns", "delete", name).CombinedOutput(); err != nil {
			t.Errorf("delete the namespace: %s", out)
		}
	})
	return m
}

func run(t *testing.T, m *machine.Machine, line string) string {
	t.Helper()
	cmd, err := m.Command(t.Context(), "sh", "-c", line)
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", line, err, out)
	}
	return strings.TrimSpace(string(out))
}

// TestLife boots a machine, looks around in it, cuts its power and boots it again.
func TestLife(t *testing.T) {
	m := newMachine(t)
	if _, err := m.Command(t.Context(), "true"); err == nil {
		t.Error("a command runs on a machine that is down")
	}
	if err := m.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	pid, ok := m.PID()
	if !ok {
		t.Fatal("booted, but there is no process 1")
	}
	if err := m.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if again, _ := m.PID(); again != pid {
		t.Errorf("booted again while up: process 1 was %d and is %d", pid, again)
	}
	for _, c := range []struct{ what, line, want string }{
		{"host name", "hostname", "testhost"},
		{"process ids", "echo $(ls /proc | grep -cx 1)", "1"},
		{"cgroup", "cut -d: -f3 /proc/1/cgroup | sort -u | grep -v init || echo /", "/"},
		{"interfaces", "ls /sys/class/net", "lo"},
		{"read-only /usr", "touch /usr/x 2>/dev/null || echo refused", "refused"},
		{"disk", "echo kept >/etc/file; cat /etc/file", "kept"},
		{"memory", "echo lost >/run/file; cat /run/file", "lost"},
	} {
		if got := run(t, m, c.line); got != c.want {
			t.Errorf("%s: got %q, want %q", c.what, got, c.want)
		}
	}
	if err := errors.Join(m.Kill(), m.Kill()); err != nil {
		t.Fatal(err)
	}
	if left := machine.ProcessesIn(m.Netns); len(left) > 0 {
		t.Errorf("killed, but processes %v are left", left)
	}
	if left, _ := filepath.Glob("/sys/fs/cgroup/*" + m.Cgroup); len(left) > 0 {
		t.Errorf("killed, but cgroups %v are left", left)
	}
	if err := m.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, want := run(t, m, "cat /etc/file; ls /run/file 2>/dev/null || echo gone"), "kept\ngone"; got != want {
		t.Errorf("after a reboot: got %q, want %q", got, want)
	}
}

// TestService starts a service, finds it running, and stops it.
func TestService(t *testing.T) {
	m := newMachine(t)
	if err := m.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if m.Running(t.Context(), "sleeper") {
		t.Fatal("runs before it was started")
	}
	if err := m.Start(t.Context(), "sleeper", "sh -c 'echo awake; exec sleep 1000'"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for !m.Running(ctx, "sleeper") || m.Log("sleeper", 1) != "awake" {
		if ctx.Err() != nil {
			t.Fatalf("does not run; its log: %s", m.Log("sleeper", 5))
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err := m.Stop(t.Context(), "sleeper"); err != nil {
		t.Fatal(err)
	}
	if m.Running(t.Context(), "sleeper") {
		t.Error("runs after it was stopped")
	}
}
