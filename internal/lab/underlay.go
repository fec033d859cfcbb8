package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/netctl/netctl/internal/agent/settings"
	"github.com/netctl/netctl/internal/kernel"
)

// The lab's namespaces besides those of nodes and pods.
const (
	fabricNS  = "fabric"  // the network between the nodes, and its router
	outsideNS = "outside" // a host beyond it
)

// underlayUp builds the wires:
//
//	fabric: br0 (router's address) ── nN ═ eth0 of node N
//	        out0 ═ eth0 of outside
func (l *Lab) underlayUp() error {
	fabric, err := l.createNamespace(fabricNS)
	if err != nil {
		return err
	}
	defer fabric.Close()
	if err := errors.Join(kernel.CreateBridge(fabric, "br0"), kernel.SetForwarding(fabric)); err != nil {
		return fmt.Errorf("build the fabric: %w", err)
	}
	for _, p := range l.plan.underlay {
		if err := kernel.AddAddress(fabric, "br0", p); err != nil {
			return fmt.Errorf("build the fabric: %w", err)
		}
	}
	if err := kernel.SetUp(fabric, "br0"); err != nil {
		return fmt.Errorf("build the fabric: %w", err)
	}
	if err := l.outsideUp(fabric); err != nil {
		return fmt.Errorf("build the outside host: %w", err)
	}
	for i, node := range l.NodeNames() {
		if err := l.nodeWire(fabric, i, node); err != nil {
			return fmt.Errorf("wire %s: %w", node, err)
		}
	}
	return nil
}

func (l *Lab) createNamespace(part string) (*kernel.Namespace, error) {
	ns, err := kernel.CreateNamespace(l.netnsPath(part))
	if err != nil {
		return nil, fmt.Errorf("create the namespace of %s: %w", part, err)
	}
	if err := kernel.SetLoopbackUp(ns); err != nil {
		return nil, errors.Join(fmt.Errorf("bring up lo of %s: %w", part, err), ns.Close())
	}
	return ns, nil
}

func (l *Lab) outsideUp(fabric *kernel.Namespace) error {
	ns, err := l.createNamespace(outsideNS)
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := kernel.CreateVeth("out0", fabric, "eth0", ns); err != nil {
		return err
	}
	for i, p := range l.plan.outsideWire {
		if err := kernel.AddAddress(fabric, "out0", p); err != nil {
			return err
		}
		if err := kernel.AddAddress(ns, "eth0", netip.PrefixFrom(l.plan.outside[i], p.Bits())); err != nil {
			return err
		}
	}
	if err := errors.Join(kernel.SetUp(fabric, "out0"), kernel.SetUp(ns, "eth0")); err != nil {
		return err
	}
	return addDefaults(ns, l.plan.outsideWire)
}

func (l *Lab) nodeWire(fabric *kernel.Namespace, i int, node string) error {
	ns, err := l.createNamespace(node)
	if err != nil {
		return err
	}
	defer ns.Close()
	wire := wireName(i)
	if err := kernel.CreateVeth(wire, fabric, "eth0", ns); err != nil {
		return err
	}
	if mtu := l.cfg.UnderlayMTU; mtu > 0 {
		if err := errors.Join(kernel.SetMTU(fabric, wire, mtu), kernel.SetMTU(ns, "eth0", mtu)); err != nil {
			return err
		}
	}
	if err := errors.Join(kernel.SetMaster(fabric, wire, "br0"), kernel.SetUp(fabric, wire)); err != nil {
		return err
	}
	for _, p := range l.plan.nodeAddresses(i) {
		if err := kernel.AddAddress(ns, "eth0", p); err != nil {
			return err
		}
	}
	if err := kernel.SetUp(ns, "eth0"); err != nil {
		return err
	}
	if l.cfg.Egress == settings.EgressPackets {
		if err := kernel.SetForwarding(ns); err != nil {
			return err
		}
	}
	return addDefaults(ns, l.plan.underlay)
}

// wireName is the fabric's end of a node's wire.
func wireName(i int) string { return fmt.Sprintf("n%d", i+1) }

// addDefaults gives a host default routes by way of its networks' routers.
func addDefaults(ns *kernel.Namespace, routers []netip.Prefix) error {
	for _, r := range routers {
		everything := netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		if r.Addr().Is4() {
			everything = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		}
		if err := kernel.AddRoute(ns, "eth0", kernel.Route{Dst: everything, Gateway: r.Addr()}); err != nil {
			return err
		}
	}
	return nil
}

const (
	// killWait is how long the lab's processes have to end by themselves.
	killWait = 3 * time.Second
	killPoll = 10 * time.Millisecond
)

// destroy ends everything that bears the lab's name: processes, namespaces and
// with them interfaces and routes, then the directory. It needs nothing that
// the lab remembers, succeeds for what is gone, and goes on after an error.
func (l *Lab) destroy() error {
	names, err := l.namespaces()
	if err != nil {
		return err
	}
	var errs []error
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		deadline := time.Now().Add(killWait)
		for l.signal(names, sig) > 0 && time.Now().Before(deadline) {
			pause(killPoll)
		}
	}
	for _, n := range names {
		if err := kernel.DeleteNamespace(filepath.Join(netnsDir, n)); err != nil {
			errs = append(errs, fmt.Errorf("delete namespace %s: %w", n, err))
		}
	}
	if err := os.RemoveAll(l.dir); err != nil {
		errs = append(errs, fmt.Errorf("remove the lab's directory: %w", err))
	}
	return errors.Join(errs...)
}

// namespaces lists the lab's named namespaces.
func (l *Lab) namespaces() ([]string, error) {
	entries, err := os.ReadDir(netnsDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	var out []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), l.netnsPrefix()) {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

// signal sends sig to every process in the named namespaces and returns how
// many there were.
func (l *Lab) signal(names []string, sig syscall.Signal) int {
	n := 0
	for _, name := range names {
		for _, pid := range processesIn(filepath.Join(netnsDir, name)) {
			n++
			_ = syscall.Kill(pid, sig) // it may have ended meanwhile
		}
	}
	return n
}

func processesIn(path string) []int {
	ns, err := kernel.OpenNamespace(path)
	if err != nil {
		return nil
	}
	defer ns.Close()
	pids, err := kernel.ProcessesIn(ns)
	if err != nil {
		return nil
	}
	return pids
}

func pause(d time.Duration) { <-time.After(d) }
