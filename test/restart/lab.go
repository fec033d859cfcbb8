package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/netctl/netctl/internal/cluster"
	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/lab"
	"github.com/netctl/netctl/internal/mapfile"
	"github.com/netctl/netctl/test/restart/agents"
	"github.com/netctl/netctl/test/restart/load"
)

// The times of a lab.
const (
	// serveWait is how long an agent may take to serve.
	serveWait = time.Minute
	// grace is how long an agent that was asked to end may take, as its pod's
	// terminationGracePeriodSeconds.
	grace = 330 * time.Second
)

// labDriver has the load run in a lab of two nodes.
type labDriver struct {
	lab     *lab.Lab
	options options
	dir     string // of labs, this one's is in it
	found   *scene
	leaving sync.WaitGroup // agents that were asked to end
}

// memory is a directory that lies in memory, as a node's /run does: agents keep the
// tunnel's sessions nowhere else. Where there is none, crashes lose them.
func memory() string {
	const run = "/run"
	for _, dir := range []string{run, "/dev/shm"} {
		if d, err := os.Open(dir); err == nil {
			inMemory, err := mapfile.OnMemory(d)
			if d.Close() == nil && err == nil && inMemory {
				return dir
			}
		}
	}
	return run
}

func newLabDriver(ctx context.Context, o options) (_ *labDriver, err error) {
	if o.netctl, err = filepath.Abs(o.netctl); err != nil {
		return nil, err
	}
	if _, err := os.Stat(o.netctl); err != nil {
		return nil, fmt.Errorf("%w: run 'make build' first", err)
	}
	d := &labDriver{options: o, found: &scene{}}
	if d.dir, err = os.MkdirTemp(memory(), "netctl-restart"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	if o.kinds.MatchString(kindUpgrade) && o.other == "" {
		d.options.other = filepath.Join(d.dir, "netctl")
		out, err := exec.CommandContext(ctx, "go", "build", "-tags=netctl_otherlayout", "-o", d.options.other, "./cmd/netctl").CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("build netctl with other layouts of its files: %w: %s", err, out)
		}
	}
	opts := lab.Options{Root: d.dir, Exe: o.netctl, Out: io.Discard, Plugin: o.plugin}
	if d.lab, err = lab.New(lab.Config{Name: o.name, Nodes: 2, Families: lab.IPv4, Egress: o.egress}, opts); err != nil {
		return nil, err
	}
	fmt.Fprintf(o.log, "restart: lab %s\n", o.name)
	if err := d.lab.Up(ctx); err != nil {
		return nil, err
	}
	found, err := cluster.ParseManifests([]byte(labManifest()), "restart.yaml")
	if err != nil {
		return nil, err
	}
	if err := d.lab.Apply(ctx, found); err != nil {
		return nil, err
	}
	return d, d.look()
}

// labManifest is the scene's pods, which sleep, and Services.
func labManifest() string {
	var b strings.Builder
	for _, p := range podPlaces("node1", "node2") {
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Pod\nmetadata: {name: %s, labels: {service: %q}}\nspec:\n  nodeName: %s\n"+
			"  containers: [{name: idle, command: [sleep, infinity]}]\n", p.name, p.service, p.node)
	}
	b.WriteString(serviceManifests())
	return b.String()
}

// look finds what the scene consists of.
func (d *labDriver) look() error {
	s, err := d.lab.Status()
	if err != nil {
		return err
	}
	enter := func(name, ns, addr string) (*load.Place, error) {
		a, err := netip.ParseAddr(addr)
		if err != nil {
			return nil, err
		}
		return load.Enter(name, filepath.Join(kernel.RuntimeDir, ns), a)
	}
	for _, n := range s.Nodes {
		p, err := enter(n.Name, n.Namespace, n.Addresses[0])
		if err != nil {
			return err
		}
		d.found.nodes = append(d.found.nodes, p)
	}
	pods := map[string]*load.Place{}
	for _, p := range s.Pods {
		_, name, _ := strings.Cut(p.Name, "/")
		if pods[name], err = enter(name, p.Namespace, p.Addresses[0]); err != nil {
			return err
		}
	}
	d.found.cast(pods)
	prefix := strings.TrimSuffix(s.Nodes[0].Namespace, s.Nodes[0].Name)
	if d.found.outside, err = enter("outside", prefix+"outside", labOutside); err != nil {
		return err
	}
	for _, svc := range s.Services {
		if len(svc.Addresses) == 0 {
			continue
		}
		addr, err := netip.ParseAddr(svc.Addresses[0])
		if err != nil {
			return fmt.Errorf("service %s: %w", svc.Name, err)
		}
		d.found.service(svc.Name, addr)
	}
	return nil
}

// labOutside is the address of the host beyond the nodes, as `netctl lab` has it.
const labOutside = "198.51.100.10"

func (d *labDriver) scene() *scene { return d.found }

func (d *labDriver) loads() []load.Load { return nil }

func (d *labDriver) kinds() []kind {
	return []kind{
		{name: "nothing", full: 10, quick: 4, do: func(context.Context, int) error { return nil }},
		{name: "crash", full: 100, quick: 10, do: d.signal(syscall.SIGKILL)},
		{name: "handover", full: 20, quick: 4, do: d.handover},
		{name: "handed-back", full: 10, quick: 2, do: d.handBack},
		{name: kindUpgrade, full: 10, quick: 2, do: d.upgrade},
		{name: "pod-deleted", full: 5, quick: 1, do: d.deletePod},
		{name: "hang", full: 5, quick: 1, do: d.signal(syscall.SIGSTOP)},
	}
}

// node returns the node that it happens to: they take turns.
func (d *labDriver) node(i int) *load.Place { return d.found.nodes[i%len(d.found.nodes)] }

func (d *labDriver) stateDir(node *load.Place) string {
	return filepath.Join(d.dir, d.options.name, "nodes", node.Name, "run")
}

// processes returns a node's processes that are `netctl WORD`.
func (d *labDriver) processes(node *load.Place, words ...string) []int {
	ns, err := kernel.OpenNamespace(node.Path)
	if err != nil {
		return nil
	}
	defer ns.Close()
	all, err := kernel.ProcessesIn(ns)
	if err != nil {
		return nil
	}
	return slices.DeleteFunc(all, func(pid int) bool {
		return !slices.ContainsFunc(words, func(w string) bool { return agents.Runs(pid, w) })
	})
}

// signal sends the worker a signal that is its end, sooner or later. Its holder starts
// another one; where there is none, we do.
func (d *labDriver) signal(sig syscall.Signal) func(context.Context, int) error {
	return func(ctx context.Context, i int) error {
		node := d.node(i)
		old, err := agents.Serving(ctx, d.stateDir(node))
		if err != nil {
			return err
		}
		held := len(d.processes(node, "hold")) > 0
		if err := syscall.Kill(old, sig); err != nil {
			return fmt.Errorf("signal the agent of %s: %w", node.Name, err)
		}
		if !held {
			if err := d.lab.StartAgent(node.Name); err != nil {
				return err
			}
		}
		return d.serves(ctx, node, old)
	}
}

// serves waits until another worker than the old ones serves.
func (d *labDriver) serves(ctx context.Context, node *load.Place, old ...int) error {
	err := await(ctx, serveWait, func() error {
		pid, err := agents.Serving(ctx, d.stateDir(node))
		if err == nil && slices.Contains(old, pid) {
			err = fmt.Errorf("process %d serves still", pid)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("wait for an agent on %s: %w", node.Name, err)
	}
	return nil
}

// handover starts a successor with the same flags, and ends the agent that served
// when it has given way, as a rolling update does: with its holder, if it has one.
func (d *labDriver) handover(ctx context.Context, i int) error {
	return d.follow(ctx, d.node(i), d.options.netctl)
}

// follow has a program take a node over.
func (d *labDriver) follow(ctx context.Context, node *load.Place, program string) error {
	old, err := agents.Serving(ctx, d.stateDir(node))
	if err != nil {
		return err
	}
	leave := d.all(node)
	if err := d.lab.StartVersion(node.Name, program); err != nil {
		return fmt.Errorf("start a successor on %s: %w", node.Name, err)
	}
	if err := d.serves(ctx, node, old); err != nil {
		return err
	}
	d.end(leave...)
	return nil
}

// all returns what a kubelet would tell to end of a node's agents: their holders, if
// they have any.
func (d *labDriver) all(node *load.Place) []int {
	if holders := d.processes(node, "hold"); len(holders) > 0 {
		return holders
	}
	return d.processes(node, "agent")
}

func (d *labDriver) end(pids ...int) {
	for _, pid := range pids {
		d.leaving.Go(func() { end(pid) })
	}
}

// handBack is two rollouts of which the second follows at once: the successor of the
// first is told to end as soon as it serves, and another one started.
func (d *labDriver) handBack(ctx context.Context, i int) error {
	node := d.node(i)
	first, err := agents.Serving(ctx, d.stateDir(node))
	if err != nil {
		return err
	}
	before := d.all(node)
	if err := d.lab.StartAgent(node.Name); err != nil {
		return fmt.Errorf("start a successor on %s: %w", node.Name, err)
	}
	if err := d.serves(ctx, node, first); err != nil {
		return err
	}
	second, err := agents.Serving(ctx, d.stateDir(node))
	if err != nil {
		return err
	}
	d.end(slices.DeleteFunc(d.all(node), func(pid int) bool { return slices.Contains(before, pid) })...)
	if err := d.lab.StartAgent(node.Name); err != nil {
		return fmt.Errorf("start another successor on %s: %w", node.Name, err)
	}
	if err := d.serves(ctx, node, first, second); err != nil {
		return err
	}
	d.end(before...)
	return nil
}

// kindUpgrade is an upgrade to a program with other layouts of all its files, and the
// way back.
const kindUpgrade = "upgrade"

func (d *labDriver) upgrade(ctx context.Context, i int) error {
	node := d.node(i)
	log := filepath.Join(d.dir, d.options.name, "nodes", node.Name, "agent.log")
	said := func() int {
		text, _ := os.ReadFile(log) // else nothing was said
		return strings.Count(string(text), mapfile.RefusedVersion.String())
	}
	for _, program := range []string{d.options.other, d.options.netctl} {
		before := said()
		if err := d.follow(ctx, node, program); err != nil {
			return err
		}
		if said() == before {
			return fmt.Errorf("%s and %s have the same layouts of their files: nothing was tried", d.options.netctl, d.options.other)
		}
		wait(ctx, lull)
	}
	return nil
}

// end ends a process as a kubelet ends a container's.
func end(pid int) {
	args := agents.Command(pid)
	if len(args) == 0 || syscall.Kill(pid, syscall.SIGTERM) != nil {
		return // it has ended
	}
	for deadline := time.Now().Add(grace); time.Now().Before(deadline); wait(context.Background(), lull) {
		if !slices.Equal(agents.Command(pid), args) {
			return
		}
	}
	_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended just now
}

// deletePod kills all that an agent's pod has, holder and worker, and starts it anew
// after as long as a pod takes.
func (d *labDriver) deletePod(ctx context.Context, i int) error {
	node := d.node(i)
	old, err := agents.Serving(ctx, d.stateDir(node))
	if err != nil {
		return err
	}
	for _, pid := range append(d.processes(node, "hold"), d.processes(node, "agent")...) {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended with its holder
	}
	err = await(ctx, serveWait, func() error {
		if left := d.processes(node, "hold", "agent"); len(left) > 0 {
			return fmt.Errorf("processes %v are left", left)
		}
		return nil
	})
	if err != nil {
		return err
	}
	wait(ctx, d.options.podStart)
	if err := d.lab.StartAgent(node.Name); err != nil {
		return err
	}
	return d.serves(ctx, node, old)
}

func (d *labDriver) weigh(ctx context.Context) (agents.Weight, error) {
	var w agents.Weight
	for _, n := range d.found.nodes {
		if err := w.Add(ctx, d.processes(n, "hold", "agent"), d.stateDir(n)); err != nil {
			return w, err
		}
	}
	return w, nil
}

func (d *labDriver) close() error {
	var errs []error
	errs = append(errs, d.found.close())
	if d.lab != nil {
		errs = append(errs, d.lab.Down(), d.lab.Close())
	}
	d.leaving.Wait() // they went with the lab
	return errors.Join(append(errs, os.RemoveAll(d.dir))...)
}
