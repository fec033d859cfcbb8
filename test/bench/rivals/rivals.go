// Package rivals builds what netctl is measured against: the kernel's own ways from
// one namespace to another, and other programs' ways. Each is a Path, and takes
// itself down.
package rivals

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/netctl/netctl/internal/kernel"
)

// Prefix begins the name of every namespace that is made here.
const Prefix = "netctl-bench-"

// Path is a way from one namespace to an address in another one.
type Path struct {
	From, To string     // namespaces
	Addr     netip.Addr // where To is reached
	Carriers []int      // processes that carry the traffic; none: the kernel does
	Close    func() error
}

// Site is a node of a lab with one pod; rivals run beside the agents there.
type Site struct {
	Node, Pod string     // namespaces
	Addr      netip.Addr // the node's, on the underlay
}

// ip runs ip(8), a command a line; everything in it is a constant or an address.
func ip(lines ...string) error {
	for _, line := range lines {
		out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput() //nolint:noctx // ends at once
		if err != nil {
			return fmt.Errorf("ip %s: %w: %s", line, err, out)
		}
	}
	return nil
}

// in runs a command in a namespace and waits for it.
func in(ns, stdin, name string, args ...string) error {
	n, err := kernel.OpenNamespace(filepath.Join(kernel.RuntimeDir, ns))
	if err != nil {
		return err
	}
	defer n.Close()
	var out strings.Builder
	cmd := exec.Command(name, args...) //nolint:noctx // ends at once
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &out
	if err := kernel.StartIn(n, cmd); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%s %s in %s: %w: %s", name, strings.Join(args, " "), ns, err, out.String())
	}
	return nil
}

// Namespaces makes namespaces, and returns what deletes them.
func Namespaces(names ...string) (remove func() error, err error) {
	remove = func() error {
		var errs []error
		for _, n := range names {
			errs = append(errs, kernel.DeleteNamespace(filepath.Join(kernel.RuntimeDir, n)))
		}
		return errors.Join(errs...)
	}
	for _, n := range names {
		ns, err := kernel.CreateNamespace(filepath.Join(kernel.RuntimeDir, n))
		if err == nil {
			err = errors.Join(kernel.SetLoopbackUp(ns), ns.Close())
		}
		if err != nil {
			return nil, errors.Join(err, remove())
		}
	}
	return remove, nil
}

// forwarding has a namespace's kernel forward.
func forwarding(name string) error {
	ns, err := kernel.OpenNamespace(filepath.Join(kernel.RuntimeDir, name))
	if err != nil {
		return err
	}
	return errors.Join(kernel.SetForwarding(ns), ns.Close())
}

func nothing() error { return nil }
