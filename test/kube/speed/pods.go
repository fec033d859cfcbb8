package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/netctl/netctl/test/figures"
)

// pod is what is read of one.
type pod struct {
	Metadata struct{ Name string }
	Status   struct {
		Phase      string
		PodIP      string
		Conditions []struct{ Type, Status string }

		ContainerStatuses []struct{ ContainerID string }
	}
}

const (
	podsPath = "/api/v1/namespaces/default/pods"
	agnhost  = "registry.k8s.io/e2e-test-images/agnhost:2.66.1"
)

// newPod runs agnhost with arguments; a node's name or "" places it.
func newPod(name, node string, args ...string) object {
	spec := object{
		"terminationGracePeriodSeconds": 0,
		"containers":                    []any{object{"name": "agnhost", "image": agnhost, "args": args}},
		// The control plane's node takes pods like any other in these clusters.
		"tolerations": []any{object{"operator": "Exists"}},
	}
	if node != "" {
		spec["nodeSelector"] = object{"kubernetes.io/hostname": node}
	}
	return object{"apiVersion": "v1", "kind": "Pod", "metadata": object{"name": name, "labels": object{"app": "speed"}}, "spec": spec}
}

// rounds are the durations of all rounds in one cluster: the medians over their
// pods, all of them, the mean of their sandboxes, and the node's processor time
// for starts and ends.
type rounds struct{ each, process, all, sandbox, processor []time.Duration }

// starts are the durations of the pods of one round.
type starts struct {
	each    []time.Duration // of every pod, scheduled to Running
	process []time.Duration // of every pod, scheduled to the start of its process
	all     []time.Duration // one: the first scheduled to the last Running
}

// pods compares how long pods take from the event that says that they are
// scheduled to the one that says that they run, one at a time and many at once,
// on one node, in two clusters that take turns. The kubelet looks once a second
// what runs, so that is up to a second later than it does: when the container's
// process starts, containerd says at once.
func (s *speed) pods(ctx context.Context) (err error) {
	ours, err := s.up(ctx, "speed-netctl", "netctl", 1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ours.down()) }()
	theirs, err := s.up(ctx, "speed-ptp", "ptp", 1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, theirs.down()) }()
	for _, part := range []struct{ size, rounds int }{
		{1, pick(s, 3, 20)},
		{pick(s, 10, 50), pick(s, 1, 5)},
	} {
		if err := comparePods(ctx, ours, theirs, part.size, part.rounds); err != nil {
			return err
		}
	}
	return nil
}

func comparePods(ctx context.Context, ours, theirs *cluster, size, n int) error {
	var took [2]rounds
	clusters := []*cluster{ours, theirs}
	for round := -1; round < n; round++ { // the first one warms up
		for i, c := range clusters {
			before, err := c.sandboxes(ctx)
			if err != nil {
				return err
			}
			busy, err := c.processor(ctx)
			if err != nil {
				return err
			}
			st, err := c.startPods(ctx, size)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			after, err := c.sandboxes(ctx)
			if err != nil {
				return err
			}
			used, err := c.processor(ctx)
			if err != nil {
				return err
			}
			if round < 0 {
				continue
			}
			took[i].processor = append(took[i].processor, used-busy)
			took[i].all = append(took[i].all, st.all...)
			took[i].each = append(took[i].each, figures.Quantile(st.each, 0.5))
			took[i].process = append(took[i].process, figures.Quantile(st.process, 0.5))
			took[i].sandbox = append(took[i].sandbox, after.since(before))
			fmt.Fprintf(c.log, "speed: %s %d pods in %s, each %s\n", c.name, size, st.all[0], figures.Quantile(st.each, 0.5))
		}
	}
	name := "kube-pod-start-" + strconv.Itoa(size)
	ours.ratio(name, took[0].each, took[1].each)
	ours.ratio(name+"-process", took[0].process, took[1].process)
	if size > 1 {
		ours.ratio(name+"-all", took[0].all, took[1].all)
	}
	ours.ratio("kube-sandbox-"+strconv.Itoa(size), took[0].sandbox, took[1].sandbox)
	ours.ratio(name+"-processor", took[0].processor, took[1].processor)
	return nil
}

// processor is the processor time of everything on the node so far: with the
// control plane, the kubelet, the runtime, the pods, and what connects them.
func (c *cluster) processor(ctx context.Context) (time.Duration, error) {
	out, err := c.onNode(ctx, "node1", `cd /sys/fs/cgroup; if [ -f cpu.stat ]
then awk '$1 == "usage_usec" { print $2 * 1000 }' cpu.stat; else cat cpuacct/cpuacct.usage; fi`)
	if err != nil {
		return 0, err
	}
	ns, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
	return time.Duration(ns), err
}

// startPods starts so many pods at once, waits until they run, and deletes them.
func (c *cluster) startPods(ctx context.Context, n int) (starts, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 5*time.Minute, errors.New("the pods do not run after 5 minutes"))
	defer cancel()
	events, err := watch[pod](ctx, c, podsPath+"?watch=1")
	if err != nil {
		return starts{}, err
	}
	processes, err := c.processes(ctx)
	if err != nil {
		return starts{}, err
	}
	var g errgroup.Group
	for i := range n {
		g.Go(func() error { return c.create(ctx, podsPath, newPod("start-"+strconv.Itoa(i), "", "pause")) })
	}
	if err := g.Wait(); err != nil {
		return starts{}, err
	}
	seen := tracker{
		scheduled: map[string]time.Time{}, containers: map[string]string{}, running: map[string]bool{}, gone: map[string]bool{},
	}
	for e := range events {
		if !strings.HasPrefix(e.Object.Metadata.Name, "start-") {
			continue
		}
		before := len(seen.running)
		seen.see(&e)
		if len(seen.running) == n && before < n {
			seen.all = append(seen.all, e.at.Sub(seen.first))
			if err := c.do(ctx, http.MethodDelete, podsPath+"?labelSelector=app%3Dspeed", nil, nil); err != nil {
				return seen.starts, err
			}
		}
		if len(seen.gone) == n {
			for name, at := range seen.scheduled {
				if started, ok := processes.at(seen.containers[name]); ok {
					seen.process = append(seen.process, started.Sub(at))
				}
			}
			return seen.starts, c.settle(ctx)
		}
	}
	return seen.starts, context.Cause(ctx)
}

// tracker follows pods through their lives.
type tracker struct {
	starts
	first         time.Time // when one was scheduled
	scheduled     map[string]time.Time
	containers    map[string]string // their ids
	running, gone map[string]bool
}

func (t *tracker) see(e *event[pod]) {
	name := e.Object.Metadata.Name
	if e.Type == "DELETED" {
		t.gone[name] = true
	}
	at, ok := t.scheduled[name]
	if !ok && e.Object.scheduled() {
		at, ok = e.at, true
		t.scheduled[name] = at
		if t.first.IsZero() {
			t.first = at
		}
	}
	if ok && !t.running[name] && e.Object.Status.Phase == "Running" {
		t.running[name] = true
		if all := e.Object.Status.ContainerStatuses; len(all) == 1 {
			t.containers[name] = strings.TrimPrefix(all[0].ContainerID, "containerd://")
		}
		t.each = append(t.each, e.at.Sub(at))
	}
}

// processes is when containers' processes started.
type processes struct {
	mu      sync.Mutex
	started map[string]time.Time // by container id; guarded by mu
}

func (p *processes) at(id string) (time.Time, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at, ok := p.started[id]
	return at, ok
}

// processes follows containerd's events on the node until the context ends.
func (c *cluster) processes(ctx context.Context) (*processes, error) {
	cmd := exec.CommandContext(ctx, c.kube, "--name="+c.name, "exec", "node1", "--", "ctr", "--namespace=k8s.io", "events")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it ends the command on the node
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &processes{started: map[string]time.Time{}}
	go func() {
		for line := range lines(out) {
			_, data, ok := strings.Cut(line, " /tasks/start ")
			var e struct {
				ID string `json:"container_id"`
			}
			if !ok || json.Unmarshal([]byte(data), &e) != nil {
				continue
			}
			p.mu.Lock()
			p.started[e.ID] = time.Now()
			p.mu.Unlock()
		}
		_ = cmd.Wait() // it was told to end
	}()
	wait(ctx, time.Second) // until it listens, which it does not say
	return p, nil
}

func (p *pod) scheduled() bool {
	for _, c := range p.Status.Conditions {
		if c.Type == "PodScheduled" && c.Status == "True" {
			return true
		}
	}
	return false
}

// settle waits until the node has removed what was deleted.
func (c *cluster) settle(ctx context.Context) error {
	return await(ctx, 2*time.Minute, func() error {
		out, err := c.onNode(ctx, "node1", "ls /run/netns 2>/dev/null | grep -c cni- || true")
		if err == nil && strings.TrimSpace(out) != "0" {
			err = fmt.Errorf("%s namespaces of deleted pods are left", strings.TrimSpace(out))
		}
		return err
	})
}

// sandboxes is the kubelet's own count of pod sandboxes (the CRI's RunPodSandbox,
// in which the CNI plugin runs), and the time that they took.
type sandboxes struct{ count, seconds float64 }

// since returns how long each took since an earlier count.
func (s *sandboxes) since(before sandboxes) time.Duration {
	return time.Duration((s.seconds - before.seconds) / max(1, s.count-before.count) * float64(time.Second))
}

func (c *cluster) sandboxes(ctx context.Context) (sandboxes, error) {
	var out sandboxes
	body, err := c.open(ctx, http.MethodGet, "/api/v1/nodes/node1/proxy/metrics", nil)
	if err != nil {
		return out, fmt.Errorf("the kubelet's metrics: %w", err)
	}
	defer body.Close()
	for line := range lines(body) {
		name, value, _ := strings.Cut(line, " ")
		v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		if err != nil {
			continue
		}
		switch name, _, _ := strings.Cut(name, "{"); name {
		case "kubelet_run_podsandbox_duration_seconds_sum":
			out.seconds += v
		case "kubelet_run_podsandbox_duration_seconds_count":
			out.count += v
		}
	}
	return out, nil
}
