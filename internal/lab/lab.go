// Package lab is a cluster on one machine, through real parts: every node is a
// network namespace with an agent process of its own, every pod a namespace
// that got its eth0 from a CNI call, nodes speak WireGuard over an underlay of
// wires, and an "outside" host exists beyond them.
//
//	outside 198.51.100.10 ──┐
//	                      fabric (router, bridge 192.0.2.1/24)
//	          ┌──────────────┼──────────────┐
//	        node1          node2          node3      192.0.2.11, .12, .13
//	      agent│netctl0  agent│netctl0  agent│netctl0
//	        pods           pods           pods       10.128.N.x
//
// The agents read the cluster's state from a directory of manifests. The lab
// plays the rest of Kubernetes, no more than it must: the API server (it writes
// that directory and allocates virtual addresses), the scheduler, the
// Deployment and EndpointSlice controllers, and the kubelet (namespaces,
// libcni, /etc/resolv.conf, container processes).
//
// There is no lab daemon. Every command takes the lab's lock, reads the
// directory, acts and leaves. What a lab consists of can be found again from
// its name alone (its directory and the names of its namespaces), so Down
// also cleans what a crash left.
package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"syscall"

	"github.com/google/renameio/v2"

	"github.com/netctl/netctl/internal/agent/settings"
	"github.com/netctl/netctl/internal/kernel"
)

// Families says which IP families a lab's cluster has.
type Families string

// The choices.
const (
	IPv4      Families = "ipv4"
	IPv6      Families = "ipv6"
	DualStack Families = "dual-stack"
)

// Config is what `lab up` is told.
type Config struct {
	Name     string   `json:"name"`
	Nodes    int      `json:"nodes"`
	Families Families `json:"families"`
	// ClaimBlocks has the agents claim their pod ranges themselves, as on a
	// cluster without a podSubnet, instead of getting them on the Node object.
	ClaimBlocks bool `json:"claimBlocks,omitempty"`
	// Egress is the agents' own setting, "": their default. With packets nodes forward.
	Egress settings.Egress `json:"egress,omitempty"`
	// UnderlayMTU is of the wires between the nodes, 0: the kernel's 1500.
	UnderlayMTU int `json:"underlayMTU,omitempty"`
	// PodsPerNode is what the nodes' pod ranges have room for, 0: 110.
	PodsPerNode int `json:"podsPerNode,omitempty"`
}

const (
	// maxPodsPerNode is far more than a machine runs.
	maxPodsPerNode = 1000
	// maxUnderlayMTU is what a veth pair carries.
	maxUnderlayMTU = 65535
	// maxNodes is what the underlay's address plan has room for.
	maxNodes = 64
	// netnsDir is where ip(8) looks for named namespaces.
	netnsDir = kernel.RuntimeDir
)

var labName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,14}[a-z0-9])?$`)

// Validate checks a Config and names what is wrong.
func (c Config) Validate() error {
	var errs []error
	if !labName.MatchString(c.Name) {
		errs = append(errs, fmt.Errorf("lab name %q: use 1 to 16 lower-case letters, digits and dashes", c.Name))
	}
	if c.Nodes < 1 || c.Nodes > maxNodes {
		errs = append(errs, fmt.Errorf("--nodes %d: a lab has 1 to %d nodes", c.Nodes, maxNodes))
	}
	switch c.Families {
	case IPv4, IPv6, DualStack:
	default:
		errs = append(errs, fmt.Errorf("families %q: use %s, %s or %s", c.Families, IPv4, IPv6, DualStack))
	}
	switch c.Egress {
	case "", settings.EgressSockets, settings.EgressPackets, settings.EgressAuto:
	default:
		errs = append(errs, fmt.Errorf("egress %q: use %s, %s or %s", c.Egress, settings.EgressSockets, settings.EgressPackets, settings.EgressAuto))
	}
	if c.UnderlayMTU != 0 && (c.UnderlayMTU < 1500 || c.UnderlayMTU > maxUnderlayMTU) {
		errs = append(errs, fmt.Errorf("underlay MTU %d: use 1500 to %d", c.UnderlayMTU, maxUnderlayMTU))
	}
	if c.PodsPerNode < 0 || c.PodsPerNode > maxPodsPerNode {
		errs = append(errs, fmt.Errorf("pods per node %d: use 1 to %d", c.PodsPerNode, maxPodsPerNode))
	}
	return errors.Join(errs...)
}

// Lab is one lab under its lock. Close gives the lock back.
type Lab struct {
	cfg  Config
	dir  string
	exe  string // the netctl binary that agents and containers run
	cni  func() (io.ReadCloser, error)
	log  *slog.Logger
	out  io.Writer // progress, for people
	lock *os.File
	plan plan
}

// Options are how a lab is reached, whatever it consists of.
type Options struct {
	Root string // directory that holds the labs; "" for the default
	Exe  string // this program; "" to find out
	// Plugin opens the CNI plugin that nodes get; nil: the one that this program
	// holds.
	Plugin func() (io.ReadCloser, error)
	Log    *slog.Logger
	Out    io.Writer
}

// DefaultRoot is where labs are kept: on /run, so that a reboot, which ends
// their namespaces, ends them too.
func DefaultRoot() string {
	if root := os.Getenv("NETCTL_LAB_ROOT"); root != "" {
		return root
	}
	return "/run/netctl-lab"
}

// New takes the lock of a lab that is to be brought up.
func New(cfg Config, opts Options) (*Lab, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	l, err := lockLab(cfg.Name, opts)
	if err != nil {
		return nil, err
	}
	l.cfg = cfg
	if l.plan, err = newPlan(cfg); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// ErrNoLab is returned for a lab that is not up.
var ErrNoLab = errors.New("no such lab")

// Open takes the lock of a lab that is up.
func Open(name string, opts Options) (*Lab, error) {
	if !labName.MatchString(name) {
		return nil, fmt.Errorf("lab name %q: use 1 to 16 lower-case letters, digits and dashes", name)
	}
	if opts.Root == "" {
		opts.Root = DefaultRoot()
	}
	missing := fmt.Errorf("%w: %q is not up; start it with 'netctl lab up --name %s'", ErrNoLab, name, name)
	if !exists(filepath.Join(opts.Root, name)) {
		return nil, missing
	}
	l, err := lockLab(name, opts)
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(l.path("lab.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(missing, l.Close())
	}
	if err == nil {
		err = json.Unmarshal(data, &l.cfg)
	}
	if err == nil {
		l.plan, err = newPlan(l.cfg)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read lab %q: %w; remove it with 'netctl lab down --name %s'", name, err, name), l.Close())
	}
	return l, nil
}

func lockLab(name string, opts Options) (*Lab, error) {
	if opts.Root == "" {
		opts.Root = DefaultRoot()
	}
	if opts.Exe == "" {
		exe, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find this program: %w", err)
		}
		opts.Exe = exe
	}
	if opts.Out == nil {
		opts.Out = io.Discard
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	lock, err := takeLock(lockPath(opts.Root, name), opts.Out)
	if err != nil {
		return nil, fmt.Errorf("lock lab %q: %w", name, err)
	}
	return &Lab{
		cfg: Config{Name: name}, dir: filepath.Join(opts.Root, name),
		exe: opts.Exe, cni: opts.Plugin, log: opts.Log, out: opts.Out, lock: lock,
	}, nil
}

// lockPath is beside the lab's directory, which comes and goes.
func lockPath(root, name string) string { return filepath.Join(root, "."+name+".lock") }

// takeLock locks a file that its last holder removes: having it locked counts
// only while it is still the one at path.
func takeLock(path string, out io.Writer) (*os.File, error) {
	for {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, err
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the directory went with the last lab
		}
		if err != nil {
			return nil, err
		}
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if errors.Is(err, syscall.EWOULDBLOCK) {
			_, _ = fmt.Fprintln(out, "waiting for another command that works on this lab")
			err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		}
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		held, err := f.Stat()
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if found, err := os.Stat(path); err == nil && os.SameFile(held, found) {
			return f, nil
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
}

// Close gives the lab's lock back; a lab that is up goes on. Of one that is not,
// nothing stays.
func (l *Lab) Close() error {
	if l.lock == nil {
		return nil
	}
	var errs []error
	if !exists(l.dir) {
		// We hold the lock; who waits for it looks whether it is still there. The
		// directory of labs goes with the last one.
		root := filepath.Dir(l.dir)
		if err := os.Remove(lockPath(root, l.cfg.Name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		endHolder(root, l.cfg.Name)
		_ = os.Remove(root)
	}
	errs = append(errs, l.lock.Close())
	l.lock = nil
	return errors.Join(errs...)
}

// path returns a path in the lab's directory.
func (l *Lab) path(parts ...string) string {
	return filepath.Join(append([]string{l.dir}, parts...)...)
}

// clusterDir is the directory of manifests that the agents watch.
func (l *Lab) clusterDir() string { return l.path("cluster") }

// netnsName is the name of one of the lab's namespaces: the prefix tells the
// lab's from all others.
func (l *Lab) netnsName(part string) string { return l.netnsPrefix() + part }

func (l *Lab) netnsPrefix() string { return "netctl." + l.cfg.Name + "." }

func (l *Lab) netnsPath(part string) string { return filepath.Join(netnsDir, l.netnsName(part)) }

// namespace opens one of the lab's namespaces.
func (l *Lab) namespace(part string) (*kernel.Namespace, error) {
	ns, err := kernel.OpenNamespace(l.netnsPath(part))
	if err != nil {
		return nil, fmt.Errorf("open namespace of %s: %w", part, err)
	}
	return ns, nil
}

func (l *Lab) say(format string, args ...any) { _, _ = fmt.Fprintf(l.out, format+"\n", args...) }

func (l *Lab) save() error {
	data, err := json.MarshalIndent(l.cfg, "", "  ")
	if err != nil {
		return fmt.Errorf("encode lab: %w", err)
	}
	if err := renameio.WriteFile(l.path("lab.json"), data, 0o600, renameio.WithTempDir(l.dir)); err != nil {
		return fmt.Errorf("save lab: %w", err)
	}
	return nil
}

// NodeNames returns the lab's nodes in order.
func (l *Lab) NodeNames() []string {
	var out []string
	for i := range l.cfg.Nodes {
		out = append(out, nodeName(i))
	}
	return out
}

func nodeName(i int) string { return fmt.Sprintf("node%d", i+1) }

// plan holds the addresses of a lab.
type plan struct {
	podCIDRs     []netip.Prefix // of the cluster, one per family
	serviceCIDRs []netip.Prefix
	nodeBlocks   [][]netip.Prefix // by node
	underlay     []netip.Prefix   // the bridge's: address of the fabric's router
	outsideWire  []netip.Prefix   // between fabric and outside: the fabric's end
	outside      []netip.Addr
}

// The lab's underlay and outside world use the ranges that are reserved for
// examples (RFC 5737, RFC 3849), so they collide with nobody's network.
func underlayPlan() (under, wire []netip.Prefix, outside []netip.Addr) {
	return []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("2001:db8:0:1::1/64")},
		[]netip.Prefix{netip.MustParsePrefix("198.51.100.1/24"), netip.MustParsePrefix("2001:db8:0:2::1/64")},
		[]netip.Addr{netip.MustParseAddr("198.51.100.10"), netip.MustParseAddr("2001:db8:0:2::10")}
}

// has reports whether the lab's cluster has a's family.
func (f Families) has(a netip.Addr) bool {
	switch f {
	case IPv4:
		return a.Is4()
	case IPv6:
		return a.Is6()
	default:
		return true
	}
}

// nodeAddresses returns the underlay addresses of the i-th node, as prefixes of
// the underlay's networks.
func (p plan) nodeAddresses(i int) []netip.Prefix {
	var out []netip.Prefix
	for _, u := range p.underlay {
		a := u.Addr()
		for range 10 + i {
			a = a.Next()
		}
		out = append(out, netip.PrefixFrom(a, u.Bits()))
	}
	return out
}
