package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/netctl/netctl/internal/cluster"
	"github.com/netctl/netctl/internal/lab"
	"github.com/netctl/netctl/test/bench/cost"
	"github.com/netctl/netctl/test/figures"
)

// testLab is a lab that a benchmark works in.
type testLab struct {
	*lab.Lab
	root, name string
}

// up brings up a lab of a binary's agents with the pods of a manifest. The caller
// calls down.
func (b *bench) up(ctx context.Context, exe string, where podsOf, manifest string) (*testLab, error) {
	var objects []cluster.Object
	if manifest != "" {
		found, err := cluster.ParseManifests([]byte(manifest), where.name+".yaml")
		if err != nil {
			return nil, err
		}
		objects = found
	}
	l, err := lab.New(lab.Config{Name: where.name, Nodes: where.nodes, Families: lab.IPv4, UnderlayMTU: where.underlay, PodsPerNode: where.room}, lab.Options{Root: b.dir, Exe: exe, Out: io.Discard})
	if err != nil {
		return nil, err
	}
	t := &testLab{Lab: l, root: b.dir, name: where.name}
	if err := l.Up(ctx); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	if err := l.Apply(ctx, objects); err != nil {
		return nil, errors.Join(err, t.down())
	}
	return t, nil
}

func (t *testLab) down() error { return errors.Join(t.Down(), t.Close()) }

// path returns a file of the lab.
func (t *testLab) path(parts ...string) string {
	return filepath.Join(append([]string{t.root, t.name}, parts...)...)
}

// pods12 is a Deployment, as `lab up` gets it.
const pods12 = `apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 12
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: web, image: web, ports: [{containerPort: 80}]}
`

// labUp measures the command itself, then what the agents of that lab weigh.
func (b *bench) labUp(ctx context.Context) error {
	file := filepath.Join(b.dir, "pods.yaml")
	if err := os.WriteFile(file, []byte(pods12), 0o600); err != nil {
		return err
	}
	var up, down []time.Duration
	var memory map[string]float64
	for range pick(b, 1, 5) {
		took, err := b.netctlLab(ctx, "up", "--nodes=3", "-f", file)
		if err != nil {
			return errors.Join(err, b.labDown())
		}
		up = append(up, took)
		if memory == nil {
			// Idle is what is left when the start's garbage has been collected,
			// which the runtime does by itself within two minutes.
			wait(ctx, pick(b, 5*time.Second, 10*time.Second))
			if memory, err = b.agentMemory(); err != nil {
				return errors.Join(err, b.labDown())
			}
		}
		if took, err = b.netctlLab(ctx, "down"); err != nil {
			return err
		}
		down = append(down, took)
	}
	b.figure("lab-up-3-nodes-12-pods", figures.Quantile(up, 0.5).Seconds(), "s")
	b.figure("lab-down-3-nodes-12-pods", figures.Quantile(down, 0.5).Seconds(), "s")
	b.figure("agent-idle-rss", memory["VmRSS"], "MB")
	b.figure("agent-idle-rss-anon", memory["RssAnon"], "MB")
	b.figure("agent-idle-rss-file", memory["RssFile"], "MB")
	b.figure("agent-idle-rss-shmem", memory["RssShmem"], "MB")
	return ctx.Err()
}

const upLab = "bench-up"

// netctlLab runs one command on the lab of labUp.
func (b *bench) netctlLab(ctx context.Context, command string, args ...string) (time.Duration, error) {
	cmd := exec.CommandContext(ctx, b.netctl, append([]string{"lab", command, "--name=" + upLab}, args...)...)
	cmd.Env = append(os.Environ(), "NETCTL_LAB_ROOT="+b.dir)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	start := time.Now()
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("netctl lab %s: %w: %s", command, err, out.String())
	}
	return time.Since(start), nil
}

// labDown cleans up after a benchmark that ended early.
func (b *bench) labDown() error {
	_, err := b.netctlLab(context.Background(), "down")
	return err
}

// agentMemory returns the memory of the largest agent, in MB by the names of
// /proc/PID/status.
func (b *bench) agentMemory() (map[string]float64, error) {
	l, err := lab.Open(upLab, lab.Options{Root: b.dir, Exe: b.netctl})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	largest := map[string]float64{}
	for _, node := range l.NodeNames() {
		pid, ok := l.AgentPID(node)
		if !ok {
			return nil, fmt.Errorf("agent of %s does not run", node)
		}
		found, err := cost.Memory(pid)
		if err != nil {
			return nil, err
		}
		if found["VmRSS"] > largest["VmRSS"] {
			largest = found
		}
	}
	return largest, nil
}

// wait sleeps, unless the context ends first.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
