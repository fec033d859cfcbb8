package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/netctl/netctl/test/kube/cache"
	"github.com/netctl/netctl/test/kube/machine"
)

// options say what a cluster is made of. They are kept in its directory.
type options struct {
	Nodes     int    `json:"nodes"`
	CNI       string `json:"cni"`
	PodSubnet string `json:"podSubnet,omitempty"`
	KubeProxy bool   `json:"kubeProxy,omitempty"`
	CoreDNS   bool   `json:"coreDNS,omitempty"`
	RPFilter  string `json:"rpFilter,omitempty"`
	IPForward string `json:"ipForward,omitempty"`

	KubeletIPTables bool `json:"kubeletIPTables,omitempty"`
	Zones           int  `json:"zones,omitempty"`
}

// controlPlane is the node that has it.
const controlPlane = "node1"

// maxNodes is what the addresses of the wire and this machine have room for.
const maxNodes = 50

var names = regexp.MustCompile(`^[a-z][a-z0-9-]{0,19}$`)

func (o *options) validate() error {
	var errs []error
	if o.Nodes < 1 || o.Nodes > maxNodes {
		errs = append(errs, fmt.Errorf("--nodes=%d: between 1 and %d", o.Nodes, maxNodes))
	}
	if !slices.Contains([]string{cniNetctl, cniPTP, cniNone}, o.CNI) {
		errs = append(errs, fmt.Errorf("--cni=%s: netctl, ptp or none", o.CNI))
	}
	if o.CNI == cniPTP && o.PodSubnet == "" {
		o.PodSubnet = ptpSubnet
	}
	for subnet := range strings.SplitSeq(o.PodSubnet, ",") {
		if _, err := netip.ParsePrefix(subnet); err != nil && o.PodSubnet != "" {
			errs = append(errs, fmt.Errorf("--pod-subnet: %w", err))
		}
	}
	if o.Zones < 0 {
		errs = append(errs, fmt.Errorf("--zones=%d: 0 or more", o.Zones))
	}
	if !slices.Contains([]string{"", "0", "1", "2"}, o.RPFilter) {
		errs = append(errs, fmt.Errorf("--rp-filter=%s: 0, 1 or 2", o.RPFilter))
	}
	if !slices.Contains([]string{"0", "1"}, o.IPForward) {
		errs = append(errs, fmt.Errorf("--ip-forward=%s: 0 or 1", o.IPForward))
	}
	return errors.Join(errs...)
}

// Cluster is one cluster, which may be up, down or a ruin.
type Cluster struct {
	name    string
	dir     string // everything of it that is on disk
	repo    string
	cache   *cache.Cache
	out     io.Writer
	options options
}

// work is a command under way.
type work struct {
	*Cluster
	ctx  context.Context //nolint:containedctx // lives as long as the command
	args []string
}

func newCluster(name string, c *cache.Cache, repo string, out io.Writer) (*Cluster, error) {
	if !names.MatchString(name) {
		return nil, fmt.Errorf("--name=%q: up to 20 lower-case letters, digits and dashes", name)
	}
	return &Cluster{name: name, dir: c.Cluster(name), repo: repo, cache: c, out: out}, nil
}

func (c *Cluster) path(parts ...string) string {
	return filepath.Join(append([]string{c.dir}, parts...)...)
}

func (c *Cluster) say(format string, args ...any) {
	_, _ = fmt.Fprintf(c.out, "kube: "+format+"\n", args...)
}

// step does something and says in one line that it is done and how long it took.
func (c *Cluster) step(what string, do func() error) error {
	start := time.Now()
	if err := do(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	c.say("%-58s %5.1fs", what, time.Since(start).Seconds())
	return nil
}

// Up brings the cluster up, unless it is. What an earlier attempt left is
// removed first; when Up fails it leaves what it made, for a look at its logs.
func (c *Cluster) Up(ctx context.Context, o options) error {
	if err := o.validate(); err != nil {
		return err
	}
	if c.load() == nil && c.running() {
		if c.options != o {
			return fmt.Errorf("cluster %q is up with other options; take it down first", c.name)
		}
		c.say("cluster %q is up", c.name)
		c.usage()
		return nil
	}
	start := time.Now()
	if err := c.cache.Build(ctx, false); err != nil {
		return err
	}
	if err := c.Down(ctx); err != nil {
		return err
	}
	if err := watches(); err != nil {
		return err
	}
	c.options = o
	if err := c.build(ctx); err != nil {
		return fmt.Errorf("%w\n(the ruin is in %s; the next up or down removes it)", err, c.dir)
	}
	if err := c.save(); err != nil {
		return err
	}
	c.say("cluster %q is up after %s", c.name, time.Since(start).Round(time.Second))
	c.usage()
	return nil
}

func (c *Cluster) build(ctx context.Context) error {
	if err := os.MkdirAll(c.path("share"), 0o755); err != nil {
		return fmt.Errorf("create the cluster's directory: %w", err)
	}
	if err := c.cache.Pin(c.name); err != nil {
		return err
	}
	steps := []struct {
		what string
		do   func(context.Context) error
	}{
		{"wires, and the host outside", c.fabricUp},
		{"disks, boot, containerd on " + plural(c.options.Nodes, "node"), func(ctx context.Context) error {
			return c.each(ctx, c.planned(), c.bootNew)
		}},
		{"kubeadm init on " + controlPlane, c.kubeadmInit},
		{"kubeadm join on the others", func(ctx context.Context) error {
			return c.each(ctx, c.planned()[1:], c.kubeadmJoin)
		}},
		{"pods' network: " + c.options.CNI, c.network},
	}
	for _, s := range steps {
		if err := c.step(s.what, func() error { return s.do(ctx) }); err != nil {
			return err
		}
	}
	return nil
}

// each does something for several nodes at once.
func (c *Cluster) each(ctx context.Context, nodes []string, do func(context.Context, string) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, n := range nodes {
		g.Go(func() error {
			if err := do(ctx, n); err != nil {
				return fmt.Errorf("%s: %w", n, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// Down removes the cluster. It needs nothing that the cluster remembers, and
// succeeds for what is gone.
func (c *Cluster) Down(context.Context) error {
	netns, err := c.namespaces()
	if err != nil {
		return err
	}
	_, err = os.Stat(c.dir)
	if len(netns) == 0 && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return c.step(fmt.Sprintf("take down cluster %q", c.name), func() error {
		var errs []error
		for _, n := range netns {
			errs = append(errs, c.machine(strings.TrimPrefix(n, c.netns(""))).Kill())
		}
		for _, n := range netns {
			errs = append(errs, ip("netns", "delete", n))
		}
		return errors.Join(append(errs, machine.RemoveCgroups(c.cgroup("")), os.RemoveAll(c.dir))...)
	})
}

func (c *Cluster) load() error {
	data, err := os.ReadFile(c.path("cluster.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cluster %q is not up", c.name)
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(data, &c.options)
}

// save marks the cluster as up.
func (c *Cluster) save() error {
	data, err := json.Marshal(c.options)
	if err != nil {
		return err
	}
	return os.WriteFile(c.path("cluster.json"), data, 0o600)
}

// running reports whether any node is up: not after a reboot of this machine.
func (c *Cluster) running() bool {
	return slices.ContainsFunc(c.nodeNames(), func(n string) bool {
		_, ok := c.machine(n).PID()
		return ok
	})
}

// planned lists the nodes of the options.
func (c *Cluster) planned() []string {
	var out []string
	for i := range c.options.Nodes {
		out = append(out, "node"+strconv.Itoa(i+1))
	}
	return out
}

// nodeNames lists the nodes that have a disk.
func (c *Cluster) nodeNames() []string {
	entries, err := os.ReadDir(c.path("nodes"))
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// number is which node it is, from 1.
func number(node string) (int, error) {
	n, err := strconv.Atoi(strings.TrimPrefix(node, "node"))
	if err != nil || n < 1 || n > maxNodes || node != "node"+strconv.Itoa(n) {
		return 0, fmt.Errorf("%q is no node: they are node1 to node%d", node, maxNodes)
	}
	return n, nil
}

// machineOf returns a node's machine by the name that a user gave.
func (c *Cluster) machineOf(node string) (*machine.Machine, error) {
	if _, err := number(node); err != nil {
		return nil, err
	}
	return c.machine(node), nil
}

func (c *Cluster) usage() {
	_, _ = fmt.Fprintf(c.out, `
  kubectl      %[1]s get pods -A
  kubeconfig   %[2]s   (API server %[3]s, reached from "outside")
  any command  go run ./test/kube --name=%[4]s run -- COMMAND    on outside, with KUBECONFIG set
  on a node    go run ./test/kube --name=%[4]s exec node1 -- ip route
  logs         go run ./test/kube --name=%[4]s logs node1 kubelet
  nodes        go run ./test/kube --name=%[4]s node reboot|stop|start|remove|join node2
  services     go run ./test/kube --name=%[4]s restart kubelet|containerd node2; ... apiserver stop|start
  files        %[5]s is /mnt on every node
  down         go run ./test/kube --name=%[4]s down
`, c.path("kubectl"), c.path("kubeconfig"), c.apiServer(), c.name, c.path("share"))
}

// contextFor bounds a context, unless there is no limit.
func contextFor(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	if limit == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, limit, fmt.Errorf("not done after %s", limit))
}

// pass runs a command with the user's input and output.
func pass(cmd *exec.Cmd) error {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return errors.Join(errPassed, err)
	}
	return nil
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
