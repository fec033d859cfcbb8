package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/netctl/netctl/test/restart/agents"
)

func (d *kubeDriver) kinds() []kind {
	signal := func(s syscall.Signal) func(context.Context, int) error {
		return func(ctx context.Context, i int) error { return d.signal(ctx, i, s) }
	}
	return []kind{
		{name: "nothing", full: 5, quick: 2, do: func(context.Context, int) error { return nil }},
		{name: "rollout", full: 5, quick: 1, do: d.rollout},
		{name: "two-rollouts", full: 5, quick: 1, do: d.twoRollouts},
		{name: "pod-deleted", full: 5, quick: 1, do: d.deletePod},
		{name: "crash", full: 10, quick: 2, do: signal(syscall.SIGKILL)},
		{name: "panic", full: 4, quick: 1, do: signal(syscall.SIGABRT)},
		{name: "oom", full: 4, quick: 1, do: d.outOfMemory},
		{name: "hang", full: 2, quick: 1, do: signal(syscall.SIGSTOP), long: true},
		{name: "api-down", full: 2, quick: 1, do: d.withoutAPI},
	}
}

// node returns the node that it happens to: they take turns.
func (d *kubeDriver) node(i int) string { return d.found.nodes[i%len(d.found.nodes)].Name }

// worker returns the process that serves a node.
func (d *kubeDriver) worker(ctx context.Context, node string) (int, error) {
	dir, err := d.stateDir(node)
	if err != nil {
		return 0, err
	}
	return agents.Serving(ctx, dir)
}

// serves waits until another worker than the old one serves.
func (d *kubeDriver) serves(ctx context.Context, node string, old int) error {
	err := await(ctx, backWait, func() error {
		pid, err := d.worker(ctx, node)
		if err == nil && pid == old {
			err = fmt.Errorf("process %d serves still", pid)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("wait for an agent on %s: %w", node, err)
	}
	return nil
}

// signal sends the worker a signal that is its end: at once; with a report of all its
// goroutines; or when its liveness probe has failed for long enough.
func (d *kubeDriver) signal(ctx context.Context, i int, s syscall.Signal) error {
	old, err := d.worker(ctx, d.node(i))
	if err != nil {
		return err
	}
	if err := syscall.Kill(old, s); err != nil {
		return fmt.Errorf("signal the agent of %s: %w", d.node(i), err)
	}
	return d.serves(ctx, d.node(i), old)
}

// podLabels selects the agents' pods.
const podLabels = "app.kubernetes.io/name=netctl,app.kubernetes.io/component=agent"

// rollout replaces the agent of every node, as an upgrade does, and waits until all
// new pods are ready. Pods of former agents may stay for the connections that end in
// them, and 'kubectl rollout status' waits for those: it counts the oldest pod of each
// node.
func (d *kubeDriver) rollout(ctx context.Context, _ int) error {
	if err := d.restart(ctx); err != nil {
		return err
	}
	return d.updated(ctx)
}

// twoRollouts begins another rollout as soon as the first has reached a node, so that
// a pod is deleted that serves and is not ready yet.
func (d *kubeDriver) twoRollouts(ctx context.Context, _ int) error {
	old := map[string]int{}
	for _, n := range d.found.nodes {
		pid, err := d.worker(ctx, n.Name)
		if err != nil {
			return err
		}
		old[n.Name] = pid
	}
	if err := d.restart(ctx); err != nil {
		return err
	}
	err := await(ctx, backWait, func() error {
		for node, pid := range old {
			if now, err := d.worker(ctx, node); err == nil && now != pid {
				return nil
			}
		}
		return errors.New("the rollout has reached no node")
	})
	if err != nil {
		return err
	}
	if err := d.restart(ctx); err != nil {
		return err
	}
	return d.updated(ctx)
}

func (d *kubeDriver) restart(ctx context.Context) error {
	_, err := d.get(ctx, "-n", "kube-system", "rollout", "restart", "ds/netctl")
	return err
}

// updated waits until every node has a ready agent's pod of the newest generation,
// and no older one that is not on its way out.
func (d *kubeDriver) updated(ctx context.Context) error {
	return await(ctx, backWait, func() error {
		generation, err := d.get(ctx, "-n", "kube-system", "get", "ds/netctl", "-o", "jsonpath={.metadata.generation}")
		if err != nil {
			return err
		}
		text, err := d.get(ctx, "-n", "kube-system", "get", "pods", "-l", podLabels, "-o",
			`jsonpath={range .items[*]}{.spec.nodeName} {.metadata.labels.pod-template-generation} {.status.conditions[?(@.type=="Ready")].status} {.metadata.deletionTimestamp}{"\n"}{end}`)
		if err != nil {
			return err
		}
		ready := map[string]bool{}
		for line := range strings.Lines(text) {
			switch f := strings.Fields(line); {
			case len(f) > 3: // it is on its way out
			case len(f) < 3 || f[1] != generation || f[2] != "True":
				wait(ctx, lull)
				return fmt.Errorf("the rollout of generation %s is not complete: %s", generation, text)
			default:
				ready[f[0]] = true
			}
		}
		if len(ready) < len(d.found.nodes) {
			wait(ctx, lull)
			return fmt.Errorf("agents are ready on %d of %d nodes: %s", len(ready), len(d.found.nodes), text)
		}
		return nil
	})
}

// deletePod deletes an agent's pod, with all its containers. For a moment its holder
// may have a stand-in serve, which goes with it.
func (d *kubeDriver) deletePod(ctx context.Context, i int) error {
	old, err := d.worker(ctx, d.node(i))
	if err != nil {
		return err
	}
	if _, err := d.get(ctx, "-n", "kube-system", "delete", "pod", "--wait=false", "-l", podLabels, "--field-selector=spec.nodeName="+d.node(i)); err != nil {
		return err
	}
	return await(ctx, backWait, func() error {
		pid, err := d.worker(ctx, d.node(i))
		if err == nil && (pid == old || slices.Contains(agents.Command(pid), "--stand-in")) {
			err = fmt.Errorf("process %d serves, which is of the pod that was deleted", pid)
		}
		return err
	})
}

// withoutAPI kills the worker while the API server is away.
func (d *kubeDriver) withoutAPI(ctx context.Context, i int) error {
	if _, err := d.control(ctx, "apiserver", "stop"); err != nil {
		return err
	}
	err := d.signal(ctx, i, syscall.SIGKILL)
	_, back := d.control(context.WithoutCancel(ctx), "apiserver", "start")
	return errors.Join(err, back)
}

// outOfMemory has the kernel kill the worker: its container may suddenly have no more
// memory than it has, and so the next page that it needs is one too many.
func (d *kubeDriver) outOfMemory(ctx context.Context, i int) error {
	old, err := d.worker(ctx, d.node(i))
	if err != nil {
		return err
	}
	limit, usage, err := memoryFiles(old)
	if err != nil {
		return err
	}
	before, err := os.ReadFile(limit)
	if err != nil {
		return err
	}
	tight := func() error {
		text, err := os.ReadFile(usage)
		if err != nil {
			return err
		}
		used, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		if err != nil {
			return err
		}
		// Refused while more is in use and nothing can be reclaimed (cgroup v1), or
		// enough to be killed for (v2).
		_ = os.WriteFile(limit, []byte(strconv.FormatInt(used, 10)), 0o600)
		return nil
	}
	err = await(ctx, backWait, func() error {
		if !agents.Runs(old, "agent") {
			return nil
		}
		if err := tight(); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return fmt.Errorf("process %d lives still", old)
	})
	// The cgroup may have gone with the container; a stand-in's stays.
	if e := os.WriteFile(limit, before, 0o600); e != nil && !errors.Is(e, os.ErrNotExist) { //nolint:gosec // a control file of the kernel's
		err = errors.Join(err, e)
	}
	if err != nil {
		return err
	}
	return d.serves(ctx, d.node(i), old)
}

// memoryFiles returns the files of a process's cgroup that hold the limit of memory
// and how much is in use.
func memoryFiles(pid int) (limit, usage string, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", "", fmt.Errorf("find the memory of process %d: %w", pid, err)
	}
	for line := range strings.Lines(strings.TrimSpace(string(text))) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		switch {
		case len(f) != 3:
		case f[1] == "memory":
			dir := filepath.Join("/sys/fs/cgroup/memory", f[2])
			return filepath.Join(dir, "memory.limit_in_bytes"), filepath.Join(dir, "memory.usage_in_bytes"), nil
		case f[1] == "":
			dir := filepath.Join("/sys/fs/cgroup", f[2])
			if _, err := os.Stat(filepath.Join(dir, "memory.max")); err == nil {
				return filepath.Join(dir, "memory.max"), filepath.Join(dir, "memory.current"), nil
			}
		}
	}
	return "", "", fmt.Errorf("process %d is in no cgroup that limits memory: %s", pid, text)
}
