package machine

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// stopWait is how long a service may take to end by itself.
const stopWait = 20 * time.Second

// A service is a program that runs in the background of a machine. Nobody
// restarts it when it ends: in a test that is something to be seen. Its process
// is in /run/NAME.pid of the machine, its output in /var/log/NAME.log.

// Start starts a service with the command of a shell line, unless it runs.
func (m *Machine) Start(ctx context.Context, name, line string) error {
	if m.Running(ctx, name) {
		return nil
	}
	// Who enters from outside brings its cgroup along, so it joins the machine's.
	script := fmt.Sprintf("cd /sys/fs/cgroup; procs=$(ls init/cgroup.procs 2>/dev/null || ls */cgroup.procs); "+
		"for p in $procs; do echo 0 >$p; done; cd /; echo $$ >/run/%s.pid; exec >>/var/log/%s.log 2>&1 </dev/null; exec %s", name, name, line)
	cmd, err := m.Command(ctx, "setsid", "--fork", "sh", "-c", script)
	if err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("start %s on %s: %w", name, m.Name, err)
	}
	return nil
}

// Stop ends a service: SIGTERM, and SIGKILL when it takes too long.
func (m *Machine) Stop(ctx context.Context, name string) error {
	deadline := time.Now().Add(stopWait)
	for _, signal := range []string{"TERM", "KILL"} {
		if !m.Running(ctx, name) {
			return nil
		}
		if err := m.Signal(ctx, name, signal); err != nil {
			return err
		}
		for m.Running(ctx, name) && time.Now().Before(deadline) {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(poll):
			}
		}
		deadline = deadline.Add(stopWait)
	}
	if m.Running(ctx, name) {
		return fmt.Errorf("stop %s on %s: it does not end", name, m.Name)
	}
	return nil
}

// Running reports whether a service runs.
func (m *Machine) Running(ctx context.Context, name string) bool {
	return m.Signal(ctx, name, "0") == nil
}

// Signal sends a service a signal by its name, or "0" to see whether it is there.
func (m *Machine) Signal(ctx context.Context, name, signal string) error {
	pid, ok := m.PID()
	if !ok {
		return fmt.Errorf("%s is down", m.Name)
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/root/run/%s.pid", pid, name))
	if err != nil {
		return fmt.Errorf("%s on %s has not been started: %w", name, m.Name, err)
	}
	if _, err := strconv.Atoi(strings.TrimSpace(string(text))); err != nil {
		return fmt.Errorf("process of %s on %s: %w", name, m.Name, err)
	}
	cmd, err := m.Command(ctx, "kill", "-"+signal, strings.TrimSpace(string(text)))
	if err != nil {
		return err
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("signal %s to %s on %s: %w: %s", signal, name, m.Name, err, out)
	}
	return nil
}

// Log returns the last lines of a service's output.
func (m *Machine) Log(name string, lines int) string {
	text, err := os.ReadFile(m.Path("/var/log/" + name + ".log"))
	if err != nil {
		return err.Error()
	}
	return tail(string(text), lines)
}

func tail(text string, lines int) string {
	all := strings.Split(strings.TrimRight(text, "\n"), "\n")
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	return strings.Join(all, "\n")
}
